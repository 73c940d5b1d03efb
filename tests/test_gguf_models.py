"""Models that are in a folder and, as llama.cpp's converter writes them, in a GGUF file: the same model comes out."""

import numpy as np
import pytest
from decoders import expected, values
from gguf_files import gguf
from test_gguf import LETTERS

from hepti_mpi.errors import ModelError
from hepti_mpi.models.checkpoints.gguffiles import read_gguf
from hepti_mpi.models.checkpoints.ggufmodel import ARCHITECTURES
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


def written(case, key):
    """Return the GGUF file of a case: names, order of rows and added ones as convert_hf_to_gguf.py has them."""
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
    return gguf({"general.architecture": key} | sizes | TOKENS, tensors)


CASES = [("llama", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3"), ("gemma2", "gemma2"), ("gpt2", "gpt2")]


@pytest.mark.parametrize("case, key", CASES)
def test_the_same_model(tmp_path, case, key):
    (tmp_path / "x.gguf").write_bytes(written(case, key))
    found, mixed = read_gguf(tmp_path / "x.gguf")
    wanted = read_model(write_folder(case, tmp_path))
    assert mixed == [] and found.spec.options["ends"] == [2]
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


def test_several_in_a_folder(tmp_path):
    from hepti_mpi.models.checkpoints.gguffiles import gguf_path

    (tmp_path / "a.gguf").write_bytes(b"")
    assert gguf_path(tmp_path) == tmp_path / "a.gguf" == gguf_path(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match="name one"):
        gguf_path(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert gguf_path(tmp_path) is None
