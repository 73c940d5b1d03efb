import json
import os
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from hepti_mpi.errors import InputError, PartlyAnswered
from hepti_mpi.serving import outputs


@dataclass
class Placed:
    keep: np.ndarray
    width: int


REQUESTS = [Placed(np.arange(3), 3), Placed(np.array([0, 2, 4, 6]), 8)]
PER_ROW = [np.arange(3 * 2, dtype=np.float32).reshape(3, 2), np.arange(4 * 2, dtype=np.float32).reshape(4, 2) + 1]


def entries(folder):
    return sorted(p.name for p in folder.iterdir())


def test_rows_go_to_their_positions():
    whole = outputs.stacked("last_hidden_state", REQUESTS, PER_ROW)
    assert whole.shape == (2, 8, 2) and whole.dtype == np.float32
    np.testing.assert_array_equal(whole[0, :3], PER_ROW[0])
    np.testing.assert_array_equal(whole[1, [0, 2, 4, 6]], PER_ROW[1])
    assert not whole[0, 3:].any() and not whole[1, 1::2].any()


@pytest.mark.parametrize("name, values, shape", [
    ("logits", [np.ones(9), np.zeros(9)], (2, 9)),  # one row of classes per request
    ("logits", PER_ROW, (2, 8, 2)),  # a row per token
    ("pooler_output", [np.ones(7), np.zeros(7)], (2, 7)),
    ("embedding", [np.ones(7)] * 2, (2, 7)),
])  # fmt: skip
def test_stacked(name, values, shape):
    assert outputs.stacked(name, REQUESTS, values).shape == shape


def test_npz_has_nan_where_a_request_has_none(tmp_path):
    path = tmp_path / "out.npz"
    results = [{"last_hidden_state": PER_ROW[0], "pooler_output": np.ones(7), "mask_ids": np.zeros(1)},
               {"last_hidden_state": PER_ROW[1], "pooler_output": np.zeros(7), "logits": np.zeros(7)}]  # fmt: skip
    outputs.write_npz(path, REQUESTS, results, {"id": np.array([7, 8])})
    with np.load(path) as found:
        assert sorted(found) == ["id", "last_hidden_state", "logits", "pooler_output"]
        assert np.isnan(found["logits"][0]).all() and not found["logits"][1].any() and found["id"].tolist() == [7, 8]
        np.testing.assert_array_equal(found["pooler_output"], [np.ones(7), np.zeros(7)])
        assert found["last_hidden_state"].shape == (2, 8, 2)
    assert entries(tmp_path) == ["out.npz"]


def test_jsonl_has_a_line_per_record(tmp_path):
    path = tmp_path / "out.jsonl"
    records = [{"input": "größe\nlines\u2028", "embedding": [0.1]}, {"input": "b", "labels": []}]
    outputs.write_jsonl(path, records)
    lines = path.read_bytes().split(b"\n")
    assert [json.loads(line) for line in lines[:-1]] == records and lines[-1] == b""
    assert "größe".encode() in lines[0]


def test_no_requests(tmp_path):
    outputs.write_jsonl(tmp_path / "x.jsonl", [])
    assert (tmp_path / "x.jsonl").read_bytes() == b""
    outputs.write_npz(tmp_path / "x.npz", [], [], {})
    with np.load(tmp_path / "x.npz") as found:
        assert list(found) == []


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("before")
    with pytest.raises(TypeError):
        outputs.write_jsonl(path, [{"a": 1}, {"a": object()}])
    assert entries(tmp_path) == ["x.jsonl"] and path.read_text() == "before"


def test_a_folder_that_is_gone(tmp_path):
    for write in (lambda path: outputs.write_jsonl(path, [{}]), lambda path: outputs.write_npz(path, REQUESTS, [{}, {}], {})):
        with pytest.raises(InputError, match="gone/x cannot be written: No such file"):
            write(tmp_path / "gone" / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        outputs.write_jsonl(tmp_path / "file" / "x.jsonl", [{}])


@pytest.mark.parametrize("name, words", [
    ("x.csv", "x.csv does not end in .jsonl or .npz"), ("x", "does not end in"), ("gone/x.npz", "folder .*gone does not exist"),
    ("x.JSONL", "does not end in"),
    ("folder.npz", "is a folder"),
])  # fmt: skip
def test_check_path_refuses(tmp_path, name, words):
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(InputError, match=words):
        outputs.check_path(tmp_path / name)


def test_check_path_accepts(tmp_path):
    (tmp_path / "there.jsonl").write_text("before")
    for name in ("x.npz", "x.jsonl", "there.jsonl"):
        outputs.check_path(tmp_path / name)
    assert entries(tmp_path) == ["there.jsonl"]


ASKED = [SimpleNamespace(keep=np.arange(3), width=3, id=number, truncated=number == 2) for number in range(3)]


def test_what_is_no_answer_has_its_place(tmp_path):
    rows = [np.ones((3, 2)), None, np.full((3, 2), 2.0)]
    finished = [outputs.finished_arrays(asked, {} if row is None else {"embedding": np.ones(2), "last_hidden_state": row},
                                        "it is empty" if row is None else None) for asked, row in zip(ASKED, rows)]  # fmt: skip
    finished = [outputs.checked(json.loads(json.dumps(item))) for item in finished]
    outputs.write_finished(tmp_path / "x.npz", finished)
    with np.load(tmp_path / "x.npz") as found:
        assert found["errors"].tolist() == ["", "it is empty", ""] and found["truncated"].tolist() == [False, False, True]
        assert found["id"].tolist() == [0, 1, 2]
        assert np.isnan(found["embedding"][1]).all() and np.isnan(found["last_hidden_state"][1]).all()
        assert (found["last_hidden_state"][2] == 2).all() and (found["embedding"][[0, 2]] == 1).all()
    tally = outputs.Tally.of(finished)
    assert tally == outputs.Tally(3, 1, 1, "it is empty") and tally.numbers == {"errors": 1, "truncated": 1}
    with pytest.raises(PartlyAnswered, match=r"^1 of 3 inputs could not be answered \(the others were\): it is empty$"):
        tally.check()
    outputs.write_finished(tmp_path / "all.npz", [finished[1]] * 2)
    with np.load(tmp_path / "all.npz") as found:
        assert sorted(found) == ["errors", "id"]
    with pytest.raises(PartlyAnswered, match="^none of 2 inputs could be answered: it is empty, and 1 more$"):
        outputs.Tally.of([finished[1]] * 2).check()
    with pytest.raises(PartlyAnswered, match="^the only input could not be answered: it is empty$"):
        outputs.Tally.of([finished[1]]).check()


def test_answers_are_for_whom_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        outputs.write_jsonl(tmp_path / "x.jsonl", [{"input": "a"}])
        outputs.write_npz(tmp_path / "x.npz", [], [], {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_an_id_may_be_anything(tmp_path):
    for number, called in enumerate(([1, 2], ["a", "b"], [1, "b"], [None, 3], [{"a": [1]}, "\ud800"])):
        items = [outputs.finished_arrays(SimpleNamespace(keep=np.arange(1), width=1, id=one, truncated=False), {}) for one in called]
        outputs.write_finished(tmp_path / f"{number}.npz", items)
        outputs.write_jsonl(tmp_path / "x.jsonl", [{"id": one} for one in called])
        assert [json.loads(line)["id"] for line in (tmp_path / "x.jsonl").read_bytes().splitlines()] == called
    told = [np.load(tmp_path / f"{number}.npz")["id"].tolist() for number in range(4)]
    assert told == [[1, 2], ["a", "b"], ["1", "b"], ["", "3"]]
