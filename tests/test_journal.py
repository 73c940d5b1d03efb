"""The journal of a run: what was noted comes back, what was cut off does not, and another run's is refused."""

import errno
import json
import os
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepti_mpi import documents
from hepti_mpi.errors import InputError
from hepti_mpi.serving import lock
from hepti_mpi.serving.finished import write_signed
from hepti_mpi.serving.journal import Journal, input_hash, journal_path, noted
from hepti_mpi.serving.outputs import Tally, decoded, encoded, finished_answer, finished_arrays, write_jsonl

HEAD = {"model": "bert", "source_hash": "ab", "input_hash": "cd"}
ASKED = SimpleNamespace(width=5, keep=np.array([0, 2, 4]), id=None, truncated=False)
RESULTS = [
    finished_arrays(ASKED, {"embedding": np.array([1.5, -2.25e-30, 3], np.float32), "mask_ids": np.arange(6).reshape(2, 3)}),
    finished_answer({"input": "x", "embedding": [0.5]}),
    finished_arrays(ASKED, {"embedding": np.float32([[np.pi]])}),
]


def journal(folder, resume=False, head=HEAD, count=3, **options):
    return Journal(folder / "a.jsonl.journal", head, count, resume, **options)


def test_what_was_noted_comes_back(tmp_path):
    first = journal(tmp_path)
    first.add([2, 0], [RESULTS[2], RESULTS[0]])
    first.file.close()  # as when the power fails: nothing is put in order
    second = journal(tmp_path, resume=True)
    assert sorted(second.finished) == [0, 2]
    assert second.finished[2] == RESULTS[2] and second.finished[0] == RESULTS[0]
    assert noted(second.path) == ([2, 0], {})
    second.add([1], [RESULTS[1]])
    second.file.close()
    third = journal(tmp_path, resume=True)
    assert sorted(third.finished) == [0, 1, 2] and third.finished[1] == RESULTS[1]
    third.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_journal_is_beside_its_output_and_its_owners_only(tmp_path):
    assert journal_path(tmp_path / "a.jsonl") == tmp_path / "a.jsonl.journal"
    assert journal(tmp_path).path.stat().st_mode & 0o777 == 0o600


def test_one_that_keeps_nothing_is_put_away_at_an_interruption(tmp_path):
    """Nothing is kept was said, and a file was left that says of what nothing is kept."""
    first = journal(tmp_path)
    documents.put_away()
    assert list(tmp_path.iterdir()) == []
    first.file.close()
    second = journal(tmp_path)
    second.add([1], [RESULTS[1]])
    documents.put_away()
    assert second.path.exists()
    second.remove()


def test_a_line_that_was_cut_off_is_no_answer(tmp_path):
    first = journal(tmp_path)
    first.add([0, 1], RESULTS[:2])
    first.file.close()
    whole = first.path.read_bytes()
    end = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in (end, end + 1, len(whole) - 1):
        first.path.write_bytes(whole[:cut])
        second = journal(tmp_path, resume=True)
        assert sorted(second.finished) == [0]
        second.add([1], [RESULTS[1]])
        second.file.close()
        assert first.path.read_bytes() == whole
    first.path.write_bytes(whole[:9])  # not even its head
    assert journal(tmp_path).finished == {}


def test_one_of_another_run_with_nothing_in_it_is_in_nobodys_way(tmp_path):
    """A first try that failed before its first answer, for instance with the files of another plan, kept the next one from its output."""
    journal(tmp_path, head=HEAD | {"source_hash": "ef"}, count=7).file.close()
    first = journal(tmp_path)
    first.add([1], [RESULTS[1]])
    first.file.close()
    assert sorted(journal(tmp_path, resume=True).finished) == [1]


def test_progress_is_not_lost_by_forgetting_the_option(tmp_path):
    assert journal(tmp_path).finished == {}
    journal(tmp_path).add([1], [RESULTS[1]])  # nothing was in it: it may begin again
    with pytest.raises(InputError, match="holds 1 of 3 answers of a run that was cut off; go on with --resume, or delete it"):
        journal(tmp_path)


@pytest.mark.parametrize("change, words", [
    ({"source_hash": "xx"}, "its model has other weights"),
    ({"input_hash": "xx"}, "its inputs are others"),
    ({"model": "vit"}, "it is of the model bert, this run of vit"),
    ({"count": 4}, "it has 3 inputs, this run 4"),
])  # fmt: skip
def test_the_journal_of_another_run(tmp_path, change, words):
    journal(tmp_path).add([1], [RESULTS[1]])
    count = change.pop("count", 3)
    before = journal_path(tmp_path / "a.jsonl").read_bytes()
    with pytest.raises(InputError, match=words):
        journal(tmp_path, resume=True, head=HEAD | change, count=count)
    assert journal_path(tmp_path / "a.jsonl").read_bytes() == before


KEEP = '{"type": "int64", "shape": [1], "base64": "AAAAAAAAAAA="}'
WITH_ARRAY = '{"request": 0, "finished": {"width": 1, "keep": ' + KEEP + ', "results": {"a": ARRAY}}}'


