"""Improve a priced plan by small moves while its price falls. Pure: knows counts and prices, not how a first plan is found.

Moved are rows, heads and granules of columns between ranks, and rows between tiles: a rank with few rows is better off with all of
them in one tile, since small products are bound by reading the weights. All moves from a plan are priced at once, and the best is taken.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.candidates import Candidate, Tried, Variants
from hepti_mpi.program.plan import Plan, granules_fit

ROW_STEPS = (16, 8, 4, 2, 1)
COLUMN_STEPS = (64, 16, 4, 1)  # granules
TILES = (2, 3, 4)
PARTS = (0.5, 0.6, 0.4)  # of a rank's rows in the first of two tiles
LEAST = 1e-4  # gain that is worth a move
MOST_MOVES = 30  # taken in one climb
MOST_IMPROVED = 4  # candidates
HOPE = 1.15  # candidates that promise to be this much slower than the best may still win
WORTH_A_CLIMB = 1.03  # tiles that are this much slower may still win


def order(candidate: Candidate) -> tuple[float, int, str]:
    """Return what sorts candidates, soonest first and few ranks before many."""
    return candidate.price.seconds, len(candidate.plan.active), candidate.plan.hash


class Refinement:
    """A hill climb over plans. `tried` gives variants of a plan their seconds, inf where memory does not hold them."""

    def __init__(self, spec: ModelSpec, tried: Callable[[Variants], Tried]) -> None:
        self.spec, self.tried = spec, tried

    def improve_best(self, candidates: Iterable[Candidate]) -> list[list[Candidate]]:
        """Return each candidate improved, with what else it led to, soonest first; one without hope of being the best stays as it is."""
        promising = sorted(((self.promise(one), one) for one in candidates), key=lambda pair: (pair[0], *order(pair[1])))
        found: list[list[Candidate]] = []
        for promise, candidate in promising:
            soonest = min((ones[0].price.seconds for ones in found), default=promise)
            hopeless = len(found) >= MOST_IMPROVED or promise > soonest * HOPE
            found.append([candidate] if hopeless else self.improve(candidate))
        return sorted(found, key=lambda ones: order(ones[0]))

    def promise(self, candidate: Candidate) -> float:
        """Return the seconds that the candidate may come to: as it is, or midway between what it takes when simply cut in two and what it
        would take if nothing waited for anything."""
        variants = self.tilings([candidate.plan], 2) if self.divisible(candidate.plan) else None
        if variants is None:
            return candidate.price.seconds
        tried = self.tried(variants)
        best = int(tried.seconds.argmin())
        freely = max(tried.prices.compute[:, best].max(), tried.prices.busy[best])
        return min(candidate.price.seconds, (float(tried.seconds[best]) + float(freely)) / 2)

    def improve(self, candidate: Candidate) -> list[Candidate]:
        """Return the best plans that are reached from `candidate`, as it is cut into tiles and otherwise, the better one first."""
        if candidate.plan.keeps_requests:  # whole requests do not move row by row
            return [candidate]
        best = self.climb(candidate)
        found = [best]
        if self.divisible(candidate.plan):
            tilings = (self.tilings([*dict.fromkeys((best.plan, candidate.plan))], count) for count in TILES)
            tried = [self.tried(variants) for variants in tilings if variants]
            soonest = min(tried, key=lambda some: some.seconds.min(), default=None)
            if soonest and soonest.seconds.min() < best.price.seconds * WORTH_A_CLIMB:
                found.append(self.climb(soonest.candidate(int(soonest.seconds.argmin()))))
        return sorted(found, key=order)

    @staticmethod
    def divisible(plan: Plan) -> bool:
        """Tell whether it may be cut into tiles."""
        return plan.collectives == "own" and not plan.keeps_requests

    def climb(self, candidate: Candidate) -> Candidate:
        """Take the move that helps most, until none does."""
        for _ in range(MOST_MOVES):
            variants = self.moves(candidate)
            tried = self.tried(variants) if variants else None
            if tried is None or not tried.seconds.min() < candidate.price.seconds * (1 - LEAST):
                break
            candidate = tried.candidate(int(tried.seconds.argmin()))
        return candidate

    def moves(self, candidate: Candidate) -> Variants | None:
        """Return the plans in which some of something has gone from one rank, or tile, to another; None where there are none."""
        plan = candidate.plan
        pairs = np.array(list(self.pairs(candidate)), np.int64).reshape(-1, 2)
        cells, heads, columns = (np.array(values) for values in (plan.tiles or (plan.rows,), plan.heads, plan.columns))
        tiles, ranks = cells.shape
        flat, rows = cells.ravel(), cells.sum(axis=0)
        between = np.concatenate([tile * ranks + pairs for tile in range(tiles)])
        kept = np.array([(one * ranks + rank, goal * ranks + rank) for one in range(tiles) for goal in range(tiles) if one != goal
                         for rank in plan.active], np.int64).reshape(-1, 2)  # fmt: skip
        of_rows = [_moved(flat, between[rows[between[:, 0] % ranks] > step], step) for step in ROW_STEPS]  # a rank keeps a row
        of_rows += [_moved(flat, kept, step) for step in ROW_STEPS]
        granule = self.spec.column_granule
        of_columns = np.concatenate([_moved(columns, pairs, step * granule) for step in COLUMN_STEPS])
        of_columns = of_columns[[granules_fit(counts, granule) for counts in of_columns.tolist()]]
        moved = np.concatenate(of_rows).reshape(-1, tiles, ranks), _moved(heads, pairs, 1), of_columns
        every = [  # what moves, while the others stay
            np.concatenate([after if what == moving else np.repeat(one[None], len(after), axis=0) for moving, after in enumerate(moved)])
            for what, one in enumerate((cells, heads, columns))
        ]
        return Variants(plan, *every) if len(every[0]) else None

    def pairs(self, candidate: Candidate) -> Iterator[tuple[int, int]]:
        """Yield (from, to); with many ranks only from the busiest and to the idlest few."""
        active = sorted(candidate.plan.active, key=lambda rank: float(candidate.price.wait[rank]))
        few = len(active) if len(active) <= 4 else 3
        for one in active[:few]:
            for other in active[-few:]:
                if one != other:
                    yield one, other

    def tilings(self, plans: Sequence[Plan], count: int) -> Variants | None:
        """Return ways to cut the rows of each rank of `plans`, which differ in shares only, into `count` tiles: all ranks alike, or those
        with few rows in one tile only; None where there are none."""
        every = [(cells, plan.heads, plan.columns) for plan in plans for cells in self._cuts(np.array(plan.rows), count)]
        return Variants(plans[0], *map(np.array, zip(*every))) if every else None

    @staticmethod
    def _cuts(rows: np.ndarray, count: int) -> Iterator[np.ndarray]:
        """Yield [count, ranks] rows, no tile without any."""
        tiles = np.arange(count)[:, None]
        for part in PARTS if count == 2 else (0.0,):
            first = np.round(rows * part).astype(np.int64)
            even = np.stack([first, rows - first]) if count == 2 else rows // count + (tiles < rows % count)
            for least in (0, 16, 24, 40):
                for lone in (0, count - 1):
                    cells = np.where(rows < least, rows * (tiles == lone), even)
                    if cells.any(axis=1).all():
                        yield cells
                    if not least:
                        break


def _moved(counts: np.ndarray, pairs: np.ndarray, step: int) -> np.ndarray:
    """Return `counts` [parts] with `step` moved from one part to another, for each of `pairs` where the one has as many."""
    one, other = pairs[counts[pairs[:, 0]] >= step].T
    after, number = np.repeat(counts[None], len(one), axis=0), np.arange(len(one))
    after[number, one] -= step
    after[number, other] += step
    return after
