"""What settling tries, what it learns, and how it compares. That it runs is tested with ranks, in tests/mpi/test_settling.py."""

from dataclasses import replace

import numpy as np
import pytest
from clusters import cluster

from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning.price import Pricer
from hepti_mpi.planning.request import Request
from hepti_mpi.planning.search import choose
from hepti_mpi.program.build import make_program
from hepti_mpi.tuning.settle import CLOSE, FINALISTS, MOST_LATE, TRUST, Trial, learned, promising

SPEC = replace(random_model("bert-base").spec, layers=4)
REQUEST = Request(96, mode="packed")
PROFILE = cluster((20, 12, 6), mbit=3000)


@pytest.fixture(scope="module")
def decision():
    return choose(SPEC, "hash", PROFILE, REQUEST)


def trial(plan, slower=1.0, late=0.0):
    """A plan that computes `slower` times as long as priced and then answers `late` seconds after what that explains."""
    price = Pricer(SPEC, PROFILE, 96).price(make_program(SPEC, plan), plan)
    known = learned(Pricer(SPEC, PROFILE, 96), SPEC, Trial(plan, None, [price.seconds], [price.compute * slower]))
    seconds = Pricer(SPEC, replace(known, exchange_seconds=PROFILE.exchange_seconds), 96).price(make_program(SPEC, plan), plan).seconds
    return Trial(plan, None, [seconds + late] * 3, [price.compute * slower] * 3)


def test_the_chosen_plan_comes_first_and_others_are_close(decision):
    plans = promising(decision, PROFILE, REQUEST)
    assert plans[0] == decision.chosen.plan and len(set(plans)) == len(plans) > 1
    prices = {other.plan: other.price.seconds for other in (decision.chosen, *decision.close, *decision.others)}
    others = plans[1 + len(decision.close) :]
    assert 0 < len(others) <= FINALISTS and all(prices[plan] <= CLOSE * decision.chosen.price.seconds for plan in others)


def test_what_memory_cannot_hold_twice_is_not_tried(decision):
    most = max(decision.chosen.memory)
    assert promising(decision, PROFILE, replace(REQUEST, limits=(most,) * 3)) == [decision.chosen.plan]
    found = [len(promising(decision, PROFILE, replace(REQUEST, limits=(count * most,) * 3))) for count in range(1, 9)]
    assert found == sorted(found) and found[1] == 2 < found[-1] <= 1 + len(decision.close) + FINALISTS


@pytest.mark.parametrize("seconds, expected", [([5.0], 5.0), ([5.0, 1.0], 1.0), ([9.0, 2.0, 4.0], 3.0), ([1.0, 2.0, 3.0, 99.0], 1.5)])
def test_the_sooner_half_counts(seconds, expected):
    assert Trial(None, None, seconds).typical == expected


@pytest.mark.parametrize("slower, expected", [(1.0, 1.0), (1.1, 1.1), (0.9, 0.9), (3.0, 1 + TRUST), (0.1, 1 - TRUST)])
def test_speeds_are_learned_within_what_is_trusted(decision, slower, expected):
    plan = decision.chosen.plan
    assert len(plan.active) == 3
    after = learned(Pricer(SPEC, PROFILE, 96), SPEC, trial(plan, slower))
    for one, other in zip(PROFILE.nodes, after.nodes):
        assert other.gemm_seconds_per_weight == pytest.approx([expected * seconds for seconds in one.gemm_seconds_per_weight])
    assert after.exchange_seconds == pytest.approx(PROFILE.exchange_seconds, abs=1e-9)


def test_a_rank_without_a_part_teaches_nothing():
    profile = cluster((20, 12, 0.01), mbit=300)
    plan = choose(SPEC, "hash", profile, REQUEST).chosen.plan
    assert 2 not in plan.active
    pricer = Pricer(SPEC, profile, 96)
    price = pricer.price(make_program(SPEC, plan), plan)
    after = learned(pricer, SPEC, Trial(plan, None, [price.seconds], [np.array([*(price.compute[:2] * 1.2), 0.0])]))
    assert after.nodes[2] == profile.nodes[2] and after.nodes[0].element_seconds == pytest.approx(1.2 * profile.nodes[0].element_seconds)


def test_what_speeds_do_not_explain_is_the_exchanges(decision):
    plan = decision.chosen.plan
    pricer = Pricer(SPEC, PROFILE, 96)
    before = pricer.price(make_program(SPEC, plan), plan).seconds
    after = learned(pricer, SPEC, trial(plan, late=0.02))
    known = Pricer(SPEC, after, 96).price(make_program(SPEC, plan), plan).seconds
    assert PROFILE.exchange_seconds < after.exchange_seconds and before < known <= before + 0.0201
    assert learned(pricer, SPEC, trial(plan, late=9.0)).exchange_seconds == MOST_LATE
    assert learned(pricer, SPEC, trial(plan, late=-9.0)).exchange_seconds == 0


def test_one_rank_has_no_exchanges():
    profile = cluster((20,))
    plan = choose(SPEC, "hash", profile, REQUEST).chosen.plan
    pricer = Pricer(SPEC, profile, 96)
    price = pricer.price(make_program(SPEC, plan), plan)
    assert learned(pricer, SPEC, Trial(plan, None, [2 * price.seconds], [price.compute])).exchange_seconds == profile.exchange_seconds
