"""What MPI's collectives take by the algorithms that libraries use for them. Pure: knows ranks, bytes and links, no model.

Source: Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH", 2005.
"""

import numpy as np

from hepti_mpi.program.steps import OUTER

SHORT = 8192  # bytes of a sum that go by recursive doubling

Cost = tuple[float, int]  # seconds, bytes on the wire


def collective(kind: str, ranks: np.ndarray, blocks: np.ndarray, latency: np.ndarray, seconds_per_byte: np.ndarray) -> Cost:
    """Return what a `kind` of Sync over `ranks` takes, of which each has `blocks` bytes of rows; [from, to] of all ranks: `latency` and
    `seconds_per_byte`."""
    total, others = int(blocks.sum()), np.union1d(ranks, [0]) if kind in OUTER else ranks
    if len(others) < 2 or kind == "slice":
        return 0.0, 0
    grid = np.ix_(others, others)
    longest, slowest = float(latency[grid].max()), float(seconds_per_byte[grid].max())
    if kind == "allreduce":
        return allreduce(len(ranks), total, longest, slowest)
    if kind in ("allgatherv", "reduce_scatter"):
        return gather(len(ranks), blocks, longest, slowest)
    if kind == "bcast":
        return broadcast(len(others), total, longest, slowest)
    moved = total - int(blocks[ranks == 0].sum())
    return (len(others) - 1) * longest + moved * slowest, moved


def allreduce(ranks: int, total: int, latency: float, slowest: float) -> Cost:
    """Return what a sum of `total` bytes takes: by recursive doubling or round a ring; `slowest`: seconds per byte."""
    moved, levels = 2 * (ranks - 1) * total, float(np.ceil(np.log2(ranks)))
    if total < SHORT:
        return levels * (latency + total * slowest), moved
    return 2 * (ranks - 1) * (latency + total / ranks * slowest), moved


def gather(ranks: int, blocks: np.ndarray, latency: float, slowest: float) -> Cost:
    """Return what an Allgatherv of `blocks` bytes takes round a ring, or a sum of which each rank keeps a block: the largest passes n - 1
    times."""
    return (ranks - 1) * (latency + float(blocks.max()) * slowest), (ranks - 1) * int(blocks.sum())


def broadcast(ranks: int, total: int, latency: float, slowest: float) -> Cost:
    """Return what a Bcast takes by a binomial tree."""
    return float(np.ceil(np.log2(ranks))) * (latency + total * slowest), (ranks - 1) * total
