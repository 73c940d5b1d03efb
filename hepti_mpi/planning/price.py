"""What a program costs on given machines, in seconds and bytes. Pure: reads a profile, runs nothing.

Times are arrays over the active ranks. A Compute advances each rank's clock. With MPI's own collectives a Sync starts when the last
rank arrives and all leave together. With our own, each rank's blocks leave when they are made, queue on its link behind what it sent
before, and a Compute waits for what it reads only. Emulated boards send the blocks of MPI's collectives so, but wait for each.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from hepti_mpi import splits
from hepti_mpi.cluster.profile import EMULATION, ClusterProfile
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.collectives import collective
from hepti_mpi.planning.edges import edge_seconds
from hepti_mpi.planning.rings import around
from hepti_mpi.program.buffers import distributions, interface
from hepti_mpi.program.ops import Op, Share
from hepti_mpi.program.ownership import FULL, ROOT, ROWS, Division, cells
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import Compute, Program, Step, Sync

FLOAT = 4  # bytes
RING_BYTES = 16 << 10  # of a piece that a ring passes on
RING_GAIN = 1.1  # how much less than the direct way a ring must put on the busiest link
EVENLY = ("even_reduce", "even_gather")  # the two exchanges that a whole sum is on emulated boards: engine.routes.in_turn
BOTH_WAYS = 0.5  # of a link's head start that helps an exchange that nothing hides: all send and receive at once (measured in the lab)
FAIR = 16  # ranks up to which blocks of unequal size are told apart

Kind = tuple[object, ...]  # of a step: what it has in common with those of other layers that take as long
Walked = tuple[Step, Kind, tuple[str, ...], tuple[str, ...]]  # a step, its kind, what it reads and what it writes


@dataclass(frozen=True)
class Price:
    """Predicted `seconds` of one batch, from its input on rank 0 to its answers, and, per rank of the job, how those of the layers divide;
    `bytes` on the wire in all; `busy`: seconds that the busiest way, into a rank or out of it, carries."""

    seconds: float
    compute: np.ndarray
    wait: np.ndarray
    wire: float
    bytes: int
    busy: float = 0.0

    def extended(self, longer: "Price", times: float) -> "Price":
        """Return this price and `times` the difference to that of a program with more layers."""

        def along(a: Any, b: Any) -> Any:
            return a + times * (b - a)

        names = ("seconds", "compute", "wait", "wire", "busy")
        seconds, compute, wait, wire, busy = (along(getattr(self, name), getattr(longer, name)) for name in names)
        return Price(seconds, compute, wait, wire, round(along(self.bytes, longer.bytes)), busy)


class Pricer:
    """Prices programs for one model, cluster and request size. `attended`: rows that each row attends to; `requests`: in the batch."""

    def __init__(
        self, spec: ModelSpec, profile: ClusterProfile, rows: int, attended: float | None = None, requests: int | None = None
    ) -> None:  # fmt: skip
        self.spec, self.profile, self.rows = spec, profile, rows
        self.attended: float = rows if attended is None else attended
        requests = requests or max(1, round(rows / self.attended))  # of equal length
        self.lengths = splits.even(rows, requests)
        self.emulated = EMULATION in profile.versions
        nodes = [*profile.nodes, *(node.alone or node for node in profile.nodes)]  # as places() counts them
        self.attention = np.array([node.attention_seconds_per_mac for node in nodes])
        self.element = np.array([node.element_seconds for node in nodes])
        self.activation = np.array([node.activation_seconds for node in nodes])
        self.arrange = np.array([node.arrange_seconds for node in nodes])
        self.cast = np.array([node.cast_seconds for node in nodes])
        self.segment = np.array([node.segment_seconds for node in nodes])
        self.exchange, self.start, self.start_per_byte = profile.exchange_seconds, profile.start_seconds, profile.start_seconds_per_byte
        self.latency = np.array(profile.latency_seconds)
        with np.errstate(divide="ignore"):
            self.seconds_per_byte = np.where(np.eye(len(profile.nodes)) > 0, 0.0, 1.0 / np.array(profile.bytes_per_second))
        hosts = np.array(profile.hosts)
        self.same_host = hosts[:, None] == hosts[None, :]
        with np.errstate(divide="ignore"):
            bandwidth = np.array(profile.bytes_per_second, dtype=np.float64)
            self.near = 1 / np.where(self.same_host & (bandwidth > 0), bandwidth, np.inf).min(axis=1)  # within a host
            far = np.where(self.same_host, 0, bandwidth).max(axis=1)
            self.link = np.where(far > 0, 1 / np.maximum(far, 1e-9), 0.0)  # seconds per byte of the way out of its host
        self.ahead = np.array([node.head_start_bytes for node in profile.nodes]) * self.link  # seconds that an idle link is ahead
        # every rank's curve at every whole number of rows up to the request, so that a lookup is an index
        self.gemm = np.stack([self._curve(node.gemm_rows, node.gemm_seconds_per_weight) for node in nodes])
        self.edges = edge_seconds(spec, profile.edges, self.lengths)
        self.sorts: dict[Kind, int] = {}  # of what Computes do: a number each, which is compared sooner
        self.known: dict[int, tuple[Program, list[Walked]]] = {}  # by id, which stays a program's own while that is kept
        self.groups: dict[tuple[int, ...], _Group] = {}  # by active ranks

    def of_batch(self, lengths: Sequence[int]) -> "Pricer":
        """Return the pricer of a batch of requests of `lengths` rows, together at most as many as this one is for."""
        other = copy(self)
        other.groups = {}
        other.lengths, other.rows = tuple(lengths), sum(lengths)
        other.attended = len(lengths) * max(lengths) ** 2 / other.rows  # attention is computed as if all were as long as the longest
        other.edges = edge_seconds(self.spec, self.profile.edges, lengths)
        return other

    def _curve(self, rows: tuple[int, ...], seconds: tuple[float, ...]) -> np.ndarray:
        at = np.arange(self.rows + 1)
        curve = np.interp(at, rows, seconds)
        if len(rows) > 1 and self.rows > rows[-1]:
            slope = (seconds[-1] - seconds[-2]) / (rows[-1] - rows[-2])
            beyond = at > rows[-1]
            curve[beyond] = seconds[-1] + np.maximum(slope, seconds[-1] / rows[-1] / 2) * (at[beyond] - rows[-1])
        curve[0] = 0.0
        return np.maximum.accumulate(curve)

    def places(self, active: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return where the speeds of `active` ranks are in this pricer's arrays: a rank that alone computes on its host has all of it."""
        ranks = np.asarray(active)
        return ranks + len(self.profile.nodes) * (self.same_host[np.ix_(ranks, ranks)].sum(axis=1) == 1)

    def crowding(self, active: tuple[int, ...]) -> np.ndarray:
        """Return, per rank, how many times longer it computes when `active` ranks do: a host with fewer cores than threads shares them.

        The profile has the time that the cores worked, not the time that a rank waited for one. Emulated boards sleep so much that
        they do not.
        """
        if self.emulated:
            return np.ones(len(self.profile.nodes))
        wanted: dict[str, int] = {}
        for rank, place in zip(active, self.places(active)):
            node = self.profile.nodes[rank]
            threads = node.alone.threads if node.alone is not None and place != rank else node.threads
            wanted[node.host] = wanted.get(node.host, 0) + threads
        return np.array([max(1.0, wanted.get(node.host, 0) / node.cores) for node in self.profile.nodes])

    def op_seconds(self, op: Op, rows: np.ndarray, plan: Plan, ranks: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
        """Return seconds per rank of `ranks` for `op` on `rows` rows each, without the fixed cost of the run. `places`: of their speeds."""
        at = ranks if places is None else places
        heads, columns = np.array(plan.heads)[ranks], np.array(plan.columns)[ranks]
        work = op.work(Share(rows, rows * self.attended, heads, columns))
        spent = self.gemm[at, rows] * work.weights + self.attention[at] * work.attention + self.arrange[at] * work.arranged
        return spent + self.element[at] * work.elements + self.activation[at] * work.activations + self.cast[at] * work.casts

    def price(self, program: Program, plan: Plan) -> Price:
        """Return what `program` costs."""
        if plan.active not in self.groups:
            self.groups[plan.active] = _Group(self, plan.active)
        return _Walk(self.groups[plan.active], plan).price(self.walked(program))

    def walked(self, program: Program) -> list[Walked]:
        """Return each step with its kind, what it reads and what it writes: worked out once, since a program is priced for many plans."""
        if id(program) not in self.known:
            values = distributions(program)
            steps = [(part, step) for step in program for part in (_in_turn(step) if self.emulated else (step,))]
            self.known[id(program)] = program, [(part, self._kind(part), *interface(values, step)) for part, step in steps]
        return self.known[id(program)][1]

    def _kind(self, step: Step) -> Kind:
        if isinstance(step, Sync):
            return step.kind, step.tile, len(step.reads), step.width
        return step.distribution, step.tile, self.sorts.setdefault(tuple(op.sort() for op in step.ops), len(self.sorts))


def _in_turn(step: Step) -> tuple[Step, ...]:
    if isinstance(step, Sync) and step.kind == "allreduce":
        return tuple(replace(step, kind=kind) for kind in EVENLY)
    return (step,)


class _Traffic(NamedTuple):
    """An exchange: per rank, seconds that its link sends, receives, and that starting takes; [from, to], seconds after leaving until
    each block is out (none: a ring, in which each sends `into` bytes first; one: too many ranks to tell them apart); bytes in all.
    `never`: per block that there is not, inf."""

    out: np.ndarray
    into: np.ndarray
    starting: np.ndarray
    blocks: np.ndarray
    moved: int
    never: np.ndarray
    getting: np.ndarray
    received: np.ndarray


class _Group:
    """What all walks on the same active ranks share, with what is known of kinds of steps and the counts that their times depend on."""

    def __init__(self, pricer: Pricer, active: tuple[int, ...]) -> None:
        self.pricer, self.ranks = pricer, np.array(active)
        self.places = pricer.places(self.ranks)
        self.crowding = pricer.crowding(active)[self.ranks]
        grid = np.ix_(self.ranks, self.ranks)
        self.mates = pricer.same_host[grid]
        self.shared = bool(self.mates.sum() > len(self.ranks))
        self.link, self.near = pricer.link[self.ranks], pricer.near[self.ranks]
        self.latency = float(pricer.latency[grid].max()) if len(self.ranks) > 1 else 0.0
        self.slowest = float(pricer.seconds_per_byte[grid].max())
        self.hop = np.full(len(self.ranks), self.slowest) if self.shared else np.maximum(self.link, np.roll(self.link, -1))  # round a ring
        self.ahead = pricer.ahead[self.ranks]
        self.zeros = np.zeros(len(self.ranks))
        self.segments: dict[Kind, tuple[np.ndarray, np.ndarray]] = {}
        self.exchanges: dict[Kind, _Traffic] = {}


class _Walk:
    """One walk of a program with a clock per active rank."""

    def __init__(self, group: _Group, plan: Plan) -> None:
        self.group, self.pricer, self.ranks, self.plan = group, group.pricer, group.ranks, plan
        self.tiles = plan.counts(self.pricer.lengths)
        self.counts = np.array(self.tiles, dtype=np.int64)[:, self.ranks]
        self.heads = np.array(plan.heads)[self.ranks]
        self.float = 2 if plan.wire == "float16" else FLOAT
        zeros = group.zeros
        self.clock, self.compute, self.wait, self.wire, self.moved = zeros, zeros, zeros, zeros, 0
        self.sent, self.received = zeros, zeros  # seconds of each way, in all
        self.up, self.down = zeros, zeros  # when each rank's link would be at rest again
        self.ready: dict[str, np.ndarray] = {}  # when a value is there, per rank
        self.segments: dict[Kind, tuple[np.ndarray, np.ndarray]] = {}  # layers repeat: price each kind of step once
        self.exchanges: dict[Kind, _Traffic] = {}
        self.collectives: dict[Kind, tuple[float, int]] = {}

    def price(self, steps: list[Walked]) -> Price:
        by_messages = len(self.ranks) > 1 and (self.plan.collectives == "own" or self.pricer.emulated)
        for step, kind, reads, writes in steps:
            if isinstance(step, Compute):
                self._compute(step, kind, reads, writes)
            elif not by_messages or step.kind == "slice":
                self._mpi(step, kind)
            else:
                self._own(step, kind, reads, writes)
        size = self.plan.ranks
        spread = [np.zeros(size), np.zeros(size)]
        for target, values_of in zip(spread, (self.compute, self.wait)):
            target[self.ranks] = values_of
        busy = float(max(self.sent.max(), self.received.max()))
        return Price(float(self.clock.max()) + self.pricer.edges, spread[0], spread[1], float(self.wire.max()), self.moved, busy)

    def _compute(self, step: Compute, kind: Kind, reads: tuple[str, ...], writes: tuple[str, ...]) -> None:
        if kind not in self.segments:
            self.segments[kind] = self._segment(step, kind)
        needed, busy = self.segments[kind]
        clock = self.clock
        for name in reads:
            if name in self.ready:
                waits = np.maximum(self.ready[name] - clock, 0) * busy
                self.wait = self.wait + waits
                clock = clock + waits
        self.compute = self.compute + needed
        self.clock = clock + needed
        self._written(writes, self.clock)

    def _segment(self, step: Compute, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
        """Return, per rank, the seconds that a step takes, and whether it has any part in it."""
        at, group, plan = min(step.tile or 0, len(self.tiles) - 1), self.group, self.plan
        axes = {op.axis for op in step.ops}
        tiles = self.tiles if step.tile is None else self.tiles[at]
        key = (kind[0], kind[2:], tiles, plan.heads if "heads" in axes else (), plan.columns if "columns" in axes else ())
        if key not in group.segments:
            counts = self.counts if step.tile is None else self.counts[[at]]
            rows = counts.sum(axis=0) if step.distribution == "rows" else np.full(len(self.ranks), counts.sum())
            needed = sum(self.pricer.op_seconds(op, rows, plan, self.ranks, group.places) for op in step.ops) * group.crowding
            needed = needed + self.pricer.segment[group.places] * (rows > 0)
            group.segments[key] = needed, (needed > 0).astype(np.float64)
        return group.segments[key]

    def _written(self, names: tuple[str, ...], when: np.ndarray) -> None:
        for name in names:
            self.ready[name] = np.maximum(self.ready[name], when) if name in self.ready else when

    def _own(self, sync: Sync, kind: Kind, reads: tuple[str, ...], writes: tuple[str, ...]) -> None:
        """Send each rank's blocks when they are made; the values are there when the last block for the rank has come in."""
        if kind not in self.exchanges:
            self.exchanges[kind] = self._traffic(sync)
        group, (out, into, starting, blocks, moved, never, getting, received) = self.group, self.exchanges[kind]
        begin, in_turn = group.zeros, self.plan.collectives == "mpi"
        ahead = group.ahead * (BOTH_WAYS if in_turn else 1)
        for name in reads:
            if name in self.ready:
                begin = np.maximum(begin, self.ready[name])
        if in_turn:
            begin = np.maximum(begin, self.clock)
        self.moved += moved
        begin = begin + starting  # the rank computes what it can meanwhile
        leave = np.maximum(begin, self.up)  # a link that rested is ahead of its rate: what it then sends is there so much sooner
        if not len(blocks):  # a ring
            piece = group.latency + RING_BYTES * group.hop
            self.up = np.full(len(leave), (leave + out).max()) if blocks.shape[1] else around(leave, into, group.hop, piece)
            self.down = np.roll(self.up, 1)
            done = np.maximum(np.roll(self.up - ahead, 1), begin) + self.pricer.exchange
        else:
            self.up = leave + out
            if len(blocks) > 1:
                each = begin[:, None]
                sent = np.maximum(each, np.maximum(each, leave[:, None]) - ahead[:, None] + blocks)
                last = np.maximum.reduce(sent - never, axis=0, initial=0.0)
                first = np.minimum.reduce(each + never, axis=0)
                if group.shared:  # what comes for a rank keeps the link of all of its host busy
                    first = np.where(group.mates, first[None, :], np.inf).min(axis=1)
            else:  # too many ranks to tell blocks apart
                last = np.full(len(self.ranks), self.up.max(where=out > 0, initial=0))
                first = np.full(len(self.ranks), begin.min(where=out > 0, initial=np.inf))
            self.down = np.where(into > 0, np.maximum(first, self.down) + into, self.down)
            done = np.where(getting, np.maximum(np.maximum(first, self.down - ahead), last) + self.pricer.exchange, 0)
        done = np.maximum(done, begin)
        self.wire = self.wire + np.maximum(out, received)
        self.sent, self.received = self.sent + out, self.received + received
        self._written(writes, done)
        if in_turn:
            self.wait = self.wait + done - self.clock
        if in_turn or sync.kind == "gatherv":
            self.clock = np.maximum(self.clock, done)

    def _traffic(self, sync: Sync) -> _Traffic:
        group, values = self.group, len(sync.reads)
        heads = self.plan.heads if sync.kind in ("to_heads", "to_rows") else ()
        key = (self.plan.collectives, sync.kind, values, sync.width, self.float, self.tiles[sync.tile], heads)
        if key not in group.exchanges:
            out, into, blocks, moved = self._volumes(sync, values)
            sent = out / np.maximum(group.link if group.link.any() else group.near, 1e-15)
            starting = (self.pricer.start + self.pricer.start_per_byte * sent) * (sent > 0)
            getting = np.any(blocks > 0, axis=0) if len(blocks) > 1 else into > 0
            never = np.where(blocks > 0, 0.0, np.inf)
            received = into if len(blocks) else np.roll(out, 1)
            group.exchanges[key] = _Traffic(out, into, starting, blocks, int(moved), never, getting, received)
        return group.exchanges[key]

    def _volumes(self, sync: Sync, values: int) -> tuple[np.ndarray, ...]:
        """Return seconds that each rank's link sends and receives, seconds after leaving until each block is out, and bytes."""
        group, outer, count = self.group, ROOT in (sync.have, sync.want), len(self.ranks)
        size = (FLOAT if outer else self.float) * values  # bytes of a number of every value
        if outer and self.ranks[0]:  # the root is none of them: its link is the way
            total = self.counts[sync.tile].sum() * (count if sync.want == FULL else 1) * size * sync.width
            seconds = np.full(count, total * self.pricer.seconds_per_byte[0, self.ranks].max())
            return seconds, seconds, np.outer(np.ones(count), seconds), np.array(total)
        division = Division(self.counts, self.heads, self.pricer.spec.heads).of(sync.width)
        have, want = (division.held(holding, sync.tile) for holding in (sync.have, sync.want))
        blocks = want.sizes if have.terms else have.sizes  # of each rank, in numbers
        if self._by_ring(sync, blocks):
            return self._round(blocks * float(size), sync.have.terms)
        bytes_ = cells(have, want) * (1.0 - np.eye(count)) * size
        far, near = bytes_ * ~group.mates, bytes_ * group.mates
        out, into = far.sum(axis=1), far.sum(axis=0)
        if group.shared:  # ranks of a host share its link
            out, into = group.mates @ out, group.mates @ into
        out, into = out * group.link + near.sum(axis=1) * group.near, into * group.link + near.sum(axis=0) * group.near
        if count > FAIR:
            return out, into, np.zeros((1, 1)), np.array(bytes_.sum())
        # blocks to several ranks leave side by side: small ones are out first
        blocks = np.minimum(bytes_[:, :, None], bytes_[:, None, :]).sum(axis=2)
        blocks = blocks / np.maximum(bytes_.sum(axis=1), 1)[:, None] * out[:, None]
        return out, into, blocks * (bytes_ > 0), np.array(bytes_.sum())

    def _round(self, blocks: np.ndarray, terms: bool) -> tuple[np.ndarray, ...]:
        """Return the same of blocks, in bytes, that go round a ring."""
        group, total, count = self.group, blocks.sum(), len(blocks)
        if count > FAIR:
            link = np.maximum(group.link, group.near if not group.link.any() else 0) * group.mates.sum(axis=1)
            out = (total - blocks.min()) * link
            return out, out, np.empty((0, 1)), np.array((count - 1) * total)
        own = np.roll(blocks, 1) if terms else blocks  # what each rank sends first
        return (total - np.roll(own, -1)) * group.hop, own, np.empty((0, 0)), np.array((count - 1) * total)

    def _by_ring(self, sync: Sync, blocks: np.ndarray) -> bool:
        """Tell whether blocks go round; sums of short terms do not, since each rank on the way would round again."""
        round_ = (sync.have, sync.want) == (ROWS, FULL) or (sync.have.terms and self.float == FLOAT)
        heavy = (len(blocks) - 1) * blocks.max() > RING_GAIN * (blocks.sum() - blocks.min())
        return bool(heavy) and round_ and self.plan.collectives == "own"

    def _mpi(self, sync: Sync, kind: Kind) -> None:
        """All ranks leave together."""
        if kind not in self.collectives:
            blocks = self.counts[0] * (sync.width * FLOAT * len(sync.reads))
            self.collectives[kind] = collective(sync.kind, self.ranks, blocks, self.pricer.latency, self.pricer.seconds_per_byte)
        seconds, data = self.collectives[kind]
        start = self.clock.max()
        if sync.kind in ("allgatherv", "allreduce"):  # the first blocks leave on links that have rested
            seconds = max(seconds - min(self.group.ahead.min(), start - self.up.max()), 0)
        seconds = seconds + self.pricer.exchange * (data > 0)
        self.wait = self.wait + (start - self.clock)
        self.clock = np.full(len(self.ranks), start + float(seconds))
        if data:
            self.up = self.clock
        self.wire = self.wire + float(seconds)
        self.sent, self.received = self.sent + float(seconds), self.received + float(seconds)
        self.moved += data
