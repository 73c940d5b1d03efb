"""How much work a step of a program is on one rank. Pure: knows no second.

The price multiplies the work of operations by measured speeds, an emulated board by the figures it is described by: so these two
count alike.
"""

from math import prod
from typing import NamedTuple

import numpy as np

from hepti_mpi.cluster.boards import Work
from hepti_mpi.models.spec import ModelSpec, layer_bytes
from hepti_mpi.planning.memory import word_table
from hepti_mpi.program import ops
from hepti_mpi.program.grouping import shared
from hepti_mpi.program.operation import Op, Share
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import Compute


class LayerWork(NamedTuple):
    """What a row costs a layer, on average over the layers: `attention` and `mlp`: weights of their matrices; `width`, `kv_width`: numbers
    of Q and of K; `attended`: rows that it attends to."""

    attention: float
    mlp: float
    width: float
    kv_width: float
    attended: float


def layer_work(spec: ModelSpec, attended: float) -> LayerWork:
    """Return what a row costs a layer of `spec`, whose rows attend to `attended` rows where no window is narrower."""
    found = []
    for layer in spec.each() if len(spec.kinds) > 1 else spec.kinds:
        attention, mlp, share = layer.attention, layer.mlp, Share(1, attended, 0, 0)
        mix = ops.Mix(0, (), (), attention).work(share)
        products = ops.Project(0, (), (), attention, "qkv"), ops.Out(0, (), (), attention)
        weights = sum(op.work(share).weights for op in products)
        widths = attention.width, attention.kv_width
        found.append((weights, ops.Mlp(0, (), (), mlp).work(share).weights, *widths, mix.attention / (2 * attention.width)))
    return LayerWork(*map(float, np.mean(found, axis=0)))


def bytes_of_number(spec: ModelSpec) -> float:
    """Return the bytes of a number in the layers."""
    held, one = layer_bytes(spec), layer_work(spec, 1)
    return float(held["heads"] + held["columns"]) / (one.attention + one.mlp)


def word_numbers(spec: ModelSpec) -> float:
    """Return how many numbers in the layers take as many bytes as the table of words."""
    return word_table(spec).held / bytes_of_number(spec)


SUMMED = ("attention", "arranged", "elements", "activations", "casts")


def step_work(spec: ModelSpec, plan: Plan, rank: int, step: Compute, rows: int, pairs: float, laid: int | None = None) -> Work:
    """Return the work of a step on one rank: `rows` rows of it, which attend to keys in `pairs` pairs and lie as `laid` rows then."""
    kv_heads, attending = (int(every[rank]) for every in shared(np.array(plan.heads), spec.group))
    share = Share(rows, pairs, plan.heads[rank], plan.columns[rank], kv_heads, attending, laid)
    parts = [op.work(share) for op in step.ops]
    sums = {name: float(sum(getattr(part, name) for part in parts)) for name in SUMMED}
    matrices = [(op, part.weights) for op, part in zip(step.ops, parts) if part.weights]
    products = tuple((rows, weights * share, name) for op, weights in matrices for name, share in _formats(spec, op))
    return Work(products, **sums)


def _formats(spec: ModelSpec, op: Op) -> list[tuple[str, float]]:
    """Return the formats of the matrices of an operation, and the part of their numbers that is in each."""
    found: dict[str, float] = {}
    for weight in (weight for some in op.products() for weight in some):
        name = spec.stored(weight).format.name
        found[name] = found.get(name, 0) + prod(weight.shape)
    return [(name, count / sum(found.values())) for name, count in found.items()]
