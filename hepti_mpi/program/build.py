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

from hepti_mpi.models.blocks import KINDS, Norm
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.program import ops
from hepti_mpi.program.ops import Op
from hepti_mpi.program.ownership import EXCHANGES, ROOT, Holding
from hepti_mpi.program.plan import Plan

EMBEDDED = "embedded"  # [rows, hidden] on the root: what the layers start from
RESULT = "result"  # [rows, hidden] on the root: the last hidden state


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
REST = 4  # steps per tile that a buffer rests
FINAL = "final.norm"  # the weights of the norm behind the last layer


def make_program(spec: ModelSpec, plan: Plan) -> Program:
    """Return the steps of `plan` for a model of `spec`; with one active rank the layers are a single Compute."""
    builder = _Builder(spec, plan)
    builder.start()
    every = [(layer, kind) for layer in range(spec.layers) for kind in KINDS]
    for place, (layer, kind) in enumerate(every):
        following = every[place + 1] if place + 1 < len(every) else None
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
            both = (last.ops[-1], op)
            self.fenced |= any(isinstance(one, ops.Cast) for one in both) and any(one.weights() for one in both)
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
        cut, came = (tuple(self.new("half") for _ in values) for _ in range(2))
        targets = tuple(map(self.new, roles))
        if kind == "to_rows":
            self.cast(values, cut, "float16", "full", "heads")
        else:
            self.cast(values, cut, "float16", "rows")
        self.steps.append(Sync(kind, cut, came))
        if kind == "to_heads":
            self.cast(came, targets, "float32", "full", "heads")
        else:
            self.cast(came, targets, "float32", "rows" if kind == "to_rows" else "full")
        return targets

    def cast(self, values: tuple[str, ...], targets: tuple[str, ...], dtype: str, at: str, axis: str | None = None) -> None:
        """Append a cast: of all tiles at once where it is one of the own heads."""
        self.compute(ops.Cast(-1, values, targets, self.spec.hidden, dtype, axis=axis), at, tile=None if axis else 0)

    def start(self) -> None:
        first = self.needs(0, "attention")
        by_rows = first == "rows" or (self.plan.reduction == "reduce_scatter" and not self.single)
        (self.x,) = self.sync("scatterv" if by_rows else "bcast", (EMBEDDED,), "x")
        self.y, self.x_at = self.x, "rows" if by_rows else "full"
        self.y_at = self.x_at
        self.norm((0, KINDS[0]))
        if self.y_at != first:
            (self.y,), self.y_at = self.sync("allgatherv", (self.y,), "y"), first

    def norm(self, following: tuple[int, str]) -> None:
        """Append the norm of what the block that follows reads, if it has one."""
        norm, name = self.norm_before(following)
        if norm:
            self.y, self.y_at = self.new("y"), self.x_at
            self.compute(ops.Norm(-1, (self.x,), (self.y,), norm, name), self.x_at)

    def norm_before(self, following: tuple[int, str] | None) -> tuple[Norm | None, str]:
        """Return the norm in front of a block, or behind the last one, and what its weights are called."""
        if following is None:
            return self.spec.final_norm, FINAL
        layer, kind = following
        return self.spec.layer(layer).norm_before(kind), f"layers.{layer}.{kind}.norm"

    def attention(self, layer: int) -> None:
        """Append an attention, up to the term that the tail adds."""
        at, block = self.needs(layer, "attention"), self.spec.layer(layer).attention
        layout = "heads" if at == "full" else self.plan.layout(layer, "attention")
        axis = "heads" if at == "full" else None
        q, k, v = map(self.new, "qkv")
        if layout == "recompute":
            (whole,) = self.sync("allgatherv", (self.y,), "y")
            self.compute(ops.Project(layer, (self.y,), (q,), block, "q"), "rows")
            self.compute(ops.Project(layer, (whole,), (k, v), block, "kv"), "full")
        elif layout in ("rows", "alltoall"):  # Q is computed while K and V travel
            self.compute(ops.Project(layer, (self.y,), (k, v), block, "kv"), at)
            k, v = self.sync("allgatherv" if layout == "rows" else "to_heads", (k, v), "kv")
            self.compute(ops.Project(layer, (self.y,), (q,), block, "q"), at)
            if layout == "alltoall":
                (q,) = self.sync("to_heads", (q,), "q")
        else:
            self.compute(ops.Project(layer, (self.y,), (q, k, v), block, "qkv", axis=axis), at)
        if layout in ("rows", "recompute") or self.tiles > 1:
            self.fence()
        c = self.new("c")
        if layout == "alltoall":
            self.compute(ops.Mix(layer, (q, k, v), (c,), block, axis="heads"), "full", tile=None)
            (c,) = self.sync("to_rows", (c,), "c")
        else:
            self.compute(ops.Mix(layer, (q, k, v), (c,), block, axis=axis), at)
            if layout in ("rows", "recompute"):
                self.fence()
        self.p = self.new("p")
        self.term(ops.Out(layer, (c,), (self.p,), block, axis=axis), at)

    def mlp(self, layer: int) -> None:
        """Append an MLP, up to the term that the tail adds."""
        at, self.p = self.needs(layer, "mlp"), self.new("p")
        axis = "columns" if at == "full" else None
        self.term(ops.Mlp(layer, (self.y,), (self.p,), self.spec.layer(layer).mlp, axis=axis), at)

    def term(self, op: Op, at: str) -> None:
        """Append the last operation of a block."""
        self.compute(op, at)
        self.p_at = "partial" if op.gives().term and not self.single else at

    def tail(self, layer: int, kind: str, following: tuple[int, str] | None) -> None:
        """Append the residual sum and LayerNorm after a block, where the plan says that they are computed."""
        wanted = self.needs(*following) if following else "full" if self.single else "rows"
        place = wanted if self.single or (self.p_at == "partial" and self.plan.reduction == "allreduce") else "rows"
        if self.p_at == "partial":
            (self.p,) = self.sync("allreduce" if place == "full" else "reduce_scatter", (self.p,), "p")
        if self.x_at == "full" and place == "rows":
            (self.x,) = self.sync("slice", (self.x,), "x")
        here = self.spec.layer(layer)
        after, name = here.norm_after(kind), f"layers.{layer}.{kind}"
        norm, norm_name = (after, f"{name}.norm") if after else self.norm_before(following)
        assert norm, f"nothing follows {name}"
        reads, self.x, self.y = (self.x, self.p), self.new("x"), self.new("y")
        if after:
            self.x = self.y
        self.x_at = self.y_at = place
        writes = (self.y,) if self.x == self.y else (self.x, self.y)
        self.compute(ops.AddNorm(layer, reads, writes, norm, norm_name, here.block(kind).bias(name)), place)
        if place == "rows" and wanted == "full":
            self.gather(following)

    def gather(self, following: tuple[int, str] | None) -> None:
        """Bring the rows together for a block that needs all; the residual too where the next tail will be computed on all rows."""
        assert following is not None
        after = (following[0], "mlp") if following[1] == "attention" else (following[0] + 1, "attention")
        next_needs = self.needs(*after) if after[0] < self.spec.layers else "rows"
        residual_on_all = self.plan.reduction == "allreduce" and next_needs == "full"
        if self.x == self.y:
            (whole,) = self.sync("allgatherv", (self.y,), "y")
            self.y, self.y_at = whole, "full"
            if residual_on_all:
                self.x, self.x_at = whole, "full"
        elif residual_on_all:
            (self.x,), self.x_at = self.sync("allgatherv", (self.x,), "x"), "full"
            self.norm(following)
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
        cast = isinstance(step, Compute) and all(op.gives().dtype == "float16" for op in step.ops)  # goes with what it casts
        if step is None or (isinstance(step, Compute) and not cast):
            for tile in range(tiles):
                result += [replace(s, tile=tile) if s.tile is not None else s for s in stage if s.tile is not None or tile == 0]
            stage = []
        if step is not None:
            stage.append(step)
    return tuple(result)


def distributions(program: Program) -> dict[str, Value]:
    """Return what a rank holds of each value that outlives its Compute."""
    whole: set[str] = set()  # read by a step that sees all tiles, or by an operation that needs all of its rows
    for step in program:
        if isinstance(step, Compute):
            all_rows = {name for op in step.ops for name in op.whole()}
            whole.update(name for name in (*step.reads, *step.writes) if step.tile is None or name in all_rows)
    short: set[str] = set()  # of float16
    result = {EMBEDDED: Value("root", "hidden", None), RESULT: Value("root", "hidden", None)}
    for step in program:
        if isinstance(step, Compute):
            forms = {name: op.gives() for op in step.ops for name in op.writes}
            short.update(name for name in step.writes if forms[name].dtype == "float16")
            for name in step.writes:
                tile, form = None if name in whole else step.tile, forms[name]
                result[key(name, tile)] = Value(step.distribution, form.axis or "hidden", tile, name in short)
        elif step.want != ROOT:
            for read, name in zip(step.reads, step.writes):
                tile = None if name in whole else step.tile
                if read in short:  # what travels comes as it went
                    short.add(name)
                result[key(name, tile)] = Value(step.want.rows, step.want.columns, tile, name in short)
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
