"""The steps of one inference: what is computed between which exchanges. Pure: knows no time, file, MPI or ONNX.

A **program** is one flat tuple of `Compute` and `Sync` steps, the same for every rank: ranks differ only in how many heads,
columns and rows they hold (`Plan`). The cost model prices it, slicing lists its weights, the graph builder makes one ONNX
segment of each Compute and the engine walks it, so these four cannot disagree about what is done.

Every value is [rows, width] and has one of three distributions: `full` (every rank holds all rows), `rows` (rank i holds its own
rows) or `partial` (all rows of a term; the sum over ranks is the value). A block of a layer is computed by heads or
columns (needs full, gives partial) or by rows (needs rows, gives rows). After each block comes its tail: residual sum and LayerNorm.

The rows of a request may be cut into tiles, each divided among the ranks: a step is then done per tile, and while one tile travels
the next is computed. The order of the steps is one in which they can be done; `dependencies` says which must wait for which.
"""

from dataclasses import dataclass, replace

from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.program.ownership import EXCHANGES, ROOT, Holding
from hepti_mpi.program.plan import Plan

EMBEDDED = "embedded"  # [rows, hidden] on the root: what the layers start from
RESULT = "result"  # [rows, hidden] on the root: the last hidden state


@dataclass(frozen=True)
class Op:
    """One operation inside a Compute. `kind` is one of

    norm: y = LayerNorm(x); tail: x = x + p + bias, y = LayerNorm(x), with the weights of block `block` and of norm `norm`;
    project, project_q, project_kv: q, k, v of the rows, by the whole weights; mix: softmax(q k^T) v of all heads; out: p = c O;
    project_heads, mix_heads, out_heads: the same for the rank's own heads; mlp: p = the block on the rank's rows;
    mlp_columns: p = the term of the rank's columns; half, single: to float16, in which values travel on a short wire, and back.
    """

    kind: str
    layer: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    norm: str | None = None  # name of the norm's weights, without ".weight"
    bias: str | None = None  # name of the bias that a tail adds


@dataclass(frozen=True)
class Compute:
    """A run of operations without an exchange: one ONNX segment, the same for all tiles.

    All its rows are in one distribution, `full` or `rows`, and in tile `tile`, or in all tiles where that is None.
    """

    ops: tuple[Op, ...]
    distribution: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    tile: int | None = None


@dataclass(frozen=True)
class Sync:
    """An exchange between ranks that turns `reads` into `writes`, one for one.

    `kind`: what the move is called, of EXCHANGES: bcast and scatterv bring the embedding from the root; allreduce (partial to full),
    reduce_scatter (partial to rows), allgatherv (rows to full), to_heads (rows of all heads to all rows of the own heads) and to_rows
    (back); gatherv takes the result to the root; slice (full to rows) moves nothing.
    """

    kind: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    tile: int = 0

    @property
    def have(self) -> Holding:
        """How ranks hold what it reads."""
        return EXCHANGES[self.kind][0]

    @property
    def want(self) -> Holding:
        """How ranks hold what it writes."""
        return EXCHANGES[self.kind][1]


@dataclass(frozen=True)
class Value:
    """What a rank holds of a value that outlives its Compute. `rows`: "full", "rows" (its own) or "root" (all, on rank 0 alone);
    `columns`: "hidden" or "heads" (those of its own heads); `tile`: None where it spans all tiles; `half`: whether it is float16."""

    rows: str
    columns: str
    tile: int | None
    half: bool = False


Step = Compute | Sync
Program = tuple[Step, ...]
OUTER = ("bcast", "scatterv", "gatherv")
CASTS = ("half", "single", "half_heads", "single_heads")
WEIGHTLESS = (*CASTS, "mix", "mix_heads")
OF_HEADS = ("project_heads", "mix_heads", "half_heads", "single_heads")  # whose results have the columns of the own heads
REST = 4  # steps per tile that a buffer rests
HALF = "half"  # what names of float16 values begin with


