"""Reading model folders: golden ones, tables of bad ones, and damaged bytes."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from decoders import CASES as DECODERS
from decoders import values as decoder_values
from decoders import write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from hepti_mpi.errors import InputError, ModelError
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.checkpoints.random import CONFIGS, random_model
from hepti_mpi.models.families.family import spec_of
from hepti_mpi.models.families.imports import Import, stored
from hepti_mpi.models.families.registry import FAMILIES
from hepti_mpi.models.inputs.requests import text_requests
from hepti_mpi.models.inputs.text import Item
from hepti_mpi.models.reference import forward
from hepti_mpi.models.spec import ModelSpec, layer_weights, named_weights, outer_weights, shared_weights

GOLDEN = Path(__file__).parent / "golden"
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def bert(tmp_path):
    """A copy of the golden BERT that a test may damage."""
    return Path(shutil.copytree(GOLDEN / "bert", tmp_path / "bert"))


@pytest.fixture
def sentence(tmp_path):
    return Path(shutil.copytree(GOLDEN / "bert_sentence", tmp_path / "sentence"))


def edit(path: Path, **changes):
    """Set (or with ... remove) keys of a JSON file."""
    data = json.loads(path.read_text())
    for key, value in changes.items():
        if value is ...:
            data.pop(key, None)
        else:
            data[key] = value
    path.write_text(json.dumps(data))


def edit_tensors(folder: Path, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, folder / "model.safetensors")


def refused(folder: Path, *words: str):
    with pytest.raises(ModelError) as caught:
        list(read_model(folder).weights())
    text = str(caught.value)
    for word in words:
        assert word in text, text
    assert "\n" not in text and not text.endswith(".") and len(text) < 600, text


# ---- what is read


HEADS = {
    "bert": ("bert", "pooler", True),
    "bert_mlm": ("bert", "masked-words", False),
    "bert_seqcls": ("bert", "sequence-classes", True),
    "bert_tokencls": ("bert", "token-classes", False),
    "bert_sentence": ("bert", "sentence", False),
    "bert_sharded": ("bert", "pooler", True),
    "vit": ("vit", "pooler", True),
    "vit_cls": ("vit", "image-classes", False),
    "deit": ("vit", "image-classes", False),
    "modernbert": ("modernbert", "masked-words", False),
    "modernbert_seqcls": ("modernbert", "sequence-classes", False),
    "nomicbert": ("nomic_bert", "masked-words", False),
    "nomicbert_seqcls": ("nomic_bert", "sequence-classes", True),
    "mpnet": ("mpnet", "masked-words", False),
    "mpnet_seqcls": ("mpnet", "sequence-classes", False),
    "dinov2": ("dinov2", "image-classes", False),
    "dinov2_registers": ("dinov2", "none", False),
}


@pytest.mark.parametrize("case", HEADS)
def test_spec_and_weights(case):
    model = read_model(GOLDEN / case)
    assert (model.spec.family, model.spec.head, "head.pooler" in [step.name for step in model.spec.back]) == HEADS[case]
    assert model.spec.name == case
    assert ModelSpec.from_json(json.loads(json.dumps(model.spec.to_json()))) == model.spec
    expected = [(name, weight.shape) for name, weight in named_weights(model.spec)]
    read = []
    for name, array in model.weights():
        assert array.dtype == np.float32 and array.flags.c_contiguous
        read.append((name, array.shape))
    assert read == expected
    of_layers = sum(len(layer_weights(model.spec, number)) for number in range(model.spec.layers))
    assert len(expected) == len(outer_weights(model.spec)) + len(shared_weights(model.spec)) + of_layers


def test_layout_of_the_store():
    source, weights = load_file(GOLDEN / "bert" / "model.safetensors"), dict(read_model(GOLDEN / "bert").weights())
    first = "encoder.layer.1."
    q = source[first + "attention.self.query.weight"]  # [7 * 8, 56]
    np.testing.assert_array_equal(weights["layers.1.attention.q.weight"][2, 3], q[2 * 8 + 3])
    o = source[first + "attention.output.dense.weight"]  # [56, 7 * 8]
    np.testing.assert_array_equal(weights["layers.1.attention.o.weight"][2, 3], o[:, 2 * 8 + 3])
    np.testing.assert_array_equal(weights["layers.1.mlp.down.weight"], source[first + "output.dense.weight"].T)
    np.testing.assert_array_equal(weights["layers.1.mlp.up.weight"], source[first + "intermediate.dense.weight"])


def test_vit_positions_hold_class_token_and_patch_bias():
    source, weights = load_file(GOLDEN / "vit" / "model.safetensors"), dict(read_model(GOLDEN / "vit").weights())
    table = source["embeddings.position_embeddings"][0]
    np.testing.assert_array_equal(weights["embedding.positions"][0], table[0] + source["embeddings.cls_token"][0, 0])
    bias = source["embeddings.patch_embeddings.projection.bias"]
    np.testing.assert_array_equal(weights["embedding.positions"][1:], table[1:] + bias)


def test_hash_follows_config_and_weights(bert):
    before = read_model(bert).source_hash
    assert read_model(bert).source_hash == before and len(before) == 64
    edit(bert / "config.json", initializer_range=0.5)
    assert (changed := read_model(bert).source_hash) != before
    edit_tensors(bert, lambda t: t["pooler.dense.bias"].__setitem__(0, 7))
    assert read_model(bert).source_hash not in (before, changed)


def test_sharded_equals_its_own_tensors():
    folder = GOLDEN / "bert_sharded"
    weights = dict(read_model(folder).weights())
    merged = {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}
    np.testing.assert_array_equal(weights["embedding.words"], merged["embeddings.word_embeddings.weight"])


# ---- names of other versions


def rename_keys(tensors, change):
    for name in list(tensors):
        tensors[change(name)] = tensors.pop(name)


def same_weights(folder: Path, other: Path):
    one, two = dict(read_model(folder).weights()), dict(read_model(other).weights())
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_gamma_beta_and_prefix(bert):
    def old(name):
        return "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    edit_tensors(bert, lambda t: rename_keys(t, old))
    same_weights(bert, GOLDEN / "bert")


@pytest.mark.parametrize("wrapper", ["module.", "model.", "0.auto_model.", "module.bert.", "_orig_mod.model.bert."])
def test_saved_inside_another_module(bert, wrapper):
    edit_tensors(bert, lambda t: rename_keys(t, lambda name: wrapper + name))
    same_weights(bert, GOLDEN / "bert")


def test_saved_inside_another_module_but_for_the_head(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "bert_seqcls", tmp_path / "cls"))
    edit_tensors(folder, lambda t: rename_keys(t, lambda name: "model." + name if name.startswith("bert.") else name))
    same_weights(folder, GOLDEN / "bert_seqcls")


def test_two_models_in_one_checkpoint_are_refused(bert):
    edit_tensors(bert, lambda t: t.update({f"teacher.{name}": value for name, value in t.items()}))
    refused(bert, "tensors do not belong", "teacher.")


def test_heads_that_are_left_over(bert):
    zeros = {"classifier.weight": (2, 56), "qa_outputs.bias": (2,), "cls.predictions.bias": (120,)}
    edit_tensors(bert, lambda t: t.update({name: np.full(shape, np.nan, np.float32) for name, shape in zeros.items()}))
    same_weights(bert, GOLDEN / "bert")
    edit(bert / "config.json", architectures=["BertForTokenClassification"])
    refused(bert, "1 of the tensors", "classifier.bias")


def test_float64(bert):
    edit_tensors(bert, lambda t: t.update({name: value.astype(np.float64) for name, value in t.items()}))
    same_weights(bert, GOLDEN / "bert")
    edit_tensors(bert, lambda t: t["pooler.dense.weight"].__setitem__((3, 4), 1e200))
    refused(bert, "pooler.dense.weight", "1 value too large for float32")


@pytest.mark.parametrize("bias", ["cls.predictions.bias", "cls.predictions.decoder.bias"])
def test_which_bias_of_the_words(tmp_path, bias):
    folder = Path(shutil.copytree(GOLDEN / "bert_mlm", tmp_path / "mlm"))
    edit_tensors(folder, lambda t: (t.pop("cls.predictions.bias"), t.__setitem__(bias, np.arange(131, dtype=np.float32))))
    assert dict(read_model(folder).weights())["head.words.bias"][130] == 130
    if bias.endswith("decoder.bias"):
        edit_tensors(folder, lambda t: t.__setitem__("cls.predictions.bias", np.zeros(131, np.float32)))
        assert dict(read_model(folder).weights())["head.words.bias"][130] == 130


def test_module_names_of_transformers_5(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "vit_cls", tmp_path / "vit"))
    pairs = (
        (".encoder.layer.", ".layers."), ("attention.attention.query", "attention.q_proj"), ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"), ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"),
    )  # fmt: skip

    def new(name):
        for old, other in pairs:
            name = name.replace(old, other)
        return name

    edit_tensors(folder, lambda t: rename_keys(t, new))
    same_weights(folder, GOLDEN / "vit_cls")


def test_dropped_on_purpose(bert):
    def add(tensors):
        tensors["embeddings.position_ids"] = np.arange(512, dtype=np.int64)[None]
        tensors["cls.seq_relationship.weight"] = np.zeros((2, 56), np.float32)

    edit_tensors(bert, add)
    same_weights(bert, GOLDEN / "bert")


def test_no_pooler_means_no_head(bert):
    edit_tensors(bert, lambda t: [t.pop(f"pooler.dense.{part}") for part in ("weight", "bias")])
    spec = read_model(bert).spec
    assert (spec.head, spec.back) == ("none", ())


@pytest.mark.parametrize("offset, tied", [(0.0, True), (1.0, False)])
def test_tied_only_when_equal(tmp_path, offset, tied):
    folder = Path(shutil.copytree(GOLDEN / "bert_mlm", tmp_path / "mlm"))

    def repeat(tensors):
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"] + np.float32(offset)
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]

    edit_tensors(folder, repeat)
    model = read_model(folder)
    assert model.spec.back[-1].tied is tied
    assert ("head.words.weight" in dict(model.weights())) is not tied


def test_untied_without_weight_is_refused(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "bert_mlm", tmp_path / "mlm"))
    edit(folder / "config.json", tie_word_embeddings=False)
    refused(folder, "tie_word_embeddings is false", "cls.predictions.decoder.bias, which is missing", "cls.predictions.bias is meant")
    edit_tensors(folder, lambda t: rename_keys(t, lambda name: name.replace("predictions.bias", "predictions.decoder.bias")))
    refused(folder, "tensor cls.predictions.decoder.weight is missing", "config.json does not say", '"tie_word_embeddings": true')


@pytest.mark.parametrize("case", ["llama3", "qwen2", "qwen3", "gemma2"])
def test_words_are_tied_where_transformers_ties_them(case, tmp_path):
    """Where config.json says nothing of it the class decides: a Llama's output words, which are missing here, would be random numbers."""
    folder = write_folder(case, tmp_path)
    edit(folder / "config.json", tie_word_embeddings=True)
    assert read_model(folder).spec.back[-1].tied
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    if case.startswith("gemma"):
        assert read_model(folder).spec.back[-1].tied
    else:
        refused(folder, "tensor lm_head.weight is missing", "config.json does not say", '"tie_word_embeddings": true')


