"""An output that is there says of which run it is, by its note or by its answers, and a resumed run never makes less of it."""

import json
import os
from functools import partial

import numpy as np
import pytest

from hepti_mpi.errors import InputError
from hepti_mpi.serving import outputs
from hepti_mpi.serving.finished import NOTE, check_not_less, finished_output, nothing_left, sign

HEAD = {"requests": 2, "model": "m", "source_hash": "s", "input_hash": "i"}
RECORDS = [{"input": "a", "embedding": [1.0]}, {"input": "b", "error": "it is empty"}]


def written(path, head=HEAD, noted=True):
    finished = [{"answer": record} | ({"error": record["error"]} if "error" in record else {}) for record in RECORDS]
    if path.suffix == ".npz":
        finished = [{"width": 1, "keep": outputs.encoded(np.zeros(1, int)), "results": {"embedding": outputs.encoded(np.ones(3))}}] * 2
    outputs.write_finished(path, finished, partial(sign, head=head, tally=outputs.Tally.of(finished)))
    if not noted:
        os.removexattr(path, NOTE)
    return path


def noting(tmp_path):
    (tmp_path / "probe").touch()
    try:
        os.setxattr(tmp_path / "probe", NOTE, b"x")
    except OSError:
        pytest.skip("this file system keeps no notes")


@pytest.mark.parametrize("name", ["x.jsonl", "x.npz"])
def test_the_note(tmp_path, name):
    noting(tmp_path)
    found = finished_output(written(tmp_path / name))
    assert found.head == HEAD and found.tally.inputs == 2 and found.tally.errors == (name == "x.jsonl")
    found.check(HEAD)
    others = [("source_hash", "t", "its model has other weights"), ("input_hash", "j", "its inputs are others"),
              ("requests", 1, "it has 2 inputs, this run 1;"), ("hidden", True, "it has hidden unknown, this run True"),
              ("model", "n", "it is of the model m, this run of n")]  # fmt: skip
    for key, value, words in others:
        with pytest.raises(InputError, match=f"holds the answers of another run: {words}"):
            found.check(HEAD | {key: value})


@pytest.mark.parametrize("name", ["x.jsonl", "x.npz"])
def test_a_copy_without_the_note_does_not_say_of_which_model_it_is(tmp_path, name):
    noting(tmp_path)
    found = finished_output(written(tmp_path / name, noted=False))
    assert found.head is None and found.tally.inputs == 2
    with pytest.raises(InputError, match="holds 2 answers and does not say of which model: .*; write to another --output"):
        found.check(HEAD)


def test_a_note_is_of_the_whole_file(tmp_path):
    path = written(tmp_path / "x.jsonl")
    with open(path, "ab") as file:
        file.write(b'{"input": "c", "embedding": [2.0]}\n')
    assert finished_output(path).head is None and finished_output(path).tally == outputs.Tally(3, 1, 0, "it is empty")
    for content in (b"half a li", b"{}\n"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is there and holds no answers"):
            finished_output(path)


def test_what_is_left(tmp_path):
    said = []
    path = tmp_path / "x.jsonl"
    assert nothing_left(path, True, said.append) is None and nothing_left(path, False, said.append) is None and not said
    written(path)
    assert nothing_left(path, True, said.append).tally.inputs == 2 and not said
    assert nothing_left(path, False, said.append) is None and said == [f"{path} is there already: it is replaced when all is answered"]
    (tmp_path / "x.jsonl.journal").write_text("{}")
    assert nothing_left(path, True, said.append) is None
    check_not_less(path, 2)
    with pytest.raises(InputError, match="holds 2 answers, this run has 1 input;"):
        check_not_less(path, 1)
    assert [json.loads(line) for line in path.read_text().splitlines()] == RECORDS


def test_a_journal_that_is_none_is_told_in_a_sentence(tmp_path):
    """It was told as the disk's fault, in Python's words."""
    (tmp_path / "a.jsonl.journal").mkdir()
    said = r"answers of --output .*/a\.jsonl cannot be noted in .*/a\.jsonl\.journal .*: Is a directory; remove it, or write to another"
    for resume in (False, True):
        with pytest.raises(InputError, match=said):
            nothing_left(tmp_path / "a.jsonl", resume, print)


def test_where_a_journal_cannot_be_is_told_in_a_sentence(tmp_path):
    """It was an error of the system's."""
    with pytest.raises(InputError, match="jsonl.journal as they come: File name too long; write to another --output$"):
        nothing_left(tmp_path / f"{'a' * 245}.jsonl", False, print)


def test_nobody_is_told_to_remove_answers(tmp_path, monkeypatch):
    """A journal that another user began, or of a broken disk."""
    def closed(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.jsonl.journal").touch()
    monkeypatch.setattr(os, "open", closed)
    with pytest.raises(InputError, match="jsonl.journal as they come: Permission denied; write to another --output$"):
        nothing_left(tmp_path / "a.jsonl", True, print)


def test_answers_never_replace_what_is_asked(tmp_path):
    (tmp_path / "x.jsonl").write_text("{}")
    (tmp_path / "link.jsonl").symlink_to("x.jsonl")
    for output in ("x.jsonl", "link.jsonl"):
        with pytest.raises(InputError, match="is the --input: the answers would replace what is asked"):
            outputs.check_apart(tmp_path / output, str(tmp_path / "x.jsonl"))
    outputs.check_apart(tmp_path / "y.jsonl", str(tmp_path / "x.jsonl"))
    outputs.check_apart(tmp_path / "x.jsonl", None)
