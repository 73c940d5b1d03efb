"""The front of a service: what is asked waits here, is handed to rank 0 a little at a time, and is asked again after a failure.

Knows requests, clients and what is said to rank 0; does not know how it connects, how requests are made, nor what starts the job. Nothing
is lost: a request leaves when it is answered, given up by who asked, or was under way in too many failures of the job.
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from hepti_mpi.errors import Busy, HeptiError, InputError, NotReady, ServiceError
from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.models.tasks.heads import Result
from hepti_mpi.serving import frames, sockets
from hepti_mpi.serving.door import Door
from hepti_mpi.serving.fair import Fair
from hepti_mpi.serving.streams import ALONE, GIVEN_UP, Growing, Grown, Streams
from hepti_mpi.wording import counted

QUEUE_SECONDS = 30.0  # that what waits may take, at the speed of the last batches; who comes then is asked to come again
LEAST_BATCHES = 16  # that may wait however slow they are
STEPS = 2  # batches that rank 0 has: one that is answered, and the next
MOST_PROMPTS = 256  # that may wait for a slot; a client that has less than its part of them may go on


@dataclass(eq=False)
class Call:
    """What one client asks at once. `future`: the result of each request, in their order."""

    client: str
    requests: Sequence[Request]
    future: "Future[list[Result]]" = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)
    begun: float | None = None  # when the first of it was handed to rank 0

    def __post_init__(self) -> None:
        self.results: list[Result | None] = [None] * len(self.requests)
        self.left = len(self.requests)
        if not self.left:
            self.future.set_result([])

    @property
    def queued_seconds(self) -> float:
        """How long it waited until it was begun."""
        return (self.begun or time.monotonic()) - self.since

    def fail(self, error: HeptiError) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(eq=False)
class Piece:
    """One request of a call. `tries`: failures of the job that it was under way in."""

    call: Call
    at: int
    tries: int = 0

    @property
    def request(self) -> Request:
        return self.call.requests[self.at]


class Front:
    """Where a service's requests wait and come back. Its methods may be called by any thread."""

    def __init__(self, source_hash: str, near: bool, heard: Callable[[dict[str, Any]], None] = lambda record: None) -> None:
        """`near`: all hosts are this machine. `heard` is told what rank 0 tells besides answers, that it is lost, and how many inputs are
        given up."""
        self.source_hash, self.heard = source_hash, heard
        self.queue: Fair[Piece] = Fair(LEAST_BATCHES * 256)
        self.again: deque[Piece] = deque()  # what was under way when a job failed
        self.flying: dict[int, Piece] = {}
        self.flying_rows = 0
        self.unwanted: list[int] = []  # places of which rank 0 does not know yet that nobody waits for them
        self.places = itertools.count()
        self.connection: Connection | None = None
        self.batch_rows, self.window, self.starts = 0, 0, 0
        self.rows_per_second: float | None = None
        self.answered = self.answered_rows = 0
        self.error: HeptiError | None = None
        self.streams = Streams(Fair(1 << 62))
        self.changed = threading.Condition()
        self.closed = self.draining = False
        self.door = Door(near, self._hear, self._lost)
        threading.Thread(target=self._feed, name="feed", daemon=True).start()

    def address(self) -> dict[str, Any]:
        """Return how rank 0 finds this, for a file that only its user reads."""
        return self.door.address()

    # what clients do

    def ask(self, client: str, requests: Sequence[Request]) -> Call:
        """Let requests wait for their answers. Raises NotReady before the first job is ready, Busy when too much waits, InputError for
        one that cannot be answered."""
        for request in requests:
            if request.error is not None:
                raise InputError(request.error)
        call = Call(client, requests)
        with self.changed:
            self.check(client)
            self.queue.add(client, call, [(request.rows, Piece(call, at)) for at, request in enumerate(requests)])
            self._wake()
        return call

    def check(self, client: str) -> None:
        """Raise what `ask` would raise whatever is asked now."""
        if self.error is not None:
            raise self.error
        if self.closed or self.draining:
            raise NotReady("the service is ending; ask again when it is back", 10)
        if not self.starts:
            raise NotReady("the model is being loaded; ask again in some seconds", 5)
        with self.changed:  # the queue counts clients, of which another thread may be taking the last one out
            if self.queue.is_full(client):
                seconds = max(1, round(self.queue.rows / (self.rows_per_second or self.queue.rows)))
                raise Busy(f"{counted(self.queue.count, 'inputs')} wait already, which takes about {seconds} s; ask again then", seconds)

    def grow(self, growing: Growing) -> None:
        """Let a prompt wait for its answer. Raises NotReady, Busy, and InputError where there is no room for an answer."""
        with self.changed:
            self.check(growing.client)
            room = self.streams.positions
            if self.streams.queue.is_crowded(growing.client, MOST_PROMPTS):
                seconds = min(max(1, round(self.streams.waits)), QUEUE_SECONDS)  # of those that wait some will have been begun then
                raise Busy(f"{counted(self.streams.queue.count, 'prompts')} wait already; ask again in {seconds:g} s", seconds)
            if not growing.prompt:
                raise InputError("the prompt has no tokens: there is nothing to go on with")
            if len(growing.prompt) >= room:
                raise InputError(f"the prompt has {counted(len(growing.prompt), 'tokens')}, there is room for {room} with its answer")
            self.streams.ask(growing)
            self._wake()

    def stop(self, growing: Growing) -> None:
        """End an answer that nobody wants any more."""
        with self.changed:
            self.streams.cancel(growing)
            self._wake()

    def cancel(self, call: Call) -> None:
        """Forget a call; what rank 0 has of it and has not begun, it leaves."""
        call.future.cancel()
        with self.changed:
            self.queue.drop(call.client, call)
            self.unwanted += [place for place, piece in self.flying.items() if piece.call is call]
            self._wake()

    @property
    def waiting(self) -> tuple[int, int]:
        """How many inputs and prompts wait, and how many rows they have."""
        queue, prompts = self.queue, self.streams.queue
        return queue.count + prompts.count, queue.rows + prompts.rows

    @property
    def idle(self) -> bool:
        """Whether nothing waits or is under way."""
        return not (self.flying or self.again or self.queue.count or self.streams.busy)

    def fail(self, error: HeptiError) -> None:
        """Answer no more: whoever waits hears why, and rank 0, where there is one, leaves what it has not done."""
        with self.changed:
            self.error = self.error or error
            waiting = [*self.flying.values(), *self.again, *self.queue.take(1 << 62)]
            self.unwanted += self.flying
            self.flying.clear()
            self.again.clear()
            growing = self.streams.all()
            self.changed.notify_all()
        for piece in waiting:
            piece.call.fail(error)
        for one in growing:
            one.tell(Grown("", error=error))

    def drain(self) -> None:
        """Take nothing more."""
        self.draining = True

    def leave(self) -> None:
        """Answer no more, since there is no time left."""
        self.fail(NotReady("the service has ended before this was answered; ask again when it is back", 10))

    def end(self) -> None:
        """Tell the job that nothing more will come."""
        with self.changed:
            self.closed, connection = True, self.connection
            self.changed.notify_all()
        with suppress(OSError):
            if connection is not None:
                connection.send_bytes(frames.packed({"kind": "end"}))
        self.door.close()

    # rank 0

    def _hear(self, connection: Connection, head: frames.Head, arrays: Sequence[Any]) -> None:
        if head["kind"] == "answered":
            self._answered(head, frames.results_of(head, arrays))
        elif head["kind"] == "left":
            self._left(head["places"])
        elif head["kind"] == "ready":
            self._ready(connection, head)
        elif head["kind"] == "grown":
            with self.changed:
                found = self.streams.grown(head["events"])
                self._wake()
            for one, part in found:
                one.tell(part)
        self.heard(head)

    def _ready(self, connection: Connection, head: frames.Head) -> None:
        if head["source_hash"] != self.source_hash:
            self.fail(ServiceError("the first host has another store under this path than the machine that serves: give both the same"))
            return
        before = self.connection
        if before is not None:  # its host is gone without a word: of that the system learns minutes later, if ever
            self._lost(before)
            sockets.shut(before)
        with self.changed:
            self.connection, self.starts = connection, self.starts + 1
            self.streams.slots, self.streams.positions = head.get("slots", 0), head.get("positions", 0)
            self.batch_rows, self.window = head["batch_rows"], head["batches"] * head["batch_rows"]
            self.rows_per_second = self.rows_per_second or head["rows_per_second"]
            self._limit()
            self.changed.notify_all()

    def _limit(self) -> None:
        self.queue.limit = max(LEAST_BATCHES * self.window // STEPS, round(QUEUE_SECONDS * (self.rows_per_second or 0)))

    def _answered(self, head: frames.Head, results: Sequence[tuple[int, Result]]) -> None:
        whole, refused = [], []
        with self.changed:
            rows = 0
            for place, result in results:
                piece = self.flying.pop(place, None)
                if piece is None:  # of a job before this one
                    continue
                rows += piece.request.rows
                if str(place) in head["errors"]:
                    refused.append((piece.call, InputError(head["errors"][str(place)])))
                    continue
                piece.call.results[piece.at] = result
                piece.call.left -= 1
                if not piece.call.left:
                    whole.append(piece.call)
            self.flying_rows -= rows
            self.answered += len(results)
            self.answered_rows += rows
            if rows and head["seconds"] > 0:
                now = rows / head["seconds"]
                self.rows_per_second = now if self.rows_per_second is None else 0.9 * self.rows_per_second + 0.1 * now
                self._limit()
            self._wake()
        for call in whole:
            with suppress(InvalidStateError):
                call.future.set_result([result for result in call.results if result is not None])
        for call, error in refused:
            call.fail(error)

    def _left(self, places: Sequence[int]) -> None:
        """Forget what rank 0 has not begun since nobody waits for it."""
        with self.changed:
            for place in places:
                piece = self.flying.pop(place, None)
                self.flying_rows -= piece.request.rows if piece is not None else 0
            self._wake()

    def _lost(self, connection: Connection) -> None:
        """Ask again what was under way, when the next job is ready."""
        with self.changed:
            if connection is not self.connection:
                return
            self.connection = None
            pieces = [piece for _, piece in sorted(self.flying.items()) if not piece.call.future.done()]
            self.flying.clear()
            self.unwanted.clear()
            self.flying_rows = 0
            for piece in pieces:
                piece.tries += 1
            bad, cut = [piece for piece in pieces if piece.tries >= GIVEN_UP], self.streams.lost()
            self.again.extendleft(reversed([piece for piece in pieces if piece.tries < GIVEN_UP]))
        self.heard({"kind": "lost"})
        for one, part in cut:
            one.tell(part)
        for piece in bad:
            when = f"each of {piece.tries} times that the job failed, the last times alone"
            piece.call.fail(ServiceError(f"input {piece.at + 1} was under way {when}: it is not tried again"))
        if bad or cut:
            self.heard({"kind": "given up", "count": len(bad) + len(cut)})

    def _wake(self) -> None:
        """Let `feed` hand on what there is, if it is anything: a turn of that thread for nothing would delay the others."""
        if self.unwanted or self.streams.is_due or ((self.again or self.queue.count) and self._room > 0):
            self.changed.notify()

    @property
    def _room(self) -> int:
        """How many rows may be handed to rank 0 now; none while what waits makes a full batch when one more is answered."""
        room = self.window - self.flying_rows
        return room if self.again or room >= min(self.batch_rows, self.queue.rows) else 0

    def _feed(self) -> None:
        """Hand requests and prompts to rank 0 as long as it has room."""
        while True:
            with self.changed:
                pieces, connection = self._next(), self.connection
                messages = self._unwanted() + self.streams.messages() if connection is not None else []
                if connection is None or not (pieces or messages):
                    if self.error is not None:
                        return
                    self.changed.wait()
                    continue
                places, now = [next(self.places) for _ in pieces], time.monotonic()
                for place, piece in zip(places, pieces):
                    self.flying[place] = piece
                    self.flying_rows += piece.request.rows
                    piece.call.begun = piece.call.begun or now
            if pieces:
                messages.append(frames.asked([piece.request for piece in pieces], places))
            try:
                for message in messages:
                    connection.send_bytes(message)
            except (OSError, ValueError):  # whoever listens to it notices too
                self._lost(connection)

    def _unwanted(self) -> list[bytes]:
        """Return what rank 0 is to be told of what nobody waits for any more."""
        places, self.unwanted = self.unwanted, []
        return [frames.packed({"kind": "leave", "places": places})] if places else []

    def _next(self) -> list[Piece]:
        """Return what is to be handed to rank 0 now."""
        room = self._room
        if self.connection is None or room <= 0 or any(piece.tries >= ALONE for piece in self.flying.values()):
            return []
        taken = list[Piece]()
        while self.again and room > 0:
            piece = self.again[0]
            if piece.call.future.done():
                self.again.popleft()
                continue
            if piece.tries >= ALONE:
                if taken or self.flying:
                    return taken
                return [self.again.popleft()]
            taken.append(self.again.popleft())
            room -= piece.request.rows
        if taken or room < min(self.batch_rows, self.queue.rows):
            return taken
        return [piece for piece in self.queue.take(min(room, self.batch_rows)) if not piece.call.future.done()]
