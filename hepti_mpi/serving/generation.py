"""Answers that grow token by token: many at once, on the same steps. Rank 0's only; what a step computes is the Stepper's business.

A Generator is driven by whoever has the ranks: `submit` takes a prompt at any time between steps, `step` does one step of all that is
under way and returns what came of it, `busy` tells whether there is anything left to do. It waits for nothing and starts no thread: a
server calls `step` in the thread that leads the ranks, and hands events on to its clients.

Knows slots, prompts and when an answer ends; does not know how ranks divide a model, nor how tokens become a text.
"""

import time
from collections import deque
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from hepti_mpi.errors import InputError
from hepti_mpi.models.tasks.forms import Forms
from hepti_mpi.models.tasks.sampling import Chosen, Sampler, Sampling, Scores
from hepti_mpi.models.tasks.streaming import Decode, Streamed
from hepti_mpi.serving.chunks import CHUNK, Kept, alike
from hepti_mpi.serving.lookup import Lookup
from hepti_mpi.wording import counted


class Stepper(Protocol):
    """What does steps: the ranks of a job, or a test's stand-in."""

    @property
    def slots(self) -> int:
        """How many answers may be under way at once."""

    @property
    def positions(self) -> int:
        """Rows that a slot has room for."""

    def prefill(self, slot: int, ids: Sequence[int], first: int, candidates: int | None) -> Scores | None:
        """Take rows `first` and on of the text in `slot`; return the scores behind the last one unless `candidates` is None.

        `candidates`: as Sampling.candidates.
        """

    def decode(self, rows: Sequence[tuple[int, int, int]], candidates: int) -> list[Scores]:
        """Take one row for each of some (slot, token, position), by slot; return the scores behind each."""

    def copy(self, source: int, slot: int, first: int, stop: int) -> None:
        """Let rows `first` to `stop` of `source` be those of `slot` too, behind all steps so far and before the next one."""

    def check(self, slot: int, ids: Sequence[int], first: int, candidates: int) -> list[Scores]:
        """Take rows `first` and on of the text in `slot`, all but the first of them guessed; return the scores behind each."""


@dataclass(eq=False)
class Answer:
    """One answer, as it grows. `finish_reason`: None while it grows, then "stop", "length", "cancelled" or "error", of which
    `error` says why. `made`: how many of its tokens another job has made, before it was submitted."""

    prompt: list[int]
    sampling: Sampling
    streamed: Streamed | None
    tokens: list[int] = field(default_factory=list)
    chosen: list[Chosen] = field(default_factory=list)
    finish_reason: str | None = None
    submitted: float = 0.0  # by the clock of perf_counter
    first_token: float = 0.0
    ended: float = 0.0
    made: int = 0
    error: str | None = None

    def grow(self, chosen: Chosen, ends: Container[int], room: int) -> str:
        """Add the next token, and end where that ends it: at one of `ends`, a stop text, or without room for one more row. Return what was
        added to the text."""
        over = chosen.token in ends and not self.sampling.ignore_end
        self.tokens.append(chosen.token)
        self.chosen.append(chosen)
        text = "" if self.streamed is None or over else self.streamed.add(chosen.token)
        if over or (self.streamed is not None and self.streamed.stopped):
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.sampling.max_tokens or len(self.prompt) + len(self.tokens) >= room:
            self.finish_reason = "length"
        if self.finish_reason is not None and self.streamed is not None:
            text += self.streamed.end()
        return text

    def hear(
        self, token: int | None, logprob: float | None, top: Iterable[Sequence[float]], finish: str | None, why: str | None
    ) -> "Event":  # fmt: skip
        """Take in what somebody else who makes it tells (serving.generating.told); where stop texts are not known there, an answer may end
        here before it does there."""
        text, chosen, now = "", None, time.perf_counter()
        if why is not None:
            self.error, finish = why, "error"
        if token is not None:
            chosen = Chosen(token, logprob, tuple((int(other), float(value)) for other, value in top))
            self.first_token = self.first_token or now
            self.tokens.append(token)
            self.chosen.append(chosen)
            if self.streamed is not None and finish != "stop":  # the token that ends an answer is no text
                text = self.streamed.add(token)
        if self.streamed is not None:
            text += self.streamed.end() if finish is not None or self.streamed.stopped else ""
            finish = "stop" if self.streamed.stopped and why is None else finish
        if finish is not None:
            self.finish_reason, self.ended = finish, now
        return Event(self, chosen, text, finish)

    @property
    def text(self) -> str:
        """The text so far, without what may still change."""
        return "" if self.streamed is None else self.streamed.text[: self.streamed.sent]


