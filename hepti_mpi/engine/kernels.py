"""How each operation is written as ONNX nodes. Knows neither sessions nor exchanges, nor where a value goes next."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper

from hepti_mpi.errors import StoreError
from hepti_mpi.models.formats import F32
from hepti_mpi.program import ops
from hepti_mpi.weights.slices import Slice
from hepti_mpi.weights.store import Region, Store

MICROSOFT = "com.microsoft"
INDEXES = {"q_index": TensorProto.INT64, "kv_index": TensorProto.INT64, "kv_lengths": TensorProto.INT32, "unpad": TensorProto.INT64}
DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


class Graph:
    """Collects nodes, initializers and inputs of one segment."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.indexes: dict[str, None] = {}
        self.count = 0

    def node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str] | None = None, domain: str = "", **attributes: Any) -> str:
        if outputs is None:
            self.count += 1
            outputs = [f"{kind}_{self.count}"]
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), domain=domain, **attributes))
        return outputs[0]

    def index(self, name: str) -> str:
        self.indexes[name] = None
        return name

    def weight(self, store: Store, piece: Slice, shape: tuple[int, ...]) -> str:
        """Declare a slice of the store, viewed as `shape`, as an initializer that lives in the store's file. Raises StoreError."""
        if piece.format is not F32:
            raise StoreError(f"{store.path}: {piece.name} is stored as {piece.format.name}, which no product reads yet")
        region: Region = store.region(piece)
        tensor = TensorProto(name=piece.name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", store.path.name), ("offset", region.offset), ("length", region.bytes)):
            tensor.external_data.add(key=key, value=str(value))
        assert 4 * prod(shape) == region.bytes
        self.initializers[piece.name] = tensor
        return piece.name

    def constant(self, name: str, values: np.ndarray) -> str:
        self.initializers[name] = onnx.numpy_helper.from_array(values, name)
        return name


def attend(graph: Graph, q: str, k: str, v: str, heads: int, width: int, output: str) -> None:  # [r, w], [n, w], [n, w] -> [r, w]
    """Write attention among packed requests: their rows are laid out as [requests, longest] and back."""
    batch = [graph.node("Gather", [value, graph.index(index)]) for value, index in ((q, "q_index"), (k, "kv_index"), (v, "kv_index"))]
    inputs = [*batch, "", graph.index("kv_lengths")]
    mixed = graph.node("MultiHeadAttention", inputs, domain=MICROSOFT, num_heads=heads)  # [requests, q, w]
    flat = graph.node("Reshape", [mixed, graph.constant(f"flat_{width}", np.array([-1, width], np.int64))])
    graph.node("Gather", [flat, graph.index("unpad")], [output])


def activate(graph: Graph, kind: str, x: str, bias: str | None, output: str | None = None) -> str:  # [r, w], [w] -> [r, w]
    """Write the activation `kind`, with a bias unless it is a plain one; return what it is called."""
    outputs = [output] if output else None
    if kind == "relu":
        return graph.node("Relu", [x], outputs)
    return graph.node({"gelu": "BiasGelu", "gelu_tanh": "FastGelu"}[kind], [x] if bias is None else [x, bias], outputs, domain=MICROSOFT)


@dataclass(frozen=True)
class Writing:
    """A segment that is being written, for a rank with `heads` own heads. `plain`: of one request, whose rows need no rearranging: values
    are [1, rows, width]."""

    graph: Graph
    store: Store
    heads: int
    plain: bool = False

    def vector(self, piece: Slice) -> str:
        return self.graph.weight(self.store, piece, (prod(piece.shape),))

    def matrix(self, piece: Slice) -> str:
        return self.graph.weight(self.store, piece, (prod(piece.shape[:-1]), piece.shape[-1]))

    def linear(self, x: str, weight: Slice, bias: Slice | None, output: str | None = None) -> str:  # [r, h], [o, h], [o] -> [r, o]
        inputs = [x, self.matrix(weight), *([self.vector(bias)] if bias else [])]
        return self.graph.node("Gemm", inputs, [output] if output else None, transB=1)


Own = Mapping[str, Slice]  # by what each is to the operation: the rank's slices of its weights
Kernel = Callable[[Writing, Any, Own], None]  # into what, the operation, its weights
KERNELS: dict[type[ops.Op], Kernel] = {}
Written = TypeVar("Written", bound=Kernel)


def of(kind: type[ops.Op]) -> Callable[[Written], Written]:
    """Register the function that follows for operations of a class."""

    def register(function: Written) -> Written:
        KERNELS[kind] = function
        return function

    return register


@of(ops.Norm)
def norm(to: Writing, op: ops.Norm, w: Own) -> None:
    """[r, h] -> [r, h]"""
    inputs = [op.reads[0], to.vector(w["norm.weight"]), to.vector(w["norm.bias"])]
    to.graph.node("LayerNormalization", inputs, op.writes, epsilon=op.norm.eps, axis=-1)


@of(ops.AddNorm)
def add_norm(to: Writing, op: ops.AddNorm, w: Own) -> None:
    """x, p [r, h] -> x + p + bias, unless nobody reads it, and its norm"""
    *total, y = op.writes  # three nodes take a fifth of the time of ONNX Runtime's SkipLayerNormalization
    biased = to.graph.node("Add", [op.reads[1], to.vector(w["bias"])])
    summed = to.graph.node("Add", [op.reads[0], biased], total or None)
    inputs = [summed, to.vector(w["norm.weight"]), to.vector(w["norm.bias"])]
    to.graph.node("LayerNormalization", inputs, [y], epsilon=op.norm.eps, axis=-1)


@of(ops.Project)
def project(to: Writing, op: ops.Project, w: Own) -> None:
    """y [r, h] -> [r, w] by each matrix"""
    for m, output in zip(op.matrices, op.writes, strict=True):
        to.linear(op.reads[0], w[f"{m}.weight"], w[f"{m}.bias"], output)


@of(ops.Mix)
def mix(to: Writing, op: ops.Mix, w: Own) -> None:
    """q [r, w], k and v [n, w] -> c [r, w]"""
    heads = to.heads if op.axis else op.block.heads
    if to.plain:
        to.graph.node("MultiHeadAttention", op.reads, op.writes, MICROSOFT, num_heads=heads)
    else:
        q, k, v = op.reads
        attend(to.graph, q, k, v, heads, heads * op.block.dim, op.writes[0])


@of(ops.Out)
def out(to: Writing, op: ops.Out, w: Own) -> None:
    """c [r, w] -> p [r, h]"""
    to.graph.node("Gemm", [op.reads[0], to.matrix(w["o.weight"])], op.writes)


@of(ops.Mlp)
def mlp(to: Writing, op: ops.Mlp, w: Own) -> None:
    """y [r, h] -> p [r, h]"""
    bias, relu = w["up.bias"], op.block.activation == "relu"
    up = to.linear(op.reads[0], w["up.weight"], bias if relu else None)  # [r, columns]
    mixed = activate(to.graph, op.block.activation, up, None if relu else to.vector(bias))
    to.graph.node("Gemm", [mixed, to.matrix(w["down.weight"])], op.writes)


@of(ops.Cast)
def cast(to: Writing, op: ops.Cast, w: Own) -> None:
    """[r, w] -> the same in another type"""
    for name, output in zip(op.reads, op.writes, strict=True):
        to.graph.node("Cast", [name], [output], to=DTYPES[op.dtype])
