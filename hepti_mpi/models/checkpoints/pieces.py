"""A tokenizer of SentencePiece's BPE as the tokenizers library has it: of pieces with scores, bytes for what no piece covers.

Knows pieces and what stands for a blank; knows no file. SentencePiece joins the pair that makes the piece of the highest score; the library
the pair that comes first: pairs in the order of these scores do the same. Source: transformers, convert_slow_tokenizer.py (SpmConverter).
"""

from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers

BLANK = "\u2581"


def pieces_tokenizer(texts: Sequence[str], scores: Sequence[float], unknown: str | None, prefix: bool) -> Tokenizer:
    """Return the tokenizer of these pieces. `prefix`: a text begins with a blank, which it does not show."""
    ids = {text: number for number, text in enumerate(texts)}
    tokenizer = Tokenizer(models.BPE(ids, _pairs(ids, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True))
    blanks = [normalizers.Prepend(BLANK)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*blanks, normalizers.Replace(" ", BLANK)])
    steps = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), *([decoders.Strip(" ", 1, 0)] if prefix else [])]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _pairs(ids: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return which pieces make which, the piece of the highest score first."""
    found = []
    for text, number in ids.items():
        for cut in range(1, len(text)):
            if text[:cut] in ids and text[cut:] in ids:
                found.append((-scores[number], number, ids[text[:cut]], ids[text[cut:]], text[:cut], text[cut:]))
    return [(left, right) for *_, left, right in sorted(found)]
