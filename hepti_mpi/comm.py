"""Ranks and the exchanges between them. The only user of mpi4py; importing this module does not start MPI.

Knows communicators, buffers and counts; does not know what the values mean. Control data travels as JSON in buffers:
nothing received is ever unpickled.
"""

import io
import json
import os
import select
import socket
import stat
import sys
import time
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from hepti_mpi import splits
from hepti_mpi.errors import HeptiError, InputError, RankError

IDLE_SECONDS = 0.005
ROOT_SECONDS = 0.0001
PIPE_QUIET_SECONDS = 0.5


def launched_rank() -> int:
    """Return this process's rank as its launcher tells it, without starting MPI; 0 when nobody launched it."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def is_up() -> bool:
    """Say whether MPI runs in this process, without starting it."""
    if "mpi4py.MPI" not in sys.modules:
        return False
    from mpi4py import MPI

    return MPI.Is_initialized() and not MPI.Is_finalized()


def abort_all(code: int) -> None:
    """End every rank of the job, where there is one."""
    if is_up():
        from mpi4py import MPI

        if MPI.COMM_WORLD.Get_size() == 1 and "PMIX_RANK" not in os.environ:
            return  # nobody waits for this one
        sys.stdout.flush()
        time.sleep(0.2)  # what was said last travels through mpirun
        MPI.COMM_WORLD.Abort(code)


def host_name() -> str:
    return socket.gethostname().split(".")[0]


class Comm:
    """A group of ranks. `rank` and `size` as in MPI; `hosts`: the host name of each rank."""

    def __init__(self, communicator: Any) -> None:
        self.mpi = communicator
        self.rank: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()

    @classmethod
    def world(cls) -> "Comm":
        """Start MPI and return all ranks. Waiting ranks give up the core when a host has more ranks than cores."""
        local = int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1"))
        if local >= (os.cpu_count() or 1):
            os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
        import mpi4py

        mpi4py.rc.thread_level = "serialized"
        from mpi4py import MPI

        return cls(MPI.COMM_WORLD)

    @staticmethod
    def library() -> str:
        """Return the MPI library's name and version."""
        from mpi4py import MPI

        return MPI.Get_library_version().split(",")[0].strip("\0 \n")

    def subset(self, ranks: Sequence[int]) -> "Comm | None":
        """Return the communicator of `ranks` (ascending), or None on a rank outside. Collective."""
        from mpi4py import MPI

        made = self.mpi.Split(0 if self.rank in ranks else MPI.UNDEFINED, self.rank)
        return None if made == MPI.COMM_NULL else Comm(made)

    # control data

    def gather_all(self, value: Any) -> list[Any]:
        """Return every rank's JSON-able `value`, in rank order, on every rank."""
        mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
        counts = np.empty(self.size, np.int64)
        self.mpi.Allgather(np.array([len(mine)], np.int64), counts)
        every = np.empty(int(counts.sum()), np.uint8)
        self.mpi.Allgatherv(mine, [every, counts, splits.starts(counts.tolist()), "B"])
        return [json.loads(every[at : at + count].tobytes()) for at, count in zip(splits.starts(counts.tolist()), counts)]

    def from_root(self, value: Any) -> Any:
        """Return rank 0's JSON-able `value` on every rank."""
        content = json.dumps(value).encode() if self.rank == 0 else b""
        size = np.array([len(content)], np.int64)
        self.mpi.Bcast(size)
        buffer = np.frombuffer(content, np.uint8).copy() if self.rank == 0 else np.empty(int(size[0]), np.uint8)
        self.mpi.Bcast(buffer)
        return value if self.rank == 0 else json.loads(buffer.tobytes())

    def agree(self, error: HeptiError | None) -> None:
        """Go on together or end together: raise on every rank when any has an error, the owner's own on the first owner.

        Raises: the rank's own error on the lowest rank that has one, RankError on the others.
        """
        bad = [rank for rank, failed in enumerate(self.gather_all(error is not None)) if failed]
        if bad:
            told = error if error is not None and self.rank == bad[0] else RankError(f"rank {bad[0]} failed")
            told.agreed = True
            raise told

    def barrier(self) -> None:
        """Wait for all ranks without taking a core from those that still compute."""
        request = self.mpi.Ibarrier()
        while not request.Test():
            time.sleep(IDLE_SECONDS)

    def quick_barrier(self) -> None:
        """Wait for all ranks, spinning; for measurements."""
        self.mpi.Barrier()

    # activations: float32 arrays [rows, width], `counts` rows per rank

    def broadcast(self, values: np.ndarray) -> None:
        self.mpi.Bcast(values)

    def allreduce(self, values: np.ndarray, result: np.ndarray) -> None:
        self.mpi.Allreduce(values, result)

    def reduce_scatter(self, values: np.ndarray, result: np.ndarray, counts: Sequence[int]) -> None:
        self.mpi.Reduce_scatter(values, result, [count * values.shape[1] for count in counts])

    def allgather_rows(self, values: np.ndarray, result: np.ndarray, counts: Sequence[int]) -> None:
        self.mpi.Allgatherv(values, self._rows(result, counts))

    def scatter_rows(self, values: np.ndarray | None, result: np.ndarray, counts: Sequence[int]) -> None:
        self.mpi.Scatterv(None if values is None else self._rows(values, counts), result)

    def gather_rows(self, values: np.ndarray, result: np.ndarray | None, counts: Sequence[int]) -> None:
        """Gather rows on rank 0. When that has none of its own it sleeps meanwhile: it must not take a core from those who compute."""
        request = self.mpi.Igatherv(values, None if result is None else self._rows(result, counts))
        while result is not None and not counts[0] and not request.Test():
            time.sleep(ROOT_SECONDS)
        request.Wait()

    @staticmethod
    def _rows(values: np.ndarray, counts: Sequence[int]) -> list[Any]:
        width = values.shape[1]
        sizes = [count * width for count in counts]
        return [values, sizes, splits.starts(sizes), "f"]

    def gather_matrix(self, values: np.ndarray) -> np.ndarray | None:
        """Return every rank's float64 `values` (all of one shape) stacked on rank 0, None elsewhere."""
        every = np.empty((self.size, *values.shape)) if self.rank == 0 else None
        self.mpi.Gather(np.ascontiguousarray(values, np.float64), every)
        return every

    # measurement

    def ping_pong(self, peer: int, size: int, repeat: int) -> float:
        """Return the shortest round trip of `size` bytes with `peer`, halved, in seconds; both ranks call it."""
        buffer, times = np.zeros(size, np.uint8), []
        for _ in range(repeat + 1):
            begin = time.perf_counter()
            if self.rank < peer:
                self.mpi.Send(buffer, peer)
                self.mpi.Recv(buffer, peer)
            else:
                self.mpi.Recv(buffer, peer)
                self.mpi.Send(buffer, peer)
            times.append(time.perf_counter() - begin)
        return min(times[1:]) / 2


