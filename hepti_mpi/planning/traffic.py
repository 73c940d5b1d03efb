"""What exchanges put on the links of ranks, for many plans at once. Pure: knows boxes, bytes and links; no clock and no model.

Arrays are [ranks, ...], [from, to, ...] or [...], where ... is plans or, of many exchanges at once, exchanges, tiles and plans; an axis
is 1 where all have the same. Plans are the last, since sums over few ranks of many plans are many times sooner so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from hepti_mpi.planning.collectives import collective
from hepti_mpi.program.ops import CASTS
from hepti_mpi.program.ownership import FULL, ROOT, ROWS, Held, Holding, boxes, cells
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

    @cached_property
    def of_exchanges(self) -> "Links":
        """The same beside arrays of exchanges, tiles and plans."""
        return Links(*(getattr(self, field.name)[..., None, None, :] for field in fields(self)))


@dataclass(frozen=True)
class Shares:
    """What members have, of many plans: `rows` [ranks, tiles, plans]; `heads`, `columns` [ranks, 1, plans]."""

    rows: np.ndarray
    heads: np.ndarray
    columns: np.ndarray


Direct = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


class Way(NamedTuple):
    """One way that blocks may take. Seconds that each rank's link sends (`out`) and receives (`into`, `received`: in a queue and in all);
    `moved`: bytes. Round a ring, `first`: bytes that each rank sends first. Directly, `blocks`: seconds after leaving until each is out,
    and `never`: inf where there is none; `until`: -inf for who does not receive, else inf; `late`: seconds that the exchange itself takes,
    -inf for who takes nothing. What is not there is None: where there are too many ranks to tell blocks apart, and what the other way
    has."""

    out: np.ndarray
    into: np.ndarray
    received: np.ndarray
    moved: np.ndarray
    first: np.ndarray | None = None
    blocks: np.ndarray | None = None
    never: np.ndarray | None = None
    until: np.ndarray | None = None
    late: np.ndarray | None = None


class Traffic(NamedTuple):
    """An exchange: `load` [3, ranks, ...]: seconds that each rank sends, receives, and the longer of both; `moved`: bytes; seconds that
    starting takes, and adding what came short (`ending`), and the ways; `ring` [...]: who goes round where there are both."""

    load: np.ndarray
    moved: np.ndarray
    starting: np.ndarray
    ending: np.ndarray
    ring: np.ndarray
    round: Way | None
    direct: Way | None


def by_place(values: Any, places: tuple[int, ...]) -> list[Any]:
    """Return `values` [..., *places, plans] by place, as nested lists; an axis of 1 has the same everywhere. None is None everywhere."""
    if values is None:
        return [by_place(None, places[1:]) if len(places) > 1 else None] * places[0]
    at = values.ndim - 1 - len(places)
    found = values.transpose(*range(at, values.ndim - 1), *range(at), -1)
    if len(places) == 1:
        return list(found) if len(found) == places[0] else [found[0]] * places[0]
    lists = [list(one) if len(one) == places[1] else [one[0]] * places[1] for one in found]
    return lists if len(lists) == places[0] else lists * places[0]


def traffic(
    syncs: Sequence[Sync], shares: Shares, granules: int, links: Links, rings: bool, fixed: tuple[float, float, float], cast: np.ndarray
) -> list[list[Traffic]]:  # fmt: skip
    """Return what exchanges are by messages, of each tile: exchanges all of terms, or all of none. `granules`: heads of the model;
    `rings`: whether blocks may go round; `fixed`: seconds that sending takes to start, and for each second of sending, and that an exchange
    takes beside what its bytes do; `cast`: that each rank takes for a number to or from float16."""
    terms, count = syncs[0].have.terms, len(shares.rows)
    have, want = held(syncs, shares, granules)
    outer, size, width, casts, may, everywhere = _facts(tuple(syncs))
    sizes, ring = (want.sizes if terms else have.sizes) * size, np.zeros((1, 1, 1), bool)  # of each rank's block
    if rings and may.any():
        ring = may & ((count - 1) * sizes.max(axis=0) > RING_GAIN * (sizes.sum(axis=0) - sizes.min(axis=0)))
    round_ = _round(sizes, terms, links) if ring.any() else None
    direct = None
    if not ring.all():
        blocks = _direct(cells(have, want) * size * (1.0 - np.eye(count))[..., None, None, None], links)
        if not links.rooted.all():
            blocks = _past(blocks, shares.rows.sum(axis=0) * np.where(everywhere, count, 1) * size * width, outer, links)
        direct = _straight(blocks, fixed[2])
    ways = [(way.out, way.received, way.moved) for way in (round_, direct) if way]
    out, received, moved = ways[0] if len(ways) == 1 else (np.where(ring, one, other) for one, other in zip(*ways))
    starting = (fixed[0] + fixed[1] * out / np.maximum(links.way, 1e-15)) * (out > 0)
    ending = cast[:, None, None] * casts * (count - 1) * want.sizes if terms else np.zeros_like(starting)
    load, places = np.array([out, received, np.maximum(out, received)]), (len(syncs), shares.rows.shape[1])
    parts = [by_place(values, places) for values in (load, moved, starting, ending, ring)]
    both = _ways(round_, places, ring), _ways(direct, places, ~ring)
    return [[Traffic(*one) for one in zip(*some)] for some in zip(*parts, *both)]


@lru_cache(maxsize=1024)
def _facts(syncs: tuple[Sync, ...]) -> tuple[np.ndarray, ...]:
    """Return of each exchange, [exchanges, 1, 1], whether it is from or to the root, the bytes of a number, the numbers in a row, how long
    a cast takes, whether it may go round, and whether all want all."""
    facts = [
        (ROOT in (sync.have, sync.want), sync.row_bytes / sync.width, sync.width, CASTS[sync.wire],
         (sync.have, sync.want) == (ROWS, FULL) or (sync.have.terms and sync.wire == "float32"),  # a short sum would round at each rank
         sync.want == FULL) for sync in syncs
    ]  # fmt: skip
    return tuple(np.array(some)[:, None, None] for some in zip(*facts))


def _ways(way: Way | None, places: tuple[int, int], taken: np.ndarray) -> list[list[Way | None]]:
    """Return a way by place; None where no plan takes it."""
    if way is None:
        return by_place(None, places)
    found = zip(*(by_place(values, places) for values in way))
    whether = np.broadcast_to(np.any(taken, axis=-1), places).tolist()
    return [[Way(*one) if any_ else None for any_, *one in zip(which, *some)] for which, some in zip(whether, found)]


def held(syncs: Sequence[Sync], shares: Shares, granules: int) -> tuple[Held, Held]:
    """Return who has and who wants what of each tile of exchanged values."""
    ends, known = np.cumsum(shares.heads, axis=0), dict[tuple[Holding, int], np.ndarray]()
    columns = np.stack([ends - shares.heads, ends], axis=1)
    for sync in syncs:
        for holding in (sync.have, sync.want):
            if (holding, sync.width) not in known:
                own = columns * sync.width // granules
                known[holding, sync.width] = boxes(holding, shares.rows[None], 0, own, sync.width)
    have, want = (np.stack([known[holding, sync.width] for holding, sync in zip(some, syncs)], axis=2)
                  for some in ([sync.have for sync in syncs], [sync.want for sync in syncs]))  # fmt: skip
    return Held(have, syncs[0].have.terms), Held(want)


def _direct(bytes_: np.ndarray, links: Links) -> Direct:
    """Return, of blocks of [from, to] `bytes_` that go straight to whoever takes them, `out`, `into`, `moved` and `blocks` of a Way."""
    sent, taken = bytes_.sum(axis=1), bytes_.sum(axis=0)
    out, into = sent * links.far, taken * links.far
    if links.shared:  # ranks of a host share its link, and what stays on a host does not take it
        near = bytes_ * links.mates
        out, into = ((links.mates * (every - near.sum(axis=at))).sum(axis=1) * links.far + near.sum(axis=at) * links.near
                     for every, at in ((sent, 1), (taken, 0)))  # fmt: skip
    if len(bytes_) > FAIR:
        return out, into, sent.sum(axis=0), None
    there = bytes_ > 0  # blocks to several ranks leave side by side: small ones are out first
    blocks = np.minimum(bytes_[:, :, None], bytes_[:, None, :]).sum(axis=2) / np.maximum(sent, 1)[:, None] * out[:, None] * there
    return out, into, sent.sum(axis=0), blocks


def _past(direct: Direct, total: np.ndarray, outer: np.ndarray, links: Links) -> Direct:
    """Return the same of what the root, which is none of the members, gives or takes, `total` bytes: its link is the way then. `outer`:
    which exchanges are of that."""
    there, way = links.rooted | ~outer, total * links.root
    out, into, moved, blocks = direct
    return (np.where(there, out, way), np.where(there, into, way), np.where(there, moved, total),
            None if blocks is None else np.where(there, blocks, way))  # fmt: skip


def _straight(direct: Direct, exchange: float) -> Way:
    """Return the way of such blocks, when each exchange takes `exchange` seconds beside what its bytes do."""
    out, into, moved, blocks = direct
    receiving = into > 0
    never = None if blocks is None else np.where(blocks > 0, 0.0, np.inf)
    getting = receiving if blocks is None else np.any(blocks > 0, axis=0)
    until, late = np.where(receiving, np.inf, -np.inf), np.where(getting, exchange, -np.inf)
    return Way(out, into, into, moved, None, blocks, never, until, late)


def _round(sizes: np.ndarray, terms: bool, links: Links) -> Way:
    """Return the way of blocks of `sizes` bytes that go round a ring."""
    total, count = sizes.sum(axis=0), len(sizes)
    left, right = np.arange(-1, count - 1), np.arange(1, count + 1) % count  # of each rank
    first = sizes.take(left, axis=0) if terms else sizes
    if count > FAIR:
        out = (total - sizes.min(axis=0)) * links.way * links.mates.sum(axis=1)
    else:
        out = (total - first.take(right, axis=0)) * links.hop
    return Way(out, first, out.take(left, axis=0), (count - 1) * total, first if count <= FAIR else None)


def together(sync: Sync, shares: Shares, links: Links) -> tuple[np.ndarray, np.ndarray]:
    """Return the seconds that one of MPI's collectives takes, and the bytes that it moves."""
    outer = ROOT in (sync.have, sync.want)
    blocks = shares.rows * float(sync.width * FLOAT * len(sync.reads))
    others = len(blocks) + (outer & ~links.rooted)
    at = int(outer)
    return collective(sync.kind, others, blocks, links.rooted, links.latency[at], links.slowest[at])
