from itertools import accumulate

import numpy as np
import pytest

from hepti_mpi.engine.packing import Rows, pack

LENGTHS = [(9,), (1,), (4, 1, 7), (1, 1, 1), (7, 8, 9), (3, 3)]


def attend(q, kv, request):
    """Each row: the sum over its own request of something that depends on both rows."""
    return np.array([[sum(np.sin(a + b) for b, r in zip(kv, request) if r == mine)] for a, mine in q])


@pytest.mark.parametrize("lengths", LENGTHS)
def test_every_part_of_every_batch(lengths):
    """Gather, mix per request, gather back: the same as row by row."""
    rows = sum(lengths)
    values = np.random.default_rng(rows).normal(size=rows)
    request = np.repeat(np.arange(len(lengths)), lengths)
    for start in range(rows + 1):
        for stop in range(start, rows + 1):
            part = pack(lengths, start, stop)
            assert len(part.unpad) == stop - start
            own = values[start:stop]
            if not len(own):
                assert part.q_index.size == part.kv_index.size == part.kv_lengths.size == 0
                continue
            q, kv = own[part.q_index], values[part.kv_index]  # [requests, q], [requests, kv]
            seen = np.arange(kv.shape[1]) < part.kv_lengths[:, None]
            mixed = (np.sin(q[:, :, None] + kv[:, None, :]) * seen[:, None, :]).sum(axis=2)
            expected = attend(zip(own, request[start:stop]), values, request)
            np.testing.assert_allclose(mixed.ravel()[part.unpad], expected[:, 0], atol=1e-12)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_only_requests_with_a_row_in_the_part_take_part(lengths):
    ends = list(accumulate(lengths))
    for number, end in enumerate(ends):
        part = pack(lengths, end - 1, end)
        assert part.kv_lengths.tolist() == [lengths[number]] and part.q_index.tolist() == [[0] * min(2, lengths[number])]
        assert part.kv_index.tolist() == [list(range(end - lengths[number], end))]


def test_types_are_those_of_the_graphs():
    part = pack((4, 1, 7), 2, 9)
    assert [a.dtype.name for a in (part.q_index, part.kv_index, part.kv_lengths, part.unpad)] == ["int64", "int64", "int32", "int64"]
    assert part.q_index.shape == (3, 4) and part.kv_index.shape == (3, 7)
    assert part.q_index[2].tolist() == [3, 4, 5, 6] and part.q_index[1].tolist() == [2, 2, 2, 2]


def test_keys_of_whole_requests_are_counted_from_the_first_at_hand():
    """A rank that has the second and the third request alone: rows 4 to 12 of 12."""
    part, alone = pack((4, 1, 7), 4, 12, first_key=4), pack((1, 7), 0, 8)
    for name in ("q_index", "kv_lengths", "unpad"):
        assert getattr(part, name).tolist() == getattr(alone, name).tolist()
    for row, own, length in zip(part.kv_index, alone.kv_index, alone.kv_lengths):
        assert row[:length].tolist() == own[:length].tolist()


@pytest.mark.parametrize("lengths, start, stop, size", [
    ((19, 4), 0, 23, (2 * 19 * 19, 2 * 19)), ((19, 4), 17, 23, (2 * 4 * 19, 2 * 4)), ((5,), 1, 4, (3 * 5, 3)), ((5, 5), 3, 3, (0, 0)),
])  # fmt: skip
def test_padding_is_counted(lengths, start, stop, size):
    assert Rows(lengths, start, stop).size == size
