"""The plans that a search begins with: the best of each kind as rows, heads and columns are divided by speed. Pure.

Knows which sets of ranks, and which plans on them, are worth a price; not how shares are divided, nor how plans get better.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.planning.candidates import Candidate, Costs
from hepti_mpi.planning.demand import Exchange
from hepti_mpi.planning.sharing import keep_soonest, preference, share_hosts
from hepti_mpi.planning.subsets import EVERY_SUBSET, MANY
from hepti_mpi.program.plan import Plan, kind_of

MOST_PLAIN = EVERY_SUBSET * 2  # ranks that may exchange by MPI's collectives
HOPELESS = 1.05  # times the soonest so far: a plan that computes or sends as long is left out, whatever becomes of it
NEAR = 1.05  # times the best of a kind

Layout = tuple[str, str]


class Choosing(Protocol):
    """What a search knows of sets of ranks: the layouts per layer that are worth a try on them, with the ways to exchange; a plan of these,
    None where it does not fit; the seconds that no plan on them takes less than."""

    costs: Costs

    def choices(self, subset: tuple[int, ...]) -> Iterable[tuple[tuple[Layout, ...], list[Exchange]]]: ...

    def planned(self, layers: tuple[Layout, ...], subset: tuple[int, ...], exchange: Exchange) -> Plan | None: ...

    def least(self, subset: tuple[int, ...]) -> float: ...


class Opening(NamedTuple):
    """`best`: candidates of each kind; `with_rank`, `by_ranks`: seconds of the best so far, as of a Decision; `fits`: of the layouts that
    were `tried` those that memory holds."""

    best: dict[str, list[Candidate]]
    with_rank: dict[int, float]
    by_ranks: dict[int, float]
    fits: set[Layout | str]
    tried: set[Layout]


def opening(search: Choosing, profile: ClusterProfile, by_size: Iterable[Sequence[tuple[int, ...]]]) -> Opening:
    """Return what there is to begin with. `by_size`: sets of as many ranks, the largest first: what of fewer ranks cannot be the soonest
    any more is not priced."""
    found = Opening({}, {}, {}, set(), set())
    complete = set[tuple[bool, bool]]()  # what was offered of which each layout fits

    def soonest() -> float:
        return HOPELESS * min((preference(profile, ones)[0] for ones in found.best.values()), default=np.inf)

    def most(plan: Plan) -> float:
        """What is worth a price: one plan of each kind, and what of fewer ranks may still be the soonest."""
        return soonest() if _kind(plan) in found.best else np.inf

    for subsets in by_size:
        size = len(subsets[0])
        offer = size > MANY, size <= MOST_PLAIN  # on which the kinds of plans depend
        hope = soonest() if offer in complete and size > 1 else np.inf
        choices = [(subset, layers, exchange) for subset in subsets if search.least(subset) < hope
                   for layers, some in search.choices(subset) for exchange in some]  # fmt: skip
        planned = [plan for subset, layers, exchange in choices if (plan := search.planned(layers, subset, exchange))]
        for plan, candidate in search.costs.promising(planned, most):
            found.fits.add(plan.layers[0] if len(set(plan.layers)) == 1 else "mix")
            if candidate is None:
                continue
            if plan.divided:  # what another rank takes alone says nothing of what its part is worth
                keep_soonest(found.with_rank, plan.active, candidate.price.seconds)
            keep_soonest(found.by_ranks, [len(plan.active)], candidate.price.seconds)
            found.best[_kind(plan)] = _foremost([*found.best.get(_kind(plan), ()), candidate], profile)
        found.tried.update(layers[0] for _, layers, _ in choices)
        if found.tried <= found.fits:
            complete.add(offer)
    return found


def _kind(plan: Plan) -> str:
    return kind_of(plan) if len(set(plan.layers)) == 1 else "mix"


def _foremost(candidates: Sequence[Candidate], profile: ClusterProfile) -> list[Candidate]:
    """Return the best of candidates of one kind, and the next one of other ranks that is near it: they may come to other ends."""
    first, *others = sorted(candidates, key=lambda one: preference(profile, [one]))
    near, crowded = first.price.seconds * NEAR, share_hosts(first, profile)
    others = [one for one in others if one.price.seconds <= near and one.plan.active != first.plan.active]
    return [first, *[one for one in others if share_hosts(one, profile) == crowded][:1]]
