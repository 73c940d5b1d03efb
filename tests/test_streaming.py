"""Text that grows by tokens."""

import pytest

from hepti_mpi.models.tasks.streaming import Streamed

PIECES = ["Hel", "lo", " wor", "ld", "é".encode()[:1], "é".encode()[1:], "!", "\n\n", "End"]


def decode(ids):
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