def test_words_of_a_gpt_neox_that_are_its_input_words_or_of_no_use(tmp_path):
    """As everywhere else, output words that repeat the input words, or that embeddings have no use for, may lie in the file."""
    folder = write_folder("gpt_neox", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    copy, original = (next(name for name in tensors if name.endswith(end)) for end in ("lm_head.weight", "embed_in.weight"))
    save_file(tensors | {copy: tensors[original]}, folder / "model.safetensors")
    edit(folder / "config.json", tie_word_embeddings=True)
    assert read_model(folder).spec.back[-1].tied


LIMITS = [  # model_max_length, and the tokens of a text of 30 that transformers' pipeline of token classes takes
    ({"model_max_length": 9}, 9, True), ({"model_max_length": 9, "truncation_side": "left"}, 9, True),
    ({"model_max_length": ..., "max_len": 9}, 9, True), ({"model_max_length": 64}, 30, False), ({"model_max_length": 1e30}, 30, False),
    ({"model_max_length": 65}, 30, False), ({"model_max_length": -1}, 30, False), ({"model_max_length": None}, 30, False),
]  # fmt: skip


@pytest.mark.parametrize("said, rows, cut", LIMITS, ids=str)
def test_texts_are_cut_off_for_token_classes_alone(tmp_path, said, rows, cut):
    """As transformers' pipelines do; one of sentence-transformers' modules is another matter."""
    text = [Item("a text", "a " * 14 + "b " * 14)]
    for case, tokens in (("bert_tokencls", rows), ("bert_seqcls", 30)):
        folder = Path(shutil.copytree(GOLDEN / case, tmp_path / case))
        edit(folder / "tokenizer_config.json", **said)
        model = read_model(folder)
        (request,) = text_requests(model.spec, model.files, text, True)
        assert (request.rows, request.truncated) == (tokens, cut and case == "bert_tokencls")
        kept = [row for row, word in zip(request.keep, request.arrays["ids"]) if word == request.arrays["ids"][1]]
        assert len(kept) == (7 if request.truncated else 14)


def test_a_processor_that_config_names(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "vit", tmp_path / "vit"))
    edit(folder / "config.json", image_processor_type="NoneOfAll")
    assert read_model(folder).spec.embedding == "patches"  # the other file goes before
    edit(folder / "preprocessor_config.json", image_processor_type=None)
    refused(folder, "the image processor NoneOfAll is not supported")


