"""Where the time above the bound went: the parts sum to it, and each is moved by what it is named after."""

import json
from dataclasses import replace

import numpy as np
import pytest
from clusters import cluster

from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.planning.search import choose
from hepti_mpi.program import ownership
from hepti_mpi.program.build import make_program
from hepti_mpi.program.steps import OUTER, Compute
from hepti_mpi.reporting.above import EXCHANGES, MEANT, Measured, above_bound, meant

SPEC = random_model("tiny-bert").spec
ROWS, REQUESTS, BOUND = 26, 3, 0.01
PROFILE = cluster((9, 7, 8), mbit=1000)


def of(layout=("heads", "columns"), profile=PROFILE):
    plan = choose(SPEC, "hash", profile, Demand(ROWS, layout=layout, shares=(1.0, 1.0, 1.0), mode="packed")).chosen.plan
    return plan, make_program(SPEC, plan)


def measured_of(program, computing, blocked):
    """Rank r computes `computing[r]` seconds a step and is blocked for `blocked[r]` by each exchange; requests take a second."""
    steps = np.zeros((3, REQUESTS, len(program)))
    for place, step in enumerate(program):
        own = computing if isinstance(step, Compute) else blocked
        steps[:, :, place] = np.array(own)[:, None]
    began = np.cumsum(steps[:, -1], axis=1) - steps[:, -1]
    return Measured([0.9, 1.0, 1.2], steps, began)


def told(plan, program, measured, profile=PROFILE, bound=BOUND):
    return above_bound(SPEC, profile, ROWS, plan, program, measured, bound)


def test_the_parts_sum_to_the_median_above_the_bound():
    plan, program = of()
    found = told(plan, program, measured_of(program, (2e-3, 3e-3, 1e-3), (5e-4, 2e-4, 9e-4)))
    assert found.rank == 1  # it computes longest
    assert sum(found.parts().values()) == pytest.approx(found.seconds) == pytest.approx(1.0 - BOUND)
    document = json.loads(json.dumps(found.to_json()))
    assert sum(document["parts_seconds"].values()) == pytest.approx(document["seconds"], rel=1e-3)


def test_computing_is_the_work_at_many_rows_and_what_few_rows_take_longer():
    plan, program = of()
    longer = 3e-3
    found = told(plan, program, measured_of(program, (2e-3, longer, 1e-3), (0, 0, 0)))
    calls = sum(isinstance(step, Compute) for step in program)
    starts = PROFILE.nodes[1].segment_seconds * calls
    assert found.share + BOUND + found.few_rows + starts == pytest.approx(longer * calls)
    assert 0 < found.share + BOUND < Pricer(SPEC, PROFILE, ROWS).price(program, plan).compute[1]
    other = told(plan, program, measured_of(program, (2e-3, longer + 1e-3, 1e-3), (0, 0, 0)))
    assert other.few_rows - found.few_rows == pytest.approx(1e-3 * calls) and other.share == found.share


def test_an_exchange_blocks_as_long_as_the_rank_that_it_blocks_least():
    plan, program = of()
    found = told(plan, program, measured_of(program, (2e-3, 3e-3, 1e-3), (5e-4, 7e-4, 9e-4)))
    kinds = [step.kind for step in program if not isinstance(step, Compute) and step.kind != "slice"]
    inner = [kind for kind in kinds if kind not in OUTER]
    assert found.waiting == pytest.approx(2e-4 * len(inner))
    for kind in set(inner):
        assert found.wire[kind] == pytest.approx(5e-4 * inner.count(kind))


def test_what_comes_to_rank_0_after_the_critical_one_is_done_is_gathering():
    plan, program = of()
    measured = measured_of(program, (2e-3, 3e-3, 1e-3), (0, 0, 0))
    end = (measured.began[1] + measured.steps[1, -1]).max()
    assert told(plan, program, measured).wire["gatherv"] == pytest.approx(1.2 - end)


def test_starts_are_those_of_calls_and_of_our_own_exchanges():
    profile = replace(PROFILE, start_seconds=1e-4)
    plan, program = of(profile=profile)
    measured = measured_of(program, (2e-3, 3e-3, 1e-3), (0, 0, 0))
    exchanges = sum(not isinstance(step, Compute) and step.kind != "slice" for step in program)
    more = told(plan, program, measured, profile).starts - told(plan, program, measured).starts
    assert more == pytest.approx((1e-4 - PROFILE.start_seconds) * exchanges * (plan.collectives == "own"))


def test_one_rank_alone_has_nothing_to_exchange():
    profile = cluster((9,))
    plan = choose(SPEC, "hash", profile, Demand(ROWS, mode="packed")).chosen.plan
    program = make_program(SPEC, plan)
    steps = np.array([[[1e-3 * isinstance(step, Compute) for step in program]]])
    found = above_bound(SPEC, profile, ROWS, plan, program, Measured([2e-3], steps, np.zeros((1, len(program)))), BOUND)
    assert found.wire == {} and found.waiting == 0 and found.starts == pytest.approx(profile.nodes[0].segment_seconds)


def test_every_part_is_explained():
    plan, program = of()
    parts = told(plan, program, measured_of(program, (2e-3, 3e-3, 1e-3), (5e-4, 2e-4, 9e-4))).parts()
    assert set(MEANT) <= set(parts) and all(meant(part) for part in parts) and "allgatherv (the rows of each" in meant("allgatherv")


def test_every_exchange_that_blocks_has_words_and_a_colour_of_its_own():
    from hepti_mpi.reporting.above_plot import COLOURS, OTHER  # takes a second, for each process that looks for tests

    kinds = set(ownership.EXCHANGES) - {"slice", "even_reduce", "even_gather"}  # the first moves nothing, the others are an allreduce's
    assert set(EXCHANGES) == kinds
    assert set(COLOURS) == {*kinds, *MEANT} and len({*COLOURS.values(), OTHER}) == len(COLOURS) + 1


def test_bars_go_on_to_both_sides():
    from hepti_mpi.reporting.above_plot import stacked

    bars = list(stacked({"a": 2.0, "b": -1.0, "c": 3.0, "d": -0.5}))
    assert bars == [(0.0, 2.0, "a"), (-1.0, 1.0, "b"), (2.0, 3.0, "c"), (-1.5, 0.5, "d")]
