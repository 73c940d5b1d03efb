"""Folder and line of text to answer, against what transformers and sentence-transformers answer (tests/golden/make_heads.py)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hepti_mpi.models.heads import answers, apply_head, embed, fault
from hepti_mpi.models.hf import read_model
from hepti_mpi.models.preprocess import read_requests
from hepti_mpi.models.reference import forward

GOLDEN = Path(__file__).parent / "golden"
CASES = [case for case in json.loads((GOLDEN / "heads.json").read_text()) if "cross" not in case["name"]]


def changed(case, folder):
    """A copy of a golden model, changed as the case says."""
    shutil.copytree(GOLDEN / case["base"], folder)
    config = json.loads((folder / "config.json").read_text()) | case.get("config", {})
    files = {"config.json": {key: value for key, value in config.items() if value is not None}} | case.get("files", {})
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    tensors = load_file(folder / "model.safetensors")
    for name, shape in case.get("tensors", {}).items():
        tensors.pop(name, None)
        if shape:
            tensors[name] = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    save_file(tensors, folder / "model.safetensors")
    return folder


def records(folder, lines):
    """What the model in `folder` answers to JSON `lines`."""
    model, source = read_model(folder), folder / "in.jsonl"
    source.write_text("\n".join(json.dumps(line) for line in lines))
    weights, requests = dict(model.weights()), read_requests(model.spec, model.files, str(source))
    assert [request.error for request in requests] == [None] * len(lines)
    arrays = {name: np.concatenate([request.arrays[name] for request in requests]) for name in requests[0].arrays}
    hidden = forward(model.spec, weights, embed(model.spec, weights, arrays), [request.rows for request in requests])
    results = apply_head(model.spec, weights, model.files, hidden.astype(np.float32), requests, False)
    assert [fault(model.spec, request, result) for request, result in zip(requests, results)] == [None] * len(lines)
    return answers(model.spec, model.files, requests, results)


def listed(record):
    """The names and the score of everything that a record says."""
    if "masks" in record:
        return [[item["token"], item["score"]] for item in record["masks"][0]["tokens"]]
    if "tokens" in record:
        return [[item["token"], item["label"], item["score"]] for item in record["tokens"]]
    return [[item["label"], item["score"]] for item in record["labels"]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_answers(case, tmp_path):
    found = [listed(record) for record in records(changed(case, tmp_path / "model"), case["inputs"])]
    assert [[item[:-1] for item in one] for one in found] == [[item[:-1] for item in one] for one in case["expected"]]
    for one, expected in zip(found, case["expected"]):
        np.testing.assert_allclose([item[-1] for item in one], [item[-1] for item in expected], atol=1e-4)


def test_a_pair_is_told_with_both_texts(tmp_path):
    [record] = records(changed(CASES[4], tmp_path / "model"), [["the dog", "a cat"]])
    assert record["input"] == ["the dog", "a cat"]


def test_no_mask_is_no_answer(tmp_path):
    model = read_model(GOLDEN / "bert_mlm")
    (tmp_path / "in.txt").write_text("the dog runs\n")
    [request] = read_requests(model.spec, model.files, str(tmp_path / "in.txt"))
    hidden = np.ones((request.rows, 40), np.float32)
    for full, said in ((False, "line 1 of in.txt holds no mask"), (True, None)):
        [result] = apply_head(model.spec, dict(model.weights()), model.files, hidden, [request], full)
        why = fault(model.spec, request, result)
        assert why is None if said is None else why.startswith(said)


@pytest.mark.parametrize("case", ["bert", "bert_mlm", "bert_seqcls", "bert_tokencls", "bert_sentence"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_no_answer(tmp_path, case, value):
    model = read_model(GOLDEN / case)
    (tmp_path / "in.txt").write_text("the dog runs [MASK]\na cat [MASK]\n")
    requests = read_requests(model.spec, model.files, str(tmp_path / "in.txt"))
    hidden = np.ones((sum(request.rows for request in requests), model.spec.hidden), np.float32)
    hidden[: requests[0].rows] = value
    with np.errstate(invalid="ignore"):
        results = apply_head(model.spec, dict(model.weights()), model.files, hidden, requests, False)
    found = [fault(model.spec, request, result) for request, result in zip(requests, results)]
    assert (found[0] is not None and "not finite" in found[0]) or np.isinf(value) and case in ("bert", "bert_seqcls")  # tanh(inf) is 1
    assert found[1] is None
