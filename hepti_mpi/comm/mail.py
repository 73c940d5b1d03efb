"""Letters between any two ranks, each a few facts and some arrays, that travel while ranks compute.

Knows ranks, boxes and bytes; does not know what a letter says. One thread of this rank sends, receives and tells the others that it is
there; whoever takes letters may be in any thread. Its patience names ranks that it does not hear of for too long.
"""

import json
import queue
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hepti_mpi.comm.patience import Patience
from hepti_mpi.comm.ranks import PART_BYTES, Comm

HEAD, CONTENT = 1, 2  # tags
MOVING_SECONDS, LOOK_SECONDS = 500e-6, 3e-3  # between two looks: while something travels, and else
QUIET_PART = 0.2  # of the deadline that a rank is silent for at most
LONG_PART = 0.5  # of the deadline without a word, after which a rank is waited for
TAKE_SECONDS = 0.5
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

    def __init__(self, world: Comm, partners: Collection[int]) -> None:
        """`partners`: the other ranks that hear of this one, and of which it hears, also where there is nothing to say; nobody else writes
        to it. Collective."""
        assert isinstance(world.patience, Patience), "mail is between the ranks of a job"
        self.rank, self.patience, self.turn = world.rank, world.patience, world.turn
        self.partners = sorted(set(partners) - {world.rank})
        with world.patience.waiting():
            self.mpi = world.mpi.Dup()
        self.boxes: dict[str, queue.Queue[Letter]] = {}
        self.outgoing: deque[tuple[int, str, dict[str, Any], Arrays]] = deque()
        self.going: list[tuple[Any, Any]] = []  # requests, with what they send
        self.coming: list[_Coming] = []
        now = time.monotonic()
        self.heard, self.told = dict.fromkeys(self.partners, now), dict.fromkeys(self.partners, now)
        self.closing = False
        self.error: BaseException | None = None
        self.awake = threading.Event()
        self.thread = threading.Thread(target=self._work, name="mail", daemon=True)
        if self.partners:  # else nothing comes
            self.thread.start()

    def send(self, peer: int, box: str, facts: dict[str, Any], arrays: Arrays | None = None) -> None:
        """Send a letter to a box of `peer`; its arrays are not changed by anybody from now on."""
        if peer == self.rank:
            self._box(box).put(Letter(peer, facts, arrays or {}))
            return
        self.outgoing.append((peer, box, facts, arrays or {}))
        self.awake.set()

    def take(self, box: str, timeout: float | None = None) -> Letter | None:
        """Return the next letter in a box; None when none comes within `timeout` seconds, of which None means that they are for ever."""
        inbox, end = self._box(box), None if timeout is None else time.monotonic() + timeout
        while True:
            left = TAKE_SECONDS if end is None else min(TAKE_SECONDS, end - time.monotonic())
            try:
                return inbox.get(timeout=max(left, 0))
            except queue.Empty:
                if self.error is not None:
                    raise self.error from None
                if end is not None and time.monotonic() >= end:
                    return None

    def close(self) -> None:
        """End when all that was sent is out. Collective: nothing comes any more."""
        self.closing = True
        self.awake.set()
        if self.partners:
            self.thread.join()
        with self.turn:
            self.mpi.Free()

    def _box(self, name: str) -> "queue.Queue[Letter]":
        return self.boxes.setdefault(name, queue.Queue())  # one step, which needs no lock

    # the thread

    def _work(self) -> None:
        try:
            while not (self.closing and not self.outgoing and not self.going and not self.coming):
                with self.turn:
                    moving = self._look()
                self._note()
                if self.awake.wait(MOVING_SECONDS if moving else LOOK_SECONDS):
                    self.awake.clear()
        except BaseException as error:  # noqa: BLE001  whoever takes letters raises it
            self.error = error
        finally:
            self.patience.hear([], 0.0)

    def _look(self) -> bool:
        """Move all letters on; tell whether something is under way."""
        now, often = time.monotonic(), QUIET_PART * self.patience.seconds
        for peer, when in self.told.items():
            if often and now - when > often:
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
                self._box(one.box).put(one.letter)
        return bool(self.going or self.coming)

    def _begin(self, peer: int, box: str, facts: dict[str, Any], arrays: Arrays) -> None:
        described = [[name, values.dtype.str, list(values.shape)] for name, values in arrays.items()]
        head = np.frombuffer(json.dumps([box, facts, described]).encode(), np.uint8)
        self.told[peer] = time.monotonic()
        self.going.append((self.mpi.Isend(head, peer, HEAD), head))
        for values in arrays.values():
            for part in _pieces(np.ascontiguousarray(values)):
                self.going.append((self.mpi.Isend(part, peer, CONTENT), part))

    def _receive(self) -> bool:
        """Take in the head of a letter and get ready for its arrays, if one is there."""
        from mpi4py import MPI

        status = MPI.Status()
        message = self.mpi.Improbe(MPI.ANY_SOURCE, HEAD, status)
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


def _pieces(values: np.ndarray) -> list[np.ndarray]:
    """Cut an array into runs of bytes that are sent without the receiver's consent."""
    flat = values.reshape(-1).view(np.uint8) if values.size else np.empty(0, np.uint8)
    return [flat[at : at + PART_BYTES] for at in range(0, flat.size, PART_BYTES)]
