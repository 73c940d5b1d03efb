"""Real processes as people use them: Ctrl-C, a reader that has seen enough, no terminal, a terminal of 80 columns."""

import fcntl
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from clusters import cluster
from services import writing_folder
from terminals import ESCAPE, PROGRAM, environment, lines_of, on_a_terminal

from hepti_mpi.comm import interrupts, launcher
from hepti_mpi.commands import meter as meters
from hepti_mpi.commands import terminal
from hepti_mpi.commands.screen import Screen
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.reporting.tables import folded
from hepti_mpi.serving.journal import journal_path, noted
from hepti_mpi.serving.scheduler import Scheduler
from hepti_mpi.weights import writing

TEXTS = 12_000  # more than are answered before somebody has had enough
MPIRUN = Path(PROGRAM[0]).parent / "mpirun"
MARK = "HEPTI_TEST_TERMINAL"  # in the environment of all that a test starts


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("terminal")
    writing.write(folder / "tiny.h5", random_model("tiny-bert"))
    cluster((9, 7, 8)).save(folder / "three.json")
    (folder / "texts.txt").write_text("".join(f"text {number} of many that are asked\n" for number in range(TEXTS)))
    np.savez(folder / "ids.npz", input_ids=np.random.default_rng(0).integers(1, 30, (TEXTS, 25)))  # as many rows as of these texts
    (folder / "hostfiles").mkdir()
    return folder


def long_run(output, *under):
    """Return the words of a run that is not over soon; of arrays, since to read texts takes a second more."""
    command = [*map(str, under), *PROGRAM, "run", "--weights", "tiny.h5", "--input", "ids.npz", "--output", output]
    return [*command, "--batch-rows", "64", "--no-adapt", "--threads", "1"]  # two would wait for each other beside other tests


def are_kept(folder, output):
    return any(path.stat().st_size > 20_000 for path in folder.glob(f"{output}.*"))


def process_of(launched, rank):
    """Return the process of a rank of a job on this host, of which mpirun is given."""
    ranks = {child: Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in launcher.children(launched.pid)}
    [found] = [child for child, words in ranks.items() if f"OMPI_COMM_WORLD_RANK={rank}".encode() in words]
    return found


def interrupted(folder, output, *under, by=lambda process: os.killpg(process.pid, signal.SIGINT), more=()):
    """Begin a long run, press Ctrl-C when answers are kept, or end it `by` something else, and return its exit code and what it said."""
    command = [*long_run(output, *under), *more]
    environ = environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", **{MARK: output})
    process = subprocess.Popen(command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))  # fmt: skip  # whatever these tests have
    try:
        end = time.monotonic() + 120
        while not are_kept(folder, output):
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.02)
        by(process)
        out, said = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "Traceback" not in out + said
    return process.returncode, said


def left(output):
    """Return the processes that carry the mark of a test."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += [path.parent.name] * (f"{MARK}={output}".encode() in path.read_bytes().split(b"\0"))
        except OSError:
            pass
    return found


def assert_nobody_is_left(output):
    end = time.monotonic() + 60
    while left(output) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left(output)


PLANTED = """
import os, threading, time
def look():
    while not os.path.exists(os.path.join(os.path.dirname(__file__), "now")):
        time.sleep(0.05)
    from hepti_mpi.engine import engine
    run = engine.Engine.run
    def planted(*words):
        {what}
        return run(*words)
    engine.Engine.run = planted
if os.environ.get("OMPI_COMM_WORLD_RANK") == "{rank}":
    threading.Thread(target=look, daemon=True).start()
