"""Which teams answer the most batches a second. Pure: searches and prices, measures nothing.

Knows ranks, memory and prices of stages; how the layers of one stage are divided is search.py's. A rank that can hold the model alone
exchanges nothing and loses nothing; ranks that cannot make a pipeline, each with as many layers as it computes in the time of the others,
or divide each layer among them where that is sooner.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from hepti_mpi import splits
from hepti_mpi.cluster import profile as profiles
from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.comm.sizes import FLOAT
from hepti_mpi.errors import CapacityError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning import search
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.forecast import Forecast, Shape
from hepti_mpi.planning.memory import activation_bytes, activation_widths
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.planning.reasons import unpacked
from hepti_mpi.planning.sharing import WORTH, are_crowded
from hepti_mpi.planning.subsets import firsts
from hepti_mpi.program.buffers import Laid
from hepti_mpi.program.build import make_program
from hepti_mpi.program.placement import Placement, Stage, Team
from hepti_mpi.program.plan import Plan
from hepti_mpi.wording import counted

MOST_PARTED = 8  # ranks, of which all ways to make teams are tried
MOST_DIVIDED = 4  # ranks of a team that divides layers
ENOUGH = 0.9  # of the rate that ranks would have together: where they reach it otherwise, they are not tried with divided layers
MOST_TRIED = 6  # sets of ranks that are
STEADY = (1, 2)  # layers whose prices say what one more costs
MOST_PRICED = 16  # shapes of batches
GAIN = 1.03  # times the batches a second that teams must promise more than all ranks together
APART = 1.1  # times as much do the threads of a rank when each has batches of its own and waits for no other, at least: 1.19 were measured


@dataclass(frozen=True)
class Choice:
    """A team, and the `seconds` between two of its answers when it always has something to do."""

    team: Team
    seconds: float

    @property
    def rate(self) -> float:
        return 1 / self.seconds


@dataclass(frozen=True)
class Arrangement:
    """The teams that were chosen. `alone`: seconds of a batch on each rank that can hold the model; `others`: batches a second of other
    ways, by what they are; `profile`: of the ranks, when all that are in teams compute at once; `undivided`: batches a second of all ranks
    if they divided each and lost nothing by it, which no division of layers reaches; None where some cannot hold the model alone; `notes`:
    what is to be said of their plans."""

    choices: tuple[Choice, ...]
    alone: dict[int, float]
    others: dict[str, float]
    profile: ClusterProfile
    undivided: float | None = None
    notes: tuple[str, ...] = ()

    def predicted(self, spec: ModelSpec, number: int, shapes: Mapping[Shape, int]) -> float:
        """Return the rows a second of a team that always has something to do, of batches of such shapes, of each so many."""
        stages = self.choices[number].team.stages
        forecasts = [Forecast(spec, profiles.of_ranks(self.profile, stage.members), stage.plan) for stage in stages]
        some = sorted(shapes)[:: -(-len(shapes) // MOST_PRICED)]
        seconds = sum(shapes[shape] * max(one.of_shape(shape) for one in forecasts) for shape in some) * self.part_of(number)
        return sum(shapes[shape] * shape[0] for shape in some) / seconds

    def part_of(self, number: int) -> float:
        """Return how many times as long as its rank, with all of its threads, a team takes for a batch: of those that a rank is."""
        parts = self.placement.apart(self.choices[number].team.lead)
        return parts / APART if parts > 1 else 1.0

    def slowed(self, factors: Sequence[float]) -> "Arrangement":
        """Return it as it is when each rank takes `factors` times as long as it was thought to: what its threads take beside each other
        says nothing of one batch at a time by all of them."""
        choices = [replace(one, seconds=one.seconds * max(factors[rank] for rank in one.team.members)) for one in self.choices]
        slower = replace(self, choices=tuple(choices), profile=profiles.scaled(self.profile, factors))
        alone = {rank: seconds * (factors[rank] if self.placement.apart(rank) < 2 else 1.0) for rank, seconds in self.alone.items()}
        return replace(slower, alone=alone, others={name: value * slower.rate / self.rate for name, value in self.others.items()})

    @property
    def placement(self) -> Placement:
        return Placement(tuple(choice.team for choice in self.choices))

    @property
    def rate(self) -> float:
        """Batches a second."""
        return sum(choice.rate for choice in self.choices)

    def seconds(self, batches: int) -> float:
        """Return the seconds that so many batches take: each goes to the team that will have answered it first."""
        intervals = np.array([choice.seconds for choice in self.choices])
        done = np.zeros(len(intervals))
        for _ in range(batches):
            first = np.argmin(done + intervals)
            done[first] += intervals[first]
        return float(done.max(initial=0.0))


def arranged(spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand, pipeline: bool = False) -> Arrangement:
    """Return the teams that answer the most batches of `demand` a second, one rank of a host where several do not promise far more;
    `pipeline`: all ranks as stages of one team, or the fastest, where there are more than layers.

    A rank that is a team alone becomes several, as many as it has threads and memory for. Raises: CapacityError when no team can hold the
    model.
    """
    crowds = [tuple(range(len(profile.nodes)))]
    lone = tuple(firsts(profile.hosts))  # one rank of each host, with all of its cores
    if lone != crowds[0] and not pipeline:
        crowds.append(lone)
    modes = ("packed", "mapped") if demand.mode == "auto" and demand.limits is None else (demand.mode.replace("auto", "packed"),)
    for mode in modes:
        narrowed = replace(demand, mode=mode, wires=("float32",))  # what a short wire changes is checked of one plan only
        every = [_Teams(spec, source_hash, profile, narrowed, crowd) for crowd in crowds]
        if found := [arrangement for teams in every if (arrangement := teams.apart(pipeline))]:
            break
    if not found:
        search.choose(spec, source_hash, profile, narrowed)  # says what it lacks
        raise CapacityError("no team of ranks can hold the model in stages; leave out --layout")
    whole = all(rank in teams.alone for teams in every for rank in teams.crowd)
    undivided = max(teams.together(teams.crowd) for teams in every) if whole else None
    members = [{choice.team.members for choice in one.choices} for one in found]
    ranks = [{rank for team in teams for rank in team} for teams in members]
    believed = [one.rate / (WORTH if are_crowded(some, profile) else 1.0) for one, some in zip(found, ranks)]
    chosen = found[int(np.argmax(believed))]
    sizes = [(len(teams), len(some)) for teams, some in zip(members, ranks)]
    beside = {f"{counted(several, 'teams')} of {counted(ranks, 'ranks')}": one.rate for (several, ranks), one in zip(sizes, found)}
    notes = tuple(unpacked(spec, [stage.plan for choice in chosen.choices for stage in choice.team.stages], demand.prepacked))
    return replace(chosen, others={**beside, **chosen.others}, undivided=undivided, notes=notes)


class _Teams:
    """Teams of the ranks of one `crowd`, all of which compute at once."""

    def __init__(
        self, spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand, crowd: tuple[int, ...]
    ) -> None:  # fmt: skip
        self.spec, self.source_hash, self.demand, self.crowd = spec, source_hash, demand, crowd
        self.profile = crowded(profile, crowd)
        self.bytes_per_second = np.array(profile.bytes_per_second)
        self.runs: dict[tuple[int, int], Plan | None] = {}
        self.used: dict[int, int] = {}  # bytes of memory on ranks that can hold the model alone
        self.pace = {rank: pace for rank in crowd if (pace := self._pace(rank)) is not None}

    def apart(self, pipeline: bool) -> Arrangement | None:
        """Return the best teams, those of one rank divided among its threads."""
        found = self.best(pipeline)
        if found is None or pipeline or self.profile.emulated:  # an emulated board computes by one thread
            return found
        choices = list[Choice]()
        for choice in found.choices:
            parts = self._parts(choice.team) if choice.team.alone else 1
            choices += [replace(choice, seconds=choice.seconds * parts / (APART if parts > 1 else 1.0))] * parts
        return replace(found, choices=_sorted(choices))

    def _parts(self, team: Team) -> int:
        """Return how many batches a rank can answer at once, each by a thread, where it holds the layers once."""
        node, stage, demand = self.profile.nodes[team.lead], team.stages[0], self.demand
        node, limit = node.alone or node, demand.limits[team.lead] if demand.limits else (node.alone or node).memory_bytes
        largest = demand.largest or demand.rows
        widths = activation_widths(Laid(make_program(self.spec, stage.plan)))
        longest = min(demand.longest or largest, largest)
        each = activation_bytes(self.spec, widths, largest, longest, np.array([largest]), np.ones(1))[0]
        return max(1, min(node.threads, 1 + int((limit - self.used[team.lead]) // each)))

    def best(self, pipeline: bool) -> Arrangement | None:
        """Return the best teams, None when none can hold the model."""
        if pipeline:
            able = sorted(self.pace, key=lambda rank: (self.pace[rank].each, rank))
            choice = self._pipeline(tuple(able[: self.spec.layers]))
            return Arrangement((choice,), self.alone, {}, self.profile) if choice else None
        if len(self.crowd) > MOST_PARTED:
            return self._greedy()
        ranks = {mask: tuple(self.crowd[at] for at in _bits(mask)) for mask in range(1, 1 << len(self.crowd))}
        teams = {mask: self._team(some) for mask, some in ranks.items()}
        best = _parted(teams)
        gains = {mask: self.together(some) - best[mask][0] for mask, some in ranks.items()
                 if 1 < len(some) <= MOST_DIVIDED and not set(some) <= self.alone.keys()}  # fmt: skip
        likely = sorted((mask for mask in gains if gains[mask] > (1 - ENOUGH) * self.together(ranks[mask])), key=lambda mask: -gains[mask])
        for mask in likely[:MOST_TRIED]:
            divided, other = self._divided(ranks[mask]), teams[mask]
            teams[mask] = divided if divided and (other is None or divided.rate > other.rate) else other
        choices = (_parted(teams) if likely else best)[max(ranks)][1]
        return Arrangement(_sorted(choices), self.alone, {}, self.profile) if choices else None

    def _greedy(self) -> Arrangement | None:
        """Every rank that can is a team; of the others, the fewest with the most memory that hold the model together, again and again."""
        choices = [choice for rank in self.crowd if (choice := self._team((rank,)))]
        left = sorted((rank for rank in self.crowd if rank not in self.alone and rank in self.pace), key=lambda rank: -self.pace[rank].most)
        while left:
            count = next((n for n in range(1, len(left) + 1) if sum(self.pace[rank].most for rank in left[:n]) >= self.spec.layers), None)
            choice = None if count is None else self._pipeline(tuple(left[:count]))
            if choice is None:
                break
            choices.append(choice)
            left = left[count:]
        return Arrangement(_sorted(choices), self.alone, {}, self.profile) if choices else None

    # one team

    @cached_property
    def alone(self) -> dict[int, float]:
        """Seconds of a batch on each rank that can hold the model alone."""
        return {rank: pace.of(self.spec.layers) for rank, pace in self.pace.items() if pace.most >= self.spec.layers}

    def _team(self, ranks: tuple[int, ...]) -> Choice | None:
        """Return the best team of just these ranks that does not divide layers."""
        if splits.alone(ranks):
            if ranks[0] not in self.alone:
                return None
            plan = self._run(ranks[0], self.spec.layers)
            return Choice(Team((Stage(ranks, plan),)), self.alone[ranks[0]]) if plan else None
        if set(ranks) <= self.alone.keys():
            return None  # who can hold the model alone gains nothing by dividing it
        return self._pipeline(ranks)

    def together(self, ranks: tuple[int, ...]) -> float:
        """Return the batches a second that ranks would answer if they divided all and exchanged nothing."""
        return sum(1 / self.pace[rank].of(self.spec.layers) for rank in ranks if rank in self.pace)

    def _divided(self, ranks: tuple[int, ...]) -> Choice | None:
        """Return the team of ranks that divide each layer, None where some of them would have no part in it."""
        plan = self._plan(ranks, self.spec)
        if plan is None or plan.predicted_seconds is None or len(plan.active) < len(ranks):
            return None
        return Choice(Team((Stage(ranks, plan),)), plan.predicted_seconds)

    def _plan(self, ranks: tuple[int, ...], spec: ModelSpec, roomy: bool = False) -> Plan | None:
        """Return the plan by which ranks divide the layers of `spec`; `roomy`: as if they had memory for any."""
        limits = self.demand.limits
        limits = None if limits is None else tuple(limits[rank] for rank in ranks)
        demand = replace(self.demand, limits=(1 << 60,) * len(ranks) if roomy else limits)
        profile = profiles.of_ranks(self.profile, ranks)
        try:
            chosen = search.choose(spec, self.source_hash, profile, demand).chosen
        except CapacityError:
            return None
        plan = chosen.plan
        if splits.alone(ranks) and spec.layers == self.spec.layers and not roomy:
            self.used[ranks[0]] = chosen.memory[0]
        if plan.collectives == "mpi":  # which only one thread of a rank may call, and letters come meanwhile
            plan = replace(plan, collectives="own", reduction="reduce_scatter")
            pricer = Pricer(spec, profile, demand.rows, demand.attended)
            plan = replace(plan, predicted_seconds=pricer.price(make_program(spec, plan), plan).seconds)
        return plan

    def _pace(self, rank: int) -> "_Pace | None":
        """Return what layers take on a rank, and how many fit; None where none does."""
        one, two = (self._plan((rank,), replace(self.spec, layers=count), roomy=True) for count in STEADY)
        assert one and two and one.predicted_seconds and two.predicted_seconds
        each = two.predicted_seconds - one.predicted_seconds
        low, high = 0, self.spec.layers + 1
        while low + 1 < high:  # as many as fit, by bisection, the whole model first
            middle = self.spec.layers if high > self.spec.layers else (low + high) // 2
            if self._run(rank, middle) is not None:
                low = middle
            else:
                high = middle
        return _Pace(one.predicted_seconds - each, each, low) if low else None

    def _pipeline(self, ranks: tuple[int, ...]) -> Choice | None:
        """Return the team of ranks that each do a run of layers, the fastest first."""
        if not all(rank in self.pace for rank in ranks) or sum(self.pace[rank].most for rank in ranks) < self.spec.layers:
            return None
        if len(ranks) > self.spec.layers:
            return None
        ordered = sorted(ranks, key=lambda rank: (self.pace[rank].each, rank))
        counts = dict.fromkeys(ordered, 1)
        for _ in range(self.spec.layers - len(ordered)):
            able = [rank for rank in ordered if counts[rank] < self.pace[rank].most]
            counts[min(able, key=lambda rank: self.pace[rank].of(counts[rank] + 1))] += 1
        stages, first, seconds = [], 0, []
        for place, rank in enumerate(ordered):
            plan = self._run(rank, counts[rank])
            assert plan, "fewer layers than fit do not fit"
            stages.append(Stage((rank,), replace(plan, first=first)))
            first += counts[rank]
            seconds.append(self.pace[rank].of(counts[rank]))
            if place + 1 < len(ordered):  # what it hands on travels while it computes the next
                wide = self.bytes_per_second[rank, ordered[place + 1]]
                seconds.append(self.demand.rows * self.spec.hidden * FLOAT / wide if wide else 0.0)
        return Choice(Team(tuple(stages)), max(seconds))

    def _run(self, rank: int, layers: int) -> Plan | None:
        """Return the plan of a rank that does so many layers alone, None where they do not fit."""
        if (rank, layers) not in self.runs:
            self.runs[rank, layers] = self._plan((rank,), replace(self.spec, layers=layers))
        return self.runs[rank, layers]


@dataclass(frozen=True)
class _Pace:
    """What a rank takes alone: `fixed` seconds of a batch and `each` for every layer; `most` layers fit."""

    fixed: float
    each: float
    most: int

    def of(self, layers: int) -> float:
        return self.fixed + layers * self.each


def crowded(profile: ClusterProfile, crowd: Sequence[int]) -> ClusterProfile:
    """Return the profile when all ranks of `crowd` compute at once: those of one host share its cores."""
    shared = [sum(profile.hosts[other] == host for other in crowd) > 1 for host in profile.hosts]
    nodes = [replace(node, alone=None) if both else node for node, both in zip(profile.nodes, shared)]
    factors = [1.0] * len(nodes)
    if not profile.emulated:  # else ranks sleep so much that they share nothing
        wanted = {rank: (nodes[rank].alone or nodes[rank]).threads for rank in crowd}
        for rank in crowd:
            beside = sum(threads for other, threads in wanted.items() if profile.hosts[other] == profile.hosts[rank])
            factors[rank] = max(1.0, beside / nodes[rank].cores)
    return profiles.scaled(replace(profile, nodes=tuple(nodes)), factors)


def _parted(teams: Mapping[int, Choice | None]) -> dict[int, tuple[float, tuple[Choice, ...]]]:
    """Return, for each set of ranks, the batches a second of its best teams, and those; `teams`: by sets, as bits."""
    best: dict[int, tuple[float, tuple[Choice, ...]]] = {0: (0.0, ())}
    for mask in teams:
        lowest = mask & -mask
        best[mask] = best[mask ^ lowest]  # its first rank rests
        for part in _parts(mask):
            choice = teams[part]
            if part & lowest and choice is not None and best[mask ^ part][0] + choice.rate > best[mask][0]:
                best[mask] = best[mask ^ part][0] + choice.rate, (choice, *best[mask ^ part][1])
    return best


def _sorted(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    return tuple(sorted(choices, key=lambda choice: (choice.seconds, choice.team.lead)))


def _bits(mask: int) -> list[int]:
    return [at for at in range(mask.bit_length()) if mask >> at & 1]


def _parts(mask: int) -> Iterator[int]:
    """Yield the parts of a set that are not empty."""
    part = mask
    while part:
        yield part
        part = (part - 1) & mask