@dataclass(frozen=True)
class Event:
    """What was added to an answer: the token that was `chosen`, None where it is of before, and `text`; `finish`: why it ended with that.

    A step may add several tokens to an answer, each an event of its own.
    """

    answer: Answer
    chosen: Chosen | None
    text: str
    finish: str | None = None


@dataclass
class Running:
    answer: Answer
    slot: int
    sampler: Sampler
    rows: list[int]  # that are to be taken in before it grows: its prompt, and what another job made of it
    taken: int  # rows of prompt and tokens that are in the cache
    lookup: Lookup
    begun: int  # rows that the slot had of a talk before it went on: chunks are counted from there
    whole: int  # rows that were taken in by whole chunks counted from 0, as whoever has the same beginning takes them in
    behind: Scores | None = None  # what its rows were followed by, where whoever has the same ones takes them in so
    away: bool = False  # whether a step is under way behind which it grows (serving.passing)

    @property
    def is_in(self) -> bool:
        """Whether it grows by one step after the other now."""
        return self.taken >= len(self.rows)

    @property
    def is_whole(self) -> bool:
        """Whether all that is in was taken in by whole chunks counted from 0."""
        return self.whole == self.taken


class Asked:
    """Takes prompts, and lets them wait."""

    def __init__(
        self, positions: int, ends: Iterable[int], decode: Decode | None = None, penalty: float = 1.0, forms: Forms | None = None
    ) -> None:
        """`positions`: rows that there are of a prompt with its answer; `ends`: tokens behind which an answer ends; `decode`: turns tokens
        into text, where answers are texts; `penalty`: that on repetition where an answer is asked for without one; `forms`: makes what
        answers keep to that have a schema."""
        self.positions, self.ends, self.decode, self.penalty, self.forms = positions, frozenset(ends), decode, penalty, forms
        self.waiting: deque[Answer] = deque()

    def wake(self) -> None:
        """Let a step that waits end: something has come that it may begin with. Any thread may call it."""

    def submit(self, prompt: Sequence[int], sampling: Sampling, made: Sequence[Chosen] = (), goes_on: bool = False) -> Answer:
        """Take a prompt; its answer begins as soon as there is a slot, and goes on behind what another job has `made` of it.

        The answer has ended already where that is all of it. `goes_on`: the text of the prompt goes on with that of its answer.
        Raises InputError when it can have none.
        """
        room = self.positions
        if not len(prompt):
            raise InputError("the prompt has no tokens")
        if len(prompt) >= room:
            raise InputError(f"the prompt has {counted(len(prompt), 'tokens')}, there is room for {room} with its answer; shorten it")
        if sampling.stop and self.decode is None:
            raise InputError("stop texts need a tokenizer, which the model lacks")
        if sampling.repetition_penalty is None:
            sampling = replace(sampling, repetition_penalty=self.penalty)
        if sampling.schema is not None:
            if self.forms is None:
                raise InputError("a response_format needs a tokenizer, which the model lacks")
            self.forms.load()
        streamed = None if self.decode is None else Streamed(self.decode, sampling.stop, prompt if goes_on else ())
        answer = Answer([int(one) for one in prompt], sampling, streamed, submitted=time.perf_counter())
        for chosen in made:
            if answer.finish_reason is None:
                answer.grow(chosen, self.ends, room)
        answer.made = len(answer.tokens)
        if answer.finish_reason is None:
            self.waiting.append(answer)
        return answer


