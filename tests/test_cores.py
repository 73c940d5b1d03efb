"""Whose cores a rank computes on."""

import os

import pytest

from hepti_mpi.engine.cores import Cores, may_use

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
