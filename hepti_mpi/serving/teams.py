"""Answer batches by teams: each batch goes to the team that will have answered it first.

Rank 0 has a thread, the dispatcher, that hands out batches and takes results, whatever that rank computes itself; the first rank of each
stage takes a batch, lets its members do their layers, and hands it on to the next stage or back to the dispatcher. A few batches wait at
each team, so that none waits for the dispatcher. Knows batches, teams and letters; does not know how layers are divided, nor where answers
go.
"""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from hepti_mpi.cluster.emulation import Emulation
from hepti_mpi.comm.launcher import host_name
from hepti_mpi.comm.mail import IDLE_LOOK_SECONDS, Letter, Mail
from hepti_mpi.comm.ranks import Comm
from hepti_mpi.engine.crew import Crew, beside
from hepti_mpi.engine.machine import Machine
from hepti_mpi.planning.forecast import Shape
from hepti_mpi.program.placement import Placement, Team
from hepti_mpi.serving.letters import packed, packed_results, unpacked, unpacked_results
from hepti_mpi.serving.loop import WAIT_SECONDS, Desk, peak_resident_bytes
from hepti_mpi.serving.request import Answerer
from hepti_mpi.serving.scheduler import Step
from hepti_mpi.tuning.teaming import Teamed

RESULTS, WORK = "results", "work"  # boxes
AHEAD = 2  # batches that a team of one stage has: one under way, one that waits; one more for each stage more
MOST_SHAPES = 1000  # of batches that are noted
LEARNED = 0.25  # of what is known of a team that one batch may change
LEAST_PART = 4  # of a full batch is the smallest one, with which the last rows are shared out
BEFORE_END = 2  # batches in which a team gets what is left for it, if they can be so small
FEW_ROWS = 16  # fewer take hardly less time: weights are read for them too


@dataclass
class Work:
    """What one team has done, and how fast it is: `pace`, seconds for each row, between two of its answers."""

    pace: float
    under_way: dict[int, float] = field(default_factory=dict)  # by ticket: its rows
    shapes: Counter[Shape] = field(default_factory=Counter)  # of its batches, the first ones of different shapes
    batches: int = 0
    requests: int = 0
    rows: int = 0
    seconds: float = 0.0  # that its slowest stage was busy

    @property
    def waits(self) -> float:
        """Seconds until it has answered all that it was given."""
        return self.pace * sum(self.under_way.values())

    def took(self, rows: int, seconds: float) -> None:
        """Learn from a batch, and count it."""
        self.pace += LEARNED * (seconds / rows - self.pace)
        self.batches, self.rows, self.seconds = self.batches + 1, self.rows + rows, self.seconds + seconds


@dataclass
class Outcome:
    """What happened: what each team did, how many requests were answered in how many `seconds` from the first batch to the last answer,
    and one row of facts per rank."""

    teams: list[Work]
    answered: int = 0
    seconds: float = 0.0
    facts: list[dict[str, Any]] = field(default_factory=list)


def most_under_way(team: Team) -> int:
    """Return how many batches a team has at once."""
    return len(team.stages) + AHEAD - 1


