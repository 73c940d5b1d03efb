"""Stores on hosts that have none, in the lab: copied ahead of a run by push, or sent to a cache while it runs; and the plain command."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lab import check, jobs
from lab.check import PATIENCE
from lab.lab import Lab

from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.weights import writing

pytest.importorskip("tomllib", reason="the lab needs Python 3.11 or newer")
OBSTACLE = check.obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
PROGRAM = [sys.executable, "-m", "hepti_mpi"]
STORE = "/run/only/tiny.h5"  # every host has a /run of its own


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A cluster named as in hostfiles/pi4.txt whose first host has a store that the others do not see, and a folder that all share."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "weights").mkdir()
    writing.write(folder / "weights" / "tiny.h5", random_model("tiny-bert"))
    shutil.copytree(jobs.CHECKOUT / "hostfiles", folder / "hostfiles", ignore=shutil.ignore_patterns("*.json"))
    with Lab("even4", share=[folder]) as lab:
        assert lab.ssh(lab.hosts[0], [f"mkdir /run/only && cp {folder}/weights/tiny.h5 {STORE}"]).returncode == 0
        yield lab, folder


def words(lab, *command):
    job = lab.begin(lab.hosts[0], [*PROGRAM, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    told, said = job.communicate(timeout=PATIENCE)
    return job.returncode, told, said


def test_push(place):
    lab, folder = place
    hostfile = folder / "hostfiles" / "pi4.txt"
    code, told, said = words(lab, "push", STORE, hostfile)
    assert code == 0 and told.count("copied") == 3 and not said, said
    code, told, said = words(lab, "push", STORE, hostfile)
    assert code == 0 and told.count("is there already") == 3, said
    for host in lab.hosts[1:]:
        assert lab.ssh(host, [f"cmp {STORE} {folder}/weights/tiny.h5"]).returncode == 0
    lab.ssh(lab.hosts[1], [f"echo damaged >{STORE}"])
    lab.cut_link(lab.hosts[2])
    code, told, said = words(lab, "push", STORE, hostfile)
    lab.restore_link(lab.hosts[2])
    assert code == 2 and f"{lab.hosts[1]}: {STORE} copied" in told and f"1 of 4 hosts lack it: {lab.hosts[2]}" in said, (told, said)
    for host in lab.hosts[1:]:
        assert lab.ssh(host, ["ls /run/only"], capture_output=True).stdout == "tiny.h5\n"
        lab.ssh(host, ["rm -r /run/only"])


def test_hosts_without_a_store(place):
    lab, folder = place
    run = [*PROGRAM, "run", "--weights", STORE, "--layout", "rows/rows", "--shares", "1,1,1,1"]
    done = lab.mpirun(run, timeout=PATIENCE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode and f"{STORE} not found" in done.stderr, done.stderr
    records = []
    for _ in range(2):
        done = lab.mpirun([*run, "--weights-cache", "/run/cache"], timeout=PATIENCE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert done.returncode == 0, done.stderr
        records.append(json.loads(done.stdout.splitlines()[-1]))
    assert [record["startup_seconds"]["fetch"] > 0 for record in records] == [True, False]
    assert lab.ssh(lab.hosts[0], ["ls -d /run/cache"], capture_output=True).returncode  # it has the store


def test_the_plain_command(place):
    """As a user types it who has activated the environment on the first board."""
    lab, folder = place
    venv = Path(sys.executable).parent
    root = "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"  # as .venv/bin/activate has it for root
    line = f"cd {folder} && export {root} PATH={venv}:$PATH && mpirun -hostfile hostfiles/pi4.txt python -m hepti_mpi run"
    done = lab.ssh(lab.hosts[0], [line], capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0 and all(f"rank {rank} on pi4-{rank + 1}" in done.stdout for rank in range(4)), done.stdout + done.stderr
