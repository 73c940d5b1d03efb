"""Gemma, Gemma 2 and Gemma 3 (texts): what their config.json and their tensors are called.

Words are multiplied by the square root of the width, norms by 1 + weight; 2 and 3 have norms of what blocks give as well.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.blocks import Layer
from hepti_mpi.models.families.decoders import (
    DROPPED,
    KEYS,
    TIED,
    WORDS,
    Sizes,
    activation,
    architectures,
    check_alike,
    decoder_sources,
    text_classes,
    window_of,
    windows,
)
from hepti_mpi.models.families.family import Family, Source, integer, mapping, number, yes
from hepti_mpi.models.families.rotary import rotary_of
from hepti_mpi.models.sidefiles import honoured, refused, without
from hepti_mpi.models.steps import Lookup, Scale

LOCAL, FULL = "sliding_attention", "full_attention"
TANH = "gelu_pytorch_tanh"


def gemma_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of a Gemma of any version. Raises ModelError."""
    version = {"gemma": 1, "gemma2": 2}.get(str(config.get("model_type")), 3)
    sizes = Sizes.of(config)
    more: dict[str, Any] = {"biases": "qkvo" if yes(config, "attention_bias", False) else ""}
    if version == 1:
        check_alike(config, sizes, None)
    if version > 1:
        more["scale"] = number(config, "query_pre_attn_scalar", 256) ** -0.5
    if version == 2:  # Gemma 3 of transformers 5 reads it and does nothing with it
        more["softcap"] = _cap(config, "attn_logit_softcapping")
    if version == 3:
        more |= {"q_norm": sizes.head_norm, "k_norm": sizes.head_norm, "causal": not _both_ways(config)}
    mlp, both = sizes.mlp(_activation(config, version)), (sizes.norm, sizes.norm)
    given = both if version > 1 else (None, None)
    if version == 3:
        _check_flat(config)
    old = mapping(config, "rope_scaling")  # which transformers puts over a default of layers that see all rows: "type" alone does nothing
    if version == 3 and not config.get("rope_parameters") and old and ("rope_type" not in old or LOCAL in old or FULL in old):
        raise ModelError(f"config.json: rope_scaling is {dict(old)!r:.60}, expected rope_type, factor and so on of {FULL}")
    made = []
    for window in _windows(config, sizes.layers, version):
        kind = LOCAL if window is not None else FULL
        rotary = rotary_of(_near(config) if window is not None and version == 3 else config, sizes.dim, kind if version == 3 else None)
        made.append(Layer(sizes.attention(rotary, window=window, **more), mlp, before=both, given=given))
    front = Lookup("embedding.words", "ids", sizes.vocabulary, sizes.hidden), Scale("embedding.scale", math.sqrt(sizes.hidden))
    fields = sizes.fields(made, front)
    cap = _cap(config, "final_logit_softcapping") if version > 1 else 0.0
    return fields | ({"options": {"logit_cap": cap}} if cap else {})


def _cap(config: Mapping[str, Any], key: str) -> float:
    return number(config, key, 0) if config.get(key) is not None else 0.0


def _activation(config: Mapping[str, Any], version: int) -> str:
    """Return the activation of the MLP. The first version says it under another key, where "gelu" stands for the one by tanh.

    Raises ModelError where the first version's two keys differ: which of them counts has changed in transformers.
    """
    if version > 1:
        return activation(config, "hidden_activation", default=TANH)
    said = {key: TANH if config.get(key) in (None, "gelu") else config[key] for key in ("hidden_act", "hidden_activation")}
    if config.get("hidden_activation") is not None and len(set(map(str, said.values()))) > 1:
        both = " and ".join(f"{key} {config.get(key)!r:.60}" for key in said)
        raise ModelError(f"config.json says {both}; which of them counts?")
    return activation(said, "hidden_act")


