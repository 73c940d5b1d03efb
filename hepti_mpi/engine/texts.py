"""From a method to a rank that takes part in steps of texts: who does what, its slices, and its place among the ranks of its team.

Knows placements and stores; does not know how a step is done.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.engine import pages
from hepti_mpi.engine.decoder import Decoder
from hepti_mpi.engine.fetching import hold
from hepti_mpi.engine.loading import agreed
from hepti_mpi.engine.machine import Machine, patiently, together
from hepti_mpi.engine.stages import Staged
from hepti_mpi.planning import texts
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.memory import FULL
from hepti_mpi.planning.texts import Chosen
from hepti_mpi.program import placement as placements
from hepti_mpi.program import plan as plans
from hepti_mpi.program.placement import Placement, Team
from hepti_mpi.weights.slices import DecodingPart, front_slices
from hepti_mpi.weights.store import Store


@patiently
def decide(
    machine: Machine, store: Store, profile: ClusterProfile, method: str, demand: Demand, at_once: int = 1
) -> tuple[Placement, Chosen | None]:  # fmt: skip
    """Return who does what by a method of rank 0's planner, where so many texts are written at once, on every rank and, on rank 0, what it
    was chosen from. Collective. Raises: CapacityError, on every rank, when nothing fits.
    """

    def told(found: Chosen) -> dict[str, Any]:
        return found.placement.to_json()

    document, found = agreed(machine, partial(texts.decide, method, store.spec, store.source_hash, profile, demand, at_once), told)
    return placements.from_json(document), found[0] if found else None


@patiently
def load(
    machine: Machine, store: Store, placement: Placement, slots: int, positions: int, cache: str = FULL
) -> Decoder | None:  # fmt: skip
    """Check the plans, read and verify this rank's slices, and build its part in its team; None on a rank that rests. `cache`: the type of
    numbers in which keys and values stay. Collective.

    Raises PlanError, StoreError, CapacityError.
    """
    world, place = machine.world, placement.plan_of(machine.world.rank)
    with together(world):
        for team in placement.teams:
            for stage in team.stages:
                plans.check(stage.plan, store.spec, store.source_hash, len(stage.members), part=len(team.stages) > 1)
    part = None if place is None else DecodingPart(store.spec, *place)
    slices = () if part is None else part.slices
    own, team = _of_team(machine, placement)
    if own is not None and own.world.rank == 0:
        slices = tuple(dict.fromkeys((*slices, *front_slices(store.spec))))
    hold(machine, store, slices)
    decoder: Decoder | None = None
    if own is not None and len(team.stages) > 1:
        decoder = Staged(own, part or DecodingPart(store.spec, team.stages[-1].plan, 0), slots, positions, team, cache)
    elif own is not None and part is not None:
        decoder = Decoder(own, part, slots, positions, cache=cache)
    with together(world):
        if decoder is not None:
            decoder.build(store)
    pages.settle()
    return decoder


def _of_team(machine: Machine, placement: Placement) -> tuple[Machine | None, Team]:
    """Return the ranks of this one's team as a machine of their own, None on a rank that rests, and the team as they count themselves.

    Stages alone have all ranks of the job, since rank 0 says what is done, also where it rests. Collective.
    """
    teams = placement.teams
    if placement.is_one:
        return machine, teams[0]
    world = machine.world.parted([team.members for team in teams])
    if world is None:
        return None, teams[0]
    team = next(team for team in teams if machine.world.rank in team.members)
    computing = [rank for stage in placement.stages for rank in stage.computing]
    boards = [machine.boards[rank] for rank in team.members]
    stages = (replace(stage, members=tuple(map(team.members.index, stage.members))) for stage in team.stages)
    return replace(machine, world=world, cores=machine.cores.of(team.members, computing), boards=boards), Team(tuple(stages))
