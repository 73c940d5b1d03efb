"""Hosts by whatever name people give them, on a cluster of the lab: run, supervise, push and doctor over real ssh, and without any."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab import check
from lab.check import PATIENCE
from lab.jobs import CHECKOUT, mpirun
from lab.lab import Lab

from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.weights import writing

pytest.importorskip("tomllib", reason="the lab needs Python 3.11 or newer")
OBSTACLE = check.obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
PROGRAM = [sys.executable, "-m", "hepti_mpi"]
TEXTS = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A cluster whose hosts know each other by name, by address and by a domain, and a folder that they share."""
    folder = tmp_path_factory.mktemp("hosts")
    writing.write(folder / "tiny.h5", random_model("tiny-bert"))
    (folder / "in.txt").write_text("the cat sat on the mat\n" * TEXTS)
    (folder / "bin").mkdir()
    (folder / "bin/ssh").write_text("#!/bin/sh\necho there is no ssh here >&2\nexit 255\n")
    (folder / "bin/ssh").chmod(0o755)
    with Lab("even4", share=[folder]) as lab:
        with (lab.folder / "hosts").open("a") as known:
            known.writelines(f"{host.address} {host.name}.lan\n" for host in lab.cluster.hosts)
        yield lab, folder


def do(lab, words, **environment):
    """Run a program on the first host; its exit code and what it said."""
    job = lab.begin(lab.hosts[0], ["env", *(f"{name}={value}" for name, value in environment.items()), *map(str, words)],
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    told, said = job.communicate(timeout=PATIENCE)
    return job.returncode, told + said


def all_of_it(place, text, **environment):
    """Do with a hostfile what can be done with it; what failed."""
    lab, folder = place
    (folder / "hosts.txt").write_text(text)
    run = ["run", "--weights", folder / "tiny.h5", "--input", folder / "in.txt", "--output", folder / "out.jsonl", "--quiet"]
    failed = []
    for words in ([*PROGRAM, "doctor", folder / "hosts.txt", "--weights", folder / "tiny.h5"],
                  [*PROGRAM, "push", folder / "tiny.h5", folder / "hosts.txt"],
                  [mpirun(), "-hostfile", folder / "hosts.txt", *PROGRAM, *run],
                  [*PROGRAM, "supervise", "--mpirun", mpirun(), folder / "hosts.txt", "--", *run]):  # fmt: skip
        (folder / "out.jsonl").unlink(missing_ok=True)
        code, said = do(lab, words, **environment)
        if code or "run" in words and len((folder / "out.jsonl").read_text().splitlines()) != TEXTS:
            failed.append((words[3], code, said))
    return failed


FORMS = {"address": lambda host: host.address, "name": lambda host: host.name, "domain": lambda host: f"{host.name}.lan"}


@pytest.mark.parametrize("form", FORMS)
def test_this_machine_needs_no_ssh(place, form):
    lab, folder = place
    own = FORMS[form](lab.cluster.hosts[0])
    assert all_of_it(place, f"{own} slots=2\n", PATH=f"{folder}/bin:{Path(mpirun()).parent}:/usr/bin:/bin") == []


def test_this_machine_and_another_over_ssh(place):
    one, other, *_ = place[0].cluster.hosts
    assert all_of_it(place, f"{one.address} slots=1 # this one\n{other.name}.lan slots = 1\n") == []


def test_user_and_port(place):
    lab, folder = place
    other = lab.cluster.hosts[1].address
    assert lab.ssh(lab.hosts[1], ["/usr/sbin/sshd -f /etc/ssh/sshd_config -p 2222 -o PidFile=/run/second.pid"]).returncode == 0
    line = f"{lab.hosts[0]} slots=1\n{other} slots=1 username=root port=%d\n"
    assert all_of_it(place, line % 2222) == []
    (folder / "hosts.txt").write_text(line % 2223)
    code, said = do(lab, [*PROGRAM, "doctor", folder / "hosts.txt", "--weights", folder / "tiny.h5"])
    assert code == 2 and f"root@{other}: cannot be asked" in said and "1 finding on 2 hosts" in said, said


def test_one_machine_twice(place):
    lab, folder = place
    one, other, *_ = lab.cluster.hosts
    (folder / "hosts.txt").write_text(f"{one.name} slots=1\n{other.name} slots=1\n{other.address} slots=1\n")
    for words in (["doctor"], ["push", folder / "tiny.h5"], ["supervise"]):
        code, said = do(lab, [*PROGRAM, *words, folder / "hosts.txt", *(["--", "run"] if words == ["supervise"] else [])])
        assert code == 2 and f"line 3: {other.address} is the machine of line 2 ({other.name}); give it one line with slots=N" in said


def test_a_host_by_address_that_is_no_good_is_left_out(place):
    """Its ranks are killed as soon as they begin; by its own name nobody knows it."""
    lab, folder = place
    bad = lab.cluster.hosts[2]
    (folder / "killed.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    there = CHECKOUT / "hepti_mpi/commands/main.py"
    assert lab.ssh(bad.name, [f"hostname raspberrypi && mount --bind {folder}/killed.py {there}"]).returncode == 0
    (folder / "hosts.txt").write_text("".join(f"{host.address} slots=1\n" for host in lab.cluster.hosts[:3]))
    run = ["run", "--weights", folder / "tiny.h5", "--input", folder / "in.txt", "--output", folder / "out.jsonl"]
    try:
        code, said = do(lab, [*PROGRAM, "supervise", "--mpirun", mpirun(), folder / "hosts.txt", "--", *run])
    finally:
        lab.ssh(bad.name, [f"umount {there} && hostname {bad.name}"])
    assert code == 0 and f"{bad.address} is left out, though it answers; starting again" in said, said


def test_silent_hosts_are_told_without_names(place):
    """A run by addresses, where no other host is known by what it calls itself."""
    lab, folder = place
    known = (lab.folder / "hosts").read_text()
    (lab.folder / "hosts").write_text(f"127.0.0.1 localhost\n{lab.cluster.hosts[0].address} {lab.hosts[0]}\n")
    (folder / "hosts.txt").write_text("".join(f"{host.address} slots=1\n" for host in lab.cluster.hosts[:3]))
    words = [mpirun(), "-hostfile", folder / "hosts.txt", *PROGRAM, "run", "--weights", folder / "tiny.h5", "--layout", "alltoall/rows",
             "--shares", "1,1,1", "--repeat", "1000000", "--deadline", "8"]  # fmt: skip
    try:
        job = lab.begin(lab.hosts[0], [*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while not job.stdout.readline().startswith("plan "):
            assert job.poll() is None
        time.sleep(1)
        lab.cut_link(lab.hosts[2])
        _, said = job.communicate(timeout=PATIENCE)
    finally:
        lab.restore_link(lab.hosts[2])
        lab.end_jobs()
        (lab.folder / "hosts").write_text(known)
    assert job.returncode and f"for rank 2 on {lab.hosts[2]}; {lab.hosts[2]} does not answer" in said, said


def test_two_machines_of_one_name(place):
    """As boards from one image are: MPI would wait for ever for memory that their ranks share."""
    lab, folder = place
    one, other, *_ = lab.cluster.hosts
    (folder / "hosts.txt").write_text(f"{one.address} slots=1\nroot@{other.address} slots=1 port=22\n")
    run = ["run", "--weights", folder / "tiny.h5", "--input", folder / "in.txt", "--output", folder / "alike.jsonl"]
    assert lab.ssh(other.name, [f"hostname {one.name}"]).returncode == 0
    try:
        code, said = do(lab, [mpirun(), "-hostfile", folder / "hosts.txt", *PROGRAM, *run])
        assert code == 2 and f"rank 0 ({one.address}) and rank 1 ({other.address}) are on two machines that both call" in said, said
        rename = f"ssh -p 22 root@{other.address} %s"
        code, said = do(lab, [*PROGRAM, "supervise", "--mpirun", mpirun(), folder / "hosts.txt", "--", *run])
        assert code == 2 and "with: " + rename % "sudo hostnamectl set-hostname NAME" in said and "by its address" not in said, said
        code, said = do(lab, [*PROGRAM, "doctor", folder / "hosts.txt", "--weights", folder / "tiny.h5"])
        assert code == 2 and f"mend: {rename}" % f"'sudo hostnamectl set-hostname {one.name}-2'" in said, said
    finally:
        lab.ssh(other.name, [f"hostname {other.name}"])
