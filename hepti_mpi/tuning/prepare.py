"""From a profile to a job that can answer: plan, load, settle on a plan by trying, check the wire. Returns data; prints nothing."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.engine.loading import Ready, decide, load, swap, wire_error
from hepti_mpi.engine.machine import Machine, Say, together
from hepti_mpi.planning import methods
from hepti_mpi.planning.request import Request
from hepti_mpi.tuning.settle import settle
from hepti_mpi.weights.store import Store


@dataclass(frozen=True)
class Goal:
    """What a plan is made for and by: the method, what it is asked, the ranks' speeds, what the wire's type may change of results, and
    whether there are so `many` requests that plans are worth to be tried."""

    method: str
    request: Request
    profile: ClusterProfile
    tolerance: float
    many: bool


def prepared(
    machine: Machine, store: Store, goal: Goal, startup: dict[str, float], say: Say, at: Callable[[str], None] = lambda stage: None
) -> tuple[Ready, ClusterProfile, float]:
    """Plan and load; where there are many requests, settle on a plan by trying; check the wire. Collective.

    `at` is told what is done now. Return also the profile as it is known then, and by how much the wire's type changes results, which is
    at most the tolerance.
    """
    at("planning")
    begin, profile, request = time.perf_counter(), goal.profile, goal.request
    with together(machine.world):  # one rank tells why nothing fits
        plan, decision = decide(machine, store, profile, goal.method, request)
    at("loading weights")
    ready = load(machine, store, plan, decision, startup | {"plan": time.perf_counter() - begin})
    if goal.many and goal.method in methods.OURS:
        at("settling on a plan by trying some")
        begin = time.perf_counter()
        settled = settle(machine, store.spec, store.source_hash, ready.segments, profile, request, decision)
        ready, profile = swap(ready, settled.plan, settled.price), settled.profile
        ready.startup_seconds["settle"] = time.perf_counter() - begin
    error = wire_error(ready, request.rows)
    if not error <= goal.tolerance:  # which a result that is no number does not pass either
        say(f"float16 on the wire changes results by {error:.2g}, more than --tolerance {goal.tolerance:g}: float32 is used")
        ready, error = swap(ready, replace(ready.plan, wire="float32", predicted_seconds=None)), 0.0
    return ready, profile, error