"""


def plant(folder, rank, what):
    """Have a rank do something else before each batch, once there is a file `now`; return the path by which it is found."""
    (folder / "sitecustomize.py").write_text(PLANTED.format(rank=rank, what=what))
    return os.pathsep.join([str(folder), *sys.path])


@pytest.mark.parametrize("number", interrupts.SIGNALS, ids=lambda number: number.name)
def test_an_end_says_what_is_kept_and_what_goes_on(made, number):
    """By a key, by `kill`, and where the terminal is closed: a library that MPI brings has taken that signal."""
    output = f"{number.name}.jsonl"
    code, said = interrupted(made, output, by=lambda process: os.killpg(process.pid, number))
    [sentence] = [line for line in said.splitlines() if "interrupted" in line]
    kept = re.fullmatch(rf"interrupted; (\d+) of {TEXTS} answers are kept in (\S+); go on with: .* -m hepti_mpi run .* --resume", sentence)
    assert code == 130 and kept and 0 < int(kept[1]) < TEXTS and (made / kept[2]).exists(), said
    assert not (made / output).exists() and said.splitlines()[-1] == sentence


def all_shown(master, process, seen):
    """Return what a process shows on its terminal until it ends; `seen` is told all that was shown after each part of it."""
    shown = b""
    try:
        while True:
            shown += os.read(master, 1 << 16)
            seen(shown)
    except OSError:  # the other end is closed
        process.wait(60)
        return shown
    finally:
        os.close(master)
        process.kill()
        process.wait()


WAITING = """
import os, sys, time
from hepti_mpi.comm.launcher import print_past_launcher
print_past_launcher()
print("> ", end="", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
print("seen", sys.stdin.readline())
"""


@pytest.mark.skipif(not MPIRUN.exists(), reason="needs mpirun")
@pytest.mark.parametrize("options", [[], ["--tag-output"]])
def test_a_line_that_has_not_ended_is_seen_on_the_terminal_of_mpirun(tmp_path, options):
    """Which holds it back. Where mpirun is to say whose each line is, it has all of them."""
    gate = tmp_path / "seen"
    if options:
        gate.touch()  # nothing is seen before the line ends
    master, slave = pty.openpty()
    command = [str(MPIRUN), "--oversubscribe", *options, "-n", "1", sys.executable, "-c", WAITING, str(gate)]
    environ = environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=slave, stderr=slave, env=environ, start_new_session=True)
    os.close(slave)
    if options:
        process.stdin.write(b"yes\n")
        process.stdin.close()

    def type_once_asked(shown):
        if b"> " in shown and not process.stdin.closed:
            gate.touch()
            time.sleep(0.3)  # of a rank that had closed what mpirun gave it, mpirun ends the input meanwhile
            process.stdin.write(b"yes\n")
            process.stdin.close()

    shown = all_shown(master, process, type_once_asked)
    assert b"seen yes" in shown and (b"<stdout>" in shown) == bool(options), shown


@pytest.mark.skipif(not MPIRUN.exists(), reason="needs mpirun")
def test_ctrl_c_under_mpirun_is_one_sentence_and_leaves_no_rank(made):
    code, said = interrupted(made, "two.jsonl", MPIRUN, "-n", "2", "--oversubscribe")
    sentences = [line for line in said.splitlines() if "interrupted" in line]
    assert code != 0 and len(sentences) == 1 and sentences[0].endswith("--resume") and "mpirun -n 2" in sentences[0], said
    assert_nobody_is_left("two.jsonl")


@pytest.mark.skipif(not MPIRUN.exists(), reason="needs mpirun")
@pytest.mark.parametrize("rank", [0, 1, None])
def test_what_is_kept_is_said_for_a_rank_that_cannot_say_it(made, rank):
    """Over TCP, as between hosts, MPI ends the first rank itself where another one, or mpirun, is killed."""

    def kill(process):
        if rank is None:
            process.kill()
        else:
            os.kill(process_of(process, rank), signal.SIGKILL)

    output = f"lost{rank}.jsonl"
    both = ["--mca", "btl", "tcp,self", "-n", "2", "--oversubscribe"]
    code, said = interrupted(made, output, MPIRUN, *both, by=kill)
    sentences = [line for line in said.splitlines() if " are kept in " in line]
    assert code != 0 and len(sentences) == 1 and sentences[0].endswith("--resume"), said
    why = "a rank was lost|a rank ended" if rank is not None else "a rank was lost|mpirun ended"
    assert re.match(rf"({why}); \d+ of {TEXTS} answers", sentences[0]), said
    assert_nobody_is_left(output)


@pytest.mark.skipif(not MPIRUN.exists(), reason="needs mpirun")
@pytest.mark.parametrize("why", ["late", "fault"])
def test_a_rank_that_knows_why_all_end_has_the_first_say_it_with_what_is_kept(made, why, tmp_path):
    """Each said a sentence of its own: a reason, and that a rank had ended."""
    path = plant(tmp_path, 1, 'raise ZeroDivisionError("planted")')
    output, more = f"{why}.jsonl", ["--shares", "1,1", "--deadline", "5"]
    by = {"late": lambda process: os.kill(process_of(process, 0), signal.SIGSTOP), "fault": lambda process: (tmp_path / "now").touch()}
    code, said = interrupted(made, output, MPIRUN, "-x", f"PYTHONPATH={path}", "-n", "2", "--oversubscribe", by=by[why], more=more)
    words = {"late": "waited 5 s for rank 0 on .* with --deadline", "fault": "ZeroDivisionError: planted .*"}[why]
    sentences = [line for line in said.splitlines() if re.match("error|interrupted|a rank |mpirun ended", line)]
    assert code != 0 and len(sentences) == 1, said
    kept = rf"\d+ of {TEXTS} answers are kept in \S+; go on with: mpirun .* --resume"
    assert re.match(rf"error on \S+ \(rank 1\): {words}; {kept}", sentences[0]), said
    assert_nobody_is_left(output)


@pytest.mark.skipif(not MPIRUN.exists(), reason="needs mpirun")
def test_ranks_whose_supervisor_is_killed_end(made, tmp_path):
    """mpirun went on, and they computed for nobody until all was answered."""
    run, output, begin = long_run("orphans.jsonl"), made / "orphans.jsonl", len(PROGRAM)
    (tmp_path / "hosts.txt").write_text("localhost slots=2\n")
    command = [*run[:begin], "supervise", "--mpirun", f"{MPIRUN} --oversubscribe", str(tmp_path / "hosts.txt"), "--", *run[begin:]]
    environ = environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", **{MARK: output.name})
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=made, env=environ | {"PYTHONPATH": plant(tmp_path, 0, "time.sleep(2)")}, stdin=nowhere,
                               stdout=nowhere, stderr=nowhere)  # fmt: skip
    end = time.monotonic() + 120
    while not are_kept(made, output.name):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    (tmp_path / "now").touch()
    process.kill()
    process.wait()
    assert_nobody_is_left(output.name)
    assert 0 < len(noted(journal_path(output))[0]) < TEXTS


def on_a_terminal_of_its_own(folder, output, *under):
    """Begin a long run whose first process is the first of a terminal, too, as of `ssh -t host mpirun ...`; return it and that."""
    master, slave = pty.openpty()
    environ = environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", **{MARK: output})
    process = subprocess.Popen(long_run(output, *under), cwd=folder, env=environ, stdin=slave, stdout=slave, stderr=slave,
                               start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))  # fmt: skip
    os.close(slave)
    return process, master


@pytest.mark.skipif(not MPIRUN.exists(), reason="needs mpirun")
@pytest.mark.parametrize("who", ["mpirun", "rank"])
def test_what_is_kept_is_said_on_a_terminal_whose_first_process_was_mpirun(made, who):
    """At its end the system sends SIGHUP to all of its group, in which is what stands by the first rank."""
    process, master = on_a_terminal_of_its_own(made, f"first-{who}.jsonl", MPIRUN, "-n", "2", "--oversubscribe")
    ended = []

    def kill_once_kept(shown):
        if not ended and are_kept(made, f"first-{who}.jsonl"):
            ended.append(process.kill() if who == "mpirun" else os.kill(process_of(process, 0), signal.SIGKILL))

    said = " ".join(ESCAPE.sub("", all_shown(master, process, kill_once_kept).decode()).replace("\\\r\n", " ").split())
    assert ended and said.count(" answers are kept in ") == 1 and "Traceback" not in said, said
    why = "a rank was lost|a rank ended" if who == "rank" else "a rank was lost|mpirun ended"
    assert re.search(rf"({why}); \d+ of {TEXTS} answers are kept in \S+; go on with: .* --resume", said), said
    assert_nobody_is_left(f"first-{who}.jsonl")


@pytest.mark.parametrize("more", [["--output", "unheard.jsonl"], []], ids=["file", "screen"])
def test_a_terminal_that_is_closed_is_not_missed_where_nobody_is_to_hear_of_it(made, more):
    """As after `disown`, or under `trap '' HUP`: drawing a bar there ended the run with an error of its disk."""
    master, slave = pty.openpty()
    (made / "some.txt").write_text("a text\n" * 4000)
    command = [*PROGRAM, "run", "--weights", "tiny.h5", "--input", "some.txt", "--no-adapt", "--threads", "1", *more]
    process = subprocess.Popen(command, cwd=made, env=environment(), stdin=subprocess.DEVNULL, stdout=slave, stderr=slave,
                               preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))  # fmt: skip
    os.close(slave)
    shown = b""
    while b"plan " not in shown:
        shown += os.read(master, 1 << 16)
    os.close(master)
    assert process.wait(120) == 0
    assert not more or len((made / "unheard.jsonl").read_bytes().splitlines()) == 4000


@pytest.mark.skipif(not MPIRUN.exists(), reason="needs mpirun")
@pytest.mark.parametrize("under", [[], [MPIRUN, "-n", "2", "--oversubscribe"]], ids=["alone", "mpirun"])
def test_a_terminal_that_is_closed_ends_all_and_what_is_kept_can_be_gone_on_with(made, under):
    output = f"closed{len(under)}.jsonl"
    process, master = on_a_terminal_of_its_own(made, output, *under)
    try:
        while not are_kept(made, output):
            os.read(master, 1 << 16)  # the bar
        os.close(master)
        assert process.wait(60) != 0
    finally:
        process.kill()
        process.wait()
    assert_nobody_is_left(output)
    places, _ = noted(journal_path(made / output))
    assert 0 < len(places) < TEXTS and not (made / output).exists()


@pytest.mark.parametrize("words", [
    ["plan", "--weights", "tiny.h5", "--profile", "three.json"],
    ["inspect", "tiny.h5"],
    ["run", "--weights", "tiny.h5", "--input", "texts.txt", "--no-adapt", "--repeat", "1000000"],
    ["run", "--weights", "tiny.h5", "--input", "texts.txt", "--objective", "throughput", "--repeat", "1000000"],
])  # fmt: skip
def test_a_reader_that_has_seen_enough(made, words):
    """As with | head -1: the program ends soon, in order and without a word about it."""
    process = subprocess.Popen([*PROGRAM, *words], cwd=made, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(120) == 0 and "roken pipe" not in said and "Traceback" not in said and "error" not in said, said


def test_progress_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(meters, "TOLD_SECONDS", 0.05)
    told, end = "", time.monotonic() + 120
    with meters.meanwhile("answering", 8) as meter:
        meter.advance(2)
        while told.count("\n") < 2 and time.monotonic() < end:
            time.sleep(0.05)
            told += capsys.readouterr().err
    assert told.count("\n") >= 2 and re.fullmatch(r"answering: 2 of 8 in [\d.]+ s, about [\d.]+ s left", told.splitlines()[-1]), told


def test_what_is_left_is_reckoned_by_rows():
    """The longest texts are answered first: by the number of answers "about 56 s left" was said of 12."""
    meter, scheduler = meters.Meter("answering", 10), Scheduler(None, 100)
    scheduler.answerer = SimpleNamespace(spec=SimpleNamespace(hidden=384))
    scheduler.add([Request(place, "", {}, np.zeros(rows), rows) for place, rows in enumerate([100, 100, *8 * [25]])])
    meter.begin -= 10
    meter.event(scheduler.done(scheduler.next(), [], 5.0))
    assert meter.words() == "answering: 1 of 10 in 10 s, about 30 s left"
    meter.event(scheduler.done(scheduler.next(), [], 5.0))
    assert meter.words() == "answering: 2 of 10 in 10 s, about 10 s left"
    while step := scheduler.next():
        meter.event(scheduler.done(step, [], 2.5))
    assert meter.words() == "answering: 10 of 10 in 10 s, about 0.00 s left"


def test_the_line_of_progress_is_wiped_where_the_terminal_is_that_of_mpirun(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "path", lambda descriptor: "/nowhere")  # and standard error is a pipe
    terminal.console.cache_clear()
    with meters.meanwhile("answering", 8) as meter:
        meter.advance(2)
    terminal.console.cache_clear()
    told = capsys.readouterr().err
    assert "answering: 2 of 8" in told and told.endswith(terminal.CLEAR), told


def test_a_meter_that_has_ended_draws_no_more(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "path", lambda descriptor: "/nowhere")
    terminal.console.cache_clear()
    with meters.meanwhile("answering", 8) as meter:
        meter.advance(2)
        meters.end_meters()
        assert capsys.readouterr().err.endswith(terminal.CLEAR)
        meter.advance(2)
        meter._draw()
        assert capsys.readouterr().err == ""
    terminal.console.cache_clear()


def test_nothing_is_drawn_over_what_ctrl_c_says(made):
    master, slave = pty.openpty()
    command = [*PROGRAM, "run", "--weights", "tiny.h5", "--input", "texts.txt", "--output", "drawn.jsonl", "--batch-rows", "64",
               "--threads", "1"]  # fmt: skip
    process = subprocess.Popen(command, cwd=made, env=environment(), stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)

    def interrupt_once_drawn(shown):
        if b"answering: " in shown and process.poll() is None and b"interrupted" not in shown:
            process.send_signal(signal.SIGINT)

    shown = all_shown(master, process, interrupt_once_drawn)
    before, found, after = shown.decode().rpartition("interrupted")
    last = before.rpartition("\n")[2]
    assert found and "answering" not in after, shown[-2000:]
    assert ESCAPE.sub("", last.rpartition(terminal.CLEAR[1:])[2]) == "", last


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_run_on_a_terminal_fits_it(made, columns):
    (made / "few.txt").write_text("a small boat\nafter the rain the children ran out into the garden and played until it was dark, "
                                  "all of them\n")  # fmt: skip
    code, shown = on_a_terminal(["run", "--weights", "tiny.h5", "--input", "few.txt"], columns, made)
    text = ESCAPE.sub("", shown).replace("\r\n", "\n")
    lines = [part for line in text.split("\n") for part in line.split("\r")]
    assert code == 0 and "2 texts" in text and "rank 0 on" in text, text
    assert max(map(len, lines)) <= columns, [line for line in lines if len(line) > columns]  # else words are broken at the edge
    assert not any(line.startswith("{") for line in lines)


def test_text_that_comes_in_parts_is_folded_between_words():
    from hepti_mpi.commands.terminal import Flow

    text = "A story of  nine gulls.\n\nThe end:\n\t- averyverylongwordthatfitsnowhere 日本語のテキスト x"
    for width in (8, 12, 20):
        for size in (1, 3, 100):
            flow = Flow(width)
            shown = "".join(flow.add(text[at : at + size]) for at in range(0, len(text), size)) + flow.end()
            lines = shown.split("\n")
            assert all(sum(1 + (ord(one) > 999) for one in line) <= width or "verylong" in line for line in lines), lines
            assert "".join(shown.split()) == "".join(text.split()) and "gulls.\n\nThe" in shown
    flow = Flow(None)
    assert flow.add("as it") == "as it" and flow.end() == ""


def test_a_text_that_grows_keeps_its_tabs_and_moves_no_cursor():
    """A tab was one blank, and code without its indentation; what a model writes could clear the terminal or name its window."""
    from hepti_mpi.commands.terminal import Flow

    for width, shown in ((20, "if x:\n        a       b"), (10, "if x:\n        a \nb"), (None, "if x:\r\n\ta\tb\x1b[2J")):
        flow = Flow(width)
        found = "".join(map(flow.add, "if x:\r\n\ta\tb\x1b[2J")) + flow.end()
        assert found == (shown if width is None else shown + "[2J")


def test_a_text_that_grows_on_a_terminal_is_shown_whole_whatever_is_told_meanwhile(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "place_of", lambda descriptor: "/dev/tty-nowhere")
    monkeypatch.setenv("COLUMNS", "20")
    terminal.console.cache_clear()
    screen = Screen()
    for number, part in enumerate(["The", " colour", " is", " a rare and", " precious one."]):
        screen.say_text("Name a colour." if number == 0 else None, part, number == 4)
    assert capsys.readouterr().out == "> Name a colour.\nThe colour is a rare\nand precious one.\n\n"
    screen.say_text("And?", "It grows ", False)
    screen.warn("rank 1 is slow")
    screen.say_text(None, "on.", True)
    shown = capsys.readouterr()
    assert shown.out == "> And?\nIt grows on.\n\n" and ESCAPE.sub("", shown.err) == "\n\rrank 1 is slow\n" and not terminal.begun
    terminal.console.cache_clear()


def test_a_notice_ends_a_line_that_goes_on_in_the_same_log_and_in_no_other():
    """A text that grew in a log of both streams ran on into the notice: This occurserror on vm ..."""
    says = "from hepti_mpi.commands.screen import SCREEN as s; s.say_text('And?', 'It grows', False); s.warn('a notice'); "
    says += "s.say_text(None, ' on.', True); s.document({'a': 1}, always=True)"
    both = subprocess.run([sys.executable, "-c", says], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())
    assert both.stdout == '> And?\nIt grows\na notice\n on.\n\n{"a": 1}\n'
    apart = subprocess.run([sys.executable, "-c", says], capture_output=True, text=True, env=environment())
    assert apart.stdout == '> And?\nIt grows on.\n\n{"a": 1}\n' and apart.stderr == "a notice\n"


@pytest.mark.parametrize("grown", ["", "a", "almost a line of it", "exactly one line of", "one line of it and more", "\nand a line more"])
def test_a_sentence_of_another_rank_neither_sticks_to_a_text_that_grows_nor_wipes_it(grown, monkeypatch, capsys):
    """Of a rank of another host it stuck, and one of this host wiped the line: neither knows how far rank 0's text is."""
    sentence, before = "error on pi4 (rank 1): none came", "> And?\n" + grown
    for place in (None, "/dev/tty-nowhere"):
        monkeypatch.setattr(terminal, "place_of", lambda descriptor, place=place: place)
        monkeypatch.setattr(terminal, "beside", [19])
        monkeypatch.setenv("COLUMNS", "19")
        terminal.console.cache_clear()
        Screen().warn(sentence)
        shown = lines_of(before + re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err), 19)
        told = ["error on pi4 (rank", "  1): none came"]
        assert shown == [*lines_of(before.removesuffix("\n"), 19), *told, ""], place
    monkeypatch.setattr(terminal, "beside", [0])  # a log
    monkeypatch.setattr(terminal, "place_of", lambda descriptor: None)
    Screen().warn(sentence)
    assert capsys.readouterr().err == f"\n{sentence}\n"
    terminal.console.cache_clear()


