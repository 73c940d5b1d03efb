"""What is ready for steps of one shape on one rank: arrays and what runs on them, in order.

Knows rows, positions and runs; does not know how those are made, nor who waits for what.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from hepti_mpi.comm.exchange import RingGather
from hepti_mpi.engine.orders import Order
from hepti_mpi.models.blocks import Rotary
from hepti_mpi.models.numerics import Array
from hepti_mpi.program.steps import Compute

Sum = Callable[[], threading.Event | None]  # begins, or does, a sum; returns what tells that it is done, where that is later
Runs = list[tuple[Callable[[], None], Compute]]


@dataclass
class Geometry:
    """All that is fixed for steps of one shape, or tiles of them: views of the buffers, and bindings that point into them."""

    order: Order
    values: dict[str, Array]
    told: dict[str, Array]
    turned: dict[str, tuple[Rotary, int]]  # what segments ask of positions: of which rotary, cosine (0) or sine (1)
    moves: list[tuple[Runs, Sum | None]] = field(default_factory=list)  # what is computed, and the sum of it
    rings: list[RingGather] = field(default_factory=list)  # of those sums

    def free(self) -> None:
        """Give up what MPI holds for it."""
        for ring in self.rings:
            ring.free()

    def tell(self, lengths: Array, tables: dict[Rotary, tuple[Array, Array]]) -> None:
        """Note how many rows each text has."""
        each = self.order.each
        self.told["reach"][:] = lengths + (each - 1)
        self.told["most"][...] = int(lengths.max()) + each
        places = (lengths[:, None] + np.arange(each)).ravel()
        for name, (rotary, which) in self.turned.items():
            np.take(tables[rotary][which], places, axis=0, out=self.told[name], mode="clip")
