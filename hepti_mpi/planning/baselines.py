"""The methods to compare with, as plans for our engine. Pure: knows the published rule by which each divides a model over ranks; does
not know how our own plans are found or how anything is run.

All run with float32 on the wire, MPI's blocking collectives and one tile; `boosted` gives a partition our engine's exchanges, so that the
partition alone can be compared. A rule that gives a rank more than it can hold is refused, not bent: only Galaxy's looks at memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from hepti_mpi import splits
from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.comm.sizes import FLOAT
from hepti_mpi.errors import CapacityError, PlanError
from hepti_mpi.models.spec import ModelSpec, layer_bytes
from hepti_mpi.planning.capacity import check_limits
from hepti_mpi.planning.division import most
from hepti_mpi.planning.memory import activation_bytes, activation_widths
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.program import ops
from hepti_mpi.program.buffers import Laid
from hepti_mpi.program.build import make_program
from hepti_mpi.program.operation import Op, Share
from hepti_mpi.program.plan import Plan

TENSOR, SEQUENCE = ("heads", "columns"), ("rows", "rows")
Limits = Sequence[int] | None


def baseline(name: str, spec: ModelSpec, source_hash: str, profile: ClusterProfile, rows: int, limits: Limits = None) -> Plan:
    """Return the plan of method `name`, one of NAMES, for requests of `rows` rows; `limits`: bytes per rank, None for the profile's.

    Raises: CapacityError when its rule gives a rank more than its memory holds, PlanError for an unknown name or impossible numbers.
    """
    if name not in METHODS:
        raise PlanError(f"there is no baseline {name!r}, expected one of {', '.join(NAMES)}")
    check_limits(limits, len(profile.nodes))
    if rows < 1:
        raise PlanError("the plan has no rows")
    case = Case(spec, source_hash, profile, rows, limits)
    plan = METHODS[name](case)
    needs = case.memory(plan)
    worst = int(np.argmax(needs - case.limits))
    need, limit = int(needs[worst]), int(case.limits[worst])
    if need > limit:
        raise CapacityError(
            f"{name} does not fit: rank {worst} on {profile.hosts[worst]} lacks {need - limit} bytes "
            f"(it has {limit}, its part needs {need}); give more memory, add ranks, or run with --strategy auto, which divides by memory"
        )
    return plan


def boosted(plan: Plan, tiles: int = 2) -> Plan:
    """Return the same partition with our own exchanges and every rank's rows cut into `tiles` tiles as evenly as integers allow.

    Tiles without rows are left out, and where requests stay whole there is one: nothing of it travels.
    """
    parts = zip(*(splits.even(count, tiles) for count in plan.rows)) if not plan.keeps_requests else ()
    cut = tuple(tile for tile in parts if sum(tile))
    return replace(plan, collectives="own", reduction="reduce_scatter", tiles=cut if len(cut) > 1 else (), predicted_seconds=None)


class Case:
    """What a rule may look at: the model, the measured machines, the rows of a request and the memory per rank."""

    def __init__(self, spec: ModelSpec, source_hash: str, profile: ClusterProfile, rows: int, limits: Limits) -> None:
        self.spec, self.source_hash, self.profile, self.rows = spec, source_hash, profile, rows
        self.ranks = len(profile.nodes)
        self.limits = np.array([node.memory_bytes for node in profile.nodes] if limits is None else limits, dtype=np.int64)
        self.pricer = Pricer(spec, profile, rows)
        self.everyone = profile.hosts, ("packed",) * self.ranks
        layer = spec.layer(0)
        tail = ops.AddNorm(0, (), (), layer, "mlp", layer.norm_before("mlp") or layer.norm_after("mlp"), "")
        self.first = (ops.Project(0, (), (), layer.attention, "qkv"),)  # of a layer, before its K and V travel; the others behind
        self.rest = (ops.Mix(0, (), (), layer.attention), ops.Out(0, (), (), layer.attention), tail, ops.Mlp(0, (), (), layer.mlp), tail)
        self.attention_bytes, self.mlp_bytes, self.norm_bytes = (spec.layers * bytes_ for bytes_ in layer_bytes(spec).values())

    def tensor(self, heads: Sequence[int], columns: Sequence[int], reduction: str) -> Plan:
        """Return a plan with these heads and columns in all layers, and even rows where something is done by rows."""
        parts = tuple(map(int, heads)), tuple(map(int, columns)), splits.even(self.rows, self.ranks)
        return Plan(self.spec.name, self.source_hash, (TENSOR,) * self.spec.layers, *parts, *self.everyone, reduction=reduction)

    def sequence(self, rows: Sequence[int]) -> Plan:
        """Return a plan with these rows and the whole weights on every rank that has any."""
        nothing = (0,) * self.ranks
        return Plan(self.spec.name, self.source_hash, (SEQUENCE,) * self.spec.layers, nothing, nothing, tuple(rows), *self.everyone)

    def heads(self, shares: Sequence[float] | np.ndarray) -> tuple[int, ...]:
        """Divide heads, those that read the same K and V together where no rank lacks any then."""
        whole = np.count_nonzero(shares) <= self.spec.kv_heads
        return splits.split(self.spec.heads, shares, self.spec.group if whole else self.spec.head_granule)

    def columns(self, shares: Sequence[float] | np.ndarray) -> tuple[int, ...]:
        return splits.split(self.spec.ffn, shares, self.spec.column_granule)

    def activations(self, plan: Plan, part: np.ndarray) -> np.ndarray:
        """Return, per rank, the bytes of its values when it computes `part` of the attention scores."""
        widths = activation_widths(Laid(make_program(self.spec, plan)))
        return activation_bytes(self.spec, widths, self.rows, self.rows, np.array(plan.rows), part)

    def memory(self, plan: Plan) -> np.ndarray:
        """Return, per rank, the bytes of the weights that it computes with and of its values."""
        heads, columns = np.array(plan.heads) / self.spec.heads, np.array(plan.columns) / self.spec.ffn
        part = heads
        if plan.layers[0] in (SEQUENCE, ("recompute", "rows")):
            part = np.array(plan.rows) / self.rows
            heads = columns = np.ceil(part)
        need = self.attention_bytes * heads + self.mlp_bytes * columns + self.norm_bytes + self.activations(plan, part)
        return np.where(np.isin(np.arange(self.ranks), plan.active), np.ceil(need), 0).astype(np.int64)

    def seconds(self, operations: Sequence[Op] | None = None) -> np.ndarray:
        """Return, per rank, what `operations`, or those of a layer, take it on all rows: measured on the machine, with no network."""
        ranks, share = np.arange(self.ranks), Share(np.full(self.ranks, self.rows), self.rows**2, 0, 0)
        took = self.pricer.op_seconds(operations or (*self.first, *self.rest), share, self.pricer.speeds_at(ranks, share.rows))
        return took * self.pricer.crowding(tuple(ranks))

    def travel(self) -> np.ndarray:
        """Return, per rank, the seconds in which K and V of all rows leave it for another host, or another rank where there is one host."""
        rates, hosts = np.array(self.profile.bytes_per_second), np.array(self.profile.hosts)
        away = np.where(hosts[:, None] == hosts[None, :], 0.0, rates).max(axis=1)
        rate = np.where(away > 0, away, rates.max(axis=1))  # 0 for a rank alone
        return 2 * self.rows * self.spec.layer(0).attention.kv_width * FLOAT / np.where(rate > 0, rate, np.inf)


def megatron(case: Case) -> Plan:
    """Divide heads and columns evenly, two Allreduce a layer.

    Source: Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism", 2019,
    arXiv 1909.08053. It asks for counts that the ranks divide; here they are as even as integers allow.
    """
    return case.tensor(case.heads((1,) * case.ranks), case.columns((1,) * case.ranks), "allreduce")


def voltage(case: Case) -> Plan:
    """Divide rows evenly, one gather a layer: of K and V, or of the block's input with K and V of all rows computed by every rank,
    whichever is priced lower here.

    Source: Hu and Li, "When the Edge Meets Transformers: Distributed Inference with Transformer Models", ICDCS 2024.
    """
    plan = case.sequence(splits.even(case.rows, case.ranks))
    ways = plan, replace(plan, layers=(("recompute", "rows"),) * case.spec.layers)
    return min(ways, key=lambda way: case.pricer.price(make_program(case.spec, way), way).seconds)


def galaxy(case: Case) -> Plan:
    """Divide heads and columns by measured speed, Reduce_scatter and Allgatherv around even rows; what does not fit into a rank's memory
    goes to the ranks with room. It looks at no network.

    Source: Ye et al., "Galaxy: A Resource-Efficient Collaborative Edge AI System for In-situ Transformer Inference", INFOCOM 2024,
    arXiv 2405.17245. Its overlap of tiles is not here: see `boosted`. Heads are placed first, then columns into the room that is left.
    """
    spec, speed = case.spec, 1 / case.seconds()
    plan = replace(megatron(case), reduction="reduce_scatter")  # the values are those of any division
    room = case.limits - case.norm_bytes - case.activations(plan, np.ones(case.ranks))
    granules = -(-spec.ffn // spec.column_granule)
    groups = spec.kv_heads
    head_bytes, granule_bytes = case.attention_bytes / groups, case.mlp_bytes / spec.ffn * spec.column_granule
    fraction = np.clip(room / (case.attention_bytes + case.mlp_bytes), 0, 1)
    for rounding in (np.floor, np.ceil):  # where whole heads leave gaps, let one more head take columns' room
        heads = overflowed(groups, speed, np.minimum(rounding(fraction * groups), most(room, head_bytes, groups)))
        columns = case.columns(overflowed(granules, speed, most(room - heads * head_bytes, granule_bytes, granules)))
        plan = case.tensor((heads * spec.group).tolist(), columns, "reduce_scatter")
        if (case.memory(plan) <= case.limits).all():
            break
    return plan


def overflowed(units: int, speed: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Divide `units` in proportion to `speed` and move what is over a rank's `limit` to the others in the same proportion, again and
    again until all fits or nobody has room; what is then left stays with the ranks that had room last.

    >>> overflowed(12, np.array([2.0, 1.0, 1.0]), np.array([2, 4, 12]))
    array([2, 4, 6])
    """
    counts, limit = np.array(splits.split(units, speed)), limit.astype(np.int64)
    while (counts > limit).any() and (counts < limit).any():
        excess = int(np.maximum(counts - limit, 0).sum())
        counts = np.minimum(counts, limit)
        counts += splits.split(excess, np.where(counts < limit, speed, 0))
    return counts


