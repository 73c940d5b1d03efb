"""Answers that grow in several teams at once: each text is written by the team that will have written it first.

Rank 0 hands prompts out and hears of each token; the first rank of a team makes its answers, with a Generator of its own, and rank 0 those
of its own team between two looks for letters. Knows prompts, teams and letters; does not know how a team divides a step.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hepti_mpi.comm.mail import Mail
from hepti_mpi.models.tasks.forms import Forms
from hepti_mpi.models.tasks.streaming import Decode
from hepti_mpi.planning.writing import Writer
from hepti_mpi.serving import generating
from hepti_mpi.serving.generation import Answer, Asked, Event, Generator
from hepti_mpi.serving.remote import Prompt
from hepti_mpi.serving.streams import sampling_of, told
from hepti_mpi.serving.teams import RESULTS, WORK

WAIT_SECONDS = 0.02  # for a letter, where rank 0 has nothing to write itself
LEARNED = 0.25  # of what is known of a team that one text may change


@dataclass
class TeamWork:
    """What one team has done: texts and tokens; `slower`: how many times as long as planned it takes."""

    writer: Writer
    under_way: dict[int, float] = field(default_factory=dict)  # by place: when it was given
    texts: int = 0
    tokens: int = 0
    slower: float = 1.0

    @property
    def has_room(self) -> bool:
        return len(self.under_way) < self.writer.slots

    @property
    def seconds(self) -> float:
        """Seconds that it takes for what it has and one more."""
        return self.slower * self.writer.seconds(len(self.under_way) + 1)

    def ended(self, place: int, tokens: int) -> None:
        """Count a text, and learn from it."""
        at_once, took = len(self.under_way), time.perf_counter() - self.under_way.pop(place)
        planned = at_once * self.writer.prompt_seconds + tokens * self.writer.steps[at_once - 1]
        self.texts, self.tokens = self.texts + 1, self.tokens + tokens
        if tokens:
            self.slower += LEARNED * (took / planned - self.slower)


class TeamGenerator(Asked):
    """Makes answers to prompts as a Generator does, by teams. Rank 0's only."""

    def __init__(
        self, own: Generator | None, mail: Mail, writers: Sequence[Writer], positions: int, ends: Iterable[int],
        decode: Decode | None = None, penalty: float = 1.0, forms: Forms | None = None,
    ) -> None:  # fmt: skip
        """`own`: of the team that rank 0 is in; `writers`: all teams."""
        super().__init__(positions, ends, decode, penalty, forms)
        self.own, self.mail, self.teams = own, mail, [TeamWork(one) for one in writers]
        self.flying: dict[int, tuple[Answer, TeamWork]] = {}  # by place
        self.made: dict[int, tuple[int, Answer]] = {}  # by an answer of the own team, of which place it is
        self.places = 0

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.waiting or self.flying)

    @property
    def facts(self) -> list[dict[str, Any]]:
        """What each team did, for a record."""
        return [
            {"members": list(one.writer.team.members), "texts": one.texts, "tokens": one.tokens}
            | {"predicted_tokens_per_second": one.writer.rate}
            for one in self.teams
        ]

    def doing(self) -> list[dict[str, Any]]:
        """Return what each team does now, for any thread: its ranks, tokens a second of full slots, and how many texts it has."""
        return [
            {"ranks": list(one.writer.team.members), "rows_per_second": one.writer.rate / one.slower, "inputs": len(one.under_way)}
            for one in self.teams
        ]

    def wake(self) -> None:
        """See serving.generation.Asked."""
        self.mail.send(self.mail.rank, RESULTS, {"events": []})

    def cancel(self, answer: Answer) -> None:
        """End an answer that nobody wants any more."""
        if answer.finish_reason is None:
            answer.finish_reason = "cancelled"
            self.waiting = type(self.waiting)(one for one in self.waiting if one is not answer)
            for place in [place for place, (one, _) in self.flying.items() if one is answer]:
                self._leave(place, cancelled=True)

    def step(self) -> list[Event]:
        """Hand prompts out, let those of the own team grow, and hear of the others."""
        self._hand_out()
        found: list[Sequence[Any]] = []
        if self.own is not None and self.own.busy:
            for grown in self.own.step():
                if id(grown.answer) in self.made:
                    found.append(generating.told(self.made[id(grown.answer)][0], grown))
        seconds = 0.0 if self.made else WAIT_SECONDS
        while (letter := self.mail.take(RESULTS, seconds)) is not None:
            found += letter.facts["events"]
            seconds = 0.0
        return [event for one in found if (event := self._heard(*one)) is not None]

    def _hand_out(self) -> None:
        while self.waiting and (team := self._first()) is not None:
            answer = self.waiting.popleft()
            place, self.places = self.places, self.places + 1
            self.flying[place], team.under_way[place] = (answer, team), time.perf_counter()
            sampling = replace(answer.sampling, stop=())  # which are looked for here, where text is
            if team.writer.team.lead == self.mail.rank:
                assert self.own is not None, "rank 0 is in that team"
                made = self.own.submit(answer.prompt, sampling, answer.chosen)
                self.made[id(made)] = place, made
                continue
            ids = np.array([*answer.prompt, *answer.tokens], np.int64)
            facts = {"do": "prompt", "place": place, "sampling": told(sampling), "made": len(answer.tokens)}
            self.mail.send(team.writer.team.lead, WORK, facts, {"ids": ids})

    def _first(self) -> TeamWork | None:
        """Return the team that will have written one more text first, None where it has no room for one yet."""
        free, full = [one for one in self.teams if one.has_room], [one for one in self.teams if not one.has_room]
        best = min(free, key=lambda one: one.seconds, default=None)
        if best is None or not full:
            return best
        texts = sum(one.writer.slots / (one.slower * one.writer.seconds(one.writer.slots)) for one in full)  # a second
        later = min(one.slower * one.writer.seconds(one.writer.slots) for one in full) + len(self.waiting) / texts
        return best if best.seconds <= later else None

    def _heard(self, place: int, *told: Any) -> Event | None:
        """Take in what was added to an answer; None where nobody wants it any more."""
        if place not in self.flying:
            return None
        event = self.flying[place][0].hear(*told)
        if event.finish is not None:
            *_, finish, why = told
            self._leave(place, cancelled=finish is None and why is None)
        return event

    def _leave(self, place: int, cancelled: bool) -> None:
        answer, team = self.flying.pop(place)
        team.ended(place, len(answer.tokens) - answer.made)
        own = next((made for at, made in self.made.values() if at == place), None)
        if own is not None:
            del self.made[id(own)]
        if not cancelled:
            return
        if own is not None and self.own is not None:
            self.own.cancel(own)
        else:
            self.mail.send(team.writer.team.lead, WORK, {"do": "cancel", "places": [place]})


