"""Models that are in a folder and, as llama.cpp's converter writes them, in a GGUF file: the same model comes out."""

import numpy as np
import pytest
from click.testing import CliRunner
from decoders import expected, values
from gguf_files import gguf
from test_gguf import LETTERS

from hepti_mpi.commands import main
from hepti_mpi.errors import ModelError
from hepti_mpi.models.checkpoints import ggml
from hepti_mpi.models.checkpoints.gguf import GgufFile
from hepti_mpi.models.checkpoints.gguffiles import read_gguf
from hepti_mpi.models.checkpoints.ggufmodel import ARCHITECTURES, READ, SHARED
from hepti_mpi.models.checkpoints.hf import read_model

from decoders import write_folder  # isort: skip

WORDS = [*LETTERS, *(f"w{number}" for number in range(131 - len(LETTERS)))]
TOKENS = {
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": WORDS, "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 2,
}  # fmt: skip
SIZES = {"hidden_size": "embedding_length", "num_hidden_layers": "block_count", "num_attention_heads": "attention.head_count",
         "num_key_value_heads": "attention.head_count_kv", "intermediate_size": "feed_forward_length", "head_dim": "attention.key_length",
         "max_position_embeddings": "context_length", "rms_norm_eps": "attention.layer_norm_rms_epsilon",
         "sliding_window": "attention.sliding_window", "attn_logit_softcapping": "attn_logit_softcapping",
         "final_logit_softcapping": "final_logit_softcapping"}  # fmt: skip
GPT2 = {"n_embd": "embedding_length", "n_layer": "block_count", "n_head": "attention.head_count", "n_inner": "feed_forward_length",
        "n_positions": "context_length", "layer_norm_epsilon": "attention.layer_norm_epsilon"}  # fmt: skip


def written(case, key, more=None, others=None):
    """Return the GGUF file of a case, with `more` keys and `others` of tensors: names, order of rows and added ones as the converter of
    llama.cpp has them."""
    said, *_ = expected(case)
    config, kind = said["config"], ARCHITECTURES[key]
    sizes = {f"{key}.{own}": config[name] for name, own in (GPT2 if key == "gpt2" else SIZES).items() if config.get(name) is not None}
    if key != "gpt2":
        sizes[f"{key}.rope.freq_base"] = float(config["rope_parameters"].get("rope_theta", 1e4))
    outer = {own: name for name, own in kind.outer.items()}
    block = {own: name for name, own in kind.block.items()}
    tensors = {}
    for name, shape in said["shapes"].items():
        value, short = values(name, tuple(shape)), name.removeprefix("transformer.")
        if short in outer:
            name = outer[short]
        else:
            layer, rest = short.removeprefix(kind.prefix).split(".", 1)
            part, role = rest.rsplit(".", 1)
            name = f"blk.{layer}.{block[part]}.{role}"
        counts = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
        heads = config.get(counts.get(name.split(".")[-2]))
        if heads and kind.permuted:
            value = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        if kind.added and "norm" in name:
            value = value + 1
        tensors[name] = value.T if kind.transposed and name.startswith("blk.") and value.ndim == 2 else value
    return gguf({"general.architecture": key} | sizes | TOKENS | (more or {}), tensors | (others or {}))


