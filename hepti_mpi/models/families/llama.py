"""Llama, Mistral, Qwen2, Qwen3 and SmolLM3: what their config.json and their tensors are called."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.blocks import Layer
from hepti_mpi.models.families.decoders import (
    DROPPED,
    KEYS,
    TIED,
    UNTIED,
    Sizes,
    activation,
    architectures,
    check_alike,
    decoder_sources,
    window_of,
    windows,
)
from hepti_mpi.models.families.family import Family, integer, yes
from hepti_mpi.models.families.rotary import rotary_of
from hepti_mpi.models.sidefiles import honoured


def llama_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of a Llama. Raises ModelError."""
    sizes = Sizes.of(config)
    attention = sizes.attention(rotary_of(config, sizes.dim), biases="qkvo" if yes(config, "attention_bias", False) else "")
    mlp = sizes.mlp(activation(config, "hidden_act"), bias=yes(config, "mlp_bias", False))
    check_alike(config, sizes, None)
    return sizes.fields([Layer(attention, mlp, before=(sizes.norm, sizes.norm))] * sizes.layers)


def mistral_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of a Mistral, whose layers all may look back so far only. Raises ModelError."""
    sizes = Sizes.of(config)
    check_alike(config, sizes, window_of(config))
    attention = sizes.attention(rotary_of(config, sizes.dim), window=window_of(config))
    layer = Layer(attention, sizes.mlp(activation(config, "hidden_act")), before=(sizes.norm, sizes.norm))
    return sizes.fields([layer] * sizes.layers)


def qwen_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of a Qwen2, or of a Qwen3, which has norms of the heads of Q and K. Raises ModelError."""
    sizes = Sizes.of(config)
    more: dict[str, Any] = {"biases": "qkv"}
    if config.get("model_type") == "qwen3":
        more = {"q_norm": sizes.head_norm, "k_norm": sizes.head_norm, "biases": "qkvo" if yes(config, "attention_bias", False) else ""}
    window = window_of(config) if yes(config, "use_sliding_window", False) else None
    full = config.get("max_window_layers", 28)  # where the layers with a window begin
    each = windows(config, sizes.layers, window)
    if config.get("layer_types") is None and isinstance(full, int):
        each = [None if place < full else window for place in range(sizes.layers)]
    rotary, mlp = rotary_of(config, sizes.dim), sizes.mlp(activation(config, "hidden_act"))
    made = [Layer(sizes.attention(rotary, window=one, **more), mlp, before=(sizes.norm, sizes.norm)) for one in each]
    return sizes.fields(made)


def smollm_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of a SmolLM3, of which some layers turn nothing by position. Raises ModelError."""
    sizes, every = Sizes.of(config), integer(config, "no_rope_layer_interval", 4)
    said = config.get("no_rope_layers")
    turned = [int((number + 1) % every != 0) for number in range(sizes.layers)] if said is None else said
    if not isinstance(turned, list) or len(turned) < sizes.layers or not all(one in (0, 1) for one in turned):
        raise ModelError(f"config.json: no_rope_layers is {said!r:.100}, expected 1 or 0 for each of {sizes.layers} layers")
    turned, window = turned[: sizes.layers], window_of(config) if yes(config, "use_sliding_window", False) else None
    each = windows(config, sizes.layers, window)
    if config.get("layer_types") is None:
        each = [None if one else window for one in turned]
    rotary, biases = rotary_of(config, sizes.dim), "qkvo" if yes(config, "attention_bias", False) else ""
    mlp, before = sizes.mlp(activation(config, "hidden_act"), bias=yes(config, "mlp_bias", False)), (sizes.norm, sizes.norm)
    attentions = [sizes.attention(rotary if one else None, window=near, biases=biases) for one, near in zip(turned, each)]
    return sizes.fields([Layer(attention, mlp, before=before) for attention in attentions])


LLAMA = Family(
    name="llama",
    fields=llama_fields,
    prefixes=("model.",),
    architectures=architectures("Llama"),
    sources=decoder_sources(),
    dropped=DROPPED,
    tied=TIED,
    keys=KEYS,
    tokenizer="PreTrainedTokenizerFast",
    defaults=UNTIED | {"max_position_embeddings": 2048},
)
QWEN = UNTIED | {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096}
MISTRAL = UNTIED | {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}
MODEL_TYPES = {
    "llama": LLAMA,
    "mistral": replace(
        LLAMA,
        name="mistral",
        fields=mistral_fields,
        architectures=architectures("Mistral"),
        other_tokenizers=False,
        defaults=MISTRAL,
    ),
    "qwen2": replace(
        LLAMA,
        name="qwen2",
        fields=qwen_fields,
        architectures=architectures("Qwen2"),
        tokenizer="Qwen2Tokenizer",
        other_tokenizers=False,
        defaults=QWEN,
    ),
    "qwen3": replace(
        LLAMA,
        name="qwen3",
        fields=qwen_fields,
        architectures=architectures("Qwen3"),
        tokenizer="Qwen2Tokenizer",
        defaults=QWEN | {"head_dim": 128},
    ),
    "smollm3": replace(
        LLAMA,
        name="smollm3",
        fields=smollm_fields,
        architectures=architectures("SmolLM3", padding=128004),
        keys={**KEYS, **honoured("no_rope_layers no_rope_layer_interval")},
        defaults={"num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2e6},
    ),
}
