"""The forward pass in plain NumPy: the oracle that the engine is compared with.

Knows the mathematics of a model and packed requests; knows no rank, no plan, no ONNX and no file.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import DTypeLike

from hepti_mpi.models.blocks import KINDS, Mlp, Norm
from hepti_mpi.models.numerics import Array, activate, as_type, layer_norm, softmax
from hepti_mpi.models.spec import ModelSpec, layer_weights


def forward(spec: ModelSpec, weights: Mapping[str, np.ndarray], x: Array, lengths: Sequence[int], dtype: DTypeLike = np.float64) -> Array:
    """Return the last hidden state [rows, hidden] of the embedded rows `x` [rows, hidden].

    `lengths` are the row counts of the requests that lie one after the other in `x`: a row attends to the rows of its own
    request only. The final norm of a pre-norm model is included, as in `last_hidden_state` of transformers.
    """
    if sum(lengths) != len(x):
        raise ValueError(f"lengths add up to {sum(lengths)}, x has {len(x)} rows")

    x = as_type(x, dtype)  # [rows, hidden]
    for number in range(spec.layers):
        layer = spec.layer(number)
        own = {weight.name: as_type(weights[weight.name], dtype) for weight in layer_weights(spec, number)}
        for kind in KINDS:
            name = f"layers.{number}.{kind}"
            block = partial(attend, lengths=lengths) if kind == "attention" else partial(mlp, layer.mlp)
            part = {role: own[weight.name] for role, weight in layer.block(kind).weights(name).items()}
            y = norm(layer.norm_before(kind), own, f"{name}.norm", x)  # [rows, hidden]
            x = norm(layer.norm_after(kind), own, f"{name}.norm", x + block(part, y))  # [rows, hidden]
    last = spec.final_norm
    own = {weight.name: as_type(weights[weight.name], dtype) for weight in (last.weights("final.norm").values() if last else ())}
    return norm(last, own, "final.norm", x)  # [rows, hidden]


def norm(block: Norm | None, own: Mapping[str, Array], name: str, x: Array) -> Array:
    """Return LayerNorm `name` of `x` [rows, hidden]; `x` where there is none."""
    return x if block is None else layer_norm(x, own[f"{name}.weight"], own[f"{name}.bias"], block.eps)  # [rows, hidden]


def attend(own: Mapping[str, Array], x: Array, lengths: Sequence[int]) -> Array:
    """Return self-attention of every request in `x` [rows, hidden], after the output projection.

    Source: Vaswani et al., Attention is all you need, arXiv:1706.03762, equation 1 and section 3.2.2.
    """
    q, k, v = (
        np.einsum("rh,ndh->nrd", x, own[f"{m}.weight"], optimize=True)  # [rows, hidden] -> [heads, rows, dim]
        + own[f"{m}.bias"][:, None, :]  # [heads, 1, dim]
        for m in "qkv"
    )
    out = np.zeros_like(q)  # [heads, rows, dim]
    start = 0
    for length in lengths:
        mine = slice(start, start + length)
        scores = q[:, mine] @ k[:, mine].transpose(0, 2, 1) / np.sqrt(q.dtype.type(q.shape[2]))  # [heads, length, length]
        out[:, mine] = softmax(scores) @ v[:, mine]  # [heads, length, dim]
        start += length
    merged: Array = np.einsum("nrd,ndh->rh", out, own["o.weight"], optimize=True)  # [rows, hidden]
    return merged + own["o.bias"]  # [rows, hidden]


def mlp(block: Mlp, own: Mapping[str, Array], x: Array) -> Array:
    """Return the two-matrix MLP of `x` [rows, hidden]."""
    inner = x @ own["up.weight"].T + own["up.bias"]  # [rows, ffn]
    return activate(block.activation, inner) @ own["down.weight"] + own["down.bias"]  # [rows, hidden]
