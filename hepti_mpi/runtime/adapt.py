"""Plan again while a job runs, when boards or links have changed: rank 0's watch over the batches.

What ranks report of their batches says how fast each computes; what a batch takes beyond that, when links are to be looked at. The search
runs in a process of its own and requests go on meanwhile. Every switch must promise more than a margin and pay back what it costs, and
is undone when it does not help. Knows estimates, orders and that process; the estimates themselves are planning.drift's business.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from hepti_mpi.cluster.probe import round_robin
from hepti_mpi.cluster.profile import ClusterProfile, scaled
from hepti_mpi.errors import HeptiError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning import methods, planner
from hepti_mpi.planning.cost import Pricer
from hepti_mpi.planning.drift import SOON, Expectation, Speeds, credible, with_links, worth
from hepti_mpi.planning.plan import Plan
from hepti_mpi.planning.planner import Request
from hepti_mpi.planning.program import make_program
from hepti_mpi.runtime.answer import at_once

FROM = 8  # batches of a job that is watched
LATE, EARLY = 1.22, 0.8  # times what was usual that two batches in a row must take before links are looked at
VERY = 1.5  # times: so much is looked into at once
CALIBRATING = 3  # batches that say what is usual
NO_HELP = "it did not help"
HELPED = 1.03  # times what requests took before a switch that they may take after it
LATELY, CALM = 60, 4  # batches; switches among them after which the next has to wait, twice as long for each more
REST = 4  # batches between two looks at all links; doubled each time nothing was found
MOST_REST = 256
IDLE_PART, SLOW_PART = 0.01, 0.03  # of the time that looking at links of ranks left out may take, and at links that were better once
TIMED_SECONDS = 0.015  # of a look at one link
LEAST_TIMED, MOST_TIMED = 192 << 10, 512 << 10  # bytes: systems hand on up to 64 KiB at a time
AHEAD = 1.25  # times the bytes that a resting link passes at once
NICE = 10


@dataclass(frozen=True)
class Question:
    """What the planning process is asked: what is best for this profile now that `plan` is in use?"""

    method: str
    spec: ModelSpec
    source_hash: str
    profile: ClusterProfile
    request: Request
    plan: Plan


@dataclass(frozen=True)
class Advice:
    """What it answers: `plan` takes `seconds`. `last`: no more answers to this question come."""

    plan: Plan
    seconds: float
    last: bool


def advise(question: Question) -> list[Callable[[], Advice]]:
    """Return what finds plans for a question: one soon, near the plan in use, and one after searching all."""
    spec, profile, request = question.spec, question.profile, question.request

    def near() -> Advice:
        plan = planner.again(spec, question.source_hash, profile, request, question.plan).plan
        price = Pricer(spec, profile, request.rows, request.attended).price(make_program(spec, plan), plan)  # by all of its layers
        return Advice(plan, price.seconds, last=False)

    def best() -> Advice:
        found = methods.decide(question.method, spec, question.source_hash, profile, request).chosen
        return Advice(found.plan, found.price.seconds, last=True)

    return [near, best] if question.method in methods.OURS else [best]


def _answer_questions(connection: Connection) -> None:
    """The planning process: answer until the other end is closed."""
    os.nice(NICE)
    try:
        while True:
            for find in advise(connection.recv()):
                try:
                    connection.send(find())
                except HeptiError:  # nothing fits: the plan in use stays
                    connection.send(None)
                    break
    except (EOFError, OSError, KeyboardInterrupt):  # the job has ended
        return


class Adviser:
    """The planning process, started with the first question. It ends with this one, also when that is killed."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.process: Any = None
        self.busy = False

    def ask(self, question: Question) -> None:
        """Ask; what was asked before and not answered yet is of no interest any more."""
        if self.busy:
            self.close()
            self.connection = None
        if self.connection is None:
            context = multiprocessing.get_context("spawn")
            self.connection, other = context.Pipe()
            self.process = context.Process(target=_answer_questions, args=(other,), name="planning", daemon=True)
            self.process.start()
            other.close()
        try:
            self.connection.send(question)
            self.busy = True
        except OSError:  # it was killed: the next question starts another
            self.close()
            self.connection = None

    def advice(self) -> Advice | None:
        """Return what has been answered meanwhile, None where nothing has."""
        if not self.busy or self.connection is None or not self.connection.poll():
            return None
        try:
            advice: Advice | None = self.connection.recv()
        except (EOFError, OSError):  # it was killed: go on with the plan in use
            self.close()
            advice, self.connection = None, None
        self.busy = advice is not None and not advice.last
        return advice

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.process.kill()
            self.process.join()


