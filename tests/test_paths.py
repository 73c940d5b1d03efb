"""What is said of a path that is no store: it is known for what it is, and the next command can be copied."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_bad_input import launch_environment

from hepti_mpi.comm import launcher
from hepti_mpi.commands.paths import no_model, no_store, profile_path, the_profile
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.weights import store as stores


def folder(path):
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


@pytest.mark.parametrize("root", ["", "hub", "hub/models--org--name", "hub/models--org--name/snapshots"])
def test_the_cache_of_the_hub(tmp_path, root):
    snapshot = folder(tmp_path / "hub/models--org--name/snapshots/abc")
    for said in (no_store(tmp_path / root), no_model(tmp_path / root)):
        assert "Hugging Face cache" in said and said.endswith(f"python -m hepti_mpi slice {snapshot} weights/name.h5")


def test_a_name_with_a_blank_is_quoted(tmp_path):
    said = no_store(folder(tmp_path / "my model"))
    assert said.endswith(f"slice '{tmp_path}/my model' 'weights/my model.h5'")


def test_the_name_of_a_model_that_has_a_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/MiniLM-L6.5.h5").touch()
    for said in (no_store(Path(name)) for name in ("MiniLM-L6.5", "org/MiniLM-L6.5")):
        assert said.endswith("not found; there is a store of that name: weights/MiniLM-L6.5.h5")
    assert no_store(Path("MiniLM.h5")) is None and "hf download" in no_store(Path("org/MiniLM"))


def test_a_folder_without_a_store(tmp_path):
    assert no_store(tmp_path).endswith("slice MODEL_FOLDER weights/model.h5")


@pytest.mark.parametrize("form, command", [
    ("hepti-profiles", "plan with it: python -m hepti_mpi plan --profile '{}'"), ("hepti-plan", "run --plan '{}'"),
    ("hepti-bench", "python -m hepti_mpi report '{}'"), ("hepti-run", "python -m hepti_mpi slice MODEL_FOLDER weights/all-MiniLM-L6-v2.h5"),
])  # fmt: skip
def test_a_document_of_ours_is_no_store_and_what_it_is_for_is_said(tmp_path, form, command):
    path = tmp_path / "my x.json"
    path.write_text(f'{{"format": "{form}"}}')
    said = no_store(path)
    assert f"is a {form[6:].removesuffix('s')}, not a store; " in said and said.endswith(command.format(path))


def test_where_a_profile_is_kept_without_a_hostfile(tmp_path, monkeypatch):
    """No folder is made where somebody happens to be."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(launcher, "launcher_hostfile", lambda: None)
    name = f"{launcher.host_name()}.profile.json"
    assert profile_path(None) == tmp_path / "caches" / "hepti" / name
    profile_path(None).parent.mkdir(parents=True)
    profile_path(None).touch()
    assert the_profile() == profile_path(None) and not (tmp_path / "hostfiles").exists()
    (tmp_path / "hostfiles").mkdir()
    assert str(profile_path(None)) == f"hostfiles/{name}"


@pytest.mark.parametrize("parent, found", [("time", "None"), ("mpirun", "hosts.txt")])
def test_only_an_mpirun_names_the_hostfile(tmp_path, parent, found):
    """`time -f FORMAT python -m hepti_mpi run` kept its profile in a file that was named FORMAT."""
    asks = [sys.executable, "-c", "from hepti_mpi.comm import launcher; print(launcher.launcher_hostfile())"]
    code = f"import subprocess; subprocess.run({asks!r})"
    typed = [str(Path(sys.executable).with_name(parent)), "-c", code, "-f", "hosts.txt"]
    done = subprocess.run(typed, executable=sys.executable, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found


def test_a_store_behind_a_link_into_another_folder(tmp_path):
    """ONNX Runtime reads weights beside the file that it is given only."""
    stores.write(tmp_path / "tiny.h5", random_model("tiny-bert"))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/link.h5").symlink_to("../tiny.h5")
    command = [sys.executable, "-m", "hepti_mpi", "run", "--weights", "weights/link.h5", "--output", "a.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=launch_environment())
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 8
