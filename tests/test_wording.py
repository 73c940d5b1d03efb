"""Counts are said by one function: one rank, two ranks."""

import doctest
import re
from pathlib import Path

import pytest

from hepti_mpi import wording
from hepti_mpi.wording import counted

ROOT = Path(__file__).parent.parent / "hepti_mpi"
NOUNS = (
    "ranks|hosts|requests|inputs|answers|texts|images|batches|stores|rows|heads|columns|positions|tokens|layers|entries|threads|labels|"
    "tensors|files"
)
COUNT = re.compile(rf"f\".*(?<! of )\{{[^{{}}]*\}} ({NOUNS})\b(?!/s)|'s' \* \(")
SEVERAL = (  # what is never one, no count (rates are none), or an error of ours
    "nearest is of another job", "did not find each other", "each of them is alone", "the first line names", "name them apart",
    "name one with --weights", "answers a request", "framed above", "more than {MOST_LAYERS}", "raise ValueError",
)  # fmt: skip


def test_counts():
    assert [counted(n, "ranks") for n in (0, 1, 2)] == ["0 ranks", "1 rank", "2 ranks"]
    assert [counted(1, what) for what in ("entries", "batches", "images", "values")] == ["1 entry", "1 batch", "1 image", "1 value"]
    assert doctest.testmod(wording).failed == 0


def test_every_sentence_counts_so():
    for path in sorted(ROOT.rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not any(words in line for words in SEVERAL):
                assert not COUNT.search(line), f"{path.relative_to(ROOT)}:{number} counts by itself"


@pytest.mark.parametrize("value", [0.00504, 0.00496, 0.005, 0.0050000000001, 1e-9, 0.7, float("nan"), float("inf")])
def test_a_number_beside_its_limit_is_not_rounded_across_it(value):
    """"q8 costs 0.005, more than 0.005" was told, and a mix of 0.005 left out for one of 0.0048."""
    said = wording.beside(value, 0.005)
    assert (float(said) > 0.005) == (value > 0.005)
