"""What a store holds and what a profile says, as text and as JSON. Pure: reads open objects, prints nothing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

from hepti_mpi import splits
from hepti_mpi.cluster.boards import FIGURES, Board, Call, cluster_of, read_boards
from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.errors import CapacityError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.search import choose
from hepti_mpi.planning.texts import decide
from hepti_mpi.program.plan import Plan
from hepti_mpi.reporting.tables import milliseconds, size, table
from hepti_mpi.weights.calibration import Accuracy
from hepti_mpi.weights.prepacked import Entry
from hepti_mpi.weights.slices import Part, root_slices, whole_slices
from hepti_mpi.weights.store import Store
from hepti_mpi.wording import counted

RANK_COUNTS = (1, 2, 3, 4, 8)
BOARD_ROWS = 128  # of the request that described boards are reckoned with
STRATEGIES = {
    "tensor": ("heads", "columns"),
    "hybrid heads/rows": ("heads", "rows"),
    "hybrid rows/columns": ("rows", "columns"),
    "sequence": ("rows", "rows"),
}


def inspection_lines(store: Store, width: int | None = None) -> str:
    """Return the model's description, and the bytes of the fullest rank per strategy for even plans of some rank counts."""
    spec = store.spec
    slices = whole_slices(spec)
    parameters = sum(piece.numbers for piece in slices)
    lines = [
        f"{store.path}: {spec.family} {spec.name}, head {spec.head}" + (f", {counted(len(spec.labels), 'labels')}" if spec.labels else ""),
        f"{counted(spec.layers, 'layers')}, hidden {spec.hidden}, {counted(spec.heads, 'heads')} of {spec.head_dim}, ffn {spec.ffn}, "
        f"at most {counted(spec.positions, 'rows')}{_cut(spec)}, {spec.layer(0).mlp.activation}",
        *(f"{counted(count, 'layers')}: {layer.described}" for layer, count in Counter(spec.each()).items()),
        f"{parameters:,} parameters, {size(sum(piece.bytes for piece in slices))}; source {store.source_hash[:12]}; "
        f"files: {', '.join(store.files) or 'none'}",
    ]
    if spec.formats:
        lines.append("formats: " + ", ".join(f"{name} {size(bytes_)}" for name, bytes_ in format_bytes(store).items()))
        lines.append(accuracy_line(store.accuracy) if store.accuracy else "what the formats cost was not measured")
    if len(store.names) < len(store.weights):
        lines.append(f"a rank's part: {len(store.names)} of {len(store.weights)} tensors")
    rows = [(name, *(size(_fullest(store, layout, ranks)) for ranks in RANK_COUNTS)) for name, layout in STRATEGIES.items()]
    outer = sum(piece.bytes for piece in root_slices(spec))
    counts = (counted(ranks, "ranks") for ranks in RANK_COUNTS)
    lines += ["", "bytes of a rank's layers, even plan", table(("", *counts), rows, width)]
    lines.append(f"rank 0 also reads embedding and head: {size(outer)}, mapped from the file")
    kinds = ("first token ms", "ms of a token") if spec.generates else ("predicted ms",)
    lacks = ("does not fit", *[""] * (len(kinds) - 1))
    alone = [(name, *(lacks if taken is None else map(milliseconds, taken))) for name, taken in alone_on_boards(store).items()]
    lines += ["", table((f"{counted(min(BOARD_ROWS, spec.positions), 'rows')} on one described board alone", *kinds), alone, width)]
    return "\n".join([*lines, f"several: python -m hepti_mpi plan --weights {quote(str(store.path))} --boards pi4,pi4,pi4,pi4 --mbit 940"])


def _cut(spec: ModelSpec) -> str:
    """Say where texts are cut off before they fill all rows, because the checkpoint says so."""
    limit = int(spec.options.get("max_tokens") or spec.positions)
    return f" (texts are cut off behind {limit})" if limit < spec.positions else ""


def format_bytes(store: Store) -> dict[str, int]:
    """Return the bytes of a store's tensors by the format that they are in."""
    found: dict[str, int] = {}
    for piece in whole_slices(store.spec):
        found[piece.format.name] = found.get(piece.format.name, 0) + piece.bytes
    return found


