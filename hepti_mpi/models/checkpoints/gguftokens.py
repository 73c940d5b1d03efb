"""The tokenizer of a GGUF file as a tokenizer.json: byte-level BPE made of its vocabulary, its merges and the name of its splitting rule,
or SentencePiece's of its scores.

Knows the keys tokenizer.* of the file and the rules that models use under these names; knows no tensor and no text.
Source: src/llama-vocab.cpp of llama.cpp for the rules, and each model's tokenizer.json for how they are written.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from hepti_mpi.errors import ModelError
from hepti_mpi.models.checkpoints.ggufkeys import KEY, check_keys
from hepti_mpi.models.checkpoints.pieces import pieces_tokenizer
from hepti_mpi.models.inputs.chat import NAME as TEMPLATE
from hepti_mpi.models.inputs.chat import WITH_TOOLS, ChatTemplate
from hepti_mpi.models.inputs.tokens import guarded
from hepti_mpi.models.untrusted import shown
from hepti_mpi.wording import counted

PIECES = "llama"
PLAIN, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6  # types of tokens; all but bytes are taken whole where a text says them
LONGEST = 1 << 10  # characters of a piece, each of which is a place where two others may meet
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN, LLAMA3 = WORDS % "", WORDS % "{1,3}"
SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = (  # words end before a capital letter
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s|\p{{N}}%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CODE = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}")  # DeepSeek Coder
STRIPPING = "phi3"  # the architecture of which spaces and line ends behind such tokens are left out, but behind:
KEEPING = ("<unk>", "<s>", "<|endoftext|>")
# of an answer, beside eos: whatever type the file says they are of, but for one that is a word of HTML where the file has it as its user's
TAG = "</s>"
ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<eos>", "<EOT>", "[EOT]",
        "[EOS]", "<end_of_utterance>", "<\uff5cend\u2581of\u2581sentence\uff5c>", TAG)  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """How texts are split before merging. `patterns`: one after the other, none for GPT-2's own; `digits`: each by itself; `whole`: words
    that are tokens are not merged anew; `begun`: texts begin with the file's bos where it does not say whether they do."""

    patterns: tuple[str, ...] = ()
    digits: bool = False
    whole: bool = False
    composed: bool = False
    begun: bool = False


RULES = {
    "gpt-2": Rule(),
    "smollm": Rule(digits=True),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), Rule((LLAMA3,), whole=True, begun=True)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), Rule((QWEN,), composed=True)),
    "deepseek-coder": Rule(CODE),
    "tekken": Rule((CASED % ("", "", ""),), whole=True, begun=True),
    "gpt-4o": Rule((CASED % (SHORT, SHORT, "{1,3}"),)),
}


@dataclass(frozen=True)
class GgufTokens:
    """What a run reads of the tokenizer: `files` by name; `ends`: the tokens that end an answer."""

    files: dict[str, bytes]
    ends: tuple[int, ...]


def gguf_tokens(metadata: Mapping[str, Any], own: bytes | None = None) -> GgufTokens:
    """Return the tokenizer in `metadata`; `own`: the tokenizer.json that lies beside the file, which is taken instead.

    Raises ModelError for one that is damaged or of another kind.
    """
    texts = metadata.get(f"{KEY}tokens")
    if not isinstance(texts, list) or not texts:
        raise ModelError("the GGUF file has no tokenizer.ggml.tokens")
    check_keys(metadata, own is not None)
    bos, eos = (_id(metadata, name, len(texts)) for name in ("bos_token_id", "eos_token_id"))
    types = _types(metadata, texts)
    ends = [eos, *(_id(metadata, name, len(texts)) for name in ("eot_token_id", "eom_token_id")), *_more_ends(metadata, len(texts))]
    ends += [place for text in ENDS if text in texts and types[place := texts.index(text)] == CONTROL]
    if own is None:
        make = _pieces if _name(metadata, "model") == PIECES else _bpe
        tokenizer = guarded(lambda: make(metadata, texts, types), ModelError("the tokenizer of the GGUF file cannot be made"))
        own = guarded(lambda: tokenizer.to_str(), ModelError("the tokenizer of the GGUF file cannot be written")).encode()
    else:
        _check_same(own, texts, types)
    said = {"mask_token": None, "model_input_names": ["input_ids", "attention_mask"], "truncation_side": "right", "padding_side": "left"}
    said |= {name: texts[number] for name, number in (("bos_token", bos), ("eos_token", eos)) if number is not None}
    files = {"tokenizer.json": own, "tokenizer_config.json": json.dumps(said).encode()}
    for key, name in (("tokenizer.chat_template", TEMPLATE), ("tokenizer.chat_template.tool_use", WITH_TOOLS)):
        if (template := metadata.get(key)) is not None:
            if not isinstance(template, str):
                raise ModelError(f"the GGUF file's {key} is {shown(template, 60)}, expected a text")
            ChatTemplate(template, {})
            files[name] = template.encode()
    return GgufTokens(files, tuple(dict.fromkeys(number for number in ends if number is not None)))


