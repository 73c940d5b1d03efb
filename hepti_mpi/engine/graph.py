"""The ONNX graph of a segment while it is written: nodes, weights that stay in the store's file, constants. Knows no operation."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from hepti_mpi.engine.packing import asked
from hepti_mpi.models.formats import VALUES
from hepti_mpi.weights.slices import Slice
from hepti_mpi.weights.store import Store

MICROSOFT = "com.microsoft"
DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int8": TensorProto.INT8, "uint8": TensorProto.UINT8}


class Graph:
    """Collects nodes, initializers and inputs of one segment.

    `threads`: with which it is computed, None where that is not known. `rounded`: what values were rounded to that several products read,
    by what decides it; `written`: what else is written once.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.indexes: dict[str, str] = {}  # what is asked about the rows of a batch: of which kind
        self.written: set[str] = set()
        self.rounded: dict[tuple[object, ...], tuple[str, str]] = {}
        self.count = 0

    def node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str] | None = None, domain: str = "", **attributes: Any) -> str:
        if outputs is None:
            self.count += 1
            outputs = [f"{kind}_{self.count}"]
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), domain=domain, **attributes))
        return outputs[0]

    def either(self, condition: str, one: Callable[[], str], other: Callable[[], str], output: str) -> None:
        """Write two ways to a float32 value, of which `condition` decides at each run."""
        ways, outside = [], self.nodes
        for write in (one, other):
            self.nodes = []
            found = helper.make_tensor_value_info(write(), TensorProto.FLOAT, None)
            ways.append(helper.make_graph(self.nodes, "way", [], [found]))
        self.nodes = outside
        self.node("If", [condition], [output], then_branch=ways[0], else_branch=ways[1])

    def ask(self, kind: str, of: object = None) -> str:
        """Declare an input that says something about the rows of a batch, see packing."""
        name = asked(kind, of)
        self.indexes[name] = kind
        return name

    def weight(self, store: Store, piece: Slice, shape: tuple[int, ...], part: str = VALUES) -> str:
        """Declare a part of a slice of the store, viewed as `shape`, as an initializer that lives in the store's file."""
        region, kind, name = store.region(piece, part), piece.parts[part].kind, piece.name if part == VALUES else f"{piece.name}.{part}"
        tensor = TensorProto(name=name, data_type=DTYPES[kind.name], dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", store.file.name), ("offset", region.offset), ("length", region.bytes)):
            tensor.external_data.add(key=key, value=str(value))
        assert kind.itemsize * prod(shape) == region.bytes
        self.initializers[name] = tensor
        return name

    def constant(self, name: str, values: np.ndarray) -> str:
        known = self.initializers.get(name)
        assert known is None or tuple(known.dims) == values.shape, f"constant {name} is {tuple(known.dims)} and {values.shape}"
        self.initializers[name] = onnx.numpy_helper.from_array(values, name)
        return name
