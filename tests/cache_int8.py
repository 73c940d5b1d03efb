"""What attention would take over a cache of int8 numbers with a scale for each row and head, which ONNX Runtime's own does not read: a line
with milliseconds of the processor's time for all layers, each with a cache of its own, and the largest error beside float32's.

"dequantized": float32 keys and values are made of all rows, for the attention that there is. "integer": one row's queries and chances are
rounded, chances times the scales of values to 16 bits in two parts, and multiplied by the numbers as they are; keys lie as [dim, rows].
Neither adds the row to the cache, turns it, or knows windows, soft caps and several texts.

    python tests/cache_int8.py 9 3 30      # heads, heads of K and V, layers: SmolLM2-135M
"""

import sys
from pathlib import Path

import numpy as np
from cache_formats import compare
from onnx import TensorProto, helper

from hepti_mpi.engine.caching import ALL_KEYS, ALL_ROWS, KEYS, ROWS, TOLD, over_cache
from hepti_mpi.engine.graph import Graph
from hepti_mpi.engine.opening import session
from hepti_mpi.engine.pool import configure
from hepti_mpi.engine.sessions import ELEMENT, bound
from hepti_mpi.models.blocks import Attention

DIM, PASTS, COUNTS, TURNS = 64, (128, 1024, 4096), (1, 128), 5
KEPT = {"float32": np.float32, "float16": np.float16, "dequantized": np.int8, "integer": np.int8}


def number(graph, name, value, dtype=np.float32):
    return graph.constant(name, np.array(value, dtype))


def integer(graph, block):
    """q [1, w] and the numbers and scales of a cache -> y [1, w]."""
    heads = graph.constant("heads", np.array([1, block.kv_count, block.group, DIM]))
    flat, last = graph.constant("flat", np.array([1, block.width])), graph.constant("last", np.array([-1]))
    q = graph.node("Reshape", ["q", heads])
    scale = graph.node("Mul", [graph.node("ReduceMax", [graph.node("Abs", [q]), last], keepdims=1), number(graph, "part", 1 / 127)])
    near = graph.node("Round", [graph.node("Add", [graph.node("Div", [q, scale]), number(graph, "middle", 128)])])
    near = graph.node("Cast", [near], to=TensorProto.UINT8)
    scores = graph.node("MatMulInteger", [near, "keys", number(graph, "zero", 128, np.uint8)])
    scores = graph.node("Mul", [graph.node("Cast", [scores], to=TensorProto.FLOAT), "key_scales"])
    scores = graph.node("Mul", [scores, graph.node("Mul", [scale, number(graph, "multiplier", block.multiplier)])])
    chances = graph.node("Mul", [graph.node("Softmax", [scores], axis=-1), "value_scales"])
    scale = graph.node("Mul", [graph.node("ReduceMax", [chances, last], keepdims=1), number(graph, "step", 1 / 65535)])
    steps, byte = graph.node("Div", [chances, scale]), number(graph, "byte", 256)
    high = graph.node("Floor", [graph.node("Mul", [steps, number(graph, "less", 1 / 256)])])
    low = graph.node("Sub", [steps, graph.node("Mul", [high, byte])])
    both = graph.node("Cast", [graph.node("Concat", [high, low], axis=2)], to=TensorProto.UINT8)
    found = graph.node("Cast", [graph.node("MatMulInteger", [both, "values"])], to=TensorProto.FLOAT)
    graph.node("Split", [found], ["high", "low"], axis=2, num_outputs=2)
    found = graph.node("Add", [graph.node("Mul", ["high", byte]), "low"])
    graph.node("Reshape", [graph.node("Mul", [found, scale]), flat], ["y"])


def written(block, kind, feed, caches):
    """Return the session of one attention for arrays like those of `feed`; `caches`: outputs that are inputs too."""
    graph, flat = Graph(), np.array([-1, block.width])
    if kind == "integer":
        integer(graph, block)
    else:
        reads = ["q", "k", "v"]
        if kind == "float16":
            reads = [graph.node("Cast", [name], to=TensorProto.FLOAT16) for name in reads]
        if kind == "dequantized":
            for name, kept, scales in ((KEYS, "keys", "key_scales"), (ROWS, "values", "value_scales")):
                graph.node("Mul", [graph.node("Cast", [kept], to=TensorProto.FLOAT), scales], [name.format(0)])
        mixed = over_cache(graph, block, 0, reads, (block.heads, block.kv_count), kind if kind == "float16" else "float32")
        graph.node("Reshape", [mixed, graph.constant("flat", flat)], ["y"])
    inputs = [helper.make_tensor_value_info(name, ELEMENT[one.dtype], None) for name, one in feed.items()]
    outputs = [helper.make_tensor_value_info(name, ELEMENT[one.dtype], None) for name, one in caches.items()]
    outputs.insert(0, helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    made = helper.make_graph(graph.nodes, kind, inputs, outputs, list(graph.initializers.values()))
    return session(made, Path("."), "packed", 1)


def attention(block, layers, past, count, kind):
    """Return what does a step of `count` rows of all layers, and where the last one leaves its rows."""
    random, runs, made = np.random.default_rng(0), [], None
    widths = {"q": block.width, "k": block.kv_width, "v": block.kv_width}
    rows = {name: random.standard_normal((count, width), np.float32) for name, width in widths.items()}
    every, y = past + count, np.empty((count, block.width), np.float32)
    told = {"shape": np.array([1, count, -1]), "reach": np.array([every - 1], np.int32), "most": np.array(every, np.int32)}
    assert list(told) == list(TOLD)
    for _ in range(layers):
        kept = [random.standard_normal((1, block.kv_count, every, DIM), np.float32) for _ in range(2)]
        for one, name in zip(kept, "kv"):
            one[0, :, past:] = rows[name].reshape(count, block.kv_count, DIM).swapaxes(0, 1)
        feed, caches = rows | told, {}
        if KEPT[kind] is np.int8:
            scales = [np.abs(one).max(axis=-1, keepdims=True) / np.float32(127) for one in kept]
            kept = [np.rint(one / scale).astype(np.int8) for one, scale in zip(kept, scales)]
            if kind == "integer":
                scales = [scale.swapaxes(2, 3).copy() for scale in scales]
                feed, kept[0] = {"q": rows["q"]}, kept[0].swapaxes(2, 3).copy()
            feed = feed | dict(zip(("keys", "values", "key_scales", "value_scales"), (*kept, *scales)))
        else:
            kept = [one.astype(KEPT[kind]) for one in kept]
            feed = feed | {name.format(0): one for name, one in zip((KEYS, ROWS), kept)}
            caches = {name.format(0): one for name, one in zip((ALL_KEYS, ALL_ROWS), kept)}
        made = made or written(block, kind, feed, caches)
        runs.append(bound(made, feed, y, caches))
    return lambda: [run() for run in runs], y


def main():
    heads, kv_heads, layers = map(int, sys.argv[1:])
    block = Attention(heads * DIM, heads, DIM, kv_heads, causal=True)
    configure(1)
    for past in PASTS:
        for count in COUNTS:
            made = {kind: attention(block, layers, past, count, kind) for kind in KEPT if kind != "integer" or count == 1}
            compare(past, count, made, TURNS)


if __name__ == "__main__":
    main()
