"""Program steps as ONNX Runtime sessions. The only user of onnx and onnxruntime.

One Compute step becomes one session whose weights are mapped from the store's file. Knows how an operation is written as
ONNX nodes; does not know ranks, exchanges or where a value goes next.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from hepti_mpi.cluster.probe import Timers
from hepti_mpi.engine.packing import pack
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.program.build import HALF, WEIGHTLESS, Compute, Op
from hepti_mpi.weights.slices import Slice, Slicer
from hepti_mpi.weights.store import Region, Store
from hepti_mpi.wording import counted

MICROSOFT = "com.microsoft"
PROBE_BYTES = 64 << 20
INDEXES = {"q_index": TensorProto.INT64, "kv_index": TensorProto.INT64, "kv_lengths": TensorProto.INT32, "unpad": TensorProto.INT64}
ELEMENT = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
}
_configured: list[tuple[int, bool]] = []


def configure(threads: int, one_pool: bool = True) -> None:
    """Give all sessions of this process one allocator and, with `one_pool`, one thread pool of `threads`: it cannot be changed any more.
    Else each session has threads of its own, as many as it is made with. Call once, before the first session.

    Without the shared allocator each of some fifty sessions keeps an arena for intermediate values.
    """
    if _configured:
        if _configured[0] != (threads, one_pool):
            raise ValueError(f"this process already runs ONNX Runtime with {counted(_configured[0][0], 'threads')}")
        return
    onnxruntime.set_default_logger_severity(4)
    if one_pool:
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
    memory = onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT)
    arena = onnxruntime.OrtArenaCfg({"arena_extend_strategy": 1})  # as much as is asked for, not a power of two
    onnxruntime.create_and_register_allocator(memory, arena)
    _configured.append((threads, one_pool))


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide how fast a segment is."""
    return {"onnxruntime": onnxruntime.__version__}


@dataclass(frozen=True, eq=False)
class Segment:
    """One session: `inputs` and `outputs` in order; `zeros` are values this rank has no part in, which are to be filled with 0.

    `plain`: the same for a single request, whose rows need no rearranging; None where weights would be held twice.
    """

    session: "onnxruntime.InferenceSession | None"
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    zeros: tuple[str, ...]
    plain: "onnxruntime.InferenceSession | None" = None

    def bind(self, values: Mapping[str, np.ndarray], lone: bool) -> Callable[[], None] | None:
        """Return what runs the session on arrays that stay where they are; None when there is nothing to run.

        `lone`: the rows are all of one request.
        """
        if self.session is None:
            return None
        session = self.plain if lone and self.plain is not None else self.session
        binding = session.io_binding()
        for names, bind in ((self.inputs, binding.bind_input), (self.outputs, binding.bind_output)):
            for name in names:
                if session is self.plain and name in INDEXES:
                    continue
                array = values[name]
                shape = (1, *array.shape) if session is self.plain else array.shape
                bind(name, "cpu", 0, ELEMENT[array.dtype], shape, array.ctypes.data)
        runner: Callable[[object], None] = session.run_with_iobinding
        return partial(runner, binding)


