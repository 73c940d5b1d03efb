"""Who does what of the layers: the plan and its hash. Knows no time and no cost; how one is found is planning's business."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from hepti_mpi import splits
from hepti_mpi.errors import PlanError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.models.untrusted import is_number
from hepti_mpi.wording import counted

LAYOUTS = {"attention": ("heads", "rows", "alltoall", "recompute", "local"), "mlp": ("columns", "rows")}
REDUCTIONS = ("allreduce", "reduce_scatter")
COLLECTIVES = ("mpi", "own")
WIRES = ("float32", "float16", "int8")
SUMS = WIRES[:2]  # in which whole sums of texts travel
Wire = str | tuple[str, ...]  # one type of WIRES for all layers, or, where they differ, one for each
MOST_PROMPT_TILES, LEAST_TILE_ROWS = 4, 16
WHOLE = ("local", "rows")  # the layout in which nothing travels


@dataclass(frozen=True)
class Plan:
    """The division of a run of a model's layers over the ranks of a job or, as a part of a placement, over those of a stage.

    `layers`: per layer its (attention, mlp) layout, of LAYOUTS. `first`: the number of the first of them.
    `heads`, `columns`: per rank, how many query heads and columns it holds; each sums to the model's count or, where no layer is so
    divided, is all 0. What is read by query heads of several ranks, of K and V, is on each of them.
    `rows`: per rank, its rows of a request of `planned_rows`; other requests are divided in the same proportion.
    `weights_mode`: per rank "packed" or "mapped".
    `reduction`: how partial sums become full rows: "allreduce", or "reduce_scatter" with the tail on rows and an Allgatherv.
    `collectives`: "mpi": MPI's own, each waited for before the next step; "own": messages that travel while ranks compute.
    `wire`: what travels within a layer and from it to the next: "float32"; "float16", which halves the bytes and rounds; or "int8" with a
    scale for each row of each head's width, about a quarter of them. One type for all layers, or one for each. Of texts: of their sums.
    `tiles`: per tile of consecutive rows, the rows of each rank in it; () is one tile, `rows`. Tiles travel while others are computed.
    `prompt_tiles`: of a plan for texts, into how many tiles a piece of a prompt is cut, whose sums travel while others are computed.

    Attention by "rows" gathers K and V, "alltoall" exchanges rows for heads and back (DeepSpeed-Ulysses, Jacobs et al., 2023,
    arXiv 2309.14509), "recompute" gathers the block's input and computes K and V of all rows everywhere, "local" keeps whole
    requests on one rank. All four hold the block's whole weights.
    """

    model: str
    source_hash: str
    layers: tuple[tuple[str, str], ...]
    heads: tuple[int, ...]
    columns: tuple[int, ...]
    rows: tuple[int, ...]
    hosts: tuple[str, ...]
    weights_mode: tuple[str, ...]
    reduction: str = "allreduce"
    collectives: str = "mpi"
    wire: Wire = "float32"
    tiles: tuple[tuple[int, ...], ...] = ()
    first: int = 0
    prompt_tiles: int = 1
    predicted_seconds: float | None = field(default=None, compare=False)

    @classmethod
    def lone(
        cls, spec: ModelSpec, source_hash: str, rows: int = 1, numbers: range | None = None, host: str = "here", mode: str = "packed"
    ) -> "Plan":  # fmt: skip
        """Return that of one rank, for requests of `rows` rows; `numbers`: of its layers, where these are not all."""
        some = range(spec.layers) if numbers is None else numbers
        return cls(spec.name, source_hash, (WHOLE,) * len(some), (0,), (0,), (rows,), (host,), (mode,), first=some.start)

    @property
    def numbers(self) -> range:
        """The numbers of its layers in the model."""
        return range(self.first, self.first + len(self.layers))

    @property
    def ranks(self) -> int:
        return len(self.hosts)

    @property
    def planned_rows(self) -> int:
        return sum(self.rows)

    @cached_property
    def active(self) -> tuple[int, ...]:
        """The ranks that hold a part of the layers."""
        return tuple(r for r in range(self.ranks) if self.heads[r] or self.columns[r] or self.rows[r])

    @property
    def divided(self) -> bool:
        """Whether several ranks divide the layers."""
        return not splits.alone(self.active)

    @cached_property
    def layouts(self) -> tuple[tuple[str, str], ...]:
        """The layouts that its layers come to: a rank that has nobody to divide them with keeps requests whole, whatever `layers` says."""
        return (WHOLE,) * len(self.layers) if not self.divided else self.layers

    @cached_property
    def wires(self) -> tuple[str, ...]:
        """The type that travels, by layer."""
        return (self.wire,) * len(self.layers) if isinstance(self.wire, str) else self.wire

    @property
    def shortest(self) -> str:
        """The shortest type that travels in one of its layers."""
        return max(self.wires, key=WIRES.index)

    @property
    def keeps_requests(self) -> bool:
        """Whether each request stays on one rank: then nothing travels between the layers, and rows are not cut into tiles."""
        return any(attention == "local" for attention, _ in self.layouts)

    @property
    def strategy(self) -> str:
        if not self.divided:
            return "single"
        kinds = {self.strategy_of(layout) for layout in self.layers}
        return kinds.pop() if len(kinds) == 1 else "mix"

    @staticmethod
    def strategy_of(layout: tuple[str, str]) -> str:
        by_weights = (layout[0] == "heads") + (layout[1] == "columns")
        return ("sequence", "hybrid", "tensor")[by_weights]

    def tile_counts(self, rows: int) -> tuple[tuple[int, ...], ...]:
        """Divide a request of `rows` rows: [tiles][ranks] counts, tile after tile in the order of the rows."""
        tiles = self.tiles or (self.rows,)
        if rows == self.planned_rows:
            return tiles
        flat = splits.split(rows, [count for tile in tiles for count in tile])
        return tuple(flat[at : at + self.ranks] for at in range(0, len(flat), self.ranks))

    def counts(self, lengths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Divide a batch of requests of `lengths` rows, [tiles][ranks] counts; whole requests where attention is local."""
        if self.keeps_requests:
            return (splits.cut(lengths, self.rows),)
        return self.tile_counts(sum(lengths))

    def row_counts(self, rows: int) -> tuple[int, ...]:
        """Return the rows of each rank for a request of `rows` rows."""
        return tuple(map(sum, zip(*self.tile_counts(rows))))

    @cached_property
    def hash(self) -> str:
        """Identify what is done: everything but the prediction."""
        data = {key: value for key, value in asdict(self).items() if key != "predicted_seconds"}
        if self.prompt_tiles == 1:  # as in files from before there were any
            del data["prompt_tiles"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return {"strategy": self.strategy, "hash": self.hash, **asdict(self)}


def tiles_of(tiles: int, rows: int) -> int:
    """Return into how many tiles a piece of a prompt is cut that has so many rows."""
    return max(1, min(tiles, rows // LEAST_TILE_ROWS))


def kind_of(plan: Plan) -> str:
    """Return what distinguishes candidates in a table: the layout, or how many layers have which."""
    if not plan.divided:
        return plan.strategy
    runs = {layout: plan.layers.count(layout) for layout in dict.fromkeys(plan.layers)}
    layouts = " + ".join(f"{'/'.join(layout)}" + (f" x{count}" if len(runs) > 1 else "") for layout, count in runs.items())
    tiles = f", {len(plan.tiles)} tiles" if len(plan.tiles) > 1 else ""
    short, where = in_words(plan.wire)
    wire = f", {short} wire{where}" if short != WIRES[0] else ""
    if plan.prompt_tiles > 1:
        return f"{layouts}, prompts in {plan.prompt_tiles} tiles{wire}"
    return layouts + tiles + wire + (", MPI collectives" if plan.collectives == "mpi" else "")


def wire_of(types: Sequence[str]) -> Wire:
    """Return the wire by which such types travel, layer by layer."""
    return types[0] if len(set(types)) == 1 else tuple(types)


def in_words(wire: Wire) -> tuple[str, str]:
    """Return the shortest type of a wire and in which of the layers it travels: " in 14 of 24 layers", or "" where that is all of them."""
    if isinstance(wire, str):
        return wire, ""
    short = max(wire, key=WIRES.index)
    return short, f" in {wire.count(short)} of {counted(len(wire), 'layers')}"


def from_json(data: dict[str, Any]) -> Plan:
    """Rebuild a plan. Raises KeyError, TypeError or ValueError when something is missing or of the wrong kind."""
    return Plan(
        model=str(data["model"]), source_hash=str(data["source_hash"]),
        layers=tuple((str(a), str(m)) for a, m in data["layers"]),
        heads=_counts(data["heads"]), columns=_counts(data["columns"]), rows=_counts(data["rows"]),
        hosts=tuple(str(h) for h in data["hosts"]), weights_mode=tuple(str(m) for m in data["weights_mode"]),
        reduction=str(data["reduction"]), collectives=str(data["collectives"]), wire=_wire(data["wire"]),
        tiles=tuple(_counts(tile) for tile in data["tiles"]), first=_counts([data["first"]])[0],
        prompt_tiles=_counts([data.get("prompt_tiles", 1)])[0],
        predicted_seconds=_seconds(data.get("predicted_seconds")),
    )


def _seconds(value: Any) -> float | None:
    if value is not None and not is_number(value):
        raise ValueError(f"predicted_seconds {value!r} is not a number")
    return value


def _wire(value: Any) -> Wire:
    if isinstance(value, str):
        return value
    if not value or not set(value) <= set(WIRES):
        raise ValueError(f"wire {value!r} is not one of {', '.join(WIRES)} for each layer")
    return wire_of(value)


def _counts(values: Any) -> tuple[int, ...]:
    if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
        raise ValueError(f"counts {values!r} are not non-negative integers")
    return tuple(values)


def granules_fit(columns: Sequence[int], granule: int) -> bool:
    """Tell whether every part that is not empty starts at a multiple of `granule`."""
    return not any(start % granule for start, count in zip(splits.starts(columns), columns) if count)


def check_model(plan: Plan, spec: ModelSpec, source_hash: str) -> None:
    """Refuse a plan that is for another model. Raises PlanError."""
    if plan.source_hash != source_hash:
        made, held = f"{plan.model} with source hash {plan.source_hash[:12]}", f"{spec.name} with {source_hash[:12]}"
        mend = "name the store of that model (run --weights STORE) or a plan for this one"
        raise PlanError(f"the plan is for model {made}, the store holds {held}; {mend}")


def other_ranks(planned: int, there: int, where: str, start: Callable[[int], str] | None) -> PlanError:
    """Return that a plan is for another number of ranks than there are; `start`: what says how a job of so many is started."""
    how = f"; start it {start(planned)}" if start else ""
    return PlanError(f"the plan is for {counted(planned, 'ranks')}, {where} has {there}{how}")


def check(
    plan: Plan, spec: ModelSpec, source_hash: str, ranks: int, part: bool = False, start: Callable[[int], str] | None = None
) -> None:  # fmt: skip
    """Refuse a plan that is not one for this model and this number of ranks; `part`: for a run of its layers. Raises PlanError naming both
    numbers and, by the words of `start`, how a job is started that has as many ranks as the plan."""
    check_model(plan, spec, source_hash)
    if plan.ranks != ranks:
        raise other_ranks(plan.ranks, ranks, "its stage" if part else "this job", start)
    if not plan.layers or plan.numbers.stop > spec.layers or not (part or len(plan.layers) == spec.layers):
        there = f"layers {plan.first} to {plan.numbers.stop - 1}" if plan.first else counted(len(plan.layers), "layers")
        raise PlanError(f"the plan has {there}, model {spec.name} has {spec.layers}")
    for attention, mlp in plan.layers:
        if attention not in LAYOUTS["attention"] or mlp not in LAYOUTS["mlp"]:
            raise PlanError(f"the plan has an unknown layout {attention}/{mlp}")
    if not len(plan.heads) == len(plan.columns) == len(plan.rows) == len(plan.weights_mode) == plan.ranks:
        raise PlanError(f"the plan's lists have different lengths, expected {counted(plan.ranks, 'entries')} each")
    used = {layout for pair in plan.layers for layout in pair}
    by_heads, by_columns = used & {"heads", "alltoall"}, "columns" in used
    for what, wanted, counts, total in (("heads", by_heads, plan.heads, spec.heads), ("columns", by_columns, plan.columns, spec.ffn)):
        if sum(counts) != (total if wanted else 0):
            raise PlanError(f"the plan has {sum(counts)} {what}, model {spec.name} has {total}")
    for what, counts, granule in (("heads", plan.heads, spec.head_granule), ("columns", plan.columns, spec.column_granule)):
        if not granules_fit(counts, granule):
            raise PlanError(f"the plan's {what} do not start at multiples of {granule}")
    if plan.planned_rows < 1:
        raise PlanError("the plan has no rows")
    for what, known, values in (
        ("reduction", REDUCTIONS, (plan.reduction,)), ("collectives", COLLECTIVES, (plan.collectives,)), ("wire", WIRES, plan.wires),
    ):  # fmt: skip
        for value in values:
            if value not in known:
                raise PlanError(f"the plan has {what} {value!r}, expected {' or '.join(known)}")
    if len(plan.wires) != len(plan.layers):
        raise PlanError(f"the plan has a wire for {counted(len(plan.wires), 'layers')} and {counted(len(plan.layers), 'layers')}")
    if plan.tiles and (any(len(tile) != ranks for tile in plan.tiles) or plan.row_counts(plan.planned_rows) != plan.rows):
        raise PlanError("the plan's tiles do not add up to its rows")
    if "local" in used and ({attention for attention, _ in plan.layers} != {"local"} or len(plan.tiles) > 1):
        raise PlanError("the plan keeps requests whole in some layers only, or cuts them into tiles")
    by_sums = plan.reduction == "allreduce" and plan.collectives == "mpi"
    short = plan.shortest != WIRES[0] and not (spec.generates and by_sums and plan.shortest in SUMS)
    if plan.collectives == "mpi" and (len(plan.tiles) > 1 or short or "alltoall" in used):
        raise PlanError("the plan has tiles, a short wire or an alltoall, for which it needs collectives 'own'")
    if plan.prompt_tiles not in range(1, (MOST_PROMPT_TILES if by_sums else 1) + 1):
        most = f"expected 1 to {MOST_PROMPT_TILES}, and 1 without reduction 'allreduce' by collectives 'mpi'"
        raise PlanError(f"the plan has {plan.prompt_tiles} as prompt_tiles, {most}")
    if plan.collectives == "own" and plan.reduction == "allreduce" and used & {"heads", "columns"}:
        raise PlanError("the plan has collectives 'own', which reduce with 'reduce_scatter'")
    if not set(plan.weights_mode) <= {"packed", "mapped"}:
        raise PlanError(f"the plan has weights modes {plan.weights_mode}, expected packed or mapped")
