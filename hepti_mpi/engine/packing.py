"""How requests of different lengths lie in one packed batch, seen from one rank. Pure index arithmetic.

The rows of all requests follow each other without padding; every matrix product runs on those. Only the small attention
operator wants [requests, positions], so a rank gathers the rows of its queries and of all keys into that shape and back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hepti_mpi import splits


@dataclass(frozen=True)
class Packing:
    """Index tensors for the queries [start, stop) of a packed batch; they are inputs of the attention segments.

    `q_index` [requests, q]: row among this rank's rows; `kv_index` [requests, kv]: row among all; `kv_lengths` [requests];
    `unpad` [rows]: where each row lies in the flattened [requests, q]. Padding repeats row 0 of the part and is never read back.
    """

    q_index: np.ndarray
    kv_index: np.ndarray
    kv_lengths: np.ndarray
    unpad: np.ndarray

    @property
    def pairs(self) -> int:
        """How many pairs of a query and a key are computed, padding among them."""
        return self.q_index.shape[0] * self.q_index.shape[1] * self.kv_index.shape[1]


def pack(lengths: Sequence[int], start: int, stop: int, first_key: int = 0) -> Packing:
    """Return the packing of rows [start, stop) of requests with `lengths` rows; only requests with a row in it take part.

    `first_key`: the row that the keys at hand begin with.
    """
    parts = []  # (first own row, own rows, first row of the request, its length)
    for begin, length in zip(splits.starts(lengths), lengths):
        first, last = max(start, begin), min(stop, begin + length)
        if last > first:
            parts.append((first - start, last - first, begin, length))
    q_width = max((own for _, own, _, _ in parts), default=0)
    kv_width = max((length for *_, length in parts), default=0)
    q_index = np.zeros((len(parts), q_width), np.int64)
    kv_index = np.zeros((len(parts), kv_width), np.int64)
    unpad = np.empty(stop - start, np.int64)
    for number, (first, own, begin, length) in enumerate(parts):
        q_index[number, :own] = np.arange(first, first + own)
        kv_index[number, :length] = np.arange(begin, begin + length) - first_key
        unpad[first : first + own] = number * q_width + np.arange(own)
    return Packing(q_index, kv_index, np.array([length for *_, length in parts], np.int32), unpad)
