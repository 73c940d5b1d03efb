import os
import time
from copy import copy

import pytest

from hepti_mpi.cluster import emulation
from hepti_mpi.cluster.boards import Work, board_named
from hepti_mpi.cluster.emulation import NAP_SECONDS, Emulation
from hepti_mpi.comm import precedence
from hepti_mpi.errors import PlanError


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "factor"
    monkeypatch.setenv("HEPTI_EMULATE_FILE", str(path))
    return path


class Clock:
    """In place of the module `time`: sleeping takes a little longer than asked for, and no CPU time."""

    def __init__(self, late=0.0):
        self.late, self.now, self.used, self.asked = late, 100.0, 7.0, 0.0

    def perf_counter(self):
        return self.now

    def thread_time(self):
        return self.used

    def sleep(self, seconds):
        assert seconds >= 0
        self.asked += seconds
        self.now += seconds + self.late

    def work(self, cpu, waiting=0.0):
        self.used += cpu
        self.now += cpu + waiting


@pytest.fixture
def clock(monkeypatch):
    made = Clock(late=0.9 * NAP_SECONDS)
    monkeypatch.setattr(emulation, "time", made)
    monkeypatch.setattr(emulation.os, "sched_yield", lambda: made.work(cpu=0.0, waiting=1e-6))
    return made


WORK = Work(products=((128, 1e6),), attention=3e5, elements=1e4, casts=1e4, copied=1e5)


def test_nothing_is_emulated_unless_asked_for(clock, monkeypatch):
    monkeypatch.delenv("HEPTI_EMULATE_FILE", raising=False)
    emulation = Emulation()
    emulation.refresh()
    emulation.run(lambda: clock.work(1.0), WORK)
    assert not emulation.on and emulation.said is None and clock.now == 101 and clock.asked == 0


@pytest.mark.parametrize("text, times", [("1", 1), ("2.5\n", 2.5), (" 7 ", 7), ("1e3", 1000)])
def test_a_factor_makes_the_labs_board_slower(file, text, times):
    file.write_text(text)
    assert Emulation().board.float32 == pytest.approx(80e9 / times) and Emulation().board.memory == pytest.approx(15e9 / times)


@pytest.mark.parametrize("text, name, times", [("pi4", "pi4", 1), ("pi5*2", "pi5", 2)])
def test_a_board_by_its_name(file, text, name, times):
    file.write_text(text)
    assert Emulation().board == board_named(name).slower(times)


@pytest.mark.parametrize("text, board, latency", [("pi4*2 300us\n", "pi4*2", 300e-6), ("2.5 0.5us", "2.5", 5e-7), ("pi4", "pi4", 0.0)])
def test_a_board_may_have_a_link_with_a_latency(file, text, board, latency):
    file.write_text(text)
    emulation = Emulation()
    assert (emulation.board, emulation.said) == (board_named(board), text.strip())
    assert emulation.latency_seconds == pytest.approx(latency)


def test_the_file_is_read_again(file):
    file.write_text("2")
    emulation = Emulation()
    file.write_text("pi4")
    assert emulation.said == "2"
    emulation.refresh()
    assert emulation.said == "pi4" and emulation.board.name == "pi4"


def test_a_given_board_goes_before_the_file(file):
    file.write_text("7")
    emulation = Emulation("3")
    emulation.refresh()
    assert emulation.on and emulation.said == "3"


@pytest.mark.parametrize("content, words", [
    (None, "No such file"), (b"", "no board ''"), (b"fast", "no board 'fast' is described; boards: pi3"), (b"2 3", "no board"),
    (b"\xff\xfe", "decode"), (b"0.5", "0.5 times slower, expected 1 to 1000"), (b"-2", "-2 times"), (b"1001", "1001 times"),
    (b"nan", "nan times"), (b"pi4*0.1", "0.1 times"),
])  # fmt: skip
def test_no_board(file, content, words):
    """Neither at the start nor later."""
    file.write_text("2")
    emulation = Emulation()
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    for read in (Emulation, emulation.refresh):
        with pytest.raises(PlanError, match=words) as error:
            read()
        assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("cpu, waiting", [(0.0, 0.0), (1e-3, 0.0), (1e-3, 2e-3), (5e-3, 0.0)])