class Adapter:
    """Rank 0's watch (answer.Watch) over a job whose plan follows what changes."""

    def __init__(
        self, spec: ModelSpec, source_hash: str, profile: ClusterProfile, method: str, request: Request, plan: Plan, load_seconds: float,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.spec, self.source_hash, self.method, self.plan, self.say = spec, source_hash, method, plan, say
        self.request = replace(request, wires=tuple(dict.fromkeys(("float32", plan.wire))))  # another was not tried on this model
        self.base = profile  # with links as they are now and speeds as they were in the beginning
        self.speeds = Speeds(plan.hosts)
        self.cost = load_seconds
        self.adviser = Adviser()
        self.rows: dict[int, int] = {}
        self.number = self.since = 0
        self.seconds = 1.0
        self.late: deque[float] = deque(maxlen=2 * CALIBRATING)  # times as long as expected that batches took
        self.usual: float | None = 1.0  # of those; None until it is known again
        self.reason: str | None = None  # to plan again, beside speeds
        self.switch_reason = ""
        self.pairs: list[tuple[int, int]] = []  # links that are looked at
        self.everything = False  # whether those are all, since something is not as expected
        self.anchors: dict[int, float] = {}  # of ranks that are left out: what a pulse of 1 means
        self.rest = self.looked = REST
        self.spent = self.passed = 0.0
        self.best_rates = np.array(profile.bytes_per_second)
        self.switch: dict[str, Any] = {}  # under way, or to be judged
        self.before: tuple[Plan, float] | None = None
        self.refused: set[str] = set()
        self.held: Advice | None = None
        self.made: list[dict[str, Any]] = []
        self.switches: list[int] = []  # before which batches
        self._expect()

    # what is heard

    def answered(self, number: int, rows: Sequence[int], seconds: Sequence[float], compute: Sequence[float]) -> None:
        for place, (count, taken) in enumerate(zip(rows, seconds)):
            self.rows[number + place] = count
            self.late.append(taken / self.expected.of(count)[0])
        self.number = number + len(rows)
        self.looked += len(rows)
        self.seconds = float(np.median(seconds))
        self.passed += sum(seconds)
        self.rows = {place: count for place, count in self.rows.items() if place >= number - 1000}
        self.heard(0, {"number": number, "compute": list(compute)})

    def heard(self, rank: int, facts: dict[str, Any]) -> None:
        if "pulse" in facts:
            if rank not in self.plan.active:  # when it was left out it was as fast as its last batches say
                anchor = self.anchors.setdefault(rank, float(self.speeds.now()[rank]) / facts["pulse"])
                self.speeds.add(rank, anchor * facts["pulse"])
            return
        first, compute = facts["number"], facts["compute"]
        if first < self.since or any(place not in self.rows for place in range(first, first + len(compute))):
            return  # under the plan before this one
        predicted = sum(self.expected.of(self.rows[first + place])[1][rank] for place in range(len(compute)))
        if predicted > 0:
            self.speeds.add(rank, self.speeds.used[rank] * sum(compute) / predicted)

    def swapped(self, seconds: float, load_seconds: float) -> None:
        self.cost = seconds
        self.switch |= {"stall_seconds": seconds, "load_seconds": load_seconds}
        self.since = self.number
        self.anchors = {rank: anchor for rank, anchor in self.anchors.items() if rank not in self.plan.active}
        self._expect()

    def linked(self, bytes_per_second: list[dict[str, float]], seconds: float) -> None:
        found = {}
        for one, other in self.pairs:
            found[one, other] = min(bytes_per_second[one][str(other)], bytes_per_second[other][str(one)])
        profile, what = with_links(self.base, found)
        everything, self.pairs, self.everything = self.everything, [], False
        self.spent += 0 if everything else seconds
        if what is not None and not everything:
            self.pairs, self.everything = round_robin(self.plan.ranks), True  # how far does it go?
        elif what is not None:
            self.base, self.reason, self.rest = profile, what, REST
            self.late.clear()
        elif everything:
            self.rest = min(2 * self.rest, MOST_REST)
            self.late.clear()  # what is usual is another thing now
            self.usual = None
        self.looked = 0

    def decisions(self) -> list[dict[str, Any]]:
        self._judge(last=True)
        self.adviser.close()
        return self.made

    # what to do

    def next(self, left: int) -> dict[str, Any]:
        return self._by_advice(left) or self._judge() or self._look() or self._go_on(left)

    def _go_on(self, left: int) -> dict[str, Any]:
        reasons = [reason for reason in (self.reason, self.speeds.changed()) if reason is not None]
        if self.reason is not None and self.looked < SOON and self.speeds.unsure():
            reasons = []  # a board has changed with the link, it seems: one plan for both
        elif self.reason is not None or (reasons and not self.adviser.busy):
            self.reason, self.switch_reason, self.held = None, "; ".join(reasons), None  # what was advised was for another state
            self.refused.clear()
            self.speeds.use()
            self._expect()
            self.adviser.ask(Question(self.method, self.spec, self.source_hash, self.expected.profile, self.request, self.plan))
        return {"do": "answer", "count": at_once(self.seconds, left), "pulse": len(self.plan.active) < self.plan.ranks}

    def _by_advice(self, left: int) -> dict[str, Any] | None:
        """Return the order to switch to what the planning process found, if that is worth it."""
        advice, recent = self.adviser.advice() or self.held, list(self.late)[-2:]
        self.held = None if recent else advice  # until a batch has shown whether predictions are to be believed
        if not recent or advice is None or advice.plan == self.plan or advice.plan.hash in self.refused:
            return None
        usual, present = self.usual or 1.0, self.expected.of(self.request.rows)[0]
        ours = self.method in methods.OURS  # another system solves again and goes on with what comes out
        if ours and (self._cooling() or not credible(recent, usual)):
            self.held = None if self.adviser.busy else advice  # maybe something disturbs for a moment
            return None
        if ours and not worth(usual * present, usual * advice.seconds, left, self.cost):
            return None
        self._judge(last=True)  # of a switch that was not judged yet
        self.before = self.plan, float(np.median(recent)) * present
        self.switch = {
            "batch": self.number, "why": self.switch_reason, "from": self.plan.hash, "to": advice.plan.hash,
            "strategy": advice.plan.strategy, "predicted_gain": 1 - advice.seconds / present,
        }  # fmt: skip
        self.say(f"{self.switch_reason}: going on with plan {advice.plan.hash} ({advice.plan.strategy})")
        return self._order(advice.plan)

    def _cooling(self) -> bool:
        """Tell whether there were so many switches lately that the next has to wait: what comes and goes is not worth following."""
        lately = sum(number > self.number - LATELY for number in self.switches)
        return lately >= CALM and self.number < self.switches[-1] + 2**lately

    def _order(self, plan: Plan) -> dict[str, Any]:
        self.switches.append(self.number)
        self.plan = replace(plan, hosts=self.plan.hosts)
        return {"do": "swap", "plan": self.plan.to_json()}

    def _judge(self, last: bool = False) -> dict[str, Any] | None:
        """Compare what requests take with what they took before the last switch; return the order to undo it if it did not help."""
        if not self.switch or self.before is None or (len(self.late) < CALIBRATING and not last):
            return None
        plan, before = self.before
        after = float(np.median(self.late)) * self.expected.of(self.request.rows)[0] if self.late else None
        self.made.append(self.switch | {"gain": None if after is None else 1 - after / before})
        undone = self.switch["why"] == NO_HELP
        self.switch, self.before = {}, None
        if last or undone or after is None or after <= HELPED * before or self.speeds.changed():
            return None
        self.refused.add(self.plan.hash)
        self.say(f"plan {self.plan.hash} did not help: going back to {plan.hash}")
        self.before = self.plan, after
        self.switch = {
            "batch": self.number, "why": NO_HELP, "from": self.plan.hash, "to": plan.hash,
            "strategy": plan.strategy, "predicted_gain": 1 - before / after,
        }  # fmt: skip
        return self._order(plan)

    def _look(self) -> dict[str, Any] | None:
        """Return the order to look at links: at all when batches take longer or shorter than ranks that compute explain, else now and
        then at those that were better once, and those of ranks that are left out."""
        if self.plan.ranks == 1 or self.reason is not None:
            return None
        if not self.pairs:
            if self.usual is None and len(self.late) >= CALIBRATING:
                self.usual = float(np.median(self.late))
            recent = [value / self.usual for value in list(self.late)[-2:]] if self.usual else []
            odd = len(recent) == 2 and (min(recent) > LATE or max(recent) < EARLY)
            very = odd and (min(recent) > VERY or max(recent) < 1 / VERY)
            if very or (odd and self.looked >= self.rest and not self.adviser.busy and not self.speeds.changed()):
                self.pairs, self.everything = round_robin(self.plan.ranks), True
            elif not self.adviser.busy:
                self.pairs = self._suspects()
        if not self.pairs:
            return None
        rates = self.base.bytes_per_second
        sizes = [int(np.clip(rates[one][other] * TIMED_SECONDS, LEAST_TIMED, MOST_TIMED)) for one, other in self.pairs]
        ahead = int(AHEAD * max(node.head_start_bytes for node in self.base.nodes))
        return {"do": "links", "pairs": self.pairs, "sizes": sizes, "ahead": ahead}

    def _suspects(self) -> list[tuple[int, int]]:
        """Return a pair for each rank whose link was better once or that has no part, if it is time to look again."""
        rates = np.array(self.base.bytes_per_second)
        slow = rates.max(axis=1) * 2 < self.best_rates.max(axis=1)
        if not self.looked or self.spent > (SLOW_PART if slow.any() else IDLE_PART) * self.passed:
            return []
        found = []
        for rank in range(self.plan.ranks):
            if slow[rank] or rank not in self.plan.active:
                others = [other for other in range(self.plan.ranks) if other != rank]
                best = min(others, key=lambda other: (bool(slow[other]), -rates[rank][other]))
                found.append((min(rank, best), max(rank, best)))
        return sorted(set(found))

    def _expect(self) -> None:
        """Forget what batches took under another plan or at other speeds."""
        self.expected = Expectation(self.spec, scaled(self.base, self.speeds.used.tolist()), self.plan, self.request)
        self.late.clear()
