"""Segments whose attention goes on from what earlier rows left: the operations as ONNX nodes, with caches as inputs and outputs.

All but attention is written as in kernels.py. Knows neither who holds which heads nor when a step is done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from hepti_mpi.engine.graph import MICROSOFT, Graph
from hepti_mpi.engine.kernels import ASKED, KERNELS, Writing
from hepti_mpi.engine.sessions import session
from hepti_mpi.errors import ModelError
from hepti_mpi.models.blocks import Attention
from hepti_mpi.program import ops
from hepti_mpi.program.steps import Compute
from hepti_mpi.weights.slices import Part, Slice
from hepti_mpi.weights.store import Store

# what segments are told of a step: rows as [sequences, rows of each, numbers], rows that each sequence has, and the most that any has
TOLD = {"shape": (TensorProto.INT64, 1), "reach": (TensorProto.INT32, 1), "most": (TensorProto.INT32, 0)}
HEAD_STEP = 8  # numbers of a head that GroupQueryAttention takes at once
KEYS, VALUES, ALL_KEYS, ALL_VALUES = "past_keys.{}", "past_values.{}", "keys.{}", "values.{}"


@dataclass(frozen=True, eq=False)
class CachedSegment:
    """One session: `inputs` and `outputs` by name, what it is told, what it asks of the rows, and the `layers` whose caches it uses.

    `zeros`: values of which the rank has no part, which are to be filled with 0. No session: there is nothing to run.
    """

    session: "onnxruntime.InferenceSession | None"
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    zeros: tuple[str, ...]
    told: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()


def cached_segment(compute: Compute, store: Store, part: Part, mode: str, threads: int) -> CachedSegment:
    """Return the session of one Compute, all of whose rows are everywhere; `mode` as in sessions.build."""
    done = [op for op in compute.ops if part.takes_part(op, compute.distribution)]
    missing = {name for op in compute.ops if op not in done for name in op.writes}
    outputs = tuple(name for name in compute.writes if name not in missing)
    zeros = tuple(name for name in compute.writes if name in missing)
    if not outputs:
        return CachedSegment(None, (), (), zeros)
    reads = {name for op in done for name in op.reads}
    inputs = tuple(name for name in compute.reads if name in reads)
    writing, layers = Writing(Graph(), store, part.heads), []
    for op in done:
        if isinstance(op, ops.Mix):
            attend(writing, op)
            layers.append(op.layer)
        else:
            KERNELS[type(op)](writing, op, part.op(op, compute.distribution))
    told = tuple(TOLD) if layers else ()
    graph = _proto(writing.graph, inputs, outputs, told, layers)
    asked = tuple(name for name in writing.graph.indexes)
    return CachedSegment(session(graph, store.path.parent, mode, threads), inputs, outputs, zeros, told, asked, tuple(layers))


def attend(to: Writing, op: ops.Mix) -> None:
    """q [r, w], k and v [r, kv w] -> c [r, w], by what is in the caches and these rows, which are added to them."""
    block, graph, granules = op.block, to.graph, to.granules(op)
    width = granules * block.group * block.dim
    batch = [graph.node("Reshape", [name, "shape"]) for name in op.reads]  # [sequences, rows of each, numbers]
    inputs = [*batch, KEYS.format(op.layer), VALUES.format(op.layer), "reach", "most"]
    mixed = f"mixed.{op.layer}"
    graph.node(
        "GroupQueryAttention", inputs, [mixed, ALL_KEYS.format(op.layer), ALL_VALUES.format(op.layer)], MICROSOFT,
        num_heads=granules * block.group, kv_num_heads=granules, scale=block.multiplier, softcap=block.softcap,
        local_window_size=-1 if block.window is None else block.window + 1,
    )  # fmt: skip
    graph.node("Reshape", [mixed, graph.constant(f"flat_{width}", np.array([-1, width], np.int64))], op.writes)


def check_cached(block: Attention) -> None:
    """Raise ModelError for an attention that cannot go on from a cache."""
    if not block.causal or block.relative is not None:
        raise ModelError("a model whose rows attend to those behind them does not generate text")
    if block.dim % HEAD_STEP:
        raise ModelError(f"heads of {block.dim} numbers are not supported for text: their width must be a multiple of {HEAD_STEP}")


def _proto(graph: Graph, inputs: Sequence[str], outputs: Sequence[str], told: Sequence[str], layers: Sequence[int]) -> onnx.GraphProto:
    def value(name: str, dims: int, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, [None] * dims)

    infos = [value(name, 2) for name in inputs]
    infos += [value(name, dims, kind) for name, (kind, dims) in ((name, TOLD[name]) for name in told)]
    infos += [value(name, ASKED[kind][1], ASKED[kind][0]) for name, kind in graph.indexes.items()]
    infos += [value(name.format(layer), 4) for layer in layers for name in (KEYS, VALUES)]
    given = [value(name, 2) for name in outputs] + [value(name.format(layer), 4) for layer in layers for name in (ALL_KEYS, ALL_VALUES)]
    return helper.make_graph(graph.nodes, "segment", infos, given, list(graph.initializers.values()))


def words_session(store: Store, table: Slice, bias: Slice | None, mode: str, threads: int) -> onnxruntime.InferenceSession:
    """Return what turns rows "x" [r, hidden] into logits "y" [r, words] of a part of the vocabulary."""
    writing = Writing(Graph(), store, 0)
    assert prod(table.shape)
    writing.linear("x", table, bias, "y")
    return session(_proto(writing.graph, ["x"], ["y"], (), ()), store.path.parent, mode, threads)
