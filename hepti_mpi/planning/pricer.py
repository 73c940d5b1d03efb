"""What a program costs on given machines, in seconds and bytes, for many plans at once. Pure: reads a profile, runs nothing.

Knows how fast ranks compute; what an exchange puts on links is traffic.py's, who waits for whom walk.py's. Arrays: [active ranks, plans].
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import fields, replace
from functools import reduce
from itertools import takewhile
from typing import Any

import numpy as np

from hepti_mpi import splits
from hepti_mpi.cluster.profile import EMULATION, STEP_ROWS, ClusterProfile
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.edges import edge_seconds
from hepti_mpi.planning.members import Members, some_of
from hepti_mpi.planning.prices import Price, Prices
from hepti_mpi.planning.traffic import Facts, Handling, Links, Shares, Traffic, facts_of, together, traffic
from hepti_mpi.planning.walk import Computing, Together, Walk
from hepti_mpi.planning.work import bytes_of_number
from hepti_mpi.program.buffers import Laid
from hepti_mpi.program.grouping import shared
from hepti_mpi.program.operation import Op, Share
from hepti_mpi.program.ops import AddNorm, Mix
from hepti_mpi.program.plan import WIRES, Plan
from hepti_mpi.program.steps import Compute, Program, Step, Sync

PADDING = 0.25  # of what a call takes the nodes take that lay heads out of which a rank has a part of a group
DIGITS = 12  # of seconds; what is behind them is rounding
EVENLY = ("even_reduce", "even_gather")  # the two exchanges that a whole sum is on emulated boards: engine.routes.in_turn

Kind = tuple[object, ...]  # of a step: what it has in common with those of other layers and tiles that do the same
Done = Computing | Traffic | Together  # what a step does
Walked = tuple[Step, Kind, tuple[str, ...], tuple[str, ...]]  # a step, its kind, what it reads and what it writes


class Pricer:
    """Prices programs for one model, cluster and request size. `attended`: rows that each row attends to; `requests`: in the batch;
    `cache`: the numbers of caches where rows are of texts, one of each."""

    def __init__(
        self, spec: ModelSpec, profile: ClusterProfile, rows: int, attended: float | None = None, requests: int | None = None,
        cache: str | None = None,
    ) -> None:  # fmt: skip
        self.spec, self.profile, self.rows = spec, profile, rows
        self.attended: float = rows if attended is None else attended
        # rows as attention lays them out, for each that there is: of requests that are as long as they must be to attend to so many; those
        # of one, and of texts, which are told as one here, are laid out as they are
        self.padding = 1.0 if requests in (None, 1) else max(1.0, float(np.sqrt(requests * self.attended / rows)))
        requests = requests or max(1, round(rows / self.attended))  # of equal length
        self.lengths = splits.even(rows, requests)
        self.emulated = EMULATION in profile.versions
        nodes = [*profile.nodes, *(node.alone or node for node in profile.nodes)]  # as places() counts them
        self.attention, self.arrange = np.array([node.attention(cache) for node in nodes]).T
        self.element = np.array([node.element_seconds for node in nodes])
        self.activation = np.array([node.activation_seconds for node in nodes])
        self.cast = np.array([node.cast_seconds for node in nodes])
        self.segment = np.array([node.segment_seconds for node in nodes])
        beside = [None if cache is None else node.beside(rows) for node in nodes]
        apart = np.array([one is None for one in beside])  # elements and activations are priced by themselves
        self.beside = np.array([one or 0.0 for one in beside]) if not apart.all() else None
        self.speeds = {"attention": self.attention, "arranged": self.arrange, "elements": self.element * apart,
                       "activations": self.activation * apart, "casts": self.cast}  # fmt: skip
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
        self.head_start = np.array([node.head_start_bytes for node in profile.nodes])  # bytes that pass an idle link at once
        by_bytes = bytes_of_number(spec) if any(node.table_seconds for node in nodes) else 0.0
        # every rank's curve at every whole number of rows up to the request, so that a lookup is an index
        self.gemm = np.stack([self._curve(node.gemm_rows, node.gemm_seconds_per_weight) for node in nodes])
        scored = 1 if cache is None else rows  # the last row of a prompt, or one of each text
        tables = np.array([self._curve(STEP_ROWS, node.table_seconds)[scored] * by_bytes if node.table_seconds else 0.0 for node in nodes])
        self.reading = np.where(tables > 0, tables, self.gemm[:, scored])  # seconds for each number of a table that these are multiplied by
        byte = self.gemm[:, 1] / bytes_of_number(spec)  # of a product of one row, which reads all weights once
        self.handling = Handling(self.segment, byte, self.cast)
        self.edges = edge_seconds(spec, profile.edges, self.lengths)
        self.sorts: dict[Kind, int] = {}  # of what Computes do: a number each, which is compared sooner
        self.laid: dict[int, Laid] = {}  # by id, which stays a program's own while that is kept
        self.known: dict[int, list[Walked]] = {}  # by the same
        self.each_kind: dict[int, dict[Kind, Step]] = {}
        self.begun: dict[tuple[int, int], int] = {}  # by ids of two of them
        self.counted: dict[tuple[int, ...], list[tuple[Kind, list[int], float, float]]] = {}  # by ids of one or two
        self.facts: dict[tuple[Kind, ...], Facts] = {}  # of exchanges that are worked out at once
        self.groups: dict[tuple[int, ...], Members] = {}  # by active ranks

    def of_batch(self, lengths: Sequence[int]) -> "Pricer":
        """Return the pricer of a batch of requests of `lengths` rows, together at most as many as this one is for."""
        other = copy(self)
        other.groups = {}
        other.lengths, other.rows = tuple(lengths), sum(lengths)
        other.padding = len(lengths) * max(lengths) / other.rows  # attention is computed as if all were as long as the longest
        other.attended = other.padding * max(lengths)
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

    def speeds_at(self, places: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return seconds per unit of each kind of work, as of OpWork, on as many `rows`. `places`: of the ranks' speeds."""
        return {name: speed[places] for name, speed in self.speeds.items()} | {"weights": self.gemm[places, rows]}

    def op_seconds(self, ops: Sequence[Op], share: Share, speeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return seconds of `ops`, at `speeds`, without the fixed cost of the run."""
        amounts: dict[str, Any] = {}  # in the order of OpWork, so that a sum is the same whatever the order of operations
        for work in [op.work(share) for op in ops]:
            for name, amount in zip(work._fields, work):
                if not _none(amount):
                    amounts[name] = amounts[name] + amount if name in amounts else amount
        spent = np.zeros(1)
        for name, speed in speeds.items():
            if name in amounts:
                spent = spent + speed * amounts[name]
        return spent

    def price(self, program: Program, plan: Plan) -> Price:
        """Return what `program` costs."""
        return self.prices([plan], program)[0]

    def prices(self, plans: Sequence[Plan], *programs: Program, times: float = 0.0) -> list[Price]:
        """Return what a program, which is that of all `plans`, costs on as many ranks each; with a second one of more layers, what it costs
        with `times` their difference more."""
        batch = self.batch(plans)
        return batch.prices(*programs, times=times).each(batch.ranks, plans[0].ranks)

    def batch(self, plans: Sequence[Plan]) -> "Batch":
        """Return what prices `plans`, on as many active ranks and in as many tiles each, by MPI's collectives all or none of them."""
        return Batch(self, [plan.active for plan in plans], plans[0], shares_of(plans, self.lengths))

    def total(self, walks: Sequence[Walk], compute: np.ndarray, load: np.ndarray, times: float = 0.0) -> np.ndarray:
        """Return the seconds of each plan, [plans], of a program, or with `times` the layers more that a second one has. `compute`: seconds
        that each rank computes in all; `load`: of links, as of a Traffic."""
        return extended([walk.clock.max(axis=0) for walk in walks], times) + self.edges

    def members(self, active: tuple[int, ...]) -> Members:
        """Return what plans on the same active ranks share."""
        if active not in self.groups:
            self.groups[active] = Members(self, active)
        return self.groups[active]

    def walked(self, program: Program) -> list[Walked]:
        """Return each step with its kind, what it reads and what it writes: worked out once, since a program is priced for many plans."""
        if id(program) not in self.known:
            kinds: dict[int, Kind] = {}  # of the operations of a Compute, which are the same ones in every tile
            self.known[id(program)] = walked = list[Walked]()
            for step, names in zip(program, self.laid_out(program).interfaces):
                if isinstance(step, Compute):
                    if id(step.ops) not in kinds:
                        kinds[id(step.ops)] = step.distribution, self.sorts.setdefault(tuple(op.sort() for op in step.ops), len(self.sorts))
                    walked.append((step, kinds[id(step.ops)], *names))
                else:
                    walked += [(part, (part.kind, len(part.reads), part.width, part.wire), *names) for part in self.parts(step)]
        return self.known[id(program)]

    def sorted_out(self, program: Program) -> dict[Kind, Step]:
        """Return a step of each kind in a program."""
        if id(program) not in self.each_kind:
            self.each_kind[id(program)] = {kind: step for step, kind, *_ in self.walked(program)}
        return self.each_kind[id(program)]

    def laid_out(self, program: Program) -> Laid:
        """Return where the values of a program live, worked out once."""
        if id(program) not in self.laid:
            self.laid[id(program)] = Laid(program)
        return self.laid[id(program)]

    def parts(self, step: Sync) -> tuple[Sync, ...]:
        """Return the exchanges that one is: a whole sum of emulated boards, or in a short type, is two."""
        if step.kind == "allreduce" and (self.emulated or step.wire != WIRES[0]):
            return tuple(replace(step, kind=kind) for kind in EVENLY)
        return (step,)

    def common(self, one: Program, other: Program) -> int:
        """Return with how many steps that do the same with the same values both programs begin."""
        key = id(one), id(other)
        if key not in self.begun:
            pairs = zip(self.walked(one), self.walked(other))
            self.begun[key] = sum(1 for _ in takewhile(lambda pair: pair[0][1:] == pair[1][1:], pairs))
        return self.begun[key]

    def how_often(self, *programs: Program) -> list[tuple[Kind, list[int], float, float]]:
        """Return what a program does, each kind with the tiles in which it does that equally often, how often, and how much more often a
        second one does."""
        key = tuple(map(id, programs))
        if key not in self.counted:
            counts = [Counter((kind, step.tile) for step, kind, *_ in self.walked(program)) for program in programs]
            alike: dict[tuple[Kind, float, float], list[int]] = {}
            for kind, tile in dict.fromkeys(key for each in counts for key in each):  # a segment of more layers is another kind
                count = counts[0][kind, tile]
                alike.setdefault((kind, count, counts[-1][kind, tile] - count), []).append(tile)
            self.counted[key] = [(kind, tiles, count, more) for (kind, count, more), tiles in alike.items()]
        return self.counted[key]


def _none(amount: Any) -> bool:
    return isinstance(amount, int) and not amount


def extended(values: Sequence[np.ndarray], times: float) -> np.ndarray:
    """Return a value of a program, and `times` the difference to that of a program with more layers, if there is one."""
    one, *longer = values
    return one + times * (longer[0] - one) if longer else one


def shares_of(plans: Sequence[Plan], lengths: Sequence[int]) -> Shares:
    """Return what the active ranks of `plans` have of a batch of requests of `lengths` rows."""
    active = np.array([plan.active for plan in plans])
    counts = np.array([plan.counts(lengths) for plan in plans], dtype=np.int64)
    every = (np.array([[getattr(plan, what)] for plan in plans], dtype=np.int64) for what in ("heads", "columns"))
    plan = np.arange(len(plans))
    return Shares(*(one[plan, :, active.T].transpose(0, 2, 1) for one in (counts, *every)))


class Batch:
    """Plans on as many active ranks each, which do the same steps, or parts of which do: `like` is one of them."""

    def __init__(self, pricer: Pricer, active: Sequence[tuple[int, ...]], like: Plan, shares: Shares) -> None:
        self.pricer, self.shares = pricer, shares
        first, *others = [pricer.members(one) for one in (active if len(set(active)) > 1 else active[:1])]
        self.ranks, self.places, self.crowding, self.links = first.ranks, first.places, first.crowding, first.links
        if others:
            groups = [first, *others]
            self.ranks, self.places, self.crowding = (
                np.concatenate([getattr(group, name) for group in groups], axis=-1) for name in ("ranks", "places", "crowding")
            )
            parts = zip(*([getattr(group.links, field.name) for field in fields(Links)] for group in groups))
            self.links = Links(*(np.concatenate(part, axis=-1) for part in parts))
        self.in_turn = like.collectives == "mpi"
        self.by_messages = like.divided and (not self.in_turn or pricer.emulated or like.shortest != WIRES[0])
        own = shares.rows
        every = {"rows": own, "full": np.zeros_like(own) + own.sum(axis=0)}
        heads = shares.heads, shares.columns, *shared(shares.heads, pricer.spec.group)
        self.parts = {name: Share(rows, rows * pricer.attended, *heads, rows * pricer.padding) for name, rows in every.items()}
        places = self.places[:, None]
        self.segment = pricer.segment[places]
        self.speeds = {name: pricer.speeds_at(places, share.rows) for name, share in self.parts.items()}
        self.known: dict[Kind, Sequence[Done]] = {}  # by tile; layers repeat: price each kind of step once

    def prices(self, *programs: Program, times: float = 0.0) -> Prices:
        """Return what a program costs, or one with `times` the layers more that a second one has."""
        self.learn(*programs)
        walk, (one, *longer) = self.walk(), map(self.pricer.walked, programs)
        walks = [walk]
        if longer:  # what both begin with is walked once
            common = self.pricer.common(*programs)
            self._go(walk, one[:common])
            one, walks = one[common:], [walk, walk.fork()]
            self._go(walks[1], longer[0][common:])
        self._go(walk, one)
        compute, load = self._work(*programs, times=times)
        handled, blocked = (extended([sum(getattr(walk, what), walk.zeros) for walk in walks], times) for what in ("handled", "blocked"))
        if walk.blocked:  # it depends on when links rested
            load[:-1] += blocked[0]
        wait = np.round(extended([walk.clock for walk in walks], times) - compute - handled, DIGITS) + 0.0  # not -0.0
        ranks = len(compute)
        busy, wire = load[: 2 * ranks].max(axis=0), load[2 * ranks : -1].max(axis=0)
        return Prices(self.pricer.total(walks, compute, load, times), compute, wait, wire, load[-1], busy)

    def _work(self, *programs: Program, times: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Return the seconds that each rank computes in all, and what links are loaded with by messages, as of a Traffic; of MPI's
        collectives the bytes."""
        compute = np.zeros(self.shares.rows[:, 0].shape)
        load = np.zeros((3 * len(compute) + 1, self.shares.rows.shape[-1]))
        for kind, tiles, often, more in self.pricer.how_often(*programs):
            some, count = [self.known[kind][tile] for tile in tiles], often + times * more
            if computing := [one.seconds for one in some if isinstance(one, Computing)]:
                compute += count * reduce(np.add, computing)
            elif sent := [one.load for one in some if isinstance(one, Traffic)]:
                load += count * reduce(np.add, sent)
            else:
                load[-1] += count * reduce(np.add, [one.moved for one in some if isinstance(one, Together)])
        return compute, load

    def least(self, *programs: Program, times: float = 0.0) -> np.ndarray:
        """Return what a program takes at the least, [plans]: the most that a rank computes, or that a link carries, were the other free.
        What cuts rows into tiles waits less, and computes and sends as much."""
        self.learn(*programs)
        compute, load = self._work(*programs, times=times)
        for kind, tiles, often, more in self.pricer.how_often(*programs):
            if waited := [one.seconds for one in (self.known[kind][tile] for tile in tiles) if isinstance(one, Together)]:
                compute += (often + times * more) * reduce(np.add, waited)
        carried = load[: 2 * len(compute)].max(axis=0) - self.links.ahead.max(axis=0)  # of a link that rested, once
        return np.asarray(np.maximum(compute.max(axis=0), carried) + self.pricer.edges)

    def of(self, numbers: Sequence[int], *programs: Program) -> "Batch":
        """Return the batch of some of the plans, which do the steps of `programs`, as far as these are known."""
        part, kinds = copy(self), {kind for program in programs for kind in self.pricer.sorted_out(program)}
        part.ranks, part.links, part.shares = (some_of(values, numbers) for values in (self.ranks, self.links, self.shares))
        part.known = {kind: [some_of(one, numbers) for one in self.known[kind]] for kind in kinds}
        return part

    def walk(self) -> Walk:
        """Return clocks at the begin of a batch."""
        return Walk(self.shares.rows[:, 0].shape, self.links, self.pricer.exchange, self.in_turn and self.by_messages)

    def steps(self, program: Program, walk: Walk) -> Iterator[tuple[Step, Done]]:
        """Do the steps of a program on the clocks of `walk`, and yield each, with what it takes, when it is done."""
        self.learn(program)
        for walked in self.pricer.walked(program):
            self._go(walk, [walked])
            yield walked[0], self.known[walked[1]][walked[0].tile]

    def _go(self, walk: Walk, steps: Sequence[Walked]) -> None:
        for step, kind, reads, writes in steps:
            known = self.known[kind][step.tile]
            if isinstance(known, Computing):
                walk.computed(known, reads, writes)
            elif isinstance(known, Traffic):
                walk.sent_by_messages(known, reads, writes, last=kind[0] == "gatherv")
            else:
                walk.exchanged_together(known)

    def learn(self, *programs: Program) -> None:
        """Work out what steps do that are not known yet, all exchanges at once."""
        pricer, links = self.pricer, self.links.of_exchanges
        new = {kind: step for program in programs for kind, step in pricer.sorted_out(program).items() if kind not in self.known}
        sent = {kind: step for kind, step in new.items() if isinstance(step, Sync) and self.by_messages and step.kind != "slice"}
        if sent:
            fixed = pricer.start, pricer.start_per_byte, pricer.exchange
            how = Handling(*(seconds[self.places] for seconds in pricer.handling))
            if (kinds := tuple(sent)) not in pricer.facts:
                pricer.facts[kinds] = facts_of(list(sent.values()))
            found = traffic(pricer.facts[kinds], self.shares, pricer.spec.heads, links, not self.in_turn, fixed, how)
            self.known.update(zip(sent, found))
        for kind, step in new.items():
            if isinstance(step, Compute):
                self.known[kind] = self._computing(step)
            elif kind not in sent:
                rested = step.kind in ("allgatherv", "allreduce")
                seconds, moved = (values[0] for values in together(step, self.shares, links))
                self.known[kind] = [Together(one, some, rested) for one, some in zip(seconds, moved)]

    def _computing(self, step: Compute) -> list[Computing]:
        """Return what a Compute takes, of each tile."""
        share, speeds = self.parts[step.distribution], self.speeds[step.distribution]
        seconds = self.pricer.op_seconds(step.ops, share, speeds) * self.crowding[:, None]
        seconds = seconds + self.segment * (share.rows > 0)
        if self.pricer.spec.group > 1 and any(isinstance(op, Mix) and op.axis for op in step.ops):
            seconds = seconds + PADDING * self.segment * (share.attending > share.heads)
        if self.pricer.beside is not None:
            layers = sum(1 if op.block.parallel else 0.5 for op in step.ops if isinstance(op, AddNorm))
            seconds = seconds + layers * self.pricer.beside[self.places[:, None]] * self.crowding[:, None] * (share.rows > 0)
        every = np.ascontiguousarray(seconds.swapaxes(0, 1))
        return [Computing(one, None if one.all() else np.where(one > 0, 0.0, np.inf)) for one in every]