def make_program(spec: ModelSpec, plan: Plan) -> Program:
    """Return the steps of `plan` for a model of `spec`; with one active rank the layers are a single Compute."""
    builder = _Builder(spec, plan)
    builder.start()
    blocks = [(layer, kind) for layer in range(spec.layers) for kind in ("attention", "mlp")]
    for place, (layer, kind) in enumerate(blocks):
        following = blocks[place + 1] if place + 1 < len(blocks) else None
        if kind == "attention":
            builder.attention(layer)
        else:
            builder.mlp(layer)
        builder.tail(layer, kind, following)
    builder.finish()
    return _expanded(_with_interfaces(builder.steps), builder.tiles)


class _Builder:
    """Appends steps, tile None for those that take all tiles at once and 0 for those that are done per tile, while it keeps the
    names and the distribution of the residual `x`, the block input `y` and the term `p`."""

    def __init__(self, spec: ModelSpec, plan: Plan) -> None:
        self.spec, self.plan = spec, plan
        self.single = len(plan.active) == 1
        self.tiles = 1 if self.single else max(1, len(plan.tiles))
        self.steps: list[Step] = []
        self.versions: dict[str, int] = {}
        self.fenced = False
        self.x = self.y = self.p = ""
        self.x_at = self.y_at = self.p_at = "full"

    def new(self, role: str) -> str:
        self.versions[role] = self.versions.get(role, -1) + 1
        return f"{role}{self.versions[role]}"

    def needs(self, layer: int, kind: str) -> str:
        return "full" if self.single or self.plan.layout(layer, kind) in ("heads", "columns") else "rows"

    def compute(self, op: Op, distribution: str, tile: int | None = 0) -> None:
        """Append `op`, to the segment under way where it has the same distribution and nothing forbids it.

        Casts never join what has weights: its session is then the same for every wire.
        """
        last = self.steps[-1] if self.steps else None
        if isinstance(last, Compute):
            kinds = (last.ops[-1].kind, op.kind)
            self.fenced |= any(kind in CASTS for kind in kinds) and any(kind not in WEIGHTLESS for kind in kinds)
        if isinstance(last, Compute) and (last.distribution, last.tile) == (distribution, tile) and not self.fenced:
            self.steps[-1] = replace(last, ops=(*last.ops, op))
        else:
            self.steps.append(Compute((op,), distribution, tile=tile))
        self.fenced = False

    def fence(self) -> None:
        """Begin a new segment: what follows reads the other tiles too, or is to be shared with other plans."""
        self.fenced = True

    def sync(self, kind: str, values: tuple[str, ...], roles: str) -> tuple[str, ...]:
        if self.single and kind not in ("bcast", "gatherv"):
            return values
        if kind in ("allgatherv", "to_heads", "to_rows") and self.plan.wire == "float16":
            return self.short(kind, values, roles)
        targets = tuple(map(self.new, roles)) if kind != "gatherv" else (RESULT,)
        self.steps.append(Sync(kind, values, targets))
        return targets

    def short(self, kind: str, values: tuple[str, ...], roles: str) -> tuple[str, ...]:
        """Exchange in float16."""
        cut, came = (tuple(self.new(HALF) for _ in values) for _ in range(2))
        targets = tuple(map(self.new, roles))
        if kind == "to_rows":
            self.compute(Op("half_heads", -1, values, cut), "full", tile=None)
        else:
            self.compute(Op("half", -1, values, cut), "rows")
        self.steps.append(Sync(kind, cut, came))
        if kind == "to_heads":
            self.compute(Op("single_heads", -1, came, targets), "full", tile=None)
        else:
            self.compute(Op("single", -1, came, targets), "rows" if kind == "to_rows" else "full")
        return targets

    def start(self) -> None:
        first = self.needs(0, "attention")
        by_rows = first == "rows" or (self.plan.reduction == "reduce_scatter" and not self.single)
        (self.x,) = self.sync("scatterv" if by_rows else "bcast", (EMBEDDED,), "x")
        self.y, self.x_at = self.x, "rows" if by_rows else "full"
        self.y_at = self.x_at
        if self.spec.norm == "pre":
            self.norm("layers.0.attention.norm")
        if self.y_at != first:
            (self.y,), self.y_at = self.sync("allgatherv", (self.y,), "y"), first

    def norm(self, name: str) -> None:
        self.y, self.y_at = self.new("y"), self.x_at
        self.compute(Op("norm", -1, (self.x,), (self.y,), norm=name), self.x_at)

    def attention(self, layer: int) -> None:
        at = self.needs(layer, "attention")
        layout = "heads" if at == "full" else self.plan.layout(layer, "attention")
        q, k, v = map(self.new, "qkv")
        if layout == "recompute":
            (whole,) = self.sync("allgatherv", (self.y,), "y")
            self.compute(Op("project_q", layer, (self.y,), (q,)), "rows")
            self.compute(Op("project_kv", layer, (whole,), (k, v)), "full")
        elif layout in ("rows", "alltoall"):  # Q is computed while K and V travel
            self.compute(Op("project_kv", layer, (self.y,), (k, v)), at)
            k, v = self.sync("allgatherv" if layout == "rows" else "to_heads", (k, v), "kv")
            self.compute(Op("project_q", layer, (self.y,), (q,)), at)
            if layout == "alltoall":
                (q,) = self.sync("to_heads", (q,), "q")
        else:
            self.compute(Op("project_heads" if at == "full" else "project", layer, (self.y,), (q, k, v)), at)
        if layout in ("rows", "recompute") or self.tiles > 1:
            self.fence()
        c, self.p = self.new("c"), self.new("p")
        if layout == "alltoall":
            self.compute(Op("mix_heads", layer, (q, k, v), (c,)), "full", tile=None)
            (c,) = self.sync("to_rows", (c,), "c")
        else:
            self.compute(Op("mix_heads" if at == "full" else "mix", layer, (q, k, v), (c,)), at)
            if layout in ("rows", "recompute"):
                self.fence()
        self.compute(Op("out_heads" if at == "full" else "out", layer, (c,), (self.p,)), at)
        self.p_at = "rows" if at == "rows" else "full" if self.single else "partial"

    def mlp(self, layer: int) -> None:
        at, self.p = self.needs(layer, "mlp"), self.new("p")
        self.compute(Op("mlp_columns" if at == "full" else "mlp", layer, (self.y,), (self.p,)), at)
        self.p_at = "rows" if at == "rows" else "full" if self.single else "partial"

    def tail(self, layer: int, kind: str, following: tuple[int, str] | None) -> None:
        """Append the residual sum and LayerNorm after a block, where the plan says that they are computed."""
        wanted = self.needs(*following) if following else "full" if self.single else "rows"
        place = wanted if self.single or (self.p_at == "partial" and self.plan.reduction == "allreduce") else "rows"
        if self.p_at == "partial":
            (self.p,) = self.sync("allreduce" if place == "full" else "reduce_scatter", (self.p,), "p")
        if self.x_at == "full" and place == "rows":
            (self.x,) = self.sync("slice", (self.x,), "x")
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
            (whole,) = self.sync("allgatherv", (self.y,), "y")
            self.y, self.y_at = whole, "full"
            if residual_on_all:
                self.x, self.x_at = whole, "full"
        elif residual_on_all:
            (self.x,), self.x_at = self.sync("allgatherv", (self.x,), "x"), "full"
            self.norm(norm)
        else:
            (self.y,), self.y_at = self.sync("allgatherv", (self.y,), "y"), "full"

    def finish(self) -> None:
        self.sync("gatherv", (self.y,), "")


