"""Ending what is left of a job on a host, and leaving there what its next ranks are to know. Knows ssh and processes; does not know why.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hepti_mpi.cluster.hosts import Host, answers
from hepti_mpi.comm import leavings, starved
from hepti_mpi.comm.interrupts import want_of_memory
from hepti_mpi.comm.names import addresses

SSH_SECONDS = 20  # to clean up on a host that answers
# ends the ranks and daemons of this job, and removes what they and other jobs that were killed leave; then writes what it is given to a
# file that only its user reads, and removes those that supervisors which were killed have left: they write theirs again before each start,
# and its ranks name it. Run with python -c on each host
SWEEP = Path(leavings.__file__).read_text() + Path(starved.__file__).read_text() + """
import os, sys, time
path, *marks = sys.argv[1:]
marks, end, had = [mark.encode() for mark in marks], time.time() + 5, ""
def read(number, name):
    try:
        with open(f"/proc/{number}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""
def mine(number):
    if int(number) in (os.getpid(), os.getppid()):
        return False
    words = read(number, "environ").split(b"\\0") + read(number, "cmdline").split(b"\\0")
    if b"HEPTI_SWEEP=1" in words:  # the supervisor's own ssh
        return False
    daemon = read(number, "comm").strip() in (b"prted", b"orted", b"ssh")
    return any(mark in words or daemon and any(mark in word for word in words) for mark in marks)
while True:
    left = [number for number in os.listdir("/proc") if number.isdigit() and mine(number)]
    for number in left:
        had += mapped(number)
        try:
            os.kill(int(number), 9)
        except OSError:
            pass
    if not left or time.time() > end:
        break
    time.sleep(0.02)
remove(had)
content = sys.stdin.buffer.read()
if content:
    part = f"{path}.{os.getpid()}"
    with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(content)
    os.replace(part, path)
elif os.path.exists(path):
    os.unlink(path)
folder, name = os.path.split(path)
named = b"".join(read(number, "environ") for number in os.listdir("/proc") if number.isdigit())
for other in os.listdir(folder):
    left = os.path.join(folder, other)
    if other.endswith(".json") and other.startswith(name.rpartition("-")[0] + "-") and left.encode() not in named:
        try:
            if time.time() - os.stat(left).st_mtime > 3600:
                os.unlink(left)
        except OSError:  # another one was sooner
            pass
print(os.uname().nodename, starved())
"""


def sweep_here(host: Host | None, path: Path, marks: Sequence[str], content: bytes, say: Callable[[str], None]) -> None:
    """End the processes with these marks on this machine, and write `content` to the path; none: remove what is there. `host`: it, where
    ranks are on it."""
    done = subprocess.run([sys.executable, "-c", SWEEP, str(path), *marks], input=content, capture_output=True)
    if host is not None and done.returncode == 0:
        _learn(host, _told(done.stdout)[1], say if content else bool)


def _last_words(text: str) -> str:
    """Return what a program said last, its lines one behind the other.

    >>> _last_words("read: reset by peer\\r\\nConnection  reset\\r\\n\\n")
    'read: reset by peer; Connection reset'
    """
    return "; ".join(" ".join(line.split()) for line in text.splitlines() if line.strip())[-300:]


def sweep(host: Host, path: Path, marks: Sequence[str], content: bytes, say: Callable[[str], None]) -> bool:
    """Do the same on another host; learn what it calls itself. Tell whether it could be done, and say why not."""
    if not (answers(host) or answers(host)):
        known = addresses(sought := host.door[0] if host.door else host.name)
        unknown = f"nobody here knows the name {sought}: write its address into the hostfile, or address and name into /etc/hosts"
        say(f"{host.name} does not answer" if known else unknown)
        return False
    words = [*host.ssh(), shlex.join([sys.executable, "-c", SWEEP, str(path), *marks])]
    try:
        done = subprocess.run(words, input=content, capture_output=True, timeout=SSH_SECONDS, env=os.environ | {"HEPTI_SWEEP": "1"})
    except subprocess.TimeoutExpired:
        say(f"{host.name} cannot be used: ssh to it took longer than {SSH_SECONDS} s")
        return False
    if done.returncode:
        said = _last_words(done.stderr.decode(errors="replace"))
        say(f"{host.name} cannot be used: {said or f'exit code {done.returncode}'}")
        return False
    name, ended = _told(done.stdout)
    host.own = name or host.own
    _learn(host, ended, say if content else bool)
    return True


def _told(said: bytes) -> tuple[str, int | None]:
    """Return what a host calls itself, and how many processes its system has ended for want of memory, as the last line says."""
    name, _, count = said.decode(errors="replace").strip().rpartition("\n")[2].partition(" ")
    return name.partition(".")[0], int(count) if count.isdecimal() else None


def _learn(host: Host, ended: int | None, say: Callable[[str], object]) -> None:
    """Note how many processes the system of a host has ended for want of memory. Those that it has since it was asked before may be ranks,
    whose ends nobody else can explain."""
    before, host.starved = host.starved, ended
    if before is not None and ended is not None and ended > before:
        say(want_of_memory(ended - before, host.name, "the last start"))
