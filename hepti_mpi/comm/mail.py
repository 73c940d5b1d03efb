"""Letters between any two ranks, each a few facts and some arrays: what to do, what came of it, and what is handed on.

Knows ranks, boxes and bytes; does not know what a letter says. A rank that does what a lead says looks for letters when it takes or sends
one. Any other has a thread that sends, receives and tells others that it is there while this rank computes; whoever takes letters may be
in any thread there, and the patience names partners that are not heard of for too long.
"""

import json
import queue
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hepti_mpi.comm.patience import Patience
from hepti_mpi.comm.pauses import Pause, nap
from hepti_mpi.comm.ranks import Comm
from hepti_mpi.comm.sizes import PART_BYTES

HEAD, CONTENT = 1, 2  # tags
MOVING_SECONDS, LOOK_SECONDS = 500e-6, 3e-3  # between two looks: while something travels or did just now, and when none has for long
IDLE_LOOK_SECONDS = 0.05  # the same of a rank that has no part in what is done: its host's cores may be another rank's
LOOK_PART = 1 / 8  # between two looks, of the time since the last letter: what is asked again and again is not kept waiting
QUIET_PART = 0.2  # of the deadline that a rank is silent for at most
LONG_PART = 0.5  # of the deadline without a word, after which a rank is waited for
TAKE_SECONDS = 0.5
IDLE_SECONDS = 0.001  # between two looks of a rank that has nothing to do meanwhile; twice as long each time, up to
RESTING_SECONDS = 0.008  # where nobody has, or up to IDLE_LOOK_SECONDS where others have: a look takes 30 us, and them up to 1 ms
ALIVE = ""  # the box of letters that say nothing

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Letter:
    """What `sender` wrote."""

    sender: int
    facts: dict[str, Any]
    arrays: Arrays = field(default_factory=dict)


@dataclass
class _Coming:
    """A letter whose arrays are on their way."""

    box: str
    letter: Letter
    requests: list[Any]


