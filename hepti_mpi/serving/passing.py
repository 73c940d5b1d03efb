"""Answers that grow on ranks whose steps pass through stages: while one step is in a later stage the next ones are behind it.

Parts of prompts follow each other without waiting for what comes of them; answers that grow go in groups, each of which comes back before
it goes again. Knows steps under way and whose they are; does not know what a stage is.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hepti_mpi.models.tasks.forms import Forms
from hepti_mpi.models.tasks.sampling import Scores
from hepti_mpi.models.tasks.streaming import Decode
from hepti_mpi.serving.generation import Event, Generator, Running, Stepper, next_chunk


class Stages(Stepper, Protocol):
    """What does steps, several at once: each begins behind those before, and they end in that order."""

    @property
    def depth(self) -> int:
        """How many steps are done at once."""

    def begin_prefill(self, slot: int, ids: Sequence[int], first: int, candidates: int | None) -> None:
        """Begin what `prefill` does."""

    def begin_decode(self, rows: Sequence[tuple[int, int, int]], candidates: int) -> None:
        """Begin what `decode` does."""

    def end(self) -> list[Scores]:
        """Wait for the first step under way; return its scores."""


@dataclass
class _Step:
    """A step under way: who grows by its scores, and whether it is of a `prompt`."""

    growing: list[Running]
    prompt: bool = False


class Passing(Generator):
    """Makes answers to prompts as a Generator does, with several steps under way."""

    def __init__(
        self, stages: Stages, groups: int, ends: Iterable[int], decode: Decode | None = None, penalty: float = 1.0,
        forms: Forms | None = None,
    ) -> None:  # fmt: skip
        """`groups`: in how many answers that grow go, at most."""
        super().__init__(stages, ends, decode, penalty, forms)
        self.stages, self.groups = stages, groups
        self.under_way: deque[_Step] = deque()
        self.was_prompt = False  # whether the last step that began was a part of a prompt

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.under_way) or super().busy

    def step(self) -> list[Event]:
        """Begin as many steps as the stages can do at once, and one that waits; take in what comes of the first one under way."""
        events = self._begun()
        if len(self.running) == 1 and self.running[0].is_in and not self.under_way:
            return events + self._alone(self.running[0])  # which may guess
        while len(self.under_way) <= self.stages.depth and self._begin_step():
            pass
        if not self.under_way:
            return events
        scores, step = self.stages.end(), self.under_way.popleft()
        for one, found in zip(step.growing, scores * len(step.growing) if step.prompt else scores):
            one.away = False
            if any(one is other for other in self.running):  # else nobody wants it any more
                events.append(self._grown(one, found))
        return events

    def _begin_step(self) -> bool:
        """Begin a step, of a prompt and of answers in turns; tell whether there was one to begin."""
        group = self._group()
        coming = self._coming() if not (self.was_prompt and group) else None
        self.was_prompt = coming is not None
        if coming is not None:
            self._share(coming)
            twins = self._twins(coming)
            slot, ids, first, candidates = next_chunk(coming)
            if candidates is None and any(one.is_in for one in self.running):
                candidates = 1  # it is over when they come; else parts without end would wait in front of those that grow
            self.stages.begin_prefill(slot, ids, first, candidates)
            self._follow(coming, twins)
            growing = [coming, *twins] if coming.is_in else []
            for one in growing:
                one.away = True
            self.under_way.append(_Step(growing, prompt=True))
            return True
        if not group:
            return False
        wanted = [one.answer.sampling.candidates for one in group]
        rows = [(one.slot, one.answer.tokens[-1], one.taken) for one in group]
        self.stages.begin_decode(rows, 0 if 0 in wanted else max(wanted))
        for one in group:
            one.taken, one.away = one.taken + 1, True
        self.under_way.append(_Step(group))
        return True

    def _group(self) -> list[Running]:
        """Return the answers that go next: none while as many groups as may are under way, or where the rest of a group is; each step reads
        all weights, whether for one answer or for many."""
        ready = sorted((one for one in self.running if one.is_in and not one.away), key=lambda one: one.slot)
        steps, every = sum(not step.prompt for step in self.under_way), sum(one.is_in for one in self.running)
        if steps >= self.groups or (steps and len(ready) < every // self.groups):
            return []
        return ready[: -(-len(ready) // (self.groups - steps))]
