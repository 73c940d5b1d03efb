"""A ring against one that is followed piece by piece."""

import numpy as np
import pytest

from hepti_mpi.planning.rings import around


def followed(begin, leave, blocks, hop, piece, ahead):
    """When each rank has sent its last piece, and when its right neighbour has all: every piece leaves when it is there, the rank has its
    own and the link is free, in order of blocks; a link that has rested is ahead of its rate."""
    ranks = len(blocks)
    free, there, last = list(leave), {}, list(begin)
    for step in range(ranks - 1):
        ends = {}
        for rank in range(ranks):
            owner = (rank - step) % ranks
            for number in range(blocks[owner]):
                ready = begin[rank] if not step else max(begin[rank], there[rank, owner, number])
                free[rank] = max(free[rank], ready) + hop[rank]
                last[rank] = ends[(rank + 1) % ranks, owner, number] = max(ready, free[rank] - ahead) + piece[rank]
        there = ends
    return free, last


@pytest.mark.parametrize("ahead", [0, 10, 60])
@pytest.mark.parametrize("seed", range(30))
def test_blocks_go_round(seed, ahead):
    random = np.random.default_rng(seed)
    ranks = int(random.integers(2, 7))
    blocks, begin = random.integers(1, 90, ranks), random.uniform(0, 90, ranks)
    leave = begin + random.choice([0.0, 30.0], ranks)  # its link had other things to send
    hop, piece = random.choice([0.1, 1.0, 1.0], ranks), np.full(ranks, 1e-3)
    found = around(begin, leave, blocks.astype(float), (hop, piece, np.full(ranks, float(ahead))))
    right = followed(begin, leave, blocks, hop, piece, ahead)
    assert np.array(found) == pytest.approx(np.array(right), abs=3 * ranks)


def test_equal_boards_and_blocks_keep_every_link_busy():
    sent, there = around(np.zeros(4), np.zeros(4), np.full(4, 5.0), (np.ones(4), np.zeros(4), np.zeros(4)))
    assert sent.tolist() == there.tolist() == [15.0] * 4


def test_what_passes_a_late_rank_waits_for_it_however_far_its_link_is_ahead():
    begin, some = np.array([0.0, 50.0, 0.0]), np.full(3, 1e-3)
    sent, there = around(begin, begin, np.full(3, 5.0), (np.ones(3), some, np.full(3, 60.0)))
    assert there == pytest.approx([0, 50, 50], abs=0.1)  # rank 0 passes on what rank 2 made, rank 2 what the late one did
