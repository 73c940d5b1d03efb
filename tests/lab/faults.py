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
from typing import Any

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
ROUND_SECONDS = 600  # after which a round hangs
CLEAN_SECONDS = 60  # for the last ranks of a host that was cut off to end themselves
CLOSE = 1e-4
FAULT_TEXTS, FAULT_TOKENS = 24, 200
NEAR = 1e-3  # of the logarithms of two likelihoods, between which the order of a sum may decide


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
    draw, rounds, found = random.Random(options.seed), options.rounds or 100, []
    trial = (texts if options.texts or options.teams or options.stages else vectors)(folder, options.weights, options.requests)
    if options.teams:  # each host writes texts of its own
        trial.words = [*trial.words[:-2], "--objective", "throughput"]
    elif options.stages:  # each token passes through hosts
        trial.words = [*trial.words[:-2], "--layout", "pipeline"]
    with Lab("bench5", share=[folder]) as lab:
        usual = undisturbed(lab, trial)
        say(f"undisturbed: {trial.requests} requests in {usual.seconds:.1f} s, the first after {usual.start:.1f} s")
        kinds = list(itertools.islice(itertools.cycle(KINDS), rounds))
        draw.shuffle(kinds)
        for number, kind in enumerate(kinds, 1):
            hosts = lab.hosts[1:5] if number % 2 else lab.hosts[1:6]
            one = Round(kind, draw.choice(hosts), len(hosts), draw.uniform(-0.5, 0.9), draw.random() < FRESH)
            if kind == "SIGSTOP":
                one.back = STOPPED_SECONDS
            elif kind != "kill -9" and draw.random() < BACK:
                one.back = draw.uniform(1, 10)
            one_round(lab, one, trial, usual)
            found.append(one)
            silence = "-" if one.silence is None else f"{one.silence:.1f} s"
            moment = f"with {one.moment:.0%} answered" if one.moment > 0 else f"{1 + 2 * one.moment:.0%} into its start"
            moment += ", measured afresh" * one.fresh
            moment += f", well again after {one.back:.0f} s" if one.back is not None else ""
            say(f"{number}: {kind} on {one.where} of {one.hosts} {moment}: next {trial.unit} after {silence}, "
                f"{one.starts} starts, {'; '.join(one.problems) or 'passed'}")  # fmt: skip
    lines, medians = [], {}
    for kind in KINDS:
        these = [one for one in found if one.kind == kind]
        times = sorted(one.silence for one in these if one.silence is not None)
        medians[kind] = statistics.median(times) if times else None
        passed = sum(not one.problems for one in these)
        lines.append((kind, len(these), passed, *(f"{value:.1f}" for value in ((medians[kind], times[-1]) if times else ()))))
    head = ("fault", "rounds", "passed", f"median s to the next {trial.unit}", "longest")
    print_table(head, [(*line, *["-"] * (5 - len(line))) for line in lines])
    passed = sum(not one.problems for one in found)
    missed = [kind for kind, most in MOST_SECONDS.items() if (medians[kind] or 0.0) > most]
    for kind in missed:
        say(f"missed: {kind}: {medians[kind]:.1f} s to the next {trial.unit}, not {MOST_SECONDS[kind]:g}")
    print(json.dumps({
        "format": "hepti-faults", "rounds": rounds, "passed": passed, f"seconds_to_next_{trial.unit}": medians, "missed": missed,
    }))  # fmt: skip
    return 0 if passed == rounds and not missed else 1


@dataclass
class Trial:
    """What is asked: `requests` in the file `source`, of the model in `weights`, with `words` for run; `unit`: what the journal grows by.
    `read` returns the answers in an output, `wrong` says what is wrong with those beside the undisturbed ones."""

    folder: Path
    weights: Path
    source: Path
    requests: int
    unit: str
    words: Sequence[str]
    read: Callable[[Path], list[Any]]
    wrong: Callable[[list[Any], list[Any]], str | None]


def vectors(folder: Path, weights: Path | None = None, requests: int | None = None) -> Trial:
    """Return requests for vectors, of a tiny model unless `weights` says another."""
    weights, requests = weights or sliced("tiny-bert", folder / "tiny-bert.h5"), requests or FAULT_REQUESTS
    source = inputs(folder / "in.npz", [12] * requests, 30)
    return Trial(folder, weights, source, requests, "answer", ["--batch-rows", "12", "--layout", "alltoall/rows"], _answers, _apart)