class Graph:
    """Collects nodes, initializers and inputs of one segment."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
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
        """Declare a slice of the store, viewed as `shape`, as an initializer that lives in the store's file."""
        region: Region = store.region(piece)
        tensor = TensorProto(name=piece.name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", store.path.name), ("offset", region.offset), ("length", region.bytes)):
            tensor.external_data.add(key=key, value=str(value))
        assert piece.format.bytes(shape) == region.bytes
        self.initializers[piece.name] = tensor
        return piece.name

    def constant(self, name: str, values: np.ndarray) -> str:
        self.initializers[name] = onnx.numpy_helper.from_array(values, name)
        return name


def attend(graph: Graph, q: str, k: str, v: str, heads: int, output: str) -> None:  # [r, w], [n, w], [n, w] -> [r, w]
    """Write attention among packed requests: their rows are laid out as [requests, longest] and back."""
    width = heads * graph.spec.head_dim
    batch = [graph.node("Gather", [value, graph.index(index)]) for value, index in ((q, "q_index"), (k, "kv_index"), (v, "kv_index"))]
    inputs = [*batch, "", graph.index("kv_lengths")]
    mixed = graph.node("MultiHeadAttention", inputs, domain=MICROSOFT, num_heads=heads)  # [requests, q, w]
    flat = graph.node("Reshape", [mixed, graph.constant(f"flat_{width}", np.array([-1, width], np.int64))])
    graph.node("Gather", [flat, graph.index("unpad")], [output])


def activate(graph: Graph, x: str, bias: str | None, output: str | None = None) -> str:  # [r, w], [w] -> [r, w]
    """Write the activation of the model, with a bias unless it is a plain one; return what it is called."""
    outputs = [output] if output else None
    if graph.spec.activation == "relu":
        return graph.node("Relu", [x], outputs)
    kind = {"gelu": "BiasGelu", "gelu_tanh": "FastGelu"}[graph.spec.activation]
    return graph.node(kind, [x] if bias is None else [x, bias], outputs, domain=MICROSOFT)


class _Writer:
    """Writes the operations of one Compute as nodes, with the weights that the rank's slicer names."""

    def __init__(self, spec: ModelSpec, store: Store, slicer: Slicer, distribution: str, plain: bool = False) -> None:
        self.spec, self.store, self.slicer, self.distribution, self.plain = spec, store, slicer, distribution, plain
        self.graph = Graph(spec)
        self.zeros: list[str] = []

    def write(self, op: Op) -> None:
        if not self.slicer.takes_part(op, self.distribution):
            self.zeros.extend(op.writes)
            return
        if any(name in self.zeros for name in op.reads):
            raise AssertionError(f"{op.kind} of layer {op.layer} reads what this rank has no part in")
        getattr(self, op.kind)(op, self.slicer.op(op, self.distribution))

    def vector(self, piece: Slice) -> str:
        return self.graph.weight(self.store, piece, (prod(piece.shape),))

    def matrix(self, piece: Slice) -> str:
        return self.graph.weight(self.store, piece, (prod(piece.shape[:-1]), piece.shape[-1]))

    def linear(self, x: str, weight: Slice, bias: Slice | None, output: str | None = None) -> str:  # [r, h], [o, h], [o] -> [r, o]
        inputs = [x, self.matrix(weight), *([self.vector(bias)] if bias else [])]
        return self.graph.node("Gemm", inputs, [output] if output else None, transB=1)

    def norm(self, op: Op, w: dict[str, Slice]) -> None:  # [r, h] -> [r, h]
        inputs = [op.reads[0], self.vector(w["norm.weight"]), self.vector(w["norm.bias"])]
        self.graph.node("LayerNormalization", inputs, op.writes, epsilon=self.spec.norm_eps, axis=-1)

    def tail(self, op: Op, w: dict[str, Slice]) -> None:  # x, p [r, h] -> LayerNorm(x + p + bias) and, pre-norm, x + p + bias
        *total, y = op.writes  # three nodes take a fifth of the time of ONNX Runtime's SkipLayerNormalization
        biased = self.graph.node("Add", [op.reads[1], self.vector(w["bias"])])
        summed = self.graph.node("Add", [op.reads[0], biased], total or None)
        inputs = [summed, self.vector(w["norm.weight"]), self.vector(w["norm.bias"])]
        self.graph.node("LayerNormalization", inputs, [y], epsilon=self.spec.norm_eps, axis=-1)

    def attention(self, q: str, k: str, v: str, heads: int, output: str) -> None:  # [r, w], [n, w], [n, w] -> [r, w]
        graph = self.graph
        if self.plain:  # [1, r, w] all along
            graph.node("MultiHeadAttention", [q, k, v], [output], MICROSOFT, num_heads=heads)
            return
        attend(graph, q, k, v, heads, output)

    def project(self, op: Op, w: dict[str, Slice]) -> None:  # y [r, h] -> q, k, v [r, w]
        for m, output in zip(op.kind.removeprefix("project_") if op.kind in ("project_q", "project_kv") else "qkv", op.writes):
            self.linear(op.reads[0], w[f"{m}.weight"], w[f"{m}.bias"], output)

    project_heads = project_q = project_kv = project

    def mix(self, op: Op, w: dict[str, Slice]) -> None:  # q [r, w], k and v [n, w] -> c [r, w]
        heads = self.slicer.heads if op.kind == "mix_heads" else self.spec.heads
        q, k, v = op.reads
        self.attention(q, k, v, heads, op.writes[0])

    mix_heads = mix

    def out(self, op: Op, w: dict[str, Slice]) -> None:  # c [r, w] -> p [r, h]
        self.graph.node("Gemm", [op.reads[0], self.matrix(w["o.weight"])], op.writes)

    out_heads = out

    def half(self, op: Op, w: dict[str, Slice]) -> None:  # [r, w] -> the same in float16
        for name, output in zip(op.reads, op.writes):
            self.graph.node("Cast", [name], [output], to=TensorProto.FLOAT16)

    half_heads = half

    def single(self, op: Op, w: dict[str, Slice]) -> None:  # [r, w] -> the same in float32
        for name, output in zip(op.reads, op.writes):
            self.graph.node("Cast", [name], [output], to=TensorProto.FLOAT)

    single_heads = single

    def mlp_columns(self, op: Op, w: dict[str, Slice]) -> None:  # y [r, h] -> p [r, h]
        bias = w["up.bias"]
        relu = self.spec.activation == "relu"
        up = self.linear(op.reads[0], w["up.weight"], bias if relu else None)  # [r, columns]
        mixed = activate(self.graph, up, None if relu else self.vector(bias))
        self.graph.node("Gemm", [mixed, self.matrix(w["down.weight"])], op.writes)

    mlp = mlp_columns


class Segments:
    """The sessions of one store in this process: plans and tiles with the same operations on the same weights share one."""

    def __init__(self, spec: ModelSpec, store: Store) -> None:
        self.spec, self.store = spec, store
        self.made: WeakValueDictionary[tuple[object, ...], Segment] = WeakValueDictionary()  # as long as an engine uses it

    def get(self, compute: Compute, slicer: Slicer, mode: str, threads: int) -> Segment:
        pieces = tuple((slicer.takes_part(op, compute.distribution), *slicer.op(op, compute.distribution).values()) for op in compute.ops)
        heads = slicer.heads if any(op.kind.endswith("_heads") for op in compute.ops) else 0
        key = (compute.ops, compute.reads, compute.writes, compute.distribution, heads, pieces, mode, threads)
        segment = self.made.get(key)
        if segment is None:
            segment = self.made[key] = build(self.spec, compute, self.store, slicer, mode, threads)
        return segment


def build(spec: ModelSpec, compute: Compute, store: Store, slicer: Slicer, mode: str, threads: int) -> Segment:
    """Return the session of one Compute for the rank of `slicer`. `mode`: "packed" copies weights into the kernels' own
    order, "mapped" leaves them in the file's pages, which the kernel may evict."""
    writer = _Writer(spec, store, slicer, compute.distribution)
    for op in compute.ops:
        writer.write(op)
    outputs = tuple(name for name in compute.writes if name not in writer.zeros)
    zeros = tuple(name for name in compute.writes if name in writer.zeros)
    if not outputs:
        return Segment(None, (), (), zeros)
    used = {name for node in writer.graph.nodes for name in node.input}
    inputs = tuple(name for name in compute.reads if name in used)
    kinds = {op.kind for op in compute.ops}
    plain = None
    if kinds <= set(WEIGHTLESS) and kinds & {"mix", "mix_heads"}:
        simple = _Writer(spec, store, slicer, compute.distribution, plain=True)
        for op in compute.ops:
            simple.write(op)
        plain = _session(_proto(simple.graph, inputs, outputs, 3), store.path.parent, mode, threads)
    session = _session(_proto(writer.graph, inputs, outputs, 2), store.path.parent, mode, threads)
    return Segment(session, (*inputs, *writer.graph.indexes), outputs, zeros, plain)


def _proto(graph: Graph, inputs: Sequence[str], outputs: Sequence[str], dims: int) -> onnx.GraphProto:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT16 if name.startswith(HALF) else TensorProto.FLOAT, [None] * dims)

    ranks = {"q_index": [None, None], "kv_index": [None, None], "kv_lengths": [None], "unpad": [None]}
    infos = [value(name) for name in inputs]
    infos += [helper.make_tensor_value_info(name, INDEXES[name], ranks[name]) for name in graph.indexes]
    return helper.make_graph(graph.nodes, "segment", infos, [value(name) for name in outputs], list(graph.initializers.values()))


