"""What exchanges put on the links of ranks, for many plans at once. Pure: knows holdings, bytes and links; no clock and no model.

Arrays are [ranks, ...], [from, to, ...] or [...], where ... is plans or, of many exchanges at once, exchanges, tiles and plans; an axis
is 1 where all have the same. Plans are the last, since sums over few ranks of many plans are many times sooner so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from hepti_mpi.comm.sizes import FLOAT
from hepti_mpi.planning.collectives import collective
from hepti_mpi.program.ops import CASTS
from hepti_mpi.program.ownership import EVEN, FULL, ROOT, ROWS, Holding
from hepti_mpi.program.steps import Sync

RING_GAIN = 1.1  # how much less than the direct way a ring must put on the busiest link
RING_BLOCK = 32 << 10  # bytes of a block from which a ring is sooner all the same: directly, some links wait while others are full
FEW = 4  # givers of whom any group's blocks are told together
FAIR = 16  # ranks up to which blocks of unequal size are told apart


@dataclass(frozen=True)
class Links:
    """How members are linked. Of each, seconds per byte: `far`, out of its host; `near`, within it; `hop`, to its right neighbour; seconds
    that a way is ahead when it has rested: `ahead`, out of its host; `hop_ahead`, to its right neighbour. `mates` [ranks, ranks, ...]: who
    is on the same host, itself among them. `root`, seconds per byte: of the way to rank 0, None where that is the first member. `latency`,
    `slowest` [2, ...]: of the worst link between members, and between them and rank 0."""

    far: np.ndarray
    near: np.ndarray
    hop: np.ndarray
    ahead: np.ndarray
    hop_ahead: np.ndarray
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


Sent = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]
"""Seconds that each rank's link sends and receives, bytes that move, and what else of blocks must be known to tell when each is there."""


class Round(NamedTuple):
    """Blocks that go round a ring: `out`: seconds that each rank's link sends; `first`: bytes that each rank sends first, None where there
    are too many ranks to tell blocks apart."""

    out: np.ndarray
    first: np.ndarray | None


class Blocks(NamedTuple):
    """Blocks apart from each other, from whom `givers` says. Seconds after leaving until each is there but for what its way carries,
    [givers, to, ...], -inf where there is none, and for which they keep the receiver's link busy: each, or any of few together,
    [groups, to, ...], as `groups` says."""

    arriving: np.ndarray
    loads: np.ndarray


class Direct(NamedTuple):
    """Blocks that go straight to whoever takes them. Seconds that each rank's link sends (`out`) and receives (`into`); `until`: -inf for
    who does not receive, else inf, None where all do; `late`: seconds that the exchange itself takes, -inf for who takes nothing, None
    where all take some. `never` [givers, to, ...]: inf where there is no block, None where none is missing; it and `blocks` are None where
    there are too many ranks to tell blocks apart."""

    out: np.ndarray
    into: np.ndarray
    until: np.ndarray | None
    late: np.ndarray | None
    blocks: Blocks | None
    never: np.ndarray | None


class Handling(NamedTuple):
    """Seconds that each rank takes for copies or sums, whatever their size, for each byte that these read or write, and to cast a number
    to or from float16; [ranks, plans or 1]."""

    call: np.ndarray
    byte: np.ndarray
    cast: np.ndarray


class Traffic(NamedTuple):
    """An exchange: `load` [3 x ranks + 1, ...]: seconds that each rank sends, that it receives, and the longer of both, and bytes that
    move; seconds that starting takes, with copying what a rank has itself before; the `copying`, which is its own time, and adding what
    came (`ending`), None where nothing does, and the ways that blocks take in any plan; `ring` [...]: who goes round."""

    load: np.ndarray
    starting: np.ndarray
    copying: np.ndarray | None
    ending: np.ndarray | None
    ring: np.ndarray
    round: Round | None
    direct: Direct | None


def _by_place(values: np.ndarray | None, places: tuple[int, int]) -> Sequence[Sequence[np.ndarray | None]]:
    """Return `values` [..., exchanges, tiles, plans] of each exchange and tile; where there are none, None for each of as many `places`."""
    return [[None] * places[1]] * places[0] if values is None else list(map(list, _placed(values)))


