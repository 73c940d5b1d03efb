"""One job on every rank until it can answer: plan and load; and going on with another one.

Returns data; prints nothing. How it answers is serving's business.

Every stage ends with all ranks agreeing that it worked, so that an error on one rank ends all of them, and is told once.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from hepti_mpi.cluster.memory import usable_memory
from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.engine import pages
from hepti_mpi.engine.engine import Engine
from hepti_mpi.engine.fetching import hold, same_plan
from hepti_mpi.engine.machine import Machine, patiently, together
from hepti_mpi.engine.segments import Segments
from hepti_mpi.engine.wires import ByLayer
from hepti_mpi.errors import CapacityError, InputError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.models.tasks.heads import embed
from hepti_mpi.planning.request import Decision, Request
from hepti_mpi.program import plan as plans
from hepti_mpi.program.plan import WIRES, Plan, wire_of
from hepti_mpi.program.steps import Program
from hepti_mpi.weights.outer import OuterWeights
from hepti_mpi.weights.slices import Part
from hepti_mpi.weights.store import Store

if TYPE_CHECKING:
    from hepti_mpi.planning.prices import Price

R = TypeVar("R")
ROOM = 1.2  # times the bytes of a plan's weights that must be free to load it beside another


@dataclass
class Ready:
    """A job that can answer: what was decided (rank 0 knows from what; nobody where the plan was given) and the engine.

    `tolerance`: by how much the wire's type may change a number of the last hidden state; `wire_error`: by how much it was found to.
    """

    machine: Machine
    store: Store
    part: Part
    engine: Engine
    segments: Segments
    decision: Decision | None
    startup_seconds: dict[str, float]
    tolerance: float = math.inf
    wire_error: float = 0.0

    @property
    def spec(self) -> ModelSpec:
        return self.part.spec

    @property
    def plan(self) -> Plan:
        return self.part.plan

    @property
    def program(self) -> Program:
        return self.part.program


@patiently
def decide(
    machine: Machine, store: Store, profile: ClusterProfile, method: str, request: Request, known: Plan | None = None
) -> tuple[Plan, Decision | None]:  # fmt: skip
    """Return the plan of a method of rank 0's planner, or one that is `known` where that promises to be sooner, on every rank and, on
    rank 0, what it was chosen from. Collective.

    Raises: CapacityError, on every rank, when no plan fits.
    """

    def chosen() -> Decision:
        from hepti_mpi.planning import methods, search, sharing  # a fifth of what there is, which other ranks need not import

        found = methods.decide(method, store.spec, store.source_hash, profile, request)
        if known is None:
            return found
        costs = search.costs_of(store.spec, profile, request, known)
        every = [found.chosen, *filter(costs.fits, costs.candidates([known]))]
        return replace(found, chosen=min(every, key=lambda one: sharing.preference(profile, [one])))

    document, found = agreed(machine, chosen, lambda decision: decision.chosen.plan.to_json())
    return plans.from_json(document), found[0] if found else None


def agreed(machine: Machine, rule: Callable[[], R], told: Callable[[R], Any]) -> tuple[Any, list[R]]:
    """Return on every rank what is `told` of what `rule` returns on rank 0, and that there, nothing elsewhere. Collective.

    Raises: CapacityError, on every rank, when it does there.
    """
    found: list[R] = []
    refusal: str | None = None
    with together(machine.world):
        if machine.world.rank == 0:
            try:
                found.append(rule())
            except CapacityError as error:
                refusal = str(error)
    document, refusal = machine.world.from_root([told(found[0]) if found else None, refusal])
    if refusal is not None:
        raise CapacityError.of_all(refusal)
    return document, found


@patiently
def load(
    machine: Machine, store: Store, plan: Plan, decision: Decision | None, startup: dict[str, float],
    segments: Segments | None = None,
) -> Ready:  # fmt: skip
    """Check the plan, read and verify this rank's slices, and build the engine. Collective.

    `segments`: sessions that other engines of this process use too.
    """
    world, begin = machine.world, time.perf_counter()
    with together(world):
        plans.check(plan, store.spec, store.source_hash, world.size)
    same_plan(machine, plan.hash)
    part = Part(store.spec, plan, world.rank)
    fetched = hold(machine, store, part.slices)
    segments = segments or Segments(store)
    engine = Engine(machine, part, segments)
    engine.warm_up()
    pages.trim()
    world.barrier()
    startup = startup | fetched | {"load": time.perf_counter() - begin - sum(fetched.values())}
    return Ready(machine, store, part, engine, segments, decision, startup)


def swap(ready: Ready, plan: Plan, price: "Price | None" = None, make_room: bool = False) -> Ready:
    """Go on with another plan, for which `price` was predicted; sessions that it has in common with what is loaded are kept. Collective.

    `make_room`: give up what is loaded first, where memory would not hold both. What was ready cannot be used then.
    """
    decision = None
    if ready.decision is not None and price is not None:
        decision = replace(ready.decision, chosen=replace(ready.decision.chosen, plan=plan, price=price))
    if plan == ready.plan:
        return replace(ready, part=replace(ready.part, plan=plan), decision=decision)
    machine, part = ready.machine, replace(ready.part, plan=plan)
    hold(machine, ready.store, part.slices)
    machine.world.barrier()
    ready.engine.close()
    wanted = sum(piece.bytes for piece in part.slices)
    if make_room and usable_memory(1) < ROOM * wanted:
        ready.engine.segments.clear()
    return replace(ready, part=part, engine=Engine(machine, part, ready.segments), decision=decision)


def within(ready: Ready) -> tuple[Ready, float]:
    """Return what is ready knowing what its wire changes; where that is more than its tolerance, with the shortest type that travels in
    some layers only, as many as do not change more, and the next longer one in the others. Collective.

    Return also the largest change that was found of the wire as it was.
    """
    if ready.plan.wire == WIRES[0]:
        return replace(ready, wire_error=0.0), 0.0
    exact = Exact(ready, ready.plan.planned_rows)
    error = exact.error(ready)
    if error <= ready.tolerance:  # which a result that is no number does not pass
        return replace(ready, wire_error=error), error

    def error_of(wires: tuple[str, ...]) -> float:
        return exact.error(swap(ready, replace(ready.plan, wire=wire_of(wires))))

    found = ByLayer(ready.tolerance, error_of, len(ready.plan.layers))
    found.search(ready.plan.wires)
    return replace(swap(ready, replace(ready.plan, wire=wire_of(found.wires), predicted_seconds=None)), wire_error=found.error), error


def wire_error(ready: Ready, rows: int) -> float:
    """Return the largest difference of a last hidden state between the plan and the same one with float32 on the wire. Collective."""
    return 0.0 if ready.plan.wire == "float32" else Exact(ready, rows).error(ready)


class Exact:
    """The last hidden state of built-in inputs with float32 on the wire, to compare plans with that differ from it in that only.

    The inputs are as many as have `rows` rows: numbers of real ones differ more in size than random ones.
    """

    def __init__(self, ready: Ready, rows: int) -> None:
        """Collective. What is ready can be used as before."""
        self.world = ready.machine.world
        lengths, embedded = _built_in(ready.store, rows) if self.world.rank == 0 else ([], None)
        self.embedded = embedded
        self.lengths = tuple(self.world.from_root(lengths))
        self.hidden = self._answer(swap(ready, replace(ready.plan, wire="float32")))

    def error(self, ready: Ready) -> float:
        """Return the largest difference of a number when `ready` answers, which can be used as before. Collective."""
        found, exact = self._answer(ready), self.hidden
        return float(self.world.from_root(None if found is None or exact is None else float(np.abs(found - exact).max())))

    def _answer(self, ready: Ready) -> np.ndarray | None:
        hidden = ready.engine.run(self.lengths, self.embedded)
        hidden = None if hidden is None else hidden.copy()
        self.world.barrier()  # before buffers are given up that others may still read
        ready.engine.close()
        return hidden


def _built_in(store: Store, rows: int) -> tuple[list[int], np.ndarray]:
    """Return how long built-in inputs are and what the layers begin with, or a random one of the magnitude that LayerNorm gives, where the
    model takes none."""
    from hepti_mpi.models.inputs.requests import end_to_end, read_requests

    requests = []
    with suppress(InputError):
        requests = [one for one in read_requests(store.spec, store.files, None) if one.error is None]
    if not requests:
        return [rows], np.random.default_rng(0).standard_normal((rows, store.spec.hidden), np.float32)
    fitting = int((np.cumsum([one.rows for one in requests]) <= rows).sum())
    requests = requests[: max(1, fitting)]
    return [one.rows for one in requests], embed(store.spec, OuterWeights(store), end_to_end(requests))
