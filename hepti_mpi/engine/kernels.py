"""How each operation is written as ONNX nodes. Knows neither sessions nor exchanges, nor where a value goes next."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeVar

import numpy as np
from onnx import TensorProto

from hepti_mpi.engine.graph import DTYPES, MICROSOFT, Graph
from hepti_mpi.engine.packing import reach
from hepti_mpi.engine.products import LEAST, OfStore, Product
from hepti_mpi.engine.runtime import ATTENDS
from hepti_mpi.models import blocks
from hepti_mpi.models.numerics import ACTIVATIONS
from hepti_mpi.program import ops
from hepti_mpi.program.grouping import read
from hepti_mpi.program.operation import Op
from hepti_mpi.weights.slices import Slice
from hepti_mpi.weights.store import Store

ASKED = {  # what segments may ask about the rows of a batch: its type and how many dimensions it has
    "q_index": (TensorProto.INT64, 2), "kv_index": (TensorProto.INT64, 2), "kv_lengths": (TensorProto.INT32, 1),
    "unpad": (TensorProto.INT64, 1), "lone": (TensorProto.BOOL, 1), "mask": (TensorProto.FLOAT, 4),
    "cos": (TensorProto.FLOAT, 2), "sin": (TensorProto.FLOAT, 2),
}  # fmt: skip


def attend(graph: Graph, block: blocks.Attention, reads: Sequence[str], output: str, heads: int) -> None:
    """Write attention among packed requests: q [r, w], k and v [n, kv w] -> [r, w]. What is plain needs neither places nor a mask where
    a batch is one request.

    `heads`: that q has, all of those that read the heads of k and v.
    """
    kv_heads = heads // block.group
    flat = graph.constant(f"flat_{heads * block.dim}", np.array([-1, heads * block.dim], np.int64))
    if not block.plain:
        packed(graph, block, reads, kv_heads, flat, output)
        return

    def lone() -> str:
        front = graph.constant("front", np.array([0], np.int64))
        batch = [graph.node("Unsqueeze", [value, front]) for value in reads]  # [1, r, w], without a copy
        return graph.node("Reshape", [multi_head(graph, block, batch, heads), flat])

    graph.either(graph.ask("lone"), lone, lambda: packed(graph, block, reads, kv_heads, flat), output)


def packed(graph: Graph, block: blocks.Attention, reads: Sequence[str], kv_heads: int, flat: str, output: str | None = None) -> str:
    """Write attention by way of values that are laid out as [pieces, longest, w]: q [r, w], k and v [n, kv w] -> [r, w]."""
    of = reach(block)
    places = [graph.ask(kind, of) for kind in ("q_index", "kv_index", "kv_index")]
    batch = [graph.node("Gather", [value, place]) for value, place in zip(reads, places, strict=True)]
    if block.plain:
        mixed = multi_head(graph, block, [*batch, "", graph.ask("kv_lengths")], kv_heads * block.group)  # [requests, q, w]
    else:
        seen = graph.ask("mask", of)  # [pieces, 1 or heads, q, kv]
        more: dict[str, Any] = {"scale": block.multiplier, "q_num_heads": kv_heads * block.group, "kv_num_heads": kv_heads}
        by_parts = block.softcap or not ATTENDS
        mixed = in_parts(graph, block, batch, seen, kv_heads) if by_parts else graph.node("Attention", [*batch, seen], **more)
    rows = graph.node("Reshape", [mixed, flat])
    return graph.node("Gather", [rows, graph.ask("unpad", of)], [output] if output else None)


def in_parts(graph: Graph, block: blocks.Attention, batch: Sequence[str], seen: str, kv_heads: int) -> str:
    """Write attention as a node for each of its parts: with a soft cap in a third of the time of ONNX's operator, which has one but
    computes it number by number, and where that operator cannot be used.

    q [pieces, q, w], k and v [pieces, kv, kv w] -> [pieces, q, w]; `seen` [pieces, 1, q, kv], or of each head where none are shared.
    """
    assert not block.relative or block.group == 1

    def ints(*values: int) -> str:
        return graph.constant("_".join(map(str, ("ints", *values))), np.array(values, np.int64))

    def number(value: float) -> str:
        return graph.constant(f"number_{value!r}", np.array(value, np.float32))

    shapes = ints(0, -1, kv_heads, block.group, block.dim), ints(0, -1, kv_heads, 1, block.dim), ints(0, -1, kv_heads, 1, block.dim)
    orders = (0, 2, 3, 1, 4), (0, 2, 3, 4, 1), (0, 2, 3, 1, 4)  # [pieces, kv heads, group or 1, q or kv, dim], of K its transpose
    parts = zip(batch, shapes, orders, strict=True)
    q, k, v = (graph.node("Transpose", [graph.node("Reshape", [values, shape])], perm=order) for values, shape, order in parts)
    scores = graph.node("MatMul", [graph.node("Mul", [q, number(block.multiplier / (block.softcap or 1))]), k])
    if block.softcap:
        scores = graph.node("Mul", [graph.node("Tanh", [scores]), number(block.softcap)])
    chances = graph.node("Softmax", [graph.node("Add", [scores, graph.node("Unsqueeze", [seen, ints(2)])])], axis=-1)
    mixed = graph.node("Transpose", [graph.node("MatMul", [chances, v])], perm=[0, 3, 1, 2, 4])
    return graph.node("Reshape", [mixed, ints(0, -1, kv_heads * block.group * block.dim)])


def multi_head(graph: Graph, block: blocks.Attention, inputs: Sequence[str], heads: int) -> str:
    """Write ONNX Runtime's own attention, which knows what is plain."""
    more: dict[str, Any] = {} if block.scale is None else {"scale": block.scale}
    return graph.node("MultiHeadAttention", inputs, domain=MICROSOFT, num_heads=heads, **more)


