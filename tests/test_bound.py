"""What no plan can beat: it is below every plan's price, reached where nothing travels, and moved by what limits."""

from dataclasses import replace

import pytest

from hepti_mpi.cluster.boards import board_named, cluster_of
from hepti_mpi.models.random_models import random_model
from hepti_mpi.planning.bound import bound
from hepti_mpi.planning.cost import Pricer
from hepti_mpi.planning.planner import Request, choose
from hepti_mpi.planning.program import Compute, make_program
from hepti_mpi.planning.work import step_work

SPEC = replace(random_model("minilm").spec, layers=3)
REQUEST = Request(64, mode="packed")


def made(names, mbit=940.0, latency=2e-4):
    return cluster_of(names, mbit, latency, (SPEC.hidden, SPEC.ffn))


@pytest.mark.parametrize("names", [["pi4", "pi4"], ["pi5", "pi4", "pi3"], ["laptop", "pi4", "pi4"]])
@pytest.mark.parametrize("mbit", [20.0, 940.0])
def test_it_is_below_what_the_best_plan_takes(names, mbit):
    profile = made(names, mbit)
    found, chosen = bound(SPEC, "hash", profile, REQUEST), choose(SPEC, "hash", profile, REQUEST).chosen
    assert found.perfect <= found.seconds * 1.0001
    assert found.seconds <= chosen.price.seconds * 1.0001


def test_one_rank_reaches_it():
    profile = made(["pi4"])
    chosen = choose(SPEC, "hash", profile, REQUEST).chosen
    assert bound(SPEC, "hash", profile, REQUEST).seconds == pytest.approx(chosen.price.seconds, rel=0.01)


def test_a_faster_wire_lowers_it_to_the_computing():
    bounds = [bound(SPEC, "hash", made(["pi4"] * 3, mbit), REQUEST).seconds for mbit in (10.0, 100.0, 1e5)]
    assert bounds == sorted(bounds, reverse=True) and bounds[0] > bounds[2]


def test_perfect_division_is_the_sum_of_rates():
    one = bound(SPEC, "hash", made(["pi4"]), REQUEST).perfect
    assert bound(SPEC, "hash", made(["pi4"] * 4), REQUEST).perfect == pytest.approx(one / 4, rel=0.01)


def test_the_work_of_a_rank_is_what_its_price_multiplies():
    """An emulated board takes, call by call, what the price of its description says."""
    profile = made(["pi4", "pi5"])
    plan = choose(SPEC, "hash", profile, replace(REQUEST, layout=("heads", "columns"))).chosen.plan
    program, board = make_program(SPEC, plan), board_named("pi4")
    computed = 0.0
    for step in program:
        if isinstance(step, Compute):
            rows = sum(plan.counts((64,))[step.tile or 0]) if step.distribution == "full" else plan.counts((64,))[step.tile or 0][0]
            computed += board.seconds(step_work(SPEC, plan, 0, step, rows, rows * 64)) if rows else 0.0
    price = Pricer(SPEC, profile, 64).price(program, plan)
    assert computed == pytest.approx(price.compute[0], rel=0.02)
