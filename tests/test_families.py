"""Each family's folder, with the weights of all heads in one file, against what transformers makes of it (golden/make_families.py)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hepti_mpi.errors import InputError, ModelError
from hepti_mpi.models import sidefiles
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.families.gpt import GPT2_NAMES
from hepti_mpi.models.families.registry import FAMILIES
from hepti_mpi.models.inputs.requests import read_requests
from hepti_mpi.models.inputs.tokens import Tokens
from hepti_mpi.models.numerics import sigmoid
from hepti_mpi.models.reference import forward
from hepti_mpi.models.tasks.heads import answers, apply_head, embed

from decoders import write_folder  # isort: skip

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = {"roberta": "roberta", "xlm-roberta": "xlm_roberta", "camembert": "camembert", "distilbert": "distilbert", "electra": "electra"}
CASES = [(kind, architecture) for kind in FOLDERS for architecture in FAMILIES[kind].architectures]


def results(folder, source):
    """What the model in `folder` makes of a file: (requests, results), each with its last hidden state."""
    model = read_model(folder)
    weights, requests = dict(model.weights()), read_requests(model.spec, model.files, str(source))
    arrays = {name: np.concatenate([request.arrays[name] for request in requests]) for name in requests[0].arrays}
    hidden = forward(model.spec, weights, embed(model.spec, weights, arrays), [request.rows for request in requests]).astype(np.float32)
    ends = np.cumsum([request.rows for request in requests])
    found = apply_head(model.spec, weights, model.files, hidden, requests, True)
    return requests, [one | {"last_hidden_state": rows} for one, rows in zip(found, np.split(hidden, ends))]


@pytest.mark.parametrize("kind, architecture", CASES)
def test_every_head(kind, architecture, tmp_path):
    folder = shutil.copytree(GOLDEN / FOLDERS[kind], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(config))
    golden = np.load(folder / "expected.npz")
    wanted = {"last_hidden_state": golden["expected_last_hidden_state"]}
    wanted |= {"logits": golden[f"expected_logits {architecture}"]} if f"expected_logits {architecture}" in golden else {}
    wanted |= {"pooler_output": golden["expected_pooler_output"]} if architecture.endswith(("RobertaModel", "CamembertModel")) else {}
    compared = set()
    if "Sequence" in architecture or "pooler_output" in wanted:  # they read position 0, so that it has to be there
        kept = golden["attention_mask"][:, 0] == 1
        arrays = {name: golden[name][kept] for name in golden.files if name.endswith(("_ids", "_mask"))}
        np.savez(folder / "expected.npz", **arrays)
        wanted = {name: values[kept] for name, values in wanted.items()}
    for row, (request, found) in enumerate(zip(*results(folder, folder / "expected.npz"))):
        for name, values in wanted.items():
            one = values[row] if values.ndim == 2 else values[row][request.keep]
            np.testing.assert_allclose(found[name], one, atol=1e-4, err_msg=f"{name} of row {row}")
            compared.add(name)
    assert compared == wanted.keys()


@pytest.mark.parametrize("kind", FOLDERS)
def test_texts(kind, tmp_path):
    folder = shutil.copytree(GOLDEN / FOLDERS[kind], tmp_path / "model")
    golden = json.loads((folder / "expected_text.json").read_text(encoding="utf-8"))
    tokens = Tokens(read_model(folder).files)
    asked = [[text] for text in golden["texts"]] + [golden["texts"][:2]]
    assert [tokens.encode(text, "a line").ids for text in asked] == golden["ids"]
    for name, content in golden["modules"].items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, golden["texts"])))
    _, found = results(folder, folder / "in.jsonl")
    np.testing.assert_allclose([one["embedding"] for one in found], golden["embeddings"], atol=1e-4)


def changed(kind, folder, tensors=lambda name: name, **config):
    """A copy of a family's folder with other keys in config.json (None: without) and other names of tensors (None: without)."""
    shutil.copytree(GOLDEN / FOLDERS[kind], folder)
    said = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({key: value for key, value in said.items() if value is not None}))
    found = {tensors(name): value for name, value in load_file(folder / "model.safetensors").items()}
    save_file({name: value for name, value in found.items() if name is not None}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", FOLDERS)
def test_other_names_of_the_same(kind, tmp_path):
    """Without the family's prefix, inside another module, and with norms as they were called first."""
    wanted = dict(read_model(GOLDEN / FOLDERS[kind]).weights())
    prefix = FAMILIES[kind].prefixes[0]
    renamed = (
        lambda name: name.removeprefix(prefix),
        lambda name: f"module.{name}",
        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"),
    )
    for number, tensors in enumerate(renamed):
        found = dict(read_model(changed(kind, tmp_path / str(number), tensors)).weights())
        assert found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in found)


