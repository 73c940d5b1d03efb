"""A plan as bars on a terminal. Knows plans and rich's tables; does not know whether there is a terminal."""

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from hepti_mpi.program.plan import Plan
from hepti_mpi.reporting.records import share_word

WIDEST, NARROWEST = 14, 8  # characters of a whole bar
GAP = 1  # between columns


def plan_bars(plan: Plan, width: int) -> Table | None:
    """Return a table of at most `width` characters with a line per rank: its heads, columns and rows, and how large a part of all each is;
    None where that is too narrow."""
    parts = {"heads": plan.heads, "columns": plan.columns, "rows": plan.rows}
    names = [f"rank {rank} on {host}" for rank, host in enumerate(plan.hosts)]
    words = max(map(len, names)) + sum(max(len(name), len(str(sum(counts)))) for name, counts in parts.items())
    bar = min(WIDEST, (width - words - 2 * GAP * len(parts)) // len(parts))
    if bar < NARROWEST:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for name in parts:
        table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", width=bar, no_wrap=True)
    for rank in range(plan.ranks):
        cells: list[object] = [Text(names[rank], style="" if rank in plan.active else "dim")]
        for name, values in parts.items():
            word = str(values[rank]) if name == "rows" else share_word(values, rank, rank in plan.active)
            total, part = (1, 1) if word == "all" else (max(sum(values), 1), values[rank])
            cells += [word, Bar(total, 0, part, width=bar, color="cyan")]
        if rank not in plan.active:
            cells[2] = Text("left out", style="dim")
        table.add_row(*cells)  # type: ignore[arg-type]
    return table
