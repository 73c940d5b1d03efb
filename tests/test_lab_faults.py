"""One fault of each kind in the lab, under the supervisor: `python -m tests.lab experiment faults` does it a hundred times.

And what is swept of a job.
"""

import os
import shlex
import subprocess
import sys

import pytest
from lab import check
from lab.faults import KINDS, Round, one_round, texts, undisturbed, vectors
from lab.lab import Lab

from hepti_mpi.supervisor.sweep import SWEEP

pytest.importorskip("tomllib", reason="the lab needs Python 3.11 or newer")
OBSTACLE = check.obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))


@pytest.mark.parametrize("asked, requests, kinds", [(vectors, 300, KINDS), (texts, 12, ("kill -9",))])
def test_one_fault_of_each_kind(tmp_path, asked, requests, kinds):
    trial = asked(tmp_path, requests=requests)
    with Lab("bench5", share=[tmp_path]) as lab:
        usual = undisturbed(lab, trial, runs=1)  # how long it takes is of no use here
        for kind, host in zip(kinds, ("pi1", "pi2", "pi4", "pi1")):
            one = Round(kind, host, 4, 0.3)
            one_round(lab, one, trial, usual)
            assert not one.problems, one
            assert one.starts > 1 or kind == "SIGSTOP", one  # the fault was one


def test_a_sweep_leaves_nothing_of_its_job_on_any_host_and_all_of_another():
    """Segments of shared memory and session folders, of daemons too."""
    program = "from mpi4py import MPI; import time; MPI.COMM_WORLD.barrier(); print('up', flush=True); time.sleep(300)"
    with Lab("even4") as lab:
        hosts = lab.hosts[:2]

        def there():
            return {(host, name) for host in hosts for name in lab.ssh(host, ["ls /tmp /dev/shm"], capture_output=True).stdout.split()
                    if name.startswith(("ompi", "prted", "sm_segment"))}  # fmt: skip

        def started(name):
            quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            job = lab.start([sys.executable, "-c", program], 2, hosts, {"HEPTI_JOB": name}, **quiet)
            assert job.stdout is not None and [job.stdout.readline() for _ in range(4)] == ["up\n"] * 4
            return job

        jobs, left = {}, [there()]
        for name in ("other", "mine"):
            jobs[name] = started(name)
            left.append(there())
        assert [len(names) for names in left] == [0, 6, 12]
        for name, then in (("mine", left[1]), ("other", left[0])):
            for host in hosts:
                words = shlex.join([sys.executable, "-c", SWEEP, "/tmp/state", f"HEPTI_JOB={name}"])
                done = lab.ssh(host, [words], capture_output=True, env=os.environ | {"HEPTI_SWEEP": "1"})  # as the supervisor does
                assert done.returncode == 0, done.stderr
            jobs[name].wait(60)
            assert there() == then
