"""What is said of a path that is no store: it is known for what it is, and the next command can be copied."""

import errno
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from test_bad_input import launch_environment

from hepti_mpi.comm import launcher
from hepti_mpi.commands import main
from hepti_mpi.commands.paths import profile_path, the_profile
from hepti_mpi.engine.machine import together
from hepti_mpi.errors import StoreError
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.weights import writing
from hepti_mpi.weights.places import no_file, no_model, no_store
from hepti_mpi.weights.store import Store

LONG = "x" * 300


def folder(path):
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


@pytest.mark.parametrize("root", ["", "hub", "hub/models--org--name", "hub/models--org--name/snapshots"])
def test_the_cache_of_the_hub(tmp_path, root):
    snapshot = folder(tmp_path / "hub/models--org--name/snapshots/abc")
    for said in (no_store(tmp_path / root), no_model(tmp_path / root)):
        assert "Hugging Face cache" in said and said.endswith(f"python -m hepti_mpi slice {snapshot} weights/name.h5")


def test_a_folder_of_stores_is_no_model(tmp_path):
    (tmp_path / "a.h5").touch()
    assert no_model(tmp_path) == f"{tmp_path} is a folder of 1 store, not of a model; name one: {tmp_path / 'a.h5'}"


def test_a_name_with_a_blank_is_quoted(tmp_path):
    said = no_store(folder(tmp_path / "my model"))
    assert said.endswith(f"slice '{tmp_path}/my model' 'weights/my model.h5'")


def test_commands_that_name_a_path_with_a_blank_can_be_copied(tmp_path):
    """Each was told as if no path had a blank: what was copied named two files, or none."""
    place, model = tmp_path / "my küche", folder(tmp_path / "a model")
    (model / "config.json").write_text((Path(__file__).parent / "golden/bert/config.json").read_text())
    (model / "a.gguf").touch()
    store = place / "a b.h5"
    random = ["inspect", "random:tiny bert"], ["slice", "random:tiny-bert", str(model)]
    told = []
    for words in (["run", "--threads", "1", "--weights", str(store)], *random, ["slice", str(model), str(tmp_path / "x.h5")]):
        told.append(CliRunner().invoke(main.main, words).exception)
    assert CliRunner().invoke(main.main, ["slice", "random:tiny-bert", str(store)]).exit_code == 0
    told.append(CliRunner().invoke(main.main, ["inspect", str(store)]).output)
    told = [line for one in told for line in str(one).splitlines() if "-m hepti_mpi" in line]
    every = [shlex.split(line.partition("python -m hepti_mpi ")[2]) for line in told]
    assert every == [
        ["slice", "SOURCE", str(store)], ["slice", "random:tiny bert", "weights/tiny bert.h5"], ["slice", str(model), "STORE"],
        ["slice", str(model / "a.gguf"), "weights/model.h5"],
        ["plan", "--weights", str(store), "--boards", "pi4,pi4,pi4,pi4", "--mbit", "940"],
    ]  # fmt: skip


def test_the_name_of_a_model_that_has_a_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/MiniLM-L6.5.h5").touch()
    for said in (no_store(Path(name)) for name in ("MiniLM-L6.5", "org/MiniLM-L6.5")):
        assert said.endswith("not found; there is a store of that name: weights/MiniLM-L6.5.h5")
    assert no_file(Path("wieghts/MiniLM-L6.5.h5")).endswith("not found; there is a store of that name: weights/MiniLM-L6.5.h5")
    assert no_store(Path("MiniLM.h5")) is None and "hf download" in no_store(Path("org/MiniLM"))


@pytest.mark.parametrize("look", [no_store, no_model])
def test_the_name_of_a_random_model_without_what_says_so(tmp_path, monkeypatch, look):
    """It was told to be made of SOURCE, which nobody knows who was told the name alone."""
    monkeypatch.chdir(tmp_path)
    made = "make a store of it with: python -m hepti_mpi slice random:bert-large weights/bert-large.h5"
    assert look(Path("bert-large")) == f"bert-large not found; a random model is called random:bert-large; {made}"
    assert look(Path("bert-huge")) is None


def test_a_folder_without_a_store(tmp_path):
    assert no_store(tmp_path).endswith("slice MODEL_FOLDER weights/model.h5")


