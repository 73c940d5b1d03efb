"""One job on every rank until it can answer: plan and load; and going on with another one.

Returns data; prints nothing. How it answers is serving's business.

Every stage ends with all ranks agreeing that it worked, so that an error on one rank ends all of them, and is told once.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from hepti_mpi.cluster.memory import usable_memory
from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.comm.advice import with_ranks
from hepti_mpi.engine import pages
from hepti_mpi.engine.engine import Engine
from hepti_mpi.engine.fetching import hold, same_plan
from hepti_mpi.engine.machine import Machine, patiently, together
from hepti_mpi.engine.segments import Segments
from hepti_mpi.errors import CapacityError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.demand import Decision, Demand
from hepti_mpi.program import plan as plans
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import Program
from hepti_mpi.weights.slices import Part
from hepti_mpi.weights.store import Store

if TYPE_CHECKING:
    from hepti_mpi.planning.prices import Price

R = TypeVar("R")
ROOM = 1.2  # times the bytes of a plan's weights that must be free to load it beside another


@dataclass
class Ready:
    """A job that can answer: what was decided (rank 0 knows from what; nobody where the plan was given) and the engine.

    `tolerance`: by how much the wire's type may change a number of the last hidden state; `wire_error`: by how much it was found to.
    """

    machine: Machine
    store: Store
    part: Part
    engine: Engine
    segments: Segments
    decision: Decision | None
    startup_seconds: dict[str, float]
    tolerance: float = math.inf
    wire_error: float = 0.0

    @property
    def spec(self) -> ModelSpec:
        return self.part.spec

    @property
    def plan(self) -> Plan:
        return self.part.plan

    @property
    def program(self) -> Program:
        return self.part.program


@patiently
def decide(
    machine: Machine, store: Store, profile: ClusterProfile, method: str, demand: Demand, known: Plan | None = None
) -> tuple[Plan, Decision | None]:  # fmt: skip
    """Return the plan of a method of rank 0's planner, or one that is `known` where that promises to be sooner, on every rank and, on
    rank 0, what it was chosen from. Collective.

    Raises: CapacityError, on every rank, when no plan fits.
    """

    def chosen() -> Decision:
        from hepti_mpi.planning import methods, search, sharing  # a fifth of what there is, which other ranks need not import

        found = methods.decide(method, store.spec, store.source_hash, profile, demand)
        if known is None:
            return found
        costs = search.costs_of(store.spec, profile, demand, known)
        every = [found.chosen, *filter(costs.fits, costs.candidates([known]))]
        return replace(found, chosen=min(every, key=lambda one: sharing.preference(profile, [one])))

    document, found = agreed(machine, chosen, lambda decision: decision.chosen.plan.to_json())
    return plans.from_json(document), found[0] if found else None


def agreed(machine: Machine, rule: Callable[[], R], told: Callable[[R], Any]) -> tuple[Any, list[R]]:
    """Return on every rank what is `told` of what `rule` returns on rank 0, and that there, nothing elsewhere. Collective.

    Raises: CapacityError, on every rank, when it does there.
    """
    found: list[R] = []
    refusal: str | None = None
    with together(machine.world):
        if machine.world.rank == 0:
            try:
                found.append(rule())
            except CapacityError as error:
                refusal = str(error)
    document, refusal = machine.world.from_root([told(found[0]) if found else None, refusal])
    if refusal is not None:
        raise CapacityError.of_all(refusal)
    return document, found


@patiently
def load(
    machine: Machine, store: Store, plan: Plan, decision: Decision | None, startup: dict[str, float],
    segments: Segments | None = None,
) -> Ready:  # fmt: skip
    """Check the plan, read and verify this rank's slices, and build the engine. Collective.

    `segments`: sessions that other engines of this process use too.
    """
    world, begin = machine.world, time.perf_counter()
    with together(world):
        plans.check(plan, store.spec, store.source_hash, world.size, start=with_ranks)
    same_plan(machine, plan.hash)
    part = Part(store.spec, plan, world.rank)
    fetched = hold(machine, store, part.slices)
    segments = segments or Segments(store)
    engine = Engine(machine, part, segments)
    engine.warm_up()
    pages.trim()
    world.barrier()
    startup = startup | fetched | {"load": time.perf_counter() - begin - sum(fetched.values())}
    return Ready(machine, store, part, engine, segments, decision, startup)


def swap(ready: Ready, plan: Plan, price: "Price | None" = None, make_room: bool = False) -> Ready:
    """Go on with another plan, for which `price` was predicted; sessions that it has in common with what is loaded are kept. Collective.

    `make_room`: give up what is loaded first, where memory would not hold both. What was ready cannot be used then.
    """
    decision = None
    if ready.decision is not None and price is not None:
        decision = replace(ready.decision, chosen=replace(ready.decision.chosen, plan=plan, price=price))
    if plan == ready.plan:
        return replace(ready, part=replace(ready.part, plan=plan), decision=decision)
    machine, part = ready.machine, replace(ready.part, plan=plan)
    hold(machine, ready.store, part.slices)
    machine.world.barrier()
    ready.engine.close()
    wanted = sum(piece.bytes for piece in part.slices)
    if make_room and usable_memory(1) < ROOM * wanted:
        ready.engine.segments.clear()
    return replace(ready, part=part, engine=Engine(machine, part, ready.segments), decision=decision)