def accuracy_line(found: Accuracy) -> str:
    """Return what formats cost."""
    exact = "float32" if found.against is None else f"the float32 numbers that {found.against} stood for"
    said = [
        f"against {exact}, on {counted(found.requests, 'built-in inputs')} of {counted(found.rows, 'rows')} by which nothing was decided: "
        f"hidden state off by {found.largest:.2g} at most and {found.median:.2g} in the median, where numbers are about {found.usual:.2g}",
        f"cosine of {'rows' if found.divergence is not None else 'embeddings, or what the head reads,'} {found.least_cosine:.5f} at least "
        f"and {found.median_cosine:.5f} in the median",
    ]
    if found.divergence is not None:
        said.append(f"KL divergence of the next word {found.divergence:.2g} in the mean")
    if found.perplexity is not None and found.exact_perplexity is not None:
        said.append(f"perplexity {found.perplexity:.5g} instead of {found.exact_perplexity:.5g}")
    if found.agreement is not None:
        said.append(f"the best {'label' if found.divergence is None else 'word'} is the same in {100 * found.agreement:.1f} %")
    return "; ".join(said)


def inspection_document(store: Store) -> dict[str, Any]:
    """Return the same as a JSON document, format hepti-inspection."""
    bytes_ = {name: {str(ranks): _fullest(store, layout, ranks) for ranks in RANK_COUNTS} for name, layout in STRATEGIES.items()}
    alone = alone_on_boards(store)
    return {
        "format": "hepti-inspection",
        "format_version": 1,
        "store": str(store.path),
        "source_hash": store.source_hash,
        "spec": store.spec.to_json(),
        "files": sorted(store.files),
        "format_bytes": format_bytes(store),
        "accuracy": asdict(store.accuracy) if store.accuracy else None,
        "parameters": sum(piece.numbers for piece in whole_slices(store.spec)),
        "outer_bytes": sum(piece.bytes for piece in root_slices(store.spec)),
        "fullest_rank_bytes": bytes_,
        "board_rows": min(BOARD_ROWS, store.spec.positions),
        "board_seconds": {name: taken and taken[0] for name, taken in alone.items()},
        **({"board_token_seconds": {name: taken and taken[1] for name, taken in alone.items()}} if store.spec.generates else {}),
    }


def _fullest(store: Store, layout: tuple[str, str], ranks: int) -> int:
    """Return the bytes of rank 0's layers when heads, columns and rows are divided evenly."""
    spec = store.spec
    granule = spec.group if ranks <= spec.kv_heads else spec.head_granule
    heads = splits.split(spec.heads if layout[0] == "heads" else 0, (1,) * ranks, granule)
    columns = splits.split(spec.ffn if layout[1] == "columns" else 0, (1,) * ranks, spec.column_granule)
    rows = splits.even(max(ranks, 128), ranks)
    plan = Plan(spec.name, store.source_hash, (layout,) * spec.layers, heads, columns, rows, ("",) * ranks, ("packed",) * ranks)
    return max(sum(piece.bytes for piece in set(Part(spec, plan, rank).slices) - set(root_slices(spec))) for rank in range(ranks))


def kept_lines(folder: Path, found: Sequence[Entry], gone: Sequence[Entry], width: int | None = None) -> str:
    """Return what is kept in a folder of weights as kernels read them, model by model, and what was removed."""
    rows = []
    for (model, source), every in _by_model(found).items():
        old = [entry for entry in every if entry.old]
        last = min(entry.age for entry in every)
        sizes = (size(sum(entry.bytes for entry in ones)) for ones in (every, old))
        rows.append((model, source[:12], str(len(every)), *sizes, ago(last)))
    lines = [f"{folder}: {counted(len(found), 'entries')}, {size(sum(entry.bytes for entry in found))}"]
    if rows:
        lines.append(table(("model", "source", "entries", "bytes", "old", "last used"), rows, width))
    if gone:
        lines.append(f"removed {counted(len(gone), 'entries')}, {size(sum(entry.bytes for entry in gone))}")
    elif any(entry.old for entry in found):
        lines.append("old ones, not used for a day or of another processor, go with --clear old; each is made again when it is wanted")
    return "\n".join(lines)


def kept_document(folder: Path, found: Sequence[Entry], gone: Sequence[Entry]) -> dict[str, Any]:
    """Return the same as a JSON document, format hepti-kept-weights."""
    every = [{"name": one.path.name, "bytes": one.bytes, "unused_seconds": round(one.age), "old": one.old, **one.of} for one in found]
    removed = {"entries": len(gone), "bytes": sum(entry.bytes for entry in gone)}
    return {"format": "hepti-kept-weights", "format_version": 1, "folder": str(folder), "entries": every, "removed": removed}


