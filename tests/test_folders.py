"""The folders that Open MPI keeps: one that cannot be used, or has no room, is told in one sentence before Open MPI breaks down."""

import os
import subprocess
import sys

import pytest

from hepti_mpi.comm import folders
from hepti_mpi.errors import HostError, RankError

FULL = "import sys; from hepti_mpi import __main__; from hepti_mpi.comm import folders; folders.ROOM = 1 << 60; " \
       "sys.argv[1:] = ['run']; __main__.main()"  # fmt: skip


def test_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.tempfile, "tempdir", str(tmp_path))
    with folders.leaving_nothing():
        [made] = tmp_path.iterdir()
        assert os.environ["TMPDIR"] == str(made) == f"{made.parent}/{made.name}"
    assert not list(tmp_path.iterdir())


def test_an_umask_that_keeps_out_who_has_set_it(tmp_path, monkeypatch):
    """Open MPI ended by a broken memory access, and supervise called it a fault of its own."""
    monkeypatch.setattr(folders.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: bool(os.stat(path).st_mode & 0o700 == 0o700))  # of root, too
    before = os.umask(0o777)
    try:
        with pytest.raises(HostError, match="umask"):
            folders.own_folder()
    finally:
        os.umask(before)
    assert not list(tmp_path.iterdir()) and os.path.isdir(folders.own_folder())


def test_no_folder_can_be_made(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(HostError, match="none can be made: No such file or directory; set TMPDIR"):
        folders.own_folder()


@pytest.mark.parametrize("local, kind", [("0", HostError), ("1", RankError)])
def test_one_rank_of_a_host_tells_that_there_is_no_room(local, kind, monkeypatch):
    monkeypatch.setattr(folders, "ROOM", 1 << 60)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", local)
    with pytest.raises(kind) as error:
        folders.check_rank()
    assert error.value.agreed and isinstance(error.value, kind)


def test_no_room_for_the_files_of_mpirun(tmp_path):
    """It ended by a bus error once all ranks had begun, and nobody said why."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_COMM", "PMI"))}
    done = subprocess.run(["mpirun", "-n", "2", "--oversubscribe", sys.executable, "-c", FULL], capture_output=True, text=True, timeout=120,
                          cwd=tmp_path, env=environment | {"PYTHONPATH": os.path.dirname(os.path.dirname(__file__))})  # fmt: skip
    told = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == 4 and len(told) == 1 and "(rank 0): mpirun needs" in told[0] and "make room, or set TMPDIR" in told[0], done
