"""Which layers each rank has where the rows of a text pass from rank to rank. Pure: prices, measures nothing.

A step of one text is in one stage at a time: so the fastest ranks get as many layers as they hold. Steps of several texts follow each other
through the stages: so each gets as many as it computes in the time of the others. Rank 0 embeds and chooses; the last stage finds
the words.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from hepti_mpi import splits
from hepti_mpi.cluster import profile as profiles
from hepti_mpi.cluster.profile import ClusterProfile, NodeProfile
from hepti_mpi.comm.sizes import FLOAT
from hepti_mpi.errors import CapacityError, PlanError
from hepti_mpi.models.spec import ModelSpec, layer_bytes
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.memory import activation_bytes, activation_widths, cache_bytes, less_cache, making_bytes, word_bytes
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.planning.sharing import WORTH, are_crowded
from hepti_mpi.planning.subsets import firsts
from hepti_mpi.planning.work import word_numbers
from hepti_mpi.program.buffers import Laid
from hepti_mpi.program.build import make_program
from hepti_mpi.program.placement import Placement, Stage, Team
from hepti_mpi.program.plan import Plan
from hepti_mpi.wording import counted

MOST_LAST = 4  # of the fastest ranks that are tried with the words
NAMES = ("stages", "layers")  # ways: the soonest stages, and layers by memory, as exo and llama.cpp give them to devices


@dataclass(frozen=True)
class Staged:
    """Stages, `counts` of whose layers are on `ranks`, in their order. `stage_seconds`: of a step of one row on each of these;
    `hop_seconds`: in which it travels from rank 0 through all and back; `prompt_seconds`: until a prompt is in and the word behind it
    known, and `next_prompt_seconds`: until one behind it is, since the first stage takes it in meanwhile; `memory`: bytes per rank of the
    job."""

    placement: Placement
    ranks: tuple[int, ...]
    counts: tuple[int, ...]
    stage_seconds: tuple[float, ...]
    hop_seconds: float
    prompt_seconds: float
    next_prompt_seconds: float
    memory: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """Seconds in which one text gets one more token."""
        return sum(self.stage_seconds) + self.hop_seconds

    def prompts_seconds(self, texts: int) -> float:
        """Return the seconds until so many prompts are in."""
        return self.prompt_seconds + (texts - 1) * self.next_prompt_seconds


def check(demand: Demand, ranks: int) -> None:
    """Raise PlanError for what stages cannot be asked of so many ranks, whatever they turn out to be."""
    if demand.shares is not None or demand.layout is not None:
        raise PlanError("stages have their own rule for layers; leave out --layout and --shares")
    demand.check(ranks)


def staged(name: str, spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand, texts: int = 1) -> Staged:
    """Return the stages by which as many `texts` at once are written soonest; by the name "layers" those of layers by memory.

    Raises CapacityError where none fits, PlanError where something is forced that is not for stages.
    """
    check(demand, len(profile.nodes))
    if splits.alone(profile.nodes) or spec.layers < 2:
        raise PlanError(f"stages need two ranks and two layers; here are {counted(len(profile.nodes), 'ranks')}, "
                        f"{spec.name} has {counted(spec.layers, 'layers')}")  # fmt: skip
    search = _Stages(spec, source_hash, profile, demand)
    found = list(search.by_memory() if name == "layers" else search.every())
    if not found:
        raise search.refusal()
    return min(found, key=lambda one: search.whole(one, texts) * factor(one, profile))


def factor(found: Staged, profile: ClusterProfile) -> float:
    """Return how many times as long as priced stages count: ranks of one host have nobody to wait for where one of them has its cores."""
    return WORTH if are_crowded(found.ranks, profile) else 1.0


def grouped(spec: ModelSpec, profile: ClusterProfile, demand: Demand, found: Staged, texts: int) -> tuple[float, int]:
    """Return the seconds in which so many texts get one more token each, and in how many groups, one behind the other, they go through the
    stages for that."""
    search = _Stages(spec, "", profile, demand)
    return search.grouped(found, texts)


def of_team(spec: ModelSpec, profile: ClusterProfile, demand: Demand, team: Team) -> Staged:
    """Return what the stages of a team take."""
    counts = tuple(len(stage.plan.layers) for stage in team.stages)
    return _Stages(spec, "", profile, demand).made(tuple(stage.lead for stage in team.stages), counts)


class _Stages:
    def __init__(self, spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand) -> None:
        self.spec, self.source_hash, self.profile, self.demand = spec, source_hash, profile, demand
        self.mode = "mapped" if demand.mode == "mapped" else "packed"
        paged = replace(demand, mode=self.mode).paged
        held, self.making = layer_bytes(spec, paged), making_bytes(spec, paged)
        kept = (demand.kept or 0) * cache_bytes([layer.attention for layer in spec.each()], spec.kv_heads, demand.cache)
        self.layer_bytes = sum(held.values()) + -(-kept // spec.layers)
        self.word_bytes = word_bytes(spec, paged)
        self.paces: dict[tuple[NodeProfile, int, str | None], _Pace] = {}

    # memory

    @cached_property
    def inner(self) -> int:
        """Bytes of buffers and values of a stage, whichever layers it has."""
        largest, longest = self.demand.largest or self.demand.rows, self.demand.longest or self.demand.rows
        plan = self.plan(0, range(self.spec.layers))
        widths = activation_widths(Laid(make_program(self.spec, plan, everywhere=True)))
        return int(activation_bytes(self.spec, widths, largest, longest, np.array([largest]), np.ones(1))[0])

    def limit(self, rank: int, ranks: Sequence[int]) -> int:
        """Return the bytes that a rank has, where `ranks` compute."""
        return self.demand.limits[rank] if self.demand.limits is not None else self.node(rank, ranks).memory_bytes

    def most(self, rank: int, ranks: Sequence[int], last: bool) -> int:
        """Return how many layers fit, for the `last` stage beside the words."""
        left = self.limit(rank, ranks) - max(self.inner + last * self.word_bytes, self.making)
        return max(0, min(self.spec.layers, int(left // self.layer_bytes)))

    def refusal(self) -> CapacityError:
        everyone = range(len(self.profile.nodes))
        last = max(everyone, key=lambda rank: self.limit(rank, everyone))
        room = sum(self.most(rank, everyone, rank == last) for rank in everyone)
        paging = self.demand.paging(self.spec)
        mapped = f", run with {paging}, which reads weights from storage while computing," * bool(paging)
        made = ""
        if self.making > self.inner + self.word_bytes:
            made = f", and of all weights {self.making} bytes are in memory while a file of --weights-cache is made or opened"
            mapped = ", run without --weights-cache, if each host has the store," * self.demand.plain(self.spec)
        return CapacityError(
            f"no stages fit: all ranks together have room for {room} of {counted(self.spec.layers, 'layers')}, each of which takes "
            f"{self.layer_bytes} bytes with its keys and values, and {self.word_bytes} are for the words{made}; give more memory or ranks"
            f"{mapped} or make those less with {less_cache(self.demand.cache)}"
        )

    # seconds

    def node(self, rank: int, ranks: Sequence[int]) -> NodeProfile:
        """Return what is known of a rank where `ranks` compute: who is alone on its host has all cores."""
        node, hosts = self.profile.nodes[rank], self.profile.hosts
        beside = sum(hosts[other] == hosts[rank] for other in ranks) > 1
        return replace(node, alone=None) if beside else replace(node.alone or node, alone=None)

    def stage_seconds(self, ranks: Sequence[int], counts: Sequence[int], rows: int, prompt: bool = False) -> tuple[float, ...]:
        """Return the seconds of a step of so many rows on each stage, the words of one row with the last one's; the rows are of a `prompt`,
        or of as many texts."""
        paces = [self.pace(rank, ranks, rows, prompt) for rank in ranks]
        return tuple(pace.fixed + count * pace.each + (pace.words if place == len(ranks) - 1 else 0.0)
                     for place, (pace, count) in enumerate(zip(paces, counts)))  # fmt: skip

    def pace(self, rank: int, ranks: Sequence[int], rows: int, prompt: bool = False) -> "_Pace":
        node, cache = self.node(rank, ranks), None if prompt else self.demand.cache
        kind = replace(node, host="", memory_bytes=0), rows, cache
        if kind not in self.paces:
            own = replace(profiles.of_ranks(self.profile, (rank,)), nodes=(node,))
            self.paces[kind] = _pace(self.spec, self.plan(rank, range(self.spec.layers)), own, rows, self.demand.attended, cache)
        return self.paces[kind]

    def hops(self, ranks: Sequence[int], rows: int) -> float:
        """Return the seconds in which rows travel from rank 0 through all stages, and what is likeliest back."""
        way = list(ranks) if ranks[0] == 0 else [0, *ranks]
        seconds = 0.0
        for one, other in zip(way, way[1:]):
            rate = self.profile.bytes_per_second[one][other]
            seconds += self.profile.latency_seconds[one][other] + (rows * self.spec.hidden * FLOAT / rate if rate else 0.0)
        return seconds + (self.profile.latency_seconds[ranks[-1]][0] if ranks[-1] != 0 else 0.0)

    def grouped(self, one: Staged, texts: int) -> tuple[float, int]:
        """See above."""
        found = []
        for groups in range(1, min(len(one.ranks), texts) + 1):
            stages = self.stage_seconds(one.ranks, one.counts, -(-texts // groups))
            found.append((max(sum(stages) + one.hop_seconds, groups * max(stages)), groups))
        return min(found)

    def whole(self, one: Staged, texts: int) -> float:
        """Return the seconds of as many texts at once."""
        return one.prompts_seconds(texts) + self.demand.answer * self.grouped(one, texts)[0]

    # candidates

    def every(self) -> Iterator[Staged]:
        """Yield stages on the fastest ranks, on two, three and so on, each of them with the words: as many layers as fit on the fastest,
        and as many as take equally long."""
        everyone = tuple(range(len(self.profile.nodes)))
        for crowd in dict.fromkeys([everyone, tuple(firsts(self.profile.hosts))]):
            yield from self.on_fastest(crowd)

    def on_fastest(self, crowd: tuple[int, ...]) -> Iterator[Staged]:
        """Yield such stages on ranks of a crowd."""
        order = sorted(crowd, key=lambda rank: (self.pace(rank, crowd, 1).each, rank))
        for size in range(2, min(len(order), self.spec.layers) + 1):
            some = order[:size]
            for last in some[:MOST_LAST]:
                ranks = sorted((rank for rank in some if rank != last), key=lambda rank: (rank != 0, some.index(rank)))
                yield from self.filled((*ranks, last))

    def filled(self, ranks: tuple[int, ...]) -> Iterator[Staged]:
        """Yield both divisions of the layers among ranks in this order, where they fit."""
        most = [self.most(rank, ranks, place == len(ranks) - 1) for place, rank in enumerate(ranks)]
        if min(most) < 1 or sum(most) < self.spec.layers:
            return
        paces = [self.pace(rank, ranks, 1) for rank in ranks]
        for even in (False, True):
            counts = [1] * len(ranks)
            for _ in range(self.spec.layers - len(ranks)):
                able = [place for place, count in enumerate(counts) if count < most[place]]
                words = [pace.words * (place == len(ranks) - 1) for place, pace in enumerate(paces)]
                key = [paces[at].each * ((counts[at] + 1) if even else 1) + words[at] * even for at in range(len(ranks))]
                counts[min(able, key=lambda at: key[at])] += 1  # noqa: B023
            yield self.made(ranks, tuple(counts))

    def by_memory(self) -> Iterator[Staged]:
        """Yield the stages of layers in proportion to memory, all ranks in their order."""
        ranks = tuple(range(len(self.profile.nodes)))
        counts = splits.split(self.spec.layers, [self.limit(rank, ranks) for rank in ranks])
        some = [(rank, count) for rank, count in zip(ranks, counts) if count]
        ranks, counts = (tuple(part) for part in zip(*some))
        if all(count <= self.most(rank, ranks, rank == ranks[-1]) for rank, count in some):
            yield self.made(ranks, counts)

    def made(self, ranks: tuple[int, ...], counts: tuple[int, ...]) -> Staged:
        demand, memory = self.demand, [0] * len(self.profile.nodes)
        stages, first = [], 0
        for place, (rank, count) in enumerate(zip(ranks, counts)):
            stages.append(Stage((rank,), self.plan(rank, range(first, first + count))))
            memory[rank] = self.inner + count * self.layer_bytes + (place == len(ranks) - 1) * self.word_bytes
            first += count
        rows = min(demand.prompt, demand.largest or demand.rows) or 1
        chunk, chunks = self.stage_seconds(ranks, counts, rows, prompt=True), -(-demand.prompt // rows)
        following = chunks * max(chunk)
        prompt = sum(chunk) + following - max(chunk) + self.hops(ranks, rows)
        one = self.stage_seconds(ranks, counts, 1)
        total = sum(one) + self.hops(ranks, 1)
        team = Team(tuple(replace(stage, plan=replace(stage.plan, predicted_seconds=total)) for stage in stages))
        return Staged(Placement((team,)), ranks, counts, one, self.hops(ranks, 1), prompt, following, tuple(memory))

    def plan(self, rank: int, numbers: range) -> Plan:
        return Plan.lone(self.spec, self.source_hash, 1, numbers, self.profile.hosts[rank], self.mode)


@dataclass(frozen=True)
class _Pace:
    """What a step takes a rank: `fixed` seconds, `each` for every layer, and those of the `words` of one row."""

    fixed: float
    each: float
    words: float


def _pace(
    spec: ModelSpec, plan: Plan, profile: ClusterProfile, rows: int, attended: int | None, cache: str | None
) -> _Pace:  # fmt: skip
    """`plan`: of all layers on the one rank of `profile`; `cache`: as of a Pricer."""
    pricer = Pricer(spec, profile, rows, attended, 1, cache)
    few, every = (replace(plan, layers=plan.layers[:count], rows=(rows,)) for count in (1, spec.layers))
    one, all_ = (pricer.price(make_program(spec, some, everywhere=True), some).seconds - pricer.edges for some in (few, every))
    each = (all_ - one) / (spec.layers - 1)
    words = float(pricer.reading[pricer.places([0])][0]) * word_numbers(spec)
    return _Pace(max(0.0, one - each), each, words)
