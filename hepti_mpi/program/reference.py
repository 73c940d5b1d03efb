"""How each operation is computed, in plain NumPy: what a program is checked with. Knows no rank, no exchange and no ONNX."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from hepti_mpi.models.numerics import Array, activate, layer_norm, softmax
from hepti_mpi.program import ops

Own = Mapping[str, Array]  # by what each is to the operation: the rank's slices of its weights


@dataclass(frozen=True)
class Where:
    """Of which request each row is, [rows], and each row of what they attend to, [keys]."""

    rows: Array
    keys: Array


Reference = Callable[[Any, Own, Sequence[Array], Where], list[Array]]  # the operation, its weights, what it reads -> what it writes
REFERENCES: dict[type[ops.Op], Reference] = {}
Written = TypeVar("Written", bound=Reference)


def of(kind: type[ops.Op]) -> Callable[[Written], Written]:
    """Register the function that follows for operations of a class."""

    def register(function: Written) -> Written:
        REFERENCES[kind] = function
        return function

    return register


@of(ops.Norm)
def norm(op: ops.Norm, w: Own, reads: Sequence[Array], where: Where) -> list[Array]:
    """[r, h] -> [r, h]"""
    return [layer_norm(reads[0], w["norm.weight"], w["norm.bias"], op.norm.eps)]


@of(ops.AddNorm)
def add_norm(op: ops.AddNorm, w: Own, reads: Sequence[Array], where: Where) -> list[Array]:
    """x, p [r, h] -> x + p + bias, unless nobody reads it, and its norm"""
    total = reads[0] + reads[1] + w["bias"]
    return [total, *norm(op, w, [total], where)][-len(op.writes) :]


@of(ops.Project)
def project(op: ops.Project, w: Own, reads: Sequence[Array], where: Where) -> list[Array]:
    """y [r, h] -> [r, w] by each matrix"""
    return [reads[0] @ w[f"{m}.weight"].reshape(-1, op.block.hidden).T + w[f"{m}.bias"].ravel() for m in op.matrices]


@of(ops.Mix)
def mix(op: ops.Mix, w: Own, reads: Sequence[Array], where: Where) -> list[Array]:
    """q [r, w], k and v [n, w] -> [r, w]: rows attend to the rows of their own request"""
    dim = op.block.dim
    q, k, v = (values.reshape(len(values), values.shape[1] // dim, dim).swapaxes(0, 1) for values in reads)  # [heads, r or n, dim]
    scores = np.where(where.rows[:, None] == where.keys, q @ k.swapaxes(1, 2) / np.sqrt(dim), -np.inf)  # [heads, r, n]
    return [(softmax(scores) @ v).swapaxes(0, 1).reshape(reads[0].shape) if len(reads[0]) else reads[0]]


@of(ops.Out)
def out(op: ops.Out, w: Own, reads: Sequence[Array], where: Where) -> list[Array]:
    """c [r, w] -> p [r, h]"""
    return [reads[0] @ w["o.weight"].reshape(-1, op.block.hidden)]


@of(ops.Mlp)
def mlp(op: ops.Mlp, w: Own, reads: Sequence[Array], where: Where) -> list[Array]:
    """y [r, h] -> p [r, h]"""
    return [activate(op.block.activation, reads[0] @ w["up.weight"].T + w["up.bias"]) @ w["down.weight"]]


@of(ops.Cast)
def cast(op: ops.Cast, w: Own, reads: Sequence[Array], where: Where) -> list[Array]:
    """[r, w] -> the same in another type"""
    return [values.astype(op.dtype) for values in reads]