def standard_input() -> IO[bytes]:
    """Return rank 0's standard input, whole and with an end.

    mpirun of Open MPI 5 forwards standard input but not its end (openpmix pull request 4024), and repeats parts of large pipes
    (openpmix/prrte issue 2579). So a redirected file is read itself, and a pipe has ended when mpirun's own end of it has no
    writer left and nothing more arrives. Raises InputError where mpirun is not the parent process or reads from a terminal.
    """
    if "PMIX_RANK" not in os.environ:
        return sys.stdin.buffer
    source = f"/proc/{os.getppid()}/fd/0"
    try:
        mode = os.stat(source).st_mode
        if stat.S_ISREG(mode):
            return open(source, "rb")
        if stat.S_ISFIFO(mode) and not _own_pipe(os.getppid()):
            return io.BytesIO(_drained(os.open(source, os.O_RDONLY | os.O_NONBLOCK)))
    except OSError:
        pass
    raise InputError("standard input does not reach this rank through mpirun; write it to a file and give that with --input")


def _own_pipe(process: int) -> bool:
    """Say whether standard input of `process` is a pipe between its own descriptors: it was started with none."""
    ends = [os.readlink(f"/proc/{process}/fd/{name}") for name in os.listdir(f"/proc/{process}/fd")]
    return ends.count(os.readlink(f"/proc/{process}/fd/0")) > 1


def _drained(launcher: int) -> bytes:
    """Return what mpirun forwards of the pipe `launcher`, once all writers of that are gone and it is quiet."""
    writers, content, quiet = select.poll(), bytearray(), 0.0
    writers.register(launcher, select.POLLIN)
    while quiet < PIPE_QUIET_SECONDS:
        if select.select([sys.stdin.fileno()], [], [], 0.05)[0]:
            arrived = os.read(sys.stdin.fileno(), 1 << 16)
            if not arrived:  # a launcher that does forward the end
                break
            content += arrived
            quiet = 0.0
        elif any(event & select.POLLHUP and not event & select.POLLIN for _, event in writers.poll(0)):
            quiet += 0.05
    os.close(launcher)
    return bytes(content)


def launcher_hostfile() -> str | None:
    """Return the hostfile on this job's mpirun command line, or None where the launcher is not the parent process."""
    try:
        with open(f"/proc/{os.getppid()}/cmdline", "rb") as file:
            words = [os.fsdecode(word) for word in file.read().split(b"\0")]
    except OSError:
        return None
    for option, value in zip(words, words[1:]):
        if option in ("-hostfile", "--hostfile", "-machinefile", "--machinefile", "-f"):
            return value
    return None
