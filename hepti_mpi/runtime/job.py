"""One job, from options to answers, on every rank: open, measure, plan, load, answer. Returns data; prints nothing.

Every stage ends with all ranks agreeing that it worked, so that an error on one rank ends all of them, and is told once.
"""

import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from hepti_mpi import __version__
from hepti_mpi.cluster import probe
from hepti_mpi.cluster import profile as profiles
from hepti_mpi.cluster.emulation import Dilation
from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.comm.exchange import Exchanges
from hepti_mpi.comm.launcher import host_name
from hepti_mpi.comm.ranks import Comm
from hepti_mpi.errors import CapacityError, HeptiError, InputError, PlanError, ProfileError, StoreError
from hepti_mpi.models.heads import apply_head, embed
from hepti_mpi.models.preprocess import Request as ModelRequest
from hepti_mpi.models.spec import ModelSpec, Weight
from hepti_mpi.planning import methods, planner
from hepti_mpi.planning import plan as plans
from hepti_mpi.planning.cost import PADDED_SCORES, Price
from hepti_mpi.planning.plan import Plan
from hepti_mpi.planning.program import Program, make_program
from hepti_mpi.runtime import graphs
from hepti_mpi.runtime.engine import Engine
from hepti_mpi.shards.slicing import Slice, rank_slices
from hepti_mpi.shards.store import Store

PROBE_ROWS = (1, 8, 16, 24, 32, 48, 64, 96, 128, 192)
Say = Callable[[str], None]
Done = Callable[[Sequence[int], Sequence[dict[str, np.ndarray]]], None]
P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Machine:
    """This rank's place: `cores` of its host and the `threads` it computes with, how it exchanges, and the board it pretends to be."""

    world: Comm
    cores: int
    threads: int
    exchanges: Exchanges
    dilation: Dilation
    factors: list[float]  # of all ranks when the job began; 1 where nothing is emulated


@dataclass
class Ready:
    """A job that can answer: what was decided (rank 0 knows from what; nobody where the plan was given) and the engine."""

    machine: Machine
    store: Store
    spec: ModelSpec
    plan: Plan
    program: Program
    engine: Engine
    decision: planner.Decision | None
    startup_seconds: dict[str, float]


@dataclass
class Outcome:
    """What happened: latencies per batch and, on rank 0, seconds [ranks, batches, steps] and one row of facts per rank."""

    results: list[dict[str, np.ndarray]]
    latencies: list[float]
    rows: list[int]
    seconds: np.ndarray | None
    facts: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def together(world: Comm) -> Iterator[None]:
    """Run a stage on every rank and end it everywhere when it failed anywhere. The stage itself must not exchange data."""
    error: HeptiError | None = None
    try:
        yield
    except HeptiError as failure:
        error = failure
    except (OSError, MemoryError) as failure:
        error = HeptiError(str(failure) or "out of memory")
    world.agree(error)


def patiently(stage: Callable[Concatenate[Machine, P], R]) -> Callable[Concatenate[Machine, P], R]:
    """Let ranks wait longer for each other in a stage that may take long on some of them: measuring, planning, reading weights."""

    @wraps(stage)
    def patient(machine: Machine, *args: P.args, **options: P.kwargs) -> R:
        with machine.world.patience.slower():
            return stage(machine, *args, **options)

    return patient


def start(threads: int | None, emulate: Sequence[float] | None = None, deadline: float = 0.0) -> Machine:
    """Start MPI, divide each host's cores among its ranks and fix the number of threads. Collective.

    `emulate`: per rank, how many times slower than this machine it shall compute; `deadline`: seconds that a rank waits for another.
    """
    world, dilations = Comm.world(deadline), []
    with together(world):
        if emulate is not None and len(emulate) != world.size:
            raise PlanError(f"--emulate has {len(emulate)} entries, the job has {world.size} ranks")
        dilations.append(Dilation(None if emulate is None else emulate[world.rank]))
    dilation = dilations[0]
    threads = threads or (1 if dilation.on else None)
    cores, own = probe.widen_affinity(world, divide=threads is None)
    with together(world):
        if threads is not None and threads > cores:
            raise PlanError(f"--threads {threads} is more than the {cores} cores of {host_name()}")
        if dilation.on and threads != 1:
            raise PlanError(f"--threads {threads} cannot be emulated on another board: its CPU time is told from one thread only")
    return machine_of(world, cores, threads or own, dilation)


def machine_of(world: Comm, cores: int, threads: int, dilation: Dilation) -> Machine:
    """Configure this process to compute with `threads` and to wait as suits the host. Collective."""
    graphs.configure(threads)
    crowd = sum(wanted for host, wanted in world.gather_all([host_name(), threads]) if host == host_name())
    world.polite = dilation.on
    exchanges = Exchanges(world, "sleep" if dilation.on else "yield" if crowd > cores else "spin")
    return Machine(world, cores, threads, exchanges, dilation, world.gather_all(dilation.factor))


