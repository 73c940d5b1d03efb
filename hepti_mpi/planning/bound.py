"""What is possible on given ranks: two times that no plan can beat, beside which a plan's time can be seen. Pure.

Knows prices and the search; does not know what was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hepti_mpi.cluster.profile import ClusterProfile, NodeProfile
from hepti_mpi.errors import CapacityError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.planning.search import choose
from hepti_mpi.planning.walk import Walk
from hepti_mpi.program.build import make_program
from hepti_mpi.program.plan import Plan


@dataclass(frozen=True)
class Bound:
    """`seconds`: the least over our layouts and shares of the longer of computing with a free wire and of sending with free computing;
    `perfect`: if all ranks computed all the time, as efficiently as alone, and nothing had to travel. Both with what rank 0 does around
    the layers, where the profile knows that."""

    seconds: float
    perfect: float

    def nearness(self, seconds: float) -> float:
        """Return the bound over `seconds`: 1 is as soon as any of our layouts could be."""
        return self.seconds / seconds


class Freely(Pricer):
    """Prices a program as if its slowest rank's computing, and the traffic of the busiest way into or out of a rank, were all that takes
    time."""

    def total(self, walks: Sequence[Walk], compute: np.ndarray, load: np.ndarray, times: float = 0.0) -> np.ndarray:
        """Return it of all layers: which of both is the longer may be another one with few."""
        ahead = (self.head_start * self.link).max()  # once, of a link that rested, and by no more
        carried = load[: 2 * len(compute)].max(axis=0) - ahead
        return np.asarray(np.maximum(compute.max(axis=0), carried) + self.edges)


def bound(spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand, known: Sequence[Plan] = ()) -> Bound:
    """Return both bounds for requests of `demand.rows` rows and the wires it allows, whatever layout or shares it forces. `known`: plans
    that were found otherwise: what any of them could take is no less than the bound, though the search for it may have missed them.

    Raises: CapacityError when nothing fits.
    """
    demand = replace(demand, strategy="auto", layout=None, shares=None)
    found = choose(spec, source_hash, profile, demand, Freely)  # of which one rank may be chosen that is a little later than more
    pricer = Freely(spec, profile, demand.rows, demand.attended)
    allowed = [plan for plan in known if plan.shortest in demand.wires]
    every = [found.chosen.price.seconds, *found.by_ranks.values()]
    every += [pricer.price(make_program(spec, plan), plan).seconds for plan in allowed]
    perfect = perfect_seconds(spec, source_hash, profile, demand)  # a host alone may have been measured as slower than its ranks
    return Bound(min(every), min(perfect, *every))


def perfect_seconds(spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand) -> float:
    """Return 1 / sum of 1 / seconds of each rank alone, and what rank 0 does around the layers.

    Ranks that share the cores of a host, and could have all of them alone, count as one.
    """
    pricer = Pricer(spec, profile, demand.rows, demand.attended)
    crowding = pricer.crowding(tuple(range(len(profile.nodes))))
    rates: dict[str | int, float] = {}
    known: dict[NodeProfile, float] = {}  # equal boards take equally long
    alone = replace(demand, limits=(1 << 60,) * len(profile.nodes), mode="packed", strategy="auto", layout=None)
    for rank, node in enumerate(profile.nodes):
        like = replace(node, host="", memory_bytes=0)
        if like not in known:
            shares = tuple(float(other == rank) for other in range(len(profile.nodes)))
            try:
                known[like] = float(choose(spec, source_hash, profile, replace(alone, shares=shares)).chosen.price.compute[rank])
            except CapacityError:
                continue
        whose, shared = (rank, crowding[rank]) if node.alone is None else (node.host, 1.0)
        rates[whose] = max(rates.get(whose, 0.0), 1 / (known[like] * shared))
    return 1 / sum(rates.values()) + pricer.edges
