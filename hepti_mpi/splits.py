"""Uneven integer splits. Knows how a count is divided and where each part starts; does not know what is divided.

A part may be 0. These are the only functions that compute offsets.
"""

from collections.abc import Sequence, Sized

import numpy as np


def split(total: int, shares: Sequence[float] | np.ndarray, granule: int = 1) -> tuple[int, ...]:
    """Divide `total` in proportion to `shares` (>= 0, not all 0), each part a multiple of `granule` but for the last one
    that is not 0, by largest remainders; ties go to the lower index, so that every rank computes the same parts.

    Raises: ValueError when the shares are all 0 or one is negative.

    >>> split(12, (1, 2, 3))
    (2, 4, 6)
    """
    weights = np.asarray(shares, dtype=np.float64)
    if total < 0 or granule < 1 or not len(weights) or weights.min() < 0 or not weights.sum() > 0:
        raise ValueError(f"cannot split {total} by shares {tuple(shares)}")
    granules = -(-total // granule)
    exact = weights * (granules / weights.sum())
    parts = np.floor(exact + 1e-9).astype(np.int64)
    missing = granules - int(parts.sum())
    order = np.argsort(-(exact - parts), kind="stable")
    order = order[weights[order] > 0]
    parts[order[:missing]] += 1
    counts = parts * granule
    surplus = granules * granule - total
    for index in range(len(counts) - 1, -1, -1):  # the tail granule is a short one
        if counts[index]:
            counts[index] -= surplus
            break
    return tuple(int(c) for c in counts)


def cut(lengths: Sequence[int], shares: Sequence[float] | np.ndarray) -> tuple[int, ...]:
    """Divide the rows of consecutive requests of `lengths` rows, none of them cut, as nearly in proportion to `shares` as that allows.

    >>> cut((4, 4, 4, 4), (1, 3))
    (4, 12)
    """
    ends = np.concatenate([[0], np.cumsum(lengths)])
    wanted = np.cumsum(shares) / np.sum(shares) * ends[-1]
    borders = ends[np.abs(ends[None, :] - wanted[:, None]).argmin(axis=1)]
    return tuple(int(count) for count in np.diff(borders, prepend=0))


def alone(ranks: Sized) -> bool:
    """Tell whether ranks are a single one, which has nobody to divide anything with."""
    return len(ranks) == 1


def even(total: int, parts: int) -> tuple[int, ...]:
    """Divide `total` as evenly as integers allow, larger parts first.

    >>> even(7, 3)
    (3, 2, 2)
    """
    return tuple(total // parts + (index < total % parts) for index in range(parts))


def starts(counts: Sequence[int]) -> tuple[int, ...]:
    """Return where each part begins: the exclusive prefix sums, MPI's `displs`."""
    result = [0]
    for count in counts[:-1]:
        result.append(result[-1] + count)
    return tuple(result)


def bounds(counts: Sequence[int], index: int) -> tuple[int, int]:
    """Return (start, stop) of part `index`.

    >>> bounds((2, 4, 6), 1)
    (2, 6)
    """
    start = sum(counts[:index])
    return start, start + counts[index]
