"""Folder and line of text to answer, against what transformers and sentence-transformers answer (tests/golden/make_heads.py)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hepti_mpi.errors import ModelError
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.inputs.requests import read_requests
from hepti_mpi.models.reference import forward
from hepti_mpi.models.tasks.heads import answers, apply_head, embed, fault, numbers

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "heads.json").read_text())


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
    hidden[requests[0].rows - 1] = value  # which not every head reads, but other rows did
    with np.errstate(invalid="ignore"):
        results = apply_head(model.spec, dict(model.weights()), model.files, hidden, requests, False)
    found = [fault(model.spec, request, result) for request, result in zip(requests, results)]
    assert found[0] is not None and "not finite" in found[0] and found[1] is None


IDENTITY = "torch.nn.modules.linear.Identity"
REFUSED = [
    ({"config": {"sentence_transformers": {"activation_fn": "my.own.Activation"}}}, "config.json: activation 'my.own.Activation'"),
    ({"config": {"sbert_ce_default_activation_function": 3}}, "config.json: activation 3", "Sigmoid"),
    ({"config": {"sentence_transformers": "5.0"}}, "sentence_transformers is '5.0'"),
    ({"modules": ["Transformer", "Dense"]}, "a cross-encoder of 2 modules"),
    ({"modules": ["Pooling"]}, "one Transformer"),
    ({"settings": {"activation_fn": "torch.nn.Mish"}}, "config_sentence_transformers.json: activation 'torch.nn.Mish'"),
    ({"settings": {"default_prompt_name": "query"}}, "default_prompt_name 'query' is not one of its prompts"),
    ({"own": {"transformer_task": "text-generation"}}, "transformer_task is 'text-generation'"),
    ({"own": {"processing_kwargs": {"text": {"truncation": "only_first"}}}}, "only_first", "longest_first"),
    ({"own": {"transformer_task": None}}, "transformer_task is None", "a cross-encoder is a classifier"),
    ({"own": {}, "config": {"architectures": ["BertForTokenClassification"]}}, "said to be a cross-encoder", "BertForTokenClassification"),
]


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused_cross_encoder(case, tmp_path):
    what, *words = case
    files = {}
    if what.keys() & {"modules", "settings", "own"}:
        kinds = what.get("modules", ["Transformer"])
        entries = [{"idx": i, "name": str(i), "path": "", "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
        own = {"transformer_task": "sequence-classification"} | what.get("own", {})
        files = {"modules.json": entries, "sentence_bert_config.json": own}
        files["config_sentence_transformers.json"] = {"model_type": "CrossEncoder"} | what.get("settings", {})
    folder = changed({"base": "bert_seqcls", "config": what.get("config", {}), "files": files}, tmp_path / "model")
    with pytest.raises(ModelError) as caught:
        read_model(folder)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_cross_encoder_that_pads_in_front_reads_another_token(tmp_path):
    """With rotary positions, too: CrossEncoder.predict of texts beside longer ones, or of a fixed length, then answers by a pad token."""
    files = {"tokenizer_config.json": json.loads((GOLDEN / "modernbert_seqcls/tokenizer_config.json").read_text())}
    config = {"sentence_transformers": {"activation_fn": IDENTITY}, "classifier_pooling": "cls"}
    folder = changed({"base": "modernbert_seqcls", "config": config, "files": files}, tmp_path / "right")
    assert read_model(folder).spec.options["scores"] == "none"
    files["tokenizer_config.json"]["padding_side"] = "left"
    with pytest.raises(ModelError, match="padding_side left is not supported together with a cross-encoder"):
        read_model(changed({"base": "modernbert_seqcls", "config": config, "files": files}, tmp_path / "left"))
    config["classifier_pooling"] = "mean"  # reads all tokens alike, wherever they stand
    assert read_model(changed({"base": "modernbert_seqcls", "config": config, "files": files}, tmp_path / "mean")).spec.pooling == "mean"


def test_a_classifier_that_only_the_mark_tells_of_has_one_score(tmp_path):
    """Beside the architecture of a model without a head; the values are those of CrossEncoder of sentence-transformers 6.2."""
    config = {"sentence_transformers": {"activation_fn": IDENTITY}, "architectures": ["BertModel"]}
    folder = changed({"base": "bert_seqcls", "config": config}, tmp_path / "model")
    with pytest.raises(ModelError, match="classifier.weight has shape"):  # of three labels, as CrossEncoder refuses it too
        read_model(folder)
    tensors = load_file(folder / "model.safetensors")
    only_first = {name: tensors[name][:1].copy() for name in ("classifier.weight", "classifier.bias")}
    save_file(tensors | only_first, folder / "model.safetensors")
    found = records(folder, [["the cat", "sat on the mat"], ["rain", "the rain"]])
    np.testing.assert_allclose([item["labels"][0]["score"] for item in found], [-0.23339076, -0.15653123], atol=1e-4)
    config = {"sentence_transformers": {"version": "4.1"}, "architectures": None}
    shutil.rmtree(folder)
    save_file(tensors | only_first, changed({"base": "bert_seqcls", "config": config}, folder) / "model.safetensors")
    [found] = records(folder, [["the cat", "sat on the mat"]])
    np.testing.assert_allclose([item["score"] for item in found["labels"]], [0.44191572], atol=1e-4)


@pytest.mark.parametrize("name, said", [
    ("tokenizer_config.json", {"chat_template": "{{ messages }}"}), ("chat_template.jinja", None),
    ("additional_chat_templates/rag.jinja", None),
])  # fmt: skip
def test_a_cross_encoder_with_a_chat_template_is_asked_with_pairs_where_modules_say_so(name, said, tmp_path):
    """CrossEncoder of sentence-transformers 6.2 writes a pair by the template else: 0.93 became -0.20."""
    config = {"sentence_transformers": {"activation_fn": IDENTITY}}
    folder = changed({"base": "bert_seqcls", "config": config}, tmp_path / "model")
    (folder / name).parent.mkdir(exist_ok=True)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / name).write_text(json.dumps(tokenizer | said) if said else "{{ messages }}")
    with pytest.raises(ModelError, match=f"{Path(name).name} has a chat template, by which sentence-transformers would write each pair"):
        read_model(folder)
    (folder / "modules.json").write_text(json.dumps([{"name": "0", "path": "", "type": "sentence_transformers.base.modules.Transformer"}]))
    (folder / "config_sentence_transformers.json").write_text('{"model_type": "CrossEncoder"}')
    (folder / "sentence_bert_config.json").write_text('{"transformer_task": "sequence-classification"}')
    assert read_model(folder).spec.options["scores"] == "none"


def test_a_mark_of_a_cross_encoder_beside_another_head_changes_nothing(tmp_path):
    folder = changed({"base": "bert_tokencls", "config": {"sentence_transformers": {"activation_fn": IDENTITY}}}, tmp_path / "model")
    assert "scores" not in read_model(folder).spec.options


def test_numbers_have_the_shortest_decimals_that_tell_them_from_others():
    draw = np.random.default_rng(0)
    some = draw.integers(0, 1 << 32, 3000, np.uint64).astype(np.uint32).view(np.float32)  # of all sizes
    values = np.concatenate([draw.standard_normal(3000).astype(np.float32), some[np.isfinite(some)], np.float32([0, -0.0, 1, 0.1, 9.99])])
    assert list(map(repr, numbers(values))) == [repr(float(str(value))) for value in values]
    assert numbers(np.zeros(0, np.float32)) == []
