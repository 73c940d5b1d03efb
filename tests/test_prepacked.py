"""Weights that are kept as kernels read them: the same answers in every format, and no file that is not whole and of this share."""

import json
import os
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from decoders import CASES, write_folder

from hepti_mpi.commands.main import main
from hepti_mpi.engine import caching, sessions
from hepti_mpi.engine.packing import Rows
from hepti_mpi.errors import StoreError
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.formats import FORMATS
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import Compute
from hepti_mpi.weights import prepacked, writing
from hepti_mpi.weights.prepacked import LIST, Prepacked, key_of
from hepti_mpi.weights.slices import DecodingPart, Part
from hepti_mpi.weights.store import Store


@pytest.fixture
def kept(tmp_path):
    said = []
    found = Prepacked(tmp_path / "cache" / "prepacked", said.append)
    found.said = said
    return found


def written(content):
    """Return what writes files of an entry, and how often it was asked to."""
    calls = []

    def write(folder):
        calls.append(folder)
        (folder / "one").write_bytes(content)
        (folder / "other").write_bytes(b"other")

    return write, calls


def test_an_entry_is_made_once(kept):
    write, calls = written(b"abc")
    assert kept.find("k") is None
    entry = kept.make("k", 10, write)
    assert entry == kept.find("k") == kept.folder / "k" and (entry / "one").read_bytes() == b"abc"
    assert [path.name for path in kept.folder.iterdir()] == ["k"] and len(calls) == 1 and not kept.said


def changed(content, **change):
    return json.dumps(json.loads(content) | change).encode()


@pytest.mark.parametrize("name, spoil", [
    ("one", lambda content: b"abd"), ("one", lambda content: b"ab"), ("one", lambda content: b"abcd"), ("other", lambda content: b""),
    (LIST, lambda content: content[:-1]), (LIST, lambda content: changed(content, key="other")), (LIST, lambda content: b"[]"),
    (LIST, lambda content: changed(content, format=2)), (LIST, lambda content: changed(content, files=[["gone", 1, 1]])),
    (LIST, lambda content: changed(content, files=[1])), (LIST, lambda content: changed(content, files=None)),
    (LIST, lambda content: b"\xff"),
])  # fmt: skip
def test_what_was_damaged_is_made_again(kept, name, spoil):
    write, calls = written(b"abc")
    path = kept.make("k", 10, write) / name
    path.write_bytes(spoil(path.read_bytes()))
    assert kept.find("k") is None
    assert kept.make("k", 10, write) == kept.find("k") == kept.folder / "k" and len(calls) == 2


def test_whoever_is_later_takes_what_is_there(kept):
    write, _ = written(b"abc")
    late, _ = written(b"late")

    def both(folder):
        assert kept.make("k", 10, write)
        late(folder)

    entry = kept.make("k", 10, both)
    assert entry and (entry / "one").read_bytes() == b"abc" and os.listdir(kept.folder) == ["k"]


def no_room(kept, monkeypatch):
    monkeypatch.setattr(prepacked.shutil, "disk_usage", lambda folder: prepacked.shutil._ntuple_diskusage(9, 0, 9))


def a_file_in_the_way(kept, monkeypatch):
    kept.folder.parent.mkdir()
    kept.folder.write_bytes(b"")


FAILS = {no_room: "it takes 10 bytes, 9 are free", a_file_in_the_way: "File exists"}


@pytest.mark.parametrize("spoil", FAILS)
def test_where_none_can_be_made_it_is_said_once(kept, monkeypatch, spoil):
    spoil(kept, monkeypatch)
    write, calls = written(b"abc")
    assert kept.make("k", 10, write) is None and kept.make("l", 10, write) is None and not calls
    (sentence,) = kept.said
    assert str(kept.folder) in sentence and "going on without" in sentence
    assert FAILS[spoil] in sentence or "Not a directory" in sentence


def test_what_fails_on_the_way_leaves_nothing(kept):
    def write(folder):
        (folder / "one").write_bytes(b"a")
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL :\n no space")

    assert kept.make("k", 10, write) is None and not os.listdir(kept.folder) and len(kept.said) == 1 and "no space" in kept.said[0]


def test_one_of_another_user_that_does_not_hold_is_said(kept, monkeypatch):
    write, calls = written(b"abc")
    (kept.make("k", 10, write) / "one").write_bytes(b"ab")
    monkeypatch.setattr(prepacked.shutil, "rmtree", lambda *given, **more: None)
    assert kept.make("k", 10, write) is None and kept.make("k", 10, write) is None and len(calls) == 2
    (sentence,) = kept.said
    assert "k in it cannot be replaced" in sentence


def test_one_that_may_only_be_read_is_used(kept, monkeypatch):
    write, _ = written(b"abc")
    entry = kept.make("k", 10, write)

    def refused(path):
        raise PermissionError

    monkeypatch.setattr(prepacked.os, "utime", refused)
    assert kept.find("k") == entry


