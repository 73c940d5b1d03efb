"""What lies in front of the layers and behind them: the tensors that one rank has whole. Knows a store; does not know what is done with
them.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from hepti_mpi.models.formats import F32, Rows
from hepti_mpi.weights.slices import span
from hepti_mpi.weights.store import Store


class OuterWeights(Mapping[str, np.ndarray | Rows]):
    """The embedding and head tensors of a store, mapped from its file when asked for."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.names = {w.name: w for w in store.weights.values() if w.part in ("embedding", "head")}
        self.mapped: dict[str, np.ndarray | Rows] = {}

    def __getitem__(self, name: str) -> np.ndarray | Rows:
        if name not in self.mapped:
            piece = span(self.names[name])
            whole = self.store.array(piece) if piece.format is F32 else Rows(piece.format, self.store.parts(piece), piece.shape)
            self.mapped[name] = whole
        return self.mapped[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
