"""What settling tries, what it learns, and how it compares. That it runs is tested with ranks, in tests/mpi/test_settling.py."""

from dataclasses import replace

import numpy as np
import pytest
from clusters import cluster, with_alone

from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.planning.search import choose
from hepti_mpi.program.build import make_program
from hepti_mpi.tuning.settle import CLOSE, FINALISTS, MOST_LATE, TRUST, Trial, first_layers, learned, longer, promising
from hepti_mpi.weights.slices import Part

SPEC = replace(random_model("bert-base").spec, layers=4)
REQUEST = Demand(96, mode="packed")
PROFILE = cluster((20, 12, 6), mbit=3000)


@pytest.fixture(scope="module")
def decision():
    return choose(SPEC, "hash", PROFILE, REQUEST)


def trial(plan, slower=1.0, late=0.0):
    """A plan that computes `slower` times as long as priced and then answers `late` seconds after what that explains."""
    tried, price = Part(SPEC, plan, 0), price_of(plan)
    known = learned(PROFILE, REQUEST, Trial(plan, tried, None, 1.0, [price.seconds], [price.compute * slower]))
    seconds = price_of(plan, replace(known, exchange_seconds=PROFILE.exchange_seconds)).seconds
    return Trial(plan, tried, None, 1.0, [seconds + late] * 3, [price.compute * slower] * 3)


def price_of(plan, profile=PROFILE, spec=SPEC):
    return Pricer(spec, profile, 96).price(make_program(spec, plan), plan)


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
    assert Trial(None, None, None, 1.0, seconds).typical == expected
    assert Trial(None, None, None, 4.0, seconds).typical == 4 * expected


@pytest.mark.parametrize("slower, expected", [(1.0, 1.0), (1.1, 1.1), (0.9, 0.9), (3.0, 1 + TRUST), (0.1, 1 - TRUST)])
def test_speeds_are_learned_within_what_is_trusted(decision, slower, expected):
    plan = decision.chosen.plan
    assert len(plan.active) == 3
    after = learned(PROFILE, REQUEST, trial(plan, slower))
    for one, other in zip(PROFILE.nodes, after.nodes):
        assert other.gemm_seconds_per_weight == pytest.approx([expected * seconds for seconds in one.gemm_seconds_per_weight])
    assert after.exchange_seconds == pytest.approx(PROFILE.exchange_seconds, abs=1e-9)


def test_a_rank_without_a_part_teaches_nothing():
    profile = cluster((20, 12, 0.01), mbit=300)
    plan = choose(SPEC, "hash", profile, REQUEST).chosen.plan
    assert 2 not in plan.active
    price = price_of(plan, profile)
    taught = [np.array([*(price.compute[:2] * 1.2), 0.0])]
    after = learned(profile, REQUEST, Trial(plan, Part(SPEC, plan, 0), None, 1.0, [price.seconds], taught))
    assert after.nodes[2] == profile.nodes[2] and after.nodes[0].element_seconds == pytest.approx(1.2 * profile.nodes[0].element_seconds)


@pytest.mark.parametrize("active, own, whole", [((0, 1), 1.2, 1.0), ((0,), 1.0, 1.2)])
def test_ranks_beside_each_other_teach_nothing_of_one_with_all_cores(active, own, whole):
    """Two ranks that were slower than priced made the prediction of one alone a third too long in a bench."""
    profile = with_alone(cluster((20, 20), mbit=9000, latency=1e-6, hosts=("a", "a")), 1.5)
    decision = choose(SPEC, "hash", profile, REQUEST)
    plan = next(one.plan for one in (decision.chosen, *decision.others) if one.plan.active == active)
    price = price_of(plan, profile)
    after = learned(profile, REQUEST, Trial(plan, Part(SPEC, plan, 0), None, 1.0, [price.seconds], [price.compute * 1.2]))
    for before, now in zip(profile.nodes, after.nodes):
        assert now.element_seconds == pytest.approx(own * before.element_seconds)
        assert now.alone.element_seconds == pytest.approx(whole * before.alone.element_seconds)


def test_what_speeds_do_not_explain_is_the_exchanges(decision):
    plan = decision.chosen.plan
    before = price_of(plan).seconds
    after = learned(PROFILE, REQUEST, trial(plan, late=0.02))
    known = price_of(plan, after).seconds
    assert PROFILE.exchange_seconds < after.exchange_seconds and before < known <= before + 0.0201
    assert learned(PROFILE, REQUEST, trial(plan, late=9.0)).exchange_seconds == MOST_LATE
    assert learned(PROFILE, REQUEST, trial(plan, late=-9.0)).exchange_seconds == 0


def test_one_rank_has_no_exchanges():
    profile = cluster((20,))
    plan = choose(SPEC, "hash", profile, REQUEST).chosen.plan
    price = price_of(plan, profile)
    trial = Trial(plan, Part(SPEC, plan, 0), None, 1.0, [2 * price.seconds], [price.compute])
    assert learned(profile, REQUEST, trial).exchange_seconds == profile.exchange_seconds


def test_the_first_layers_are_tried_where_all_are_alike(decision):
    deep, plan = replace(SPEC, layers=32), replace(decision.chosen.plan, layers=decision.chosen.plan.layers[:1] * 32)
    tried = first_layers(Part(deep, plan, 1))
    assert (tried.spec.layers, len(tried.plan.layers), tried.rank) == (8, 8, 1) and tried.plan.rows == plan.rows
    assert {piece.name for piece in tried.slices} < {piece.name for piece in Part(deep, plan, 1).slices}
    whole, part = (price_of(one, spec=spec).seconds for one, spec in ((plan, deep), (tried.plan, tried.spec)))
    assert longer(Part(deep, plan, 1), tried, PROFILE, REQUEST) == whole / part and 3 < whole / part <= 4  # what comes once is no longer


@pytest.mark.parametrize("spec, layers", [
    (replace(SPEC, layers=6), ("heads", "columns") * 6),
    (replace(SPEC, layers=24), ("heads", "rows") * 12 + ("alltoall", "rows") * 12),
    (replace(random_model("modernbert-base").spec, layers=22), ("alltoall", "rows") * 22),
])  # fmt: skip
def test_else_all_layers_are_tried(decision, spec, layers):
    plan = replace(decision.chosen.plan, layers=tuple(zip(layers[::2], layers[1::2])))
    part = Part(spec, plan, 0)
    assert first_layers(part) is part and longer(part, part, PROFILE, REQUEST) == 1.0
