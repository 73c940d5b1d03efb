"""Models of ONNX byte by byte as the onnx package writes them."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from hepti_mpi.engine import proto

ATTRIBUTES = {"axis": -1, "epsilon": 1e-5, "perm": [0, 2, 1], "mode": "x", "heads": np.int64(300), "alpha": np.float32(0.25), "none": None,
              "yes": True, "large": 1 << 40}  # fmt: skip
ARRAYS = {
    "whole numbers": np.array([-1, 384]), "a number": np.array(2.5, np.float32), "many": np.zeros((2, 300), np.int8),
    "short": np.ones(3, np.float16), "truths": np.array([True, False]), "unsigned": np.full((2, 2), 255, np.uint8),
    "none": np.zeros((0, 3), np.float32), "turned": np.arange(24, dtype=np.float32).reshape(4, 6).T, "words": np.ones((1, 2), np.int32),
}  # fmt: skip
PLACE = {"location": "größe.h5", "offset": 123456789012, "length": 5}


def same(ours, theirs):
    assert ours == theirs.SerializeToString(deterministic=True)


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_a_node(domain):
    ours = proto.node("Kind", ["x", "", "y"], ["z"], domain, **ATTRIBUTES)
    same(ours.content, helper.make_node("Kind", ["x", "", "y"], ["z"], domain=domain, **ATTRIBUTES))
    assert (ours.kind, ours.domain, set(ours.attributes)) == ("Kind", domain, ATTRIBUTES.keys() - {"none"})


@pytest.mark.parametrize("dims", [None, [], [None], [None, 4, 1000]])
@pytest.mark.parametrize("kind", [proto.FLOAT, proto.UINT8, proto.INT8, proto.INT32, proto.INT64, proto.BOOL, proto.FLOAT16])
def test_an_input(kind, dims):
    same(proto.value("x", kind, dims), helper.make_tensor_value_info("x", kind, dims))


def test_the_types():
    assert all(helper.np_dtype_to_tensor_dtype(kind) == number for kind, number in proto.ELEMENT.items())


@pytest.mark.parametrize("name", ARRAYS)
def test_a_constant(name):
    same(proto.constant(name, ARRAYS[name]), numpy_helper.from_array(ARRAYS[name], name))


def stored():
    tensor = onnx.TensorProto(name="w", data_type=proto.INT8, dims=(1000, 384), data_location=onnx.TensorProto.EXTERNAL)
    for key, value in PLACE.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def test_a_weight_in_a_file():
    same(proto.stored("w", proto.INT8, (1000, 384), PLACE), stored())


def test_a_model_with_graphs_in_a_node():
    values, versions = np.ones(200, np.float32), {"": 18, "com.microsoft": 1}
    way = proto.graph([proto.node("Relu", ["x"], ["y"])], "way", [], [proto.value("y", proto.FLOAT)])
    ours = proto.graph([proto.node("If", ["c"], ["o"], then_branch=way, else_branch=way), proto.node("Relu", ["x"], ["p"])], "whole",
                       [proto.value("x", proto.FLOAT), proto.value("c", proto.BOOL, [1])], [proto.value("o", proto.FLOAT)],
                       [proto.stored("w", proto.INT8, (1000, 384), PLACE), proto.constant("v", values)])  # fmt: skip
    info = helper.make_tensor_value_info
    way = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], domain="")], "way", [], [info("y", proto.FLOAT, None)])
    nodes = [helper.make_node("If", ["c"], ["o"], domain="", then_branch=way, else_branch=way),
             helper.make_node("Relu", ["x"], ["p"], domain="")]  # fmt: skip
    theirs = helper.make_graph(nodes, "whole", [info("x", proto.FLOAT, None), info("c", proto.BOOL, [1])], [info("o", proto.FLOAT, None)],
                               [stored(), numpy_helper.from_array(values, "v")])  # fmt: skip
    opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    same(proto.model(ours, versions), helper.make_model(theirs, opset_imports=opsets, ir_version=proto.IR_VERSION))


@pytest.mark.parametrize("value", [[], [0.5], np.zeros(2), b"x", {"a": 1}])
def test_what_no_node_of_ours_has_is_refused(value):
    with pytest.raises(TypeError, match="attribute some is"):
        proto.node("Kind", [], [], some=value)
