"""A store as what another one is made of. Knows stores and formats; does not know who asks, nor what other sources there are."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hepti_mpi.errors import StoreError
from hepti_mpi.models.checkpoints.modelfiles import ModelFiles
from hepti_mpi.models.spec import named_weights
from hepti_mpi.weights.slices import span
from hepti_mpi.weights.store import Store


def model_of(store: Store) -> ModelFiles:
    """Return the model of a whole store, with the float32 numbers that its weights stand for. They are checked when they are read.

    Raises StoreError where the store holds a rank's part.
    """
    spec = replace(store.spec, formats={})
    for name, weight in named_weights(spec):
        held = store.piece(name) if name in store.names else None
        if held is None or held.shape != weight.shape:
            raise StoreError(f"{store.path} holds {'a part of' if held else 'no'} tensor {name}: only a whole store can be written anew")

    def stream() -> Iterator[tuple[str, np.ndarray]]:
        for name, _ in named_weights(spec):
            piece = span(store.weights[name])
            store.verify([piece])
            yield name, np.ascontiguousarray(piece.decode(store.parts(piece)))

    rounded = " and ".join(sorted(set(store.spec.formats.values())))
    return ModelFiles(spec, store.files, store.source_hash, stream, rounded)
