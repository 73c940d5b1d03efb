"""Whether products of 8-bit whole numbers are right on this processor. Knows ONNX Runtime; knows no weight, format or segment."""

from functools import cache
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from hepti_mpi.engine import opening
from hepti_mpi.engine.graph import MICROSOFT, Graph

MIDDLE = 128  # of 256 whole numbers, which is 0 where as many are below it as above


@cache
def signed_are_right() -> bool:
    """Return whether rows in unsigned numbers times weights in signed ones come to what they should, which is tried.

    AVX2 and AVX-512 without VNNI add two products at once in 16 bits, where 255 x 127 twice is too much and is cut off without a word; of
    random numbers a sum can be off by a fifth. With both sides unsigned they add in 32 bits, which takes longer.
    Source: ONNX Runtime's page "Quantize ONNX models", on U8S8 and saturation.
    """
    rows, weights = np.full((2, 16), 255, np.uint8), np.full((16, 32), 127, np.int8)
    right = rows.astype(np.int32) @ weights.astype(np.int32)
    return all(np.array_equal(_product(some, weights), right[: len(some)]) for some in (rows, rows[:1]))


def _product(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return what ONNX Runtime makes of whole numbers [r, K] times [K, N]."""
    graph = Graph()
    names = [graph.constant(name, np.array(1, np.float32)) for name in ("scale", "worth")]
    graph.node("MatMulIntegerToFloat", ["x", graph.constant("weights", weights), *names], ["y"], MICROSOFT)
    rows_in = helper.make_tensor_value_info("x", TensorProto.UINT8, None)
    sums_out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = helper.make_graph(graph.nodes, "product", [rows_in], [sums_out], list(graph.initializers.values()))
    return np.asarray(opening.session(made, Path("."), "packed", 1).run(None, {"x": rows})[0])
