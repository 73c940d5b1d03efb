"""Files that are there whole or not at all."""

import threading

import pytest

from hepti_mpi.documents import whole_file


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


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
