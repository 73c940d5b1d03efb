"""What killed jobs leave is found and removed, and nothing of what lives; and a run alone leaves nothing."""

import mmap
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hepti_mpi.comm import leavings
from hepti_mpi.comm.leavings import HOST, MEMORY, OWN, is_used
from hepti_mpi.supervisor.sweep import SWEEP

pytest.importorskip("mpi4py")
PROGRAM = "from mpi4py import MPI; import time; MPI.COMM_WORLD.barrier(); print('up', flush=True); time.sleep(100)"
ALONE = "from hepti_mpi.comm.ranks import Comm; Comm.world(); print('up', flush=True); import sys; sys.stdin.read()"


def clean():
    return {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_COMM", "PMI", "PMIX"))}


def segments():
    return {path for path in Path(MEMORY).glob(f"sm_segment.{HOST}.{os.getuid()}.*")}


def mapped_by(processes):
    return {path for path in segments() if any(str(path) in leavings.mapped(str(number)) for number in processes)}


def children(process):
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


@pytest.fixture
def job(tmp_path):
    """An mpirun of two ranks, what ranks it has and the segments of those; its folders are in tmp_path."""
    words = ["mpirun", "-n", "2", "--oversubscribe", sys.executable, "-c", PROGRAM]
    environment = clean() | {"TMPDIR": str(tmp_path), "HEPTI_JOB": "leavings", "OMPI_MCA_mpi_yield_when_idle": "1"}
    mpirun = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True, env=environment)
    assert [mpirun.stdout.readline() for _ in range(2)] == ["up\n"] * 2
    ranks = children(mpirun.pid)
    yield mpirun, ranks, mapped_by(ranks)
    for number in [mpirun.pid, *map(int, ranks)]:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            pass
    mpirun.wait()


def killed(mpirun, ranks):
    for number in [mpirun.pid, *map(int, ranks)]:
        os.kill(number, signal.SIGKILL)
    mpirun.wait()


def let_go(*paths):
    """Wait until processes that are ending have done so: they have no memory any more a moment before."""
    end = time.monotonic() + 60
    while any(is_used(path) for path in paths if os.path.exists(path)):
        assert time.monotonic() < end
        time.sleep(0.01)


def aged(*paths):
    for path in paths:
        os.utime(path, (0, 0))


def test_what_lives_is_left_alone_and_what_was_killed_is_not(job, tmp_path, monkeypatch):
    mpirun, ranks, own = job
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder, other, ours = tmp_path / f"ompi.{mpirun.pid}", tmp_path / "ompi.99999999", tmp_path / f"{OWN}99999999-abc"
    assert len(own) == 2 and folder.is_dir()
    for path in (other, ours):
        path.mkdir()
    (other / "pmix.elsewhere.tool").touch()  # of a host that has the same /tmp
    aged(*own, folder, other)
    leavings.remove()
    assert own <= segments() and folder.is_dir() and other.is_dir() and ours.is_dir(), "the job lives, the last is fresh"
    killed(mpirun, ranks)
    let_go(*own, folder)
    aged(ours)
    assert {*map(str, own), str(folder), str(ours)} <= leavings.leavings().keys()
    leavings.remove()
    assert not own & segments() and list(tmp_path.iterdir()) == [other]


def test_folders_are_looked_for_where_open_mpi_makes_them(tmp_path):
    environment = {name: value for name, value in clean().items() if name != "TMPDIR"} | {"TEMP": str(tmp_path), "TMP": "/nowhere"}
    show = "import os; print(*os.listdir(os.environ['TEMP'])); from hepti_mpi.comm import leavings; print(leavings.scratch())"
    words = ["mpirun", "-n", "1", "--oversubscribe", sys.executable, "-c", show]
    said = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120).stdout.splitlines()
    assert said[0].startswith("ompi.") and said[1] == str(tmp_path), said


def test_what_is_fresh_stays_but_for_what_was_ended(job, tmp_path, monkeypatch):
    mpirun, ranks, own = job
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    had = "".join(map(leavings.mapped, ranks))
    killed(mpirun, ranks)
    leavings.remove()
    assert own <= segments() and Path(leavings.session_folder(mpirun.pid)).is_dir()
    leavings.remove(had)
    assert not own & segments() and not any(tmp_path.iterdir())


def test_a_sweep_removes_what_the_ranks_had_that_it_ends(job, tmp_path):
    mpirun, _, own = job
    mpirun.kill()  # as a daemon's end on another host: its ranks are found by their environment
    mpirun.wait()
    words = [sys.executable, "-c", SWEEP, str(tmp_path / "state"), "HEPTI_JOB=leavings"]
    subprocess.run(words, input=b"", check=True, timeout=120, env=clean() | {"TMPDIR": str(tmp_path)})
    let_go(*own)
    aged(*own & segments())  # of ranks that saw the end of mpirun before
    leavings.remove()
    assert not own & segments()


def test_what_a_process_uses_that_cannot_be_seen_is_left_alone(tmp_path, monkeypatch):
    """Of another container with the same name, /tmp and /dev/shm: its session folder was removed, and a service's folder of its own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder, ours = tmp_path / "ompi.99999999", tmp_path / f"hepti-{HOST}-1-99999999-abc"
    file, segment = folder / "1" / "jobdata", Path(MEMORY) / f"sm_segment.{HOST}.{os.getuid()}.{os.getpid():x}.test"
    for path in (ours, folder, file.parent):
        path.mkdir()
    (folder / f"pmix.{HOST}.tool").touch()
    with open(file, "w") as kept, open(segment, "wb+") as memory:
        memory.truncate(4096)
        aged(ours, folder, segment)
        with mmap.mmap(memory.fileno(), 4096):
            memory.close()
            assert not {str(segment), str(folder), str(ours)} & leavings.leavings().keys()
        kept.close()
        assert leavings.leavings().keys() >= {str(segment), str(folder)}
        with open(segment, "rb"):
            leavings.remove()
            assert segment.exists() and list(tmp_path.iterdir()) == [ours]
        leavings.remove()
        assert not segment.exists()


@pytest.mark.parametrize("end", [None, signal.SIGKILL])
def test_a_process_that_nobody_launched_leaves_nothing(tmp_path, end):
    words = [sys.executable, "-c", ALONE]
    environment = clean() | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as alone:
        assert alone.stdout.readline() == "up\n"
        assert not mapped_by([alone.pid]) and not list(tmp_path.iterdir())
        if end:
            alone.send_signal(end)
        alone.stdin.close()
        assert alone.wait(120) == (-end if end else 0)
    assert not list(tmp_path.iterdir())


def test_what_is_set_for_the_start_is_not_for_others(tmp_path):
    program = "import os; before = dict(os.environ); from hepti_mpi.comm.ranks import Comm; Comm.world(); " \
              "print({name for name in os.environ if os.environ[name] != before.get(name)})"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=clean(), timeout=120)
    assert done.returncode == 0 and "TMPDIR" not in done.stdout and "OMPI_MCA_btl'" not in done.stdout, done


def test_the_text_can_be_sent():
    """To a Python that has nothing installed, as one word of a shell."""
    line = shlex.join([sys.executable, "-I", "-S", "-c", SWEEP, "/nowhere/state"])
    done = subprocess.run(["sh", "-c", line], input="", capture_output=True, text=True, timeout=120)
    assert "SyntaxError" not in done.stderr and "NameError" not in done.stderr, done
