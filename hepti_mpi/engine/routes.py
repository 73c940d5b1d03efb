"""Each exchange of a program on one rank: the arrays that a move's boxes are, and the transfer that carries them.

Knows arrays and which transfer is the sooner; does not know how messages are moved (comm.exchange) or when (engine).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from hepti_mpi.cluster.boards import Work
from hepti_mpi.comm.exchange import Block, Copy, Exchanges, Transfer
from hepti_mpi.comm.sizes import FLOAT
from hepti_mpi.planning.traffic import RING_BLOCK, RING_GAIN
from hepti_mpi.program.ops import CASTS
from hepti_mpi.program.ownership import EVEN, FULL, ROOT, ROWS, TERMS, Box, Division, Held, Holding
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import Sync, Value

TAGS = 4  # of one exchange: one per ring


@dataclass
class Route:
    """What a Sync is on one rank: `before` and `after` are copies around the transfer; where it is a sum the one copy behind it is of the
    rank's own term, and `sums` are the others, arrays of the wire's type. None of it allocates when run."""

    transfer: Transfer | None = None
    before: list[Copy] = field(default_factory=list)
    after: list[Copy] = field(default_factory=list)
    sums: list[tuple[np.ndarray, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._before, self._after = [partial(np.copyto, target, source) for target, source in self.before], self._ending()
        numbers = sum(term[0].size for term in self.sums)
        summed = sum(array.nbytes for term in self.sums for array in term) + numbers * FLOAT
        casts = CASTS[str(self.sums[0][0].dtype)] * numbers if self.sums else 0
        # a run of copies and sums takes beside its bytes what one call of a session does, or less
        self.begins = Work(copied=_bytes(self.before), calls=bool(self._before))
        self.ends = Work(casts=casts, copied=_bytes(self.after) + summed, calls=bool(self._after))

    def begin(self) -> None:
        for run in self._before:
            run()

    def end(self) -> None:
        for run in self._after:
            run()

    def _ending(self) -> list[Callable[[], object]]:
        if not self.sums or self.sums[0][0].dtype == np.float32:
            copies = [partial(np.copyto, target, source) for target, source in self.after]
            return [*copies, *(partial(np.add, self.after[0][0], term, out=self.after[0][0]) for (term,) in self.sums)]
        from hepti_mpi.engine import sessions

        ((target, own),) = self.after
        return [sessions.add_short(target, own, self.sums)] if own.size else []


def _bytes(copies: Sequence[Copy]) -> int:
    return sum(target.nbytes + source.nbytes for target, source in copies)


class Relay:
    """A route that begins with its copies as a transfer of its own: what has just come goes on while its rank computes."""

    def __init__(self, route: Route) -> None:
        assert route.transfer is not None
        self.begin, self.transfer = route.begin, route.transfer
        self.progress, self.missing, self.free = self.transfer.progress, self.transfer.missing, self.transfer.free

    def start(self) -> None:
        self.begin()
        self.transfer.start()


class Router:
    """Makes the routes of one rank. `arrays`: what it keeps of each value, which `values` describes, by key."""

    def __init__(
        self, exchanges: Exchanges, plan: Plan, division: Division, values: Mapping[str, Value], arrays: Mapping[str, np.ndarray]
    ) -> None:  # fmt: skip
        self.exchanges, self.division, self.values, self.arrays = exchanges, division, values, arrays
        self.rings = plan.collectives == "own"  # MPI's collectives do not look at the blocks' sizes
        self.rank, self.members = exchanges.rank, division.active
        self.peers = [rank for rank in self.members if rank != self.rank]

    def route(self, sync: Sync, reads: Sequence[str], writes: Sequence[str], tag: int) -> Route:
        """Return the route of `sync`; empty on a rank without a part in it. It uses tags [tag, tag + TAGS)."""
        return self._route((sync.have, sync.want), sync.tile, reads, writes, tag)

    def in_turn(self, sync: Sync, reads: Sequence[str], writes: Sequence[str], tag: int) -> tuple[Route, ...]:
        """Return routes that together do `sync` as MPI's collectives would: a whole sum is one of even blocks, which are gathered then.

        Source: Rabenseifner, "Optimization of Collective Reduction Operations", 2004.
        """
        if (sync.have, sync.want) != (TERMS, FULL):
            return (self.route(sync, reads, writes, tag),)
        summed = self._route((TERMS, EVEN), sync.tile, reads, writes, tag)
        return summed, self._route((EVEN, FULL), sync.tile, writes, writes, tag + 1)

    def _route(self, holdings: tuple[Holding, Holding], tile: int, reads: Sequence[str], writes: Sequence[str], tag: int) -> Route:
        have, want = (self._held(reads[0], holding, tile) for holding in holdings)
        if self.rank not in self.members and not (self.rank == 0 and ROOT in holdings):
            return Route()
        if have.terms:
            return self._reduce(reads, writes[0], (holdings[1], tile), tag)
        if holdings in ((ROWS, FULL), (EVEN, FULL)) and self._goes_round(have, self.arrays[reads[0]].itemsize):
            return self._ring_gather(reads, writes, holdings[0], tile, tag)
        sends: list[Block] = []
        receives: list[Block] = []
        before: list[Copy] = []
        for read, write in zip(reads, writes):
            for giver, taker, box in self.division.of(self.values[read].width).moves(*holdings, tile):
                if giver == taker == self.rank:
                    before += [(self._part(write, box), self._part(read, box))] * (read != write)
                elif giver == self.rank:
                    sends.append((taker, self._part(read, box)))
                elif taker == self.rank:
                    receives.append((giver, self._part(write, box)))
        moving = holdings[0] != FULL  # else every rank has what it wants
        return Route(self.exchanges.direct(sends, receives, tag) if moving else None, before)

    def _part(self, name: str, box: Box) -> np.ndarray:
        """Return the view of a box of a value, in what this rank keeps of it."""
        value = self.values[name]
        kept = self._held(name, Holding(value.rows, value.columns), value.tile).box(self.rank)
        return self.arrays[name][box.inside(kept)]

    def _held(self, name: str, holding: Holding, tile: int | None) -> Held:
        """Return who would hold what of a value that is held so."""
        return self.division.of(self.values[name].width).held(holding, tile)

    def _goes_round(self, held: Held, size: int) -> bool:
        """Tell whether blocks of numbers of `size` bytes that everybody sends to everybody go round: what the busiest link carries then is
        less, or they are long and alike, so that MPI would do so too."""
        sizes = held.sizes[list(self.members)]
        uneven = (len(sizes) - 1) * sizes.max() > RING_GAIN * (sizes.sum() - sizes.min())
        return len(sizes) > 2 and bool(self.rings if uneven else sizes.max() * size >= RING_BLOCK)

    def _ring_gather(self, reads: Sequence[str], writes: Sequence[str], holding: Holding, tile: int, tag: int) -> Route:
        """Fill each target with the ranks' own rows."""
        copies, rings = [], []
        for number, (read, write) in enumerate(zip(reads, writes)):
            have = self._held(read, holding, tile)
            mine, parts = have.box(self.rank), [self._part(write, have.box(rank)) for rank in self.members]
            copies += [(self._part(write, mine), self._part(read, mine))] * (read != write)
            rings.append(self.exchanges.ring_gather(parts, self.members, tag + number, turn=tag // TAGS))
        return Route(_Together(rings), copies)

    def _reduce(self, reads: Sequence[str], write: str, wanted: tuple[Holding, int], tag: int) -> Route:
        """Leave the sum of the ranks' terms of what each wants there: own term first, then the others in rank order. `reads`: the term and,
        on a short wire, what travels of it."""
        term, *short = reads
        want = self._held(term, *wanted)
        if not short and self._goes_round(want, self.arrays[term].itemsize):
            terms = [self._part(term, want.box(rank)) for rank in self.members]
            return Route(self.exchanges.ring_reduce(terms, self._part(write, want.box(self.rank)), self.members, tag, turn=tag // TAGS))
        sends, came = list[Block](), {peer: list[np.ndarray]() for peer in self.peers}
        for name in short or [term]:
            held = self._held(name, *wanted)
            sends += [(peer, self._part(name, held.box(peer))) for peer in self.peers]
            like = self._part(name, held.box(self.rank))
            for arrays in came.values():
                arrays.append(np.empty_like(like))
        mine, sums = want.box(self.rank), [tuple(arrays) for arrays in came.values()]
        receives = [(peer, arrays[place]) for place in range(len(short) or 1) for peer, arrays in came.items()]
        own = self._part(write, mine), self._part(term, mine)
        return Route(self.exchanges.direct(sends, receives, tag), after=[own], sums=sums)


class _Together:
    """Several transfers as one."""

    def __init__(self, transfers: Sequence[Transfer]) -> None:
        self.transfers = transfers

    def start(self) -> None:
        for transfer in self.transfers:
            transfer.start()

    def progress(self) -> bool:
        return all([transfer.progress() for transfer in self.transfers])

    def missing(self) -> list[int]:
        return [rank for transfer in self.transfers for rank in transfer.missing()]

    def free(self) -> None:
        for transfer in self.transfers:
            transfer.free()
