"""The keys and values that texts under way left in attention: on each rank those of its own heads.

Every text has a slot; past and present lie in one buffer per layer, which kernels write into where they are. Memory is taken as rows
come in, not when the buffers are made: by huge pages where all layers together are large enough for them (NumPy asks for those from 4 MiB
on), since steps of several texts read here and there. Knows shapes and slots; knows no kernel, no MPI and no token.
"""

from collections.abc import Iterable, Sequence
from math import prod

import numpy as np

from hepti_mpi.cluster.memory import usable_memory
from hepti_mpi.errors import CapacityError
from hepti_mpi.models.blocks import Attention
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.memory import FULL, cache_bytes, less_cache
from hepti_mpi.reporting.tables import size
from hepti_mpi.wording import counted

KEEP = 0.9  # of the memory that is free may be promised to the cache


class State:
    """Keys and values, per layer [slots, heads, positions, dim]; none where the rank has no heads."""

    def __init__(
        self, blocks: Sequence[Attention], heads: int, slots: int, positions: int, first: int = 0, kind: str = FULL
    ) -> None:  # fmt: skip
        """`heads`: of K and V, that this rank has; `first`: the number of the first layer of `blocks`; `kind`: the type of numbers.

        Raises CapacityError where the buffers could never be filled.
        """
        self.slots, self.positions, self.heads, self.first = slots, positions, heads, first
        self.bytes = cache_bytes(blocks, heads, kind) * slots * positions
        free = usable_memory(1)
        if self.bytes > KEEP * free:
            what = f"{counted(slots, 'slots')} of {counted(positions, 'rows')} take {size(self.bytes)} for keys and values"
            raise CapacityError(f"{what}, {size(int(free))} are free here; make that less with {less_cache(kind)}")
        shapes = [(slots, heads, positions, block.dim) for block in blocks]
        bounds = np.cumsum([0, *(2 * prod(shape) for shape in shapes)])
        whole = np.empty(bounds[-1], np.dtype(kind))
        both = [whole[first:stop].reshape(2, *shape) for first, stop, shape in zip(bounds, bounds[1:], shapes)]
        self.keys, self.values = [keys for keys, _ in both], [values for _, values in both]

    def views(self, layer: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return keys and values of `count` slots from `first` on, [count, heads, positions, dim] each."""
        keys, values = self.keys[layer - self.first], self.values[layer - self.first]
        return keys[first : first + count], values[first : first + count]

    def copy(self, copies: Iterable[tuple[int, int, int, int]]) -> None:
        """Let rows of one slot be rows of another too, for each of some (from, to, first row, row behind the last)."""
        for source, slot, first, stop in copies:
            for every in (*self.keys, *self.values):
                every[slot, :, first:stop] = every[source, :, first:stop]


def attentions(spec: ModelSpec, layers: Iterable[int]) -> list[Attention]:
    """Return what the attention of each of some layers is."""
    return [spec.layer(number).attention for number in layers]
