"""Program steps as ONNX Runtime sessions, one for each Compute, whose weights are mapped from the store's file.

Does not know how an operation is written as ONNX nodes (kernels.py), nor ranks, exchanges or where a value goes next.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from hepti_mpi.cluster.memory import usable_memory
from hepti_mpi.engine import opening, pages
from hepti_mpi.engine.bounds import Bounds
from hepti_mpi.engine.graph import DTYPES, Graph
from hepti_mpi.engine.kernels import ASKED, KERNELS, Writing, from_int8
from hepti_mpi.engine.runtime import KEEPS_PACKED
from hepti_mpi.errors import StoreError
from hepti_mpi.models.formats import F16, F32
from hepti_mpi.program.operation import Op
from hepti_mpi.program.steps import Compute
from hepti_mpi.weights.prepacked import key_of, processor_name
from hepti_mpi.weights.slices import Slice
from hepti_mpi.weights.store import Store

Held = Mapping[Op, Mapping[str, Slice]]  # the operations of a step that a rank takes part in, with its slices by what each is to it
ELEMENT = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.bool_): TensorProto.BOOL,
}
KEPT = "segment.onnx"  # what a file of weights that are kept packed belongs to
LEAST_ROOM = 1 << 20  # bytes of such files besides weights


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide how fast a segment is."""
    return {"onnxruntime": onnxruntime.__version__}


@dataclass(frozen=True, eq=False)
class Segment:
    """One session: `inputs` and `outputs` in order, and the inputs `asked` about the rows of a batch, for which operations have `tables`;
    `zeros` are values this rank has no part in, which are to be filled with 0."""

    session: "onnxruntime.InferenceSession | None"
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    zeros: tuple[str, ...]
    asked: tuple[str, ...] = ()
    tables: Mapping[Op, np.ndarray] = field(default_factory=dict)

    def bind(self, values: Mapping[str, np.ndarray]) -> Callable[[], None] | None:
        """Return what runs the session on arrays that stay where they are; None when there is nothing to run."""
        if self.session is None:
            return None
        binding = self.session.io_binding()
        for names, to in (((*self.inputs, *self.asked), binding.bind_input), (self.outputs, binding.bind_output)):
            for name in names:
                bind(to, name, values[name])
        return runner(self.session, binding)


def build(compute: Compute, store: Store, held: Held, heads: int, mode: str, threads: int) -> Segment:
    """Return the session of one Compute for a rank that has slices `held` for its operations, and so many `heads`, whole groups of them.
    `mode`: as of `of_store`."""
    zero = {name for op in compute.ops if op not in held for name in op.writes}
    for op in held:
        if not zero.isdisjoint(op.reads):
            raise AssertionError(f"{op.label} of layer {op.layer} reads what this rank has no part in")
    outputs = tuple(name for name in compute.writes if name not in zero)
    zeros = tuple(name for name in compute.writes if name in zero)
    if not outputs:
        return Segment(None, (), (), zeros)
    reads = {name for op in held for name in op.reads}
    inputs = tuple(name for name in compute.reads if name in reads)
    writing, bounds = Writing(Graph(threads), store, (0, heads)), Bounds(store)
    rounded = any(piece.format not in (F32, F16) for slices in held.values() for piece in slices.values())
    for op, slices in held.items():
        if rounded and bounds.add(op, slices):
            writing.finite.add(op)
        KERNELS[type(op)](writing, op, slices)
    graph = writing.graph
    pieces = [piece for slices in held.values() for piece in slices.values()]
    made = of_store(_proto(graph, held, inputs, outputs), store, pieces, mode, threads)
    # what a batch is prepared with, not computed: relative positions of the own heads
    tables = {op: np.array(store.array(slices["relative"])) for op, slices in held.items() if "relative" in slices}
    return Segment(made, inputs, outputs, zeros, tuple(graph.indexes), tables)