def test_a_call_takes_what_its_work_takes_on_the_board_whatever_it_took_here(clock, cpu, waiting):
    emulation = Emulation("3")
    expected = board_named("3").seconds(WORK)
    assert expected > 5e-3
    emulation.run(lambda: clock.work(cpu, waiting), WORK)
    assert expected - 1e-9 <= clock.now - 100 <= expected + NAP_SECONDS
    assert (emulation.calls, emulation.overruns) == (1, 0)


def test_a_call_that_takes_longer_is_an_overrun_and_what_leaves_after_it_is_late(clock):
    emulation, each = Emulation("2"), board_named("2").seconds(WORK)
    for taken in (1.5 * each, 0.0, 1.25 * each, 0.0):
        emulation.run(lambda: clock.work(taken), WORK)  # noqa: B023
        emulation.show()
    assert (emulation.calls, emulation.overruns) == (4, 2)
    assert emulation.late_seconds == pytest.approx(0.75 * each, abs=4 * NAP_SECONDS)


def test_what_was_made_up_for_before_anybody_saw_it_was_not_late(clock):
    emulation, each = Emulation("2"), board_named("2").seconds(WORK)
    for taken in (1.5 * each, 0.0):
        emulation.go_on(lambda: clock.work(taken), WORK)  # noqa: B023
    emulation.show()
    assert (emulation.calls, emulation.overruns) == (2, 1) and emulation.late_seconds <= NAP_SECONDS
    assert clock.now - 100 == pytest.approx(2 * each, abs=NAP_SECONDS)


def test_pieces_are_done_as_soon_as_this_machine_can_and_messages_leave_when_the_boards_would(clock):
    """So a piece that finds the cores taken has the time that those before it left over."""
    emulation, each = Emulation("2"), board_named("2").seconds(WORK)
    for taken in (0.25 * each, 1.5 * each):
        emulation.go_on(lambda: clock.work(taken), WORK)  # noqa: B023
    assert clock.now - 100 == pytest.approx(1.75 * each) and emulation.now() - 100 == pytest.approx(2 * each)
    emulation.show()
    assert clock.now - 100 == pytest.approx(2 * each, abs=NAP_SECONDS) and emulation.late_seconds <= NAP_SECONDS
    assert (emulation.calls, emulation.overruns) == (2, 1)


def test_what_comes_while_a_board_computes_finds_it_computing(clock):
    emulation, each = Emulation("2"), board_named("2").seconds(WORK)
    emulation.go_on(lambda: clock.work(0.25 * each), WORK)
    emulation.rest()  # it came before the board was done
    emulation.go_on(lambda: clock.work(0.25 * each), WORK)
    emulation.keep_time()
    assert clock.now - 100 == pytest.approx(2 * each, abs=NAP_SECONDS)


def test_sending_takes_a_board_as_long_as_this_machine(clock):
    emulation, each = Emulation("2"), board_named("2").seconds(WORK)
    emulation.go_on(lambda: None, WORK)
    emulation.show()
    clock.work(0.5 * each)
    emulation.took(0.5 * each)
    emulation.go_on(lambda: None, WORK)
    emulation.show()
    assert clock.now - 100 == pytest.approx(2.5 * each, abs=NAP_SECONDS) and emulation.late_seconds <= 2 * NAP_SECONDS


def test_what_was_late_is_seen_once(clock):
    """Several messages that leave one after the other are late together; a wait ends that."""
    emulation, each = Emulation("2"), board_named("2").seconds(WORK)
    emulation.run(lambda: clock.work(1.5 * each), WORK)
    for _ in range(3):
        emulation.show()
    assert emulation.late_seconds == pytest.approx(0.5 * each, abs=NAP_SECONDS)
    emulation.go_on(lambda: clock.work(0.75 * each), WORK)  # a quarter is made up for
    emulation.show()
    assert emulation.late_seconds == pytest.approx(0.5 * each, abs=2 * NAP_SECONDS)
    emulation.rest()
    emulation.go_on(lambda: clock.work(1.25 * each), WORK)
    emulation.show()
    assert emulation.late_seconds == pytest.approx(0.75 * each, abs=3 * NAP_SECONDS)


def test_what_a_record_says_is_of_what_it_is_about(clock):
    emulation, each = Emulation("2"), board_named("2").seconds(WORK)
    emulation.run(lambda: clock.work(2 * each), WORK)
    emulation.show()
    before = copy(emulation)
    for cpu in (2 * each, 0.0, 0.0, 0.0):
        emulation.run(lambda cpu=cpu: clock.work(cpu), WORK)
    emulation.show()
    told = emulation.since(before)
    assert (told["emulated_board"], told["overruns"]) == ("2", 0.25)
    assert told["late_seconds"] == pytest.approx(emulation.late_seconds - before.late_seconds)


