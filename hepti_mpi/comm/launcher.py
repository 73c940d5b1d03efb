"""How this process was started: its launcher, host, standard input, and how all ranks are ended. Does not start MPI."""

import io
import os
import select
import shlex
import shutil
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import takewhile
from pathlib import Path
from typing import IO

from hepti_mpi.errors import HeptiError, InputError

PIPE_QUIET_SECONDS = 0.5
END_SECONDS = 1.0  # at Ctrl-C mpirun ends a rank's standard input 0.33 s before it tells the rank to end
PRINTING = ("output", "output-filename", "tag-output", "timestamp-output", "xml", "merge-stderr-to-stdout")  # options of mpirun
COUNTS = ("-n", "--n", "-np", "--np", "-c")  # options of mpirun, each before a number of ranks
PIDFD_GETFD = 438  # number of Linux's system call, on each architecture
PR_SET_PDEATHSIG = 1  # of Linux's prctl
LAUNCHERS = ("mpirun", "prterun", "orterun", "prted", "orted")  # names of processes
PARENT = os.getppid()  # of a rank its launcher; also in a process that it forks


def launched_rank() -> int:
    """Return this process's rank as its launcher tells it, without starting MPI; 0 when nobody launched it."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def launched() -> bool:
    """Say whether this process is a rank that mpirun or mpiexec started."""
    return any(name in os.environ for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"))


def launched_size() -> int:
    """Return how many ranks the launcher says that it started; 1 where it does not say."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1


def ranks() -> int:
    """Return how many ranks this job has."""
    if is_up():
        from mpi4py import MPI

        return MPI.COMM_WORLD.Get_size()
    return launched_size()


def host_name() -> str:
    return socket.gethostname().split(".")[0]


def is_up() -> bool:
    """Say whether MPI runs in this process, without starting it."""
    if "mpi4py.MPI" not in sys.modules:
        return False
    from mpi4py import MPI

    return MPI.Is_initialized() and not MPI.Is_finalized()


def ended_with_this() -> Callable[[], object]:
    """Return what a process that is started calls first, so that it is asked to end when this thread does, also when that is killed: mpirun
    would go on, and all hosts compute for nobody."""
    import ctypes

    return partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM)


def leave_all() -> None:
    """End MPI in this process, where it runs; collective."""
    if is_up():
        from mpi4py import MPI

        MPI.Finalize()


def abort_all(code: int) -> None:
    """End every rank of the job, where there is one."""
    if is_up():
        from mpi4py import MPI

        if MPI.COMM_WORLD.Get_size() == 1 and "PMIX_RANK" not in os.environ:
            return  # nobody waits for this one
        sys.stdout.flush()
        time.sleep(0.2)  # what was said last travels through mpirun
        MPI.COMM_WORLD.Abort(code)


def _words(process: int) -> list[str]:
    """Return the command line of a process; empty where it cannot be read."""
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            return [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]
    except OSError:
        return []


def rank_is_gone() -> bool:
    """Say whether a rank of this host has ended before this one: mpirun then ends all others, as it does at Ctrl-C."""
    count = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1")
    return count.isdigit() and mpirun_is_here() and sum(map(_is_rank, children(PARENT))) < int(count)


def mpirun_is_here() -> bool:
    """Say whether this rank was started by mpirun itself, not by its daemon on another host, nor by a script between."""
    return launched() and _is_mpirun(_words(PARENT))


def has_ranks_elsewhere() -> bool:
    """Say whether ranks of this job are on other hosts, of which nobody here can tell whether they have ended."""
    ranks, here = (os.environ.get(f"OMPI_COMM_WORLD_{name}", "1") for name in ("SIZE", "LOCAL_SIZE"))
    return launched() and ranks != here


