"""A run that is cut off in the middle goes on where it was, on other ranks too, and its output is that of a run that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_bad_input import MPIRUN, SECONDS, in_turn, launch, launch_environment, refused

from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.inputs.requests import read_requests
from hepti_mpi.serving.journal import Journal, head_of, input_hash, journal_path
from hepti_mpi.serving.lock import open_locked
from hepti_mpi.serving.outputs import finished_answer
from hepti_mpi.weights import writing
from hepti_mpi.weights.store import Store

REQUESTS, ROWS = 400, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("resume")
    writing.write(made / "tiny.h5", random_model("tiny-bert"))
    ids = np.random.default_rng(4).integers(1, 30, (REQUESTS, ROWS))
    np.savez(made / "in.npz", input_ids=ids)
    return made


def words(output: str, *more: object) -> list[object]:
    hidden = ["--hidden"] * output.endswith(".npz")
    return ["run", "--weights", "tiny.h5", "--input", "in.npz", "--batch-rows", ROWS, "--output", output, *hidden, *more]


def answers(path: Path) -> np.ndarray:
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["last_hidden_state"]
    return np.array([json.loads(line)["pooler_output"] for line in path.read_text().splitlines()])


def cut_off(folder: Path, output: str, ranks: int) -> int:
    """Kill a rank of a run when some of its answers are there; return how many lines its journal has."""
    journal = folder / f"{output}.journal"
    slow = ",".join(["20"] * ranks)  # boards that sleep most of the time: it is not over before it is killed
    arguments = words(output, "--shares", ",".join("1" * ranks), "--emulate", slow)
    command = [str(MPIRUN), "-n", str(ranks), sys.executable, "-m", "hepti_mpi", *map(str, arguments)]
    job = subprocess.Popen(command, cwd=folder, env=launch_environment(ranks), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + SECONDS
    while not journal.exists() or len(journal.read_bytes().splitlines()) < 9:
        assert job.poll() is None and time.monotonic() < end
        time.sleep(0.001)
    ranks_of = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if parent_of(path) == job.pid]
    os.kill(ranks_of[-1], signal.SIGKILL)
    assert job.wait(SECONDS) != 0
    return len(journal.read_bytes().splitlines())


def parent_of(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@pytest.mark.parametrize("output", ["a.jsonl", "a.npz"])
def test_a_run_goes_on_where_it_was(folder, output):
    whole = launch(folder, *words(f"whole-{output}"), ranks=1)
    assert whole.returncode == 0, whole.stderr
    lines = cut_off(folder, output, 2)
    assert 9 <= lines <= REQUESTS and not (folder / output).exists()
    refused(launch(folder, *words(output), ranks=2), "answers of a run that was cut off", "--resume")
    again = launch(folder, *words(output, "--resume"), ranks=3)
    assert again.returncode == 0, again.stderr
    record = json.loads(again.stdout.splitlines()[-1])
    assert 0 < record["requests"] <= REQUESTS - (lines - 2)  # the head, and a line that may have been cut off
    expected, got = answers(folder / f"whole-{output}"), answers(folder / output)
    assert len(got) == REQUESTS and got.shape == expected.shape and np.abs(got - expected).max() < 1e-4
    assert not list(folder.glob("*.journal"))


def test_all_was_answered_but_the_output_is_not_there(folder):
    """The journal is whole: a run with it writes the output and ends."""
    assert launch(folder, *words("b.jsonl"), ranks=1).returncode == 0
    before = (folder / "b.jsonl").read_bytes()
    (folder / "b.jsonl").rename(folder / "before.jsonl")
    lines = note_all(folder)
    result = launch(folder, *words("b.jsonl", "--resume"), ranks=2)
    assert result.returncode == 0 and "answered already: nothing is left, and it is written\n" in result.stderr, result.stderr
    assert lines == REQUESTS and (folder / "b.jsonl").read_bytes() == before
    assert not list(folder.glob("*.journal"))


def test_a_finished_run_is_left_as_it_is(folder):
    """Also when the input became shorter, or the store another one; only a run that is not resumed replaces it."""
    result = launch(folder, *words("c.jsonl"), ranks=1)
    assert result.returncode == 0 and "\n\n" in result.stdout and "\n\n\n" not in result.stdout
    before = (folder / "c.jsonl").read_bytes()
    np.savez(folder / "short.npz", input_ids=np.full((3, 4), 7))
    again = ["run", "--weights", "tiny.h5", "--input", "short.npz", "--output", "c.jsonl"]
    model = random_model("tiny-bert", seed=1)
    writing.write(folder / "other" / "tiny.h5", replace(model, spec=replace(model.spec, name="tiny-bert")))
    other = ["other/tiny.h5" if word == "tiny.h5" else word for word in words("c.jsonl", "--resume")]
    jobs = words("c.jsonl", "--resume"), words("c.jsonl", "--resume", "--tolerance", "0.01"), [*again, "--resume"], other
    result, changed, shorter, otherwise = in_turn(folder, jobs, 2)
    assert result.returncode == 0 and "c.jsonl had been answered already: nothing is left" in result.stderr, result.stderr
    document = json.loads(result.stdout.splitlines()[-1])
    assert document["requests"] == 0 and document["output"] == "c.jsonl"
    refused(changed, "c.jsonl holds the answers of another run", "answered with --tolerance 0.0, this run with 0.01")
    refused(shorter, "c.jsonl holds the answers", "another --output", "--resume")
    refused(otherwise, "c.jsonl holds the answers of another run", "its model has other weights")
    assert (folder / "c.jsonl").read_bytes() == before and not list(folder.glob("*.journal"))
    result = launch(folder, *again, ranks=1)
    assert result.returncode == 0 and "c.jsonl is there already: it is replaced" in result.stderr
    assert len((folder / "c.jsonl").read_text().splitlines()) == 3


def test_a_journal_that_a_running_job_holds(folder):
    with open_locked(journal_path(folder / "d.jsonl")):
        refused(launch(folder, *words("d.jsonl"), ranks=2), "d.jsonl.journal is in use by a job that runs", f"process {os.getpid()}")
    assert launch(folder, *words("d.jsonl"), ranks=1).returncode == 0


def note_all(folder: Path) -> int:
    """Make the journal of a run that ended before it wrote its output."""
    with Store(folder / "tiny.h5") as store:
        requests = read_requests(store.spec, store.files, str(folder / "in.npz"), None)
        options = {"hidden": False, "tolerance": 0.0, "wires": []}
        head = head_of(store.spec.name, store.source_hash, input_hash(requests), **options)
    journal = Journal(journal_path(folder / "b.jsonl"), head, REQUESTS, False)
    results = [finished_answer(json.loads(line)) for line in (folder / "before.jsonl").read_text().splitlines()]
    journal.add(range(REQUESTS), results)
    return len(results)


def test_what_cannot_be_resumed(folder):
    cases = {
        "name it with --output": ["--resume"],
        "leave out --repeat": ["--resume", "--output", "c.jsonl", "--repeat", "2"],
    }
    for said, result in zip(cases, in_turn(folder, [["run", "--weights", "tiny.h5", *more] for more in cases.values()], 2)):
        assert result.returncode == 2 and said in result.stderr