def test_a_failure_leaves_nobody_first(monkeypatch):
    asked = []
    monkeypatch.setattr(precedence.os, "sched_setscheduler", lambda _, policy, parameter: asked.append(policy))
    emulation = Emulation("2")
    with pytest.raises(ZeroDivisionError), emulation.in_time():
        emulation.go_on(lambda: 1 / 0, WORK)
    assert not emulation.first and asked[-1] == os.sched_getscheduler(0)


def test_nothing_is_seen_of_a_board_that_is_none(monkeypatch):
    monkeypatch.delenv("HEPTI_EMULATE_FILE", raising=False)
    emulation = Emulation()
    emulation.go_on(lambda: None, WORK)
    emulation.show()
    assert (emulation.calls, emulation.overruns, emulation.late_seconds) == (0, 0, 0.0)


@pytest.mark.parametrize("rests, expected", [(False, 4), (True, 5)])
def test_who_was_late_catches_up_until_it_waits_for_others(clock, rests, expected):
    emulation, each = Emulation("2"), board_named("2").seconds(WORK)
    for cpu in (2 * each, 0.0, 0.0, 0.0):
        emulation.go_on(lambda: clock.work(cpu), WORK)  # noqa: B023
        if rests:
            emulation.rest()
    emulation.keep_time()
    assert clock.now - 100 == pytest.approx(expected * each, abs=4 * NAP_SECONDS)


def test_oversleeping_does_not_add_up(clock):
    emulation = Emulation("5")
    for _ in range(1000):
        emulation.go_on(lambda: clock.work(2e-3), WORK)
        emulation.keep_time()
    assert abs(clock.now - 100 - 1000 * board_named("5").seconds(WORK)) <= 2 * NAP_SECONDS


def test_pieces_go_by_their_time_before_what_else_the_machine_does(monkeypatch):
    asked, usual = [], os.sched_getscheduler(0)
    monkeypatch.setattr(precedence.os, "sched_setscheduler", lambda _, policy, parameter: asked.append((policy, parameter.sched_priority)))
    emulation = Emulation("2")
    with emulation.in_time():
        for work in (Work(), WORK, Work(products=((128, 1e7),))):
            emulation.go_on(lambda: None, work)
    emulation.go_on(lambda: None, WORK)
    policies, priorities = zip(*asked)
    assert set(policies[:-1]) == {os.SCHED_RR} and policies[-1] == usual
    first, long, _, longer, _, last = priorities
    assert first > long > longer > last == 0


def test_without_the_right_to_go_first_pieces_take_their_time_all_the_same(clock, monkeypatch):
    def refuse(*given):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(precedence.os, "sched_setscheduler", refuse)
    emulation = Emulation("2")
    with emulation.in_time():
        emulation.go_on(lambda: clock.work(1e-3), WORK)
        emulation.keep_time()
    assert clock.now - 100 == pytest.approx(board_named("2").seconds(WORK), abs=NAP_SECONDS)


def test_the_time_of_a_call_is_made_of_its_work():
    board = board_named("pi4")
    assert board.seconds(Work()) == board.call_seconds
    for one, other in ((Work(attention=1e6), Work(attention=2e6)), (Work(elements=1e6), Work(elements=2e6)),
                       (Work(casts=1e6), Work(casts=2e6)), (Work(copied=1e6), Work(copied=2e6))):  # fmt: skip
        alone = board.seconds(one) - board.call_seconds
        assert alone > 0 and board.seconds(other) - board.call_seconds == pytest.approx(2 * alone)
    products = ((8, 1e6), (8, 3e6))
    assert board.seconds(Work(products)) == pytest.approx(board.call_seconds + sum(board.product_seconds(*one) for one in products))
    assert board.slower(3).seconds(WORK) == pytest.approx(3 * board.seconds(WORK))


def test_real_work_takes_the_boards_time():
    """By real clocks; that it takes no longer is shown by the clock of the tests above."""
    emulation, begin = Emulation("5"), time.perf_counter()
    for _ in range(10):
        emulation.run(lambda: sum(range(1000)), WORK)
    expected = 10 * board_named("5").seconds(WORK)
    assert expected - 1e-3 <= time.perf_counter() - begin


def test_a_failure_in_a_piece_is_passed_on():
    with pytest.raises(ZeroDivisionError):
        Emulation("2").run(lambda: 1 / 0, WORK)
