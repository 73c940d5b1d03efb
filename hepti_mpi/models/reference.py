"""The forward pass in plain NumPy: the oracle that the engine is compared with.

Knows the mathematics of a model and packed requests; knows no rank, no plan, no ONNX and no file.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import DTypeLike

from hepti_mpi.models.attention import mixed, turned
from hepti_mpi.models.blocks import KINDS, Attention, Layer, Mlp, Norm, Weight
from hepti_mpi.models.numerics import Array, activate, as_type, layer_norm, rms_norm
from hepti_mpi.models.spec import ModelSpec


def forward(spec: ModelSpec, weights: Mapping[str, np.ndarray], x: Array, lengths: Sequence[int], dtype: DTypeLike = np.float64) -> Array:
    """Return the last hidden state [rows, hidden] of the embedded rows `x` [rows, hidden].

    `lengths` are the row counts of the requests that lie one after the other in `x`: a row attends to the rows of its own
    request only. The final norm of a pre-norm model is included, as in `last_hidden_state` of transformers.
    """
    if sum(lengths) != len(x):
        raise ValueError(f"lengths add up to {sum(lengths)}, x has {len(x)} rows")

    x = as_type(x, dtype)  # [rows, hidden]

    def read(found: Mapping[str, Weight]) -> dict[str, Array]:
        return {role: as_type(weights[weight.name], dtype) for role, weight in found.items()}

    for number, layer in enumerate(spec.each()):
        name, residual, y = f"layers.{number}", x, x
        for kind in KINDS:
            own = read(layer.block(kind).weights(f"{name}.{kind}") | layer.attention.shared())
            before, after = layer.norm_before(kind), layer.norm_after(kind)
            either = before or after
            of_norm = read(either.weights(f"{name}.{kind}.norm") if either else {})
            y = y if kind == "mlp" and layer.parallel and not before else norm(before, of_norm, residual if layer.parallel else x)
            given = attend(layer.attention, own, y, lengths) if kind == "attention" else mlp(layer.mlp, own, y)  # [rows, hidden]
            own = {role: values for role, values in read(layer.tail(name, kind)).items() if role != "beside"}
            x = norm(after, of_norm, x + added(layer, kind, own, given))  # [rows, hidden]
    last = spec.last
    return norm(last, read(last.weights("final.norm") if last else {}), x)  # [rows, hidden]


def norm(block: Norm | None, own: Mapping[str, Array], x: Array) -> Array:
    """Return the norm of `x` [rows, width]; `x` where there is none."""
    if block is None:
        return x
    if block.kind == "rms":
        return rms_norm(x, own["weight"], block.eps)
    return layer_norm(x, own["weight"], own.get("bias"), block.eps)


def added(layer: Layer, kind: str, own: Mapping[str, Array], given: Array) -> Array:
    """Return what is added to the residual of what a block gives [rows, hidden]: with its bias, its norm and its scale."""
    given = given + own.get("bias", 0) + own.get("beside", 0)
    given = norm(layer.norm_given(kind), {role.removeprefix("given."): values for role, values in own.items()}, given)
    return given * own.get("scale", 1)


def attend(block: Attention, own: Mapping[str, Array], x: Array, lengths: Sequence[int]) -> Array:
    """Return self-attention of every request in `x` [rows, hidden], after the output matrix."""
    q, k, v = (project(own, m, x) for m in "qkv")
    mixture = np.zeros_like(q)
    start = 0
    for length in lengths:
        mine, at = slice(start, start + length), np.arange(length)
        ready, keys = (heads(block, m, own, values[mine], at) for m, values in zip("qk", (q, k)))
        mixture[mine] = mixed(block, ready, keys, v[mine], at[:, None] - at, table=own.get("relative"))
        start += length
    result: Array = mixture @ own["o.weight"].reshape(-1, x.shape[1])  # [rows, hidden]
    return result


def project(own: Mapping[str, Array], matrix: str, x: Array) -> Array:
    """Return the rows `x` [rows, hidden] times one of "qkv", with its bias: [rows, width]."""
    result: Array = x @ own[f"{matrix}.weight"].reshape(-1, x.shape[1]).T
    return result + own[f"{matrix}.bias"].ravel() if f"{matrix}.bias" in own else result


def heads(block: Attention, matrix: str, own: Mapping[str, Array], x: Array, positions: Array) -> Array:
    """Return the heads of Q or K, [rows, width], normed and turned by the `positions` of their rows as the block says."""
    split = x.reshape(len(x), x.shape[1] // block.dim, block.dim)  # [rows, heads, dim]
    prefix = f"{matrix}.norm."
    split = norm(block.head_norm(matrix), {role.removeprefix(prefix): one for role, one in own.items() if role.startswith(prefix)}, split)
    return (turned(block.rotary, split, positions) if block.rotary else split).reshape(x.shape)


def mlp(block: Mlp, own: Mapping[str, Array], x: Array) -> Array:
    """Return the MLP of `x` [rows, hidden], without the bias that is added to what it gives."""
    result: Array = widened(block, own, x) @ own["down.weight"]  # [rows, hidden]
    return result


def widened(block: Mlp, own: Mapping[str, Array], x: Array) -> Array:
    """Return what its last product reads [rows, ffn]."""
    up, *gate = (x @ own[f"{m}.weight"].T + own.get(f"{m}.bias", 0) for m in block.inner)  # [rows, ffn]
    return activate(block.activation, gate[0]) * up if gate else activate(block.activation, up)
