"""What each step before and behind the layers does, in NumPy: one function per kind of models/steps.py.

Tables may be memory-mapped: of those that rows are looked up in only these rows are read. Knows no model and no file.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from hepti_mpi.models.formats import Rows
from hepti_mpi.models.numerics import Array, activate, as_type, layer_norm, sigmoid
from hepti_mpi.models.steps import KINDS, Dense, LayerNorm, Lookup, Normalize, Patches, Scale, Step, Words

Weights = Mapping[str, np.ndarray | Rows]


def apply_steps(steps: Iterable[Step], weights: Weights, x: Array, arrays: Mapping[str, np.ndarray] | None = None) -> Array:
    """Return what `steps` make of the rows `x` [rows, in], float32 [rows, out]; those of a front read the `arrays` of requests."""
    for step in steps:
        x = FUNCTIONS[step.kind](step, weights, x, arrays or {})
    return x


def lookup(step: Lookup, weights: Weights, x: Array, arrays: Mapping[str, np.ndarray]) -> Array:
    found = as_type(weights[step.name][arrays[step.by]], np.float32)  # [rows, width]
    return x + found if x.size else found


def patches(step: Patches, weights: Weights, x: Array, arrays: Mapping[str, np.ndarray]) -> Array:
    found: Array = as_type(arrays["patches"], np.float32) @ as_type(weights[step.name], np.float32).T  # [rows, width]
    return x + found if x.size else found


def norm(step: LayerNorm, weights: Weights, x: Array, arrays: Mapping[str, np.ndarray]) -> Array:
    bias = as_type(weights[f"{step.name}.bias"], np.float32) if step.bias else np.zeros(step.width, np.float32)
    return layer_norm(as_type(x, np.float32), as_type(weights[f"{step.name}.weight"], np.float32), bias, step.eps)


def dense(step: Dense, weights: Weights, x: Array, arrays: Mapping[str, np.ndarray]) -> Array:
    x = as_type(x, np.float32)  # [rows, in]
    out = x @ as_type(weights[f"{step.name}.weight"], np.float32).T  # [rows, out]
    if step.bias:
        out = out + as_type(weights[f"{step.name}.bias"], np.float32)
    out = activated(step.activation, out)
    if step.residual:
        out = out + (x if step.inner == step.out else x @ as_type(weights[f"{step.name}.residual.weight"], np.float32).T)
    return out


def normalize(step: Normalize, weights: Weights, x: Array, arrays: Mapping[str, np.ndarray]) -> Array:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.float32(1e-12)))


def scale(step: Scale, weights: Weights, x: Array, arrays: Mapping[str, np.ndarray]) -> Array:
    return np.asarray(x * np.float32(step.factor))


def words(step: Words, weights: Weights, x: Array, arrays: Mapping[str, np.ndarray]) -> Array:
    out: Array = as_type(x, np.float32) @ as_type(weights[step.table], np.float32).T  # [rows, size]
    return out + as_type(weights[f"{step.name}.bias"], np.float32) if step.bias else out


def activated(kind: str, x: Array) -> Array:
    """Return the activation `kind` of `x`, of the same shape."""
    if kind == "identity":
        return x
    return sigmoid(x) if kind == "sigmoid" else activate(kind, x)


FUNCTIONS: dict[str, Callable[[Any, Weights, Array, Mapping[str, np.ndarray]], Array]] = dict(
    zip(KINDS, (lookup, patches, norm, dense, normalize, scale, words), strict=True)
)
