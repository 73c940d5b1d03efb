"""Who does what in text that grows token by token: heads and columns of each row, two sums a layer. Pure.

Only plans that a Decoder can walk are looked at: layers divided by heads and columns whose sums are MPI's own, or one rank alone.
"""

from dataclasses import replace

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.errors import PlanError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning import baselines, methods, search
from hepti_mpi.planning.candidates import Candidate
from hepti_mpi.planning.request import Decision, Request

DIVIDED = ("heads", "columns")
BY_WEIGHTS = ("hepti", "tensor", "single", "megatron", "galaxy", "ram")  # methods that divide weights, or nothing


def decide(name: str, spec: ModelSpec, source_hash: str, profile: ClusterProfile, request: Request) -> Decision:
    """Return the plan of a method for steps of `request.rows` rows.

    Raises: CapacityError when it does not fit into memory, PlanError for a method that divides rows.
    """
    if name not in BY_WEIGHTS or request.layout not in (None, DIVIDED):
        raise PlanError(f"strategy {name} divides rows, of which a step of a text has one; there are {', '.join(BY_WEIGHTS)}")
    if name in baselines.NAMES:
        return methods.decide(name, spec, source_hash, profile, request)
    decision = search.choose(spec, source_hash, profile, replace(request, strategy="auto", layout=DIVIDED, wires=("float32",)))
    every = [one for one in (decision.chosen, *decision.close, *decision.others) if _walkable(one)]
    wanted = [one for one in every if one.plan.strategy != "single"] if name == "tensor" else every
    chosen = min(wanted or every, key=lambda one: one.price.seconds)
    return replace(decision, chosen=chosen, others=tuple(one for one in every if one is not chosen), close=())


def _walkable(one: Candidate) -> bool:
    plan = one.plan
    return plan.strategy == "single" or (plan.reduction == "allreduce" and plan.collectives == "mpi" and len(plan.tiles) < 2)
