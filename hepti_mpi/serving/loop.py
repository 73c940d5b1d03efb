"""Answer requests, step after step. Rank 0 leads: between steps it tells the others which to answer next, to go on with another plan, or
to look at the links; they follow, and report how long they computed.

Knows steps, orders and what a rank notes of them; does not know why a plan is changed (adapt.py decides).
"""

import resource
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hepti_mpi.cluster.links import links_again
from hepti_mpi.comm.launcher import host_name
from hepti_mpi.comm.mail import IDLE_LOOK_SECONDS, RESTING_SECONDS, Mail
from hepti_mpi.engine.loading import Ready, swap
from hepti_mpi.models.tasks.heads import Result
from hepti_mpi.program import plan as plans
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import Compute
from hepti_mpi.serving.request import Answerer
from hepti_mpi.serving.scheduler import Lengths, Scheduler, Step
from hepti_mpi.serving.sink import Listener
from hepti_mpi.tuning.pulse import Pulse
from hepti_mpi.tuning.watch import Steady, Watch
from hepti_mpi.tuning.wires import within

if TYPE_CHECKING:
    from hepti_mpi.serving.source import Source

ORDERS, REPORTS = "orders", "reports"  # boxes
KEPT = 256  # batches whose steps are noted, the last ones
WARM_UPS, WARM_SECONDS = 3, 0.2  # so often, in so long, the first batch is answered before: new memory costs as much as a short one
# so often, in so long, where one rank computes: its cores have rested and are slow at first; ranks that wait for each other stay awake
LONE_WARM_UPS, LONE_WARM_SECONDS = 10, 0.03
WAIT_SECONDS = 0.05  # for requests, where none is there
REST_SECONDS = 0.2  # without any, after which the others sleep between two looks for an order
BEAT_SECONDS = 1.0  # between two words to those that rest: whoever hears nothing for long takes rank 0 for lost


@dataclass
class Desk:
    """What rank 0 has that leads: where requests come from, who puts them together and answers them, where the answers go, and the watch
    over the plan. `wanted` tells whether to go on; left out: always. `doing`: what teams do now, where there are some (serving.teams)."""

    source: "Source"
    scheduler: Scheduler
    answerer: Answerer
    sink: Listener
    watch: Watch = field(default_factory=Steady)
    wanted: Callable[[], bool] = lambda: True
    doing: Callable[[], list[dict[str, Any]]] = list


@dataclass
class Outcome:
    """What happened: how many requests were answered, latencies and rows per batch where the source has an end, the `lengths` of the
    batches of the first round and, on rank 0, seconds [ranks, batches, steps] of the last batches of the last plan and one row of facts
    per rank. `warm_seconds`: of what was answered before, to warm up, and `end_seconds`, in which ranks tell each other how it went behind
    the last answer, for which those that rest are waited for: they count nowhere else."""

    answered: int = 0
    warm_seconds: float = 0.0
    end_seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    lengths: list[Lengths] = field(default_factory=list)
    seconds: np.ndarray | None = None
    facts: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)


def answer(ready: Ready, desk: Desk | None) -> tuple[Ready, Outcome]:
    """Answer what comes to the desk of rank 0, the others have none. Collective.

    A batch's latency runs from its input in memory to its results in memory, on rank 0.
    Return what is in use at the end, and what happened.
    """
    world = ready.machine.world
    if desk is not None:
        desk.scheduler.add(desk.source.take(0.0))
    shapes = world.from_root(desk.scheduler.shapes if desk is not None else None)
    course = Course(ready, [tuple(lengths) for lengths in shapes])
    if desk is None:
        follow(course)
    else:
        lead(course, desk)
    outcome, begin = course.outcome, time.perf_counter()
    outcome.seconds = world.gather_matrix(course.last_steps())
    facts = {
        "host": host_name(),
        "threads": course.ready.engine.threads,
        **ready.machine.emulation.since(course.before),
        "weight_bytes": course.ready.engine.weight_bytes,
        "peak_resident_bytes": peak_resident_bytes(),
    }
    outcome.facts = world.gather_all(facts)
    outcome.end_seconds += time.perf_counter() - begin
    return course.ready, outcome