def _proto(graph: Graph, done: Iterable[Op], inputs: Sequence[str], outputs: Sequence[str]) -> onnx.GraphProto:
    dtypes = {name: form.dtype for op in done for name, form in zip(op.reads, op.reads_as(), strict=True)}
    dtypes |= {name: form.dtype for op in done for name, form in zip(op.writes, op.writes_as(), strict=True)}

    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, DTYPES[dtypes[name]], [None, None])

    infos = [value(name) for name in inputs]
    for name, kind in graph.indexes.items():
        dtype, rank = ASKED[kind]
        infos.append(helper.make_tensor_value_info(name, dtype, [None] * rank))
    return helper.make_graph(graph.nodes, "segment", infos, [value(name) for name in outputs], list(graph.initializers.values()))


def of_store(
    graph: onnx.GraphProto, store: Store, pieces: Sequence[Slice], mode: str, threads: int
) -> onnxruntime.InferenceSession:  # fmt: skip
    """Return the session of a graph with `pieces` of a store. `mode`: "packed" copies weights into the kernels' own order; "mapped" leaves
    them in the pages of a file, which the system may evict: of one that has them in that order, where the rank keeps such, else of the
    store, where products can read them so: float32 ones."""
    kept = _kept(graph, store, pieces, threads) if mode == "mapped" and pieces and store.prepacked is not None else None
    if kept is not None:
        return kept
    if any(piece.format is not F32 for piece in pieces):
        if mode == "mapped":
            _check_memory(store, pieces)
        mode = "packed"
    return opening.session(graph, store.file.parent, mode, threads)


def _kept(graph: onnx.GraphProto, store: Store, pieces: Sequence[Slice], threads: int) -> onnxruntime.InferenceSession | None:
    """Return a session whose weights lie packed in a file that the rank keeps, which is made where there is none; None where that fails.

    ONNX Runtime packs them at each load all the same, to see whether those in the file are the same, and takes the file's if they are.
    """
    prepacked, model = store.prepacked, opening.model_of(graph)
    assert prepacked is not None
    if not KEEPS_PACKED:
        prepacked.fail(RuntimeError(f"onnxruntime {onnxruntime.__version__} cannot use them, 1.32 can"))
        return None
    content = model.SerializeToString(deterministic=True)
    key = key_of(content, store.content(pieces), json.dumps(versions()).encode())

    def write(folder: Path) -> None:
        options = opening.options(threads, store.file.parent)
        options.optimized_model_filepath = str(folder / KEPT)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
        opening.loaded(content, options, threads)

    found = prepacked.find(key)
    if found is None:
        room = sum(piece.bytes + 2 * piece.format.held(piece.shape, piece.inner) for piece in pieces) + 2 * len(content)
        runtime = " ".join(word for pair in versions().items() for word in pair)
        of = {"model": store.spec.name, "source": store.source_hash, "runtime": runtime, "processor": processor_name()}
        found = prepacked.make(key, room + LEAST_ROOM, write, of)
    if found is None:
        return None
    try:
        made = opening.loaded(str(found / KEPT), opening.options(threads), threads)
    except Exception as error:  # whatever it has against a file that it wrote
        prepacked.fail(error, found)
        return None
    pages.trim()  # what it packed to compare
    return made


def _check_memory(store: Store, pieces: Sequence[Slice]) -> None:
    """Raise StoreError where memory does not hold weights that were to be mapped, but that no product can read from a file."""
    need, free = sum(piece.format.held(piece.shape, piece.inner) for piece in pieces), usable_memory(1)
    if need > free:
        where = "without --weights-cache FOLDER" if store.prepacked is None else f"where {store.prepacked.folder} cannot keep them"
        raise StoreError(f"mapped weights in other formats than f32 are packed into memory {where}: {need} bytes, {free} are free")


@cache
def _summing(terms: int, block: int | None) -> onnxruntime.InferenceSession:
    """Return the session that adds float16 terms to x [r, w] or, where `block` columns have a scale, int8 ones to x [n, block]."""
    graph, total, float_, short = Graph(), "x", TensorProto.FLOAT, TensorProto.FLOAT16 if block is None else TensorProto.INT8
    infos = [("x", float_)]
    for number in range(terms):
        names = [f"term{number}", f"scale{number}"][: 1 if block is None else 2]
        infos += zip(names, (short, float_))
        term = graph.node("Cast", names, to=float_) if block is None else from_int8(graph, names, block)
        total = graph.node("Add", [total, term], ["y"] if number == terms - 1 else None)
    values = [helper.make_tensor_value_info(name, kind, None) for name, kind in infos]
    y = helper.make_tensor_value_info("y", float_, None)
    made = helper.make_graph(graph.nodes, "summing", values, [y], list(graph.initializers.values()))
    return opening.session(made, Path("."), "packed", 1)