def _by_model(found: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    every: dict[tuple[str, str], list[Entry]] = {}
    for entry in found:
        unknown = "not known" if entry.whole else "not finished"
        every.setdefault((entry.of.get("model", unknown), entry.of.get("source", "-")), []).append(entry)
    return every


def ago(seconds: float) -> str:
    """Return how long something is past: 5 minutes ago."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{counted(int(seconds // length), unit)} ago"
    return "just now"


def profile_lines(profile: ClusterProfile, width: int | None = None) -> str:
    """Return a table of what was measured per rank."""
    rows = []
    for rank, node in enumerate(profile.nodes):
        speeds = [f"{2e-9 / (seconds / count):.1f}" for count, seconds in zip(node.gemm_rows, node.gemm_seconds_per_weight)]
        others = [j for j in range(len(profile.nodes)) if j != rank]
        latency = max((profile.latency_seconds[rank][j] for j in others), default=0.0)
        bandwidth = min((profile.bytes_per_second[rank][j] for j in others), default=0.0)
        link = (f"{latency * 1e6:.0f}", f"{bandwidth * 8e-6:.0f}" if others else "-")
        rows.append((f"rank {rank} on {node.host}", str(node.threads), *speeds, *link, size(node.memory_bytes)))
    head = ("", "threads", *(counted(count, "rows") for count in profile.nodes[0].gemm_rows), "latency us", "Mbit/s", "memory")
    return "GFLOP/s of matrix products by rows; the slowest link of each rank\n" + table(head, rows, width)


def board_lines(names: Sequence[str], mbit: float, latency_us: float) -> str:
    """Return what is reckoned with for these boards: every figure with its source."""
    known, lines = read_boards(), []
    for name in dict.fromkeys(names):
        board = known[name]
        lines += [f"{name}: {board.title}", *(f"  {_figure(board, key)}: {board.sources[key]}" for key in FIGURES)]
    lines.append(f"links of {mbit:.10g} Mbit/s and {latency_us:.10g} us; nothing of this was measured here")
    return "\n".join(lines)


def _figure(board: Board, key: str) -> str:
    said = {
        "float32_gflops": f"{board.float32 * 1e-9:g} GFLOP/s float32", "int8_gops": f"{board.int8 * 1e-9:g} Gop/s int8",
        "int4_gops": f"{board.int4 * 1e-9:g} Gop/s 4 bits", "memory_gbs": f"{board.memory * 1e-9:g} GB/s",
        "call_us": f"{board.call_seconds * 1e6:g} us a call",
    }  # fmt: skip
    return said[key]


def call_lines(board: Board, calls: Sequence[Call], width: int | None = None) -> str:
    """Return a table of what real calls took, what the board's description says, and how the two are to each other."""
    rows = []
    for call in calls:
        said, what = board.seconds(call.work), f"{call.kind}, {call.what}{f', {call.weights}' * bool(call.weights)}"
        rows.append((what, f"{call.seconds * 1e6:.1f}", f"{said * 1e6:.1f}", f"{said / call.seconds:.2f}"))
    return table(("", "real us", "described us", "described / real"), rows, width)


def description_document(board: Board, calls: Sequence[Call]) -> dict[str, Any]:
    """Return a described board and its calls as a JSON document, format hepti-board."""
    figures = {"float32_flops": board.float32, "int8_ops": board.int8, "int4_ops": board.int4, "memory_bytes_per_second": board.memory}
    return {
        "format": "hepti-board", "format_version": 1, "name": board.name, "title": board.title, "cores": board.cores,
        "memory_bytes": board.memory_bytes, **{key: float(f"{value:.4g}") for key, value in figures.items()},
        "call_seconds": float(f"{board.call_seconds:.4g}"), "sources": board.sources,
        "calls": [{"kind": call.kind, "what": call.what, "weights": call.weights or None, "seconds": call.seconds,
                   "described_seconds": board.seconds(call.work)} for call in calls],
    }  # fmt: skip


def alone_on_boards(store: Store) -> dict[str, tuple[float, ...] | None]:
    """Return the predicted seconds of a request on one of each described board alone, or of the first token of a text and of another, None
    where its memory does not hold the model."""
    spec, found = store.spec, dict[str, tuple[float, ...] | None]()
    rows = min(BOARD_ROWS, spec.positions)
    added = min(BOARD_ROWS, max(1, spec.positions - rows))  # tokens, as `plan` does
    text = Demand(1, rows + added // 2, rows, rows, mode="packed", kept=rows + added, prompt=rows, answer=added)
    for name in read_boards():
        profile = cluster_of([name], 1000.0, 1e-4, (spec.hidden, spec.ffn), spec.product_formats)
        try:
            if spec.generates:
                written = decide("single", spec, store.source_hash, profile, text)
                found[name] = written.prompt_seconds, written.seconds
            else:
                found[name] = (choose(spec, store.source_hash, profile, Demand(rows, mode="packed")).chosen.price.seconds,)
        except CapacityError:
            found[name] = None
    return found
