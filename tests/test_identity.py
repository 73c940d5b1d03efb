"""One store, one answer: whatever changes an answer changes the hash; what does not, does not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hepti_mpi.models.checkpoints import hf
from hepti_mpi.models.checkpoints.hf import read_model

GOLDEN = Path(__file__).parent / "golden"


def edit(path: Path, **changes):
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


@pytest.mark.parametrize("model, name, changes", [
    ("bert_sentence", "1_Pooling/config.json", {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}),
    ("bert_sentence", "sentence_bert_config.json", {"max_seq_length": 7}),
    ("bert_sentence", "tokenizer_config.json", {"do_lower_case": False}),
    ("bert_sentence", "config_sentence_transformers.json", {"prompts": {"query": "query: "}, "default_prompt_name": "query"}),
    ("bert_sentence", "config.json", {"layer_norm_eps": 0.5}),
    ("vit", "preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3]}),
])  # fmt: skip
def test_what_lies_beside_the_weights(tmp_path, model, name, changes):
    shutil.copytree(GOLDEN / model, tmp_path / "m")
    before = read_model(tmp_path / "m").source_hash
    edit(tmp_path / "m" / name, **changes)
    assert read_model(tmp_path / "m").source_hash != before


def test_weights_and_the_tokenizer(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "bert_sentence", tmp_path / "m"))
    hashes = [read_model(folder).source_hash]
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["cat"], words["dog"] = words["dog"], words["cat"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    hashes.append(read_model(folder).source_hash)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[name] = np.ascontiguousarray(tensors[name] * 2)
    save_file(tensors, folder / "model.safetensors")
    hashes.append(read_model(folder).source_hash)
    assert len(set(hashes)) == 3


def test_names_do_not_matter_and_what_is_derived_does(tmp_path, monkeypatch):
    shutil.copytree(GOLDEN / "bert", tmp_path / "another name")
    before = read_model(GOLDEN / "bert").source_hash
    assert read_model(tmp_path / "another name").source_hash == before and len(before) == 64
    made, matched = hf.make_spec, hf.match
    with monkeypatch.context() as patch:  # a program that makes something else of the same folder
        patch.setattr(hf, "make_spec", lambda *given: replace(made(*given), positions=5))
        assert read_model(GOLDEN / "bert").source_hash != before
    with monkeypatch.context() as patch:
        patch.setattr(hf, "match", lambda *given: [replace(one, transform="other") for one in matched(*given)])
        assert read_model(GOLDEN / "bert").source_hash != before
    assert read_model(GOLDEN / "bert").source_hash == before
