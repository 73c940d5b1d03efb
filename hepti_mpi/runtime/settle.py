"""Settle on a plan by trying: answer a few requests by the best candidates, learn how fast each rank really is, plan again.

Knows engines and predictions; does not search itself (planning.planner does) and does not change layouts, so most weights stay.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hepti_mpi.cluster.profile import ClusterProfile, scaled
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning import plan as plans
from hepti_mpi.planning import planner
from hepti_mpi.planning.cost import Price, Pricer
from hepti_mpi.planning.plan import Plan
from hepti_mpi.planning.planner import Decision, Request
from hepti_mpi.planning.program import Compute, make_program
from hepti_mpi.runtime.engine import Engine
from hepti_mpi.runtime.graphs import Segments
from hepti_mpi.runtime.job import Machine

ROUNDS = 3
REQUESTS = 3  # per plan that is tried, after one to warm up
TRUST = 0.1  # of a rank's speed that one round may take away or add


@dataclass(frozen=True)
class Trial:
    """A plan that was tried: `seconds` of its best request and each rank's `compute` seconds; what disturbs makes both longer only."""

    plan: Plan
    seconds: float
    compute: np.ndarray


def settle(
    machine: Machine, spec: ModelSpec, source_hash: str, segments: Segments, profile: ClusterProfile, request: Request,
    decision: Decision | None,
) -> tuple[Plan, Price]:  # fmt: skip
    """Return the plan that answered soonest among the chosen one, those close to it, and what the measured speeds suggest, with its
    price by those speeds. Collective; `decision` is rank 0's.
    """
    world = machine.world
    documents = world.from_root([c.plan.to_json() for c in (decision.chosen, *decision.close)] if decision else None)
    pricer = Pricer(spec, profile, request.rows, request.attended)
    tried = [attempt(machine, spec, segments, plans.from_json(document), pricer.lengths) for document in documents]
    for _ in range(ROUNDS):
        best = min(tried, key=lambda trial: trial.seconds)
        factors = learned(pricer, spec, best)
        profile = scaled(profile, factors)
        pricer = Pricer(spec, profile, request.rows, request.attended)
        suggestion = planner.again(spec, source_hash, profile, request, best.plan).plan if world.rank == 0 else best.plan
        suggestion = plans.from_json(world.from_root(suggestion.to_json()))
        if any(trial.plan == suggestion for trial in tried):
            break
        tried.append(attempt(machine, spec, segments, suggestion, pricer.lengths))
    best = min(tried, key=lambda trial: trial.seconds)
    pricer = Pricer(spec, scaled(profile, learned(pricer, spec, best)), request.rows, request.attended)
    price = pricer.price(make_program(spec, best.plan), best.plan)
    return replace(best.plan, predicted_seconds=price.seconds), price


def attempt(machine: Machine, spec: ModelSpec, segments: Segments, plan: Plan, lengths: Sequence[int]) -> Trial:
    """Answer a few batches of requests of `lengths` rows by `plan`; all ranks return the same. Collective."""
    world = machine.world
    program = make_program(spec, plan)
    engine = Engine(world, machine.exchanges, machine.dilation, spec, plan, program, segments)
    embedded = np.zeros((sum(lengths), spec.hidden), np.float32) if world.rank == 0 else None
    computing = [place for place, step in enumerate(program) if isinstance(step, Compute)]
    times, compute = [], []
    for _ in range(1 + REQUESTS):
        world.barrier()
        world.quick_barrier()
        begin = time.perf_counter()
        engine.run(lengths, embedded)
        times.append(time.perf_counter() - begin)
        compute.append(float(engine.seconds[computing].sum()))
    world.barrier()
    engine.close()
    facts = world.gather_all([min(times[1:]), min(compute[1:])])
    return Trial(plan, facts[0][0], np.array([spent for _, spent in facts]))


def learned(pricer: Pricer, spec: ModelSpec, trial: Trial) -> Sequence[float]:
    """Return, per rank, how many times longer it computed than was predicted, within TRUST; 1 where it had nothing to do."""
    predicted = pricer.price(make_program(spec, trial.plan), trial.plan).compute
    ratios = np.divide(trial.compute, predicted, out=np.ones(len(predicted)), where=predicted > 0)
    return [float(ratio) for ratio in np.clip(ratios, 1 - TRUST, 1 + TRUST)]
