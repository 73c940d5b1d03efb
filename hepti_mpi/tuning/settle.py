"""Settle on a plan by trying: answer a few requests by the best candidates, learn how fast each rank really is, plan again.

Knows engines and predictions; does not search itself (planning.search does). Candidates answer in turns, since a machine that is
disturbed for a second would otherwise decide by when it was. Where all layers are alike and a plan divides all of them alike, the first
few tell what all would take.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np

from hepti_mpi.cluster.profile import ClusterProfile, Edges, scaled
from hepti_mpi.engine.engine import Engine
from hepti_mpi.engine.fetching import fetch
from hepti_mpi.engine.machine import Machine, patiently
from hepti_mpi.engine.segments import Segments
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning import search
from hepti_mpi.planning.demand import Decision, Demand
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.planning.prices import Price
from hepti_mpi.program import plan as plans
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import Compute, Sync
from hepti_mpi.quantiles import median
from hepti_mpi.weights.slices import Part

ROUNDS = 3
LAYERS = 6  # that are tried, at least, and QUARTER of all
QUARTER = 0.25
REQUESTS = 3  # per plan that is tried, after one to warm up
AGREED = 0.01  # by how much two requests of a plan may differ, after which another one tells nothing new
FINALISTS = 3  # which answer as often again
LONE = 2.0  # times its price that one rank alone may have: what many ranks on few cores take is the least certain
CLOSE = 1.06  # times the price of the chosen plan that another kind of plan may have
MOST_LATE = 0.003  # seconds that an exchange may seem to take; more is a disturbance
TRUST = 0.25  # of a rank's speed that one round may take away or add


@dataclass
class Trial:
    """A plan that is tried, by the first layers of it: `tried` is what its `engine` does.

    `times`: how many times longer all layers take, by their price. `seconds`: of its requests by those that are tried and, for each of
    them, every rank's seconds of computing; `last`: of its last request, which may have been the one to warm up.
    """

    plan: Plan
    tried: Part
    engine: Engine
    times: float = 1.0
    seconds: list[float] = field(default_factory=list)
    compute: list[np.ndarray] = field(default_factory=list)
    last: float | None = None

    @property
    def typical(self) -> float:
        """Seconds of all layers, by the mean of the sooner half of its requests: what disturbs only makes them longer."""
        return self.times * float(np.mean(sorted(self.seconds)[: (len(self.seconds) + 1) // 2]))


@dataclass(frozen=True)
class Settled:
    """The plan that answered soonest and its price by `profile`, whose speeds are those that were measured while it did."""

    plan: Plan
    price: Price
    profile: ClusterProfile


@patiently
def settle(
    machine: Machine, spec: ModelSpec, source_hash: str, segments: Segments, profile: ClusterProfile, demand: Demand,
    decision: Decision | None,
) -> Settled:  # fmt: skip
    """Return what answered soonest of the chosen plan, those that promise nearly as much, and what the measured speeds suggest.
    Collective; `decision` is rank 0's.
    """
    world, edges = machine.world, profile.edges
    profile = replace(profile, edges=Edges())  # what is asked here is without

    def opened(plan: Plan) -> Trial:
        whole = Part(spec, plan, world.rank)
        tried = first_layers(whole)
        times = longer(whole, tried, profile, demand) if world.rank == 0 else 1.0
        fetch(machine, segments.store, tried.slices)
        return Trial(plan, tried, Engine(machine, tried, segments), world.from_root(times))

    documents = world.from_root([plan.to_json() for plan in promising(decision, profile, demand)] if decision else None)
    trials = [opened(plans.from_json(document)) for document in documents]
    known = [trial.plan for trial in trials]
    lengths = Pricer(spec, profile, demand.rows, demand.attended).lengths
    ask(machine, trials, lengths)
    for _ in range(ROUNDS):
        best = min(trials, key=lambda trial: trial.typical)
        profile = learned(profile, demand, best)
        suggestion = search.again(spec, source_hash, profile, demand, best.plan).plan if world.rank == 0 else best.plan
        suggestion = plans.from_json(world.from_root(suggestion.to_json()))
        if suggestion in known:
            break
        if len(trials) > 1:  # no more at once than memory was found to hold
            slowest = max(trials, key=lambda trial: trial.typical)
            slowest.engine.close()
            trials.remove(slowest)
        elif any(attention == "heads" or mlp == "columns" for attention, mlp in suggestion.layers):
            break  # other slices of the weights, for which there may be no room
        known.append(suggestion)
        trials.append(opened(suggestion))
        ask(machine, [best, trials[-1]], lengths)
    finalists = sorted(trials, key=lambda trial: trial.typical)[:FINALISTS]
    ask(machine, finalists, lengths)
    best = min(finalists, key=lambda trial: trial.typical)
    for trial in trials:
        trial.engine.close()
    profile = replace(learned(profile, demand, best), edges=edges)
    price = priced(Part(spec, best.plan, world.rank), profile, demand)
    return Settled(replace(best.plan, predicted_seconds=price.seconds), price, profile)


def first_layers(part: Part) -> Part:
    """Return what a part does of as many layers as tell what all take: of all, unless all are alike, divided and sent alike."""
    spec, plan = part.spec, part.plan
    count = max(LAYERS, ceil(QUARTER * spec.layers))
    if count >= spec.layers or len(spec.kinds) > 1 or len(set(plan.layers)) > 1 or len(set(plan.wires)) > 1:
        return part
    return Part(replace(spec, layers=count), replace(plan, layers=plan.layers[:count]), part.rank)


def longer(whole: Part, tried: Part, profile: ClusterProfile, demand: Demand) -> float:
    """Return how many times longer all layers of a plan take than those that are tried, by their prices."""
    return 1.0 if tried is whole else priced(whole, profile, demand).seconds / priced(tried, profile, demand).seconds


def priced(part: Part, profile: ClusterProfile, demand: Demand) -> Price:
    """Return what the ranks of a part's plan take for a request."""
    return Pricer(part.spec, profile, demand.rows, demand.attended).price(part.program, part.plan)


