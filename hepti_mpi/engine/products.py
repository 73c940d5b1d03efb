"""A product of rows with a weight, as ONNX nodes: one way for each format of weights. Knows no operation, layer or rank.

float16 weights become float32 when a session is made: no kernel multiplies by them. 8-bit columns are multiplied by rows that are rounded
to 8 bits too, each with a scale of its own, so that it does not matter which rows are together; a rank that holds a part of the sum takes
the scale of its own part of the row. Where the processor gets signed weights wrong they are made unsigned. Blocks are multiplied as
MatMulNBits does with 8-bit rows (accuracy level 4: lower ones turn 8-bit weights into float32 at each call).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np

from hepti_mpi.engine import integers
from hepti_mpi.engine.graph import DTYPES, MICROSOFT, Graph
from hepti_mpi.models.formats import CHANNELS, F16, F32, SCALES, VALUES, Blocks
from hepti_mpi.weights.slices import Slice
from hepti_mpi.weights.store import Store

# below which an activation gives nothing; that of tanh is as far from 0 as its most, and the rest have none
LEAST = {"relu": 0.0, "gelu": -0.17, "gelu_10": -0.17, "gelu_tanh": -0.1701, "quick_gelu": -0.1637, "silu": -0.2785, "mish": -0.3089}
BELOW = 32  # of 256 whole numbers, those below 0 where values are hardly below it; where they may be anything, as many as to the middle


class Source(Protocol):
    """Where the parts of weights come from."""

    def declare(self, graph: Graph, piece: Slice, part: str, shape: tuple[int, ...]) -> str:
        """Declare a part of a slice, viewed as `shape`, as an initializer; return what it is called."""

    def parts(self, piece: Slice) -> Mapping[str, np.ndarray]:
        """Return the parts of a slice."""


@dataclass(frozen=True)
class OfStore:
    """Parts that stay in the file of a store."""

    store: Store

    def declare(self, graph: Graph, piece: Slice, part: str, shape: tuple[int, ...]) -> str:
        return graph.weight(self.store, piece, shape, part)

    def parts(self, piece: Slice) -> Mapping[str, np.ndarray]:
        return self.store.parts(piece)


@dataclass(frozen=True)
class Made:
    """Parts of one weight that is in memory."""

    values: Mapping[str, np.ndarray]

    def declare(self, graph: Graph, piece: Slice, part: str, shape: tuple[int, ...]) -> str:
        return graph.constant(f"{piece.name}.{part}", self.values[part].reshape(shape))

    def parts(self, piece: Slice) -> Mapping[str, np.ndarray]:
        return self.values


@dataclass(frozen=True)
class Multiple:
    """float32 numbers `shared` by several weights, times `factor`: they are multiplied when a session is made, which is told them once."""

    shared: np.ndarray
    factor: float

    def declare(self, graph: Graph, piece: Slice, part: str, shape: tuple[int, ...]) -> str:
        factor = graph.constant(f"{piece.name}.factor", np.array(self.factor, np.float32))
        if "shared" not in graph.initializers:
            graph.constant("shared", self.shared.reshape(shape))
        return graph.node("Mul", ["shared", factor])

    def parts(self, piece: Slice) -> Mapping[str, np.ndarray]:
        return {VALUES: self.shared * np.float32(self.factor)}


@dataclass(frozen=True)
class Product:
    """x [r, K] times a weight, [N, K] or [K, N], plus `bias` [N] -> [r, N]. `least`: below which no number of x is, if known.
    `looks`: whether it has to look for numbers that are not finite: rounding loses NaN, unless all of a row is."""

    graph: Graph
    source: Source
    x: str
    weight: Slice
    least: float | None = None
    looks: bool = True

    @property
    def matrix(self) -> tuple[int, int]:
        return prod(self.weight.shape[:-1]), self.weight.shape[-1]

    @property
    def inputs(self) -> int:
        """K"""
        return self.matrix[self.weight.inner]

    @property
    def outputs(self) -> int:
        """N"""
        return self.matrix[1 - self.weight.inner]

    def part(self, part: str, shape: tuple[int, ...]) -> str:
        return self.source.declare(self.graph, self.weight, part, shape)

    def write(self, bias: str | None, output: str | None) -> str:
        """Write it; return what it is called."""
        if self.weight.format in (F32, F16):
            return self._plain(bias, output)
        if isinstance(self.weight.format, Blocks):
            return self._blocks(bias, output)
        if bias is None:
            return self._columns(output)
        return self.graph.node("Add", [self._columns(None), bias], [output] if output else None)

    def _plain(self, bias: str | None, output: str | None) -> str:
        weight = self.part(VALUES, self.matrix)
        if self.weight.format is not F32:
            weight = self.graph.node("Cast", [weight], to=DTYPES["float32"])
        inputs = [self.x, weight, *([bias] if bias else [])]
        return self.graph.node("Gemm", inputs, [output] if output else None, transB=self.weight.inner)

    def _columns(self, output: str | None) -> str:
        graph, weight = self.graph, self.part(VALUES, self.matrix)
        whole, scale, zero = self._rounded()
        if self.looks:
            scale = graph.node("Add", [scale, self._unsound()])
        if self.weight.inner:  # done once, when a session is made
            weight = graph.node("Transpose", [weight], perm=[1, 0])
        middle = [] if integers.signed_are_right() else [graph.constant("middle", np.array(integers.MIDDLE, np.uint8))]
        if middle:  # done once, too: another highest bit is 128 more, in one byte
            flipped = graph.node("BitwiseXor", [weight, graph.constant("highest", np.array(-integers.MIDDLE, np.int8))])
            weight = graph.node("Cast", [flipped], to=DTYPES["uint8"])
        # it multiplies rows by their scales in place, but with one thread only: several are sooner with a node of its own
        inside = graph.threads == 1
        one = scale if inside else graph.constant("one", np.array(1, np.float32))
        inputs, outputs = [whole, weight, one, self.part(SCALES, (self.outputs,)), zero, *middle], [output] if output else None
        found = graph.node("MatMulIntegerToFloat", inputs, outputs if inside else None, MICROSOFT)
        return found if inside else graph.node("Mul", [found, scale], outputs)

    def _rounded(self) -> tuple[str, str, str]:
        """Write x * channels as 8-bit whole numbers, once for all products that read it so; return them, what one is worth in each row
        [r, 1], and which of them is 0."""
        graph, channels = self.graph, self.source.parts(self.weight)[CHANNELS].reshape(-1)
        even = bool((channels == 1).all())
        least = self.least if even else None
        below = integers.MIDDLE if least is None else BELOW if least else 0
        zero = graph.constant(f"from_{below}", np.array(below, np.uint8))
        key = self.x, None if even else channels.tobytes(), below
        if key not in graph.rounded:
            x = self.x if even else graph.node("Mul", [self.x, self.part(CHANNELS, (self.inputs,))])
            graph.rounded[key] = self._whole(x, least, below)
        return *graph.rounded[key], zero

    def _whole(self, x: str, least: float | None, below: int) -> tuple[str, str]:
        graph, above = self.graph, 255 - below
        axis, steps = graph.constant("rows", np.array([1], np.int64)), graph.constant(f"step_{above}", np.array(1 / above, np.float32))
        largest = graph.node("ReduceMax", [graph.node("Abs", [x]) if least is None else x, axis], keepdims=1)  # [r, 1]
        scale = graph.node("Mul", [largest, steps])  # 0 where all of a row is: whatever it is rounded to is multiplied by 0 again
        if least:
            scale = graph.node("Max", [scale, graph.constant(f"least_{least}", np.array(-least / below, np.float32))])
        flat = graph.node("Reshape", [scale, graph.constant("flat", np.array([-1], np.int64))])  # [r]
        zeros = f"zeros_from_{below}"
        if zeros not in graph.written:  # as many as the segment has rows
            fill = graph.constant(f"from_{below}", np.array(below, np.uint8))
            graph.written.add(graph.node("Expand", [fill, graph.node("Shape", [flat])], [zeros]))
        return graph.node("QuantizeLinear", [x, flat, zeros], axis=0), scale

    def _blocks(self, bias: str | None, output: str | None) -> str:
        graph, kind, name = self.graph, self.weight.format, self.weight.name
        assert isinstance(kind, Blocks)
        count, packed = -(-self.inputs // kind.block), kind.block * kind.bits // 8
        if self.weight.inner:
            values, scales = self.part(VALUES, (self.outputs, count, packed)), self.part(SCALES, (self.outputs, count))
        else:  # from block after block to output after output
            both = kind.unpacked(self.source.parts(self.weight), self.weight.shape, 0)
            values, scales = (graph.constant(f"{name}.{part}", array) for part, array in zip((VALUES, SCALES), both))
        scales = graph.node("Cast", [scales], to=DTYPES["float32"])
        inputs = [self.x, values, scales, *(["", "", bias] if bias else [])]
        found = graph.node(
            "MatMulNBits", inputs, None if output is None or self.looks else [output], MICROSOFT,
            K=self.inputs, N=self.outputs, bits=kind.bits, block_size=kind.block, accuracy_level=4,
        )  # fmt: skip
        if not self.looks:
            return found
        return graph.node("Add", [found, self._unsound()], [output] if output else None)

    def _unsound(self) -> str:
        """Write 0 for each row of x, [r, 1], NaN where a number in it is not finite, or the sum of all."""
        total = self.graph.node("ReduceSum", [self.x, self.graph.constant("rows", np.array([1], np.int64))], keepdims=1)
        return self.graph.node("Mul", [total, self.graph.constant("nought", np.array(0, np.float32))])
