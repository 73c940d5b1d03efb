"""What is said when a process is to end; that it is said once, and in time, tests/test_terminal.py looks at."""

import mmap
import os
import signal
import subprocess
import sys

import pytest

from hepti_mpi.comm import interrupts, launcher

NAMED = r"""
import time
open("/proc/self/comm", "wb").write(b"a) name \xc3")
print("named", flush=True)
time.sleep(60)
"""


@pytest.fixture
def said(monkeypatch):
    """Return what this process says, which has the word and has not spoken."""
    reading, word = os.pipe()
    os.write(word, b"!")
    told = []
    monkeypatch.setattr(interrupts, "_word", [reading])
    monkeypatch.setattr(interrupts, "_tell", told.append)
    monkeypatch.setattr(interrupts, "_sentence", interrupts._sentence)
    os.set_blocking(reading, False)
    yield told
    os.close(reading)
    os.close(word)


@pytest.mark.parametrize("gone, pressed, ranks, why", [
    (False, False, "2", "interrupted"), (True, False, "2", "a rank ended"),
    (False, False, "4", "interrupted, or a rank on another host ended"), (False, True, "4", "interrupted"),
    (True, False, "4", "a rank ended"),
])  # fmt: skip
def test_a_sentence_says_why_and_keeps_its_other_words(gone, pressed, ranks, why, said, monkeypatch):
    monkeypatch.setattr(interrupts, "rank_is_gone", lambda: gone)
    monkeypatch.setattr(interrupts, "_heard", {signal.SIGINT} if pressed else {signal.SIGTERM})
    for name, value in (("SIZE", ranks), ("LOCAL_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    interrupts.say(lambda why: f"{why}; 2 of 3 answers are kept in interrupted.jsonl.part")
    interrupts._speak()
    interrupts._speak()
    assert said == [f"{why}; 2 of 3 answers are kept in interrupted.jsonl.part"]


@pytest.mark.parametrize("heard, whether", [((), False), ((signal.SIGCHLD,), False), ((signal.SIGCONT, signal.SIGTERM), True)])
def test_who_asks_this_process_to_end(heard, whether, monkeypatch):
    monkeypatch.setattr(interrupts, "_heard", set(heard))
    assert interrupts.arrived() is whether


def test_a_sentence_of_nothing_is_not_said(said, monkeypatch):
    monkeypatch.setattr(interrupts, "rank_is_gone", lambda: False)
    interrupts.say(lambda why: None)
    interrupts._speak()
    assert said == []


@pytest.mark.parametrize("fails", ["_why", "_sentence"])
def test_the_bare_word_where_nothing_more_can_be_found_out(fails, said, monkeypatch):
    def fail(*_):
        raise ValueError("nothing of the kind was thought of")

    monkeypatch.setattr(interrupts, "rank_is_gone", lambda: False)
    monkeypatch.setattr(interrupts, fails, fail)
    interrupts._speak()
    assert said == ["interrupted"]


def test_a_process_whose_sentence_cannot_be_told_ends_all_the_same(said, monkeypatch):
    def fail(_):
        raise OSError("nobody reads")

    codes = []
    monkeypatch.setattr(interrupts, "rank_is_gone", lambda: False)
    monkeypatch.setattr(interrupts, "_tell", fail)
    monkeypatch.setattr(interrupts, "_ending", codes.append)
    with pytest.raises(OSError):
        interrupts.finish()
    assert codes == [interrupts.EXIT_CODE]


def test_processes_of_any_name_are_counted():
    """The system cuts a name behind 15 bytes, which may be within a letter."""
    process = subprocess.Popen([sys.executable, "-c", NAMED], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"named\n" and process.pid in launcher.children(os.getpid())
    finally:
        process.kill()
        process.communicate()


def test_the_bare_word(said, monkeypatch):
    monkeypatch.setattr(interrupts, "rank_is_gone", lambda: False)
    monkeypatch.setattr(interrupts, "_sentence", str)
    interrupts._speak()
    assert said == ["interrupted"]


@pytest.mark.parametrize("sentence, noted", [
    (lambda why: f"{why}; 2 of 3 answers are kept", f"{interrupts.LOST}; 2 of 3 answers are kept"), (lambda why: None, ""),
])  # fmt: skip
def test_what_is_noted_for_a_process_that_ends_without_a_word(sentence, noted, said, monkeypatch):
    """Nothing of it is done meanwhile that is done at an interruption."""
    memory = mmap.mmap(-1, interrupts._LAST_BYTES)
    monkeypatch.setattr(interrupts, "_last", [memory])
    monkeypatch.setattr(interrupts, "_first", bool)
    interrupts.say(str)
    interrupts.say(sentence, lambda: pytest.fail("nobody interrupts"))
    assert memory[:].partition(b"\0")[0].decode() == noted and said == []
