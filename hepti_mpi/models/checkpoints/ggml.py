"""The number types of ggml: how many bytes a block of each takes, and what float32 values it stands for.

Knows types; knows no file and no model. Source: ggml-common.h and ggml-quants.c of llama.cpp; blocks are of 32 values, those of the
K-types of 256.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Blocks = np.ndarray  # uint8 [blocks, bytes of a block]
K_BLOCK = 256


@dataclass(frozen=True)
class GgmlType:
    """One type: `values` and `bytes` of a block, and what turns blocks into float32 [blocks, values]."""

    name: str
    values: int
    bytes: int
    decode: Callable[[Blocks], np.ndarray]
    mixed: bool = False  # whether scales are themselves stored in few bits


def _scale(blocks: Blocks, at: int) -> np.ndarray:
    """Return the float16 at byte `at` of each block, as float32 [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _halves(packed: np.ndarray) -> np.ndarray:
    """Return uint8 [blocks, 2 n]: the low halves of n bytes, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _plain(kind: str) -> Callable[[Blocks], np.ndarray]:
    return lambda blocks: np.ascontiguousarray(blocks).view(kind).astype(np.float32)


def _bfloat16(blocks: Blocks) -> np.ndarray:
    high = np.ascontiguousarray(blocks).view("<u2").astype(np.uint32)
    return (high << 16).view(np.float32)


def _q4_0(blocks: Blocks) -> np.ndarray:
    return _scale(blocks, 0) * (_halves(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Blocks) -> np.ndarray:
    return _scale(blocks, 0) * _halves(blocks[:, 4:]) + _scale(blocks, 2)


def _fifth(blocks: Blocks, at: int) -> np.ndarray:
    """Return the fifth bits of 32 values, from 4 bytes at `at`, as uint8 [blocks, 32] of 0 or 16."""
    return np.unpackbits(np.ascontiguousarray(blocks[:, at : at + 4]), axis=1, bitorder="little") << 4


def _q5_0(blocks: Blocks) -> np.ndarray:
    return _scale(blocks, 0) * ((_halves(blocks[:, 6:]) | _fifth(blocks, 2)).astype(np.float32) - 16)


def _q5_1(blocks: Blocks) -> np.ndarray:
    return _scale(blocks, 0) * (_halves(blocks[:, 8:]) | _fifth(blocks, 4)) + _scale(blocks, 2)


def _q8_0(blocks: Blocks) -> np.ndarray:
    return _scale(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8)


def _k_scales(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 8 scales and 8 minima, 6 bits each, that 12 bytes hold; [blocks, 8, 1]."""
    low, mid, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 2) & 48)], axis=1)
    minima = np.concatenate([mid & 63, (high >> 4) | ((mid >> 2) & 48)], axis=1)
    return scales[..., None].astype(np.float32), minima[..., None].astype(np.float32)


def _k_halves(packed: np.ndarray) -> np.ndarray:
    """Return [blocks, 8, 32]: of every 32 bytes the low halves, then the high ones."""
    four = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([four & 15, four >> 4], axis=2).reshape(-1, 8, 32)


def _k_values(blocks: Blocks, quants: np.ndarray) -> np.ndarray:
    scales, minima = _k_scales(blocks[:, 4:16])
    values = _scale(blocks, 0)[..., None] * scales * quants - _scale(blocks, 2)[..., None] * minima
    return values.reshape(-1, K_BLOCK)


def _q4_k(blocks: Blocks) -> np.ndarray:
    return _k_values(blocks, _k_halves(blocks[:, 16:]))


def _q5_k(blocks: Blocks) -> np.ndarray:
    bits = np.unpackbits(np.ascontiguousarray(blocks[:, 16:48])[..., None], axis=2, bitorder="little")  # [blocks, 32, 8]
    return _k_values(blocks, _k_halves(blocks[:, 48:]) | (bits.transpose(0, 2, 1) << 4))


def _q6_k(blocks: Blocks) -> np.ndarray:
    halves, pairs = blocks[:, :128].reshape(-1, 2, 1, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = np.concatenate([halves & 15, halves >> 4], axis=2).reshape(-1, K_BLOCK)
    high = np.concatenate([(pairs >> shift) & 3 for shift in (0, 2, 4, 6)], axis=2).reshape(-1, K_BLOCK)
    quants = ((low | (high << 4)).astype(np.float32) - 32).reshape(-1, 16, 16)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)[..., None]
    return (_scale(blocks, 208)[..., None] * scales * quants).reshape(-1, K_BLOCK)


TYPES = {
    0: GgmlType("F32", 1, 4, _plain("<f4")),
    1: GgmlType("F16", 1, 2, _plain("<f2")),
    2: GgmlType("Q4_0", 32, 18, _q4_0),
    3: GgmlType("Q4_1", 32, 20, _q4_1),
    6: GgmlType("Q5_0", 32, 22, _q5_0),
    7: GgmlType("Q5_1", 32, 24, _q5_1),
    8: GgmlType("Q8_0", 32, 34, _q8_0),
    12: GgmlType("Q4_K", K_BLOCK, 144, _q4_k, mixed=True),
    13: GgmlType("Q5_K", K_BLOCK, 176, _q5_k, mixed=True),
    14: GgmlType("Q6_K", K_BLOCK, 210, _q6_k, mixed=True),
    30: GgmlType("BF16", 1, 2, _bfloat16),
}
# those that are refused, by name
UNREAD = {10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S"}
UNREAD |= {22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 39: "MXFP4"}
