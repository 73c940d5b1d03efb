"""Describe this machine as a board: the figures of boards.toml by real calls of one rank, and real calls of each kind of work to hold the
model of a call's time against.

Knows kernels and the clock; does not know files, nor how it is shown.
"""

import os
import time
from collections.abc import Callable

import numpy as np

from hepti_mpi.cluster.boards import FIGURES, OVERLAP, ROWS, Board, Call, Work
from hepti_mpi.cluster.profile import PLAIN
from hepti_mpi.engine import integers, sessions
from hepti_mpi.engine.glance import probe
from hepti_mpi.engine.graph import MICROSOFT, Graph
from hepti_mpi.engine.sessions import bound
from hepti_mpi.engine.timing import timers
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.program.ops import CASTS
from hepti_mpi.wording import counted

LIKE = "bert-large"  # whose shapes all are described by, so that entries can be compared
PASSES, PASS_SECONDS = 8, 0.03  # of each call: what disturbs the machine for a second disturbs a part of each call's times
BLOCK = 32  # weights that share a scale, of 4 bits
MANY = 96  # rows from which products count for their arithmetic
LENGTHS, PACKED = (16, 64, 128, 384), ((16, 16), (1, 128))  # rows of one request; (requests, rows) of several


def describe(name: str, title: str, threads: int, when: str) -> tuple[Board, list[Call]]:
    """Return this machine as a board called `name`, as `threads` threads measure it within about half a minute, and the calls."""
    kernels = _kernels(random_model(LIKE).spec, threads)
    clock = time.thread_time if threads == 1 else time.perf_counter  # a lone thread's own time leaves out what else the machine does
    shortest = [float("inf")] * len(kernels)
    for _ in range(PASSES):
        for place, (_, call) in enumerate(kernels):
            shortest[place] = min(shortest[place], _shortest(call, clock))
    calls = [Call(kind, what, work, seconds, weights) for ((kind, what, work, weights), _), seconds in zip(kernels, shortest)]
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _board(name, title, threads, memory_bytes, when, calls), calls


def _shortest(call: Callable[[], object], clock: Callable[[], float]) -> float:
    found, end = float("inf"), time.perf_counter() + PASS_SECONDS
    while found == float("inf") or time.perf_counter() < end:
        begin = clock()
        call()
        found = min(found, clock() - begin)
    return found


def _board(name: str, title: str, threads: int, memory_bytes: int, when: str, calls: list[Call]) -> Board:
    """Return the board of which these are the calls."""
    (nothing,) = (call.seconds for call in calls if call.kind == "call")
    products = [(*call.work.products[0][:2], call.seconds - nothing, call.weights) for call in calls if call.kind == "product"]
    rates = {
        kind: max(2 * rows * weights / seconds for rows, weights, seconds, its in products if its == kind and rows >= MANY)
        for kind in ("float32", "int8", "int4")
    }
    rows, weights, seconds, _ = min(product for product in products if product[3] == "float32")
    reading = seconds**OVERLAP - (2 * rows * weights / rates["float32"]) ** OVERLAP
    memory = 4 * weights / max(reading, 1e-30) ** (1 / OVERLAP)
    how = {
        "float32_gflops": f"products with rows from {MANY} to {ROWS[-1]}", "int8_gops": "DynamicQuantizeMatMul of as many rows",
        "int4_gops": f"MatMulNBits of as many rows, a scale for {BLOCK} weights",
        "memory_gbs": f"products of one row with {4e-6 * weights:.0f} MB of float32 weights", "call_us": "a run of next to nothing",
    }  # fmt: skip
    sources = {key: f"measured: on this machine, {counted(threads, 'threads')}, {how[key]}; {when}" for key in FIGURES}
    return Board(name, title, threads, memory_bytes, rates["float32"], rates["int8"], rates["int4"], memory, nothing, sources)


Kernel = tuple[tuple[str, str, Work, str], Callable[[], object]]


