"""How large the numbers inside a segment can be, whatever its rows are, by the norms that its blocks begin with and the weights behind.

A product that rounds its rows loses what is not finite. Where nothing of a block can become so it need not look: two nodes less in each.
Knows operations and weights; knows no kernel and no row. Numbers are counted as sums of the largest that each of their terms can be.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, prod, sqrt

import numpy as np

from hepti_mpi.models.blocks import Norm
from hepti_mpi.models.formats import CHANNELS, SCALES, VALUES, Blocks, Columns
from hepti_mpi.planning.memory import FULL
from hepti_mpi.program import ops
from hepti_mpi.program.operation import Op
from hepti_mpi.weights.slices import Slice
from hepti_mpi.weights.store import Store

SAFE = 1e30  # terms of so many layers still have a sum


@dataclass
class Bounds:
    """`largest`: how large each value of a segment can be, by name, where that is known; `cache`: the type of numbers of caches."""

    store: Store
    largest: dict[str, float] = field(default_factory=dict)
    cache: str = FULL

    def add(self, op: Op, own: Mapping[str, Slice]) -> bool:
        """Note how large what `op` writes can be, with the rank's `own` weights; tell whether it is the last product of a block and all
        that it reads and writes is finite."""
        reads = [self.largest.get(name, inf) for name in op.reads]
        if isinstance(op, ops.Norm | ops.AddNorm):
            self.largest[op.writes[-1]] = self._normed(op.norm, own, "norm.")
        elif isinstance(op, ops.Project):
            self.largest.update((name, self._product(own, m, reads[0])) for m, name in zip(op.matrices, op.writes, strict=True))
        elif isinstance(op, ops.HeadNorm):
            found = ((name, self._normed(op.block.head_norm(m), own, f"{m}.norm.")) for m, name in zip(op.matrices, op.writes, strict=True))
            self.largest.update(found)
        elif isinstance(op, ops.Rotate) and op.block.rotary:  # of two numbers, each times at most the factor
            self.largest.update((name, 2 * op.block.rotary.factor * one) for name, one in zip(op.writes, reads, strict=True))
        elif isinstance(op, ops.Mix):  # a mean of rows of v, where scores are finite
            q, k, v = reads
            most = SAFE if self.cache == FULL else float(np.finfo(self.cache).max)  # of scores, which may be in its type too
            self.largest[op.writes[0]] = v if op.block.dim * q * k * max(op.block.multiplier, 1.0) < most > v else inf
        elif isinstance(op, ops.Out):
            return self._is_safe(own, "o", reads[0])
        elif isinstance(op, ops.Mlp):
            columns = self._product(own, op.block.inner[-1], reads[0])  # no activation makes a number larger
            return self._is_safe(own, "down", columns * self._product(own, "up", reads[0]) if op.block.gated else columns)
        return False

    def _normed(self, norm: Norm | None, own: Mapping[str, Slice], prefix: str) -> float:
        """No number of a row is larger than its length, which is at most the root of its width."""
        if norm is None:
            return inf
        weight, *bias = (self._size(own[f"{prefix}{role}"]) for role in norm.weights(""))
        return sqrt(norm.width) * weight + sum(bias)

    def _product(self, own: Mapping[str, Slice], name: str, x: float) -> float:
        weight, bias = own[f"{name}.weight"], own.get(f"{name}.bias")
        inputs = weight.shape[-1] if weight.inner else prod(weight.shape[:-1])
        return inputs * self._size(weight) * x + (self._size(bias) if bias else 0.0)

    def _is_safe(self, own: Mapping[str, Slice], name: str, x: float) -> bool:
        return x < SAFE and self._product(own, name, x) < SAFE

    def _size(self, piece: Slice) -> float:
        """Return how large a number of a weight can be: NaN or infinite where one is."""
        kind, parts = piece.format, self.store.parts(piece)
        most = {name: float(np.abs(part).max(initial=0)) for name, part in parts.items() if name != VALUES}
        if isinstance(kind, Blocks):
            return most[SCALES] * 2 ** (kind.bits - 1)
        if isinstance(kind, Columns):
            return most[SCALES] * most[CHANNELS] * 128
        return float(np.abs(parts[VALUES]).max(initial=0))
