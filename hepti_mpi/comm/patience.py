"""How long a rank waits for the others. Whoever waits too long says for whom, and ends its part of the job.

Knows clocks, hosts and processes; does not know what is exchanged. A blocking call of MPI cannot be interrupted, and MPI_Abort waits for
hosts that do not answer: so a thread watches, and ends this process and, where mpirun or its daemon started it, that one too.
"""

import os
import select
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hepti_mpi.comm import interrupts
from hepti_mpi.comm.channel import tell_trouble
from hepti_mpi.comm.launcher import LAUNCHERS, children, host_name, launched_rank, launched_size, launcher_hostfile
from hepti_mpi.comm.standby import close_all_but

EXIT_CODE = 3  # of a rank that waited too long
LOOK_SECONDS = 0.25
ANSWER_SECONDS = 2.0  # for a host to answer
KNOWING_SECONDS = ANSWER_SECONDS + 1.0  # that a rank whose late ones all answer leaves the word to others
END_SECONDS = 2.0  # for mpirun to end when it is told to
GONE_SECONDS = 5.0  # for mpirun to end after it has ended a rank: it waits for hosts that do not answer
LATER_SECONDS = 0.5  # that the next rank is more patient: the first whose deadline passes speaks for all
aloud: list[Callable[[str], object]] = []  # says a sentence to people; none: standard error gets it as it is
STILL = 0.25  # of its seconds that a rank stands still itself before they count anew
SLOWER = 10  # times as long others may take to measure or to load
AFTER_SECONDS = 2.0  # that the next rank is more patient before ranks have met: so long mpirun may take to end it
START = 2  # times as long ranks may take to find each other, which is said in a word
SSH_PORT = 22
Whom = Callable[[], Sequence[int]]


@dataclass(frozen=True)
class Late:
    """A wait that lasted too long: `ranks` that were waited for, those on silent hosts where there are any; `silent`: the hosts that do
    not answer; `alone`: no other host does, so the trouble may well be this rank's own."""

    seconds: float
    ranks: tuple[int, ...]
    silent: tuple[str, ...]
    alone: bool

    def sentence(self, rank: int, hosts: Sequence[str]) -> str:
        ranks = ", ".join(f"rank {late} on {hosts[late]}" for late in self.ranks[:4]) + ", ..." * (len(self.ranks) > 4)
        if self.alone:
            what = f"no other host answers: look at the link of {hosts[rank]}, then at theirs, and run again"
        elif self.silent:
            verb = "does" if len(self.silent) == 1 else "do"
            what = f"{', '.join(self.silent)} {verb} not answer: mend it, or leave it out of the hostfile, and run again"
        else:
            what = "all hosts answer: look for a process there that is stopped or out of memory, or give more time with --deadline"
        return f"error on {host_name()} (rank {rank}): waited {self.seconds:g} s for {ranks}; {what}"


