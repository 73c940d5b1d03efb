"""Families whose layers are not BERT's, as people have them: configurations as they are published, other prefixes, half precision."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hepti_mpi.errors import ModelError
from hepti_mpi.models import sidefiles
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.families.family import spec_of
from hepti_mpi.models.families.imports import resized
from hepti_mpi.models.families.registry import FAMILIES

GOLDEN = Path(__file__).parent / "golden"
CASES = {"modernbert": "model.", "nomicbert": "nomic_bert.", "mpnet": "mpnet.", "dinov2": "dinov2.", "dinov2_registers": ""}
PUBLISHED = {
    "answerdotai/ModernBERT-base": """{"architectures": ["ModernBertForMaskedLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 50281, "classifier_activation": "gelu", "classifier_bias": false, "classifier_dropout": 0.0,
        "classifier_pooling": "mean", "cls_token_id": 50281, "decoder_bias": true, "deterministic_flash_attn": false,
        "embedding_dropout": 0.0, "eos_token_id": 50282, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0,
        "gradient_checkpointing": false, "hidden_activation": "gelu", "hidden_size": 768, "initializer_cutoff_factor": 2.0,
        "initializer_range": 0.02, "intermediate_size": 1152, "layer_norm_eps": 1e-05, "local_attention": 128, "local_rope_theta": 10000.0,
        "max_position_embeddings": 8192, "mlp_bias": false, "mlp_dropout": 0.0, "model_type": "modernbert", "norm_bias": false,
        "norm_eps": 1e-05, "num_attention_heads": 12, "num_hidden_layers": 22, "pad_token_id": 50283,
        "position_embedding_type": "absolute", "repad_logits_with_grad": false, "reference_compile": null, "sep_token_id": 50282,
        "sparse_pred_ignore_index": -100, "sparse_prediction": false, "tie_word_embeddings": true, "torch_dtype": "float32",
        "transformers_version": "4.47.0.dev0", "vocab_size": 50368}""",
    "nomic-ai/nomic-embed-text-v1": """{"activation_function": "swiglu", "architectures": ["NomicBertModel"], "attn_pdrop": 0.0,
        "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"}, "bos_token_id": null,
        "causal": false, "dense_seq_output": true, "embd_pdrop": 0.0, "eos_token_id": null, "fused_bias_fc": true,
        "fused_dropout_add_ln": true, "initializer_range": 0.02, "layer_norm_epsilon": 1e-12, "max_trained_positions": 2048,
        "mlp_fc1_bias": false, "mlp_fc2_bias": false, "model_type": "nomic_bert", "n_embd": 768, "n_head": 12, "n_inner": 3072,
        "n_layer": 12, "n_positions": 8192, "pad_vocab_size_multiple": 64, "parallel_block": false, "parallel_block_tied_norm": false,
        "prenorm": false, "qkv_proj_bias": false, "reorder_and_upcast_attn": false, "resid_pdrop": 0.0, "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": false, "rotary_emb_scale_base": null, "rotary_scaling_factor": 2,
        "scale_attn_by_inverse_layer_idx": false, "scale_attn_weights": true, "summary_activation": null, "summary_first_dropout": 0.0,
        "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true, "torch_dtype": "float32",
        "transformers_version": "4.34.0", "type_vocab_size": 2, "use_cache": true, "use_flash_attn": true, "use_rms_norm": false,
        "use_xentropy": true, "vocab_size": 30528}""",
    "facebook/dinov2-base": """{"apply_layernorm": true, "architectures": ["Dinov2Model"], "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0, "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "hidden_size": 768, "image_size": 518,
        "initializer_range": 0.02, "layer_norm_eps": 1e-06, "layerscale_value": 1.0, "mlp_ratio": 4, "model_type": "dinov2",
        "num_attention_heads": 12, "num_channels": 3, "num_hidden_layers": 12, "out_features": ["stage12"], "out_indices": [12],
        "patch_size": 14, "qkv_bias": true, "reshape_hidden_states": true, "stage_names": ["stem", "stage1"], "torch_dtype": "float32",
        "transformers_version": "4.32.0.dev0", "use_swiglu_ffn": false}""",
    "microsoft/mpnet-base": """{"architectures": ["MPNetForMaskedLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0,
        "eos_token_id": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
        "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "model_type": "mpnet",
        "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "relative_attention_num_buckets": 32,
        "vocab_size": 30527}""",
}  # fmt: skip
SIZES = {  # layers, kinds of them, heads, columns, rows
    "answerdotai/ModernBERT-base": (22, 3, 12, 1152, 8192), "nomic-ai/nomic-embed-text-v1": (12, 1, 12, 3072, 2048),
    "facebook/dinov2-base": (12, 1, 12, 3072, 1370), "microsoft/mpnet-base": (12, 1, 12, 3072, 512),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations(name):
    config = json.loads(PUBLISHED[name])
    family = FAMILIES[config["model_type"]]
    sidefiles.check("config.json", {key: value for key, value in config.items() if value is not None}, {**sidefiles.CONFIG, **family.keys})
    fields = family.fields(config)
    task = family.architectures[config["architectures"][0]]
    spec = spec_of(family, "x", task.head, fields, labels=("a",), back=task.steps(fields, ("a",), True))
    assert (spec.layers, len(spec.kinds), spec.heads, spec.ffn, spec.positions) == SIZES[name]


@pytest.mark.parametrize("more, base", [
    ({}, 1000), ({"rotary_emb_base": 500, "rope_parameters": {"rope_theta": 500}}, 500),
    ({"rotary_emb_base": 1000.0, "rope_parameters": {"rope_theta": 1000}}, 1000),
    ({"rope_parameters": {"rope_theta": 500}, "rotary_emb_base": None}, 500), ({"max_position_embeddings": 512}, 1000),
])  # fmt: skip
def test_the_base_of_nomics_positions(more, base):
    """Nomic's code reads rotary_emb_base; transformers' class does not, and gives the same numbers for all published models."""
    config = json.loads(PUBLISHED["nomic-ai/nomic-embed-text-v1"]) | more
    fields = FAMILIES["nomic_bert"].fields(config)
    assert fields["kinds"][0].attention.rotary.frequencies[1] == pytest.approx(base ** (-2 / 64))
    assert fields["positions"] == config.get("max_position_embeddings", 2048)


@pytest.mark.parametrize("more", [{"rotary_emb_base": 500}, {"rotary_emb_base": 10000}, {"layer_norm_epsilon": 1e-5}, {"n_head": 16}])
def test_nomics_own_keys_that_only_nomics_code_reads(more):
    """The shapes fit, so that transformers would answer with the values of its class and not say so."""
    config = json.loads(PUBLISHED["nomic-ai/nomic-embed-text-v1"]) | more
    with pytest.raises(ModelError, match=rf"{next(iter(more))} is .*, and .* to transformers; put what is meant into"):
        FAMILIES["nomic_bert"].fields(config)


FAR, NEAR = "full_attention", "sliding_attention"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
PLAIN, PLAIN_NEAR = [1, 0.05, 0.0025, 0.000125], [1, 0.1, 0.01, 0.001]
SCALED = [  # rotary positions of layers that see all tokens, and of those that see near ones: by transformers 5.23
    ({"rope_parameters": {FAR: {"rope_type": "linear", "factor": 4.0}}}, ([0.25, 0.0125, 0.000625, 3.125e-05], 1), (PLAIN_NEAR, 1)),
    ({"rope_parameters": {FAR: {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, NEAR: {"rope_theta": 500.0}}},
     ([1, 0.0125, 0.000625, 3.125e-05], 1.1386294), ([1, 0.21147424, 0.04472136, 0.00945742], 1)),
    ({"rope_parameters": {FAR: {"rope_type": "dynamic", "factor": 2.0}}}, (PLAIN, 1), (PLAIN_NEAR, 1)),
    ({"rope_parameters": {FAR: LLAMA3}}, ([0.57605636, 0.00625, 0.0003125, 1.563e-05], 1), (PLAIN_NEAR, 1)),
    ({"rope_parameters": {FAR: dict(list(LLAMA3.items())[:4])}}, ([1, 0.00625, 0.0003125, 1.563e-05], 1), (PLAIN_NEAR, 1)),
    ({"global_rope_theta": 1000.0, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
     ([1, 0.13337095, 0.01581139, 0.00281171], 1.0693147), ([1, 0.075, 0.005, 0.0005], 1.0693147)),
]  # fmt: skip
SIZES_OF_EIGHT = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 64, "vocab_size": 30,
                  "intermediate_size": 8}  # fmt: skip


def turns(attention):
    return (pytest.approx(list(attention.rotary.frequencies), rel=1e-3), pytest.approx(attention.rotary.factor))


@pytest.mark.parametrize("said, far, near", SCALED)
def test_scaled_positions_of_modernbert(said, far, near):
    fields = FAMILIES["modernbert"].fields(SIZES_OF_EIGHT | {"layer_types": [FAR, NEAR]} | said)
    assert [far, near] == [turns(kind.attention) for kind in fields["kinds"]]


@pytest.mark.parametrize("said, expected", [
    ({"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, ([0.25, 0.04445698, 0.00790569, 0.00140585], 1)),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
     ([1, 0.04445698, 0.00790569, 0.00140585], 1.1386294)),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, ([1, 0.11114246, 0.00790569, 0.00140585], 1.1386294)),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0}}, ([1, 0.21147424, 0.04472136, 0.00945742], 1)),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ([0.5, 0.08891397, 0.01581139, 0.00281171], 1)),
])  # fmt: skip
def test_scaled_positions_of_nomicbert(said, expected):
    assert expected == turns(FAMILIES["nomic_bert"].fields(SIZES_OF_EIGHT | said)["kinds"][0].attention)


def test_layers_of_modernbert():
    spec = read_model(GOLDEN / "modernbert").spec
    assert [layer.attention.window for layer in spec.each()] == [None, 3, 3, None]
    assert [layer.norm_before("attention") is None for layer in spec.each()] == [True, False, False, False]
    assert spec.layer(0).attention.rotary.frequencies[1] == pytest.approx(160000 ** (-1 / 4))
    assert spec.layer(1).attention.rotary.frequencies[1] == pytest.approx(10000 ** (-1 / 4))


@pytest.mark.parametrize("case", CASES)
def test_other_prefixes_and_half_precision(case, tmp_path):
    """Wrapped in another module, saved from the bare model, in float16."""
    expected = dict(read_model(GOLDEN / case).weights())
    source = load_file(GOLDEN / case / "model.safetensors")
    made = {
        "wrapped": {f"module.{name}": values for name, values in source.items()},
        "half": {name: values.astype(np.float16) for name, values in source.items()},
    }
    for name, tensors in made.items():
        folder = Path(shutil.copytree(GOLDEN / case, tmp_path / name))
        save_file(tensors, folder / "model.safetensors")
        for weight, values in read_model(folder).weights():
            np.testing.assert_allclose(values, expected[weight], rtol=0, atol=2e-3 if name == "half" else 0, err_msg=weight)
    bare = {name.removeprefix(CASES[case]): values for name, values in source.items() if name.startswith(CASES[case])}
    folder = Path(shutil.copytree(GOLDEN / case, tmp_path / "bare"))
    save_file(bare, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != "architectures"}))
    weights = dict(read_model(folder).weights())
    assert all(np.array_equal(values, expected[name]) for name, values in weights.items()) and "layers.1.mlp.up.weight" in weights


IN_MEMORY = {  # what transformers 5 calls otherwise in memory than in what it saves
    "nomicbert": (
        (r"emb_ln\.", "embeddings.LayerNorm."),
        (r"transform\.layer_norm", "transform.LayerNorm"),
        (r"encoder\.layers\.(\d+)\.norm1", r"layers.\1.post_attention_layernorm"),
        (r"encoder\.layers\.(\d+)\.norm2", r"layers.\1.post_mlp_layernorm"),
        (r"encoder\.layers\.(\d+)\.attn\.out_proj", r"layers.\1.self_attn.o_proj"),
        (r"encoder\.layers\.(\d+)\.attn\.", r"layers.\1.self_attn."),
        (r"encoder\.layers\.(\d+)\.mlp\.fc11", r"layers.\1.mlp.up_proj"),
        (r"encoder\.layers\.(\d+)\.mlp\.fc12", r"layers.\1.mlp.gate_proj"),
        (r"encoder\.layers\.(\d+)\.mlp\.fc2", r"layers.\1.mlp.down_proj"),
    ),
    "dinov2": (
        (r"attention\.attention\.(query|key|value)", lambda found: f"attention.{found[1][0]}_proj"),
        (r"attention\.output\.dense", "attention.o_proj"),
        (r"mlp\.weights_out", "mlp.down_proj"),
    ),
}  # fmt: skip
IN_MEMORY["dinov2_registers"] = IN_MEMORY["dinov2"]
PARTS = {"Wqkv": ("q_proj", "k_proj", "v_proj"), "weights_in": ("gate_proj", "up_proj")}  # one matrix when it is saved, several in memory


def as_in_memory(case, tensors):
    """The tensors under the names that they have in a state_dict."""
    found = {}
    for name, values in tensors.items():
        for pattern, replacement in IN_MEMORY[case]:
            name = re.sub(pattern, replacement, name)
        whole = next((whole for whole in PARTS if f".{whole}." in name), None)
        pieces = {name.replace(whole, part): part for part in PARTS[whole]} if whole else {name: ""}
        found |= dict(zip(pieces, np.split(values, len(pieces))))
    return {name: np.ascontiguousarray(values) for name, values in found.items()}


@pytest.mark.parametrize("case", IN_MEMORY)
def test_names_that_transformers_has_in_memory(case, tmp_path):
    """Saved with safetensors by whoever wrote model.state_dict(), where save_pretrained would have written other names."""
    source = load_file(GOLDEN / case / "model.safetensors")
    folder = Path(shutil.copytree(GOLDEN / case, tmp_path / "model"))
    renamed = as_in_memory(case, source)
    assert len(renamed.keys() & source.keys()) < len(source)
    save_file(renamed, folder / "model.safetensors")
    expected, found = dict(read_model(GOLDEN / case).weights()), dict(read_model(folder).weights())
    assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("case, lacks", [("dinov2", "encoder.layer.1.mlp.fc1.bias"), ("nomicbert", "encoder.layers.1.attn.Wqkv.weight")])
def test_of_two_names_of_what_is_missing_the_published_one_is_told(case, lacks, tmp_path):
    folder = Path(shutil.copytree(GOLDEN / case, tmp_path / "model"))
    save_file({name: values for name, values in load_file(folder / "model.safetensors").items() if not name.endswith(lacks)},
              folder / "model.safetensors")  # fmt: skip
    with pytest.raises(ModelError, match=f"are missing: {re.escape(lacks)}"):
        read_model(folder)


@pytest.mark.parametrize("case, change, word", [
    ("modernbert", {"layer_types": ["full_attention"]}, "layer_types"), ("modernbert", {"classifier_pooling": "max"}, "classifier_pooling"),
    ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "factor"),
    ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}, "longrope needs"),
    ("modernbert", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is"),
    ("modernbert", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "put what is meant into rope_parameters"),
    ("modernbert", {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}, "expected them for each kind of layer"),
    ("modernbert", {"head_dim": 6}, "head_dim is 6, only hidden_size"), ("dinov2", {"head_dim": 6}, "head_dim is 6, only hidden_size"),
    ("modernbert", {"rope_parameters": "default"}, "rope_parameters is 'default', expected an object"),
    ("modernbert", {"rope_parameters": {"full_attention": [1]}}, "full_attention is [1], expected an object"),
    ("nomicbert", {"rope_parameters": "default"}, "rope_parameters is 'default', expected an object"),
    ("modernbert", {"mlp_bias": 1}, "mlp_bias"), ("modernbert", {"hidden_activation": "relu2"}, "'relu2'"),
    ("nomicbert", {"prenorm": True}, "prenorm"), ("nomicbert", {"rotary_emb_fraction": 0.5}, "rotary_emb_fraction"),
    ("nomicbert", {"rope_parameters": {"rope_type": "dynamic"}}, "factor is None"), ("nomicbert", {"is_causal": True}, "is_causal"),
    ("nomicbert", {"rotary_emb_base": 500}, "rotary_emb_base is 500, and rope_theta is 1000.0 to transformers"),
    ("nomicbert", {"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05, and layer_norm_eps"),
    ("mpnet", {"relative_attention_num_buckets": 16}, "num_buckets"), ("mpnet", {"max_position_embeddings": 2}, "max_position_embeddings"),
    ("dinov2", {"patch_size": 60}, "patches of 60"), ("dinov2", {"use_swiglu_ffn": True}, "tensors"), ("dinov2", {"odd_key": 1}, "odd_key"),
])  # fmt: skip
def test_refused(case, change, word, tmp_path):
    folder = Path(shutil.copytree(GOLDEN / case, tmp_path / case))
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | change))
    with pytest.raises(ModelError) as caught:
        read_model(folder)
    assert word in str(caught.value) and "\n" not in str(caught.value) and not str(caught.value).endswith(".")


def test_resizing_keeps_what_is_even():
    table = np.full((36, 3), 2.5, np.float32)
    for smooth in (True, False):
        np.testing.assert_allclose(resized(table, 4, smooth), 2.5, rtol=1e-6)
        np.testing.assert_allclose(resized(table, 9, smooth), 2.5, rtol=1e-6)
    assert resized(table, 6, True) is table


def test_the_tokenizer_of_a_modernbert_is_its_file_whatever_class_is_named(tmp_path):
    """As AutoTokenizer of transformers 5.23 makes it: published folders name wrong ones."""
    folder = shutil.copytree(GOLDEN / "modernbert", tmp_path / "model")
    wanted = json.loads((folder / "tokenizer.json").read_text())
    for name in ("PreTrainedTokenizerFast", "MPNetTokenizer", "XLMRobertaTokenizer"):
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, "do_lower_case": False}))
        found = json.loads(read_model(folder).files["tokenizer.json"])
        assert all(found[key] == wanted[key] for key in ("model", "normalizer", "pre_tokenizer", "post_processor"))
