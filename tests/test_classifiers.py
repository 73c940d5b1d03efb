"""Decoders with classes in the place of words, against what transformers makes of them (tests/golden/make_decoders.py)."""

import json

import numpy as np
import pytest
from decoders import CLASSES, classified, write
from test_families import results

from hepti_mpi.errors import ModelError
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.inputs.requests import read_requests


@pytest.fixture
def folder_of(tmp_path):
    """A function that writes the folder of a case, with changes of config.json, and an array file of its texts."""

    def folder_of(case, task="Sequence", **changes):
        said, ids, _ = classified(case, task)
        path = write({**said, "config": said["config"] | changes}, tmp_path / case)
        np.savez(path / "in.npz", input_ids=np.maximum(ids, 0), attention_mask=ids >= 0)
        return path

    return folder_of


@pytest.mark.parametrize("case, task", CLASSES)
def test_golden_classes(case, task, folder_of):
    said, ids, wanted = classified(case, task)
    folder = folder_of(case, task)
    spec = read_model(folder).spec
    assert spec.head == {"Sequence": "sequence-classes", "Token": "token-classes"}[task]
    assert len(spec.labels) == len(said["config"]["id2label"])
    for number, (row, logits) in enumerate(zip(ids, wanted)):
        row = row[row >= 0]
        np.savez(folder / "in.npz", input_ids=row[None])
        [_], [found] = results(folder, folder / "in.npz")
        np.testing.assert_allclose(found["logits"], logits[: len(row)] if task == "Token" else logits, atol=1e-4, err_msg=f"text {number}")


@pytest.mark.parametrize("case", ["qwen3", "mistral"])
def test_the_token_that_is_read_has_to_be_there(case, folder_of):
    """Of padded arrays transformers reads the last that is not the padding's, or the very last without one, whatever the mask says."""
    folder = folder_of(case)
    ids, mask = np.array([[5, 6, 7, 0], [0, 5, 6, 7], [5, 6, 7, 8]]), np.array([[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 0]])
    np.savez(folder / "in.npz", input_ids=ids, attention_mask=mask)
    model = read_model(folder)
    found = [request.error for request in read_requests(model.spec, model.files, str(folder / "in.npz"))]
    left_out = "array {} of in.npz: attention_mask leaves out position 3, which the head of this model reads"
    assert found == [None if case == "qwen3" else left_out.format(1), None, left_out.format(3)]


def test_padding_in_front_or_behind_changes_nothing(folder_of):
    folder, text = folder_of("qwen3"), [5, 6, 7]
    ids = np.array([[*text, 0, 0], [0, 0, *text], [0, *text, 0]])
    np.savez(folder / "in.npz", input_ids=ids, attention_mask=ids > 0)
    _, found = results(folder, folder / "in.npz")
    np.testing.assert_allclose([one["logits"] for one in found], [found[0]["logits"]] * 3, atol=1e-5)


def test_a_padding_that_is_no_token_is_refused(folder_of):
    with pytest.raises(ModelError, match="pad_token_id is 'x', expected the id of a token"):
        read_model(folder_of("llama", pad_token_id="x"))


def test_what_is_passed_over_where_config_json_does_not_say(folder_of):
    """The classes of Gemma and Phi-3 name a token, those of others none."""
    for case, passed in (("gemma2", 0), ("phi3", 32000), ("llama", None)):
        folder = folder_of(case)
        said = json.loads((folder / "config.json").read_text())
        del said["pad_token_id"]
        (folder / "config.json").write_text(json.dumps(said))
        assert read_model(folder).spec.options["passed_over"] == passed


def test_types_that_would_be_words_are_refused(folder_of):
    """A GPT-2 looks types up among its words, and the pipeline of classes hands over those that a tokenizer gives."""
    folder = folder_of("gpt2")
    (folder / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0, "a": 1, "b": 2}))
    (folder / "merges.txt").write_text("")
    assert read_model(folder).spec.head == "sequence-classes"
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}))
    with pytest.raises(ModelError, match="gives token_type_ids, which this family looks up among its words"):
        read_model(folder)
