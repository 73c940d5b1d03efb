"""Which heads of K and V go with the query heads that a rank has, where a group of those reads one. Pure arithmetic on counts and bounds.

A head of K and V whose query heads are on several ranks is computed and kept on each of them.
"""

from typing import Any

import numpy as np


def read(start: int, stop: int, group: int) -> tuple[int, int]:
    """Return the bounds of the heads of K and V that query heads [start, stop) read.

    >>> read(0, 5, 3), read(5, 9, 3), read(4, 4, 3)
    ((0, 2), (1, 3), (1, 1))
    """
    return start // group, -(-stop // group) if stop > start else start // group


def padding(start: int, stop: int, group: int) -> tuple[int, int]:
    """Return how many heads must stand before and behind query heads [start, stop) for each head of K and V to be read by as many.

    >>> padding(0, 5, 3), padding(1, 5, 3), padding(4, 6, 3), padding(2, 7, 3)
    ((0, 1), (0, 0), (0, 0), (2, 2))
    """
    heads, first = read(start, stop, group), min(stop, (start // group + 1) * group) - start  # those that read the first one
    count = heads[1] - heads[0]
    if count < 2:
        return 0, 0
    each = max(first, stop - start - first) if count == 2 else group
    return each - first, count * each - (stop - start) - (each - first)


def shared(counts: np.ndarray, group: int, axis: int = 0) -> tuple[Any, Any]:
    """Return of query heads that lie along `axis` rank after rank, how many heads of K and V each rank computes, and how many query heads
    attend there with those that pad them."""
    if group == 1:
        return counts, counts
    stops = np.cumsum(counts, axis=axis)
    starts = stops - counts
    read_ = np.where(counts > 0, -(-stops // group) - starts // group, 0)
    first = np.minimum(counts, group - starts % group)
    each = np.where(read_ < 2, counts, np.where(read_ == 2, np.maximum(first, counts - first), group))
    return read_, np.maximum(read_, 1) * each
