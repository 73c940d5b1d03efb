"""Which weights a rank needs. Pure: turns the operations of a program into ranges of store tensors; opens no file."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from hepti_mpi import splits
from hepti_mpi.models.blocks import Weight
from hepti_mpi.models.formats import F32, Format
from hepti_mpi.models.spec import ModelSpec, named_weights, outer_weights
from hepti_mpi.program.build import make_program
from hepti_mpi.program.ops import Op
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import Compute, Program


@dataclass(frozen=True)
class Slice:
    """Entries [first, first + count) along the first axis of the store tensor `name`; `shape` is that of the slice."""

    name: str
    first: int
    shape: tuple[int, ...]
    format: Format = F32

    @property
    def numbers(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.format.bytes(self.shape)


def all_weights(spec: ModelSpec) -> tuple[Weight, ...]:
    """Return every tensor of the model's store under its full name, in the order in which it is written."""
    return tuple(replace(weight, name=name) for name, weight in named_weights(spec))


def granule(spec: ModelSpec, weight: Weight) -> int:
    """Return how many entries along dim 0 share one checksum: a head, a granule of columns, or all."""
    return {"heads": 1, "columns": spec.column_granule}.get(weight.split or "", weight.shape[0])


def span(weight: Weight, first: int = 0, stop: int | None = None) -> Slice:
    """Return entries [first, stop) of a weight; all of them when they are left out."""
    stop = weight.shape[0] if stop is None else stop
    return Slice(weight.name, first, (stop - first, *weight.shape[1:]), weight.format)


class Slicer:
    """Answers, for one rank of a plan, what each operation reads from the store."""

    def __init__(self, spec: ModelSpec, plan: Plan, rank: int) -> None:
        self.spec, self.rank = spec, rank
        single = len(plan.active) == 1
        self.parts = {"heads": (0, spec.heads) if single else splits.bounds(plan.heads, rank),
                      "columns": (0, spec.ffn) if single else splits.bounds(plan.columns, rank)}
        self.heads = self.parts["heads"][1] - self.parts["heads"][0]
        self.holds_rows = single or plan.rows[rank] > 0

    def takes_part(self, op: Op, distribution: str) -> bool:
        """Tell whether this rank computes anything of `op`: some have no weights to tell it by."""
        if op.axis:
            start, stop = self.parts[op.axis]
            return stop > start
        return self.holds_rows or (distribution == "full" and op.everywhere)

    def op(self, op: Op, distribution: str) -> dict[str, Slice]:
        """Return the slices for `op` by what each is to it, e.g. {"q.weight": ...}."""
        result: dict[str, Slice] = {}
        if not self.takes_part(op, distribution):
            return result
        for role, (weight, axis) in op.weights().items():
            result[role] = span(weight, *self.parts[axis]) if axis else span(weight)
        return result


def layer_slices(spec: ModelSpec, plan: Plan, program: Program, rank: int) -> tuple[Slice, ...]:
    """Return what `rank` reads for the layers, each slice once, in program order."""
    if rank not in plan.active:
        return ()
    slicer = Slicer(spec, plan, rank)
    found: dict[Slice, None] = {}
    for step in program:
        if isinstance(step, Compute):
            for op in step.ops:
                found.update(dict.fromkeys(slicer.op(op, step.distribution).values()))
    return tuple(found)


def root_slices(spec: ModelSpec) -> tuple[Slice, ...]:
    """Return what rank 0 reads besides: the embedding and the head."""
    return tuple(span(w) for w in outer_weights(spec) if w.part in ("embedding", "head"))


def rank_slices(spec: ModelSpec, plan: Plan, rank: int) -> Iterator[Slice]:
    """Yield all that `rank` reads from the store."""
    yield from layer_slices(spec, plan, make_program(spec, plan), rank)
    if rank == 0:
        yield from root_slices(spec)
