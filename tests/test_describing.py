"""A machine described as a board: the figures follow from its calls, and the entry can be read again."""

from dataclasses import replace

import pytest
from click.testing import CliRunner

from hepti_mpi.cluster.boards import ROWS, Work, entry, read_boards
from hepti_mpi.commands import main
from hepti_mpi.engine import describing
from hepti_mpi.engine.describing import Call
from hepti_mpi.errors import ProfileError
from hepti_mpi.reporting import inspection

PI = read_boards()["pi5"]
WEIGHTS = 16e6


def calls_of(board):
    """What the calls would take on a board that is as it is described."""
    none = Call("call", "of next to nothing", Work(), board.call_seconds)
    products = [Call("product", f"{rows} rows", Work(((rows, WEIGHTS),)), 0.0, "float32") for rows in ROWS]
    products = [replace(call, seconds=board.seconds(call.work)) for call in products]
    others = [
        Call("product", f"{rows} rows", Work(((rows, WEIGHTS, name),)), board.call_seconds + 2 * rows * WEIGHTS / rate, kind)
        for rows in ROWS[-3:] for kind, name, rate in (("int8", "q8", board.int8), ("int4", "q4", board.int4))
    ]  # fmt: skip
    return [none, *products, *others]


def test_the_figures_follow_from_the_calls():
    found = describing._board("it", "a title", 4, PI.memory_bytes, "today", calls_of(PI))
    assert found.float32 == pytest.approx(PI.float32, rel=0.04)  # reading takes a little at many rows too
    assert found.int8 == pytest.approx(PI.int8) and found.int4 == pytest.approx(PI.int4)
    assert found.memory == pytest.approx(PI.memory, rel=0.02) and found.call_seconds == PI.call_seconds
    assert all(text.startswith("measured: on this machine, 4 threads, ") and "today" in text for text in found.sources.values())


def test_the_entry_is_read_again(tmp_path):
    title = 'a "box" \\ of mine' + ", which has a name that is longer than a line of a terminal"
    board = describing._board("my-box", title, 2, 8 << 30, "2026-12-01 03:10 UTC", calls_of(PI))
    file = tmp_path / "boards.toml"
    file.write_text(entry(board))
    assert max(map(len, entry(board).splitlines())) < 80  # a terminal broke them within words
    (found,) = read_boards(file).values()
    assert (found.name, found.title, found.cores, found.sources) == (board.name, board.title, 2, board.sources)
    assert found.float32 == pytest.approx(board.float32, rel=0.01) and found.memory_bytes == 8 << 30


def test_the_table_has_both_and_their_ratio():
    calls = [Call("casts", "128 x 8", Work(casts=1024), 2 * PI.seconds(Work(casts=1024))), calls_of(PI)[-1]]
    lines = inspection.call_lines(PI, calls).splitlines()
    assert lines[1].endswith("0.50") and float(lines[2].split()[-1]) == pytest.approx(1.0, abs=0.1)  # reading is a little of many rows
    document = inspection.description_document(PI, calls)
    assert document["format"] == "hepti-board" and document["calls"][1]["described_seconds"] == PI.seconds(calls[1].work)


def test_calls_of_every_kind_of_work_are_measured(monkeypatch):
    monkeypatch.setattr(describing, "PASSES", 1)
    monkeypatch.setattr(describing, "PASS_SECONDS", 0.0)
    board, calls = describing.describe("here", "this machine", 1, "today")
    assert {call.kind for call in calls} == {"call", "product", "attention", "elements", "activations", "casts", "copies"}
    assert {call.weights for call in calls if call.kind == "product"} == {"float32", "int8", "int4"}
    assert min(board.float32, board.int8, board.int4, board.memory) > 1e8 and min(call.seconds for call in calls) > 0


@pytest.mark.parametrize("more", [["--fresh"], ["--emulate", "pi4"], ["--output", "here.json"]])
def test_what_does_not_go_together_is_refused(more):
    done = CliRunner().invoke(main.main, ["profile", "--describe", "here", *more])
    assert done.exit_code == 2 and "--describe measures this machine" in done.output


def test_a_name_that_no_board_can_have_is_refused_before_anything_is_measured():
    done = CliRunner().invoke(main.main, ["profile", "--describe", "Not A Name"])
    assert isinstance(done.exception, ProfileError) and "is no name for a board" in str(done.exception)
