"""Models are written byte for byte as the package onnx writes them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hepti_mpi.engine import onnxfile
from hepti_mpi.engine.onnxfile import FLOAT, FLOAT16, INT64, TYPES, Body, Node, Tensor, Value

ATTRIBUTES = {"axis": -1, "to": 10, "flag": True, "big": 1 << 40, "epsilon": 1e-5, "none": 0.0, "way": "tanh", "axes": [0, -2, 300]}
ARRAYS = [np.arange(6).reshape(2, 3).astype(dtype) for dtype in TYPES]
ARRAYS += [np.array(0.5, np.float32), np.zeros((0, 4), np.int8), np.arange(210, dtype=np.float32).reshape(3, 70)[:, ::2]]
PLACE = {"location": "model.h5", "offset": "4096", "length": "24000000000"}


def values(make):
    return [make("x", FLOAT, [None, 768]), make("ids", INT64, None), make("much", INT64, []), make("\u00e9", FLOAT16, [1, 1 << 33])]


def ours():
    inner = Body("way", [Node("Identity", ["x"], ["z"])], [], [Value("z", FLOAT)])
    nodes = [Node("If", ["much"], ["y"], "", {"then_branch": inner, "else_branch": inner})]
    nodes += [Node("Odd", ["y", "", "w0"], ["a", "b"], "com.microsoft", ATTRIBUTES)]
    tensors = [Tensor(f"w{number}", TYPES[array.dtype], array.shape, array.tobytes()) for number, array in enumerate(ARRAYS)]
    tensors += [Tensor("far", FLOAT, (300, 20_000_000), place=PLACE)]
    return onnxfile.model(Body("segment", nodes, values(Value), [Value("a", FLOAT)], tensors), {"": 21, "com.microsoft": 1})


def theirs():
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["z"], domain="")], "way", [], [z])
    nodes = [helper.make_node("If", ["much"], ["y"], domain="", then_branch=inner, else_branch=inner)]
    nodes += [helper.make_node("Odd", ["y", "", "w0"], ["a", "b"], domain="com.microsoft", **ATTRIBUTES)]
    tensors = [numpy_helper.from_array(array, f"w{number}") for number, array in enumerate(ARRAYS)]
    tensors += [TensorProto(name="far", data_type=TensorProto.FLOAT, dims=(300, 20_000_000), data_location=TensorProto.EXTERNAL)]
    for key, value in PLACE.items():
        tensors[-1].external_data.add(key=key, value=value)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "segment", values(info), [info("a", TensorProto.FLOAT, None)], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=onnxfile.IR_VERSION).SerializeToString(deterministic=True)


def test_a_model_is_written_as_onnx_writes_it():
    assert ours() == theirs()


def test_types_are_those_of_onnx():
    assert {dtype: helper.np_dtype_to_tensor_dtype(dtype) for dtype in TYPES} == TYPES


@pytest.mark.parametrize("value", [1, -1, 127, 128, 1 << 62, -(1 << 63), 0.1, "", "word", [], [5]])
def test_attributes_are_read_as_what_they_are(value):
    body = Body("one", [Node("Odd", [], ["y"], attributes={"it": value})], [], [])
    (node,) = onnx.load_model_from_string(onnxfile.model(body, {"": 18})).graph.node
    found = helper.get_attribute_value(node.attribute[0])
    assert (found.decode() if isinstance(found, bytes) else found) == (np.float32(value) if isinstance(value, float) else value)
