"""Something breaks at a random moment, again and again, while clients ask a service: the experiment `service`.

Every request has to be answered, with what it was answered the first time; a text that grows has to go on with the same tokens. Knows labs,
what can break and what must come of it; does not know how a service goes on.
"""

import argparse
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import processes
from .errors import LabError
from .jobs import CHECKOUT, mpirun
from .lab import Lab
from .trials import PROGRAM, print_table, say

KINDS = ("kill -9", "SIGSTOP", "link down", "host killed")
DEADLINE, CALM_SECONDS, BACK_SECONDS = 6, 2.0, (2, 8)
BEGIN_SECONDS, ROUND_SECONDS, END_SECONDS = 150, 120, 330
MOST_SECONDS = 8.0  # the median pause
KINDS_OF_SERVICES: dict[str, tuple[str, int, str, str, list[str]]] = {  # store, port, what clients tell of a part and of a whole answer
    "embeddings": ("sentence.h5", 8097, "embedded", "embedded", []),
    "texts": ("llama.h5", 8098, "token", "written", ["--context", "100", "--strategy", "tensor"]),
}


class Own:
    """A service on the desk of a lab with ranks on four other hosts, and the clients that ask it."""

    def __init__(self, lab: Lab, folder: Path, name: str) -> None:
        self.lab, self.desk, self.boards, self.name = lab, lab.hosts[0], lab.hosts[1:5], name
        self.store, self.port, self.part, self.whole, more = KINDS_OF_SERVICES[name]
        self.hostfile, self.log = folder / f"{name}.txt", folder / f"{name}.log"
        self.hostfile.write_text("".join(f"{board} slots=1\n" for board in self.boards))
        # emulated boards go before all else: those that write spin in MPI's collectives, and two cores are too few for four of them
        program = ["env", "-u", "HEPTI_EMULATE_FILE", *PROGRAM] if name == "texts" else PROGRAM
        words = ["serve", str(self.hostfile), "--mpirun", mpirun(), "--weights", str(folder / self.store), *more]
        words += ["--port", str(self.port), "--deadline", str(DEADLINE)]
        with open(self.log, "w") as log:
            self.running = lab.begin(self.desk, [*program, *words], stdout=log, stderr=log)
        self.events: list[dict[str, Any]] = []

    def health(self) -> dict[str, Any]:
        done = self.lab.ssh(self.desk, ["curl", "-s", "-m", "5", f"localhost:{self.port}/health"], capture_output=True)
        try:
            return dict(json.loads(done.stdout))
        except ValueError:
            return {"status": "silent", "hosts": []}

    def well(self) -> bool:
        """Whether it answers."""
        return self.health()["status"] in ("ready", "degraded")

    def here(self) -> list[str]:
        """The boards on which it has ranks."""
        return [host["host"] for host in self.health()["hosts"] if host["state"] == "here"]

    def begin(self) -> None:
        _until(self.well, BEGIN_SECONDS, "the service is not ready")
        words = [sys.executable, str(CHECKOUT / "tests" / "lab" / "asking.py"), self.part, str(self.port)]
        self.clients = self.lab.begin(self.desk, words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        threading.Thread(target=self._listen, daemon=True).start()
        _until(lambda: self.counts(self.whole) >= 5, BEGIN_SECONDS, "too little is answered")

    def _listen(self) -> None:
        for line in self.clients.stdout or ():
            self.events.append(json.loads(line))

    def counts(self, kind: str) -> int:
        return sum(event["kind"] == kind for event in list(self.events))

    def silence(self, since: float) -> float:
        """Return the longest time without a part of an answer since a moment."""
        times = [since, *(event["time"] for event in list(self.events) if event["kind"] == self.part and event["time"] > since)]
        return max((later - before for before, later in itertools.pairwise(times)), default=time.time() - since)

    def end(self) -> list[str]:
        """End clients and service; return what was wrong."""
        problems = [event["why"] for event in self.events if event["kind"] == "wrong"]
        assert self.clients.stdin is not None
        self.clients.stdin.close()
        try:
            self.clients.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            problems.append("clients wait still")
        self.running.terminate()  # the ssh; its end reaches the service as SIGHUP
        self.lab.end_jobs()
        return problems


def service(options: argparse.Namespace, folder: Path) -> int:
    """Break something at a random moment, again and again, while clients ask: is every request answered, with the same, and how soon?"""
    draw, rounds = random.Random(options.seed), options.rounds or 60
    models(folder)
    kinds = list(itertools.islice(itertools.cycle(KINDS), (rounds + 1) // 2))
    found: list[tuple[str, str, float]] = []
    problems, counts = list[str](), Counter[str]()
    for name in KINDS_OF_SERVICES:
        draw.shuffle(kinds)
        with Lab("bench5", share=[folder]) as lab:
            own = Own(lab, folder, name)
            try:
                own.begin()
                for kind in kinds:
                    what, pause = one_round(own, kind, draw)
                    found.append((name, kind, pause))
                    say(f"{len(found)}: {what}: {pause:.1f} s; {own.counts(own.whole)} answers, {own.counts('wrong')} wrong")
            except LabError as error:
                problems.append(f"{error}; last {own.events[-3:]}")
                say(own.log.read_text()[-6000:])
            problems += own.end()
            counts.update(event["kind"] for event in own.events)
            _, broken, after = own.log.read_text().partition("Traceback")
            problems += [f"a traceback in the log: {after[:3000]}"] * bool(broken)
    return _said(found, counts, problems)


def _said(found: list[tuple[str, str, float]], counts: Counter[str], problems: list[str]) -> int:
    lines, medians = [], {}
    for name in (*KINDS_OF_SERVICES, "all"):
        for kind in (*KINDS, "all"):
            times = [pause for own, broken, pause in found if name in (own, "all") and kind in (broken, "all")]
            if times:
                medians[f"{name}, {kind}"] = round(statistics.median(times), 2)
                lines.append((name, kind, len(times), f"{statistics.median(times):.1f}", f"{max(times):.1f}"))
    print_table(("service", "fault", "rounds", "median pause, s", "longest"), lines)
    missed = [f"{name}: {value} s" for name, value in medians.items() if name.endswith(", all") and value > MOST_SECONDS]
    for sentence in [*problems[:10], *missed]:
        say(f"missed: {sentence}")
    print(json.dumps({"format": "hepti-service-faults", "rounds": len(found), **counts, "median_pauses": medians, "missed": missed,
                      "problems": problems[:10]}))  # fmt: skip
    return 1 if problems or missed else 0


def one_round(own: Own, kind: str, draw: random.Random) -> tuple[str, float]:
    """Break one thing, wait until the service answers again and what broke is back; return what it was, and the pause."""
    _until(own.well, ROUND_SECONDS, "the service does not come back")
    time.sleep(CALM_SECONDS * draw.random())
    boards = own.here() or own.boards
    where, moment, before = draw.choice(boards), time.time(), own.counts(own.part)
    undo: Callable[[], None] | None = strike(own.lab, kind, where)
    back = moment + draw.uniform(*BACK_SECONDS)

    def over() -> bool:
        nonlocal undo
        if time.time() > back and undo is not None:
            undo()
            undo = None
        return undo is None and time.time() > moment + DEADLINE + 5 and own.counts(own.part) >= before + 3 and own.well()

    _until(over, ROUND_SECONDS, f"after {kind} on {where} it does not go on")
    return f"{own.name}: {kind} on {where}, of {len(boards)}", own.silence(moment)


def strike(lab: Lab, kind: str, where: str) -> Callable[[], None]:
    """Break something on a host; return what undoes it."""
    if kind == "host killed":
        lab.kill_host(where, silent=True)
        return lambda: lab.start_host(where)
    if kind == "link down":
        lab.cut_link(where)
        return lambda: lab.restore_link(where)
    ranks = [number for number in lab.processes(where) if processes.rank_of(number) is not None]
    for rank in ranks:
        try:
            os.kill(rank, signal.SIGKILL if kind == "kill -9" else signal.SIGSTOP)
        except ProcessLookupError:
            pass
    return lambda: None  # who was stopped is swept


def models(folder: Path) -> None:
    """Write the stores of a small model that embeds and of one that writes."""
    sys.path.insert(0, str(CHECKOUT / "tests"))
    from services import GOLDEN, writing_folder

    for name, source in (("sentence", GOLDEN / "bert_sentence"), ("llama", writing_folder(folder))):
        subprocess.run([*PROGRAM, "slice", str(source), str(folder / f"{name}.h5")], check=True, stdout=subprocess.DEVNULL)


def _until(condition: Callable[[], bool], seconds: float, why: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise LabError(f"{why} within {seconds:g} s")
        time.sleep(0.1)
