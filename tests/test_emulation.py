import time

import pytest

from hepti_mpi.cluster import emulation
from hepti_mpi.cluster.emulation import NAP_SECONDS, Dilation
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
    return made


def test_nothing_is_emulated_unless_asked_for(clock, monkeypatch):
    monkeypatch.delenv("HEPTI_EMULATE_FILE", raising=False)
    dilation = Dilation()
    dilation.refresh()
    dilation.run(lambda: clock.work(1.0))
    assert not dilation.on and dilation.factor == 1 and clock.now == 101 and clock.asked == 0


@pytest.mark.parametrize("text, expected", [("1", 1), ("2.5\n", 2.5), (" 7 ", 7), ("1e3", 1000)])
def test_a_factor_in_a_file(file, text, expected):
    file.write_text(text)
    assert Dilation().factor == expected and Dilation().on


def test_the_file_is_read_again(file):
    file.write_text("2")
    dilation = Dilation()
    file.write_text("9")
    assert dilation.factor == 2
    dilation.refresh()
    assert dilation.factor == 9


def test_a_given_factor_goes_before_the_file(file):
    file.write_text("7")
    dilation = Dilation(3)
    dilation.refresh()
    assert dilation.on and dilation.factor == 3


@pytest.mark.parametrize("content, words", [
    (None, "No such file"), (b"", "could not convert"), (b"fast", "could not convert"), (b"2 3", "could not convert"),
    (b"\xff\xfe", "decode"), (b"0.5", "holds factor 0.5, expected 1 to 1000"), (b"-2", "factor -2"), (b"1001", "factor 1001"),
    (b"nan", "factor nan"), (b"inf", "factor inf"),
])  # fmt: skip
def test_no_factor(file, content, words):
    """Neither at the start nor later."""
    file.write_text("2")
    dilation = Dilation()
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    for read in (Dilation, dilation.refresh):
        with pytest.raises(PlanError, match=words) as error:
            read()
        assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("factor, cpu, waiting, expected", [
    (1, 1.0, 0.0, 1.0),
    (4, 1.0, 0.0, 4.0),
    (4, 1.0, 0.5, 4.0),  # what it was kept waiting is part of the time
    (4, 0.1, 0.7, 0.8),  # and is not stretched
    (1000, 0.01, 0.0, 10.0),
    (4, 3e-6, 0.0, 12e-6),  # shorter than a nap
])  # fmt: skip
def test_a_piece_takes_the_factor_times_its_cpu_time(clock, factor, cpu, waiting, expected):
    Dilation(factor).run(lambda: clock.work(cpu, waiting))
    assert expected - 1e-9 <= clock.now - 100 <= expected + NAP_SECONDS


def test_oversleeping_does_not_add_up(clock):
    dilation = Dilation(5)
    for _ in range(1000):
        dilation.run(lambda: clock.work(2e-3))
    assert abs(clock.now - 100 - 10) <= 2 * NAP_SECONDS


def test_the_clock_runs_as_fast_as_the_board(clock):
    dilation = Dilation(8)
    begin = dilation.clock()
    dilation.run(lambda: clock.work(0.25, 5.0))
    assert dilation.clock() - begin == 2


def test_real_work_is_stretched():
    """By real clocks, in a wide band: a busy machine has the rest of the time to catch up."""
    used = 0.0

    def work():
        nonlocal used
        begin = time.thread_time()
        while time.thread_time() - begin < 4e-3:
            sum(range(1000))
        used += time.thread_time() - begin

    dilation, begin = Dilation(5), time.perf_counter()
    for _ in range(10):
        dilation.run(work)
    assert 4.8 <= (time.perf_counter() - begin) / used <= 10


def test_a_failure_in_a_piece_is_passed_on():
    with pytest.raises(ZeroDivisionError):
        Dilation(2).run(lambda: 1 / 0)