class Mail:
    """What a rank sends and receives. Every rank of `world` makes one, and closes it."""

    def __init__(
        self, world: Comm, partners: Collection[int] = (), followers: Collection[int] = (), lead: int | None = None, pause: Pause = nap,
        idle: bool = False,
    ) -> None:  # fmt: skip
        """`partners`: the other ranks that hear of this one, and of which it hears, also where there is nothing to say; `followers`: those
        that only hear of it; nobody else writes to a rank that has partners. `lead`: whom a rank without any waits for that looks for
        letters itself, and `pause`: what it does between two looks when it is about to compute; `idle`: nobody writes to this rank but
        in the end. Collective."""
        assert isinstance(world.patience, Patience), "mail is between the ranks of a job"
        self.rank, self.size, self.patience, self.turn = world.rank, world.size, world.patience, world.turn
        self.partners = sorted(set(partners) - {world.rank})
        self.lead, self.pause, self.most = lead, pause, IDLE_LOOK_SECONDS if idle else LOOK_SECONDS
        with world.patience.waiting():
            self.mpi = world.mpi.Dup()
        self.boxes: dict[str, queue.SimpleQueue[Letter]] = {}
        self.outgoing: deque[tuple[int, str, dict[str, Any], Arrays]] = deque()
        self.going: list[tuple[Any, Any]] = []  # requests, with what they send
        self.coming: list[_Coming] = []
        now = time.monotonic()
        self.heard, self.told = dict.fromkeys(self.partners, now), dict.fromkeys([*self.partners, *followers], now)
        self.last = now  # when this rank had or wrote a letter
        self.rest = IDLE_SECONDS  # until the next look, of a rank that has nothing to do
        self.closing = False
        self.error: BaseException | None = None
        self.awake = threading.Event()
        others = self.told and lead is None  # else nothing comes, or this rank looks itself
        self.thread = threading.Thread(target=self._work, name="mail", daemon=True) if others else None
        if self.thread is not None:
            self.thread.start()

    def send(self, peer: int, box: str, facts: dict[str, Any], arrays: Arrays | None = None) -> None:
        """Send a letter to a box of `peer`; its arrays are not changed by anybody from now on."""
        if peer == self.rank:
            self._box(box).put(Letter(peer, facts, arrays or {}))
            return
        self.outgoing.append((peer, box, facts, arrays or {}))
        if self.lead is None:
            self.awake.set()
        else:
            with self.turn:
                self._look()

    def tell(self, box: str, facts: dict[str, Any]) -> None:
        """Send a letter to all other ranks."""
        for rank in range(self.size):
            if rank != self.rank:
                self.send(rank, box, facts)

    def take(self, box: str, timeout: float | None = None, idle: float = 0.0) -> Letter | None:
        """Return the next letter in a box; None when none comes within `timeout` seconds, of which None means that they are for ever.

        `idle`: seconds between two looks at most, of a rank that has no part in what the others do meanwhile.
        """
        end = None if timeout is None else time.monotonic() + timeout
        return self._handed(box, end) if self.lead is None else self._found(box, self.lead, end, idle)

    def _handed(self, box: str, end: float | None) -> Letter | None:
        """Wait for what the thread puts into a box."""
        inbox = self._box(box)
        while True:
            left = TAKE_SECONDS if end is None else min(TAKE_SECONDS, end - time.monotonic())
            try:
                return inbox.get(timeout=max(left, 0))
            except queue.Empty:
                if self.error is not None:
                    raise self.error from None
                if end is not None and time.monotonic() >= end:
                    return None

    def _found(self, box: str, lead: int, end: float | None, idle: float) -> Letter | None:
        """Look for what is in a box."""
        inbox, begin = self._box(box), time.perf_counter()
        self.rest = min(self.rest, idle) or IDLE_SECONDS  # an order that was nothing to this rank changes nothing
        while True:
            last = self.heard.get(lead)
            with self.patience.slower() if idle else nullcontext(), self.patience.waiting(lambda: [lead]):
                while self.heard.get(lead) == last:  # whoever says that it is there is not late
                    with self.turn:
                        self._look()
                    if not inbox.empty():
                        return inbox.get()
                    if end is not None and time.monotonic() >= end:
                        return None
                    if idle:
                        time.sleep(self.rest)
                        self.rest = min(2 * self.rest, idle)  # its host's cores may be another rank's
                    else:
                        self.pause(time.perf_counter() - begin)

    def close(self) -> None:
        """End when all that was sent is out. Collective: nothing comes any more that is wanted."""
        self.closing = True
        self.awake.set()
        if self.thread is not None:
            self.thread.join()
        with self.patience.waiting():
            while not self._is_out():
                time.sleep(IDLE_SECONDS)
            with self.turn:
                done = self.mpi.Ibarrier()
            while not self._is_done(done):  # whoever sent what is not wanted waits for it to be taken
                time.sleep(IDLE_SECONDS)
        with self.turn:
            self.mpi.Free()

    def _is_out(self) -> bool:
        with self.turn:
            self._look()
        return not (self.going or self.coming)

    def _is_done(self, barrier: Any) -> bool:
        with self.turn:
            self._look()
            return bool(barrier.Test())

    def _box(self, name: str) -> "queue.SimpleQueue[Letter]":
        return self.boxes.setdefault(name, queue.SimpleQueue())  # one step, which needs no lock

    # the thread, or whoever has the turn

    def _work(self) -> None:
        try:
            while not (self.closing and not self.outgoing and not self.going and not self.coming):
                with self.turn:
                    moving = self._look()
                self._note()
                if self.awake.wait(MOVING_SECONDS if moving else until_look(time.monotonic() - self.last, self.most)):
                    self.awake.clear()
        except BaseException as error:  # noqa: BLE001  whoever takes letters raises it
            self.error = error
        finally:
            self.patience.hear([], 0.0)

    def _look(self) -> bool:
        """Move all letters on; tell whether something is under way."""
        now, often = time.monotonic(), QUIET_PART * self.patience.seconds
        for peer, when in self.told.items():
            if often and now - when > often and not self.closing:
                self.outgoing.append((peer, ALIVE, {}, {}))
                self.told[peer] = now
        while self.outgoing:
            self._begin(*self.outgoing.popleft())
        while self._receive():
            pass
        self.going = [(request, content) for request, content in self.going if not request.Test()]
        while self.coming and all(request.Test() for request in self.coming[0].requests):
            one = self.coming.pop(0)
            self.heard[one.letter.sender] = time.monotonic()
            if one.box != ALIVE:
                self.last = time.monotonic()
                self._box(one.box).put(one.letter)
        return bool(self.going or self.coming)

    def _begin(self, peer: int, box: str, facts: dict[str, Any], arrays: Arrays) -> None:
        described = [[name, values.dtype.str, list(values.shape)] for name, values in arrays.items()]
        head = np.frombuffer(json.dumps([box, facts, described]).encode(), np.uint8)
        if peer in self.told:
            self.told[peer] = time.monotonic()
        if box != ALIVE:
            self.last = time.monotonic()
        self.going.append((self.mpi.Isend(head, peer, HEAD), head))
        for values in arrays.values():
            for part in _pieces(np.ascontiguousarray(values)):
                self.going.append((self.mpi.Isend(part, peer, CONTENT), part))

    def _receive(self) -> bool:
        """Take in the head of a letter and get ready for its arrays, if one is there."""
        from mpi4py import MPI

        status = MPI.Status()
        # Open MPI looks among what it has taken in, and if that is nothing takes in what has come: the second look finds it
        message = self.mpi.Improbe(MPI.ANY_SOURCE, HEAD, status) or self.mpi.Improbe(MPI.ANY_SOURCE, HEAD, status)
        if message is None:
            return False
        head = np.empty(status.Get_count(MPI.BYTE), np.uint8)
        message.Recv(head)
        box, facts, described = json.loads(head.tobytes())
        sender = status.Get_source()
        arrays = {name: np.empty(shape, np.dtype(kind)) for name, kind, shape in described}
        requests = [self.mpi.Irecv(part, sender, CONTENT) for values in arrays.values() for part in _pieces(values)]
        self.coming.append(_Coming(box, Letter(sender, facts, arrays), requests))
        return True

    def _note(self) -> None:
        """Let the watch over waits know of whom this rank has not heard for long, and since when."""
        before = time.monotonic() - LONG_PART * self.patience.seconds
        late = {} if self.closing else {peer: when for peer, when in self.heard.items() if when < before}
        self.patience.hear(list(late), min(late.values(), default=0.0))


def until_look(quiet: float, most: float = LOOK_SECONDS) -> float:
    """Return the seconds until the next look, `most` at most, where the last letter was `quiet` seconds ago.

    >>> [until_look(quiet) for quiet in (0.0, 0.008, 10.0)], until_look(10.0, IDLE_LOOK_SECONDS)
    ([0.0005, 0.001, 0.003], 0.05)
    """
    return min(max(MOVING_SECONDS, LOOK_PART * quiet), most)


def _pieces(values: np.ndarray) -> list[np.ndarray]:
    """Cut an array into runs of bytes that are sent without the receiver's consent."""
    flat = values.reshape(-1).view(np.uint8) if values.size else np.empty(0, np.uint8)
    return [flat[at : at + PART_BYTES] for at in range(0, flat.size, PART_BYTES)]
