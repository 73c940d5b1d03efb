"""Ranks and the exchanges between them. Importing this module does not start MPI.

Knows communicators, buffers and counts; does not know what the values mean. Control data travels as JSON in buffers:
nothing received is ever unpickled.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from hepti_mpi import splits
from hepti_mpi.comm import control, interrupts, sums
from hepti_mpi.comm.folders import check_rank, leaving_nothing
from hepti_mpi.comm.launcher import host_name, launched, launched_rank, launched_size
from hepti_mpi.comm.names import namesakes, own_addresses
from hepti_mpi.comm.patience import Among, Patience, starting
from hepti_mpi.comm.pauses import Pause, nap
from hepti_mpi.comm.sizes import DIRECT_BYTES, FLOAT, PART_BYTES
from hepti_mpi.comm.sums import cut
from hepti_mpi.errors import HeptiError, RankError

STEPS, MEETING, TIMED = 2, 3, 4  # tags: of what a stage hands on, of two that begin together, and what is timed then; 1 is of sums


class Comm:
    """A group of ranks. `rank` and `size` as in MPI; `patience` watches over all waits; `turn`: who holds it may call MPI, where several
    threads of this rank do."""

    def __init__(self, communicator: Any, patience: Patience | Among, turn: Any = None) -> None:
        self.mpi, self.patience, self.turn = communicator, patience, turn or threading.RLock()
        self.polite = False  # whether waits leave their core: emulated boards go before all else, and those that spin would stop the others
        self.latencies: Sequence[float] = ()  # seconds by which what each rank sends is seen later than it comes in; empty: at once
        self.rank: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()

    @property
    def alone(self) -> bool:
        """Whether it is this rank and no other."""
        return self.size == 1

    @classmethod
    def world(cls, deadline: float = 0.0) -> "Comm":
        """Start MPI and return all ranks. Waiting ranks give up the core when a host has more ranks than cores, and only then: whatever
        else the host does would have it for milliseconds at each look.

        `deadline`: seconds after which a rank no longer waits for another; 0: never. Raises HeptiError where the launcher is another MPI's,
        and where two machines have one name.
        """
        local = int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1"))
        os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", str(int(local > (os.cpu_count() or 1))))
        # A transport for one-sided accesses, of which there are none; where there is no network of its kind Open MPI 5 sleeps a second
        # when it puts it away, at every start
        if launched():
            check_rank()
            os.environ.setdefault("OMPI_MCA_btl", "^ofi")
        os.environ.setdefault("HOME", os.path.expanduser("~"))  # without one MPI does not start; the system knows the user's
        import mpi4py

        mpi4py.rc.thread_level = "serialized"
        with nullcontext() if launched() else leaving_nothing(), starting(deadline):
            from mpi4py import MPI

        interrupts.hear_again()
        comm = MPI.COMM_WORLD
        if comm.Get_size() == 1 < launched_size():
            alone: HeptiError = RankError("this rank is alone")
            if launched_rank() == 0:
                alone = HeptiError(
                    f"mpirun started {launched_size()} ranks and each of them is alone: mpirun is another MPI's than {cls.library()}, "
                    f"with which they run; call that one's, which may be {os.path.join(sys.prefix, 'bin', 'mpirun')}"
                )
            alone.agreed = True
            raise alone
        patience = Patience(deadline, comm.Get_rank(), comm.Get_size())
        world = cls(comm, patience)
        patience.hear_signals()
        world.meet_all()
        every = world.gather_all([host_name(), own_addresses(), local])
        patience.hosts, patience.addresses = [host for host, *_ in every], {host: addresses for host, addresses, _ in every}
        if (alike := namesakes(every)) is not None:
            one, other = (f"rank {rank} ({every[rank][1][0]})" for rank in alike)
            what = f"{one} and {other} are on two machines that both call themselves {every[alike[0]][0]}: MPI takes them for one"
            mend = "rename one with: sudo hostnamectl set-hostname NAME"
            world.agree(HeptiError(f"{what}; {mend}") if world.rank == 0 else None)
        return world

    @staticmethod
    def library() -> str:
        """Return the MPI library's name and version."""
        from mpi4py import MPI

        return MPI.Get_library_version().split(",")[0].strip("\0 \n")

    def subset(self, ranks: Sequence[int]) -> "Comm | None":
        """Return the communicator of `ranks` (ascending), or None on a rank outside. Collective."""
        from mpi4py import MPI

        with self.patience.waiting():
            made = self.mpi.Split(0 if self.rank in ranks else MPI.UNDEFINED, self.rank)
        if made == MPI.COMM_NULL:
            return None
        return Comm(made, self.patience, self.turn)

    def parted(self, groups: Sequence[Sequence[int]]) -> "Comm | None":
        """Return the communicator of this rank's group, whose ranks count in the order of the group; None outside of all. Collective."""
        from mpi4py import MPI

        own = next((number for number, ranks in enumerate(groups) if self.rank in ranks), None)
        place = self.rank if own is None else list(groups[own]).index(self.rank)
        with self.patience.waiting():
            made = self.mpi.Split(MPI.UNDEFINED if own is None else own, place)
        if own is None:
            return None
        part = Comm(made, self.patience.among(groups[own]), self.turn)
        part.latencies = [self.latencies[rank] for rank in groups[own]] if self.latencies else ()
        return part

    # control data

    def gather_all(self, value: Any) -> list[Any]:
        """Return every rank's JSON-able `value`, in rank order, on every rank."""
        content, heads = json.dumps(value).encode(), np.empty((self.size, control.HEAD_BYTES), np.uint8)
        with self.patience.waiting():
            self.done([self.mpi.Iallgather(control.head_of(content), heads)])
            left = [control.left(head) for head in heads]
            every = np.empty(sum(left), np.uint8)
            if any(left):
                self.done([self.mpi.Iallgatherv(control.rest_of(content), [every, left, splits.starts(left), "B"])])
        return [control.value_of(head, every[at : at + count]) for head, at, count in zip(heads, splits.starts(left), left)]

    def from_root(self, value: Any) -> Any:
        """Return rank 0's JSON-able `value` on every rank."""
        content = json.dumps(value).encode() if self.rank == 0 else b""
        head = control.head_of(content)
        with self.patience.waiting(lambda: [0] if self.rank else []):
            self.done([self.mpi.Ibcast(head)])
            rest = control.rest_of(content).copy() if self.rank == 0 else np.empty(control.left(head), np.uint8)
            if len(rest):
                self.done([self.mpi.Ibcast(rest)])
        return value if self.rank == 0 else control.value_of(head, rest)

    def agree(self, error: HeptiError | None) -> None:
        """Go on together or end together: raise on every rank when any has an error, the owner's own on the first owner.

        Raises: the rank's own error on the lowest rank that has one, RankError on the others.
        """
        bad = [rank for rank, failed in enumerate(self.gather_all(error is not None)) if failed]
        if bad:
            told = error if error is not None and self.rank == bad[0] else RankError(f"rank {bad[0]} failed")
            told.agreed = True
            raise told

    def barrier(self, patient: bool = False) -> None:
        """Wait for all ranks without taking a core from those that still compute; `patient`: for ever, where that may be right."""
        with nullcontext() if patient else self.patience.waiting():
            self.done([self.mpi.Ibarrier()])

    def quick_barrier(self) -> None:
        """Wait for all ranks, spinning; for measurements."""
        with self.patience.waiting():
            self.mpi.Barrier()

    # files: bytes

    def send(self, peer: int, values: np.ndarray) -> None:
        """Send bytes to `peer`, which calls `receive` for as many."""
        with self.patience.waiting(lambda: [peer]):
            self.done([self.mpi.Isend(values, peer)])

    def receive(self, peer: int, size: int) -> np.ndarray:
        """Return the `size` bytes that `peer` sends."""
        values = np.empty(size, np.uint8)
        with self.patience.waiting(lambda: [peer]):
            self.done([self.mpi.Irecv(values, peer)])
        return values

    # activations: float32 arrays [rows, width], `counts` rows per rank

    def broadcast(self, values: np.ndarray, patient: bool = False) -> None:
        """Bring what rank 0 has to all; `patient`: whenever that is: nobody is late, and whoever waits sleeps."""
        if self.alone:
            return
        with nullcontext() if patient else self.patience.waiting():
            with self.turn:
                if not (patient or self.polite):
                    self.mpi.Bcast(values)
                    return
                request = self.mpi.Ibcast(values)
            self.done([request])

    def allreduce(self, values: np.ndarray, result: np.ndarray) -> None:
        self.summing(values, result)()

    def summing(self, values: np.ndarray, result: np.ndarray) -> Callable[[], None]:
        """Return what leaves in `result` the sum of all ranks' `values`, arrays that stay where they are: many sums are in a token.

        Of float16 MPI has no sums: terms and the sum travel so, and are added up in float32 (a ring would round at each rank).
        """
        wait, turn, reduce = self.patience.waiting(), self.turn, self.mpi.Allreduce
        by_messages = sums.in_parts if values.size * FLOAT > DIRECT_BYTES else sums.directly
        own = self.polite or values.dtype == np.float16

        def run() -> None:
            if own:
                with wait:
                    by_messages(self, values, result)
            else:
                with wait, turn:
                    reduce(values, result)

        return run

    def reduce_scatter(self, values: np.ndarray, result: np.ndarray, counts: Sequence[int]) -> None:
        sizes = [count * values.shape[1] for count in counts]
        with self.patience.waiting():
            self.mpi.Reduce_scatter(values, result, sizes)

    def allgather_rows(self, values: np.ndarray, result: np.ndarray, counts: Sequence[int]) -> None:
        into = self._rows(result, counts)
        with self.patience.waiting():
            self.mpi.Allgatherv(values, into)

    def scatter_rows(self, values: np.ndarray, counts: Sequence[int]) -> None:
        """Bring each rank its own rows from rank 0, whose `values` are all rows, its own the first of them."""
        from mpi4py import MPI

        parts = (self._rows(values, counts), MPI.IN_PLACE) if self.rank == 0 else (None, values)
        with self.patience.waiting():
            self.mpi.Scatterv(*parts)

    def gather_rows(self, values: np.ndarray, counts: Sequence[int]) -> None:
        """Bring each rank's own rows to rank 0, whose `values` have room for all, its own being the first of them. When that has none of
        its own it sleeps meanwhile: it must not take a core from those who compute."""
        from mpi4py import MPI

        if self.alone:
            return
        parts = (MPI.IN_PLACE, self._rows(values, counts)) if self.rank == 0 else (values, None)
        with self.patience.waiting():
            with self.turn:
                request = self.mpi.Igatherv(*parts)
                if not self.polite and (self.rank or counts[0]):
                    request.Wait()
            self.done([request])

    def pass_on(self, peer: int, values: np.ndarray) -> Callable[[], None]:
        """Begin to send float32 `values` to `peer`, which calls `take_over`; return what waits until they have left."""
        with self.turn:
            requests = [self.mpi.Isend(part, peer, STEPS) for part in cut(values)]

        def leaves() -> None:
            with self.patience.waiting():
                self.done(requests)

        return leaves

    def take_over(self, peer: int, values: np.ndarray, size: Callable[[], int], pause: Pause | None) -> None:
        """Wait for what `peer` passes on into `values`, which have room for more; `size` tells how many there are, once the first are in.

        `pause`: what is done between two looks; None: it may come whenever it does, and this rank sleeps.
        """
        first, *_ = cut(values)
        with self.turn:
            requests = [self.mpi.Irecv(first, peer, STEPS)]
        with nullcontext() if pause is None else self.patience.waiting():
            self.done(requests, pause or nap)
        with self.turn:
            requests = [self.mpi.Irecv(part, peer, STEPS) for part in cut(values[: size()])[1:]]
        with self.patience.waiting():
            self.done(requests, pause or nap)

    def end(self, requests: Sequence[Any]) -> None:
        """Wait as MPI does in its own exchanges."""
        from mpi4py import MPI

        with self.turn:
            MPI.Request.Waitall(list(requests))

    def done(self, requests: Sequence[Any], pause: Pause = nap) -> None:
        """Wait without spinning: at once when the others are there, without taking a core when they compute, search or read.

        MPI looks and then moves on: what came meanwhile is seen by the next look, so that there are two before each pause.
        """
        from mpi4py import MPI

        begin = time.perf_counter()
        while True:
            with self.turn:
                if MPI.Request.Testall(requests) or MPI.Request.Testall(requests):
                    return
            pause(time.perf_counter() - begin)

    @staticmethod
    def _rows(values: np.ndarray, counts: Sequence[int]) -> list[Any]:
        width = values.shape[1]
        sizes = [count * width for count in counts]
        return [values, sizes, splits.starts(sizes), "f"]

    def gather_matrix(self, values: np.ndarray) -> np.ndarray | None:
        """Return every rank's float64 `values` (all of one shape) stacked on rank 0, None elsewhere."""
        every = np.empty((self.size, *values.shape)) if self.rank == 0 else None
        with self.patience.waiting():
            self.mpi.Gather(np.ascontiguousarray(values, np.float64), every)
        return every

    # measurement

    def ping_pong(self, peer: int, repeat: int) -> float:
        """Return the shortest time in seconds in which one byte goes to `peer` and one comes back; both ranks call it.

        The latency that the lab gives the link, the same both ways, is added: a rank that slept that long would begin its next turn late.
        """
        buffer, times = np.zeros(1, np.uint8), []
        late = self.latencies[peer] if self.latencies else 0.0
        for turn in range(2 * (repeat + 1)):
            with self.patience.waiting(lambda: [peer]):
                begin = time.perf_counter()
                if (self.rank < peer) == (turn % 2 == 0):
                    self.mpi.Send(buffer, peer)
                    self.mpi.Recv(buffer, peer)
                    times.append(time.perf_counter() - begin)
                else:
                    self.mpi.Recv(buffer, peer)
                    self.mpi.Send(buffer, peer)
        return min(times[1:]) + 2 * late

    def both_ways(self, peer: int, size: int, ahead: int = 0, pause: Pause = nap) -> float:
        """Return the seconds in which `size` bytes come from `peer`, behind `ahead` others and while as many go there; both ranks call it.

        Exchanges go both ways at once, for which wires have a way each; Wi-Fi has one for both. Behind others, no more than these are on
        the way at once: a link that has become thin would drop what waits too long, and seem thinner still.
        """
        late = self.latencies[peer] if self.latencies and not ahead else 0.0
        before, timed = _parts(ahead), _parts(size)
        parts, at_once = before + timed, len(before or timed)
        with self.patience.waiting(lambda: [peer]):
            receives = [self.mpi.Irecv(np.empty_like(part), peer, TIMED) for part in parts]
            self._meet(peer)  # what comes before somebody looks would all seem to come at once
            begin = time.perf_counter()
            sends = [self.mpi.Isend(part, peer, TIMED) for part in parts[:at_once]]
            for number, request in enumerate(receives, 1):
                self.done([request], pause)
                if number == len(before):
                    begin = time.perf_counter()
                sends += [self.mpi.Isend(part, peer, TIMED) for part in parts[at_once + number - 1 : at_once + number]]
            seconds = time.perf_counter() - begin
            self.done(sends, pause)
        return seconds + late

    def meet_all(self) -> None:
        """Make the connections to all other ranks, which MPI does when two first have something to say: whom one cannot reach is found out
        now. Collective."""
        nothing, came = np.zeros(1, np.uint8), np.zeros(self.size, np.uint8)
        peers = [(self.rank + step) % self.size for step in range(1, self.size)]
        with self.patience.waiting():
            requests = [self.mpi.Irecv(came[peer : peer + 1], peer, MEETING) for peer in peers]
            self.done([*requests, *(self.mpi.Isend(nothing, peer, MEETING) for peer in peers)])

    def _meet(self, peer: int) -> None:
        """Wait until `peer` is here as well."""
        self.mpi.Sendrecv(np.zeros(1, np.uint8), peer, MEETING, np.zeros(1, np.uint8), peer, MEETING)


def _parts(size: int) -> list[np.ndarray]:
    """Return buffers of `size` bytes in all, each small enough to be sent without the receiver's consent."""
    return [np.zeros(min(PART_BYTES, size - at), np.uint8) for at in range(0, size, PART_BYTES)]
