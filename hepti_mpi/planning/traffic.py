"""What exchanges put on the links of ranks, for many plans at once. Pure: knows boxes, bytes and links; no clock and no model.

Arrays are [ranks, ...], [from, to, ...] or [...], where ... is plans or, of all tiles at once, tiles and plans; an axis is 1 where all have
the same. Plans are the last, since sums over few ranks of many plans are many times sooner so.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from hepti_mpi.planning.collectives import collective
from hepti_mpi.program.ownership import FULL, ROOT, ROWS, Held, boxes, cells
from hepti_mpi.program.steps import Sync

FLOAT = 4  # bytes
RING_BYTES = 16 << 10  # of a piece that a ring passes on
RING_GAIN = 1.1  # how much less than the direct way a ring must put on the busiest link
FAIR = 16  # ranks up to which blocks of unequal size are told apart


@dataclass(frozen=True)
class Links:
    """How members are linked. Of each, seconds per byte: `far`, out of its host; `near`, within it; `hop`, to its right neighbour; `ahead`:
    seconds that its link is ahead when it has rested. `mates` [ranks, ranks, ...]: who is on the same host, itself among them. `root`,
    seconds per byte: of the way to rank 0, None where that is the first member. `latency`, `slowest` [2, ...]: of the worst link
    between members, and between them and rank 0."""

    far: np.ndarray
    near: np.ndarray
    hop: np.ndarray
    ahead: np.ndarray
    mates: np.ndarray
    rooted: np.ndarray
    root: np.ndarray
    latency: np.ndarray
    slowest: np.ndarray

    @cached_property
    def shared(self) -> bool:
        """Whether members are on the same host in any plan."""
        return bool(self.mates.sum() > self.mates[0].size)

    @cached_property
    def way(self) -> np.ndarray:
        """Seconds per byte out of a rank: within its host where no member is on another."""
        return np.where(self.far.any(axis=0), self.far, self.near)

    @property
    def of_tiles(self) -> "Links":
        """The same beside arrays of tiles and plans."""
        return Links(*(getattr(self, field.name)[..., None, :] for field in fields(self)))


@dataclass(frozen=True)
class Shares:
    """What members have, of many plans: `rows` [ranks, tiles, plans]; `heads`, `columns` [ranks, 1, plans]."""

    rows: np.ndarray
    heads: np.ndarray
    columns: np.ndarray


@dataclass(frozen=True)
class Way:
    """One way that blocks may take. Seconds that each rank's link sends (`out`) and receives (`into`, `received`: in a queue and in all);
    `moved`: bytes. Round a ring, `first`: bytes that each rank sends first. Directly, `blocks`: seconds after leaving until each is out,
    and `never`: inf where there is none; `getting`: who takes any. What is not there is None: where there are too many ranks to tell
    blocks apart, and what the other way has."""

    out: np.ndarray
    into: np.ndarray
    received: np.ndarray
    moved: np.ndarray
    first: np.ndarray | None = None
    blocks: np.ndarray | None = None
    never: np.ndarray | None = None
    getting: np.ndarray | None = None

    def of(self, tile: int) -> "Way":
        """Return that of a tile."""
        return Way(*(of_tile(value, tile) for value in vars(self).values()))


@dataclass(frozen=True)
class Traffic:
    """An exchange: `out`, `received` and `moved` of a Way, seconds that starting takes, and the ways; `ring` [...]: who goes round where
    there are both."""

    out: np.ndarray
    received: np.ndarray
    moved: np.ndarray
    starting: np.ndarray
    ring: np.ndarray
    round: Way | None
    direct: Way | None

    def of(self, tile: int) -> "Traffic":
        """Return that of a tile."""
        every = self.out, self.received, self.moved, self.starting, self.ring
        out, received, moved, starting, ring = (of_tile(value, tile) for value in every)
        return Traffic(out, received, moved, starting, ring, self.round and self.round.of(tile), self.direct and self.direct.of(tile))


def of_tile(values: Any, tile: int) -> Any:
    """Return the part of a tile, of values [..., tiles, plans], or [..., 1, plans] where all have the same; None of None."""
    return None if values is None else values[..., tile if values.shape[-2] > 1 else 0, :]


def held(sync: Sync, shares: Shares, granules: int) -> tuple[Held, Held]:
    """Return who has and who wants what of each tile of an exchanged value; `granules`: heads of the model."""
    ends = np.cumsum(shares.heads, axis=0)
    columns = np.stack([ends - shares.heads, ends], axis=1) * sync.width // granules
    have, want = (Held(boxes(one, shares.rows[None], 0, columns, sync.width), one.terms) for one in (sync.have, sync.want))
    return have, want


def traffic(sync: Sync, shares: Shares, granules: int, links: Links, number_bytes: int, rings: bool, start: tuple[float, float]) -> Traffic:
    """Return what an exchange of all tiles is by messages. `number_bytes`: of a number between the layers; `rings`: whether blocks may go
    round; `start`: seconds that sending takes to start, and for each second of sending."""
    have, want = held(sync, shares, granules)
    count, outer = len(shares.heads), ROOT in (sync.have, sync.want)
    size = float((FLOAT if outer else number_bytes) * len(sync.reads))
    sizes, ring = (want.sizes if have.terms else have.sizes) * size, np.zeros((1, 1), bool)  # of each rank's block
    if rings and ((sync.have, sync.want) == (ROWS, FULL) or (have.terms and number_bytes == FLOAT)):  # a short sum would round at each rank
        ring = (count - 1) * sizes.max(axis=0) > RING_GAIN * (sizes.sum(axis=0) - sizes.min(axis=0))
    round_ = _round(sizes, have.terms, links) if ring.any() else None
    direct = None if ring.all() else _direct(cells(have, want) * (size * (1.0 - np.eye(count)))[..., None, None], links)
    if direct and outer and not links.rooted.all():
        total = shares.rows.sum(axis=0) * (count if sync.want == FULL else 1) * size * sync.width
        direct = _past(direct, total, links)
    ways = [(way.out, way.received, way.moved) for way in (round_, direct) if way]
    out, received, moved = ways[0] if len(ways) == 1 else (np.where(ring, one, other) for one, other in zip(*ways))
    starting = (start[0] + start[1] * out / np.maximum(links.way, 1e-15)) * (out > 0)
    return Traffic(out, received, moved, starting, ring, round_, direct)


def _direct(bytes_: np.ndarray, links: Links) -> Way:
    """Return the way of blocks of [from, to] `bytes_` that go straight to whoever takes them."""
    sent, taken = bytes_.sum(axis=1), bytes_.sum(axis=0)
    out, into = sent * links.far, taken * links.far
    if links.shared:  # ranks of a host share its link, and what stays on a host does not take it
        near = bytes_ * links.mates
        out, into = ((links.mates * (every - near.sum(axis=at))).sum(axis=1) * links.far + near.sum(axis=at) * links.near
                     for every, at in ((sent, 1), (taken, 0)))  # fmt: skip
    if len(bytes_) > FAIR:
        return Way(out, into, into, sent.sum(axis=0))
    there = bytes_ > 0  # blocks to several ranks leave side by side: small ones are out first
    blocks = np.minimum(bytes_[:, :, None], bytes_[:, None, :]).sum(axis=2) / np.maximum(sent, 1)[:, None] * out[:, None] * there
    there = blocks > 0
    return Way(out, into, into, sent.sum(axis=0), None, blocks, np.where(there, 0.0, np.inf), np.any(there, axis=0))


def _past(direct: Way, total: np.ndarray, links: Links) -> Way:
    """Return the way of the input or the result, of `total` bytes, where the root is none of the members: its link is the way then."""
    there, way = links.rooted, total * links.root
    out, into, moved = np.where(there, direct.out, way), np.where(there, direct.into, way), np.where(there, direct.moved, total)
    if direct.blocks is None:
        return Way(out, into, into, moved)
    blocks = np.where(there, direct.blocks, way)
    return Way(out, into, into, moved, None, blocks, np.where(blocks > 0, 0.0, np.inf), np.any(blocks > 0, axis=0))


def _round(sizes: np.ndarray, terms: bool, links: Links) -> Way:
    """Return the way of blocks of `sizes` bytes that go round a ring."""
    total, count = sizes.sum(axis=0), len(sizes)
    first = np.roll(sizes, 1, axis=0) if terms else sizes
    if count > FAIR:
        out = (total - sizes.min(axis=0)) * links.way * links.mates.sum(axis=1)
    else:
        out = (total - np.roll(first, -1, axis=0)) * links.hop
    return Way(out, first, np.roll(out, 1, axis=0), (count - 1) * total, first if count <= FAIR else None)


def together(sync: Sync, shares: Shares, links: Links) -> tuple[np.ndarray, np.ndarray]:
    """Return the seconds that one of MPI's collectives takes, and the bytes that it moves."""
    outer = ROOT in (sync.have, sync.want)
    blocks = shares.rows * float(sync.width * FLOAT * len(sync.reads))
    others = len(blocks) + (outer & ~links.rooted)
    at = int(outer)
    return collective(sync.kind, others, blocks, links.rooted, links.latency[at], links.slowest[at])