def coedge(case: Case) -> Plan:
    """Divide rows by the linear program of least makespan over each rank's time to compute its share and to send it; ranks whose
    share is under one row are left out and the program is solved again.

    Source: Zeng et al., "CoEdge: Cooperative DNN Inference with Adaptive Workload Partitioning over Heterogeneous Edge Devices",
    IEEE/ACM Transactions on Networking 29(2), 2021, arXiv 2012.03257. Simplified: it spends the least energy within a deadline, here
    time is what is least; its halo of rows that travels between neighbours is here the share's K and V, once over the rank's link.
    """
    cost, kept = case.seconds() + case.travel(), np.arange(case.ranks)
    while True:
        shares, nothing = np.zeros(case.ranks), np.zeros(len(kept))
        shares[kept] = least_makespan(nothing, nothing, cost[kept])
        if (shares[kept] * case.rows > 1 - 1e-6).all():
            return case.sequence(splits.split(case.rows, shares))
        # the smallest goes first and alone, since the others' shares then grow; of more ranks than rows the surplus goes at once
        order = np.argsort(-shares[kept], kind="stable")
        kept = kept[order[: min(len(kept) - 1, case.rows)]]


def edgeflow(case: Case) -> Plan:
    """Divide rows by a linear program per layer, which knows when each rank finished the layer before; a layer goes on when the inputs
    from all ranks have come in. The plan is fixed: one division for all layers, the one at which the programs settle.

    Source: Hu and Li, "Distributed Inference with Deep Learning Models across Heterogeneous Edge Devices", INFOCOM 2022.
    Simplified: it divides each layer anew and a rank waits for the rows that it needs; here attention needs K and V of all rows, so
    all wait for the last, and a share leaves once, at the rate of its rank's link. Divisions that take turns, not settling, are averaged.
    """
    first, rest = case.seconds(case.first) + case.travel(), case.seconds(case.rest)
    ready, last, shares = np.zeros((3, case.ranks))
    for _ in range(max(2, case.spec.layers)):
        last, shares = shares, least_makespan(ready, first, rest)
        if np.abs(shares - last).max() * case.rows < 0.01:
            break
        ready = shares * rest  # after all inputs of this layer have come in: only who is behind whom matters
    return case.sequence(splits.split(case.rows, (last + shares) / 2))