class Dispatcher:
    """Hands out the batches of a desk to teams and takes their results, in a thread of rank 0."""

    def __init__(self, desk: Desk, mail: Mail, placement: Placement, paces: Sequence[float]) -> None:
        """`paces`: seconds for each row that each team is thought to take."""
        self.desk, self.mail, self.placement = desk, mail, placement
        self.outcome = Outcome([Work(pace) for pace in paces])
        self.steps: dict[int, tuple[int, Step, float]] = {}  # by ticket: whose, what, since when
        self.ticket, self.begin = 0, 0.0
        self.error: BaseException | None = None
        desk.source.ring = lambda: mail.send(mail.rank, RESULTS, {"do": "look"})  # a team may be free for what comes while others answer
        desk.doing = self.doing
        self.thread = threading.Thread(target=self._work, name="dispatcher", daemon=True)

    def doing(self) -> list[dict[str, Any]]:
        """Return what each team does now, for any thread: its ranks, how many rows a second it answers, and how many inputs it has."""
        inputs = Counter[int]()
        for number, step, _ in list(self.steps.values()):
            inputs[number] += len(step.requests)
        return [
            {"ranks": list(team.members), "rows_per_second": 1 / work.pace, "inputs": inputs[number]}
            for number, (team, work) in enumerate(zip(self.placement.teams, self.outcome.teams))
        ]

    def _work(self) -> None:
        try:
            self._hand_out_all()
        except BaseException as error:  # noqa: BLE001  rank 0 raises it
            self.error = error
        finally:
            for rank in {*self.placement.leads, *self.mail.partners}:
                self.mail.send(rank, WORK, {"do": "end"})

    def _hand_out_all(self) -> None:
        desk, wanted = self.desk, True
        while wanted:
            if not desk.source.ended:
                desk.scheduler.add(desk.source.take(0.0 if self.steps or desk.scheduler.left else WAIT_SECONDS))
            self._hand_out()
            if not self.steps and desk.source.ended:
                break
            letter = self.mail.take(RESULTS) if self.steps else None
            if letter is not None and letter.facts["do"] == "step":
                self._answered(letter)
                wanted = desk.wanted()

    def _hand_out(self) -> None:
        """Give teams that have room what they will have answered first, one batch each in turns, the fastest first."""
        order = sorted(range(len(self.outcome.teams)), key=lambda number: self.outcome.teams[number].pace)
        most, idle = list(map(most_under_way, self.placement.teams)), not self.steps
        for room in range(max(most)):
            for number in order:
                if len(self.outcome.teams[number].under_way) <= min(room, most[number] - 1) and (rows := self._due(number, idle)):
                    step = self.desk.scheduler.next(rows)
                    if step is None:
                        return
                    self._give(number, step)

    def _due(self, number: int, idle: bool) -> float:
        """Return the rows of the batch that a team gets now, so that all will have answered the last one together; 0: none. Of a source
        without an end the last one is what has come while all were `idle`: else a team gets a full batch, since more will come."""
        scheduler, (team, teams) = self.desk.scheduler, (self.outcome.teams[number], self.outcome.teams)
        ends = self.desk.source.ended
        if not ends and not idle:
            return scheduler.most_rows
        least = max(scheduler.most_rows / LEAST_PART if ends else FEW_ROWS, scheduler.first_rows)
        others = [other for other in teams if other is not team]
        if others:
            first = min(other.waits + least * other.pace for other in others)
            if team.waits + least * team.pace > max(first, common_end(scheduler.rows_left, others)):
                return 0  # they will have answered all before
        share = (common_end(scheduler.rows_left, teams) - team.waits) / team.pace
        if not ends:
            return max(share + scheduler.first_rows / 2, least)
        return max(share / BEFORE_END, least) if team.batches or not others else least  # a small one first, to see how fast it is

    def _give(self, number: int, step: Step) -> None:
        facts, arrays = packed(step.requests)
        self.steps[self.ticket] = number, step, time.perf_counter()
        self.begin = self.begin or self.steps[self.ticket][2]
        self.outcome.teams[number].under_way[self.ticket] = sum(step.lengths)
        self.mail.send(self.placement.teams[number].lead, WORK, {"do": "step", "ticket": self.ticket, "spent": [], **facts}, arrays)
        self.ticket += 1

    def _answered(self, letter: Letter) -> None:
        number, step, begin = self.steps.pop(letter.facts["ticket"])
        now, rows, team = time.perf_counter(), sum(step.lengths), self.outcome.teams[number]
        seconds, self.outcome.seconds = now - begin, now - self.begin
        del team.under_way[letter.facts["ticket"]]
        team.took(rows, max(letter.facts["spent"]))
        shape = rows, max(step.lengths), len(step.lengths)
        if shape in team.shapes or len(team.shapes) < MOST_SHAPES:
            team.shapes[shape] += 1
        team.requests += len(step.requests)
        self.outcome.answered += len(step.requests)
        results = unpacked_results(letter.facts["results"], letter.arrays)
        self.desk.answerer.errors.update({int(place): why for place, why in letter.facts["errors"].items()})
        self.desk.sink.event(self.desk.scheduler.done(step, results, seconds))


def common_end(rows: float, teams: Sequence[Work]) -> float:
    """Return the seconds until teams have answered what they have and `rows` more, if they are given these so that all end together.

    >>> common_end(30, [Work(0.1), Work(0.1, {0: 10}), Work(0.1, {1: 90})])
    2.0
    """
    given, speed, end = float(rows), 0.0, float("inf")
    for waits, pace in sorted((team.waits, team.pace) for team in teams):  # who is done after the others gets nothing
        given, speed = given + waits / pace, speed + 1 / pace
        end = min(end, given / speed)
    return end


def partners(placement: Placement, rank: int, size: int) -> set[int]:
    """Return the ranks of a job of so many that a rank exchanges letters with; those that rest hear from rank 0 that it is there."""
    leads, resting = placement.leads, {rank for rank in range(size) if placement.place(rank) is None}
    if rank == 0:
        return {0, *leads, *resting}
    if rank in resting:
        return {0}
    if rank not in leads:
        return set()
    team, stage = placement.place(rank) or (0, 0)
    neighbours = placement.teams[team].stages[max(stage - 1, 0) : stage + 2]
    return {0, *(one.lead for one in neighbours)}


