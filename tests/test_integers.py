"""Products of 8-bit whole numbers come to what they should on this processor, whatever it is."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from hepti_mpi.engine import integers, opening
from hepti_mpi.engine.graph import Graph
from hepti_mpi.engine.products import LEAST, Made, Product
from hepti_mpi.models.formats import CHANNELS, FORMATS, SCALES, VALUES
from hepti_mpi.weights.slices import Slice

INPUTS, OUTPUTS = 96, 40


def answered(rows, weight, inner, least=None, threads=1):
    """Rows times a weight of 8-bit columns, by ONNX Runtime."""
    graph = Graph(threads)
    parts = {VALUES: weight, SCALES: np.ones(OUTPUTS, np.float32), CHANNELS: np.ones(INPUTS, np.float32)}
    output = Product(graph, Made(parts), "x", Slice("w", 0, weight.shape, FORMATS["q8"], inner), least).write(None, None)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", output)]
    made = helper.make_graph(graph.nodes, "one", infos[:1], infos[1:], list(graph.initializers.values()))
    return opening.session(made, Path("."), "packed", threads).run(None, {"x": rows})[0]


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("least, largest", [(None, 127), (LEAST["relu"], 255)])
@pytest.mark.parametrize("inner", [0, 1])
@pytest.mark.parametrize("signed", [None, False])
def test_the_largest_numbers_are_added_right(monkeypatch, rows, least, largest, inner, signed):
    """Two products of 255 and 127 are more than 16 bits hold, in which some processors add them; nothing is rounded here."""
    if signed is not None:
        monkeypatch.setattr(integers, "signed_are_right", lambda: signed)
    random = np.random.default_rng(rows)
    x = random.choice([0 if least == 0 else -largest, 1, largest], (rows, INPUTS)).astype(np.float32)
    x[:, 0] = largest  # of which all of a row are parts
    weights = [np.full((INPUTS, OUTPUTS), 127), np.full((INPUTS, OUTPUTS), -127), random.integers(-127, 128, (INPUTS, OUTPUTS))]
    for matrix in weights:
        weight = np.ascontiguousarray(matrix.T if inner else matrix, np.int8)
        for threads in (1, 2):
            np.testing.assert_allclose(answered(x, weight, inner, least, threads), x @ matrix, rtol=1e-6)


def test_signed_weights_are_tried():
    assert integers.signed_are_right() in (True, False)
    right = np.full((2, 3), 16 * 2 * 5, np.float32)
    np.testing.assert_array_equal(integers._product(np.full((2, 16), 2, np.uint8), np.full((16, 3), 5, np.int8)), right)
