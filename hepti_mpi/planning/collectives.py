"""What MPI's collectives take by the algorithms that libraries use for them. Pure: knows ranks, bytes and links, no model.

Source: Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH", 2005.
"""

import numpy as np

SHORT = 8192  # bytes of a sum that go by recursive doubling

Cost = tuple[float, int]  # seconds, bytes on the wire


def allreduce(ranks: int, total: int, latency: float, slowest: float, trees: bool) -> Cost:
    """Return what a sum of `total` bytes takes: by recursive doubling, by two trees or round a ring; `slowest`: seconds per byte."""
    moved, levels = 2 * (ranks - 1) * total, float(np.ceil(np.log2(ranks)))
    if total < SHORT:
        return levels * (latency + total * slowest), moved
    if trees:
        return 2 * levels * (latency + total * slowest), moved
    return 2 * (ranks - 1) * (latency + total / ranks * slowest), moved


def gather(ranks: int, blocks: np.ndarray, latency: float, slowest: float) -> Cost:
    """Return what an Allgatherv of `blocks` bytes takes round a ring, or a sum of which each rank keeps a block: the largest passes n - 1
    times."""
    return (ranks - 1) * (latency + float(blocks.max()) * slowest), (ranks - 1) * int(blocks.sum())


def broadcast(ranks: int, total: int, latency: float, slowest: float) -> Cost:
    """Return what a Bcast takes by a binomial tree."""
    return float(np.ceil(np.log2(ranks))) * (latency + total * slowest), (ranks - 1) * total