def least_makespan(ready: np.ndarray, first: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Return shares a >= 0 of sum 1 with the least T such that ready + a first <= s and s + a rest <= T for every rank.

    For a share of 1, `first`: seconds from `ready` until the others have its part; `rest`: seconds from s on, when all have all.
    """
    from scipy.optimize import linprog  # slow to import, and only two methods need it

    count, unit = len(ready), float((first + rest).min()) / len(ready)  # about T: the solver's tolerance is absolute
    one = np.ones((count, 1))
    least = np.block([[np.diag(first / unit), -one, 0 * one], [np.diag(rest / unit), one, -one]])  # columns: a, s, T
    goal, whole = np.array([0.0] * count + [0, 1]), np.array([[1.0] * count + [0, 0]])
    found = linprog(goal, least, np.append(-ready / unit, 0 * ready), whole, [1.0], method="highs")
    if found.x is None:
        raise PlanError(f"the linear program for the shares was not solved: {found.message}")
    shares: np.ndarray = np.maximum(found.x[:count], 0).round(9)  # equal ranks are equal in spite of rounding errors
    return shares / shares.sum()


def ram(case: Case) -> Plan:
    """Divide heads and columns by memory, two Allreduce a layer.

    Source: "ring memory weighted partitioning" of github.com/exo-explore/exo and tools/rpc of github.com/ggml-org/llama.cpp. Those give
    each device layers in proportion to its memory, which compute one after the other; here every layer is divided in that proportion.
    """
    memory = np.maximum(case.limits, 1)
    return case.tensor(case.heads(memory), case.columns(memory), "allreduce")


def single(case: Case) -> Plan:
    """Let the rank answer alone that takes the least time of those that hold the whole model; where none does, the largest is named."""
    plans = [case.sequence([case.rows * (rank == other) for other in range(case.ranks)]) for rank in range(case.ranks)]
    program, need = make_program(case.spec, plans[0]), case.memory(plans[0]).max()  # the same for each
    holding = [plan for plan, limit in zip(plans, case.limits) if limit >= need]
    if not holding:
        return plans[int(np.argmax(case.limits))]
    return min(holding, key=lambda plan: case.pricer.price(program, plan).seconds)


METHODS: dict[str, Callable[[Case], Plan]] = {
    "megatron": megatron, "voltage": voltage, "galaxy": galaxy, "coedge": coedge, "edgeflow": edgeflow, "ram": ram, "single": single,
}  # fmt: skip
NAMES = tuple(METHODS)
