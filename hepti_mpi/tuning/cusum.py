"""Tell soon, and seldom wrongly, that values no longer scatter about the level that they had. Pure: knows numbers, not what they measure.

A chart adds up how much likelier each value is after a change than before (Page, "Continuous inspection schemes", Biometrika 41, 1954).
Values scatter here by Laplace's law, whose tails are heavy: beyond the changed level a value says no more by lying further out. A sum
that reaches h is a change. Until one that is none, at least e^h values go by on average (Lorden, "Procedures for reacting to a change in
distribution", Annals of Mathematical Statistics 42, 1971), so h is the logarithm of how many values ought to, times the number of sums
that are watched. Where values are like those before them so many of them count as one as their mean spreads more for it (Johnson,
Bagshaw, "The effect of serial correlation on the performance of CUSUM tests", Technometrics 16, 1974). When a sum last left zero is when
the level changed.
"""

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

BETWEEN = 100_000  # values of each chart, on average, between two alarms without a cause, of all charts together
STEPS = (math.log(1.2), math.log(2.0), math.log(8.0))  # changes of the level that are looked for; those in between are found too
AGREE = 3  # values at least that must say the same: what happens once is no change
UNSURE = 0.25  # of what makes an alarm: a single value that lies far out, or several
SCATTER, SCATTER_FROM, LEAST_SCATTER = 0.1, 8, 0.04  # of values where nothing is known, the values that this counts for, and the least
REMEMBERED = 250  # values by which scatter and levels are known: older ones fade
MOST_ALIKE = 0.9  # correlation of a value with the one before
FEW = 4  # values that a level from elsewhere counts for
NEAR, TAIL = 1.5, 3.0  # times the scatter up to which a value moves what is learned of correlation, and of scatter and level
KEPT = 64  # values of which a new level is taken


@dataclass
class _Sum:
    """How much likelier it is that the level changed by `step`, and for how many values it has been likelier than not."""

    step: float
    total: float = 0.0
    since: int = 0

    def add(self, value: float, scatter: float, most: float) -> None:
        gain = (abs(value) - abs(value - self.step)) / scatter
        self.total = max(0.0, self.total + min(max(gain, -most), most))
        self.since = self.since + 1 if self.total else 0


class Chart:
    """Watches values that lie about 0 while nothing changes."""

    def __init__(self, charts: int, agree: int = AGREE, scatter: float = SCATTER) -> None:
        """`charts`: how many are watched together; `agree`: values that must say the same; `scatter`: to begin with."""
        self.limit = math.log(BETWEEN * 2 * len(STEPS) * charts)
        self.most = self.limit / agree
        self.deviation, self.count = scatter, float(SCATTER_FROM)
        self.before, self.square, self.product = 0.0, 1.0, 0.0  # of values in terms of the scatter, the last one and means
        self.restart()

    def restart(self) -> None:
        """Begin anew at the present level; what is known of the scatter stays."""
        self.sums = [_Sum(sign * step) for step in STEPS for sign in (1, -1)]

    def add(self, value: float, grain: float = 0.0) -> None:
        """Take in the logarithm of a ratio that may be wrong by a part of `grain`, always in the same way too; by 1 it says nothing."""
        if grain >= 1:
            return
        value = math.copysign(max(abs(value) + math.log1p(-grain), 0.0), value)
        scatter = math.hypot(self.scatter, grain)
        for one in self.sums:
            one.add(value, scatter * self.alike, self.most)
        weight = self.weight(grain)
        self.count = min(self.count + weight, REMEMBERED)
        part, this = weight / self.count, min(max(value / scatter, -NEAR), NEAR)
        self.square += (this**2 - self.square) * part
        self.product += (this * self.before - self.product) * part
        self.deviation += (min(abs(value), TAIL * self.scatter) - self.deviation) * part
        self.before = this

    @property
    def alike(self) -> float:
        """How many values that each are much like the one before say as much as one: of another's work on a board, or its heat."""
        correlation = min(max(self.product / self.square, 0.0), MOST_ALIKE)
        return (1 + correlation) / (1 - correlation)

    def weight(self, grain: float) -> float:
        """Return how much a value of this grain counts beside one of none, 0 to 1."""
        return 0.0 if grain >= 1 else self.scatter**2 / (self.scatter**2 + grain**2)

    @property
    def scatter(self) -> float:
        """The mean distance of values from their level, but for what lies far out."""
        return max(self.deviation, LEAST_SCATTER)

    @property
    def likeliest(self) -> _Sum:
        return max(self.sums, key=lambda one: one.total)

    @property
    def alarm(self) -> bool:
        return self.likeliest.total >= self.limit * (1 - 1e-9)

    @property
    def unsure(self) -> bool:
        """Whether more than a part of what makes an alarm has come together."""
        return UNSURE * self.limit <= self.likeliest.total and not self.alarm

    @property
    def since(self) -> int:
        """For how many values the likeliest change has been likelier than none."""
        return self.likeliest.since


@dataclass
class Level:
    """What values lie about under changing circumstances: one mean for each, learned as values come.

    What has not been met begins as what was met last: then a change that comes with other circumstances is a change, and their own small
    difference is learned. Source: self-starting charts, Hawkins, "Self-starting CUSUM charts for location and scale", 1987.
    """

    means: dict[object, tuple[float, float]] = field(default_factory=dict)  # and how many values they are of
    last: float = 0.0

    def at(self, where: object) -> float:
        return self.means.get(where, (self.last, 0.0))[0]

    def learn(self, where: object, value: float, far: float, weight: float = 1.0) -> None:
        """Take in a value; one further out than `far` counts as one that is not."""
        mean, count = self.means.get(where, (self.last, float(FEW)))
        count = min(count + weight, REMEMBERED)
        mean += min(max(value - mean, -far), far) * weight / count
        self.means[where], self.last = (mean, count), mean

    def shift(self, by: float) -> None:
        """Move all levels: values are measured from another zero now."""
        self.means = {where: (mean + by, count) for where, (mean, count) in self.means.items()}
        self.last += by

    def forget(self) -> None:
        """Keep nothing but what was last."""
        self.means = {}


class Recent:
    """The last values and their weights, of which a new level is taken after an alarm."""

    def __init__(self) -> None:
        self.values: deque[tuple[float, float]] = deque(maxlen=KEPT)

    def add(self, value: float, weight: float = 1.0) -> None:
        self.values.append((value, weight))

    def level(self, count: int) -> float | None:
        """Return the median by weight of the last `count`, None where those say less together than one value that is right."""
        found = list(self.values)[-count:] if count else []
        weights = [weight for _, weight in found]
        return weighted_median([value for value, _ in found], weights) if sum(weights) >= 1 else None


def weighted_median(values: list[float], weights: list[float]) -> float | None:
    """Return the value with as much weight below it as above, in between where two have; None where nothing has weight.

    >>> weighted_median([1, 5, 2], [1, 1, 1]), weighted_median([1, 2], [1, 1]), weighted_median([1, 2], [1, 3])
    (2.0, 1.5, 2.0)
    """
    order = np.argsort(values)
    sorted_, up_to = np.array(values, dtype=float)[order], np.cumsum(np.array(weights, dtype=float)[order])
    if not len(up_to) or up_to[-1] <= 0:
        return None
    half = up_to[-1] / 2
    low, high = np.searchsorted(up_to, half * (1 - 1e-9)), np.searchsorted(up_to, half * (1 + 1e-9))
    return float(sorted_[low] + sorted_[min(high, len(up_to) - 1)]) / 2
