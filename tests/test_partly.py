"""One bad input costs itself only, on every way: the rest is answered, the exit code is 5; with --strict nothing is."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_bad_input import SECONDS, in_turn, launch, launch_environment

from hepti_mpi.models.checkpoints.modelfiles import ModelFiles
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.weights import writing

GOOD, BAD = ["the cat", "sat on the mat"], ["line 2 of in.txt is empty", "line 4 of in.txt has 602 tokens, the model takes 512; shorten it"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("partly")
    writing.write(made / "tiny.h5", random_model("tiny-bert"))
    (made / "in.txt").write_text(f"{GOOD[0]}\n\n{GOOD[1]}\n{'word ' * 150}\n")
    (made / "hosts.txt").write_text("localhost slots=2\n")
    return made


def alone(folder: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "hepti_mpi", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=folder, env=launch_environment())


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def told(result: "subprocess.CompletedProcess[str]") -> dict:
    """Check how a run ended that answered a part, and return its document."""
    assert result.returncode == 5, result.stdout + result.stderr
    assert f"2 of 4 inputs could not be answered (the others were): {BAD[0]}, and 1 more" in result.stderr
    assert "Traceback" not in result.stderr
    record = json.loads(result.stdout.splitlines()[-1])
    assert (record["errors"], record["truncated"], record["requests"]) == (2, 0, 2)
    return record


@pytest.mark.parametrize("way", ["alone", "mpirun", "supervise"])
def test_the_rest_is_answered(folder, way):
    words = ["run", "--weights", "tiny.h5", "--input", "in.txt", "--output", f"{way}.jsonl"]
    before = ["supervise", "hosts.txt", "--"] if way == "supervise" else []
    told(launch(folder, *words, ranks=3) if way == "mpirun" else alone(folder, *before, *words))
    first, second, third, fourth = records(folder / f"{way}.jsonl")
    assert second == {"input": "", "error": BAD[0]} and fourth == {"input": "word " * 150, "error": BAD[1]}
    assert [first["input"], third["input"]] == GOOD and len(first["pooler_output"]) == len(third["pooler_output"]) == 56
    assert not list(folder.glob("*.journal"))


def test_arrays_and_the_screen(folder):
    result = alone(folder, "run", "--weights", "tiny.h5", "--input", "in.txt", "--output", "a.npz")
    told(result)
    with np.load(folder / "a.npz") as found:
        assert sorted(found) == ["errors", "pooler_output"]
        assert found["errors"].tolist() == ["", BAD[0], "", BAD[1]]
        assert np.isnan(found["pooler_output"]).all(axis=1).tolist() == [False, True, False, True]
    lines = alone(folder, "run", "--weights", "tiny.h5", "--input", "in.txt", "--repeat", "2", "--json").stdout.splitlines()
    assert [json.loads(line).get("error") for line in lines[:4]] == [None, BAD[0], None, BAD[1]]
    assert json.loads(lines[4])["errors"] == 2


def test_strict_ends_at_the_first(folder):
    result = launch(folder, "run", "--weights", "tiny.h5", "--input", "in.txt", "--output", "strict.jsonl", "--strict", ranks=2)
    assert result.returncode == 2 and BAD[0] in result.stderr and not list(folder.glob("strict*")), result.stderr


def test_all_are_bad(folder):
    (folder / "none.txt").write_text("\n\n")
    result = launch(folder, "run", "--weights", "tiny.h5", "--input", "none.txt", "--output", "none.jsonl", ranks=2)
    assert result.returncode == 5 and "none of 2 inputs could be answered: line 1 of none.txt is empty, and 1 more" in result.stderr
    assert [set(record) for record in records(folder / "none.jsonl")] == [{"input", "error"}] * 2
    assert json.loads(result.stdout.splitlines()[-1])["errors"] == 2


def test_one_broken_photo(folder):
    writing.write(folder / "vit.h5", random_model("tiny-vit"))
    (folder / "photos").mkdir()
    for name in ("a.png", "c.png"):
        Image.new("RGB", (30, 20), "red").save(folder / "photos" / name)
    (folder / "photos" / "b.png").write_bytes((folder / "photos" / "a.png").read_bytes()[:40])
    result = alone(folder, "run", "--weights", "vit.h5", "--input", "photos", "--output", "photos.jsonl")
    assert result.returncode == 5, result.stderr
    found = records(folder / "photos.jsonl")
    assert [record["input"] for record in found] == ["image a.png", "image b.png", "image c.png"]
    assert "b.png" in found[1]["error"] and len(found[0]["labels"]) == len(found[2]["labels"]) == 5


def overflowing(model: ModelFiles) -> ModelFiles:
    """The model, with a word that makes numbers too large."""

    def stream():
        for name, values in model.weights():
            if name == "embedding.words":
                values = values.copy()
                values[values.shape[0] - 1] = 3e38
            yield name, values

    return ModelFiles(model.spec, model.files, "9" * 64, stream)


def test_a_result_that_is_not_finite(folder):
    model = random_model("tiny-bert")
    writing.write(folder / "large.h5", overflowing(model))
    ids = np.full((3, 4), 7)
    ids[1, 2] = model.spec.numbers("ids") - 1
    np.savez(folder / "ids.npz", input_ids=ids)
    words = ["run", "--weights", "large.h5", "--input", "ids.npz", "--output"]
    result, arrays = in_turn(folder, [[*words, "large.jsonl"], [*words, "large.npz", "--hidden"]], 1)
    assert result.returncode == 5, result.stderr
    text = (folder / "large.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert [record.get("error") for record in records(folder / "large.jsonl")] == [
        None, "array 2 of ids.npz: the result is not finite: numbers became too large on the way", None,
    ]  # fmt: skip
    assert arrays.returncode == 5
    with np.load(folder / "large.npz") as found:
        for name in ("last_hidden_state", "pooler_output"):
            assert np.isnan(found[name][1]).all() and np.isfinite(found[name][[0, 2]]).all()
    result = alone(folder, *words, "strict.jsonl", "--strict")
    assert result.returncode == 2 and "array 2 of ids.npz: the result is not finite" in result.stderr
    assert not list(folder.glob("strict.jsonl*"))