def _placed(values: np.ndarray) -> np.ndarray:
    """Return `values` [exchanges, tiles, ..., plans], those of each place in one piece, which clocks are much sooner with."""
    at = values.ndim - 3
    return np.ascontiguousarray(values.transpose(at, at + 1, *range(at), -1))


def traffic(
    facts: "Facts", shares: Shares, heads: int, links: Links, rings: bool, fixed: tuple[float, float, float], handling: Handling
) -> list[list[Traffic]]:  # fmt: skip
    """Return what exchanges are by messages, of each tile. `heads`: of the model; `rings`: whether uneven blocks go round, as long ones do;
    `fixed`: seconds that sending takes to start, and for each second of sending, and that an exchange takes beside what its bytes do."""
    count = len(shares.rows)
    given, taken, sizes = numbers(facts, shares, heads)
    sizes *= facts.size
    ring = np.zeros(sizes.shape[1:], bool)
    largest = sizes.max(axis=0)
    if count > 2 and facts.may.any() and (rings or (largest >= RING_BLOCK).any()):
        uneven = (count - 1) * largest > RING_GAIN * (sizes.sum(axis=0) - sizes.min(axis=0))
        ring = facts.may & (uneven & rings | ~uneven & (largest >= RING_BLOCK))
    rounds, straight = _round(sizes, facts.terms, links) if ring.any() else None, None
    own = sizes
    if not ring.all():
        bytes_ = (given * facts.size)[:, None] * taken
        own = bytes_[range(count), range(count)]
        bytes_[range(count), range(count)] = 0.0  # what a rank has already
        straight = _direct(bytes_, links)
        if not links.rooted.all():
            total = shares.rows.sum(axis=0) * np.where(facts.everywhere, count, 1) * facts.size * facts.width
            straight = _past(straight, total, facts.outer, links)
    ways = [way[:3] for way in (rounds, straight) if way]
    out, received, moved = ways[0] if len(ways) == 1 else (np.where(ring, one, other) for one, other in zip(*ways))
    load = np.concatenate([out, received, np.maximum(out, received), moved[None]])
    starting = (fixed[0] + fixed[1] * out / np.maximum(links.way, 1e-15)) * (out > 0)
    places, (copying, ending) = ring.shape[:2], _handled(facts, own, ring, count - 1, handling)
    starting = starting if copying is None else starting + copying
    parts = (_by_place(values, places) for values in (load, starting, copying, ending, ring))
    both = (_taken(Round, rounds and (rounds[0], rounds[3]), ring.any(axis=-1).tolist(), places),
            _taken(Direct, straight and _straight(straight, fixed[2], links), (~ring.all(axis=-1)).tolist(), places))  # fmt: skip
    return [[Traffic(*one) for one in zip(*some)] for some in zip(*parts, *both)]


def _handled(facts: "Facts", own: np.ndarray, ring: np.ndarray, others: int, handling: Handling) -> list[np.ndarray | None]:
    """Return the seconds that each rank copies before an exchange and adds behind it, as the engine's routes do; `own`: bytes of what it
    has and wants itself; `others`: from how many terms come. What goes round is added on its way."""
    call, byte, cast = (values[:, None, None] for values in handling)
    some, found = own > 0, list[np.ndarray | None]([None, None])
    if facts.copies.any():
        found[0] = (call * some + 2 * byte * own) * facts.copies
    if facts.terms.any() and not ring.all():
        each = (2 * FLOAT / facts.size + others * (FLOAT / facts.size + 1)) * byte + others * facts.casts * cast / facts.size  # of a byte
        found[1] = (call * some + each * own) * (facts.terms & ~ring)
    return found


class Facts(NamedTuple):
    """Of each exchange what ranks have, what they want and how many numbers a row has (`ends`), and, [exchanges, 1, 1]: whether it is of
    terms, whether it is from or to the root, the bytes of a number, the numbers in a row, how long casts of what came take, whether it may
    go round, whether all want all, and whether a rank copies its own."""

    ends: tuple[tuple[Holding, Holding, int], ...]
    terms: np.ndarray
    outer: np.ndarray
    size: np.ndarray
    width: np.ndarray
    casts: np.ndarray
    may: np.ndarray
    everywhere: np.ndarray
    copies: np.ndarray


