"""How each operation is written as ONNX nodes. Knows neither sessions nor exchanges, nor where a value goes next."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper

from hepti_mpi.engine.packing import asked, reach
from hepti_mpi.errors import StoreError
from hepti_mpi.models import blocks
from hepti_mpi.models.formats import F32
from hepti_mpi.program import ops
from hepti_mpi.weights.slices import Slice
from hepti_mpi.weights.store import Region, Store

MICROSOFT = "com.microsoft"
ASKED = {  # what segments may ask about the rows of a batch: its type and how many dimensions it has
    "q_index": (TensorProto.INT64, 2), "kv_index": (TensorProto.INT64, 2), "kv_lengths": (TensorProto.INT32, 1),
    "unpad": (TensorProto.INT64, 1), "mask": (TensorProto.FLOAT, 4), "buckets": (TensorProto.INT64, 3),
    "cos": (TensorProto.FLOAT, 2), "sin": (TensorProto.FLOAT, 2),
}  # fmt: skip
DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


class Graph:
    """Collects nodes, initializers and inputs of one segment."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.indexes: dict[str, str] = {}  # what is asked about the rows of a batch: of which kind
        self.count = 0

    def node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str] | None = None, domain: str = "", **attributes: Any) -> str:
        if outputs is None:
            self.count += 1
            outputs = [f"{kind}_{self.count}"]
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), domain=domain, **attributes))
        return outputs[0]

    def ask(self, kind: str, of: object = None) -> str:
        """Declare an input that says something about the rows of a batch, see packing."""
        name = asked(kind, of)
        self.indexes[name] = kind
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


def attend(graph: Graph, block: blocks.Attention, reads: Sequence[str], output: str, granules: int, table: str | None = None) -> None:
    """Write attention among packed requests: q [r, w], k and v [n, kv w] -> [r, w], laid out as [pieces, longest, w] and back.

    `granules`: of heads that the values have; `table` [granules, buckets]: of relative positions.
    """
    of, heads = reach(block), granules * block.group
    places = [graph.ask(kind, of) for kind in ("q_index", "kv_index", "kv_index")]
    batch = [graph.node("Gather", [value, place]) for value, place in zip(reads, places, strict=True)]
    if block.plain:
        mixed = multi_head(graph, block, [*batch, "", graph.ask("kv_lengths")], heads)  # [requests, q, w]
    else:
        seen = graph.ask("mask", of)  # [pieces, 1, q, kv]
        if table:
            shifts = graph.node("Gather", [table, graph.ask("buckets", (of, block.relative))], axis=1)  # [heads, pieces, q, kv]
            seen = graph.node("Add", [graph.node("Transpose", [shifts], perm=[1, 0, 2, 3]), seen])
        more: dict[str, Any] = {"scale": block.multiplier, "q_num_heads": heads, "kv_num_heads": granules, "softcap": block.softcap}
        mixed = graph.node("Attention", [*batch, seen], **more)
    width = heads * block.dim
    flat = graph.node("Reshape", [mixed, graph.constant(f"flat_{width}", np.array([-1, width], np.int64))])
    graph.node("Gather", [flat, graph.ask("unpad", of)], [output])


def multi_head(graph: Graph, block: blocks.Attention, inputs: Sequence[str], heads: int, outputs: Sequence[str] | None = None) -> str:
    """Write ONNX Runtime's own attention, which knows what is plain."""
    more: dict[str, Any] = {} if block.scale is None else {"scale": block.scale}
    return graph.node("MultiHeadAttention", inputs, outputs, MICROSOFT, num_heads=heads, **more)


def activate(graph: Graph, kind: str, x: str, bias: str | None, output: str | None = None) -> str:  # [r, w], [w] -> [r, w]
    """Write the activation `kind`, with a bias unless it is one of WITHOUT_BIAS; return what it is called."""
    outputs = [output] if output else None
    if kind == "relu":
        return graph.node("Relu", [x], outputs)
    if kind == "silu":
        return graph.node("QuickGelu", [x], outputs, domain=MICROSOFT, alpha=1.0)
    name = {"gelu": "Gelu" if bias is None else "BiasGelu", "gelu_tanh": "FastGelu"}[kind]
    return graph.node(name, [x] if bias is None else [x, bias], outputs, domain=MICROSOFT)


WITHOUT_BIAS = ("relu", "silu")  # activations whose kernels add none: the product before them does


def write_norm(to: "Writing", norm: blocks.Norm, w: "Own", prefix: str, x: str, output: str | None = None) -> str:  # [r, h] -> [r, h]
    """Write a norm of rows, whose weights begin with `prefix`; return what it is called."""
    outputs, weights = [output] if output else None, [to.vector(w[f"{prefix}{role}"]) for role in norm.weights("")]
    kind = {"layer": "LayerNormalization", "rms": "SimplifiedLayerNormalization"}[norm.kind]
    return to.graph.node(kind, [x, *weights], outputs, epsilon=norm.eps, axis=-1)


@dataclass(frozen=True)
class Writing:
    """A segment that is being written, for a rank with `heads` own granules of heads. `plain`: of one request, whose rows need no
    rearranging: values are [1, rows, width]."""

    graph: Graph
    store: Store
    heads: int
    plain: bool = False

    def granules(self, op: ops.HeadNorm | ops.Rotate | ops.Mix) -> int:
        """Return of how many granules of heads the values of an operation are."""
        return self.heads if op.axis else op.block.granules

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
    write_norm(to, op.norm, w, "norm.", op.reads[0], op.writes[0])