def children(process: int) -> list[int]:
    """Return the processes that `process` started and that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_bytes().rpartition(b")")[2].split()[:2]  # the name before it may hold anything, also half a letter
        except OSError:  # it ended meanwhile
            continue
        if int(parent) == process and state != b"Z":
            found.append(int(path.parent.name))
    return found


def first_rank() -> int | None:
    """Return the process of the first rank, where mpirun itself has started it and this one."""
    return next((child for child in children(PARENT) if _is_rank(child, b"0\0")), None) if mpirun_is_here() else None


def _is_rank(process: int, which: bytes = b"") -> bool:
    try:
        return b"\0OMPI_COMM_WORLD_RANK=" + which in b"\0" + Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return False


def command_line(ranks: int = 0) -> list[str]:
    """Return the words that were typed to start this job, or with which one of so many `ranks` is; empty where mpirun was called on another
    host."""
    words = _words(PARENT if launched() else os.getpid())
    if launched() and not _is_mpirun(words):
        return []
    if launched():  # Open MPI's mpirun becomes prterun
        words[0] = os.path.join(os.path.dirname(words[0]), os.path.basename(words[0]).replace("prterun", "mpirun"))
    if ranks:
        words = of_ranks(words, _words(os.getpid()), ranks) if launched() else ["mpirun", "-n", str(ranks), *words]
    return [os.path.basename(word) if shutil.which(os.path.basename(word)) == word else word for word in words]


def of_ranks(words: Sequence[str], program: Sequence[str], ranks: int) -> list[str]:
    """Return the words of a call of mpirun, of which those of a rank's `program` are the last, for so many ranks.

    >>> " ".join(of_ranks("mpirun -hostfile h -n 4 python -m p -n 3".split(), "python -m p -n 3".split(), 2))
    'mpirun -n 2 -hostfile h python -m p -n 3'
    """
    end = len(words) - sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(words), reversed(program))))
    kept, options = [words[0], "-n", str(ranks)], iter(words[1:end])
    for word in options:
        if word in COUNTS:
            next(options, None)
        elif word.partition("=")[0] not in COUNTS:
            kept.append(word)
    return [*kept, *words[end:]]


def reader_is_gone(descriptor: int) -> bool:
    """Say whether standard output or error is a pipe that nobody reads any more; of a rank that of mpirun, where its own pipe ends."""
    path = f"/proc/{PARENT if launched() else 'self'}/fd/{descriptor}"
    try:
        if not stat.S_ISFIFO(os.stat(path).st_mode):
            return False
        pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    look = select.poll()
    look.register(pipe, 0)
    gone = bool(look.poll(0))
    os.close(pipe)
    return gone


def tell_past_launcher(sentence: str, fold: Callable[[str, int], str] | None = None) -> bool:
    """Write a line to mpirun's own standard error: one that is being interrupted passes nothing on. `fold` fits it into the columns of a
    terminal. Say whether that was done."""
    descriptor = past_launcher()
    if descriptor is None:
        return False
    try:
        with open(descriptor, "w", errors="backslashreplace", closefd=False) as file:
            if os.isatty(file.fileno()):
                file.write("\r")
                if fold is not None:
                    sentence = "\x1b[K" + fold(sentence, os.get_terminal_size(file.fileno()).columns)
            file.write(f"{sentence}\n")
    except OSError:  # nobody reads it any more
        return False
    return True


@cache
def past_launcher() -> int | None:
    """Return a descriptor of mpirun's own standard error, which is there also when mpirun has ended; None where it is not this rank's to
    write to."""
    try:
        return _error_of(PARENT) if mpirun_is_here() else None
    except OSError:  # a socket, or another user's
        return None


def _error_of(process: int) -> int:
    """Return a descriptor of a process's standard error. Of a file (`2>log`) it is the very one that the process has, where the system
    allows it: what another one writes there the process would write over, from where it was. Raises OSError."""
    path = f"/proc/{process}/fd/2"
    if stat.S_ISREG(os.stat(path).st_mode) and hasattr(os, "pidfd_open"):
        import ctypes

        handle = os.pidfd_open(process)
        found = int(ctypes.CDLL(None).syscall(PIDFD_GETFD, handle, 2, 0))
        os.close(handle)
        if found >= 0:
            return found
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)


def print_past_launcher() -> None:
    """Let what the first rank prints on mpirun's terminal go there by itself: Open MPI 5 holds a line back until it has ended, and so a
    bar, a question, a text that grows. Not where mpirun was asked to do something with what is printed."""
    parent, own = PARENT, _words(os.getpid())
    words = _words(parent)
    if not launched() or launched_rank() or not _is_mpirun(words):
        return
    while own and words and own[-1] == words[-1]:  # what is left are mpirun's own options, and the interpreter's name
        own, words = own[:-1], words[:-1]
    if any(word.lstrip("-").partition("=")[0] in PRINTING for word in words if word.startswith("-")):
        return
    for descriptor in (1, 2):
        try:
            found = os.open(f"/proc/{parent}/fd/{descriptor}", os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
        except OSError:  # a socket, or another user's
            continue
        if os.isatty(found):
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # ranks are no part of the group that `stty tostop` lets print
            os.dup(descriptor)  # kept open: mpirun takes a rank that has closed both for one that reads no more either
            os.dup2(found, descriptor)
        os.close(found)


def _is_mpirun(words: list[str]) -> bool:
    return bool(words) and os.path.basename(words[0]) in ("mpirun", "mpiexec", "prterun", "orterun")


def mpirun_words(called: str) -> list[str]:
    """Return the words of how mpirun is called; a file alone may have blanks in its path. Raises HeptiError."""
    if os.path.isfile(called):
        return [called]
    try:
        words = shlex.split(called)
    except ValueError as error:  # a quote that does not end
        raise HeptiError(f"mpirun is called {called!r}, which a shell cannot read: {str(error).lower()}") from None
    if not words:
        raise HeptiError("mpirun is called by an empty word; leave that out for the one that is found")
    return words


def launcher_hostfile() -> str | None:
    """Return the hostfile on this job's mpirun command line, or None where the launcher is not the parent process."""
    words = _words(PARENT)
    for option, value in zip(words, words[1:] if _is_mpirun(words) else ()):  # `time -f FORMAT` has such an option too
        if option in ("-hostfile", "--hostfile", "-machinefile", "--machinefile", "-f"):
            return value
    return None