CASES = [(case, case) for case in ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gpt2")]


@pytest.mark.parametrize("case, key", CASES)
def test_the_same_model(tmp_path, case, key):
    (tmp_path / "x.gguf").write_bytes(written(case, key))
    found, reduced = read_gguf(tmp_path / "x.gguf")
    wanted = read_model(write_folder(case, tmp_path))
    assert reduced == [] and found.spec.options["ends"] == [2, 0]
    for name in ("layers", "hidden", "heads", "ffn", "positions", "front", "back", "head", "family", "order"):
        assert getattr(found.spec, name) == getattr(wanted.spec, name), name
    assert [one.described for one in found.spec.kinds] == [one.described for one in wanted.spec.kinds]
    for one, other in zip(found.spec.each(), wanted.spec.each()):
        same = one.attention.rotary, other.attention.rotary
        assert same == (None, None) or np.allclose(same[0].frequencies, same[1].frequencies)
        assert (one.attention.window, one.attention.softcap) == (other.attention.window, other.attention.softcap)
    for (name, mine), (other, theirs) in zip(found.weights(), wanted.weights(), strict=True):
        assert name == other
        np.testing.assert_allclose(mine, theirs, atol=1e-6, err_msg=name)


def test_more_tokens_than_embeddings(tmp_path):
    (tmp_path / "x.gguf").write_bytes(written("llama", "llama", {"tokenizer.ggml.tokens": [*WORDS, "more"]}))
    with pytest.raises(ModelError, match="has 132 tokens and embeddings of 131"):
        read_gguf(tmp_path / "x.gguf")


def test_several_in_a_folder(tmp_path):
    from hepti_mpi.models.checkpoints.gguffiles import gguf_path

    (tmp_path / "a.gguf").write_bytes(b"")
    assert gguf_path(tmp_path) == tmp_path / "a.gguf" == gguf_path(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match="name one"):
        gguf_path(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert gguf_path(tmp_path) is None


@pytest.mark.parametrize("case, more, words", [
    ("llama", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping = 5.0 is not known of a llama"),
    ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"), ("qwen3", {"rope.freq_base_swa": 100.0}, "freq_base_swa"),
    ("qwen2", {"attention.sliding_window": 4}, "sliding_window = 4 is not known"), ("llama", {"attention.causal": False}, "causal"),
    ("llama", {"rope.scaling.attn_factor": 1.5}, "attn_factor is 1.5, only 1.0"), ("llama", {"vocab_size": 100}, "only 131"),
    ("gemma2", {"attention.sliding_window_pattern": 6}, "pattern is 6, only 2"),
    ("gpt2", {"attention.head_count_kv": 1}, "head_count_kv is 1"),
    ("gpt2", {"attention.key_length": 4}, "key_length is 4"), ("llama", {"rope.scaling.type": "longrope"}, "'longrope', which is not"),
])  # fmt: skip
def test_what_an_architecture_does_not_read_is_refused(tmp_path, case, more, words):
    with pytest.raises(ModelError, match=words):
        read(tmp_path, case, more)


@pytest.mark.parametrize("odd", [[1, 2], ["a", "b"], [True, False]])
@pytest.mark.parametrize("case, key", CASES)
def test_lists_in_the_place_of_numbers_and_words_are_refused(tmp_path, case, key, odd):
    """They are no truth, and equal to none."""
    words = ("model", "pre", "bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id", "add_bos_token", "add_eos_token")
    keys = [f"{key}.{name}" for name in (*SHARED, *READ[key]) if name != "rope.scaling.original_context_length"]  # which "yarn" alone has
    for name in (*keys, *(f"tokenizer.ggml.{name}" for name in words), "general.architecture", "general.alignment", "split.count"):
        (tmp_path / "x.gguf").write_bytes(written(case, key, {name: odd}))
        with pytest.raises(ModelError):
            read_gguf(tmp_path / "x.gguf")


@pytest.mark.parametrize("more, factor", [
    ({}, 1), ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, 1), ({"rope.scaling.factor": 4.0}, 4),
    ({"rope.scale_linear": 2.0}, 2), ({"rope.scale_linear": 2.0, "rope.scaling.factor": 1.0}, 1),
    ({"rope.scaling.type": "none", "rope.scale_linear": 2.0}, 1), ({"rope.scaling.type": "linear", "rope.scale_linear": 2.0}, 2),
    ({"final_logit_softcapping": 0.0, "attention.causal": True, "attention.sliding_window": 0, "rope.scaling.attn_factor": 1.0}, 1),
])  # fmt: skip
def test_positions_are_scaled_as_in_llama_cpp(tmp_path, more, factor):
    plain, scaled = (read(tmp_path, "llama", one).spec.kinds[0].attention.rotary.frequencies for one in ({}, more))
    np.testing.assert_allclose(np.array(plain) / scaled, factor)


def test_where_yarn_ends_is_no_matter_of_the_file(tmp_path):
    """llama.cpp reads these keys of other architectures alone, whose values are always these; its converter writes those of config.json."""
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
    plain = {"rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0, "rope.scaling.yarn_ext_factor": 1.0}
    found = [read(tmp_path, "llama", yarn | more).spec.kinds[0].attention.rotary for more in ({}, plain)]
    assert found[0] == found[1] and found[0].factor == pytest.approx(1 + 0.1 * np.log(4))
    with pytest.raises(ModelError, match="yarn_beta_slow = 2.0 is not known of a llama"):
        read(tmp_path, "llama", yarn | {"rope.scaling.yarn_beta_slow": 2.0})


def test_longrope_of_a_phi3(tmp_path):
    """Its factors are tensors of the file, and what turned numbers are multiplied by is a key; the kind need not be said."""
    said, *_ = expected("phi3")
    wanted = read_model(write_folder("phi3", tmp_path)).spec
    scaling, rotary = said["config"]["rope_parameters"], wanted.kinds[0].attention.rotary
    factors = {f"rope_factors_{kind}.weight": np.array(scaling[f"{kind}_factor"], np.float32) for kind in ("short", "long")}
    keys = {"phi3.rope.scaling.original_context_length": 64, "phi3.rope.scaling.attn_factor": rotary.factor}
    for more in ({}, {"phi3.rope.scaling.type": "longrope"}, {"phi3.rope.dimension_count": 8}):
        (tmp_path / "x.gguf").write_bytes(written("phi3", "phi3", keys | more, factors))
        found = read_gguf(tmp_path / "x.gguf")[0].spec
        assert (found.positions, found.kinds[0].attention.window) == (wanted.positions, wanted.kinds[0].attention.window) == (64, 8)
        np.testing.assert_allclose(found.kinds[0].attention.rotary.frequencies, rotary.frequencies, rtol=1e-6)
        assert found.kinds[0].attention.rotary.factor == pytest.approx(rotary.factor)
    for short in (np.ones(3, np.float32), factors["rope_factors_short.weight"]):  # the others are missing
        (tmp_path / "x.gguf").write_bytes(written("phi3", "phi3", keys, {"rope_factors_short.weight": short}))
        with pytest.raises(ModelError, match="have to be factors of 4 pairs"):
            read_gguf(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes(written("phi3", "phi3", keys | {"phi3.rope.scaling.type": "yarn"}, factors))
    with pytest.raises(ModelError, match="attn_factor is"):
        read_gguf(tmp_path / "x.gguf")


def test_every_fourth_layer_of_a_smollm3_turns_nothing(tmp_path):
    """llama.cpp knows no other: its files do not say which."""
    (tmp_path / "x.gguf").write_bytes(written("smollm3", "smollm3", {"smollm3.attention.sliding_window": 0}))
    found = read_gguf(tmp_path / "x.gguf")[0]
    assert [one.attention.rotary is not None for one in found.spec.each()] == [True, True, True, False]
    wanted = dict(read_model(write_folder("smollm3", tmp_path)).weights())
    for name, values_ in found.weights():
        np.testing.assert_allclose(values_, wanted[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("more, penalty", [
    ({"penalty_repeat": 1.05, "temp": 0.6, "top_k": 20, "sequence": "penalties;top_k", "xtc_probability": 0.0}, 1.05),
    ({"penalty_repeat": 1.05, "penalty_last_n": 64}, "penalty_last_n is 64"), ({"penalty_repeat": 1.0, "penalty_last_n": 64}, None),
    ({"penalty_repeat": 0.0}, None), ({"mirostat": 2}, "mirostat is 2, which is not"), ({"dry_multiplier": 0.5}, "is in no list"),
    ({"penalty_repeat": -1.0}, "repetition_penalty is -1.0"), ({"penalty_repeat": [1, 2]}, "repetition_penalty is"),
])  # fmt: skip
def test_how_tokens_are_chosen(tmp_path, more, penalty):
    (tmp_path / "x.gguf").write_bytes(written("llama", "llama", {f"general.sampling.{key}": value for key, value in more.items()}))
    if isinstance(penalty, str):
        with pytest.raises(ModelError, match=penalty):
            read_gguf(tmp_path / "x.gguf")
    else:
        assert read_gguf(tmp_path / "x.gguf")[0].spec.options.get("repetition_penalty") == penalty


@pytest.mark.parametrize("types, words, said", [
    ([3], [], "of type Q4_1, which stand for float32 values: they are written as those, and --format q4 or q8 writes fewer bits"),
    ([3], ["--format", "q8"], None), ([], [], None),
    ([3, 12], ["--format", "q8"], "of type Q4_K, which stand for float32 values: they are rounded anew from those"),
])  # fmt: skip
def test_what_becomes_of_fewer_bits_is_told(tmp_path, monkeypatch, types, words, said):
    """135 million weights in 4 bits became 540 MB without a word."""
    (tmp_path / "x.gguf").write_bytes(written("llama", "llama"))
    monkeypatch.setattr(GgufFile, "reduced", [ggml.TYPES[number] for number in types])
    found = CliRunner().invoke(main.main, ["slice", str(tmp_path / "x.gguf"), str(tmp_path / "x.h5"), *words])
    assert found.exit_code == 0 and (said in found.output if said else "stand for float32 values: they" not in found.output), found.output


def read(folder, case, more):
    """Return the model in the file of a case with `more` keys of its architecture."""
    found = written(case, case, {f"{case}.{key}": value for key, value in more.items()})
    (folder / "y.gguf").write_bytes(found)
    return read_gguf(folder / "y.gguf")[0]