def test_ranks_know_of_lines_that_go_on_where_both_streams_are_seen(monkeypatch):
    monkeypatch.setenv("COLUMNS", "44")
    for places, columns in ((("pipe:[1]", "pipe:[1]"), 0), (("pipe:[1]", "pipe:[2]"), None), ((None, None), None),
                            (("/dev/pts/9", "/dev/pts/9"), 44), (("pipe:[1]", "/dev/pts/9"), None)):  # fmt: skip
        monkeypatch.setattr(terminal, "place_of", lambda descriptor, places=places: places[descriptor - 1])
        terminal.console.cache_clear()
        assert terminal.columns_of_lines() == columns
    terminal.console.cache_clear()


@pytest.mark.parametrize("words", [["inspect", "tiny.h5"], ["plan", "--weights", "random:bert-base", "--boards", "pi4,pi5"],
                                   ["run", "--help"]])  # fmt: skip
@pytest.mark.parametrize("streams, code, said", [
    (">&-", 0, ""), ("<&-", 0, ""), ("2>&-", 0, None), (">&- 2>&- <&-", 0, None), ("2>/dev/full", 0, None),
    (">/dev/full", 4, "error: standard output takes no more: No space left on device; free space there, or send it elsewhere\n"),
])  # fmt: skip
def test_standard_streams_that_are_closed_or_full(made, words, streams, code, said):
    """Nothing that is opened later is taken for one of them; who can be told is told in a sentence."""
    command, usual = f'exec "$@" {streams}', environment()
    usual.pop("PYTHONUNBUFFERED", None)
    done = subprocess.run(["bash", "-c", command, "-", *PROGRAM, *words], cwd=made, env=usual, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert (said is None and not done.stderr) or done.stderr == said
    assert bool(done.stdout) == (not code and ">&-" not in streams.split())


def test_a_wrong_command_line_is_told_in_lines_that_end_between_words():
    code, shown = on_a_terminal(["run", "--strategy", "nope"], 60)
    lines = ESCAPE.sub("", shown).splitlines()
    assert code == 2 and max(map(len, lines)) <= 60 and "'tensor'," in shown and "Try 'python -m hepti_mpi run --help' for help." in lines


@pytest.mark.parametrize("module", ["gc", "hepti_mpi.comm.channel", "hepti_mpi.comm.launcher", "click", "hepti_mpi.commands.main"])
def test_an_interruption_of_the_first_imports_is_no_traceback(module):
    code = f"""
import os, signal, sys
class Finder:
    def find_spec(name, *_):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
sys.modules.pop("gc", None)
sys.argv = ["hepti_mpi", "--help"]
from hepti_mpi.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stderr) in [(-signal.SIGINT, ""), (130, "interrupted\n")], done.stderr


def test_an_interruption_of_a_module_in_c_that_is_made_is_one_word():
    """onnx's aborted at it, with pages of Python's and C++'s frames."""
    code = """
import enum, os, signal, sys
made = enum.EnumMeta.__new__
def new(*given, **more):
    frame, inside = sys._getframe(), False
    while frame is not None:
        inside |= frame.f_code.co_name == "exec_module" and "Extension" in type(frame.f_locals.get("self")).__name__
        frame = frame.f_back
    if inside:
        print("within", flush=True)
        enum.EnumMeta.__new__ = made
        os.kill(os.getpid(), signal.SIGINT)
    return made(*given, **more)
class Finder:
    def find_spec(name, *_):
        if name == "hepti_mpi.commands.helping":
            enum.EnumMeta.__new__ = new
            import onnx
            print("imported", flush=True)
sys.meta_path.insert(0, Finder)
sys.argv = ["hepti_mpi", "--help"]
from hepti_mpi.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    if "within" not in done.stdout:
        pytest.skip("this onnx makes its kinds without Python's")
    assert (done.returncode, done.stdout, done.stderr) == (130, "within\n", "interrupted\n"), done.stderr


def test_an_interruption_that_python_raises_as_another_error_is_one_word():
    """Python 3.11 wraps what is raised in a `__set_name__`, of which the steps of a processor have many, in a RuntimeError."""
    code = """
import os, signal, sys
class Finder:
    def find_spec(name, *_):
        if name == "hepti_mpi.commands.helping":
            try:
                os.kill(os.getpid(), signal.SIGINT)
                sum(range(10 ** 7))
            except BaseException as error:
                raise RuntimeError("Error calling __set_name__") from error
sys.meta_path.insert(0, Finder)
sys.argv = ["hepti_mpi", "--help"]
from hepti_mpi.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stderr) == (130, "interrupted\n"), done.stderr


