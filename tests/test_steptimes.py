"""What each step is predicted to take sums to the price; the lab's clusters as they would be measured."""

from dataclasses import replace

import numpy as np
import pytest
from clusters import cluster

from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.planning.search import choose
from hepti_mpi.program.build import make_program
from hepti_mpi.program.steps import Compute
from tests.lab import prices
from tests.lab.clusters import cluster_named
from tests.lab.steptimes import step_times

SPEC = random_model("tiny-bert").spec
PROFILE = cluster((9, 7, 8), mbit=100)


@pytest.mark.parametrize("layout", [("alltoall", "rows"), ("heads", "columns"), ("rows", "rows"), ("heads", "rows")], ids="/".join)
@pytest.mark.parametrize("tiles", [1, 2])
def test_steps_sum_to_the_price(layout, tiles):
    plan = choose(SPEC, "hash", PROFILE, Demand(26, layout=layout, shares=(2.0, 1.0, 1.0), mode="packed")).chosen.plan
    plan = replace(plan, collectives="own", reduction="reduce_scatter", tiles=(plan.rows,) if tiles == 1 else ((7, 3, 3), (6, 4, 3)))
    program, pricer = make_program(SPEC, plan), Pricer(SPEC, PROFILE, 26)
    price, times = pricer.price(program, plan), step_times(pricer, program, plan)
    computing = np.array([isinstance(step, Compute) for step in program])
    assert times.seconds == pytest.approx(price.seconds)
    assert times.steps[:, computing].sum(axis=1) == pytest.approx(price.compute)
    assert times.steps[:, ~computing].sum(axis=1) == pytest.approx(price.wait)
    assert (times.began + times.steps)[:, computing].max() <= times.seconds


def test_a_cluster_of_the_lab_as_it_would_be_measured():
    profile = prices.described(cluster_named("slowlink4"), SPEC)
    assert profile.hosts == ("pi4-1", "pi4-2", "pi4-3", "pi4-4") and profile.emulated == "3,3,3,3"
    assert profile.bytes_per_second[0][1] == pytest.approx(0.955 * 62.5e6)  # the slower of both links
    assert profile.bytes_per_second[0][3] == profile.bytes_per_second[3][0] == pytest.approx(0.955 * 6.25e6)


def test_a_line_of_prices(capsys):
    assert prices.main(["--clusters", "wifi3", "--models", "tiny-bert", "--rows", "16", "--formats", "f32"]) == 0
    assert "| wifi3 | tiny-bert | 16 | float32 |" in (printed := capsys.readouterr().out)
    assert "[predicted]" in printed and "nearness: least" in printed
