"""Heads and answers on small arrays; the golden comparison of every head is in test_reference.py."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hepti_mpi.errors import InputError
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.inputs.requests import Request, read_requests
from hepti_mpi.models.numerics import sigmoid, softmax
from hepti_mpi.models.reference import forward
from hepti_mpi.models.tasks.heads import answers, apply_head, embed

GOLDEN = Path(__file__).parent / "golden"


def request(rows, keep=None, index=0):
    keep = np.arange(rows) if keep is None else np.array(keep)
    arrays = {"ids": np.arange(rows) + 5, "types": np.zeros(rows, int), "positions": keep}
    return Request(index, f"array {index + 1} of x.npz", arrays, keep, int(keep[-1]) + 1)


def answer(case, source, full_logits=False):
    """(requests, results, answers) of one golden model."""
    model = read_model(GOLDEN / case)
    weights = dict(model.weights())
    requests = read_requests(model.spec, model.files, source)
    arrays = {name: np.concatenate([r.arrays[name] for r in requests]) for name in requests[0].arrays}
    hidden = forward(model.spec, weights, embed(model.spec, weights, arrays), [r.rows for r in requests], np.float32)
    results = apply_head(model.spec, weights, model.files, hidden, requests, full_logits)
    return requests, results, answers(model.spec, model.files, requests, results)


@pytest.mark.parametrize("full_logits", [False, True])
def test_masked_words_golden(tmp_path, full_logits):
    expected = json.loads((GOLDEN / "bert_mlm" / "expected_text.json").read_text())
    (tmp_path / "x.txt").write_text(expected["text"])
    [request], [result], [record] = answer("bert_mlm", str(tmp_path / "x.txt"), full_logits)
    assert record["input"] == expected["text"]
    [mask] = record["masks"]
    assert mask["position"] == expected["mask_index"]
    assert [t["token"] for t in mask["tokens"]] == expected["top5_tokens"]
    assert [t["score"] for t in mask["tokens"]] == pytest.approx(expected["top5_scores"], abs=1e-5)
    assert result["mask_ids"].tolist() == [expected["top5_token_ids"]]
    assert ("logits" in result) is full_logits
    if full_logits:
        assert result["logits"].shape == (request.rows, 131)


def test_text_without_mask(tmp_path):
    (tmp_path / "x.txt").write_text("the cat\nthe [MASK] and the [MASK]\n")
    _, results, records = answer("bert_mlm", str(tmp_path / "x.txt"))
    assert [len(r["masks"]) for r in records] == [0, 2]
    assert results[0]["mask_ids"].shape == (0, 5)


def test_sentence_golden(tmp_path):
    expected = json.loads((GOLDEN / "bert_sentence" / "expected_text.json").read_text())
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, expected["texts"])))
    _, _, records = answer("bert_sentence", str(tmp_path / "x.jsonl"))
    np.testing.assert_allclose([r["embedding"] for r in records], expected["embeddings"], atol=1e-5)


def test_image_classes_golden():
    _, _, records = answer("vit_cls", str(GOLDEN / "vit_cls"))
    logits = np.load(GOLDEN / "vit_cls" / "expected_images.npz")["expected_logits"]
    for record, wanted in zip(records, logits):
        labels = ["cat", "dog", "bird", "fish"]
        scores = softmax(wanted)
        assert [item["label"] for item in record["labels"]] == [labels[i] for i in np.argsort(-scores)]
        assert [item["score"] for item in record["labels"]] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    assert [record["input"] for record in records] == ["image gray.png", "image rgb.png"]


def test_token_classes():
    requests, results, records = answer("bert_tokencls", None)
    for request, result, record in zip(requests, results, records):
        assert len(record["tokens"]) == request.rows - 2 and "[CLS]" not in [item["token"] for item in record["tokens"]]
        assert record["tokens"][0]["score"] == pytest.approx(softmax(result["logits"][1]).max())


@pytest.mark.parametrize("case", ["bert", "bert_mlm", "bert_seqcls", "bert_tokencls", "bert_sentence", "vit", "vit_cls", "deit"])
def test_answers_are_json(case):
    requests, _, records = answer(case, None)
    assert len(records) == len(requests)
    assert json.loads(json.dumps(records, allow_nan=False)) == records


def test_position_0_masked():
    model = random_model("tiny-bert")
    weights, hidden = dict(model.weights()), np.ones((2, 56), np.float32)
    requests = [request(2, keep=[1, 2])]
    results = apply_head(model.spec, weights, {}, hidden, requests, False)
    assert results == [{}] and answers(model.spec, {}, requests, results) == [{"input": "array 1 of x.npz"}]
    spec = replace(model.spec, head="sequence-classes", labels=("a",))
    with pytest.raises(InputError, match="array 1 of x.npz.*position 0"):
        apply_head(spec, weights, {}, hidden, requests, False)


def test_no_head_gives_the_class_row():
    model = random_model("tiny-bert")
    spec = replace(model.spec, head="none", back=())
    hidden = np.arange(112, dtype=np.float32).reshape(2, 56)
    [one, two] = apply_head(spec, {}, {}, hidden, [request(1), request(1, index=1)], False)
    np.testing.assert_array_equal(two["class_row"], hidden[1])
    assert answers(spec, {}, [request(1)], [one])[0]["class_row"][:3] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("kind, expected", [("softmax", softmax), ("sigmoid", sigmoid), ("none", lambda x: x)])
def test_scores(kind, expected):
    logits = np.array([-10.0, 3, 1, 2, 0.5, 0.25, 8], np.float32)
    labels = tuple("abcdefg")
    spec = replace(random_model("tiny-vit").spec, labels=labels, options={"scores": kind})
    [record] = answers(spec, {}, [request(1)], [{"logits": logits}])
    assert [item["label"] for item in record["labels"]] == list("gbdce")
    assert [item["score"] for item in record["labels"]] == pytest.approx(sorted(expected(logits), reverse=True)[:5])


def test_without_a_tokenizer_masks_are_unknown_and_tokens_are_numbers():
    model = read_model(GOLDEN / "bert_mlm")
    weights, hidden = dict(model.weights()), np.ones((3, 40), np.float32)
    [result] = apply_head(model.spec, weights, {}, hidden, [request(3)], True)
    assert result["logits"].shape == (3, 131) and result["mask_positions"].shape == (0,)
    spec = replace(model.spec, head="token-classes", labels=("a", "b"))
    [record] = answers(spec, {}, [request(2)], [{"logits": np.array([[1.0, 0.0], [0.0, 3.0]])}])
    assert [(t["token"], t["label"]) for t in record["tokens"]] == [("5", "a"), ("6", "b")]


class OnlyRows:
    """A table that can be indexed and not be converted as a whole."""

    def __init__(self, table):
        self.table = table

    def __getitem__(self, rows):
        assert len(rows) == 7
        return self.table[rows]


def test_embed_reads_only_the_rows_it_needs(tmp_path):
    model = random_model("tiny-bert")
    weights = dict(model.weights())
    np.save(tmp_path / "words.npy", weights["embedding.words"])
    mapped = weights | {"embedding.words": OnlyRows(np.load(tmp_path / "words.npy", mmap_mode="r"))}
    arrays = request(7).arrays
    x = embed(model.spec, mapped, arrays)
    assert type(x) is np.ndarray and x.dtype == np.float32 and x.shape == (7, 56)
    np.testing.assert_array_equal(x, embed(model.spec, weights, arrays))


def test_rows_must_agree():
    with pytest.raises(ValueError, match="requests have 2 rows, hidden has 3"):
        apply_head(random_model("tiny-bert").spec, {}, {}, np.zeros((3, 56), np.float32), [request(2)], False)
