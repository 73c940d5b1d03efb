"""How requests of different lengths lie in one packed batch, seen from one rank, and what segments ask about that. Pure arithmetic.

The rows of all requests follow each other without padding; every matrix product runs on those. Only the small attention
operator wants [requests, positions], so a rank gathers the rows of its queries and of all keys into that shape and back.
What depends on where a row lies in its request (rotary angles, masks, what is added to scores) is data of the batch as well.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hepti_mpi import splits
from hepti_mpi.models.attention import angles, bucket, within
from hepti_mpi.models.blocks import Attention
from hepti_mpi.program import ops
from hepti_mpi.program.operation import Op


@dataclass(frozen=True)
class Packing:
    """Index tensors for the queries [start, stop) of a packed batch; they are inputs of the attention segments.

    `q_index` [requests, q]: row among this rank's rows; `kv_index` [requests, kv]: row among all; `kv_lengths` [requests];
    `unpad` [rows]: where each row lies in the flattened [requests, q]. Padding repeats the first row of the own request, so that what is
    not finite in another one stays there, and is never read back. One row is laid out as two, so that what a row becomes depends neither on
    which rows are together nor on where a plan cuts them.
    `lone` [1]: whether the batch is one request, whose rows lie as attention wants them.
    """

    q_index: np.ndarray
    kv_index: np.ndarray
    kv_lengths: np.ndarray
    unpad: np.ndarray
    lone: np.ndarray

    @property
    def pairs(self) -> int:
        """How many pairs of a query and a key are computed, padding among them."""
        return self.q_index.shape[0] * self.q_index.shape[1] * self.kv_index.shape[1]


def pack(
    lengths: Sequence[int], start: int, stop: int, first_key: int = 0, piece: tuple[int, int, int] | None = None
) -> Packing:  # fmt: skip
    """Return the packing of rows [start, stop) of requests with `lengths` rows; only requests with a row in it take part.

    `first_key`: the row that the keys at hand begin with. `piece`: as `Attention.piece`: requests are cut into such pieces.
    """
    parts = []  # (first own row, own rows, first row that they attend to, how many)
    for begin, length in zip(splits.starts(lengths), lengths):
        first, last = max(start, begin), min(stop, begin + length)
        before, rows, behind = piece or (length, length, length)
        for top in range(first, last, rows):
            bottom = min(top + rows, last)
            key, keys_end = max(begin, top - before), min(begin + length, bottom + behind)
            parts.append((top - start, bottom - top, key, keys_end - key))
    q_width = max((own for _, own, _, _ in parts), default=0)
    kv_width = max((length for *_, length in parts), default=0)
    if q_width == 1 < kv_width:  # products with one row add up in another order: a row would be another one than among others
        q_width = 2
    q_index = np.empty((len(parts), q_width), np.int64)
    kv_index = np.empty((len(parts), kv_width), np.int64)
    unpad = np.empty(stop - start, np.int64)
    for number, (first, own, begin, length) in enumerate(parts):
        q_index[number] = first + np.arange(q_width) * (np.arange(q_width) < own)
        kv_index[number] = begin - first_key + np.arange(kv_width) * (np.arange(kv_width) < length)
        unpad[first : first + own] = number * q_width + np.arange(own)
    return Packing(q_index, kv_index, np.array([length for *_, length in parts], np.int32), unpad, np.array([len(lengths) == 1]))


def asked(kind: str, of: object = None) -> str:
    """Return what the input `kind` of segments is called, for what the model says of it (`of`)."""
    return kind if of is None else f"{kind}_{zlib.crc32(repr(of).encode()):08x}"


def reach(block: Attention) -> tuple[object, ...] | None:
    """Return what the rows depend on that a row attends to; None: all of its request."""
    return None if block.plain else ("reach", block.causal, block.window, block.relative)


@dataclass(frozen=True)
class Rows:
    """The rows [start, stop) of a packed batch of requests of `lengths` rows; the keys at hand begin with row `first_key`."""

    lengths: tuple[int, ...]
    start: int
    stop: int
    first_key: int = 0
    known: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """How many pairs of a query and a key are computed where rows attend to all of their request, and how many rows of queries are laid
        out for that; padding among both."""
        packing = pack(self.lengths, self.start, self.stop)
        return packing.pairs, packing.q_index.size

    @property
    def bytes(self) -> int:
        """The bytes of what has been asked so far."""
        return sum(values.nbytes for values in self.known.values())

    def inputs(self, op: Op, table: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return what the segment of an operation asks, by what it is called there. `table` [heads, buckets]: of relative positions."""
        if isinstance(op, ops.Rotate) and op.block.rotary:
            names = asked("cos", op.block.rotary), asked("sin", op.block.rotary)
            if names[0] not in self.known:
                at = np.concatenate([np.arange(length) for length in self.lengths])[self.start : self.stop]
                self.known.update(zip(names, angles(op.block.rotary, at)))
            return {name: self.known[name] for name in names}
        return self._of_attention(op.block, table) if isinstance(op, ops.Mix) else {}

    def _of_attention(self, block: Attention, table: np.ndarray | None) -> dict[str, np.ndarray]:
        of = reach(block)
        kinds = ("q_index", "kv_index", "kv_lengths", "unpad", "lone" if of is None else "mask")
        names = {kind: asked(kind, of) for kind in kinds}
        if not all(name in self.known for name in names.values()):
            packing = pack(self.lengths, self.start, self.stop, self.first_key, block.piece)
            queries, keys = packing.q_index + self.start, packing.kv_index + self.first_key
            distance = queries[:, :, None] - keys[:, None, :]  # [pieces, q, kv]
            found = dict(vars(packing))
            if of is not None:
                there = np.arange(keys.shape[1]) < packing.kv_lengths[:, None]  # [pieces, kv]
                seen = within(block, distance) & there[:, None, :]
                seen |= ~seen.any(axis=2, keepdims=True)  # padding attends to something, so that its numbers are finite
                found["mask"] = np.where(seen, np.float32(0), np.float32(-np.inf))[:, None]  # [pieces, 1, q, kv]
                if block.relative and table is not None:  # for all layers at once
                    shifts = table[:, bucket(block.relative, distance)].swapaxes(0, 1)  # [pieces, heads, q, kv]
                    found["mask"] = np.ascontiguousarray(shifts + found["mask"], np.float32)
            self.known.update((name, found[kind]) for kind, name in names.items())
        return {name: self.known[name] for name in names.values()}
