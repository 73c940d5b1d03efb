"""What no plan can beat: it is below every plan's price, reached where nothing travels, and moved by what limits."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from hepti_mpi.cluster.boards import board_named, cluster_of
from hepti_mpi.cluster.profile import Edges
from hepti_mpi.commands import main
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning import bound as bounds
from hepti_mpi.planning.bound import bound
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.planning.search import _Search, choose
from hepti_mpi.planning.work import step_work
from hepti_mpi.program.build import make_program
from hepti_mpi.program.steps import Compute

SPEC = replace(random_model("minilm").spec, layers=3)
REQUEST = Demand(64, mode="packed")


def made(names, mbit=940.0, latency=2e-4):
    return cluster_of(names, mbit, latency, (SPEC.hidden, SPEC.ffn))


@pytest.mark.parametrize("names", [["pi4", "pi4"], ["pi5", "pi4", "pi3"], ["laptop", "pi4", "pi4"]])
@pytest.mark.parametrize("mbit", [20.0, 940.0])
def test_it_is_below_what_the_best_plan_takes(names, mbit):
    profile = made(names, mbit)
    found, chosen = bound(SPEC, "hash", profile, REQUEST), choose(SPEC, "hash", profile, REQUEST).chosen
    assert found.perfect <= found.seconds * 1.0001
    assert found.seconds <= chosen.price.seconds * 1.0001


def test_a_few_layers_tell_it_of_all_where_the_wire_decides_those_and_computing_all():
    """A rank that is not the first computes alone: what goes there and back is longer than two layers, and shorter than 24."""
    spec, profile = replace(SPEC, layers=24), made(["pi5", "pi4"], 8.0)
    search = _Search(spec, "hash", profile, replace(REQUEST, shares=(0.0, 1.0)), bounds.Freely)
    plan = search.decide().chosen.plan
    few, every = search.costs.candidates([plan])[0].price.seconds, search.costs.whole(plan).price.seconds
    assert few == pytest.approx(every) == pytest.approx(search.costs.whole(plan).price.compute[1])


def test_it_is_above_no_plan_that_is_known():
    profile = made(["pi5", "pi4", "pi4"], 20.0)
    plan = choose(SPEC, "hash", profile, REQUEST).chosen.plan
    bad = replace(plan, wire="float16", collectives="own", reduction="reduce_scatter")
    alone = bound(SPEC, "hash", profile, REQUEST).seconds
    assert bound(SPEC, "hash", profile, REQUEST, [bad]).seconds == alone  # a wire that the request does not allow
    assert bound(SPEC, "hash", profile, REQUEST, [plan]).seconds <= alone


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


def test_a_host_that_was_measured_as_slower_than_its_ranks_is_no_limit():
    """As on a machine that was busy meanwhile: what perfect division takes is no more than what none of our layouts can beat."""
    two = made(["pi4", "pi4"], 1e5)
    slow = made(["pi3"]).nodes[0]
    busy = replace(two, nodes=tuple(replace(node, host="vm", alone=slow) for node in two.nodes))
    assert bound(SPEC, "hash", busy, REQUEST).perfect <= bound(SPEC, "hash", busy, REQUEST).seconds


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


def test_what_lies_around_the_layers_is_in_it_too():
    bare = made(["pi4", "pi4"])
    edged = replace(bare, edges=Edges(batch=0.25))
    without, with_edges = (bound(SPEC, "hash", profile, REQUEST) for profile in (bare, edged))
    assert with_edges.seconds - without.seconds == pytest.approx(0.25) == with_edges.perfect - without.perfect


def test_it_does_not_depend_on_what_a_request_forces():
    profile = made(["pi5", "pi4"])
    forced = replace(REQUEST, shares=(0.1, 0.9), layout=("heads", "columns"), strategy="tensor")
    assert bound(SPEC, "hash", profile, forced) == bound(SPEC, "hash", profile, REQUEST)


def test_ranks_that_share_all_cores_of_a_host_are_one_in_the_perfect_division():
    """Four ranks of one host are no faster together than the host."""
    single = made(["pi4"])
    whole = single.nodes[0]
    part = replace(whole, threads=1, gemm_seconds_per_weight=tuple(4 * seconds for seconds in whole.gemm_seconds_per_weight), alone=whole)
    shared = replace(made(["pi4"] * 4), nodes=(part,) * 4)
    assert bounds.perfect_seconds(SPEC, "hash", shared, REQUEST) == pytest.approx(bounds.perfect_seconds(SPEC, "hash", single, REQUEST))


def test_it_is_above_none_of_what_one_host_alone_was_chosen_from():
    """Ranks that share a host slow each other down by more than prices know: a little sooner by price is not chosen, but in the table."""
    node = made(["pi4"]).nodes[0]
    half = replace(node, threads=2, gemm_seconds_per_weight=tuple(1.9 * seconds for seconds in node.gemm_seconds_per_weight), alone=node)
    shared = replace(made(["pi4", "pi4"], 1e5, 1e-6), nodes=(half, half))
    decision = choose(SPEC, "hash", shared, REQUEST)
    least = min(one.price.seconds for one in decision.others)
    assert len(decision.chosen.plan.active) == 1 and least < decision.chosen.price.seconds
    found = bound(SPEC, "hash", shared, REQUEST)
    assert found.perfect <= found.seconds <= least


def test_plan_says_it(tmp_path):
    arguments = ["plan", "--weights", "random:minilm", "--boards", "pi5,pi4", "--rows", "64"]
    shown = CliRunner().invoke(main.main, arguments)
    assert shown.exit_code == 0 and "nearness" in shown.output and "perfect division" in shown.output
    told = json.loads(CliRunner().invoke(main.main, [*arguments, "--json"]).output)
    assert 0 < told["perfect_seconds"] <= told["bound_seconds"] * 1.0001
    assert told["nearness"] == pytest.approx(told["bound_seconds"] / told["candidates"][0]["seconds"], rel=1e-3)


def test_equal_boards_are_priced_once(monkeypatch):
    asked = []
    monkeypatch.setattr(bounds, "choose", lambda *given: asked.append(given) or choose(*given))
    perfect = bounds.perfect_seconds(SPEC, "hash", made(["pi4"] * 5 + ["pi5"] * 4), REQUEST)
    assert len(asked) == 2 and perfect < bounds.perfect_seconds(SPEC, "hash", made(["pi4"] * 5 + ["pi5"] * 3), REQUEST)