def texts(folder: Path, weights: Path | None = None, requests: int | None = None) -> Trial:
    """Return prompts whose texts grow token by token, of a tiny model unless `weights` says another."""
    weights, requests = weights or sliced("tiny-llama", folder / "tiny-llama.h5"), requests or FAULT_TEXTS
    source = inputs(folder / "in.npz", [12] * requests, 30)
    words = ["--max-tokens", str(FAULT_TOKENS), "--logprobs", "2", "--strategy", "tensor"]
    return Trial(folder, weights, source, requests, "token", words, _written, _strayed)


def _apart(found: list[Any], usual: list[Any]) -> str | None:
    most = np.abs(np.array(found) - np.array(usual)).max()
    return None if most < CLOSE else f"answers differ by {most:.2g}"


def _strayed(found: list[Any], usual: list[Any]) -> str | None:
    """Texts are the same up to where the two likeliest tokens were nearly as likely."""
    for place, (ours, right) in enumerate(zip(found, usual)):
        at = next((at for at, both in enumerate(zip(ours, right)) if both[0]["token"] != both[1]["token"]), min(len(ours), len(right)))
        if at == len(ours) == len(right):
            continue
        if at == min(len(ours), len(right)):
            return f"text {place} has {len(ours)} tokens, not {len(right)}"
        first, second = right[at]["top"]
        if first["logprob"] - second["logprob"] > NEAR:
            return f"text {place} goes another way at token {at}, where {first['logprob'] - second['logprob']:.2g} decides"
    return None


def _supervise(
    lab: Lab, hosts: Sequence[str], trial: Trial, output: Path, more: Sequence[str] = ()
) -> "subprocess.Popen[str]":  # fmt: skip
    hostfile = trial.folder / "hosts.txt"
    hostfile.write_text("".join(f"{host} slots=1\n" for host in hosts))
    arguments = ["run", "--weights", str(trial.weights), "--input", str(trial.source), "--output", str(output), *trial.words]
    arguments += ["--deadline", str(FAULT_DEADLINE), *more]
    command = [*PROGRAM, "supervise", "--mpirun", mpirun(), str(hostfile), "--", *arguments]
    return lab.begin("desk", command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@dataclass
class Usual:
    """A run that nothing happens to: its answers, how long it takes in all and until the first answer, and the size of its journal."""

    answers: list[Any]
    seconds: float = 0.0
    start: float = 0.0
    size: int = 0


def undisturbed(lab: Lab, trial: Trial, runs: int = 2) -> Usual:
    """Return the last of some runs: the first one finds nothing in the caches, so that it takes longer than others."""
    output = trial.folder / "whole.jsonl"
    found = Usual([])
    for _ in range(runs):
        output.unlink(missing_ok=True)
        running, begin, found.start = _supervise(lab, lab.hosts[1:5], trial, output), time.monotonic(), 0.0
        while running.poll() is None and time.monotonic() - begin < ROUND_SECONDS:
            size = _size(output.with_name(output.name + ".journal"))
            found.size = max(size, found.size)
            if size and not found.start:
                found.start = time.monotonic() - begin
            time.sleep(0.005)
        if running.poll() != 0:
            raise LabError(f"the undisturbed run failed with code {running.returncode}")
        found.seconds = time.monotonic() - begin
    found.answers = trial.read(output)
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _answers(path: Path) -> list[Any]:
    return [json.loads(line)["pooler_output"] for line in path.read_text().splitlines()]


def _written(path: Path) -> list[Any]:
    return [json.loads(line)["logprobs"] for line in path.read_text().splitlines()]


def one_round(lab: Lab, one: Round, trial: Trial, usual: Usual) -> None:
    hosts, output = lab.hosts[1 : 1 + one.hosts], trial.folder / "out.jsonl"
    journal = output.with_name("out.jsonl.journal")
    output.unlink(missing_ok=True)
    journal.unlink(missing_ok=True)
    more = ["--fresh"] if one.fresh else []
    start = usual.start + FRESH_SECONDS * one.fresh
    running, begin = _supervise(lab, hosts, trial, output, more), time.monotonic()
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
    elif not output.exists() or len(answers := trial.read(output)) != len(usual.answers):
        one.problems.append("answers are missing")
    elif wrong := trial.wrong(answers, usual.answers):
        one.problems.append(wrong)
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
