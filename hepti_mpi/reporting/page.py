"""Benches as one HTML page that needs nothing else: no script, no file, no network. Knows how numbers are shown on a page as wide as a
phone or a desk's screen, not how they were measured or read.
"""

import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from hepti_mpi import __version__
from hepti_mpi.documents import whole_file
from hepti_mpi.errors import InputError, reason_of
from hepti_mpi.planning.methods import OURS, meaning
from hepti_mpi.reporting.above import meant, ordered
from hepti_mpi.reporting.benches import Bench, Lane, Method, RankTimes
from hepti_mpi.reporting.records import share_word, too_late
from hepti_mpi.reporting.tables import milliseconds
from hepti_mpi.wording import counted

KINDS = ("compute", "wire", "wait", "rest")
WORDS = {"compute": "compute", "wire": "wire", "wait": "waiting", "rest": "other"}
SHOWN = 2000  # events of a lane that are drawn one by one; of more, neighbours are joined
SIDE, EDGE, GAP = 420, 60, 38  # of the picture of predictions, in its own units; between two marks
STYLE = """
:root {
  --compute: #004488; --wire: #ddaa33; --wait: #bb5566; --rest: #dddddd;
  --ink: #1a1a1a; --faint: #5c5c5c; --line: #e2e2e2; --paper: #fff
}
@media (prefers-color-scheme: dark) {
  :root {
    --compute: #6f9fd8; --wire: #ddaa33; --wait: #d98794; --rest: #555;
    --ink: #eee; --faint: #aaa; --line: #3a3a3a; --paper: #181818
  }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; font: 1rem/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper) }
h1 { font-size: 1.4rem; margin: 0 0 .3rem } h2 { font-size: 1.15rem; margin: 2rem 0 .4rem; overflow-wrap: anywhere }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem } p { margin: .3rem 0 .7rem } .faint { color: var(--faint); font-size: .85rem }
.scroll { overflow-x: auto; background: linear-gradient(to left, var(--paper) 1rem, transparent 2rem) right / 2rem 100% no-repeat local,
  linear-gradient(to left, var(--rest), transparent) right / .8rem 100% no-repeat scroll } /* a shade where there is more */
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left; padding-left: 0 } th { font-weight: 600; color: var(--faint); vertical-align: bottom }
tr.out td { color: var(--faint) } .best td { font-weight: 600 }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem; margin: .3rem 0 .6rem }
.key i, .bar i { display: inline-block; height: .8rem } .key i { width: .8rem; margin-right: .35rem; vertical-align: -.1rem }
.compute { background: var(--compute); fill: var(--compute) } .wire { background: var(--wire); fill: var(--wire) }
.wait { background: var(--wait); fill: var(--wait) } .rest { background: var(--rest); fill: var(--rest) }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .25rem .7rem; align-items: center; font-size: .875rem }
.bar { position: relative; display: flex; height: .9rem } .bar i { height: 100% }
.bar u { position: absolute; top: 50%; height: 1px; background: var(--ink); text-decoration: none }
.bar u::before, .bar u::after { content: ""; position: absolute; top: -.2rem; height: .4rem; width: 1px; background: var(--ink) }
.bar u::after { right: 0 }
.ours { font-weight: 700 } .words td, .words th { text-align: left; white-space: normal }
.bar b { position: absolute; top: -.15rem; bottom: -.15rem; width: 2px; background: var(--ink) }
.number { text-align: right; font-variant-numeric: tabular-nums }
details { border-top: 1px solid var(--line); padding: .4rem 0 } summary { cursor: pointer; font-weight: 600; overflow-wrap: anywhere }
.lane { display: grid; grid-template-columns: minmax(4rem, 11rem) 1fr; gap: .5rem; align-items: center; font-size: .8rem; margin: .15rem 0 }
.lane span { overflow-wrap: anywhere } .lane svg, .axis { width: 100%; height: 1.3rem; display: block; background: var(--line) }
.axis { background: none; position: relative; color: var(--faint) }
.axis span { position: absolute; transform: translateX(-50%) } .axis span:first-child { transform: none }
.axis span::before { content: ""; position: absolute; left: 50%; top: -.15rem; height: .25rem; width: 1px; background: var(--faint) }
.axis span:first-child::before { left: 0 }
.picture { max-width: 34rem; width: 100%; height: auto; display: block } .picture text { fill: var(--ink); font-size: 13px }
.picture .grid { stroke: var(--line) } .picture .even { stroke: var(--faint); stroke-dasharray: 5 4 }
.picture circle { fill: var(--compute); fill-opacity: .75 }
@media (max-width: 40rem) {
  .bars { grid-template-columns: 1fr max-content; gap: .05rem .7rem; grid-auto-flow: row dense }
  .bars .axis { grid-column: 1 / -1 }
  .bars .bar { grid-column: 1 / -1; grid-row: auto; margin-bottom: .45rem } .bars .number { grid-column: 2 } .bars .name { grid-column: 1 }
  .lane { grid-template-columns: 1fr; gap: .1rem }
}
""".strip()


