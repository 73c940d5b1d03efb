"""Prices against numbers worked out by hand, and what must hold for all of them."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from clusters import cluster, node, square

from hepti_mpi import splits
from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.models.random_models import random_model
from hepti_mpi.planning.cost import Pricer, activation_bytes, activation_widths
from hepti_mpi.planning.plan import Plan
from hepti_mpi.planning.program import Op, Sync, buffers, distributions, make_program

SPEC = replace(random_model("bert-base").spec, layers=3, hidden=72, heads=9, ffn=203)
ROWS = 97
LAYOUTS = list(product(("heads", "rows"), ("columns", "rows")))


def plan_of(pair, shares, reduction="allreduce", rows=ROWS, spec=SPEC):
    heads, columns = splits.split(spec.heads, shares), splits.split(spec.ffn, shares, spec.column_granule)
    nothing = (0,) * len(shares)
    counts = (heads if pair[0] == "heads" else nothing, columns if pair[1] == "columns" else nothing, splits.split(rows, shares))
    return Plan(spec.name, "hash", (pair,) * spec.layers, *counts, ("a",) * len(shares), ("packed",) * len(shares), reduction)


def price(profile, plan, rows=ROWS, spec=SPEC):
    return Pricer(spec, profile, rows).price(make_program(spec, plan), plan)


def simple(ranks=2, **fields):
    """Boards of 1 ns a weight and row, 2 ns a multiply-add of attention, 3 ns an element, 1 us a segment."""
    board = replace(node(1), gemm_rows=(1, 100), gemm_seconds_per_weight=(1e-9, 100e-9),
                    attention_seconds_per_mac=2e-9, element_seconds=3e-9,
                    segment_seconds=1e-6, **fields)  # fmt: skip
    nodes = tuple(replace(board, host=f"pi{rank}") for rank in range(ranks))
    return ClusterProfile(nodes, square(ranks, 1e-4), square(ranks, 1e7), {}, (1, 1))


@pytest.mark.parametrize("kind, weights, attention, elements", [
    ("attention_heads", 4 * 72 * 40, 2 * 9 * 40, 0),  # 5 of 9 heads of 8
    ("mlp_columns", 2 * 72 * 102, 0, 102),
    ("mlp_rows", 2 * 72 * 203, 0, 203),
    ("project", 3 * 72 * 72, 0, 0),
    ("attend", 72 * 72, 2 * 9 * 72, 0),
    ("norm", 0, 0, 72),
    ("tail", 0, 0, 72),
])  # fmt: skip
def test_an_operation(kind, weights, attention, elements):
    """Rank 0 has 5 of 9 heads and 102 of 203 columns; 7 rows that attend to 9."""
    plan = plan_of(("heads", "columns"), (1, 1))
    pricer = Pricer(SPEC, simple(), ROWS, attended=9)
    seconds = pricer.op_seconds(Op(kind, 0, (), ()), np.array([7, 7]), plan, np.array([0, 1]))
    assert seconds[0] == pytest.approx(7 * (weights * 1e-9 + attention * 2e-9 + elements * 3e-9))


@pytest.mark.parametrize("kind, blocks, seconds, moved", [
    ("allreduce", (30_000, 60_000), 2 * (1e-4 + 45_000e-7), 180_000),
    ("allreduce", (1000, 2000), 1e-4 + 3000e-7, 6000),
    ("allgatherv", (30_000, 60_000), 1e-4 + 60_000e-7, 90_000),
    ("reduce_scatter", (30_000, 60_000), 1e-4 + 60_000e-7, 90_000),
    ("bcast", (30_000, 60_000), 1e-4 + 90_000e-7, 90_000),
    ("scatterv", (30_000, 60_000), 1e-4 + 60_000e-7, 60_000),
    ("gatherv", (30_000, 60_000), 1e-4 + 60_000e-7, 60_000),
    ("slice", (30_000, 60_000), 0, 0),
])  # fmt: skip
def test_an_exchange(kind, blocks, seconds, moved):
    pricer = Pricer(SPEC, simple(), ROWS)
    found = pricer.sync_seconds(Sync(kind, "a", "b"), plan_of(LAYOUTS[0], (1, 1)), np.array(blocks), np.array([0, 1]))
    assert found == (pytest.approx(seconds), moved)


def test_a_lone_rank_exchanges_with_the_root_only():
    pricer, plan = Pricer(SPEC, simple(), ROWS), plan_of(LAYOUTS[0], (0, 1))
    for kind in ("allreduce", "allgatherv", "reduce_scatter"):
        assert pricer.sync_seconds(Sync(kind, "a", "b"), plan, np.array([60_000]), np.array([1])) == (0.0, 0)
    for kind in ("bcast", "scatterv", "gatherv"):
        assert pricer.sync_seconds(Sync(kind, "a", "b"), plan, np.array([60_000]), np.array([1])) == (pytest.approx(6.1e-3), 60_000)
        assert pricer.sync_seconds(Sync(kind, "a", "b"), plan, np.array([60_000]), np.array([0])) == (0.0, 0)


def test_a_whole_program_on_one_rank():
    """One segment: all products, attention, activations and 2 LayerNorms a layer, nothing else."""
    spec, rows = SPEC, 9
    result = price(simple(1), plan_of(LAYOUTS[0], (1,), rows=rows), rows)
    weights = spec.layers * (4 * 72 * 72 + 2 * 72 * 203)
    macs = spec.layers * 2 * rows * rows * 72
    elements = spec.layers * rows * (203 + 2 * 72)
    assert result.seconds == pytest.approx(rows * weights * 1e-9 + macs * 2e-9 + elements * 3e-9 + 1e-6)
    assert (result.wire, result.bytes, result.wait[0]) == (0, 0, 0) and result.compute[0] == result.seconds


@pytest.mark.parametrize("rows, expected", [(1, 5.0), (3, 7.0), (5, 9.0), (9, 17.0), (0, 0.0)])
def test_the_curve_between_and_beyond_what_was_measured(rows, expected):
    profile = simple(
        1,
    )
    board = replace(profile.nodes[0], gemm_rows=(1, 5), gemm_seconds_per_weight=(5.0, 9.0))
    curve = Pricer(SPEC, replace(profile, nodes=(board,)), 9).gemm[0]
    assert len(curve) == 10 and (np.diff(curve) >= 0).all()
    assert curve[rows] == pytest.approx(expected, rel=0.25 if rows == 9 else 1e-9)


@pytest.mark.parametrize("reduction", ["allreduce", "reduce_scatter"])
@pytest.mark.parametrize("shares", [(1,), (5, 1, 1, 1), (1, 0, 3), (0, 1)])
@pytest.mark.parametrize("pair", LAYOUTS)
def test_what_holds_for_every_plan(pair, shares, reduction):
    speeds = (9, 7, 20, 3)[: len(shares)]
    plan = plan_of(pair, shares, reduction)
    result = price(cluster(speeds), plan)
    assert result.seconds > 0 and result.bytes >= 0
    assert (result.wait >= 0).all() and (result.compute >= 0).all()
    for rank in range(plan.ranks):  # compute + waiting + wire is the whole time of a rank that takes part
        spent = result.compute[rank] + result.wait[rank] + result.wire
        assert spent == pytest.approx(result.seconds) if rank in plan.active else result.compute[rank] == result.wait[rank] == 0
    slower_link = price(cluster(speeds, mbit=100), plan)
    later_link = price(cluster(speeds, latency=1e-3), plan)
    slower_boards = price(cluster(tuple(speed / 2 for speed in speeds)), plan)
    exchanges = len(plan.active) > 1 or 0 not in plan.active
    assert (slower_link.seconds > result.seconds and later_link.seconds > result.seconds) is exchanges
    assert slower_boards.seconds > result.seconds and slower_boards.bytes == slower_link.bytes == result.bytes
    assert price(cluster(speeds), plan, ROWS * 2).seconds > result.seconds


def test_ranks_on_one_board_share_its_cores():
    """Two ranks of 4 threads on one board of 4 cores take twice as long as on two boards."""
    plan = plan_of(("rows", "rows"), (1, 1))
    apart, together = (Pricer(SPEC, cluster((9, 9), hosts=hosts), ROWS) for hosts in (["a", "b"], ["a", "a"]))
    assert apart.crowding((0, 1)).tolist() == [1, 1]
    busy, free = together.crowding((0, 1)), together.crowding((0,))
    assert busy[0] / free[0] == pytest.approx(2) and busy[0] == busy[1]
    assert plan.active == (0, 1)


@pytest.mark.parametrize("pair", LAYOUTS)
def test_activation_widths_count_every_buffer_once(pair):
    program = make_program(SPEC, plan_of(pair, (2, 1)))
    full, own = activation_widths(SPEC, program)
    shapes, numbers = distributions(program), buffers(program)
    each = {number: shapes[name] for name, number in numbers.items()}
    assert full == sum(width for at, width in each.values() if at == "full") * SPEC.hidden
    assert own == sum(width for at, width in each.values() if at == "rows") * SPEC.hidden
    need = activation_bytes(SPEC, (full, own), 9, 9, np.array([0, 4, 9]), np.zeros(3))
    assert (np.diff(need) > 0).all() == (own > 0)
    assert need[0] >= (full * 9 + 9 * SPEC.ffn) * 4
    scores = activation_bytes(SPEC, (full, own), 9, 9, np.array([0, 4, 9]), np.array([0, 0.5, 1])) - need
    assert scores.tolist() == [0, 4 * SPEC.heads * 81, 8 * SPEC.heads * 81]
    padded = [activation_bytes(SPEC, (full, own), 9, 7, np.zeros(1), np.full(1, part))[0] for part in (0, 1)]
    assert padded[1] - padded[0] >= 8 * SPEC.heads * 63