def activate(graph: Graph, kind: str, x: str, bias: str | None, output: str | None = None) -> str:  # [r, w], [w] -> [r, w]
    """Write the activation `kind`, with a bias unless it is one of WITHOUT_BIAS; return what it is called."""
    outputs = [output] if output else None
    if kind in ("relu", "tanh"):
        return graph.node(kind.capitalize(), [x], outputs)
    if kind == "leaky_relu":
        return graph.node("LeakyRelu", [x], outputs, alpha=0.01)
    if kind in ("silu", "quick_gelu"):
        return graph.node("QuickGelu", [x], outputs, domain=MICROSOFT, alpha=1.0 if kind == "silu" else 1.702)
    if kind == "mish":
        return graph.node("Mul", [x, graph.node("Tanh", [graph.node("Softplus", [x])])], outputs)
    if kind == "gelu_10":
        ends = [graph.constant(f"number_{end!r}", np.array(end, np.float32)) for end in (-10.0, 10.0)]
        return graph.node("Clip", [graph.node("Gelu", [x], domain=MICROSOFT), *ends], outputs)
    if kind == "gelu":
        return graph.node("Gelu", [x], outputs, domain=MICROSOFT)
    return graph.node("FastGelu", [x] if bias is None else [x, bias], outputs, domain=MICROSOFT)


MOST_FLOAT16 = float(np.finfo(np.float16).max)
# activations before which the product adds the bias: their kernels add none, or, as BiasGelu, take longer for it
WITHOUT_BIAS = ACTIVATIONS.keys() - {"gelu_tanh"}


def write_norm(to: "Writing", norm: blocks.Norm, w: "Own", prefix: str, x: str, output: str | None = None) -> str:  # [r, h] -> [r, h]
    """Write a norm of rows, whose weights begin with `prefix`; return what it is called."""
    outputs, weights = [output] if output else None, [to.vector(w[f"{prefix}{role}"]) for role in norm.weights("")]
    kind = {"layer": "LayerNormalization", "rms": "SimplifiedLayerNormalization"}[norm.kind]
    return to.graph.node(kind, [x, *weights], outputs, epsilon=norm.eps, axis=-1)


