"""What a process that stands by a rank hears of Ctrl-C where mpirun is, and does once the rank is no more."""

import os
import signal
import subprocess
import sys

import pytest

RANK = """
import os, signal, sys, time
from hepti_mpi.comm import standby
os.setpgid(0, 0)  # as mpirun's ranks are
signal.signal(signal.SIGINT, lambda *_: heard.append(1))
heard = []
standby.stand_by(os.getppid(), True, bool, ())
"""
STANDS = """
import os, time
children = f"/proc/self/task/{os.getpid()}/children"
while not any(os.getpgid(int(child)) == os.getpgid(os.getppid()) for child in open(children).read().split()):
    time.sleep(0.01)
"""
HEARS = """
print("ready", flush=True)
while not heard and not sys.stdin.readline():
    pass
print(len(heard), flush=True)
"""
LAUNCHER = (
    "import signal, subprocess, sys; signal.signal(signal.SIGINT, lambda *_: None); subprocess.run([sys.executable, '-c', sys.argv[1]])"
)


@pytest.mark.parametrize("pressed", [True, False])
def test_a_key_that_mpirun_hears_reaches_the_rank(pressed):
    words, pipe = [sys.executable, "-c", LAUNCHER, RANK + STANDS + HEARS], subprocess.PIPE
    launcher = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
    assert launcher.stdout.readline() == "ready\n"
    os.killpg(launcher.pid, signal.SIGINT if pressed else signal.SIGCONT)
    launcher.stdin.write("\n" * (not pressed))
    launcher.stdin.close()
    assert launcher.stdout.readline() == f"{int(pressed)}\n"
    assert launcher.stdout.read() == ""  # nobody holds it open any more
    assert launcher.wait() == 0


SHORT = """
import os, signal, sys
from hepti_mpi.comm import standby
os.setpgid(0, 0)
kept = os.dup(1)
standby.stand_by(os.getppid(), False, lambda pressed: os.write(kept, b"it is no more" + b", pressed" * pressed), {kept})
"""
ENDS = """
end = sys.stdin.readline()
if end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if end == "hung up":
    os.killpg(os.getpgid(os.getppid()), signal.SIGHUP)
    signal.pause()
if end == "pressed":
    os.killpg(os.getpgid(os.getppid()), signal.SIGINT)
"""


@pytest.mark.parametrize("end", ["killed", "hung up", "well", "pressed"])
def test_a_process_stands_by_until_its_rank_is_no_more(end):
    words = [sys.executable, "-c", LAUNCHER, SHORT + STANDS + ENDS]
    launcher = subprocess.run(words, input=end, capture_output=True, text=True, start_new_session=True, timeout=60)
    assert launcher.stdout == "it is no more" + ", pressed" * (end == "pressed"), launcher


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux 5.3")
def test_a_rank_whose_launcher_is_killed_is_told_to_end():
    rank = (RANK + STANDS + HEARS).replace("SIGINT", "SIGTERM")
    with subprocess.Popen([sys.executable, "-c", LAUNCHER, rank], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout.readline() == "ready\n"
        launcher.stdin.close()
        launcher.kill()
        assert launcher.stdout.readline() == "1\n"
