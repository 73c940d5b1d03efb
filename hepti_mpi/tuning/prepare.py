"""From a profile to a job that can answer: plan, load, settle on a plan by trying, check the wire. Returns data; prints nothing.

What plans is imported by the rank that does, and what settles on a plan where that is done.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.engine.loading import Ready, decide, load, swap
from hepti_mpi.engine.machine import Machine, Say, together
from hepti_mpi.planning.demand import Demand
from hepti_mpi.program.plan import Wire, in_words
from hepti_mpi.tuning.wires import within
from hepti_mpi.weights.store import Store
from hepti_mpi.wording import beside


@dataclass(frozen=True)
class Goal:
    """What a plan is made for and by: the method, what it is asked, the ranks' speeds, what the wire's type may change of results, and
    whether there are so `many` requests that plans are worth to be tried."""

    method: str
    demand: Demand
    profile: ClusterProfile
    tolerance: float
    many: bool


def prepared(
    machine: Machine, store: Store, goal: Goal, startup: dict[str, float], say: Say, at: Callable[[str], None] = lambda stage: None
) -> tuple[Ready, ClusterProfile]:
    """Plan and load; where there are many requests, settle on a plan by trying; check the wire. Collective.

    `at` is told what is done now. Return also the profile as it is known then.
    """
    at("planning")
    begin, profile, demand = time.perf_counter(), goal.profile, goal.demand
    with together(machine.world):  # one rank tells why nothing fits
        plan, decision = decide(machine, store, profile, goal.method, demand)
    at("loading weights")
    ready = load(machine, store, plan, decision, startup | {"plan": time.perf_counter() - begin})
    ready, demand = short_enough(replace(ready, tolerance=goal.tolerance), goal, say)
    return _settled(ready, replace(goal, demand=demand), say, at) if goal.many else (ready, profile)


def _settled(ready: Ready, goal: Goal, say: Say, at: Callable[[str], None]) -> tuple[Ready, ClusterProfile]:
    """Settle on a plan by trying some, where the method leaves a choice. Collective."""
    from hepti_mpi.planning import methods
    from hepti_mpi.tuning.settle import settle

    if goal.method not in methods.OURS:
        return ready, goal.profile
    at("settling on a plan by trying some")
    begin, store = time.perf_counter(), ready.store
    settled = settle(ready.machine, store.spec, store.source_hash, ready.segments, goal.profile, goal.demand, ready.decision)
    ready = swap(ready, settled.plan, settled.price)
    ready.startup_seconds["settle"] = time.perf_counter() - begin
    wire = ready.plan.wire
    ready, error = within(ready)
    if ready.plan.wire != wire:
        say(_too_much(wire, error, goal.tolerance, ready.plan.wire))
    return ready, settled.profile


def short_enough(ready: Ready, goal: Goal, say: Say) -> tuple[Ready, Demand]:
    """Return a job whose wire changes results by no more than is allowed, and what is asked of plans then: with a type that changes too
    much in as many layers as may have it, or planned again without it where that promises to be sooner. Collective."""
    demand = goal.demand
    while True:
        wire = ready.plan.wire
        ready, error = within(ready)
        if ready.plan.wire == wire:
            return ready, demand
        demand = replace(demand, wires=demand.wires[: demand.wires.index(wire)])  # shorter ones change more
        with together(ready.machine.world):
            plan, decision = decide(ready.machine, ready.store, goal.profile, goal.method, demand, ready.plan)
        say(_too_much(wire, error, goal.tolerance, plan.wire))
        if plan == ready.plan:
            return replace(ready, part=replace(ready.part, plan=plan), decision=decision), demand
        ready = replace(swap(ready, plan), decision=decision)


def _too_much(wire: Wire, error: float, tolerance: float, used: Wire) -> str:
    (short, where), instead = in_words(wire), "".join(in_words(used))
    changes = f"{short} on the wire{where} changes results by {beside(error, tolerance)}"
    return f"{changes}, more than --tolerance {tolerance:g}: {instead} is used"
