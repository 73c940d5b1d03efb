"""Whole layers of a model that generates text, with weights that are made up: the engine's own segment, to time what a step takes.

Knows shapes and formats; knows no clock, no store and no rank.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import ceil, lcm, prod
from pathlib import Path
from typing import Any

import numpy as np

from hepti_mpi.cluster.boards import Work
from hepti_mpi.engine import caching, pages
from hepti_mpi.engine.graph import Graph
from hepti_mpi.engine.packing import asked
from hepti_mpi.engine.sessions import running
from hepti_mpi.engine.state import State, attentions
from hepti_mpi.models.attention import angles
from hepti_mpi.models.formats import CHANNELS, VALUES, Array
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.work import step_work
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import Compute, Sync
from hepti_mpi.weights.slices import DecodingPart, Slice

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
SOME = np.resize(np.array([50, -100, 75, -25, 15], np.int8), 5 << 12)  # weights
SOME_BYTES = 32 << 20  # of weights, where nobody knows how large the caches of the processor are


@cache
def beyond_caches() -> int:
    """Return the bytes of twice the largest cache of a processor: what is read in turn is not found there."""
    try:
        sizes = [one.read_text().strip() for one in CACHES.glob("index*/size")]
        return 2 * max(int(size.removesuffix("K")) << 10 for size in sizes)  # as the kernel says it
    except (OSError, ValueError):
        return SOME_BYTES


class _InMemory(Graph):
    """Weights are constants."""

    def weight(self, store: Any, piece: Slice, shape: tuple[int, ...], part: str = VALUES) -> str:
        return self.constant(piece.name if part == VALUES else f"{piece.name}.{part}", store.parts(piece)[part].reshape(shape))


class MadeUp:
    """Stands in for a store. No two weights are equal: ONNX Runtime would keep those once."""

    file = Path("model")
    prepacked = None

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.made: dict[Slice, Mapping[str, np.ndarray]] = {}

    def array(self, piece: Slice) -> np.ndarray:
        return self.parts(piece)[VALUES]

    def parts(self, piece: Slice) -> Mapping[str, np.ndarray]:
        if piece not in self.made:
            number, arrays = 1 + len(self.made) % 127, piece.format.parts(piece.shape, piece.inner)
            self.made[piece] = {name: self._filled(name, array, len(piece.shape), number) for name, array in arrays.items()}
        return self.made[piece]

    def _filled(self, name: str, array: Array, axes: int, number: int) -> np.ndarray:
        if name == VALUES and array.kind.kind in "iu":
            return np.resize(SOME ^ number, prod(array.shape)).astype(array.kind).reshape(array.shape)
        if name == CHANNELS:
            return np.ones(array.shape, array.kind)
        some = np.ones(1) if axes < 2 else SOME / 5000 if name == VALUES else np.array([0.001])
        return np.resize((some * (1 + number / 256)).astype(array.kind), array.shape)


@dataclass(frozen=True)
class TextLayers:
    """The part of one rank in the first `count` layers, in one session: nothing is exchanged between them."""

    spec: ModelSpec
    part: DecodingPart
    compute: Compute
    segment: caching.CachedSegment

    @property
    def count(self) -> int:
        return len(self.part.plan.layers)

    def call(self, texts: int, length: int) -> Callable[[], None]:
        """Return what adds a row to each of so many texts of `length` rows."""
        segment, spec = self.segment, self.spec
        assert segment.session is not None
        blocks = attentions(spec, range(self.count))
        state, every = State(blocks, self.part.computed("kv_heads"), texts, length + 1), np.arange(length + 1)
        for array in (*state.keys, *state.values):
            array.fill(0.5)
        feed: dict[str, np.ndarray] = {name: np.full((texts, spec.hidden), 0.5, np.float32) for name in segment.inputs}
        feed |= {"shape": np.array([texts, 1, -1]), "reach": np.full(texts, length, np.int32), "most": np.array(length + 1, np.int32)}
        for rotary in dict.fromkeys(block.rotary for block in blocks if block.rotary is not None):
            for kind, table in zip(("cos", "sin"), angles(rotary, every), strict=True):
                feed |= {caching.whole_table(kind, rotary): table, asked(kind, rotary): np.repeat(table[-1:], texts, axis=0)}
        results: dict[str, np.ndarray] = {name: np.empty((texts, spec.hidden), np.float32) for name in segment.outputs}
        for layer in segment.layers:
            for kind, whole, array in zip(
                (caching.KEYS, caching.ROWS), (caching.ALL_KEYS, caching.ALL_ROWS), state.views(layer, 0, texts), strict=True
            ):  # fmt: skip
                feed[kind.format(layer)] = results[whole.format(layer)] = array
        wanted = {one.name for one in segment.session.get_inputs()}
        return running(segment.session, {name: array for name, array in feed.items() if name in wanted}, results)

    def work(self, texts: int, length: int) -> Work:
        """Return what that does."""
        return step_work(self.spec, self.part.plan, 0, self.compute, texts, float(texts * (length + 1)))


def divided(spec: ModelSpec, held: int) -> tuple[DecodingPart, DecodingPart]:
    """Return what a rank has that holds just `held` bytes, if the model has as much, and what one has that holds next to nothing of as
    many layers."""
    count = max(1, min(spec.layers, -(-held // spec.bytes_of_layer)))
    share = min(1.0, held / (count * spec.bytes_of_layer))
    return _part(spec, count, share), _part(spec, count, 0.0)


def _part(spec: ModelSpec, count: int, share: float) -> DecodingPart:
    """Return the part of the first of two ranks in the first `count` layers: at least one head of keys and values, and some columns."""

    def some(whole: int, granule: int) -> tuple[int, int]:
        own = min(max(1, ceil(share * whole / granule)) * granule, whole)
        return own, whole - own

    heads, columns = some(spec.heads, lcm(spec.group, spec.head_granule)), some(spec.ffn, spec.column_granule)
    layers, modes = (("heads", "columns"),) * count, ("packed", "packed")
    return DecodingPart(spec, Plan(spec.name, "", layers, heads, columns, (1, 0), ("here", "there"), modes), 0)


def text_layers(part: DecodingPart, threads: int) -> TextLayers:
    """Return a rank's layers, whose session computes with `threads`."""
    spec, steps = part.spec, [step for step in part.program if isinstance(step, Compute)]
    written = {name for step in steps for name in step.writes}
    sums = [step for step in part.program if isinstance(step, Sync) and written.issuperset(step.reads)]
    same = {into: name for step in sums for name, into in zip(step.reads, step.writes, strict=True)}  # a part of a sum is as good as all
    ops = tuple(replace(op, reads=tuple(same.get(name, name) for name in op.reads)) for step in steps for op in step.ops)
    compute = replace(steps[0], ops=ops, writes=steps[-1].writes)
    store: Any = MadeUp(spec)
    segment = caching.cached_segment(compute, store, part, "packed", threads, graph=_InMemory())
    del store
    pages.settle()  # as weights of texts lie when they are loaded
    return TextLayers(spec, part, compute, segment)
