"""What a rank hears of Ctrl-C where mpirun is."""

import os
import signal
import subprocess
import sys

import pytest

RANK = """
import os, signal, sys, time
from hepti_mpi.comm import keys
os.setpgid(0, 0)  # as mpirun's ranks are
signal.signal(signal.SIGINT, lambda *_: heard.append(1))
heard = []
keys.pass_on_from(os.getppid())
children = f"/proc/self/task/{os.getpid()}/children"
while not any(os.getpgid(int(child)) == os.getpgid(os.getppid()) for child in open(children).read().split()):
    time.sleep(0.01)
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
    words, pipe = [sys.executable, "-c", LAUNCHER, RANK], subprocess.PIPE
    launcher = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
    assert launcher.stdout.readline() == "ready\n"
    os.killpg(launcher.pid, signal.SIGINT if pressed else signal.SIGCONT)
    launcher.stdin.write("\n" * (not pressed))
    launcher.stdin.close()
    assert launcher.stdout.readline() == f"{int(pressed)}\n"
    assert launcher.stdout.read() == ""  # nobody holds it open any more
    assert launcher.wait() == 0
