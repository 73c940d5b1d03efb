"""Measure what the ranks of this job can do. Collective; knows clocks, memory and cores, not ONNX or models: the timers
of matrix products are handed in, so that they are those of the engine.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hepti_mpi.cluster.boards import Work
from hepti_mpi.cluster.emulation import Emulation
from hepti_mpi.cluster.profile import PLAIN, ClusterProfile, Edges, NodeProfile
from hepti_mpi.comm.exchange import Exchanges
from hepti_mpi.comm.launcher import host_name
from hepti_mpi.comm.ranks import Comm

PASSES, MOST_CALLS = 5, 100  # calls of a kernel in a pass, at most: more of short ones say no more, and take a start seconds
ATTENDED = (16, 16), (1, 192)  # (requests, length) of the two batches whose attention is timed
WHOLE = (8, 8), (8, 24)  # of the two that go through whole layers
EXCHANGE_TAG, EXCHANGE_REPEAT, BLOCK = 1, 30, 48 << 10  # bytes to each rank
SMALL, MEDIUM, LARGE = 64, 512 << 10, 1536 << 10  # bytes of a ping-pong: a lone value, blocks of rows
LEAST_PART = 0.5  # of what products take in a chain of their own: less is an error of the other parts
PAUSE_SECONDS = 0.03  # for a link to come to rest


@dataclass(frozen=True)
class Layers:
    """A chain of whole layers, as a model has them: `call(requests, length)` runs it, `work(requests, length)` says what it does."""

    call: Callable[[int, int], Callable[[], None]]
    work: Callable[[int, int], Work]


@dataclass(frozen=True)
class Timers:
    """What probe times: each call runs a kernel once. `gemm(rows)` multiplies by `weights` weights, of which a part is in each of
    `formats`; `attention(requests, length)` does that of so many requests; `elements`, `activations` and `casts` handle `rows` x `hidden`
    elements; `nothing` has next to nothing to do. `between` multiplies by some weights, as the engine does between two others of these:
    they find its caches then, not their own. `layers`: all of that together, where the model's layers are of a usual kind."""

    gemm: Callable[[int], Callable[[], None]]
    weights: int
    attention: Callable[[int, int], Callable[[], None]]
    elements: Callable[[], None]
    activations: Callable[[], None]
    casts: Callable[[], None]
    rows: int
    hidden: int
    nothing: Callable[[], None]
    between: Callable[[], None]
    formats: Mapping[str, float] = field(default_factory=lambda: PLAIN)
    layers: Layers | None = None


@dataclass(frozen=True)
class Speeds:
    """What a rank measured of itself, as in a NodeProfile."""

    gemm_seconds_per_weight: tuple[float, ...]
    attention_seconds_per_mac: float
    element_seconds: float
    segment_seconds: float
    cast_seconds: float
    activation_seconds: float
    arrange_seconds: float