class Patience:
    """Watches the waits of one rank. `hosts`: where each rank of the job is, and `addresses` by which each host may be reached, once
    that is known."""

    def __init__(self, seconds: float, rank: int = 0, size: int = 1) -> None:
        """`seconds`: of the longest wait; 0 waits for ever."""
        self.seconds, self.rank, self.watches = seconds, rank, seconds > 0 and size > 1
        self.hosts = ["its host"] * size
        self.addresses: dict[str, Sequence[str]] = {}
        self.factor = 1
        self.since: float | None = None
        self.woke = 0.0  # when this rank last went on after it had stood still itself
        self.unheard: tuple[float, Sequence[int]] | None = None  # since when which ranks are waited for by others than the main thread
        self.whom: Whom = lambda: [other for other in range(size) if other != rank]
        self.everyone = self.whom
        if self.watches:
            threading.Thread(target=self._watch, name="patience", daemon=True).start()

    def hear_signals(self) -> None:
        """Make sure that mpirun ends when it ends this rank: told by another rank, it would wait for a host that does not answer."""
        if self.watches:
            interrupts.end_by(lambda code: end_here(code, GONE_SECONDS))

    def waiting(self, whom: Whom | None = None) -> AbstractContextManager[None]:
        """Watch over what is waited for inside; `whom` tells, when asked, which ranks have not come; None: any of them."""
        return _Waiting(self, whom or self.everyone)

    @contextmanager
    def slower(self) -> Iterator[None]:
        """Be more patient inside: ranks measure or load, some of them from slow storage."""
        before, self.factor = self.factor, SLOWER
        try:
            yield
        finally:
            self.factor = before

    def hear(self, ranks: Sequence[int], since: float) -> None:
        """Note for which ranks somebody else than the main thread waits, and since when, by time.monotonic; none: for nobody."""
        self.unheard = (since, ranks) if ranks else None

    def among(self, ranks: Sequence[int]) -> "Among":
        """Return the same watch for waits of some ranks for each other, who count themselves from 0."""
        return Among(self, ranks)

    def left(self) -> float | None:
        """Return the seconds until the wait under way has lasted too long; None when nothing is waited for."""
        since, _ = self._oldest()
        if since is None:
            return None
        return max(since, self.woke) + self.seconds * self.factor + LATER_SECONDS * min(self.rank, 8) - time.monotonic()

    def looked(self, begin: float, now: float) -> None:
        """Note how long a look took: a rank that stood still itself, as all do after Ctrl-Z, has not waited for others meanwhile."""
        if now - begin > LOOK_SECONDS + self.seconds * STILL:
            self.woke = now

    def late(self) -> list[int]:
        """Return the ranks that have not come."""
        return list(self._oldest()[1]()) or list(self.everyone())

    def _oldest(self) -> tuple[float | None, Whom]:
        """Return since when who is waited for, by the main thread or others."""
        since, whom, unheard = self.since, self.whom, self.unheard
        if unheard is None or (since is not None and since <= unheard[0]):
            return since, whom
        return unheard[0], lambda: unheard[1]

    def judged(self, silent_of: Callable[[Collection[str]], set[str]]) -> Late:
        """Return for whom this rank waited, if need be those whose hosts are silent; `silent_of` tells which of some hosts are."""
        late, own = self.late(), self.hosts[self.rank]
        others = [host for host in dict.fromkeys(self.hosts) if host != own]
        silent = silent_of(others)
        lost = [host for host in others if host in silent]
        named = [rank for rank in late if self.hosts[rank] in lost] or late
        return Late(self.seconds * self.factor, tuple(named), tuple(lost), len(lost) == len(others) > 1)

    def _watch(self) -> None:
        while True:
            begin = time.monotonic()
            time.sleep(LOOK_SECONDS)
            self.looked(begin, time.monotonic())
            left = self.left()
            if left is None or left > 0:
                continue
            if left > -KNOWING_SECONDS and not self.silent_of({self.hosts[rank] for rank in self.late()}):
                continue  # maybe that rank itself waits, for a silent host: it takes longer to find that out, and has more to say
            late = self.judged(self.silent_of)
            left = self.left()
            if left is not None and left <= 0:  # it did not come meanwhile
                _say_late(late.sentence(self.rank, self.hosts), late)
                end_here(EXIT_CODE)

    def silent_of(self, hosts: Collection[str]) -> set[str]:
        """Return those of the hosts that do not answer by any of their addresses; all are asked at once. One without any, or with those of
        this host only, is not said to be silent: nobody knows."""
        from concurrent.futures import ThreadPoolExecutor

        own = self.addresses.get(self.hosts[self.rank], ())
        doors = [(host, one) for host in hosts for one in self.addresses.get(host, ()) if one not in own]
        with ThreadPoolExecutor(len(doors) or 1) as pool:
            silent = list(pool.map(is_silent, [one for _, one in doors]))
        heard = {host for (host, _), one in zip(doors, silent, strict=True) if not one}
        return {host for host, _ in doors} - heard


class _Waiting:
    """A wait that is watched: many of them pass for each token of a text."""

    __slots__ = ("patience", "whom")

    def __init__(self, patience: Patience, whom: Whom) -> None:
        self.patience, self.whom = patience, whom

    def __enter__(self) -> None:
        self.patience.whom, self.patience.since = self.whom, time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.patience.since = None