@pytest.mark.parametrize("form, command", [
    ("hepti-profiles", "plan with it: python -m hepti_mpi plan --profile '{}'"), ("hepti-plan", "run --plan '{}'"),
    ("hepti-bench", "python -m hepti_mpi report '{}' --output pictures"),
    ("hepti-run", "python -m hepti_mpi slice MODEL_FOLDER weights/all-MiniLM-L6-v2.h5"),
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
    assert profile_path() == tmp_path / "caches" / "hepti" / name
    profile_path().parent.mkdir(parents=True)
    profile_path().touch()
    assert the_profile() == profile_path() and not (tmp_path / "hostfiles").exists()
    (tmp_path / "hostfiles").mkdir()
    assert str(profile_path()) == f"hostfiles/{name}"


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
    writing.write(tmp_path / "tiny.h5", random_model("tiny-bert"))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/link.h5").symlink_to("../tiny.h5")
    command = [sys.executable, "-m", "hepti_mpi", "run", "--weights", "weights/link.h5", "--output", "a.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=launch_environment())
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 8


def test_a_folder_that_is_closed_is_named_as_such(tmp_path):
    """Root sees everything but with the capability for that taken away."""
    closed = tmp_path / "closed"
    (closed / "model").mkdir(parents=True)
    closed.chmod(0)
    code = "import sys\nfrom pathlib import Path\nfrom hepti_mpi.commands.paths import store_path\n"
    code += "from hepti_mpi.errors import HeptiError\nfrom hepti_mpi.models.untrusted import check_there\n"
    code += "from hepti_mpi.serving.outputs import check_path\nfrom hepti_mpi.weights.places import no_model\nclosed = Path(sys.argv[1])\n"
    code += "print(no_model(closed), no_model(closed / 'model'), sep='\\n')\n"
    code += "for ask in (lambda: store_path(closed), lambda: store_path(closed / 'm.h5'), lambda: check_path(closed / 'x.jsonl'),\n"
    code += "            lambda: check_there(closed / 'x.txt'), lambda: check_there(closed.parent / 'x.txt')):\n"
    code += "    try:\n        ask()\n    except HeptiError as error:\n        print(error)\n"
    words = [sys.executable, "-c", code, str(closed)]
    try:
        if not os.geteuid():
            words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *words]
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    finally:
        closed.chmod(0o700)
    assert done.stdout.splitlines() == [
        f"{closed} cannot be read: Permission denied", f"{closed}/model cannot be read: Permission denied",
        f"{closed} cannot be read: Permission denied", f"{closed}/m.h5 cannot be read: Permission denied",
        f"output {closed}/x.jsonl: folder {closed} cannot be written",
        f"input {closed}/x.txt cannot be read: Permission denied", f"input {tmp_path}/x.txt not found",
    ], done.stderr  # fmt: skip


def test_a_name_that_is_no_text_is_refused(tmp_path):
    """Kernels are told by a name of UTF-8 where the weights lie."""
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xf6\xdfe.h5"))
    writing.write(tmp_path / "tiny.h5", random_model("tiny-bert"))
    (tmp_path / "tiny.h5").rename(odd)
    with pytest.raises(StoreError, match="no UTF-8 here; name it and its folders otherwise"):
        Store(odd)


@pytest.mark.parametrize("words", [("run", "--input", ""), ("run", "--weights="), ("slice", "", "x.h5"), ("inspect", "")])
def test_an_empty_path_is_not_the_folder_one_is_in(words):
    found = CliRunner().invoke(main.main, list(words))
    assert found.exit_code == 2 and "it is empty: name a file or a folder" in found.output


@pytest.mark.parametrize("number, code", [("EACCES", 2), ("ENOTDIR", 2), ("EIO", 4), ("ENOSPC", 4), (None, 4)])
def test_a_host_does_not_fail_where_a_file_is_not_its_user_s(number, code):
    """A run ended with 4, as of a disk that fails, and a job that is supervised went on without that host."""
    failed = []
    with together(SimpleNamespace(agree=failed.append)):
        raise OSError(getattr(errno, number), "refused", "out/x.jsonl") if number else MemoryError
    assert failed[0].exit_code == code and str(failed[0]) == ("out/x.jsonl cannot be used: refused" if number else "out of memory")


@pytest.mark.parametrize("words, code", [
    (("slice", "random:tiny-bert", LONG + ".h5"), 2), (("run", "--weights", "m.h5", "--input", "t.txt", "--output", LONG + ".jsonl"), 2),
])  # fmt: skip
def test_a_name_that_no_file_can_have_is_told_in_a_sentence(words, code, tmp_path):
    """Once as a fault of the program, with the line where it arose."""
    writing.write(tmp_path / "m.h5", random_model("tiny-bert"))
    (tmp_path / "t.txt").write_text("a text\n")
    command = [sys.executable, "-m", "hepti_mpi", *words]
    done = subprocess.run(command, cwd=tmp_path, env=launch_environment(), capture_output=True, text=True)
    assert done.returncode == code
    assert re.fullmatch(rf"error: .*{LONG}.* cannot be used: File name too long\n", done.stderr), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.h5", "t.txt"]
