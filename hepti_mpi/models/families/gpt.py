"""GPT-2, GPT-NeoX and Phi-3: what their config.json and their tensors are called. Each keeps Q, K and V of a layer in one tensor."""

from collections.abc import Mapping
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.blocks import Layer, Norm
from hepti_mpi.models.families.decoders import (
    DROPPED,
    HEADS,
    KEYS,
    SCORES,
    TIED,
    UNTIED,
    WORDS,
    Sizes,
    activation,
    architectures,
    check_alike,
    decoder_sources,
    text_classes,
    window_of,
)
from hepti_mpi.models.families.family import CLASSES, Family, Source, Task, integer, mapping, number, pair, renamed, yes
from hepti_mpi.models.families.rotary import rotary_of, scaling_said
from hepti_mpi.models.sidefiles import honoured, refused, without
from hepti_mpi.models.steps import Lookup

PHI3_CLASSES = ("Phi3Config", "Phi3Model", "Phi3ForCausalLM")
ALMOST = "the class that transformers itself has may answer differently"
GPT2_NAMES = {
    "n_embd": "hidden_size", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers", "n_positions": "max_position_embeddings",
}  # fmt: skip


def gpt2_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of a GPT-2. Raises ModelError."""
    whole = renamed(config, GPT2_NAMES)
    named = {key: whole[key] for key in GPT2_NAMES.values()}
    inner = config.get("n_inner") or 4 * integer(named, "hidden_size")
    eps = number(config, "layer_norm_epsilon", 1e-5)
    sizes = Sizes.of(named | {"vocab_size": config.get("vocab_size"), "intermediate_size": inner, "rms_norm_eps": eps})
    check_alike(config, sizes, None)
    norm = Norm(sizes.hidden, eps)
    mlp = sizes.mlp(activation(config, "activation_function", default="gelu_new"), gated=False, bias=True)
    attentions = [sizes.attention(None, biases="qkvo", scale=scale) for scale in _scales(config, sizes)]
    tables = ("ids", "words", sizes.vocabulary), ("positions", "positions", sizes.positions)
    front = tuple(Lookup(f"embedding.{name}", by, size, sizes.hidden) for by, name, size in tables)
    return sizes.fields([Layer(attention, mlp, before=(norm, norm)) for attention in attentions], front) | {"last": norm}


def _scales(config: Mapping[str, Any], sizes: Sizes) -> list[float | None]:
    """Return by what each layer's scores are multiplied, None for as they are as a rule. Raises ModelError."""
    by_width, key = yes(config, "scale_attn_weights", True), "scale_attn_by_inverse_layer_idx"
    by_number = config.get(key) is not None and yes(config, key, False)
    if by_width and not by_number:
        return [None] * sizes.layers
    first = sizes.dim**-0.5 if by_width else 1.0
    return [first / (number + 1 if by_number else 1) for number in range(sizes.layers)]


def neox_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of a GPT-NeoX. Raises ModelError."""
    eps = number(config, "layer_norm_eps", 1e-5)
    sizes = Sizes.of({key: value for key, value in config.items() if key != "num_key_value_heads"} | {"rms_norm_eps": eps})
    check_alike(config, sizes, None)
    norm, part = Norm(sizes.hidden, eps), config.get("rotary_pct", 0.25)
    said = {"rope_theta": config.get("rotary_emb_base", 10000.0), "partial_rotary_factor": part}
    rotary = rotary_of(dict(config) | said, sizes.dim, partly=True)
    attention = sizes.attention(rotary, biases="qkvo" if yes(config, "attention_bias", True) else "")
    mlp = sizes.mlp(activation(config, "hidden_act", default="gelu"), gated=False, bias=True)
    layer = Layer(attention, mlp, before=(norm, norm), parallel=yes(config, "use_parallel_residual", True))
    return sizes.fields([layer] * sizes.layers) | {"last": norm}


def phi3_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of a Phi-3. Raises ModelError."""
    check_code(config)
    config = with_longrope(config)
    sizes = Sizes.of(config)
    check_alike(config, sizes, window_of(config))
    attention = sizes.attention(rotary_of(config, sizes.dim, partly=True), window=window_of(config))
    layer = Layer(attention, sizes.mlp(activation(config, "hidden_act")), before=(sizes.norm, sizes.norm))
    return sizes.fields([layer] * sizes.layers)