def promising(decision: Decision, profile: ClusterProfile, demand: Demand) -> list[Plan]:
    """Return the chosen plan, the same with float32 on the wire, what else its search led to, and other kinds of nearly the same price,
    as many as memory holds beside each other: the weights that they share are not taken off, so it is rather too few."""
    chosen, plans = decision.chosen, [decision.chosen.plan]
    if chosen.plan.wire != "float32":  # converting can cost more than it saves
        plans.append(replace(chosen.plan, wire="float32"))
    left = np.array(demand.limits or [node.memory_bytes for node in profile.nodes]) - chosen.memory
    others = [other for other in decision.others if other.price.seconds <= CLOSE * chosen.price.seconds][:FINALISTS]
    lone = [other for other in decision.others if other not in others and not other.plan.divided]
    lone = [other for other in lone if other.price.seconds <= LONE * chosen.price.seconds and profile.nodes[other.plan.active[0]].alone]
    for other in (*decision.close, *others, *lone):
        if (left >= other.memory).all():
            left = left - other.memory
            plans.append(other.plan)
    return plans


def ask(machine: Machine, trials: Sequence[Trial], lengths: Sequence[int]) -> None:
    """Answer batches of requests of `lengths` rows by each of `trials` in turns, until two in a row agree or there are enough; all ranks
    note the same. Collective."""
    world = machine.world
    hidden = trials[0].engine.spec.hidden
    embedded = np.zeros((sum(lengths), hidden), np.float32) if world.rank == 0 else None
    settled: list[Trial] = []
    for turn in range(1 + REQUESTS):
        for trial in trials:
            if trial in settled or (not turn and trial.seconds):  # it is warm
                continue
            engine = trial.engine
            world.barrier()
            world.quick_barrier()
            begin = time.perf_counter()
            engine.run(lengths, embedded)
            seconds = time.perf_counter() - begin
            world.barrier()  # in which ranks without a part sleep: their cores may be another's
            computing = [place for place, step in enumerate(engine.program) if isinstance(step, Compute)]
            facts = world.gather_all([seconds, float(engine.seconds[computing].sum())])
            before, trial.last = trial.last, facts[0][0]
            if turn:
                trial.seconds.append(trial.last)
                trial.compute.append(np.array([compute for _, compute in facts]))
                if before is not None and abs(before - trial.last) <= AGREED * trial.last:
                    settled.append(trial)
    world.barrier()


def learned(profile: ClusterProfile, demand: Demand, trial: Trial) -> ClusterProfile:
    """Return the profile with what a trial taught: how many times longer each rank computes than was predicted, within TRUST, and how
    much longer an exchange takes, which is for the most part waiting for whoever is late this time.

    Of a host's ranks beside each other it says nothing of one with all cores, nor the other way round: they slow each other down.
    """
    predicted = priced(trial.tried, profile, demand).compute
    ratios = np.divide(median(np.array(trial.compute), axis=0), predicted, out=np.ones(len(predicted)), where=predicted > 0)
    ratios, hosts = np.clip(ratios, 1 - TRUST, 1 + TRUST), np.array(profile.hosts)
    beside, alone = np.ones((2, len(hosts)))
    for rank in trial.plan.active:
        mates = hosts == hosts[rank]
        if profile.nodes[rank].alone is not None and mates[list(trial.plan.active)].sum() == 1:
            alone[mates] = ratios[rank]
        else:
            beside[rank] = ratios[rank]
    profile = scaled(profile, beside.tolist(), alone.tolist())
    price = priced(trial.tried, profile, demand)
    if not price.bytes:
        return profile
    exchanges = sum(isinstance(step, Sync) and step.kind != "slice" for step in trial.tried.program)
    late = (float(median(trial.seconds)) - price.seconds) / exchanges
    return replace(profile, exchange_seconds=min(max(profile.exchange_seconds + late, 0.0), MOST_LATE))
