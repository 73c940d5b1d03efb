"""What has changed, told from what requests take: windows, links, and whether a switch is worth it."""

import numpy as np
import pytest
from clusters import cluster

from hepti_mpi.cluster.profile import scaled
from hepti_mpi.models.random_models import random_model
from hepti_mpi.planning.cost import Pricer
from hepti_mpi.planning.drift import SOON, WINDOW, Expectation, Speeds, with_links, worth
from hepti_mpi.planning.planner import Request, choose
from hepti_mpi.planning.program import make_program

SPEC = random_model("tiny-bert").spec
PROFILE = cluster((1.0, 0.5, 0.25, 0.1))


def told(*factors, ranks=4):
    speeds = Speeds([f"pi{rank}" for rank in range(ranks)])
    for step in factors:
        for rank, factor in enumerate(step):
            speeds.add(rank, factor)
    return speeds


@pytest.mark.parametrize("steps, what", [
    ([], None),
    ([(1, 1, 1, 1)] * WINDOW, None),
    ([(9, 1, 1, 1)] * (SOON - 1), None),  # too few to be believed
    ([(1, 1, 1, 1)] * 2 + [(9, 1, 1, 1)], None),  # once is a disturbance
    ([(1, 1, 1, 1)] + [(3.2, 1, 1, 1)] * 2, "rank 0 on pi0 computes 3.20 x as long as it did"),
    ([(1, 1, 1.25, 1)] * (WINDOW - 1), None),  # it is not so much that it would be believed at once
    ([(1, 1, 1.25, 1)] * WINDOW, "rank 2 on pi2 computes 1.25 x as long as it did"),
    ([(1, 1, 0.5, 1)] * SOON, "rank 2 on pi2 computes 0.50 x as long as it did"),
    ([(1.1, 1.05, 0.98, 1)] * WINDOW, None),
    ([(1.25, 1.25, 1.25, 1.25)] * WINDOW, None),
    ([(1.5, 1.5, 1.5, 1.5)] * WINDOW, "all ranks compute 1.50 x as long as they did"),
])  # fmt: skip
def test_what_has_changed(steps, what):
    assert told(*steps).changed() == what


def test_what_is_used_is_what_is_compared_with():
    speeds = told(*[(3.0, 1, 1, 1)] * WINDOW)
    assert speeds.use().tolist() == [3, 1, 1, 1] and speeds.changed() is None
    for _ in range(WINDOW):
        speeds.add(0, 1.0)
    assert speeds.changed() == "rank 0 on pi0 computes 0.33 x as long as it did"


@pytest.mark.parametrize("steps, unsure", [
    ([], False),
    ([(1, 1, 1.3, 1)], False),
    ([(1, 1, 1, 1)] * WINDOW + [(1, 1, 0.4, 1)], True),
    ([(1, 1, 1, 1)] * WINDOW + [(1, 3.2, 1, 1)] * 2, False),  # it is believed
])  # fmt: skip
def test_what_may_be_believed_soon(steps, unsure):
    assert told(*steps).unsure() == unsure


def test_links_that_changed():
    rate = PROFILE.bytes_per_second[0][1]
    same, what = with_links(PROFILE, {(0, 1): rate * 1.2, (1, 2): rate / 1.2})
    assert same == PROFILE and what is None
    other, what = with_links(PROFILE, {(0, 1): rate, (1, 2): rate / 10, (2, 3): rate / 2})
    assert f"between rank 1 on {PROFILE.hosts[1]} and rank 2 on {PROFILE.hosts[2]} carries" in what
    assert other.bytes_per_second[1][2] == other.bytes_per_second[2][1] == rate / 10 and other.bytes_per_second[0][1] == rate
    assert other.bytes_per_second[2][3] == rate / 2


@pytest.mark.parametrize("before, after, left, cost, wanted", [
    (1.0, 0.5, 100, 1.0, True), (1.0, 0.95, 1000, 0.1, False), (1.0, 0.5, 3, 1.0, False), (1.0, 1.5, 100, 0.0, False),
])  # fmt: skip
def test_what_is_worth_a_switch(before, after, left, cost, wanted):
    assert worth(before, after, left, cost) == wanted


def test_what_batches_should_take():
    request = Request(20)
    plan = choose(SPEC, "x", PROFILE, request).chosen.plan
    expected, program = Expectation(SPEC, PROFILE, plan, request), make_program(SPEC, plan)
    for rows in (1, 2, 7, 20, 31, 48, 100):
        seconds, compute = expected.of(rows)
        price = Pricer(SPEC, PROFILE, rows).price(program, plan)
        if rows in (1, 2, 20, 48):
            assert seconds == price.seconds and np.array_equal(compute, price.compute)
        assert seconds == pytest.approx(price.seconds, rel=0.25)
    slow = Expectation(SPEC, scaled(PROFILE, [2, 2, 2, 2]), plan, request)
    assert np.allclose(slow.of(20)[1], 2 * expected.of(20)[1])
