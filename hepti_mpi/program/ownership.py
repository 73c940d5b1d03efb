"""Who holds what of a value, and what must move for others to hold it. Pure: knows boxes of rows and columns; no time, no MPI, no ONNX.

A value is a matrix. What a rank holds of it is a box of rows x columns, maybe as one term of a sum. `moves` gives the messages between
two holdings: what travels, what that costs and what the tests expect all come from it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from hepti_mpi.program.plan import Plan

Counts = Sequence[Sequence[int]] | np.ndarray


class Box(NamedTuple):
    """Rows [top, bottom) and columns [left, right) of a value."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def rows(self) -> slice:
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.right)

    @property
    def size(self) -> int:
        return max(0, self.bottom - self.top) * max(0, self.right - self.left)

    def inside(self, other: "Box") -> tuple[slice, slice]:
        """Return where this box lies in an array that holds just `other`."""
        return (slice(self.top - other.top, self.bottom - other.top), slice(self.left - other.left, self.right - other.left))


@dataclass(frozen=True, eq=False)
class Held:
    """What every rank holds of a value: `boxes` [ranks, 4, ...], one Box each, maybe of many divisions and values at once; `terms`: the sum
    of what the ranks hold is the value; of many values, of which [...]."""

    boxes: np.ndarray
    terms: bool | np.ndarray = False

    def box(self, rank: int) -> Box:
        return Box(*map(int, self.boxes[rank]))

    def of(self, ranks: Sequence[int] | np.ndarray) -> "Held":
        """Return the same of some ranks, which are counted from 0 then."""
        return Held(self.boxes[np.asarray(ranks)], self.terms)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Numbers that each rank holds."""
        top, bottom, left, right = (self.boxes[:, side] for side in range(4))
        return np.maximum(bottom - top, 0) * np.maximum(right - left, 0)


class Move(NamedTuple):
    """A box that one rank gives another, or takes over from itself."""

    giver: int
    taker: int
    box: Box


def cells(have: Held, want: Held) -> np.ndarray:
    """Return [givers, takers, ...], how many numbers each rank gives each other, itself among them, for all to hold what they want.

    Of a sum everybody gives a term. Else a rank takes what it has from itself, and of several that have the same the first gives it.
    Raises: ValueError when nobody has what somebody wants.
    """
    one, other = have.boxes[:, None], want.boxes[None, :]  # [givers, 1, 4, ...], [1, takers, 4, ...]
    rows, columns = (np.minimum(one[:, :, at + 1], other[:, :, at + 1]) - np.maximum(one[:, :, at], other[:, :, at]) for at in (0, 2))
    shared: np.ndarray = np.maximum(rows, 0) * np.maximum(columns, 0)
    once = np.logical_not(have.terms)
    if not once.any():
        return shared
    ranks, sizes = np.arange(len(shared)), want.sizes
    own = np.zeros_like(shared)
    own[ranks, ranks] = shared[ranks, ranks]
    shared = np.where(once & (own[ranks, ranks] == sizes), own, shared)
    given = shared.sum(axis=0)
    if not (once & (given != sizes)).any():
        return shared
    for taker, *at in np.argwhere(once & (given > sizes)).tolist():
        some: tuple[Any, ...] = (slice(None), slice(None), *at)
        _take_once(shared[some], Held(have.boxes[some]), Held(want.boxes[some]), taker)
    lacking = np.argwhere(once & (shared.sum(axis=0) != sizes))
    if len(lacking):
        raise ValueError(f"nobody holds what rank {lacking[0, 0]} wants")
    return shared


def _take_once(shared: np.ndarray, have: Held, want: Held, taker: int) -> None:
    """Leave out of a column of `shared` what the taker would be given twice."""
    taken: list[Box] = []
    for giver in sorted(np.nonzero(shared[:, taker])[0].tolist(), key=lambda rank: (rank != taker, rank)):
        box = _common(have.box(giver), want.box(taker))
        if any(_common(box, other).size for other in taken):
            shared[giver, taker] = 0
        else:
            taken.append(box)


def _common(one: Box, other: Box) -> Box:
    return Box(max(one.top, other.top), min(one.bottom, other.bottom), max(one.left, other.left), min(one.right, other.right))


def moves(have: Held, want: Held) -> Iterator[Move]:
    """Yield what each rank takes from whom, in the order of takers and then of givers; an empty box is no move.

    >>> rows = Held(np.array([[0, 3, 0, 8], [3, 4, 0, 8]]))
    >>> full = Held(np.array([[0, 4, 0, 8]] * 2))
    >>> [(move.giver, move.taker, move.box.rows) for move in moves(rows, full) if move.giver != move.taker]
    [(1, 0, slice(3, 4, None)), (0, 1, slice(0, 3, None))]
    """
    given = cells(have, want)
    for taker, giver in zip(*np.nonzero(given.T)):
        yield Move(int(giver), int(taker), _common(have.box(giver), want.box(taker)))


@dataclass(frozen=True)
class Holding:
    """How ranks hold a value, whatever their counts are. `rows`: "full" (all), "rows" (each its own), "even" (each as many as the others)
    or "root" (all, rank 0 alone); `columns`: "hidden" (all) or "heads" (those of its own heads); `terms`: of a sum."""

    rows: str
    columns: str = "hidden"
    terms: bool = False


ROOT, FULL, ROWS, EVEN, HEADS = Holding("root"), Holding("full"), Holding("rows"), Holding("even"), Holding("full", "heads")
TERMS = Holding("full", terms=True)
EXCHANGES = {  # what a move between two holdings is called, where it has a name
    "bcast": (ROOT, FULL), "scatterv": (ROOT, ROWS), "gatherv": (ROWS, ROOT), "allgatherv": (ROWS, FULL), "slice": (FULL, ROWS),
    "allreduce": (TERMS, FULL), "reduce_scatter": (TERMS, ROWS), "to_heads": (ROWS, HEADS), "to_rows": (HEADS, ROWS),
    "even_reduce": (TERMS, EVEN), "even_gather": (EVEN, FULL),  # a whole sum in two exchanges
}  # fmt: skip


def boxes(holding: Holding, counts: np.ndarray, tile: int | None, columns: np.ndarray, width: int) -> np.ndarray:
    """Return what ranks that all have a part hold, [ranks, 4, ...]; of the root the first is told.

    `counts` [tiles, ranks, ...]: rows, which lie tile after tile and in each rank after rank; `tile`: None is all of them; `columns`
    [ranks, 2, ...]: those of each rank's heads; `width`: of the value.
    """
    ranks = counts.shape[1]
    ends = np.cumsum(counts.reshape(-1, *counts.shape[2:]), axis=0).reshape(counts.shape)
    first, last = (0, -1) if tile is None else (tile, tile)
    top, bottom = (ends[first, :1] - counts[first, :1], ends[last, -1:])
    if holding.rows == "rows":
        assert tile is not None, "rows of several tiles are no box"
        top, bottom = ends[tile] - counts[tile], ends[tile]
    elif holding.rows == "even":
        each, more = np.divmod(bottom - top, ranks)
        lengths = each + (np.arange(ranks).reshape(-1, *(1,) * (counts.ndim - 2)) < more)
        bottom = top + np.cumsum(lengths, axis=0)
        top = bottom - lengths
    found = np.zeros((ranks, 4, *counts.shape[2:]), np.int64)
    found[:, 0], found[:, 1], found[:, 3] = top, bottom, width
    if holding.columns == "heads":
        found[:, 2:] = columns
    if holding.rows == "root":
        found[1:] = 0
    return found


class Division:
    """Where the rows of a batch lie, tile after tile and in each tile rank after rank, and the columns of each rank's heads.

    `counts` [tiles][ranks]: rows; `heads`: columns that each rank's heads have; `width`: columns of a value; `active`: who holds a part
    (None: everybody).
    """

    def __init__(self, counts: Counts, heads: Sequence[int] | np.ndarray, width: int, active: Sequence[int] | None = None) -> None:
        self.counts: tuple[tuple[int, ...], ...] = tuple(map(tuple, counts))
        self.width, self.ranks = width, len(heads)
        self.active = tuple(range(self.ranks)) if active is None else tuple(active)
        flat = np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))])
        self.starts = flat[:-1].reshape(-1, self.ranks)
        self.ends = flat[1:].reshape(-1, self.ranks)
        ends = np.cumsum(np.asarray(heads, np.int64))
        self.columns = np.stack([ends - heads, ends], axis=1)
        self.others: dict[int, Division] = {width: self}
        self.known: dict[tuple[Holding, int | None], Held] = {}
        self.moving: dict[tuple[Holding, Holding, int], tuple[Move, ...]] = {}

    def of(self, width: int) -> "Division":
        """Return the same of a value with `width` columns, as many for each head as for the others."""
        if width not in self.others:
            columns = self.columns * width // self.width
            self.others[width] = Division(self.counts, columns[:, 1] - columns[:, 0], width, self.active)
        return self.others[width]

    def held(self, holding: Holding, tile: int | None) -> Held:
        """Return who holds what of a value, or of a tile of it; None: of all tiles."""
        if (holding, tile) not in self.known:
            self.known[holding, tile] = self._held(holding, tile)
        return self.known[holding, tile]

    def moves(self, have: Holding, want: Holding, tile: int) -> tuple[Move, ...]:
        """Return what moves for the tile of a value to be held in another way."""
        if (have, want, tile) not in self.moving:
            self.moving[have, want, tile] = tuple(moves(self.held(have, tile), self.held(want, tile)))
        return self.moving[have, want, tile]

    def _held(self, holding: Holding, tile: int | None) -> Held:
        found, counts = np.zeros((self.ranks, 4), np.int64), np.array(self.counts, np.int64)
        having = [*range(self.ranks)] if holding.rows == "root" else [*self.active]
        found[having] = boxes(holding, counts[:, having], tile, self.columns[having], self.width)
        return Held(found, holding.terms)

    def own(self, tile: int, rank: int) -> slice:
        """Return the rows of a rank in a tile."""
        return slice(int(self.starts[tile, rank]), int(self.ends[tile, rank]))

    def tile(self, tile: int | None) -> slice:
        """Return the rows of a tile of all ranks; of all tiles for None."""
        first, last = (0, -1) if tile is None else (tile, tile)
        return slice(int(self.starts[first, 0]), int(self.ends[last, -1]))


def division(plan: Plan, lengths: Sequence[int], head_dim: int, width: int) -> Division:
    """Return how `plan` divides a batch of requests of `lengths` rows."""
    return Division(plan.counts(lengths), [heads * head_dim for heads in plan.heads], width, plan.active)