@pytest.mark.parametrize("kind", FOLDERS)
def test_what_some_versions_kept_beside_the_weights(kind, tmp_path):
    folder, prefix = changed(kind, tmp_path / "model"), FAMILIES[kind].prefixes[0]
    names = ("embeddings.position_ids", "embeddings.token_type_ids", "layers.0.attn.rotary_emb.inv_freq", "rotary_emb.inv_freq")
    more = {f"{prefix}{name}": np.arange(9)[None] for name in names}
    save_file({**load_file(folder / "model.safetensors"), **more}, folder / "model.safetensors")
    assert dict(read_model(folder).weights()).keys() == dict(read_model(GOLDEN / FOLDERS[kind]).weights()).keys()


@pytest.mark.parametrize("kind, copy", [
    ("roberta", "lm_head.decoder.weight"), ("distilbert", "vocab_projector.weight"), ("electra", "generator_lm_head.weight"),
])  # fmt: skip
def test_tied_words_may_be_left_out(kind, copy, tmp_path):
    [masked] = [name for name in FAMILIES[kind].architectures if name.endswith("MaskedLM")]
    found = [read_model(changed(kind, tmp_path / str(drop), lambda name, drop=drop: None if drop and name == copy else name,
                                architectures=[masked])) for drop in (False, True)]  # fmt: skip
    assert found[0].spec.back == found[1].spec.back and found[0].spec.back[-1].tied


@pytest.mark.parametrize("kind, pooled", [("roberta", True), ("camembert", False)])
def test_a_pooler_that_is_missing(kind, pooled, tmp_path):
    spec = read_model(changed(kind, tmp_path / "model", lambda name: name if pooled or "pooler" not in name else None)).spec
    assert spec.head == ("pooler" if pooled else "none")


def test_positions_of_a_roberta_begin_behind_its_padding(tmp_path):
    model = read_model(GOLDEN / "roberta")
    assert (model.spec.positions, model.spec.numbers("positions"), model.spec.options["padding_id"]) == (64, 66, 1)
    np.savez(tmp_path / "x.npz", input_ids=[[9, 1, 8, 7]], attention_mask=[[1, 1, 0, 1]])
    [request] = read_requests(model.spec, model.files, str(tmp_path / "x.npz"))
    assert request.arrays["positions"].tolist() == [2, 1, 4]  # padding has its own; what the mask leaves out is counted
    np.savez(tmp_path / "x.npz", input_ids=np.full((1, 65), 9))
    with pytest.raises(InputError, match="65 positions, the model takes 64"):
        read_requests(model.spec, model.files, str(tmp_path / "x.npz"))


def test_a_discriminator_says_how_likely_each_token_was_replaced(tmp_path):
    folder = changed("electra", tmp_path / "model", architectures=["ElectraForPreTraining"])
    (folder / "in.txt").write_text("the cat sat\n")
    [request], [result] = results(folder, folder / "in.txt")
    model = read_model(folder)
    [record] = answers(model.spec, model.files, [request], [result])
    assert [(token["token"], token["label"]) for token in record["tokens"]] == [(word, "replaced") for word in ("the", "cat", "sat")]
    np.testing.assert_allclose([token["score"] for token in record["tokens"]], sigmoid(result["logits"][1:4, 0]), atol=1e-6)