def write_page(path: Path, title: str, benches: Sequence[Bench]) -> None:
    """Write the page, whole or not at all. Raises InputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(page(title, benches).encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {reason_of(error)}") from None


def page(source: str, benches: Sequence[Bench]) -> str:
    """Return the page: per bench the result, the latencies, per method one request across the ranks and a table of them; last all
    predictions and what the names mean. `source`: of the numbers."""
    models, clusters = (dict.fromkeys(getattr(bench, what) for bench in benches) for what in ("model", "cluster"))
    title = f"{', '.join(models)} on {', '.join(clusters)}: ways to divide it compared"
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="faint">Made by hepti_mpi {__version__} of {escape(source)}.</p>']
    parts += [part for bench in benches for part in _bench(bench)]
    parts += [*_predictions(benches), *_names(benches)]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return f'<!doctype html>\n<html lang="en"><head>{head}<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style></head>\n<body>\n' + (
        "\n".join(parts) + "\n</body></html>\n"
    )


def _bench(bench: Bench) -> Iterator[str]:
    methods = sorted(bench.methods.values(), key=lambda method: method.median)
    yield f"<h2>{escape(bench.model)}, {counted(bench.rows, 'rows')}, on {escape(bench.cluster)}</h2>"
    if bench.made:
        yield f'<p class="faint">{escape(bench.made)}</p>'
    yield f"<p>{escape(result(bench))}</p>"
    yield "<h3>Latency</h3>"
    yield _key()
    longest = max(max(method.median, method.predicted or 0.0, _spread(method)[1]) for method in methods)
    marks = "".join(f'<span style="left:{100 * mark / longest:.2f}%">{_round(mark)}</span>' for mark in ticks(longest))
    axis = f'<span class="name faint">ms</span><span class="axis">{marks}</span><span></span>'
    yield '<div class="bars">' + "".join(_bar(method, longest) for method in methods) + axis + "</div>"
    note = "Bars end at the median; their parts are means over the ranks that take part. The upright mark is what was predicted" + (
        ", the thin line across a bar's end goes from 10 % to 90 % of the requests."
        if any(len(method.samples) > 1 for method in methods)
        else ". Of each method there is one request."
    )
    if bench.ideal_seconds is not None:
        note += f" If all boards computed all the time and nothing travelled it would be {milliseconds(bench.ideal_seconds)} ms."
    if bench.bounds:
        said = ", ".join(f"{milliseconds(seconds)} ms with {wire} on the wire" for wire, seconds in bench.bounds.items())
        note += f" No layout of ours can beat {said}: the bound."
    yield f'<p class="faint">{note}</p>'
    yield _latency_table(methods)
    yield from (f"<p>{escape(told)}.</p>" for told in too_late({method.name: method.late for method in methods}))
    yield from _above(methods)
    yield "<h3>One request across the ranks</h3>"
    described = [method for method in methods if method.lanes or method.ranks]
    shown = _ours(described)
    for method in described:
        about = f" ({escape(method.about)})" if method.about else ""
        yield f"<details{' open' * (method is shown)}><summary>{escape(method.name)}{about}: {milliseconds(method.median)} ms</summary>"
        yield from _timeline(method)
        yield _rank_table(method.ranks)
        yield "</details>"


def _ours(methods: Sequence[Method]) -> Method | None:
    """Return the method that the page is about: hepti, or the soonest."""
    return next((method for method in methods if method.name == "hepti"), methods[0] if methods else None)


def result(bench: Bench) -> str:
    """Return what the bench found, in one sentence."""
    methods = sorted(bench.methods.values(), key=lambda method: method.median)
    ours = _ours(methods)
    assert ours is not None
    told = f"{ours.name} answers a request of {counted(bench.rows, 'rows')} in {milliseconds(ours.median)} ms"
    told += ", which does not count" * bool(too_late({ours.name: ours.late}))
    others = [method for method in methods if method is not ours and meaning(method.name) and method.name not in OURS]
    against = [method for name in ("single",) for method in others if method.name == name]
    against += [method for method in others if method.name != "single"][:1]
    said = [f"{method.name} ({meaning(method.name)}) takes {method.median / ours.median:.2f} x as long" for method in against]
    return "; ".join([told, *said]) + "."


def ticks(most: float, count: int = 6) -> list[float]:
    """Return about `count` round numbers from 0 to at most `most`.

    >>> ticks(0.93, 5)
    [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    power = 10.0 ** math.floor(math.log10(most / count))
    step = next(step * power for step in (1, 2, 2.5, 5, 10, 20) if most / (step * power) <= count)
    return [round(place * step, 12) for place in range(int(most / step + 1e-9) + 1)]


def _round(seconds: float) -> str:
    return f"{seconds * 1e3:g}"


def _spread(method: Method) -> tuple[float, float]:
    """Return where 10 % and 90 % of the requests end."""
    if not method.samples:
        return method.median, method.median
    low, high = np.quantile(method.samples, (0.1, 0.9))
    return float(low), float(high)


def _key() -> str:
    return '<div class="key">' + "".join(f'<span><i class="{kind}"></i>{WORDS[kind]}</span>' for kind in KINDS) + "</div>"


def _bar(method: Method, longest: float) -> str:
    parts = np.median(method.parts, axis=0) if len(method.parts) else np.zeros(3)
    parts *= method.median / max(parts.sum(), method.median)  # medians may add up to a little more than the median
    widths = [*parts, max(method.median - parts.sum(), 0.0)]
    pieces = "".join(f'<i class="{kind}" style="width:{100 * width / longest:.2f}%"></i>' for kind, width in zip(KINDS, widths))
    mark = "" if method.predicted is None else f'<b style="left:{100 * method.predicted / longest:.2f}%" title="predicted"></b>'
    if len(method.samples) > 1:
        low, high = _spread(method)
        mark += f'<u style="left:{100 * low / longest:.2f}%;width:{100 * (high - low) / longest:.2f}%" title="10 % to 90 %"></u>'
    name = f'<span class="name{" ours" * (method.name == "hepti")}" title="{escape(meaning(method.name))}">{escape(method.name)}</span>'
    return f'{name}<span class="bar">{pieces}{mark}</span><span class="number">{milliseconds(method.median)} ms</span>'


def _table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return a table that scrolls by itself where it is too wide; rows: (class, cells)."""
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"]
    for kind, cells in rows:
        lines.append(f'<tr class="{kind}">' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _latency_table(methods: Sequence[Method]) -> str:
    reference = next((method for method in methods if method.name == "hepti"), methods[0])
    rows = []
    for method in methods:
        low, high = _spread(method)
        spread = f"{milliseconds(low)} - {milliseconds(high)}" if len(method.samples) > 1 else "-"
        error = "-" if method.predicted is None else f"{100 * (method.predicted / method.median - 1):+.1f} %"
        times = (milliseconds(method.median), spread, f"{method.median / reference.median:.2f}", milliseconds(method.predicted), error)
        cells = (method.name, *times, method.about or "-")
        rows.append(("best" * (method is _ours(methods)), cells))
    return _table(("method", "median ms", "10 - 90 %", f"to {reference.name}", "predicted", "error", "division"), rows)


def _above(methods: Sequence[Method]) -> Iterator[str]:
    """Yield where the time above the bound went, a column for each part, and what the parts mean."""
    methods = [method for method in methods if method.above]
    if not methods:
        return
    parts = ordered(part for method in methods for part in method.above)
    rows = [
        ("best" * (method is _ours(methods)),
         (method.name, *(milliseconds(value) for value in (method.bound, sum(method.above.values()))),
          *(milliseconds(method.above.get(part)) for part in parts)))
        for method in methods
    ]  # fmt: skip
    yield "<h3>Above the bound</h3>"
    yield _table(("method", "bound, ms", "above it, ms", *parts), rows)
    yield (
        '<p class="faint">Median less the bound with what the method may send (float16 has another one), and where it went, as the rank '
        "spent it that computes longest.</p>"
    )
    words = [("", (part, meant(part))) for part in parts]
    yield _table(("part", "what it is"), words).replace("<table>", '<table class="words">')


def _timeline(method: Method) -> Iterator[str]:
    end = method.seconds
    if not end:
        return
    for lane in method.lanes:
        board = "" if lane.board is None else f", board {escape(lane.board)}"
        name = f"rank {lane.rank} on {escape(lane.host)}{board}"
        pieces = "".join(
            f'<rect class="{kind}" x="{1000 * begin / end:.2f}" width="{1000 * (last - begin) / end:.2f}" height="10"/>'
            for kind, begin, last in _joined(lane)
        )
        picture = f'<svg viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" aria-label="{name}">{pieces}</svg>'
        yield f'<div class="lane"><span>{name}</span>{picture}</div>'
    marks = "".join(f'<span style="left:{100 * mark / end:.2f}%">{_round(mark)}</span>' for mark in ticks(end))
    yield f'<div class="lane"><span class="faint">ms</span><div class="axis">{marks}</div></div>'
    yield (
        f'<p class="faint">The last of the requests, which took {milliseconds(end)} ms; the median is {milliseconds(method.median)} ms. '
        "Blue: the rank computes. Yellow: an exchange blocks it. Nothing: it has nothing to do.</p>"
    )


def _joined(lane: Lane) -> Iterator[tuple[str, float, float]]:
    """Yield (kind, begin, end) of what a rank did, neighbours of one kind joined where there is less than a pixel between them."""
    pixel = max((event.end for event in lane.events), default=0.0) / SHOWN
    last: tuple[str, float, float] | None = None
    for event in lane.events:
        if last is not None and event.kind == last[0] and event.begin - last[2] <= pixel:
            last = (last[0], last[1], max(last[2], event.end))
            continue
        if last is not None:
            yield last
        last = (event.kind, event.begin, event.end)
    if last is not None:
        yield last


def _rank_table(ranks: Sequence[RankTimes]) -> str:
    if not ranks:
        return ""
    rows = []
    for number, rank in enumerate(ranks):
        both = [[None] * 3 if times is None else times for times in (rank.measured, rank.predicted)]
        pairs = [f"{milliseconds(measured)} / {milliseconds(predicted)}" for measured, predicted in zip(*both)]
        share = [share_word([other.heads for other in ranks], number, True), share_word([other.columns for other in ranks], number, True),
                 str(rank.rows)] if rank.is_active else ["left out", "", ""]  # fmt: skip
        rows.append(("" if rank.is_active else "out", (f"rank {number} on {rank.host}", *share, *pairs)))
    table = _table(("", "heads", "columns", "rows", "compute", "wire", "waiting"), rows)
    return (
        table + '<p class="faint">Measured / predicted, in ms, medians over requests. Wire: measured is how long '
        "exchanges blocked the rank, predicted is how long its link is in use, much of that while it computes.</p>"
    )


def _names(benches: Sequence[Bench]) -> Iterator[str]:
    """Yield what the names of the methods mean."""
    known = {name: meaning(name) for bench in benches for name in bench.methods}
    rows = [("", (name, meant)) for name, meant in known.items() if meant]
    if rows:
        yield "<h2>The names</h2>"
        yield _table(("method", "what it is"), rows).replace("<table>", '<table class="words">')


def _predictions(benches: Sequence[Bench]) -> Iterator[str]:
    """Yield predicted against measured, one point a method, both axes logarithmic."""
    points = [(bench, m, m.median, m.predicted) for bench in benches for m in bench.methods.values() if m.predicted]
    if not points:
        return
    errors = sorted(abs(predicted / measured - 1) for _, _, measured, predicted in points)
    low = min(min(point[2:]) for point in points) / 1.15
    high = max(max(point[2:]) for point in points) * 1.15

    def at(seconds: float) -> float:
        return (SIDE - 2 * EDGE) * math.log(seconds / low) / math.log(high / low)

    marks = [step * 10.0**power for power in range(-6, 5) for step in (1, 2, 5) if low <= step * 10.0**power <= high]
    if len(marks) < 3:  # close together: as many round numbers as there are between them
        marks = [mark for mark in ticks(high, 12) if mark >= low]
    for mark in list(marks):
        if any(other < mark and at(mark) - at(other) < GAP for other in marks):
            marks.remove(mark)
    grid = []
    for mark in marks:
        x, y = EDGE + at(mark), SIDE - EDGE - at(mark)
        grid.append(f'<path class="grid" d="M{x:.1f} {EDGE}V{SIDE - EDGE}M{EDGE} {y:.1f}H{SIDE - EDGE}" fill="none"/>')
        words = _round(mark)
        grid.append(f'<text x="{x:.1f}" y="{SIDE - EDGE + 16}" text-anchor="middle">{words}</text>')
        grid.append(f'<text x="{EDGE - 5}" y="{y + 4:.1f}" text-anchor="end">{words}</text>')
    dots = "".join(
        f'<circle cx="{EDGE + at(measured):.1f}" cy="{SIDE - EDGE - at(predicted):.1f}" r="4"><title>{escape(method.name)} on '
        f"{escape(bench.cluster)}: measured {milliseconds(measured)}, predicted {milliseconds(predicted)} ms</title></circle>"
        for bench, method, measured, predicted in points
    )
    even = f'<path class="even" d="M{EDGE} {SIDE - EDGE}L{SIDE - EDGE} {EDGE}" fill="none"/>'
    names = (
        f'<text x="{SIDE / 2}" y="{SIDE - EDGE + 40}" text-anchor="middle">measured, ms</text>'
        f'<text x="12" y="{SIDE / 2}" text-anchor="middle" transform="rotate(-90 12 {SIDE / 2})">predicted, ms</text>'
    )
    yield "<h2>Predicted against measured</h2>"
    yield (
        f"<p>{counted(len(points), 'predictions')}: half of them are off by at most {100 * float(np.median(errors)):.1f} %, "
        f"the worst by {100 * errors[-1]:.0f} %.</p>"
    )
    drawn = "".join(grid) + even + dots + names
    box = f"0 {EDGE - 14} {SIDE} {SIDE - EDGE}"
    yield f'<svg class="picture" viewBox="{box}" role="img" aria-label="predicted against measured">{drawn}</svg>'
