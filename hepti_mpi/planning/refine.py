"""Improve a priced plan by small moves while its price falls. Pure: knows counts and prices, not how a first plan is found.

Moved are rows, groups of heads and granules of columns between ranks, and rows between tiles: a rank with few rows is better off with all
of them in one tile, since small products are bound by reading the weights. All moves from a plan are priced at once, and the best is taken.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from hepti_mpi import splits
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.candidates import Candidate, Tried, Variants
from hepti_mpi.program.plan import Plan

ROW_STEPS = (16, 4, 1)
COLUMN_STEPS = (64, 8, 1)  # granules
TILES = (2, THREE := 3, 4)
KEPT = (0.75, 0.5, 0.25, 0.1)  # of a rank's rows, where the others are gathered on the one that has most
SENT = 0.2  # of what the busiest rank computes: where links carry less, it does not help to gather rows
GATHERED = 0.97  # of what the rows take as they are divided: from there on it is climbed from gathered ones
CUT = 0.88  # of what a plan takes whole: from there on it is climbed from tiles only
PARTS = (0.5, 0.6, 0.4)  # of a rank's rows in the first of two tiles
MOST_WAYS = 4  # ranks whose rows are put into one of two tiles in every way
TURNS = ((0, 1), (1, 0), (0, 1, 1, 0), (1, 0, 0, 1))  # tiles of ranks, again and again
LEAST = 1e-4  # gain that is worth a move
MOST_MOVES = 30  # taken in one climb
MORE_MOVES = 8  # like the last one that a climb to a plan that is not the best so far may still take
MOVES_AT_ONCE = 2  # of the best plan, where no single one helps
NEAREST = 2  # plans after a first move from which a second one is tried
MOST_IMPROVED = 6  # candidates
HOPE = 1.1  # candidates that promise to be this much slower than the best may still win
FIRST_HOPE = 1.15  # the first of a strategy, too
CUTTING = 1.2  # times the best that is not cut: what its busiest rank alone makes slower is not cut either
WORTH_A_CLIMB = 1.03  # what is this much slower may still win by tiles
WORTH_SEVERAL = 1.01  # and by several moves at once
WORTH_A_TILE = 0.99  # of what fewer tiles take: from there on it is not cut into more
NEAR_BEST = 2  # candidates that are climbed further


def order(candidate: Candidate) -> tuple[object, ...]:
    """Return what sorts candidates, soonest first and few ranks before many."""
    plan = candidate.plan
    kind = plan.layers, plan.collectives, plan.wires
    return candidate.price.seconds, len(plan.active), kind, plan.tiles, plan.rows, plan.heads, plan.columns  # its hash is slow


class Refinement:
    """A hill climb over plans. `tried` gives variants of a plan their seconds, inf where memory does not hold them; `whole` a plan those of
    all of its layers; `freely` the rows of its ranks were what travels free."""

    def __init__(
        self, spec: ModelSpec, tried: Callable[[Variants], Tried], whole: Callable[[Plan], float], freely: Callable[[Plan], Sequence[int]]
    ) -> None:
        self.spec, self.tried, self.whole, self.freely = spec, tried, whole, freely
        self.known: dict[tuple[object, ...], Tried | None] = {}  # what moves from plans come to
        self.known_steps: dict[tuple[object, ...], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}  # by what they are the same for

    def improve_best(self, kinds: Iterable[Sequence[Candidate]]) -> list[list[Candidate]]:
        """Return of each kind the candidate that may come to most, improved, with what else it led to, soonest first; one without hope of
        being the best stays as it is."""
        every = [list(ones) for ones in kinds]
        least = min((one.price.seconds for ones in every for one in ones if one.plan.divided), default=np.inf)
        promising = sorted(((self.promise(ones[0], least), ones[1:]) for ones in every), key=lambda one: (one[0][0], *order(one[0][2][0])))
        found: list[list[Candidate]] = []
        climbed: set[str] = set()  # strategies: were none of one climbed, forcing it could find a better plan than searching all
        for number, ((_, hope, starts), others) in enumerate(promising):
            plan, best = starts[0].plan, min((ones[0] for ones in found), key=order, default=None)
            first = plan.strategy not in climbed
            most = FIRST_HOPE if first else HOPE if number < MOST_IMPROVED else 0.0
            # a few layers may promise too much of the best one
            if best and hope > most * best.price.seconds and (not most or hope > most * self.whole(best.plan)):
                found.append(starts[:1])
            else:
                climbed.add(plan.strategy)
                every_start = [(hope, starts), *(self.promise(one, least)[1:] for one in others)]
                found.append(self.improve(min(every_start, key=lambda one: one[0])[1], self.whole(best.plan) if best else np.inf))
        for further, worth in ((self.by_several, WORTH_SEVERAL), (self.again, WORTH_A_CLIMB)):
            found.sort(key=lambda ones: order(ones[0]))
            near = found[0][0].price.seconds * worth  # what is far behind does not become the best
            found[:NEAR_BEST] = [further(ones) if ones[0].price.seconds <= near else ones for ones in found[:NEAR_BEST]]
        found.sort(key=lambda ones: order(ones[0]))
        found[:1] = map(self.in_others, found[:1])
        return found

    def promise(self, candidate: Candidate, least: float = np.inf) -> tuple[float, float, list[Candidate]]:
        """Return the seconds that the candidate takes as it is, or simply cut in two, what it may come to (midway to what it would take
        if nothing waited for anything), and where to climb from. It is not cut where that is hopeless beside a plan of `least` seconds."""
        most = CUTTING * least
        starts = self.starts(candidate) if candidate.price.compute.max() <= most else [candidate]
        seconds = starts[0].price.seconds
        worth = self.divisible(candidate.plan) and min(max(one.price.compute.max(), one.price.busy) for one in starts) <= most
        tried = self.tiled(self.to_cut(starts), 2) if worth else None
        if tried is None:
            return seconds, seconds, starts
        freely = np.maximum(tried.prices.compute.max(axis=0), tried.prices.busy)
        hope = float((tried.seconds + freely).min() / 2)
        seconds = min(seconds, float(tried.seconds.min()))
        return seconds, min(seconds, hope), starts

    def improve(self, starts: Sequence[Candidate], aim: float = np.inf) -> list[Candidate]:
        """Return the best plans that are reached from `starts` cut into tiles and, where that is not far sooner, from the first of them
        whole; the better one first. `aim`: seconds, as of steps_from()."""
        found, soonest = list[Candidate](), self.cut(self.to_cut(starts))
        if soonest is None or soonest.price.seconds > starts[0].price.seconds * CUT:
            found.append(self.climb(starts[0], aim=aim))
            reached = self.cut([found[0].plan]) if self.divisible(found[0].plan) else None
            soonest = min(filter(None, (soonest, reached)), key=order, default=None)
        if soonest and (not found or soonest.price.seconds < found[0].price.seconds * WORTH_A_CLIMB):
            found.append(self.climb(soonest, aim=aim))
        return sorted(found, key=order)

    def to_cut(self, starts: Sequence[Candidate]) -> list[Plan]:
        """Return which divisions to cut into tiles: those of `starts`, and the first one with the rows as if what travels were free. Where
        it travels while others compute it nearly is."""
        plans = [one.plan for one in starts]
        if not self.divisible(plans[0]):
            return []
        return [*dict.fromkeys((*plans, *self.freed(plans[0])))]

    def freed(self, plan: Plan) -> list[Plan]:
        """Return a plan that may be cut with its rows as if what travels were free."""
        rows = self.freely(plan)
        return [replace(plan, tiles=(), rows=tuple(rows), heads=self.heads_of(plan, rows))]

    def by_several(self, ones: Sequence[Candidate]) -> list[Candidate]:
        """Return candidates of a kind, and all that several moves at once from the first of them lead to: of plans that are nearly as soon
        a few layers do not tell which is the soonest by all."""
        return sorted([*ones, *self.steps_from(ones[0], MOVES_AT_ONCE)], key=order)

    def again(self, ones: Sequence[Candidate]) -> list[Candidate]:
        """Return candidates of a kind and what a climb comes to that begins far from the first of them, where that was not begun from."""
        soonest = self.cut(self.freed(ones[0].plan)) if self.divisible(ones[0].plan) else None
        reached = self.climb(soonest) if soonest else ones[0]
        known = any(one.plan == reached.plan for one in ones)
        return sorted(ones if known else [*ones, reached], key=order)

    def in_others(self, ones: Sequence[Candidate]) -> list[Candidate]:
        """Return candidates of a kind and what a climb comes to from the first of them in THREE tiles, where it has more or less. Those are
        no sooner at once than two, but where ranks with few rows have these in some of them."""
        plan = ones[0].plan
        tried = self.tiled([replace(plan, tiles=())], THREE) if self.divisible(plan) and len(plan.tiles) != THREE else None
        if tried is None or tried.seconds.min() > HOPE * ones[0].price.seconds:
            return list(ones)
        return sorted([*ones, self.climb(tried.candidate(int(tried.seconds.argmin())))], key=order)

    def cut(self, plans: Sequence[Plan]) -> Candidate | None:
        """Return the best that `plans`, which differ in shares only, are when they are cut into tiles; None where none can be."""
        soonest: Tried | None = None
        for count in TILES:  # more of them as long as they help
            tried = self.tiled(plans, count)
            least = np.inf if tried is None else tried.seconds.min()
            before = soonest.seconds.min() if soonest else np.inf
            if least < before or soonest is None:
                soonest = tried
            if not least < before * WORTH_A_TILE:
                break
        if soonest is None or not np.isfinite(soonest.seconds.min()):
            return None
        return soonest.candidate(int(soonest.seconds.argmin()))

    def heads_of(self, plan: Plan, rows: Sequence[int] | np.ndarray) -> tuple[int, ...]:
        """Return the heads of a plan with other rows: those that go with them, where they do."""
        with_rows = all(attention == "alltoall" for attention, _ in plan.layers)
        return tuple(splits.split(self.spec.heads, rows, self.spec.group)) if with_rows else plan.heads

    def starts(self, candidate: Candidate) -> list[Candidate]:
        """Return where to climb from, best first: the candidate, and what is sooner with some of its rows gathered on the rank that has
        most. What rows are divided by knows what each rank computes and sends, not how long all wait for what goes round."""
        plan = candidate.plan
        if not self.divisible(plan) or plan.tiles or sum(rows > 0 for rows in plan.rows) < 2:
            return [candidate]
        if candidate.price.busy < SENT * candidate.price.compute.max():
            return [candidate]
        tried = self.tried(Variants(plan, *map(np.array, zip(*(self._gathered(plan, part) for part in KEPT)))))
        best = int(tried.seconds.argmin())
        if tried.seconds[best] >= candidate.price.seconds:
            return [candidate]
        much = tried.seconds[best] < candidate.price.seconds * GATHERED
        return [tried.candidate(best), candidate] if much else [candidate, tried.candidate(best)]

    def _gathered(self, plan: Plan, part: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return cells, heads and columns of a plan whose ranks but one keep a `part` of their rows, and of heads that go with them."""
        rows, most = np.array(plan.rows), int(np.argmax(plan.rows))
        kept = np.where(rows > 0, np.maximum(np.round(rows * part).astype(np.int64), 1), 0)
        kept[most] += rows.sum() - kept.sum()
        return kept[None], np.array(self.heads_of(plan, kept)), np.array(plan.columns)

    @staticmethod
    def divisible(plan: Plan) -> bool:
        """Tell whether it may be cut into tiles."""
        return plan.collectives == "own" and not plan.keeps_requests

    def climb(self, candidate: Candidate, at_once: int = 1, aim: float = np.inf) -> Candidate:
        """Return where steps_from() it end."""
        return [candidate, *self.steps_from(candidate, at_once, aim)][-1]

    def steps_from(self, candidate: Candidate, at_once: int, aim: float = np.inf) -> Iterator[Candidate]:
        """Yield what comes of the move that helps most, or, where no single one does, of up to so many `at_once`, again and again, until
        none do, or until more moves like the last one would not come near the seconds to `aim` at."""
        for _ in range(MOST_MOVES * (not candidate.plan.keeps_requests)):  # whole requests do not move row by row
            better = self.moved(candidate, at_once)
            if better is None:
                break
            gain, candidate = candidate.price.seconds - better.price.seconds, better
            yield candidate
            if candidate.price.seconds - MORE_MOVES * gain > aim * WORTH_A_CLIMB:
                break

    def moved(self, candidate: Candidate, at_once: int) -> Candidate | None:
        """Return what the move that helps most, or up to so many `at_once`, lead to; None where none do."""
        plans = [candidate.plan]
        for _ in range(at_once):
            tried = self.near(candidate, plans)
            if tried is None:
                break
            best = np.argsort(tried.seconds, kind="stable")[:NEAREST].tolist()
            if tried.seconds[best[0]] < candidate.price.seconds * (1 - LEAST):
                return tried.candidate(best[0])
            plans = [tried.variants.at(number) for number in best if np.isfinite(tried.seconds[number])]
        return None

    def near(self, candidate: Candidate, plans: list[Plan]) -> Tried | None:
        """Return what comes of a move from each of `plans`, which are near a candidate; None where nothing can move."""
        if (key := tuple(plans)) not in self.known:
            variants = self.moves(candidate, plans)
            self.known[key] = None if variants is None else self.tried(variants)
        return self.known[key]

    def moves(self, candidate: Candidate, plans: Sequence[Plan]) -> Variants | None:
        """Return what comes of `plans`, which are near a candidate, when some of something goes from one rank, or tile, to another; None
        where nothing can."""
        pairs, parts = tuple(self.pairs(candidate)), max(1, len(candidate.plan.tiles)) * candidate.plan.ranks
        if not plans or (not pairs and parts == candidate.plan.ranks):
            return None
        flat = np.concatenate([self._moves(plan, pairs) for plan in plans])
        cells, heads, columns = np.split(flat, [parts, parts + candidate.plan.ranks], axis=1)
        return Variants(candidate.plan, cells.reshape(len(flat), -1, candidate.plan.ranks), heads, columns) if len(flat) else None

    def _moves(self, plan: Plan, pairs: tuple[tuple[int, int], ...]) -> np.ndarray:
        """Return cells, heads and columns, in a row, of what comes of one plan."""
        key = plan.active, len(plan.tiles), pairs
        if key not in self.known_steps:
            self.known_steps[key] = self._steps(plan, pairs)
        steps, rank, least = self.known_steps[key]
        cells = np.array(plan.tiles or (plan.rows,))
        after = np.concatenate([cells.ravel(), plan.heads, plan.columns]) + steps
        columns, granule = after[:, -plan.ranks :], self.spec.column_granule
        starts = np.cumsum(columns, axis=1) - columns  # as plan.granules_fit() wants them
        fit = (after >= 0).all(axis=1) & (cells.sum(axis=0)[rank] > least) & ((starts % granule == 0) | (columns == 0)).all(axis=1)
        return np.asarray(after[fit])

    def _steps(self, plan: Plan, pairs: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what each move adds to cells, heads and columns in a row, and which rank must have more than how many rows for it."""
        tiles, ranks = max(1, len(plan.tiles)), plan.ranks
        every, heads, columns = range(tiles), tiles * ranks, (tiles + 1) * ranks  # where these begin
        between = [(tile * ranks + one, tile * ranks + other) for tile in every for one, other in pairs]
        kept = [(one * ranks + rank, goal * ranks + rank) for one in every for goal in every if one != goal for rank in plan.active]
        moves = [(one, other, step, step) for step in ROW_STEPS for one, other in between]  # a rank keeps a row
        moves += [(one, other, step, -1) for step in ROW_STEPS for one, other in kept]
        moves += [(heads + one, heads + other, self.spec.group, -1) for one, other in pairs]
        moves += [(columns + one, columns + other, step * self.spec.column_granule, -1) for step in COLUMN_STEPS for one, other in pairs]
        one, other, step, least = np.array(moves, np.int64).reshape(-1, 4).T
        steps, number = np.zeros((len(moves), columns + ranks), np.int64), np.arange(len(moves))
        steps[number, one], steps[number, other] = -step, step
        return steps, one % ranks, least

    def pairs(self, candidate: Candidate) -> Iterator[tuple[int, int]]:
        """Yield (from, to); with many ranks only from the busiest and to the idlest few."""
        active = sorted(candidate.plan.active, key=lambda rank: float(candidate.price.wait[rank]))
        few = len(active) if len(active) <= 4 else 3
        for one in active[:few]:
            for other in active[-few:]:
                if one != other:
                    yield one, other

    def tiled(self, plans: Sequence[Plan], count: int) -> Tried | None:
        """Return what `plans`, which differ in shares only, are when cut into `count` tiles; None where they can not be."""
        if (key := (count, *plans)) not in self.known:
            variants = self.tilings(plans, count)
            self.known[key] = None if variants is None else self.tried(variants)
        return self.known[key]

    def tilings(self, plans: Sequence[Plan], count: int) -> Variants | None:
        """Return ways to cut the rows of each rank of `plans`, which differ in shares only, into `count` tiles: all ranks alike, those with
        few rows in one tile only, or each in one of two; None where there are none."""
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
        if count == 2:
            yield from _wholes(rows)


def _wholes(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield [2, ranks] rows, each rank's in one tile: small products are bound by reading weights, which two tiles of a rank read twice.
    Of many ranks only those ways that put them by turns, from the one with most rows on."""
    some = np.flatnonzero(rows)[np.argsort(-rows[rows > 0], kind="stable")]
    for way in product((0, 1), repeat=len(some)) if len(some) <= MOST_WAYS else TURNS:
        cells = np.zeros((2, len(rows)), np.int64)
        cells[np.resize(way, len(some)), some] = rows[some]
        if cells.any(axis=1).all():
            yield cells