@pytest.mark.parametrize("seconds", [0, 0.1, 0.3, 0.6])
def test_an_interruption_while_the_program_is_imported_is_one_word(seconds):
    """On a small board that takes seconds."""
    listening = "import sys\nfrom hepti_mpi.comm import interrupts\nlisten = interrupts.listen\n"
    listening += "interrupts.listen = lambda *tell: (listen(*tell), print('listens', flush=True))\n"
    listening += "sys.argv = ['hepti_mpi', 'plan', '--weights', 'random:bert-large', '--boards', 'pi4,pi4,pi4,pi5']\n"
    code = listening + "import runpy\nrunpy.run_module('hepti_mpi', run_name='__main__')\n"  # which ends as the program does
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None and process.stdout.readline() == "listens\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=100)[1]
    assert (process.returncode, said) == (130, "interrupted\n") or process.returncode == 0, said


@pytest.fixture(scope="module")
def talker(made):
    folder = made / "talker"
    folder.mkdir()
    assert subprocess.run([*PROGRAM, "slice", str(writing_folder(folder)), str(made / "talker.h5")]).returncode == 0
    return ["--weights", "talker.h5", "--max-tokens", "2"]


@pytest.mark.skipif(not MPIRUN.exists(), reason="needs mpirun")
@pytest.mark.parametrize("deadline", ["60", "0"])
def test_ctrl_c_while_ranks_find_each_other_is_one_word(made, deadline):
    """MPI's own start lets no other thread of Python run: mpirun killed its ranks before one of them had said a word."""
    program = " ".join(map(shlex.quote, PROGRAM))
    line = f"if [ $OMPI_COMM_WORLD_RANK = 1 ]; then trap '' TERM; sleep 60; fi; exec {program} run --weights tiny.h5 --deadline {deadline}"
    command = [str(MPIRUN), "--oversubscribe", "-n", "2", "bash", "-c", line]
    environ = environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", **{MARK: f"start{deadline}"})
    process = subprocess.Popen(command, cwd=made, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)  # fmt: skip
    try:
        end = time.monotonic() + 60
        while len(left(f"start{deadline}")) < 5:  # mpirun, two ranks, sleep, and what watches over the start
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    ours = [line for line in said.splitlines() if " PMIX ERROR: PMIX_ERR_UNREACH " not in line]  # mpirun of a rank that it is ending
    assert (process.returncode, ours) == (1, ["interrupted"])


