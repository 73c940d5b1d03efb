"""What a rank measures of itself: in which order kernels are called, and what they find."""

import time

import pytest

from hepti_mpi.cluster import probe
from hepti_mpi.cluster.emulation import Emulation


@pytest.mark.parametrize("board, others", [(None, True), ("2", False)])
def test_kernels_find_what_a_product_has_left(board, others):
    """Not where a board is emulated, whose times are those of its description; and not the products, which have weights of their own."""
    called = []

    def kernel(name):
        return lambda: called.append(name)

    names = ("elements", "activations", "casts", "nothing", "between")
    timers = probe.Timers(gemm=lambda rows: kernel("gemm"), weights=10, attention=lambda requests, length: kernel("attention"), rows=4,
                          hidden=8, **{name: kernel(name) for name in names})  # fmt: skip
    found = probe.speeds_of(timers, (1, 8), 64, Emulation(board), time.perf_counter, lambda: None, seconds=0.01)
    assert len(found.gemm_seconds_per_weight) == 2 and found.segment_seconds > 0
    pairs = set(zip(called, called[1:]))
    assert ("between" in called) == others and ("between", "gemm") not in pairs
    if others:  # the very first of each warms up
        for name in ("elements", "activations", "casts", "attention", "nothing"):
            assert ("between", name) in pairs
        timed = [name for name in called if name not in ("gemm", "between")]
        assert called.count("between") == len(timed) - 6


def test_short_calls_are_not_repeated_for_ever():
    """However long there is: a pass of a kernel ends after so many calls, and one that has no time has one."""
    called = []
    for seconds, passes in ((1e6, 1), (0.0, 1)):
        times = []
        probe._time(lambda: called.append(1), seconds, time.perf_counter, times)
        assert len(times) == (probe.MOST_CALLS if seconds else passes)
    assert len(called) == probe.MOST_CALLS + 1 + 2  # and the very first of each warms up
