"""What is said when a process is to end; that it is said once, and in time, tests/test_terminal.py looks at."""

import os
import signal
import subprocess
import sys

import pytest

from hepti_mpi import documents
from hepti_mpi.__main__ import _tell_error
from hepti_mpi.comm import interrupts, launcher
from hepti_mpi.comm.channel import STATE
from hepti_mpi.comm.lastword import BEGUN, BYTES, LastWord

NAMED = r"""
import time
open("/proc/self/comm", "wb").write(b"a) name \xc3")
print("named", flush=True)
time.sleep(60)
"""

# Ctrl-C comes as soon as the lock of all imports is taken, and what is raised there is lost, as in a callback of importlib's own
IMPORTING = """
import importlib._bootstrap as bootstrap, signal, time, types
from collections import deque
from functools import partial
from itertools import chain, repeat
from operator import methodcaller
from hepti_mpi.comm import interrupts

def tell(sentence):
    import colorsys
    print(sentence, flush=True)

interrupts.listen(tell)
call, taken = methodcaller("__call__"), bootstrap._imp.acquire_lock
pressed = partial(deque, map(call, [taken, partial(signal.raise_signal, signal.SIGINT)]), 0)
acquire_lock = partial(next, map(call, chain([pressed], repeat(taken))))  # without a frame of its own
bootstrap._imp = types.SimpleNamespace(**{**vars(bootstrap._imp), "acquire_lock": acquire_lock})
while True:
    try:
        import wave
        time.sleep(60)
    except BaseException:
        pass
"""


@pytest.fixture
def said(monkeypatch):
    """Return what this process says, which has the word and has not spoken."""
    told, last = [], LastWord()
    monkeypatch.setattr(interrupts, "_last", [last])
    monkeypatch.setattr(interrupts, "_first", bool)
    monkeypatch.setattr(interrupts, "_tell", told.append)
    monkeypatch.setattr(interrupts, "rank_is_gone", lambda: False)
    yield told
    os.close(last.token)
    last._page.close()


