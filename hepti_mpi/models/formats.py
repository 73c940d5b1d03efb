"""How the numbers of a weight are stored: what parts a format keeps of a tensor, and in what counts it may be cut along an axis.

The only place that says how many bytes a weight takes: planner, baselines, store, cache and inspect ask here. Knows types and shapes;
knows no weight by name, no rank and no file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

Parts = dict[str, tuple[np.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Format:
    """Plain numbers of one type, in C order. `dtype`: NumPy's name of it, little-endian."""

    name: str
    dtype: str

    def parts(self, shape: Sequence[int]) -> Parts:
        """Return the type and shape of each array that holds a tensor of `shape`."""
        return {"values": (np.dtype(self.dtype), tuple(shape))}

    def granule(self, axis: int) -> int:
        """Return the least count that may be cut off along `axis`: any, since each number stands by itself."""
        return 1

    def bytes(self, shape: Sequence[int]) -> int:
        """Return the bytes of a tensor of `shape`."""
        return sum(kind.itemsize * prod(dims) for kind, dims in self.parts(shape).values())

    def encode(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Return the parts that hold `values`."""
        return {"values": np.ascontiguousarray(values, self.dtype)}

    def decode(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the float32 values that `parts` hold; without a copy where they are such."""
        return np.asarray(parts["values"], np.float32)


F32 = Format("f32", "<f4")
FORMATS = {one.name: one for one in (F32,)}
