"""Which weights a rank needs. Pure: turns the operations of a program into ranges of store tensors; opens no file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from math import prod
from typing import Protocol

import numpy as np

from hepti_mpi import splits
from hepti_mpi.models.blocks import Weight
from hepti_mpi.models.formats import F32, Format, Parts
from hepti_mpi.models.spec import ModelSpec, named_weights, outer_weights
from hepti_mpi.models.steps import Words
from hepti_mpi.program.build import make_program
from hepti_mpi.program.grouping import read
from hepti_mpi.program.operation import Op
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import Compute, Program

WORDS = 64  # of a vocabulary that ranks divide, a granule


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
    """Return how many entries along dim 0 share one checksum: a head or as many as a format cuts at, a granule of columns, or all."""
    if spec.generates and weight.axes[0] == "words":  # which ranks divide too
        return WORDS
    heads = weight.format.granule(weight.shape, weight.inner or 0)
    return {"heads": heads, "kv_heads": heads, "columns": spec.column_granule}.get(weight.split or "", weight.shape[0])


def span(weight: Weight, first: int = 0, stop: int | None = None) -> Slice:
    """Return entries [first, stop) of a weight; all of them when they are left out."""
    stop = weight.shape[0] if stop is None else stop
    return Slice(weight.name, first, (stop - first, *weight.shape[1:]), weight.format, weight.inner or 0)


class Whole(Protocol):
    """What a part is cut out of: a Store, or what stands in for one."""

    spec: ModelSpec
    files: dict[str, bytes]
    source_hash: str

    def parts(self, piece: Slice) -> Mapping[str, np.ndarray]: ...

    def verify(self, slices: Iterable[Slice]) -> int: ...


def joined(spec: ModelSpec, slices: Iterable[Slice]) -> list[Slice]:
    """Return one slice per tensor that covers all of `slices`: a rank may hold its heads or columns, or all where a layer is computed
    by rows."""
    weights = {weight.name: weight for weight in all_weights(spec)}
    ranges: dict[str, tuple[int, int]] = {}
    for piece in slices:
        first, stop = ranges.get(piece.name, (piece.first, piece.first))
        ranges[piece.name] = min(first, piece.first), max(stop, piece.first + piece.shape[0])
    return [span(weights[name], *bounds) for name, bounds in ranges.items()]


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
        """The (start, stop) of its heads, of those of K and V that they read, and of its columns."""
        heads = splits.bounds(self.plan.heads, self.rank)
        return {"heads": heads, "kv_heads": read(*heads, self.spec.group), "columns": splits.bounds(self.plan.columns, self.rank)}

    @property
    def heads(self) -> int:
        """How many query heads it has of a block that is divided by them."""
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

    def held(self, step: Compute) -> dict[Op, dict[str, Slice]]:
        """Return the operations of a step in which this rank takes part, with the slices for each."""
        return {op: self.op(op, step.distribution) for op in step.ops if self.takes_part(op, step.distribution)}

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
        return (*self.of_layers, *(self.outer_slices if self.rank == 0 else ()))

    @property
    def outer_slices(self) -> tuple[Slice, ...]:
        """What the first rank of the plan reads besides: the embedding where the first layer is the plan's, the head where the last is."""
        first, last = self.plan.first == 0, self.plan.numbers.stop == self.spec.layers
        tied = {step.table for step in self.spec.back if isinstance(step, Words)} if last else set()
        wanted = {"embedding": first, "head": last}
        return tuple(piece for piece in root_slices(self.spec) if wanted[self.part_of[piece.name]] or piece.name in tied)

    @cached_property
    def part_of(self) -> dict[str, str]:
        """To which part of the model the weights around the layers belong."""
        return {weight.name: weight.part for weight in outer_weights(self.spec)}


class DecodingPart(Part):
    """One rank's part of a model that generates text: its heads and columns of all rows, and its words of the vocabulary."""

    @cached_property
    def program(self) -> Program:
        return make_program(self.spec, self.plan, everywhere=True)

    def computed(self, axis: str) -> int:
        """Return how many of the query "heads" it computes, or of those of K and V, "kv_heads", which it keeps."""
        if self.plan.keeps_requests:
            return int(getattr(self.spec, axis)) if self.holds_rows else 0
        start, stop = self.bounds[axis]
        return stop - start

    @property
    def logit_cap(self) -> float:
        """The largest size of a logit, which nears it as a tanh does; 0: none."""
        return float(self.spec.options.get("logit_cap", 0.0))

    def words_of(self, rank: int) -> tuple[int, int]:
        """Return the (start, stop) of a rank's words: divided as the columns of layers are; none where the last layer is not the plan's."""
        if self.plan.numbers.stop < self.spec.layers:
            return 0, 0
        shares = self.plan.columns if any(self.plan.columns) else [int(one in self.plan.active) for one in range(self.plan.ranks)]
        return splits.bounds(splits.split(self.spec.words.size, shares, WORDS), rank)

    @property
    def words_slices(self) -> tuple[Slice, Slice | None]:
        """The rank's part of the table that makes logits, and of the bias, if there is one."""
        added = Weight(f"{self.spec.words.name}.bias", "head", ("words",), (self.spec.words.size,))
        table, bias = self.spec.stored(self.spec.words.rows), self.spec.stored(added)
        bounds = self.words_of(self.rank)
        made = replace(span(table, *bounds), inner=1)  # a table is no product, but this one is read as one
        return made, span(bias, *bounds) if self.spec.words.bias else None

    @property
    def slices(self) -> tuple[Slice, ...]:
        """All that it reads from the store, but for what embeds tokens."""
        start, stop = self.words_of(self.rank)
        own = [piece for piece in self.words_slices if piece is not None] if stop > start else []
        return tuple(dict.fromkeys((*self.of_layers, *own)))


def front_slices(spec: ModelSpec) -> tuple[Slice, ...]:
    """Return what is read to embed tokens."""
    return tuple(span(weight) for weight in outer_weights(spec) if weight.part == "embedding")


def root_slices(spec: ModelSpec) -> tuple[Slice, ...]:
    """Return what rank 0 reads besides: the embedding and the head."""
    return tuple(span(w) for w in outer_weights(spec) if w.part in ("embedding", "head"))


def whole_slices(spec: ModelSpec) -> tuple[Slice, ...]:
    """Return every tensor of a model, whole."""
    return tuple(span(weight) for weight in all_weights(spec))
