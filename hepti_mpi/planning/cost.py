"""What a program costs on given machines, in seconds and bytes. Pure: reads a profile, runs nothing.

Times are arrays over the active ranks. A Compute advances each rank's clock; a Sync starts when the last rank arrives and
all leave together, so the time of a rank is compute + waiting for others + wire.
"""

from dataclasses import dataclass

import numpy as np

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.plan import Plan
from hepti_mpi.planning.program import Compute, Op, Program, Sync, buffers, distributions

FLOAT = 4  # bytes
PADDED_SCORES = 0.3  # of rows x hidden: padding that a batch may add to its attention scores, at most a twentieth of its multiply-adds


@dataclass(frozen=True)
class Price:
    """Predicted `seconds` of one request and, per rank of the job, how they divide; `bytes` on the wire in all."""

    seconds: float
    compute: np.ndarray
    wait: np.ndarray
    wire: float
    bytes: int


class Pricer:
    """Prices programs for one model, cluster and request size. `attended`: rows that each row attends to."""

    def __init__(self, spec: ModelSpec, profile: ClusterProfile, rows: int, attended: int | None = None) -> None:
        self.spec, self.profile, self.rows = spec, profile, rows
        self.attended = rows if attended is None else attended
        nodes = profile.nodes
        self.attention = np.array([node.attention_seconds_per_mac for node in nodes])
        self.element = np.array([node.element_seconds for node in nodes])
        self.segment = np.array([node.segment_seconds for node in nodes])
        self.latency = np.array(profile.latency_seconds)
        with np.errstate(divide="ignore"):
            self.seconds_per_byte = np.where(np.eye(len(nodes)) > 0, 0.0, 1.0 / np.array(profile.bytes_per_second))
        # every rank's curve at every whole number of rows up to the request, so that a lookup is an index
        self.gemm = np.stack([self._curve(node.gemm_rows, node.gemm_seconds_per_weight) for node in nodes])

    def _curve(self, rows: tuple[int, ...], seconds: tuple[float, ...]) -> np.ndarray:
        at = np.arange(self.rows + 1)
        curve = np.interp(at, rows, seconds)
        if len(rows) > 1 and self.rows > rows[-1]:
            slope = (seconds[-1] - seconds[-2]) / (rows[-1] - rows[-2])
            beyond = at > rows[-1]
            curve[beyond] = seconds[-1] + np.maximum(slope, seconds[-1] / rows[-1] / 2) * (at[beyond] - rows[-1])
        curve[0] = 0.0
        return np.maximum.accumulate(curve)

    def crowding(self, active: tuple[int, ...]) -> np.ndarray:
        """Return, per rank, how many times longer it computes when `active` ranks do: a host with fewer cores than threads shares them.

        The profile has the time that the cores worked, not the time that a rank waited for one.
        """
        wanted: dict[str, int] = {}
        for rank in active:
            node = self.profile.nodes[rank]
            wanted[node.host] = wanted.get(node.host, 0) + node.threads
        return np.array([max(1.0, wanted.get(node.host, 0) / node.cores) for node in self.profile.nodes])

    def op_seconds(self, op: Op, rows: np.ndarray, plan: Plan, ranks: np.ndarray) -> np.ndarray:
        """Return seconds per rank of `ranks` for `op` on `rows` rows each, without the fixed cost of the run."""
        hidden, ffn, dim = self.spec.hidden, self.spec.ffn, self.spec.head_dim
        gemm = self.gemm[ranks, rows]
        attend = self.attention[ranks] * (2.0 * rows * self.attended)
        element = self.element[ranks] * rows
        if op.kind == "attention_heads":
            width = np.array(plan.heads)[ranks] * dim if len(ranks) > 1 else np.array([hidden])
            return gemm * (4.0 * hidden * width) + attend * width
        if op.kind == "mlp_columns":
            columns = np.array(plan.columns)[ranks] if len(ranks) > 1 else np.array([ffn])
            return gemm * (2.0 * hidden * columns) + element * columns
        if op.kind == "mlp_rows":
            return gemm * (2.0 * hidden * ffn) + element * ffn
        if op.kind == "project":
            return gemm * (3.0 * hidden * hidden)
        if op.kind == "attend":
            return gemm * (1.0 * hidden * hidden) + attend * hidden
        return element * hidden  # norm, tail

    def sync_seconds(self, sync: Sync, plan: Plan, blocks: np.ndarray, ranks: np.ndarray) -> tuple[float, int]:
        """Return (seconds, bytes on the wire) of a sync over `ranks`; `blocks`: bytes of each rank's rows.

        Ring algorithms: an uneven Allgatherv passes the largest block n - 1 times. Source: Thakur, Rabenseifner, Gropp,
        "Optimization of Collective Communication Operations in MPICH", 2005.
        """
        count, total = len(ranks), int(blocks.sum())
        others = np.union1d(ranks, [0]) if sync.kind in ("bcast", "scatterv", "gatherv") else ranks
        if len(others) < 2 or sync.kind == "slice":
            return 0.0, 0
        grid = np.ix_(others, others)
        latency, slowest = float(self.latency[grid].max()), float(self.seconds_per_byte[grid].max())
        if sync.kind == "allreduce":
            if total < 8192:
                return float(np.ceil(np.log2(count))) * (latency + total * slowest), 2 * (count - 1) * total
            return 2 * (count - 1) * (latency + total / count * slowest), 2 * (count - 1) * total
        if sync.kind in ("allgatherv", "reduce_scatter"):
            return (count - 1) * (latency + float(blocks.max()) * slowest), (count - 1) * total
        if sync.kind == "bcast":
            return float(np.ceil(np.log2(len(others)))) * (latency + total * slowest), (len(others) - 1) * total
        moved = total - int(blocks[ranks == 0].sum())
        return (len(others) - 1) * latency + moved * slowest, moved

    def price(self, program: Program, plan: Plan) -> Price:
        """Return what `program` costs."""
        ranks = np.array(plan.active)
        every = np.full(len(ranks), self.rows)
        own = np.array(plan.row_counts(self.rows))[ranks]
        crowding = self.crowding(plan.active)[ranks]
        segments: dict[tuple[object, ...], np.ndarray] = {}  # layers repeat: price each kind of step once
        exchanges: dict[tuple[str, int], tuple[float, int]] = {}
        clock, compute, wait = np.zeros(len(ranks)), np.zeros(len(ranks)), np.zeros(len(ranks))
        wire, moved = 0.0, 0
        for step in program:
            if isinstance(step, Compute):
                kinds = (step.distribution, *(op.kind for op in step.ops))
                if kinds not in segments:
                    rows = every if step.distribution == "full" else own
                    needed = sum(self.op_seconds(op, rows, plan, ranks) for op in step.ops) * crowding
                    segments[kinds] = needed + self.segment[ranks] * (rows > 0)
                compute = compute + segments[kinds]
                clock = clock + segments[kinds]
            else:
                kind = (step.kind, step.width)
                if kind not in exchanges:
                    blocks = own * (self.spec.hidden * FLOAT * step.width)
                    exchanges[kind] = self.sync_seconds(step, plan, blocks, ranks)
                seconds, data = exchanges[kind]
                start = clock.max()
                wait = wait + (start - clock)
                clock = np.full(len(ranks), start + seconds)
                wire, moved = wire + seconds, moved + data
        size = plan.ranks
        spread = [np.zeros(size), np.zeros(size)]
        for target, values in zip(spread, (compute, wait)):
            target[ranks] = values
        return Price(float(clock.max()), spread[0], spread[1], float(wire), moved)


def activation_widths(spec: ModelSpec, program: Program) -> tuple[int, int]:
    """Return the elements that the engine's buffers hold per row of the batch and per row of the rank's own."""
    shapes = distributions(program)
    widths = {number: shapes[name] for name, number in buffers(program).items()}
    full = sum(width for at, width in widths.values() if at == "full")
    own = sum(width for at, width in widths.values() if at == "rows")
    return full * spec.hidden, own * spec.hidden


def activation_bytes(spec: ModelSpec, widths: tuple[int, int], rows: int, longest: int, own: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Return, per rank, the bytes of its buffers and of the largest segment's inner values for a batch of `rows` rows.

    `longest`: rows of the longest request in it; `own`: the rank's rows; `part`: its part of the attention scores, 0 to 1.
    """
    padded = PADDED_SCORES * rows * spec.hidden if longest < rows else 0  # what batching allows beyond the requests' own scores
    scores = 2 * spec.heads * (rows * longest + padded)
    return (widths[0] * rows + widths[1] * own + rows * max(spec.ffn, 6 * spec.hidden) + scores * part) * FLOAT