@dataclass(frozen=True)
class Writing:
    """A segment that is being written, for a rank with query heads `heads`, [start, stop). `finite`: operations whose last product reads
    nothing that is not finite, whatever the rows are."""

    graph: Graph
    store: Store
    heads: tuple[int, int]
    finite: set[Op] = field(default_factory=set)

    def count(self, op: ops.HeadNorm | ops.Rotate | ops.Mix, matrix: str = "q") -> int:
        """Return of how many heads a value of an operation is, one that one of "qkv" gave."""
        if not op.axis:
            return op.block.kv_count if matrix in "kv" else op.block.heads
        start, stop = read(*self.heads, op.block.group) if matrix in "kv" else self.heads
        return stop - start

    def mixes(self, op: ops.Project) -> bool:
        """Tell whether a row that a projection reads may have some numbers that are not finite beside others that are. Its K must be told:
        other rows attend to it. Its own row stays not finite in the residual, whatever its products are, up to the last one. LayerNorm
        makes all of such a row NaN."""
        norm = self.store.spec.attended(op.layer)
        return norm is None or norm.kind != "layer"

    def vector(self, piece: Slice) -> str:
        return self.graph.weight(self.store, piece, (prod(piece.shape),))

    def matrix(self, piece: Slice) -> str:
        return self.graph.weight(self.store, piece, (prod(piece.shape[:-1]), piece.shape[-1]))

    def linear(
        self, x: str, weight: Slice, bias: Slice | None = None, output: str | None = None, least: float | None = None, looks: bool = False
    ) -> str:  # fmt: skip
        """Write rows [r, K] times a weight, [N.., K] or [K.., N], and its bias -> [r, N]. `least` and `looks`: as of a Product."""
        return Product(self.graph, OfStore(self.store), x, weight, least, looks).write(self.vector(bias) if bias else None, output)


Own = Mapping[str, Slice]  # by what each is to the operation: the rank's slices of its weights
Kernel = Callable[[Writing, Any, Own], None]  # into what, the operation, its weights
KERNELS: dict[type[Op], Kernel] = {}
Written = TypeVar("Written", bound=Kernel)


def of(kind: type[Op]) -> Callable[[Written], Written]:
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
    for role in ("bias", "beside"):  # nodes of their own take a fifth of the time of ONNX Runtime's SkipLayerNormalization
        if role in w:
            given = to.graph.node("Add", [given, to.vector(w[role])])
    if inner:
        given = write_norm(to, inner, w, "given.", given)
    if "scale" in w:
        given = to.graph.node("Mul", [given, to.vector(w["scale"])])
    *total, last = op.writes
    if op.norm is None:
        to.graph.node("Add", [op.reads[0], given], [last])
    else:
        write_norm(to, op.norm, w, "norm.", to.graph.node("Add", [op.reads[0], given], total or None), last)


@of(ops.Join)
def join(to: Writing, op: ops.Join, w: Own) -> None:
    """p, p [r, h] -> [r, h]"""
    to.graph.node("Add", op.reads, op.writes)


@of(ops.Project)
def project(to: Writing, op: ops.Project, w: Own) -> None:
    """y [r, h] -> [r, w] by each matrix. Where keys are neither turned nor normed, a bias of K adds the same to all scores of a query,
    which changes nothing: it is left out."""
    same = op.block.plain and not op.block.rotary and not op.block.k_norm
    for m, output in zip(op.matrices, op.writes, strict=True):
        bias = None if m == "k" and same else w.get(f"{m}.bias")
        to.linear(op.reads[0], w[f"{m}.weight"], bias, output, looks=m == "k" and to.mixes(op))


@of(ops.HeadNorm)
def head_norm(to: Writing, op: ops.HeadNorm, w: Own) -> None:
    """[r, w] -> [r, w]"""
    for m, name, output in zip(op.matrices, op.reads, op.writes, strict=True):
        inner, dim, width = op.block.head_norm(m), op.block.dim, to.count(op, m) * op.block.dim
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
        batch = graph.node("Unsqueeze", [name, tables[0]])  # [1, r, w]
        batch = graph.node("RotaryEmbedding", [batch, *tables], domain=MICROSOFT, num_heads=to.count(op, m), **more)
        graph.node("Squeeze", [batch, tables[0]], [output])


@of(ops.Mix)
def mix(to: Writing, op: ops.Mix, w: Own) -> None:
    """q [r, w], k and v [n, kv w] -> c [r, w]"""
    attend(to.graph, op.block, op.reads, op.writes[0], to.count(op))


@of(ops.Out)
def out(to: Writing, op: ops.Out, w: Own) -> None:
    """c [r, w] -> p [r, h]"""
    to.linear(op.reads[0], w["o.weight"], output=op.writes[0], looks=op not in to.finite)


