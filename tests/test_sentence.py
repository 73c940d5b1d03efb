"""Side files of sentence-transformers: what is read, what is refused, and in which words."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from decoders import write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from hepti_mpi.errors import InputError, ModelError
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.checkpoints.sentence import refuse_remains, tokenizer_changes
from hepti_mpi.models.families.nomicbert import nomic_fields
from hepti_mpi.models.inputs.requests import text_requests
from hepti_mpi.models.inputs.text import Item
from hepti_mpi.models.reference import forward
from hepti_mpi.models.tasks.heads import apply_head, embed
from hepti_mpi.reporting.inspection import inspection_lines
from hepti_mpi.weights import writing
from hepti_mpi.weights.store import Store

GOLDEN = Path(__file__).parent / "golden"
T = "sentence_transformers.models."
TRANSFORMER, POOLING = {"type": T + "Transformer", "path": "", "name": "0"}, {"type": T + "Pooling", "path": "1_Pooling", "name": "1"}
LIMITS, SETTINGS = "sentence_bert_config.json", "config_sentence_transformers.json"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(GOLDEN / "bert_sentence", tmp_path / "m"))


def options(folder, **files):
    """The options of the model with these side files, and the steps behind the pooling."""
    for name, value in files.items():
        path = folder / {"modules": "modules.json", "limits": LIMITS, "settings": SETTINGS, "pooling": "1_Pooling/config.json"}[name]
        path.write_text(json.dumps(value))
    spec = read_model(folder).spec
    return spec.options | {"steps": [step.kind for step in spec.back]}


EXPECTED = json.loads((GOLDEN / "sentences.json").read_text(encoding="utf-8"))


def change(folder, name, value):
    """Change a file as the golden cases say: keys to set, None, a whole document, or the shapes of tensors made by a formula."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if value is None:
        path.unlink()
    elif name.endswith(".safetensors"):
        made = {tensor: np.sin(np.arange(1, np.prod(shape) + 1)).astype(np.float32).reshape(shape) for tensor, shape in value.items()}
        save_file(made, path)
    elif isinstance(value, list):
        path.write_text(json.dumps(value))
    else:
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | value))


def embeddings(model, texts):
    """The embedding of each text, one by one in NumPy."""
    requests = text_requests(model.spec, model.files, [Item("a line", text) for text in texts], strict=True)
    weights, found = dict(model.weights()), []
    for request in requests:
        hidden = forward(model.spec, weights, embed(model.spec, weights, request.arrays), [request.rows])
        found.append(apply_head(model.spec, weights, model.files, hidden, [request], False)[0]["embedding"])
    return found


