"""BERT: what its config.json and its tensors are called."""

from collections.abc import Mapping
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.families.family import (
    CLASSES,
    LEFT_OVER,
    POOLER,
    Family,
    Source,
    Task,
    alike,
    dense,
    integer,
    norm,
    pair,
    shared_fields,
    token_front,
    words,
)


def bert_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of a BERT. Raises ModelError."""
    kind = config.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise ModelError(f"config.json: position_embedding_type {kind!r:.60} is not supported; supported: absolute")
    shared, positions = shared_fields(config), integer(config, "max_position_embeddings", 512)
    vocabulary, types = integer(config, "vocab_size", 30522), integer(config, "type_vocab_size", 2)
    front = token_front(vocabulary, positions, types, shared["hidden"], shared["norm_eps"])
    return shared | alike(shared, first=False) | {"embedding": "tokens", "positions": positions, "front": front}


BERT_SOURCES = {
    "embedding.words": Source("as is", ("embeddings.word_embeddings.weight",)),
    "embedding.positions": Source("as is", ("embeddings.position_embeddings.weight",)),
    "embedding.types": Source("as is", ("embeddings.token_type_embeddings.weight",)),
    **pair("embedding.norm", "embeddings.LayerNorm"),
    **pair("layers.{}.attention.q", "encoder.layer.{}.attention.self.query", "heads"),
    **pair("layers.{}.attention.k", "encoder.layer.{}.attention.self.key", "heads"),
    **pair("layers.{}.attention.v", "encoder.layer.{}.attention.self.value", "heads"),
    **pair("layers.{}.attention.o", "encoder.layer.{}.attention.output.dense", "transpose"),
    **pair("layers.{}.attention.norm", "encoder.layer.{}.attention.output.LayerNorm"),
    **pair("layers.{}.mlp.up", "encoder.layer.{}.intermediate.dense"),
    **pair("layers.{}.mlp.down", "encoder.layer.{}.output.dense", "transpose"),
    **pair("layers.{}.mlp.norm", "encoder.layer.{}.output.LayerNorm"),
    **pair("head.pooler", "pooler.dense"),
    **pair("head.classes", "classifier"),
    **pair("head.transform", "cls.predictions.transform.dense"),
    **pair("head.norm", "cls.predictions.transform.LayerNorm"),
    "head.words.weight": Source("as is", ("cls.predictions.decoder.weight",)),
    "head.words.bias": Source("as is", ("cls.predictions.bias",)),
}
MASKED_WORDS = (dense("head.transform", "own"), norm("head.norm"), words())
BERT = Family(
    name="bert",
    fields=bert_fields,
    prefixes=("bert.",),
    architectures={
        "BertModel": Task("pooler", (POOLER,)),
        "BertForMaskedLM": Task("masked-words", MASKED_WORDS),
        "BertForPreTraining": Task("masked-words", MASKED_WORDS),
        "BertForSequenceClassification": Task("sequence-classes", (POOLER, CLASSES)),
        "BertForTokenClassification": Task("token-classes", (CLASSES,)),
    },
    sources=BERT_SOURCES,
    dropped={
        r"cls\.seq_relationship\.(weight|bias)": "next sentence prediction",
        r"pooler\.dense\.(weight|bias)": "a pooler that the head does not use",
        r"cls\.predictions\.decoder\.weight": "a repetition of the word embeddings",
        r"cls\.predictions\..*": "a word head of an architecture without one",
        **LEFT_OVER,
    },
    tied=("cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"),
    instead={"cls.predictions.decoder.bias": "cls.predictions.bias"},  # source: BertLMPredictionHead.forward, transformers 5
)
MODEL_TYPES = {"bert": BERT}
