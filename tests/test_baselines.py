"""The methods to compare with: each rule's division, its linear programs against brute force, and what it does when memory is short."""

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from clusters import GIB, cluster
from layers import sized

from hepti_mpi import splits
from hepti_mpi.errors import CapacityError, PlanError
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning.baselines import NAMES, Case, baseline, boosted, least_makespan, overflowed
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.program.build import make_program
from hepti_mpi.program.plan import check
from hepti_mpi.weights.slices import Part

LARGE = random_model("bert-large").spec
BASE = random_model("bert-base").spec
VIT = random_model("tiny-vit").spec
ODD = sized(BASE, layers=7, hidden=72, heads=9, ffn=203)
SPEEDS = [(12,), (9, 30), (12,) * 3, (5, 40, 11), (16, 11.4, 6.7, 4.4), (20, 20, 20, 0.5), (7, 9, 8, 30, 2), (4, 5, 6, 7, 8, 9, 40)]


def made(name, spec, profile, rows=128, limits=None):
    """The plan of `name`, which is a valid one and runs as it was published."""
    plan = baseline(name, spec, "hash", profile, rows, limits)
    check(plan, spec, "hash", len(profile.nodes))
    assert (plan.collectives, plan.wire, plan.tiles) == ("mpi", "float32", ())
    assert (plan.hosts, set(plan.weights_mode), plan.planned_rows) == (profile.hosts, {"packed"}, rows)
    return plan


def seconds(spec, profile, plan):
    return Pricer(spec, profile, plan.planned_rows).price(make_program(spec, plan), plan).seconds


def with_links(profile, *mbit):
    """The profile with links of these rates: two ranks exchange at the lower of theirs."""
    rates = [[0.0 if i == j else min(a, b) * 125_000.0 for j, b in enumerate(mbit)] for i, a in enumerate(mbit)]
    return replace(profile, bytes_per_second=tuple(map(tuple, rates)))


def layer_bytes(spec):
    return spec.layers * ((4 * spec.hidden + 3) * spec.hidden + (2 * spec.hidden + 1) * spec.ffn) * 4


# all methods


def test_names():
    assert NAMES == ("megatron", "voltage", "galaxy", "coedge", "edgeflow", "ram", "single")