class Post:
    """Rank 0, as the first rank of a team sees it (serving.generating.Asking). `ended`: whether nothing more will come."""

    def __init__(self, mail: Mail) -> None:
        self.mail, self.ended = mail, False
        self.given: set[int] = set()  # places of what has not ended

    def take_prompts(self, timeout: float) -> list[Prompt | list[int]]:
        """Return the prompts that have come, and lists of places that nobody wants any more, in their order."""
        found: list[Prompt | list[int]] = []
        while (letter := self.mail.take(WORK, 0.0 if found else timeout)) is not None:
            facts = letter.facts
            if facts["do"] == "end":
                self.ended = True
                return [*found, sorted(self.given)]
            if facts["do"] == "cancel":
                found.append(facts["places"])
                continue
            self.given.add(facts["place"])
            found.append(Prompt(facts["place"], letter.arrays["ids"].tolist(), sampling_of(facts["sampling"]), facts["made"]))
        return found

    def grown(self, events: Sequence[Sequence[Any]]) -> None:
        """Tell what was added to answers."""
        self.given -= {place for place, *_, finish, why in events if finish is not None or why is not None}
        self.mail.send(0, RESULTS, {"events": [list(one) for one in events]})


def follow(mail: Mail, making: Callable[[], Generator] | None, rest: Callable[[], None]) -> None:
    """Write what rank 0 asks of this team, whose first rank calls it, until nothing more will come; without `making`: wait for that."""
    if making is not None:
        generating.lead(making(), Post(mail), rest)
        return
    while (letter := mail.take(WORK)) is not None and letter.facts["do"] != "end":
        pass