def standard_input() -> IO[bytes]:
    """Return rank 0's standard input, whole and with an end.

    mpirun of Open MPI 5 forwards standard input but not its end (openpmix pull request 4024), and repeats parts of large pipes
    (openpmix/prrte issue 2579). So a redirected file is read itself, and a pipe has ended when mpirun's own end of it has no
    writer left and nothing more arrives. Raises InputError where mpirun is not the parent process or reads from a terminal.
    """
    if "PMIX_RANK" not in os.environ:
        return sys.stdin.buffer
    source = f"/proc/{PARENT}/fd/0"
    try:
        mode = os.stat(source).st_mode
        if _whole(source, mode):
            return open(source, "rb")
        if stat.S_ISFIFO(mode) and not _own_pipe(PARENT):
            return io.BytesIO(b"".join(_forwarded(os.open(source, os.O_RDONLY | os.O_NONBLOCK))))
    except OSError:
        pass
    raise InputError("standard input does not reach this rank through mpirun; write it to a file and give that with --input")


def typed_lines() -> Iterator[str]:
    """Yield rank 0's standard input line by line, as it comes, until its end; see standard_input. Where an end is not one that somebody
    typed but that of an interruption, that is told before the end is."""
    source, launcher = f"/proc/{PARENT}/fd/0", None
    if "PMIX_RANK" in os.environ:
        try:
            mode = os.stat(source).st_mode
            if _whole(source, mode):
                with open(source, encoding="utf-8", errors="surrogateescape") as file:
                    yield from file
                return
            if stat.S_ISFIFO(mode) and not _own_pipe(PARENT):
                launcher = os.open(source, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            pass
    if launcher is None:
        yield from iter(sys.stdin.readline, "")
    else:
        begun = b""
        for part in _forwarded(launcher):
            *lines, begun = (begun + part).split(b"\n")
            yield from (line.decode(errors="surrogateescape") + "\n" for line in lines)
        if begun:
            yield begun.decode(errors="surrogateescape")
    if launched():
        time.sleep(END_SECONDS)


def _whole(source: str, mode: int) -> bool:
    """Say whether mpirun's standard input can be read from its beginning: a file, or nothing."""
    return stat.S_ISREG(mode) or os.path.realpath(source) == os.devnull


def _own_pipe(process: int) -> bool:
    """Say whether standard input of `process` is a pipe between its own descriptors: it was started with none."""
    ends = [os.readlink(f"/proc/{process}/fd/{name}") for name in os.listdir(f"/proc/{process}/fd")]
    return ends.count(os.readlink(f"/proc/{process}/fd/0")) > 1


def _forwarded(launcher: int) -> Iterator[bytes]:
    """Yield what mpirun forwards of the pipe `launcher`, until all writers of that are gone and it is quiet."""
    writers, quiet = select.poll(), 0.0
    writers.register(launcher, select.POLLIN)
    while quiet < PIPE_QUIET_SECONDS:
        if select.select([sys.stdin.fileno()], [], [], 0.05)[0]:
            arrived = os.read(sys.stdin.fileno(), 1 << 16)
            if not arrived:  # a launcher that does forward the end
                break
            yield arrived
            quiet = 0.0
        elif any(event & select.POLLHUP and not event & select.POLLIN for _, event in writers.poll(0)):
            quiet += 0.05
    os.close(launcher)
