"""Which teams write the most texts. Pure: prices steps, measures nothing.

Knows ranks, memory, and how long texts are; how the ranks of a team write together is texts.py's. A rank that can hold the model and what
is kept of its texts exchanges nothing; ranks that cannot hold it together.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hepti_mpi.cluster import profile as profiles
from hepti_mpi.cluster.profile import ClusterProfile, NodeProfile
from hepti_mpi.errors import CapacityError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning import decoding, staging, texts
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.subsets import firsts
from hepti_mpi.planning.teams import GAIN, crowded
from hepti_mpi.program.placement import Placement, Stage, Team
from hepti_mpi.program.plan import WIRES

MOST_TEXTS = 1024  # that are shared out one by one; more are as many times these


@dataclass(frozen=True)
class Writer:
    """A team that writes. `prompt_seconds`: until it has taken in a prompt; `steps`: seconds of a step in which 1, 2, ... texts grow by a
    token, up to as many as it writes at once; `answer`: tokens of a text."""

    team: Team
    prompt_seconds: float
    steps: tuple[float, ...]
    answer: int

    @property
    def slots(self) -> int:
        """How many texts it writes at once."""
        return len(self.steps)

    @property
    def rate(self) -> float:
        """Tokens a second, when it always has as many texts as it can write at once."""
        return self.slots * self.answer / self.seconds(self.slots)

    def seconds(self, texts: int) -> float:
        """Return the seconds that so many texts take."""
        rounds, rest = divmod(texts, self.slots)
        growing = rounds * self.steps[-1] + (self.steps[rest - 1] if rest else 0.0)
        return texts * self.prompt_seconds + self.answer * growing


@dataclass(frozen=True)
class Writers:
    """The teams that were chosen for `texts` texts, the fastest first. `together`: what all ranks together take."""

    every: tuple[Writer, ...]
    together: Writer
    texts: int

    @property
    def placement(self) -> Placement:
        return Placement(tuple(one.team for one in self.every))

    @property
    def rate(self) -> float:
        return sum(one.rate for one in self.every)

    @property
    def seconds(self) -> float:
        """Until the last text is written, each by the team that will have written it first."""
        return shared(self.every, self.texts)


def arranged(
    spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand, one: Placement, room: tuple[int, int],
    forced: bool = True,
) -> Writers | None:  # fmt: skip
    """Return the teams that have written texts of `demand` first, None where it would be one team.

    `one`: by which all ranks write together; `room`: texts that each team writes at once, and all of them. Ranks of one host read weights
    through one memory, so that as many of them write hardly more: they are teams of their own only where that is `forced`.
    """
    ranks, (slots, texts) = tuple(range(len(profile.nodes))), room
    together = _writer(spec, profile, demand, one.teams[0], slots)
    crowds = [ranks] if profile.emulated else [ranks, tuple(firsts(profile.hosts))] if forced else [tuple(firsts(profile.hosts))]
    found = [_best(spec, source_hash, profile, demand, crowd, slots) for crowd in dict.fromkeys(crowds)]
    every = [Writers(writers, together, texts) for writers in found if len(writers) > 1]
    return min(every, key=lambda one: one.seconds, default=None)


def worth(found: Writers) -> bool:
    """Tell whether texts are written sooner by teams than by all ranks together."""
    return GAIN * found.seconds <= found.together.seconds(found.texts)


def shared(writers: Sequence[Writer], texts: int) -> float:
    """Return the seconds until so many texts are written, each by the team that will have written it first."""
    times, some = max(1.0, texts / MOST_TEXTS), min(texts, MOST_TEXTS)
    ends = [(one.seconds(1), place, 1) for place, one in enumerate(writers)]  # with one more text
    heapq.heapify(ends)
    last = 0.0
    for _ in range(some):
        last, place, count = heapq.heappop(ends)
        heapq.heappush(ends, (writers[place].seconds(count + 1), place, count + 1))
    return times * last


def _best(
    spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand, crowd: tuple[int, ...], slots: int
) -> tuple[Writer, ...]:  # fmt: skip
    """Return teams of the ranks of a crowd, all of which compute at once."""
    profile = crowded(profile, crowd)
    known: dict[tuple[NodeProfile, int | None], Team | None] = {}
    mode = demand.mode.replace("auto", "packed")  # weights that are read from a file again and again are none

    def team_of(ranks: Sequence[int]) -> Team | None:
        limits = None if demand.limits is None else tuple(demand.limits[rank] for rank in ranks)
        own = profiles.of_ranks(profile, ranks)
        try:
            asked = replace(demand, limits=limits, mode=mode, wires=WIRES[:1])  # what a short wire changes is checked of one plan only
            found = texts.decide("hepti", spec, source_hash, own, asked, slots)
        except CapacityError:
            return None
        (team,) = found.placement.teams
        return Team(tuple(replace(stage, members=tuple(ranks[one] for one in stage.members)) for stage in team.stages))

    def lone(rank: int) -> Team | None:
        kind = replace(profile.nodes[rank], host=""), None if demand.limits is None else demand.limits[rank]
        if kind not in known:
            known[kind] = team_of((rank,))
        team = known[kind]
        if team is None:
            return None
        return Team((Stage((rank,), replace(team.stages[0].plan, hosts=(profile.hosts[rank],))),))

    alone = {rank: team for rank in crowd if (team := lone(rank)) is not None}
    parts = list(alone.values())
    left = sorted((rank for rank in crowd if rank not in alone), key=lambda rank: -profile.nodes[rank].memory_bytes)
    while left:  # the fewest with the most memory that hold it together, again and again
        some = next(((team, n) for n in range(2, len(left) + 1) if (team := team_of(left[:n])) is not None), None)
        if some is None:
            break
        parts.append(some[0])
        left = left[some[1] :]
    writers = (_writer(spec, profile, demand, team, slots) for team in parts)
    return tuple(sorted(writers, key=lambda one: (-one.rate, one.team.lead)))


def _writer(spec: ModelSpec, profile: ClusterProfile, demand: Demand, team: Team, slots: int) -> Writer:
    some = sorted({min(1 << place, slots) for place in range(slots.bit_length() + 1)})
    if len(team.stages) > 1:
        found = staging.of_team(spec, profile, demand, team)
        times, prompt = [staging.grouped(spec, profile, demand, found, count)[0] for count in some], found.next_prompt_seconds
    else:
        (stage,) = team.stages
        own = profiles.of_ranks(profile, stage.members)
        times = [decoding.step_seconds(spec, own, demand, stage.plan, count) for count in some]
        prompt = decoding.prompt_seconds(spec, own, demand, stage.plan)
    steps = np.interp(range(1, slots + 1), some, times)
    return Writer(team, prompt, tuple(map(float, steps)), demand.answer)
