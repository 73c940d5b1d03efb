"""Norms, activations, softmax and a search on NumPy arrays. Knows formulas; knows no model, no file and no rank."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Array = NDArray[Any]  # of a float type

# Rational approximations of erf (|x| <= 0.46875) and of erfc(x) exp(x^2) (0.46875 < x <= 6), highest power first.
# Source: W. J. Cody, Rational Chebyshev approximations for the error function, Mathematics of Computation 23 (1969), 631-637.
NEAR_TOP = (1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2, 3.20937758913846947e3)
NEAR_BOTTOM = (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3)
FAR_TOP = (
    2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1, 2.98635138197400131e2,
    8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3,
)  # fmt: skip
FAR_BOTTOM = (
    1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
    3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3,
)  # fmt: skip


def erf(x: ArrayLike) -> NDArray[np.float64]:
    """Return the error function of every element, to 1e-14, as float64."""
    x = np.asarray(x, dtype=np.float64)
    size = np.minimum(np.abs(x), 6.0)  # erf(6) is 1 - 2e-17
    square = size * size
    near = x * np.polyval(NEAR_TOP, square) / np.polyval(NEAR_BOTTOM, square)
    far = 1.0 - np.exp(-square) * np.polyval(FAR_TOP, size) / np.polyval(FAR_BOTTOM, size)
    result: NDArray[np.float64] = np.where(size <= 0.46875, near, np.copysign(far, x))
    return result


def activate(name: str, x: Array) -> Array:
    """Return the activation `name`, one of ACTIVATIONS, of every element, in the type of `x`."""
    result: Array = ACTIVATIONS[name](x).astype(x.dtype)
    return result


def gelu(x: Array) -> Array:
    """Source: Hendrycks and Gimpel, Gaussian error linear units, arXiv:1606.08415, the exact form."""
    result: Array = 0.5 * x * (1 + erf(x / math.sqrt(2)))
    return result


def gelu_tanh(x: Array) -> Array:
    """Source: the same, section 2, the form by tanh."""
    result: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return result


# the names of transformers, but for "gelu_tanh", which has several there
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "gelu_10": lambda x: np.clip(gelu(x), -10, 10),  # kept within 10, to be rounded to 8 bits
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x < 0, 0.01 * x, x),
    "silu": lambda x: x * sigmoid(x),
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),  # source: Misra, Mish, arXiv:1908.08681
    "tanh": np.tanh,
}


def layer_norm(x: Array, weight: Array, bias: Array | None, eps: float) -> Array:
    """Return LayerNorm over the last axis, in the type of `x`; without a bias for None.

    Source: Ba, Kiros and Hinton, Layer normalization, arXiv:1607.06450, equation 4.
    """
    centred = x - x.mean(axis=-1, keepdims=True)  # [rows, hidden]
    variance = (centred * centred).mean(axis=-1, keepdims=True)  # [rows, 1]
    result: Array = centred / np.sqrt(variance + eps) * weight  # [rows, hidden]
    return result if bias is None else result + bias


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Return RMSNorm over the last axis, in the type of `x`.

    Source: Zhang and Sennrich, Root mean square layer normalization, arXiv:1910.07467, equation 4.
    """
    result: Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight
    return result


def softmax(x: Array) -> Array:
    """Return the softmax over the last axis."""
    grown = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Array = grown / grown.sum(axis=-1, keepdims=True)
    return result


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), without overflow."""
    result: Array = 0.5 + 0.5 * np.tanh(0.5 * x)
    return result


def last_other(values: NDArray[np.integer], passed_over: int | None) -> int:
    """Return the place of the last of `values` [n] that is not `passed_over`, 0 where there is no other; None: of the very last."""
    found = np.flatnonzero(values != passed_over) if passed_over is not None else np.arange(len(values))
    return int(found[-1]) if len(found) else 0


def as_type(weights: ArrayLike, dtype: DTypeLike) -> Array:
    """Return an array (a memory-mapped one is read here) in `dtype`."""
    return np.asarray(weights, dtype=dtype)