def _check_same(own: bytes, texts: Sequence[str], types: np.ndarray) -> None:
    """Refuse a tokenizer.json of another model, which lies beside the file by chance. What is taken whole may be written otherwise.

    Raises ModelError.
    """
    broken = ModelError("the tokenizer.json beside the GGUF file cannot be used")
    tokenizer = guarded(lambda: Tokenizer.from_str(own.decode("utf-8")), broken)
    theirs = {number: text for text, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    for number in np.flatnonzero(types == PLAIN).tolist():
        if theirs.get(number) != texts[number]:
            there = "lacks it" if number not in theirs else f"has {shown(theirs[number], 30)!r}"
            why = f"token {number} of the GGUF file is {shown(texts[number], 30)!r}, the tokenizer.json beside it {there}"
            raise ModelError(f"{why}; it is of another model: move it away, or put the model's own there")


def _types(metadata: Mapping[str, Any], texts: Sequence[str]) -> np.ndarray:
    """Return the type of each token, plain ones in a file without types; what ends answers is a control token, as in llama.cpp. Of Gemma,
    whose tokens have the tags of HTML, "</s>" ends what is struck through.

    Raises ModelError.
    """
    types = metadata.get(f"{KEY}token_type", np.ones(len(texts), np.int64))
    if not isinstance(types, np.ndarray) or len(types) != len(texts):
        count = f"{counted(len(types), 'values')}" if isinstance(types, np.ndarray) else shown(types, 60)
        raise ModelError(f"the GGUF file's {KEY}token_type is {count}, its vocabulary has {counted(len(texts), 'tokens')}")
    ends = [text in ENDS and (text, kind) != (TAG, USER) for text, kind in zip(texts, types.tolist())]
    return np.where(ends, CONTROL, types)


def _of_type(texts: Sequence[str], types: np.ndarray, kind: int) -> list[str]:
    return [texts[place] for place in np.flatnonzero(types == kind).tolist()]


def _id(metadata: Mapping[str, Any], name: str, count: int) -> int | None:
    value = metadata.get(f"{KEY}{name}")
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if value is None or (is_number and value in (-1, 0xFFFFFFFF)):
        return None
    if not is_number or not 0 <= value < count:
        raise ModelError(f"the GGUF file's {KEY}{name} is {shown(value, 60)}, its vocabulary has {counted(count, 'tokens')}")
    return value


def _more_ends(metadata: Mapping[str, Any], count: int) -> list[int]:
    """Return the tokens that end an answer by a list, as Ollama writes it. Raises ModelError."""
    found = metadata.get(f"{KEY}eos_token_ids", np.zeros(0, np.int64))
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iu" or not all(0 <= number < count for number in found.tolist()):
        said, there = shown(found, 60), counted(count, "tokens")
        raise ModelError(f"the GGUF file's {KEY}eos_token_ids is {said}, expected numbers of its vocabulary of {there}")
    return list(map(int, found))


def _name(metadata: Mapping[str, Any], key: str) -> str | None:
    """Return what a key names, None where it does not."""
    value = metadata.get(f"{KEY}{key}")
    return value if value is None or isinstance(value, str) else shown(value, 60)


def _bpe(metadata: Mapping[str, Any], texts: Sequence[str], types: np.ndarray) -> Tokenizer:
    kind, name = (_name(metadata, key) for key in ("model", "pre"))
    instead = "put the model's tokenizer.json beside the file"
    if kind != "gpt2" or name not in RULES:
        said = f"{kind!r:.60}" if kind != "gpt2" else f"{name!r:.60} for byte-level BPE"
        raise ModelError(f"its kind is {said}; {instead}; supported: byte-level BPE of {', '.join(RULES)}, and SentencePiece's ({PIECES})")
    rule, merges = RULES[name], metadata.get(f"{KEY}merges")
    if not isinstance(merges, list):
        raise ModelError(f"it has no {KEY}merges")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE({text: number for number, text in enumerate(texts)}, pairs, ignore_merges=rule.whole))
    composed = metadata.get(f"{KEY}normalizer.nfc", rule.composed)
    if not isinstance(composed, bool):
        raise ModelError(f"its {KEY}normalizer.nfc is {shown(composed, 60)}, expected true or false")
    if composed:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if rule.digits else []
    steps += [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not rule.patterns))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    _complete(tokenizer, metadata, texts, types, rule.begun)
    return tokenizer


