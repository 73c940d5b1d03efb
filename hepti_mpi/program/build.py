"""From a model and a plan to the steps of one inference. Pure: knows layers, layouts and operations; no time, file, MPI or ONNX."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from hepti_mpi.models.blocks import KINDS, Attention, Norm
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.program import ops
from hepti_mpi.program.kept import Kept
from hepti_mpi.program.operation import Op
from hepti_mpi.program.ownership import EXCHANGES, Holding
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import EMBEDDED, KEPT_STEPS, RESULT, Compute, Program, Same, Step, Sync

FINAL = "final.norm"  # the weights of the norm behind the last layer
SEGMENT_BYTES = 1 << 30  # of layers that one segment may have: what no kernel reads from a file is in its model, which holds 2 GiB
PAGED_BYTES = 1 << 27  # the same where weights are mapped: a segment is in memory while its file is made, and where it is opened
_PROGRAMS: Kept[Program] = Kept(KEPT_STEPS)


def make_program(spec: ModelSpec, plan: Plan, everywhere: bool = False) -> Program:
    """Return the steps of `plan` for a model of `spec`; where requests stay whole on a rank, its layers are a single Compute, or as many as
    they need by their bytes.

    `everywhere`: where layers are divided by heads and columns, all ranks want the last rows, before they are gathered.
    """
    tiles = 1 if plan.keeps_requests else max(1, len(plan.tiles))
    segment = PAGED_BYTES if "mapped" in plan.weights_mode else SEGMENT_BYTES
    asked = _Asked(plan.layouts, plan.first, plan.wires, plan.reduction, tiles, segment, everywhere)
    return _PROGRAMS.get((Same(spec), asked), lambda: _steps(spec, asked), len)  # many plans, of one cluster after the other, have the same


class _Asked(NamedTuple):
    """All of a plan that its steps depend on: no counts. `segment`: bytes of layers that one may have; `everywhere`: as above."""

    layouts: tuple[tuple[str, str], ...]
    first: int
    wires: tuple[str, ...]
    reduction: str
    tiles: int
    segment: int
    everywhere: bool

    @property
    def numbers(self) -> range:
        """The numbers of the layers."""
        return range(self.first, self.first + len(self.layouts))


def _steps(spec: ModelSpec, asked: _Asked) -> Program:
    builder = _Builder(spec, asked)
    builder.start()
    every = [(layer, kind) for layer in asked.numbers for kind in KINDS]
    for place, (layer, kind) in enumerate(every):
        builder.wire = asked.wires[layer - asked.first]
        following = every[place + 1] if place + 1 < len(every) else None
        if not spec.layer(layer).parallel:
            builder.block(layer, kind)
        elif kind == "attention":
            builder.beside(layer)
            continue
        builder.tail(layer, kind, following)
    builder.finish()
    return _expanded(_with_interfaces(builder.steps), builder.tiles)


class _Builder:
    """Appends steps, which are repeated for every tile then, while it keeps the names and the distribution of the residual `x`, the block
    input `y` and the term `p`."""

    def __init__(self, spec: ModelSpec, asked: _Asked) -> None:
        self.spec, self.asked, self.tiles = spec, asked, asked.tiles
        whole = any(attention == "local" for attention, _ in asked.layouts)  # requests
        self.last = "full" if asked.everywhere and not whole else "rows"  # how the last rows are wanted
        self.most = max(1, asked.segment // spec.bytes_of_layer)  # layers of a segment
        behind = asked.numbers.stop  # the layer that follows the last one of the plan, where the model has one
        self.beyond = (behind, KINDS[0]) if behind < spec.layers else None
        self.steps: list[Step] = []
        self.versions: dict[str, int] = {}
        self.fenced = False
        self.wire = asked.wires[0]  # of the layer under way: of its exchanges, and of those that bring what it made to the next
        self.x = self.y = self.p = ""
        self.x_at = self.y_at = self.p_at = "full"

    def new(self, role: str) -> str:
        self.versions[role] = self.versions.get(role, -1) + 1
        return f"{role}{self.versions[role]}"

    def needs(self, layer: int, kind: str) -> str:
        return "full" if self.layout(layer, kind) in ("heads", "columns") else "rows"

    def layout(self, layer: int, kind: str) -> str:
        """Return how a block of a layer is divided."""
        return self.asked.layouts[layer - self.asked.first][0 if kind == "attention" else 1]

    def compute(self, op: Op, distribution: str) -> None:
        """Append `op`, to the segment under way where it may join that."""
        last = self.steps[-1] if self.steps else None
        if isinstance(last, Compute) and self.joins(last, op, distribution):
            self.steps[-1] = Compute((*last.ops, op), distribution)
        else:
            self.steps.append(Compute((op,), distribution))
        self.fenced = False

    def joins(self, last: Compute, op: Op, distribution: str) -> bool:
        """Tell whether `op` may join a segment: where it has the same distribution and nothing forbids it.

        Casts never join what has weights: its session is then the same for every wire.
        """
        if self.fenced or last.distribution != distribution:
            return False
        both, first = (last.ops[-1], op), next((one.layer for one in last.ops if one.layer >= 0), op.layer)
        cast = any(isinstance(one, ops.Cast) for one in both)
        return op.layer < first + self.most and not (cast and any(one.weights() for one in both))

    def fence(self) -> None:
        """Begin a new segment: what follows reads the other tiles too, or is to be shared with other plans."""
        self.fenced = True

    def sync(self, kind: str, values: tuple[str, ...], roles: str, width: int | None = None) -> tuple[str, ...]:
        """Append an exchange of values of `width` numbers in a row, None: as many as the residual has; return what comes of it."""
        width = width or self.spec.hidden
        if kind in ("allgatherv", "to_heads", "to_rows", "reduce_scatter") and self.wire != "float32":
            return self.short(kind, values, roles, width)
        if kind == "allreduce" and self.wire != "float32":
            return (self.short_sum(values[0], roles, width),)
        targets = tuple(map(self.new, roles)) if kind != "gatherv" else (RESULT,)
        self.steps.append(Sync(kind, values, targets, width=width))
        return targets

    def short(self, kind: str, values: tuple[str, ...], roles: str, width: int) -> tuple[str, ...]:
        """Exchange in the layer's short type; of a sum the own term stays float32, and so does what is added to it."""
        wire, (have, want) = self.wire, EXCHANGES[kind]
        scales = math.gcd(width, self.spec.kv_heads) if wire == "int8" else 0
        parts = ("short", "scale") if scales else ("short",)
        cut, came = (tuple(self.new(part) for _ in values for part in parts) for _ in range(2))
        targets = tuple(map(self.new, roles))
        self.cast(have, values, cut, ops.Cast(-1, (), (), width, self.spec.heads, wire, scales))
        if have.terms:
            self.steps.append(Sync(kind, (*values, *cut), targets, 0, width, wire, scales))
        else:
            self.steps.append(Sync(kind, cut, came, 0, width, wire, scales))
            self.cast(want, came, targets, ops.Cast(-1, (), (), width, self.spec.heads, "float32", scales))
        return targets

    def short_sum(self, term: str, role: str, width: int) -> str:
        """Sum a term up in the layer's short type, in which the sum travels too."""
        cut, came, target = self.new("short"), self.new("short"), self.new(role)
        have, want = EXCHANGES["allreduce"]
        self.cast(have, (term,), (cut,), ops.Cast(-1, (), (), width, self.spec.heads, self.wire))
        self.steps.append(Sync("allreduce", (cut,), (came,), 0, width, self.wire))
        self.cast(want, (came,), (target,), ops.Cast(-1, (), (), width, self.spec.heads, "float32"))
        return target

    def cast(self, held: Holding, reads: tuple[str, ...], writes: tuple[str, ...], like: ops.Cast) -> None:
        """Append a cast of values, like another one, as ranks hold them."""
        self.compute(replace(like, reads=reads, writes=writes, axis="heads" if held.columns == "heads" else None), held.rows)

    def start(self) -> None:
        first = self.needs(self.asked.first, "attention")
        by_rows = first == "rows" or self.asked.reduction == "reduce_scatter"
        (self.x,) = self.sync("scatterv" if by_rows else "bcast", (EMBEDDED,), "x")
        self.y, self.x_at = self.x, "rows" if by_rows else "full"
        self.y_at = self.x_at
        self.norm((self.asked.first, KINDS[0]))
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
            return self.spec.last, FINAL
        layer, kind = following
        return self.spec.layer(layer).norm_before(kind), f"layers.{layer}.{kind}.norm"

    def block(self, layer: int, kind: str) -> None:
        """Append a block, up to the term that the tail adds."""
        if kind == "attention":
            self.attention(layer)
        else:
            self.mlp(layer)

    def beside(self, layer: int) -> None:
        """Append both blocks of a layer that read the same residual, up to the sum of their terms."""
        x, y, at = self.x, self.y, self.y_at
        self.attention(layer)
        one, one_at = self.p, self.p_at
        norm, wanted = self.spec.layer(layer).norm_before("mlp"), self.needs(layer, "mlp")
        if norm:
            y, at = self.new("y"), self.x_at
            self.compute(ops.Norm(-1, (x,), (y,), norm, f"layers.{layer}.mlp.norm"), at)
        if at != wanted:
            (y,) = self.sync("slice" if wanted == "rows" else "allgatherv", (y,), "y")
        self.y = y
        self.mlp(layer)
        parts = [one, self.p]
        if one_at != self.p_at:
            for number, part_at in enumerate((one_at, self.p_at)):
                if part_at == "partial":
                    (parts[number],) = self.sync("reduce_scatter", (parts[number],), "p")
            self.p_at = "rows"
        self.p = self.new("p")
        self.fence()  # a rank without one of the blocks has zeros to add
        at = "full" if self.p_at == "partial" else self.p_at
        self.compute(ops.Join(-1, tuple(parts), (self.p,), self.spec.hidden, self.p_at == "partial"), at)
        self.fence()

    def attention(self, layer: int) -> None:
        """Append an attention, up to the term that the tail adds."""
        at, block = self.needs(layer, "attention"), self.spec.layer(layer).attention
        layout = "heads" if at == "full" else self.layout(layer, "attention")
        axis = "heads" if at == "full" else None
        if layout == "recompute":
            (whole,) = self.sync("allgatherv", (self.y,), "y")
            (q,) = self.project(layer, self.y, "q", block, "rows")
            k, v = self.project(layer, whole, "kv", block, "full")
        elif layout in ("rows", "alltoall"):  # Q is computed while K and V travel
            k, v = self.project(layer, self.y, "kv", block, at)
            k, v = self.sync("allgatherv" if layout == "rows" else "to_heads", (k, v), "kv", block.kv_width)
            (q,) = self.project(layer, self.y, "q", block, at)
            if layout == "alltoall":
                (q,) = self.sync("to_heads", (q,), "q", block.width)
        else:
            q, k, v = self.project(layer, self.y, "qkv", block, at, axis)
        if layout in ("rows", "recompute") or self.tiles > 1:
            self.fence()
        c = self.new("c")
        if layout == "alltoall":
            self.compute(ops.Mix(layer, (q, k, v), (c,), block, axis="heads"), "full")
            (c,) = self.sync("to_rows", (c,), "c", block.width)
        else:
            self.compute(ops.Mix(layer, (q, k, v), (c,), block, axis=axis), at)
            if layout in ("rows", "recompute"):
                self.fence()
        self.p = self.new("p")
        self.term(ops.Out(layer, (c,), (self.p,), block, axis=axis), at)

    def project(self, layer: int, y: str, matrices: str, block: Attention, at: str, axis: str | None = None) -> list[str]:
        """Append the product of rows with some of "qkv", and what is done with its heads where the rows are; return what comes of it."""
        made = dict(zip(matrices, map(self.new, matrices)))
        self.compute(ops.Project(layer, (y,), tuple(made.values()), block, matrices, axis=axis), at)
        normed = "".join(m for m in matrices if block.head_norm(m))
        turned = "".join(m for m in matrices if m != "v" and block.rotary)
        for kind, some in ((ops.HeadNorm, normed), (ops.Rotate, turned)):
            if some:
                reads, made = tuple(made[m] for m in some), made | {m: self.new(m) for m in some}
                self.compute(kind(layer, reads, tuple(made[m] for m in some), block, some, axis=axis), at)
        return list(made.values())

    def mlp(self, layer: int) -> None:
        """Append an MLP, up to the term that the tail adds."""
        at, self.p = self.needs(layer, "mlp"), self.new("p")
        axis = "columns" if at == "full" else None
        self.term(ops.Mlp(layer, (self.y,), (self.p,), self.spec.layer(layer).mlp, axis=axis), at)

    def term(self, op: Op, at: str) -> None:
        """Append the last operation of a block."""
        self.compute(op, at)
        self.p_at = "partial" if op.gives().term else at

    def tail(self, layer: int, kind: str, following: tuple[int, str] | None) -> None:
        """Append the residual sum and LayerNorm after a block, where the plan says that they are computed."""
        wanted = self.needs(*following) if following else self.last
        place = wanted if self.p_at == "partial" and self.asked.reduction == "allreduce" else "rows"
        if self.p_at == "partial":
            (self.p,) = self.sync("allreduce" if place == "full" else "reduce_scatter", (self.p,), "p")
        if self.x_at == "full" and place == "rows":
            (self.x,) = self.sync("slice", (self.x,), "x")
        here = self.spec.layer(layer)
        after, name = here.norm_after(kind), f"layers.{layer}.{kind}"
        norm, norm_name = (after, f"{name}.norm") if after else self.norm_before(following or self.beyond)
        reads, self.x, self.y = (self.x, self.p), self.new("x"), self.new("y")
        if after or norm is None:
            self.x = self.y
        self.x_at = self.y_at = place
        writes = (self.y,) if self.x == self.y else (self.x, self.y)
        self.compute(ops.AddNorm(layer, reads, writes, here, kind, norm, norm_name), place)
        if place == "rows" and wanted == "full":
            self.gather(following)

    def gather(self, following: tuple[int, str] | None) -> None:
        """Bring the rows together for a block that needs all; the residual too where the next tail will be computed on all rows."""
        assert following is not None
        one_tail = following[1] == "mlp" or self.spec.layer(following[0]).parallel
        after = (following[0] + 1, "attention") if one_tail else (following[0], "mlp")
        next_needs = self.needs(*after) if after[0] < self.asked.numbers.stop else "rows"
        residual_on_all = self.asked.reduction == "allreduce" and next_needs == "full"
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
        """Bring the result together: the residual where other layers go on with it."""
        self.sync("gatherv", (self.x if self.beyond else self.y,), "")


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
            if not (needed.isdisjoint(op.writes) and inside.isdisjoint(op.writes)):
                kept.append(op)
                inside.update(op.reads)
        kept.reverse()
        made = {name for op in kept for name in op.writes}
        writes = tuple(name for op in kept for name in op.writes if name in needed)
        reads = tuple(dict.fromkeys(name for op in kept for name in op.reads if name not in made))
        needed.update(reads)
        result.append(Compute(tuple(kept), step.distribution, reads, writes))
    return result[::-1]


def _expanded(steps: list[Step], tiles: int) -> Program:
    """Repeat per tile what is done per tile: each Compute together with the exchanges that follow it, so that a tile travels while
    the next one is computed, and with the casts of what it sends and of what came for it: else it would wait for the other tiles' too."""
    result: list[Step] = []
    stage: list[Step] = []
    for step in [*steps, None]:
        if step is None or (isinstance(step, Compute) and not _goes_on(stage, step)):
            for tile in range(tiles):
                result += [s if s.tile == tile else s.of_tile(tile) for s in stage]
            stage = []
        if step is not None:
            stage.append(step)
    return tuple(result)


def _goes_on(stage: Sequence[Step], step: Compute) -> bool:
    """Tell whether a Compute is done for a tile right behind a stage of that tile: a cast to a short type with what it casts, and what
    follows a cast to the long one, unless it reads that of all tiles."""
    if all(op.gives().dtype != "float32" for op in step.ops):
        return True
    last = stage[-1] if stage else None
    back = isinstance(last, Compute) and all(isinstance(op, ops.Cast) and op.dtype == "float32" for op in last.ops)
    return back and last is not None and not any(name in last.writes for op in step.ops for name in op.whole())
