"""Deadlines of waits: what is said, when, and that the process really ends. With ranks and hosts: tests/test_bad_input.py, test_lab.py."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hepti_mpi.comm import patience
from hepti_mpi.comm.channel import STATE, told
from hepti_mpi.comm.patience import Patience


def of(rank=0, hosts=("pi1", "pi2", "pi3", "pi4"), seconds=60.0):
    watched = Patience(0.0, rank, len(hosts))  # no thread
    watched.seconds, watched.hosts = seconds, list(hosts)
    return watched


def sentence(watched, silent=()):
    return watched.judged(lambda hosts: set(hosts) & set(silent)).sentence(watched.rank, watched.hosts)


@pytest.mark.parametrize("whom, silent, words", [
    (lambda: [2], (), "waited 60 s for rank 2 on pi3; all hosts answer: look for a process there that is stopped"),
    (lambda: [1, 2], ("pi2",), "waited 60 s for rank 1 on pi2; pi2 does not answer: mend it, or leave it out of the hostfile"),
    (None, ("pi3",), "waited 60 s for rank 2 on pi3; pi3 does not answer"),
    (None, (), "waited 60 s for rank 1 on pi2, rank 2 on pi3, rank 3 on pi4; all hosts answer"),
    (lambda: [], ("pi2", "pi4"), "waited 60 s for rank 1 on pi2, rank 3 on pi4; pi2, pi4 do not answer"),
    (lambda: [2], ("pi2", "pi3", "pi4"), "waited 60 s for rank 2 on pi3; no other host answers: look at the link of pi1, then at theirs"),
    (lambda: [2], ("pi2", "pi4"), "waited 60 s for rank 2 on pi3; pi2, pi4 do not answer"),
])  # fmt: skip
def test_who_is_waited_for_is_named(whom, silent, words):
    watched = of()
    with watched.waiting(whom):
        said = sentence(watched, silent)
    assert said.startswith("error on ") and "(rank 0)" in said and words in said and not said.endswith(".")


def test_many_ranks_are_not_all_named():
    said = sentence(of(hosts=[f"pi{number}" for number in range(9)]))
    assert "rank 4 on pi4, ...;" in said and "pi5" not in said


def test_only_waits_count_and_loading_may_take_longer():
    watched = of(seconds=10.0)
    assert watched.left() is None
    with watched.waiting():
        assert 9 < watched.left() <= 10
        with watched.slower():
            assert 99 < watched.left() <= 100
            assert "waited 100 s" in sentence(watched)
            with watched.slower():  # what one loads may be a part of what another does
                pass
            assert 99 < watched.left() <= 100
    assert watched.left() is None


@pytest.mark.parametrize("still, left", [(2.0, 0.0), (3.0, 10.0), (1000.0, 10.0)])
def test_a_rank_that_stood_still_itself_counts_anew(still, left):
    """As all do after Ctrl-Z and fg, or where their container was paused."""
    watched, now = of(seconds=10.0), time.monotonic()
    with watched.waiting():
        watched.since = now - 10.0
        watched.looked(now - still, now)
        assert left - 1 < watched.left() <= left


def test_the_first_rank_speaks_for_all():
    lefts = []
    for rank in range(3):
        watched = of(rank)
        with watched.waiting():
            lefts.append(watched.left())
    assert lefts == sorted(lefts) and lefts[1] - lefts[0] > 0.4


def test_who_is_not_heard_of_is_waited_for_whatever_the_main_thread_does():
    watched = of(seconds=10.0)
    for _ in range(2):  # noted again, it is not waited for anew
        watched.hear([2], time.monotonic() - 9)
        with watched.waiting(lambda: [1]):
            assert watched.left() < 1.1 and watched.late() == [2]
    assert watched.left() < 1.1 and "rank 2 on pi3" in sentence(watched)
    with watched.waiting(lambda: [1]):
        watched.hear([2], time.monotonic())
        assert watched.late() == [1]
        watched.hear([], 0.0)
        assert watched.late() == [1] and watched.left() > 9
    assert watched.left() is None


@pytest.mark.parametrize("error, silent", [
    (ConnectionRefusedError(), False), (TimeoutError(), True), (OSError("no route"), True), (None, False),
])  # fmt: skip
def test_a_host_that_says_no_is_there(monkeypatch, error, silent):
    class Connection:
        def close(self):
            pass

    def connect(address, timeout):
        if error is not None:
            raise error
        return Connection()

    monkeypatch.setattr(patience.socket, "create_connection", connect)
    assert patience.is_silent("10.0.0.2") is silent
    watched = of()
    watched.addresses = {"pi1": ["10.0.0.1", "172.17.0.1"], "pi2": ["10.0.0.2", "172.17.0.1"], "pi3": ["172.17.0.1"]}
    assert watched.silent_of(["pi2", "pi3", "pi4"]) == ({"pi2"} if silent else set()) and not watched.silent_of([])


def test_a_host_that_answers_by_one_of_its_addresses_is_there(monkeypatch):
    monkeypatch.setattr(patience, "is_silent", lambda address: address != "10.0.1.2")
    watched = of()
    watched.addresses = {"pi2": ["10.0.0.2", "10.0.1.2"], "pi3": ["10.0.0.3", "10.0.1.3"]}
    assert watched.silent_of(["pi2", "pi3"]) == {"pi3"}


PROGRAM = """
import sys, time
from hepti_mpi.comm.channel import STATE, told
from hepti_mpi.comm.patience import Patience
watched = Patience(float(sys.argv[1]), 0, 2)
watched.hosts = ["here", "there"]
with watched.waiting(lambda: [1]):
    time.sleep(float(sys.argv[2]))
