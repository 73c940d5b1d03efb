"""Tables of what tables.sh and repeat.sh measured, in Markdown: predictions, regret, nearness to the bound.

    python -m tests.lab.tables FOLDER    FOLDER/*.json: documents of `bench --json`, one a line
    python -m tests.lab.tables --repeated FOLDER    of the same bench, again and again
    python -m tests.lab.tables --records FOLDER    FOLDER/*.jsonl, of `bench --output`, in the boards' own time, for report

Knows the documents of bench; does not know how they were made.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hepti_mpi.cluster.boards import board_named
from hepti_mpi.cluster.profile import EMULATION
from hepti_mpi.reporting.records import MOST_LATE

from .clusters import read_clusters, slower
from .errors import LabError
from .lab import shortest

OURS_AUTO = ("hepti", "hepti-float16", "hepti-int8")
FORMAT = "hepti-bench"
SAME = ("cluster", "model", "rows", "methods")  # of a bench that is the same again


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.tables", description="Tables of what tables.sh and repeat.sh measured.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="with documents of `bench --json`")
    slowly = "slow motion of all, or CLUSTER=S,..., by which times are divided; left out: as the boards say that were emulated"
    parser.add_argument("--slow", metavar="S", type=motions, default={}, help=slowly)
    parser.add_argument("--repeated", action="store_true", help="they are of the same bench, again and again")
    parser.add_argument("--records", action="store_true", help="print what `bench --output` recorded, in the boards' own time")
    options = parser.parse_args()
    try:
        if options.records:
            for line in records(options.folder, options.slow):
                print(line)
            return 0
        found = read(options.folder)
        documents = [in_its_own_time(one, motion(one, options.slow)) for one in found]
        parts = [repeated] if options.repeated else [latencies, predictions, regrets, nearness, late]
        print("\n\n".join([made(found, options.slow), *(part(documents) for part in parts)]))
    except LabError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


def motions(text: str) -> dict[str, float]:
    """Read how slow the motion of clusters was; of "" where it is of all.

    >>> motions("2"), motions("even4=2.5,wifi3=1")
    ({'': 2.0}, {'even4': 2.5, 'wifi3': 1.0})
    """
    pairs = (one.rpartition("=") for one in text.split(","))
    found = {name: float(number) for name, _, number in pairs}
    if not all(1 <= number < math.inf for number in found.values()):
        raise ValueError
    return found


def motion_of(cluster: str, slow: Mapping[str, float]) -> float | None:
    """Return how slow the motion of a cluster was as it is said, also of one NAME-MEMORY of which a part of the memory was taken.

    >>> motion_of("mixed4-430M", {"mixed4": 1.4}), motion_of("even4", {"": 2.0}), motion_of("even4", {"mixed4": 1.4})
    (1.4, 2.0, None)
    """
    return slow.get(cluster, slow.get(cluster.partition("-")[0], slow.get("")))


def motion(document: Mapping[str, Any], slow: Mapping[str, float]) -> float:
    """Return how slow the motion was in which a bench was measured. Raises LabError where another one is said than its boards say."""
    said, seen = motion_of(document["cluster"], slow), _seen(document)
    if said is not None and seen is not None and not math.isclose(said, seen, rel_tol=0.01):
        raise LabError(f"{' '.join(_case(document))} was measured in motion {seen:g} times as slow, not {said:g}, by the boards it names")
    return seen or said or 1.0


def _seen(document: Mapping[str, Any]) -> float | None:
    """Return by what all boards that a bench names are slower than those of its cluster, None where that is not told or is not one."""
    boards = [board.partition(" ")[0] for board in document.get("versions", {}).get(EMULATION, "").split(",")]
    cluster = read_clusters().get(document["cluster"].partition("-")[0])
    if cluster is None or len(boards) != len(cluster.hosts):
        return None
    described = [board_named(host.board).float32 for host in cluster.in_slow_motion(1).hosts]
    times = [one / board_named(board).float32 for one, board in zip(described, boards)]
    return float(f"{times[0]:.4g}") if max(times) < 1.001 * min(times) else None


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the documents of bench in a folder, in the order of their names and lines. Raises LabError where there is none, or one is cut
    off."""
    every = [one for path in sorted(folder.glob("*.json")) for one in _objects(path) if one.get("format") == FORMAT]
    if not every:
        raise LabError(f"no documents of bench in {folder}; make them with: bash tests/lab/tables.sh")
    return every


