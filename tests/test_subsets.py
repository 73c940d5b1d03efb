"""Which sets of ranks a plan is looked for on."""

from itertools import combinations

import numpy as np
import pytest

from hepti_mpi.planning.subsets import EVERY_SUBSET, MANY, SIZES, subsets


def found(seconds, link=None, memory=None, smallest=1):
    link = np.ones(len(seconds)) if link is None else np.array(link, float)
    return list(subsets(np.array(seconds, float), link, None if memory is None else np.array(memory, float), smallest))


@pytest.mark.parametrize("smallest", [1, 2])
@pytest.mark.parametrize("ranks", range(1, EVERY_SUBSET + 1))
def test_all_sets_of_a_few_ranks(ranks, smallest):
    every = {subset for size in range(min(smallest, ranks), ranks + 1) for subset in combinations(range(ranks), size)}
    assert set(found(range(1, ranks + 1), smallest=smallest)) == every


@pytest.mark.parametrize("smallest", [1, 2])
@pytest.mark.parametrize("ranks", [5, 9, MANY, MANY + 1, 64, 1024])
def test_many_ranks(ranks, smallest):
    """Each set once, of ascending ranks; everyone, and the fastest of every size that is tried."""
    random = np.random.default_rng(ranks)
    seconds = random.permutation(ranks) + 1.0
    sets = found(seconds, random.uniform(1, 3, ranks), random.uniform(1, 9, ranks), smallest)
    assert len(sets) == len(set(sets)) <= 3 * len(SIZES) + MANY and tuple(range(ranks)) in sets
    assert all(list(subset) == sorted(subset) and smallest <= len(subset) for subset in sets)
    for size in SIZES:
        if smallest <= size <= ranks:
            assert tuple(sorted(np.argsort(seconds)[:size].tolist())) in sets
    if smallest == 1 and ranks <= MANY:
        assert {(rank,) for rank in range(ranks)} <= set(sets)


def test_links_and_memory_order_too():
    seconds = (1, 2, 3, 4, 5, 6, 7, 8)
    plain = found(seconds)
    assert (0, 1) in plain and (6, 7) not in plain
    assert (6, 7) in found(seconds, memory=(1, 1, 1, 1, 1, 1, 2, 3))
    assert (1, 2) in found(seconds, link=(9, 1, 1, 1, 1, 1, 1, 1)) and (1, 2) not in found(seconds, link=(1.1,) + (1,) * 7)


def test_equal_ranks_go_by_their_number():
    assert (0, 1, 2) in found((1,) * 8) and (0, 1, 3) not in found((1,) * 8)
