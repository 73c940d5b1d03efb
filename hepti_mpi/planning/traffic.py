"""What exchanges put on the links of ranks, for many plans at once. Pure: knows boxes, bytes and links; no clock and no model.

Arrays are [ranks, plans], [from, to, plans] or [plans]; their last axis is 1 where all plans have the same. It is the last, since sums
over few ranks of many plans are many times sooner so.
"""

from dataclasses import dataclass

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
    seconds that its link is ahead when it has rested. `mates` [ranks, ranks, plans]: who is on the same host, itself among them. `root`,
    seconds per byte: of the way to rank 0, None where that is the first member. `latency`, `slowest` [2, plans]: of the worst link
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

    @property
    def way(self) -> np.ndarray:
        """Seconds per byte out of a rank: within its host where no member is on another."""
        return np.where(self.far.any(axis=0), self.far, self.near)


@dataclass(frozen=True)
class Shares:
    """What members have, of many plans: `counts` [tiles, ranks, plans] of rows; `heads`, `columns` [ranks, plans]."""

    counts: np.ndarray
    heads: np.ndarray
    columns: np.ndarray


@dataclass(frozen=True)
class Traffic:
    """An exchange. Seconds that each rank's link sends (`out`) and receives (`into`, `received`: in a queue and in all), and that starting
    takes; `moved`: bytes.

    `ring` [plans]: whether blocks go round; then `first`: bytes that each rank sends first. Else `blocks`: seconds after leaving until each
    is out, and `never`: inf where there is none; both None where there are too many ranks to tell them apart. `getting`: who takes any.
    """

    out: np.ndarray
    into: np.ndarray
    received: np.ndarray
    starting: np.ndarray
    moved: np.ndarray
    ring: np.ndarray
    first: np.ndarray
    blocks: np.ndarray | None
    never: np.ndarray | None
    getting: np.ndarray


def held(sync: Sync, shares: Shares, granules: int) -> tuple[Held, Held]:
    """Return who has and who wants what of an exchanged value; `granules`: heads of the model."""
    ends = np.cumsum(shares.heads, axis=0)
    columns = np.stack([ends - shares.heads, ends], axis=1) * sync.width // granules
    have, want = (Held(boxes(one, shares.counts, sync.tile, columns, sync.width), one.terms) for one in (sync.have, sync.want))
    return have, want


def traffic(sync: Sync, shares: Shares, granules: int, links: Links, number_bytes: int, rings: bool, start: tuple[float, float]) -> Traffic:
    """Return what an exchange is by messages. `number_bytes`: of a number between the layers; `rings`: whether blocks may go round;
    `start`: seconds that sending takes to start, and for each second of sending."""
    have, want = held(sync, shares, granules)
    count, outer = len(shares.heads), ROOT in (sync.have, sync.want)
    size = float((FLOAT if outer else number_bytes) * len(sync.reads))
    bytes_ = cells(have, want) * (size * (1.0 - np.eye(count)))[..., None]
    far, near = bytes_ * ~links.mates, bytes_ * links.mates
    out, into = far.sum(axis=1), far.sum(axis=0)
    out, into = ((links.mates * sums).sum(axis=1) for sums in (out, into))  # ranks of a host share its link
    out, into = out * links.far + near.sum(axis=1) * links.near, into * links.far + near.sum(axis=0) * links.near
    moved = bytes_.sum(axis=(0, 1))
    blocks = None
    if count <= FAIR:  # blocks to several ranks leave side by side: small ones are out first
        blocks = np.minimum(bytes_[:, :, None], bytes_[:, None, :]).sum(axis=2)
        blocks = blocks / np.maximum(bytes_.sum(axis=1), 1)[:, None] * out[:, None] * (bytes_ > 0)
    if outer and not links.rooted.all():  # where the root is none of them its link is the way
        total = shares.counts[sync.tile].sum(axis=0) * (count if sync.want == FULL else 1) * size * sync.width
        there, way = links.rooted, total * links.root
        out, into, moved = np.where(there, out, way), np.where(there, into, way), np.where(there, moved, total)
        blocks = None if blocks is None else np.where(there, blocks, way)
    ring, first, received = np.zeros(out.shape[1], bool), out, into
    sizes = (want.sizes if have.terms else have.sizes) * size  # of each rank's block
    if rings and ((sync.have, sync.want) == (ROWS, FULL) or (have.terms and number_bytes == FLOAT)):  # a short sum would round at each rank
        ring = (count - 1) * sizes.max(axis=0) > RING_GAIN * (sizes.sum(axis=0) - sizes.min(axis=0))
    if ring.any():
        total = sizes.sum(axis=0)
        first = np.roll(sizes, 1, axis=0) if have.terms else sizes
        round_ = (total - np.roll(first, -1, axis=0)) * links.hop
        if count > FAIR:
            round_ = (total - sizes.min(axis=0)) * links.way * links.mates.sum(axis=1)
        received = np.where(ring, np.roll(round_, 1, axis=0), into)
        out, into = np.where(ring, round_, out), np.where(ring, first, into)
        moved = np.where(ring, (count - 1) * total, moved)
    sent = out / np.maximum(links.way, 1e-15)
    starting = (start[0] + start[1] * sent) * (sent > 0)
    never = None if blocks is None else np.where(blocks > 0, 0.0, np.inf)
    getting = into > 0 if blocks is None else (blocks > 0).any(axis=0)
    return Traffic(out, into, received, starting, moved, ring, first, blocks, never, getting)


def together(sync: Sync, shares: Shares, links: Links) -> tuple[np.ndarray, np.ndarray]:
    """Return the seconds that one of MPI's collectives takes, and the bytes that it moves."""
    outer = ROOT in (sync.have, sync.want)
    blocks = shares.counts[0] * float(sync.width * FLOAT * len(sync.reads))
    others = len(blocks) + (outer & ~links.rooted)
    at = int(outer)
    return collective(sync.kind, others, blocks, links.rooted, links.latency[at], links.slowest[at])
