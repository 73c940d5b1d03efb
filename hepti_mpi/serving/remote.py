"""Rank 0's end of the connection to the front of a service: a source without an end, and a sink. Knows messages, and when to tell that
all is well; does not know who asks.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from hepti_mpi.comm import channel
from hepti_mpi.errors import InputError
from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.models.tasks.heads import Result
from hepti_mpi.models.tasks.sampling import Sampling
from hepti_mpi.program.plan import Wire
from hepti_mpi.serving import frames, sockets
from hepti_mpi.serving.request import Answered, Answerer, Question
from hepti_mpi.serving.streams import sampling_of
from hepti_mpi.tuning.watch import Overheard, Watch
from hepti_mpi.weights.store import Store

BEAT_SECONDS = 1.0  # between two words to the supervisor that requests are answered
ALIVE_SECONDS = 1.0  # between two that rank 0 is there
IDLE_SECONDS = 10.0  # between two that there are none


@dataclass(frozen=True)
class Prompt:
    """Tokens that are to be gone on with; the last `made` of them are of the answer already (serving.generation)."""

    place: int
    ids: list[int]
    sampling: Sampling
    made: int


class Remote:
    """The front, as rank 0 sees it. `ended`: whether nothing more will come; `ring` (serving.source.Source)."""

    def __init__(self, address: Mapping[str, Any]) -> None:
        """Connect. `address`: as serving.front tells it. Raises HostError when the front is not there."""
        self.connection = sockets.connected(address)
        self.waiting: list[Request] = []
        self.prompts: list[Prompt | list[int]] = []  # or places that nobody wants
        self.errors: dict[int, str] = {}  # of requests without an answer
        self.computed: dict[int, float] = {}  # seconds that ranks computed for their last batch, as far as they tell
        self.ended = self.is_ready = False
        self.ring: Callable[[], object] = lambda: None
        self.doing: Callable[[], list[dict[str, Any]]] = list  # what teams do now (serving.teams)
        self.came = threading.Condition()
        self.told, self.answered, self.sending = time.monotonic(), 0, threading.Lock()
        threading.Thread(target=self._read, name="front", daemon=True).start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def take(self, timeout: float) -> list[Request]:
        """Return what has come (serving.source.Source)."""
        with self.came:
            if not self.waiting and not self.ended and timeout > 0:
                self.came.wait(timeout)
            taken, self.waiting = self.waiting, []
        self._tell_idle(bool(taken))
        return taken

    def _tell_idle(self, busy: bool) -> None:
        if not busy and time.monotonic() > self.told + IDLE_SECONDS:
            self.told = time.monotonic()
            channel.tell("idle")

    def _tell_answers(self) -> None:
        if time.monotonic() > self.told + BEAT_SECONDS:
            self.told = time.monotonic()
            channel.tell("answers", count=self.answered)

    def take_prompts(self, timeout: float) -> list[Prompt | list[int]]:
        """Return the prompts that have come, and lists of places that nobody wants any more, in their order."""
        with self.came:
            if not self.prompts and not self.ended and timeout > 0:
                self.came.wait(timeout)
            taken, self.prompts = self.prompts, []
        self._tell_idle(bool(taken) or timeout == 0)
        return taken

    def ready(self, source_hash: str, batch_rows: int, facts: Mapping[str, Any]) -> None:
        """Tell that the ranks are ready for batches of so many rows. `facts`: as of commands.jobs.Job, and room for texts."""
        self.tell("ready", source_hash=source_hash, batch_rows=batch_rows, **facts)
        self.is_ready = True

    def grown(self, events: Sequence[Sequence[Any]]) -> None:
        """Send what was added to answers: place, token, its logarithm, the likeliest tokens, why it ended, and what went
        wrong, of each."""
        self.tell("grown", events=events)
        self.answered += len(events)
        self._tell_answers()

    def event(self, event: Answered) -> None:
        """Send answers (serving.sink.Listener)."""
        errors = {str(place): self.errors.pop(place) for place in event.places if place in self.errors}
        rows = sum(request.rows for request in event.requests)
        facts = {"rows": rows, "seconds": event.seconds, "computed": self.computed, "errors": errors}
        self._send(frames.answered(event.places, event.results, **facts))
        self.answered += len(event.requests)
        self._tell_answers()

    def tell(self, kind: str, **facts: Any) -> None:
        """Tell the front what is no answer."""
        self._send(frames.packed({"kind": kind, **facts}))

    def _send(self, message: bytes) -> None:
        with self.sending, suppress(OSError):  # whoever reads notices that the front is gone
            self.connection.send_bytes(message)

    def _beat(self) -> None:
        """Tell the supervisor that this process is not stopped, whatever it does: ranks that rest wait for it much longer. Tell the front
        what teams do."""
        told = list[dict[str, Any]]()
        while not self.ended:
            time.sleep(ALIVE_SECONDS)
            channel.tell("alive")
            now = self.doing() if self.is_ready else told  # before, the front does not know of which ranks it hears
            if now != told:
                self.tell("teams", teams=now)
                told = now

    def _read(self) -> None:
        try:
            while not self.ended:
                head, arrays = frames.unpacked(self.connection.recv_bytes())
                with self.came:
                    if head["kind"] == "asked":
                        self.waiting += frames.requests_of(head, arrays)
                    elif head["kind"] == "leave":
                        self._leave({*head["places"]})
                    elif head["kind"] == "prompt":
                        self.prompts.append(Prompt(head["place"], arrays[0].tolist(), sampling_of(head["sampling"]), head["made"]))
                    elif head["kind"] == "cancel":
                        self.prompts.append(head["places"])
                    elif head["kind"] == "end":
                        self.ended = True
                    self.came.notify_all()
                self.ring()
        except (OSError, EOFError, InputError):  # the front is gone: nobody wants answers any more
            with self.came:
                self.ended = True
                self.came.notify_all()
            self.ring()

    def _leave(self, places: set[int]) -> None:
        """Leave requests that nobody waits for any more, but for those that are begun."""
        left = [request.index for request in self.waiting if request.index in places]
        self.waiting = [request for request in self.waiting if request.index not in places]
        self.tell("left", places=left)


class PatientAnswerer(Answerer):
    """One for which a request that has no answer is no reason to end: it is noted in `errors`, and its result is empty."""

    def __init__(self, store: Store, errors: dict[int, str]) -> None:
        super().__init__(store, Question())
        self.errors = errors  # which whoever sends answers takes out

    def results(self, requests: Sequence[Request], hidden: np.ndarray) -> list[Result]:
        try:
            return super().results(requests, hidden)
        except InputError:
            bounds = np.cumsum([0, *(request.rows for request in requests)])
            return [self._one(request, hidden[first:last]) for request, first, last in zip(requests, bounds, bounds[1:])]

    def _one(self, request: Request, hidden: np.ndarray) -> Result:
        try:
            return super().results([request], hidden)[0]
        except InputError as error:
            self.errors[request.index] = str(error)
            return {}


class Watched(Overheard):
    """A watch over a plan of which the front hears."""

    def __init__(self, watch: Watch, remote: Remote) -> None:
        super().__init__(watch)
        self.remote = remote
        self.order: dict[str, Any] = {}

    def next(self, left: int | None) -> dict[str, Any]:
        self.order = super().next(left)
        return self.order

    def answered(self, number: int, lengths: Sequence[Sequence[int]], seconds: Sequence[float], compute: Sequence[float]) -> None:
        super().answered(number, lengths, seconds, compute)
        self._computed(0, compute)

    def heard(self, rank: int, facts: dict[str, Any]) -> None:
        self._computed(rank, facts.get("compute", ()))
        super().heard(rank, facts)

    def _computed(self, rank: int, compute: Sequence[float]) -> None:
        if compute:
            self.remote.computed = self.remote.computed | {rank: compute[-1]}

    def swapped(self, seconds: float, load_seconds: float, wire: Wire) -> None:
        self.remote.computed = {}  # ranks that are left out now compute nothing
        self.remote.tell("planned", plan=self.order["plan"], seconds=seconds)
        super().swapped(seconds, load_seconds, wire)
