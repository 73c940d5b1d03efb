"""Which sets of ranks are worth a plan. Pure: knows how fast, how well linked and how large ranks are, not what they would do."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

EVERY_SUBSET = 4  # ranks up to which all subsets are tried; beyond, each alone and prefixes by speed, by link and by memory
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # of those prefixes
MANY = 16  # ranks beyond which fewer kinds of plans are tried
UNEQUAL = 1.2  # how much slower than the fastest a link is that decides


def subsets(seconds: np.ndarray, link: np.ndarray, memory: np.ndarray | None, smallest: int) -> Iterator[tuple[int, ...]]:
    """Yield sets of at least `smallest` ranks (all, where there are fewer), each once.

    Per rank, `seconds`: what a product takes it; `link`: seconds per byte of its slowest link; `memory`: bytes, None where there is plenty.
    """
    ranks = len(seconds)
    smallest = min(smallest, ranks)
    if ranks <= EVERY_SUBSET:
        for size in range(ranks, smallest - 1, -1):
            yield from combinations(range(ranks), size)
        return
    number = np.arange(ranks)  # decides between equals
    orders = [np.lexsort((number, seconds))]
    if memory is not None:
        orders.append(np.lexsort((number, -memory)))
    if link.max() > UNEQUAL * link.min():
        orders.append(np.lexsort((number, seconds, link.round(9))))
    sizes = sorted({smallest, ranks, *(size for size in SIZES if smallest <= size <= ranks)})
    prefixes = (tuple(sorted(int(rank) for rank in order[:size])) for size in sizes for order in orders)
    alone = [(rank,) for rank in range(ranks)] if smallest == 1 and ranks <= MANY else []
    yield from dict.fromkeys([*prefixes, *alone])


def firsts(hosts: Sequence[str]) -> list[int]:
    """Return the first rank of each host; `hosts`: of every rank.

    >>> firsts(["a", "a", "b"])
    [0, 2]
    """
    return [hosts.index(host) for host in dict.fromkeys(hosts)]
