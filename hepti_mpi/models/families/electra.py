"""ELECTRA, discriminator and generator: a BERT whose embeddings may be narrower than its layers, and what its heads are called."""

from collections.abc import Mapping
from typing import Any

from hepti_mpi.models.families.bert import BERT, bert_fields
from hepti_mpi.models.families.family import (
    CLASSES,
    LEFT_OVER,
    Family,
    Source,
    Task,
    dense,
    integer,
    norm,
    pair,
    token_front,
    words,
)
from hepti_mpi.models.sidefiles import honoured
from hepti_mpi.models.steps import Dense

SMALL = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}  # what it takes where config.json does not say


def electra_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of an ELECTRA. Raises ModelError."""
    fields, width = bert_fields(SMALL | dict(config)), integer(config, "embedding_size", 128)
    vocabulary, types = integer(config, "vocab_size", 30522), integer(config, "type_vocab_size", 2)
    front = token_front(vocabulary, fields["positions"], types, width, fields["norm_eps"])
    projection = (Dense("embedding.projection", width, fields["hidden"]),) if width != fields["hidden"] else ()
    return fields | {"front": (*front, *projection)}


REPLACED = (dense("head.replaced", "own"), dense("head.replaced_out", out="labels"))
ELECTRA = Family(
    name="electra",
    fields=electra_fields,
    prefixes=("electra.",),
    architectures={
        "ElectraModel": Task("none"),
        "ElectraForMaskedLM": Task("masked-words", (dense("head.transform", "gelu", "word"), norm("head.norm", "word"), words("word"))),
        "ElectraForPreTraining": Task("token-classes", REPLACED, ("replaced",)),  # one score for each token
        "ElectraForSequenceClassification": Task("sequence-classes", (dense("head.dense", "gelu"), dense("head.out", out="labels"))),
        "ElectraForTokenClassification": Task("token-classes", (CLASSES,)),
    },
    sources={
        **{name: source for name, source in BERT.sources.items() if not name.startswith("head.")},
        **pair("embedding.projection", "embeddings_project"),
        **pair("head.classes", "classifier"),
        **pair("head.dense", "classifier.dense"),
        **pair("head.out", "classifier.out_proj"),
        **pair("head.replaced", "discriminator_predictions.dense"),
        **pair("head.replaced_out", "discriminator_predictions.dense_prediction"),
        **pair("head.transform", "generator_predictions.dense"),
        **pair("head.norm", "generator_predictions.LayerNorm"),
        "head.words.weight": Source("as is", ("generator_lm_head.weight",)),
        "head.words.bias": Source("as is", ("generator_lm_head.bias",)),
    },
    dropped={
        r"generator_lm_head\.weight": "a repetition of the word embeddings",
        r"(generator|discriminator)_\w+\..*": "a head of pretraining of an architecture without one",
        r"classifier\.(dense|out_proj)\.(weight|bias)": "the head of a task that the architecture is not for",
        **LEFT_OVER,
    },
    tied=("generator_lm_head.weight", "embeddings.word_embeddings.weight"),
    keys=honoured("embedding_size"),
)
MODEL_TYPES = {"electra": ELECTRA}
