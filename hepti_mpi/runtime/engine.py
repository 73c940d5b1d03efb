"""Walk a program on one rank: run segments, exchange values, note the time of each step.

Knows buffers and steps; does not know where requests come from, what the model means or how the plan was found.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hepti_mpi import splits
from hepti_mpi.comm.ranks import Comm
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.plan import Plan
from hepti_mpi.planning.program import EMBEDDED, RESULT, Compute, Program, Sync, buffers, distributions
from hepti_mpi.runtime import graphs
from hepti_mpi.runtime.packing import Packing, pack
from hepti_mpi.shards.slicing import Slicer, layer_slices
from hepti_mpi.shards.store import Store

GEOMETRIES = 16  # prepared batch shapes that are kept


@dataclass
class _Geometry:
    """All that is fixed for batches of the same request lengths: counts, views of the buffers, bindings."""

    rows: int
    counts: tuple[int, ...]
    values: dict[str, np.ndarray]
    bindings: list[object] = field(default_factory=list)
    packings: tuple[Packing, ...] = ()


class Engine:
    """The layers of one model on one rank of a plan."""

    def __init__(self, world: Comm, spec: ModelSpec, plan: Plan, program: Program, store: Store, threads: int) -> None:
        """Build sessions and communicators. Collective; every rank of the job calls it, also those the plan leaves out."""
        self.spec, self.plan, self.program, self.rank = spec, plan, program, world.rank
        self.active = plan.active
        self.is_active = world.rank in self.active
        self.layers = world.subset(self.active)  # those who compute
        self.outer = world.subset(sorted({0, *self.active}))  # and the root, which has the input and wants the result
        self.segments: dict[int, graphs.Segment] = {}
        if self.is_active:
            graphs.configure(threads)
            slicer = Slicer(spec, plan, world.rank)
            for place, step in enumerate(program):
                if isinstance(step, Compute):
                    self.segments[place] = graphs.build(spec, step, store, slicer, plan.weights_mode[world.rank])
        self.weight_bytes = sum(piece.bytes for piece in layer_slices(spec, plan, program, world.rank))
        self.shapes, self.numbers = distributions(program), buffers(program)
        self.memory: dict[int, np.ndarray] = {}
        self.capacity = 0
        self.geometries: OrderedDict[tuple[int, ...], _Geometry] = OrderedDict()
        self.seconds = np.zeros(len(program))  # of the last request, per step

    def run(self, lengths: Sequence[int], embedded: np.ndarray | None) -> np.ndarray | None:
        """Return the last hidden state [rows, hidden] on rank 0, None elsewhere; `embedded` [rows, hidden] is rank 0's.

        `lengths`: rows of each request of the batch. The result is a buffer that the next call overwrites.
        """
        if self.outer is None:
            return None
        geometry = self._geometry(tuple(lengths))
        if embedded is not None:
            np.copyto(geometry.values[EMBEDDED], embedded)
        clock = time.perf_counter()
        for place, step in enumerate(self.program):
            if isinstance(step, Sync):
                self._exchange(step, geometry)
            elif self.is_active:
                segment, binding = self.segments[place], geometry.bindings[place]
                for name in segment.zeros:
                    geometry.values[name].fill(0)
                if binding is not None:
                    segment.run(binding)
            now = time.perf_counter()
            self.seconds[place], clock = now - clock, now
        return geometry.values.get(RESULT)

    def prepare(self, batches: Iterable[Sequence[int]]) -> None:
        """Make buffers and bindings for batches of these request lengths, as many as are kept, before they are timed."""
        if self.outer is not None:
            shapes = list(dict.fromkeys(map(tuple, batches)))
            for lengths in sorted(shapes[:GEOMETRIES], key=sum, reverse=True):  # the largest first: it sizes the buffers
                self._geometry(lengths)

    def warm_up(self) -> None:
        """Answer a few rows of zeros, so that connections, threads and pages are there before the first request. Collective."""
        rows = min(self.plan.planned_rows, 4 * len(self.active))
        self.run((rows,), np.zeros((rows, self.spec.hidden), np.float32) if self.rank == 0 else None)

    def _exchange(self, sync: Sync, at: _Geometry) -> None:
        values, counts = at.values, at.counts
        if sync.kind in ("bcast", "scatterv", "gatherv"):
            self._outer(sync, at)
        elif self.layers is None:
            return
        elif sync.kind == "allreduce":
            self.layers.allreduce(values[sync.reads], values[sync.writes])
        elif sync.kind == "reduce_scatter":
            self.layers.reduce_scatter(values[sync.reads], values[sync.writes], self._of_active(counts))
        elif sync.kind == "allgatherv":
            self.layers.allgather_rows(values[sync.reads], values[sync.writes], self._of_active(counts))
        else:
            start, stop = splits.bounds(counts, self.rank)
            np.copyto(values[sync.writes], values[sync.reads][start:stop])

    def _outer(self, sync: Sync, at: _Geometry) -> None:
        """Bring the embedding from the root to the active ranks, or the result back."""
        assert self.outer is not None
        values, members = at.values, sorted({0, *self.active})
        counts = [at.counts[rank] for rank in members]
        if sync.kind == "bcast":
            if self.rank == 0:
                np.copyto(values[sync.writes], values[EMBEDDED])
            self.outer.broadcast(values[sync.writes])
        elif sync.kind == "scatterv":
            self.outer.scatter_rows(values.get(EMBEDDED), values[sync.writes], counts)
        else:
            if len(self.active) == 1:  # its value is full, whatever the row shares say
                counts = [at.rows if rank in self.active else 0 for rank in members]
            mine = values[sync.reads] if self.is_active else np.empty((0, self.spec.hidden), np.float32)
            self.outer.gather_rows(mine, values.get(RESULT), counts)

    def _of_active(self, counts: Sequence[int]) -> list[int]:
        return [counts[rank] for rank in self.active]

    # preparation: nothing below runs for a batch shape that was seen before

    def _geometry(self, lengths: tuple[int, ...]) -> _Geometry:
        known = self.geometries.get(lengths)
        if known is not None:
            self.geometries.move_to_end(lengths)
            return known
        rows = sum(lengths)
        if rows > self.capacity:
            self.geometries.clear()
            self.memory.clear()
            self.capacity = rows
        made = self._prepare(lengths, rows)
        self.geometries[lengths] = made
        if len(self.geometries) > GEOMETRIES:
            self.geometries.popitem(last=False)
        return made

    def _prepare(self, lengths: tuple[int, ...], rows: int) -> _Geometry:
        counts = self.plan.row_counts(rows)
        own = counts[self.rank]
        start, stop = splits.bounds(counts, self.rank)
        values: dict[str, np.ndarray] = {}
        for name, (at, width) in self.shapes.items():
            if at == "root":
                if self.rank == 0:
                    values[name] = np.empty((rows, self.spec.hidden), np.float32)
            elif self.is_active or (name == self.program[0].writes and self.rank == 0):
                values[name] = self._view(self.numbers[name], rows if at == "full" else own, width * self.spec.hidden)
        geometry = _Geometry(rows, counts, values)
        if self.is_active:
            whole, part = pack(lengths, 0, rows), pack(lengths, start, stop)
            geometry.packings = (whole, part)  # the bindings point into them
            for place, step in enumerate(self.program):
                geometry.bindings.append(self._bind(place, step, geometry) if isinstance(step, Compute) else None)
        return geometry

    def _bind(self, place: int, step: Compute, geometry: _Geometry) -> object | None:
        packing = geometry.packings[0 if step.distribution == "full" else 1]
        if step.distribution == "rows" and not len(packing.unpad):
            return None
        return self.segments[place].bind(geometry.values | vars(packing))

    def _view(self, number: int, rows: int, width: int) -> np.ndarray:
        """Return [rows, width] at the start of buffer `number`, which is made for the largest batch seen."""
        if number not in self.memory or self.memory[number].size < rows * width:
            self.memory[number] = np.empty(max(rows, self.capacity) * width, np.float32)
        return self.memory[number][: rows * width].reshape(rows, width)
