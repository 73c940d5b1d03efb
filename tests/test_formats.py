"""Formats: what is encoded is decoded, and the bytes are those of the parts."""

import numpy as np
import pytest

from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.formats import FORMATS
from hepti_mpi.models.spec import layer_bytes, layer_weights, named_weights
from hepti_mpi.weights.slices import span
from hepti_mpi.weights.store import whole_slices


@pytest.mark.parametrize("shape", [(7,), (3, 8, 9), (1, 5), (0, 4)], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_encoded_is_decoded(name, shape):
    values, kind = np.random.default_rng(0).standard_normal(shape).astype(np.float32), FORMATS[name]
    parts = kind.encode(values)
    assert {part: (array.dtype, array.shape) for part, array in parts.items()} == kind.parts(shape)
    assert kind.bytes(shape) == sum(array.nbytes for array in parts.values())
    np.testing.assert_array_equal(kind.decode(parts), values)
    if shape[0] > 1:
        first = kind.granule(0)
        np.testing.assert_array_equal(kind.decode(kind.encode(values[:first])), kind.decode(parts)[:first])


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-vit", "bert-large"])
def test_the_bytes_of_a_layer_are_those_of_its_slices(name):
    spec = random_model(name).spec
    by_axis = layer_bytes(spec)
    hidden, ffn = spec.hidden, spec.ffn
    assert by_axis == {"heads": (4 * hidden + 3) * hidden * 4, "columns": (2 * hidden + 1) * ffn * 4, None: 6 * hidden * 4}
    assert sum(by_axis.values()) == sum(span(weight).bytes for weight in layer_weights(spec, 0))
    assert [piece.name for piece in whole_slices(spec)] == [name for name, _ in named_weights(spec)]


def test_every_axis_has_a_name():
    for name in ("tiny-bert", "tiny-vit"):
        assert all(len(weight.axes) == len(weight.shape) for _, weight in named_weights(random_model(name).spec))