@pytest.mark.parametrize("case", EXPECTED["cases"], ids=lambda case: str(case["changes"])[:70])
def test_golden_embeddings(folder, case):
    for name, value in case["changes"].items():
        change(folder, name, value)
    for found, expected in zip(embeddings(read_model(folder), EXPECTED["texts"]), case["embeddings"], strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_what_is_read(folder):
    found = options(folder)
    wanted = {"pooling": "mean", "steps": ["normalize"], "max_tokens": 16, "prompt": "", "lower_case": False}
    assert {key: found.get(key) for key in wanted} == wanted
    assert not found.keys() & {"prompt_rows", "truncate_dim"}


MODULES = [
    ([TRANSFORMER], "modules Transformer are not supported"),
    ([], "expected one Transformer, then one Pooling"),
    ([TRANSFORMER, POOLING, POOLING | {"name": "2"}], "expected one Transformer, then one Pooling"),
    ([POOLING, TRANSFORMER], "expected one Transformer, then one Pooling"),
    ([TRANSFORMER, {"type": T + "Dense", "path": "2", "name": "2"}, POOLING], "Dense before the Pooling is not supported"),
    ([TRANSFORMER, {"type": "my_pooling.Pooling", "path": "1_Pooling", "name": "1"}], "module my_pooling.Pooling is not supported"),
    ([TRANSFORMER, POOLING, {"type": T + "LSTM", "path": "2", "name": "2"}], "module sentence_transformers.models.LSTM is not supported"),
    ([TRANSFORMER, POOLING | {"path": "../1_Pooling"}], "plain name"),
    ([TRANSFORMER | {"path": "/"}, POOLING], "plain name"),
    ([TRANSFORMER, POOLING | {"path": "/1_Pooling"}], "plain name"),
    ([TRANSFORMER | {"path": "gone"}, POOLING], "has no config.json"),
    ([TRANSFORMER, POOLING | {"name": "0"}], "two modules have one name"),
    ([TRANSFORMER, POOLING | {"odd": 1}], "'odd' is in no list of what this file may say"),
    ([{"type": 3}], "lacks its type"),
    (["x"], "lacks its type"),
    ({}, "expected an array"),
]


@pytest.mark.parametrize("modules, words", MODULES, ids=lambda value: str(value)[-40:])
def test_refused_modules(folder, modules, words):
    with pytest.raises(ModelError, match=words):
        options(folder, modules=modules)


@pytest.mark.parametrize("prefix", [
    "sentence_transformers.models.", "sentence_transformers.models.Pooling.", "sentence_transformers.models.pooling.",
    "sentence_transformers.sentence_transformer.modules.",
    "sentence_transformers.sentence_transformer.modules.pooling.",
])  # fmt: skip
def test_full_names_of_every_version(folder, prefix):
    transformer = TRANSFORMER | {"type": "sentence_transformers.base.modules.transformer.Transformer"}
    assert options(folder, modules=[transformer, POOLING | {"type": prefix + "Pooling"}])["steps"] == []


@pytest.mark.parametrize("own, path", [("./", "1_Pooling/"), (".", "./1_Pooling"), ("", "./1_Pooling/")])
def test_folders_of_modules_that_are_said_in_other_words(folder, own, path):
    found = options(folder, pooling={"pooling_mode": "max"}, modules=[TRANSFORMER | {"path": own}, POOLING | {"path": path}])
    assert found["pooling"] == "max"


def test_a_pooling_that_nothing_describes(folder):
    (folder / "1_Pooling/config.json").unlink()
    with pytest.raises(ModelError, match="^1_Pooling/config.json is missing or empty"):
        options(folder)


def test_poolings(folder):
    assert options(folder, pooling={"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True})["pooling"] == "cls+mean"
    assert options(folder, pooling={"pooling_mode": ["mean_sqrt_len_tokens", "lasttoken"]})["pooling"] == "mean_sqrt_len+lasttoken"
    assert options(folder, pooling={"pooling_mode": "max", "pooling_mode_cls_token": True})["pooling"] == "max"
    assert options(folder, pooling={"pooling_mode_max_tokens": False})["pooling"] == "mean"
    odd_ones = [{"pooling_mode": "median"}, {"pooling_mode": []}, {"pooling_mode": 3}, {"pooling_mode": "mean", "more": 1}]
    for odd in (*odd_ones, {"pooling_mode_more": True}):
        with pytest.raises(ModelError, match="^1_Pooling/config.json: .*(median|\\[\\]|3|more)"):
            options(folder, pooling=odd)


LIMITED = [
    ({"max_seq_length": 9}, 9),
    ({"max_seq_length": None}, 64),
    ({"max_seq_length": 9, "processor_kwargs": {"model_max_length": 7}}, 7),
    ({"tokenizer_args": {"model_max_length": 500}}, 500),  # said for this model: not bounded by its positions
    ({"processing_kwargs": {"text": {"max_length": 6}}}, 6),
    ({"processing_kwargs": {"text": {"max_length": 6}, "common": {"max_length": 5}}}, 5),
    ({"max_seq_length": 9, "processing_kwargs": {"text": {"truncation": False}}}, None),
    ({"max_seq_length": 16, "processing_kwargs": {"text": {"pad_to_multiple_of": 8}}}, 16),
    ({"max_seq_length": 14, "processing_kwargs": {"text": {"pad_to_multiple_of": 8, "padding": False}}}, 14),
    ({"processor_kwargs": {"model_max_length": 10**30}}, None),
]


@pytest.mark.parametrize("limits, expected", LIMITED, ids=str)
def test_limits(folder, limits, expected):
    assert options(folder, limits=limits)["max_tokens"] == expected


def test_inspect_says_where_texts_are_cut_off(folder, tmp_path):
    for name, limit, said in (("a", 9, "at most 64 rows (texts are cut off behind 9), "), ("b", None, "at most 64 rows, ")):
        change(folder, LIMITS, {"max_seq_length": limit})
        writing.write(tmp_path / f"{name}.h5", read_model(folder))
        with Store(tmp_path / f"{name}.h5") as store:
            assert said in inspection_lines(store)


def test_limits_have_many_names(folder):
    (folder / LIMITS).rename(folder / "sentence_xlm-roberta_config.json")
    assert options(folder)["max_tokens"] == 16
    (folder / LIMITS).write_text("{}")
    assert options(folder)["max_tokens"] == 16
    (folder / "sentence_roberta_config.json").write_text('{"max_seq_length": 12, "do_lower_case": true}')
    assert (options(folder)["max_tokens"], options(folder)["lower_case"]) == (12, True)


REFUSED = [
    ("limits", {"max_seq_length": 0}, "max_seq_length.* is 0, expected a positive integer"),
    ("limits", {"max_seq_length": 16.0}, "is 16.0, expected a positive integer"),
    ("limits", {"do_lower_case": "yes"}, "do_lower_case is 'yes'"),
    ("limits", {"max_length": 3}, "'max_length' is in no list"),
    ("limits", {"transformer_task": "fill-mask"}, "transformer_task is 'fill-mask', which is not supported"),
    ("limits", {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}}, "modality_config"),
    ("limits", {"module_output_name": "sentence_embedding"}, "module_output_name"),
    ("limits", {"processing_kwargs": {"text": {"add_special_tokens": False}}}, "add_special_tokens is False"),
    ("limits", {"processing_kwargs": {"text": {"return_attention_mask": False}}}, "return_attention_mask is False.* the other texts"),
    ("limits", {"max_seq_length": 14, "processing_kwargs": {"text": {"pad_to_multiple_of": 8}}}, "is 8, of which the 14 tokens"),
    ("limits", {"processing_kwargs": {"text": {"pad_to_multiple_of": "8"}}}, "pad_to_multiple_of is '8', expected a positive integer"),
    ("limits", {"tokenizer_args": {"padding_side": "left"}}, "padding_side left"),
    ("limits", {"processor_kwargs": {"tokenizer_type": "roberta"}}, "tokenizer_type is 'roberta', which is not supported: name a class"),
    ("limits", {"processor_kwargs": {"model_type": "roberta"}}, "model_type is 'roberta', which is not supported: name a class"),
    ("limits", {"tokenizer_args": {"vocab_file": "/x/vocab.txt"}}, "vocab_file is '/x/vocab.txt', which is not supported: texts are cut"),
    ("limits", {"model_args": {"use_safetensors": False}}, "use_safetensors is False"),
    ("limits", {"model_args": {"torch_dtype": "float16"}}, "torch_dtype is 'float16'"),
    ("limits", {"config_args": {"hidden_size": 3}}, "'hidden_size' is in no list"),
    ("settings", {"default_prompt_name": "other", "prompts": {}}, "default_prompt_name 'other' is not one of its prompts"),
    ("settings", {"truncate_dim": 0}, "truncate_dim is 0, expected a positive integer"),
    ("settings", {"model_type": "SparseEncoder"}, "model_type 'SparseEncoder' is not supported"),
    ("settings", {"novelty": 1}, "'novelty' is in no list of what this file may say"),
]


@pytest.mark.parametrize("file, value, words", REFUSED, ids=lambda value: str(value)[:60])
def test_refused_settings(folder, file, value, words):
    with pytest.raises(ModelError, match=words):
        options(folder, **{file: value})


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"])
def test_a_processor_that_would_be_loaded_in_place_of_the_tokenizer(folder, name):
    (folder / name).write_text('{"processor_class": null, "image_processor_type": "ViTImageProcessor"}')
    assert options(folder)["pooling"]
    (folder / name).write_text('{"processor_class": "BlipProcessor"}')
    with pytest.raises(ModelError, match=f"^{name}: processor_class is 'BlipProcessor', which sentence-transformers would load"):
        options(folder)


@pytest.mark.parametrize("kind, config", [("LayerNorm", {"dimension": 39}), ("Dense", {"in_features": 39, "out_features": 4})])
def test_modules_for_rows_of_another_width(folder, kind, config):
    entry = {"idx": 2, "name": "2", "path": "2_Other", "type": f"sentence_transformers.models.{kind}"}
    (folder / "2_Other").mkdir()
    (folder / "2_Other/config.json").write_text(json.dumps(config))
    (folder / "modules.json").write_text(json.dumps(json.loads((folder / "modules.json").read_text())[:2] + [entry]))
    with pytest.raises(ModelError, match="2_Other/config.json describes a module for 39 numbers, what comes to it has 40"):
        read_model(folder)


def test_padding_that_counts_as_text(folder):
    """Without a mask SentenceTransformer.encode answers otherwise beside a longer text."""
    path = folder / "tokenizer_config.json"
    said = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(said | {"model_input_names": ["input_ids", "token_type_ids"]}))
    with pytest.raises(ModelError, match="model_input_names has no attention_mask"):
        read_model(folder)


def test_prompts(folder):
    prompts = {"prompts": {"query": "the rain "}, "default_prompt_name": "query"}
    assert options(folder, settings=prompts)["prompt"] == "the rain "
    assert options(folder, settings={"default_prompt_name": "document"})["prompt"] == ""
    found = options(folder, settings=prompts, pooling={"include_prompt": False})
    assert found["prompt_rows"] == 3  # [CLS] the rain, without the [SEP] behind it


@pytest.mark.parametrize("said", [{"padding": "max_length"}, {"pad_to_multiple_of": 8}], ids=str)
def test_padding_that_counts_as_prompt(folder, said):
    """SentenceTransformer of 6.2 measures the prompt with its padding, and leaves out as many tokens of each text."""
    prompts = {"prompts": {"query": "the rain "}, "default_prompt_name": "query"}
    (key,) = said
    given = {"settings": prompts, "limits": {"max_seq_length": 64, "processing_kwargs": {"text": said}}}
    assert options(folder, **given)["prompt"] == "the rain "
    with pytest.raises(ModelError, match=f"^processing_kwargs: {key} is .*, by which sentence-transformers takes padding for a part of"):
        options(folder, pooling={"include_prompt": False})


def test_a_prompt_is_left_out_whoever_answers(folder, tmp_path):
    """All ranks together, and teams, which see numbers only."""
    options(folder, settings={"prompts": {"query": "the rain "}, "default_prompt_name": "query"}, pooling={"include_prompt": False})
    texts = [" ".join(EXPECTED["texts"][0].split()[: 1 + number % 5]) for number in range(40)]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    command = [sys.executable, "-m", "hepti_mpi"]
    subprocess.run([*command, "slice", folder, "m.h5"], check=True, capture_output=True, cwd=tmp_path)
    found = {}
    for objective in ("latency", "throughput"):
        words = ["--weights", "m.h5", "--input", "in.txt", "--output", f"{objective}.npz", "--batch-rows", "24", "--objective", objective]
        done = subprocess.run([*command, "run", *words, "--json"], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert ("teams" in json.loads(done.stdout.splitlines()[-1])) == (objective == "throughput")
        with np.load(tmp_path / f"{objective}.npz") as answers:
            found[objective] = answers["embedding"]
    np.testing.assert_allclose(found["latency"], embeddings(read_model(folder), texts), atol=2e-5)
    np.testing.assert_allclose(found["throughput"], found["latency"], atol=2e-5)


def dense(folder, config=None, **tensors):
    (folder / "2_Dense").mkdir(exist_ok=True)
    config = {"in_features": 40, "out_features": 6} | (config or {})
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
    if tensors:
        save_file({name.replace("_", "."): value for name, value in tensors.items()}, folder / "2_Dense" / "model.safetensors")
    modules = [TRANSFORMER, POOLING, {"type": T + "Dense", "path": "2_Dense", "name": "2"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    return read_model(folder)


def test_dense(folder):
    weight, bias = np.arange(240, dtype=np.float32).reshape(6, 40), np.arange(6, dtype=np.float32)
    model = dense(folder, linear_weight=weight, linear_bias=bias)
    stored = dict(model.weights())
    np.testing.assert_array_equal(stored["head.modules.0.weight"], weight)
    np.testing.assert_array_equal(stored["head.modules.0.bias"], bias)
    assert dense(folder, linear_weight=weight + 1, linear_bias=bias).source_hash != model.source_hash
    identity = {"activation_function": "torch.nn.modules.linear.Identity", "bias": False}
    assert dense(folder, identity, linear_weight=weight).spec.back[0].activation == "identity"
    for tensors in ({"linear_weight": weight}, {"linear_weight": weight.T.copy(), "linear_bias": bias}):
        with pytest.raises(ModelError, match="tensor linear.* is .*, its config.json asks for"):
            dense(folder, **tensors)
    with pytest.raises(ModelError, match="tensor extra does not belong to the module"):
        dense(folder, linear_weight=weight, linear_bias=bias, extra=bias)
    for odd in ({"activation_function": "torch.nn.modules.activation.PReLU"}, {"out_features": 0}, {"use_residual": 3}, {"odd": 1}):
        with pytest.raises(ModelError, match="^2_Dense/config.json: "):
            dense(folder, odd)


def test_dense_in_the_old_format_is_to_be_converted(folder):
    with pytest.raises(ModelError, match="2_Dense has no model.safetensors; load the model with sentence_transformers and save it"):
        dense(folder)


def test_the_transformer_in_a_folder_of_its_own(folder):
    plain = read_model(folder)
    (folder / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", LIMITS):
        (folder / name).rename(folder / "0_Transformer" / name)
    modules = [TRANSFORMER | {"path": "0_Transformer"}, POOLING, {"type": T + "Normalize", "path": "2_Normalize", "name": "2"}]
    assert options(folder, modules=modules) == plain.spec.options | {"steps": ["normalize"]}
    assert read_model(folder).files == plain.files


def test_a_classifier_of_pairs_and_a_folder_without_modules_are_no_sentence_models(folder):
    (folder / SETTINGS).write_text('{"model_type": "CrossEncoder"}')
    with pytest.raises(ModelError, match="a cross-encoder of 3 modules"):
        read_model(folder)
    (folder / SETTINGS).unlink()
    assert read_model(folder).spec.head == "sentence"
    (folder / "modules.json").unlink()
    for name in (LIMITS, "1_Pooling"):
        with pytest.raises(ModelError, match=f"has {name} of a sentence-transformers model, .* beside a modules.json; fetch"):
            read_model(folder)
        (folder / name).rename(folder / f"away-{name}")
    assert read_model(folder).spec.head != "sentence"


def test_a_part_of_a_model_with_modules_is_known_as_such(folder):
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", LIMITS):
        (folder / name).rename(inner / name)
    with pytest.raises(ModelError, match=f"0_Transformer is a part of a sentence-transformers model; name the folder .*: {folder}$"):
        read_model(inner)


@pytest.mark.parametrize("name, inside, refused", [
    ("2024_Results", "table.csv", False), ("1_Notes", "a.txt", False), ("1_Pooling", "config.json", True),
])  # fmt: skip
def test_a_folder_of_other_things_is_no_module(tmp_path, name, inside, refused):
    """Beside the files of a plain model, without modules.json."""
    (tmp_path / name).mkdir()
    (tmp_path / name / inside).write_text("{}")
    if refused:
        with pytest.raises(ModelError, match=f"has {name} of a sentence-transformers model"):
            refuse_remains(tmp_path)
    else:
        refuse_remains(tmp_path)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = {
    "modules.json": ["x"],
    "1_Pooling/config.json": ["pooling_mode", "include_prompt", "pooling_mode_cls_token"],
    LIMITS: ["max_seq_length", "do_lower_case", "processor_kwargs", "processing_kwargs", "modality_config", "model_args"],
    SETTINGS: ["prompts", "default_prompt_name", "truncate_dim", "model_type"],
    "tokenizer_config.json": ["added_tokens_decoder", "extra_special_tokens", "mask_token", "do_lower_case", "model_max_length", "x_token"],
    "special_tokens_map.json": ["additional_special_tokens", "mask_token"],
    "added_tokens.json": ["x"],
}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("name", KEYS)
def test_any_value(folder, name, data):
    value = data.draw(ANY_JSON)
    if data.draw(st.booleans()):
        value = {data.draw(st.sampled_from(KEYS[name])): value}
    (folder / name).write_text(json.dumps(value))
    try:
        read_model(folder)
    except ModelError as error:
        assert "\n" not in str(error)


PADDED_IN_FRONT = [  # and the first numbers of an embedding by SentenceTransformer of 6.2, beside longer texts as by itself
    ({"pooling_mode": "cls"}, [0.09058, 0.39891, 0.06685, -0.03106]),
    ({"pooling_mode": "weightedmean"}, [0.12981, 0.40953, 0.01365, -0.09974]),
    ({"pooling_mode": "cls", "include_prompt": False}, [0.09515, 0.52159, 0.08367, -0.12714]),
    ({"pooling_mode": "weightedmean", "include_prompt": False}, [0.129, 0.38362, 0.0173, -0.10929]),
    ({"pooling_mode": "mean", "include_prompt": False}, [0.12454, 0.41393, 0.01817, -0.11128]),
]


@pytest.mark.parametrize("change, wanted", PADDED_IN_FRONT, ids=str)
def test_padding_in_front_where_only_distances_count(tmp_path, change, wanted):
    folder = Path(shutil.copytree(GOLDEN / "qwen3_embedding", tmp_path / "qwen3"))
    path = folder / "1_Pooling/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    model = read_model(folder)
    assert not model.spec.generates and model.spec.options["prompt"] == "query : "
    np.testing.assert_allclose(embeddings(model, ["the cat sat"])[0][:4], wanted, atol=2e-5)


def test_texts_are_cut_off_where_sentence_transformers_does(tmp_path):
    """At max_position_embeddings, not where longrope's factors of short texts end: longer ones were cut off there, and are refused."""
    folder = write_folder("phi3", tmp_path)
    for name in ("modules.json", "1_Pooling/config.json", "tokenizer.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(GOLDEN / "qwen3_embedding" / name, folder / name)
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>", "model_max_length": 1000}))
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    model = read_model(folder)
    assert (model.spec.positions, model.spec.options["max_tokens"]) == (64, 128)
    with pytest.raises(InputError, match="has 71 tokens, the model takes 64"):
        text_requests(model.spec, model.files, [Item("a line", "the " * 70)], strict=True)
    said = {"n_embd": 40, "n_positions": 8192, "model_type": "nomic_bert", "num_attention_heads": 4}
    assert nomic_fields(said)["limit"] == 2048  # of transformers' class, which reads its own key alone


@pytest.mark.parametrize("case", ["qwen3_embedding", "gemma3_embedding"])
def test_embeddings_of_decoders(case):
    """EmbeddingGemma: rows see both ways, near ones in some layers, and its products behind the pooling have no bias."""
    wanted = json.loads((GOLDEN / case / "expected_text.json").read_text())
    np.testing.assert_allclose(embeddings(read_model(GOLDEN / case), wanted["texts"]), wanted["embeddings"], atol=1e-5)


def test_layers_that_see_both_ways(tmp_path):
    spec = read_model(GOLDEN / "gemma3_embedding").spec
    assert [(layer.attention.causal, layer.attention.window) for layer in spec.each()] == [(False, 4), (False, None)] * 2
    folder = Path(shutil.copytree(GOLDEN / "gemma3_embedding", tmp_path / "gemma3"))
    for name in ("modules.json", SETTINGS, LIMITS):
        (folder / name).unlink()
    for name in ("1_Pooling", "2_Dense", "3_Dense", "4_Normalize"):
        shutil.rmtree(folder / name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Gemma3ForCausalLM"]}))
    with pytest.raises(ModelError, match="rows of the model see those behind them, so that no text grows from them"):
        read_model(folder)


def test_what_is_put_around_texts_is_not_changed_by_settings():
    """In transformers 5.23 either key, even false, replaces what tokenizer.json puts around texts."""
    for value in (True, False):
        with pytest.raises(ModelError, match="^x.json: processor_kwargs: add_eos_token is .*: what is put around texts has to be in"):
            tokenizer_changes({"processor_kwargs": {"add_eos_token": value}}, "x.json")
