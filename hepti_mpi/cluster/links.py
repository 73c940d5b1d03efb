"""Measure the links between ranks. Collective; knows messages and clocks, not what ranks compute."""

import time
from collections.abc import Sequence

import numpy as np

from hepti_mpi.comm.exchange import Exchanges
from hepti_mpi.comm.launcher import host_name
from hepti_mpi.comm.pauses import PAUSES, Pause
from hepti_mpi.comm.ranks import Comm

EXCHANGE_TAG, EXCHANGE_REPEAT, BLOCK = 1, 30, 48 << 10  # bytes to each rank
SMALL = 64  # bytes of a lone value
REPEAT, TRIES = 20, 4  # of a byte there and back, and of blocks; the first does not count
MEDIUM, LARGE = 512 << 10, 1536 << 10  # bytes of blocks of rows
PAUSE_SECONDS = 0.03  # for a link to come to rest, at least
REST = 0.4  # of the time that it takes for a medium block: what it saves up while it rests, it saves up at its rate


def exchange(comm: Comm, exchanges: Exchanges) -> tuple[float, float, float]:
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


def links(comm: Comm, polite: bool = False) -> tuple[list[float], list[float], float]:
    """Return this rank's latency in seconds and bandwidth in bytes per second to every rank, and the bytes that pass an idle link at
    once before its rate holds (what switches and shapers save up). Collective.

    Disjoint pairs measure at once: a round-robin tournament of size - 1 rounds (or size, when it is odd). `polite`: whoever waits for a
    block from another host sleeps: emulated boards go before all else, and those that spin would take this machine's cores for seconds.
    """
    size, hosts = comm.size, comm.gather_all(host_name())
    latency, bandwidth, head_start = [0.0] * size, [0.0] * size, [0.0] * size
    players = size + size % 2
    for turn in range(players - 1):
        peer = _opponent(comm.rank, turn, players)
        if peer < size:
            latency[peer] = max(comm.ping_pong(peer, REPEAT) / 2, 1e-9)
            pause = PAUSES["sleep" if polite and hosts[peer] != hosts[comm.rank] else "spin"]
            some, all_ = (_least(comm, peer, size, pause) for size in (MEDIUM, LARGE))
            bandwidth[peer] = (LARGE - MEDIUM) / max(all_ - some, all_ / 4, 1e-9)  # a disturbed measurement must not make it endless
            head_start[peer] = min(max(MEDIUM - bandwidth[peer] * (some - latency[peer]), 0.0), MEDIUM)
        comm.barrier()
    started = sorted(value for peer, value in enumerate(head_start) if peer != comm.rank)
    return latency, bandwidth, started[len(started) // 2] if started else 0.0


def _least(comm: Comm, peer: int, size: int, pause: Pause) -> float:
    """Return the least seconds, of some tries, in which `size` bytes come from a peer while as many go there."""
    times: list[float] = []
    for _ in range(TRIES):
        time.sleep(max(PAUSE_SECONDS, REST * times[-1] * MEDIUM / size if times else 0.0))
        times.append(comm.both_ways(peer, size, pause=pause))
    return min(times[1:])


def links_again(comm: Comm, pairs: Sequence[tuple[int, int]], sizes: Sequence[int], ahead: int) -> dict[int, float]:
    """Return the bytes per second at which data comes to this rank from the other one of each of `pairs` that it is in. Collective.

    `sizes`: bytes per pair that are timed, after `ahead` bytes that may pass at once. Takes milliseconds for each pair;
    those of other ranks measure meanwhile.
    """
    found = {}
    for (one, other), timed in zip(pairs, sizes):
        if comm.rank in (one, other):
            peer = other if comm.rank == one else one
            found[peer] = timed / max(comm.both_ways(peer, timed, ahead), 1e-9)
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
