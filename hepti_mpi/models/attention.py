"""What attention weighs: how positions turn heads and limit or shift scores, and the weighted sum, in NumPy.

Knows the properties of a block; knows no weight by name, no layer, no rank and no ONNX.
"""

import math

import numpy as np

from hepti_mpi.models.blocks import Attention, Relative, Rotary
from hepti_mpi.models.numerics import Array, softmax


def angles(rotary: Rotary, positions: Array) -> tuple[Array, Array]:
    """Return cosine and sine, float32 [rows, dims / 2] each, by which rows at `positions` [rows] are turned."""
    turned = positions[:, None].astype(np.float32) * np.array(rotary.frequencies, np.float32)  # in float32, as transformers has it
    return np.cos(turned) * np.float32(rotary.factor), np.sin(turned) * np.float32(rotary.factor)


def turned(rotary: Rotary, x: Array, positions: Array) -> Array:
    """Return heads `x` [rows, heads, dim] turned by the `positions` [rows] of their rows.

    Source: Su et al., arXiv:2104.09864, equation 34.
    """
    cos, sin = (part[:, None, :] for part in angles(rotary, positions))  # [rows, 1, dims / 2]
    dims = rotary.dims
    first, second = (slice(0, dims, 2), slice(1, dims, 2)) if rotary.interleaved else (slice(0, dims // 2), slice(dims // 2, dims))
    result = x.copy()
    result[..., first] = x[..., first] * cos - x[..., second] * sin
    result[..., second] = x[..., second] * cos + x[..., first] * sin
    return result


def within(block: Attention, distance: Array) -> Array:
    """Return whether a query attends to a key that is `distance` rows behind it; a negative one is ahead."""
    result: Array = np.ones(distance.shape, bool)
    if block.causal:
        result &= distance >= 0
    if block.window is not None:
        result &= np.abs(distance) <= block.window
    return result


def bucket(relative: Relative, distance: Array) -> Array:
    """Return the bucket of keys that are `distance` rows behind their query.

    Source: Raffel et al., arXiv:1910.10683; T5Attention._relative_position_bucket of transformers, in whose float32 it is computed.
    """
    count = relative.buckets // 2 if relative.both_ways else relative.buckets
    first = np.where(distance < 0, count, 0) if relative.both_ways else np.zeros_like(distance)
    far = np.abs(distance) if relative.both_ways else np.maximum(distance, 0)
    exact = count // 2
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(relative.distance / exact))
    beyond = exact + (ratio * np.float32(count - exact)).astype(np.int64)
    result: Array = first + np.where(far < exact, far, np.minimum(beyond, count - 1))
    return result


def mixed(block: Attention, q: Array, k: Array, v: Array, distance: Array, table: Array | None = None) -> Array:
    """Return softmax(q k^T) v: q [r, kv heads x group x dim], k and v [n, kv heads x dim] -> [r, kv heads x group x dim].

    All are of one request. `distance` [r, n]: how far a key is behind its query; `table` [heads, buckets].
    Source: Vaswani et al., Attention is all you need, arXiv:1706.03762, equation 1 and section 3.2.2.
    """
    heads = q.reshape(len(q), -1, block.group, block.dim).transpose(1, 2, 0, 3)  # [kv heads, group, r, dim]
    k, v = (values.reshape(len(values), -1, block.dim).transpose(1, 0, 2)[:, None] for values in (k, v))  # [kv heads, 1, n, dim]
    scores = heads @ k.swapaxes(2, 3) * block.multiplier  # [kv heads, group, r, n]
    if block.softcap:
        scores = block.softcap * np.tanh(scores / block.softcap)
    if block.relative is not None:
        assert table is not None
        scores = scores + table[:, None, bucket(block.relative, distance)]
    scores = np.where(within(block, distance), scores, -np.inf)
    result: Array = (softmax(scores) @ v).transpose(2, 0, 1, 3).reshape(q.shape)
    return result
