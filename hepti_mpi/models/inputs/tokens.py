"""Text to token ids and back.

Knows the tokenizer.json of a store and what its tokenizer_config.json adds; knows no model, no request and no array.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from hepti_mpi.errors import InputError, ModelError
from hepti_mpi.models.untrusted import half_character, shown
from hepti_mpi.wording import counted

T = TypeVar("T")
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
UNFINISHED = "\ufffd"  # what stands for bytes that are not yet a letter
BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # a token of one byte, where the decoder takes runs of them together


def _letters() -> str:
    """Return the letter that stands for each byte in the vocabularies of byte-level tokenizers. Source: GPT-2, encoder.py."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return "".join(chr(byte if byte in shown else next(others)) for byte in range(256))


LETTERS = _letters()


def guarded(call: Callable[[], T], error: Exception) -> T:
    """Return `call()`; raise `error` with the reason added when the library raises or panics.

    A panic of the Rust library arrives as a PanicException, which is no Exception; what else is none ends the program.
    """
    try:
        return call()
    except BaseException as reason:
        panic = type(reason).__name__ == "PanicException"
        if isinstance(reason, MemoryError) or not (panic or isinstance(reason, Exception)):
            raise
        raise type(error)(f"{error}: {shown(reason)}") from None


def _taken(encode: Callable[[], Any], texts: Sequence[str], where: str) -> Any:
    """Return what the library makes of texts. Raises InputError, with words of this program for what its own do not say."""
    try:
        return guarded(encode, InputError(f"{where} cannot be tokenised"))
    except InputError as error:
        raise InputError(next(filter(None, (half_character(text, where) for text in texts)), str(error))) from None


@dataclass(frozen=True)
class Encoded:
    """Token ids and type ids, [tokens] each; `added`: 1 for a token that is not of the text but was put around it; `truncated`: whether
    others were cut off; `unknown`: by its place, what stands in a single text where a token is the unknown one."""

    ids: list[int]
    types: list[int]
    added: list[int]
    truncated: bool
    unknown: dict[int, str] = field(default_factory=dict)


