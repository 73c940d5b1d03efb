"""Whose cores a rank computes on."""

import json
import os
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest

from hepti_mpi.engine.cores import Cores, core_each, may_use

HOSTS = ["a", "a", "b", "a", "c", "c"]
HERE = sorted(os.sched_getaffinity(0))


def cores(rank, threads=1, alone=4):
    return Cores(rank, HOSTS, HERE[:1], HERE, threads, alone)


@pytest.mark.parametrize("rank, active, expected", [
    (0, (0,), True), (0, (0, 2, 4), True), (0, (0, 1), False), (1, (1, 2), True), (1, (0, 2), False), (2, (0, 1, 2), True), (3, (), False),
])  # fmt: skip
def test_a_rank_has_its_host_where_no_other_computes(rank, active, expected):
    assert cores(rank).has_host(active) is expected


@pytest.mark.parametrize("rank, active, expected", [(0, (1, 2), True), (0, (0,), True), (2, (0, 1), False), (5, (4,), True)])
def test_a_host_computes_where_any_rank_of_it_does(rank, active, expected):
    assert cores(rank).host_computes(active) is expected


def test_the_first_rank_of_a_host_leads():
    assert [cores(rank).leads for rank in range(6)] == [True, False, True, False, True, False]


def test_cores_are_taken_and_given_back():
    one = cores(0)
    os.sched_setaffinity(0, one.part)
    try:
        assert one.use(alone=True) == 4 and os.sched_getaffinity(0) == set(one.whole)
        assert one.use(alone=False) == 1 and os.sched_getaffinity(0) == set(one.part)
    finally:
        os.sched_setaffinity(0, HERE)


def test_threads_that_are_set_stay():
    one = cores(0, threads=2, alone=2)
    assert not one.two_ways and one.use(alone=True) == 2 == one.use(alone=False)
    assert os.sched_getaffinity(0) == set(HERE)


def test_cores_that_are_not_there_are_not_used():
    assert may_use(HERE) and not may_use([*HERE, 5000])
    assert os.sched_getaffinity(0) == set(HERE)


several = pytest.mark.skipif(len(HERE) < 2, reason="there is one core")


def started(count, within):
    """Return the cores that so many threads have which are started `within`."""
    end, threads = threading.Event(), []
    with ExitStack() as meanwhile:
        meanwhile.callback(end.set)
        with within:
            for _ in range(count):
                threads.append(threading.Thread(target=end.wait))
                threads[-1].start()
        return [sorted(os.sched_getaffinity(thread.native_id)) for thread in threads]


@several
@pytest.mark.parametrize("threads, others, apart", [
    (len(HERE), len(HERE) - 1, True), (len(HERE), len(HERE), False), (1, len(HERE) - 1, False), (len(HERE) + 1, len(HERE), False),
])  # fmt: skip
def test_threads_that_compute_together_have_a_core_each_where_there_are_as_many(threads, others, apart):
    found = started(others, core_each(threads))
    assert found == ([[core] for core in HERE[1:]] if apart else [HERE] * others)
    assert os.sched_getaffinity(0) == set(HERE)


SESSION = """
import os, sys
from pathlib import Path
from onnx import TensorProto, helper
from hepti_mpi.engine import opening, pool

if sys.argv[1] == "shared":
    pool.configure(len(os.sched_getaffinity(0)))
value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negative", value[:1], value[1:])
before = set(os.listdir("/proc/self/task"))
made = opening.session(graph, Path("."), "packed", len(os.sched_getaffinity(0)))
print(sorted(sorted(os.sched_getaffinity(int(thread))) for thread in set(os.listdir("/proc/self/task")) - before))
"""


@several
@pytest.mark.parametrize("threads", ["own", "shared"])
def test_the_threads_of_a_session_have_a_core_each(threads):
    """In a process of its own: it is said once whether sessions share their threads."""
    found = subprocess.run([sys.executable, "-c", SESSION, threads], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == [[core] for core in HERE[1:]]


@several
@pytest.mark.parametrize("threads, kept", [(len(HERE), HERE[:1]), (1, HERE), (len(HERE) + 1, HERE)])
def test_who_computes_with_threads_leaves_them_their_cores(threads, kept):
    one = Cores(0, ["a"], HERE, HERE, threads, threads)
    with one.apart_from_threads():
        assert sorted(os.sched_getaffinity(0)) == kept
    assert sorted(os.sched_getaffinity(0)) == HERE


@several
def test_who_has_its_host_leaves_the_threads_of_all_cores_theirs():
    one = cores(0, alone=len(HERE))
    one.use(alone=True)
    try:
        with one.apart_from_threads():
            assert os.sched_getaffinity(0) == {HERE[0]}
        assert os.sched_getaffinity(0) == set(HERE)
    finally:
        os.sched_setaffinity(0, HERE)
