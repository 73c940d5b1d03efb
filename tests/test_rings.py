"""A ring against one that is followed piece by piece."""

import numpy as np
import pytest

from hepti_mpi.planning.rings import around


def followed(leave, blocks, hop, piece, ahead):
    """When each rank has sent its last piece: every piece leaves when it is there and the link is free, in order of blocks; a link that has
    rested is ahead of its rate."""
    ranks = len(blocks)
    free, there = list(leave), {}
    for step in range(ranks - 1):
        ends = {}
        for rank in range(ranks):
            owner = (rank - step) % ranks
            for number in range(blocks[owner]):
                ready = leave[rank] if not step else max(leave[rank], there[rank, owner, number])
                free[rank] = max(free[rank], ready) + hop[rank]
                ends[(rank + 1) % ranks, owner, number] = max(ready, free[rank] - ahead) + piece[rank]
        there = ends
    return free


@pytest.mark.parametrize("ahead", [0, 10, 60])
@pytest.mark.parametrize("seed", range(30))
def test_blocks_go_round(seed, ahead):
    random = np.random.default_rng(seed)
    ranks = int(random.integers(2, 7))
    blocks, leave = random.integers(0, 90, ranks), random.uniform(0, 90, ranks)
    hop, piece = random.choice([0.1, 1.0, 1.0], ranks), np.full(ranks, 1e-3)
    found = around(leave, leave, blocks.astype(float), (hop, piece, np.full(ranks, float(ahead))))
    right = np.array(followed(leave, blocks, hop, piece, ahead))
    assert found == pytest.approx(right, abs=3 * ranks)


def test_equal_boards_and_blocks_keep_every_link_busy():
    assert around(np.zeros(4), np.zeros(4), np.full(4, 5.0), (np.ones(4), np.zeros(4), np.zeros(4))).tolist() == [15.0] * 4
