"""Plan again while a job runs, when boards or links have changed: rank 0's watch over the batches.

What ranks report of their batches says how fast each computes; what a batch takes beyond that, when links are to be looked at. The search
runs in a process of its own and requests go on meanwhile. Every switch must promise more than a margin and pay back what it costs, and
is undone when it does not help. Knows orders and when to give them; what has changed is tuning.drift's business.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hepti_mpi.cluster.links import round_robin
from hepti_mpi.cluster.profile import ClusterProfile, scaled
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning import methods
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.program.plan import WIRES, Plan, Wire, in_words
from hepti_mpi.quantiles import median
from hepti_mpi.tuning.advising import Advice, Adviser, Question
from hepti_mpi.tuning.cusum import AGREE
from hepti_mpi.tuning.drift import Expectation, Links, Speeds, Waits, bucket_of, promised, worth
from hepti_mpi.tuning.watch import at_once

NO_HELP = "it did not help"
HELPED, JUDGED, PATIENT = 1.03, 6, 60  # times what batches took before a switch that they may after it; orders that tell, and at most
DOUBTED = 2  # orders that take longer after a switch, upon which links are looked at
LATELY, CALM = 60, 4  # batches; switches among them after which the next has to wait, twice as long for each more
LOOKS = 8  # at links in a row, before requests go on
RECENT = 8  # orders of which it is told what batches take now
IDLE_PART, SLOW_PART = 0.01, 0.03  # of the time that looking at links of ranks left out may take, and at links that were better once
TIMED_SECONDS = 0.015  # of a look at one link
LEAST_TIMED, MOST_TIMED = 192 << 10, 512 << 10  # bytes: systems hand on up to 64 KiB at a time
TOLD_LATE = 2  # orders after which all ranks have told what they computed for one
AHEAD = 1.25  # times the bytes that a resting link passes at once


@dataclass
class _Order:
    """Batches that were answered together, from `number` on: of some, at `places` among them, what they took and should take, and what
    ranks report that they computed. The first of those is of `lengths` and took `first` seconds."""

    number: int
    places: Sequence[int]
    lengths: Sequence[int]
    first: float
    seconds: float
    expected: float
    predicted: np.ndarray
    computed: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """What a watched job begins with: the model, and the plan that a method found for a request by what was measured of the ranks."""

    spec: ModelSpec
    source_hash: str
    profile: ClusterProfile
    method: str
    demand: Demand
    plan: Plan


class Adapter:
    """Rank 0's watch (watch.Watch) over a job whose plan follows what changes."""

    def __init__(self, start: Start, load_seconds: float, say: Callable[[str], None]) -> None:
        self.spec, self.source_hash, self.method, self.plan, self.say = start.spec, start.source_hash, start.method, start.plan, say
        profile, plan = start.profile, start.plan
        self.demand = replace(start.demand, wires=_tried(plan.wire))
        self.base = profile  # with links as they are now and speeds as they were in the beginning
        self.speeds, self.links, self.waits = Speeds(plan.hosts), Links(plan.hosts, profile), Waits()
        self.cost = load_seconds
        self.adviser = Adviser()
        self.number = 0
        self.seconds = 1.0
        self.orders: dict[int, _Order] = {}  # of which not all ranks have reported yet
        self.history: deque[_Order] = deque(maxlen=PATIENT)  # under the present plan
        self.late: deque[float] = deque(maxlen=PATIENT)  # times as long as expected that they took
        self.reason: str | None = None  # to plan again, beside speeds
        self.switch_reason = ""
        self.began = 0  # the batch from which on what is the reason was so
        self.pairs: list[tuple[int, int]] = []  # links that are looked at
        self.everything = False  # whether all were
        self.by_the_way = False  # whether nothing had seemed wrong before the last look
        self.doubt = False  # whether links are looked at because a plan did not help: one may have been slow while a board computed
        self.learned = -TOLD_LATE  # the batch before which speeds were last taken for new ones
        self.looks = self.looked = self.looked_before = 0  # in a row; the batches before which the last was, and the one before that
        self.active = plan.active
        self.left_at: dict[int, float] = {}  # how many times longer ranks that are left out computed when they were
        self.anchors: dict[int, float] = {}  # of ranks that are left out: what a pulse of 1 means
        self.spent = self.passed = 0.0
        self.switch: dict[str, Any] = {}  # under way, or to be judged
        self.before: tuple[Plan, float] | None = None
        self.refused: set[str] = set()
        self.held: Advice | None = None
        self.made: list[dict[str, Any]] = []
        self.asked = 0  # how often plans were asked for
        self.switches: list[tuple[int, int]] = []  # before which batches, and by the answer to which question: a soon and a better plan
        self.kept = [1.0]  # parts of what switches promised that they gave
        self._expect()

    # what is heard

    def answered(self, number: int, lengths: Sequence[Sequence[int]], seconds: Sequence[float], compute: Sequence[float]) -> None:
        new = next((place for place, one in enumerate(lengths) if not self.expected.knows(one)), None)  # prices take time: one each time
        places = [place for place, one in enumerate(lengths) if place == new or self.expected.knows(one)]
        prices = [self.expected.of(lengths[place]) for place in places]
        order = _Order(
            number, places, lengths[places[0]], seconds[places[0]], sum(seconds[place] for place in places),
            sum(price for price, _ in prices), np.sum([compute for _, compute in prices], axis=0),
        )  # fmt: skip
        self.orders[number] = order
        self.history.append(order)
        self.late.append(order.seconds / order.expected)
        self.number = number + len(lengths)
        self.looks = 0
        self.seconds = float(median(seconds))
        self.passed += sum(seconds)
        self.heard(0, {"number": number, "compute": list(compute)})

    def heard(self, rank: int, facts: dict[str, Any]) -> None:
        if "pulse" in facts:
            if rank not in self.plan.active:  # when it was left out it was as fast as its last batches say
                anchor = self.anchors.setdefault(rank, self.left_at.get(rank, float(self.speeds.used[rank])) / facts["pulse"])
                self.speeds.idle(rank, anchor * facts["pulse"])
            return
        order = self.orders.get(facts["number"])
        if order is None or rank not in self.plan.active:  # under the plan before this one
            return
        order.computed[rank] = sum(facts["compute"][place] for place in order.places)
        if len(order.computed) == len(self.plan.active):
            del self.orders[order.number]
            bucket = bucket_of(order.lengths)
            self.speeds.batch(bucket, {one: (taken, float(order.predicted[one])) for one, taken in order.computed.items()})
            longer = max(order.computed.values()) - float(order.predicted.max())  # whoever waits waits for the slowest
            self.waits.batch(bucket, order.seconds, order.expected + longer)

    def swapped(self, seconds: float, load_seconds: float, wire: Wire) -> None:
        if wire != self.plan.wire:
            (short, where), used = in_words(self.plan.wire), "".join(in_words(wire))
            self.say(f"{short} on the wire{where} changes results of plan {self.plan.hash} by more than is allowed: {used} is used")
            self.refused.add(self.plan.hash)
            self.plan, self.demand = replace(self.plan, wire=wire), replace(self.demand, wires=_tried(wire))
        self.cost = seconds
        self.switch |= {"stall_seconds": seconds, "load_seconds": load_seconds}
        self.anchors = {rank: anchor for rank, anchor in self.anchors.items() if rank not in self.plan.active}
        self.history.clear()
        left = [rank for rank in self.active if rank not in self.plan.active]
        self.left_at = {rank: one for rank, one in self.left_at.items() if rank not in self.plan.active}
        self.left_at |= {rank: self.speeds.last(rank) for rank in left}  # it may have changed just before
        self.active = self.plan.active
        self.speeds.restart(self.plan.active)
        self.waits.restart()
        self._expect()

    def linked(self, bytes_per_second: list[dict[str, float]], seconds: float) -> None:
        found = {}
        for one, other in self.pairs:
            found[one, other] = min(bytes_per_second[one][str(other)], bytes_per_second[other][str(one)])
        odd = self.waits.changed
        self.by_the_way = not (odd or self.doubt) and self.number > self.learned + TOLD_LATE
        self.links.looked(found, self.base)
        self.spent += 0 if odd else seconds
        self.looks += 1
        if self.looked != self.number:  # several looks in a row are one
            self.looked_before, self.looked = self.looked, self.number
        if self.looks < LOOKS and (self.links.unsure() or (self.links.changed and not self.everything)):
            return  # the next look tells, how far it goes too
        self.everything = self.doubt = False
        self.base, what = self.links.use(self.base)
        if what is not None:
            since = self.waits.since if odd else 0
            self.reason, self.began = what, self._back(since) if since else self.looked_before
        if odd:  # it has been found, or is none of the links' business
            self.waits.accept(explained=what is not None)

    def decisions(self) -> list[dict[str, Any]]:
        self._judge(last=True)
        self.adviser.close()
        return self.made

    # what to do

    def next(self, left: int | None) -> dict[str, Any]:
        return self._by_advice(left) or self._judge() or self._look() or self._go_on()

    def _go_on(self) -> dict[str, Any]:
        reasons, since = [reason for reason in (self.reason, self.speeds.changed()) if reason is not None], self.speeds.since()
        both = self._may_be_more() if self.reason else self.waits.unsure and since <= 2 * AGREE
        if reasons and not both and (self.reason is not None or not self.adviser.busy):  # else both a board and a link, it seems: one plan
            self.began = min(self.began, self._back(since)) if self.reason is not None else self._back(since)
            self.reason, self.switch_reason, self.held = None, "; ".join(reasons), None  # what was advised was for another state
            self.refused.clear()
            self.learned = self.number if self.speeds.changed() else self.learned
            self.speeds.use()
            self._expect()
            self.asked += 1
            self.adviser.ask(Question(self.method, self.spec, self.source_hash, self.expected.profile, self.demand, self.plan))
        return {"do": "answer", "count": at_once(self.seconds), "pulse": len(self.plan.active) < self.plan.ranks}

    def _may_be_more(self) -> bool:
        """Tell whether a board may have changed beside a link: batches tell that follow a look to which none of them led."""
        return self.number < self.looked + AGREE * self.speeds.unsure() + TOLD_LATE * self.by_the_way

    def _back(self, orders: int) -> int:
        """Return the number of the batch with which the last `orders` began."""
        known = [order.number for order in self.history]
        return known[-min(orders, len(known))] if orders and known else self.number

    def _by_advice(self, left: int | None) -> dict[str, Any] | None:
        """Return the order to switch to what the planning process found, if that is worth it."""
        advice, recent = self.adviser.advice() or self.held, list(self.late)[-RECENT:]
        self.held = None if recent else advice  # until a batch has shown what predictions are worth
        if not recent or advice is None or advice.plan == self.plan or advice.plan.hash in self.refused:
            return None
        before = float(median(recent)) * self.present
        after = before - float(np.mean(self.kept)) * (before - promised(advice.seconds, self.present, before))
        if self.method in methods.OURS:  # another system solves again and goes on with what comes out
            if self._cooling() or not worth(before, after, left, self.number - self.began, self.cost):
                self.held = None if self.adviser.busy else advice  # it may be worth it if this lasts
                return None
        self._judge(last=True)  # of a switch that was not judged yet
        self.before = self.plan, before
        self.switch = {
            "batch": self.number, "why": self.switch_reason, "from": self.plan.hash, "to": advice.plan.hash,
            "strategy": advice.plan.strategy, "predicted_gain": 1 - promised(advice.seconds, self.present, before) / before,
        }  # fmt: skip
        self.say(f"{self.switch_reason}: going on with plan {advice.plan.hash} ({advice.plan.strategy})")
        return self._swap(advice.plan)

    def _cooling(self) -> bool:
        """Tell whether there were so many switches lately that the next has to wait: what comes and goes is not worth following."""
        lately = len({asked for number, asked in self.switches if number > self.number - LATELY})
        return lately >= CALM and self.number < self.switches[-1][0] + 2**lately

    def _swap(self, plan: Plan) -> dict[str, Any]:
        self.switches.append((self.number, self.asked))
        self.plan, self.held = replace(plan, hosts=self.plan.hosts), None
        return {"do": "swap", "plan": self.plan.to_json()}

    def _judge(self, last: bool = False) -> dict[str, Any] | None:
        """Compare what batches take with what they took before the last switch; return the order to undo it once it has cost as much more
        as going back does."""
        if not self.switch or self.before is None:
            return None
        plan, before = self.before
        after = float(median(self.late)) * self.present if self.late else None
        lost = 0.0 if after is None else (after - before) * (self.number - self.switch["batch"])
        bad = after is not None and after > HELPED * before and lost >= self.cost and len(self.late) >= AGREE
        good = after is not None and after <= HELPED * before and len(self.late) >= JUDGED
        if not last and after is not None and after > HELPED * before and len(self.late) >= DOUBTED and self._doubts():
            return None
        if not (last or bad or good or len(self.late) == PATIENT):
            return None
        gain = None if after is None else 1 - after / before
        self.made.append(self.switch | {"gain": gain})
        undone, promise = self.switch["why"] == NO_HELP, self.switch["predicted_gain"]
        self.switch, self.before = {}, None
        if gain is not None and not undone:
            self.kept.append(float(np.clip(gain / promise, 0, 1)) if promise > 0 else 0.0)
        if last or undone or not bad or self.speeds.changed() or self.reason is not None:
            return None
        self.refused.add(self.plan.hash)
        self.say(f"plan {self.plan.hash} did not help: going back to {plan.hash}")
        self.before = self.plan, after or before
        self.switch = {
            "batch": self.number, "why": NO_HELP, "from": self.plan.hash, "to": plan.hash,
            "strategy": plan.strategy, "predicted_gain": 1 - before / (after or before),
        }  # fmt: skip
        return self._swap(plan)

    def _doubts(self) -> bool:
        """Tell whether a plan that does not help is not judged yet: links are looked at first, and what is planned then is waited for."""
        if self.switch["why"] != NO_HELP and self.links.charts and self.looked <= self.switch["batch"] and self.reason is None:
            self.doubt = True
        return self.doubt or self.adviser.busy

    def _look(self) -> dict[str, Any] | None:
        """Return the order to look at links: at all when batches take longer or shorter than ranks that compute explain, again where a look
        did not tell, else now and then at those that were better once, and those of ranks that are left out."""
        if not self.links.charts or self.reason is not None or not self.number:
            return None
        self.pairs = []
        if (self.waits.changed or self.links.changed or self.doubt) and not self.everything:
            self.pairs, self.everything = self.links.between(round_robin(len(self.links.first))), True
        elif 0 < self.looks < LOOKS:
            self.pairs = self.links.unsure()
        elif not self.looks and not self.adviser.busy:
            self.pairs = self._suspects()
        if not self.pairs:
            return None
        # a look that is to tell how far it goes is as long as the link needs that is what it was: a shorter one finds up to a third more
        rates = np.maximum(self.base.bytes_per_second, self.links.measured if self.looks else 0)
        sizes = [int(np.clip(rates[one][other] * TIMED_SECONDS, LEAST_TIMED, MOST_TIMED)) for one, other in self.pairs]
        ahead = int(AHEAD * max(node.head_start_bytes for node in self.base.nodes))
        return {"do": "links", "pairs": self.pairs, "sizes": sizes, "ahead": ahead}

    def _suspects(self) -> list[tuple[int, int]]:
        """Return a pair for each host whose link was better once or that has no part, if it is time to look again."""
        ranks = sorted(self.links.first.values())
        far = np.array(self.base.hosts)[:, None] != np.array(self.base.hosts)[None, :]
        rates, best = np.array(self.base.bytes_per_second) * far, self.links.measured * far
        slow = rates.max(axis=1) * 2 < best.max(axis=1)
        if self.looked == self.number or self.spent > (SLOW_PART if slow.any() else IDLE_PART) * self.passed:
            return []
        at_work = {self.plan.hosts[rank] for rank in self.plan.active}
        found = []
        for rank in ranks:
            if slow[rank] or self.plan.hosts[rank] not in at_work:
                near = min((other for other in ranks if other != rank), key=lambda other: (bool(slow[other]), -rates[rank][other]))
                found.append((min(rank, near), max(rank, near)))
        return sorted(set(found))

    def _expect(self) -> None:
        """Tell anew what batches should take, by another plan, at other speeds or over other links, and what the last took beyond that."""
        profile, demand = scaled(self.base, self.speeds.used.tolist()), self.demand
        self.expected = Expectation(self.spec, profile, self.plan, max(demand.rows, demand.largest or 0))
        self.present = Pricer(self.spec, profile, demand.rows, demand.attended).price(self.expected.program, self.plan).seconds
        self.orders.clear()
        self.late.clear()
        for order in list(self.history)[-RECENT:]:
            if order.number >= self.began:
                self.late.append(order.first / self.expected.of(order.lengths)[0])


def _tried(wire: Wire) -> tuple[Wire, ...]:
    """Return what may travel by other plans, once a wire was found not to change too much: it, and what changes nothing."""
    return tuple(dict.fromkeys((WIRES[0], wire)))
