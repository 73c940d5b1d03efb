"""Which ranks answer which batches: teams, each of which answers batches of its own, of stages, each of which does a run of layers.

Knows plans and ranks of a job, and the file of a plan; knows no time and no cost. How the layers of a stage are divided over its members
is its own plan.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from hepti_mpi import splits
from hepti_mpi.documents import read_document, write_document
from hepti_mpi.errors import PlanError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.program import plan as plans
from hepti_mpi.program.plan import WIRES, Plan

FORMAT, FORMAT_VERSION = "hepti-plan", 2
AGAIN = "make it with: python -m hepti_mpi plan --output PLAN.json"


@dataclass(frozen=True)
class Stage:
    """A run of layers on some ranks. `members`: ranks of the job, in the order in which `plan` counts them; the first of them has the
    stage's input and its result."""

    members: tuple[int, ...]
    plan: Plan

    @property
    def lead(self) -> int:
        return self.members[0]

    @property
    def computing(self) -> tuple[int, ...]:
        """Those of its members that hold a part of the layers."""
        return tuple(self.members[rank] for rank in self.plan.active)


@dataclass(frozen=True)
class Team:
    """Ranks that answer a batch together: stage after stage, each on its way to the next while another comes in behind it."""

    stages: tuple[Stage, ...]

    @property
    def lead(self) -> int:
        return self.stages[0].lead

    @property
    def members(self) -> tuple[int, ...]:
        return tuple(rank for stage in self.stages for rank in stage.members)

    @property
    def alone(self) -> bool:
        """Whether it is one rank."""
        return splits.alone(self.members)


@dataclass(frozen=True)
class Placement:
    """The teams of a job; ranks that are in none rest. A rank that is a team alone may be several such teams: each has some of its threads.
    """

    teams: tuple[Team, ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, team after team."""
        return tuple(stage for team in self.teams for stage in team.stages)

    @property
    def rounding(self) -> tuple[str, ...]:
        """What travels in it that rounds values, in words, each once."""
        return tuple(sorted({_runs(stage.plan) for stage in self.stages} - {WIRES[0]}))

    def place(self, rank: int) -> tuple[int, int] | None:
        """Return the number of a rank's first team and that of its stage in it, None where it is in none."""
        found = ((t, s) for t, team in enumerate(self.teams) for s, stage in enumerate(team.stages) if rank in stage.members)
        return next(found, None)

    def apart(self, rank: int) -> int:
        """Return how many teams a rank is."""
        return sum(rank in team.members for team in self.teams)

    @property
    def leads(self) -> tuple[int, ...]:
        """The first ranks of all stages, each once."""
        return tuple(dict.fromkeys(stage.lead for stage in self.stages))

    @property
    def hash(self) -> str:
        """Identify what is done."""
        data = [[[stage.members, stage.plan.hash] for stage in team.stages] for team in self.teams]
        return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]

    @property
    def together(self) -> Plan | None:
        """The plan by which all ranks do all layers together, None where there are several teams or stages."""
        (stage, *others) = self.stages
        return stage.plan if not others and stage.members == tuple(range(stage.plan.ranks)) else None

    @property
    def is_one(self) -> bool:
        """Whether all ranks of the job are for the same batches: by one plan, or in stages, where some may rest."""
        return self.together is not None or (len(self.teams) == 1 and len(self.stages) > 1)

    @property
    def ranks(self) -> int:
        """The ranks of a job that it can be for."""
        return 1 + max(rank for stage in self.stages for rank in stage.members)

    @property
    def hosts(self) -> dict[int, str]:
        """The hosts that it was made for, by the ranks of its teams."""
        return {rank: host for stage in self.stages for rank, host in zip(stage.members, stage.plan.hosts)}

    def plan_of(self, rank: int) -> tuple[Plan, int] | None:
        """Return the plan of a rank's stage and its number there, None where it is in none."""
        place = self.place(rank)
        if place is None:
            return None
        stage = self.teams[place[0]].stages[place[1]]
        return stage.plan, stage.members.index(rank)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises PlanError."""
        write_document(path, self.to_json(), PlanError)

    def to_json(self) -> dict[str, Any]:
        teams = [[{"members": stage.members, "plan": stage.plan.to_json()} for stage in team.stages] for team in self.teams]
        return {"format": FORMAT, "format_version": FORMAT_VERSION, "hash": self.hash, "teams": teams}


def _runs(plan: Plan) -> str:
    return plan.wire if isinstance(plan.wire, str) else " + ".join(f"{one} x{len([*run])}" for one, run in groupby(plan.wire))


def whole(plan: Plan) -> Placement:
    """Return the placement of a plan by which all ranks of a job do all layers together."""
    return Placement((Team((Stage(tuple(range(plan.ranks)), plan),)),))


def load(path: Path) -> Placement:
    """Read a file. Raises PlanError when it is missing, damaged, edited by hand or of another format."""
    data = read_document(path, FORMAT, FORMAT_VERSION, PlanError, AGAIN)
    try:
        found = from_json(data)
        if not all(team.stages for team in found.teams) or not found.teams:
            raise ValueError("it has a team without a stage, or none")
        told = {stage["plan"].get("hash"): plans.from_json(stage["plan"]).hash for team in data["teams"] for stage in team}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise PlanError(f"plan {path} is damaged: {error!r}") from None
    for said, own in ((data.get("hash"), found.hash), *told.items()):
        if said != own:
            raise PlanError(f"plan {path} does not match its own hash (it says {said}, its content gives {own}); {AGAIN}")
    return found


def from_json(data: dict[str, Any]) -> Placement:
    """Rebuild a placement. Raises KeyError, TypeError or ValueError when something is missing or of the wrong kind."""
    return Placement(tuple(Team(tuple(_stages(team))) for team in data["teams"]))


def _stages(team: Any) -> Iterator[Stage]:
    for stage in team:
        yield Stage(tuple(int(rank) for rank in stage["members"]), plans.from_json(stage["plan"]))


def check(placement: Placement, spec: ModelSpec, source_hash: str, ranks: int, start: Callable[[int], str] | None = None) -> None:
    """Refuse a placement that is not one for this model and this number of ranks; `start`: as of plan.check. Raises PlanError."""
    for stage in (stage for team in placement.teams for stage in team.stages):
        plans.check_model(stage.plan, spec, source_hash)  # first: all else may differ for that
    alone = {team.lead for team in placement.teams if team.alone}  # which may be several
    every = [*alone, *(rank for team in placement.teams if not team.alone for rank in team.members)]
    if max(every, default=0) >= ranks:
        raise plans.other_ranks(max(every) + 1, ranks, "this job", start)
    if not placement.teams or len(set(every)) != len(every) or min(every) < 0:
        every = [rank for team in placement.teams for rank in team.members]
        one = "each of which may be in one team, or several alone"
        raise PlanError(f"the plan's teams are of ranks {every}, this job has {ranks}, {one}")
    for number, team in enumerate(placement.teams):
        layers = [layer for stage in team.stages for layer in stage.plan.numbers]
        if layers != list(range(spec.layers)):
            raise PlanError(f"team {number} of the plan has layers {layers}, model {spec.name} has {spec.layers}, each of them once")
        for stage in team.stages:
            if placement.together is None and stage.plan.collectives == "mpi":
                raise PlanError(f"team {number} of the plan has collectives 'mpi', which only one thread of a rank may call")
            plans.check(stage.plan, spec, source_hash, len(stage.members), part=True)
