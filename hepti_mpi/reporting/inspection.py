"""What a store holds and what a profile says, as text and as JSON. Pure: reads open objects, prints nothing."""

from typing import Any

from hepti_mpi import splits
from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.planning.plan import Plan
from hepti_mpi.reporting.records import size, table
from hepti_mpi.shards.slicing import rank_slices, root_slices
from hepti_mpi.shards.store import Store, whole_slices

RANK_COUNTS = (1, 2, 3, 4, 8)
STRATEGIES = {
    "tensor": ("heads", "columns"),
    "hybrid heads/rows": ("heads", "rows"),
    "hybrid rows/columns": ("rows", "columns"),
    "sequence": ("rows", "rows"),
}


def inspection_lines(store: Store) -> str:
    """Return the model's description, and the bytes of the fullest rank per strategy for even plans of some rank counts."""
    spec = store.spec
    parameters = sum(piece.bytes // 4 for piece in whole_slices(spec))
    lines = [
        f"{store.path}: {spec.family} {spec.name}, head {spec.head}" + (f", {len(spec.labels)} labels" if spec.labels else ""),
        f"{spec.layers} layers, hidden {spec.hidden}, {spec.heads} heads of {spec.head_dim}, ffn {spec.ffn}, "
        f"at most {spec.positions} rows, {spec.norm}-norm, {spec.activation}",
        f"{parameters:,} parameters, {size(4 * parameters)}; source {store.source_hash[:12]}; files: {', '.join(store.files) or 'none'}",
    ]
    if len(store.names) < len(store.weights):
        lines.append(f"a rank's part: {len(store.names)} of {len(store.weights)} tensors")
    rows = [(name, *(size(_fullest(store, layout, ranks)) for ranks in RANK_COUNTS)) for name, layout in STRATEGIES.items()]
    outer = sum(piece.bytes for piece in root_slices(spec))
    lines += ["", table(("bytes of a rank's layers, even plan", *(f"{ranks} rank" + "s" * (ranks > 1) for ranks in RANK_COUNTS)), rows)]
    return "\n".join([*lines, f"rank 0 also reads embedding and head: {size(outer)}, mapped from the file"])


def inspection_document(store: Store) -> dict[str, Any]:
    """Return the same as a JSON document, format hepti-inspection."""
    bytes_ = {name: {str(ranks): _fullest(store, layout, ranks) for ranks in RANK_COUNTS} for name, layout in STRATEGIES.items()}
    return {
        "format": "hepti-inspection",
        "format_version": 1,
        "store": str(store.path),
        "source_hash": store.source_hash,
        "spec": store.spec.to_json(),
        "files": sorted(store.files),
        "parameters": sum(piece.bytes // 4 for piece in whole_slices(store.spec)),
        "outer_bytes": sum(piece.bytes for piece in root_slices(store.spec)),
        "fullest_rank_bytes": bytes_,
    }


def _fullest(store: Store, layout: tuple[str, str], ranks: int) -> int:
    """Return the bytes of rank 0's layers when heads, columns and rows are divided evenly."""
    spec = store.spec
    heads = splits.even(spec.heads if layout[0] == "heads" else 0, ranks)
    columns = splits.split(spec.ffn if layout[1] == "columns" else 0, (1,) * ranks, spec.column_granule)
    rows = splits.even(max(ranks, 128), ranks)
    plan = Plan(spec.name, store.source_hash, (layout,) * spec.layers, heads, columns, rows, ("",) * ranks, ("packed",) * ranks)
    return max(sum(piece.bytes for piece in set(rank_slices(spec, plan, rank)) - set(root_slices(spec))) for rank in range(ranks))


def profile_lines(profile: ClusterProfile) -> str:
    """Return a table of what was measured per rank."""
    rows = []
    for rank, node in enumerate(profile.nodes):
        speeds = [f"{2e-9 / (seconds / count):.1f}" for count, seconds in zip(node.gemm_rows, node.gemm_seconds_per_weight)]
        others = [j for j in range(len(profile.nodes)) if j != rank]
        latency = max((profile.latency_seconds[rank][j] for j in others), default=0.0)
        bandwidth = min((profile.bytes_per_second[rank][j] for j in others), default=0.0)
        link = (f"{latency * 1e6:.0f}", f"{bandwidth * 8e-6:.0f}" if others else "-")
        rows.append((f"rank {rank} on {node.host}", str(node.threads), *speeds, *link, size(node.memory_bytes)))
    head = ("", "threads", *(f"{count} rows" for count in profile.nodes[0].gemm_rows), "latency us", "Mbit/s", "memory")
    return "GFLOP/s of matrix products by rows; the slowest link of each rank\n" + table(head, rows)
