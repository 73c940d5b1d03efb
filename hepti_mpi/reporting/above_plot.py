"""The picture of where the time of each method above the bound went: stacked bars.

Knows the parts by their names; does not know how they were measured.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from hepti_mpi.reporting.above import ordered
from hepti_mpi.reporting.benches import Bench
from hepti_mpi.reporting.canvas import Figure, Patch, columns, digits, page, short, unit_of, what

COLOURS = {"share": "#004488", "few rows": "#88A6C8", "waiting": "#BB5566", "starts": "#666666", "rest": "#DDDDDD"}
COLOURS |= {  # exchanges: yellow in the layers, green to heads and back, brown from and to rank 0
    "allgatherv": "#DDAA33", "reduce_scatter": "#F5DF9B", "allreduce": "#A87900", "to_heads": "#5F7A2B", "to_rows": "#B3C686",
    "bcast": "#5A3413", "scatterv": "#96623A", "gatherv": "#CFA785",
}  # fmt: skip
OTHER = "#000000"


def above(bench: Bench) -> Figure:
    """Bars of all methods, soonest first, from the bound, 0, on; parts below 0 to its left."""
    methods = sorted((method for method in bench.methods.values() if method.above), key=lambda method: method.median)
    kinds = ordered(kind for method in methods for kind in method.above)
    colours = {kind: COLOURS.get(kind, OTHER) for kind in kinds}
    scale, unit = unit_of(max(method.median for method in methods))
    legend: list[Any] = [Patch(color=colour, label=kind) for kind, colour in colours.items()]
    caption = (
        "From the bound, 0, to the median, as the rank spent it that computes longest; parts below 0 on the left. Bound: with what "
        "the method may send. Share: its work, as fast as it does that of many rows, less the bound. Few rows: what computing took beyond "
        "that. Yellow, green and brown: blocked by that exchange. Waiting: for a slower rank. Starts: beginning calls and exchanges. Rest: "
        "copies, sums, what lies between steps."
    )
    figure = page(0.32 * len(methods) + 0.85, f"Above the bound: {what(bench)}", legend, caption)
    axes = figure.subplots()
    axes.use_sticky_edges = False  # else the longest bar ends where the axes do
    for y, method in enumerate(methods):
        for left, width, kind in stacked(method.above):
            axes.barh(y, width * scale, left=left * scale, height=0.66, color=colours[kind])
    axes.axvline(0, color="black", lw=1)
    axes.set_yticks(range(len(methods)), [short(method.name) for method in methods])
    for label, method in zip(axes.get_yticklabels(), methods):
        label.set_fontweight("bold" if method.name == "hepti" else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(methods) - 0.5, -0.5), xlabel=f"above the bound, {unit}")
    axes.grid(axis="x")
    heads = [f"{name}, {unit}" for name in ("bound", "above")]
    columns(axes, heads, [[digits(value * scale) for value in (method.bound, sum(method.above.values()))] for method in methods])
    return figure


def stacked(parts: Mapping[str, float]) -> Iterator[tuple[float, float, str]]:
    """Yield (left, width, name) of each part: those above 0 go on to the right from there, those below 0 to the left.

    >>> list(stacked({"a": 2.0, "b": -1.0, "c": 3.0}))
    [(0.0, 2.0, 'a'), (-1.0, 1.0, 'b'), (2.0, 3.0, 'c')]
    """
    right = left = 0.0
    for name, value in parts.items():
        if value >= 0:
            yield right, value, name
            right += value
        else:
            left += value
            yield left, -value, name
