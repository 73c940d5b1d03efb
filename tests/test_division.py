import doctest

import numpy as np
import pytest

from hepti_mpi.planning import division
from hepti_mpi.planning.division import common_lack, divide, fill, most


def lines(costs, units):
    """[ranks, units + 1]: a rank takes its cost for each unit; inf is a rank that can take none."""
    table = np.array(costs, dtype=float)[:, None] * np.where(np.arange(units + 1) > 0, np.arange(units + 1), 1)
    table[:, 0] = 0
    return table


@pytest.mark.parametrize("costs, units, expected", [
    ((1,), 5, (5,)),
    ((3, 1), 4, (1, 3)),
    ((1, np.inf, 1), 4, (2, 0, 2)),
    ((1, 2, 4), 7, (4, 2, 1)),
    ((1, 100), 9, (9, 0)),
    ((0, 1), 3, (3, 0)),
    ((1, 1), 0, (0, 0)),
])  # fmt: skip
def test_fill(costs, units, expected):
    assert tuple(fill(lines(costs, units), units)) == expected


@pytest.mark.parametrize("seed", range(40))
def test_fill_is_as_good_as_the_best_of_all_divisions(seed):
    random = np.random.default_rng(seed)
    table = np.cumsum(np.hstack([np.zeros((3, 1)), random.integers(0, 4, (3, 7))]), axis=1)
    table[seed % 3, 1 + seed % 7 :] = np.inf
    taken = fill(table, 7)
    assert taken.sum() == 7
    best = min(max(table[0, a], table[1, b], table[2, 7 - a - b]) for a in range(8) for b in range(8 - a))
    assert max(table[rank, count] for rank, count in enumerate(taken)) == best


@pytest.mark.parametrize("costs, units, limit, shares, expected", [
    ((1, 1, 2), 10, (9, 9, 9), None, (4, 4, 2)),
    ((1, 1, 2), 10, (9, 2, 9), None, (5, 2, 3)),
    ((1, 1, 2), 10, (1, 1, 9), None, (1, 1, 8)),  # slower than all others and still the only one with room
    ((1, 1), 10, (5, 5), None, (5, 5)),
    ((1, 1), 10, (5, 4), None, None),
    ((1, 1), 0, (0, 0), None, (0, 0)),
    ((1, 9), 10, (9, 9), (1, 4), (2, 8)),  # a forced share is not bent to be faster
    ((1, 9), 10, (9, 7), (1, 4), None),  # nor to fit
    ((1, 9), 10, (9, 9), (0, 1), None),
    ((1, 9), 9, (9, 9), (0, 1), (0, 9)),
])  # fmt: skip
def test_divide(costs, units, limit, shares, expected):
    found = divide(np.array(costs, float), units, np.array(limit, float), None if shares is None else np.array(shares))
    assert (None if found is None else tuple(found)) == expected


@pytest.mark.parametrize("seed", range(20))
def test_divide_is_as_good_as_the_best_of_all_that_fit(seed):
    random = np.random.default_rng(seed)
    costs, limit = random.integers(1, 9, 3).astype(float), random.integers(0, 8, 3)
    fitting = [(a, b, 7 - a - b) for a in range(8) for b in range(8 - a) if a <= limit[0] and b <= limit[1] and 7 - a - b <= limit[2]]
    found = divide(costs, 7, limit.astype(float))
    assert (found is None) == (not fitting)
    if found is not None:
        assert tuple(found) in fitting and max(found * costs) == min(max(np.array(counts) * costs) for counts in fitting)


@pytest.mark.parametrize("unit, expected", [(10.0, (0, 0, 1, 3)), (1.0, (0, 0, 7, 7)), (0.0, (0, 7, 7, 7))])
def test_most(unit, expected):
    assert tuple(most(np.array([-1.0, 0.0, 19.0, 39.0]), unit, 7)) == expected


@pytest.mark.parametrize("room, whole", [((5, 1, -9), 10), ((5, 5), 30), ((-7, -7), 0), ((3,), 9), ((9, -1, 8, -2), 21), ((-9, 0), 1)])
def test_common_lack_is_just_enough(room, whole):
    lack = common_lack(np.array(room, dtype=float), whole)
    held = [np.maximum(np.array(room) + lack + extra, 0).sum() for extra in (1e-9, -1e-3)]
    assert held[0] >= whole
    assert held[1] < whole or (whole == 0 and max(room) + lack <= 1e-9)


def test_examples_in_docstrings():
    assert doctest.testmod(division).failed == 0