def facts_of(syncs: Sequence[Sync]) -> Facts:
    """Return what of exchanges does not depend on shares."""
    facts = [
        (sync.have.terms, ROOT in (sync.have, sync.want), sync.row_bytes / sync.width, sync.width, sync.have.terms * CASTS[sync.wire],
         # a short sum would round at each rank
         (sync.have, sync.want) in ((ROWS, FULL), (EVEN, FULL)) or (sync.have.terms and sync.wire == "float32"),
         # what is gathered of a sum of even blocks is there already (engine.routes)
         sync.want == FULL, not sync.have.terms and sync.have not in (FULL, EVEN)) for sync in syncs
    ]  # fmt: skip
    ends = tuple((sync.have, sync.want, sync.width) for sync in syncs)
    return Facts(ends, *(np.array(some)[:, None, None] for some in zip(*facts)))


def _taken(kind: type[Any], way: Sequence[np.ndarray | None] | None, any_: Any, places: tuple[int, int]) -> list[list[Any]]:
    """Return a way by place; None where no plan takes it."""
    if way is None:
        return [[None] * places[1]] * places[0]
    found = zip(*(values if isinstance(values, list) else _by_place(values, places) for values in way))
    return [[kind(*one) if whether else None for whether, *one in zip(which, *some)] for which, some in zip(any_, found)]


def numbers(facts: Facts, shares: Shares, heads: int) -> np.ndarray:
    """Return, [3, ranks, exchanges, tiles, plans], of numbers two factors, of who gives and of who takes them, whose product the one gives
    the other (ownership.cells), and those of each rank's block: of a sum what it wants of it, else what it has."""
    rows, first = shares.rows, np.zeros((len(shares.rows), 1, 1))
    first[0] = 1  # of the root the first is told
    total, ends = rows.sum(axis=0), np.cumsum(shares.heads, axis=0)
    each, more = np.divmod(total, len(rows))
    own = {"rows": rows, "full": total, "root": first * total, "even": each + (np.arange(len(rows))[:, None, None] < more)}

    def columns(holding: Holding, width: int) -> Any:
        """Return the columns of each rank of a value that has so many."""
        return width if holding.columns == "hidden" else ends * width // heads - (ends - shares.heads) * width // heads

    found = np.empty((3, len(rows), len(facts.ends), *rows.shape[1:]))
    for number, (have, want, width) in enumerate(facts.ends):
        given, taken = found[:2, :, number]
        given[:], taken[:] = (columns(have, width), 1) if have.columns == "heads" else (1, columns(want, width))
        if have.rows == "full":  # whoever takes some has it of everybody
            taken *= own[want.rows]
        elif want.rows == "full":
            given *= own[have.rows]
        else:
            given *= first if have.rows == "root" else rows
            taken *= first if want.rows == "root" else rows
        block = want if have.terms else have
        found[2, :, number] = own[block.rows] * columns(block, width)
    return found


def _direct(bytes_: np.ndarray, links: Links) -> Sent:
    """Return what blocks of [from, to] `bytes_` are that go straight to whoever takes them."""
    sent, taken = bytes_.sum(axis=1), bytes_.sum(axis=0)
    out, into = sent * links.far, taken * links.far
    if links.shared:  # ranks of a host share its link, and what stays on a host does not take it
        near = bytes_ * links.mates
        out, into = ((links.mates * (every - near.sum(axis=at))).sum(axis=1) * links.far + near.sum(axis=at) * links.near
                     for every, at in ((sent, 1), (taken, 0)))  # fmt: skip
    if len(bytes_) > FAIR:
        return out, into, sent.sum(axis=0), None
    before = np.minimum(bytes_, bytes_[:, :1])  # blocks to several ranks leave side by side: small ones are out first
    for other in range(1, len(bytes_)):
        before += np.minimum(bytes_, bytes_[:, other : other + 1])
    before /= np.maximum(sent, 1)[:, None]
    before *= out[:, None]
    before *= bytes_ > 0
    return out, into, sent.sum(axis=0), np.stack([before, bytes_ * links.far])


def _past(direct: Sent, total: np.ndarray, outer: np.ndarray, links: Links) -> Sent:
    """Return the same of what the root, which is none of the members, gives or takes, `total` bytes: its link is the way then. `outer`:
    which exchanges are of that."""
    there, way = links.rooted | ~outer, total * links.root
    out, into, moved, blocks = direct
    return (np.where(there, out, way), np.where(there, into, way), np.where(there, moved, total),
            None if blocks is None else np.where(there, blocks, np.stack([way, way / len(out)])[:, None, None]))  # fmt: skip


