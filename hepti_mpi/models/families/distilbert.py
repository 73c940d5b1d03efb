"""DistilBERT: what its config.json and its tensors are called; a BERT without token types and without a pooler."""

from collections.abc import Mapping
from typing import Any

from hepti_mpi.models.families.family import (
    CLASSES,
    LEFT_OVER,
    Family,
    Source,
    Task,
    alike,
    dense,
    integer,
    norm,
    pair,
    renamed,
    shared_fields,
    token_front,
    words,
)
from hepti_mpi.models.sidefiles import honoured, without

KEYS = {  # its own, and what the same is called elsewhere: transformers reads both
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
}


def distilbert_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of a DistilBERT. Raises ModelError."""
    sizes = {"num_hidden_layers": 6} | {name: value for name, value in renamed(config, KEYS).items() if value is not None}
    sizes |= {"layer_norm_eps": 1e-12, "hidden_act": config.get("activation", "gelu"), "intermediate_size": config.get("hidden_dim", 3072)}
    shared = shared_fields(sizes)
    positions = integer(config, "max_position_embeddings", 512)
    front = token_front(integer(config, "vocab_size", 30522), positions, 0, shared["hidden"], shared["norm_eps"])
    return shared | alike(shared, first=False) | {"embedding": "tokens", "positions": positions, "front": front}


DISTILBERT = Family(
    name="distilbert",
    fields=distilbert_fields,
    prefixes=("distilbert.",),
    architectures={
        "DistilBertModel": Task("none"),
        "DistilBertForMaskedLM": Task("masked-words", (dense("head.transform", "own"), norm("head.norm"), words())),
        "DistilBertForSequenceClassification": Task("sequence-classes", (dense("head.dense", "relu"), CLASSES)),
        "DistilBertForTokenClassification": Task("token-classes", (CLASSES,)),
    },
    sources={
        "embedding.words": Source("as is", ("embeddings.word_embeddings.weight",)),
        "embedding.positions": Source("as is", ("embeddings.position_embeddings.weight",)),
        **pair("embedding.norm", "embeddings.LayerNorm"),
        **pair("layers.{}.attention.q", "transformer.layer.{}.attention.q_lin", "heads"),
        **pair("layers.{}.attention.k", "transformer.layer.{}.attention.k_lin", "heads"),
        **pair("layers.{}.attention.v", "transformer.layer.{}.attention.v_lin", "heads"),
        **pair("layers.{}.attention.o", "transformer.layer.{}.attention.out_lin", "transpose"),
        **pair("layers.{}.attention.norm", "transformer.layer.{}.sa_layer_norm"),
        **pair("layers.{}.mlp.up", "transformer.layer.{}.ffn.lin1"),
        **pair("layers.{}.mlp.down", "transformer.layer.{}.ffn.lin2", "transpose"),
        **pair("layers.{}.mlp.norm", "transformer.layer.{}.output_layer_norm"),
        **pair("head.dense", "pre_classifier"),
        **pair("head.classes", "classifier"),
        **pair("head.transform", "vocab_transform"),
        **pair("head.norm", "vocab_layer_norm"),
        "head.words.weight": Source("as is", ("vocab_projector.weight",)),
        "head.words.bias": Source("as is", ("vocab_projector.bias",)),
    },
    dropped={
        r"vocab_projector\.weight": "a repetition of the word embeddings",
        r"vocab_(transform|layer_norm|projector)\.(weight|bias)": "a word head of an architecture without one",
        r"pre_classifier\.(weight|bias)": "the head of a task that the architecture is not for",
        **LEFT_OVER,
    },
    tied=("vocab_projector.weight", "embeddings.word_embeddings.weight"),
    keys={**honoured("dim n_layers n_heads hidden_dim activation"), **without("sinusoidal_pos_embds tie_weights_")},
)
MODEL_TYPES = {"distilbert": DISTILBERT}
