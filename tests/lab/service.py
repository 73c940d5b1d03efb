"""Something breaks at a random moment, again and again, while clients ask two services that share the boards: the experiment `service`.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import processes
from .errors import LabError
from .jobs import CHECKOUT, mpirun
from .lab import Lab
from .trials import PROGRAM, print_table, say

KINDS = ("kill -9", "SIGSTOP", "link down", "host killed")
DEADLINE, CALM_SECONDS, BACK_SECONDS = 6, 3.0, (2, 8)
BEGIN_SECONDS, ROUND_SECONDS, END_SECONDS = 150, 120, 330
MOST_SECONDS = 8.0  # the median pause
PORTS = {"embeddings": 8097, "texts": 8098}


class Services:
    """Two services on the desk of a lab with ranks on the other hosts, and the clients that ask them."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder, self.desk, self.boards = lab, folder, lab.hosts[0], lab.hosts[1:5]
        (folder / "hosts.txt").write_text("".join(f"{board} slots=1\n" for board in self.boards))
        stores = {"embeddings": ("sentence.h5", []), "texts": ("llama.h5", ["--context", "100", "--strategy", "tensor"])}
        self.logs = {name: folder / f"{name}.log" for name in stores}
        self.running = []
        for name, (store, more) in stores.items():
            words = ["serve", str(self._own_hosts(name)), "--mpirun", mpirun(), "--weights", str(folder / store)]
            words += ["--port", str(PORTS[name]), "--deadline", str(DEADLINE), *more]
            log = open(self.logs[name], "w")  # noqa: SIM115
            self.running.append(lab.begin(self.desk, [*PROGRAM, *words], stdout=log, stderr=log))
        self.events: list[dict[str, Any]] = []

    def _own_hosts(self, name: str) -> Path:
        """Profiles stand beside a hostfile: each service has one."""
        path = self.folder / f"{name}.txt"
        path.write_text((self.folder / "hosts.txt").read_text())
        return path

    def health(self, name: str) -> dict[str, Any]:
        done = self.lab.ssh(self.desk, ["curl", "-s", "-m", "5", f"localhost:{PORTS[name]}/health"], capture_output=True)
        try:
            return dict(json.loads(done.stdout))
        except ValueError:
            return {"status": "silent", "hosts": []}

    def well(self) -> bool:
        """Whether both answer."""
        return all(self.health(name)["status"] in ("ready", "degraded") for name in PORTS)

    def here(self) -> list[str]:
        """The boards on which both have ranks."""
        lists = [[host["host"] for host in self.health(name)["hosts"] if host["state"] == "here"] for name in PORTS]
        return [board for board in self.boards if all(board in one for one in lists)]

    def begin(self) -> None:
        _until(self.well, BEGIN_SECONDS, "the services are not ready")
        words = [sys.executable, str(CHECKOUT / "tests" / "lab" / "asking.py"), *map(str, PORTS.values())]
        self.clients = self.lab.begin(self.desk, words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        threading.Thread(target=self._listen, daemon=True).start()
        _until(lambda: self.counts("written") >= 3 and self.counts("embedded") >= 5, BEGIN_SECONDS, "nothing is answered")

    def _listen(self) -> None:
        for line in self.clients.stdout or ():
            self.events.append(json.loads(line))

    def counts(self, kind: str) -> int:
        return sum(event["kind"] == kind for event in list(self.events))

    def silence(self, kind: str, since: float) -> float | None:
        """Return the longest time without an event of this kind since a moment; None where there was none."""
        times = [since, *(event["time"] for event in list(self.events) if event["kind"] == kind and event["time"] > since)]
        return max((later - before for before, later in itertools.pairwise(times)), default=None)

    def end(self) -> list[str]:
        """End clients and services; return what was wrong with that."""
        problems = []
        assert self.clients.stdin is not None
        self.clients.stdin.close()
        try:
            self.clients.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            problems.append("clients wait still")
        for one in self.running:
            one.terminate()  # the ssh; its end reaches the service as SIGHUP
        self.lab.end_jobs()
        return problems


def service(options: argparse.Namespace, folder: Path) -> int:
    """Break something at a random moment, again and again, while clients ask: is every request answered, with the same, and how soon?"""
    draw, rounds = random.Random(options.seed), options.rounds or 60
    models(folder)
    kinds = list(itertools.islice(itertools.cycle(KINDS), rounds))
    draw.shuffle(kinds)
    found: list[tuple[str, dict[str, float | None]]] = []
    with Lab("bench5", share=[folder]) as lab:
        own = Services(lab, folder)
        own.begin()
        for number, kind in enumerate(kinds, 1):
            pauses, what = one_round(own, kind, draw)
            found.append((kind, pauses))
            wrong = own.counts("wrong")
            shown = ", ".join(f"{name} {'-' if pause is None else f'{pause:.1f} s'}" for name, pause in pauses.items())
            say(f"{number}: {what}: {shown}; {own.counts('embedded')} answers, {own.counts('written')} texts, {wrong} wrong")
        problems = own.end()
        for log in own.logs.values():
            say(log.read_text()[-400:])
    problems += [event["why"] for event in own.events if event["kind"] == "wrong"]
    return _said(found, own, problems)


def _said(found: list[tuple[str, dict[str, float | None]]], own: Services, problems: list[str]) -> int:
    lines, medians = [], {}
    for name in PORTS:
        for kind in (*KINDS, "all"):
            times = sorted(pauses[name] or 0.0 for own_kind, pauses in found if kind in (own_kind, "all"))
            if times:
                medians[f"{name}, {kind}"] = statistics.median(times)
                lines.append((name, kind, len(times), f"{statistics.median(times):.1f}", f"{times[-1]:.1f}"))
    print_table(("service", "fault", "rounds", "median pause, s", "longest"), lines)
    counts = {kind: own.counts(kind) for kind in ("embedded", "written", "token", "busy", "wrong")}
    missed = [f"{name}: {medians[f'{name}, all']:.1f} s" for name in PORTS if medians[f"{name}, all"] > MOST_SECONDS]
    for sentence in [*problems[:10], *missed]:
        say(f"missed: {sentence}")
    print(json.dumps({"format": "hepti-service-faults", "rounds": len(found), **counts, "median_pauses": medians, "missed": missed,
                      "problems": problems[:10]}))  # fmt: skip
    return 1 if problems or missed else 0


def one_round(own: Services, kind: str, draw: random.Random) -> tuple[dict[str, float | None], str]:
    """Break one thing, wait until both services answer again and what broke is back; return the pauses and what it was."""
    _until(own.well, ROUND_SECONDS, "a service does not come back")
    time.sleep(CALM_SECONDS + draw.random())
    boards = own.here() or own.boards
    where, moment = draw.choice(boards), time.time()
    undo = strike(own.lab, kind, where, draw)
    back = moment + draw.uniform(*BACK_SECONDS)
    counts = {kind: own.counts(kind) for kind in ("embedded", "token")}

    def over() -> bool:
        nonlocal undo
        if time.time() > back and undo is not None:
            undo()
            undo = None
        going = all(own.counts(kind) >= count + 3 for kind, count in counts.items())
        return undo is None and going and own.well() and time.time() > moment + DEADLINE + 6

    _until(over, ROUND_SECONDS, f"after {kind} on {where} a service does not go on")
    pauses = {name: own.silence(event, moment) for name, event in (("embeddings", "embedded"), ("texts", "token"))}
    return pauses, f"{kind} on {where}, of {len(boards)}"


def strike(lab: Lab, kind: str, where: str, draw: random.Random) -> Callable[[], None]:
    """Break something on a host; return what undoes it."""
    if kind == "host killed":
        lab.kill_host(where, silent=True)
        return lambda: lab.start_host(where)
    if kind == "link down":
        lab.cut_link(where)
        return lambda: lab.restore_link(where)
    ranks = [number for number in lab.processes(where) if processes.rank_of(number) is not None]
    for rank in ranks:  # of both services
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
