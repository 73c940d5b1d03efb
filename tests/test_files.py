"""Files that are there whole or not at all."""

import errno
import os
import threading

import pytest

from hepti_mpi.documents import append_lines, check_document_place, check_place, whole_file, write_document
from hepti_mpi.errors import HeptiError, PlanError, dead_link, reason_of
from hepti_mpi.weights import hdf5


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_what_it_points_to_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    link, path = tmp_path / "x", tmp_path / "disk/y"
    link.symlink_to("disk/y")
    for content in (b"new", b"newer"):
        check_place(link, HeptiError)
        with whole_file(link) as file:
            file.write(content)
        assert link.is_symlink() and path.read_bytes() == content and list(path.parent.iterdir()) == [path]
    with hdf5.new_file(link, 0) as store:
        store.attrs["format"] = "x"
    assert link.is_symlink() and path.read_bytes().startswith(b"\x89HDF") and list(path.parent.iterdir()) == [path]
    for target, why in (("gone/y", "folder .*/gone does not exist"), ("disk", "is a folder"), (os.devnull, "is there and is no file")):
        link.unlink()
        link.symlink_to(target)
        with pytest.raises(HeptiError, match=why):
            check_place(link, HeptiError)


def test_two_writers_do_not_meet(tmp_path):
    path, contents = tmp_path / "x", (b"a" * 100_000, b"b" * 100_000)
    failures = []

    def write(content):
        for _ in range(100):
            try:
                with whole_file(path) as file:
                    file.write(content)
                assert path.read_bytes() in contents
            except (OSError, AssertionError) as error:
                failures.append(error)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failures and list(tmp_path.iterdir()) == [path]


def test_lines_are_added_all_or_none(tmp_path, monkeypatch):
    path = tmp_path / "records.jsonl"
    append_lines(path, ["a", "b"], HeptiError)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HeptiError, match="records.jsonl cannot be written: No space left on device"):
        append_lines(path, ["c"], HeptiError)
    assert path.read_text() == "a\nb\n"
    with pytest.raises(HeptiError, match="new.jsonl cannot be written"):
        append_lines(tmp_path / "new.jsonl", ["c"], HeptiError)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("there, refused", [(b"# a page", True), (b'{"name": "x"}', True), (b"", False), (None, False)])
def test_a_document_replaces_no_file_of_somebody_else(tmp_path, there, refused):
    path = tmp_path / "plan.json"
    if there is not None:
        path.write_bytes(there)
    if refused:
        with pytest.raises(PlanError, match="plan.json is there and was not written by this program"):
            check_document_place(path, PlanError)
        return
    for _ in range(2):
        check_document_place(path, PlanError)
        write_document(path, {"format": "hepti-plan"}, PlanError)


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "away").symlink_to("gone/folder")
    (tmp_path / "here").symlink_to(tmp_path)
    assert dead_link(tmp_path / "away") == "it is a link to gone/folder, where nothing is"
    assert dead_link(tmp_path / "away/x.txt") == f"{tmp_path}/away is a link to gone/folder, where nothing is"
    assert dead_link(tmp_path / "here") is None is dead_link(tmp_path / "none")
    for name, why in (("away", "it is a link to gone/folder, where nothing is"), ("none", "No such file or directory")):
        with pytest.raises(OSError) as error:
            open(tmp_path / name)
        assert reason_of(error.value) == why
