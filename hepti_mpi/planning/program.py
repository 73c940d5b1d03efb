"""The steps of one inference: what is computed between which exchanges. Pure: knows no time, file, MPI or ONNX.

A **program** is one flat tuple of `Compute` and `Sync` steps, the same for every rank: ranks differ only in how many heads,
columns and rows they hold (`Plan`). The cost model prices it, slicing lists its weights, the graph builder makes one ONNX
segment of each Compute and the engine walks it, so these four cannot disagree about what is done.

Every value is [rows, width] and has one of three distributions: `full` (every rank holds all rows), `rows` (rank i holds its own
consecutive rows) or `partial` (all rows of a term; the sum over ranks is the value). A block of a layer is computed by heads or
columns (needs full, gives partial) or by rows (needs rows, gives rows). After each block comes its tail: residual sum and LayerNorm.
"""

from dataclasses import dataclass, replace

from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.plan import Plan

EMBEDDED = "embedded"  # [rows, hidden] on the root: what the layers start from
RESULT = "result"  # [rows, hidden] on the root: the last hidden state


@dataclass(frozen=True)
class Op:
    """One operation inside a Compute. `kind` is one of

    norm: y = LayerNorm(x); tail: x = x + p + bias, y = LayerNorm(x), with the weights of block `block` and of norm `norm`;
    attention_heads, mlp_columns: p = the rank's term of the block; mlp_rows: p = the block on the rank's rows;
    project: q and kv of the rank's rows; attend: p = attention of the rank's q over all kv.
    """

    kind: str
    layer: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    norm: str | None = None  # name of the norm's weights, without ".weight"
    bias: str | None = None  # name of the bias that a tail adds


@dataclass(frozen=True)
class Compute:
    """A run of operations without an exchange: one ONNX segment. All its rows are in one distribution, `full` or `rows`."""

    ops: tuple[Op, ...]
    distribution: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sync:
    """An exchange between ranks that turns `reads` into `writes`, both [rows, `width` x hidden].

    `kind`: bcast and scatterv bring the embedding from the root; allreduce (partial to full), reduce_scatter (partial to rows),
    allgatherv (rows to full); gatherv takes the result to the root; slice (full to rows) moves nothing.
    """

    kind: str
    reads: str
    writes: str
    width: int = 1


Step = Compute | Sync
Program = tuple[Step, ...]


def make_program(spec: ModelSpec, plan: Plan) -> Program:
    """Return the steps of `plan` for a model of `spec`; with one active rank the layers are a single Compute."""
    builder = _Builder(spec, plan)
    builder.start()
    blocks = [(layer, kind) for layer in range(spec.layers) for kind in ("attention", "mlp")]
    for place, (layer, kind) in enumerate(blocks):
        following = blocks[place + 1] if place + 1 < len(blocks) else None
        builder.block(layer, kind)
        builder.tail(layer, kind, following)
    builder.finish()
    return _with_interfaces(builder.steps)


