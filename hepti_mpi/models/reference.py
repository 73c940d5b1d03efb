"""The forward pass in plain NumPy: the oracle that the engine is compared with.

Knows the mathematics of a model and packed requests; knows no rank, no plan, no ONNX and no file.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import DTypeLike

from hepti_mpi.models.numerics import Array, activate, as_type, layer_norm, softmax
from hepti_mpi.models.spec import ModelSpec


def forward(spec: ModelSpec, weights: Mapping[str, np.ndarray], x: Array, lengths: Sequence[int], dtype: DTypeLike = np.float64) -> Array:
    """Return the last hidden state [rows, hidden] of the embedded rows `x` [rows, hidden].

    `lengths` are the row counts of the requests that lie one after the other in `x`: a row attends to the rows of its own
    request only. The final norm of a pre-norm model is included, as in `last_hidden_state` of transformers.
    """
    if sum(lengths) != len(x):
        raise ValueError(f"lengths add up to {sum(lengths)}, x has {len(x)} rows")

    x = as_type(x, dtype)  # [rows, hidden]
    for layer in range(spec.layers):
        own = {name: as_type(weights[f"layers.{layer}.{name}"], dtype) for name in LAYER_NAMES}
        if spec.norm == "post":
            x = norm(spec, own, "attention.norm", x + attend(own, x, lengths))  # [rows, hidden]
            x = norm(spec, own, "mlp.norm", x + mlp(spec, own, x))  # [rows, hidden]
        else:
            x = x + attend(own, norm(spec, own, "attention.norm", x), lengths)  # [rows, hidden]
            x = x + mlp(spec, own, norm(spec, own, "mlp.norm", x))  # [rows, hidden]
    if spec.norm == "pre":
        x = norm(spec, {name: as_type(weights[name], dtype) for name in FINAL_NAMES}, "final.norm", x)  # [rows, hidden]
    return x


LAYER_NAMES = (
    *(f"attention.{m}.{part}" for m in ("q", "k", "v", "o", "norm") for part in ("weight", "bias")),
    *(f"mlp.{m}.{part}" for m in ("up", "down", "norm") for part in ("weight", "bias")),
)
FINAL_NAMES = ("final.norm.weight", "final.norm.bias")


def norm(spec: ModelSpec, own: Mapping[str, Array], name: str, x: Array) -> Array:
    """Return LayerNorm `name` of `x` [rows, hidden]."""
    return layer_norm(x, own[f"{name}.weight"], own[f"{name}.bias"], spec.norm_eps)  # [rows, hidden]


def attend(own: Mapping[str, Array], x: Array, lengths: Sequence[int]) -> Array:
    """Return self-attention of every request in `x` [rows, hidden], after the output projection.

    Source: Vaswani et al., Attention is all you need, arXiv:1706.03762, equation 1 and section 3.2.2.
    """
    q, k, v = (
        np.einsum("rh,ndh->nrd", x, own[f"attention.{m}.weight"], optimize=True)  # [rows, hidden] -> [heads, rows, dim]
        + own[f"attention.{m}.bias"][:, None, :]  # [heads, 1, dim]
        for m in "qkv"
    )
    out = np.zeros_like(q)  # [heads, rows, dim]
    start = 0
    for length in lengths:
        mine = slice(start, start + length)
        scores = q[:, mine] @ k[:, mine].transpose(0, 2, 1) / np.sqrt(q.dtype.type(q.shape[2]))  # [heads, length, length]
        out[:, mine] = softmax(scores) @ v[:, mine]  # [heads, length, dim]
        start += length
    merged: Array = np.einsum("nrd,ndh->rh", out, own["attention.o.weight"], optimize=True)  # [rows, hidden]
    return merged + own["attention.o.bias"]  # [rows, hidden]


def mlp(spec: ModelSpec, own: Mapping[str, Array], x: Array) -> Array:
    """Return the two-matrix MLP of `x` [rows, hidden]."""
    inner = x @ own["mlp.up.weight"].T + own["mlp.up.bias"]  # [rows, ffn]
    return activate(spec.activation, inner) @ own["mlp.down.weight"] + own["mlp.down.bias"]  # [rows, hidden]
