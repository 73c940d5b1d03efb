"""From the last hidden states of a text to its embedding, as sentence-transformers computes it, in NumPy.

Knows the modules in a spec's options and their weights; knows no file.
Source: sentence-transformers 6.2, sentence_transformer/modules/pooling.py and layer_norm.py, base/modules/dense.py and normalize.py.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.models.numerics import Array, activate, as_type, layer_norm, sigmoid
from hepti_mpi.models.spec import ModelSpec

NORM_EPS = 1e-5  # of torch.nn.LayerNorm


def embedding(spec: ModelSpec, weights: Mapping[str, np.ndarray], hidden: Array, request: Request) -> Array:
    """Return the embedding [size] of the request with these last `hidden` states, float32 [own rows, hidden].

    Raises InputError when nothing but the prompt is left of the text.
    """
    options = spec.options
    skipped = options.get("prompt_rows", 0) if request.text is not None else 0  # rows of the prompt do not count
    if skipped >= len(hidden):
        raise InputError(f"{request.origin} has no token behind the prompt")
    places = request.keep - request.keep[0]  # [own rows]
    rows, places = hidden[skipped:], places[skipped:].astype(np.float32)  # [counting rows, hidden], [counting rows]
    result = np.concatenate([pooled(mode, rows, places) for mode in options["pooling"].split("+")])  # [modes * hidden]
    for number, step in enumerate(modules(spec)):
        result = applied(step, weights, f"head.modules.{number}", result)
    return result[: options.get("truncate_dim")]


def modules(spec: ModelSpec) -> list[dict[str, Any]]:
    """Return the modules after the pooling; older stores only say whether one normalises."""
    steps: list[dict[str, Any]] = spec.options.get("modules", [{"kind": "normalize"}] if spec.options.get("normalize") else [])
    return steps


def pooled(mode: str, rows: Array, places: Array) -> Array:
    """Return [hidden], made of `rows` [n, hidden] at the `places` [n], float32 from 0."""
    if mode == "cls":
        return rows[0]
    if mode == "lasttoken":
        return rows[-1]
    if mode == "max":
        return np.asarray(rows.max(axis=0))
    if mode == "weightedmean":
        heavy = (places + 1)[:, None]  # [n, 1]
        return np.asarray((rows * heavy).sum(axis=0) / heavy.sum())
    count = np.float32(len(rows))
    return np.asarray(rows.sum(axis=0) / {"mean": count, "mean_sqrt_len": np.sqrt(count)}[mode])


def applied(step: Mapping[str, Any], weights: Mapping[str, np.ndarray], name: str, x: Array) -> Array:
    """Return what a module makes of `x` [in], float32 [out]."""
    if step["kind"] == "normalize":
        return np.asarray(x / np.maximum(np.linalg.norm(x), np.float32(1e-12)))
    weight = as_type(weights[f"{name}.weight"], np.float32)  # [out, in] or [in]
    if step["kind"] == "layer_norm":
        return layer_norm(x[None], weight, as_type(weights[f"{name}.bias"], np.float32), NORM_EPS)[0]
    out = weight @ x  # [out]
    if step["bias"]:
        out = out + as_type(weights[f"{name}.bias"], np.float32)
    out = turned(step["activation"], out)
    if step["residual"]:
        out = out + (x if step["in"] == step["out"] else as_type(weights[f"{name}.residual.weight"], np.float32) @ x)
    return np.asarray(out)


def turned(kind: str, x: Array) -> Array:
    """Return the activation `kind` of `x`, of the same shape."""
    if kind == "identity":
        return x
    if kind == "tanh":
        return np.tanh(x)
    if kind == "sigmoid":
        return sigmoid(x)
    return x * sigmoid(x) if kind == "silu" else activate(kind, x)