@pytest.mark.parametrize("line", [
    "{}", "[]", "7", "no JSON",
    '{"request": 3, "finished": {"answer": {}}}', '{"request": -1, "finished": {"answer": {}}}',
    '{"request": "0", "finished": {"answer": {}}}',
    '{"request": 0, "finished": 7}', '{"request": 0, "finished": {"answer": 7}}', '{"request": 0, "finished": {}}',
    *(WITH_ARRAY.replace("ARRAY", array) for array in (
        '{"type": "float32", "shape": [2], "base64": "AAAA"}', '{"type": "object", "shape": [1], "base64": "AAAAAAAAAAA="}',
        '{"type": "float32", "shape": [1, 1, 1, 1, 1], "base64": "AAAAAA=="}', '{"type": "float32", "shape": [-1], "base64": ""}')),
    WITH_ARRAY.replace("ARRAY", KEEP).replace('"width": 1', '"width": 0'), "[" * 100_000,
], ids=lambda line: line[:90])  # fmt: skip
def test_a_damaged_line(tmp_path, line):
    first = journal(tmp_path)
    first.file.close()
    with open(first.path, "a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match="is damaged after byte [1-9]"):
        journal(tmp_path, resume=True)


@pytest.mark.parametrize("content", [b"hello\n", b"{}\n", b'{"format": "hepti-plan"}\n', b"[]\n"])
def test_a_file_that_is_no_journal_stays(tmp_path, content):
    path = journal_path(tmp_path / "a.jsonl")
    path.write_bytes(content)
    with pytest.raises(InputError):
        journal(tmp_path, resume=True)
    assert path.read_bytes() == content


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    """Nothing is left of one that could not be begun; another keeps whole lines, knows which, and does not try again when all ends."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kept = journal(tmp_path, count=3)
    kept.add([2], [RESULTS[2]])
    monkeypatch.setattr(os, "fsync", full)
    kept.synced = float("-inf")
    said = r"the answers of --output .*a\.jsonl cannot be noted in .*a\.jsonl\.journal any more: No space left on device; free space there$"
    with pytest.raises(InputError, match=said):
        kept.add([0], [RESULTS[0]])
    assert list(kept.finished) == [2, 0] == noted(kept.path)[0] and kept.file.closed
    kept.remove()
    monkeypatch.undo()
    short = journal(tmp_path, count=3)
    write = short._write
    monkeypatch.setattr(short, "_write", lambda lines: (write(lines[:1]), full(0)))
    with pytest.raises(InputError, match=said):
        short.add([1, 2], RESULTS[1:])
    assert list(short.finished) == [1]
    short.remove()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="cannot be noted in .*: No space left on device; write to another --output$"):
        journal(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_where_it_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="the answers of --output .* cannot be noted in .*: No such file"):
        journal(tmp_path / "gone")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_are_damage_or_other_values(tmp_path_factory, data):
    """Never anything but one sentence, and never an array larger than its line."""
    folder = tmp_path_factory.mktemp("journal")
    first = journal(folder)
    first.add([0, 1, 2], RESULTS)
    first.file.close()
    content = bytearray(first.path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=5)):
        content[place] = data.draw(st.integers(0, 255))
    first.path.write_bytes(content)
    try:
        again = journal(folder, resume=True)
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert all(0 <= place < 3 for place in again.finished)
    assert len(json.dumps(list(again.finished.values()))) < 2 * len(content)


@pytest.mark.parametrize("array", [np.float64([1.5]), np.int32([[7]]), np.arange(3, dtype=np.uint8), np.zeros((2, 0, 3), np.float32)])
def test_arrays_of_any_type(array):
    back = decoded(json.loads(json.dumps(encoded(array))))
    assert np.array_equal(back, array) and back.dtype in (np.float32, np.int64) and back.flags.writeable


def test_the_hash_is_of_what_is_asked_and_in_which_order():
    def asked(*values, error=None, **given):
        made = [{"ids": np.array(value), "types": np.zeros(len(value), np.int64)} for value in values]
        return [SimpleNamespace(arrays=arrays, given={"input": "x"} | given, error=error) for arrays in made]

    hashes = [input_hash(asked(*values)) for values in ([[1, 2], [3]], [[1], [2, 3]], [[3], [1, 2]], [[1, 2]], [])]
    hashes += [input_hash(asked([1, 2], [3], **more)) for more in ({"input": "X"}, {"id": 1}, {"error": "no"})]  # what answers would say
    assert len(set(hashes)) == len(hashes) and hashes[0] == input_hash(asked([1, 2], [3]))


def test_a_running_job_holds_its_journal(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENT_SECONDS", 0.1)
    first = journal(tmp_path)
    first.add([1], [RESULTS[1]])
    before = first.path.read_bytes()
    for resume in (False, True):
        with pytest.raises(InputError, match=rf"a.jsonl.journal is in use by a job that runs \(process {os.getpid()}\); wait for it"):
            journal(tmp_path, resume=resume)
    with pytest.raises(InputError, match="in use by a job"):
        lock.check_free(first.path)
    assert first.path.read_bytes() == before
    first.file.close()
    lock.check_free(first.path)
    assert sorted(journal(tmp_path, resume=True).finished) == [1]


def test_a_process_that_is_killed_holds_nothing(tmp_path):
    path = tmp_path / "a.jsonl.journal"
    program = f"from hepti_mpi.serving.lock import open_locked\nfrom pathlib import Path\nfile = open_locked(Path({str(path)!r}))\n"
    other = subprocess.Popen([sys.executable, "-c", program + "print(1, flush=True)\nimport time\ntime.sleep(99)"], stdout=subprocess.PIPE)
    assert other.stdout.read(1) == b"1"
    with pytest.raises(InputError, match=rf"process {other.pid}"):
        lock.check_free(path)
    other.kill()
    other.wait()
    lock.check_free(path)
    assert journal(tmp_path).finished == {}


def test_where_nothing_can_be_locked(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    one, other = journal(tmp_path), journal(tmp_path)
    assert one.finished == other.finished == {}


def test_a_journal_of_arrays_with_more_in_them(tmp_path):
    journal(tmp_path, head=HEAD | {"hidden": True}).add([1], [RESULTS[0]])
    with pytest.raises(InputError, match="it has hidden True, this run unknown"):
        journal(tmp_path, resume=True)


GIVEN = [  # answers as a run makes them
    finished_answer({"input": "größer 日本 👍", "embedding": [0.5, -1e-30, 3.0]}),
    finished_answer({"input": "half \ud83d of one", "embedding": [0.25]}),
    finished_answer({"input": "cut", "truncated": True, "embedding": [1.0]}),
    finished_answer({"input": "bad", "id": 7}, "it is too long"),
    finished_answer({"input": "a backslash \\u0041 and a quote \"", "labels": [{"label": "x", "score": 0.5}]}),
    {"answer": {"input": "a text", "text": "more", "tokens": [1, 2]}, "row": {"width": 2, "keep": encoded(np.arange(2)), "most": 4}},
]


@pytest.mark.parametrize("again", [False, True])
def test_lines_of_an_output_are_those_of_its_answers(tmp_path, again):
    """They are copied from the journal, which has them already; one of a program before this has letters escaped."""
    kept = journal(tmp_path, count=len(GIVEN))
    order = [3, 0, 5, 1, 4, 2]
    kept.add(order[:4], [GIVEN[place] for place in order[:4]], 0.5)
    kept.add(order[4:], [GIVEN[place] for place in order[4:]], 1e-05, [[9, [7]]])
    assert kept.path.stat().st_size == kept.size
    if again:
        kept.file.close()
        lines = [json.dumps(json.loads(line)) + "\n" for line in kept.path.read_text().splitlines()]
        kept.path.write_text("".join(lines[:1] + lines[1:5] + lines[6:]))  # but the growing text, which is of no request here
        kept = journal(tmp_path, resume=True, count=len(GIVEN))
    assert [kept.finished[place] for place in range(len(GIVEN))] == GIVEN
    tally = write_signed(tmp_path / "a.jsonl", kept.finished, {"requests": len(GIVEN)})
    assert tally == Tally.of(GIVEN) and (tally.errors, tally.truncated, tally.first) == (1, 1, "it is too long")
    write_jsonl(tmp_path / "b.jsonl", [item["answer"] for item in GIVEN])
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    with pytest.raises(InputError, match="1 of 7 answers are missing"):
        write_signed(tmp_path / "c.jsonl", kept.finished, {"requests": len(GIVEN) + 1})
    assert not (tmp_path / "c.jsonl").exists()


def test_what_is_noted_takes_no_memory(tmp_path):
    """150,000 vectors of 384 numbers took 2 GB, as Python has numbers."""
    kept, count = journal(tmp_path, count=2000), 2000
    vector = [float(one) for one in np.random.default_rng(1).normal(size=384)]
    tracemalloc.start()
    for place in range(count):
        kept.add([place], [finished_answer({"input": str(place), "embedding": [value + place for value in vector]})])
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1000 * count, f"{held // count} bytes an answer"
    write_signed(tmp_path / "a.jsonl", kept.finished, {"requests": count})
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert len(lines) == count and json.loads(lines[1234])["embedding"][3] == vector[3] + 1234


def test_arrays_come_back_from_the_journal(tmp_path):
    kept = journal(tmp_path, count=3)
    every = [finished_arrays(SimpleNamespace(width=2, keep=np.arange(2), id=f"i{n}", truncated=n == 1), {"embedding": np.float32([n])})
             for n in range(3)]  # fmt: skip
    kept.add([2, 0, 1], [every[2], every[0], every[1]])
    write_signed(tmp_path / "a.npz", kept.finished, {"requests": 3})
    with np.load(tmp_path / "a.npz") as found:
        assert found["embedding"].tolist() == [[0], [1], [2]] and found["id"].tolist() == ["i0", "i1", "i2"]
        assert found["truncated"].tolist() == [False, True, False]
