"""Weights as whole numbers: what was such stays so, and products with rows that were seen change less than with the nearest ones."""

import numpy as np
import pytest

from hepti_mpi.models import rounding
from hepti_mpi.models.formats import Q4, Q4_WIDE, Q8, Q8_BLOCKS, Seen

DRAW = np.random.default_rng(0)


def rows_like_those_of_layers(count, width, rank=40):
    """Numbers that vary together, as those that layers give to each other do."""
    return (DRAW.standard_normal((count, rank)) @ MIXED[width] + 0.3 * DRAW.standard_normal((count, width))).astype(np.float32)


MIXED = {width: DRAW.standard_normal((40, width)) * np.exp(DRAW.standard_normal(width)) for width in (200, 1100)}


CASES = [  # the last block is not full; more than one group
    (Q4, 200, 1), (Q4_WIDE, 200, 0), (Q8_BLOCKS, 200, 1), (Q4_WIDE, 1100, 1), (Q8, 200, 1), (Q8, 1100, 0),
]  # fmt: skip


@pytest.mark.parametrize("kind, width, inner", CASES, ids=[f"{kind.name}-{width}-{inner}" for kind, width, inner in CASES])
def test_products_change_less(kind, width, inner):
    matrix = DRAW.standard_normal((8, width)).astype(np.float32)
    seen, others = rows_like_those_of_layers(300, width), rows_like_those_of_layers(100, width)
    values = matrix if inner else np.ascontiguousarray(matrix.T)
    errors = []
    for known in (None, Seen(seen)):
        found = kind.decode(kind.encode(values, inner, known), values.shape, inner)
        errors.append(np.square(others @ ((found if inner else found.T) - matrix).T).mean())
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("kind", [Q4, Q8_BLOCKS], ids=lambda kind: kind.name)
def test_blocks_that_are_such_already_are_kept_whatever_was_seen(kind):
    values = kind.decode(kind.encode(DRAW.standard_normal((9, 200)).astype(np.float32), 1), (9, 200), 1)
    again = kind.decode(kind.encode(values, 1, Seen(rows_like_those_of_layers(50, 200))), values.shape, 1)
    np.testing.assert_array_equal(again, values)


@pytest.mark.parametrize("rows", [np.zeros((5, 200)), np.full((5, 200), np.nan), np.zeros((0, 200)), np.full((3, 200), 1e30)])
def test_rows_that_show_nothing_do_no_harm(rows):
    matrix = DRAW.standard_normal((4, 200)).astype(np.float32)
    matrix[1] = 0
    whole, scales = rounding.fed_back(matrix, 4, 32, rows.astype(np.float32))
    assert whole.shape == (4, 7, 32) and whole.max() < 16 and np.isfinite(scales).all()
    assert np.abs(Q4.decode(Q4.pack(whole, scales, 1, Q4.parts(matrix.shape)), matrix.shape) - matrix).max() < 0.5


@pytest.mark.parametrize("rows", [np.zeros((5, 200)), np.full((5, 200), np.nan), np.zeros((0, 200)), np.full((3, 200), 1e30)])
def test_rows_that_show_nothing_leave_8_bits_near(rows):
    matrix = DRAW.standard_normal((4, 200)).astype(np.float32)
    matrix[1] = 0
    found = Q8.decode(Q8.encode(matrix, 1, Seen(rows.astype(np.float32))), matrix.shape)
    assert np.abs(found - matrix).max() <= 1.01 * np.abs(matrix).max() / 127
    assert not found[1].any()