def _session(graph: onnx.GraphProto, folder: Path, mode: str, threads: int) -> onnxruntime.InferenceSession:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = not (_configured and _configured[0][1])
    if options.use_per_session_threads:
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "1")  # between two runs other sessions want the cores
    options.enable_mem_pattern = False  # it keeps a block per shape that was seen
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    options.add_session_config_entry("session.disable_prepacking", "1" if mode == "mapped" else "0")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def timers(spec: ModelSpec, threads: int) -> Timers:
    """Return the kernels that the cluster's probe times, at the shapes of `spec`: chains of MLP products that are larger than
    most caches, as the layers of a model are, attention among packed requests, one LayerNorm with residual, and one activation."""
    hidden, columns = spec.hidden, -(-spec.ffn // 2)
    blocks = max(1, min(spec.layers, PROBE_BYTES // (2 * hidden * columns * 4)))
    tile = np.resize(np.array([0.01, -0.02, 0.015, -0.005, 0.003], np.float32), (columns, hidden))

    def products(blocks: int) -> onnxruntime.InferenceSession:
        chain, value = Graph(spec), "x"
        for number in range(blocks):
            first, second = (tile * np.float32(1 + (2 * number + at) / 256) for at in (0, 1))  # equal ones would be kept once
            up = chain.node("Gemm", [value, chain.constant(f"up{number}", first)], transB=1)
            value = chain.node("Gemm", [up, chain.constant(f"down{number}", second)], ["y"] if number == blocks - 1 else None)
        return probe(chain, ["x"], threads)

    gemm, between = products(blocks), products(1)
    mixing = Graph(spec)
    attend(mixing, "q", "k", "v", spec.heads, "y")
    attention = probe(mixing, ["q", "k", "v", *mixing.indexes], threads)
    norm = Graph(spec)
    one = norm.constant("one", np.ones(hidden, np.float32))
    norm.node("LayerNormalization", [norm.node("Add", ["x", norm.node("Add", ["p", one])]), one, one], ["y"], axis=-1)
    elements = probe(norm, ["x", "p"], threads)
    turning = Graph(spec)
    activate(turning, "x", turning.constant("one", np.ones(hidden, np.float32)), "y")
    activations = probe(turning, ["x"], threads)
    casting = Graph(spec)
    casting.node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)
    casts = probe(casting, ["x"], threads, TensorProto.FLOAT16)
    rows = min(128, spec.positions)
    some = {count: np.resize(tile, (count, hidden)) for count in (1, rows)}
    product = np.empty((rows, hidden), np.float32)  # what the others handle lies where the threads of a product have left it

    def of_rows(count: int) -> Callable[[], None]:
        feed = {"x": np.resize(tile, (count, hidden))}
        return lambda: gemm.run(None, feed)

    def of_requests(count: int, length: int) -> Callable[[], None]:
        values = np.resize(tile, (count * length, hidden))
        feed = {"q": values, "k": values, "v": values, **vars(pack([length] * count, 0, count * length))}
        return bound(attention, feed, np.empty_like(values))

    return Timers(
        gemm=of_rows,
        weights=2 * hidden * columns * blocks,
        attention=of_requests,
        elements=bound(elements, {"x": some[rows], "p": product}, np.empty((rows, hidden), np.float32)),
        activations=bound(activations, {"x": product}, np.empty((rows, hidden), np.float32)),
        casts=bound(casts, {"x": product}, np.empty((rows, hidden), np.float16)),
        rows=rows,
        hidden=hidden,
        nothing=bound(casts, {"x": some[1]}, np.empty((1, hidden), np.float16)),
        between=bound(between, {"x": some[rows]}, product),
    )


@cache
def _halving() -> onnxruntime.InferenceSession:
    x, y = (helper.make_tensor_value_info(name, kind, None) for name, kind in (("x", TensorProto.FLOAT), ("y", TensorProto.FLOAT16)))
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)
    return _session(helper.make_graph([node], "halving", [x], [y]), Path("."), "packed", 1)


@cache
def _summing(terms: int) -> onnxruntime.InferenceSession:
    nodes, total = [], "x"
    for number in range(terms):
        nodes.append(helper.make_node("Cast", [f"half{number}"], [f"term{number}"], to=TensorProto.FLOAT))
        after = "y" if number == terms - 1 else f"total{number}"
        nodes.append(helper.make_node("Add", [total, f"term{number}"], [after]))
        total = after
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y"))
    halves = [helper.make_tensor_value_info(f"half{number}", TensorProto.FLOAT16, None) for number in range(terms)]
    return _session(helper.make_graph(nodes, "summing", [x, *halves], [y]), Path("."), "packed", 1)


def halve(target: np.ndarray, source: np.ndarray) -> Callable[[], None]:
    """Return what writes float32 `source` to float16 `target`: many times sooner than NumPy, which does so without vectors."""
    return bound(_halving(), {"x": source}, target)


def add_halves(target: np.ndarray, own: np.ndarray, terms: Sequence[np.ndarray]) -> Callable[[], None]:
    """Return what leaves the sum of float32 `own` and float16 `terms`, in their order, in float32 `target`."""
    return bound(_summing(len(terms)), {"x": own} | {f"half{number}": term for number, term in enumerate(terms)}, target)


def bound(session: onnxruntime.InferenceSession, feed: Mapping[str, np.ndarray], result: np.ndarray) -> Callable[[], None]:
    """Return what runs a session as the engine runs its segments: on arrays that stay where they are."""
    binding = session.io_binding()
    assert all(array.flags.c_contiguous for array in (*feed.values(), result))
    for name, array in feed.items():
        binding.bind_input(name, "cpu", 0, ELEMENT[array.dtype], array.shape, array.ctypes.data)
    binding.bind_output("y", "cpu", 0, ELEMENT[result.dtype], result.shape, result.ctypes.data)
    kept = (feed, result)  # the binding knows their addresses only

    def run() -> None:
        assert kept
        session.run_with_iobinding(binding)

    return run


def probe(graph: Graph, inputs: Sequence[str], threads: int, kind: int = TensorProto.FLOAT) -> onnxruntime.InferenceSession:
    infos = [helper.make_tensor_value_info(name, INDEXES.get(name, TensorProto.FLOAT), None) for name in inputs]
    result = helper.make_tensor_value_info("y", kind, None)
    made = helper.make_graph(graph.nodes, "probe", infos, [result], list(graph.initializers.values()))
    return _session(made, Path("."), "packed", threads)
