import numpy as np
import pytest

from hepti_mpi.planning.division import common_lack, fill, most


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


@pytest.mark.parametrize("unit, expected", [(10.0, (0, 0, 1, 3)), (1.0, (0, 0, 7, 7)), (0.0, (0, 7, 7, 7))])
def test_most(unit, expected):
    assert tuple(most(np.array([-1.0, 0.0, 19.0, 39.0]), unit, 7)) == expected


@pytest.mark.parametrize("room, whole", [((5, 1, -9), 10), ((5, 5), 30), ((-7, -7), 0), ((3,), 9), ((9, -1, 8, -2), 21), ((-9, 0), 1)])
def test_common_lack_is_just_enough(room, whole):
    lack = common_lack(np.array(room, dtype=float), whole)
    held = [np.maximum(np.array(room) + lack + extra, 0).sum() for extra in (1e-9, -1e-3)]
    assert held[0] >= whole
    assert held[1] < whole or (whole == 0 and max(room) + lack <= 1e-9)