def test_a_config_of_timm_names_no_processor(tmp_path):
    """By pretrained_cfg AutoImageProcessor looks for the kind in config.json, and pictures of CLIP were prepared as those of ViT."""
    folder = Path(shutil.copytree(GOLDEN / "vit", tmp_path / "vit"))
    for value in ({"mean": [0, 0, 0]}, None):
        edit(folder / "config.json", pretrained_cfg=value)
        refused(folder, f"config.json: pretrained_cfg is {value!r}", "the kind of image processor that preprocessor_config.json names")


def test_heads_of_a_qwen2_as_wide_as_config_says(tmp_path):
    """It is a Llama with biases of Q, K and V, whatever the width of its heads; transformers reads head_dim, too."""
    folder = write_folder("qwen2", tmp_path)
    shapes = {name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()}
    wide = {name: shape if ".self_attn." not in name else (2 * shape[0], *shape[1:]) for name, shape in shapes.items()}
    wide |= {name: (shape[0], 2 * shape[1]) for name, shape in shapes.items() if name.endswith("o_proj.weight")}
    tensors = {name: decoder_values(name, shape) for name, shape in wide.items()}
    save_file(tensors, folder / "model.safetensors")
    edit(folder / "config.json", head_dim=16)
    llama = Path(shutil.copytree(folder, tmp_path / "llama"))
    edit(llama / "config.json", model_type="llama", architectures=["LlamaForCausalLM"], attention_bias=True)
    zeros = {name.replace("weight", "bias"): np.zeros(48, np.float32) for name in tensors if name.endswith("o_proj.weight")}
    save_file(tensors | zeros, llama / "model.safetensors")
    rows = np.random.default_rng(3).standard_normal((9, 48)).astype(np.float32)
    one, other = (forward(model.spec, dict(model.weights()), rows, [9]) for model in map(read_model, (folder, llama)))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_no_qkv_bias_gives_zeros(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "vit", tmp_path / "vit"))
    edit(folder / "config.json", qkv_bias=False)
    refused(folder, "9 tensors do not belong", "query.bias")
    biases = [f".{which}.bias" for which in ("query", "key", "value")]
    edit_tensors(folder, lambda t: [t.pop(name) for name in list(t) if any(name.endswith(b) for b in biases)])
    weights = dict(read_model(folder).weights())
    assert weights["layers.2.attention.k.bias"].shape == (6, 8) and not weights["layers.2.attention.k.bias"].any()


