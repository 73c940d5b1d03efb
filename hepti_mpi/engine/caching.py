"""Segments whose attention goes on from what earlier rows left: the operations as ONNX nodes, with caches as inputs and outputs.

All but attention is written as in kernels.py. Knows neither who holds which heads nor when a step is done.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from hepti_mpi.engine.bounds import Bounds
from hepti_mpi.engine.graph import DTYPES, MICROSOFT, Graph
from hepti_mpi.engine.kernels import ASKED, KERNELS, MOST_FLOAT16, Own, Writing, within_float16
from hepti_mpi.engine.opening import session
from hepti_mpi.engine.packing import asked
from hepti_mpi.engine.products import Made, OfStore, Product
from hepti_mpi.engine.sessions import of_store
from hepti_mpi.errors import ModelError
from hepti_mpi.models.blocks import Attention, Rotary
from hepti_mpi.models.formats import SCALES, VALUES, Blocks
from hepti_mpi.planning.memory import FULL
from hepti_mpi.program import ops
from hepti_mpi.program.grouping import padding
from hepti_mpi.program.operation import Op
from hepti_mpi.program.steps import Compute
from hepti_mpi.weights.slices import Part, Slice
from hepti_mpi.weights.store import Store

# what segments are told of a step: rows as [texts, rows of each, numbers], rows that each text has, and the most that any has
TOLD = {"shape": (TensorProto.INT64, 1), "reach": (TensorProto.INT32, 1), "most": (TensorProto.INT32, 0)}
HEAD_STEP, TURNED_STEP = 8, 16  # numbers of a head that GroupQueryAttention takes at once, and where it turns them too
KEYS, ROWS, ALL_KEYS, ALL_ROWS = "past_keys.{}", "past_values.{}", "keys.{}", "values.{}"


@dataclass(frozen=True, eq=False)
class CachedSegment:
    """One session: `inputs` and `outputs` by name, what it is told, what it asks of the rows, the `layers` whose caches it uses, and the
    `turns`: inputs that are the tables of rotary positions.

    `zeros`: values of which the rank has no part, which are to be filled with 0. No session: there is nothing to run.
    """

    session: "onnxruntime.InferenceSession | None"
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    zeros: tuple[str, ...]
    told: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    turns: tuple[str, ...] = ()


def cached_segment(
    compute: Compute, store: Store, part: Part, mode: str, threads: int, cache: str = FULL, graph: Graph | None = None
) -> CachedSegment:  # fmt: skip
    """Return the session of one Compute, all of whose rows are everywhere; `mode` as in sessions.of_store; `cache`: the type of numbers of
    caches; `graph`: into which it is written, None: one whose weights stay in the store."""
    held = part.held(compute)
    missing = {name for op in compute.ops if op not in held for name in op.writes}
    outputs = tuple(name for name in compute.writes if name not in missing)
    zeros = tuple(name for name in compute.writes if name in missing)
    if not outputs:
        return CachedSegment(None, (), (), zeros)
    readers = defaultdict[str, list[Op]](list)
    for op in held:
        for name in op.reads:
            readers[name].append(op)
    inputs = tuple(name for name in compute.reads if name in readers)
    bounds = Bounds(store, cache=cache)
    writing = Cached(graph or Graph(), store, part.bounds["heads"], cache=cache, largest=bounds.largest, readers=readers)
    for op, own in held.items():
        kernel = CACHED.get(type(op)) or KERNELS[type(op)]
        if bounds.add(op, own):
            writing.finite.add(op)
        kernel(writing, op, own)
    told = tuple(TOLD) if writing.layers else ()
    made = _proto(writing.graph, inputs, outputs, told, writing.layers, tuple(writing.turns), cache)
    wanted, layers, turns = tuple(writing.graph.indexes), tuple(writing.layers), tuple(writing.turns)
    pieces = [piece for own in held.values() for piece in own.values()]
    return CachedSegment(of_store(made, store, pieces, mode, threads), inputs, outputs, zeros, told, wanted, layers, turns)


@dataclass(frozen=True)
class Cached(Writing):
    """A segment with caches that is being written. `layers`: whose; `turns`: tables of rotary positions that it reads; `before`: what a
    value was before the attention that reads it turns it itself; `together`: of a layer, Q, K and V as one value; `cache`: the type of
    numbers of caches; `largest`: as of Bounds; `readers`: of each value."""

    layers: list[int] = field(default_factory=list)
    turns: dict[str, None] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)
    together: dict[int, str] = field(default_factory=dict)
    cache: str = FULL
    largest: Mapping[str, float] = field(default_factory=dict)
    readers: Mapping[str, Sequence[Op]] = field(default_factory=dict)

    def mixes(self, op: ops.Project) -> bool:
        """A step of texts looks once, behind its last layer: Decoder."""
        return False


def whole_table(kind: str, rotary: Rotary) -> str:
    """Return what the table of "cos" or "sin" at all positions is called."""
    return asked(f"all_{kind}", rotary)


def turns_itself(to: Cached, block: Attention) -> bool:
    """Tell whether the kernel that attends can turn heads itself: whole ones of certain widths, and in float32: in float16 the tables would
    be rounded too, which doubles the error."""
    return to.cache == FULL and block.rotary is not None and block.rotary.dims == block.dim and not block.dim % TURNED_STEP


def left_to_attention(to: Cached, op: Op) -> bool:
    """Tell whether nothing has to be written of an operation that stands before an attention: that turns heads itself."""
    turned = isinstance(op, ops.Rotate) and turns_itself(to, op.block)
    return turned and all(isinstance(reader, ops.Mix) for name in op.writes for reader in to.readers.get(name, ()))


def project(to: Cached, op: ops.Project, w: Own) -> None:
    """y [r, h] -> q, k, v; as one product where blocks of weights can be put one behind the other, and nothing comes between it and the
    attention."""
    pieces, biases = [w[f"{m}.weight"] for m in op.matrices], [w[f"{m}.bias"] for m in op.matrices if f"{m}.bias" in w]
    kind, readers = pieces[0].format, [reader for name in op.writes for reader in to.readers.get(name, ())]
    alike = isinstance(kind, Blocks) and all(piece.format is kind for piece in pieces) and len(biases) in (0, len(pieces))
    between = any(not isinstance(reader, ops.Mix) and not left_to_attention(to, reader) for reader in readers)
    if op.matrices != "qkv" or not alike or between:
        KERNELS[ops.Project](to, op, w)
        return
    every, tails = [to.store.parts(piece) for piece in pieces], {VALUES: 2, SCALES: 1}
    parts = {part: np.concatenate([one[part].reshape(-1, *one[part].shape[-tail:]) for one in every]) for part, tail in tails.items()}
    whole = Slice(f"layers.{op.layer}.qkv", 0, (len(parts[VALUES]), pieces[0].shape[-1]), kind, 1)
    bias = None
    if biases:
        bias = to.graph.constant(f"{whole.name}.bias", np.concatenate([to.store.array(piece).reshape(-1) for piece in biases]))
    to.together[op.layer] = Product(to.graph, Made(parts), op.reads[0], whole, looks=False).write(bias, f"together.{op.layer}")


def rotate(to: Cached, op: ops.Rotate, w: Own) -> None:
    """[r, w] -> [r, w], left to the attention where that can do it."""
    if left_to_attention(to, op):
        to.before.update(zip(op.writes, op.reads, strict=True))
    else:
        KERNELS[ops.Rotate](to, op, w)


def attend(to: Cached, op: ops.Mix, w: Own) -> None:
    """q [r, w], k and v [r, kv w] -> c [r, w], by what is in the caches and these rows, which are added to them."""
    block, graph, heads, kv_heads = op.block, to.graph, to.count(op), to.count(op, "k")
    reads = [to.together[op.layer]] if op.layer in to.together else [to.before.get(name, name) for name in op.reads]
    front, back = padding(*to.heads, block.group) if op.axis else (0, 0)
    if front or back:
        reads[0] = padded(to, reads[0], (front, heads, back, 2 * kv_heads if len(reads) == 1 else 0), block.dim)
    reads = reads if to.cache == FULL else [short(to, name, op) for name in reads]
    tables = list[str]()
    if block.rotary is not None and op.reads[0] in to.before:
        tables = [whole_table(kind, block.rotary) for kind in ("cos", "sin")]
        to.turns.update(dict.fromkeys(tables))
    mixed = over_cache(graph, block, op.layer, reads, (front + heads + back, kv_heads), to.cache, tables)
    if front or back:
        ends = [graph.constant(f"at_{at}", np.array([at], np.int64)) for at in (front * block.dim, (front + heads) * block.dim, 2)]
        mixed = graph.node("Slice", [mixed, *ends])
    width = heads * block.dim
    graph.node("Reshape", [mixed, graph.constant(f"flat_{width}", np.array([-1, width], np.int64))], op.writes)
    to.layers.append(op.layer)


def over_cache(
    graph: Graph, block: Attention, layer: int, reads: Sequence[str], counts: tuple[int, int], cache: str, tables: Sequence[str] = ()
) -> str:  # fmt: skip
    """Write attention of rows [r, w], in the numbers of the cache -> float32 [texts, rows of each, w].

    `reads`: q, k and v, or all three as one value; `counts`: heads of q, and of k and v; `tables`: of positions by which they are turned.
    """
    batch, more = [graph.node("Reshape", [name, "shape"]) for name in reads], dict[str, int]()
    inputs = [*batch, *[""] * (3 - len(batch)), KEYS.format(layer), ROWS.format(layer), "reach", "most", *tables]
    if tables:
        assert block.rotary is not None
        more = {"do_rotary": 1, "rotary_interleaved": int(block.rotary.interleaved)}
    mixed = f"mixed.{layer}"
    graph.node(
        "GroupQueryAttention", inputs, [mixed, ALL_KEYS.format(layer), ALL_ROWS.format(layer)], MICROSOFT,
        num_heads=counts[0], kv_num_heads=counts[1], scale=block.multiplier, softcap=block.softcap,
        local_window_size=-1 if block.window is None else block.window + 1, **more,
    )  # fmt: skip
    return mixed if cache == FULL else graph.node("Cast", [mixed], to=DTYPES[FULL])


def short(to: Cached, value: str, op: ops.Mix) -> str:
    """Write what an attention reads in the type of its cache, where all is NaN of a row that has what this type does not."""
    if not max(to.largest.get(name, inf) for name in op.reads) < MOST_FLOAT16:
        value = within_float16(to.graph, value)
    return to.graph.node("Cast", [value], to=DTYPES[to.cache])


def padded(to: Cached, value: str, counts: tuple[int, int, int, int], dim: int) -> str:
    """Write heads with so many before and behind them as each head of K and V must be read by as many: [r, w] -> [r, heads, dim].

    `counts`: heads in front, own ones, behind them, and others that follow. What pads is one of them again, which costs nothing but its
    part of the attention.
    """
    front, heads, back, others = counts
    places = [*[0] * front, *range(heads), *[heads - 1] * back, *range(heads, heads + others)]
    shape = to.graph.constant(f"heads_{heads + others}_{dim}", np.array([-1, heads + others, dim], np.int64))
    chosen = to.graph.constant("_".join(map(str, ("chosen", *counts))), np.array(places, np.int64))
    return to.graph.node("Gather", [to.graph.node("Reshape", [value, shape]), chosen], axis=1)


CACHED: dict[type[Op], Callable[[Cached, Any, Own], None]] = {ops.Project: project, ops.Rotate: rotate, ops.Mix: attend}


def check_cached(block: Attention) -> None:
    """Raise ModelError for an attention that cannot go on from a cache."""
    if not block.causal or block.relative is not None:
        raise ModelError("a model whose rows attend to those behind them does not generate text")
    if block.dim % HEAD_STEP:
        raise ModelError(f"heads of {block.dim} numbers are not supported for text: their width must be a multiple of {HEAD_STEP}")


def _proto(
    graph: Graph, inputs: Sequence[str], outputs: Sequence[str], told: Sequence[str] = (), layers: Sequence[int] = (),
    turns: Sequence[str] = (), cache: str = FULL,
) -> onnx.GraphProto:  # fmt: skip
    def value(name: str, dims: int, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, [None] * dims)

    infos = [value(name, 2) for name in inputs]
    infos += [value(name, dims, kind) for name, (kind, dims) in ((name, TOLD[name]) for name in told)]
    infos += [value(name, ASKED[kind][1], ASKED[kind][0]) for name, kind in graph.indexes.items()]
    infos += [value(name, 2) for name in turns]
    infos += [value(name.format(layer), 4, DTYPES[cache]) for layer in layers for name in (KEYS, ROWS)]
    given = [value(name, 2) for name in outputs]
    given += [value(name.format(layer), 4, DTYPES[cache]) for layer in layers for name in (ALL_KEYS, ALL_ROWS)]
    return helper.make_graph(graph.nodes, "segment", infos, given, list(graph.initializers.values()))


def attention_chain(block: Attention, layers: int, cache: str, threads: int) -> onnxruntime.InferenceSession:
    """Return attentions of so many layers, one behind the other, each with a cache of its own: rows "x", "k" and "v" and what segments
    are told -> "y"."""
    graph, value = Graph(), "x"
    flat = graph.constant("flat", np.array([-1, block.width], np.int64))
    for layer in range(layers):
        reads = [value, "k", "v"] if cache == FULL else [graph.node("Cast", [name], to=DTYPES[cache]) for name in (value, "k", "v")]
        mixed = over_cache(graph, block, layer, reads, (block.heads, block.kv_count), cache)
        value = graph.node("Reshape", [mixed, flat], ["y"] if layer == layers - 1 else None)
    return session(_proto(graph, ["x", "k", "v"], ["y"], tuple(TOLD), range(layers), cache=cache), Path("."), "packed", threads)


def words_session(store: Store, table: Slice, bias: Slice | None, mode: str, threads: int) -> onnxruntime.InferenceSession:
    """Return what turns rows "x" [r, hidden] into logits "y" [r, words] of a part of the vocabulary."""
    writing = Cached(Graph(), store, (0, 0))
    assert prod(table.shape)
    Product(writing.graph, OfStore(store), "x", table).write(writing.vector(bias) if bias else None, "y")
    pieces = [table] if bias is None else [table, bias]
    return of_store(_proto(writing.graph, ["x"], ["y"]), store, pieces, mode, threads)
