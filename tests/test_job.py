"""How requests become batches, and what a plan is made for."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hepti_mpi.planning.memory import PADDED_SCORES
from hepti_mpi.serving.scheduler import batches


@given(st.lists(st.integers(1, 512), max_size=60), st.integers(1, 700), st.integers(1, 1024))
def test_every_request_is_in_one_batch_that_pays_little_for_padding(lengths, most_rows, hidden):
    parts = batches(lengths, most_rows, hidden)
    assert sorted(index for part in parts for index in part) == list(range(len(lengths)))
    for part in parts:
        own = np.array([lengths[index] for index in part])
        assert len(part) == 1 or own.sum() <= most_rows
        assert len(part) * own.max() ** 2 - (own**2).sum() <= PADDED_SCORES * own.sum() * hidden


def test_equal_requests_fill_batches():
    assert batches([7] * 9, 21, 8) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_one_long_request_does_not_make_short_ones_pay():
    assert batches([200] + [1] * 50, 256, 64)[0] == [0]
    assert batches([], 256, 64) == []
