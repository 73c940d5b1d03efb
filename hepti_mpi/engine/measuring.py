"""Measure this job's ranks: the kernels of the engine beside each other and, where ranks share a host, of one with all cores of it.

Decides what is timed and when, and times it. What there is to time is timing.py's, what comes of the seconds cluster/speeds.py's; knows no
profile files.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from hepti_mpi.cluster import load
from hepti_mpi.cluster.boards import Work
from hepti_mpi.cluster.emulation import Emulation
from hepti_mpi.cluster.links import exchange, links
from hepti_mpi.cluster.memory import machine_name, usable_memory
from hepti_mpi.cluster.profile import CACHES, STEP_ROWS, ClusterProfile, Edges, joined
from hepti_mpi.cluster.speeds import Timed, fitted
from hepti_mpi.comm.exchange import Exchanges
from hepti_mpi.comm.ranks import Comm
from hepti_mpi.engine.cores import Cores
from hepti_mpi.engine.edges import edges_of
from hepti_mpi.engine.timing import Timers, timers
from hepti_mpi.models.spec import ModelSpec

PASSES, MOST_CALLS = 5, 100  # calls of a kernel in a pass, at most: more of short ones say no more, and take a start seconds
RETRIES = 8  # times more that an emulated board's kernel is timed where this machine was never as fast: it had other work
QUICKLY = 0.25  # of the time that a real board's kernels are called: of an emulated one, one call that is in time says all
ATTENDED = (16, 16), (1, 192)  # (requests, length) of the two batches whose attention is timed
BEHIND = 128, 1024  # rows of a text in a cache to which one more attends
WHOLE = (8,), (8,) * 8, (24,) * 8, (24, *(8,) * 7)  # lengths of those that go through whole layers: in the last one most are padded
HELD = 16  # so many times the weights of whole layers of texts fit into memory: those of a large model take several times theirs to load
PROBE_ROWS = (1, 8, 16, 24, 32, 48, 64, 96, 128, 192)


def measured(
    world: Comm, exchanges: Exchanges, emulation: Emulation, cores: Cores, spec: ModelSpec, versions: dict[str, str]
) -> ClusterProfile:  # fmt: skip
    """Return the profile of all ranks, the same on every rank. Collective; takes seconds, or of a large processor half a minute."""
    host, watch = cores.hosts[world.rank], load.Watch(cores.whole)
    rows = tuple(count for count in PROBE_ROWS if count <= max(8, spec.positions))
    machines = world.gather_all(machine_name())
    memory = usable_memory(cores.hosts.count(host), machines.count(machines[world.rank]) if machines[world.rank] else 1)
    crowd = sum(threads for other, threads in world.gather_all([host, cores.threads]) if other == host)
    clock: Callable[[], float] = time.perf_counter
    alone_clock = clock
    if crowd > len(cores.whole) and not emulation.on:  # both by the same kind of clock: what else the machine does must not decide
        clock, alone_clock = partial(_cpu_time, cores.threads), partial(_cpu_time, cores.alone_threads)
    world.barrier()  # the others rest while one has all cores
    one_alone, alone = cores.leads and cores.two_ways, None
    threads = cores.use(alone=one_alone)
    edges = edges_of(spec.hidden) if world.rank == 0 else Edges()
    used = spec.product_formats
    if one_alone:
        made = timers(spec, threads, used, not emulation.on, memory // HELD)
        with cores.apart_from_threads():
            alone = timed(made, rows, spec.positions, emulation, alone_clock, None)
        del made  # before the others make theirs: both need memory
    cores.use(alone=False)
    world.barrier()
    made = timers(spec, cores.threads, used, not emulation.on, memory // HELD)
    with cores.apart_from_threads():
        own = timed(made, rows, spec.positions, emulation, clock, world.barrier)
    world.barrier()
    spent = load.ours(world.rank, cores.hosts, machines, world.gather_all(watch.spent))
    others = 0.0 if emulation.on else watch.others(spent)  # an emulated board waits for this machine and takes no harm
    who = {"host": host, "cores": len(cores.whole), "threads": cores.threads, "memory_bytes": memory, "gemm_rows": rows}
    who["other_work"] = others
    with emulation.in_time():  # else links would seem the slower the more this machine does beside
        return gathered(world, exchanges, who, own, alone, edges, versions, (spec.hidden, spec.ffn))


def timed(timers: Timers, rows: Sequence[int], positions: int, emulation: Emulation, clock: Callable[[], float],
          begin: Callable[[], object] | None, seconds: float = 2.0) -> Timed:
    """Return what kernels take this rank by `clock`, timed for about `seconds`.

    `begin` is called before each kernel: ranks that compute beside each other wait there for each other, so that they see each other. None:
    the others rest; then what this rank's threads wait for each other, which a clock of computing does not see, is in its whole layers
    and in the table of words.
    """
    shapes = [(count, min(length, positions)) for count, length in ATTENDED]
    size = timers.rows * timers.hidden
    parts = [(timers.weights * part, name) for name, part in timers.formats.items()]
    calls = [(timers.gemm(count), Work(tuple((count, *part) for part in parts))) for count in rows]
    for count, length in shapes:
        laid_out = count * length * timers.hidden
        calls.append((timers.attention(count, length), Work(attention=2.0 * laid_out * length, arranged=laid_out)))
    calls += [(timers.elements, Work(elements=size)), (timers.activations, Work(activations=size)), (timers.casts, Work(casts=size))]
    calls += [(timers.nothing, Work())]
    behind = () if timers.cached is None or emulation.on else tuple(
        (cache, min(length, positions - 1)) for cache in CACHES for length in BEHIND)  # fmt: skip
    calls += [(timers.cached.call(*shape), timers.cached.work(shape[1])) for shape in behind if timers.cached is not None]
    parts_of_layers, behind_few = len(calls), min(BEHIND[0], positions - 1)
    whole = () if timers.layers is None else tuple(tuple(min(length, positions) for length in lengths) for lengths in WHOLE)
    calls += [(timers.layers.call(lengths), Work()) for lengths in whole if timers.layers is not None]
    steps = [(part, texts) for part in timers.texts for texts in STEP_ROWS]
    calls += [(part.call(texts, behind_few), Work()) for part, texts in steps]
    behind_texts = len(calls)
    calls += [] if timers.table is None else [(timers.table[0](texts), Work()) for texts in STEP_ROWS]
    times: list[list[float]] = [[] for _ in calls]
    spans: list[list[float]] = [[] for _ in calls]
    passes = 1 if emulation.on else PASSES  # a machine that is disturbed for a second disturbs a part of each kernel's times, not all
    lasting = (QUICKLY if emulation.on else 1.0) * seconds / passes / len(calls)
    for _ in range(passes):
        for place, ((call, work), found) in enumerate(zip(calls, times)):
            alone = len(rows) <= place < parts_of_layers and not emulation.on
            before = timers.between if alone else None  # the chain of products has its own weights
            if place >= behind_texts:
                before = calls[behind_texts - len(steps)][0]  # the table of words: layers take what was in caches, as those of a token do
            if begin is not None:
                begin()
            with emulation.in_time():
                piece = partial(emulation.run, call, work), lasting, clock, (found, spans[place]), before, not emulation.on
                _time(*piece)
                for _ in range(RETRIES):
                    if place < parts_of_layers and emulation.outrun(work, min(found)):
                        _time(*piece)
    part = 0.0 if emulation.on else 0.25  # an emulated board's shortest time is its own: what took longer waited for this machine
    spent_of = [sorted(found)[int(part * len(found))] for found in times]
    if begin is None:
        for place in range(parts_of_layers, len(calls)):
            spent_of[place] *= _waits(spans[place], times[place])
    curve, spent = [taken / timers.weights for taken in spent_of[: len(rows)]], spent_of[len(rows) :]
    attention = [(work, taken) for (_, work), taken in zip(calls[len(rows) :], spent[: len(shapes)])]
    did = [timers.layers.work(lengths) for lengths in whole if timers.layers is not None]
    took = [(work, taken) for (_, work), taken in zip(calls[len(rows) + 6 :], spent[6:])][: len(behind)]
    cached = [took[place : place + len(BEHIND)] for place in range(0, len(took), len(BEHIND))]  # of each of CACHES
    layers = list(zip(did, spent[6 + len(behind) :]))
    of_texts = [(part.work(texts, behind_few), taken) for (part, texts), taken in zip(steps, spent[6 + len(behind) + len(whole) :])]
    table = [] if timers.table is None else [taken / timers.table[1] for taken in spent_of[behind_texts:]]
    return Timed(rows, curve, attention, spent[2:6], size, layers, cached, of_texts, timers.texts[0].count if steps else 0, table)


def _time(call: Callable[[], None], seconds: float, clock: Callable[[], float], into: tuple[list[float], list[float]],
          before: Callable[[], None] | None, warm: bool) -> None:
    """Add to `into` the times of `call`, by `clock` and as they pass, over about `seconds`, of at least one call. `before`: is called
    before each, and not timed; `warm`: the very first call does not count."""
    times, spans = into
    if warm and not times:
        call()
    more, end = MOST_CALLS, time.perf_counter() + seconds
    while more == MOST_CALLS or (time.perf_counter() < end and more > 0):
        if before is not None:
            before()
        start, begin = time.perf_counter(), clock()
        call()
        times.append(clock() - begin)
        spans.append(time.perf_counter() - start)
        more -= 1


def _cpu_time(threads: int) -> float:
    return time.process_time() / threads


def _waits(spans: Sequence[float], times: Sequence[float]) -> float:
    """Return how many times as long calls last as their threads compute: the least of all, for other work can only add to it."""
    return max(1.0, min(span / max(taken, 1e-9) for span, taken in zip(spans, times)))


def gathered(comm: Comm, exchanges: Exchanges, who: dict[str, Any], own: Timed, alone: Timed | None, edges: Edges,
             versions: dict[str, str], shape: tuple[int, int]) -> ClusterProfile:
    """Return the profile of all ranks, the same on every rank, with the links between them. Collective.

    `who`: this rank's host, cores, threads, memory_bytes and gemm_rows, as in a NodeProfile; `own`: what kernels took it; `alone`: the same
    with all cores of its host, None where another rank did that or nobody; `edges`: rank 0's.
    """
    latency, bandwidth, head_start = links(comm, polite=exchanges.first)
    took = exchange(comm, exchanges)
    speeds, whole = asdict(fitted(own)), alone and asdict(fitted(alone))
    every = comm.gather_all([who | {"head_start_bytes": head_start}, speeds, whole, latency, bandwidth, asdict(edges)])
    return joined(every, versions, shape, took)
