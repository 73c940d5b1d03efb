"""Plans by shares, for tests: what each rank has of a model's layers, whoever would choose that."""

from hepti_mpi import splits
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.program.plan import Plan


def plan_of(model, layout, heads, columns=None, rows=None, total=9, tiles=(), mode="packed", **fields):
    """The plan of a store, or of the spec of a model whose hash is "hash". `layout`: of all layers, or one for each.

    `heads`, `columns`, `rows`: shares of the ranks, all as of heads where the others are left out; of what no layer divides ranks have
    0, as the planner leaves it. `total`: rows of a request; `tiles`: shares of rows in each instead of `rows`.
    """
    spec, source_hash = (model, "hash") if isinstance(model, ModelSpec) else (model.spec, model.source_hash)
    layers, ranks = (layout,) * spec.layers if isinstance(layout[0], str) else tuple(layout), len(heads)
    used = {one for pair in layers for one in pair}
    parts = [splits.split(count, shares, granule) if used & kinds else (0,) * ranks for kinds, count, shares, granule in
             (({"heads", "alltoall"}, spec.heads, heads, spec.head_granule),
              ({"columns"}, spec.ffn, heads if columns is None else columns, spec.column_granule))]  # fmt: skip
    flat = splits.split(total, [share for tile in tiles or (heads if rows is None else rows,) for share in tile])
    cut = tuple(flat[at : at + ranks] for at in range(0, len(flat), ranks))
    rows, cut = tuple(map(sum, zip(*cut))), cut if len(cut) > 1 else ()
    return Plan(spec.name, source_hash, layers, *parts, rows, ("here",) * ranks, (mode,) * ranks, tiles=cut, **fields)