time.sleep(float(sys.argv[3]))
print("done")
"""


@pytest.mark.parametrize("deadline, waits, works, code", [
    ("0.3", "1000", "0", patience.EXIT_CODE), ("5", "0.1", "6", 0), ("0", "0.5", "0", 0),
])  # fmt: skip
def test_a_wait_ends_the_process_and_work_does_not(deadline, waits, works, code):
    result = subprocess.run([sys.executable, "-c", PROGRAM, deadline, waits, works], capture_output=True, text=True, timeout=120)
    assert result.returncode == code
    assert ("waited 0.3 s for rank 1 on there" in result.stderr) == (code != 0) and ("done" in result.stdout) == (code == 0)


def test_a_supervisor_is_told_in_a_record_and_nobody_twice(tmp_path):
    words, environment = [sys.executable, "-c", PROGRAM, "0.3", "30", "0"], {**os.environ, STATE: str(tmp_path / "none")}
    result = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)
    record = told(result.stdout)
    assert "(rank 0): waited 0.3 s for rank 1 on there; all hosts answer" in record.pop("said") and not result.stderr
    assert record == {"kind": "late", "rank": 0, "waited": [1], "silent": [], "alone": False}


LAST = """
import sys
from hepti_mpi.comm import interrupts
interrupts.listen(lambda sentence: print(sentence, file=sys.stderr, flush=True))
interrupts.keeping(lambda: "2 of 3 answers are kept in a.jsonl.journal")
"""


def test_who_waited_in_vain_says_what_is_kept_in_the_same_sentence():
    words = [sys.executable, "-c", LAST + PROGRAM, "0.3", "30", "0"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    [said] = result.stderr.splitlines()
    assert result.returncode == patience.EXIT_CODE and "waited 0.3 s for rank 1 on there" in said
    assert said.endswith("; 2 of 3 answers are kept in a.jsonl.journal")


def test_what_does_not_end_when_asked_is_ended(monkeypatch):
    monkeypatch.setattr(patience, "END_SECONDS", 0.2)
    program = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    deaf = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    deaf.stdout.readline()
    patience._end(deaf.pid)
    assert deaf.wait(120) == -signal.SIGKILL
    patience._end(deaf.pid)  # which is no more: no error


def test_who_waits_too_long_says_it_where_a_text_of_another_rank_may_go_on(monkeypatch, capsys):
    """It stuck to the text: nobody had told the thread that watches of the line."""
    late, said = patience.Late(4.0, (0,), (), False), []
    for _ in range(2):
        patience._say_late("error on pi4 (rank 1): waited 4 s", late)
        monkeypatch.setattr(patience, "aloud", [said.append])
    assert capsys.readouterr().err == said[0] + "\n" and said == ["error on pi4 (rank 1): waited 4 s"]
