"""What becomes of a job when its cluster changes or does not: the experiments `drift`, `quiet` and `soak`.

Each prints a table; its last line is a JSON document. Knows labs, jobs and what they print; does not know how hepti_mpi does it. Faults
are in faults.py.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.reporting.records import too_late

from .clusters import Cluster, cluster_named, slower
from .errors import LabError
from .lab import Lab
from .trials import PROGRAM, TOLD, inputs, print_table, records_of, say, sliced

ONE_PLAN = ["--objective", "latency"]  # for so many requests `run` would make teams, which have no plan to switch

# drift

SLOW, THIN, BACK = 1 / 4, 1 / 2, 3 / 4  # of the requests, when a board becomes slow, a link thin, and both are as before
SLOW_BOARD, SLOW_BOARD_BECOMES, THIN_BOARD, THIN_MBIT = "pi5-1", "8", "pi4-1", 20.0
DRIFT_METHODS = {
    "hepti": [],
    "hepti-fixed": ["--no-adapt"],
    "coedge": ["--strategy", "coedge"],
    "edgeflow": ["--strategy", "edgeflow", "--no-adapt"],
    "megatron": ["--strategy", "megatron", "--no-adapt"],
    "voltage": ["--strategy", "voltage", "--no-adapt"],
}
SETTLE = 5  # requests after a change that a method has to find a new plan
LEAST_REQUESTS = 8 * SETTLE
STALL = 1.5  # times what loading takes that a switch may
GOOD = 1.05  # times what the best fixed plan takes
MOST_SWITCHES = 2  # for one change
SHARE_OF = {"edgeflow": 0.70, "coedge": 0.85}  # of their means, that hepti's may be
STATIC = 12  # requests by the plan that `run` settles on in a state that stays: boards take the same time again and again


@dataclass
class Course:
    """What one method did: `seconds` per request, in the cluster's own time also in slow motion, and the record of the run."""

    seconds: list[float] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    whole: float = 0.0  # seconds from the first answer to the last

    @property
    def late(self) -> float:
        """The part of the time by which messages of a rank left later than from the emulated board, of the rank of which it is most."""
        return max(float(rank["late"]) for rank in self.record["ranks"])


def drift(options: argparse.Namespace, folder: Path) -> int:
    """A board becomes slow, a link becomes thin, both recover: how long do requests take, method by method?"""
    requests, rows = options.requests or 80, 128
    names = options.methods.split(",") if options.methods else list(DRIFT_METHODS)
    for name in names:
        if name not in DRIFT_METHODS:
            raise LabError(f"drift knows no method {name}; it knows {', '.join(DRIFT_METHODS)}")
    if requests < LEAST_REQUESTS:
        raise LabError(f"drift needs at least --requests {LEAST_REQUESTS}, which is {LEAST_REQUESTS // 4} from one change to the next")
    weights = options.weights or sliced("bert-large", folder / "bert-large.h5")
    source = inputs(folder / "in.npz", [rows], 1000)
    if options.output:
        try:  # before anything is measured
            from hepti_mpi.reporting.plots import plot_requests
        except InputError as error:
            raise LabError(str(error)) from None

    changes = {round(part * requests): what for part, what in ((SLOW, "slow"), (THIN, "thin"), (BACK, "back"))}
    cluster = _slowly(options)
    best, courses = _best_fixed(weights, source, cluster, folder), {}
    changed = {at: (what,) for at, what in changes.items()}
    for name in names:
        courses[name] = _drifting(weights, source, DRIFT_METHODS[name], requests, changed, cluster, folder)
        say(f"{name}: mean {statistics.mean(courses[name].seconds) * 1e3:.0f} ms")
        for item in courses[name].record.get("decisions", ()):
            say(f"  {json.dumps(item)}")
    bounds = [0, *changes, requests]
    states = ["as it was", "slow board", "slow board, thin link", "as it was"]
    parts = list(zip(states, bounds, bounds[1:]))
    rows_ = []
    for name, course in courses.items():
        medians = [statistics.median(course.seconds[begin + SETTLE * (begin > 0) : end]) for _, begin, end in parts]
        cells = [f"{value * 1e3:.0f} ({value / best[state]:.2f})" for value, (state, _, _) in zip(medians, parts)]
        switches = [sum(begin <= item["batch"] < end for item in course.record.get("decisions", ())) for _, begin, end in parts]
        rows_.append((name, f"{statistics.mean(course.seconds) * 1e3:.0f}", *cells, " ".join(map(str, switches)), f"{course.late:.1%}"))
    say("mean, and median ms from the 6th request after each change on (times the best fixed plan's), switches of the plan, and how late")
    print_table(("method", "mean", *states, "switches", "late"), rows_)
    late = {name: course.late for name, course in courses.items()}
    for sentence in too_late(late):
        say(sentence)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        words = {"slow": f"{SLOW_BOARD} slows down", "thin": f"link of {THIN_BOARD}: {THIN_MBIT:g} Mbit/s", "back": "both recover"}
        marks = [(at, words[what]) for at, what in changes.items()]
        plot_requests({name: course.seconds for name, course in courses.items()}, marks, options.output / "drift.png",
                      f"{weights.stem}, {rows} rows, on mixed4")  # fmt: skip
        (options.output / "drift.json").write_text(json.dumps({name: vars(course) for name, course in courses.items()}))
    means = {name: statistics.mean(course.seconds) for name, course in courses.items()}
    missed = list(_missed(courses["hepti"], means, best, parts)) if "hepti" in courses else []
    for sentence in missed:
        say(f"missed: {sentence}")
    print(json.dumps({
        "format": "hepti-drift", "requests": requests, "slow": cluster.slow, "late": late,
        "mean_seconds": means, "best_fixed_seconds": best,
        "decisions": {name: course.record.get("decisions", []) for name, course in courses.items()}, "missed": missed,
    }))  # fmt: skip
    return 1 if missed else 0