def open_store(machine: Machine, path: Path) -> Store:
    """Open the store, or this rank's file in a folder of rank files, and check that all ranks have the same model. Collective."""
    world, stores = machine.world, []
    with together(world):
        own = path / f"rank{world.rank:02d}.h5" if path.is_dir() else path
        if path.is_dir() and not own.exists():
            raise StoreError(f"{own} not found; cut it with: python -m hepti_mpi slice SOURCE STORE --plan PLAN --ranks {path}")
        stores.append(Store(own))
    hashes = world.gather_all(stores[0].source_hash)
    with together(world):
        if hashes[world.rank] != hashes[0]:
            own_hash, first = hashes[world.rank][:12], hashes[0][:12]
            raise StoreError(
                f"{stores[0].path} holds a model with source hash {own_hash}, rank 0 has {first}; copy the same store to every host"
            )
    return stores[0]


def versions(machine: Machine) -> dict[str, str]:
    """Return what a profile must have been measured with to be of use again."""
    emulated = {profiles.EMULATION: ",".join(f"{factor:g}" for factor in machine.factors)} if max(machine.factors) > 1 else {}
    return {"hepti_mpi": __version__, "mpi": Comm.library(), **graphs.versions(), **emulated}


@patiently
def measured_profile(machine: Machine, spec: ModelSpec, path: Path | None, fresh: bool, required: bool, say: Say) -> ClusterProfile:
    """Return the saved profile where it still matches this job, else measure and save. Collective.

    `required`: a saved profile that does not match is an error (the user named it) instead of a reason to measure.
    """
    world = machine.world
    nodes = [(host, cores, threads) for host, cores, threads in world.gather_all([host_name(), machine.cores, machine.threads])]
    shape = (spec.hidden, spec.ffn)
    saved: list[ClusterProfile | None] = [None]
    with together(world):
        if world.rank == 0 and path is not None and not fresh and (path.exists() or required):
            saved[0] = _usable(path, nodes, versions(machine), shape, required, say)
    content = world.from_root(None if saved[0] is None else saved[0].to_json())
    if content is not None:
        return profiles.from_json(content)
    say(f"measuring {world.size} rank{'s' * (world.size > 1)}, which takes a few seconds")
    mates = sum(host == host_name() for host, _, _ in nodes)
    rows = tuple(count for count in PROBE_ROWS if count <= max(8, spec.positions))
    timers = graphs.timers(spec)
    profile = probe.measure(
        world, machine.exchanges, machine.dilation, timers, rows, machine.cores, machine.threads, probe.usable_memory(mates),
        versions(machine), shape,
    )  # fmt: skip
    if world.rank == 0 and path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            profile.save(path)
        except (OSError, ProfileError) as error:  # the run can do without; the next one measures again
            say(f"the profile is not kept: {error}")
    return profile


def _usable(
    path: Path, nodes: list[tuple[str, int, int]], using: dict[str, str], shape: tuple[int, int], required: bool, say: Say
) -> ClusterProfile | None:  # fmt: skip
    try:
        profile = profiles.load(path)
        reason = profiles.mismatch(profile, nodes, using, shape)
    except ProfileError as error:
        if required:
            raise
        say(str(error))
        return None
    if reason and required:
        again = "measure again with: mpirun -hostfile FILE python -m hepti_mpi profile --fresh"
        raise ProfileError(f"profile {path} is of other hosts or settings: {reason}; {again}")
    if reason:
        say(f"profile {path} does not match: {reason}")
        return None
    return profile


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
    with together(world):
        store.verify(rank_slices(store.spec, plan, world.rank))
    segments = segments or graphs.Segments(store.spec, store)
    engine = Engine(world, machine.exchanges, machine.dilation, store.spec, plan, program, segments)
    engine.warm_up()
    world.barrier()
    startup = startup | {"load": time.perf_counter() - begin}
    return Ready(machine, store, store.spec, plan, program, engine, decision, startup)


def swap(ready: Ready, plan: Plan, segments: graphs.Segments, price: Price | None = None) -> Ready:
    """Go on with another plan, for which `price` was predicted; sessions that it has in common with what is loaded are kept. Collective."""
    decision = None
    if ready.decision is not None and price is not None:
        decision = replace(ready.decision, chosen=replace(ready.decision.chosen, plan=plan, price=price))
    if plan == ready.plan:
        return replace(ready, plan=plan, decision=decision)
    machine, spec = ready.machine, ready.spec
    with together(machine.world):
        ready.store.verify(rank_slices(spec, plan, machine.world.rank))
    program = make_program(spec, plan)
    machine.world.barrier()
    ready.engine.close()
    engine = Engine(machine.world, machine.exchanges, machine.dilation, spec, plan, program, segments)
    return replace(ready, plan=plan, program=program, engine=engine, decision=decision)


