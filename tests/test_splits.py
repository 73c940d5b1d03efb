import doctest
from itertools import product

import pytest

from hepti_mpi import splits


def test_examples_in_docstrings():
    assert doctest.testmod(splits).failed == 0


@pytest.mark.parametrize("total, shares, granule, expected", [
    (7, (1,), 1, (7,)),
    (8, (5, 1, 1, 1), 1, (5, 1, 1, 1)),
    (9, (1, 0, 3), 1, (2, 0, 7)),
    (7, (1, 1), 1, (4, 3)),  # a tie goes to the lower index
    (1, (1, 1, 1), 1, (1, 0, 0)),
    (0, (1, 2), 1, (0, 0)),
    (9, (1, 1), 4, (8, 1)),  # the last granule is a short one
    (9, (1, 1, 0), 4, (8, 1, 0)),
    (101, (0, 1, 1), 16, (0, 64, 37)),
    (3, (1, 1), 8, (3, 0)),
    (7, (0.1, 0.1, 0.1), 1, (3, 2, 2)),
    (10, (1e-300, 1), 1, (0, 10)),
    (5, (1e300, 1e300), 1, (3, 2)),
])  # fmt: skip
def test_split(total, shares, granule, expected):
    assert splits.split(total, shares, granule) == expected


def test_split_of_everything_small():
    """Sums, granules, zero shares, and never a whole granule away from the exact share."""
    for total, granule, shares in product(range(10), (1, 2, 3, 7), product((0, 1, 2.5), repeat=3)):
        if not sum(shares):
            continue
        parts = splits.split(total, shares, granule)
        assert sum(parts) == total and min(parts) >= 0
        assert all(part == 0 for part, share in zip(parts, shares) if not share)
        begins = splits.starts(parts)
        assert all(begin % granule == 0 for begin, part in zip(begins, parts) if part)
        granules = -(-total // granule)
        for part, share in zip(parts, shares):
            assert abs(-(-part // granule) - granules * share / sum(shares)) < 1 + 1e-9


@pytest.mark.parametrize(
    "total, shares, granule", [(7, (), 1), (7, (0, 0), 1), (7, (1, -1), 1), (-1, (1,), 1), (7, (1,), 0), (7, (float("nan"), 1), 1)]
)
def test_split_refuses(total, shares, granule):
    with pytest.raises(ValueError, match="cannot split"):
        splits.split(total, shares, granule)


@pytest.mark.parametrize(
    "total, parts, expected", [(7, 3, (3, 2, 2)), (9, 3, (3, 3, 3)), (2, 4, (1, 1, 0, 0)), (0, 2, (0, 0)), (8, 1, (8,))]
)
def test_even(total, parts, expected):
    assert splits.even(total, parts) == expected


@pytest.mark.parametrize("counts", [(7,), (0, 9), (3, 0, 4, 0), (1, 2, 3)])
def test_starts_and_bounds_agree(counts):
    begins = splits.starts(counts)
    assert begins[0] == 0 and len(begins) == len(counts)
    for index, (begin, count) in enumerate(zip(begins, counts)):
        assert splits.bounds(counts, index) == (begin, begin + count)
    assert begins[-1] + counts[-1] == sum(counts)