# ---- what is refused


CONFIG_CASES = [
    ({"model_type": "mamba"}, "'mamba'", ", ".join(FAMILIES)),
    ({"model_type": ...}, "has no model_type"),
    ({"model_type": ["bert"]}, "supported"),
    ({"hidden_act": "relu2"}, "'relu2'", "gelu, gelu_new"),
    ({"hidden_act": None}, "hidden_act None"),
    ({"hidden_size": 0}, "hidden_size is 0"),
    ({"hidden_size": True}, "hidden_size is True"),
    ({"hidden_size": 57}, "hidden 57", "7 heads"),
    ({"hidden_size": 10**30}, "positive integer"),
    ({"num_hidden_layers": 10**6}, "1000000 layers", "tensors in all"),
    ({"num_hidden_layers": 4}, "16 of the tensors", "encoder.layer.3"),
    ({"num_hidden_layers": 2}, "16 tensors do not belong", "encoder.layer.2"),
    ({"intermediate_size": 102}, "shape [101, 56]", "[102, 56]"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
    ({"layer_norm_eps": "1e-12"}, "layer_norm_eps"),
    ({"position_embedding_type": "relative_key"}, "'relative_key'"),
    ({"is_decoder": True}, "is_decoder"),
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "quantization_config", "not supported"),
    ({"auto_map": {"AutoModel": "modeling_x.X"}}, "auto_map", "never run"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ({"model_name": "qwen2"}, "model_name is 'qwen2', by which transformers passes over any tokenizer_class"),
    ({"pinyin_map_len": 32}, "'pinyin_map_len' is in no list", "take it out"),
    ({"add_cross_attention": True}, "add_cross_attention"),
    ({"architectures": ["BertForQuestionAnswering"]}, "'BertForQuestionAnswering'", "BertForMaskedLM"),
    ({"architectures": "BertForSequenceClassification"}, "architectures is 'BertForSequenceClassification'", "expected a list"),
    ({"architectures": ["BertForSequenceClassification"], "id2label": {"1": "a"}}, "id2label"),
    ({"architectures": ["BertForSequenceClassification"], "id2label": {}}, "no labels"),
    ({"architectures": ["BertForSequenceClassification"], "id2label": [1]}, "id2label"),
    ({"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": None}}, "id2label holds None"),
    ({"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a"}, "problem_type": "single_label_classification"},
     "takes two labels or more"),
    ({"architectures": ["BertForSequenceClassification"], "num_labels": 10**7}, "num_labels is 10000000"),
    ({"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b"}, "num_labels": 3},
     "num_labels is 3 and id2label holds 2 labels"),
    ({"architectures": ["BertForSequenceClassification"]}, "classifier.weight"),
]