class Course:
    """What a rank does in the steps of one job, and where that stands. All ranks know the `shapes` of the steps of the beginning, by
    number; of others the order itself says them."""

    def __init__(self, ready: Ready, shapes: list[Lengths]) -> None:
        self.ready, self.shapes = ready, list(dict.fromkeys(shapes))
        self.numbers = {lengths: number for number, lengths in enumerate(self.shapes)}
        self.outcome = Outcome(lengths=shapes)
        self.steps: deque[np.ndarray] = deque(maxlen=KEPT)
        self.mail = Mail(ready.machine.world, lead=0, pause=ready.machine.exchanges.pause)
        self.number = 0  # of the next batch
        self.resting, self.told = False, time.monotonic()  # whether the last order was to rest, and when it was
        self.before = copy(self.ready.machine.emulation)  # what it counted before the first batch
        self._arrange()

    def _arrange(self) -> None:
        """Get ready for batches under the present plan."""
        engine = self.ready.engine
        engine.prepare(self.shapes)
        self.computing = [place for place, step in enumerate(engine.program) if isinstance(step, Compute)]
        self.steps.clear()

    def begin(self, answer: Callable[[], object]) -> Pulse:
        """Count from here, after as many calls of `answer`, which answers the first batch, as warm up."""
        pulse, begin = Pulse(self.ready.machine, self.ready.spec), time.perf_counter()
        for _ in range(self.warm_ups()):
            answer()
        self.outcome.warm_seconds = time.perf_counter() - begin
        self.before = copy(self.ready.machine.emulation)
        return pulse

    def named(self, lengths: Lengths) -> int | Lengths:
        """Return the number of a shape that all ranks know, else the shape itself."""
        return self.numbers.get(lengths, lengths)

    def shape(self, name: int | Sequence[int]) -> Lengths:
        """Return the shape that an order names."""
        return self.shapes[name] if isinstance(name, int) else tuple(name)

    def give(self, order: dict[str, Any]) -> None:
        """Give an order to the other ranks."""
        self.mail.tell(ORDERS, order)
        self.resting, self.told = order["do"] == "rest", time.monotonic()

    def order(self) -> Mapping[str, Any]:
        """Return the next order that rank 0 gives."""
        letter = self.mail.take(ORDERS, idle=self._idle())
        assert letter is not None, "it waits for ever"
        return letter.facts

    def _idle(self) -> float:
        """Return how long this rank may look away, in seconds."""
        if not self.ready.engine.takes_part:
            return IDLE_LOOK_SECONDS
        return RESTING_SECONDS if self.resting else 0.0

    def report(self, facts: dict[str, Any]) -> None:
        """Tell rank 0, which reads that when it likes."""
        self.mail.send(0, REPORTS, facts)

    def rest(self) -> None:
        """Let the other ranks rest where there has been nothing to do for a while; tell them now and then that rank 0 is there."""
        if time.monotonic() >= self.told + (BEAT_SECONDS if self.resting else REST_SECONDS):
            self.give({"do": "rest"})

    def last_steps(self) -> np.ndarray:
        return np.array(self.steps) if self.steps else np.zeros((0, len(self.ready.program)))

    def warm_ups(self) -> int:
        """Return how often the first batch is answered before it counts, as it is short; the same on all ranks."""
        plan = self.ready.plan
        if not self.shapes or not plan.predicted_seconds:
            return 0
        first = plan.predicted_seconds * sum(self.shapes[0]) / plan.planned_rows
        lone = 0 if plan.divided else min(LONE_WARM_UPS, int(LONE_WARM_SECONDS / first))
        return max(lone, min(WARM_UPS, int(WARM_SECONDS / first)))

    def ran(self) -> float:
        """Note a batch; return the seconds that this rank computed."""
        engine = self.ready.engine
        self.steps.append(engine.seconds.copy())
        self.number += 1
        return float(engine.seconds[self.computing].sum())

    # all together

    def swap(self, order: Mapping[str, Any]) -> tuple[float, float]:
        """Go on with another plan; return the seconds that this took and those of them that the weights did."""
        begin = time.perf_counter()
        with self.ready.machine.world.patience.slower():
            plan: Plan = plans.from_json(order["plan"])
            self.ready, _ = within(swap(self.ready, plan, make_room=True))
            loaded = max(self.ready.machine.world.gather_all(time.perf_counter() - begin))
            self._arrange()
            self.ready.machine.world.barrier()
        return max(time.perf_counter() - begin, loaded), loaded  # others may have begun before this rank

    def links(self, order: Mapping[str, Any]) -> list[dict[str, float]]:
        """Measure links; return what they carry, per rank, by the other rank's number."""
        machine = self.ready.machine
        found = links_again(machine.world, [tuple(pair) for pair in order["pairs"]], order["sizes"], order["ahead"])
        return machine.world.gather_all({str(peer): rate for peer, rate in found.items()})