class _Builder:
    """Appends steps while it keeps the names and the distribution of the residual `x`, the block input `y` and the term `p`."""

    def __init__(self, spec: ModelSpec, plan: Plan) -> None:
        self.spec, self.plan = spec, plan
        self.single = len(plan.active) == 1
        self.steps: list[Step] = []
        self.versions: dict[str, int] = {}
        self.x = self.y = self.p = ""
        self.x_at = self.y_at = self.p_at = "full"

    def new(self, role: str) -> str:
        self.versions[role] = self.versions.get(role, -1) + 1
        return f"{role}{self.versions[role]}"

    def needs(self, layer: int, kind: str) -> str:
        return "full" if self.single or self.plan.layout(layer, kind) in ("heads", "columns") else "rows"

    def compute(self, op: Op, distribution: str) -> None:
        """Append `op`, to the segment under way where it has the same distribution."""
        last = self.steps[-1] if self.steps else None
        if isinstance(last, Compute) and last.distribution == distribution:
            self.steps[-1] = replace(last, ops=(*last.ops, op))
        else:
            self.steps.append(Compute((op,), distribution))

    def sync(self, kind: str, value: str, role: str, width: int = 1) -> str:
        if self.single and kind not in ("bcast", "gatherv"):
            return value
        target = self.new(role) if kind != "gatherv" else RESULT
        self.steps.append(Sync(kind, value, target, width))
        return target

    def start(self) -> None:
        first = self.needs(0, "attention")
        self.x = self.y = self.sync("bcast" if first == "full" else "scatterv", EMBEDDED, "x")
        self.x_at = self.y_at = first
        if self.spec.norm == "pre":
            self.norm("layers.0.attention.norm")

    def norm(self, name: str) -> None:
        self.y, self.y_at = self.new("y"), self.x_at
        self.compute(Op("norm", -1, (self.x,), (self.y,), norm=name), self.x_at)

    def block(self, layer: int, kind: str) -> None:
        needs = self.needs(layer, kind)
        if kind == "attention" and needs == "rows":
            q, kv = self.new("q"), self.new("kv")
            self.compute(Op("project", layer, (self.y,), (q, kv)), "rows")
            every = self.sync("allgatherv", kv, "kv", width=2)
            self.p = self.new("p")
            self.compute(Op("attend", layer, (q, every), (self.p,)), "rows")
        else:
            name = {"attention": "attention_heads", "mlp": "mlp_columns" if needs == "full" else "mlp_rows"}[kind]
            self.p = self.new("p")
            self.compute(Op(name, layer, (self.y,), (self.p,)), needs)
        self.p_at = "rows" if needs == "rows" else "full" if self.single else "partial"

    def tail(self, layer: int, kind: str, following: tuple[int, str] | None) -> None:
        """Append the residual sum and LayerNorm after a block, where the plan says that they are computed."""
        wanted = self.needs(*following) if following else "full" if self.single else "rows"
        place = wanted if self.single or (self.p_at == "partial" and self.plan.reduction == "allreduce") else "rows"
        if self.p_at == "partial":
            self.p = self.sync("allreduce" if place == "full" else "reduce_scatter", self.p, "p")
        if self.x_at == "full" and place == "rows":
            self.x = self.sync("slice", self.x, "x")
        layer_name = f"layers.{layer}.{kind}"
        if self.spec.norm == "post":
            norm = f"{layer_name}.norm"
        else:
            norm = f"layers.{following[0]}.{following[1]}.norm" if following else "final.norm"
        bias = f"{layer_name}.{'o' if kind == 'attention' else 'down'}.bias"
        reads, self.x, self.y = (self.x, self.p), self.new("x"), self.new("y")
        if self.spec.norm == "post":
            self.x = self.y
        self.x_at = self.y_at = place
        writes = (self.y,) if self.x == self.y else (self.x, self.y)
        self.compute(Op("tail", layer, reads, writes, norm=norm, bias=bias), place)
        if place == "rows" and wanted == "full":
            self.gather(following, norm)

    def gather(self, following: tuple[int, str] | None, norm: str) -> None:
        """Bring the rows together for a block that needs all; the residual too where the next tail will be computed on all rows."""
        assert following is not None
        after = (following[0], "mlp") if following[1] == "attention" else (following[0] + 1, "attention")
        next_needs = self.needs(*after) if after[0] < self.spec.layers else "rows"
        residual_on_all = self.plan.reduction == "allreduce" and next_needs == "full"
        if self.spec.norm == "post":
            whole = self.sync("allgatherv", self.y, "y")
            self.y, self.y_at = whole, "full"
            if residual_on_all:
                self.x, self.x_at = whole, "full"
        elif residual_on_all:
            self.x, self.x_at = self.sync("allgatherv", self.x, "x"), "full"
            self.norm(norm)
        else:
            self.y, self.y_at = self.sync("allgatherv", self.y, "y"), "full"

    def finish(self) -> None:
        self.sync("gatherv", self.y, RESULT)


def _with_interfaces(steps: list[Step]) -> Program:
    """Fill in what each Compute reads from outside and what later steps need of it; drop what nobody reads."""
    needed: set[str] = {RESULT}
    result: list[Step] = []
    for step in reversed(steps):
        if isinstance(step, Sync):
            needed.add(step.reads)
            result.append(step)
            continue
        inside: set[str] = set()
        kept: list[Op] = []
        for op in reversed(step.ops):
            if any(name in needed or name in inside for name in op.writes):
                kept.append(op)
                inside.update(op.reads)
        kept.reverse()
        made = {name for op in kept for name in op.writes}
        writes = tuple(name for op in kept for name in op.writes if name in needed)
        reads = tuple(dict.fromkeys(name for op in kept for name in op.reads if name not in made))
        needed.update(reads)
        result.append(replace(step, ops=tuple(kept), reads=reads, writes=writes))
    return tuple(reversed(result))


def distributions(program: Program) -> dict[str, tuple[str, int]]:
    """Return, per value that outlives its Compute, how many rows of it a rank holds and its width in hiddens.

    The rows are "full" or "rows"; partial terms are full, and "root" is what rank 0 alone has.
    """
    result = {EMBEDDED: ("root", 1), RESULT: ("root", 1)}
    for step in program:
        if isinstance(step, Compute):
            for op in step.ops:
                for name in set(op.writes) & set(step.writes):
                    result[name] = (step.distribution, 2 if op.kind == "project" and name == op.writes[1] else 1)
        elif step.kind != "gatherv":
            result[step.writes] = ("full" if step.kind in ("bcast", "allreduce", "allgatherv") else "rows", step.width)
    return result


def buffers(program: Program) -> dict[str, int]:
    """Assign every value a buffer number such that no two values that live at once share one, by a linear scan.

    The embedding and the result are the root's and get no number.
    """
    last: dict[str, int] = {}
    for place, step in enumerate(program):
        for name in (step.reads,) if isinstance(step, Sync) else (*step.reads, *step.writes):
            last[name] = place
    ends: dict[int, list[str]] = {}
    for name, place in last.items():
        ends.setdefault(place, []).append(name)
    shape = distributions(program)
    numbers: dict[str, int] = {}
    free: dict[tuple[str, int], list[int]] = {}
    count = 0
    for place, step in enumerate(program):
        for name in (step.writes,) if isinstance(step, Sync) else step.writes:
            if name in (EMBEDDED, RESULT):
                continue
            pool = free.setdefault(shape[name], [])
            if pool:
                numbers[name] = pool.pop()
            else:
                numbers[name] = count
                count += 1
        for name in ends.get(place, ()):
            if name in numbers:
                free.setdefault(shape[name], []).append(numbers[name])
    return numbers