def test_whether_entries_can_be_made(kept, monkeypatch):
    assert kept.writable and not kept.folder.parent.exists()
    asked = []
    monkeypatch.setattr(prepacked.os, "access", lambda path, how: asked.append(path))
    assert not kept.writable and asked == [kept.folder.parent.parent]
    kept.folder.parent.mkdir()
    kept.folder.write_bytes(b"")
    assert not kept.writable


def test_old_ones_are_removed(kept):
    write, _ = written(b"abc")
    day = 86400
    for name, days in (("old", 31), ("used", 29), (".half.part", 0.1), (".young.part", 0.01)):
        (kept.folder / name).mkdir(parents=True)
        os.utime(kept.folder / name, (time.time() - days * day,) * 2)
    kept.make("k", 10, write)
    assert sorted(os.listdir(kept.folder)) == [".young.part", "k", "used"]
    os.utime(kept.folder / "k", (0, 0))
    kept.find("k")
    assert (kept.folder / "k").stat().st_mtime > time.time() - day


def aged(path, days):
    os.utime(path, (time.time() - days * 86400,) * 2)


def test_where_the_disk_is_full_the_oldest_go(kept, monkeypatch):
    """As many as it takes; what was used within a day stays."""
    write, _ = written(b"abc")
    for name, days in (("new", 0.5), ("old", 3), ("older", 5), ("oldest", 9)):
        aged(kept.make(name, 10, write), days)

    def there(folder):
        whole = [path for path in folder.iterdir() if not path.name.startswith(".")]
        return prepacked.shutil._ntuple_diskusage(99, 0, 99 - 20 * len(whole))

    monkeypatch.setattr(prepacked.shutil, "disk_usage", there)
    assert kept.make("k", 50, write) and sorted(os.listdir(kept.folder)) == ["k", "new", "old"]
    assert kept.make("l", 99, write) is None and sorted(os.listdir(kept.folder)) == ["k", "new"] and "it takes 99 bytes" in kept.said[0]


def test_what_is_there_is_told_and_cleared(kept, monkeypatch):
    assert prepacked.entries(kept.folder) == [] == prepacked.clear(kept.folder, every=True)
    write, _ = written(b"abc")
    here = prepacked.processor_name()
    for name, days, processor in (("used", 0, here), ("unused", 2, here), ("other", 0, "another")):
        aged(kept.make(name, 10, write, {"model": name, "processor": processor}), days)
    (kept.folder / ".half.part").mkdir()
    (kept.folder / "unused" / LIST).write_bytes(b"?")
    found = {entry.path.name: entry for entry in prepacked.entries(kept.folder)}
    assert next(iter(found)) == "unused" and {name for name, entry in found.items() if entry.old} == {"unused", "other"}
    assert found["used"].of == {"model": "used", "processor": here} and found["unused"].of == {} and not found[".half.part"].whole
    assert found["used"].bytes == 8 + (kept.folder / "used" / LIST).stat().st_size
    assert {entry.path.name for entry in prepacked.clear(kept.folder, every=False)} == {"unused", "other"}
    assert sorted(os.listdir(kept.folder)) == [".half.part", "used"]
    prepacked.clear(kept.folder, every=True)
    assert not os.listdir(kept.folder)


def test_the_command_that_tells_and_clears(store, kept):
    cache = str(kept.folder.parent)
    answer(store, "mapped")
    (entry,) = kept.folder.iterdir()
    document = json.loads(CliRunner().invoke(main, ["inspect", "--weights-cache", cache, "--json"]).stdout)
    (told,) = document["entries"]
    assert (told["model"], told["source"], told["old"]) == (store.spec.name, store.source_hash, False)
    aged(entry, 3)
    said = CliRunner().invoke(main, ["inspect", "--weights-cache", cache]).stdout
    assert f"{kept.folder}: 1 entry" in said and "3 days ago" in said and "--clear old" in said
    assert "removed 1 entry" in CliRunner().invoke(main, ["inspect", "--weights-cache", cache, "--clear", "old"]).stdout
    assert not list(kept.folder.iterdir())


@pytest.mark.parametrize("words, said", [
    (["--weights-cache", "gone"], "gone is not a folder"), (["--clear", "old"], "--clear is for --weights-cache"),
    (["s.h5", "--weights-cache", "."], "use just one of STORE"),
])  # fmt: skip
def test_the_command_refuses(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["inspect", *words])
    assert done.exit_code and said in (done.stderr + str(done.exception))


def test_keys(monkeypatch):
    keys = {key_of(b"a", b"b"), key_of(b"ab", b""), key_of(b"a", b"c")}
    monkeypatch.setattr(prepacked, "processor", lambda: "another")
    assert len(keys | {key_of(b"a", b"b")}) == 4


def part_of(store, kind=Part):
    return kind(store.spec, Plan.lone(store.spec, store.source_hash, mode="mapped"), 0)


