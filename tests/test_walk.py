"""Clocks of single steps, with numbers one can follow."""

import numpy as np
import pytest

from hepti_mpi.planning.traffic import Direct, Links, Traffic
from hepti_mpi.planning.walk import Computing, Walk

NONE = np.zeros((2, 1))
BLINK = 1e-9  # seconds
LINKS = Links(NONE, NONE, NONE, NONE, np.zeros((2, 2, 1), bool), NONE, NONE, np.zeros((2, 1)), np.zeros((2, 1)))


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


def test_the_answer_waits_for_its_own_sum():
    walk = Walk((2, 1), LINKS, 0.0, in_turn=False)
    walk.computed(computing(1.0), [], ["part"])
    walk.sent_by_messages(exchange(4.0), ["part"], ["sum"], last=True)
    assert walk.clock == pytest.approx(np.full((2, 1), 5.0))