def _with_interfaces(steps: list[Step]) -> list[Step]:
    """Fill in what each Compute reads from outside and what later steps need of it; drop what nobody reads."""
    needed: set[str] = {RESULT}
    result: list[Step] = []
    for step in reversed(steps):
        if isinstance(step, Sync):
            needed.update(step.reads)
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
    return result[::-1]


def _expanded(steps: list[Step], tiles: int) -> Program:
    """Repeat per tile what is done per tile: each Compute together with the exchanges that follow it, so that a tile travels while
    the next one is computed."""
    result: list[Step] = []
    stage: list[Step] = []
    for step in [*steps, None]:
        cast = isinstance(step, Compute) and all(op.kind.startswith(HALF) for op in step.ops)  # goes with what it casts
        if step is None or (isinstance(step, Compute) and not cast):
            for tile in range(tiles):
                result += [replace(s, tile=tile) if s.tile is not None else s for s in stage if s.tile is not None or tile == 0]
            stage = []
        if step is not None:
            stage.append(step)
    return tuple(result)


def distributions(program: Program) -> dict[str, Value]:
    """Return what a rank holds of each value that outlives its Compute."""
    whole: set[str] = set()  # read by a step that sees all tiles, or read by mix as keys and values
    for step in program:
        if isinstance(step, Compute):
            mixed = {name for op in step.ops if op.kind.startswith("mix") for name in op.reads[1:]}
            whole.update(name for name in (*step.reads, *step.writes) if step.tile is None or name in mixed)
    result = {EMBEDDED: Value("root", "hidden", None), RESULT: Value("root", "hidden", None)}
    for step in program:
        if isinstance(step, Compute):
            own = {name for op in step.ops if op.kind in OF_HEADS for name in op.writes}
            for name in step.writes:
                tile = None if name in whole else step.tile
                columns = "heads" if name in own else "hidden"
                result[key(name, tile)] = Value(step.distribution, columns, tile, name.startswith(HALF))
        elif step.want != ROOT:
            for name in step.writes:
                tile = None if name in whole else step.tile
                result[key(name, tile)] = Value(step.want.rows, step.want.columns, tile, name.startswith(HALF))
    return result


