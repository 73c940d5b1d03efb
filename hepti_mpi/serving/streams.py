"""Answers that grow, as the front of a service sees them: prompts that wait for a slot, and tokens that become text as they come.

Knows prompts, tokens and clients; does not know what makes the tokens (serving.generation, at rank 0), nor how text reaches a client. When
a job fails, an answer goes on where it was: its prompt and the tokens so far are what the next job is asked with.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from hepti_mpi.errors import HeptiError, InputError, ServiceError
from hepti_mpi.models.tasks.sampling import Chosen, Sampling
from hepti_mpi.models.tasks.streaming import Decode, Streamed
from hepti_mpi.serving import frames
from hepti_mpi.serving.fair import Fair
from hepti_mpi.serving.generation import Answer

ALONE = 2  # failures of the job that something was under way in, after which it goes alone: if it is the reason, no other is to suffer
GIVEN_UP = 4  # such failures after which it is refused; of an answer that grows, without one more token between them


@dataclass(frozen=True)
class Grown:
    """What was added to an answer. `finish`: "stop" or "length" with its last part; `error`: why no more will come."""

    text: str
    chosen: Chosen | None = None
    finish: str | None = None
    error: HeptiError | None = None


@dataclass(eq=False, kw_only=True)
class Growing(Answer):
    """An answer that grows. `heard` is told each part of it, by any thread; no more after one with `finish` or `error`."""

    client: str
    heard: Callable[[Grown], None]
    tries: int = 0  # failures since there were `had` tokens
    had: int = 0
    over: bool = False
    since: float = field(default_factory=time.monotonic)
    begun: float | None = None

    @property
    def left(self) -> Sampling:
        """What rank 0 is asked; stop texts are looked for here, where text is."""
        return replace(self.sampling, stop=())

    @property
    def suspect(self) -> bool:
        """Whether it may be the reason that the job fails: then no other is to suffer."""
        return self.tries >= ALONE and len(self.tokens) == self.had

    @property
    def queued_seconds(self) -> float:
        """How long it waited until it was begun."""
        return (self.begun or time.monotonic()) - self.since

    def tell(self, part: Grown) -> None:
        if not self.over:
            self.over = part.finish is not None or part.error is not None
            self.heard(part)


class Streams:
    """The answers of a front that grow. Its methods are called with the front's lock held."""

    def __init__(self, queue: Fair["Growing"]) -> None:
        self.queue = queue
        self.again: deque[Growing] = deque()
        self.flying: dict[int, Growing] = {}
        self.cancelled: list[int] = []  # of which rank 0 does not know yet
        self.places = itertools.count()
        self.slots = self.positions = 0  # that rank 0 has; 0: it makes no text
        self.tokens = self.answered = 0  # made so far, and answers that have ended
        self.text_seconds: float | None = None  # from the beginning of a text to its end, of the last ones

    @property
    def busy(self) -> bool:
        return bool(self.flying or self.again or self.queue.count)

    @property
    def is_due(self) -> bool:
        """Whether rank 0 may be to be told something."""
        return bool(self.cancelled or (len(self.flying) < self.slots and (self.again or self.queue.count)))

    @property
    def waits(self) -> float:
        """Seconds until all that wait will have been begun."""
        now = time.monotonic()
        each = self.text_seconds or max((now - (one.begun or now) for one in self.flying.values()), default=0.0)
        return self.queue.count * each / max(1, self.slots)

    def ask(self, growing: Growing) -> None:
        self.queue.add(growing.client, growing, [(len(growing.prompt), growing)])

    def cancel(self, growing: Growing) -> None:
        growing.over = True
        self.queue.drop(growing.client, growing)
        self.cancelled += [place for place, one in self.flying.items() if one is growing]
        for place in self.cancelled:
            self.flying.pop(place, None)

    def messages(self) -> list[bytes]:
        """Return what rank 0 is to be told now."""
        found = []
        if self.cancelled:
            found.append(frames.packed({"kind": "cancel", "places": self.cancelled}))
            self.cancelled = []
        while len(self.flying) < self.slots and not any(one.suspect for one in self.flying.values()):
            if self.flying and self.again and self.again[0].suspect:
                break
            one = self.again.popleft() if self.again else next(iter(self.queue.take(1)), None)
            if one is None:
                break
            if one.over:
                continue
            place = next(self.places)
            self.flying[place] = one
            one.begun = one.begun or time.monotonic()
            ids = np.array([*one.prompt, *one.tokens], np.int64)
            head = {"kind": "prompt", "place": place, "sampling": told(one.left), "made": len(one.tokens)}
            found.append(frames.packed(head, [ids]))
        return found

    def grown(self, events: Sequence[Sequence[Any]]) -> list[tuple[Growing, Grown]]:
        """Take in what rank 0 tells; return what is to be told on."""
        found = []
        for place, *told in events:
            one = self.flying.get(place)
            if one is None:
                continue
            event = one.hear(*told)
            *_, finish, why = told
            self.tokens += event.chosen is not None
            if event.finish is not None:
                del self.flying[place]
                self.answered += 1
                took = time.monotonic() - (one.begun or one.since)
                self.text_seconds = took if self.text_seconds is None else 0.9 * self.text_seconds + 0.1 * took
                if finish is None and why is None:  # it ends at a stop text, which is known here only
                    self.cancelled.append(place)
            part = Grown(event.text, event.chosen, event.finish) if why is None else Grown("", error=InputError(why))
            found.append((one, part))
        return found

    def lost(self) -> list[tuple[Growing, Grown]]:
        """Let what was under way go on in the next job; return what is to be told to those that cannot."""
        under_way = [one for _, one in sorted(self.flying.items())]
        self.flying.clear()
        self.cancelled.clear()
        for one in under_way:
            one.tries = one.tries + 1 if len(one.tokens) == one.had else 1
            one.had = len(one.tokens)
        bad = [one for one in under_way if one.tries >= GIVEN_UP]
        self.again.extendleft(reversed([one for one in under_way if one.tries < GIVEN_UP]))
        why = ServiceError(f"the job failed {GIVEN_UP} times at the same token of the answer: it is not tried again")
        return [(one, Grown("", error=why)) for one in bad]

    def all(self) -> list[Growing]:
        """Forget all answers and return them."""
        found = [*self.flying.values(), *self.again, *self.queue.take(1 << 62)]
        self.cancelled += self.flying
        self.flying.clear()
        self.again.clear()
        return found


def told(sampling: Sampling) -> dict[str, Any]:
    """Return what is asked of an answer as JSON has it."""
    return asdict(sampling) | {"logit_bias": [[token, bias] for token, bias in sampling.logit_bias.items()]}


def sampling_of(document: Mapping[str, Any]) -> Sampling:
    """Return what `told` told. Raises InputError."""
    bias = {int(token): float(value) for token, value in document["logit_bias"]}
    return Sampling(**{**document, "stop": tuple(document["stop"]), "logit_bias": bias})


def growing(
    client: str, prompt: Sequence[int], sampling: Sampling, decode: Decode, heard: Callable[[Grown], None], goes_on: bool = False
) -> Growing:  # fmt: skip
    """Return an answer that has not begun; `goes_on`: the text of the prompt goes on with its own."""
    return Growing(list(prompt), sampling, Streamed(decode, sampling.stop, prompt if goes_on else ()), client=client, heard=heard)