def widen_affinity(comm: Comm, divide: bool) -> tuple[list[int], list[int], int]:
    """Let each rank use its host's cores and return (cores of the host, those of them for this rank, its threads). Collective.

    `divide`: keep each rank to its own part of them; not where the user sets the threads, which may be more than a part has.

    mpirun binds 1 or 2 ranks to one core each, which would leave the other cores of a board idle. Inside a batch job
    the binding is left as it is: the cores outside may be somebody else's.
    """
    batch = any(name in os.environ for name in ("SLURM_JOB_ID", "PBS_JOBID"))
    before = os.sched_getaffinity(0)
    if not batch:
        try:
            os.sched_setaffinity(0, range(os.cpu_count() or 1))  # the kernel keeps what a cgroup's cpuset allows
        except OSError:
            pass
    cores = sorted(os.sched_getaffinity(0) | before)
    peers = comm.gather_all([host_name(), cores])
    mates = [rank for rank, (host, _) in enumerate(peers) if host == host_name()]
    every = sorted({core for rank in mates for core in peers[rank][1]})
    if batch:
        return every, cores, len(cores) if len(cores) < len(every) else max(1, len(every) // len(mates))
    threads = max(1, len(cores) // len(mates))
    if divide and 1 < len(mates) <= len(cores):
        place = mates.index(comm.rank)
        cores = cores[place * threads : (place + 1) * threads]
        os.sched_setaffinity(0, cores)
    return every, cores, threads


def may_use(cores: Sequence[int]) -> bool:
    """Tell whether this process may compute on all of `cores`: a batch system may have given other ranks some of them."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores)
        return os.sched_getaffinity(0) == set(cores)
    except OSError:
        return False
    finally:
        os.sched_setaffinity(0, before)


def usable_memory(mates: int) -> int:
    """Return the bytes this rank may still take: MemAvailable and cgroup limits, divided among the ranks of the host."""
    available = _mem_available()
    for limit, used in _cgroups():
        available = min(available, max(0, limit - used))
    return max(1, available // mates)


def _mem_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroups() -> list[tuple[int, int]]:
    """Return (limit, used) of every memory cgroup around this process, versions 1 and 2."""
    found = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = Path("/sys/fs/cgroup") if controllers == "" else Path("/sys/fs/cgroup/memory")
        names = ("memory.max", "memory.current") if controllers == "" else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        folder = base / path.lstrip("/")
        while True:
            try:
                limit, used = ((folder / name).read_text().strip() for name in names)
                if limit.isdigit() and int(limit) < 1 << 60:
                    found.append((int(limit), int(used)))
            except OSError:
                pass
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent
    return found


def measure(comm: Comm, exchanges: Exchanges, who: dict[str, Any], speeds: Speeds, alone: Speeds | None, edges: Edges,
            versions: dict[str, str], shape: tuple[int, int]) -> ClusterProfile:
    """Return the profile of all ranks, the same on every rank, with the links between them. Collective.

    `who`: this rank's host, cores, threads, memory_bytes and gemm_rows, as in a NodeProfile; `speeds`: what it measured of itself;
    `alone`: the same with all cores of its host, None where another rank did that or nobody.
    """
    latency, bandwidth, head_start = links(comm)
    exchange, start, per_byte = _exchange(comm, exchanges)
    every = comm.gather_all([who | {"head_start_bytes": head_start}, asdict(speeds), alone and asdict(alone), latency, bandwidth])
    lone: dict[str, Any] = {}
    for who, _, found, *_ in every:
        if found is not None:
            lone.setdefault(who["host"], found)
    memory: dict[str, int] = {}
    for who, *_ in every:
        memory[who["host"]] = memory.get(who["host"], 0) + who["memory_bytes"]
    nodes = []
    for who, own, *_ in every:
        one = _node(who | own)
        if one.host in lone:
            whole = {"threads": one.cores, "memory_bytes": memory[one.host]}
            one = replace(one, alone=_node(who | whole | lone[one.host]))
        nodes.append(one)
    matrices = tuple(tuple(row) for *_, row, _ in every), tuple(tuple(row) for *_, row in every)
    return ClusterProfile(tuple(nodes), *matrices, versions, shape, exchange, start, per_byte, Edges(**comm.from_root(asdict(edges))))


def _node(facts: dict[str, Any]) -> NodeProfile:
    named: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}
    return NodeProfile(**named)


def speeds_of(timers: Timers, rows: Sequence[int], positions: int, emulation: Emulation, clock: Callable[[], float],
              begin: Callable[[], object], seconds: float = 2.0) -> Speeds:
    """Return how fast this rank computes, measured for about `seconds`, by `clock`.

    `begin` is called before each kernel: ranks that compute beside each other wait there for each other, so that they see each other.
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
    parts_of_layers = len(calls)
    whole = () if timers.layers is None or emulation.on else tuple((count, min(length, positions)) for count, length in WHOLE)
    calls += [(timers.layers.call(*shape), Work()) for shape in whole if timers.layers is not None]
    times: list[list[float]] = [[] for _ in calls]
    passes = 1 if emulation.on else PASSES  # a machine that is disturbed for a second disturbs a part of each kernel's times, not all
    for _ in range(passes):
        for place, ((call, work), found) in enumerate(zip(calls, times)):
            alone = len(rows) <= place < parts_of_layers and not emulation.on
            before = timers.between if alone else None  # the chain of products has its own weights
            begin()
            with emulation.in_time():
                _time(partial(emulation.run, call, work), seconds / passes / len(calls), clock, found, before)
    part = 0.0 if emulation.on else 0.25  # an emulated board's shortest time is its own: what took longer waited for this machine
    spent_of = [sorted(found)[int(part * len(found))] for found in times]
    *curve, short, long, elements, activations, casts, nothing = spent_of[:parts_of_layers]
    mac, arrange = _attention((short, long), shapes, timers.hidden)
    elements, activations, casts = (max(spent - nothing, 1e-9) / size for spent in (elements, activations, casts))
    curve = _rising([taken / timers.weights for taken in curve])
    speeds = Speeds(tuple(curve), mac, elements, nothing, casts, activations, arrange)
    if not whole or timers.layers is None:
        return speeds
    return together(speeds, rows, [(timers.layers.work(*shape), taken) for shape, taken in zip(whole, spent_of[parts_of_layers:])])


def together(speeds: Speeds, rows: Sequence[int], whole: Sequence[tuple[Work, float]]) -> Speeds:
    """Return speeds by which whole layers take the seconds that they took: what is beyond their parts, which were timed one by one, is
    put into the curve of products, by rows. That is the starts of some twenty small kernels a layer, and caches that the parts had to
    themselves.

    `whole`: work and seconds of batches, by rising numbers of rows.
    """
    at, more = [], []
    for work, seconds in whole:
        count, weights = float(work.products[0][0]), sum(float(product[1]) for product in work.products)
        products = float(np.interp(count, rows, speeds.gemm_seconds_per_weight)) * weights
        parts = [(work.attention, speeds.attention_seconds_per_mac), (work.arranged, speeds.arrange_seconds),
                 (work.elements, speeds.element_seconds), (work.activations, speeds.activation_seconds)]  # fmt: skip
        beyond = seconds - speeds.segment_seconds - sum(amount * each for amount, each in parts)
        at.append(count)
        more.append(max(beyond, LEAST_PART * products) / products)
    factors = np.interp(rows, at, more)
    curve = [float(factor) * seconds for factor, seconds in zip(factors, speeds.gemm_seconds_per_weight)]
    return replace(speeds, gemm_seconds_per_weight=tuple(_rising(curve)))


def _attention(times: Sequence[float], shapes: Sequence[tuple[int, int]], hidden: int) -> tuple[float, float]:
    """Return the seconds per multiply-add and per element of the input, of attention over `shapes` (requests, length) that took `times`."""
    (macs, elements), (more, others) = ((2.0 * count * length * length * hidden, count * length * hidden) for count, length in shapes)
    short, long = times
    part = macs * others - more * elements
    mac = (short * others - long * elements) / part if part else 0.0
    if not 0 < mac * more < long:  # too short to tell apart
        return long / more, 0.0
    return mac, (long - mac * more) / others


def _rising(curve: list[float]) -> list[float]:
    """Return the curve without dips: more rows never take less time."""
    return [max(curve[: place + 1]) for place in range(len(curve))]


def _time(call: Callable[[], None], seconds: float, clock: Callable[[], float], times: list[float],
          before: Callable[[], None] | None = None) -> None:
    """Add to `times` the times of `call` by `clock` over about `seconds`, of at least one call; the very first warms up. `before`: is
    called before each, and not timed."""
    if not times:
        call()
    more, end = MOST_CALLS, time.perf_counter() + seconds
    while more == MOST_CALLS or (time.perf_counter() < end and more > 0):
        if before is not None:
            before()
        begin = clock()
        call()
        times.append(clock() - begin)
        more -= 1


def _exchange(comm: Comm, exchanges: Exchanges) -> tuple[float, float, float]:
    """Return the seconds that a rank spends on an exchange of a few bytes with every other one, the seconds that starting one takes,
    and those for each byte more that it sends; medians of all ranks."""
    peers = [rank for rank in range(comm.size) if rank != comm.rank]
    whole: list[float] = []
    starting: list[float] = []
    for size in (SMALL, BLOCK) if peers else ():
        sends, receives = ([(peer, np.zeros((1, size), np.uint8)) for peer in peers] for _ in range(2))
        transfer, times = exchanges.direct(sends, receives, EXCHANGE_TAG), []
        for _ in range(EXCHANGE_REPEAT):  # each waits for all others: a barrier between would spin, and take the cores of who is late
            begin = time.perf_counter()
            done = exchanges.start(transfer)
            started = time.perf_counter()
            exchanges.wait([done])
            times.append((time.perf_counter() - begin, started - begin))
        transfer.free()
        every = comm.gather_all([sorted(values)[EXCHANGE_REPEAT // 2] for values in zip(*times)])
        for found, number in ((whole, 0), (starting, 1)):
            found.append(sorted(float(values[number]) for values in every)[comm.size // 2])
    if not peers:
        return 0.0, 0.0, 0.0
    return whole[0], starting[0], max(0.0, (starting[1] - starting[0]) / ((BLOCK - SMALL) * len(peers)))


def links(comm: Comm) -> tuple[list[float], list[float], float]:
    """Return this rank's latency in seconds and bandwidth in bytes per second to every rank, and the bytes that pass an idle link at
    once before its rate holds (what switches and shapers save up). Collective.

    Disjoint pairs measure at once: a round-robin tournament of size - 1 rounds (or size, when it is odd).
    """
    size = comm.size
    latency, bandwidth, head_start = [0.0] * size, [0.0] * size, [0.0] * size
    players = size + size % 2
    for turn in range(players - 1):
        peer = _opponent(comm.rank, turn, players)
        if peer < size:
            latency[peer] = max(comm.ping_pong(peer, SMALL, 20) / 2, 1e-9)
            some, all_ = (comm.ping_pong(peer, size, 2, PAUSE_SECONDS) for size in (MEDIUM, LARGE))
            bandwidth[peer] = (LARGE - MEDIUM) / max(all_ - some, all_ / 4, 1e-9)  # a disturbed measurement must not make it endless
            head_start[peer] = min(max(MEDIUM - bandwidth[peer] * (some - 2 * latency[peer]), 0.0), MEDIUM)
        comm.barrier()
    started = sorted(value for peer, value in enumerate(head_start) if peer != comm.rank)
    return latency, bandwidth, started[len(started) // 2] if started else 0.0


def links_again(comm: Comm, pairs: Sequence[tuple[int, int]], sizes: Sequence[int], ahead: int) -> dict[int, float]:
    """Return the bytes per second at which data comes to this rank from the other one of each of `pairs` that it is in. Collective.

    `sizes`: bytes per pair that are timed, after `ahead` bytes that may pass at once. Takes milliseconds for each pair;
    those of other ranks measure meanwhile.
    """
    found = {}
    for (one, other), timed in zip(pairs, sizes):
        if comm.rank in (one, other):
            peer = other if comm.rank == one else one
            for sender in (one, other):
                if sender == comm.rank:
                    comm.burst_to(peer, ahead, timed)
                else:
                    found[peer] = timed / max(comm.burst_from(peer, ahead, timed), 1e-9)
    return found


def round_robin(size: int) -> list[tuple[int, int]]:
    """Return every pair of `size` ranks once, ordered so that many of them can measure at once.

    >>> round_robin(4)
    [(0, 3), (1, 2), (0, 1), (2, 3), (0, 2), (1, 3)]
    """
    players = size + size % 2
    turns = [{tuple(sorted((rank, _opponent(rank, turn, players)))) for rank in range(players)} for turn in range(players - 1)]
    return [(one, other) for turn in turns for one, other in sorted(turn) if other < size]


def _opponent(player: int, turn: int, players: int) -> int:
    """Return whom `player` meets in round `turn`: the circle method, the last player stays in place."""
    ring = players - 1
    if player == players - 1:
        return (turn * (players // 2)) % ring
    partner = (turn - player) % ring
    return players - 1 if partner == player else partner
