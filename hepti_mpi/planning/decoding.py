"""Who does what in text that grows token by token: heads and columns of each row, two sums a layer. Pure.

Only plans that a Decoder can walk are looked at: layers divided by heads and columns whose sums are MPI's own, or one rank alone.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hepti_mpi import splits
from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.errors import CapacityError, PlanError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning import baselines, methods, search
from hepti_mpi.planning.bound import Freely
from hepti_mpi.planning.candidates import Candidate
from hepti_mpi.planning.demand import Decision, Demand
from hepti_mpi.planning.memory import cache_bytes, less_cache
from hepti_mpi.planning.stepping import Steps, divided
from hepti_mpi.planning.work import layer_work
from hepti_mpi.program.plan import SUMS, WIRES, Plan, granules_fit

DIVIDED = ("heads", "columns")
SHORTER = 0.98  # times as long as with float32 on the wire a plan with a shorter type must promise to take
INSIDE = 1.01  # times as soon as whole groups of heads parts of them must promise to be
HEPTI = ("hepti", "hepti-float16")  # methods that have all ways to choose from
STRATEGIES = ("auto", "tensor", "single", "megatron", "galaxy", "ram")  # that divide weights, or nothing
BY_WEIGHTS = (*HEPTI, *STRATEGIES[1:])  # the methods of those


def check(name: str, demand: Demand, ranks: int) -> None:
    """Raise PlanError for what a method cannot be asked of so many ranks, whatever they turn out to be."""
    if demand.layout not in (None, DIVIDED):
        rows = f"layout {'/'.join(demand.layout)} divides rows, of which a step of a text has one"
        raise PlanError(f"{rows}; there are heads/columns and pipeline")
    if name not in BY_WEIGHTS:
        raise PlanError(f"strategy {name} divides rows, of which a step of a text has one; there are {', '.join(STRATEGIES)}")
    methods.check(name, demand, ranks)


def decide(name: str, spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand) -> Decision:
    """Return the plan of a method that takes in `demand.prompt` rows and adds `demand.answer` to them soonest, priced by an added one.

    Raises: CapacityError when it does not fit into memory, PlanError for a method that divides rows.
    """
    check(name, demand, len(profile.nodes))
    added, taken = (Steps(spec, profile, rows, demand.attended, cache)
                    for rows, cache in ((1, demand.cache), (demand.largest or demand.rows, None)))  # fmt: skip
    if name in baselines.NAMES:
        decision = methods.decide(name, spec, source_hash, profile, demand)
        plan = decision.chosen.plan
        if plan.divided:  # one row cannot be scattered: its sums are whole
            plan = replace(plan, reduction="allreduce")
        return replace(decision, chosen=added.priced(replace(decision.chosen, plan=plan)))
    wires = wires_of(name, demand)
    wide = replace(demand, strategy="auto", layout=DIVIDED, wires=WIRES[:1])
    decisions = _searched(spec, source_hash, profile, wide, name != "tensor")
    decision, *_ = decisions
    every = [one for found in decisions for one in (found.chosen, *found.close, *found.others) if _walkable(one)]
    chunks = -(-demand.prompt // taken.pricer.rows)

    def whole(plans: Sequence[Plan]) -> np.ndarray:
        inside = np.array([not granules_fit(plan.heads, spec.group) for plan in plans])
        cut = [replace(plan, prompt_tiles=tiles) for plan in plans] if plans[0].divided else plans
        return np.asarray((chunks * taken.each(cut) + demand.answer * added.each(plans)) * np.where(inside, INSIDE, 1))

    like = next((replace(one.plan, wire=wires[-1]) for one in every if one.plan.divided), None)
    tiles = 1 if like is None else taken.cut(like, 2).prompt_tiles  # more of them change little of who had best have what
    if like is not None:
        costs, rates = search.costs_of(spec, profile, wide, like), _rates(added, taken)
        if (found := divided(spec, profile, demand, costs, like, whole, rates)) is not None:
            every.append(found)
    every = [replace(one, plan=replace(one.plan, wire=wire)) for one in every for wire in (wires if one.plan.divided else WIRES[:1])]
    wanted = [one for one in every if one.plan.divided] if name == "tensor" else every
    chosen = min(wanted or every, key=lambda one: float(whole([one.plan])[0]) * (SHORTER if one.plan.wire == WIRES[0] else 1))
    others = [one for one in every if one is not chosen]
    first, *others = map(added.priced, (replace(chosen, plan=taken.cut(chosen.plan)), *others))
    return replace(decision, chosen=first, others=tuple(others), close=())


def wires_of(name: str, demand: Demand) -> tuple[str, ...]:
    """Return the types in which sums may travel by a method, longest first."""
    allowed = demand.wires
    if name in methods.OURS:
        allowed = replace(demand, **methods.OURS[name]).wires  # type: ignore[arg-type]
    return tuple(wire for wire in SUMS if wire in allowed)


def prompt_seconds(spec: ModelSpec, profile: ClusterProfile, demand: Demand, plan: Plan) -> float:
    """Return the seconds until a prompt of `demand.prompt` rows is taken in and the word behind it is known."""
    rows = min(demand.prompt, demand.largest or demand.rows)
    return -(-demand.prompt // rows) * Steps(spec, profile, rows, demand.attended).seconds(plan)


def step_seconds(spec: ModelSpec, profile: ClusterProfile, demand: Demand, plan: Plan, texts: int) -> float:
    """Return the seconds of a step in which so many texts get one more token."""
    return Steps(spec, profile, texts, demand.attended, demand.cache).seconds(replace(plan, prompt_tiles=1))


def bound(spec: ModelSpec, profile: ClusterProfile, attended: int | None = None) -> float:
    """Return what no plan takes less than for an added token: the weights read once, each by a board at its own rate, all at once with the
    least latency for each sum, or by the soonest board alone."""
    steps, every = Steps(spec, profile, 1, attended), range(len(profile.nodes))
    work = layer_work(spec, 1)
    numbers = spec.layers * (work.attention + work.mlp) + steps.words
    each = np.minimum(steps.pricer.reading, steps.pricer.gemm[:, 1])  # the sooner of what was timed: either may have been disturbed
    alone = min(float(each[steps.pricer.places([rank])][0]) * numbers for rank in every)
    own = each[steps.pricer.places(every)] * steps.pricer.crowding(tuple(every)) * numbers
    latency = min((profile.latency_seconds[one][other] for one in every for other in every if one != other), default=0.0)
    sums = sum(1 if layer.parallel else 2 for layer in spec.each())
    return min(alone, float(1 / (1 / own).sum()) + sums * latency)


def prompt_bound(
    spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand, known: Sequence[Plan] = ()
) -> float:  # fmt: skip
    """Return what no plan takes less than until a prompt is in and the word behind it known: the longer of computing, were the wire free,
    and of sending in a type that is allowed, were computing free, by the best shares for that, or the soonest board alone. `known`: plans
    found otherwise."""
    rows, ranks = min(demand.prompt, demand.largest or demand.rows), len(profile.nodes)
    freely = Steps(spec, profile, rows, demand.attended, by=Freely)

    def divided_by(shares: Sequence[int]) -> Plan:
        heads, columns = splits.split(spec.heads, shares, spec.group), splits.split(spec.ffn, shares, spec.column_granule)
        first = tuple(int(rank == shares.index(1)) for rank in range(ranks))
        return Plan(spec.name, source_hash, (DIVIDED,) * spec.layers, heads, columns, first, ("",) * ranks, ("packed",) * ranks)

    every = [divided_by([int(rank == own) for rank in range(ranks)]) for own in range(ranks)]
    every += [replace(plan, prompt_tiles=1) for plan in known if plan.shortest in demand.wires]
    wide = replace(demand, strategy="auto", layout=DIVIDED, wires=("float32",), shares=None, mode="packed", limits=(1 << 60,) * ranks)
    for wire in wires_of("hepti", demand):
        like = replace(divided_by([1] * ranks), wire=wire)
        found = divided(spec, profile, wide, search.costs_of(spec, profile, wide, like), like, freely.each, _rates(freely, freely))
        every += [found.plan] if found else []
    return -(-demand.prompt // rows) * min(map(freely.seconds, every))


def _rates(added: Steps, taken: Steps) -> np.ndarray:
    """Return what a number of the weights takes each rank in steps of either kind, [2, ranks]."""
    return np.stack([steps.pricer.gemm[: len(steps.pricer.profile.nodes), steps.pricer.rows] for steps in (added, taken)])


def _walkable(one: Candidate) -> bool:
    plan = one.plan
    return not plan.divided or (plan.reduction == "allreduce" and plan.collectives == "mpi" and len(plan.tiles) < 2)


def _searched(spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand, alone: bool) -> list[Decision]:
    """Return what the search finds for all ranks and, with `alone`, for one of each kind alone, where it has memory to compute as fast as
    the price says. Raises CapacityError, which names keys and values where all would fit without."""
    kinds = {replace(node, host=""): rank for rank, node in reversed(list(enumerate(profile.nodes)))}
    lone = [tuple(float(other == rank) for other in range(len(profile.nodes))) for rank in kinds.values()]
    packed = "packed" if demand.mode == "auto" else demand.mode
    every = [demand]
    if alone and demand.shares is None and not splits.alone(profile.nodes):
        every += [replace(demand, shares=shares, mode=packed) for shares in lone]
    found, refused = list[Decision](), list[CapacityError]()
    for one in every:
        try:
            found.append(search.choose(spec, source_hash, profile, one))
        except CapacityError as error:
            refused.append(error)
    if found:
        return found
    if not demand.kept:
        raise refused[0]
    search.choose(spec, source_hash, profile, replace(demand, kept=0))  # says what is lacking for the weights alone
    bytes_ = demand.kept * cache_bytes([layer.attention for layer in spec.each()], spec.kv_heads, demand.cache)
    raise CapacityError(
        f"no plan has room for keys and values: those of {demand.kept} rows take {bytes_} bytes in all, beside the weights; "
        f"make that less with {less_cache(demand.cache)}, or give more memory or ranks"
    )