@pytest.mark.parametrize("case", CONFIG_CASES, ids=str)
def test_refused_config(bert, case):
    edit(bert / "config.json", **case[0])
    refused(bert, *case[1:])


def test_keys_without_influence(bert):
    """What transformers 4 and 5, sentence-transformers and trainers write into config.json."""
    edit(bert / "config.json", **{
        "_name_or_path": "x", "_num_labels": 5, "gradient_checkpointing": False, "use_cache": True, "torch_dtype": "float32",
        "dtype": "bfloat16", "transformers_version": "4.6.0", "classifier_dropout": 0.1, "xla_device": True, "directionality": "bidi",
        "task_specific_params": {"x": {}}, "pooler_fc_size": 768, "pooler_type": "first_token_transform", "max_length": 20,
        "eos_token_ids": 0, "output_past": True, "pad_token_id": 0, "chunk_size_feed_forward": 4, "output_hidden_states": True,
        "finetuning_task": "mnli", "top_p": 1.0, "use_fast": True,
        "transformers.js_config": {"dtype": "q8"}, "unsloth_version": "2025.1", "matryoshka_dimensions": [256, 128],
        "pruned_heads": {}, "quantization_config": None, "nobody_knows_this": None, "position_embedding_type": "absolute",
        "hidden_dropout_prob": 0.5, "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}, "tokenizer_class": None,
    })  # fmt: skip
    same_weights(bert, GOLDEN / "bert")


@pytest.mark.parametrize(
    "text, word", [("", "not valid JSON"), ("[]", "expected an object"), ("[" * 99999, "not valid JSON"), ("\xff", "JSON")]
)
def test_config_that_is_no_object(bert, text, word):
    (bert / "config.json").write_bytes(text.encode("latin-1"))
    refused(bert, "config.json", word)


