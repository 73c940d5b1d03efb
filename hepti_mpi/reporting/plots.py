"""Pictures of benches, of a cluster's size and of a run.

Knows how numbers are shown, not how they were measured or read, nor what the pictures have in common.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hepti_mpi.errors import InputError, reason_of
from hepti_mpi.reporting import above_plot
from hepti_mpi.reporting.benches import Bench, Lane, Method, read_benches, trace
from hepti_mpi.reporting.canvas import (  # fmt: skip
    SMALL,
    WIDTH,
    Axes,
    Figure,
    FixedLocator,
    FuncFormatter,
    Line2D,
    MaxNLocator,
    NullLocator,
    Patch,
    columns,
    digits,
    inches,
    page,
    save,
    short,
    unit_of,
    what,
    withStroke,
    write,
)
from hepti_mpi.reporting.records import MOST_LATE
from hepti_mpi.wording import counted

# P. Tol, "Colour schemes", 2021: high-contrast, which keeps its order in grey print and for the colour-blind
COMPUTE, WIRE, WAIT, REST = "#004488", "#DDAA33", "#BB5566", "#DDDDDD"
# M. Okabe and K. Ito, "Color universal design", 2008, without its yellow, which is too faint for a line
LINES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
STYLES: Any = ("-", (0, (4, 2)), (0, (1, 1.5)))
MARKERS = "osD^vPX*"
BANDS = (0.07, 0.20)  # errors of prediction
LANES = 24  # most lanes of a timeline that are each described
MARK = "\N{DAGGER}"  # of a method that does not count
GAIN = 0.01  # of the latency; what is less is no reason to add a board


def write_report(records: Path, folder: Path) -> list[Path]:
    """Draw everything the records hold; return the files written.

    Raises InputError: the records cannot be used, or the folder cannot be written.
    """
    benches = read_benches(records)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder {folder} cannot be made: {reason_of(error)}") from None
    written: list[Path] = []

    def place(*parts: str, suffix: str) -> Path:
        """Return a path that is not yet taken."""
        stem, number = "-".join(re.sub(r"[^\w.+]+", "-", part).strip("-.")[:60] for part in parts), 2
        path = folder / f"{stem}{suffix}"
        while path in written:
            path, number = folder / f"{stem}-{number}{suffix}", number + 1
        written.append(path)
        return path

    for bench in benches:
        prefix = f"{bench.cluster}-{bench.model}-{bench.rows}"
        save(_latency, place(prefix, "latency", suffix=".png"), bench)
        if any(method.above for method in bench.methods.values()):
            save(above_plot.above, place(prefix, "above-the-bound", suffix=".png"), bench)
        for method in bench.methods.values():
            if method.seconds:
                save(_timeline, place(prefix, "timeline", method.name, suffix=".png"), bench, method)
                document = json.dumps(trace(f"{method.name}, {what(bench)}", method.lanes)).encode()
                write(place(prefix, "trace", method.name, suffix=".json"), document)
    if any(method.predicted for bench in benches for method in bench.methods.values()):
        save(_predicted, place("predicted", suffix=".png"), benches)
    return written


def plot_scale(sizes: Sequence[int], seconds: Sequence[float], chosen: Sequence[int], path: Path, title: str) -> None:
    """Draw the latency of the best plan on the first n ranks, and how many of them it uses, against n. Raises InputError."""
    save(_scale, path, sizes, seconds, chosen, title)


def plot_requests(series: Mapping[str, Sequence[float]], changes: Sequence[tuple[int, str]], path: Path, title: str) -> None:
    """Draw latency in seconds against the number of the request, from 0, a line per method; `changes`: at which request what changed.

    Raises InputError.
    """
    save(_requests, path, series, changes, title)


def _logarithmic(axis: Any, low: float, high: float) -> None:
    """Mark round numbers between `low` and `high`."""
    steps = (1, 2, 5) if high / low > 12 else (1, 1.5, 2, 3, 4, 5, 7)
    marks = [step * 10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for step in steps]
    axis.set_major_locator(FixedLocator([mark for mark in marks if low <= mark <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _limits(values: Sequence[float], least: float) -> tuple[float, float]:
    """Return limits of a logarithmic axis around `values`, with a ratio of at least `least`."""
    low, high = min(values) / 1.12, max(values) * 1.12
    wider = max(1.0, math.sqrt(least * low / high))
    return low / wider, high * wider


# one bench


def _latency(bench: Bench) -> Figure:
    """Bars of all methods, soonest first."""
    methods = sorted(bench.methods.values(), key=lambda method: method.median)
    scale, unit = unit_of(methods[-1].median)
    known = {"perfect": bench.ideal_seconds, "bound": bench.bound_seconds}
    possible = {name: seconds for name, seconds in known.items() if seconds is not None}
    divided = any(len(method.parts) for method in methods)
    parts = list(zip(("compute", "wire", "waiting for others", "other"), (COMPUTE, WIRE, WAIT, REST))) if divided else []
    legend: list[Any] = [Patch(color=colour, label=label) for label, colour in parts]
    for style, (name, seconds) in zip(STYLES[1:], possible.items()):
        legend.append(Line2D([], [], color="black", ls=style, label=f"{name} {digits(seconds * scale)} {unit}"))
    least, most = min(len(method.samples) for method in methods), max(len(method.samples) for method in methods)
    caption = [
        "Bars end at the median latency",
        "; their parts are means over the ranks that hold a part of the layers, medians over requests" * divided,
        f". Whiskers: 10 % to 90 % of {most if least == most else f'{least} to {most}'} requests." if most > 1 else ". One request each.",
        " Perfect: all ranks compute all the time, nothing travels." * ("perfect" in possible),
        " Bound: what no layout of ours can beat, float32 on the wire." * ("bound" in possible),
        f" {MARK}: does not count, since messages left later than from the emulated boards." * any(map(_is_late, methods)),
    ]
    figure = page(0.32 * len(methods) + 0.85, f"Latency of {what(bench)}", legend, "".join(caption))
    axes = figure.subplots()
    for y, method in enumerate(methods):
        _bar(axes, y, method, scale)
    for style, seconds in zip(STYLES[1:], possible.values()):
        axes.axvline(seconds * scale, color="black", ls=style, lw=1.3, path_effects=[withStroke(linewidth=2.6, foreground="white")])
    axes.set_yticks(range(len(methods)), [short(method.name) + f" {MARK}" * _is_late(method) for method in methods])
    for label, method in zip(axes.get_yticklabels(), methods):
        label.set_fontweight("bold" if method.name == "hepti" else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, None), ylim=(len(methods) - 0.5, -0.5), xlabel=f"latency, {unit}")
    axes.grid(axis="x")
    heads, rows = [f"median, {unit}"], [[digits(method.median * scale)] for method in methods]
    if "hepti" in bench.methods:
        heads.append("to hepti")
        rows = [[*row, f"{method.median / bench.methods['hepti'].median:.2f} x"] for row, method in zip(rows, methods)]
    columns(axes, heads, rows)
    return figure


def _is_late(method: Method) -> bool:
    return method.late > MOST_LATE


def _bar(axes: Axes, y: int, method: Method, scale: float) -> None:
    parts = np.median(method.parts, axis=0) if len(method.parts) else np.zeros(3)
    parts *= method.median / max(parts.sum(), method.median)  # medians may add up to a little more than the median
    widths = [*parts, method.median - parts.sum()]
    left = 0.0
    for width, colour in zip(widths, (COMPUTE, WIRE, WAIT, REST)):
        axes.barh(y, width * scale, left=left * scale, height=0.66, color=colour)
        left += width
    if len(method.samples) > 1:
        ends = np.quantile(method.samples, [0.1, 0.9]) * scale
        axes.plot(ends, [y, y], color="black", lw=1.2, marker="|", ms=7, path_effects=[withStroke(linewidth=3, foreground="white")])


def _timeline(bench: Bench, method: Method) -> Figure:
    """One request of all ranks, and two layers in its middle."""
    scale, unit = unit_of(method.seconds)
    legend = [Patch(color=COMPUTE, label="compute"), Patch(color=WIRE, label="blocked by an exchange"), Patch(color=REST, label="idle")]
    zoomed = method.middle is not None
    panel = min(0.3 * len(method.lanes), 6.0) + 0.75
    about = f" ({short(method.about, 60)})" if method.about else ""
    emulated = any(lane.board for lane in method.lanes)
    caption = f"On the left: rank, host{' and board' * emulated}. On the right: the share of the request in which a rank computes."
    if emulated:
        caption = f"Boards are emulated: by their names, or so many times slower than the lab's own. {caption}"
    figure = page(panel * (1 + zoomed), f"One request by {short(method.name, 40)}{about}: {what(bench)}", legend, caption)
    axes = figure.subplots(1 + zoomed, squeeze=False)[:, 0]
    _lanes(axes[0], method.lanes, 0.0, method.seconds, scale)
    shares = [[f"{lane.compute_seconds / method.seconds * 100:.0f} %"] for lane in method.lanes]
    columns(axes[0], ["compute"], shares, math.ceil(len(method.lanes) / LANES))
    if method.middle is not None:
        begin, end = method.middle
        _lanes(axes[1], method.lanes, begin, end, scale)
        axes[1].set_title(f"about two of its {method.layers} layers, framed above")
        box = axes[0].axvspan(begin * scale, end * scale, fill=False, lw=1.5, clip_on=False, zorder=5)
        box.set_path_effects([withStroke(linewidth=3, foreground="white")])
    axes[-1].set_xlabel(f"{unit} since the request began")
    return figure


def _lanes(axes: Axes, lanes: Sequence[Lane], begin: float, end: float, scale: float) -> None:
    names = []
    for y, lane in enumerate(lanes):
        axes.barh(y, (end - begin) * scale, left=begin * scale, height=0.76, color=REST)
        for kind, colour in (("wire", WIRE), ("compute", COMPUTE)):
            inside = [(max(e.begin, begin), min(e.end, end)) for e in lane.events if e.kind == kind and e.end > begin and e.begin < end]
            spans = [(start * scale, (stop - start) * scale) for start, stop in inside]
            axes.broken_barh(spans, (y - 0.38, 0.76), color=colour, linewidth=0).set_snap(False)  # a gap is not made a pixel wide
        host = lane.host if lane.host[:1].isdigit() else lane.host.split(".")[0]
        names.append(f"{lane.rank}  {short(host, 18)}" + ("" if lane.board is None else f"  {lane.board}"))
    every = math.ceil(len(lanes) / LANES)
    axes.set_yticks(range(0, len(lanes), every), names[::every])
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(begin * scale, end * scale), ylim=(len(lanes) - 0.5, -0.5))
    axes.spines["left"].set_visible(False)


# several benches


def _predicted(benches: Sequence[Bench]) -> Figure:
    """All methods of all benches, predicted against measured."""
    points = [(bench, method, method.predicted) for bench in benches for method in bench.methods.values() if method.predicted]
    late = sum(_is_late(method) for _, method, _ in points)
    counting = [point for point in points if not _is_late(point[1])] or points
    errors = [predicted / method.median - 1 for _, method, predicted in counting]
    worst = max(range(len(counting)), key=lambda place: abs(errors[place]))
    scale, unit = unit_of(max(max(method.median, predicted) for _, method, predicted in points))
    low, high = _limits([scale * value for _, method, predicted in points for value in (method.median, predicted)], 4)
    clusters = list(dict.fromkeys(bench.cluster for bench in benches if any(b is bench for b, _, _ in points)))
    styles: dict[str, dict[str, Any]] = {
        cluster: {"color": LINES[place % len(LINES)], "marker": MARKERS[place % len(MARKERS)], "ls": "", "ms": 6}
        for place, cluster in enumerate(clusters)
    }
    legend: list[Any] = [Line2D([], [], label=short(cluster), **style) for cluster, style in styles.items()]
    legend += [Patch(color=grey, label=f"within {band:.0%}".replace("%", " %")) for band, grey in zip(BANDS, ("#C8C8C8", "#E8E8E8"))]
    where = f"{short(counting[worst][1].name)} on {short(counting[worst][0].cluster)}"
    title = f"Predicted and measured latency: median error {np.median(np.abs(errors)):.1%}, worst {errors[worst]:+.1%} ({where})"
    caption = f"{counted(len(points), 'plans')}. Error: predicted / measured - 1, without its sign for the median."
    if late:
        caption += f" Hollow: {counted(late, 'plans')} of which messages left later than from the emulated boards, and which do not count."
    figure = page(4.6, title.replace("%", " %"), legend, caption)
    axes = figure.subplots()
    ends = np.array([low, high])
    for band, grey in list(zip(BANDS, ("#C8C8C8", "#E8E8E8")))[::-1]:
        axes.fill_between(ends, ends * (1 - band), ends * (1 + band), color=grey, linewidth=0)
    axes.plot(ends, ends, color="#666666", lw=0.8)
    for bench, method, predicted in points:
        style = styles[bench.cluster]
        edge: dict[str, Any] = {"mfc": "none", "mew": 0.9} if _is_late(method) else {"mec": "white", "mew": 0.6}
        axes.plot(method.median * scale, predicted * scale, **style, **edge)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel=f"measured, {unit}", ylabel=f"predicted, {unit}")
    _logarithmic(axes.xaxis, low, high)
    _logarithmic(axes.yaxis, low, high)
    return figure


def _scale(sizes: Sequence[int], seconds: Sequence[float], chosen: Sequence[int], title: str) -> Figure:
    scale, unit = unit_of(max(seconds))
    enough = [size for size, value in zip(sizes[:-1], seconds) if value <= min(seconds) * (1 + GAIN)][:1]  # none where the last still helps
    said = f"on there is less than {GAIN * 100:g} % to gain"
    legend = [Line2D([], [], color="#666666", ls=STYLES[1], label=f"from {counted(n, 'ranks')} {said}") for n in enough]
    figure = page(4.6, title, legend)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    low, high = _limits([value * scale for value in seconds], 4)
    upper.plot(sizes, np.array(seconds) * scale, color=LINES[0], marker="o", ms=4)
    upper.set(yscale="log", ylim=(low, high), ylabel=f"latency, {unit}")
    _logarithmic(upper.yaxis, low, high)
    lower.plot(sizes, sizes, color="#999999", lw=0.8)
    lower.annotate("all of them", (sizes[-1], sizes[-1]), xytext=(-4, 0), textcoords="offset points", ha="right", va="bottom", size=SMALL)
    lower.plot(sizes, chosen, color=LINES[5], marker="s", ms=4)
    left, right = min(sizes) / 1.1, max(sizes) * 1.1
    lower.set(xscale="log", xlim=(left, right), xlabel="ranks of the cluster")
    lower.set(yscale="log", ylim=(min(chosen) / 1.3, max(sizes) * 1.3), ylabel="ranks the plan uses")
    for axis in (lower.xaxis, lower.yaxis):
        axis.set_major_locator(FixedLocator([2**power for power in range(int(right).bit_length())]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axes in (upper, lower):
        axes.grid()
        for size in enough:
            axes.axvline(size, color="#666666", ls=STYLES[1], lw=1)
    return figure


def _requests(series: Mapping[str, Sequence[float]], changes: Sequence[tuple[int, str]], title: str) -> Figure:
    scale, unit = unit_of(max((value for values in series.values() for value in values), default=0.0))
    last = max([len(values) - 1 for values in series.values()] + [number for number, _ in changes] + [1])
    legend: list[Any] = []
    style: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(series):
        style[name] = {"color": LINES[number % len(LINES)], "ls": STYLES[number // len(LINES) % len(STYLES)]}
        style[name] |= {"lw": 2.2, "zorder": 3} if name == "hepti" else {"lw": 1.2, "zorder": 2}
        legend.append(Line2D([], [], label=short(name), **style[name]))
    texts = sorted((number / last, short(label, 40), number) for number, label in changes)
    widths = [inches(label, SMALL) + 0.15 for _, label, _ in texts]
    room = min([WIDTH - 1.0, *((WIDTH - 1.0 - width) / share for (share, _, _), width in zip(texts, widths) if share)])  # of the axes
    levels = _levels([(share * room, width) for (share, _, _), width in zip(texts, widths)])
    figure = page(3.4 + 0.17 * max(levels, default=0), title, legend)
    axes = figure.subplots()
    for name, values in series.items():
        axes.plot(range(len(values)), np.array(values) * scale, **style[name])
    axes.set(xlim=(0, last), ylim=(0, None), xlabel="request", ylabel=f"latency, {unit}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    for level, (_, label, number) in zip(levels, texts):
        grey: Any = {"color": "#666666", "lw": 1, "ls": STYLES[1]}
        axes.axvline(number, zorder=1, clip_on=False, **grey)
        place: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "annotation_clip": False}
        axes.annotate("", (number, 1), (0, 12 * level + 13), arrowprops={"arrowstyle": "-", "shrinkA": 0, "shrinkB": 0, **grey}, **place)
        axes.annotate(label, (number, 1), (3, 12 * level + 4), size=SMALL, **place)
    return figure


def _levels(spans: Sequence[tuple[float, float]]) -> list[int]:
    """Return a line of text for each label, given as where it and its mark begin and its width, in order, so that none meets another."""
    levels: list[int] = []  # from the last to the first: each is above all that begin before it ends
    for place, (begin, width) in reversed(list(enumerate(spans))):
        covered = sum(other < begin + width for other, _ in spans[place + 1 :])
        levels.append(max((level + 1 for level in levels[len(levels) - covered :]), default=0))
    return levels[::-1]
