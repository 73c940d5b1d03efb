"""One job on every rank until it can answer: open, plan, load, settle on a plan; and going on with another one.

Returns data; prints nothing. How it answers is answer.py's business.

Every stage ends with all ranks agreeing that it worked, so that an error on one rank ends all of them, and is told once.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hepti_mpi.cluster import probe
from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.errors import CapacityError, InputError, PlanError
from hepti_mpi.models.preprocess import Request as ModelRequest
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning import methods, planner
from hepti_mpi.planning import plan as plans
from hepti_mpi.planning.cost import Price
from hepti_mpi.planning.memory import PADDED_SCORES
from hepti_mpi.planning.plan import Plan
from hepti_mpi.planning.program import Program, make_program
from hepti_mpi.runtime import graphs
from hepti_mpi.runtime.engine import Engine
from hepti_mpi.runtime.fetching import fetch
from hepti_mpi.runtime.machine import Machine, Say, patiently, together
from hepti_mpi.runtime.settle import settle
from hepti_mpi.shards.slicing import rank_slices
from hepti_mpi.shards.store import Store

ROOM = 1.2  # times the bytes of a plan's weights that must be free to load it beside another


@dataclass
class Ready:
    """A job that can answer: what was decided (rank 0 knows from what; nobody where the plan was given) and the engine."""

    machine: Machine
    store: Store
    spec: ModelSpec
    plan: Plan
    program: Program
    engine: Engine
    segments: graphs.Segments
    decision: planner.Decision | None
    startup_seconds: dict[str, float]


@patiently
def decide(
    machine: Machine, store: Store, profile: ClusterProfile, method: str, request: planner.Request
) -> tuple[Plan, planner.Decision | None]:
    """Return the plan of a method of rank 0's planner on every rank and, on rank 0, what it was chosen from. Collective.

    Raises: CapacityError, on every rank, when no plan fits.
    """
    decision: planner.Decision | None = None
    refusal: str | None = None
    with together(machine.world):
        if machine.world.rank == 0:
            try:
                decision = methods.decide(method, store.spec, store.source_hash, profile, request)
            except CapacityError as error:
                refusal = str(error)
    document, refusal = machine.world.from_root([decision.chosen.plan.to_json() if decision else None, refusal])
    if refusal is not None:
        raise CapacityError(refusal)
    return plans.from_json(document), decision


@patiently
def load(
    machine: Machine, store: Store, plan: Plan, decision: planner.Decision | None, startup: dict[str, float],
    segments: graphs.Segments | None = None,
) -> Ready:  # fmt: skip
    """Check the plan, read and verify this rank's slices, and build the engine. Collective.

    `segments`: sessions that other engines of this process use too.
    """
    world, begin = machine.world, time.perf_counter()
    with together(world):
        plans.check(plan, store.spec, store.source_hash, world.size)
    hashes = world.gather_all(plan.hash)
    with together(world):
        if hashes[world.rank] != hashes[0]:
            raise PlanError(f"this rank has plan {hashes[world.rank]}, rank 0 has {hashes[0]}; give every host the same plan file")
    program = make_program(store.spec, plan)
    if fetch(machine, store, rank_slices(store.spec, plan, world.rank)):
        startup = startup | {"fetch": time.perf_counter() - begin}
        begin = time.perf_counter()
    with together(world):
        store.verify(rank_slices(store.spec, plan, world.rank))
    segments = segments or graphs.Segments(store.spec, store)
    engine = Engine(machine, store.spec, plan, program, segments)
    engine.warm_up()
    world.barrier()
    startup = startup | {"load": time.perf_counter() - begin}
    return Ready(machine, store, store.spec, plan, program, engine, segments, decision, startup)


def prepared(
    machine: Machine, store: Store, profile: ClusterProfile, method: str, request: planner.Request, tolerance: float, many: bool,
    startup: dict[str, float], say: Say, at: Say = lambda stage: None,
) -> tuple[Ready, ClusterProfile, float]:  # fmt: skip
    """Plan and load; where there are `many` requests, settle on a plan by trying; check the wire. Collective.

    `at` is told what is done now. Return also the profile as it is known then, and by how much the wire's type changes results, which is
    at most `tolerance`.
    """
    at("planning")
    begin = time.perf_counter()
    with together(machine.world):  # one rank tells why nothing fits
        plan, decision = decide(machine, store, profile, method, request)
    at("loading weights")
    ready = load(machine, store, plan, decision, startup | {"plan": time.perf_counter() - begin})
    if many and method in methods.OURS:
        at("settling on a plan by trying some")
        begin = time.perf_counter()
        settled = settle(machine, store.spec, store.source_hash, ready.segments, profile, request, decision)
        ready, profile = swap(ready, settled.plan, settled.price), settled.profile
        ready.startup_seconds["settle"] = time.perf_counter() - begin
    error = wire_error(ready, request.rows)
    if not error <= tolerance:  # which a result that is no number does not pass either
        say(f"float16 on the wire changes results by {error:.2g}, more than --tolerance {tolerance:g}: float32 is used")
        ready, error = swap(ready, replace(ready.plan, wire="float32", predicted_seconds=None)), 0.0
    return ready, profile, error


def swap(ready: Ready, plan: Plan, price: Price | None = None, make_room: bool = False) -> Ready:
    """Go on with another plan, for which `price` was predicted; sessions that it has in common with what is loaded are kept. Collective.

    `make_room`: give up what is loaded first, where memory would not hold both. What was ready cannot be used then.
    """
    decision = None
    if ready.decision is not None and price is not None:
        decision = replace(ready.decision, chosen=replace(ready.decision.chosen, plan=plan, price=price))
    if plan == ready.plan:
        return replace(ready, plan=plan, decision=decision)
    machine, spec = ready.machine, ready.spec
    fetch(machine, ready.store, rank_slices(spec, plan, machine.world.rank))
    with together(machine.world):
        ready.store.verify(rank_slices(spec, plan, machine.world.rank))
    program = make_program(spec, plan)
    machine.world.barrier()
    ready.engine.close()
    wanted = sum(piece.bytes for piece in rank_slices(spec, plan, machine.world.rank))
    if make_room and probe.usable_memory(1) < ROOM * wanted:
        ready.engine.segments.clear()
    engine = Engine(machine, spec, plan, program, ready.segments)
    return replace(ready, plan=plan, program=program, engine=engine, decision=decision)


def wire_error(ready: Ready, rows: int) -> float:
    """Return the largest difference of a last hidden state between the plan and the same one with float32 on the wire. Collective.

    The input is random, of the magnitude that LayerNorm gives.
    """
    world, spec = ready.machine.world, ready.spec
    if ready.plan.wire == "float32":
        return 0.0
    exact = swap(ready, replace(ready.plan, wire="float32"))
    embedded = np.random.default_rng(0).standard_normal((rows, spec.hidden), np.float32) if world.rank == 0 else None
    results = []
    for engine in (ready.engine, exact.engine):
        hidden = engine.run((rows,), embedded)
        results.append(None if hidden is None else hidden.copy())
    world.barrier()
    exact.engine.close()
    one, other = results
    return float(world.from_root(None if one is None or other is None else float(np.abs(one - other).max())))


def batches(lengths: Sequence[int], most_rows: int, hidden: int) -> list[list[int]]:
    """Pack requests of similar length into batches of at most `most_rows` rows, as lists of indices; a longer one goes alone.

    Rows are packed end to end, so products pay for no padding; only attention works on [requests, longest], and a batch ends
    where that would add more than PADDED_SCORES x rows x hidden to its scores.

    >>> batches([3, 4, 9, 1], 8, 1000)
    [[2], [1, 0, 3]]
    """
    result: list[list[int]] = []
    rows = scores = longest = 0
    for index in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        length = lengths[index]
        padding = (len(result[-1]) + 1) * longest**2 - scores - length**2 if result else 0
        if not result or rows + length > most_rows or padding > PADDED_SCORES * (rows + length) * hidden:
            result.append([])
            rows, scores, longest = 0, 0, length
        result[-1].append(index)
        rows, scores = rows + length, scores + length**2
    return result


def typical_rows(requests: Sequence[ModelRequest], batch_rows: int, hidden: int) -> dict[str, int]:
    """Return what the plan is made for, under the names of planner.Request: rows of the median batch and the median request,
    which are priced, and of the largest batch and the longest request, which memory must hold."""
    lengths = sorted(request.rows for request in requests)
    sizes = sorted(sum(lengths[index] for index in part) for part in batches(lengths, batch_rows, hidden))
    if not sizes:
        raise InputError("the input is empty: there is nothing to answer")
    return {"rows": sizes[len(sizes) // 2], "attended": lengths[len(lengths) // 2], "largest": sizes[-1], "longest": lengths[-1]}


