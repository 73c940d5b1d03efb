"""What each step of a program is predicted to take each rank, for one plan. Pure.

Knows the clocks that the price walks by; what a program costs in all is pricer.py's.
"""

from dataclasses import dataclass

import numpy as np

from hepti_mpi.planning.pricer import Batch, Pricer, shares_of
from hepti_mpi.planning.walk import Computing
from hepti_mpi.program.buffers import distributions, interface
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import Compute, Program, Sync


@dataclass(frozen=True)
class StepTimes:
    """`seconds` of a batch; `steps` [ranks, steps]: seconds that each rank computes, or waits for an exchange while it has nothing to
    compute; `began` [ranks, steps]: when."""

    seconds: float
    steps: np.ndarray
    began: np.ndarray


def step_times(pricer: Pricer, program: Program, plan: Plan) -> StepTimes:
    """Return the times of every step. What a rank waits for before a Compute counts for the exchange that came last of those it reads."""
    batch = Batch(pricer, [plan.active], plan, shares_of([plan], pricer.lengths))
    walk, ranks, values = batch.walk(), batch.ranks[:, 0], distributions(program)
    steps, began = (np.zeros((plan.ranks, len(program))) for _ in range(2))
    places = {id(step): place for place, step in enumerate(program)}
    made = {name: place for place, step in enumerate(program) if isinstance(step, Sync) for name in interface(values, step)[1]}
    begin, count = walk.clock, 0
    place = -1
    for step, done in batch.steps(program, walk):
        place = places.get(id(step), place)  # an exchange in two parts is none of the program's
        more = done.seconds[:, 0] if isinstance(done, Computing) else np.zeros(len(ranks))
        idle = (walk.clock - begin - sum(walk.handled[count:]))[:, 0] - more
        began[ranks, place] = np.broadcast_to(begin, walk.clock.shape)[:, 0]
        if isinstance(step, Compute):
            steps[ranks, place] += more
            came = [name for name in interface(values, step)[0] if name in made]
            if came and idle.any():
                last = made[max(came, key=lambda name: float(np.max(walk.ready[name])))]
                steps[ranks, last] += idle
                began[ranks, place] += idle
        else:
            steps[ranks, place] += idle
        begin, count = walk.clock, len(walk.handled)
    return StepTimes(float(walk.clock[:, 0].max() + pricer.edges), steps, began)