class Tokens:
    """A tokenizer without padding; `mask_token` is the text that stands for a masked word, None if it has none; `side`: of a text that is
    cut off, "left" or "right"."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """Read tokenizer.json and, for what it cannot say, tokenizer_config.json.

        Raises InputError without a tokenizer.json, ModelError if one of them is damaged.
        """
        if "tokenizer.json" not in files:
            hint = "give a .npz file with input_ids, or load its folder with transformers' AutoTokenizer, save it there and slice again"
            raise InputError(f"the model has no tokenizer.json, so it takes no text; {hint}")
        broken = ModelError("tokenizer.json cannot be used")
        self._tokenizer = guarded(lambda: Tokenizer.from_str(files["tokenizer.json"].decode("utf-8")), broken)
        guarded(self._tokenizer.no_padding, broken)
        guarded(self._tokenizer.no_truncation, broken)
        try:
            said: Any = json.loads(files.get("tokenizer_config.json", b"{}"))
        except (ValueError, RecursionError):
            raise ModelError("tokenizer_config.json is not valid JSON") from None
        said = said if isinstance(said, dict) else {}
        self.mask_token = self._special(said.get("mask_token", "[MASK]"))
        self.mask_id: int | None = self._tokenizer.token_to_id(self.mask_token) if self.mask_token else None
        unknown = self._special(said.get("unk_token"))
        self._unknown = None if unknown is None else self._tokenizer.token_to_id(unknown)
        self.side = "left" if said.get("truncation_side") == "left" else "right"
        self._typed = "token_type_ids" in (said.get("model_input_names") or ["token_type_ids"])
        self._tokenizer.encode_special_tokens = said.get("split_special_tokens") is True
        self._by_bytes = b'"ByteFallback"' in files["tokenizer.json"]  # a word of a vocabulary by that name only holds text back
        self._hidden = {number for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}

    def _special(self, said: Any) -> str | None:
        """Return the text of a special token, None if there is none or the vocabulary lacks it."""
        text = said.get("content") if isinstance(said, dict) else said
        return text if isinstance(text, str) and self._tokenizer.token_to_id(text) is not None else None

    def truncate(self, limit: int) -> None:
        """Cut every text down to `limit` tokens, special tokens included, at the side that the tokenizer says."""
        error = ModelError(f"tokenizer.json cannot cut texts at {counted(limit, 'tokens')}")
        guarded(lambda: self._tokenizer.enable_truncation(limit, direction=self.side), error)

    def lower_case(self) -> None:
        """Lower-case texts, but not the special tokens in them.

        Source: sentence-transformers, Transformer.__init__: a Lowercase before the other normalizers, unless there is one.
        """
        there = self._tokenizer.normalizer
        many: Any = there if isinstance(there, normalizers.Sequence) else [] if there is None else [there]
        steps = list(many)
        if not any(isinstance(step, normalizers.Lowercase) for step in steps):
            self._tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])

    def encode(self, texts: Sequence[str], where: str) -> Encoded:
        """Return the tokens of a text or a pair of texts. Raises InputError naming `where`."""
        text, pair = (*texts, None)[:2]
        return self._encoded(texts, _taken(lambda: self._tokenizer.encode(text, pair), texts, where))

    def encode_all(self, texts: Sequence[Sequence[str]], wheres: Sequence[str]) -> list[Encoded]:
        """Return what `encode` returns of each, in one call of the library, which lets other threads work meanwhile. Raises InputError
        naming the first that cannot be tokenised."""
        if len(texts) == 1:  # which is not worth waking threads of the library
            return [self.encode(texts[0], wheres[0])]
        given = [one[0] if len(one) == 1 else tuple(one) for one in texts]
        try:  # its encode_batch_fast, which tells no offsets, gives pairs other types
            encodings = guarded(lambda: self._tokenizer.encode_batch(given), InputError("some text cannot be tokenised"))
        except InputError:  # `encode` says which
            return [self.encode(one, where) for one, where in zip(texts, wheres)]
        return [self._encoded(one, encoding) for one, encoding in zip(texts, encodings)]

    def _encoded(self, texts: Sequence[str], encoding: Any) -> Encoded:
        ids, unknown = encoding.ids, dict[int, str]()
        if len(texts) == 1 and self._unknown in ids:
            offsets = encoding.offsets
            unknown = {place: texts[0][slice(*offsets[place])] for place, number in enumerate(ids) if number == self._unknown}
        types = encoding.type_ids if self._typed else [0] * len(ids)
        return Encoded(ids, types, encoding.special_tokens_mask, bool(encoding.overflowing), unknown)

    def decode(self, ids: Sequence[int], more: bool = False) -> str:
        """Return the text of token ids, without special tokens.

        `more`: others may follow; a run of bytes at the end, which is one text or none as a whole, ends with UNFINISHED then.
        """
        broken = ModelError("tokens cannot be turned into text")
        text = guarded(lambda: str(self._tokenizer.decode(list(ids), skip_special_tokens=True)), broken)
        return text + UNFINISHED if more and self._in_bytes(ids) else text

    def _in_bytes(self, ids: Sequence[int]) -> bool:
        """Return whether the last of `ids` that is shown is a byte of a run that the next byte may spoil.

        Source: tokenizers, ByteFallback::decode_chain: a run of bytes that is no UTF-8 is as many replacement characters.
        """
        if not self._by_bytes:
            return False
        last = next((number for number in reversed(ids) if number not in self._hidden), None)
        return last is not None and BYTE.fullmatch(self._tokenizer.id_to_token(last) or "") is not None

    def plain(self, text: str, where: str) -> list[int]:
        """Return the tokens of a text with nothing put around it; special tokens in it are taken as such. Raises InputError."""
        return list(_taken(lambda: self._tokenizer.encode(text, add_special_tokens=False), [text], where).ids)

    def within(self, number: int) -> str:
        """Return the text of a token within a text, which may be a part of a letter; nothing of a special token.

        It is what a token adds to itself: many decoders leave out the space at the beginning of a text.
        """
        return self.decode([number, number])[len(self.decode([number])) :]

    def content(self, number: int) -> bytes | None:
        """Return the bytes that a token stands for, which may be a part of a letter; None where they are not known."""
        piece, text = self.piece(number), self.within(number)
        if UNFINISHED not in text:
            return (text or piece).encode()
        if BYTE.fullmatch(piece):
            return bytes([int(piece[3:5], 16)])
        return bytes(map(LETTERS.index, piece)) if all(letter in LETTERS for letter in piece) else None

    def piece(self, number: int) -> str:
        """Return the text of a token id; ids that the tokenizer lacks are shown as numbers."""
        text = self._tokenizer.id_to_token(number)
        return str(number) if text is None else text


def word_piece_json(words: Iterable[str]) -> bytes:
    """Return a tokenizer.json for lower-case WordPiece over `words`, which must start with SPECIALS."""
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer.to_str().encode()
