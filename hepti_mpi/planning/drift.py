"""What has changed since the cluster was measured, told from what requests take, and whether another plan is worth a switch. Pure.

Knows profiles, prices and windows of measured values; does not know where they come from or how a plan is switched.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.cost import Pricer
from hepti_mpi.planning.plan import Plan
from hepti_mpi.planning.planner import Request
from hepti_mpi.planning.program import make_program

SOON = 3  # values of which the median is believed at once when it is another by JUMP: one that is disturbed changes nothing
WINDOW = 8  # values of which the median is believed in any case
JUMP = 1.5
UNEVEN = 1.18  # times more than the others that a rank must have become slower or faster
EVENLY = 1.35  # times that all must have
LINK = 1.5  # times that a link must have
MARGIN = 0.1  # of a request's time that another plan must promise to save
PAYS_BACK = 2.0  # times what the switch costs
CREDIBLE, AT_ALL = 1.6, 2.2  # times as long as is usual, and as predicted, that requests may take where predictions are to be believed


class Speeds:
    """How many times longer each rank computes than `ClusterProfile` says: the last values, and those that the plan is made for."""

    def __init__(self, hosts: Sequence[str]) -> None:
        """`hosts`: of the ranks."""
        self.hosts = hosts
        self.last: list[deque[float]] = [deque(maxlen=WINDOW) for _ in hosts]
        self.used = np.ones(len(hosts))

    def add(self, rank: int, factor: float) -> None:
        self.last[rank].append(factor)

    def now(self) -> np.ndarray:
        """Return the factors as they are believed to be, [ranks]."""
        return np.array([self._of(rank) for rank in range(len(self.last))])

    def _of(self, rank: int) -> float:
        values, used = list(self.last[rank]), float(self.used[rank])
        if len(values) >= SOON:
            soon = float(np.median(values[-SOON:]))
            if not 1 / JUMP < soon / used < JUMP:
                return soon
        return float(np.median(values)) if len(values) == WINDOW else used

    def changed(self) -> str | None:
        """Say what has changed so much that the plan may no longer be the best; None: nothing."""
        change = self.now() / self.used
        if change.max() / change.min() > UNEVEN:
            rank = int(np.argmax(np.maximum(change, 1 / change)))
            return f"rank {rank} on {self.hosts[rank]} computes {change[rank]:.2f} x as long as it did"
        if not 1 / EVENLY < float(np.median(change)) < EVENLY:
            return f"all ranks compute {float(np.median(change)):.2f} x as long as they did"
        return None

    def unsure(self) -> bool:
        """Tell whether the last value of a rank is such a jump that, if the next are too, it will be believed soon."""
        change = [values[-1] / used if values else 1.0 for values, used in zip(self.last, self.now())]
        return not 1 / JUMP < min(change) <= max(change) < JUMP

    def use(self) -> np.ndarray:
        """Take the present factors for those that plans are made for, and return them."""
        now = self.now()
        for rank, values in enumerate(self.last):
            if not 1 / JUMP < now[rank] / self.used[rank] < JUMP:  # what was before is not so any more
                self.last[rank] = deque(list(values)[-SOON:], maxlen=WINDOW)
        self.used = now
        return self.used


def with_links(profile: ClusterProfile, found: dict[tuple[int, int], float]) -> tuple[ClusterProfile, str | None]:
    """Return the profile with the bytes per second of those pairs that differ much from what it says, and which differs most."""
    rates = [list(row) for row in profile.bytes_per_second]
    changes = {pair: max(rate / rates[pair[0]][pair[1]], rates[pair[0]][pair[1]] / rate) for pair, rate in found.items()}
    one, other = max(changes, key=lambda pair: changes[pair])
    if changes[one, other] <= LINK:
        return profile, None
    ends = f"rank {one} on {profile.hosts[one]} and rank {other} on {profile.hosts[other]}"
    what = f"the link between {ends} carries {found[one, other] * 8e-6:.0f} Mbit/s, not {rates[one][other] * 8e-6:.0f}"
    for (left, right), change in changes.items():
        if change > LINK:
            rates[left][right] = rates[right][left] = found[left, right]
    return replace(profile, bytes_per_second=tuple(map(tuple, rates))), what


def worth(before: float, after: float, left: int, cost: float) -> bool:
    """Tell whether a plan that promises requests of `after` instead of `before` seconds is worth a switch that costs `cost` seconds,
    when `left` requests are left."""
    return after < (1 - MARGIN) * before and (before - after) * left > PAYS_BACK * cost


def credible(late: Sequence[float], usual: float) -> bool:
    """Tell whether predictions are to be believed of requests that took `late` times as long as predicted, where `usual` times as long is
    usual: very short ones are made of other things than the predictions are."""
    now = float(np.median(late))
    return 1 / CREDIBLE < now / usual < CREDIBLE and 1 / AT_ALL < now < AT_ALL


class Expectation:
    """What batches of any number of rows should take under one plan: priced at some numbers of rows, in between in proportion."""

    def __init__(self, spec: ModelSpec, profile: ClusterProfile, plan: Plan, request: Request) -> None:
        self.spec, self.profile, self.plan, self.request = spec, profile, plan, request
        self.program = make_program(spec, plan)
        self.known: dict[int, tuple[float, np.ndarray]] = {}

    def of(self, rows: int) -> tuple[float, np.ndarray]:
        """Return the seconds of a batch of `rows` rows, and those that each rank computes, [ranks]."""
        low, high = self._around(rows)
        (seconds, compute), (longer, more) = self._priced(low), self._priced(high)
        part = (rows - low) / (high - low) if high > low else 0.0
        return seconds + part * (longer - seconds), compute + part * (more - compute)

    def _around(self, rows: int) -> tuple[int, int]:
        if rows == self.request.rows:
            return rows, rows
        low = 1
        while 2 * low <= rows:
            low *= 2
        middle = low * 3 // 2
        return (low, low) if rows == low else (low, middle) if rows <= middle else (middle, 2 * low)

    def _priced(self, rows: int) -> tuple[float, np.ndarray]:
        if rows not in self.known:
            price = Pricer(self.spec, self.profile, rows, min(rows, self.request.attended or rows)).price(self.program, self.plan)
            self.known[rows] = price.seconds, price.compute
        return self.known[rows]