VIT_CASES = [
    ({"image_size": [20, 24]}, "only squares"),
    ({"image_size": 2}, "less than patch_size 4"),
    ({"image_size": 8388608, "patch_size": 1}, "positions"),
    ({"patch_size": 5}, "shape"),
    ({"pooler_act": "relu"}, "pooler_act"),
    ({"head_dim": 16}, "head_dim is 16"),
    ({"qkv_bias": "yes"}, "qkv_bias"),
    ({"architectures": ["ViTForMaskedImageModeling"]}, "ViTForImageClassification"),
]


@pytest.mark.parametrize("case", VIT_CASES, ids=str)
def test_refused_vit_config(tmp_path, case):
    folder = Path(shutil.copytree(GOLDEN / "vit", tmp_path / "vit"))
    edit(folder / "config.json", **case[0])
    refused(folder, *case[1:])


def test_distillation_token_is_refused():
    refused(GOLDEN / "deit_distilled", "distillation token", "deit.embeddings.distillation_token")


def test_missing_things(bert, tmp_path):
    refused(tmp_path / "nowhere", "nowhere not found")
    refused(bert / "config.json", "is not a folder")
    with pytest.raises(ModelError, match="not found"):  # the operating system raises for such a name
        read_model(tmp_path / ("x" * 5000))
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    refused(bert, "only pytorch_model.bin", "never unpickled", 'python -c "import torch', "'model.safetensors'")
    (bert / "pytorch_model.bin").rename(bert / "tf_model.h5")
    refused(bert, "only tf_model.h5", "save_pretrained")
    (bert / "tf_model.h5").rename(bert / "model.fp16.safetensors")
    refused(bert, "only model.fp16.safetensors", "rename")
    (bert / "model.fp16.safetensors").unlink()
    refused(bert, "neither model.safetensors nor")
    (bert / "onnx").mkdir()
    (bert / "onnx" / "model.onnx").write_bytes(b"")
    refused(bert, "only onnx/model.onnx, a graph whose weights are not read")
    (bert / "m.Q4_0.gguf").write_bytes(b"GGUF")
    refused(bert, f"only m.Q4_0.gguf; name that file instead of its folder: python -m hepti_mpi slice {bert}/m.Q4_0.gguf")
    (bert / "config.json").unlink()
    refused(bert, "has no config.json")
    (bert / "adapter_config.json").write_text("{}")
    refused(bert, "has adapter_config.json: an adapter")


@pytest.mark.parametrize("value, count", [(np.nan, 1), (np.inf, 1)])
def test_values_that_are_not_finite(bert, value, count):
    edit_tensors(bert, lambda t: t["pooler.dense.weight"].__setitem__((3, 4), value))
    refused(bert, "pooler.dense.weight", f"{count} value not finite (NaN or infinite)", "fetch or save it again")


def test_wrong_type_and_unknown_tensor(bert):
    edit_tensors(bert, lambda t: t.update({"pooler.dense.bias": np.zeros(56, np.int32), "evil\n\x1b[31m": np.zeros(1, np.float32)}))
    refused(bert, "1 tensor does not belong", "evil ?[31m")
    edit_tensors(bert, lambda t: t.pop("evil\n\x1b[31m"))
    refused(bert, "pooler.dense.bias", "I32", "float16")


def test_two_names_of_one_weight(bert):
    edit_tensors(bert, lambda t: t.update({"bert.pooler.dense.bias": t["pooler.dense.bias"]}))
    refused(bert, "two names of the same weight")


def test_adapters_are_refused(bert):
    (bert / "adapter_config.json").write_text("{}")
    refused(bert, "adapter_config.json: an adapter", "merge_and_unload")


def test_parts_of_a_distributed_checkpoint_beside_the_weights(bert):
    """transformers reads both, and which of two tensors of one name counts is left to the order of the files in the folder."""
    shutil.copy(bert / "model.safetensors", bert / "shard-00001-model-00001-of-00002.safetensors")
    refused(bert, "has shard-00001-model-00001-of-00002.safetensors, a part of a distributed checkpoint", "save_pretrained")
    (bert / "model.safetensors").unlink()
    refused(bert, "a part of a distributed checkpoint")
    (bert / "shard-00001-model-00001-of-00002.safetensors").rename(bert / "shard-1.safetensors")
    refused(bert, "neither model.safetensors nor")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "modules.json", "1_Pooling/config.json", "tokenizer.json",
                                  "sentence_bert_config.json"])  # fmt: skip