def with_longrope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return config.json with longrope under its own name: older files call it su, or yarn, which it is not. Raises ModelError for any
    other scaling, as transformers does. Source: Phi3Config, transformers 5.23.
    """
    said = scaling_said(config)
    name = said.get("rope_type", said.get("type", "default"))
    if name in ("su", "yarn"):
        return {**config, "rope_parameters": {**said, "rope_type": "longrope"}, "rope_scaling": None}
    if name not in ("default", "longrope"):
        raise ModelError(f"config.json: positions are scaled by {name!r:.60}, which is not for this family; supported: longrope")
    return config


def check_code(config: Mapping[str, Any]) -> None:
    """Refuse code of the folder but for that of Phi-3 itself, which Microsoft's models still name: it became transformers' class, and says
    the same. Raises ModelError.
    """
    for key, name in mapping(config, "auto_map").items():
        if key.startswith(("AutoConfig", "AutoModel")) and str(name).rsplit(".", 1)[-1] not in PHI3_CLASSES:
            raise ModelError(f"config.json: auto_map names {name!r:.60}, code of the folder, which is never run: {ALMOST}")


OWN_CLASSES = SCORES | pair("head.classes", "classifier")


def _gpt2_sources() -> dict[str, Source]:
    found = {"embedding.words": Source("as is", ("wte.weight",)), "embedding.positions": Source("as is", ("wpe.weight",))}
    found |= {"head.words.weight": Source("as is", ("lm_head.weight",)), **OWN_CLASSES, **pair("final.norm", "ln_f")}
    for place, m in enumerate("qkv"):
        found[f"layers.{{}}.attention.{m}.weight"] = Source("columns", ("h.{}.attn.c_attn.weight",), part=(place, 3))
        found[f"layers.{{}}.attention.{m}.bias"] = Source("heads", ("h.{}.attn.c_attn.bias",), part=(place, 3))
    found |= {"layers.{}.attention.o.weight": Source("heads", ("h.{}.attn.c_proj.weight",))}
    found |= {"layers.{}.attention.o.bias": Source("as is", ("h.{}.attn.c_proj.bias",))}
    found |= pair("layers.{}.attention.norm", "h.{}.ln_1") | pair("layers.{}.mlp.norm", "h.{}.ln_2")
    return found | pair("layers.{}.mlp.up", "h.{}.mlp.c_fc", "transpose") | pair("layers.{}.mlp.down", "h.{}.mlp.c_proj")


def _neox_sources() -> dict[str, Source]:
    found = {"embedding.words": Source("as is", ("embed_in.weight",)), "head.words.weight": Source("as is", ("embed_out.weight",))}
    found |= OWN_CLASSES | pair("final.norm", "final_layer_norm")
    for place, m in enumerate("qkv"):
        for role in ("weight", "bias"):
            tensor = f"layers.{{}}.attention.query_key_value.{role}"
            found[f"layers.{{}}.attention.{m}.{role}"] = Source("interleaved", (tensor,), part=(place, 3))
    found |= pair("layers.{}.attention.o", "layers.{}.attention.dense", "transpose")
    found |= pair("layers.{}.attention.norm", "layers.{}.input_layernorm")
    found |= pair("layers.{}.mlp.norm", "layers.{}.post_attention_layernorm")
    found |= pair("layers.{}.mlp.up", "layers.{}.mlp.dense_h_to_4h")
    return found | pair("layers.{}.mlp.down", "layers.{}.mlp.dense_4h_to_h", "transpose")


def _phi3_sources() -> dict[str, Source]:
    found = decoder_sources()
    for place, m in enumerate("qkv"):
        found[f"layers.{{}}.attention.{m}.weight"] = Source("heads", ("layers.{}.self_attn.qkv_proj.weight",), part=(place, 3))
    for place, m in enumerate(("gate", "up")):
        found[f"layers.{{}}.mlp.{m}.weight"] = Source("as is", ("layers.{}.mlp.gate_up_proj.weight",), part=(place, 2))
    return found


OWN_TOKEN_CLASSES = Task("token-classes", (CLASSES,))
GPT2 = Family(
    name="gpt2",
    fields=gpt2_fields,
    prefixes=("transformer.",),
    architectures={
        "GPT2LMHeadModel": WORDS,
        "GPT2ForSequenceClassification": text_classes(),
        "GPT2ForTokenClassification": OWN_TOKEN_CLASSES,
    },
    sources=_gpt2_sources(),
    dropped={r"h\.\d+\.attn\.(bias|masked_bias)": "a mask", **DROPPED},
    tied=("lm_head.weight", "wte.weight"),
    keys={
        **KEYS,
        **honoured("n_embd n_head n_layer n_positions n_inner activation_function layer_norm_epsilon"),
        **honoured("scale_attn_weights scale_attn_by_inverse_layer_idx"),
        **without("n_ctx n_special predict_special_tokens *_pdrop reorder_and_upcast_attn"),
    },
    tokenizer="GPT2Tokenizer",
    types_are_words=True,
)
NEOX = Family(
    name="gpt_neox",
    fields=neox_fields,
    prefixes=("gpt_neox.",),
    architectures=architectures("GPTNeoX") | {"GPTNeoXForTokenClassification": OWN_TOKEN_CLASSES},
    sources=_neox_sources(),
    dropped={
        r"layers\.\d+\.attention\.(bias|masked_bias)": "a mask",
        r"embed_out\.weight": "a repetition of the word embeddings, or the words of a classifier",
        **HEADS,
    },
    renames=((r"^lm_head\.weight$", "embed_out.weight"),),  # in memory transformers 5 calls it so
    tied=("embed_out.weight", "embed_in.weight"),
    keys={**KEYS, **honoured("rotary_pct rotary_emb_base use_parallel_residual layer_norm_eps"), **without("partial_rotary_factor")},
    tokenizer="GPTNeoXTokenizer",
    defaults=UNTIED,
)
PHI3 = Family(
    name="phi3",
    fields=phi3_fields,
    prefixes=("model.",),
    architectures=architectures("Phi3", padding=32000),
    sources=_phi3_sources(),
    dropped=DROPPED,
    tied=TIED,
    keys={
        **KEYS,
        **honoured("original_max_position_embeddings partial_rotary_factor auto_map"),
        **without("*_pdrop full_attn_mod interpolate_factor"),
        **refused("lm_head_bias", "the words of this family have no bias"),
    },
    tokenizer="PreTrainedTokenizerFast",
    other_tokenizers=False,
    defaults=UNTIED | {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
)
MODEL_TYPES = {"gpt2": GPT2, "gpt_neox": NEOX, "phi3": PHI3}