REFUSED = [
    ("roberta", {"pad_token_id": -1}, "pad_token_id is -1"),
    ("roberta", {"pad_token_id": "1"}, "pad_token_id is '1'"),
    ("roberta", {"max_position_embeddings": 2}, "pad_token_id is 1, expected one from 0 to 0"),
    ("roberta", {"position_embedding_type": "relative_key"}, "'relative_key' is not supported"),
    ("roberta", {"architectures": ["XLMRobertaModel"]}, "'XLMRobertaModel' is not supported; supported: RobertaModel"),
    ("distilbert", {"dim": 32, "hidden_size": 24}, "dim is 32 and hidden_size is 24"),
    ("distilbert", {"activation": "silly"}, "'silly' is not supported"),
    ("distilbert", {"n_layers": 3}, "transformer.layer.2"),
    ("distilbert", {"intermediate_size": 37, "hidden_dim": 38}, "shape [37, 24]"),
    ("electra", {"embedding_size": 24}, "embeddings_project"),
    ("electra", {"embedding_size": 0}, "embedding_size is 0"),
    ("electra", {"embedding_size": 12}, "shape"),
    ("electra", {"architectures": ["ElectraForMultipleChoice"]}, "'ElectraForMultipleChoice' is not supported"),
]


@pytest.mark.parametrize("kind, config, words", REFUSED, ids=str)
def test_refused(kind, config, words, tmp_path):
    with pytest.raises(ModelError) as caught:
        read_model(changed(kind, tmp_path / "model", **config))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind, config, words", [
    ("gpt2", {"prefix": "<s>"}, "pipeline puts it before each prompt"),
    ("llama", {"is_causal": False}, "is_causal is False"), ("gpt2", {"is_causal": False}, "is_causal is False"),
    ("mistral", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("qwen3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ("llama", {"rope_parameters": {"rope_theta": 1e6}, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "which differ"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}}, "expected them for all layers alike"),
    ("gemma3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}, "expected them for each kind of layer"),
    ("gemma3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}}, "expected them for each kind of layer"),
    *(("gpt2", {common: 3}, f"and {common} is 3, which are the same thing") for common in GPT2_NAMES.values()),
])  # fmt: skip
def test_what_transformers_takes_otherwise_is_refused_of_decoders(kind, config, words, tmp_path):
    """is_causal makes all rows see each other there, and parts of positions or positions of all layers alike are passed over."""
    folder = write_folder(kind, tmp_path)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | config))
    with pytest.raises(ModelError, match=words):
        read_model(folder)


