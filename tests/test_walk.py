"""Clocks of single steps, with numbers one can follow."""

from dataclasses import replace

import numpy as np
import pytest

from hepti_mpi.planning.traffic import Direct, Links, Round, Traffic
from hepti_mpi.planning.walk import Computing, Walk

NONE = np.zeros((2, 1))
BLINK = 1e-9  # seconds
THREE = np.zeros((3, 1))
RING_LINKS = Links(THREE, THREE, THREE + 1, THREE, THREE, np.zeros((3, 3, 1), bool), THREE, THREE, np.zeros((2, 1)), np.zeros((2, 1)))
LINKS = Links(NONE, NONE, NONE, NONE, NONE, np.zeros((2, 2, 1), bool), NONE, NONE, np.zeros((2, 1)), np.zeros((2, 1)))


def exchange(ending):
    """Return an exchange that takes next to no time on a wire, and `ending` seconds of whoever reads first what came."""
    return Traffic(np.zeros((7, 1)), NONE, None, NONE + ending, np.zeros(1, bool), None, Direct(NONE + BLINK, NONE, None, None, None, None))


def computing(seconds):
    return Computing(NONE + seconds, None)


@pytest.mark.parametrize("tiles", [1, 2, 3])
def test_sums_of_several_tiles_of_one_value_are_all_added_by_whoever_reads_it(tiles):
    walk = Walk((2, 1), LINKS, 0.0, in_turn=False)
    for tile in range(tiles):
        walk.computed(computing(1.0), [], [f"part {tile}"])
        walk.sent_by_messages(exchange(2.0**tile), [f"part {tile}"], ["sum"], last=False)
    other = walk.fork()
    for one in (walk, other):
        one.computed(computing(1.0), ["sum"], ["first"])
        one.computed(computing(1.0), ["sum"], ["second"])  # what is added once is not added again
        assert one.clock == pytest.approx(np.full((2, 1), tiles + 2 + 2.0**tiles - 1))


@pytest.mark.parametrize("apart", [True, False])
def test_a_ring_waits_for_a_late_rank_however_far_links_are_ahead(apart):
    """Whether its blocks are told apart or, of many ranks, are not."""
    step = Traffic(np.zeros((10, 1)), THREE, None, None, np.ones(1, bool), Round(THREE + 10, THREE + 5 if apart else None), None)
    walk = Walk((3, 1), replace(RING_LINKS, ahead=THREE + 60), 0.0, in_turn=False)
    walk.computed(Computing(np.array([[0.0], [50.0], [0.0]]), None), [], ["part"])
    walk.sent_by_messages(step, ["part"], ["sum"], last=False)
    assert walk.ready["sum"][2, 0] >= 50, "what the late one passes on"


def test_the_answer_waits_for_its_own_sum():
    walk = Walk((2, 1), LINKS, 0.0, in_turn=False)
    walk.computed(computing(1.0), [], ["part"])
    walk.sent_by_messages(exchange(4.0), ["part"], ["sum"], last=True)
    assert walk.clock == pytest.approx(np.full((2, 1), 5.0))