def records(folder: Path, slow: Mapping[str, float]) -> Iterator[str]:
    """Yield the lines of a folder's benches, each of which ends with its document, in the boards' own time. Raises LabError as read."""
    lines: list[dict[str, Any]] = []
    paths = sorted(folder.glob("*.jsonl"))
    for path in paths:
        for one in _objects(path):
            lines.append(one)
            if one.get("format") == FORMAT:
                times = motion(one, slow)
                if times != 1:  # which the report tells beside versions
                    lines[-1] = one | {"versions": one.get("versions", {}) | {"slow motion": f"{times:g}, taken out of all times"}}
                yield from (json.dumps(in_its_own_time(line, times)) for line in lines)
                lines = []
        if lines:
            raise LabError(f"{path} ends within a bench: delete it and measure again with: bash tests/lab/tables.sh")
    if not paths:
        raise LabError(f"no records of bench in {folder}; make them with: bash tests/lab/tables.sh")


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise LabError(f"{path} cannot be read: {problem}") from None
    for number, line in enumerate(lines, 1):
        try:
            one = json.loads(line)
        except ValueError:
            one = None
        if not isinstance(one, dict):
            raise LabError(f"{path} line {number} is no document: delete the file and measure again with: bash tests/lab/tables.sh")
        yield one


def in_its_own_time(value: Any, slow: float, name: str = "") -> Any:
    """Return a document, or a part of one that is called `name`, as it is when nothing is in the slow motion in which it was measured:
    with all seconds divided by that, and boards as much faster.

    >>> in_its_own_time({"median_seconds": 3.0, "rows_per_second": 8.0, "events": [["mlp", "compute", 1.0, 2.0]], "board": "pi4*2"}, 2)
    {'median_seconds': 1.5, 'rows_per_second': 16.0, 'events': [['mlp', 'compute', 0.5, 1.0]], 'board': 'pi4'}
    """
    if isinstance(value, Mapping):
        return {key: in_its_own_time(one, slow, key if not name.endswith("seconds") else name) for key, one in value.items()}
    if isinstance(value, list):
        return [in_its_own_time(one, slow, name) for one in value]
    if isinstance(value, str) and name in ("board", EMULATION):
        return ",".join(_quicker(board, slow) for board in value.split(","))
    if not isinstance(value, float):
        return value
    return value / slow if name.endswith("seconds") or name == "events" else value * slow if name.endswith("_per_second") else value


def _quicker(said: str, times: float) -> str:
    """Return what is said of a board, with the latency of its link where it has one, when all of it is as many times as fast.

    >>> _quicker("pi4*2", 2), _quicker("7.5 300us", 3)
    ('pi4', '2.5 100us')
    """
    board, space, latency = said.partition(" ")
    return slower(board, 1 / times) + (f" {shortest(float(latency.removesuffix('us')) / times)}us" if space else "")


def made(documents: Sequence[Mapping[str, Any]], slow: Mapping[str, float]) -> str:
    """Return when, on what and with what documents were made, as far as they tell."""
    dates = sorted(one["date"] for one in documents if "date" in one)
    machines = dict.fromkeys(one["machine"].partition(", ")[2] for one in documents if "machine" in one)  # behind the name of the host
    versions = dict.fromkeys(f"{name} {said}" for one in documents for name, said in one.get("versions", {}).items() if name != EMULATION)
    motions_of = dict.fromkeys(f"{one['cluster']} {motion(one, slow):g}" for one in documents)
    spans = [" to ".join(dict.fromkeys((dates[0], dates[-1])))] if dates else []
    return f"{'; '.join([*spans, *machines, *versions])}. Slow motion, by which all times are divided: {', '.join(motions_of)}."


