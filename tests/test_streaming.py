"""Text that grows by tokens."""

import json
import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from hepti_mpi.models.inputs.tokens import Tokens
from hepti_mpi.models.tasks.streaming import Streamed

PIECES = ["Hel", "lo", " wor", "ld", "é".encode()[:1], "é".encode()[1:], "!", "\n\n", "End"]


def decode(ids, more=False):
    pieces = [PIECES[one] for one in ids]
    return b"".join(piece if isinstance(piece, bytes) else piece.encode() for piece in pieces).decode("utf-8", "replace")


def streamed(stop=()):
    text = Streamed(decode, stop)
    parts = []
    for token in range(len(PIECES)):
        parts.append(text.add(token))
        if text.stopped:
            break
    return [*parts, text.end()], text


def test_letters_come_whole():
    parts, text = streamed()
    assert parts == ["Hel", "lo", " wor", "ld", "", "é", "!", "\n\n", "End", ""]
    assert text.text == "".join(parts) == "Hello worldé!\n\nEnd"


@pytest.mark.parametrize("stop, whole", [
    (("o w",), "Hell"), (("\n\nE",), "Hello worldé!"), (("\nX",), "Hello worldé!\n\nEnd"), (("nd!",), "Hello worldé!\n\nEnd"),
    (("ld", "wor"), "Hello "), (("Hello",), ""), (("é",), "Hello world"), (("End more",), "Hello worldé!\n\nEnd"),
])  # fmt: skip
def test_stops(stop, whole):
    parts, text = streamed(stop)
    assert "".join(parts) == whole == text.text
    assert text.stopped == (whole != "Hello worldé!\n\nEnd")


def test_what_may_become_a_stop_is_held_back():
    parts, _ = streamed(("\n\nX",))
    assert parts[-3:] == ["", "\n\nEnd", ""]


def test_a_run_of_bytes_is_text_as_a_whole():
    words = ["<unk>", "<s>", "▁a", "b", "▁"] + [f"<0x{byte:02X}>" for byte in range(256)]
    made = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    made.add_special_tokens(["<unk>", "<s>"])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokens, chance = Tokens({"tokenizer.json": made.to_str().encode()}), random.Random(1)
    spelt = [words.index(f"<0x{byte:02X}>") for byte in "aé中\n".encode() + b"\xff\x80"]
    kinds = set()
    for _ in range(400):
        ids = [chance.choice(spelt) if chance.random() < 0.6 else chance.randrange(5) for _ in range(chance.randrange(1, 12))]
        text = Streamed(tokens.decode)
        parts = [text.add(one) for one in ids] + [text.end()]
        assert "".join(parts) == tokens.decode(ids), json.dumps([words[one] for one in ids])
        kinds |= set("".join(parts))
    assert {"é", "\n", "\ufffd", "b"} <= kinds
    ids = [words.index(one) for one in ("▁a", "b", "▁a", "▁", "<0x41>")]
    for cut in range(1, len(ids) + 1):
        text = Streamed(tokens.decode, behind=ids[:cut])
        parts = [text.add(one) for one in ids[cut:]] + [text.end()]
        assert tokens.decode(ids[:cut]) + "".join(parts) == tokens.decode(ids), "with what it goes on with it is one text"
    assert [tokens.within(one) for one in ids] == [" a", "b", " a", " ", "A"] and tokens.within(words.index("<s>")) == ""
    assert b"".join(tokens.content(one) for one in [words.index("b"), *spelt]) == b"b" + "aé中\n".encode() + b"\xff\x80"


def test_the_bytes_of_parts_of_letters():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate([*letters, "ĠðŁ", "ab"])}, []))
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    tokens = Tokens({"tokenizer.json": made.to_str().encode()})
    ((word, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("é中")
    spelt = [made.token_to_id(letter) for letter in word]
    assert b"".join(map(tokens.content, spelt)) == "é中".encode()
    assert tokens.content(made.token_to_id("ĠðŁ")) == " 🙂".encode()[:3] and tokens.content(made.token_to_id("ab")) == b"ab"
    assert tokens.content(made.token_to_id("<end>")) == b"<end>"
