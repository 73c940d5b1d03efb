"""How much boards answer in teams, beside what each answers alone, and beside what was planned: the experiments `throughput` and `teams`.

Prints a table, a row for each cluster or team; its last line is a JSON document. Knows labs, jobs and what they print; does not know
how hepti_mpi does it.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .clusters import cluster_named, slower
from .errors import LabError
from .jobs import CHECKOUT, mpirun
from .lab import Lab
from .trials import PROGRAM, TOLD, inputs, print_table, records_of, say, sliced

TEXTS = 2000
SAMPLE = 4  # every how many-th of the texts each board answers alone
CLUSTERS = "even4,mixed4,pi8,wifi3"
SLOWED, AS_SLOW = 0, 3.0  # which board becomes how many times slower, when half of the rows are answered
SETTLING = 0.1  # of the rows after that, in which who hands out batches may learn of it
SMALL, MEMORY = ("pi8", ("pi1", "pi2", "pi4", "pi6", "pi8")), "45M"  # boards of which no one holds the model with so much memory
NEAR = 0.1  # of what was planned, by which teams may differ from it
PORT, READY_SECONDS = 8099, 150
GOOD, GOOD_SLOWED, GOOD_AUTO = 0.92, 0.95, 0.97  # of the sum of what the boards answer alone, and of the better objective


def mixed(options: argparse.Namespace) -> list[int]:
    """Return the lengths of the texts that are asked, in rows."""
    draw = random.Random(options.seed)
    return [max(4, min(250, round(draw.lognormvariate(2.9, 0.75) * 1.4))) for _ in range(options.requests or TEXTS)]


def teams(options: argparse.Namespace, folder: Path) -> int:
    """A model that no board can hold alone, on five unequal ones: rows a second of teams, beside what was planned."""
    weights = options.weights or sliced("minilm", folder / "minilm.h5")
    whole, (name, hosts) = inputs(folder / "all.npz", mixed(options), 30), SMALL
    words = ["--weights", str(weights), "--memory-limit", MEMORY, "--objective", "throughput"]
    cluster = cluster_named(name).in_slow_motion(1 if options.slow is None else options.slow)
    with Lab(cluster, share=[folder, weights.parent]) as lab:
        command = [*PROGRAM, "run", *words, "--input", str(whole), "--output", str(folder / "out.npz")]
        done = lab.mpirun(command, hosts=hosts, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        raise LabError(f"a run ended with code {done.returncode}: {done.stderr[-300:]}")
    say(done.stderr)
    record = json.loads(done.stdout.splitlines()[-1])
    late = max(rank["late"] for rank in record["ranks"])
    rates = ("rows_per_second", "busy_rows_per_second", "predicted_rows_per_second")
    print_table(("team", "does", "rows/s", "when busy", "planned", "busy"), [
        (", ".join(hosts[rank] for rank in team["members"]), team["does"], *(f"{team[rate] * cluster.slow:.0f}" for rate in rates),
         f"{team['busy']:.2f}")
        for team in record["teams"]
    ])  # fmt: skip
    part = record["rows_per_second"] / record["predicted_rows_per_second"]
    missed = [] if abs(part - 1) <= NEAR else [f"{name}: {part:.3f} of what was planned"]
    for sentence in missed:
        say(f"missed: {sentence}")
    tried = {"boards": hosts, "memory": MEMORY, "slow": cluster.slow, "late": late, "part": part, "run": record, "missed": missed}
    print(json.dumps({"format": "hepti-teams-tried", **tried}))
    return 1 if missed else 0


def throughput(options: argparse.Namespace, folder: Path) -> int:
    """Texts of mixed length: rows a second of all boards in teams, over the sum of what each does alone; then with a board that slows."""
    lengths, count = mixed(options), options.requests or TEXTS
    weights = options.weights or sliced("minilm", folder / "minilm.h5")
    whole, sample = inputs(folder / "all.npz", lengths, 30), inputs(folder / "some.npz", lengths[::SAMPLE], 30)
    found: dict[str, dict[str, Any]] = {}
    for name in (options.clusters or CLUSTERS).split(","):
        cluster = cluster_named(name).in_slow_motion(1 if options.slow is None else options.slow)
        with Lab(cluster, share=[folder, weights.parent]) as lab:
            if options.serve:
                found[name] = _served(lab, weights, sample, folder, lengths)
            else:
                found[name] = _measured(lab, weights, whole, sample, folder, lengths)
        found[name]["slow"] = cluster.slow
        say(f"{name}: {json.dumps(found[name])}")
    if options.serve:
        return _said_of_services(found)
    head = ("cluster", "each alone, rows/s", "sum", "teams", "of the sum", "one slowed", "of its sum", "together", "auto", "late")
    print_table(head, [
        (name, " ".join(f"{rate:.0f}" for rate in one["alone"]), f"{one['sum']:.0f}", f"{one['teams']:.0f}", f"{one['part']:.3f}",
         f"{one['slowed']:.0f}", f"{one['slowed_part']:.3f}", f"{one['together']:.0f}", f"{one['auto']:.0f}", f"{one['late']:.3f}")
        for name, one in found.items()
    ])  # fmt: skip
    missed = [f"{name}: {one['part']:.3f} of the sum" for name, one in found.items() if one["part"] < GOOD]
    missed += [f"{name}, slowed: {one['slowed_part']:.3f}" for name, one in found.items() if one["slowed_part"] < GOOD_SLOWED]
    missed += [f"{name}, auto: {one['auto_part']:.3f} of the better" for name, one in found.items() if one["auto_part"] < GOOD_AUTO]
    for sentence in missed:
        say(f"missed: {sentence}")
    print(json.dumps({"format": "hepti-throughput", "requests": count, "weights": weights.name, "clusters": found, "missed": missed}))
    return 1 if missed else 0


def _measured(lab: Lab, weights: Path, whole: Path, sample: Path, folder: Path, lengths: Sequence[int]) -> dict[str, Any]:
    alone = _alone(lab, weights, sample, folder)
    rates, late = {}, 0.0
    for objective in ("throughput", "latency", "auto"):
        words = ["run", "--weights", str(weights), "--input", str(whole), "--objective", objective]
        done = lab.mpirun([*PROGRAM, *words, "--output", str(folder / "out.npz")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode:
            raise LabError(f"a run ended with code {done.returncode}: {done.stderr[-300:]}")
        rates[objective] = _rate(lab, done.stdout)
        late = max([late, *(rank["late"] for rank in json.loads(done.stdout.splitlines()[-1])["ranks"])])
    teams, whole_sum = rates["throughput"], sum(alone)
    words = ["run", "--weights", str(weights), "--input", str(whole), "--objective", "throughput"]
    slowed, rest = _slowed(lab, words, lengths), whole_sum - alone[SLOWED] * (1 - 1 / AS_SLOW)
    return {
        "alone": alone, "sum": whole_sum, "teams": teams, "part": teams / whole_sum, "slowed": slowed, "slowed_part": slowed / rest,
        "together": rates["latency"], "auto": rates["auto"], "auto_part": rates["auto"] / max(teams, rates["latency"]), "late": late,
    }  # fmt: skip


def _served(lab: Lab, weights: Path, sample: Path, folder: Path, lengths: Sequence[int]) -> dict[str, Any]:
    """Return rows a second of a service with a rank on each board, asked for embeddings by many clients on the first."""
    alone, host, hostfile, asked = _alone(lab, weights, sample, folder), lab.hosts[0], folder / "served.txt", folder / "lengths.json"
    hostfile.write_text("".join(f"{name} slots=1\n" for name in lab.hosts))
    asked.write_text(json.dumps(lengths))
    words = ["serve", str(hostfile), "--mpirun", mpirun(), "--weights", str(weights), "--port", str(PORT)]
    running = lab.begin(host, [*PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    look = ["curl", "-s", "-f", "-o", "/dev/null", f"localhost:{PORT}/health"]
    end = time.monotonic() + READY_SECONDS
    while lab.ssh(host, look, capture_output=True).returncode:
        if time.monotonic() > end or running.poll() is not None:
            raise LabError("the service is not ready")
        time.sleep(1)
    asking = [sys.executable, str(CHECKOUT / "tests" / "lab" / "asking.py"), "rate", str(PORT), str(asked)]
    rates = [_rate(lab, lab.ssh(host, asking, capture_output=True).stdout) for _ in range(2)]
    running.terminate()
    lab.end_jobs()
    return {"alone": alone, "sum": sum(alone), "served": rates[1], "first": rates[0], "part": rates[1] / sum(alone)}  # the first warms up


def _said_of_services(found: dict[str, dict[str, Any]]) -> int:
    print_table(("cluster", "each alone, rows/s", "sum", "served", "of the sum"), [
        (name, " ".join(f"{rate:.0f}" for rate in one["alone"]), f"{one['sum']:.0f}", f"{one['served']:.0f}", f"{one['part']:.3f}")
        for name, one in found.items()
    ])  # fmt: skip
    missed = [f"{name}: {one['part']:.3f} of the sum" for name, one in found.items() if one["part"] < GOOD]
    for sentence in missed:
        say(f"missed: {sentence}")
    print(json.dumps({"format": "hepti-served", "clusters": found, "missed": missed}))
    return 1 if missed else 0


def _alone(lab: Lab, weights: Path, sample: Path, folder: Path) -> list[float]:
    """Return rows a second of each board alone; emulated ones share nothing, so all are measured at once."""
    jobs = []
    for host in lab.hosts:
        words = ["run", "--weights", str(weights), "--input", str(sample), "--output", str(folder / f"{host}.npz")]
        jobs.append(lab.start([*PROGRAM, *words], hosts=[host], stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    rates = []
    for job in jobs:
        told, trouble = job.communicate()
        if job.returncode:
            raise LabError(f"a run ended with code {job.returncode}: {trouble[-300:]}")
        rates.append(_rate(lab, told))
    return rates


def _rate(lab: Lab, told: bytes | str) -> float:
    """Return the rows a second of the boards' own time that the last line of `told` says."""
    return float(json.loads(told.splitlines()[-1])["rows_per_second"] * lab.cluster.slow)


def _slowed(lab: Lab, words: Sequence[str], lengths: Sequence[int]) -> float:
    """Return rows a second after a board has become slower in the middle, once that is known."""
    host, half, after, before = lab.hosts[SLOWED], sum(lengths) / 2, 0.0, lab.board(lab.hosts[SLOWED])
    running = lab.start([*PROGRAM, *words], env=TOLD, stdout=subprocess.PIPE)
    rows, begin, counted_from, last = 0, 0.0, 0, 0.0
    for record in records_of(running):
        if record["kind"] != "answers":
            continue
        rows += sum(lengths[place] for place in record["places"])
        last = time.monotonic()
        if not after and rows >= half:
            lab.set_board(host, slower(before, AS_SLOW))
            after = half + SETTLING * half
        elif after and not begin and rows >= after:
            begin, counted_from = last, rows
    lab.set_board(host, before)
    if running.wait() or not begin:
        raise LabError(f"a run ended after {rows} of {sum(lengths)} rows with code {running.returncode}")
    return (rows - counted_from) / (last - begin) * lab.cluster.slow