def _slowly(options: argparse.Namespace) -> Cluster:
    return cluster_named("mixed4").in_slow_motion(1 if options.slow is None else options.slow)


def _best_fixed(weights: Path, source: Path, cluster: Cluster, folder: Path) -> dict[str, float]:
    """Return the median seconds of a request by the plan that `run` settles on in each state."""
    best = {}
    for state, made in (("as it was", ()), ("slow board", ("slow",)), ("slow board, thin link", ("slow", "thin"))):
        found = _drifting(weights, source, ["--no-adapt"], STATIC, {0: made}, cluster, folder)
        best[state] = statistics.median(found.seconds[STATIC // 2 :])
        say(f"best fixed plan, {state}: {best[state] * 1e3:.0f} ms")
    return best


def _missed(course: Course, means: dict[str, float], best: dict[str, float], parts: Sequence[tuple[str, int, int]]) -> Iterator[str]:
    """Yield what hepti did not reach."""
    for name, mean in means.items():
        if name != "hepti" and means["hepti"] > SHARE_OF.get(name, 1.0) * mean:
            yield f"its mean is {means['hepti'] / mean:.2f} of {name}'s, not {SHARE_OF.get(name, 1.0):g}"
    for item in course.record.get("decisions", ()):
        if item["stall_seconds"] > STALL * item["load_seconds"]:
            longer = item["stall_seconds"] / item["load_seconds"]
            yield f"the switch before request {item['batch']} took {longer:.2f} x as long as loading, not {STALL:g}"
    for state, begin, end in parts[1:]:
        good = GOOD * best[state]
        first = next((at for at in range(begin, end) if statistics.median(course.seconds[at : min(at + SETTLE, end)]) <= good), end)
        if first - begin > SETTLE:
            yield f"{state}: requests {first - begin} after the change are the first within {GOOD:g} of the best fixed plan, not {SETTLE}"
        rest = statistics.median(course.seconds[begin + SETTLE : end])
        if rest > good:
            yield f"{state}: {rest / best[state]:.2f} of the best fixed plan from request {SETTLE + 1} on, not {GOOD:g}"
        switches = sum(begin <= item["batch"] < end for item in course.record.get("decisions", ()))
        if switches > MOST_SWITCHES:
            yield f"{state}: {switches} switches, not {MOST_SWITCHES}"


def _drifting(
    weights: Path, source: Path, words: Sequence[str], requests: int, changes: dict[int, Sequence[str]], cluster: Cluster, folder: Path
) -> Course:
    """Run one job and change the cluster after so many answers."""
    course, slow = Course(), cluster.slow
    with Lab(cluster, share=[folder]) as lab:
        before = {host.name: host for host in lab.cluster.hosts}

        def change(what: str) -> None:
            if what == "slow":
                lab.set_board(SLOW_BOARD, slower(SLOW_BOARD_BECOMES, slow))
            elif what == "thin":
                lab.set_rate(THIN_BOARD, THIN_MBIT / slow)
            else:
                lab.set_board(SLOW_BOARD, before[SLOW_BOARD].board)
                lab.set_rate(THIN_BOARD, before[THIN_BOARD].mbit)

        for what in changes.get(0, ()):
            change(what)
        arguments = ["run", "--weights", str(weights), "--input", str(source), "--repeat", str(requests), *ONE_PLAN]
        running = lab.start([*PROGRAM, *arguments, *words], env=TOLD, stdout=subprocess.PIPE)
        begin = 0.0
        for record in records_of(running):
            if record["kind"] == "answers":
                begin = begin or time.monotonic()
                course.whole = (time.monotonic() - begin) / slow
                course.seconds.append(record["seconds"] / slow)
                for what in changes.get(len(course.seconds), ()):
                    change(what)
            elif record["kind"] == "done":
                course.record = record["record"]
        if running.wait() or len(course.seconds) != requests:
            raise LabError(f"a run ended after {len(course.seconds)} of {requests} requests with code {running.returncode}")
    return course


# quiet

QUIET_REQUESTS, MOST_COST = 200, 0.01


def quiet(options: argparse.Namespace, folder: Path) -> int:
    """Nothing changes: is the plan left alone, and what does watching cost?"""
    weights = options.weights or sliced("bert-large", folder / "bert-large.h5")
    source = inputs(folder / "in.npz", [128], 1000)
    cluster = _slowly(options)
    course = _drifting(weights, source, ["--adapt"], options.requests or QUIET_REQUESTS, {}, cluster, folder)
    cost = (course.whole - sum(course.seconds[1:])) / sum(course.seconds[1:])  # all that lies between requests
    switches = len(course.record["decisions"])
    median = statistics.median(course.seconds) * 1e3
    say(f"median {median:.0f} ms; {cost:.2%} of the time passed between requests; {switches} switches; {course.late:.1%} late")
    for sentence in too_late({"hepti": course.late}):
        say(sentence)
    good = not switches and cost <= MOST_COST
    print(json.dumps({
        "format": "hepti-quiet", "requests": len(course.seconds), "slow": cluster.slow, "late": course.late, "switches": switches,
        "cost": cost, "passed": good,
    }))  # fmt: skip
    return 0 if good else 1


# soak

SOAK_REQUESTS, SOAK_EVERY = 5000, 100  # requests between two looks
SOAK_FROM, FLAT = 500, 1.02


def soak(options: argparse.Namespace, folder: Path) -> int:
    """Thousands of requests of many sizes while boards slowly drift: do memory, descriptors and threads stay as they are?

    Compared is what ranks hold under one plan: another one gives them other weights and other links.
    """
    draw, requests = random.Random(options.seed), options.requests or SOAK_REQUESTS
    if requests < SOAK_FROM + SOAK_EVERY:
        raise LabError(f"soak needs at least --requests {SOAK_FROM + SOAK_EVERY}: it compares with what is held after {SOAK_FROM}")
    weights = options.weights or sliced("minilm", folder / "minilm.h5")
    lengths = [draw.randint(3, 60) for _ in range(50)]
    source = inputs(folder / "in.npz", lengths, 30)
    seconds: list[float] = []
    looks: list[dict[int, tuple[int, int, int]]] = []
    record: dict[str, Any] = {}
    with Lab("mixed4", share=[folder]) as lab:
        repeat = str(-(-requests // len(lengths)))
        words = ["run", "--weights", str(weights), "--input", str(source), "--repeat", repeat, "--batch-rows", "1", *ONE_PLAN]
        running = lab.start([*PROGRAM, *words, "--adapt"], env=TOLD, stdout=subprocess.PIPE)
        ranks: dict[int, int] = {}
        for item in records_of(running):
            if item["kind"] == "done":
                record = item["record"]
            if item["kind"] != "answers":
                continue
            seconds.append(item["seconds"])
            if not len(seconds) % SOAK_EVERY:
                ranks = ranks or lab.ranks()
                looks.append({rank: _held(number) for rank, number in ranks.items()})
                host = draw.choice(lab.cluster.hosts)
                factor = min(max(float(lab.board(host.name)) * draw.choice((0.9, 1.1)), 2.5), 12.0)
                lab.set_board(host.name, factor)
        if running.wait():
            raise LabError(f"the run ended after {len(seconds)} requests with code {running.returncode}")
    decisions = [item["batch"] for item in record.get("decisions", ())]
    rows, worst, grown, compared = [], 0.0, 0, 0
    for switch, end in pairwise([0, *decisions, len(seconds)]):
        begin = max(SOAK_FROM, switch + 2 * SOAK_EVERY)  # when the plan's weights have been used
        late = looks[-(-begin // SOAK_EVERY) - 1 : end // SOAK_EVERY]
        compared += max(0, len(late) - 1)
        for rank in sorted(late[0]) if len(late) > 1 else ():
            held = [look[rank] for look in late]
            memory = [one[0] for one in held]
            worst = max(worst, max(memory) / memory[0])
            grown += max(0, held[-1][1] - held[0][1]) + max(0, held[-1][2] - held[0][2])
            rows.append((f"{begin}-{end}", rank, *(f"{value / 2**20:.1f}" for value in (memory[0], max(memory), memory[-1])),
                         f"{held[0][1]} {held[-1][1]}", f"{held[0][2]} {held[-1][2]}"))  # fmt: skip
    print_table(("requests", "rank", "MiB first", "most", "last", "descriptors", "threads"), rows)
    quantiles = {f"p{part}": float(np.quantile(seconds, part / 100)) for part in (50, 90, 99, 100)}
    latencies = ", ".join(f"{name} {value * 1e3:.1f}" for name, value in quantiles.items())
    say(f"latency ms: {latencies}; {len(decisions)} switches of the plan")
    good = worst <= FLAT and not grown and compared * 2 >= len(looks)  # were the plan another one all the time, nothing could be told
    print(json.dumps({
        "format": "hepti-soak", "requests": len(seconds), "memory_growth": worst, "descriptors_and_threads_grown": grown,
        "latency_seconds": quantiles, "switches": len(decisions), "passed": good,
    }))  # fmt: skip
    return 0 if good else 1


def _held(process: int) -> tuple[int, int, int]:
    """Return the resident bytes, open descriptors and threads of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) * 1024, len(os.listdir(f"/proc/{process}/fd")), int(status["Threads"])
