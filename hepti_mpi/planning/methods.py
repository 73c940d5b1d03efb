"""The names under which ways to divide a model are asked for: ours, and those to compare with. Pure: turns a name into a priced plan."""

from dataclasses import replace

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.errors import CapacityError, PlanError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning import baselines, search
from hepti_mpi.planning.candidates import Candidate
from hepti_mpi.planning.demand import Decision, Demand
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.planning.reasons import crowded, ruled_out, unpacked
from hepti_mpi.planning.refine import TILES
from hepti_mpi.program.build import make_program

OURS = {
    "hepti": {"strategy": "auto"},  # and the wires that the request allows
    "hepti-float16": {"strategy": "auto", "wires": ("float32", "float16")},
    "hepti-int8": {"strategy": "auto", "wires": ("float32", "float16", "int8")},
    "tensor": {"strategy": "tensor"},
    "hybrid": {"strategy": "hybrid"},
    "sequence": {"strategy": "sequence"},
}
NAMES = (*OURS, *baselines.NAMES)
BOOST = "-boost"
MEANT = {
    "hepti": "what the planner chooses of all, float32 on the wire",
    "hepti-float16": "the same with float16 allowed on the wire",
    "hepti-int8": "the same with float16 and int8 allowed on the wire",
    "tensor": "the best division by heads and columns",
    "hybrid": "the best division of one block by weights, of the other by rows",
    "sequence": "the best division by rows",
    "megatron": "heads and columns evenly, as Megatron-LM",
    "voltage": "rows evenly, as Voltage",
    "galaxy": "heads and columns by speed, as Galaxy",
    "coedge": "rows by a linear program, as CoEdge",
    "edgeflow": "rows by a linear program per layer, as EdgeFlow",
    "ram": "heads and columns by memory, as exo and llama.cpp divide layers",
    "single": "the board that is soonest alone",
}


def meaning(name: str) -> str:
    """Say what a method is; empty where nobody knows."""
    plain = MEANT.get(name.removesuffix(BOOST), "")
    return f"{plain}, with our exchanges" if plain and name.endswith(BOOST) else plain


def check(name: str, demand: Demand, ranks: int) -> None:
    """Raise PlanError for what a method cannot be asked of so many ranks, whatever they turn out to be."""
    demand.check(ranks)
    if name in OURS:
        return
    if demand.layout is not None or demand.shares is not None:
        raise PlanError(f"strategy {name} has its own rule for layouts and shares; leave out --layout and --shares")
    if demand.mode == "mapped":
        raise PlanError(f"strategy {name} holds its weights in memory; leave out --weights-mode mapped")


def decide(name: str, spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand) -> Decision:
    """Return the plan of a method. `demand` says for what; its strategy and wires are the method's where that is one of ours.

    Raises: CapacityError when it does not fit into memory, PlanError for an unknown name.
    """
    check(name, demand, len(profile.nodes))
    if name in OURS:
        decision = search.choose(spec, source_hash, profile, replace(demand, **OURS[name]))  # type: ignore[arg-type]
        return _told(decision, name, spec, profile, demand)
    plan = baselines.baseline(name.removesuffix(BOOST), spec, source_hash, profile, demand.rows, demand.limits)
    pricer = Pricer(spec, profile, demand.rows, demand.attended)
    case = baselines.Case(spec, source_hash, profile, demand.rows, demand.limits)
    plans = [plan]
    if name.endswith(BOOST) and not plan.keeps_requests:
        every = [baselines.boosted(plan, tiles) for tiles in (1, *TILES)]
        plans = [plan for plan in every if (case.memory(plan) <= case.limits).all()]
        if not plans:
            raise CapacityError(f"{name} does not fit: our exchanges need more memory than the published ones; leave out the boost")
    prices = [pricer.price(make_program(spec, plan), plan) for plan in plans]
    best, price = min(zip(plans, prices), key=lambda pair: pair[1].seconds)
    candidate = Candidate(replace(best, predicted_seconds=price.seconds), price, tuple(map(int, case.memory(best))))
    decision = Decision(candidate, (), (), (), dict.fromkeys(best.active, price.seconds))
    return _told(decision, name, spec, profile, demand)


def _told(decision: Decision, name: str, spec: ModelSpec, profile: ClusterProfile, demand: Demand) -> Decision:
    """Return a decision with what is to be said of its ranks."""
    plan = decision.chosen.plan
    slower = unpacked(spec, [plan], demand.prepacked) if demand.mode == "mapped" else []  # else the search has said that they are
    notes = *decision.notes, *crowded(plan, profile), *slower
    return replace(decision, ruled_out=ruled_out(name, name in OURS, profile, demand, decision), notes=notes)
