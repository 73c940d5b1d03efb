"""Whether a rank is faster now than its profile says, by products alone, and the chains of these. Knows no profile file.

What else is timed when ranks are measured is timing.py's, which a start that has a profile does not import.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from hepti_mpi.cluster.profile import GLANCE, NodeProfile
from hepti_mpi.engine.cores import Cores
from hepti_mpi.engine.graph import Graph
from hepti_mpi.engine.kernels import ASKED
from hepti_mpi.engine.opening import session
from hepti_mpi.engine.products import Made, Multiple, Product
from hepti_mpi.models.formats import F32, FORMATS, VALUES, Format
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.weights.slices import Slice

PROBE_BYTES = 64 << 20
GLANCES = 6  # how often products are looked at


def sooner(cores: Cores, spec: ModelSpec, nodes: Sequence[NodeProfile]) -> float:
    """Return how many times as fast this rank is now as its profile says, by some products of few rows; where it may have its host's cores
    for itself, with all of them. `nodes`: the profiles of all ranks. It takes a moment.

    A machine with other work can only be slower: much faster than the profile means that it had other work when that was measured.
    """
    node = nodes[cores.rank]
    crowd = sum(one.threads for one in nodes if one.host == node.host)
    threads, before = cores.use(alone=cores.two_ways), node.alone or node
    place = min(GLANCE, len(node.gemm_rows) - 1)
    chain, (tile, weights) = products(spec, threads, spec.product_formats), chained(spec)
    rows = {"x": np.resize(tile, (node.gemm_rows[place], spec.hidden))}
    # as the profile was measured; but where several threads compute, what one does while another has no core costs none of their time to
    # wait for each other, and would seem sooner by the half: by the clock on the wall that is slower, which speaks against no profile
    clock = time.thread_time if crowd > len(cores.whole) and threads == 1 else time.perf_counter
    times = []
    with cores.apart_from_threads():
        for _ in range(GLANCES):
            begin = clock()
            chain.run(None, rows)
            times.append(clock() - begin)
    cores.use(alone=False)
    return before.glance_seconds_per_weight * weights / max(min(times[1:]), 1e-9)


def chained(spec: ModelSpec) -> tuple[np.ndarray, int]:
    """Return the matrix that chains of products are made of, [columns, hidden], and the weights of a whole chain."""
    hidden, columns = spec.hidden, -(-spec.ffn // 2)
    blocks = max(1, min(spec.layers, PROBE_BYTES // (2 * hidden * columns * 4)))
    return np.resize(np.array([0.01, -0.02, 0.015, -0.005, 0.003], np.float32), (columns, hidden)), 2 * hidden * columns * blocks


def products(spec: ModelSpec, threads: int, used: Mapping[str, float], blocks: int | None = None) -> onnxruntime.InferenceSession:
    """Return a chain of MLP products x [r, hidden] -> y [r, hidden]; `used`: the part of the weights in each
    format; `blocks`: pairs of them, None: as many as outdo most caches."""
    tile, weights = chained(spec)
    chain, value, count = Graph(threads), "x", weights // (2 * tile.size) if blocks is None else blocks
    for number in range(2 * count):
        made, inner = Multiple(tile, 1 + number / 256), 1 - number % 2  # equal ones would be kept once
        kind = format_of((number + 0.5) / (2 * count), used)
        piece = Slice(f"{number}", 0, tile.shape, kind, inner)
        source = made if kind is F32 else Made(kind.encode(made.parts(piece)[VALUES], inner))
        value = Product(chain, source, value, piece, looks=not inner).write(None, "y" if number == 2 * count - 1 else None)
    return probe(chain, ["x"], threads)


def format_of(place: float, used: Mapping[str, float]) -> Format:
    """Return the format at a `place` from 0 to 1 among those that are used, each as often as it is."""
    ends = np.cumsum(list(used.values()))
    return FORMATS[list(used)[min(int(np.searchsorted(ends, place)), len(used) - 1)]]


def probe(graph: Graph, inputs: Sequence[str], threads: int, kind: int = TensorProto.FLOAT) -> onnxruntime.InferenceSession:
    """Return the session of a graph that writes `y`, of the ONNX type `kind`."""
    infos = [helper.make_tensor_value_info(name, ASKED.get(name, (TensorProto.FLOAT, 2))[0], None) for name in inputs]
    result = helper.make_tensor_value_info("y", kind, None)
    made = helper.make_graph(graph.nodes, "probe", infos, [result], list(graph.initializers.values()))
    return session(made, Path("."), "packed", threads)
