"""What benches recorded: their JSON lines read and checked, and a request as a Chrome trace. Pure but for reading the one file;
knows neither how it was measured nor how it is drawn.

A bench writes lines of the kinds method, request and timeline in any order and ends with a line of format hepti-bench. Several
benches may follow each other in one file.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hepti_mpi.cluster.profile import EMULATION
from hepti_mpi.documents import version_said
from hepti_mpi.errors import InputError, reason_of
from hepti_mpi.program.plan import WIRES
from hepti_mpi.reporting.tables import shortened
from hepti_mpi.wording import counted

FORMAT, FORMAT_VERSION = "hepti-bench", 1
PARTS = ("compute", "wire", "wait")
LONGEST = 100  # characters of what a bench was made on or with
AGAIN = "make records with: mpirun -n 2 python -m hepti_mpi bench --output records.jsonl"


@dataclass(frozen=True)
class Event:
    """What a rank did from `begin` to `end`, seconds since the request began: `kind` compute, or wire where an exchange blocked it."""

    body: str
    kind: str
    begin: float
    end: float


@dataclass(frozen=True)
class Lane:
    """One rank during one request. `board`: the one that it pretended to be; None where it is a real one."""

    rank: int
    host: str
    board: str | None
    events: tuple[Event, ...]

    @property
    def compute_seconds(self) -> float:
        return sum(event.end - event.begin for event in self.events if event.kind == "compute")


@dataclass(frozen=True)
class RankTimes:
    """One rank under one method: its part, and median seconds of a request, measured and predicted (None where they were not)."""

    host: str
    heads: int
    columns: int
    rows: int
    measured: tuple[float, ...] | None  # of PARTS
    predicted: tuple[float, ...] | None

    @property
    def is_active(self) -> bool:
        return bool(self.heads or self.columns or self.rows)


@dataclass(frozen=True)
class Method:
    """What was measured of one method. `parts`: [requests, 3] seconds of compute, wire and wait, mean over the ranks that hold a part
    of the layers; no rows where the requests were not recorded. `lanes`: one request; empty where none was recorded. `ranks`: all of the
    job; empty where the plan was not recorded. `above`: seconds above the bound by where they went, some may be below 0; empty where
    that was not recorded. `late`: the part of the time by which messages left later than from emulated boards."""

    name: str
    median: float
    predicted: float | None
    samples: tuple[float, ...]
    parts: np.ndarray
    layers: int = 0
    about: str = ""
    lanes: tuple[Lane, ...] = ()
    ranks: tuple[RankTimes, ...] = ()
    above: dict[str, float] = field(default_factory=dict)
    late: float = 0.0

    @property
    def bound(self) -> float:
        """The seconds from which `above` counts: the bound with what this method may have on the wire."""
        return self.median - sum(self.above.values())

    @property
    def seconds(self) -> float:
        """How long the request of `lanes` took."""
        return max((event.end for lane in self.lanes for event in lane.events), default=0.0)

    @property
    def middle(self) -> tuple[float, float] | None:
        """When two layers in the middle of `lanes` begin and end, if all layers take as long; None where that shows nothing more."""
        events = [event for lane in self.lanes for event in lane.events if event.end > event.begin]
        if not events or self.layers < 4:
            return None
        first = min(event.begin for event in events)
        centre, layer = (first + self.seconds) / 2, (self.seconds - first) / self.layers
        inside = any(event.begin > centre - layer and event.end < centre + layer for event in events)
        return (centre - layer, centre + layer) if inside else None


@dataclass(frozen=True)
class Bench:
    """The methods that one job compared. `ideal_seconds`: if all ranks computed all the time and nothing had to travel, None where that
    was not recorded; `bounds`: what none of our layouts can beat, by the type on the wire, as far as it was recorded. `made`: when, on
    what and with what."""

    model: str
    rows: int
    cluster: str
    ideal_seconds: float | None
    bounds: dict[str, float]
    methods: dict[str, Method] = field(default_factory=dict)
    made: str = ""

    @property
    def bound_seconds(self) -> float | None:
        return self.bounds.get(WIRES[0])


@dataclass(frozen=True)
class _Line:
    """An object of the file or inside one of its lines, and how it is called in a sentence."""

    place: str
    data: dict[str, Any]

    def fail(self, what: str) -> InputError:
        return InputError(f"{self.place} {what}")

    def value(self, name: str, wanted: str, *kinds: type) -> Any:
        if name not in self.data:
            raise self.fail(f"has no {name!r}")
        value = self.data[name]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise self.fail(f"has {_shown(value)} for {name!r}, which should be {wanted}")
        return value

    def text(self, name: str) -> str:
        return self.value(name, "text", str)

    def inside(self, name: str) -> "_Line":
        return _Line(f"{self.place.rstrip(',')}, {name!r},", self.value(name, "an object", dict))

    def number(self, name: str) -> float:
        """Return a time, count or factor: finite and not negative."""
        value = self._float(name)
        if not (math.isfinite(value) and value >= 0):
            raise self.fail(f"has {_shown(value)} for {name!r}, which should be a number of at least 0")
        return value

    def difference(self, name: str) -> float:
        """Return a difference of times: finite."""
        value = self._float(name)
        if not math.isfinite(value):
            raise self.fail(f"has {_shown(value)} for {name!r}, which should be a number")
        return value

    def _float(self, name: str) -> float:
        try:
            return float(self.value(name, "a number", int, float))
        except OverflowError:  # an integer of hundreds of digits
            return math.inf

    def optional(self, name: str) -> float | None:
        return None if self.data.get(name) is None else self.number(name)

    def numbers(self, name: str, count: int | None = None) -> tuple[float, ...]:
        values = self.value(name, "a list of numbers", list)
        if count is not None and len(values) != count:
            raise self.fail(f"has {counted(len(values), 'values')} for {name!r} and its plan has {counted(count, 'ranks')}")
        return tuple(_Line(self.place, {f"{name}[{place}]": value}).number(f"{name}[{place}]") for place, value in enumerate(values))


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def read_benches(path: Path) -> list[Bench]:
    """Return the benches of a records file. Raises InputError that names the line."""
    benches: list[Bench] = []
    pending: list[tuple[str, _Line]] = []
    for line in _lines(path):
        kind = line.data.get("kind", line.data.get("format"))
        if kind == FORMAT:
            benches.append(_bench(line, pending))
            pending = []
        elif isinstance(kind, str) and kind in ("method", "request", "timeline"):
            pending.append((kind, line))
        else:
            raise line.fail(f"is of kind {_shown(kind)}, which is none of method, request, timeline and {FORMAT}; {AGAIN}")
    if pending:
        raise pending[-1][1].fail(f"is the last, and no line of format {FORMAT} follows it: that bench was cut short")
    if not benches:
        raise InputError(f"{path} is empty; {AGAIN}")
    return benches


def _lines(path: Path) -> Iterator[_Line]:
    """Yield the object of each line that is not blank."""
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    data = json.loads(text)
                except (ValueError, RecursionError):
                    how = "is cut off or not JSON" if text.lstrip().startswith(b"{") else "is not JSON"
                    raise InputError(f"{path} line {number} {how}; {AGAIN}") from None
                if not isinstance(data, dict):
                    raise InputError(f"{path} line {number} is JSON but no object; {AGAIN}")
                yield _Line(f"{path} line {number}", data)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}; {AGAIN}") from None


def _bench(line: _Line, pending: Sequence[tuple[str, _Line]]) -> Bench:
    """Build a bench of its last line and those before it."""
    version = line.data.get("format_version")
    if version != FORMAT_VERSION:
        raise line.fail(f"has {version_said(version)}, this program reads {FORMAT_VERSION}")
    found: dict[str, dict[str, list[_Line]]] = {"method": {}, "request": {}, "timeline": {}}
    methods = line.inside("methods")
    for kind, item in pending:
        name = item.text("method")
        if name not in methods.data:
            raise item.fail(f"is about method {_shown(name)}, which is not among those of the {FORMAT} line after it")
        found[kind].setdefault(name, []).append(item)
    least = {wire: line.optional(f"bound{'' if wire == WIRES[0] else f'_{wire}'}_seconds") for wire in WIRES}
    bounds = {wire: seconds for wire, seconds in least.items() if seconds is not None}
    perfect, made = line.optional("perfect_seconds"), _made(line.data)
    bench = Bench(line.text("model"), int(line.number("rows")), line.text("cluster"), perfect, bounds, made=made)
    for name in methods.data:
        described, requests, timelines = (found[kind].get(name, []) for kind in found)
        if len(described) > 1:
            raise described[1].fail(f"describes {_shown(name)} once more: the bench before it lacks its line of format {FORMAT}")
        if (requests or timelines) and not described:
            raise (requests or timelines)[0].fail(f"is about {_shown(name)}, which no line of kind method describes")
        bench.methods[name] = _method(name, methods.inside(name), described, requests, timelines)
    if not bench.methods:
        raise line.fail("has no methods")
    return bench


def _made(data: dict[str, Any]) -> str:
    """Say when, on what and with what a bench was made, as far as it tells."""
    versions = data.get("versions")
    parts = [data.get("date"), data.get("machine"), isinstance(data.get("ranks"), int) and counted(data["ranks"], "ranks")]
    if isinstance(versions, dict):
        parts += [f"{'emulated boards' if name == EMULATION else name} {version}" for name, version in versions.items()]
    return "; ".join(shortened(" ".join(part.split()), LONGEST) for part in parts if isinstance(part, str) and part)


def _method(name: str, summary: _Line, described: list[_Line], requests: list[_Line], timelines: list[_Line]) -> Method:
    median = summary.number("median_seconds")
    if not median:
        raise summary.fail("has a median of 0 seconds")
    samples, predicted = summary.numbers("samples_seconds"), summary.optional("predicted_seconds")
    late = summary.optional("late") or 0.0
    above: dict[str, float] = {}
    if summary.data.get("above_bound") is not None:
        parts_line = summary.inside("above_bound").inside("parts_seconds")
        above = {part: parts_line.difference(part) for part in parts_line.data}
    if not described:
        return Method(name, median, predicted, samples, np.zeros((0, len(PARTS))), above=above, late=late)
    line = described[0]
    plan = line.inside("plan")
    ranks = len(plan.value("hosts", "a list", list))
    shares = np.array([plan.numbers(share, ranks) for share in ("heads", "columns", "rows")])  # [3, ranks]
    active = [rank for rank in range(ranks) if shares[:, rank].any()] or list(range(ranks))
    parts = np.array([[item.numbers(f"{part}_seconds", ranks) for part in PARTS] for item in requests])  # [requests, 3, ranks]
    ranks_times = _rank_times(line, plan, shares, parts if requests else None)
    parts = parts[:, :, active].mean(axis=2) if requests else np.zeros((0, len(PARTS)))
    strategy, layout = line.text("strategy"), line.text("layout")
    about = f"{strategy}, {layout}" if strategy != "single" else strategy
    lanes = tuple(_lane(item) for item in _objects(timelines[-1], "ranks")) if timelines else ()
    layers = len(plan.value("layers", "a list", list))
    return Method(name, median, predicted, samples, parts, layers, about, lanes, ranks_times, above, late)


def _rank_times(line: _Line, plan: _Line, shares: np.ndarray, parts: np.ndarray | None) -> tuple[RankTimes, ...]:
    """Return what each rank did; `shares` [3, ranks], `parts` [requests, 3, ranks]."""
    hosts = [host if isinstance(host, str) else _shown(host) for host in plan.data["hosts"]]
    promised = None
    if "predicted" in line.data:
        told = line.inside("predicted")
        wire = told.number("wire_seconds")
        columns = told.numbers("compute_seconds", len(hosts)), told.numbers("wait_seconds", len(hosts))
        promised = [(compute, wire if any(share) else 0.0, wait) for share, compute, wait in zip(shares.T, *columns)]
    measured = None if parts is None else np.median(parts, axis=0).T  # [ranks, 3]
    return tuple(
        RankTimes(
            host,
            int(shares[0, rank]),
            int(shares[1, rank]),
            int(shares[2, rank]),
            None if measured is None else tuple(float(value) for value in measured[rank]),
            None if promised is None else promised[rank],
        )
        for rank, host in enumerate(hosts)
    )


def _objects(line: _Line, name: str) -> list[_Line]:
    items = line.value(name, "a list of objects", list)
    return [_Line(line.place, {f"{name}[{place}]": item}).inside(f"{name}[{place}]") for place, item in enumerate(items)]


def _lane(line: _Line) -> Lane:
    events = []
    for place, item in enumerate(line.value("events", "a list of events", list)):
        if not (isinstance(item, list) and len(item) == 4 and isinstance(item[0], str) and item[1] in ("compute", "wire")):
            raise line.fail(f'event {place} is {_shown(item)}, which should be [body, "compute" or "wire", begin, end]')
        begin, end = _Line(line.place, {f"event {place}": item[2:]}).numbers(f"event {place}")
        if end < begin:
            raise line.fail(f"event {place} ends at {end} before it begins at {begin}")
        events.append(Event(item[0], item[1], begin, end))
    return Lane(int(line.number("rank")), line.text("host"), None if line.data.get("board") is None else line.text("board"), tuple(events))


def trace(name: str, lanes: Sequence[Lane]) -> dict[str, Any]:
    """Return one request as a document of the Chrome trace format, which ui.perfetto.dev and chrome://tracing open.

    One process, with a thread per rank; numbered from 1, since 0 is the idle task there.
    Source: "Trace Event Format", the Chromium authors, 2016.
    """
    events: list[dict[str, Any]] = [{"name": "process_name", "ph": "M", "pid": 1, "args": {"name": name}}]
    for lane in lanes:
        place = {"pid": 1, "tid": lane.rank + 1}
        board = "" if lane.board is None else f", board {lane.board}"
        events.append({"name": "thread_name", "ph": "M", **place, "args": {"name": f"rank {lane.rank} on {lane.host}{board}"}})
        events.append({"name": "thread_sort_index", "ph": "M", **place, "args": {"sort_index": lane.rank}})
        for event in lane.events:
            times = {"ts": round(event.begin * 1e6, 3), "dur": round((event.end - event.begin) * 1e6, 3)}
            events.append({"name": event.body, "cat": event.kind, "ph": "X", **times, **place})
    return {"displayTimeUnit": "ms", "traceEvents": events}