@cache
def _casting(made_of: int, to: int) -> onnxruntime.InferenceSession:
    """Return the session that makes numbers of one of ONNX's types into those of another: x [r, w] -> y."""
    graph = Graph()
    graph.node("Cast", ["x"], ["y"], to=to)
    x, y = (helper.make_tensor_value_info(name, kind, None) for name, kind in (("x", made_of), ("y", to)))
    return opening.session(helper.make_graph(graph.nodes, "casting", [x], [y]), Path("."), "packed", 1)


def cast(values: np.ndarray, result: np.ndarray) -> Callable[[], None]:
    """Return what leaves float16 `values` [r, w] as float32 in `result`, or the other way round. What is too large becomes infinite."""
    types = {np.dtype(np.float32): int(TensorProto.FLOAT), np.dtype(np.float16): int(TensorProto.FLOAT16)}
    return bound(_casting(types[values.dtype], types[result.dtype]), {"x": values}, result)


def add_short(target: np.ndarray, own: np.ndarray, terms: Sequence[tuple[np.ndarray, ...]]) -> Callable[[], None]:
    """Return what leaves the sum of float32 `own` [r, w] and `terms`, in their order, in float32 `target`: many times sooner than NumPy,
    which casts without vectors. A term is float16, or int8 numbers [r, w] and their scales [r, blocks]."""
    block = own.shape[1] // terms[0][1].shape[1] if len(terms[0]) > 1 else None
    shape = own.shape if block is None else (-1, block)
    feed: dict[str, np.ndarray] = {"x": own.reshape(shape)}
    for number, (term, *scales) in enumerate(terms):
        feed[f"term{number}"] = term.reshape(shape)
        feed.update((f"scale{number}", scale.reshape(-1)) for scale in scales)
    return bound(_summing(len(terms), block), feed, target.reshape(shape))


def bound(
    session: onnxruntime.InferenceSession, feed: Mapping[str, np.ndarray], result: np.ndarray,
    others: Mapping[str, np.ndarray] | None = None,
) -> Callable[[], None]:  # fmt: skip
    """Return what runs a session as the engine runs its segments: on arrays that stay where they are. `result`: of "y"; `others`: of
    outputs beside it."""
    return running(session, feed, {"y": result, **(others or {})})


def running(
    session: onnxruntime.InferenceSession, feed: Mapping[str, np.ndarray], results: Mapping[str, np.ndarray]
) -> Callable[[], None]:  # fmt: skip
    """Return what runs a session on arrays that stay where they are, by the names of inputs and outputs."""
    binding = session.io_binding()
    assert all(array.flags.c_contiguous for array in (*feed.values(), *results.values()))
    for to, arrays in ((binding.bind_input, feed), (binding.bind_output, results)):
        for name, array in arrays.items():
            bind(to, name, array)
    kept, run = (feed, results), runner(session, binding)  # the binding knows their addresses only

    def run_kept() -> None:
        assert kept
        run()

    return run_kept


def bind(to: Callable[..., None], name: str, array: np.ndarray) -> None:
    """Bind an array by its address, `to` an input or an output of a binding."""
    to(name, "cpu", 0, ELEMENT[array.dtype], array.shape, array.ctypes.data)


def runner(session: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding) -> Callable[[], None]:
    """Return what runs a session on what is bound. A token of a text is some sixty runs of parts of layers, of 50 to 80 us: what ONNX
    Runtime's Python class does before each, and making options for it, takes 3 of them. So it is passed by."""
    return partial(session._sess.run_with_iobinding, binding._iobinding, _options_of_runs())


@cache
def _options_of_runs() -> onnxruntime.RunOptions:
    return onnxruntime.RunOptions()