class Generator(Asked):
    """Makes answers to prompts."""

    def __init__(
        self, stepper: Stepper, ends: Iterable[int], decode: Decode | None = None, penalty: float = 1.0, forms: Forms | None = None
    ) -> None:
        """As Asked; `stepper` does the steps."""
        super().__init__(stepper.positions, ends, decode, penalty, forms)
        self.stepper = stepper
        self.guesses = True  # whether an answer that grows alone may guess (serving.lookup)
        self.running: list[Running] = []
        self.free = list(range(stepper.slots))
        self.turn = 0  # of prompts that are taken in
        self.kept = [Kept([], 0, 0, 0) for _ in self.free]  # per slot that is free, what is still in it

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.waiting or self.running)

    def cancel(self, answer: Answer) -> None:
        """End an answer that nobody wants any more."""
        if answer.finish_reason is None:
            answer.finish_reason = "cancelled"
            self.waiting = deque(one for one in self.waiting if one is not answer)
            for one in [one for one in self.running if one.answer is answer]:
                self._leave(one)

    def step(self) -> list[Event]:
        """Take in a part of a prompt that is not in yet, and let every other answer grow by a token."""
        events = self._begun()
        growing = sorted((one for one in self.running if one.is_in), key=lambda one: one.slot)
        coming = self._coming()
        if coming is not None:
            events += self._prefill(coming)
        if len(growing) == 1 and coming is None:
            events += self._alone(growing[0])
        elif growing:
            rows = [(one.slot, one.answer.tokens[-1], one.taken) for one in growing]
            wanted = [one.answer.sampling.candidates for one in growing]
            found = self.stepper.decode(rows, 0 if 0 in wanted else max(wanted))
            for one, scores in zip(growing, found):
                one.taken += 1
                events.append(self._grown(one, scores))
        return events

    def _begun(self) -> list[Event]:
        """Give all slots that are free; return who cannot begin, and why."""
        events: list[Event] = []
        while self.waiting and self.free:
            events += self._begin(self.waiting.popleft())
        return events

    def _alone(self, one: Running) -> list[Event]:
        """Let an answer grow that no other one grows beside, by more than one token where it repeats what was said before."""
        asked, begin = one.answer.sampling, time.perf_counter()
        left = min(asked.max_tokens - len(one.answer.tokens), self.positions - one.taken) - 1
        guess = one.lookup.guess(left) if self.guesses else []
        last = one.answer.tokens[-1]
        if guess:
            found = self.stepper.check(one.slot, [last, *guess], one.taken, asked.candidates)
        else:
            found = self.stepper.decode([(one.slot, last, one.taken)], asked.candidates)
        events: list[Event] = []
        for scores, guessed in zip(found, [*guess, None]):
            one.taken += 1
            events.append(self._grown(one, scores))
            if one.answer.tokens[-1] != guessed or one.answer.finish_reason is not None:
                break
        one.lookup.grew(len(guess), len(events) - 1, time.perf_counter() - begin)
        return events

    def _coming(self) -> Running | None:
        """Return whose prompt is taken in now, of those that are not in: in turns the one that has least left, so that a short one does not
        wait for a long one, and the first, so that a long one does not wait for ever."""
        coming = [one for one in self.running if not one.is_in]
        self.turn += bool(coming)
        if self.turn % 2:
            return min(coming, key=lambda one: len(one.rows) - one.taken, default=None)
        return coming[0] if coming else None

    def _begin(self, answer: Answer) -> list[Event]:
        """Give an answer the free slot that still has most of the beginning of its prompt, as a talk has that goes on. Return why it
        cannot begin, if so."""
        rows, schema = [*answer.prompt, *answer.tokens], answer.sampling.schema
        try:
            form = None if schema is None or self.forms is None else self.forms.form(schema, answer.tokens)
        except InputError as error:
            return [_failed(answer, error)]
        (reused, begun), neglected = max((self.kept[slot].reused(rows), -slot) for slot in self.free)
        self.free.remove(-neglected)
        sampler = Sampler(answer.sampling, rows, answer.tokens, form)
        whole = min(reused, self.kept[-neglected].whole)
        self.running.append(Running(answer, -neglected, sampler, rows, reused, Lookup(rows), begun, whole))
        return []

    def _prefill(self, one: Running) -> list[Event]:
        if (known := self._known(one)) is not None:
            return [self._grown(one, known)]
        self._share(one)
        twins, is_whole = self._twins(one), one.is_whole
        scores = self.stepper.prefill(*next_chunk(one))
        self._follow(one, twins)
        if scores is None:
            return []
        for each in (one, *twins):
            each.behind = scores if is_whole else None
        return [self._grown(each, scores) for each in (one, *twins)]

    def _known(self, one: Running) -> Scores | None:
        """Return what the prompt of an answer is followed by, where another answer to the same one grows: as twins that came too late for
        its last chunk, and those of many that had to wait for a slot."""
        other = next((other for other in self.running if other.behind is not None and _are_twins(one, other)), None)
        if other is None:
            return None
        self.stepper.copy(other.slot, one.slot, one.taken, len(one.rows))
        one.taken, one.whole, one.behind = len(one.rows), other.whole, other.behind
        return one.behind

    def _share(self, one: Running) -> None:
        """Copy what another slot has of a prompt and its own has not: whole chunks counted from 0, which are what it would compute.

        So chunks that prompts begin with alike are taken in once, whichever of them comes first.
        """
        if not one.is_whole:
            return
        others = [(other.rows, other.whole, other.slot) for other in self.running if other is not one]
        others += [(self.kept[slot].tokens, self.kept[slot].whole, slot) for slot in self.free]
        common, neglected = max(((alike(rows[:whole], one.rows), -slot) for rows, whole, slot in others), default=(0, 0))
        shared = common // CHUNK * CHUNK
        if shared > one.taken:
            self.stepper.copy(-neglected, one.slot, one.taken, shared)
            one.taken = one.whole = shared

    def _twins(self, one: Running) -> list[Running]:
        """Return who waits for the same last chunk of the same prompt, as several answers to one do: their scores are the same."""
        if len(one.rows) - one.taken > CHUNK:
            return []
        return [other for other in self.running if other is not one and not other.is_in and other.is_whole and _are_twins(one, other)]

    def _follow(self, one: Running, twins: Sequence[Running]) -> None:
        """Let those who wait for the chunk that `one` was given have it too."""
        for twin in twins:
            self.stepper.copy(one.slot, twin.slot, twin.taken, one.taken)
            twin.taken, twin.whole = one.taken, one.whole

    def _grown(self, one: Running, scores: Scores) -> Event:
        """Add the next token to an answer, and end it where that ends it."""
        answer = one.answer
        try:
            chosen = one.sampler.choose(scores)
        except InputError as error:  # of this answer only: others may have had the same step
            self._leave(one)
            return _failed(answer, error)
        answer.first_token = answer.first_token or time.perf_counter()
        text = answer.grow(chosen, self.ends, self.positions)
        one.lookup.add(chosen.token)
        if answer.finish_reason is not None:
            self._leave(one)
        return Event(answer, chosen, text, answer.finish_reason)

    def _leave(self, one: Running) -> None:
        one.answer.ended = time.perf_counter()
        self.running.remove(one)
        self.free.append(one.slot)
        tokens = [*one.answer.prompt, *one.answer.tokens][: one.taken]
        self.kept[one.slot] = Kept(tokens, min(len(one.rows), one.taken), one.begun, one.whole)


def next_chunk(one: Running) -> tuple[int, list[int], int, int | None]:
    """Return what is taken in next of a prompt, as Stepper.prefill wants it, and note that it is."""
    part, first = one.rows[one.taken : one.taken + CHUNK], one.taken
    if one.whole == first and len(part) == CHUNK:
        one.whole += CHUNK
    one.taken += len(part)
    return one.slot, part, first, one.answer.sampling.candidates if one.is_in else None


def _are_twins(one: Running, other: Running) -> bool:
    """Tell whether `one`, whose prompt is not in yet, takes in the same rows as `other` in the same chunks, and wants the same scores."""
    same = one.answer.sampling.candidates == other.answer.sampling.candidates
    return one.is_whole and same and one.rows == other.rows


def _failed(answer: Answer, error: InputError) -> Event:
    """End an answer that cannot go on; what there is of it is kept."""
    answer.finish_reason, answer.error, answer.ended = "error", str(error), time.perf_counter()
    return Event(answer, None, "" if answer.streamed is None else answer.streamed.end(), "error")
