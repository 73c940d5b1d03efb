"""How each operation is computed, in plain NumPy: what a program is checked with. Knows no rank, no exchange and no ONNX."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from hepti_mpi.models import reference as formulas
from hepti_mpi.models.attention import mixed
from hepti_mpi.models.numerics import Array
from hepti_mpi.program import ops
from hepti_mpi.program.operation import Op

Own = Mapping[str, Array]  # by what each is to the operation: the rank's slices of its weights


@dataclass(frozen=True)
class Where:
    """Of which request each row is, [rows], and each row of what they attend to, [keys]; and at which position in it each of them is."""

    rows: Array
    keys: Array
    rows_at: Array
    keys_at: Array


Reference = Callable[[Any, Own, Sequence[Array], Where], list[Array]]  # the operation, its weights, what it reads -> what it writes
REFERENCES: dict[type[Op], Reference] = {}
Written = TypeVar("Written", bound=Reference)


def of(kind: type[Op]) -> Callable[[Written], Written]:
    """Register the function that follows for operations of a class."""

    def register(function: Written) -> Written:
        REFERENCES[kind] = function
        return function

    return register


@of(ops.Norm)
def norm(op: ops.Norm, w: Own, reads: Sequence[Array], where: Where) -> list[Array]:
    """[r, h] -> [r, h]"""
    return [formulas.norm(op.norm, of_norm(w), reads[0])]


def of_norm(w: Own) -> dict[str, Array]:
    """Return the weights of the norm that is last."""
    return {role.removeprefix("norm."): values for role, values in w.items() if role.startswith("norm.")}


@of(ops.AddNorm)
def add_norm(op: ops.AddNorm, w: Own, reads: Sequence[Array], where: Where) -> list[Array]:
    """x, p [r, h] -> x + p with its bias, norm and scale, unless nobody reads it, and its norm, if there is one"""
    total = reads[0] + formulas.added(op.block, op.kind, w, reads[1])
    return [total, formulas.norm(op.norm, of_norm(w), total)][-len(op.writes) :]


@of(ops.Join)
def join(op: ops.Join, w: Own, reads: Sequence[Array], where: Where) -> list[Array]:
    """p, p [r, h] -> [r, h]"""
    return [reads[0] + reads[1]]


@of(ops.Project)
def project(op: ops.Project, w: Own, reads: Sequence[Array], where: Where) -> list[Array]:
    """y [r, h] -> [r, w] by each matrix"""
    return [formulas.project(w, m, reads[0]) for m in op.matrices]


@of(ops.HeadNorm)
def head_norm(op: ops.HeadNorm, w: Own, reads: Sequence[Array], where: Where) -> list[Array]:
    """[r, w] -> [r, w]"""
    plain = replace(op.block, rotary=None)
    return [formulas.heads(plain, m, w, values, where.rows_at) for m, values in zip(op.matrices, reads, strict=True)]


@of(ops.Rotate)
def rotate(op: ops.Rotate, w: Own, reads: Sequence[Array], where: Where) -> list[Array]:
    """[r, w] -> [r, w]"""
    plain = replace(op.block, q_norm=None, k_norm=None)
    return [formulas.heads(plain, m, w, values, where.rows_at) for m, values in zip(op.matrices, reads, strict=True)]


@of(ops.Mix)
def mix(op: ops.Mix, w: Own, reads: Sequence[Array], where: Where) -> list[Array]:
    """q [r, w], k and v [n, w] -> [r, w]: rows attend to the rows of their own request"""
    q, k, v = reads
    result = np.empty_like(q)
    for request in np.unique(where.rows):
        rows, keys = where.rows == request, where.keys == request
        distance = where.rows_at[rows, None] - where.keys_at[keys]
        result[rows] = mixed(op.block, q[rows], k[keys], v[keys], distance, w.get("relative"))
    return [result]


@of(ops.Out)
def out(op: ops.Out, w: Own, reads: Sequence[Array], where: Where) -> list[Array]:
    """c [r, w] -> p [r, h]"""
    return [reads[0] @ w["o.weight"].reshape(-1, op.block.hidden)]


@of(ops.Mlp)
def mlp(op: ops.Mlp, w: Own, reads: Sequence[Array], where: Where) -> list[Array]:
    """y [r, h] -> p [r, h]"""
    return [formulas.mlp(op.block, w, reads[0])]


@of(ops.Cast)
def cast(op: ops.Cast, w: Own, reads: Sequence[Array], where: Where) -> list[Array]:
    """[r, w] -> the same in another type; of int8, numbers [r, w] and scales [r, blocks]"""
    if op.dtype == "int8":
        return [part for values in reads for part in rounded(values, op.block)]
    if op.scales:
        return [number * np.repeat(scale, op.block, axis=1) for number, scale in zip(reads[::2], reads[1::2], strict=True)]
    return [values.astype(op.dtype) for values in reads]


def rounded(values: Array, block: int) -> tuple[Array, Array]:
    """Return values [r, w] as int8 [r, w] and a scale [r, w / block] for each row of each block, whose largest value is 127 of them."""
    blocks = values.reshape(len(values), values.shape[1] // block, block)
    scales = np.maximum(np.abs(blocks).max(axis=2, initial=0), np.float32(1e-30)) * np.float32(1 / 127)
    return np.rint(blocks / scales[:, :, None]).astype(np.int8).reshape(values.shape), scales