def answer(store, mode):
    """Return what the first segment of a model makes of some rows, in order."""
    part = part_of(store)
    step = next(step for step in part.program if isinstance(step, Compute))
    segment = sessions.build(step, store, part.held(step), part.heads, mode, 1)
    random, lengths = np.random.default_rng(1), (5, 2)
    values = {name: random.standard_normal((sum(lengths), store.spec.hidden), np.float32) for name in segment.inputs}
    rows = Rows(lengths, 0, sum(lengths))
    for op in step.ops:
        values |= rows.inputs(op, segment.tables.get(op))
    return segment.session.run(list(segment.outputs), values)


@pytest.fixture(params=FORMATS)
def store(request, tmp_path, kept):
    """A model whose products are as wide as rows of blocks, so that none is too small to be packed."""
    writing.write(tmp_path / "s.h5", random_model("tiny-vit").in_format(request.param))
    with Store(tmp_path / "s.h5", kept) as found:
        yield found


def mapped_files():
    return [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "prepacked" in line]


def test_sessions_answer_as_packed_ones_do(store, kept):
    wanted = answer(store, "packed")
    for _ in range(2):
        found = answer(store, "mapped")
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
        (entry,) = kept.folder.iterdir()
        times = [path.stat().st_mtime_ns for path in sorted(entry.iterdir())]
    assert times == [path.stat().st_mtime_ns for path in sorted(entry.iterdir())] and not kept.said


def test_weights_lie_in_the_file(store, kept):
    part = part_of(store)
    step = next(step for step in part.program if isinstance(step, Compute))
    segment = sessions.build(step, store, part.held(step), part.heads, "mapped", 1)
    (entry,) = kept.folder.iterdir()
    assert str(entry / "weights") in mapped_files() and segment.session is not None


@pytest.mark.parametrize("change", ["numbers", "onnxruntime"])
def test_other_weights_and_versions_have_entries_of_their_own(tmp_path, kept, monkeypatch, change):
    """Also where all that the model says is the same."""
    model = random_model("tiny-bert")
    for name, factor in (("a", 1), ("b", 2)):
        folder = tmp_path / name
        stream = [(called, values * np.float32(factor)) for called, values in model.weights()]
        folder.mkdir()
        given = stream if change == "numbers" else list(model.weights())
        writing.write(folder / "s.h5", replace(model, stream=lambda given=given: iter(given)))
        if change == "onnxruntime" and name == "b":
            monkeypatch.setattr(sessions, "versions", lambda: {"onnxruntime": "another"})
        with Store(folder / "s.h5", kept) as store:
            wanted = answer(store, "packed")
            np.testing.assert_array_equal(answer(store, "mapped")[0], wanted[0])
    assert len(os.listdir(kept.folder)) == 2


def test_without_room_it_answers_all_the_same(store, kept, monkeypatch):
    wanted = answer(store, "packed")
    no_room(kept, monkeypatch)
    np.testing.assert_allclose(answer(store, "mapped")[0], wanted[0], atol=1e-5)
    assert len(kept.said) == 1


@pytest.mark.parametrize("name", ["f32", "q8", "q4"])
def test_segments_with_caches_and_words(tmp_path, kept, name):
    case = next(iter(CASES))
    writing.write(tmp_path / "s.h5", read_model(write_folder(case, tmp_path)).in_format(name))
    with Store(tmp_path / "s.h5", kept) as store:
        part = part_of(store, DecodingPart)
        step = next(step for step in part.program if isinstance(step, Compute))
        segment = caching.cached_segment(step, store, part, "mapped", 1)
        x, every = np.random.default_rng(1).standard_normal((3, store.spec.hidden), np.float32), []
        for mode in ("packed", "mapped"):
            every += caching.words_session(store, *part.words_slices, mode, 1).run(None, {"x": x})
        np.testing.assert_array_equal(*every)
        assert segment.session is not None and len(os.listdir(kept.folder)) == 2 and not kept.said


@pytest.mark.parametrize("cache", [False, True])
def test_what_cannot_be_mapped_is_not_packed_where_memory_does_not_hold_it(store, kept, monkeypatch, cache):
    if not cache:
        store.prepacked = None
    no_room(kept, monkeypatch)
    monkeypatch.setattr(sessions, "usable_memory", lambda mates: 9)
    if store.spec.formats:
        why = "where .* cannot keep them" if cache else "without --weights-cache FOLDER"
        with pytest.raises(StoreError, match=f"packed into memory {why}: [0-9]+ bytes, 9 are free"):
            answer(store, "mapped")
    else:
        assert np.isfinite(answer(store, "mapped")[0]).all()


def test_an_entry_that_cannot_be_opened_is_removed(store, kept):
    """Its checksums are right: what was written is not a model."""
    answer(store, "mapped")
    (entry,) = kept.folder.iterdir()
    listed = json.loads((entry / LIST).read_bytes())
    (entry / sessions.KEPT).write_bytes(b"")
    files = [[path.name, path.stat().st_size, zlib.crc32(path.read_bytes())] for path in sorted(entry.iterdir()) if path.name != LIST]
    (entry / LIST).write_text(json.dumps(listed | {"files": files}))
    assert np.isfinite(answer(store, "mapped")[0]).all() and len(kept.said) == 1 and not list(kept.folder.iterdir())
