"""Moves between holdings, against what every single number needs: cell by cell, on boxes of odd sizes, empty ones and several holders."""

from itertools import product

import numpy as np
import pytest

from hepti_mpi.program.ownership import EXCHANGES, FULL, HEADS, ROOT, ROWS, TERMS, Box, Division, Held, Holding, cells, moves

COUNTS = [((4, 3, 2),), ((0, 5, 4),), ((9, 0, 0),), ((2, 0, 1), (1, 3, 2)), ((7,),), ((1, 0, 2, 1, 3),)]


def divisions():
    for counts in COUNTS:
        ranks = len(counts[0])
        for heads in ((8,) * ranks, tuple(8 * (rank % 2 + (ranks == 1)) for rank in range(ranks))):
            yield Division(counts, heads, sum(heads))


def held_cells(held, rank):
    box = held.box(rank)
    return set(product(range(box.top, box.bottom), range(box.left, box.right)))


@pytest.mark.parametrize("kind", EXCHANGES)
def test_every_number_comes_once_from_somebody_who_has_it(kind):
    """A taker gets each cell that it wants once, or one term of it from every rank that has one, and nothing else."""
    tried = 0
    for division in divisions():
        for tile in range(len(division.counts)):
            have, want = (division.held(holding, tile) for holding in EXCHANGES[kind])
            came = {rank: [] for rank in range(division.ranks)}
            for giver, taker, box in moves(have, want):
                inside = set(product(range(box.top, box.bottom), range(box.left, box.right)))
                assert inside and inside <= held_cells(have, giver)
                came[taker] += [(giver, cell) for cell in inside]
            for rank in range(division.ranks):
                wanted = held_cells(want, rank)
                sources = [giver for giver in range(division.ranks) if held_cells(have, giver)]
                expected = {(giver, cell) for giver in sources for cell in wanted} if have.terms else wanted
                found = came[rank] if have.terms else [cell for _, cell in came[rank]]
                assert len(found) == len(set(found)) and set(found) == expected
                if not have.terms and wanted <= held_cells(have, rank):
                    assert {giver for giver, _ in came[rank]} <= {rank}, "it has all of it"
            tried += 1
    assert tried >= 14


def test_cells_are_the_sizes_of_the_moves():
    for division, (have, want) in product(divisions(), EXCHANGES.values()):
        have, want = division.held(have, 0), division.held(want, 0)
        expected = np.zeros((division.ranks, division.ranks), np.int64)
        for giver, taker, box in moves(have, want):
            expected[giver, taker] += box.size
        np.testing.assert_array_equal(cells(have, want), expected)


def test_of_several_who_have_it_the_first_gives_it():
    have = Held(np.array([[0, 0, 0, 8], [0, 4, 0, 8], [0, 4, 0, 8], [2, 4, 0, 8]]))
    want = Held(np.array([[0, 4, 0, 8], [0, 4, 0, 3], [1, 2, 0, 8], [0, 0, 0, 0]]))
    assert list(moves(have, want)) == [(1, 0, Box(0, 4, 0, 8)), (1, 1, Box(0, 4, 0, 3)), (2, 2, Box(1, 2, 0, 8))]


def test_what_nobody_has_is_refused():
    have, want = Held(np.array([[0, 2, 0, 8], [3, 4, 0, 8]])), Held(np.array([[0, 2, 0, 8], [0, 4, 0, 8]]))
    with pytest.raises(ValueError, match="nobody holds what rank 1 wants"):
        cells(have, want)


def test_one_rank_holds_all_and_nothing_moves():
    division = Division(((0, 9, 0),), (0, 8, 0), 8, active=(1,))
    for have, want in product((FULL, ROWS, TERMS, HEADS), repeat=2):
        assert list(moves(division.held(have, 0), division.held(want, 0))) == [(1, 1, Box(0, 9, 0, 8))]
    assert list(moves(division.held(ROOT, 0), division.held(FULL, 0))) == [(0, 1, Box(0, 9, 0, 8))]
    assert list(moves(division.held(ROWS, 0), division.held(ROOT, 0))) == [(1, 0, Box(0, 9, 0, 8))]


def test_a_holding_of_several_tiles():
    division = Division(((2, 0, 1), (1, 3, 2)), (8, 8, 0), 16)
    assert division.held(HEADS, None).box(1) == Box(0, 9, 8, 16) and division.held(HEADS, 1).box(0) == Box(3, 9, 0, 8)
    with pytest.raises(AssertionError):
        division.held(Holding("rows"), None)
