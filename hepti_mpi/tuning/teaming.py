"""From a profile to teams that can answer: whether they are worth it, which, and loading them. Returns data; prints nothing."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from hepti_mpi.cluster import profile as profiles
from hepti_mpi.cluster.profile import Edges
from hepti_mpi.engine import crew as crews
from hepti_mpi.engine.crew import Crew
from hepti_mpi.engine.machine import Machine, patiently, together
from hepti_mpi.errors import CapacityError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning import methods, teams
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.forecast import Forecast
from hepti_mpi.planning.teams import GAIN, Arrangement
from hepti_mpi.program import placement as placements
from hepti_mpi.program.placement import Placement
from hepti_mpi.tuning.prepare import Goal
from hepti_mpi.weights.store import Store

TRY_SECONDS, LEAST_PART = 0.1, 0.25  # what a try should take, and how much of a batch is tried in any case
TRIED_SECONDS, TRIES = 0.12, 3  # how long it is tried after the first time, and how often at least: cores that have rested are slow
BELIEVED = 0.5, 2.0  # times as long as priced
UNKNOWN = 1e-3  # seconds for each row of a team of which nobody knows


@dataclass
class Teamed:
    """Teams that can answer: this rank's `crews`, none where it rests; the `placement` of all, `paces`, seconds for each row that each team
    is thought to take, and, on rank 0, what they were chosen from."""

    crews: list[Crew]
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
    loaded = crews.load(machine, store, placement, startup)
    hosts = [machine.cores.hosts[rank] for stage in placement.stages for rank in stage.computing]
    if len(set(hosts)) < len(hosts) and not goal.profile.emulated:
        begin = time.perf_counter()
        arrangement = tried(machine, store.spec, goal.demand, loaded, arrangement)
        startup["settle"] = time.perf_counter() - begin
    paces = [choice.seconds / goal.demand.rows for choice in arrangement.choices] if arrangement else None
    return Teamed(loaded, placement, machine.world.from_root(paces), arrangement, startup)


@patiently
def tried(machine: Machine, spec: ModelSpec, demand: Demand, loaded: Sequence[Crew], found: Arrangement | None) -> Arrangement | None:
    """Let all teams do a batch at once, or as much of it as takes no long, and return what was found as it is at the speeds that they have
    then: those of one host share caches and memory, and more than the kernels know that were measured. Collective; `found` is rank 0's."""
    world, times, each = machine.world, list[float](), round(demand.attended or demand.rows)
    seconds = max((choice.seconds for choice in found.choices), default=0.0) if found else None
    part = world.from_root(seconds and min(1.0, max(LEAST_PART, TRY_SECONDS / seconds))) or 1.0
    lengths = [each] * max(1, int(part * demand.rows) // each)
    embedded = np.zeros((sum(lengths), spec.hidden), np.float32)
    with ThreadPoolExecutor(max(1, len(loaded))) as threads:  # the same each time: where new ones begin they may share a core for a while

        beside = threads.map if len(loaded) > 1 else map  # only this thread may call MPI

        def answer() -> float:
            world.barrier()
            begin = time.perf_counter()
            list(beside(lambda crew: crew.engine.run(lengths, embedded if crew.leads else None), loaded))
            return time.perf_counter() - begin

        answer()
        end = time.perf_counter() + TRIED_SECONDS
        while world.from_root(len(times) < TRIES or time.perf_counter() < end):
            times.append(answer())
    spent = world.gather_all(sum(times) / len(times))  # as of a job: what disturbs now and then does so there too
    if found is None:
        return None
    inner, factors = replace(found.profile, edges=Edges()), [1.0] * world.size
    for number, stage in ((number, stage) for number, choice in enumerate(found.choices) for stage in choice.team.stages):
        priced = Forecast(spec, profiles.of_ranks(inner, stage.members), stage.plan).seconds(lengths)
        for rank in stage.members:
            factors[rank] = float(np.clip(spent[stage.lead] / (priced * found.part_of(number)), *BELIEVED))
    return found.slowed(factors)


def given(machine: Machine, store: Store, placement: Placement) -> Teamed:
    """Load teams that somebody chose. Collective. Raises: PlanError when they are none for this model and job."""
    startup: dict[str, float] = {}
    loaded = crews.load(machine, store, placement, startup)
    slowest = [max((stage.plan.predicted_seconds or 0.0) / stage.plan.planned_rows for stage in team.stages) for team in placement.teams]
    return Teamed(loaded, placement, [pace or UNKNOWN for pace in slowest], None, startup)


@patiently
def _chosen(machine: Machine, store: Store, goal: Goal, teaming: Teaming) -> tuple[Placement | None, Arrangement | None]:
    found: Arrangement | None = None
    refusal: str | None = None
    with together(machine.world):
        if machine.world.rank == 0:
            try:
                found = teams.arranged(store.spec, store.source_hash, goal.profile, goal.demand, teaming.pipeline)
                if not teaming.forced and not _worth(found, store, goal, teaming.batches):
                    found = None
            except CapacityError as error:
                refusal = str(error) if teaming.forced else None
                found = None
    document, refusal = machine.world.from_root([found.placement.to_json() if found else None, refusal])
    if refusal is not None:
        raise CapacityError.of_all(refusal)
    return (None if document is None else placements.from_json(document)), found


def _worth(found: Arrangement, store: Store, goal: Goal, batches: int) -> bool:
    """Tell whether a job is done sooner by teams. How all ranks divide batches is looked for, which takes longer than the teams themselves,
    only where teams are not as near as GAIN to what no division reaches: that of a few batches, or of ranks that hold parts."""
    if len(found.placement.stages) == 1:
        return False
    if found.undivided is not None and found.seconds(batches) <= GAIN * batches / found.undivided:
        return True
    other = methods.decide(goal.method, store.spec, store.source_hash, goal.profile, goal.demand)
    return worth(found, other.chosen.price.seconds, batches)


def worth(found: Arrangement, together_seconds: float, batches: int) -> bool:
    """Tell whether a job of so many batches is done sooner by teams than by all ranks together, which take `together_seconds` for each."""
    return GAIN * found.seconds(batches) <= batches * together_seconds
