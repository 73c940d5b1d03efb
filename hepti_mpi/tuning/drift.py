"""What has changed since the cluster was measured, told from what batches take, and whether another plan is worth a switch. Pure.

Evidence is kept per work done: the logarithm of the seconds that a rank computed for a batch over those that this batch, of these very
requests, should take it. What it is worth is told by how many those are: a clock, a call and the system's scheduler may add TICK to any.
Knows profiles, prices and measured values; does not know where they come from or how a plan is switched.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.program.build import make_program
from hepti_mpi.program.plan import Plan
from hepti_mpi.quantiles import median
from hepti_mpi.tuning.cusum import TAIL, Chart, Level, Recent, weighted_median

TICK = 1e-3  # seconds by which any measurement may be wrong
LINK_SCATTER = 0.2  # of the rate of a link that is looked at, to begin with: looks are short
SAME_LINK = 0.25  # of what a link carried in the beginning: one that is back within it is as it was, which was measured for longer
MARGIN = 0.05 / 1.05  # of a batch's time that another plan must promise to save: what takes 5 % longer than the best is left
PAYS_BACK = 2.0  # times what a switch costs that it must save in the batches that are left
PRICES = 1024  # batches whose prices are kept

Bucket = tuple[int, int]


def bucket_of(lengths: Sequence[int]) -> Bucket:
    """Return which batches a batch of requests of `lengths` rows is compared with: those of as many rows and as long requests, within a
    factor of two. Prices may be off by one factor for short requests and another for long ones, and come sorted by length."""
    rows = sum(lengths)
    return round(math.log2(max(rows, 1))), round(math.log2(max(sum(length**2 for length in lengths) / max(rows, 1), 1)))


class Speeds:
    """How many times longer each rank computes than `ClusterProfile` says.

    A rank is compared with the others: what all share, another's work on their host or a price that is off for such batches, is told
    apart from what is its own. `used`: the factors, [ranks], that prices are made with.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        """`hosts`: of the ranks."""
        self.hosts = hosts
        ranks = range(len(hosts))
        self.charts = [Chart(len(hosts) + 1) for _ in ranks]  # each against the others
        self.together = Chart(len(hosts) + 1)  # what is the same for all
        self.levels = [Level() for _ in ranks]  # of each by itself
        self.recent = [Recent() for _ in ranks]
        self.used = np.ones(len(hosts))

    def batch(self, bucket: Bucket, computed: Mapping[int, tuple[float, float]]) -> None:
        """Take in the seconds that ranks computed for a batch, and those that were expected of them at the factors in use."""
        values, grains = {}, {}
        for rank, (taken, expected) in computed.items():
            if taken > 0 and expected > 0:
                values[rank], grains[rank] = math.log(taken / expected), TICK / expected
        away = {rank: value - self.levels[rank].at(bucket) for rank, value in values.items()}
        weights = {rank: self.charts[rank].weight(grains[rank]) for rank in values}
        everybody = weighted_median(list(away.values()), list(weights.values()))
        for rank, value in values.items():
            others = [one for one in values if one != rank]
            shared = weighted_median([away[one] for one in others], [weights[one] for one in others])
            chart, grain = self.charts[rank], grains[rank]
            if shared is not None:
                chart.add(away[rank] - shared, math.hypot(grain, min(grains[one] for one in others)))
            self.recent[rank].add(value, weights[rank])
            self.levels[rank].learn(bucket, value, TAIL * chart.scatter, weights[rank])
        if everybody is not None and len({self.hosts[rank] for rank in values}) > 1:  # else there is nowhere to go
            self.together.add(everybody, min(grains.values()))

    def idle(self, rank: int, factor: float) -> None:
        """Take in how many times longer than the profile says a rank computes that has no part in the batches."""
        value = math.log(factor / self.used[rank])
        self.charts[rank].add(value)
        self.recent[rank].add(value)

    def last(self, rank: int) -> float:
        """Return the factor of a rank as its last batches say, be it few of them."""
        chart = self.charts[rank]
        level = self.recent[rank].level(chart.since) if chart.unsure or chart.alarm else None
        return float(self.used[rank]) * math.exp(level or 0.0)

    def now(self) -> np.ndarray:
        """Return the factors as they are since something changed, where something did, else as they are used, [ranks]."""
        if not self._alarmed():
            return self.used
        since = max(chart.since for chart in self._alarmed())
        counts = [chart.since if chart.alarm else since for chart in self.charts]
        levels = [recent.level(count) for recent, count in zip(self.recent, counts)]
        for rank, level in enumerate(levels):
            if level is None:  # it has next to nothing to do: as its host, where that is known
                mates = [one for host, one in zip(self.hosts, levels) if host == self.hosts[rank] and one is not None]
                levels[rank] = float(median(mates)) if mates else 0.0
        return np.asarray(self.used * np.exp(np.array(levels, dtype=float)))

    def _alarmed(self) -> list[Chart]:
        return [chart for chart in (*self.charts, self.together) if chart.alarm]

    def changed(self) -> str | None:
        """Say what has changed so much that the plan may no longer be the best; None: nothing."""
        alarmed = self._alarmed()
        if not alarmed:
            return None
        change = self.now() / self.used
        if any(chart is not self.together for chart in alarmed):
            usual = np.exp([level.last for level in self.levels])
            rank = int(np.argmax(np.abs(np.log(change / usual)) * [chart.alarm for chart in self.charts]))
            return f"rank {rank} on {self.hosts[rank]} computes {change[rank] / usual[rank]:.2f} x as long as it did"
        return f"all ranks compute {float(median(change)):.2f} x as long as they did"

    def since(self) -> int:
        """Return for how many values what changed has been so."""
        return max((chart.since for chart in self._alarmed()), default=0)

    def unsure(self) -> bool:
        """Tell whether something seems to change, of which the next values will show whether it does."""
        return any(chart.unsure for chart in (*self.charts, self.together))

    def use(self) -> np.ndarray:
        """Take the present factors for those that plans are made for, and return them."""
        self.used, alarmed = self.now(), self._alarmed()
        if alarmed:
            self.recent = [Recent() for _ in self.hosts]
            for level in self.levels:  # what was last is what is expected now
                level.shift(-level.last)
            for chart in (*self.charts, self.together):
                chart.restart()
        return self.used

    def restart(self, active: Sequence[int]) -> None:
        """Begin anew with a plan by which only `active` compute: its prices are off in a way of their own."""
        self.recent = [Recent() for _ in self.hosts]
        for rank, (chart, level) in enumerate(zip(self.charts, self.levels)):
            chart.restart()
            level.forget()
            if rank not in active:
                level.last = 0.0
        self.together.restart()


