"""Sums over ranks, as decoders do them: the same on every rank to the last bit, whatever way they take."""

import threading

import numpy as np
import pytest

from hepti_mpi.comm.exchange import Exchanges


@pytest.mark.parametrize("polite", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 2048), (4, 2048), (5, 2049), (64, 2049)])
def test_a_sum_is_the_same_everywhere(world, shape, polite):
    """Few bytes go to each rank at once; of many each rank sums a part, though there may be fewer numbers than ranks, and of
    very many each travels in pieces."""
    every = [np.random.default_rng([rank, *shape]).normal(size=shape).astype(np.float32) for rank in range(world.size)]
    own, result = every[world.rank].copy(), np.full(shape, np.nan, np.float32)
    group = world.subset(range(world.size))
    group.polite = polite
    for _ in range(3):
        group.allreduce(own, result)
        assert np.array_equal(own, every[world.rank]), "the terms are as they were"
        np.testing.assert_allclose(result, np.sum(every, axis=0, dtype=np.float64), rtol=0, atol=1e-5)
    if polite:
        expected = every[0].copy()
        for term in every[1:]:
            expected += term
        assert np.array_equal(result, expected), "summed in the order of ranks"
    assert len(set(world.gather_all(result.tobytes().hex()))) == 1


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (64, 2049)])
def test_sums_that_travel_meanwhile(world, shape):
    """Two at a time, each begun again when it is there: the same everywhere, and the terms are as they were."""
    exchanges = Exchanges(world, "yield")
    every = [np.random.default_rng([rank, *shape]).normal(size=(2, *shape)).astype(np.float32) for rank in range(world.size)]
    own, result, room = every[world.rank].copy(), np.empty((2, *shape), np.float32), np.empty((2, *shape), np.float32)
    group = world.subset(range(world.size))
    members = exchanges.ranks_of(group)
    assert members == list(range(world.size))
    if world.size == 1:  # which has nobody to add to
        with pytest.raises(AssertionError):
            exchanges.sum_up(own[0], result[0], room[0], members, 0)
        return
    rings = [exchanges.sum_up(own[tile], result[tile], room[tile], members, 2 * tile) for tile in range(2)]
    for turn in range(3):
        result[:] = np.nan
        done = [threading.Event() for _ in rings]
        for number, (add_up, spread) in enumerate(rings):
            add_up.turn = spread.turn = 2 * turn + number
            exchanges.start(add_up, aside=True, then=[(spread, done[number])])
        for one in done:
            exchanges.wait([one])
        assert np.array_equal(own, every[world.rank]), "the terms are as they were"
        np.testing.assert_allclose(result, np.sum(every, axis=0, dtype=np.float64), rtol=0, atol=1e-5)
        assert len(set(world.gather_all(result.tobytes().hex()))) == 1
    world.barrier()
    for ring in (ring for both in rings for ring in both):
        ring.free()