def _pieces(metadata: Mapping[str, Any], texts: Sequence[str], types: np.ndarray) -> Tokenizer:
    """Return the tokenizer of a file whose pieces have scores. Source: llama.cpp, src/llama-vocab.cpp, LLAMA_VOCAB_TYPE_SPM."""
    scores, prefix = metadata.get(f"{KEY}scores"), metadata.get(f"{KEY}add_space_prefix", True)
    if not isinstance(scores, np.ndarray) or len(scores) != len(texts) or not np.isfinite(scores).all():
        raise ModelError(f"it has no {KEY}scores, one finite number for each of {counted(len(texts), 'tokens')}")
    if not isinstance(prefix, bool):
        raise ModelError(f"its {KEY}add_space_prefix is {shown(prefix, 60)}, expected true or false")
    longest = max(map(len, texts))
    if longest > LONGEST:
        raise ModelError(f"one of its tokens has {counted(longest, 'characters')}, the limit is {LONGEST}")
    if not (types == BYTE).any():
        raise ModelError("it has no tokens for bytes, with which pieces spell what none of them covers")
    unknown = next(iter(_of_type(texts, types, UNKNOWN)), None)
    tokenizer = pieces_tokenizer(texts, scores.tolist(), unknown, prefix)
    _complete(tokenizer, metadata, texts, types, True)
    return tokenizer


def _complete(tokenizer: Tokenizer, metadata: Mapping[str, Any], texts: Sequence[str], types: np.ndarray, begun: bool) -> None:
    """Add what is taken whole, and what texts begin and end with; `begun`: with bos, where the file does not say.

    Source: llama.cpp, src/llama-vocab.cpp, cache_special_tokens; what Phi-3's tokens do with what follows them no key says.
    """
    strips = metadata.get("general.architecture") == STRIPPING and _name(metadata, "model") == PIECES
    for kind, special in ((UNKNOWN, True), (CONTROL, True), (USER, False)):
        those = [(text, strips and text not in KEEPING) for text in _of_type(texts, types, kind)]
        tokenizer.add_tokens([AddedToken(text, special=special, normalized=False, rstrip=more) for text, more in those])
    begin, end = _mark(metadata, texts, "bos", begun), _mark(metadata, texts, "eos", False)
    if begin or end:
        single, pair = [*begin, "$A", *end], [*begin, "$A", *end, *begin, "$B", *end]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=[*(begin | end).items()])


def _mark(metadata: Mapping[str, Any], texts: Sequence[str], name: str, default: bool) -> dict[str, int]:
    """Return the special token that all texts begin or end with, by its text: none unless the file or its rule says so."""
    key = f"{KEY}add_{name}_token"
    added = metadata.get(key, default)
    if not isinstance(added, bool):
        raise ModelError(f"its {key} is {shown(added, 60)}, expected true or false")
    number = _id(metadata, f"{name}_token_id", len(texts)) if added else None
    if added and number is None:
        raise ModelError(f"its texts get a token {name}, and it has no {KEY}{name}_token_id")
    return {} if number is None else {texts[number]: number}
