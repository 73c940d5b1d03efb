"""Whole layers of a model that generates text, with weights that are made up: the engine's own segment, to time what a step takes.

Knows shapes and formats; knows no clock, no store and no rank.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
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
from hepti_mpi.models.formats import VALUES
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.work import step_work
from hepti_mpi.program.plan import WHOLE, Plan
from hepti_mpi.program.steps import Compute
from hepti_mpi.weights.slices import DecodingPart, Slice

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
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


class _MadeUp:
    """Stands in for a store. No two weights are equal: ONNX Runtime would keep those once."""

    file = Path("model")
    prepacked = None

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.made: dict[Slice, Mapping[str, np.ndarray]] = {}
        self.encoded: dict[tuple[Any, ...], Mapping[str, np.ndarray]] = {}

    def array(self, piece: Slice) -> np.ndarray:
        return self.parts(piece)[VALUES]

    def parts(self, piece: Slice) -> Mapping[str, np.ndarray]:
        if piece not in self.made:
            key = piece.format, piece.shape, piece.inner
            if key not in self.encoded:
                some = np.array([0.01, -0.02, 0.015, -0.005, 0.003] if len(piece.shape) > 1 else [1.0], np.float32)
                self.encoded[key] = piece.format.encode(np.resize(some, piece.shape), piece.inner)
            number = 1 + len(self.made) % 127
            self.made[piece] = {
                name: part ^ part.dtype.type(number) if part.dtype.kind in "iu" else part * part.dtype.type(1 + number / 256)
                for name, part in self.encoded[key].items()
            }
        return self.made[piece]


@dataclass(frozen=True)
class TextLayers:
    """The first `count` layers on one rank, in one session."""

    spec: ModelSpec
    count: int
    plan: Plan
    compute: Compute
    segment: caching.CachedSegment

    def call(self, texts: int, length: int) -> Callable[[], None]:
        """Return what adds a row to each of so many texts of `length` rows."""
        segment, spec = self.segment, self.spec
        assert segment.session is not None
        blocks = attentions(spec, range(self.count))
        state, every = State(blocks, spec.kv_heads, texts, length + 1), np.arange(length + 1)
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
        return step_work(self.spec, self.plan, 0, self.compute, texts, float(texts * (length + 1)))


def enough(spec: ModelSpec) -> int:
    """Return how many layers of the model outdo the caches of a processor, if it has as many."""
    return max(1, min(spec.layers, -(-beyond_caches() // spec.bytes_of_layer)))


def text_layers(spec: ModelSpec, threads: int) -> TextLayers:
    """Return layers, as many as are enough, whose session computes with `threads`."""
    count = enough(spec)
    plan = Plan(spec.name, "", (WHOLE,) * count, (0,), (0,), (1,), ("here",), ("packed",))
    part = DecodingPart(spec, plan, 0)
    first, *others = (step for step in part.program if isinstance(step, Compute))  # of parallel blocks there are several
    every = (first, *others)
    compute = replace(first, ops=tuple(op for step in every for op in step.ops), writes=every[-1].writes)
    store: Any = _MadeUp(spec)
    segment = caching.cached_segment(compute, store, part, "packed", threads, graph=_InMemory())
    del store
    pages.settle()  # as weights of texts lie when they are loaded
    return TextLayers(spec, count, plan, compute, segment)