def test_pointers_of_git_lfs(tmp_path, name):
    sentence = Path(shutil.copytree(GOLDEN / "bert_sentence", tmp_path / "sentence"))
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    (sentence / name).write_text(pointer + "size 90868376\n")
    refused(sentence, f"{name} is a pointer of Git LFS", "git lfs pull")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "modules.json", "1_Pooling/config.json", "1_Pooling",
                                  "tokenizer.json", "sentence_bert_config.json"])  # fmt: skip
def test_links_that_lead_nowhere(tmp_path, name):
    """A snapshot of huggingface_hub that was copied without what its links lead to is not a model that lacks these files."""
    sentence = Path(shutil.copytree(GOLDEN / "bert_sentence", tmp_path / "sentence"))
    (sentence / name).rename(tmp_path / "moved")
    (sentence / name).symlink_to("../../blobs/4d7a21")
    refused(sentence, f"{name}", "is a link to ../../blobs/4d7a21, where nothing is", "cp -rL")


def test_labels_that_are_numbers(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "bert_seqcls", tmp_path / "cls"))
    edit(folder / "config.json", id2label={"2": "c", "0": 5, "1": "b"})
    assert read_model(folder).spec.labels == (5, "b", "c")


INDEX_CASES = [
    ({"weight_map": {"a": "../x.safetensors"}}, "plain name"),
    ({"weight_map": {"a": "/etc/x.safetensors"}}, "plain name"),
    ({"weight_map": {"a": "x" * 5000 + ".safetensors"}}, "plain name"),
    ({"weight_map": {"a": "x.bin"}}, "plain name"),
    ({"weight_map": {"a": 3}}, "plain name"),
    ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors, which is not in"),
    ({"weight_map": {"a": "one.safetensors"}}, "disagree about"),
    ({"weight_map": {}}, "no weight_map"),
    ({"weight_map": [1]}, "no weight_map"),
    ([], "expected an object"),
]


@pytest.mark.parametrize("index, word", INDEX_CASES, ids=lambda v: str(v)[:40])
def test_refused_index(bert, index, word):
    (bert / "model.safetensors").rename(bert / "one.safetensors")
    (bert / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(bert, word)


# ---- damaged bytes


def header(data: dict | bytes, length: int | None = None) -> bytes:
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


F32 = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}
HOSTILE = {
    "empty": b"",
    "short": b"\x01\x02",
    "no header": header(b""),
    "endless header": header(b"{}", (1 << 64) - 1),
    "100 MB header": header(b"{}", 99_000_000),
    "not json": header(b"{" * 50),
    "deep": header(b"[" * 50000),
    "terabytes": header({"a": F32}),
    "overflow": header({"a": F32 | {"shape": [1 << 62, 1 << 62]}}),
    "negative": header({"a": F32 | {"shape": [-1]}}),
    "backwards": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}) + b"0000",
    "overlap": header({k: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for k in "ab"}) + b"0000",
    "wrong length": header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}) + b"0000",
    "unknown type": header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}) + b"0000",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_safetensors(bert, data):
    (bert / "model.safetensors").write_bytes(data)
    refused(bert, "not a sound safetensors file")


def test_truncated_safetensors(bert):
    whole = (bert / "model.safetensors").read_bytes()
    for keep in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        (bert / "model.safetensors").write_bytes(whole[:keep])
        refused(bert, "not a sound safetensors file")
    (bert / "model.safetensors").write_bytes(whole + b"\0")
    refused(bert, "not a sound safetensors file")


def survives(folder: Path):
    """Reading may succeed or raise ModelError, nothing else."""
    try:
        for _, array in read_model(folder).weights():
            assert np.isfinite(array).all()
    except ModelError as error:
        assert "\n" not in str(error)


