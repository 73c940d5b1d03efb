"""What MPI's collectives take by the algorithms that libraries use for them. Pure: knows ranks, bytes and links, no model.

Source: Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH", 2005.
"""

import numpy as np

SHORT = 8192  # bytes of a sum that go by recursive doubling

Cost = tuple[np.ndarray, np.ndarray]  # seconds, bytes on the wire; of many plans


def collective(kind: str, others: np.ndarray, blocks: np.ndarray, rooted: np.ndarray, latency: np.ndarray, slowest: np.ndarray) -> Cost:
    """Return what a `kind` of Sync takes over ranks of which each has `blocks` [ranks, plans] bytes of rows. `others`: how many take part,
    with rank 0 where it does; `rooted`: whether that is the first of the ranks; `latency`, `slowest`: of the worst link, seconds and
    seconds per byte."""
    total, count = blocks.sum(axis=0), len(blocks)
    if kind == "allreduce":
        seconds, moved = allreduce(count, total, latency, slowest)
    elif kind in ("allgatherv", "reduce_scatter"):
        seconds, moved = gather(count, blocks, latency, slowest)
    elif kind == "bcast":
        seconds, moved = broadcast(others, total, latency, slowest)
    else:
        moved = total - blocks[0] * rooted
        seconds = (others - 1) * latency + moved * slowest
    moving = (others > 1) & (kind != "slice")
    return seconds * moving, moved * moving


def allreduce(ranks: int, total: np.ndarray, latency: np.ndarray, slowest: np.ndarray) -> Cost:
    """Return what a sum of `total` bytes takes: by recursive doubling or round a ring; `slowest`: seconds per byte."""
    doubling = np.ceil(np.log2(ranks)) * (latency + total * slowest)
    return np.where(total < SHORT, doubling, 2 * (ranks - 1) * (latency + total / ranks * slowest)), 2 * (ranks - 1) * total


def gather(ranks: int, blocks: np.ndarray, latency: np.ndarray, slowest: np.ndarray) -> Cost:
    """Return what an Allgatherv of `blocks` bytes takes round a ring, or a sum of which each rank keeps a block: the largest passes n - 1
    times."""
    return (ranks - 1) * (latency + blocks.max(axis=0) * slowest), (ranks - 1) * blocks.sum(axis=0)


def broadcast(ranks: np.ndarray, total: np.ndarray, latency: np.ndarray, slowest: np.ndarray) -> Cost:
    """Return what a Bcast takes by a binomial tree."""
    return np.ceil(np.log2(ranks)) * (latency + total * slowest), (ranks - 1) * total
