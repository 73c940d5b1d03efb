"""Medians and other quantiles, as NumPy's, which import numpy.ma: that takes longer than a few texts do. Pure."""

from collections.abc import Sequence

import numpy as np


def median(values: np.ndarray | Sequence[float], axis: int | None = None) -> np.ndarray:
    """Return the median along an axis, None: of all values.

    >>> float(median([3.0, 1.0, 2.0, 10.0]))
    2.5
    """
    return quantile(values, 0.5, axis)


def quantile(values: np.ndarray | Sequence[float], part: float, axis: int | None = None) -> np.ndarray:
    """Return what `part` of the values are below, between two of them in proportion; not a number where one of them is none."""
    ordered = np.sort(np.asarray(values, np.float64), axis=axis)
    last = ordered.shape[axis or 0] - 1
    place = part * last
    low, high = (ordered.take(at, axis or 0) for at in (int(place), min(int(place) + 1, last)))
    return np.where(np.isnan(ordered.take(last, axis or 0)), np.nan, low + (place - int(place)) * (high - low))