@lru_cache
def givers(count: int, ranks: int) -> np.ndarray:
    """Return from whom blocks may come to each of the ranks, [count, ranks]: all but itself, or all where a root that is none of them gives
    for everybody.

    >>> givers(2, 3)
    array([[1, 0, 0],
           [2, 2, 1]])
    """
    every = np.arange(ranks)
    return np.array([every[every != rank] if count < ranks else every for rank in range(ranks)], np.int64).reshape(ranks, count).T


@lru_cache
def groups(givers: int) -> np.ndarray:
    """Return who is in which group of so many givers, [groups, givers]: each giver's groups with those before it follow it alone.

    >>> groups(2)
    array([[1., 0.],
           [0., 1.],
           [1., 1.]])
    """
    return np.array([[number >> giver & 1 for giver in range(givers)] for number in range(1, 1 << givers)], float)


def _straight(direct: Sent, exchange: float, links: Links) -> tuple[Any, ...]:
    """Return the fields of a Direct, when each exchange takes `exchange` seconds beside what its bytes do; by place what tells of gaps,
    since where there are none it is None."""
    out, into, _, every = direct
    receiving, blocks, never = into > 0, None, None
    getting = receiving
    if every is not None:
        ranks = len(out)
        who = givers(ranks - 1 if links.rooted.all() else ranks, ranks)
        leaving, loads = every.reshape(2, -1, *every.shape[3:]).take(who * ranks + np.arange(ranks), axis=1)
        there = leaving > 0
        getting, never = np.asarray(there.any(axis=0)), _gaps(there, 0.0, np.inf)
        arriving = np.where(there, leaving - np.broadcast_to(links.ahead, out.shape).take(who, axis=0), -np.inf)
        arriving, loads = _placed(arriving), _placed(loads)  # [exchanges, tiles, givers, to, plans]
        if len(who) <= FEW:
            some = loads.reshape(*loads.shape[:3], -1)
            loads = (groups(len(who)) @ some).reshape(*loads.shape[:2], -1, *loads.shape[3:])
        blocks = [list(map(Blocks, *some)) for some in zip(arriving, loads)]
    return out, into, _gaps(receiving, np.inf, -np.inf), _gaps(getting, exchange, -np.inf), blocks, never


def _gaps(there: np.ndarray, yes: float, no: float) -> Sequence[Sequence[np.ndarray | None]]:
    """Return by place `yes` where `there` [..., exchanges, tiles, plans] holds, else `no`; None for a place where it holds everywhere."""
    places = there.shape[-3:-1]
    complete: Any = there.all(axis=-1).reshape(-1, *places).all(axis=0).tolist()
    found = _by_place(None if all(map(all, complete)) else np.where(there, yes, no), places)
    return [[None if whole else one for whole, one in zip(*some)] for some in zip(complete, found)]


def _round(sizes: np.ndarray, terms: np.ndarray, links: Links) -> Sent:
    """Return the same of blocks of `sizes` bytes that go round a ring, of which the last are the bytes that each rank sends first."""
    total, count = sizes.sum(axis=0), len(sizes)
    left, right = np.arange(-1, count - 1), np.arange(1, count + 1) % count  # of each rank
    first = np.where(terms, sizes.take(left, axis=0), sizes)
    if count > FAIR:
        out = (total - sizes.min(axis=0)) * links.way * links.mates.sum(axis=1)
    else:
        out = (total - first.take(right, axis=0)) * links.hop
    return out, out.take(left, axis=0), (count - 1) * total, first if count <= FAIR else None


def together(sync: Sync, shares: Shares, links: Links) -> tuple[np.ndarray, np.ndarray]:
    """Return the seconds that one of MPI's collectives takes, and the bytes that it moves."""
    outer = ROOT in (sync.have, sync.want)
    blocks = shares.rows * float(sync.width * FLOAT * len(sync.reads))
    others = len(blocks) + (outer & ~links.rooted)
    at = int(outer)
    return collective(sync.kind, others, blocks, links.rooted, links.latency[at], links.slowest[at])
