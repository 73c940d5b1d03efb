"""Weights as whole numbers with a scale for each block along the sum, or for all of it: the nearest ones, or those with which products
change least.

Knows matrices; knows no format's layout, no file and no model.
"""

import numpy as np

GROUP = 1024  # numbers along the sum that make up for each other, a multiple of every block
STRIDE = 16  # that are rounded before what is behind them hears of it
DAMP = 0.05  # of the mean square of what is read: how much it is taken to vary in any direction beside those that were seen
LEAST = np.float32(6e-8)  # of float16
TRIED = (1.0, 0.94, 0.88, 0.82)  # of the scale that reaches the number farthest from 0: smaller ones cost it, and serve the others

Array = np.ndarray


def nearest(matrix: Array, bits: int, block: int) -> tuple[Array, Array]:
    """Return `matrix` [N, K] as whole numbers from 0, uint8 [N, blocks, block], and their scales, float16 [N, blocks].

    Source: ggml-quants.c, quantize_row_q4_0_ref and q8_0_ref, whose rounding this is: the number farthest from 0 gets the value farthest
    from it.
    """
    lacking, middle = -matrix.shape[1] % block, 1 << (bits - 1)
    blocks = np.pad(matrix, ((0, 0), (0, lacking))).reshape(len(matrix), (matrix.shape[1] + lacking) // block, block)
    scales = _reaching(np.moveaxis(blocks, 2, 0), bits)
    whole = np.clip(np.rint(blocks / _divisors(scales)[..., None]) + middle, 0, 2 * middle - 1)
    return whole.astype(np.uint8), scales


def fed_back(matrix: Array, bits: int, block: int, rows: Array) -> tuple[Array, Array]:
    """Return `matrix` [N, K] as `nearest` does, so that products with rows like `rows` [r, K] change least: what rounding a column adds to
    them is taken off by those behind it.

    Source: Frantar et al., GPTQ, arXiv:2210.17323, whose columns make up for each other in groups here, so that a wide matrix takes no
    square of its width.
    """
    size, count = matrix.shape[1], -(-matrix.shape[1] // block)
    whole, scales = np.full((count * block, len(matrix)), 1 << (bits - 1), np.uint8), np.zeros((count, len(matrix)), np.float16)
    for first in range(0, size, GROUP):
        stop = min(first + GROUP, size)
        own, columns = _root(rows[:, first:stop]), np.array(matrix[:, first:stop].T, np.float32, order="C")  # [k, N]
        if own is None:
            return nearest(matrix, bits, block)
        for begin in range(first, stop, block):
            end = min(begin + block, stop)
            at = slice(begin - first, end - first)
            scales[begin // block] = _best(columns[at], 1 / np.square(np.diag(own)[at]), bits)
            _round(columns, own, (at.start, at.stop), scales[begin // block], bits, whole[first:stop])
    return np.ascontiguousarray(np.moveaxis(whole.reshape(count, block, -1), 2, 0)), np.ascontiguousarray(scales.T)


def fed_back_to(matrix: Array, scales: Array, rows: Array) -> Array:
    """Return `matrix` [N, K] as 8-bit whole numbers from 0, uint8 [N, K], of which one is worth `scales` [N] all along the sum, so that
    products with rows like `rows` [r, K] change least: as `fed_back` does."""
    size, whole = matrix.shape[1], np.empty(matrix.shape[::-1], np.uint8)
    for first in range(0, size, GROUP):
        stop = min(first + GROUP, size)
        own, columns = _root(rows[:, first:stop]), np.array(matrix[:, first:stop].T, np.float32, order="C")  # [k, N]
        if own is None:
            return np.asarray(np.rint(matrix / scales[:, None]) + 128, np.uint8)
        _round(columns, own, (0, stop - first), scales, 8, whole[first:stop])
    return np.ascontiguousarray(whole.T)


def _round(columns: Array, root: Array, bounds: tuple[int, int], scales: Array, bits: int, whole: Array) -> None:
    """Round columns [first, stop) of one scale to `whole`, [k, N] each, and let all behind them make up for it."""
    middle, divisors, scale = 1 << (bits - 1), _divisors(scales), scales.astype(np.float32)
    for begin in range(*bounds, STRIDE):
        end = min(begin + STRIDE, bounds[1])
        errors = np.empty((end - begin, columns.shape[1]), np.float32)
        for column in range(begin, end):
            found = np.clip(np.rint(columns[column] / divisors) + middle, 0, 2 * middle - 1)
            whole[column] = found
            errors[column - begin] = (columns[column] - (found - middle) * scale) / root[column, column]
            columns[column + 1 : end] -= root[column, column + 1 : end, None] * errors[column - begin]
        columns[end:] -= root[begin:end, end:].T @ errors


def _root(rows: Array) -> Array | None:
    """Return upper U, float32 [k, k], with U' U the inverse of the mean products of numbers that are read, `rows` [r, k], in units of their
    mean square; None where they are not finite."""
    if not np.isfinite(rows).all():
        return None
    seen = rows.astype(np.float64) / (np.sqrt(np.square(rows, dtype=np.float64).mean()) if rows.any() else 1.0)
    moments = seen.T @ seen / max(len(rows), 1)
    moments[np.diag_indices(len(moments))] += DAMP
    root: Array = np.linalg.cholesky(np.linalg.inv(moments)).T.astype(np.float32)
    return root


def _best(columns: Array, weights: Array, bits: int) -> Array:
    """Return the scales, float16 [N], with which a block [k, N] is rounded best, where errors of its numbers count as `weights` [k] say."""
    middle, most = 1 << (bits - 1), _reaching(columns, bits)
    if bits > 4:  # scales that do not reach all cost more than they serve
        return most
    best, least = most, np.full(columns.shape[1], np.inf, np.float32)
    for part in TRIED:
        scales = (most.astype(np.float32) * np.float32(part)).astype(np.float16)
        found = np.clip(np.rint(columns / _divisors(scales)), -middle, middle - 1)
        errors = weights.astype(np.float32) @ np.square(columns - found * scales.astype(np.float32))
        best, least = np.where(errors < least, scales, best), np.minimum(errors, least)
    return best


def _reaching(blocks: Array, bits: int) -> Array:
    """Return the scales, float16, with which whole numbers reach the number of each block [k, ...] that is farthest from 0."""
    farthest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=0)[None], axis=0)[0]
    middle = 1 << (bits - 1)
    found: Array = (farthest / -middle if bits == 4 else np.abs(farthest) / (middle - 1)).astype(np.float16)
    return found


def _divisors(scales: Array) -> Array:
    found: Array = np.where(np.abs(scales) < LEAST, np.inf, scales).astype(np.float32)
    return found