def key(name: str, tile: int | None) -> str:
    """Return what a tile of a value is called; the value itself where it spans all tiles."""
    return name if tile is None else f"{name}.{tile}"


def named(values: dict[str, Value], name: str, tile: int | None) -> str:
    """Return the key under which a step of `tile` finds `name`."""
    return name if name in values else key(name, tile)


def interface(values: dict[str, Value], step: Step) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the keys of what a step reads and of what it writes, or writes a part of."""
    reads, writes = (tuple(named(values, name, step.tile) for name in names) for names in (step.reads, step.writes))
    return reads, writes


def dependencies(program: Program) -> tuple[frozenset[int], ...]:
    """Return, per step, the earlier steps that must be done before it: those that write what it reads, and those that use a buffer
    that it overwrites. Several tiles fill a value together, so they do not wait for each other."""
    values, numbers = distributions(program), buffers(program)
    writers: dict[str, set[int]] = {}
    occupant: dict[int, str] = {}  # per buffer the value in it
    users: dict[str, set[int]] = {}
    freed: dict[str, set[int]] = {}  # per value, the users of the value whose buffer it took
    result = []
    for place, step in enumerate(program):
        reads, writes = interface(values, step)
        needed: set[int] = set().union(*(writers.get(name, set()) for name in reads))
        for name in writes:
            number = numbers.get(name)
            if number is not None and occupant.get(number) != name:
                freed[name] = users.get(occupant.get(number, ""), set())
                occupant[number] = name
            needed |= freed.get(name, set())
        for name in (*reads, *writes):
            users.setdefault(name, set()).add(place)
        for name in writes:
            writers.setdefault(name, set()).add(place)
        result.append(frozenset(needed))
    return tuple(result)


def buffers(program: Program) -> dict[str, int]:
    """Assign every value a buffer number such that no two values that live at once share one, by a linear scan.

    The embedding and the result are the root's and get no number. A buffer rests a while before it is used again, since what takes
    it over must wait for what still travels out of it.
    """
    values = distributions(program)
    rest = REST * (1 + max(step.tile or 0 for step in program))
    last: dict[str, int] = {}
    for place, step in enumerate(program):
        for names in interface(values, step):
            last |= dict.fromkeys(names, place)
    ends: dict[int, list[str]] = {}
    for name, place in last.items():
        ends.setdefault(place + rest, []).append(name)
    numbers: dict[str, int] = {}
    free: dict[Value, list[int]] = {}
    count = 0
    for place, step in enumerate(program):
        for name in interface(values, step)[1]:
            if name in (EMBEDDED, RESULT) or name in numbers:
                continue
            pool = free.setdefault(values[name], [])
            if pool:
                numbers[name] = pool.pop()
            else:
                numbers[name] = count
                count += 1
        for name in ends.get(place, ()):
            if name in numbers:
                free.setdefault(values[name], []).append(numbers[name])
    return numbers