# rank 0


def lead(course: Course, desk: Desk) -> None:
    """Answer steps as long as there are some and somebody wants them, and give the orders of the watch."""
    watch, scheduler = desk.watch, desk.scheduler
    pulse, wanted = course.begin(lambda: _results(course, desk, scheduler.steps[0])), True
    while wanted:
        if not desk.source.ended:
            scheduler.add(desk.source.take(0.0 if scheduler.left else WAIT_SECONDS))
        if not scheduler.left:
            if desk.source.ended:
                break
            course.rest()
            continue
        order = watch.next(scheduler.left if desk.source.ended else None)
        if order["do"] == "swap":
            course.give(order)
            watch.swapped(*course.swap(order), course.ready.plan.wire)
        elif order["do"] == "links":
            course.give(order)
            begin = time.perf_counter()
            found = course.links(order)
            watch.linked(found, time.perf_counter() - begin)
        else:
            _lead_some(course, desk, order)
            wanted = desk.wanted()
            if order.get("pulse") and course.ready.engine.rests_alone and pulse.due():
                watch.heard(0, {"pulse": pulse.factor()})
        while (letter := course.mail.take(REPORTS, 0.0)) is not None:
            watch.heard(letter.sender, letter.facts)
    begin = time.perf_counter()
    course.give({"do": "end"})
    course.mail.close()
    course.outcome.end_seconds = time.perf_counter() - begin
    course.outcome.decisions = watch.decisions()


def _lead_some(course: Course, desk: Desk, order: Mapping[str, Any]) -> None:
    """Answer as many steps as the order of the watch says."""
    first, seconds, compute = course.number, list[float](), list[float]()
    steps = [step for _ in range(order["count"]) if (step := desk.scheduler.next()) is not None]
    course.give({**order, "steps": [course.named(step.lengths) for step in steps]})
    for step in steps:
        begin = time.perf_counter()
        results = _results(course, desk, step)
        compute.append(course.ran())
        seconds.append(time.perf_counter() - begin)
        course.outcome.answered += len(step.requests)
        desk.sink.event(desk.scheduler.done(step, results, seconds[-1]))
    if desk.source.ended:
        course.outcome.latencies += seconds
        course.outcome.rows += [sum(step.lengths) for step in steps]
    desk.watch.answered(first, [step.lengths for step in steps], seconds, compute)


def _results(course: Course, desk: Desk, step: Step) -> list[Result]:
    hidden = course.ready.engine.run(step.lengths, desk.answerer.embedded(step.requests))
    assert hidden is not None
    return desk.answerer.results(step.requests, hidden)


# the others


def follow(course: Course) -> None:
    """Do what rank 0 orders, until the end."""
    pulse = course.begin(lambda: course.ready.engine.run(course.shapes[0], None))
    while True:
        order = course.order()
        course.resting = order["do"] == "rest"
        if order["do"] == "end":
            break
        if course.resting:
            continue
        if order["do"] == "swap":
            course.swap(order)
        elif order["do"] == "links":
            course.links(order)
        else:
            _follow_some(course, order, pulse)
    course.mail.close()


def _follow_some(course: Course, order: Mapping[str, Any], pulse: Pulse) -> None:
    """Have a part in the steps of an order, and report what they took or, without a part, how fast this rank is now."""
    first, compute = course.number, []
    for name in order["steps"]:
        course.ready.engine.run(course.shape(name), None)
        compute.append(course.ran())
    if course.ready.engine.takes_part:
        course.report({"number": first, "compute": compute})
    elif order.get("pulse") and course.ready.engine.rests_alone and pulse.due():
        course.report({"pulse": pulse.factor()})


def peak_resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