class Among:
    """The waits of some ranks for each other, under the watch of their job's patience. `ranks`: their numbers in the job."""

    def __init__(self, patience: Patience, ranks: Sequence[int]) -> None:
        self.patience, self.ranks = patience, tuple(ranks)
        self.seconds, self.slower = patience.seconds, patience.slower

    def among(self, ranks: Sequence[int]) -> "Among":
        return Among(self.patience, [self.ranks[rank] for rank in ranks])

    def waiting(self, whom: Whom | None = None) -> AbstractContextManager[None]:
        """Watch over what is waited for inside; `whom` tells, when asked, which of these ranks have not come; None: any of them."""
        others = [rank for rank in self.ranks if rank != self.patience.rank]
        return self.patience.waiting(lambda: [self.ranks[rank] for rank in whom()] if whom else others)


def _say_late(sentence: str, late: Late) -> None:
    """Say why this rank ends the job: in a record, or where what is kept is known, or here."""
    facts = {"waited": list(late.ranks), "silent": list(late.silent), "alone": late.alone}
    if not tell_trouble("late", sentence.removeprefix("error "), **facts) and not interrupts.speak(sentence):
        for say in aloud or [partial(print, file=sys.stderr, flush=True)]:
            say(sentence)


def is_silent(address: str) -> bool:
    """Tell whether nothing answers there: neither yes nor no to a connection."""
    try:
        socket.create_connection((address, SSH_PORT), ANSWER_SECONDS).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return False


@contextmanager
def starting(seconds: float) -> Iterator[None]:
    """Watch over MPI's own start, which waits for all ranks and lets no other thread of Python run: a process of its own ends this one
    and its launcher when that lasts START times `seconds`, 0: never, and says what is said when they are interrupted."""
    if launched_size() == 1:
        yield
        return
    launcher, own = os.getppid(), os.getpid()
    reading, writing = os.pipe()
    watch = os.fork()
    if not watch:
        os.close(writing)
        try:
            met = select.select([reading], [], [], START * seconds + AFTER_SECONDS * min(launched_rank(), 8) if seconds else None)[0]
        except interrupts.Interrupted:  # the rank itself hears nothing before it has met the others
            interrupts.finish()
        if not met:
            limit = f"{START * seconds:g} s, twice the deadline of {seconds:g} s"
            what = f"the {launched_size()} ranks did not find each other within {limit}"
            look = f"look for the reason with: python -m hepti_mpi doctor {shlex.quote(launcher_hostfile() or 'HOSTFILE')}"
            nobody = Late(START * seconds, (), (), False)  # is known to be the one that did not come
            _say_late(f"error on {host_name()} (rank {launched_rank()}): {what}; {look}", nobody)
            _end_launcher(launcher)
            os.kill(own, signal.SIGKILL)
        os._exit(0)
    os.close(reading)
    try:
        yield
    finally:
        os.close(writing)
        os.waitpid(watch, 0)


def end_here(code: int, later: float = LATER_SECONDS) -> None:
    """End this process, and the launcher, which would wait for ranks that do not come, if it is still there `later`."""
    _end_launcher(os.getppid(), later)
    os._exit(code)


def _end_launcher(process: int, later: float = LATER_SECONDS) -> None:
    """Begin to end `process` if it is mpirun or its daemon, in `later` seconds."""
    try:
        if Path(f"/proc/{process}/comm").read_text(errors="replace").strip() not in LAUNCHERS:
            return
    except OSError:  # it has ended
        return
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()  # when a rank ends the launcher ends all that is of the rank's session
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):  # the launcher waits until nobody writes to it any more
            os.dup2(nowhere, descriptor)
        close_all_but(range(3))
        others, end = set[int](), time.monotonic() + later
        while Path(f"/proc/{process}").exists() and time.monotonic() < end:  # for it to hear with what code this rank ended
            others.update(children(process))  # its ssh to a lost host would hold on to the screen, also when it ends by itself
            time.sleep(0.05)
        _end(process)
        for other in others - {os.getpid()}:
            _end(other)
        os._exit(0)
    os.close(writing)
    os.read(reading, 1)  # until the other has a session of its own


def _end(process: int) -> None:
    """Ask a process to end, and end it when it does not; one that is no more is no error."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + END_SECONDS
        try:
            os.kill(process, number)
            while time.monotonic() < end:
                os.kill(process, 0)
                time.sleep(0.05)
        except OSError:  # it has ended
            return
