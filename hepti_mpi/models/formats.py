"""How the numbers of a weight are stored: what parts a format keeps of a tensor, and in what counts it may be cut along an axis.

The only place that says how many bytes a weight takes: planner, baselines, store, cache and inspect ask here. Knows types and shapes;
knows no weight by name, no rank and no file.

A tensor of a product is a matrix [all axes but the last, the last], and `inner` says which of these two the product sums over: 1, the
last (Q, K, V, up) or 0, the first (O, down). Ranks cut tensors along their first axis, in both cases, and what a rank holds of each part
is one contiguous range of it: along the sum, blocks lie in the file one after the other, each with all outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm, prod

import numpy as np
from numpy.typing import DTypeLike

from hepti_mpi.errors import ModelError
from hepti_mpi.models.rounding import fed_back, fed_back_to, nearest

VALUES, SCALES, CHANNELS = "values", "scales", "channels"  # the parts of tensors; every format has the first
BLOCK, WIDE = 32, 64  # weights along the sum that share a scale, where they do


@dataclass(frozen=True)
class Seen:
    """What built-in inputs show of a product: some `rows` [r, K] that it reads, and by what those are best multiplied before, `channels`
    [K]; None where it is not known."""

    rows: np.ndarray | None = None
    channels: np.ndarray | None = None


@dataclass(frozen=True)
class Array:
    """One part of a tensor. `per`: entries of the tensor's first axis for each entry of its own first axis; 0: it is held whole."""

    kind: np.dtype
    shape: tuple[int, ...]
    per: int = 1

    @property
    def bytes(self) -> int:
        return self.kind.itemsize * prod(self.shape)

    def cut(self, first: int, stop: int) -> tuple[int, int]:
        """Return the range along its first axis that belongs to entries [first, stop) of the tensor's."""
        return (first // self.per, -(-stop // self.per)) if self.per else (0, self.shape[0])

    def entries(self, count: int) -> int:
        """Return how many of its entries belong to `count` of the tensor's, a multiple of `per`; all where it is held whole."""
        return count // self.per if self.per else max(self.shape[0], 1)


Parts = dict[str, Array]


@dataclass(frozen=True)
class Format:
    """Plain numbers of one type, in C order. `dtype`: NumPy's name of it, little-endian. `bits`: of a number.

    Only float32 can be left in a file's pages while it is computed with; anything else is unpacked or packed into memory.
    """

    name: str
    dtype: str
    bits: int

    @property
    def rounds(self) -> bool:
        """Whether products with it round their rows too; then it keeps channels, by which those are multiplied before."""
        return False

    @property
    def follows(self) -> bool:
        """Whether it is rounded so that products with rows that were seen change least."""
        return False

    def parts(self, shape: Sequence[int], inner: int = 1) -> Parts:
        """Return each array that holds a tensor of `shape`."""
        return {VALUES: Array(np.dtype(self.dtype), tuple(shape))}

    def granule(self, shape: Sequence[int], inner: int = 1) -> int:
        """Return the least count that may be cut off along the first axis."""
        return 1

    def bytes(self, shape: Sequence[int], inner: int = 1) -> int:
        """Return the bytes of a tensor of `shape` in a file."""
        return sum(array.bytes for array in self.parts(shape, inner).values())

    def held(self, shape: Sequence[int], inner: int = 1) -> int:
        """Return the bytes of it in memory, when it is computed with."""
        return max(self.bytes(shape, inner), 4 * prod(shape))

    def encode(self, values: np.ndarray, inner: int = 1, seen: Seen | None = None) -> dict[str, np.ndarray]:
        """Return the parts that hold float32 `values`. `seen`: of the product with them, of which a format uses what `rounds` and
        `follows` say."""
        return {VALUES: np.ascontiguousarray(values, self.dtype)}

    def decode(self, parts: Mapping[str, np.ndarray], shape: Sequence[int], inner: int = 1) -> np.ndarray:
        """Return the float32 values that `parts` hold; without a copy where they are such."""
        return np.asarray(parts[VALUES], np.float32)


@dataclass(frozen=True)
class Columns(Format):
    """8-bit integers with a scale for each output of the product, for products that round the other side, per row, to 8 bits too.

    `channels` make its columns more alike, so that rounding them costs less: y = ((x * channels) rounded) (values * scales).
    Source: Xiao et al., SmoothQuant, arXiv:2211.10438.
    """

    @property
    def rounds(self) -> bool:
        return True

    @property
    def follows(self) -> bool:
        return True

    def parts(self, shape: Sequence[int], inner: int = 1) -> Parts:
        first, last, number = tuple(shape[:-1]), (shape[-1],), np.dtype("<f4")
        outputs, inputs = (Array(number, first), Array(number, last, 0))[:: 1 if inner else -1]
        return {VALUES: Array(np.dtype("i1"), tuple(shape)), SCALES: outputs, CHANNELS: inputs}

    def held(self, shape: Sequence[int], inner: int = 1) -> int:
        return self.bytes(shape, inner)

    def encode(self, values: np.ndarray, inner: int = 1, seen: Seen | None = None) -> dict[str, np.ndarray]:
        channels = seen.channels if seen else None
        matrix, parts = values.reshape(-1, values.shape[-1]), self.parts(values.shape, inner)
        factors = np.ones(matrix.shape[inner], np.float32) if channels is None else channels.astype(np.float32)
        smooth = matrix / np.expand_dims(factors, 1 - inner)
        scales = _scale(np.abs(smooth).max(axis=inner, initial=0), 127)
        if seen is None or seen.rows is None:
            whole = np.rint(smooth / np.expand_dims(scales, inner)).astype(np.int8)
        else:
            found = fed_back_to(smooth if inner else smooth.T, scales, seen.rows * factors)  # [N, K], from 0
            whole = ((found if inner else found.T).astype(np.int16) - 128).astype(np.int8)
        every = {VALUES: whole, SCALES: scales, CHANNELS: factors}
        return {name: every[name].reshape(array.shape) for name, array in parts.items()}

    def decode(self, parts: Mapping[str, np.ndarray], shape: Sequence[int], inner: int = 1) -> np.ndarray:
        matrix = parts[VALUES].reshape(-1, shape[-1]).astype(np.float32) * np.expand_dims(parts[SCALES].reshape(-1), inner)
        return (matrix * np.expand_dims(parts[CHANNELS].reshape(-1), 1 - inner)).reshape(shape)


@dataclass(frozen=True)
class Blocks(Format):
    """Integers of `bits` bits with a scale for each `block` along the sum, symmetric: 0 is stored as the middle. What is left of the
    last block is 0. A scale is a float16; as in GGUF's Q4_0 and Q8_0, whose blocks of 32 are these, in another order.
    """

    block: int = BLOCK

    @property
    def follows(self) -> bool:
        return True

    def parts(self, shape: Sequence[int], inner: int = 1) -> Parts:
        packed = self.block * self.bits // 8
        if inner:
            blocks = (*shape[:-1], -(-shape[-1] // self.block))
            return {VALUES: Array(np.dtype("u1"), (*blocks, packed)), SCALES: Array(np.dtype("<f2"), blocks)}
        each, per = prod(shape[1:-1]), self.granule(shape, inner)
        blocks = (-(-shape[0] // per), per * each // self.block, shape[-1])  # [granules, blocks in one, outputs]
        return {VALUES: Array(np.dtype("u1"), (*blocks, packed), per), SCALES: Array(np.dtype("<f2"), blocks, per)}

    def granule(self, shape: Sequence[int], inner: int = 1) -> int:
        each = prod(shape[1:-1])
        return 1 if inner or not each else lcm(each, self.block) // each

    def held(self, shape: Sequence[int], inner: int = 1) -> int:
        return sum(array.bytes * (2 if name == SCALES else 1) for name, array in self.parts(shape, inner).items())

    def encode(self, values: np.ndarray, inner: int = 1, seen: Seen | None = None) -> dict[str, np.ndarray]:
        matrix = values.reshape(-1, values.shape[-1])
        rows = None if seen is None else seen.rows
        found = (matrix if inner else matrix.T), self.bits, self.block
        whole, scales = nearest(*found) if rows is None else fed_back(*found, rows)
        return self.pack(whole, scales, inner, self.parts(values.shape, inner))

    def pack(self, whole: np.ndarray, scales: np.ndarray, inner: int, parts: Parts) -> dict[str, np.ndarray]:
        """Return `parts` of integers from 0, [outputs, blocks, block], and their scales, [outputs, blocks]."""
        if self.bits == 4:
            whole = whole[..., 0::2] | whole[..., 1::2] << 4
        if inner:
            found = {VALUES: whole, SCALES: scales}
        else:  # block after block: [blocks, outputs, ...], the last granule filled up
            lacking = prod(parts[SCALES].shape[:2]) - scales.shape[1]
            found = {VALUES: np.pad(whole.swapaxes(0, 1), ((0, lacking), (0, 0), (0, 0))), SCALES: np.pad(scales.T, ((0, lacking), (0, 0)))}
        return {name: np.ascontiguousarray(found[name].reshape(array.shape), array.kind) for name, array in parts.items()}

    def decode(self, parts: Mapping[str, np.ndarray], shape: Sequence[int], inner: int = 1) -> np.ndarray:
        whole, scales = self.unpacked(parts, shape, inner)
        if self.bits == 4:
            whole = np.stack([whole & 15, whole >> 4], axis=3).reshape(*scales.shape, self.block)  # two in a byte, the lower bits first
        size = shape[-1] if inner else prod(shape[:-1])
        values = (whole.astype(np.float32) - (1 << (self.bits - 1))) * scales.astype(np.float32)[..., None]
        matrix = values.reshape(len(scales), values.shape[1] * self.block)[:, :size]  # [outputs, sum]
        return np.ascontiguousarray(matrix if inner else matrix.T).reshape(shape)

    def unpacked(self, parts: Mapping[str, np.ndarray], shape: Sequence[int], inner: int) -> tuple[np.ndarray, np.ndarray]:
        """Return bytes, [outputs, blocks, bytes of one], and scales, [outputs, blocks], as a product takes them; parts that lie so are
        not copied."""
        values, scales = parts[VALUES], parts[SCALES]
        if inner:
            return values.reshape(-1, *values.shape[-2:]), scales.reshape(-1, scales.shape[-1])
        count = -(-prod(shape[:-1]) // self.block)
        values, scales = values.reshape(-1, *values.shape[2:])[:count], scales.reshape(-1, shape[-1])[:count]
        return np.ascontiguousarray(values.swapaxes(0, 1)), np.ascontiguousarray(scales.T)


@dataclass(frozen=True)
class Rows:
    """A table [rows, width] in a format, of which only those rows are read, and turned into float32, that are looked up."""

    format: Format
    held: Mapping[str, np.ndarray]
    shape: tuple[int, ...]

    def __getitem__(self, chosen: np.ndarray) -> np.ndarray:
        """Return the rows `chosen` [n]: [n, width]."""
        every = self.format.parts(self.shape, 1).items()
        found = {name: self.held[name][chosen] if array.per else self.held[name] for name, array in every}
        return self.format.decode(found, (len(chosen), *self.shape[1:]), 1)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.format.decode(self.held, self.shape, 1), dtype)


def _scale(largest: np.ndarray, steps: int) -> np.ndarray:
    """Return what a step is worth where `steps` reach `largest`; 1 where all is 0."""
    return np.where(largest > 0, largest / steps, 1).astype(np.float32)


F32 = Format("f32", "<f4", 32)
F16 = Format("f16", "<f2", 16)
Q8 = Columns("q8", "i1", 8)
Q8_BLOCKS = Blocks("q8-blocks", "u1", 8)
Q4 = Blocks("q4", "u1", 4)
Q8_WIDE = Blocks("q8-wide", "u1", 8, WIDE)
Q4_WIDE = Blocks("q4-wide", "u1", 4, WIDE)
FORMATS = {one.name: one for one in (F32, F16, Q8, Q8_BLOCKS, Q8_WIDE, Q4, Q4_WIDE)}
NARROWER: dict[Format, Format] = {Q8_WIDE: Q8_BLOCKS, Q4_WIDE: Q4}  # of as many bits, which may be cut where the other may not


def format_named(name: object) -> Format:
    """Return the format of that name. Raises ModelError when there is none."""
    if not isinstance(name, str) or name not in FORMATS:
        raise ModelError(f"no format of weights is called {name!r:.40}; there are {', '.join(FORMATS)}")
    return FORMATS[name]
