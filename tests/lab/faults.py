"""Something breaks at a random moment, again and again, under the supervisor: the experiment `faults`.

Knows labs, what can break and what must come of it; does not know how hepti_mpi goes on.
"""

import argparse
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import processes
from .errors import LabError
from .jobs import mpirun
from .lab import Lab
from .trials import PROGRAM, inputs, print_table, say, sliced

KINDS = ("kill -9", "SIGSTOP", "link down", "host killed")
STOPPED_SECONDS = 20
FRESH, FRESH_SECONDS = 1 / 3, 6.0  # of the rounds measure; about how long that takes
BACK = 1 / 2  # of lost links and hosts come back while the run goes on
FAULT_REQUESTS, FAULT_DEADLINE = 1000, 6
MOST_SECONDS = {"kill -9": 8.0, "host killed": 8.0, "link down": 8.0 + FAULT_DEADLINE}  # medians, to the next answer
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
    back: float | None = None  # seconds after which what broke is well again, where it is before the end
    problems: list[str] = field(default_factory=list)
    silence: float | None = None  # seconds from the fault to the end of the longest silence after it
    starts: int = 0


def faults(options: argparse.Namespace, folder: Path) -> int:
    """Something breaks at a random moment, again and again: is every request answered once, in order, and how soon?"""
    draw, rounds = random.Random(options.seed), options.rounds or 100
    weights = options.weights or sliced("tiny-bert", folder / "tiny-bert.h5")
    requests = options.requests or FAULT_REQUESTS
    source = inputs(folder / "in.npz", [12] * requests, 30)
    found = []
    with Lab("bench5", share=[folder]) as lab:
        usual = undisturbed(lab, weights, source, folder)
        say(f"undisturbed: {requests} requests in {usual.seconds:.1f} s, the first after {usual.start:.1f} s")
        kinds = list(itertools.islice(itertools.cycle(KINDS), rounds))
        draw.shuffle(kinds)
        for number, kind in enumerate(kinds, 1):
            hosts = lab.hosts[1:5] if number % 2 else lab.hosts[1:6]
            one = Round(kind, draw.choice(hosts), len(hosts), draw.uniform(-0.5, 0.9), draw.random() < FRESH)
            if kind == "SIGSTOP":
                one.back = STOPPED_SECONDS
            elif kind != "kill -9" and draw.random() < BACK:
                one.back = draw.uniform(1, 10)
            one_round(lab, one, weights, source, usual, folder)
            found.append(one)
            silence = "-" if one.silence is None else f"{one.silence:.1f} s"
            moment = f"with {one.moment:.0%} answered" if one.moment > 0 else f"{1 + 2 * one.moment:.0%} into its start"
            moment += ", measured afresh" * one.fresh
            moment += f", well again after {one.back:.0f} s" if one.back is not None else ""
            say(f"{number}: {kind} on {one.where} of {one.hosts} {moment}: next answer after {silence}, "
                f"{one.starts} starts, {'; '.join(one.problems) or 'passed'}")  # fmt: skip
    lines, medians = [], {}
    for kind in KINDS:
        these = [one for one in found if one.kind == kind]
        times = sorted(one.silence for one in these if one.silence is not None)
        medians[kind] = statistics.median(times) if times else None
        passed = sum(not one.problems for one in these)
        lines.append((kind, len(these), passed, *(f"{value:.1f}" for value in ((medians[kind], times[-1]) if times else ()))))
    head = ("fault", "rounds", "passed", "median s to the next answer", "longest")
    print_table(head, [(*line, *["-"] * (5 - len(line))) for line in lines])
    passed = sum(not one.problems for one in found)
    missed = [kind for kind, most in MOST_SECONDS.items() if (medians[kind] or 0.0) > most]
    for kind in missed:
        say(f"missed: {kind}: {medians[kind]:.1f} s to the next answer, not {MOST_SECONDS[kind]:g}")
    print(json.dumps({
        "format": "hepti-faults", "rounds": rounds, "passed": passed, "seconds_to_next_answer": medians, "missed": missed,
    }))  # fmt: skip
    return 0 if passed == rounds and not missed else 1


def _supervise(
    lab: Lab, hosts: Sequence[str], weights: Path, source: Path, output: Path, folder: Path, more: Sequence[str] = ()
) -> "subprocess.Popen[str]":  # fmt: skip
    hostfile = folder / "hosts.txt"
    hostfile.write_text("".join(f"{host} slots=1\n" for host in hosts))
    arguments = ["run", "--weights", str(weights), "--input", str(source), "--output", str(output), "--batch-rows", "12"]
    arguments += ["--deadline", str(FAULT_DEADLINE), "--layout", "alltoall/rows", *more]
    command = [*PROGRAM, "supervise", "--mpirun", mpirun(), str(hostfile), "--", *arguments]
    return lab.begin("desk", command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@dataclass
class Usual:
    """A run that nothing happens to: its answers, how long it takes in all and until the first answer, and the size of its journal."""

    answers: np.ndarray
    seconds: float = 0.0
    start: float = 0.0
    size: int = 0


def undisturbed(lab: Lab, weights: Path, source: Path, folder: Path) -> Usual:
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


def one_round(lab: Lab, one: Round, weights: Path, source: Path, usual: Usual, folder: Path) -> None:
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
        if fault is None and struck and running.poll() is None:
            undo = _break(lab, one)
            fault = None if undo is None else time.monotonic()
            if undo is None:  # there was nothing to break yet
                time.sleep(0.05)
        if undo is not None and fault is not None and one.back is not None and now - fault > one.back:
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
    if fault is None:
        one.problems.append("it was over before anything broke")
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
    """Do what the round is about; return what undoes it, None where there was nothing to do it to."""
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
        return lambda: None
    os.kill(ranks[0], signal.SIGSTOP)

    def go_on() -> None:
        try:
            os.kill(ranks[0], signal.SIGCONT)
        except ProcessLookupError:
            pass

    return go_on