def wire_error(ready: Ready, segments: graphs.Segments, rows: int) -> float:
    """Return the largest difference of a last hidden state between the plan and the same one with float32 on the wire. Collective.

    The input is random, of the magnitude that LayerNorm gives.
    """
    world, spec = ready.machine.world, ready.spec
    exact = swap(ready, replace(ready.plan, wire="float32"), segments)
    embedded = np.random.default_rng(0).standard_normal((rows, spec.hidden), np.float32) if world.rank == 0 else None
    results = []
    for engine in (ready.engine, exact.engine):
        hidden = engine.run((rows,), embedded)
        results.append(None if hidden is None else hidden.copy())
    world.barrier()
    exact.engine.close()
    one, other = results
    return float(world.from_root(None if one is None or other is None else float(np.abs(one - other).max())))


class RootWeights(Mapping[str, np.ndarray]):
    """The embedding and head tensors of a store, mapped from its file when asked for."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.names = {w.name: w for w in store.weights.values() if w.part in ("embedding", "head")}

    def __getitem__(self, name: str) -> np.ndarray:
        weight: Weight = self.names[name]
        return self.store.array(Slice(name, 0, weight.shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


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


def answer(
    ready: Ready, requests: Sequence[ModelRequest] | None, batch_rows: int, repeat: int, full_logits: bool, done: Done
) -> Outcome:
    """Answer all requests `repeat` times, in order; rank 0 has them, the others give None. Collective.

    `done` is told, on rank 0, the places in `requests` of each batch and their results.
    A batch's latency runs from its input in memory to its answers in memory, on rank 0.
    """
    world, engine, spec = ready.machine.world, ready.engine, ready.spec
    every: list[int] = world.from_root([request.rows for request in requests] if requests is not None else None)
    parts = batches(every, batch_rows, spec.hidden)
    weights = RootWeights(ready.store) if requests is not None else None
    outcome = Outcome([], [], [], None)
    engine.prepare([every[index] for index in part] for part in parts)
    seconds = np.zeros((repeat * len(parts), len(ready.program)))
    for turn in range(repeat):
        outcome.results = [{}] * len(every)
        for number, part in enumerate(parts):
            lengths = [every[index] for index in part]
            begin = time.perf_counter()
            if requests is None:
                engine.run(lengths, None)
            else:
                assert weights is not None
                batch = [requests[index] for index in part]
                arrays = {key: np.concatenate([request.arrays[key] for request in batch]) for key in batch[0].arrays}
                hidden = engine.run(lengths, embed(spec, weights, arrays))
                assert hidden is not None
                results = apply_head(spec, weights, ready.store.files, hidden, batch, full_logits)
                for index, at, request, result in zip(part, np.cumsum([0, *lengths]), batch, results):
                    result["last_hidden_state"] = hidden[at : at + request.rows].copy()
                    outcome.results[index] = result
                done(part, [outcome.results[index] for index in part])
            outcome.latencies.append(time.perf_counter() - begin)
            outcome.rows.append(sum(lengths))
            seconds[turn * len(parts) + number] = engine.seconds
    world.barrier(patient=not engine.takes_part)  # who has no part waits as long as all requests take
    outcome.seconds = world.gather_matrix(seconds)
    facts = {
        "host": host_name(),
        "threads": ready.machine.threads,
        "emulated_factor": ready.machine.dilation.factor if ready.machine.dilation.on else None,
        "weight_bytes": engine.weight_bytes,
        "peak_resident_bytes": peak_resident_bytes(),
    }
    outcome.facts = world.gather_all(facts)
    return outcome


def peak_resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def typical_rows(requests: Sequence[ModelRequest], batch_rows: int, hidden: int) -> dict[str, int]:
    """Return what the plan is made for, under the names of planner.Request: rows of the median batch and the median request,
    which are priced, and of the largest batch and the longest request, which memory must hold."""
    lengths = sorted(request.rows for request in requests)
    sizes = sorted(sum(lengths[index] for index in part) for part in batches(lengths, batch_rows, hidden))
    if not sizes:
        raise InputError("the input is empty: there is nothing to answer")
    return {"rows": sizes[len(sizes) // 2], "attended": lengths[len(lengths) // 2], "largest": sizes[-1], "longest": lengths[-1]}


def anonymous_bytes() -> int:
    """Return the anonymous memory of this process: what cannot be dropped and read from a file again."""
    for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
