"""Models are the very bytes that the package onnx makes of the same, and what onnx reads of them is what was meant."""

import numpy as np
import pytest

from hepti_mpi.engine import modelproto, opening
from hepti_mpi.engine.graph import DTYPES, Graph
from hepti_mpi.engine.modelproto import ELEMENT, make_external_tensor, make_graph, make_model, make_node, make_tensor, make_value_info

onnx = pytest.importorskip("onnx")
NAMES = ("a", "", "größer", "x" * 127, "y" * 128, "z" * 20_000)
SHAPES = (None, (), (3,), (None, None), (1, None, 300), (0, 1 << 40))
ARRAYS = [np.array(1.5, np.float32), np.zeros((0, 3), np.int8), np.arange(24).reshape(2, 3, 4), np.arange(6, dtype=np.uint8)[::2],
          np.array([True, False]), np.array([-1, 1], np.int32), np.arange(1 << 13, dtype=np.float16).reshape(64, -1).T,
          np.random.default_rng(0).standard_normal((300, 700)).astype(np.float32)]  # fmt: skip
ATTRIBUTES = [{}, {"axis": -1}, {"alpha": 0.01, "beta": 1, "zero": 0}, {"perm": (0, 2, 1)}, {"perm": [1, 1 << 40, -5], "bits": np.int64(4)},
              {"epsilon": np.float32(1e-12), "large": 1e30, "keep": True}]  # fmt: skip


def of_onnx(nodes, inputs, outputs, arrays, outside=()):
    """Return the model that onnx makes of nodes as (kind, inputs, outputs, domain, attributes)."""
    made = [onnx.helper.make_node(kind, reads, writes, domain=domain, **more) for kind, reads, writes, domain, more in nodes]
    values = [[onnx.helper.make_tensor_value_info(*one) for one in some] for some in (inputs, outputs)]
    held = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    for name, element, shape, location, offset, length in outside:
        held.append(onnx.TensorProto(name=name, data_type=element, dims=shape, data_location=onnx.TensorProto.EXTERNAL))
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            held[-1].external_data.add(key=key, value=str(value))
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(onnx.helper.make_graph(made, "some", *values, held), opset_imports=opsets, ir_version=9)


def of_ours(nodes, inputs, outputs, arrays, outside=()):
    made = [make_node(kind, reads, writes, domain, **more) for kind, reads, writes, domain, more in nodes]
    held = [*(make_tensor(name, array) for name, array in arrays.items()), *(make_external_tensor(*one) for one in outside)]
    values = [[make_value_info(*one) for one in some] for some in (inputs, outputs)]
    return make_model(make_graph(made, "some", *values, held), [("", 18), ("com.microsoft", 1)], 9)


def test_the_same_bytes():
    nodes = [("Some", NAMES, ["b"], "com.microsoft", more) for more in ATTRIBUTES] + [("Other", [], NAMES, "", {})] * 2
    inputs = [(name, element, shape) for name in NAMES for element in ELEMENT.values() for shape in SHAPES]
    outside = [("w", modelproto.FLOAT16, (70, 1 << 33), "a store.h5", 0, (1 << 40) + 1), ("v", modelproto.INT8, (), "b", 5, 1)]
    for some in ((nodes, inputs, inputs[3:5], {f"n{place}": array for place, array in enumerate(ARRAYS)}, outside), ([], [], [], {})):
        assert of_ours(*some) == of_onnx(*some).SerializeToString(deterministic=True)


def test_kinds_of_elements():
    for name in ("FLOAT", "UINT8", "INT8", "INT32", "INT64", "BOOL", "FLOAT16"):
        assert getattr(modelproto, name) == getattr(onnx.TensorProto, name)
    assert {kind: onnx.helper.tensor_dtype_to_np_dtype(element) for kind, element in ELEMENT.items()} == {kind: kind for kind in ELEMENT}
    assert all(ELEMENT[np.dtype(name)] == element for name, element in DTYPES.items())


def test_two_ways_are_graphs_in_a_node():
    graph = Graph()
    graph.either("which", lambda: graph.node("Neg", ["x"]), lambda: graph.node("Abs", ["x"]), "y")
    infos = [make_value_info("which", modelproto.BOOL, (1,)), make_value_info("x", modelproto.FLOAT, (None,))]
    made = make_graph(graph.nodes, "two", infos, [make_value_info("y", modelproto.FLOAT, (None,))])
    read = onnx.load_from_string(opening.model_of(made))
    onnx.checker.check_model(read)
    (node,) = read.graph.node
    ways = {one.name: [inner.op_type for inner in one.g.node] for one in node.attribute}
    assert ways == {"then_branch": ["Neg"], "else_branch": ["Abs"]} and read.SerializeToString(deterministic=True) == opening.model_of(made)


@pytest.mark.parametrize("value", [None, "text", b"x", (), [1, 0.5], np.zeros(2)])
def test_an_attribute_of_another_kind_is_not_written(value):
    with pytest.raises(TypeError, match="an attribute axis of"):
        make_node("Some", ["x"], ["y"], axis=value)


def test_what_is_kept_of_an_array_is_what_it_was():
    """Of a small one, which may be a view of something that goes on."""
    values = np.arange(8, dtype=np.float32)
    tensor = make_tensor("a", values)
    values[:] = 0
    assert b"".join(tensor.parts).endswith(np.arange(8, dtype=np.float32).tobytes())