def latencies(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return the median milliseconds of every method."""
    names = list(dict.fromkeys(name for one in documents for name in one["methods"]))
    rows = []
    for one in documents:
        medians = [one["methods"].get(name, {}).get("median_seconds") for name in names]
        rows.append([*_case(one), *("" if value is None else _ms(value) for value in (one.get("bound_seconds"), *medians))])
    return _section("Milliseconds", ("cluster", "model", "rows", "bound", *names), rows)


def predictions(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return how far predicted and measured are from each other, of every case and of all."""
    rows, all_errors = [], []
    for one in documents:
        errors = {name: abs(method["predicted_seconds"] / method["median_seconds"] - 1) for name, method in one["methods"].items()}
        worst = max(errors, key=errors.__getitem__)
        rows.append([*_case(one), _percent(np.median(list(errors.values()))), _percent(errors[worst]), worst])
        all_errors += errors.values()
    text = _section("Predicted against measured", ("cluster", "model", "rows", "median error", "worst", "of"), rows)
    return f"{text}\n\nAll {len(all_errors)}: median {_percent(np.median(all_errors))}, worst {_percent(max(all_errors))}."


def regrets(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return what hepti takes over the best of all that it could have chosen."""
    rows = []
    for one in filter(_whole, documents):
        medians = {name: method["median_seconds"] for name, method in one["methods"].items() if name not in OURS_AUTO}
        if "hepti" in one["methods"] and medians:
            best = min(medians, key=medians.__getitem__)
            rows.append([*_case(one), f"{one['methods']['hepti']['median_seconds'] / medians[best]:.3f}", best])
    return _section("hepti over the best of the others", ("cluster", "model", "rows", "regret", "best other"), rows)


def nearness(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return the bound over what was reached, and where the rest went, of what the planner chose; and which bounds are none."""
    head = ("cluster", "model", "rows", "method", "bound", "nearness", "above, ms", "of that")
    sooner = [f"{name} on {' '.join(_case(one))}" for one in documents for name, method in one["methods"].items() if method["nearness"] > 1]
    text = _section("Nearness to the bound", head, list(_near(documents)))
    return text + f"\n\nSooner than the bound, which is none then: {', '.join(sooner)}." * bool(sooner)


def _near(documents: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for one in filter(_whole, documents):
        for name in OURS_AUTO:
            method = one["methods"].get(name)
            if method is not None:
                above = method["above_bound"]
                parts = sorted(above["parts_seconds"].items(), key=lambda part: -abs(part[1]))
                words = ", ".join(f"{part} {_ms(seconds)}" for part, seconds in parts if abs(seconds) >= 0.5e-3)
                bound = _ms(method["median_seconds"] - above["seconds"])  # with what this method may send
                yield [*_case(one), name, bound, f"{method['nearness']:.3f}", _ms(above["seconds"]), words]


def late(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return which methods' messages left later than from their boards for more of the time than counts."""
    rows = [
        [*_case(one), name, _percent(method["late"]), _percent(method["overruns"])]
        for one in documents
        for name, method in one["methods"].items()
        if method["late"] > MOST_LATE
    ]
    total = sum(len(one["methods"]) for one in documents)
    text = _section("Late for more than 1 % of the time", ("cluster", "model", "rows", "method", "late", "overruns"), rows)
    return f"{text}\n\n{len(rows)} of {total}."


def repeated(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return the medians of every method in each of the documents, and how far they are from the median of all. Raises LabError where they
    are not of the same."""
    for what in SAME:
        if len({str(list(one[what]) if what == "methods" else one[what]) for one in documents}) > 1:
            raise LabError(f"the documents are not of one bench again: they differ in {what}")
    rows = []
    for name in documents[0]["methods"]:
        medians = [one["methods"][name]["median_seconds"] for one in documents]
        away = max(abs(seconds / float(np.median(medians)) - 1) for seconds in medians)
        rows.append([name, *map(_ms, medians), _percent(away)])
    numbers = [str(number) for number in range(1, len(documents) + 1)]
    return _section("The same bench again, milliseconds", ("method", *numbers, "farthest from the median"), rows)


def _whole(document: Mapping[str, Any]) -> bool:
    """Tell whether all layers answered, by plans that were settled on by trying."""
    return not document["model"].endswith("-layers")


def _case(document: Mapping[str, Any]) -> list[str]:
    return [document["cluster"], document["model"], str(document["rows"])]


def _section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return f"## {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}"


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"


if __name__ == "__main__":
    sys.exit(main())
