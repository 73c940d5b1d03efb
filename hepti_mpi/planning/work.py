"""How much work an operation is: weights that are multiplied by, multiply-adds of attention, elements. Pure: knows no second.

The price multiplies it by measured speeds, an emulated board by the figures it is described by: so these two count alike.
"""

from dataclasses import dataclass
from typing import Any

from hepti_mpi.cluster.boards import Work
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.program.build import CASTS, Compute, Op
from hepti_mpi.program.plan import Plan

MATRICES_OF = {"project": 3, "project_q": 1, "project_kv": 2, "out": 1, "project_heads": 3, "out_heads": 1}
SUMMED = ("attention", "arranged", "elements", "activations", "casts")


@dataclass(frozen=True)
class OpWork:
    """The work of one operation: `weights` of matrices by which each of its rows is multiplied, and, of all rows, `attention`
    multiply-adds and the elements that it lays out (`arranged`), `elements` of norms and residual sums, `activations`, `casts`.
    Numbers, or arrays of one per rank."""

    weights: Any = 0
    attention: Any = 0
    arranged: Any = 0
    elements: Any = 0
    activations: Any = 0
    casts: Any = 0


def op_work(spec: ModelSpec, op: Op, rows: Any, pairs: Any, heads: Any, columns: Any) -> OpWork:
    """Return the work of `op` on `rows` rows.

    `pairs`: of a query and a key that these rows attend to; `heads`: numbers in a row of the own heads; `columns`: the own ones.
    """
    hidden = spec.hidden
    width = heads if op.kind.endswith("_heads") else hidden
    if op.kind in MATRICES_OF:
        return OpWork(weights=MATRICES_OF[op.kind] * hidden * width)
    if op.kind in ("mix", "mix_heads"):
        return OpWork(attention=2.0 * pairs * width, arranged=rows * width)
    if op.kind in ("mlp", "mlp_columns"):
        units = columns if op.kind == "mlp_columns" else spec.ffn
        return OpWork(weights=2.0 * hidden * units, activations=rows * units)
    if op.kind in CASTS:
        return OpWork(casts=rows * width * len(op.reads))
    return OpWork(elements=rows * hidden)  # norm, tail


def step_work(spec: ModelSpec, plan: Plan, rank: int, step: Compute, rows: int, pairs: float) -> Work:
    """Return the work of a step on one rank: `rows` rows of it, which attend to keys in `pairs` pairs."""
    alone = len(plan.active) == 1
    heads = spec.hidden if alone else plan.heads[rank] * spec.head_dim
    columns = spec.ffn if alone else plan.columns[rank]
    parts = [op_work(spec, op, rows, pairs, heads, columns) for op in step.ops]
    sums = {name: float(sum(getattr(part, name) for part in parts)) for name in SUMMED}
    return Work(tuple((rows, part.weights) for part in parts if part.weights), **sums)