def mail_of(world: Comm, placement: Placement, crew: Crew | None) -> Mail:
    """Return this rank's end of what teams say to each other. Collective."""
    own = partners(placement, world.rank, world.size)
    if crew is None or crew.leads:
        apart = set(placement.leads) == {0} if world.rank == 0 else crew is None  # the others have nothing to say
        return Mail(world, own, crew.members[1:] if crew else (), idle=apart)
    return Mail(world, own, lead=None if world.rank == 0 else crew.members[0], pause=crew.machine.exchanges.pause)  # rank 0 dispatches


def answer(machine: Machine, teamed: Teamed, answerer: Answerer, desk: Desk | None) -> Outcome:
    """Answer what comes to the desk of rank 0, the others have none. Collective. Return what happened, which rank 0 knows."""
    crews, world, before = teamed.crews, machine.world, copy(machine.emulation)
    crew = crews[0] if crews else None
    mail = mail_of(world, teamed.placement, crew)
    dispatcher = None if desk is None else Dispatcher(desk, mail, teamed.placement, teamed.paces)
    if dispatcher is not None:
        dispatcher.thread.start()
    if crew is not None and crew.leads:
        beside(crews, lambda own: _lead(own, mail, answerer))
    elif crew is not None:
        _follow(crew, mail)
    elif dispatcher is None:
        mail.take(WORK)  # the end
    if dispatcher is not None:
        dispatcher.thread.join()
        if dispatcher.error is not None:
            raise dispatcher.error
    mail.close()
    outcome = Outcome([]) if dispatcher is None else dispatcher.outcome
    outcome.facts = world.gather_all(_facts(machine, crews, before))
    return outcome


def _facts(machine: Machine, crews: Sequence[Crew], before: Emulation) -> dict[str, Any]:
    """Return what is recorded of this rank, whose crews share the weights. `before`: a copy of its emulation before the first batch."""
    return {
        "host": host_name(), "threads": sum(crew.engine.threads for crew in crews) or machine.cores.threads,
        **machine.emulation.since(before), "weight_bytes": max((crew.engine.weight_bytes for crew in crews), default=0),
        "peak_resident_bytes": peak_resident_bytes(),
    }  # fmt: skip


def _lead(crew: Crew, mail: Mail, answerer: Answerer) -> None:
    """Take batches, do them with the members of the stage, and hand them on."""
    while (letter := mail.take(WORK)) is not None and letter.facts["do"] != "end":
        _do(crew, mail, answerer, letter)
    mail.send(mail.rank, WORK, {"do": "end"})  # for others of this rank that take from the same box
    _tell(crew, mail, {"do": "end"})


def _do(crew: Crew, mail: Mail, answerer: Answerer, letter: Letter) -> None:
    begin = time.perf_counter()
    requests = unpacked(letter.facts, letter.arrays)
    lengths = [request.rows for request in requests]
    rows = answerer.embedded(requests) if crew.is_first else letter.arrays["hidden"]
    _tell(crew, mail, {"do": "step", "lengths": lengths})
    hidden = crew.engine.run(lengths, rows)
    assert hidden is not None
    if crew.is_last:
        shapes, arrays = packed_results(answerer.results(requests, hidden))
    else:
        arrays = packed(requests, embedded=True)[1] | {"hidden": hidden.copy()}
    spent = [*letter.facts["spent"], time.perf_counter() - begin]
    errors = {request.index: answerer.errors.pop(request.index) for request in requests if request.index in answerer.errors}
    facts = {"do": "step", "ticket": letter.facts["ticket"], "spent": spent, "errors": errors}
    if crew.is_last:
        mail.send(0, RESULTS, {**facts, "results": shapes}, arrays)
    else:
        mail.send(crew.heir, WORK, {**facts, "requests": letter.facts["requests"]}, arrays)


def _tell(crew: Crew, mail: Mail, order: dict[str, Any]) -> None:
    """Tell the other members of the stage."""
    for rank in crew.members[1:]:
        mail.send(rank, WORK, order)


def _follow(crew: Crew, mail: Mail) -> None:
    """Do what the first rank of the stage says, until the end."""
    idle = 0.0 if crew.engine.takes_part else IDLE_LOOK_SECONDS
    while (letter := mail.take(WORK, idle=idle)) is not None and letter.facts["do"] != "end":
        crew.engine.run(letter.facts["lengths"], None)
