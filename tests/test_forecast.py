"""A job of mixed batches is predicted as the sum over its own batches."""

from dataclasses import replace
from functools import cache

import pytest
from clusters import cluster

from hepti_mpi.cluster.profile import Edges
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.forecast import MOST_PRICES, Forecast, compared
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.planning.search import choose
from hepti_mpi.program.build import make_program

SPEC = replace(random_model("bert-base").spec, layers=3)
PROFILE = replace(cluster((9, 7)), edges=Edges(1e-9, 1e-11, 1e-5, 1e-4))
BATCHES = [[40], [9, 8, 8], [3, 3], [40]]


@cache
def planned():
    """Planned once somebody asks: every process that collects tests would plan otherwise."""
    return choose(SPEC, "hash", PROFILE, Demand(64, 8, mode="packed")).chosen.plan


def forecast():
    return Forecast(SPEC, PROFILE, planned())


def price(rows, attended, requests):
    return Pricer(SPEC, PROFILE, rows, attended, requests).price(make_program(SPEC, planned()), planned()).seconds


def test_each_batch_by_its_own_shape():
    found = [forecast().seconds(lengths) for lengths in BATCHES]
    assert found == [price(40, 40, 1), price(25, round(3 * 81 / 25), 3), price(6, 3, 2), price(40, 40, 1)]
    assert found[0] > found[1] > found[2]


def test_requests_of_different_length_are_laid_out_as_if_all_were_as_long_as_the_longest():
    """As many rows that attend to as many: what differs is the rows that only fill up."""
    one = PROFILE.nodes[0]
    slow = replace(PROFILE, nodes=tuple(replace(node, arrange_seconds=node.arrange_seconds + 1e-6) for node in PROFILE.nodes))
    alone = replace(PROFILE, nodes=(one,), latency_seconds=((0.0,),), bytes_per_second=((0.0,),))
    plan = choose(SPEC, "hash", alone, Demand(64)).chosen.plan
    plan = replace(plan, weights_mode=("packed", "packed"), heads=(*plan.heads, 0), columns=(*plan.columns, 0), rows=(*plan.rows, 0),
                   hosts=PROFILE.hosts)  # fmt: skip
    for lengths in ([9, 8, 8], [19, 11, 4], [40]):
        more = [Forecast(SPEC, profile, plan).seconds(lengths) for profile in (PROFILE, slow)]
        laid = len(lengths) * max(lengths)
        assert more[1] - more[0] == pytest.approx(SPEC.layers * laid * SPEC.hidden * 1e-6, rel=0.02)
        pricers = [Pricer(SPEC, profile, 64).of_batch(lengths) for profile in (PROFILE, slow)]
        one, other = (pricer.price(make_program(SPEC, plan), plan).seconds for pricer in pricers)
        assert other - one == pytest.approx(SPEC.layers * laid * SPEC.hidden * 1e-6)


@pytest.mark.parametrize("rounds, switches, count", [(1, [], 4), (3, [], 12), (2, [5, 6], 5), (2, [99], 8)])
def test_measured_and_predicted_are_of_the_same_batches(rounds, switches, count):
    seconds = [0.1 * (1 + number) for number in range(4 * rounds)]
    found = compared(forecast(), BATCHES, seconds, switches)
    own = [forecast().seconds(BATCHES[number % 4]) for number in range(count)]
    every = found["batches"]
    assert every["count"] == count
    assert (every["seconds"], every["predicted_seconds"]) == pytest.approx((sum(seconds[:count]), sum(own)), rel=1e-4)
    assert (every["first_seconds"], every["first_predicted_seconds"]) == pytest.approx((0.1, own[0]), rel=1e-4)
    assert found["predicted_seconds"] == pytest.approx(sorted(own)[count // 2] / 2 + sorted(own)[(count - 1) // 2] / 2, rel=1e-4)


def test_a_job_that_switches_at_once_is_not_compared():
    assert compared(forecast(), BATCHES, [0.1] * 4, [0]) == {}


def test_many_shapes_are_not_all_priced():
    one, exact = forecast(), [price(rows, rows, 1) for rows in (20, 100)]
    for rows in range(1, 200):
        one.seconds([rows])
    assert len(one.known) == MOST_PRICES
    assert one.seconds([20]) == pytest.approx(exact[0], rel=0.01) and one.seconds([100]) == pytest.approx(exact[1], rel=0.5)
