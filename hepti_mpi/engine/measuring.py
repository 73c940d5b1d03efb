"""Measure this job's ranks: the kernels of the engine beside each other and, where ranks share a host, of one with all cores of it;
and what rank 0 does around the layers.

Knows kernels, cores and clocks; does not know profile files.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from hepti_mpi.cluster import probe
from hepti_mpi.cluster.emulation import Emulation
from hepti_mpi.cluster.profile import ClusterProfile, Edges
from hepti_mpi.comm.exchange import Exchanges
from hepti_mpi.comm.ranks import Comm
from hepti_mpi.engine.cores import Cores
from hepti_mpi.engine.timing import chained, products, timers
from hepti_mpi.models.blocks import Norm, plain
from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.models.spec import ModelSpec, outer_weights
from hepti_mpi.models.steps import LayerNorm, Lookup, Normalize, Step
from hepti_mpi.models.tasks.heads import apply_head, embed

PROBE_ROWS = (1, 8, 16, 24, 32, 48, 64, 96, 128, 192)
GLANCE, GLANCES = 2, 6  # which of the curve's numbers of rows is looked at, and how often
ROWS, REQUESTS, WORDS, CALLS = 128, 32, 1000, 15  # of a batch that only rank 0 handles


def measured(
    world: Comm, exchanges: Exchanges, emulation: Emulation, cores: Cores, spec: ModelSpec, versions: dict[str, str]
) -> ClusterProfile:  # fmt: skip
    """Return the profile of all ranks, the same on every rank. Collective; takes a few seconds."""
    host = cores.hosts[world.rank]
    rows = tuple(count for count in PROBE_ROWS if count <= max(8, spec.positions))
    memory = probe.usable_memory(cores.hosts.count(host))
    crowd = sum(threads for other, threads in world.gather_all([host, cores.threads]) if other == host)
    clock: Callable[[], float] = time.perf_counter
    alone_clock = clock
    if crowd > len(cores.whole) and not emulation.on:  # both by the same kind of clock: what else the machine does must not decide
        clock, alone_clock = partial(_cpu_time, cores.threads), partial(_cpu_time, cores.alone_threads)
    speeds = probe.speeds_of(timers(spec, cores.threads), rows, spec.positions, emulation, clock, world.barrier)
    alone, edges = None, Edges()
    world.barrier()  # the others rest while one has all cores
    if cores.leads and cores.two_ways:
        alone = probe.speeds_of(timers(spec, cores.use(alone=True)), rows, spec.positions, emulation, alone_clock, lambda: None)
    if world.rank == 0:
        edges = edges_of(spec)
    cores.use(alone=False)
    world.barrier()
    who = {"host": host, "cores": len(cores.whole), "threads": cores.threads, "memory_bytes": memory, "gemm_rows": rows}
    with emulation.in_time():  # else links would seem the slower the more this machine does beside
        return probe.measure(world, exchanges, who, speeds, alone, edges, versions, (spec.hidden, spec.ffn))


def sooner(world: Comm, emulation: Emulation, cores: Cores, spec: ModelSpec, profile: ClusterProfile) -> list[float]:
    """Return how many times as fast each rank is now as its profile says, by some products of few rows. Collective; takes a moment.

    A machine with other work can only be slower: much faster than the profile means that it had other work when that was measured.
    """
    if emulation.on:
        return [1.0] * world.size
    node = profile.nodes[world.rank]
    place = min(GLANCE, len(node.gemm_rows) - 1)
    chain, (tile, weights) = products(spec, cores.threads), chained(spec)
    rows = {"x": np.resize(tile, (node.gemm_rows[place], spec.hidden))}
    clock = time.perf_counter
    crowd = sum(threads for other, threads in world.gather_all([node.host, cores.threads]) if other == node.host)
    if crowd > len(cores.whole):  # as the profile was measured
        clock = partial(_cpu_time, cores.threads)
    times = []
    for _ in range(GLANCES):
        begin = clock()
        chain.run(None, rows)
        times.append(clock() - begin)
    then = node.gemm_seconds_per_weight[place] * weights
    return [float(ratio) for ratio in world.gather_all(then / max(min(times[1:]), 1e-9))]


def _cpu_time(threads: int) -> float:
    return time.process_time() / threads


def edges_of(spec: ModelSpec) -> Edges:
    """Return what a batch takes around its layers, told from batches of sentences that differ in rows and in number."""
    hidden = spec.hidden
    front: list[Step] = [Lookup(by, by, size, hidden) for by, size in (("ids", WORDS), ("types", 2), ("positions", ROWS))]
    front.append(LayerNorm("norm", hidden, 1e-12))
    layer = plain(hidden, 1, 1, "gelu", Norm(hidden, 1e-12), first=False)
    like = ModelSpec("bert", "like", 1, hidden, 1, 1, ROWS, "tokens", "sentence", (layer,), options={"pooling": "mean"})
    like = replace(like, front=tuple(front), back=(Normalize("normalize"),))
    weights = {one.name: np.full(one.shape, 0.01, np.float32) for one in outer_weights(like)}
    values, square = np.full((ROWS, hidden), 0.01, np.float32), np.full((hidden, hidden), 0.01, np.float32)

    def batch(requests: int, rows: int) -> Callable[[], object]:
        places = np.arange(rows)
        arrays = {"ids": places * 7 % WORDS, "types": places * 0, "positions": places}
        every = [Request(index, "", arrays, places, rows) for index in range(requests)]
        space = np.empty((requests * rows, hidden), np.float32)

        def call() -> None:
            joined = {key: np.concatenate([request.arrays[key] for request in every]) for key in arrays}
            np.copyto(space, embed(like, weights, joined))
            apply_head(like, weights, {}, space, every, False)

        return call

    least, longer, more, product = _quick(batch(1, 1), batch(1, ROWS), batch(REQUESTS, 1), lambda: values @ square)
    element = max(longer - least, 0.0) / ((ROWS - 1) * hidden)
    request = max((more - least) / (REQUESTS - 1) - hidden * element, 0.0)
    mac = product / (ROWS * hidden * hidden)
    return Edges(element, mac, request, max(least - request - hidden * element, 0.0))


def _quick(*calls: Callable[[], object]) -> list[float]:
    """Return the seconds of each call, of several in turns the lower quartile: what disturbs a moment disturbs all of them. Emulated boards
    do this as fast as this machine does."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(CALLS):
        for call, found in zip(calls, times):
            begin = time.perf_counter()
            call()
            found.append(time.perf_counter() - begin)
    return [sorted(found)[len(found) // 4] for found in times]
