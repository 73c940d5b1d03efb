"""Measure methods against each other: loaded in one job, as many at once as memory holds, answering the same request in turns.

Knows engines and clocks; does not know how a method divides the work (planning.methods) or how results are shown (reporting).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.comm.launcher import host_name
from hepti_mpi.engine import loading, pages
from hepti_mpi.engine.engine import Engine
from hepti_mpi.engine.machine import Machine
from hepti_mpi.engine.segments import Segments
from hepti_mpi.planning.demand import Decision, Demand
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.planning.prices import Price
from hepti_mpi.program.plan import Plan
from hepti_mpi.tuning.settle import settle
from hepti_mpi.tuning.turns import Holds
from hepti_mpi.weights.slices import Part
from hepti_mpi.weights.store import Store

SETTLED = ("hepti", "hepti-float16", "hepti-int8")
WARM_UP = 1  # round, besides what loading and settling answer

Chosen = Mapping[str, tuple[Plan, Decision | None]]  # by method; decisions are rank 0's


@dataclass
class Samples:
    """What one method did: `seconds` per request and, on rank 0, its `price` by `profile` and [ranks, requests, steps] of seconds and
    beginnings. The `engine` goes when it has answered, and with it weights that no other one uses."""

    part: Part
    engine: Engine | None
    price: Price | None
    seconds: list[float] = field(default_factory=list)
    steps: list[np.ndarray] = field(default_factory=list)
    began: np.ndarray | None = None
    every: np.ndarray | None = None
    timeline: np.ndarray | None = None
    error: float | None = None  # largest difference to the first method's answer
    calls: int = 0  # of computing, on this rank, and those that took longer than on the emulated board
    overruns: int = 0
    late_seconds: float = 0.0  # by which this rank's messages left later than from there
    overrun_part: float = 0.0  # of all ranks' calls, 0 to 1
    late_part: float = 0.0  # the latest rank's late seconds, of the seconds of the requests: ranks are late side by side
    held: list[dict[str, Any]] = field(default_factory=list)
    profile: ClusterProfile | None = None


@dataclass(frozen=True)
class Bench:
    """Where methods are measured. `segments`: sessions that all of them use, also those of fewer layers of the same store."""

    machine: Machine
    store: Store
    segments: Segments

    def ready(self, profile: ClusterProfile, chosen: Chosen, demand: Demand, trying: bool) -> tuple[dict[str, Samples], ClusterProfile]:
        """Load every plan. Collective; `chosen` holds rank 0's decisions.

        `trying`: settle on the plans that are chosen among all by trying; what that taught about the ranks' speeds is what all are
        priced by, and is returned.
        """
        machine, spec, known = self.machine, self.store.spec, profile
        all_samples: dict[str, Samples] = {}
        for name, (plan, decision) in chosen.items():
            ready, price = loading.load(machine, self.store, plan, None, {}, self.segments), decision.chosen.price if decision else None
            if trying and name in SETTLED:
                settled = settle(machine, spec, self.store.source_hash, self.segments, known, demand, decision)
                ready, price, known = loading.swap(ready, settled.plan), settled.price, settled.profile
            all_samples[name] = Samples(ready.part, ready.engine, price, profile=known)
        pricer = Pricer(spec, known, demand.rows, demand.attended)
        for name, samples in all_samples.items():
            if name not in SETTLED and samples.price is not None:
                samples.price, samples.profile = pricer.price(samples.part.program, samples.part.plan), known
        return all_samples, known


def holds(number: int, plan: Plan, memory: Sequence[int]) -> Holds:
    """Return the bytes that each rank holds by a plan for the `number`-th store, by rank and what decides which weights they are: plans
    with the same of it share them."""
    parts = zip(plan.heads, plan.columns, plan.weights_mode, strict=True)
    return {(rank, number, plan.layers, *part): size for rank, (part, size) in enumerate(zip(parts, memory, strict=True))}


def warm_up(machine: Machine) -> int:
    """Return how many rounds come before those that count: none on emulated boards, whose time is their own from the first request on."""
    return 0 if machine.emulation.on else WARM_UP


def answer(
    machine: Machine, every: Sequence[Samples], rows: int, repeat: int, progress: Callable[[int], None], first: np.ndarray | None = None
) -> np.ndarray | None:  # fmt: skip
    """Answer one request of `rows` rows by all that is ready, `repeat` times in turns, and close it. Collective.

    A request's latency runs on rank 0 from the embedding in memory to the last hidden state in memory. `first`: the answer there that
    others are compared with, which is returned; None: that of the first method.
    """
    answers = _in_turns(machine, every, rows, repeat, progress)
    first = answers[0] if first is None else first
    for samples, found in zip(every, answers, strict=True):
        assert samples.engine is not None
        _gathered(machine, samples, samples.engine)
        if found is not None and first is not None:
            samples.error = float(np.abs(found - first).max())
        samples.engine.close()
        samples.engine = None
    pages.trim()
    return first


def _in_turns(
    machine: Machine, every: Sequence[Samples], rows: int, repeat: int, progress: Callable[[int], None]
) -> list[np.ndarray | None]:  # fmt: skip
    """Answer a request by each in turns; return, on rank 0, their answers."""
    world, emulation, hidden_size = machine.world, machine.emulation, every[0].part.spec.hidden
    engines = [samples.engine for samples in every if samples.engine is not None]
    embedded = np.random.default_rng(0).standard_normal((rows, hidden_size), np.float32) if world.rank == 0 else None
    answers: list[np.ndarray | None] = [None] * len(every)
    for engine in engines:
        engine.prepare([(rows,)])
    for turn in range(-warm_up(machine), repeat):
        numbers = list(range(len(every)))
        np.random.default_rng(WARM_UP + turn).shuffle(numbers)  # nobody always comes after the same one
        for number in numbers:
            samples, engine = every[number], engines[number]
            world.barrier()
            world.quick_barrier()  # the other one leaves ranks asleep for up to some milliseconds
            before = copy(emulation)
            begin = time.perf_counter()
            hidden = engine.run((rows,), embedded)
            seconds = time.perf_counter() - begin
            if turn >= 0:
                samples.calls += emulation.calls - before.calls
                samples.overruns += emulation.overruns - before.overruns
                samples.late_seconds += emulation.late_seconds - before.late_seconds
                samples.seconds.append(seconds)
                samples.steps.append(engine.seconds.copy())
                samples.began = engine.began - begin
            if hidden is not None and answers[number] is None:
                answers[number] = hidden.copy()
        progress(1)
    world.barrier()
    return answers


def _gathered(machine: Machine, samples: Samples, engine: Engine) -> None:
    """Bring what every rank noted of a method together."""
    world = machine.world
    samples.every = world.gather_matrix(np.array(samples.steps))
    samples.timeline = world.gather_matrix(np.array(samples.began))
    samples.held = world.gather_all({"host": host_name(), "weight_bytes": engine.weight_bytes})
    calls, overruns, late = zip(*world.gather_all([samples.calls, samples.overruns, samples.late_seconds]))
    samples.overrun_part, samples.late_part = sum(overruns) / max(1, sum(calls)), max(late) / sum(samples.seconds)
