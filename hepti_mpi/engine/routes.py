"""Which blocks of which values go where in each exchange of a program, for one rank and one division of the rows.

Knows ranges of rows and columns; does not know how messages are moved (comm.exchange) or when (engine).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from hepti_mpi import splits
from hepti_mpi.cluster.boards import Work
from hepti_mpi.comm.exchange import Block, Copy, Exchanges, Transfer
from hepti_mpi.engine import sessions
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.price import RING_GAIN
from hepti_mpi.program.build import EMBEDDED, OUTER, RESULT, Sync
from hepti_mpi.program.plan import Plan

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


class Rows:
    """Where the rows of a batch lie: tile after tile, in each tile rank after rank."""

    def __init__(self, plan: Plan, lengths: Sequence[int]) -> None:
        self.counts = plan.counts(lengths)
        if len(plan.active) == 1:  # its value is full, whatever the row shares say
            self.counts = (tuple(sum(lengths) * (rank in plan.active) for rank in range(plan.ranks)),)
        flat = splits.starts([count for tile in self.counts for count in tile])
        self.starts = [flat[at : at + plan.ranks] for at in range(0, len(flat), plan.ranks)]

    def own(self, tile: int, rank: int) -> slice:
        return slice(self.starts[tile][rank], self.starts[tile][rank] + self.counts[tile][rank])

    def tile(self, tile: int | None) -> slice:
        """Return the rows of a tile of all ranks; of all tiles for None."""
        first, last = (0, len(self.counts) - 1) if tile is None else (tile, tile)
        return slice(self.starts[first][0], self.starts[last][-1] + self.counts[last][-1])


class Router:
    """Makes the routes of one rank. `values`: the arrays by key, of which `whole` span all tiles."""

    def __init__(self, exchanges: Exchanges, spec: ModelSpec, plan: Plan, rows: Rows, values: dict[str, np.ndarray]) -> None:
        self.exchanges, self.spec, self.plan, self.rows, self.values = exchanges, spec, plan, rows, values
        self.rank, self.members = exchanges.rank, plan.active
        self.peers = [rank for rank in self.members if rank != self.rank]
        self.half = plan.wire == "float16"
        self.columns = [slice(*(at * spec.head_dim for at in splits.bounds(plan.heads, rank))) for rank in range(plan.ranks)]

    def route(self, sync: Sync, reads: Sequence[str], writes: Sequence[str], tag: int) -> Route:
        """Return the route of `sync`; empty on a rank without a part in it. It uses tags [tag, tag + TAGS)."""
        if sync.kind in OUTER:
            return self._outer(sync, reads[0], writes[0], tag) if self.rank in (0, *self.members) else Route()
        if self.rank not in self.members:
            return Route()
        tile, mine = sync.tile, self.rows.own(sync.tile, self.rank)
        if sync.kind == "slice":
            start = self.rows.tile(tile).start
            return Route(before=[(self.values[writes[0]], self.values[reads[0]][mine.start - start : mine.stop - start])])
        if sync.kind == "reduce_scatter":
            return self._reduce(self.values[reads[0]], self.values[writes[0]], self._spans(tile), tag)
        if sync.kind == "allgatherv":
            return self._gather([(self.values[r], self._part(w, tile)) for r, w in zip(reads, writes)], self._spans(tile), tag)
        sends: list[Block] = []
        receives: list[Block] = []
        copies: list[Copy] = []
        for name, target in zip(reads, writes):
            source, goal = self.values[name], self.values[target]
            for peer in self.members:
                theirs, columns = self.rows.own(tile, peer), self.columns[peer]
                out, into = (source[:, columns], goal[theirs]) if sync.kind == "to_heads" else (source[theirs], goal[:, columns])
                if peer == self.rank:
                    copies.append((into, out))
                    continue
                sends.append((peer, out))
                receives.append((peer, into))
        return self._direct(sends, receives, copies, tag)

    def in_turn(self, sync: Sync, reads: Sequence[str], writes: Sequence[str], tag: int) -> tuple[Route, ...]:
        """Return routes that together do `sync` as MPI's collectives would: a whole sum is one of even blocks, which are gathered then.

        Source: Rabenseifner, "Optimization of Collective Reduction Operations", 2004.
        """
        if sync.kind != "allreduce":
            return (self.route(sync, reads, writes, tag),)
        if self.rank not in self.members:
            return ()
        terms, result = self.values[reads[0]], self.values[writes[0]]
        counts = splits.even(len(terms), len(self.members))
        spans = {rank: slice(*splits.bounds(counts, place)) for place, rank in enumerate(self.members)}
        own = result[spans[self.rank]]
        return self._reduce(terms, own, spans, tag), self._gather([(own, result)], spans, tag + 1)

    def _spans(self, tile: int) -> dict[int, slice]:
        """Return each member's rows within a tile."""
        first = self.rows.tile(tile).start
        owned = {rank: self.rows.own(tile, rank) for rank in self.members}
        return {rank: slice(own.start - first, own.stop - first) for rank, own in owned.items()}

    def _round(self, spans: Mapping[int, slice]) -> bool:
        """Tell whether blocks go round, for that puts less on the busiest link; MPI's collectives do not look at their sizes."""
        counts = [span.stop - span.start for span in spans.values()]
        return self.plan.collectives == "own" and (len(counts) - 1) * max(counts) > RING_GAIN * (sum(counts) - min(counts))

    def _part(self, name: str, tile: int) -> np.ndarray:
        """Return the rows of a tile of a value that all ranks hold, be it of this tile or of all."""
        value, rows = self.values[name], self.rows.tile(tile)
        return value[rows] if len(value) > rows.stop - rows.start else value

    def _outer(self, sync: Sync, read: str, write: str, tag: int) -> Route:
        """Bring the embedding from the root to the active ranks, or the result back."""
        everything = self.rows.tile(sync.tile)
        if sync.kind == "gatherv":
            if self.rank != 0:
                return self._direct([(0, self.values[read])], [], [], tag)
            result = self.values[RESULT]
            copies = [(result[self.rows.own(sync.tile, 0)], self.values[read])] if 0 in self.members else []
            return self._direct([], [(peer, result[self.rows.own(sync.tile, peer)]) for peer in self.peers], copies, tag)
        if self.rank != 0:
            return self._direct([], [(0, self.values[write])], [], tag)
        source = self.values[EMBEDDED]
        parts = {rank: everything if sync.kind == "bcast" else self.rows.own(sync.tile, rank) for rank in self.members}
        copies = [(self.values[write], source[parts[0]])] if 0 in parts else []
        return self._direct([(peer, source[parts[peer]]) for peer in self.peers], [], copies, tag)

    def _direct(self, sends: list[Block], receives: list[Block], copies: list[Copy], tag: int) -> Route:
        return Route(self.exchanges.direct(sends, receives, tag), copies)

    def _gather(self, pairs: list[tuple[np.ndarray, np.ndarray]], spans: Mapping[int, slice], tag: int) -> Route:
        """Fill each target with the ranks' own rows, which lie at `spans`."""
        copies = [(target[spans[self.rank]], source) for source, target in pairs if not np.shares_memory(source, target)]
        if not self._round(spans):
            sends = [(peer, source) for source, _ in pairs for peer in self.peers]
            receives = [(peer, target[spans[peer]]) for _, target in pairs for peer in self.peers]
            return self._direct(sends, receives, copies, tag)
        parts = [[target[spans[rank]] for rank in self.members] for _, target in pairs]
        rings = [self.exchanges.ring_gather(blocks, self.members, tag + number) for number, blocks in enumerate(parts)]
        return Route(_Together(rings), copies)

    def _reduce(self, terms: np.ndarray, result: np.ndarray, spans: Mapping[int, slice], tag: int) -> Route:
        """Leave the sum of the ranks' terms of the own rows in `result`: own term first, then the others in rank order."""
        if not self.half and self._round(spans):
            return Route(self.exchanges.ring_reduce([terms[spans[rank]] for rank in self.members], result, self.members, tag))
        kind = np.float16 if self.half else np.float32
        came = [(peer, np.empty(result.shape, kind)) for peer in self.peers]
        sends, before = [(peer, terms[spans[peer]]) for peer in self.peers], []
        if self.half:
            staged = [(peer, np.empty(block.shape, kind)) for peer, block in sends]
            before = [(stage, block) for (_, stage), (_, block) in zip(staged, sends)]
            sends = staged
        sums = [(result, block) for _, block in came]
        return Route(self.exchanges.direct(sends, came, tag), before, [(result, terms[spans[self.rank]])], sums)


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