@pytest.mark.parametrize("spec, rows", [(ODD, 97), (ODD, 1), (VIT, 5), (LARGE, 128)], ids=["odd", "one row", "few rows", "large"])
@pytest.mark.parametrize("speeds", SPEEDS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_plan_can_be_run_as_published_and_boosted(name, speeds, spec, rows):
    profile = cluster(speeds, mbit=200)
    plan = made(name, spec, profile, rows)
    assert 0 < seconds(spec, profile, plan) < 1e6
    assert plan.hash == made(name, spec, profile, rows).hash
    faster = boosted(plan)
    check(faster, spec, "hash", len(speeds))
    assert 0 < seconds(spec, profile, faster) < 1e6
    assert (faster.collectives, faster.reduction, faster.wire) == ("own", "reduce_scatter", "float32")
    for kept in ("model", "layers", "heads", "columns", "rows", "hosts", "weights_mode"):
        assert getattr(faster, kept) == getattr(plan, kept)


@pytest.mark.parametrize("tiles", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [1, 2, 6, 97])
def test_tiles_are_as_even_as_integers_allow(tiles, rows):
    plan = made("coedge", ODD, cluster((5, 40, 11), mbit=1e4), rows)
    cut = boosted(plan, tiles).tiles or (plan.rows,)
    assert [sum(counts) for counts in zip(*cut)] == list(plan.rows)
    assert len(cut) == (min(tiles, max(plan.rows)) if len(plan.active) > 1 else 1)
    for counts in zip(*cut):
        assert max(counts) - min(counts) <= 1
    assert all(sum(tile) for tile in cut)


def test_a_rank_alone_is_not_tiled():
    assert boosted(made("single", ODD, cluster((5, 40, 11)))).tiles == ()


def test_a_prediction_does_not_outlive_the_change():
    assert boosted(replace(made("voltage", ODD, cluster((5, 40))), predicted_seconds=1.0)).predicted_seconds is None


def test_many_ranks():
    for name in NAMES:
        made(name, BASE, cluster(tuple(np.linspace(5, 50, 64))), 100)


# even, and by memory


@pytest.mark.parametrize("speeds", SPEEDS, ids=str)
def test_megatron_is_even(speeds):
    plan = made("megatron", ODD, cluster(speeds), 97)
    assert plan.reduction == "allreduce" and set(plan.layers) == {("heads", "columns")}
    for counts, granule in ((plan.heads, 1), (plan.rows, 1), (plan.columns, 2 * ODD.column_granule)):
        assert max(counts) - min(counts) <= granule


@pytest.mark.parametrize("speeds", SPEEDS, ids=str)
def test_voltage_is_even(speeds):
    plan = made("voltage", ODD, cluster(speeds), 97)
    assert plan.rows == splits.even(97, len(speeds)) and set(plan.layers) == {("rows", "rows")}


@pytest.mark.parametrize("memory", [(4, 4), (8, 4, 4), (1, 2, 4, 1), (2, 1, 2, 1, 3), (1, 2, 3, 4, 5, 6, 7)], ids=str)
def test_ram_is_by_memory_whatever_the_speed(memory):
    sizes = [size * GIB for size in memory]
    for profile, limits in ((cluster(range(1, len(memory) + 1), memory=sizes), None), (cluster((9,) * len(memory)), sizes)):
        plan = made("ram", BASE, profile, limits=limits)
        assert plan.reduction == "allreduce" and plan.rows == splits.even(128, len(memory))
        assert plan.heads == splits.split(BASE.heads, memory)
        assert plan.columns == splits.split(BASE.ffn, memory, BASE.column_granule)


# Galaxy


@pytest.mark.parametrize("speeds", SPEEDS, ids=str)
def test_galaxy_is_by_speed(speeds):
    plan = made("galaxy", LARGE, cluster(speeds, mbit=0.1))  # it does not look at the network
    assert plan.reduction == "reduce_scatter" and plan.rows == splits.even(128, len(speeds))
    cost = [2 * 128 / (speed * 1e9) * (4 * 1024**2 + 2 * 1024 * 4096) for speed in speeds]  # of the products, which decide
    for counts, granule in ((plan.heads, 1), (plan.columns, LARGE.column_granule)):
        exact = sum(counts) / np.array(cost) / sum(1 / c for c in cost)
        assert np.abs(np.array(counts) - exact).max() <= granule + 0.01 * sum(counts)


@pytest.mark.parametrize("units, speed, limit, expected", [
    (12, (1, 1, 1), (9, 9, 9), (4, 4, 4)),
    (12, (2, 1, 1), (9, 9, 9), (6, 3, 3)),
    (12, (2, 1, 1), (2, 9, 9), (2, 5, 5)),
    (12, (4, 1, 1), (2, 4, 9), (2, 4, 6)),  # what goes to the second is too much for it as well
    (13, (3, 2, 1), (0, 13, 13), (0, 9, 4)),
    (12, (1, 1, 1), (4, 4, 4), (4, 4, 4)),
    (12, (1, 1, 1), (1, 1, 1), (4, 4, 4)),  # nobody has room: nothing is moved
    (12, (1, 1, 2), (1, 4, 6), (1, 5, 6)),  # the rest stays where there was room last
    (7, (1, 1), (0, 100), (0, 7)),
    (5, (3,), (2,), (5,)),
])  # fmt: skip
def test_what_does_not_fit_moves_by_speed(units, speed, limit, expected):
    assert tuple(overflowed(units, np.array(speed, float), np.array(limit))) == expected


def test_galaxy_moves_what_does_not_fit():
    """The fastest rank is small: the others take over in proportion to their speed."""
    profile, small = cluster((40, 10, 20)), layer_bytes(LARGE) // 8
    free, tight = (made("galaxy", LARGE, profile, limits=limits) for limits in (None, (small, 2 * GIB, 2 * GIB)))
    assert free.heads[0] > 8 and tight.heads[0] in (1, 2) and tight.columns[0] > 0
    assert 0.9 < Case(LARGE, "hash", profile, 128, None).memory(tight)[0] / small <= 1
    assert tight.columns[2] / tight.columns[1] == pytest.approx(2, abs=0.05) and tight.heads[2] > tight.heads[1] > free.heads[1]
    with pytest.raises(CapacityError):
        baseline("megatron", LARGE, "hash", profile, 128, (small, 2 * GIB, 2 * GIB))


@pytest.mark.parametrize("seed", range(30))
def test_galaxy_fits_wherever_there_is_room(seed):
    random = np.random.default_rng(seed)
    ranks = int(random.integers(2, 8))
    profile = cluster(tuple(random.uniform(2, 40, ranks)))
    head = layer_bytes(BASE) // BASE.heads
    room = random.dirichlet(np.ones(ranks)) * layer_bytes(BASE) * 1.05 + head
    limits = tuple(int(size) + 8_000_000 for size in room)
    plan = made("galaxy", BASE, profile, limits=limits)
    assert (Case(BASE, "hash", profile, 128, limits).memory(plan) <= limits).all()


# linear programs


def compositions(total, parts):
    return (c for c in product(range(total + 1), repeat=parts) if sum(c) == total)


def test_the_program_is_that_of_the_definition():
    """Of two ranks with one link each: 3 a = 6 (1 - a) where all is the rest; where all is sent first, the same."""
    nothing, cost = np.zeros(2), np.array([3.0, 6.0])
    for first, rest in ((nothing, cost), (cost, nothing), (cost / 3, cost / 7)):
        assert least_makespan(nothing, first, rest) == pytest.approx([2 / 3, 1 / 3])
    assert least_makespan(np.array([0.0, 2.0]), np.array([4.0, 4.0]), nothing + 1e-9) == pytest.approx([0.75, 0.25])  # one begins later
    assert least_makespan(np.array([0.0, 9.0]), np.array([4.0, 4.0]), nothing + 1e-9)[0] == pytest.approx(1)  # too late for a part
    assert least_makespan(np.zeros(1), np.zeros(1), np.ones(1)) == pytest.approx([1])


@pytest.mark.parametrize("ranks, units", [(2, 90), (3, 30), (4, 14)])
@pytest.mark.parametrize("seed", range(8))
def test_no_division_is_sooner_than_the_program_says(ranks, units, seed):
    random = np.random.default_rng(seed)
    scale = 10.0 ** random.integers(-6, 3)  # any unit of time
    ready, first, rest = random.uniform(0.0, 1.0, (3, ranks)) * scale

    def makespan(shares):
        return (ready + shares * first).max() + (shares * rest).max()

    found = makespan(least_makespan(ready, first, rest))
    best = min(makespan(np.array(c) / units) for c in compositions(units, ranks))
    assert best - (first.max() + rest.max()) / units <= found <= best * (1 + 1e-6)


def costs(spec, speeds, rows, mbit):
    """Seconds of a layer on all rows, before and after K and V travel, and in which they leave, worked out apart from the module."""
    gemm = np.array([max(1e-9, 2 * rows / (speed * 1e9)) for speed in speeds])
    project = gemm * 3 * spec.hidden**2
    rest = gemm * (spec.hidden**2 + 2 * spec.hidden * spec.ffn) + 2e-9 * rows * (2 * spec.hidden + spec.ffn)
    rest = rest + 4 / (np.array(speeds) * 1e9) * 2 * rows**2 * spec.hidden
    return project, rest, 2 * rows * spec.hidden * 4 / (np.array(mbit) * 125_000)


LINKS = [((9, 30), (1000, 1000)), ((12, 12), (1000, 30)), ((16, 11, 5), (200, 50, 200)), ((10, 40, 20), (1000, 20, 1000)),
         ((16, 11.4, 6.7, 4.4), (200,) * 4), ((5, 6, 7, 8), (500, 500, 50, 100))]  # fmt: skip


@pytest.mark.parametrize("speeds, mbit", LINKS, ids=str)
@pytest.mark.parametrize("rows", [8, 32])
def test_coedge_against_brute_force(speeds, mbit, rows):
    if len(speeds) == 4 and rows == 32:
        rows = 12
    ways = [min(rate, max(mbit[:i] + mbit[i + 1 :])) for i, rate in enumerate(mbit)]  # no more than the best partner takes
    project, rest, travel = costs(BASE, speeds, rows, ways)
    profile = replace(cluster(speeds), nodes=tuple(replace(n, gemm_rows=(rows,), gemm_seconds_per_weight=(max(1e-9, 2 * rows / s / 1e9),))
                                                   for n, s in zip(cluster(speeds).nodes, speeds)))  # fmt: skip
    plan = made("coedge", BASE, with_links(profile, *mbit), rows)
    cost = (project + rest + travel) / rows
    best = min((np.array(c) * cost).max() for c in compositions(rows, len(speeds)))
    took = (np.array(plan.rows) * cost).max()
    assert took <= best + cost[plan.rows.index(max(plan.rows))] and took <= best * 1.35
    exact = rows / cost / (1 / cost).sum()
    if exact.min() > 1:
        assert np.abs(np.array(plan.rows) - exact).max() < 1


def test_coedge_looks_at_the_link():
    fast, slow = made("coedge", LARGE, cluster((12,) * 3)), made("coedge", LARGE, with_links(cluster((12,) * 3), 1000, 1000, 20))
    assert max(fast.rows) - min(fast.rows) <= 1
    assert slow.rows[2] < slow.rows[0] and abs(slow.rows[0] - slow.rows[1]) <= 1


@pytest.mark.parametrize("rows", [4, 16, 64])
def test_coedge_leaves_out_who_would_have_less_than_a_row(rows):
    plan = made("coedge", BASE, cluster((20, 20, 0.01, 20), mbit=1000), rows)
    assert plan.active == (0, 1, 3) and max(plan.rows) - min(plan.rows[r] for r in plan.active) <= 1


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_coedge_with_fewer_rows_than_ranks_takes_the_best(rows):
    plan = made("coedge", BASE, cluster((5, 30, 6, 25, 7, 20, 8)), rows)
    assert set(plan.active) <= {1, 3, 5, 6, 4} and plan.rows[1] == max(plan.rows)


@pytest.mark.parametrize("speeds, mbit", LINKS, ids=str)
def test_edgeflow_divides_so_that_the_layers_end_soonest(speeds, mbit):
    """Where all are done with a layer at once the next begins as this one: one program, checked by brute force over coarse rows."""
    rows = 128
    ways = [min(rate, max(mbit[:i] + mbit[i + 1 :])) for i, rate in enumerate(mbit)]
    project, rest, travel = costs(BASE, speeds, rows, ways)
    plan = made("edgeflow", BASE, with_links(cluster(speeds), *mbit), rows)

    def makespan(counts):
        """Of all layers, as the programs see it."""
        ready, share = np.zeros(len(speeds)), np.array(counts) / rows
        for _ in range(BASE.layers):
            ready = (ready + share * (project + travel)).max() + share * rest
        return ready.max()

    step = {2: 1, 3: 4, 4: 8}[len(speeds)]
    best = min(makespan(np.array(c) * step) for c in compositions(rows // step, len(speeds)))
    assert makespan(plan.rows) <= best * 1.12
    assert makespan(plan.rows) <= makespan(splits.even(rows, len(speeds))) * 1.001


def test_edgeflow_settles_where_speed_alone_differs():
    plan = made("edgeflow", LARGE, cluster((30, 20, 10), mbit=1e6))
    assert plan.rows[0] > plan.rows[1] > plan.rows[2] > 0
    assert plan.rows[0] / plan.rows[2] == pytest.approx(3, rel=0.1)


def test_edgeflow_takes_the_middle_of_what_does_not_settle():
    """Behind a slow link the programs of odd layers and of even layers disagree."""
    profile = with_links(cluster((13,) * 4), 500, 500, 500, 50)
    rows = made("edgeflow", LARGE, profile).rows
    assert max(rows[:3]) - min(rows[:3]) <= 1 and 13 < rows[3] < 32


# the fastest alone


@pytest.mark.parametrize("speeds", SPEEDS, ids=str)
def test_single_is_the_fastest(speeds):
    plan = made("single", LARGE, cluster(speeds))
    assert plan.strategy == "single" and plan.rows[speeds.index(max(speeds))] == 128


def test_single_is_the_fastest_of_those_that_hold_the_model():
    sizes = [layer_bytes(BASE) // 2, GIB, GIB, GIB]
    assert made("single", BASE, cluster((40, 10, 30, 20), memory=sizes)).active == (2,)
    assert made("single", BASE, cluster((40, 10, 30, 20)), limits=(GIB, GIB, 1000, GIB)).active == (0,)


def test_single_counts_the_way_from_and_to_the_root():
    profile = cluster((10, 10.01), mbit=1)
    assert made("single", BASE, profile).active == (0,)


# memory


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", [ODD, BASE, VIT], ids=["odd", "base", "vit"])
def test_memory_is_that_of_the_weights_that_are_loaded(name, spec):
    profile = cluster((16, 11, 6, 4))
    plan, case = made(name, spec, profile), Case(spec, "hash", profile, 128, None)
    tensor = plan.strategy == "tensor"
    part = np.array(plan.heads) / spec.heads if tensor else np.array(plan.rows) / 128
    without = case.memory(plan) - case.activations(plan, part)
    final = 2 * spec.hidden * 4 * (spec.last is not None)  # of the norm after the last layer
    for rank in plan.active:
        held = sum(piece.bytes for piece in Part(spec, plan, rank).of_layers)
        assert -final <= without[rank] - held <= 1
    assert all(case.memory(plan)[rank] == 0 for rank in range(4) if rank not in plan.active)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_a_rank_lacks_exactly_what_is_said(name, ranks):
    profile, limit = cluster((16, 12, 9, 7, 5)[:ranks]), layer_bytes(BASE) // 7
    with pytest.raises(CapacityError) as error:
        baseline(name, BASE, "hash", profile, 128, (limit,) * ranks)
    text = str(error.value)
    found = re.search(rf"^{name} does not fit: rank (\d+) on (\S+) lacks (\d+) bytes \(it has (\d+), its part needs (\d+)\); ", text)
    assert found, text
    rank, lack, has, need = (int(found[number]) for number in (1, 3, 4, 5))
    assert found[2] == profile.hosts[rank] and has == limit and has + lack == need
    if name != "galaxy":  # whose division would be another one
        made(name, BASE, profile, limits=(limit + lack,) * ranks)
        with pytest.raises(CapacityError):
            baseline(name, BASE, "hash", profile, 128, (limit + lack - 1,) * ranks)


def test_a_rank_without_a_part_needs_nothing():
    made("coedge", BASE, cluster((20, 20, 0.01)), 16, limits=(GIB, GIB, 1))
    made("single", BASE, cluster((20, 10)), limits=(GIB, 1))


# what is refused


@pytest.mark.parametrize("name, limits, rows, words", [
    ("alpa", None, 128, "no baseline 'alpa', expected one of megatron, voltage,"),
    ("", None, 128, "no baseline ''"),
    ("ram", (GIB, GIB), 128, "--memory-limit has 2 entries, the job has 3 ranks"),
    ("megatron", None, 0, "no rows"),
])  # fmt: skip
def test_impossible_requests(name, limits, rows, words):
    with pytest.raises(PlanError, match=words):
        baseline(name, BASE, "hash", cluster((12,) * 3), rows, limits)


def test_no_memory_at_all():
    for name in NAMES:
        with pytest.raises(CapacityError, match="lacks"):
            baseline(name, BASE, "hash", cluster((12,) * 3), 128, (0, 0, 0))
