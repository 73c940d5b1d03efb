"""This rank's place in its team: the ranks of its stage, as a machine of their own, and the engine of their layers. A rank that is several
teams alone has an engine for each: they share the weights.

Knows placements, ranks and engines; does not know where batches come from.
"""

import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from hepti_mpi.comm.advice import with_ranks
from hepti_mpi.comm.exchange import Exchanges
from hepti_mpi.engine.engine import Engine
from hepti_mpi.engine.fetching import hold, same_plan
from hepti_mpi.engine.machine import Machine, patiently, together
from hepti_mpi.engine.segments import Segments
from hepti_mpi.program import placement as placements
from hepti_mpi.program.placement import Placement, Stage, Team
from hepti_mpi.weights.slices import Part
from hepti_mpi.weights.store import Store


@dataclass
class Crew:
    """What a rank of a team has: its `team`, the number of its `stage` there, and the engine that it shares with the members of that.
    """

    team: Team
    stage: int
    machine: Machine
    engine: Engine

    @property
    def members(self) -> tuple[int, ...]:
        """The ranks of the job that are in the stage, the first one leads."""
        return self.team.stages[self.stage].members

    @property
    def leads(self) -> bool:
        """Tell whether this rank has the stage's input and its result."""
        return self.machine.world.rank == 0

    @property
    def is_first(self) -> bool:
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        return self.stage == len(self.team.stages) - 1

    @property
    def heir(self) -> int:
        """The rank that takes over what this stage has done."""
        return self.team.stages[self.stage + 1].lead


@patiently
def load(machine: Machine, store: Store, placement: Placement, startup: dict[str, float]) -> list[Crew]:
    """Check the placement, read and verify this rank's slices, and build the engine of its stage, or of each of its teams; none on a rank
    that rests. Collective.

    Raises: PlanError when it is none for this model and job.
    """
    world, begin = machine.world, time.perf_counter()
    with together(world):
        placements.check(placement, store.spec, store.source_hash, world.size, with_ranks)
    same_plan(machine, placement.hash)
    place = placement.place(world.rank)
    stage = None if place is None else placement.teams[place[0]].stages[place[1]]
    part = None if stage is None else Part(store.spec, stage.plan, stage.members.index(world.rank))
    fetched = hold(machine, store, () if part is None else part.slices)
    group = world.parted(list(dict.fromkeys(one.members for one in placement.stages)))
    found: list[Crew] = []
    if place is not None and stage is not None and part is not None:
        assert group is not None
        computing = [rank for one in placement.stages for rank in one.computing]
        own, segments = _machine(machine, stage, replace(machine, world=group), computing), Segments(store)
        parts = placement.apart(world.rank)
        if parts > 1:
            own = replace(own, cores=own.cores.apart(parts))
        for _ in range(parts):
            engine = Engine(own, part, segments)
            engine.warm_up()
            found.append(Crew(placement.teams[place[0]], place[1], own, engine))
    world.barrier()
    startup.update(fetched, load=time.perf_counter() - begin - sum(fetched.values()))
    return found


def beside(crews: Sequence[Crew], work: Callable[[Crew], object]) -> None:
    """Let the crews of this rank work, several beside each other. What one of them raises is raised as soon as it is."""
    if len(crews) == 1:
        work(crews[0])
        return
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run(crew: Crew) -> None:
        try:
            work(crew)
        except BaseException as error:  # noqa: BLE001  the caller raises it
            ended.put(error)
        else:
            ended.put(None)

    for number, crew in enumerate(crews):
        threading.Thread(target=run, args=(crew,), name=f"crew {number}", daemon=True).start()
    for _ in crews:
        error = ended.get()
        if error is not None:
            raise error


def _machine(whole: Machine, stage: Stage, own: Machine, computing: Collection[int]) -> Machine:
    """Return the machine of the members of a stage, of whose job the ranks `computing` compute. Collective among them."""
    way = whole.exchanges.way
    exchanges = Exchanges(own.world, "yield" if way == "spin" else way, thread=not own.world.alone)
    boards = [whole.boards[rank] for rank in stage.members]
    return replace(own, cores=whole.cores.of(stage.members, computing), exchanges=exchanges, boards=boards)
