"""RoBERTa, XLM-RoBERTa and CamemBERT: a BERT whose positions are counted from behind its padding, and what their heads are called."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.families.bert import BERT, bert_fields
from hepti_mpi.models.families.family import CLASSES, LEFT_OVER, POOLER, Family, Source, Task, dense, norm, pair, words


def roberta_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of a RoBERTa. Raises ModelError."""
    fields, padding = bert_fields(config), config.get("pad_token_id", 1)
    if isinstance(padding, bool) or not isinstance(padding, int) or not 0 <= padding < fields["positions"] - 1:
        raise ModelError(f"config.json: pad_token_id is {padding!r:.60}, expected one from 0 to {fields['positions'] - 2}")
    return fields | {"positions": fields["positions"] - padding - 1, "options": {"padding_id": padding}}


def tasks(prefix: str) -> dict[str, Task]:
    """Return what the architectures whose names begin with `prefix` are for."""
    return {
        f"{prefix}Model": Task("pooler", (POOLER,)),
        f"{prefix}ForMaskedLM": Task("masked-words", (dense("head.transform", "gelu"), norm("head.norm"), words())),
        f"{prefix}ForSequenceClassification": Task("sequence-classes", (dense("head.dense", "tanh"), dense("head.out", out="labels"))),
        f"{prefix}ForTokenClassification": Task("token-classes", (CLASSES,)),
    }


ROBERTA = Family(
    name="roberta",
    fields=roberta_fields,
    prefixes=("roberta.",),
    architectures=tasks("Roberta"),
    sources={
        **{name: source for name, source in BERT.sources.items() if not name.startswith("head.")},
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
    instead={"lm_head.decoder.bias": "lm_head.bias"},  # source: RobertaLMHead.forward, transformers 5
    tokenizer="RobertaTokenizer",
)
MODEL_TYPES = {
    "roberta": ROBERTA,
    "xlm-roberta": replace(ROBERTA, architectures=tasks("XLMRoberta"), tokenizer="XLMRobertaTokenizer"),
    "camembert": replace(ROBERTA, architectures=tasks("Camembert"), tokenizer="CamembertTokenizer"),
}