@pytest.mark.parametrize("gone, pressed, ranks, why", [
    (False, False, "2", "interrupted"), (True, False, "2", "a rank ended"),
    (False, False, "4", "interrupted, or a rank on another host ended"), (False, True, "4", "interrupted"),
    (True, False, "4", "a rank ended"),
])  # fmt: skip
def test_a_sentence_says_why_and_what_is_kept_once(gone, pressed, ranks, why, said, monkeypatch):
    monkeypatch.setattr(interrupts, "rank_is_gone", lambda: gone)
    monkeypatch.setattr(interrupts, "_heard", {signal.SIGINT} if pressed else {signal.SIGTERM})
    for name, value in (("SIZE", ranks), ("LOCAL_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    interrupts.keeping(lambda: "2 of 3 answers are kept in interrupted.jsonl.part")
    assert interrupts.speak() and interrupts.speak() and interrupts.speak("waited 5 s for rank 1")
    assert said == [f"{why}; 2 of 3 answers are kept in interrupted.jsonl.part"] and not interrupts.told()


def test_who_gives_another_reason_says_what_is_kept_with_it(said):
    """As a deadline that has passed: no process that outlives this one is to say a second sentence."""
    interrupts.keeping(lambda: "2 of 3 answers are kept")
    assert interrupts.speak("waited 5 s for rank 1") and said == ["waited 5 s for rank 1; 2 of 3 answers are kept"]
    assert not interrupts.told()


@pytest.mark.parametrize("left, words", [("2 of 3 answers are kept", "error: no room; 2 of 3 answers are kept"), ("", "error: no room")])
def test_an_error_says_what_can_be_gone_on_with(left, words, said, capsys, monkeypatch):
    monkeypatch.setattr(interrupts, "_left", str)
    interrupts.keeping(str, left=lambda: left)
    _tell_error("error: no room", False)
    assert capsys.readouterr().err == f"{words}\n" and not said


def test_another_rank_says_nothing_and_leaves_the_word(said, monkeypatch):
    monkeypatch.setattr(interrupts, "_tell", None)
    assert not interrupts.speak("waited 5 s for rank 1") and interrupts.told() and not said


def test_the_reason_that_another_rank_hands_on_is_said(said, monkeypatch):
    """The first of them, once."""
    monkeypatch.setattr(interrupts, "_tell", None)
    monkeypatch.setattr(interrupts, "first_rank", os.getpid)  # as if this process were both
    interrupts.keeping(lambda: "2 of 3 answers are kept")
    assert interrupts.speak("waited 5 s for rank 0") and interrupts.speak("waited 5 s for rank 2") and not said
    assert interrupts._last[0].noted(interrupts.LOST) == "waited 5 s for rank 0; 2 of 3 answers are kept"
    monkeypatch.setattr(interrupts, "_tell", said.append)
    assert interrupts.speak() and said == ["waited 5 s for rank 0; 2 of 3 answers are kept"]


def test_where_nothing_can_be_handed_on(said, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(interrupts, "_tell", None)
    interrupts._last[0]._page.close()
    interrupts._last[:] = [LastWord()]
    monkeypatch.setattr(interrupts, "first_rank", os.getpid)
    assert not interrupts.speak("waited 5 s for rank 0") and interrupts._last[0].noted(interrupts.LOST) == interrupts.LOST


@pytest.mark.parametrize("end, unsaid", [(interrupts.told, True), (interrupts.speak, False), (lambda: _tell_error("error", False), False)])
def test_who_is_too_late_with_a_reason(end, unsaid, said, monkeypatch):
    """It says that itself where the first rank has ended well; where it has said why all end nobody needs another one."""
    monkeypatch.setattr(interrupts, "first_rank", os.getpid)
    end()
    monkeypatch.setattr(interrupts, "_tell", None)
    assert interrupts.speak("waited 5 s for rank 0") is not unsaid and interrupts._last[0].reason() == ""


@pytest.mark.parametrize("heard, whether", [((), False), ((signal.SIGCHLD,), False), ((signal.SIGCONT, signal.SIGTERM), True)])
def test_who_asks_this_process_to_end(heard, whether, monkeypatch):
    monkeypatch.setattr(interrupts, "_heard", set(heard))
    assert interrupts.arrived() is whether


def test_a_supervised_rank_leaves_all_words_to_its_supervisor(tmp_path):
    """From the beginning: it said that mpirun had ended, beside the supervisor's sentence."""
    code = "from hepti_mpi.comm import interrupts\ninterrupts.listen(lambda said: print(said, flush=True))\ninterrupts.finish()"
    for state, words in ((str(tmp_path / "state"), ""), ("", "interrupted\n")):
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, STATE: state}, capture_output=True, text=True)
        assert done.stdout == words and done.returncode == 130, done


def test_what_somebody_else_says_is_not_said(said):
    interrupts.keeping(lambda: None)
    assert interrupts.speak() and said == []


@pytest.mark.parametrize("fails", ["_why", "kept"])
def test_the_bare_word_where_nothing_more_can_be_found_out(fails, said, monkeypatch):
    def fail():
        raise ValueError("nothing of the kind was thought of")

    if fails == "kept":
        interrupts._last[0].kept = fail
    else:
        monkeypatch.setattr(interrupts, fails, fail)
    interrupts.speak()
    assert said == ["interrupted"]


def test_a_process_whose_sentence_cannot_be_told_ends_all_the_same(said, monkeypatch):
    def fail(_):
        raise OSError("nobody reads")

    codes = []
    monkeypatch.setattr(interrupts, "_tell", fail)
    monkeypatch.setattr(interrupts, "_ending", codes.append)
    with pytest.raises(OSError):
        interrupts.finish()
    assert codes == [interrupts.EXIT_CODE]


@pytest.mark.parametrize("folder", [False, True])
def test_what_is_half_written_is_put_away_where_the_main_thread_cannot(folder, said, monkeypatch, tmp_path):
    """It was within one call of LAPACK for longer than it is waited for, and 49 MB of a store were left."""
    codes = []
    monkeypatch.setattr(interrupts, "_ending", codes.append)
    with documents.unfinished(tmp_path / "x.h5") as path:
        path.mkdir() if folder else path.touch()
        (path / "y" if folder else tmp_path / "whole.h5").touch()
        interrupts.finish()
        assert not path.exists() and codes == [130]
    assert [one.name for one in tmp_path.iterdir()] == ["whole.h5"] * (not folder)


def test_processes_of_any_name_are_counted():
    """The system cuts a name behind 15 bytes, which may be within a letter."""
    process = subprocess.Popen([sys.executable, "-c", NAMED], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"named\n" and process.pid in launcher.children(os.getpid())
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("before, words", [(5, "a rank ended"), (4, "has ended 1 process on "), (3, "has ended 2 processes on ")])
def test_a_rank_that_the_system_ended_for_want_of_memory(before, words, said, monkeypatch):
    """It can say nothing, and mpirun tells of signal 9 only."""
    monkeypatch.setattr(interrupts, "rank_is_gone", lambda: True)
    monkeypatch.setattr(interrupts, "starved", lambda: 5)
    monkeypatch.setattr(interrupts, "_before", [before])
    interrupts.keeping(lambda: "2 of 3 answers are kept")
    interrupts.speak()
    memory = "" if before == 5 else f"; for want of memory the system {words}{launcher.host_name()} since this began: free memory there, "
    assert said == [f"a rank ended{memory}{memory and 'or give ranks less with --memory-limit'}; 2 of 3 answers are kept"]


def test_the_bare_word(said):
    interrupts.speak()
    assert said == ["interrupted"]


def test_a_rank_that_is_killed_before_it_has_said_why_leaves_the_word(said, monkeypatch):
    """It looks for the reason, which takes longer on a busy machine than mpirun leaves it: nothing at all was said."""
    last, seen = interrupts._last[0], []
    monkeypatch.setattr(interrupts, "_tell", lambda sentence: seen.append(last.begun))
    interrupts.speak()
    assert seen == [True] and not last.begun and not last.taken()
    last._page[BYTES : BYTES + 1] = BEGUN
    assert last.begun and last.noted(interrupts.PRESSED) == "interrupted" and last.reason() == ""


@pytest.mark.parametrize("kept, noted", [
    ("2 of 3 answers are kept", "a rank was lost; 2 of 3 answers are kept"), ("", "a rank was lost"),
    (None, "a rank was lost"), ("in half\udcc3.jsonl", "a rank was lost; in half\\udcc3.jsonl"),
    ("é" * BYTES, f"a rank was lost; {'é' * (BYTES // 2 - 1)}"),
])  # fmt: skip
def test_what_is_noted_for_a_process_that_ends_without_a_word(kept, noted, said):
    """Nothing of it is done meanwhile that is done at an interruption."""
    interrupts.keeping(lambda: "")
    interrupts.keeping(lambda: kept, lambda: pytest.fail("nobody interrupts"))
    assert interrupts._last[0].noted(interrupts.LOST) == noted and said == []


def test_an_import_that_is_interrupted_keeps_no_lock():
    """The thread that says why imports too, and waited for ever."""
    ended = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, timeout=30)
    assert (ended.stdout, ended.returncode) == ("interrupted\n", interrupts.EXIT_CODE), ended.stderr