@of(ops.Mlp)
def mlp(to: Writing, op: ops.Mlp, w: Own) -> None:
    """y [r, h] -> p [r, h]"""
    kind, turned = op.block.activation, op.block.inner[-1]  # the matrix whose columns are activated
    if kind == "gelu" and w["down.weight"].format.rounds and not op.block.gated:
        kind = "gelu_tanh"  # off by 0.0005 at most, a tenth of what rounding its rows leaves, in two thirds of the time
    bias, early = w.get(f"{turned}.bias"), kind in WITHOUT_BIAS
    mixed = to.linear(op.reads[0], w[f"{turned}.weight"], bias if early else None)  # [r, columns]
    mixed = activate(to.graph, kind, mixed, None if early or bias is None else to.vector(bias))
    if op.block.gated:
        mixed = to.graph.node("Mul", [mixed, to.linear(op.reads[0], w["up.weight"], w.get("up.bias"))])
    to.linear(mixed, w["down.weight"], None, op.writes[0], None if op.block.gated else LEAST.get(kind), op not in to.finite)


@of(ops.Cast)
def cast(to: Writing, op: ops.Cast, w: Own) -> None:
    """[r, w] -> the same in another type"""
    count = op.width * (to.heads[1] - to.heads[0]) // op.heads if op.axis else op.width  # of the own columns
    flat = to.graph.constant(f"flat_{count}", np.array([-1, count], np.int64))
    if op.dtype == "int8":
        for name, number, scale in zip(op.reads, op.writes[::2], op.writes[1::2], strict=True):
            to_int8(to.graph, name, op.block, (number, scale))
    elif op.scales:
        for number, scale, output in zip(op.reads[::2], op.reads[1::2], op.writes, strict=True):
            to.graph.node("Reshape", [from_int8(to.graph, (number, scale), op.block), flat], [output])
    else:
        for name, output in zip(op.reads, op.writes, strict=True):
            short = op.dtype == "float16"
            to.graph.node("Cast", [within_float16(to.graph, name) if short else name], [output], to=DTYPES[op.dtype])


def within_float16(graph: Graph, x: str) -> str:
    """Write x [r, w] with NaN in all of a row that has what float16 does not: a key of -inf would be one that nobody looks at."""
    axis, kind = graph.constant("rows", np.array([1], np.int64)), np.float32
    most = graph.constant("most_float16", np.array(MOST_FLOAT16, kind))
    ends = [graph.node("ReduceMax", [x, axis], keepdims=1), graph.node("Neg", [graph.node("ReduceMin", [x, axis], keepdims=1)])]
    over = graph.node("Greater", [graph.node("Max", ends), most])  # [r, 1]
    nothing, none = graph.constant("nan", np.array(np.nan, kind)), graph.constant("nought", np.array(0, kind))
    return graph.node("Add", [x, graph.node("Where", [over, nothing, none])])


def to_int8(graph: Graph, x: str, block: int, outputs: tuple[str, str]) -> None:
    """Write x [r, w] as int8 [r, w] and scales [r, w / block], one for each row of each block: what is largest there is 127 of them."""
    blocks = graph.node("Reshape", [x, graph.constant(f"blocks_{block}", np.array([0, -1, block], np.int64))])
    last = graph.constant("last", np.array([2], np.int64))
    largest = graph.node("ReduceMax", [graph.node("Abs", [blocks]), last], keepdims=0)
    some = graph.node("Max", [largest, graph.constant("some", np.array(1e-30, np.float32))])  # 0 is divided by it
    scale = graph.node("Mul", [some, graph.constant("step", np.array(1 / 127, np.float32))])
    graph.node("QuantizeLinear", [x, scale], [outputs[0]], axis=1, block_size=block, output_dtype=TensorProto.INT8)
    unsound = graph.node("Mul", [graph.node("ReduceSum", [blocks, last], keepdims=0), graph.constant("nought", np.array(0, np.float32))])
    graph.node("Add", [scale, unsound], [outputs[1]])  # NaN where a number is not finite: the largest may be another


def from_int8(graph: Graph, reads: Sequence[str], block: int) -> str:
    """Write `reads`, int8 numbers times their scales as float32 [r * w / block, block]: rows of one scale each are soonest."""
    shapes = graph.constant(f"each_{block}", np.array([-1, block], np.int64)), graph.constant("flat", np.array([-1], np.int64))
    one, other = (graph.node("Reshape", [name, shape]) for name, shape in zip(reads, shapes))
    return graph.node("DequantizeLinear", [one, other], axis=0)
