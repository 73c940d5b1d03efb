"""What becomes of a job when its cluster changes or does not: the experiments `drift`, `quiet`, `faults` and `soak`.

    python -m tests.lab experiment drift --weights weights/bert-large.h5 --output drift
    python -m tests.lab experiment quiet --weights weights/bert-large.h5
    python -m tests.lab experiment faults --rounds 100 --seed 1
    python -m tests.lab experiment soak

Each prints a table; its last line is a JSON document. Knows labs, jobs and what they print; does not know how hepti_mpi does it.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import processes
from .errors import LabError
from .jobs import job, shell_line
from .lab import Lab

MARK = "\x1e"  # before what a supervised run tells
PROGRAM = [sys.executable, "-m", "hepti_mpi"]


def told(lines: Any) -> Iterator[dict[str, Any]]:
    """Yield the records among the lines of a job."""
    for line in lines:
        if line.startswith(MARK):
            yield json.loads(line[1:])


def experiment(options: argparse.Namespace) -> int:
    folder = Path(tempfile.mkdtemp(prefix="hepti-experiment-"))
    try:
        return {"drift": drift, "quiet": quiet, "faults": faults, "soak": soak}[options.name](options, folder)
    finally:
        shutil.rmtree(folder)


def _say(text: str) -> None:
    print(text, flush=True)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    lines = [list(map(str, line)) for line in (head, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        _say("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def _slice(name: str, path: Path) -> Path:
    subprocess.run([*PROGRAM, "slice", f"random:{name}", path], check=True, stdout=subprocess.DEVNULL)
    return path


def _inputs(path: Path, lengths: Sequence[int], vocabulary: int) -> Path:
    """Write requests of these numbers of tokens."""
    widest, draw = max(lengths), np.random.default_rng(0)
    mask = np.arange(widest)[None, :] < np.array(lengths)[:, None]
    np.savez(path, input_ids=draw.integers(1, vocabulary, mask.shape) * mask, attention_mask=mask.astype(np.int64))
    return path


# drift

SLOW, THIN, BACK = 1 / 4, 1 / 2, 3 / 4  # of the requests, when a board becomes slow, a link thin, and both are as before
SLOW_BOARD, SLOW_FACTOR, THIN_BOARD, THIN_MBIT = "pi5-1", 8.0, "pi4-1", 20.0
DRIFT_METHODS = {
    "hepti": [],
    "hepti-fixed": ["--no-adapt"],
    "coedge": ["--strategy", "coedge"],
    "edgeflow": ["--strategy", "edgeflow", "--no-adapt"],
    "megatron": ["--strategy", "megatron", "--no-adapt"],
    "voltage": ["--strategy", "voltage", "--no-adapt"],
}
SETTLE = 5  # requests after a change that a method has to find a new plan
STATIC = 40  # requests by which the best fixed plan of a state is found: enough for `run` to settle on one


@dataclass
class Course:
    """What one method did: `seconds` per request, and the record of the run."""

    seconds: list[float] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    whole: float = 0.0  # seconds from the first answer to the last


def drift(options: argparse.Namespace, folder: Path) -> int:
    """A board becomes slow, a link becomes thin, both recover: how long do requests take, method by method?"""
    requests, rows = options.requests or 120, 128
    weights = options.weights or _slice("bert-large", folder / "bert-large.h5")
    source = _inputs(folder / "in.npz", [rows], 1000)
    changes = {round(part * requests): what for part, what in ((SLOW, "slow"), (THIN, "thin"), (BACK, "back"))}
    best = {}
    for state, made in (("as it was", ()), ("slow board", ("slow",)), ("slow board, thin link", ("slow", "thin"))):
        found = _drifting(weights, source, ["--no-adapt"], STATIC, {0: made}, folder)
        best[state] = statistics.median(found.seconds[STATIC // 2 :])
        _say(f"best fixed plan, {state}: {best[state] * 1e3:.0f} ms")
    courses = {}
    for name in options.methods.split(",") if options.methods else DRIFT_METHODS:
        courses[name] = _drifting(weights, source, DRIFT_METHODS[name], requests, {at: (what,) for at, what in changes.items()}, folder)
        _say(f"{name}: mean {statistics.mean(courses[name].seconds) * 1e3:.0f} ms")
        for item in courses[name].record.get("decisions", ()):
            _say(f"  {json.dumps(item)}")
    bounds = [0, *changes, requests]
    states = ["as it was", "slow board", "slow board, thin link", "as it was"]
    parts = list(zip(states, bounds, bounds[1:]))
    rows_ = []
    for name, course in courses.items():
        medians = [statistics.median(course.seconds[begin + SETTLE * (begin > 0) : end]) for _, begin, end in parts]
        cells = [f"{value * 1e3:.0f} ({value / best[state]:.2f})" for value, (state, _, _) in zip(medians, parts)]
        switches = [sum(begin <= item["batch"] < end for item in course.record.get("decisions", ())) for _, begin, end in parts]
        rows_.append((name, f"{statistics.mean(course.seconds) * 1e3:.0f}", *cells, " ".join(map(str, switches))))
    _say("mean, and median ms from the 6th request after each change on (times the best fixed plan's), and switches of the plan")
    _table(("method", "mean", *states, "switches"), rows_)
    if options.output:
        from hepti_mpi.reporting.plots import plot_requests

        options.output.mkdir(parents=True, exist_ok=True)
        words = {"slow": f"{SLOW_BOARD} slows down", "thin": f"link of {THIN_BOARD}: {THIN_MBIT:g} Mbit/s", "back": "both recover"}
        marks = [(at, words[what]) for at, what in changes.items()]
        plot_requests({name: course.seconds for name, course in courses.items()}, marks, options.output / "drift.png",
                      f"{weights.stem}, {rows} rows, on mixed4")  # fmt: skip
        (options.output / "drift.json").write_text(json.dumps({name: vars(course) for name, course in courses.items()}))
    means = {name: statistics.mean(course.seconds) for name, course in courses.items()}
    print(json.dumps({
        "format": "hepti-drift", "requests": requests, "mean_seconds": means, "best_fixed_seconds": best,
        "decisions": {name: course.record.get("decisions", []) for name, course in courses.items()},
    }))  # fmt: skip
    return 0


def _drifting(weights: Path, source: Path, words: Sequence[str], requests: int, changes: dict[int, Sequence[str]], folder: Path) -> Course:
    """Run one job and change the cluster after so many answers."""
    course = Course()
    with Lab("mixed4", share=[folder]) as lab:
        before = {host.name: host for host in lab.cluster.hosts}

        def change(what: str) -> None:
            if what == "slow":
                lab.set_factor(SLOW_BOARD, SLOW_FACTOR)
            elif what == "thin":
                lab.set_rate(THIN_BOARD, THIN_MBIT)
            else:
                lab.set_factor(SLOW_BOARD, before[SLOW_BOARD].factor)
                lab.set_rate(THIN_BOARD, before[THIN_BOARD].mbit)

        for what in changes.get(0, ()):
            change(what)
        arguments = ["run", "--weights", str(weights), "--input", str(source), "--repeat", str(requests), "--supervised", "/nowhere"]
        running = lab.start([*PROGRAM, *arguments, *words], stdout=subprocess.PIPE)
        begin = 0.0
        for record in told(running.stdout):
            if record["kind"] == "answers":
                begin = begin or time.monotonic()
                course.whole = time.monotonic() - begin
                course.seconds.append(record["seconds"])
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
    weights = options.weights or _slice("bert-large", folder / "bert-large.h5")
    source = _inputs(folder / "in.npz", [128], 1000)
    course = _drifting(weights, source, ["--adapt"], options.requests or QUIET_REQUESTS, {}, folder)
    cost = (course.whole - sum(course.seconds[1:])) / sum(course.seconds[1:])  # all that lies between requests
    switches = len(course.record["decisions"])
    _say(f"median {statistics.median(course.seconds) * 1e3:.0f} ms; {cost:.2%} of the time passed between requests; {switches} switches")
    good = not switches and cost <= MOST_COST
    print(json.dumps({"format": "hepti-quiet", "requests": len(course.seconds), "switches": switches, "cost": cost, "passed": good}))
    return 0 if good else 1


# faults

KINDS = ("kill -9", "SIGSTOP", "link down", "host killed")
STOPPED_SECONDS = 20
FRESH, FRESH_SECONDS = 1 / 3, 6.0  # of the rounds measure; about how long that takes
FAULT_REQUESTS, FAULT_DEADLINE = 1000, 6
ROUND_SECONDS = 150  # after which a round hangs
CLEAN_SECONDS = 30  # for the last ranks of a host that was cut off to end themselves
CLOSE = 1e-4


@dataclass
class Round:
    """One fault and what came of it."""

    kind: str
    where: str
    hosts: int
    moment: float  # -0.5 to 0: while it starts; above: when that part of the answers is there
    fresh: bool = False  # the hosts are measured, whatever is known of them
    problems: list[str] = field(default_factory=list)
    silence: float | None = None  # seconds from the fault to the end of the longest silence after it
    starts: int = 0


def faults(options: argparse.Namespace, folder: Path) -> int:
    """Something breaks at a random moment, again and again: is every request answered once, in order, and how soon?"""
    draw, rounds = random.Random(options.seed), options.rounds or 100
    weights = options.weights or _slice("tiny-bert", folder / "tiny-bert.h5")
    requests = options.requests or FAULT_REQUESTS
    source = _inputs(folder / "in.npz", [12] * requests, 30)
    found = []
    with Lab("bench5", share=[folder]) as lab:
        usual = _undisturbed(lab, weights, source, folder)
        _say(f"undisturbed: {requests} requests in {usual.seconds:.1f} s, the first after {usual.start:.1f} s")
        kinds = list(itertools.islice(itertools.cycle(KINDS), rounds))
        draw.shuffle(kinds)
        for number, kind in enumerate(kinds, 1):
            hosts = lab.hosts[1:5] if number % 2 else lab.hosts[1:6]
            one = Round(kind, draw.choice(hosts), len(hosts), draw.uniform(-0.5, 0.95), draw.random() < FRESH)
            _one_round(lab, one, weights, source, usual, folder)
            found.append(one)
            silence = "-" if one.silence is None else f"{one.silence:.1f} s"
            moment = f"with {one.moment:.0%} answered" if one.moment > 0 else f"{1 + 2 * one.moment:.0%} into its start"
            moment += ", measured afresh" * one.fresh
            _say(f"{number}: {kind} on {one.where} of {one.hosts} {moment}: next answer after {silence}, "
                 f"{one.starts} starts, {'; '.join(one.problems) or 'passed'}")  # fmt: skip
    lines, medians = [], {}
    for kind in KINDS:
        these = [one for one in found if one.kind == kind]
        times = sorted(one.silence for one in these if one.silence is not None)
        medians[kind] = statistics.median(times) if times else None
        passed = sum(not one.problems for one in these)
        lines.append((kind, len(these), passed, *(f"{value:.1f}" for value in ((medians[kind], times[-1]) if times else ()))))
    _table(("fault", "rounds", "passed", "median s to the next answer", "longest"), [(*line, *["-"] * (5 - len(line))) for line in lines])
    passed = sum(not one.problems for one in found)
    print(json.dumps({"format": "hepti-faults", "rounds": rounds, "passed": passed, "seconds_to_next_answer": medians}))
    return 0 if passed == rounds else 1


def _supervise(
    lab: Lab, hosts: Sequence[str], weights: Path, source: Path, output: Path, folder: Path, more: Sequence[str] = ()
) -> "subprocess.Popen[str]":  # fmt: skip
    hostfile = folder / "hosts.txt"
    hostfile.write_text("".join(f"{host} slots=1\n" for host in hosts))
    arguments = ["run", "--weights", str(weights), "--input", str(source), "--output", str(output), "--batch-rows", "12"]
    arguments += ["--deadline", str(FAULT_DEADLINE), "--layout", "alltoall/rows", *more]
    launcher = job([], "").pop(0)
    command = [*PROGRAM, "supervise", "--mpirun", launcher, str(hostfile), "--", *arguments]
    line = shell_line([command[0], *command[1:]], {}, os.getcwd(), exports=False)
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(lab._login("desk", line), text=True, **streams)


@dataclass
class Usual:
    """A run that nothing happens to: its answers, how long it takes in all and until the first answer, and the size of its journal."""

    answers: np.ndarray
    seconds: float = 0.0
    start: float = 0.0
    size: int = 0


def _undisturbed(lab: Lab, weights: Path, source: Path, folder: Path) -> Usual:
    output = folder / "whole.jsonl"
    found = Usual(np.empty(0))
    for _ in range(2):  # the first one finds nothing in the caches
        output.unlink(missing_ok=True)
        running, begin, found.start = _supervise(lab, lab.hosts[1:5], weights, source, output, folder), time.monotonic(), 0.0
        while running.poll() is None and time.monotonic() - begin < ROUND_SECONDS:
            size = _size(output.with_name(output.name + ".journal"))
            found.size = max(size, found.size)
            if size and not found.start:
                found.start = time.monotonic() - begin
            time.sleep(0.005)
        if running.poll() != 0:
            raise LabError(f"the undisturbed run failed with code {running.returncode}")
        found.seconds = time.monotonic() - begin
    found.answers = _answers(output)
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _answers(path: Path) -> np.ndarray:
    return np.array([json.loads(line)["pooler_output"] for line in path.read_text().splitlines()])


def _one_round(lab: Lab, one: Round, weights: Path, source: Path, usual: Usual, folder: Path) -> None:
    hosts, output = lab.hosts[1 : 1 + one.hosts], folder / "out.jsonl"
    journal = output.with_name("out.jsonl.journal")
    output.unlink(missing_ok=True)
    journal.unlink(missing_ok=True)
    more = ["--fresh"] if one.fresh else []
    start = usual.start + FRESH_SECONDS * one.fresh
    running, begin = _supervise(lab, hosts, weights, source, output, folder, more), time.monotonic()
    said: list[str] = []
    listener = threading.Thread(target=lambda: said.extend(running.stderr or ()))
    listener.start()
    times: list[float] = []
    size, fault, undo = 0, None, None
    while running.poll() is None:
        now = time.monotonic()
        grown = _size(journal)
        if grown > size:
            size = grown
            times.append(now)
        struck = size >= one.moment * usual.size if one.moment > 0 else now - begin >= (1 + 2 * one.moment) * start
        if fault is None and struck:
            undo, fault = _break(lab, one), time.monotonic()
        if undo is not None and fault is not None and now - fault > STOPPED_SECONDS and one.kind == "SIGSTOP":
            undo()
            undo = None
        if now - begin > ROUND_SECONDS:
            one.problems.append("hangs")
            running.kill()
            lab.end_jobs()
        time.sleep(0.005)
    listener.join(5)
    one.starts = 1 + sum("; starting again" in line for line in said)
    if running.returncode:
        one.problems.append(f"exit code {running.returncode}: {' '.join(said[-3:]).strip()[-300:]}")
    elif not output.exists() or len(answers := _answers(output)) != len(usual.answers):
        one.problems.append("answers are missing")
    elif not np.abs(answers - usual.answers).max() < CLOSE:
        one.problems.append(f"answers differ by {np.abs(answers - usual.answers).max():.2g}")
    if journal.exists():
        one.problems.append("the journal is still there")
    if fault is not None and times and times[-1] > fault:
        after = [fault, *(moment for moment in times if moment > fault)]
        longest = max(range(1, len(after)), key=lambda at: after[at] - after[at - 1])
        one.silence = after[longest] - fault
    if undo is not None:
        undo()
    end = time.monotonic() + CLEAN_SECONDS
    while left := [line for host in lab.hosts for line in lab.processes(host).values() if "hepti_mpi" in line or "prted" in line]:
        if time.monotonic() > end:
            one.problems.append(f"left running: {left[0][:80]}")
            lab.end_jobs()
            break
        time.sleep(0.2)


def _break(lab: Lab, one: Round) -> Callable[[], None] | None:
    """Do what the round is about; return what undoes it."""
    if one.kind == "host killed":
        lab.kill_host(one.where, silent=True)
        return lambda: lab.start_host(one.where)
    if one.kind == "link down":
        lab.cut_link(one.where)
        return lambda: lab.restore_link(one.where)
    ranks = [number for number in lab.processes(one.where) if processes.rank_of(number) is not None]
    if not ranks:  # none has been started yet, or all have ended
        return None
    if one.kind == "kill -9":
        processes.kill(ranks[0])
        return None
    os.kill(ranks[0], signal.SIGSTOP)

    def go_on() -> None:
        try:
            os.kill(ranks[0], signal.SIGCONT)
        except ProcessLookupError:
            pass

    return go_on


# soak

SOAK_REQUESTS, SOAK_EVERY = 5000, 100  # requests between two looks
SOAK_FROM, FLAT = 500, 1.02


def soak(options: argparse.Namespace, folder: Path) -> int:
    """Thousands of requests of many sizes while boards slowly drift: do memory, descriptors and threads stay as they are?"""
    draw, requests = random.Random(options.seed), options.requests or SOAK_REQUESTS
    weights = options.weights or _slice("tiny-bert", folder / "tiny-bert.h5")
    lengths = [draw.randint(3, 60) for _ in range(50)]
    source = _inputs(folder / "in.npz", lengths, 30)
    seconds: list[float] = []
    looks: list[dict[int, tuple[int, int, int]]] = []
    record: dict[str, Any] = {}
    with Lab("mixed4", share=[folder]) as lab:
        repeat = str(-(-requests // len(lengths)))
        words = ["run", "--weights", str(weights), "--input", str(source), "--repeat", repeat, "--batch-rows", "1"]
        running = lab.start([*PROGRAM, *words, "--supervised", "/nowhere", "--adapt"], stdout=subprocess.PIPE)
        ranks: dict[int, int] = {}
        for item in told(running.stdout):
            if item["kind"] == "done":
                record = item["record"]
            if item["kind"] != "answers":
                continue
            seconds.append(item["seconds"])
            if not len(seconds) % SOAK_EVERY:
                ranks = ranks or lab.ranks()
                looks.append({rank: _held(number) for rank, number in ranks.items()})
                host = draw.choice(lab.cluster.hosts)
                factor = min(max(lab.factor(host.name) * draw.choice((0.9, 1.1)), 2.5), 12.0)
                lab.set_factor(host.name, factor)
        if running.wait():
            raise LabError(f"the run ended after {len(seconds)} requests with code {running.returncode}")
    late = looks[SOAK_FROM // SOAK_EVERY - 1 :]
    rows, worst, grown = [], 0.0, 0
    for rank in sorted(late[0]):
        held = [look[rank] for look in late]
        memory = [one[0] for one in held]
        worst = max(worst, max(memory) / memory[0])
        grown += held[-1][1] - held[0][1] + held[-1][2] - held[0][2]
        rows.append((rank, *(f"{value / 2**20:.1f}" for value in (memory[0], max(memory), memory[-1])), f"{held[0][1]} {held[-1][1]}",
                     f"{held[0][2]} {held[-1][2]}"))  # fmt: skip
    _table(("rank", f"MiB after {SOAK_FROM}", "most", "last", "descriptors", "threads"), rows)
    quantiles = {f"p{part}": float(np.quantile(seconds, part / 100)) for part in (50, 90, 99, 100)}
    decisions = len(record.get("decisions", ()))
    latencies = ", ".join(f"{name} {value * 1e3:.1f}" for name, value in quantiles.items())
    _say(f"latency ms: {latencies}; {decisions} switches of the plan")
    good = worst <= FLAT and grown <= 0
    print(json.dumps({
        "format": "hepti-soak", "requests": len(seconds), "memory_growth": worst, "descriptors_and_threads_grown": grown,
        "latency_seconds": quantiles, "switches": decisions, "passed": good,
    }))  # fmt: skip
    return 0 if good else 1


def _held(process: int) -> tuple[int, int, int]:
    """Return the resident bytes, open descriptors and threads of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) * 1024, len(os.listdir(f"/proc/{process}/fd")), int(status["Threads"])
