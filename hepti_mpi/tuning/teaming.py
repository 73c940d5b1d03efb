"""From a profile to teams that can answer: whether they are worth it, which, and loading them. Returns data; prints nothing."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from hepti_mpi.engine import crew as crews
from hepti_mpi.engine.crew import Crew
from hepti_mpi.engine.machine import Machine, patiently, together
from hepti_mpi.errors import CapacityError
from hepti_mpi.planning import methods, teams
from hepti_mpi.planning.teams import GAIN, Arrangement
from hepti_mpi.program import placement as placements
from hepti_mpi.program.placement import Placement
from hepti_mpi.tuning.prepare import Goal
from hepti_mpi.weights.store import Store

UNKNOWN = 1e-3  # seconds for each row of a team of which nobody knows
FROM = 30  # batches of a job that is worth teams


@dataclass
class Teamed:
    """Teams that can answer: this rank's `crew`, None where it rests; the `placement` of all, `paces`, seconds for each row that each team
    is thought to take, and, on rank 0, what they were chosen from."""

    crew: Crew | None
    placement: Placement
    paces: list[float]
    arrangement: Arrangement | None
    startup_seconds: dict[str, float]


@dataclass(frozen=True)
class Teaming:
    """How teams are wanted, for a job of so many `batches`. `forced`: in any case; `pipeline`: one of them, with a stage on each rank."""

    batches: int
    forced: bool = False
    pipeline: bool = False


def teamed(
    machine: Machine, store: Store, goal: Goal, teaming: Teaming, startup: dict[str, float], at: Callable[[str], None] = lambda stage: None
) -> Teamed | None:
    """Arrange teams and load them, None where all ranks together are as good. Collective.

    Raises: CapacityError, on every rank, when none can hold the model and teams are wanted in any case.
    """
    at("planning teams")
    begin = time.perf_counter()
    with together(machine.world):  # one rank tells why nothing fits
        placement, arrangement = _chosen(machine, store, goal, teaming)
    if placement is None:
        return None
    startup = startup | {"plan": time.perf_counter() - begin}
    at("loading weights")
    crew = crews.load(machine, store, placement, startup)
    paces = [choice.seconds / goal.request.rows for choice in arrangement.choices] if arrangement else None
    return Teamed(crew, placement, machine.world.from_root(paces), arrangement, startup)


def given(machine: Machine, store: Store, placement: Placement) -> Teamed:
    """Load teams that somebody chose. Collective. Raises: PlanError when they are none for this model and job."""
    startup: dict[str, float] = {}
    crew = crews.load(machine, store, placement, startup)
    slowest = [max((stage.plan.predicted_seconds or 0.0) / stage.plan.planned_rows for stage in team.stages) for team in placement.teams]
    return Teamed(crew, placement, [pace or UNKNOWN for pace in slowest], None, startup)


@patiently
def _chosen(machine: Machine, store: Store, goal: Goal, teaming: Teaming) -> tuple[Placement | None, Arrangement | None]:
    found: Arrangement | None = None
    refusal: str | None = None
    with together(machine.world):
        if machine.world.rank == 0:
            try:
                found = teams.arranged(store.spec, store.source_hash, goal.profile, goal.request, teaming.pipeline)
                if not teaming.forced:
                    other = methods.decide(goal.method, store.spec, store.source_hash, goal.profile, goal.request)
                    found = found if len(found.placement.stages) > 1 and worth(found, other.chosen.price.seconds, teaming.batches) else None
            except CapacityError as error:
                refusal = str(error) if teaming.forced else None
                found = None
    document, refusal = machine.world.from_root([found.placement.to_json() if found else None, refusal])
    if refusal is not None:
        raise CapacityError(refusal)
    return (None if document is None else placements.from_json(document)), found


def worth(found: Arrangement, together_seconds: float, batches: int) -> bool:
    """Tell whether a job of so many batches is done sooner by teams than by all ranks together, which take `together_seconds` for each."""
    return GAIN * found.seconds(batches) <= batches * together_seconds
