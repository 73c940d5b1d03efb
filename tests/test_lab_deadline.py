"""Ranks that do not come, on a cluster of the lab: the job ends by its deadline, says who is missing, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from lab import check
from lab.check import PATIENCE
from lab.lab import Lab

from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.weights import writing

pytest.importorskip("tomllib", reason="the lab needs Python 3.11 or newer")
OBSTACLE = check.obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
DEADLINE = 8  # seconds; twice as long ranks may take to find each other, on a busy machine
RUN = ["--layout", "alltoall/rows", "--shares", "1,1,1", "--repeat", "1000000", "--deadline", str(DEADLINE)]


def stopped(lab):
    os.kill(lab.ranks()[2], signal.SIGSTOP)
    return "for rank 2 on pi3; all hosts answer"


def cut(lab):
    lab.cut_link("pi3")
    return "for rank 2 on pi3; pi3 does not answer"


def without_power(lab):
    lab.kill_host("pi2", silent=True)
    return "for rank 1 on pi2; pi2 does not answer"


def first_cut(lab):
    lab.cut_link("pi1")
    return "; no other host answers: look at the link of pi1"


@pytest.mark.parametrize("fault", [stopped, cut, without_power, first_cut])
def test_a_job_ends_by_its_deadline(fault, tmp_path):
    path = tmp_path / "tiny-bert.h5"
    writing.write(path, random_model("tiny-bert"))
    words = [sys.executable, "-m", "hepti_mpi", "run", "--weights", str(path), *RUN]
    with Lab("wifi3", share=[tmp_path]) as lab:
        job = lab.start(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        said = []
        listener = threading.Thread(target=lambda: said.extend(job.stderr))
        listener.start()
        while not job.stdout.readline().startswith("plan "):  # it answers from here on
            assert job.poll() is None, said
        time.sleep(1)
        begin = time.monotonic()
        words = fault(lab)
        assert job.wait(PATIENCE) != 0
        assert time.monotonic() - begin > DEADLINE - 1
        listener.join(PATIENCE)
        assert words in "".join(said), said
        end = time.monotonic() + PATIENCE
        while any(" -m hepti_mpi " in line for host in lab.hosts for line in lab.processes(host).values()):
            assert time.monotonic() < end, {host: lab.processes(host) for host in lab.hosts}
            time.sleep(0.2)