def _kernels(spec: ModelSpec, threads: int) -> list[Kernel]:
    """Return a call of every kind of work, as the engine does it."""
    kernels, hidden = timers(spec, threads, PLAIN, whole=False), spec.hidden
    found: list[Kernel] = [(("call", "of next to nothing", Work(), ""), kernels.nothing)]
    for rows in ROWS:
        found.append((("product", counted(rows, "rows"), Work(((rows, kernels.weights),)), "float32"), kernels.gemm(rows)))
    for rows in (row for row in ROWS if row >= MANY):
        for kind, format_name in (("int8", "q8"), ("int4", "q4")):
            work = Work(((rows, 2.0 * hidden * spec.ffn, format_name),))
            found.append((("product", counted(rows, "rows"), work, kind), _quantised(spec, kind, rows, threads)))
    one = Graph()
    one.node("MultiHeadAttention", ["q", "k", "v"], ["y"], MICROSOFT, num_heads=spec.heads)
    plain = probe(one, ["q", "k", "v"], threads)
    for length in LENGTHS:
        values = np.full((1, length, hidden), 0.01, np.float32)
        call = bound(plain, {name: values.copy() for name in "qkv"}, np.empty_like(values))
        found.append((("attention", counted(length, "rows"), _attending(1, length, hidden), ""), call))
    for count, length in PACKED:
        what = f"{count} x {counted(length, 'rows')}, packed"
        found.append((("attention", what, _attending(count, length, hidden), ""), kernels.attention(count, length)))
    size = kernels.rows * hidden
    shape = f"{kernels.rows} x {hidden}"
    found += [
        (("elements", shape, Work(elements=size), ""), kernels.elements),
        (("activations", shape, Work(activations=size), ""), kernels.activations),
        (("casts", shape, Work(casts=size), ""), kernels.casts),
    ]
    return found + _copies(kernels.rows, hidden)


def _attending(count: int, length: int, hidden: int) -> Work:
    return Work(attention=2.0 * count * length * length * hidden, arranged=count * length * hidden)


def _copies(rows: int, hidden: int) -> list[Kernel]:
    """Return what exchanges do around their transfers."""
    ours, other = (np.zeros((rows, hidden), np.float32) for _ in range(2))
    short, shape = ours.astype(np.float16), f"{rows} x {hidden}"
    numbers, scales, both = ours.astype(np.int8), np.ones((rows, 1), np.float32), ours.nbytes + other.nbytes
    return [
        (("copies", shape, Work(copied=both), ""), lambda: np.copyto(ours, other)),
        (("copies", f"{shape}, sums", Work(copied=both), ""), lambda: np.add(ours, other, out=ours)),
        (("copies", f"{shape}, a sum with float16", Work(casts=ours.size, copied=2 * both), ""),
         sessions.add_short(other, ours, [(short,)])),
        (("copies", f"{shape}, a sum with int8", Work(casts=CASTS["int8"] * ours.size, copied=2 * both), ""),
         sessions.add_short(other, ours, [(numbers, scales)])),
    ]


def _quantised(spec: ModelSpec, kind: str, rows: int, threads: int) -> Callable[[], None]:
    """Return a call of ONNX Runtime's products of float32 rows with int8 or 4-bit weights: both of an MLP."""
    graph, value = Graph(), "x"
    for number, (inner, outer) in enumerate(((spec.hidden, spec.ffn), (spec.ffn, spec.hidden))):
        output = ["y"] if number else None
        if kind == "int8":
            signed, middle = integers.signed_are_right(), integers.MIDDLE  # as products are made
            some = np.arange(-97, 98, dtype=np.int8) if signed else np.arange(middle - 97, middle + 98, dtype=np.uint8)
            weights = graph.constant(f"w{number}", np.resize(some, (inner, outer)))
            worth = [graph.constant(f"scale{number}", np.array(1e-3, np.float32))]
            worth += [] if signed else [graph.constant(f"middle{number}", np.array(middle, np.uint8))]
            value = graph.node("DynamicQuantizeMatMul", [value, weights, *worth], output, MICROSOFT)
            continue
        blocks = inner // BLOCK
        weights = graph.constant(f"w{number}", np.resize(np.arange(251, dtype=np.uint8), (outer, blocks, BLOCK // 2)))
        scale = graph.constant(f"scale{number}", np.full(outer * blocks, 1e-2, np.float32))
        value = graph.node("MatMulNBits", [value, weights, scale], output, MICROSOFT, K=inner, N=outer, bits=4, block_size=BLOCK,
                           accuracy_level=4)  # fmt: skip
    feed = np.full((rows, spec.hidden), 0.01, np.float32)
    return bound(probe(graph, ["x"], threads), {"x": feed}, np.empty_like(feed))
