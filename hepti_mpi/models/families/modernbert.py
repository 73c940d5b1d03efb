"""ModernBERT: rotary positions with two bases, layers that see all tokens and layers that see near ones, gated MLPs, hardly a bias."""

from collections.abc import Mapping
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.blocks import Attention, Layer, Mlp, Norm, Rotary
from hepti_mpi.models.families.family import (
    CLASSES,
    LEFT_OVER,
    Family,
    Sizes,
    Source,
    Task,
    check_head_dim,
    integer,
    listed,
    mapping,
    named_activation,
    number,
    pair,
    shared_fields,
    yes,
)
from hepti_mpi.models.families.rotary import rotary_of
from hepti_mpi.models.sidefiles import honoured, without
from hepti_mpi.models.steps import Dense, LayerNorm, Lookup, Words

FAR, NEAR = "full_attention", "sliding_attention"
SIZES = {"num_hidden_layers": 22, "intermediate_size": 1152}  # source: ModernBertConfig, transformers 5.23


def modernbert_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of a ModernBERT. Raises ModelError."""
    own = {"hidden_act": config.get("hidden_activation", "gelu"), "layer_norm_eps": config.get("norm_eps", 1e-5)}
    shared = shared_fields(SIZES | dict(config) | own)
    hidden, heads = shared["hidden"], shared["heads"]
    norm = Norm(hidden, shared["norm_eps"], bias=yes(config, "norm_bias", False))
    mlp = Mlp(hidden, shared["ffn"], shared["activation"], gated=True, bias=yes(config, "mlp_bias", False))
    biases = "qkvo" if yes(config, "attention_bias", False) else ""
    if hidden % heads:
        raise ModelError(f"config.json: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    if config.get("head_dim") is not None:  # null means the same as no word
        check_head_dim(config, shared)
    reach = integer(config, "local_attention", 128) // 2
    attentions = {kind: Attention(hidden, heads, hidden // heads, biases=biases, rotary=turns_of(config, kind, hidden // heads),
                                  window=reach if kind == NEAR else None) for kind in (FAR, NEAR)}  # fmt: skip
    layers = [Layer(attentions[kind], mlp, before=(norm if place else None, norm)) for place, kind in enumerate(kinds_of(config, shared))]
    words = Lookup("embedding.words", "ids", integer(config, "vocab_size", 50368), hidden)
    fields = {
        "embedding": "tokens",
        "positions": integer(config, "max_position_embeddings", 8192),
        "front": (words, LayerNorm("embedding.norm", hidden, norm.eps, norm.bias)),
        "last": norm,
    }
    classifier_pooling(config)  # of other heads, too: what nobody knows may have been meant
    return shared | fields | listed(layers)


def classifier_pooling(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the row is made that a classifier of texts reads. Raises ModelError."""
    pooling = config.get("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        raise ModelError(f"config.json: classifier_pooling is {pooling!r:.60}, expected cls or mean")
    return {"pooling": pooling}


def kinds_of(config: Mapping[str, Any], shared: Mapping[str, Any]) -> list[str]:
    """Return per layer whether it sees all tokens or near ones. Raises ModelError."""
    every = integer(config, "global_attn_every_n_layers", 3)
    found = config.get("layer_types") or [NEAR if place % every else FAR for place in range(shared["layers"])]
    if not isinstance(found, list) or len(found) != shared["layers"] or not all(kind in (FAR, NEAR) for kind in found):
        raise ModelError(f"config.json: layer_types is {found!r:.60}, expected {FAR} or {NEAR} for each of {shared['layers']}")
    return found


def turns_of(config: Mapping[str, Any], kind: str, dim: int) -> Rotary:
    """Return the rotary positions of a kind of layers. Raises ModelError."""
    both, old = mapping(config, "rope_parameters"), mapping(config, "rope_scaling")
    if set(both) - {FAR, NEAR}:
        raise ModelError(f"config.json: rope_parameters is {both!r:.60}, expected them for each kind of layer: {FAR} and {NEAR}")
    if old and (both or "rope_type" not in old or FAR in old or NEAR in old):  # transformers puts it over what both kinds say
        raise ModelError(f"config.json: rope_scaling is {old!r:.60}; put what is meant into rope_parameters, for {FAR} and {NEAR}")
    theta, default = {FAR: ("global_rope_theta", 160000.0), NEAR: ("local_rope_theta", 10000.0)}[kind]
    said = {"rope_theta": number(config, theta, default)} | dict(mapping(both, kind)) | dict(old)
    return rotary_of(dict(config) | {"rope_parameters": {kind: said}, "rope_scaling": None}, dim, kind)


def transform(sizes: Sizes) -> Dense:
    """Return the product in front of classes and words."""
    config, hidden = sizes["config"], sizes["hidden"]
    activation, bias = named_activation(config, "classifier_activation", "gelu"), yes(config, "classifier_bias", False)
    return Dense("head.transform", hidden, hidden, activation, bias)


def head_norm(sizes: Sizes) -> LayerNorm:
    """Return the norm behind that product."""
    return LayerNorm("head.norm", sizes["hidden"], sizes["norm_eps"], sizes["last"].bias)


def words(sizes: Sizes) -> Words:
    """Return the step to words."""
    return Words("head.words", sizes["vocabulary"], sizes["hidden"], sizes["tied"], yes(sizes["config"], "decoder_bias", True))


MODERNBERT = Family(
    name="modernbert",
    fields=modernbert_fields,
    prefixes=("model.",),
    architectures={
        "ModernBertModel": Task("none"),
        "ModernBertForMaskedLM": Task("masked-words", (transform, head_norm, words)),
        "ModernBertForSequenceClassification": Task("sequence-classes", (transform, head_norm, CLASSES), options=classifier_pooling),
        "ModernBertForTokenClassification": Task("token-classes", (transform, head_norm, CLASSES)),
    },
    sources={
        "embedding.words": Source("as is", ("embeddings.tok_embeddings.weight",)),
        **pair("embedding.norm", "embeddings.norm"),
        **{key: source for at, m in enumerate("qkv")
           for key, source in pair(f"layers.{{}}.attention.{m}", "layers.{}.attn.Wqkv", "heads", part=(at, 3)).items()},
        **pair("layers.{}.attention.o", "layers.{}.attn.Wo", "transpose"),
        **pair("layers.{}.attention.norm", "layers.{}.attn_norm"),
        **pair("layers.{}.mlp.gate", "layers.{}.mlp.Wi", part=(0, 2)),
        **pair("layers.{}.mlp.up", "layers.{}.mlp.Wi", part=(1, 2)),
        **pair("layers.{}.mlp.down", "layers.{}.mlp.Wo", "transpose"),
        **pair("layers.{}.mlp.norm", "layers.{}.mlp_norm"),
        **pair("final.norm", "final_norm"),
        **pair("head.transform", "head.dense"),
        **pair("head.norm", "head.norm"),
        **pair("head.classes", "classifier"),
        "head.words.weight": Source("as is", ("decoder.weight",)),
        "head.words.bias": Source("as is", ("decoder.bias",)),
    },
    dropped={
        r"decoder\.weight": "a repetition of the word embeddings",
        r"(head\.(dense|norm)|decoder)\.(weight|bias)": "a head of an architecture without one",
        **LEFT_OVER,
    },
    tied=("decoder.weight", "embeddings.tok_embeddings.weight"),
    keys={
        **honoured("hidden_activation norm_eps norm_bias attention_bias mlp_bias decoder_bias local_attention layer_types rope_parameters"),
        **honoured("global_attn_every_n_layers global_rope_theta local_rope_theta rope_scaling"),
        **honoured("classifier_pooling classifier_bias classifier_activation"),
        **without("deterministic_flash_attn sparse_prediction sparse_pred_ignore_index reference_compile repad_logits_with_grad"),
    },
    tokenizer="PreTrainedTokenizerFast",
    other_tokenizers=False,
)  # fmt: skip
MODEL_TYPES = {"modernbert": MODERNBERT}