class Waits:
    """What batches take beyond what their ranks' computing explains: when that changes, links are looked at."""

    def __init__(self) -> None:
        self.chart, self.level, self.recent = Chart(1, agree=2), Level(), Recent()

    def batch(self, bucket: Bucket, taken: float, expected: float) -> None:
        """Take in the seconds of a batch, and those that are expected of ranks that compute as long as these did."""
        value, grain = math.log(taken / expected), TICK / expected
        self.chart.add(value - self.level.at(bucket), grain)
        self.recent.add(value)
        self.level.learn(bucket, value, TAIL * self.chart.scatter, self.chart.weight(grain))

    @property
    def changed(self) -> bool:
        return self.chart.alarm

    @property
    def unsure(self) -> bool:
        return self.chart.unsure

    @property
    def since(self) -> int:
        """For how many values it has been so."""
        return self.chart.since

    def accept(self, explained: bool) -> None:
        """Begin anew with what is now; `explained`: prices are made anew with what was found."""
        level = self.recent.level(self.chart.since)
        self.restart()
        self.level.last = 0.0 if explained or level is None else level

    def restart(self) -> None:
        """Begin anew: prices are off in another way now."""
        self.chart.restart()
        self.level.forget()
        self.recent = Recent()


class Links:
    """What the links between hosts carry, as a multiple of what `ClusterProfile` says: one value for each pair of hosts, told by looks
    at the way between one rank of each. What ranks of one host say to each other passes no link."""

    def __init__(self, hosts: Sequence[str], measured: ClusterProfile) -> None:
        """`hosts`: of the ranks; `measured`: before the job, of which the rates are kept: what links may come back to."""
        self.hosts, self.measured = hosts, np.array(measured.bytes_per_second)
        self.first = {host: rank for rank, host in reversed(list(enumerate(hosts)))}  # who speaks for each
        pairs = list(combinations(sorted(self.first.values()), 2))
        self.charts = {pair: Chart(len(pairs), agree=2, scatter=LINK_SCATTER) for pair in pairs}
        self.recent = {pair: Recent() for pair in self.charts}

    def between(self, turns: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the pairs of ranks between which links are looked at, for pairs of hosts by number."""
        ranks = sorted(self.first.values())
        return [(ranks[one], ranks[other]) for one, other in turns]

    def looked(self, found: Mapping[tuple[int, int], float], profile: ClusterProfile) -> None:
        """Take in the bytes per second of some pairs."""
        for (one, other), rate in found.items():
            value = math.log(rate / profile.bytes_per_second[one][other])
            self.charts[one, other].add(value)
            self.recent[one, other].add(value)

    @property
    def changed(self) -> bool:
        return any(chart.alarm for chart in self.charts.values())

    def unsure(self) -> list[tuple[int, int]]:
        """Return the pairs of which another look would tell more."""
        return [pair for pair, chart in self.charts.items() if chart.unsure]

    def use(self, profile: ClusterProfile) -> tuple[ClusterProfile, str | None]:
        """Return the profile with what has changed, if anything has, and say what changed most."""
        changes = {}
        for pair, chart in self.charts.items():
            level = self.recent[pair].level(chart.since) if chart.alarm else None
            if level is not None:
                one, other = pair
                back = math.log(self.measured[one, other] / profile.bytes_per_second[one][other])
                changes[pair] = math.exp(back if abs(level - back) <= SAME_LINK < abs(back) else level)
                self.recent[pair] = Recent()
                chart.restart()
        if not changes:
            return profile, None
        one, other = max(changes, key=lambda pair: abs(math.log(changes[pair])))
        ends = f"rank {one} on {self.hosts[one]} and rank {other} on {self.hosts[other]}"
        before = profile.bytes_per_second[one][other] * 8e-6
        what = f"the link between {ends} carries {before * changes[one, other]:.0f} Mbit/s, not {before:.0f}"
        return _with_links(profile, {frozenset((self.hosts[a], self.hosts[b])): by for (a, b), by in changes.items()}), what


def _with_links(profile: ClusterProfile, changes: Mapping[frozenset[str], float]) -> ClusterProfile:
    """Return the profile in which the links between some pairs of hosts carry so many times as much."""
    hosts = profile.hosts
    rates = tuple(
        tuple(rate * changes.get(frozenset((hosts[one], hosts[other])), 1.0) for other, rate in enumerate(row))
        for one, row in enumerate(profile.bytes_per_second)
    )
    return replace(profile, bytes_per_second=rates)


def promised(advised: float, present: float, measured: float) -> float:
    """Return what a batch will take by a plan that is predicted to take `advised` seconds, where the present one is predicted to take
    `present` and takes `measured`: what predictions do not explain stays, and what they have too much is too much there too."""
    return advised * min(measured / present, 1.0) + max(measured - present, 0.0)


def worth(before: float, after: float, left: int | None, lasted: int, cost: float) -> bool:
    """Tell whether a plan that promises batches of `after` instead of `before` seconds is worth a switch that costs `cost` seconds.

    `left`: batches to come, None where nobody knows; `lasted`: batches since what makes it better. It must have lost as much as the switch
    costs: who waits that long never pays more than twice what was possible, however soon it is over (the ski rental problem; Karlin,
    Manasse, Rudolph, Sleator, "Competitive snoopy caching", Algorithmica 3, 1988).
    """
    gain = before - after
    return after < (1 - MARGIN) * before and (left is None or gain * left > PAYS_BACK * cost) and gain * lasted >= cost


class Expectation:
    """What batches should take under one plan: each priced by the lengths of its own requests."""

    def __init__(self, spec: ModelSpec, profile: ClusterProfile, plan: Plan, largest: int) -> None:
        """`largest`: rows of the largest batch that is likely."""
        self.spec, self.profile, self.plan = spec, profile, plan
        self.program = make_program(spec, plan)
        self.pricer = Pricer(spec, profile, largest)
        self.known: OrderedDict[tuple[int, ...], tuple[float, np.ndarray]] = OrderedDict()

    def knows(self, lengths: Sequence[int]) -> bool:
        """Tell whether such a batch was priced already."""
        return tuple(lengths) in self.known

    def of(self, lengths: Sequence[int]) -> tuple[float, np.ndarray]:
        """Return the seconds of a batch of requests of `lengths` rows, and those that each rank computes, [ranks]."""
        key = tuple(lengths)
        if key not in self.known:
            if sum(key) > self.pricer.rows:
                self.pricer = Pricer(self.spec, self.profile, sum(key))
            price = self.pricer.of_batch(key).price(self.program, self.plan)
            self.known[key] = price.seconds, price.compute
            if len(self.known) > PRICES:
                self.known.popitem(last=False)
        return self.known[key]