@FUZZ
@given(data=st.data())
@pytest.mark.parametrize("name, window", [("model.safetensors", 6000), ("config.json", 10**6)])
def test_flipped_bytes(bert, name, window, data):
    whole = bytearray((GOLDEN / "bert" / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, min(window, len(whole)) - 1))] = data.draw(st.integers(0, 255))
    (bert / name).write_bytes(whole)
    survives(bert)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CONFIG_KEYS = sorted(json.loads((GOLDEN / "bert" / "config.json").read_text()) | {"id2label": 0, "num_labels": 0, "problem_type": 0})


@FUZZ
@given(key=st.sampled_from(CONFIG_KEYS), value=ANY_JSON, head=st.sampled_from(sorted(FAMILIES["bert"].architectures)))
def test_any_value_in_config(bert, key, value, head):
    shutil.copy(GOLDEN / "bert" / "config.json", bert / "config.json")
    edit(bert / "config.json", **({"architectures": [head]} | {key: value}))
    survives(bert)


# ---- families and random models


@pytest.mark.parametrize("kind", FAMILIES)
def test_tables_cover_every_weight(kind):
    family = FAMILIES[kind]
    said = next((case for case in DECODERS.values() if case["model_type"] == kind), {})  # of encoders all sizes have defaults
    for task in family.architectures.values():
        for tied in (True, False):
            fields = family.fields(said)
            spec = spec_of(family, "x", task.head, fields, labels=("a",), back=task.steps(fields, ("a",), tied))
            assert {weight.name for _, weight in named_weights(spec)} <= family.sources.keys()


def test_stored_without_tensors_is_zero():
    assert not stored(Import("x", (2, 3), "heads", ()), []).any()


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-llama", "random:tiny-vit", "tiny-roberta", "tiny-distilbert", "tiny-electra"])
def test_random_models(name):
    model = random_model(name)
    weights = dict(model.weights())
    assert {n: w.shape for n, w in named_weights(model.spec)} == {n: w.shape for n, w in weights.items()}
    assert all(w.dtype == np.float32 and w.flags.c_contiguous for w in weights.values())
    again = dict(random_model(name).weights())
    assert all(np.array_equal(weights[n], again[n]) for n in weights)
    other = random_model(name, seed=1)
    assert other.source_hash != model.source_hash
    assert not np.array_equal(dict(other.weights())["layers.0.mlp.up.weight"], weights["layers.0.mlp.up.weight"])
    assert weights["layers.2.mlp.norm.weight"].tolist() == [1.0] * 56
    assert 0.015 < weights["layers.1.mlp.up.weight"].std() < 0.025


def test_random_sizes():
    specs = {name: random_model(name).spec for name in CONFIGS}
    large = specs["bert-large"]
    assert (large.layers, large.hidden, large.heads, large.ffn, large.positions, large.head) == (24, 1024, 16, 4096, 512, "pooler")
    rotary = {name: spec.positions for name, spec in specs.items() if spec.layer(0).attention.rotary and not spec.generates}
    assert rotary == {"modernbert-base": 8192, "nomicbert": 2048}
    tables = [spec for name, spec in specs.items() if spec.embedding == "tokens" and name not in rotary and not spec.generates]
    assert {spec.positions for spec in tables} == {512}
    small = specs["smollm2-135m"]
    assert (small.layers, small.hidden, small.heads, small.kv_heads, small.positions) == (30, 576, 9, 3, 8192)
    assert (specs["dinov2-base"].positions, specs["dinov2-base"].kinds[0].scaled) == (257, True)
    electra = specs["electra-small"]
    assert (electra.hidden, electra.heads, electra.ffn, electra.front[-1].inner) == (256, 4, 1024, 128)
    assert (specs["vit-base"].positions, len(specs["vit-base"].labels), specs["vit-base"].labels[7]) == (197, 1000, "LABEL_7")
    assert (specs["tiny-vit"].positions, len(specs["tiny-vit"].labels), specs["tiny-bert"].numbers("ids")) == (26, 5, 120)


def test_unknown_random_model():
    with pytest.raises(ModelError, match="no random model 'gpt'; there are random:bert-base, .*random:tiny-vit"):
        random_model("random:gpt")


def test_errors_are_the_users():
    assert issubclass(ModelError, Exception) and not issubclass(ModelError, InputError)
