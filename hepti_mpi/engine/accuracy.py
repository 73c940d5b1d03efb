"""What a store's formats cost: its answers for built-in inputs beside those of float32. Knows sessions and a calibration's inputs."""

import numpy as np

from hepti_mpi.engine.alone import last_hidden_state
from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.models.tasks.pooling import pooled_row
from hepti_mpi.weights.calibration import Accuracy, Inputs
from hepti_mpi.weights.store import Store


def accuracy_of(store: Store, inputs: Inputs, threads: int = 1) -> Accuracy:
    """Return how far the last hidden states and the vectors that the head reads are from those of float32. Raises StoreError."""
    found, right = last_hidden_state(store, inputs.embedded, inputs.lengths, threads), inputs.hidden
    off, like = np.abs(found - right), []
    for request, stop in zip(inputs.requests, np.cumsum(inputs.lengths)):
        mine = slice(stop - request.rows, stop)
        one, other = (_read(store.spec, hidden[mine], request).astype(np.float64) for hidden in (found, right))
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        like += list((one * other).sum(axis=1) / np.maximum(lengths, 1e-30))
    return Accuracy(len(inputs.requests), len(right), float(off.max()), float(np.median(off)), float(np.sqrt(np.square(right).mean())),
                    float(min(like)), float(np.median(like)))  # fmt: skip


def _read(spec: ModelSpec, hidden: np.ndarray, request: Request) -> np.ndarray:
    """Return what the head reads of a request, [vectors, numbers]."""
    return hidden if spec.reads_each else pooled_row(spec, hidden, request)[None]
