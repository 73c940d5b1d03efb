"""Each exchange of a program on one rank: the arrays that a move's boxes are, and the transfer that carries them.

Knows arrays and which transfer is the sooner; does not know how messages are moved (comm.exchange) or when (engine).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from hepti_mpi.cluster.boards import Work
from hepti_mpi.comm.exchange import Block, Copy, Exchanges, Transfer
from hepti_mpi.engine import sessions
from hepti_mpi.planning.traffic import RING_GAIN
from hepti_mpi.program.ownership import EVEN, FULL, ROOT, ROWS, TERMS, Box, Division, Held, Holding
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import Sync, Value

TAGS = 4  # of one exchange: one per ring


@dataclass
class Route:
    """What a Sync is on one rank: `before` and `after` are copies (and sums) around the transfer; none of it allocates when run.

    Sums of float16 terms follow on the one copy of `after`, which is the rank's own term.
    """

    transfer: Transfer | None = None
    before: list[Copy] = field(default_factory=list)
    after: list[Copy] = field(default_factory=list)
    sums: list[Copy] = field(default_factory=list)  # added after `after`

    def __post_init__(self) -> None:
        self.begins, self.ends = _copying(self.before), _copying([*self.after, *self.sums])
        self._before = [_copy(target, source) for target, source in self.before]
        self._after = self._ending()
        self.ends = replace(self.ends, calls=len(self._after))

    def begin(self) -> None:
        for run in self._before:
            run()

    def end(self) -> None:
        for run in self._after:
            run()

    def _ending(self) -> list[Callable[[], object]]:
        if self.sums and self.sums[0][1].dtype == np.float16:
            ((target, own),) = self.after
            return [sessions.add_halves(target, own, [term for _, term in self.sums])] if own.size else []
        return [
            *(_copy(target, source) for target, source in self.after),
            *(partial(np.add, target, term, out=target) for target, term in self.sums),
        ]


def _copy(target: np.ndarray, source: np.ndarray) -> Callable[[], object]:
    if target.dtype != source.dtype and source.size:
        return sessions.halve(target, source)
    return partial(np.copyto, target, source)


def _copying(copies: Sequence[Copy]) -> Work:
    """Return the work of copies: a call each, every byte of both arrays, and casts where their types differ."""
    casts = sum(target.size for target, source in copies if target.dtype != source.dtype)
    return Work(casts=casts, copied=sum(target.nbytes + source.nbytes for target, source in copies), calls=len(copies))


class Router:
    """Makes the routes of one rank. `arrays`: what it keeps of each value, which `values` describes, by key."""

    def __init__(
        self, exchanges: Exchanges, plan: Plan, division: Division, values: Mapping[str, Value], arrays: Mapping[str, np.ndarray]
    ) -> None:  # fmt: skip
        self.exchanges, self.division, self.values, self.arrays = exchanges, division, values, arrays
        self.half, self.rings = plan.wire == "float16", plan.collectives == "own"  # MPI's collectives do not look at the blocks' sizes
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
        division = self.division.of(self.values[reads[0]].width)
        have, want = (division.held(holding, tile) for holding in holdings)
        if self.rank not in self.members and not (self.rank == 0 and ROOT in holdings):
            return Route()
        if have.terms:
            return self._reduce(reads[0], writes[0], have, want, tag)
        if holdings == (ROWS, FULL) and self._uneven(have):
            return self._ring_gather(reads, writes, have, tag)
        sends: list[Block] = []
        receives: list[Block] = []
        copies: list[Copy] = []
        for read, write in zip(reads, writes):
            for giver, taker, box in division.moves(*holdings, tile):
                if giver == taker == self.rank:
                    copies += [(self._part(write, box), self._part(read, box))] * (read != write)
                elif giver == self.rank:
                    sends.append((taker, self._part(read, box)))
                elif taker == self.rank:
                    receives.append((giver, self._part(write, box)))
        moving = holdings[0] != FULL  # else every rank has what it wants
        return Route(self.exchanges.direct(sends, receives, tag) if moving else None, copies)

    def _part(self, name: str, box: Box) -> np.ndarray:
        """Return the view of a box of a value, in what this rank keeps of it."""
        value = self.values[name]
        kept = self.division.of(value.width).held(Holding(value.rows, value.columns), value.tile).box(self.rank)
        return self.arrays[name][box.inside(kept)]

    def _uneven(self, held: Held) -> bool:
        """Tell whether blocks that everybody sends to everybody go round: what the busiest link carries then is less."""
        sizes = held.sizes[list(self.members)]
        return bool(self.rings and (len(sizes) - 1) * sizes.max() > RING_GAIN * (sizes.sum() - sizes.min()))

    def _ring_gather(self, reads: Sequence[str], writes: Sequence[str], have: Held, tag: int) -> Route:
        """Fill each target with the ranks' own rows."""
        mine = have.box(self.rank)
        copies = [(self._part(write, mine), self._part(read, mine)) for read, write in zip(reads, writes)]
        parts = [[self._part(write, have.box(rank)) for rank in self.members] for write in writes]
        rings = [self.exchanges.ring_gather(blocks, self.members, tag + number) for number, blocks in enumerate(parts)]
        return Route(_Together(rings), copies)

    def _reduce(self, read: str, write: str, have: Held, want: Held, tag: int) -> Route:
        """Leave the sum of the ranks' terms of what each wants there: own term first, then the others in rank order."""
        if not self.half and self._uneven(want):
            terms = [self._part(read, want.box(rank)) for rank in self.members]
            return Route(self.exchanges.ring_reduce(terms, self._part(write, want.box(self.rank)), self.members, tag))
        kind, mine = np.float16 if self.half else np.float32, want.box(self.rank)
        result = self._part(write, mine)
        came = [(peer, np.empty(result.shape, kind)) for peer in self.peers]
        sends, before = [(peer, self._part(read, want.box(peer))) for peer in self.peers], []
        if self.half:
            staged = [(peer, np.empty(block.shape, kind)) for peer, block in sends]
            before = [(stage, block) for (_, stage), (_, block) in zip(staged, sends)]
            sends = staged
        sums = [(result, block) for _, block in came]
        return Route(self.exchanges.direct(sends, came, tag), before, [(result, self._part(read, mine))], sums)


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