@pytest.mark.skipif(not MPIRUN.exists(), reason="needs mpirun")
def test_ranks_that_wait_for_one_that_does_not_come_say_so_once(made):
    program = " ".join(map(shlex.quote, PROGRAM))
    line = f"if [ $OMPI_COMM_WORLD_RANK = 2 ]; then sleep 60; fi; exec {program} run --weights tiny.h5 --deadline 1"
    command = [str(MPIRUN), "--oversubscribe", "-n", "3", "bash", "-c", line]
    environ = environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    done = subprocess.run(command, cwd=made, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50)
    ours = [line for line in done.stderr.splitlines() if line.startswith(("error", "a rank", "interrupted", "mpirun ended"))]
    assert done.returncode != 0 and len(ours) == 1 and "(rank 0): the 3 ranks did not find each other within 2 s" in ours[0], done.stderr


@pytest.mark.skipif(not MPIRUN.exists(), reason="needs mpirun")
def test_ranks_that_do_not_find_each_other_say_so_in_whole_words(made):
    """Before there is anything to be drawn a sentence went past what folds all others."""
    program = " ".join(map(shlex.quote, PROGRAM))
    line = f"if [ $OMPI_COMM_WORLD_RANK = 1 ]; then sleep 60; fi; exec {program} profile --weights tiny.h5 --fresh --deadline 0.5"
    command = ["--oversubscribe", "-n", "2", "bash", "-c", line]
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    code, shown = on_a_terminal(command, 70, cwd=made, program=[str(MPIRUN)], **allowed)
    said = "the 2 ranks did not find each other within 1 s, twice the deadline of 0.5 s; look for the reason with: "
    said = f"error on {launcher.host_name()} (rank 0): {said}python -m hepti_mpi doctor HOSTFILE"
    assert code != 0 and folded(said, 70) in "\n".join(lines_of(shown, 70)) and said not in shown, shown


