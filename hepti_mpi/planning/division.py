"""How whole units are divided among ranks. Pure arithmetic: knows seconds and bytes per unit, not what a unit is."""

import numpy as np

from hepti_mpi import splits


def fill(table: np.ndarray, units: int) -> np.ndarray:
    """Return how many of `units` each rank takes so that the largest entry table[rank, taken] is least.

    `table` [ranks, units + 1] holds seconds and rises along a row; inf is more than the rank can take.
    """
    levels = np.sort(table[np.isfinite(table)])
    low, high, ranks = 0, len(levels) - 1, len(table)
    while low < high:
        middle = (low + high) // 2
        if np.count_nonzero(table <= levels[middle]) - ranks >= units:
            high = middle
        else:
            low = middle + 1
    taken = (table <= levels[low]).sum(axis=1) - 1
    taken = np.maximum(taken, 0)
    for _ in range(int(taken.sum()) - units):  # give back where it shortens the longest time
        time = np.where(taken > 0, table[np.arange(len(taken)), taken], -np.inf)
        taken[int(np.argmax(time))] -= 1
    return taken


def divide(cost: np.ndarray, units: int, limit: np.ndarray, shares: np.ndarray | None = None) -> np.ndarray | None:
    """Divide `units` given seconds per unit and the most units of each rank, or in the proportions of `shares`; None where they do not fit.

    >>> divide(np.array([1.0, 1.0, 2.0]), 10, np.array([9, 3, 9]))
    array([5, 3, 2])
    """
    if limit.sum() < units:
        return None
    if shares is not None:
        forced = np.array(splits.split(units, shares))
        return forced if (forced <= limit).all() else None
    table = cost[:, None] * np.arange(units + 1)
    table[np.arange(units + 1) > limit[:, None]] = np.inf
    return fill(table, units)


def most(room: np.ndarray, unit_bytes: float, units: int) -> np.ndarray:
    """Return how many units of `unit_bytes`, at most `units`, fit into the `room` of each rank; none where it is negative."""
    fitting = np.floor(room / unit_bytes) if unit_bytes else np.full(len(room), float(units))
    return np.where(room < 0, 0.0, np.minimum(fitting, units))


def common_lack(room: np.ndarray, whole: float) -> float:
    """Return the least bytes that, given to every rank, let all together hold `whole`; ranks with negative room hold nothing.

    >>> common_lack(np.array([5.0, 1.0, -9.0]), 10)
    2.0
    """
    held = np.cumsum(np.sort(room)[::-1])
    return float(((whole - held) / np.arange(1, len(room) + 1)).min())