@of(ops.AddNorm)
def add_norm(to: Writing, op: ops.AddNorm, w: Own) -> None:
    """x, p [r, h] -> x + p with its bias, norm and scale, unless nobody reads it, and its norm, if there is one"""
    given, inner = op.reads[1], op.block.norm_given(op.kind)
    if "bias" in w:  # nodes of their own take a fifth of the time of ONNX Runtime's SkipLayerNormalization
        given = to.graph.node("Add", [given, to.vector(w["bias"])])
    if inner:
        given = write_norm(to, inner, w, "given.", given)
    if "scale" in w:
        given = to.graph.node("Mul", [given, to.vector(w["scale"])])
    *total, last = op.writes
    if op.norm is None:
        to.graph.node("Add", [op.reads[0], given], [last])
    else:
        write_norm(to, op.norm, w, "norm.", to.graph.node("Add", [op.reads[0], given], total or None), last)


@of(ops.Project)
def project(to: Writing, op: ops.Project, w: Own) -> None:
    """y [r, h] -> [r, w] by each matrix"""
    for m, output in zip(op.matrices, op.writes, strict=True):
        to.linear(op.reads[0], w[f"{m}.weight"], w.get(f"{m}.bias"), output)


@of(ops.HeadNorm)
def head_norm(to: Writing, op: ops.HeadNorm, w: Own) -> None:
    """[r, w] -> [r, w]"""
    for m, name, output in zip(op.matrices, op.reads, op.writes, strict=True):
        inner, dim, width = op.block.head_norm(m), op.block.dim, to.granules(op) * op.block.width_of(m) // op.block.granules
        assert inner
        heads = to.graph.node("Reshape", [name, to.graph.constant(f"flat_{dim}", np.array([-1, dim], np.int64))])  # [r x heads, dim]
        shape = to.graph.constant(f"flat_{width}", np.array([-1, width], np.int64))
        to.graph.node("Reshape", [write_norm(to, inner, w, f"{m}.norm.", heads), shape], [output])


@of(ops.Rotate)
def rotate(to: Writing, op: ops.Rotate, w: Own) -> None:
    """[r, w] -> [r, w]"""
    rotary, graph = op.block.rotary, to.graph
    assert rotary
    tables = [graph.constant("first", np.array([0], np.int64)), graph.ask("cos", rotary), graph.ask("sin", rotary)]  # of all rows, in order
    more: dict[str, Any] = {"interleaved": int(rotary.interleaved)}
    if rotary.dims != op.block.dim:
        more["rotary_embedding_dim"] = rotary.dims
    for m, name, output in zip(op.matrices, op.reads, op.writes, strict=True):
        heads = to.granules(op) * (op.block.width_of(m) // op.block.granules) // op.block.dim
        batch = graph.node("Unsqueeze", [name, tables[0]])  # [1, r, w]
        batch = graph.node("RotaryEmbedding", [batch, *tables], domain=MICROSOFT, num_heads=heads, **more)
        graph.node("Squeeze", [batch, tables[0]], [output])


@of(ops.Mix)
def mix(to: Writing, op: ops.Mix, w: Own) -> None:
    """q [r, w], k and v [n, kv w] -> c [r, w]"""
    granules = to.granules(op)
    if to.plain:
        multi_head(to.graph, op.block, op.reads, granules * op.block.group, op.writes)
    else:
        attend(to.graph, op.block, op.reads, op.writes[0], granules, to.matrix(w["relative"]) if "relative" in w else None)


@of(ops.Out)
def out(to: Writing, op: ops.Out, w: Own) -> None:
    """c [r, w] -> p [r, h]"""
    to.graph.node("Gemm", [op.reads[0], to.matrix(w["o.weight"])], op.writes)


@of(ops.Mlp)
def mlp(to: Writing, op: ops.Mlp, w: Own) -> None:
    """y [r, h] -> p [r, h]"""
    kind, turned = op.block.activation, op.block.inner[-1]  # the matrix whose columns are activated
    bias, early = w.get(f"{turned}.bias"), op.block.activation in WITHOUT_BIAS
    mixed = to.linear(op.reads[0], w[f"{turned}.weight"], bias if early else None)  # [r, columns]
    mixed = activate(to.graph, kind, mixed, None if early or bias is None else to.vector(bias))
    if op.block.gated:
        mixed = to.graph.node("Mul", [mixed, to.linear(op.reads[0], w["up.weight"], w.get("up.bias"))])
    to.graph.node("Gemm", [mixed, to.matrix(w["down.weight"])], op.writes)


@of(ops.Cast)
def cast(to: Writing, op: ops.Cast, w: Own) -> None:
    """[r, w] -> the same in another type"""
    for name, output in zip(op.reads, op.writes, strict=True):
        to.graph.node("Cast", [name], [output], to=DTYPES[op.dtype])


def lone(op: ops.Op) -> bool:
    """Tell whether an operation can be written for the rows of one request that lie as they are: it asks nothing else about them."""
    return not isinstance(op, ops.Rotate) and (not isinstance(op, ops.Mix) or op.block.plain)