@pytest.mark.parametrize("columns, name", [(60, "click"), (90, "click"), (80, "rich")])
def test_what_python_lacks_is_told_in_whole_words(tmp_path, columns, name):
    """Without rich there were two tracebacks, on a terminal alone."""
    (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError(name='{name}')\n")
    code, shown = on_a_terminal(["run"], columns, PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    lines = ESCAPE.sub("", shown).replace("\r", "").splitlines()
    assert code == 2 and f"has no {name}, which hepti_mpi needs; " in " ".join(" ".join(lines).split()) and len(lines) > 1, shown
    assert all(len(line) <= columns or " " not in line.removesuffix(" \\").strip() for line in lines), shown


@pytest.mark.skipif(not MPIRUN.exists(), reason="needs mpirun")
@pytest.mark.parametrize("typed, word", [(b"\3", True), (b"\n", False)], ids=["Ctrl-C", "empty line"])
def test_how_a_talk_under_mpirun_ends(made, talker, typed, word):
    """At Ctrl-C mpirun ends standard input first: the talk ended without a word."""
    master, slave = pty.openpty()
    command = [str(MPIRUN), "--oversubscribe", "-n", "2", *PROGRAM, "chat", *talker]
    environ = environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    process = subprocess.Popen(command, cwd=made, env=environ, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                               preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))  # fmt: skip  # else mpirun reads nothing there
    os.close(slave)
    ended = []

    def end_once_asked(shown):
        if shown.endswith(b"> ") and not ended:
            ended.append(os.write(master, typed))

    shown = all_shown(master, process, end_once_asked).decode()
    assert ended and shown.count("interrupted") == word, shown
    assert (process.returncode == 0) == (not word)


@pytest.mark.skipif(not MPIRUN.exists(), reason="needs mpirun")
@pytest.mark.parametrize("given", [b"w1 w2\nw3", b""], ids=["pipe", "nothing"])
def test_a_talk_under_mpirun_ends_with_its_pipe(made, talker, given):
    """mpirun forwards neither the end of a pipe nor that of /dev/null."""
    environ = environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    told = {"input": given} if given else {"stdin": subprocess.DEVNULL}
    done = subprocess.run([str(MPIRUN), "--oversubscribe", "-n", "2", *PROGRAM, "chat", *talker], cwd=made, env=environ,
                          capture_output=True, timeout=240, **told)  # fmt: skip
    assert done.returncode == 0 and done.stdout.count(b"> ") == (3 if given else 1), done


def test_a_log_keeps_what_is_told_past_the_launcher(tmp_path):
    """What the launcher says later, from where it was in the file, does not write over it."""
    from hepti_mpi.comm.launcher import _error_of

    code = "import sys\nfor word in ('one', 'three'):\n print(word, file=sys.stderr, flush=True)\n print('written', flush=True)\n input()"
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        with process:
            assert process.stdout.readline() == "written\n"
            with open(_error_of(process.pid), "w") as file:
                file.write("two\n")
            process.communicate("\n\n", timeout=60)
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree\n"
