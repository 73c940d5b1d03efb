"""MPNet: a BERT without token types whose layers share a table of relative positions."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.blocks import SHARED, Norm, Relative, plain
from hepti_mpi.models.families.bert import BERT
from hepti_mpi.models.families.family import (
    CLASSES,
    LEFT_OVER,
    POOLER,
    Family,
    Source,
    Task,
    dense,
    integer,
    listed,
    norm,
    pair,
    shared_fields,
    token_front,
    words,
)
from hepti_mpi.models.sidefiles import honoured

PADDING = 1  # source: MPNetEmbeddings, transformers 5.23: whatever pad_token_id says
RELATIVE = Relative(buckets=32, distance=128)  # source: MPNetEncoder.compute_position_bias: whatever config.json says


def mpnet_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of an MPNet. Raises ModelError."""
    shared, positions = shared_fields(config), integer(config, "max_position_embeddings", 512)
    hidden, heads, eps = shared["hidden"], shared["heads"], shared["norm_eps"]
    if integer(config, "relative_attention_num_buckets", 32) != RELATIVE.buckets:
        raise ModelError(f"config.json: relative_attention_num_buckets is {config['relative_attention_num_buckets']}, only 32 are read")
    if hidden % heads or positions <= PADDING + 1:
        raise ModelError(f"config.json: hidden_size {hidden}, num_attention_heads {heads}, max_position_embeddings {positions} is no MPNet")
    layer = plain(hidden, heads, shared["ffn"], shared["activation"], Norm(hidden, eps), first=False)
    layer = replace(layer, attention=replace(layer.attention, relative=RELATIVE))
    front = token_front(integer(config, "vocab_size", 30527), positions, 0, hidden, eps)
    fields = {"embedding": "tokens", "positions": positions - PADDING - 1, "front": front}
    return shared | fields | {"options": {"padding_id": PADDING}} | listed([layer] * shared["layers"])


MPNET = Family(
    name="mpnet",
    fields=mpnet_fields,
    prefixes=("mpnet.",),
    architectures={
        "MPNetModel": Task("pooler", (POOLER,)),
        "MPNetForMaskedLM": Task("masked-words", (dense("head.transform", "gelu"), norm("head.norm"), words())),
        "MPNetForSequenceClassification": Task("sequence-classes", (dense("head.dense", "tanh"), dense("head.out", out="labels"))),
        "MPNetForTokenClassification": Task("token-classes", (CLASSES,)),
    },
    sources={
        **{name: source for name, source in BERT.sources.items() if not name.startswith("head.") and name != "embedding.types"},
        SHARED: Source("transpose", ("encoder.relative_attention_bias.weight",)),
        **pair("layers.{}.attention.q", "encoder.layer.{}.attention.attn.q", "heads"),
        **pair("layers.{}.attention.k", "encoder.layer.{}.attention.attn.k", "heads"),
        **pair("layers.{}.attention.v", "encoder.layer.{}.attention.attn.v", "heads"),
        **pair("layers.{}.attention.o", "encoder.layer.{}.attention.attn.o", "transpose"),
        **pair("layers.{}.attention.norm", "encoder.layer.{}.attention.LayerNorm"),
        **pair("head.pooler", "pooler.dense"),
        **pair("head.classes", "classifier"),
        **pair("head.dense", "classifier.dense"),
        **pair("head.out", "classifier.out_proj"),
        **pair("head.transform", "lm_head.dense"),
        **pair("head.norm", "lm_head.layer_norm"),
        "head.words.weight": Source("as is", ("lm_head.decoder.weight",)),
        "head.words.bias": Source("as is", ("lm_head.bias",)),
    },
    dropped={
        r"pooler\.dense\.(weight|bias)": "a pooler that the head does not use",
        r"lm_head\.decoder\.weight": "a repetition of the word embeddings",
        r"lm_head\..*": "a word head of an architecture without one",
        r"classifier\.(dense|out_proj)\.(weight|bias)": "the head of a task that the architecture is not for",
        **LEFT_OVER,
    },
    tied=("lm_head.decoder.weight", "embeddings.word_embeddings.weight"),
    instead={"lm_head.decoder.bias": "lm_head.bias"},
    keys=honoured("relative_attention_num_buckets"),
    tokenizer="MPNetTokenizer",
)
MODEL_TYPES = {"mpnet": MPNET}