def _windows(config: Mapping[str, Any], layers: int, version: int) -> list[int | None]:
    """Return per layer how far back it sees: Gemma 2 and 3 have layers that see near rows between those that see all. Raises ModelError,
    also for a null window: transformers makes masks of both kinds, whatever layer_types says, and fails at every text."""
    if version == 1:
        return [None] * layers
    near: int | None = integer(config, "sliding_window") // 2
    if not (version == 3 and _both_ways(config)):
        near = window_of(config)
    if config.get("layer_types") is not None:
        return windows(config, layers, near)
    period = 2 if version == 2 else integer(config, "sliding_window_pattern", 6)
    return [None if (place + 1) % period == 0 else near for place in range(layers)]


def _both_ways(config: Mapping[str, Any]) -> bool:
    """Return whether rows see those behind them too, half of sliding_window each way (EmbeddingGemma). Raises ModelError."""
    return config.get("use_bidirectional_attention") is not None and yes(config, "use_bidirectional_attention", False)


def _check_flat(config: Mapping[str, Any]) -> None:
    """Refuse positions that are said for all layers alike, unless layers that see all rows have these anyway: transformers passes over
    them, and takes what is said beside rope_parameters, or what the family begins with. Raises ModelError.
    """
    said = mapping(config, "rope_parameters")
    if not said or LOCAL in said or FULL in said:
        return
    kind = said.get("rope_type", said.get("type", "default"))
    same = kind == "default" and said.get("rope_theta", config.get("rope_theta")) == config.get("rope_theta")
    if not same or set(said) - {"rope_type", "type", "rope_theta"}:
        raise ModelError(f"config.json: rope_parameters is {dict(said)!r:.60}, expected them for each kind of layer: {FULL} and {LOCAL}")


def _near(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return config.json as layers that see near rows read it, where it does not say it for each kind: another base, not scaled."""
    said, near = config.get("rope_parameters"), dict(config) | {"rope_theta": config.get("rope_local_base_freq", 10000.0)}
    return near if isinstance(said, dict) and LOCAL in said else near | {"rope_scaling": None, "rope_parameters": None}


SANDWICH = decoder_sources("plus one") | {
    "layers.{}.attention.given.weight": Source("plus one", ("layers.{}.post_attention_layernorm.weight",)),
    "layers.{}.mlp.norm.weight": Source("plus one", ("layers.{}.pre_feedforward_layernorm.weight",)),
    "layers.{}.mlp.given.weight": Source("plus one", ("layers.{}.post_feedforward_layernorm.weight",)),
}
FIRST = {"head_dim": 256, "num_key_value_heads": 16, "max_position_embeddings": 8192}
GEMMA = Family(
    name="gemma",
    fields=gemma_fields,
    prefixes=("model.",),
    architectures=architectures("Gemma", padding=0),
    sources=decoder_sources("plus one"),
    dropped=DROPPED,
    tied=TIED,
    keys={
        **KEYS,
        **honoured("hidden_activation query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping sliding_window_pattern"),
        **honoured("rope_local_base_freq"),
        **without("_sliding_window_pattern"),
        **refused("use_bidirectional_attention", "rows of this family see those before them only"),
    },
    tokenizer="GemmaTokenizer",
    defaults=FIRST,
)
LATER = FIRST | {"num_key_value_heads": 4, "sliding_window": 4096}
CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
THIRD_KEYS = {**GEMMA.keys, **honoured("use_bidirectional_attention")}
THIRD = {"max_position_embeddings": 131072, "rope_theta": 1e6}
THIRD_ARCHITECTURES = {"Gemma3ForCausalLM": WORDS, "Gemma3TextForSequenceClassification": text_classes(padding=0)}
MODEL_TYPES = {
    "gemma": GEMMA,
    "gemma2": replace(GEMMA, name="gemma2", architectures=architectures("Gemma2", padding=0), sources=SANDWICH, defaults=LATER | CAPS),
    "gemma3_text": replace(GEMMA, name="gemma3", architectures=THIRD_ARCHITECTURES, sources=SANDWICH, defaults=LATER | THIRD,
                           keys=THIRD_KEYS),
}  # fmt: skip
