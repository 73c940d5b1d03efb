"""Tiny decoders whose weights follow from their names, so that only what transformers says of them has to be kept (golden/decoders.npz)."""

import json
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "decoders.npz"
LONG = GOLDEN.with_name("long_decoders.npz")
LENGTHS = (40, 1, 17)
LONG_LENGTHS = (300, 1, 2, 127, 128, 129, 257)  # around where the pieces of a prompt end
BASE = {
    "vocab_size": 131, "hidden_size": 42, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8,
    "intermediate_size": 70, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.0, 4.0, 8.0, 16.0]}
CASES = {
    "llama": BASE | {"model_type": "llama", "tie_word_embeddings": False},
    "llama3": BASE | {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": LLAMA3, "tie_word_embeddings": True,
                      "attention_bias": True, "mlp_bias": True},
    "llama_groups": BASE | {"model_type": "llama", "num_attention_heads": 9, "head_dim": 32, "hidden_size": 45,
                            "tie_word_embeddings": False},
    "qwen3_groups": BASE | {"model_type": "qwen3", "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 48,
                            "tie_word_embeddings": True},
    "yarn": BASE | {"model_type": "llama", "rope_scaling": YARN, "tie_word_embeddings": True},
    "mistral": BASE | {"model_type": "mistral", "sliding_window": 9, "tie_word_embeddings": False},
    "qwen2": BASE | {"model_type": "qwen2", "tie_word_embeddings": True, "hidden_size": 48,
                     "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "qwen3": BASE | {"model_type": "qwen3", "tie_word_embeddings": True, "head_dim": 16},
    "smollm3": BASE | {"model_type": "smollm3", "hidden_size": 48, "num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0],
                       "use_sliding_window": True, "sliding_window": 9, "tie_word_embeddings": False, "attention_bias": True,
                       "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]},
    "gemma": BASE | {"model_type": "gemma", "head_dim": 16, "hidden_act": "gelu"},  # by tanh, whatever it is called
    "gemma2": BASE | {"model_type": "gemma2", "head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 20},
    "gemma3": BASE | {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 16,
                      "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
                      "attn_logit_softcapping": 5.0, "final_logit_softcapping": 20.0},
    "phi3": BASE | {"model_type": "phi3", "hidden_size": 48, "sliding_window": 9, "tie_word_embeddings": False,
                    "rope_scaling": LONGROPE, "original_max_position_embeddings": 64},
    "gpt2": {"model_type": "gpt2", "vocab_size": 131, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 64, "n_inner": 70,
             "bos_token_id": 1, "eos_token_id": 2},
    "gpt2_scaled": {"model_type": "gpt2", "vocab_size": 131, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 64, "n_inner": 70,
                    "scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False, "reorder_and_upcast_attn": True},
    "gpt_neox": BASE | {"model_type": "gpt_neox", "hidden_size": 48, "rotary_pct": 0.5, "tie_word_embeddings": False},
    "gpt_neox_serial": BASE | {"model_type": "gpt_neox", "hidden_size": 48, "rotary_pct": 1.0, "tie_word_embeddings": False,
                               "use_parallel_residual": False},
    "starcoder2": BASE | {"model_type": "starcoder2", "hidden_size": 48, "sliding_window": 9, "norm_epsilon": 1e-3},
}  # fmt: skip
# of tokens and of whole texts, whose last token is not the one of pad_token_id where there is one (golden/decoder_classes.npz)
CLASSIFYING = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3", "phi3", "gpt2", "gpt_neox", "starcoder2")
CLASSES = [(case, task) for case in CLASSIFYING for task in ("Sequence", "Token") if (case, task) != ("gemma3", "Token")]
CLASSIFIERS = GOLDEN.with_name("decoder_classes.npz")
NO_PADDING = ("mistral", "gpt2")
LABELS = {"llama": 1, "gpt_neox": 2}  # others: 3


def values(name, shape):
    """Return the float32 weights of a tensor: around 1 for norms, around 0 for others."""
    found = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape, np.float32) * np.float32(0.25)
    return found + np.float32(("norm" in name or "ln_" in name) and name.endswith("weight"))


def long(sizes):
    """Return the config of a case with room for long prompts."""
    more = {"original_max_position_embeddings": 320} if "original_max_position_embeddings" in sizes else {}  # longrope's short factors only
    return sizes | {"n_positions" if "n_positions" in sizes else "max_position_embeddings": 512} | more


def expected(case, golden=GOLDEN):
    """Return (config and shapes, ids, logits, tokens) of a case."""
    with np.load(golden) as golden:
        return json.loads(str(golden[f"{case}.json"])), *(golden[f"{case}.{part}"] for part in ("ids", "logits", "tokens"))


def classified(case, task):
    """Return (config and shapes, ids [texts, longest], the logits of each) of a classifier."""
    with np.load(CLASSIFIERS) as golden:
        said, ids, logits = (golden[f"{case} {task}.{part}"] for part in ("json", "ids", "logits"))
    return json.loads(str(said)), ids, logits


def write_folder(case, folder, golden=GOLDEN):
    """Write the model folder of a case; return it."""
    return write(expected(case, golden)[0], Path(folder) / case)


def write(said, path):
    """Write a model folder of a config and the shapes of its tensors; return it."""
    from safetensors.numpy import save_file

    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(said["config"]))
    save_file({name: values(name, tuple(shape)) for name, shape in said["shapes"].items()}, path / "model.safetensors")
    return path