def test_scores_of_a_gpt2_are_divided_by_its_width_and_by_the_number_of_the_layer():
    """As in GPT2Attention of transformers 5.23; what is not said, or null, changes nothing, and neither does reorder_and_upcast_attn."""
    sizes, key = {"vocab_size": 9, "n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 8}, "scale_attn_by_inverse_layer_idx"
    for said, scales in (
        ({}, [None] * 3), ({key: None, "reorder_and_upcast_attn": True}, [None] * 3), ({key: True}, [1 / 4, 1 / 8, 1 / 12]),
        ({"scale_attn_weights": False}, [1.0] * 3), ({key: True, "scale_attn_weights": False}, [1.0, 1 / 2, 1 / 3]),
    ):  # fmt: skip
        fields = FAMILIES["gpt2"].fields(sizes | said)
        assert [fields["kinds"][one].attention.scale for one in fields["order"] or (0, 0, 0)] == pytest.approx(scales)
    with pytest.raises(ModelError, match="scale_attn_weights is 1, expected true or false"):
        FAMILIES["gpt2"].fields(sizes | {"scale_attn_weights": 1})


def test_layers_of_a_smollm3_that_turn_nothing():
    """As SmolLM3Config of transformers 5.23: every fourth layer, or those of no_rope_layers, which say 0; the window is theirs."""
    family, config = FAMILIES["smollm3"], {"model_type": "smollm3"} | DECODER
    for said, turned in (({}, [1, 1, 1, 0, 1, 1, 1]), ({"no_rope_layer_interval": 2}, [1, 0] * 3 + [1]),
                         ({"no_rope_layers": [0, 1, 1, 1, 1, 1, 0, 1]}, [0, 1, 1, 1, 1, 1, 0])):  # fmt: skip
        window = {"use_sliding_window": True, "sliding_window": 5}
        for more, near in (({}, None), (window, 4)):
            fields = family.fields({**family.defaults, **config, **said, **more})
            attentions = [fields["kinds"][one].attention for one in fields["order"]]
            assert [int(one.rotary is not None) for one in attentions] == turned
            assert [one.window for one in attentions] == [None if one else near for one in turned]
    for odd in ([1, 0], [1, 2, 1, 1, 1, 1, 1], "x"):
        with pytest.raises(ModelError, match="expected 1 or 0 for each of 7 layers"):
            family.fields({**family.defaults, **config, "no_rope_layers": odd})


def test_positions_for_all_layers_alike_that_those_of_gemma_3_have_anyway(tmp_path):
    """transformers passes over them: layers that see near rows have a base of their own."""
    folder = write_folder("gemma3", tmp_path)
    said = json.loads((folder / "config.json").read_text())
    found = []
    for flat in ({}, {"rope_theta": 1e6}, {"rope_type": "default", "rope_theta": 1e6}, {"rope_type": "default"}):
        (folder / "config.json").write_text(json.dumps(said | {"rope_parameters": flat}))
        found.append([one.attention.rotary for one in read_model(folder).spec.each()])
    assert all(one == found[0] for one in found) and len(set(found[0])) == 2


def test_every_family_has_golden_folders():
    """Those whose layers are new have folders per head, see test_reference.py; decoders are made from names, see decoders.py."""
    found = {json.loads(path.read_text())["model_type"] for path in GOLDEN.glob("*/config.json")}
    generating = {kind for kind, family in FAMILIES.items() if any(task.head == "next-token" for task in family.architectures.values())}
    assert found - generating == set(FAMILIES) - generating


DECODER = {"vocab_size": 9, "hidden_size": 64, "num_hidden_layers": 7, "num_attention_heads": 16, "intermediate_size": 8}
UNSAID = [  # what the classes of transformers 5.23 mean where config.json lacks these keys
    ("mistral", {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072}),
    ("gemma", {"num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192}),
    ("gemma2", {"num_key_value_heads": 4, "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
    ("gemma3_text", {"sliding_window": 4096, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "max_position_embeddings": 131072}),
    ("gemma3_text", {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6},
                                         "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    ("smollm3", {"num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2e6, "no_rope_layer_interval": 4}),
    ("phi3", {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}),
    ("llama", {"max_position_embeddings": 2048, "rope_theta": 1e4}),
    ("starcoder2", {"num_key_value_heads": 2, "max_position_embeddings": 4096, "norm_epsilon": 1e-5}),
]  # fmt: skip


@pytest.mark.parametrize("kind, said", UNSAID)
def test_keys_that_are_left_out(kind, said):
    family, left_out = FAMILIES[kind], {"model_type": kind} | DECODER
    wanted, found = (family.fields({**family.defaults, **config}) for config in (left_out | said, left_out))
    assert found == wanted
    for key in set(said) - {"max_position_embeddings", "rope_parameters"}:
        other = family.fields({**family.defaults, **left_out, key: said[key] / 2 if isinstance(said[key], float) else said[key] // 2})
        assert other != wanted, key


def test_longrope_goes_by_what_is_said_beside_the_scaling():
    """As transformers 5.23: original_max_position_embeddings of config.json itself, or its class's, is set over that of rope_parameters."""
    family, key = FAMILIES["phi3"], "original_max_position_embeddings"
    config = {"model_type": "phi3", "max_position_embeddings": 256} | DECODER | {"hidden_size": 64, "num_attention_heads": 8}
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4}
    for beside in ({key: 128}, {}):
        plain = family.fields({**family.defaults, **config, **beside, "rope_parameters": scaling})
        assert family.fields({**family.defaults, **config, **beside, "rope_parameters": scaling | {key: 64}}) == plain
    assert plain != family.fields({**family.defaults, **config, key: 128, "rope_parameters": scaling})
    for older in ("su", "yarn"):  # as transformers 5.23 reads both names; YaRN, by its own factor, was off by 0.05
        for place in ("rope_parameters", "rope_scaling"):
            found = family.fields({**family.defaults, **config, place: scaling | {"rope_type": older}})
            assert found == family.fields({**family.defaults, **config, "rope_parameters": scaling})
    with pytest.raises(ModelError, match="scaled by 'linear', which is not for this family; supported: longrope"):
        family.fields({**family.defaults, **config, "rope_scaling": {"type": "linear", "factor": 2.0}})


WRITTEN = {  # what published config.json files say beside the sizes, and transformers' classes do not read
    "gpt2": {"n_special": 0, "predict_special_tokens": True, "n_ctx": 1024},
    "llama": {"is_llama_config": True, "rope_interleaved": False, "max_sequence_length": 2048, "pretraining_tp": 1},
    "qwen2": {"use_mrope": False},
    "phi3": {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "embd_pdrop": 0.0, "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM", "AutoTokenizer": "x/y"}},
    "bert": {"cell": {}, "emb_size": 312, "structure": [], "training": "", "pre_trained": ""},
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITTEN)
def test_keys_that_published_models_have(kind):
    family = FAMILIES[kind]
    sidefiles.check("config.json", WRITTEN[kind], {**sidefiles.CONFIG, **family.keys})
    if kind in ("llama", "phi3"):
        config = {**family.defaults, "model_type": kind, **DECODER, "num_attention_heads": 8}
        assert family.fields(config | WRITTEN[kind]) == family.fields(config)


@pytest.mark.parametrize("name", ["modeling_phi3.Phi3SmallForCausalLM", ["own.Phi3", None], None])
def test_code_of_the_folder_that_is_not_phi3_itself(name):
    family = FAMILIES["phi3"]
    with pytest.raises(ModelError, match="auto_map names .* never run"):
        family.fields({**family.defaults, "model_type": "phi3", **DECODER, "auto_map": {"AutoModelForCausalLM": name}})


def test_where_an_answer_ends_is_never_a_default():
    """transformers' generate goes on where neither generation_config.json nor config.json names an end, whatever the class says."""
    table = sidefiles.FILES["generation_config.json"]
    assert sidefiles.verdict(table, "eos_token_id") and not [
        (kind, key) for kind, family in FAMILIES.items() for key in family.defaults if sidefiles.verdict(table, key)
    ]


def test_null_is_not_what_is_meant_where_a_key_is_left_out():
    fields = FAMILIES["gemma2"].fields({**FAMILIES["gemma2"].defaults, "model_type": "gemma2", "final_logit_softcapping": None, **DECODER})
    assert "options" not in fields and [layer.attention.window for layer in fields["kinds"]] == [4095, None]


SEES_ALL = [dict(model_type=kind, hidden_act="silu", rotary_pct=1.0, **DECODER) for kind in ("llama", "gemma", "gpt_neox")]
SEES_ALL += [{"model_type": "gpt2", "vocab_size": 9, "n_embd": 64, "n_layer": 7, "n_head": 16, "n_positions": 128}]
SEES_NEAR = [{"model_type": kind, "sliding_window": 8, **DECODER} for kind in ("mistral", "phi3", "starcoder2")]
KINDS, NEAR, FAR = "layer_types", ["sliding_attention"] * 7, ["full_attention"] * 7
OTHER_WINDOWS = [
    *((config, change, "see all rows, layer_types or sliding_window say 5") for config in SEES_ALL
      for change in ({"sliding_window": 5}, {"sliding_window": 5, KINDS: NEAR}, {"sliding_window": 5, KINDS: FAR[:6] + NEAR[:1]})),
    *((config, {KINDS: FAR}, "see 8 rows, layer_types or sliding_window say all") for config in SEES_NEAR),
    *((config, {KINDS: NEAR[:6] + FAR[:1]}, "see 8 rows") for config in SEES_NEAR),
    *((config, {"sliding_window": None, KINDS: NEAR}, "there is no sliding_window") for config in (*SEES_ALL, *SEES_NEAR)),
]  # fmt: skip


@pytest.mark.parametrize("config, change, words", OTHER_WINDOWS, ids=str)
def test_a_window_that_the_layers_do_not_have(config, change, words):
    """transformers 5.23 takes it for its cache alone: a Llama then reads a prompt as a whole, and each new token sees five rows."""
    family = FAMILIES[config["model_type"]]
    with pytest.raises(ModelError, match=words):
        family.fields({**family.defaults, **config, **change})


@pytest.mark.parametrize("config, change", [
    *((config, change) for config in SEES_ALL
      for change in ({"sliding_window": 5, KINDS: FAR}, {"sliding_window": None}, {"sliding_window": 64, "max_position_embeddings": 64})),
    *((config, {KINDS: NEAR}) for config in SEES_NEAR), *((config, {"sliding_window": None, KINDS: FAR}) for config in SEES_NEAR),
], ids=str)  # fmt: skip
def test_windows_that_agree(config, change):
    family = FAMILIES[config["model_type"]]
    if "max_position_embeddings" in change and config["model_type"] == "gpt2":
        change = {"n_positions": 64, "sliding_window": 64}
    window = None if config in SEES_ALL or change.get("sliding_window", 8) is None else 7
    assert {one.attention.window for one in family.fields({**family.defaults, **config, **change})["kinds"]} == {window}


@pytest.mark.parametrize("said", [{"type": "linear", "factor": 2.0}, {"full_attention": {"rope_type": "linear", "factor": 2.0}}], ids=str)
def test_an_older_scaling_of_gemma_3_names_its_type(said):
    """transformers 5.23 puts it over {"rope_type": "default"}, and scales nothing by these two."""
    config = {**FAMILIES["gemma3_text"].defaults, "model_type": "gemma3_text", **DECODER}
    with pytest.raises(ModelError, match="rope_scaling is .*, expected rope_type"):
        FAMILIES["gemma3_text"].fields(config | {"rope_scaling": said})
    found = FAMILIES["gemma3_text"].fields(config | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}})
    first = [one.attention.rotary.frequencies[0] for one in found["kinds"]]
    assert sorted(first) == [0.5, 1.0]


@pytest.mark.parametrize("kind, change, words", [  # transformers 5.23 takes no such name, masks nothing by null, forgets other rows
    ("mistral", {"sliding_window": 1}, "expected 2 or more"), ("llama", {"hidden_act": ""}, "hidden_act '' is not supported"),
    ("gemma2", {"sliding_window": None}, "sliding_window is None, expected a positive"),
    ("gemma3_text", {"sliding_window": None, KINDS: FAR}, "sliding_window is None, expected a positive"),
    ("gemma2", {"sliding_window": 1}, "expected 2 or more"), ("gpt_neox", {"hidden_act": 0, "rotary_pct": 1.0}, "hidden_act 0 is not"),
])  # fmt: skip
def test_values_that_mean_nothing(kind, change, words):
    with pytest.raises(ModelError, match=words):
        FAMILIES[kind].fields({**FAMILIES[kind].defaults, "model_type": kind, **DECODER, **change})


@pytest.mark.parametrize("below, beside, second", [({"truncate": False}, {}, 0.3514633), ({}, {"truncate": False}, 0.3026010)])
def test_the_bounds_of_yarn_are_whole_unless_that_is_said_beside_the_kinds_of_layers(below, beside, second):
    """As transformers 5.23, which reads `truncate` beside them only; answers were off by 1."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 100.0}
    config = {"vocab_size": 9, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
              "head_dim": 16, "intermediate_size": 8, "max_position_embeddings": 64, "sliding_window": 9,
              "layer_types": ["full_attention"]}  # fmt: skip
    said = {"rope_parameters": {"full_attention": yarn | below, "sliding_attention": {"rope_theta": 50.0}} | beside}
    family = FAMILIES["gemma3_text"]
    turns = family.fields({**family.defaults, **config, **said, "model_type": "gemma3_text"})["kinds"][0].attention.rotary
    assert turns.frequencies[:3] == pytest.approx((1, second, 0.07905694), rel=1e-5)
    if below:  # which transformers puts below that kind itself
        older = family.fields({**family.defaults, **config, "model_type": "gemma3_text", "rope_scaling": yarn | below})
        assert older["kinds"][0].attention.rotary == turns
