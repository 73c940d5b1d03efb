"""A few thousand damaged files; `python tests/fuzz.py` reads more."""

import os
import random

import numpy as np
import pytest
from fuzz import MEMORY, Kind, attacked, damaged, fuzz

from hepti_mpi.errors import HeptiError


def test_damaged_files_are_read_or_refused_in_one_sentence():
    counts, wrong = fuzz(2500, 7)
    assert sum(counts.values()) == 2500 and not wrong, wrong


def raises(path):
    raise KeyError("x")


def takes_memory(path):
    np.ones(MEMORY // 4)


def hides_memory(path):
    try:
        takes_memory(path)
    except MemoryError:
        raise HeptiError("this file is not sound") from None


def says_two_lines(path):
    raise HeptiError("one\ntwo")


def dies(path):
    os._exit(3)


@pytest.mark.parametrize("fault, words", [
    (raises, "KeyError"), (takes_memory, "MemoryError"), (hides_memory, "memory ran out"), (says_two_lines, "no sentence"),
    (dies, "the process ended with status"),
])  # fmt: skip
def test_a_reader_that_fails_is_found(tmp_path, fault, words):
    """The check can fail."""
    wrong = attacked(Kind("text", {"a": b"good"}, lambda path: path.read_bytes() == b"good" or fault(path)), 5, 1, tmp_path / "one")
    assert wrong and words in wrong[0], wrong


def test_damage_differs():
    draw = random.Random(1)
    assert len({damaged(bytes(range(256)), draw) for _ in range(100)}) > 80
