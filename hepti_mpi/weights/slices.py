"""Which weights a rank needs. Pure: turns the operations of a program into ranges of store tensors; opens no file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from math import prod

import numpy as np

from hepti_mpi import splits
from hepti_mpi.models.blocks import Weight
from hepti_mpi.models.formats import F32, Format, Parts
from hepti_mpi.models.spec import ModelSpec, named_weights, outer_weights
from hepti_mpi.program.build import make_program
from hepti_mpi.program.ops import Op
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import Compute, Program


@dataclass(frozen=True)
class Slice:
    """Entries [first, first + count) along the first axis of the store tensor `name`; `shape` is that of the slice, `inner` as a Weight's.

    Slices begin at a granule of their format, and end at one or with the tensor.
    """

    name: str
    first: int
    shape: tuple[int, ...]
    format: Format = F32
    inner: int = 0

    @property
    def numbers(self) -> int:
        return prod(self.shape)

    @property
    def parts(self) -> Parts:
        """The arrays that hold it."""
        return self.format.parts(self.shape, self.inner)

    @property
    def bytes(self) -> int:
        return self.format.bytes(self.shape, self.inner)

    def decode(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the float32 values of its parts."""
        return self.format.decode(parts, self.shape, self.inner)


def all_weights(spec: ModelSpec) -> tuple[Weight, ...]:
    """Return every tensor of the model's store under its full name and in its format, in the order in which it is written."""
    return tuple(spec.stored(replace(weight, name=name)) for name, weight in named_weights(spec))


def granule(spec: ModelSpec, weight: Weight) -> int:
    """Return how many entries along dim 0 share one checksum: a head, a granule of columns, or all."""
    return {"heads": 1, "columns": spec.column_granule}.get(weight.split or "", weight.shape[0])


def span(weight: Weight, first: int = 0, stop: int | None = None) -> Slice:
    """Return entries [first, stop) of a weight; all of them when they are left out."""
    stop = weight.shape[0] if stop is None else stop
    return Slice(weight.name, first, (stop - first, *weight.shape[1:]), weight.format, weight.inner or 0)


@dataclass(frozen=True)
class Part:
    """One rank's part of a model under a plan: the steps that are done and the slices of weights that it needs for them. Made once and
    handed down, to whoever reads weights, makes sessions or does the steps."""

    spec: ModelSpec
    plan: Plan
    rank: int

    @cached_property
    def program(self) -> Program:
        return make_program(self.spec, self.plan)

    @cached_property
    def bounds(self) -> dict[str, tuple[int, int]]:
        """The (start, stop) of its heads and of its columns."""
        return {"heads": splits.bounds(self.plan.heads, self.rank), "columns": splits.bounds(self.plan.columns, self.rank)}

    @property
    def heads(self) -> int:
        start, stop = self.bounds["heads"]
        return stop - start

    @cached_property
    def holds_rows(self) -> bool:
        return self.plan.rows[self.rank] > 0

    def takes_part(self, op: Op, distribution: str) -> bool:
        """Tell whether this rank computes anything of `op`: some have no weights to tell it by."""
        if op.axis:
            start, stop = self.bounds[op.axis]
            return stop > start
        return self.holds_rows or (distribution == "full" and op.everywhere)

    def op(self, op: Op, distribution: str) -> dict[str, Slice]:
        """Return the slices for `op` by what each is to it, e.g. {"q.weight": ...}."""
        result: dict[str, Slice] = {}
        if not self.takes_part(op, distribution):
            return result
        for role, (weight, axis) in op.weights().items():
            result[role] = span(self.spec.stored(weight), *(self.bounds[axis] if axis else ()))
        return result

    @cached_property
    def of_layers(self) -> tuple[Slice, ...]:
        """What it reads for the layers, each slice once, in the order of the program."""
        if self.rank not in self.plan.active:
            return ()
        computes = (step for step in self.program if isinstance(step, Compute))
        found = (self.op(op, step.distribution).values() for step in computes for op in step.ops)
        return tuple(dict.fromkeys(chain.from_iterable(found)))

    @property
    def slices(self) -> tuple[Slice, ...]:
        """All that it reads from the store."""
        return (*self.of_layers, *(root_slices(self.spec) if self.rank == 0 else ()))


def root_slices(spec: ModelSpec) -> tuple[Slice, ...]:
    """Return what rank 0 reads besides: the embedding and the head."""
    return tuple(span(w) for w in outer_weights(spec) if w.part in ("embedding", "head"))
