"""What is possible on given ranks: two times that no plan can beat, beside which a plan's time can be seen. Pure.

Knows prices and the search; does not know what was measured.
"""

from dataclasses import dataclass, replace

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.errors import CapacityError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.cost import Price, Pricer
from hepti_mpi.planning.plan import Plan
from hepti_mpi.planning.planner import Request, choose
from hepti_mpi.planning.program import Program


@dataclass(frozen=True)
class Bound:
    """`seconds`: the least over our layouts and shares of the longer of computing with a free wire and of sending with free computing;
    `perfect`: if all ranks computed all the time, as efficiently as alone, and nothing had to travel."""

    seconds: float
    perfect: float


class _Freely(Pricer):
    """Prices a program as if its slowest rank's computing, and its busiest link's traffic, were all that takes time."""

    def price(self, program: Program, plan: Plan) -> Price:
        price = super().price(program, plan)
        return replace(price, seconds=max(float(price.compute.max()), price.wire))


def bound(spec: ModelSpec, source_hash: str, profile: ClusterProfile, request: Request) -> Bound:
    """Return both bounds for requests of `request.rows` rows and the wires it allows. Raises CapacityError when nothing fits."""
    found = choose(spec, source_hash, profile, request, _Freely).chosen
    return Bound(found.price.seconds, perfect_seconds(spec, source_hash, profile, request))


def perfect_seconds(spec: ModelSpec, source_hash: str, profile: ClusterProfile, request: Request) -> float:
    """Return 1 / sum of 1 / seconds of each rank alone."""
    rates = 0.0
    alone = replace(request, limits=(1 << 60,) * len(profile.nodes), mode="packed", strategy="auto", layout=None)
    for rank in range(len(profile.nodes)):
        shares = tuple(float(other == rank) for other in range(len(profile.nodes)))
        try:
            price = choose(spec, source_hash, profile, replace(alone, shares=shares)).chosen.price
        except CapacityError:
            continue
        rates += 1 / float(price.compute[rank])
    return 1 / rates
