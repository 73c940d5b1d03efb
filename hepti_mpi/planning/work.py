"""How much work a step of a program is on one rank. Pure: knows no second.

The price multiplies the work of operations by measured speeds, an emulated board by the figures it is described by: so these two
count alike.
"""

from hepti_mpi.cluster.boards import Work
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.program.ops import Share
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import Compute

SUMMED = ("attention", "arranged", "elements", "activations", "casts")


def step_work(spec: ModelSpec, plan: Plan, rank: int, step: Compute, rows: int, pairs: float) -> Work:
    """Return the work of a step on one rank: `rows` rows of it, which attend to keys in `pairs` pairs."""
    share = Share(rows, pairs, plan.heads[rank], plan.columns[rank])
    parts = [op.work(share) for op in step.ops]
    sums = {name: float(sum(getattr(part, name) for part in parts)) for name in SUMMED}
    return Work(tuple((rows, part.weights) for part in parts if part.weights), **sums)
