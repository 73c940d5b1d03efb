"""A few thousand damaged files; `python tests/fuzz.py` reads more."""

import random

from fuzz import Kind, attack, damaged, fuzz


def test_damaged_files_are_read_or_refused_in_one_sentence():
    counts, wrong = fuzz(2500, 7)
    assert sum(counts.values()) == 2500 and not wrong, wrong


def test_a_reader_that_fails_is_found(tmp_path, monkeypatch):
    """The check can fail: a reader that raises something else than a sentence, and one that takes too much memory."""
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)  # of this process

    def read(path):
        if path.read_bytes() != b"good":
            raise KeyError("x")

    assert len(attack(Kind("text", {"a": b"good"}, read), 5, 1, tmp_path / "one")) >= 4


def test_damage_differs():
    draw = random.Random(1)
    assert len({damaged(bytes(range(256)), draw) for _ in range(100)}) > 80
