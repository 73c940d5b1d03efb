"""Improve a priced plan by small moves while its price falls. Pure: knows counts and prices, not how a first plan is found.

Moved are rows, heads and granules of columns between ranks, and rows between tiles: a rank with few rows is better off with all of
them in one tile, since small products are bound by reading the weights.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.price import Price
from hepti_mpi.program.plan import Plan, granules_fit

ROW_STEPS = (8, 4, 2, 1)
COLUMN_STEPS = (16, 4, 1)  # granules
TILES = (2, 3, 4)
PARTS = (0.5, 0.6, 0.4)  # of a rank's rows in the first of two tiles
LEAST = 1e-4  # gain that is worth a move
PRICES = 30  # per rank, asked for in one climb
MOST_PRICES = 200
MOST_IMPROVED = 4  # candidates
HOPE = 1.12  # candidates that seem this much slower than the best may still win
WORTH_A_CLIMB = 1.03  # tiles that are this much slower may still win


@dataclass(frozen=True)
class Candidate:
    """A priced plan; `memory`: bytes per rank for weights and activations."""

    plan: Plan
    price: Price
    memory: tuple[int, ...]


Cells = tuple[tuple[int, ...], ...]  # rows [tiles][ranks]


def order(candidate: Candidate) -> tuple[float, int, str]:
    """Return what sorts candidates, soonest first and few ranks before many."""
    return candidate.price.seconds, len(candidate.plan.active), candidate.plan.hash


class Refinement:
    """A hill climb over plans. `priced` gives a plan its price, `fits` says whether memory holds it."""

    def __init__(self, spec: ModelSpec, priced: Callable[[Plan], Candidate], fits: Callable[[Candidate], bool]) -> None:
        self.spec, self.priced, self.fits = spec, priced, fits

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
        """Return the seconds that the candidate takes as it is, or simply cut in two."""
        plans = dict.fromkeys(self.tilings(candidate.plan, 2)) if self.divisible(candidate.plan) else ()
        return min([candidate.price.seconds, *(self.priced(plan).price.seconds for plan in plans)])

    def improve(self, candidate: Candidate) -> list[Candidate]:
        """Return the best plans that are reached from `candidate`, as it is cut into tiles and otherwise, the better one first."""
        if candidate.plan.keeps_requests:  # whole requests do not move row by row
            return [candidate]
        best = self.climb(candidate)
        found = [best]
        if self.divisible(candidate.plan):
            plans = (self.tilings(plan, count) for count in TILES for plan in dict.fromkeys((best.plan, candidate.plan)))
            tried = sorted(map(self.priced, dict.fromkeys(chain.from_iterable(plans))), key=order)
            tiled = next((one for one in tried if self.fits(one)), best)
            if tiled.price.seconds < best.price.seconds * WORTH_A_CLIMB:
                found.append(self.climb(tiled))
        return sorted(found, key=order)

    @staticmethod
    def divisible(plan: Plan) -> bool:
        """Tell whether it may be cut into tiles."""
        return plan.collectives == "own" and not plan.keeps_requests

    def climb(self, candidate: Candidate) -> Candidate:
        """Take every move that helps, larger ones first, until none does."""
        left = min(PRICES * len(candidate.plan.active), MOST_PRICES)
        for size in range(len(ROW_STEPS)):
            moves, place, failed = list(self.moves(candidate, size)), 0, 0
            while failed < len(moves) and left:
                tried = self.priced(moves[place % len(moves)])
                left -= 1
                if tried.price.seconds < candidate.price.seconds * (1 - LEAST) and self.fits(tried):  # and may help again
                    candidate, moves, failed = tried, list(self.moves(tried, size)), 0
                else:
                    place, failed = place + 1, failed + 1
        return candidate

    def moves(self, candidate: Candidate, size: int) -> Iterator[Plan]:
        """Yield plans in which one step of something has gone from one rank, or tile, to another."""
        plan = candidate.plan
        pairs = list(self.pairs(candidate))
        cells = plan.tiles or (plan.rows,)
        step = ROW_STEPS[size]
        for tile in range(len(cells)):
            for one, other in pairs:
                if cells[tile][one] >= step and sum(t[one] for t in cells) > step:
                    yield with_cells(plan, moved(cells, (tile, one), (tile, other), step))
        for rank in plan.active:
            for tile in range(len(cells)):
                for goal in range(len(cells)):
                    if tile != goal and cells[tile][rank] >= step:
                        yield with_cells(plan, moved(cells, (tile, rank), (goal, rank), step))
        for what, unit in (("heads", 1), ("columns", self.spec.column_granule * COLUMN_STEPS[min(size, len(COLUMN_STEPS) - 1)])):
            counts = getattr(plan, what)
            for one, other in pairs:
                if counts[one] >= unit and (what != "heads" or size >= 2):
                    after = moved((counts,), (0, one), (0, other), unit)[0]
                    if what == "heads" or granules_fit(after, self.spec.column_granule):
                        yield replace(plan, heads=after) if what == "heads" else replace(plan, columns=after)

    def pairs(self, candidate: Candidate) -> Iterator[tuple[int, int]]:
        """Yield (from, to); with many ranks only from the busiest and to the idlest few."""
        active = sorted(candidate.plan.active, key=lambda rank: float(candidate.price.wait[rank]))
        few = len(active) if len(active) <= 4 else 3
        for one in active[:few]:
            for other in active[-few:]:
                if one != other:
                    yield one, other

    def tilings(self, plan: Plan, count: int) -> Iterator[Plan]:
        """Yield ways to cut the rows of each rank into `count` tiles: all ranks alike, or those with few rows in one tile only."""
        for part in PARTS if count == 2 else (0.0,):
            for least in (0, 16, 24, 40):
                for lone in (0, count - 1):
                    cells = [[0] * plan.ranks for _ in range(count)]
                    for rank, rows in enumerate(plan.rows):
                        if rows < least:
                            cells[lone][rank] = rows
                        elif count == 2:
                            cells[0][rank] = round(rows * part)
                            cells[1][rank] = rows - cells[0][rank]
                        else:
                            for tile in range(count):
                                cells[tile][rank] = rows // count + (tile < rows % count)
                    if all(map(any, cells)):
                        yield with_cells(plan, tuple(map(tuple, cells)))
                    if not least:
                        break


def moved(cells: Cells, start: tuple[int, int], goal: tuple[int, int], count: int) -> Cells:
    """Return `cells` with `count` moved from one (row, column) to another."""
    result = [list(row) for row in cells]
    result[start[0]][start[1]] -= count
    result[goal[0]][goal[1]] += count
    return tuple(map(tuple, result))


def with_cells(plan: Plan, cells: Cells) -> Plan:
    """Return the plan with its rows divided as in `cells`."""
    return replace(plan, rows=tuple(map(sum, zip(*cells))), tiles=cells if len(cells) > 1 else ())
