"""A plan as bars on a terminal. Knows plans and rich's tables; does not know whether there is a terminal."""

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from hepti_mpi.planning.plan import Plan, kind_of

WIDTH = 14  # characters of a whole bar


def plan_bars(plan: Plan) -> Table:
    """Return a table with a line per rank: its heads, columns and rows, and how large a part of all each is."""
    title = Text.assemble("plan ", (plan.hash, "dim"), f": {plan.strategy} ({kind_of(plan)}), made for {plan.planned_rows} rows")
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    parts = {"heads": plan.heads, "columns": plan.columns, "rows": plan.rows}
    for name in parts:
        table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", width=WIDTH, no_wrap=True)
    for rank in range(plan.ranks):
        cells: list[object] = [Text(f"rank {rank} on {plan.hosts[rank]}", style="" if rank in plan.active else "dim")]
        for values in parts.values():
            cells += [str(values[rank]), Bar(max(sum(values), 1), 0, values[rank], width=WIDTH, color="cyan")]
        if rank not in plan.active:
            cells[2] = Text("left out", style="dim")
        table.add_row(*cells)  # type: ignore[arg-type]
    return table
