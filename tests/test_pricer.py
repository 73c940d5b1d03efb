"""Prices against numbers worked out by hand or counted one by one, and what must hold for all of them."""

from dataclasses import replace
from itertools import product

import made_plans
import numpy as np
import pytest
from clusters import cluster, node, square
from layers import sized
from operations import operations

from hepti_mpi import splits
from hepti_mpi.cluster.profile import EMULATION, ClusterProfile
from hepti_mpi.comm.sizes import FLOAT, RING_BYTES
from hepti_mpi.models import blocks
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning import traffic, walk
from hepti_mpi.planning.memory import activation_bytes, activation_widths
from hepti_mpi.planning.pricer import Pricer, extended
from hepti_mpi.planning.prices import Prices
from hepti_mpi.planning.traffic import RING_GAIN, Shares, facts_of, groups, numbers
from hepti_mpi.planning.work import bytes_of_number
from hepti_mpi.program.buffers import Laid, buffers, distributions
from hepti_mpi.program.build import make_program
from hepti_mpi.program.operation import Share
from hepti_mpi.program.ops import Cast, Norm
from hepti_mpi.program.ownership import EXCHANGES, Held, boxes, cells
from hepti_mpi.program.plan import LAYOUTS as ALL_LAYOUTS
from hepti_mpi.program.steps import OUTER, Compute, Sync

SPEC = sized(random_model("bert-base").spec, layers=3, hidden=72, heads=9, ffn=203)
ROWS = 97
LAYOUTS = list(product(("heads", "rows"), ("columns", "rows")))  # of MPI's collectives
OWN_LAYOUTS = [pair for pair in product(*ALL_LAYOUTS.values()) if pair[0] != "local"]


def plan_of(pair, shares, reduction="allreduce", rows=ROWS, spec=SPEC, tiles=1, counts=None, **fields):
    """A plan by shares; `counts`: the rows themselves; `tiles`: into how many those of each rank are cut."""
    own = counts or splits.split(rows, shares)
    cut = tuple(zip(*(splits.even(count, tiles) for count in own)))
    return made_plans.plan_of(spec, pair, shares, total=sum(own), tiles=cut, reduction=reduction, **fields)


def own_plan(pair, shares, **options):
    return plan_of(pair, shares, "reduce_scatter", collectives="own", **options)


def price(profile, plan, rows=None, spec=SPEC):
    return Pricer(spec, profile, rows or plan.planned_rows).price(make_program(spec, plan), plan)


def simple(ranks=2, latency=1e-4, rate=1e7, exchange=0.0, **fields):
    """Boards of 1 ns a weight and row, 2 ns a multiply-add of attention, 3 ns an element, 1.5 to cast it, 1 us a segment."""
    board = replace(node(1), gemm_rows=(1, 100), gemm_seconds_per_weight=(1e-9, 100e-9),
                    attention_seconds_per_mac=2e-9, element_seconds=3e-9, cast_seconds=1.5e-9, activation_seconds=3e-9,
                    segment_seconds=1e-6, **fields)  # fmt: skip
    nodes = tuple(replace(board, host=f"pi{rank}") for rank in range(ranks))
    return ClusterProfile(nodes, square(ranks, latency), square(ranks, rate), {}, (1, 1), exchange)


def without_copies(pricer):
    """Copies and sums around exchanges take no time, but casts do."""
    pricer.handling = traffic.Handling(0 * pricer.handling.call, 0 * pricer.handling.byte, pricer.handling.cast)
    return pricer


def with_head_start(profile, amount):
    return replace(profile, nodes=tuple(replace(one, head_start_bytes=float(amount)) for one in profile.nodes))


def norm(read, write):
    return Norm(0, (read,), (write,), blocks.Norm(SPEC.hidden, 1e-12), "")


def lone(kind, values=1, wire="float32"):
    """A program of one exchange."""
    reads, writes = (tuple(f"{name}{n}" for n in range(values)) for name in "ab")
    if wire == "float32" or kind in OUTER:
        return (Sync(kind, reads, writes, width=SPEC.hidden),)
    scales = SPEC.heads if wire == "int8" else 0
    short, came = (tuple(f"{name}.{part}" for name in names for part in range(2 if scales else 1)) for names in (reads, writes))
    if kind == "reduce_scatter":
        short, came = (*reads, *short), writes
    return (Sync(kind, short, came, 0, SPEC.hidden, wire, scales),)


WIDTHS = {"float32": SPEC.hidden * 4, "float16": SPEC.hidden * 2, "int8": SPEC.hidden + 4 * SPEC.heads}  # bytes of a row


# computing


@pytest.mark.parametrize("kind, weights, attention, elements", [
    ("project_qkv_heads", 3 * 72 * 40, 0, 0),  # 5 of 9 heads of 8
    ("mix_heads", 0, 2 * 9 * 40, 0),
    ("out_heads", 72 * 40, 0, 0),
    ("project_qkv", 3 * 72 * 72, 0, 0),
    ("project_q", 72 * 72, 0, 0),
    ("project_kv", 2 * 72 * 72, 0, 0),
    ("mix", 0, 2 * 9 * 72, 0),
    ("out", 72 * 72, 0, 0),
    ("mlp_columns", 2 * 72 * 102, 0, 102),
    ("mlp", 2 * 72 * 203, 0, 203),
    ("norm", 0, 0, 72),
    ("add_norm", 0, 0, 72),
    ("to_float16", 0, 0, 2 * 72 * 0.5),
    ("to_float16_heads", 0, 0, 2 * 40 * 0.5),
    ("to_int8", 0, 0, 72 * 1.5),
    ("from_int8_heads", 0, 0, 40 * 1.5),
])  # fmt: skip
def test_an_operation(kind, weights, attention, elements):
    """Rank 0 has 5 of 9 heads and 102 of 203 columns; 7 rows that attend to 9; a cast of two values."""
    plan = plan_of(("heads", "columns"), (1, 1))
    pricer, rows = Pricer(SPEC, simple(), ROWS, attended=9), np.array([7, 7])
    share = Share(rows, 9 * rows, np.array(plan.heads), np.array(plan.columns))
    seconds = pricer.op_seconds([operations(SPEC)[kind]], share, pricer.speeds_at(np.arange(2), rows))
    assert seconds[0] == pytest.approx(7 * (weights * 1e-9 + attention * 2e-9 + elements * 3e-9))


def test_every_cast_is_priced_by_what_it_casts():
    """Keys and values go to the ranks of their heads two at a time, queries alone."""
    plan = own_plan(("alltoall", "rows"), (1, 1), wire="float16")
    profile = simple(2)
    free = replace(profile, nodes=tuple(replace(one, cast_seconds=0.0) for one in profile.nodes))
    every = [op for step in make_program(SPEC, plan) if isinstance(step, Compute) for op in step.ops if isinstance(op, Cast)]
    casts, there, back = (sum(len(op.reads) for op in every if (op.dtype, op.axis) == kind)
                          for kind in (("float16", None), ("float32", "heads"), ("float16", "heads")))  # fmt: skip
    assert (casts, there, back) == (3 * SPEC.layers, 3 * SPEC.layers, SPEC.layers)
    rows, wide = plan.rows[0], plan.heads[0] * SPEC.head_dim
    elements = rows * SPEC.hidden * (casts + back) + ROWS * wide * (there + back)
    assert price(profile, plan).compute[0] - price(free, plan).compute[0] == pytest.approx(1.5e-9 * elements)


def test_a_whole_program_on_one_rank():
    """One segment: all products, attention, activations and 2 LayerNorms a layer, nothing else."""
    spec, rows = SPEC, 9
    for collectives in ("mpi", "own"):
        result = price(simple(1), plan_of(LAYOUTS[0], (1,), "reduce_scatter", rows=rows, collectives=collectives))
        weights = spec.layers * (4 * 72 * 72 + 2 * 72 * 203)
        macs = spec.layers * 2 * rows * rows * 72
        elements = spec.layers * rows * (203 + 2 * 72)
        assert result.seconds == pytest.approx(rows * weights * 1e-9 + macs * 2e-9 + elements * 3e-9 + 1e-6)
        assert (result.wire, result.bytes, result.wait[0]) == (0, 0, 0) and result.compute[0] == result.seconds


@pytest.mark.parametrize("rows, expected", [(1, 5.0), (3, 7.0), (5, 9.0), (9, 17.0), (0, 0.0)])
def test_the_curve_between_and_beyond_what_was_measured(rows, expected):
    profile = simple(1)
    board = replace(profile.nodes[0], gemm_rows=(1, 5), gemm_seconds_per_weight=(5.0, 9.0))
    curve = Pricer(SPEC, replace(profile, nodes=(board,)), 9).gemm[0]
    assert len(curve) == 10 and (np.diff(curve) >= 0).all()
    assert curve[rows] == pytest.approx(expected, rel=0.25 if rows == 9 else 1e-9)


def test_ranks_on_one_board_share_its_cores():
    """Two ranks of 4 threads on one board of 4 cores take twice as long as on two boards; emulated ones do not."""
    apart, together = (Pricer(SPEC, cluster((9, 9), hosts=hosts), ROWS) for hosts in (["a", "b"], ["a", "a"]))
    assert apart.crowding((0, 1)).tolist() == [1, 1]
    busy, free = together.crowding((0, 1)), together.crowding((0,))
    assert busy[0] / free[0] == pytest.approx(2) and busy[0] == busy[1]
    emulated = replace(together.profile, versions={"emulation": "2,3"})
    assert Pricer(SPEC, emulated, ROWS).crowding((0, 1)).tolist() == [1, 1]


@pytest.mark.parametrize("hosts", ["aabb", "abab", "aaab", "abbb", "aabc"])
@pytest.mark.parametrize("pair", OWN_LAYOUTS)
def test_ranks_that_share_a_host_have_a_price(hosts, pair):
    """A result that goes to rank 0 keeps the link of its mates busy; they wait for nothing."""
    shared = cluster((9,) * 4, hosts=list(hosts))
    result = price(shared, own_plan(pair, (3, 2, 2, 2)))
    assert np.isfinite(result.seconds) and np.isfinite(result.wait).all()
    assert result.seconds >= result.compute.max()


# MPI's collectives


@pytest.mark.parametrize("kind, rows, seconds, moved", [
    ("allreduce", (100, 200), 2 * (1e-4 + 43_200e-7), 172_800),
    ("allreduce", (8, 16), 1e-4 + 6912e-7, 13_824),  # a small one is halved and doubled
    ("allgatherv", (100, 200), 1e-4 + 57_600e-7, 86_400),
    ("reduce_scatter", (100, 200), 1e-4 + 57_600e-7, 86_400),
    ("bcast", (100, 200), 1e-4 + 86_400e-7, 86_400),
    ("scatterv", (100, 200), 1e-4 + 57_600e-7, 57_600),
    ("gatherv", (100, 200), 1e-4 + 57_600e-7, 57_600),
    ("slice", (100, 200), 0, 0),
])  # fmt: skip
@pytest.mark.parametrize("exchange", [0, 3e-4])
def test_a_collective(kind, rows, seconds, moved, exchange):
    """288 bytes a row; what an exchange costs a rank anyway comes on top."""
    plan = plan_of(LAYOUTS[0], (1, 1), counts=rows)
    result = Pricer(SPEC, simple(exchange=exchange), sum(rows)).price(lone(kind), plan)
    assert result.seconds == pytest.approx(seconds + exchange * (moved > 0)) and result.bytes == moved


def test_a_lone_rank_exchanges_with_the_root_only():
    for rank in (0, 1):
        plan = plan_of(LAYOUTS[0], (rank == 0, rank == 1), counts=(200 * (rank == 0), 200 * (rank == 1)))
        for kind in ("allreduce", "allgatherv", "reduce_scatter", "bcast", "scatterv", "gatherv"):
            result = Pricer(SPEC, simple(), 200).price(lone(kind), plan)
            far = rank == 1 and kind in ("bcast", "scatterv", "gatherv")
            assert (result.seconds, result.bytes) == ((pytest.approx(5.86e-3), 57_600) if far else (0, 0))


# our own exchanges


def moved_bytes(kind, rows, heads, wire="float32"):
    """[from, to] bytes, counted row by row and head by head."""
    ranks, width = len(rows), WIDTHS[wire]
    result = np.zeros((ranks, ranks))
    for i, j in product(range(ranks), repeat=2):
        if i != j:
            result[i, j] = {
                "allgatherv": rows[i] * width,
                "reduce_scatter": rows[j] * width,
                "to_heads": sum(heads[j] / sum(heads) * width for _ in range(rows[i])),
                "to_rows": sum(heads[i] / sum(heads) * width for _ in range(rows[j])),
                "bcast": (i == 0) * sum(rows) * SPEC.hidden * FLOAT,
                "scatterv": (i == 0) * rows[j] * SPEC.hidden * FLOAT,
                "gatherv": (j == 0) * rows[i] * SPEC.hidden * FLOAT,
            }[kind]
    return result


KINDS = ("allgatherv", "reduce_scatter", "to_heads", "to_rows", "bcast", "scatterv", "gatherv")


@pytest.mark.parametrize("wire", WIDTHS)
@pytest.mark.parametrize("rows", [(30, 30), (70, 30), (33, 30, 28), (20, 21, 22, 23), (10,) * 6])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [1, 3])
def test_an_exchange_of_our_own(kind, rows, wire, values):
    """Its bytes, and the seconds of the busiest link."""
    if kind in ("bcast", "scatterv", "gatherv") and values > 1:
        return
    plan = own_plan(("alltoall", "rows"), rows, counts=rows, wire=wire)
    result = Pricer(SPEC, simple(len(rows), exchange=1e-3), sum(rows)).price(lone(kind, values, wire), plan)
    expected = values * moved_bytes(kind, rows, plan.heads, wire)
    assert result.bytes == pytest.approx(expected.sum(), abs=1)
    assert result.wire == pytest.approx(max(expected.sum(axis=0).max(), expected.sum(axis=1).max()) / 1e7)


@pytest.mark.parametrize("rows", [(30, 30), (70, 30), (33, 30, 28), (20, 21, 22, 23)])
@pytest.mark.parametrize("kind", KINDS[:4])
def test_a_short_wire_takes_less(kind, rows):
    """Adding what came of a sum takes a rank for each number what a cast does: 1.5 ns here, three times as long from int8."""
    pricer, plan = without_copies(Pricer(SPEC, simple(len(rows)), sum(rows))), own_plan(("alltoall", "rows"), rows, counts=rows)
    read = Compute((norm("b0", "c"),), "rows", ("b0",), ("c",))
    full, *short = (pricer.price((*lone(kind, wire=wire), read), plan) for wire in WIDTHS)
    for one, wire, casts in zip(short, ("float16", "int8"), (1, 3)):
        part = WIDTHS[wire] / WIDTHS["float32"]
        assert (one.wire, one.bytes) == (pytest.approx(full.wire * part), pytest.approx(full.bytes * part, abs=1))
        if kind == "reduce_scatter" and len(set(rows)) == 1:
            added = casts * 1.5e-9 * (len(rows) - 1) * rows[0] * SPEC.hidden
            assert one.seconds == pytest.approx(full.seconds + one.wire - full.wire + added)


@pytest.mark.parametrize("kind, copied", [("allgatherv", 2), ("reduce_scatter", 2 + 2 * 2)])
def test_copies_and_sums_take_their_rank_time(kind, copied):
    """Of a gather a rank copies its own rows to where all are, of a sum its own term, to which it adds two others: on no link."""
    rows = (30, 30, 30)
    read, plan = Compute((norm("b0", "c"),), "rows", ("b0",), ("c",)), own_plan(("alltoall", "rows"), rows, counts=rows)
    usual = Pricer(SPEC, simple(3), sum(rows))
    with_, free = (one.price((*lone(kind), read), plan) for one in (usual, without_copies(Pricer(SPEC, simple(3), sum(rows)))))
    more = 1e-6 + copied * rows[0] * SPEC.hidden * FLOAT * usual.handling.byte[0]
    assert usual.handling.byte[0] == pytest.approx(1e-9 / bytes_of_number(SPEC))  # what a product of one row takes to read a byte
    assert with_.seconds == pytest.approx(free.seconds + more)
    assert (with_.wait, with_.wire) == (pytest.approx(free.wait), free.wire)


@pytest.mark.parametrize("begun, done", [((1, 1), 1.4), ((0, 1), 1.2), ((1.1, 1), 1.4), ((-np.inf, 1), 1.2)])
def test_a_late_block_finds_no_time_that_its_link_was_idle(begun, done):
    """Two blocks for one rank, which keep its link busy for 0.2 s each."""
    begins, loads = np.array(begun, dtype=float).reshape(2, 1, 1), np.array([[[0.2 * (begun[0] >= 0)]], [[0.2]]])
    assert walk._one_by_one(begins, loads).item() == pytest.approx(done)
    assert walk._one_by_one(begins, np.tensordot(groups(2), loads, 1)).item() == pytest.approx(done)


@pytest.mark.parametrize("givers", [3, 4])
def test_blocks_of_few_are_told_by_their_groups_as_by_each(givers):
    random = np.random.default_rng(givers)
    begun, loads = random.uniform(0, 3, (givers, 5, 40)), random.uniform(0, 1, (givers, 5, 40))
    begun[random.uniform(size=begun.shape) < 0.2] = -np.inf
    loads[np.isinf(begun)] = 0
    assert walk._one_by_one(begun, np.tensordot(groups(givers), loads, 1)) == pytest.approx(walk._one_by_one(begun, loads))


@pytest.mark.parametrize("rows", [(40, 30, 20, 7), (97, 0, 0), (50, 47)])
def test_alltoall_moves_what_is_not_where_it_is_needed(rows):
    """Q, K, V and what attention makes of them: one head of one row travels when who has the row does not have the head."""
    plan = own_plan(("alltoall", "rows"), rows, counts=rows)
    result = price(simple(len(rows)), plan)
    owner_of_row = np.repeat(range(len(rows)), rows)
    owner_of_head = np.repeat(range(len(rows)), plan.heads)
    apart = int((owner_of_row[:, None] != owner_of_head[None, :]).sum())
    outer = 2 * (sum(rows) - rows[0]) * SPEC.hidden * FLOAT
    assert result.bytes == pytest.approx(SPEC.layers * 4 * apart * SPEC.head_dim * FLOAT + outer, abs=SPEC.layers * 4)


@pytest.mark.parametrize("kind, wire, rows, ring", [
    ("allgatherv", "float32", (90, 3, 4), True),
    ("allgatherv", "float16", (90, 3, 4), True),
    ("reduce_scatter", "float32", (90, 3, 4), True),
    ("reduce_scatter", "float16", (90, 3, 4), False),  # it would round at each rank on the way
    ("allgatherv", "float32", (33, 32, 32), False),
    ("reduce_scatter", "float32", (33, 32, 32), False),
    ("allgatherv", "float32", (90, 7), False),  # of two there is no ring
])  # fmt: skip
def test_uneven_blocks_go_round(kind, wire, rows, ring):
    """Directly the busiest link carries the largest block once for each other rank; round it carries each but the smallest once."""
    plan = own_plan(("rows", "rows"), rows, counts=rows, wire=wire)
    width, profile = WIDTHS[wire], simple(len(rows), exchange=1e-3)
    (exchange,) = lone(kind, wire=wire)
    read = Compute((norm("b0", "c"),), "rows", reads=exchange.writes, writes=("c",))
    result = without_copies(Pricer(SPEC, profile, sum(rows))).price((exchange, read), plan)
    heaviest = sum(rows) - min(rows) if ring else (len(rows) - 1) * max(rows)
    assert result.wire == pytest.approx(heaviest * width / 1e7)
    assert result.bytes == pytest.approx((len(rows) - 1) * sum(rows) * width)
    if kind == "reduce_scatter" and wire != "float32":
        return  # what came is added
    waited, start_up = result.wait.max(), 1e-3 + ((len(rows) - 2) * (1e-4 + RING_BYTES / 1e7) if ring else 0)
    assert waited == pytest.approx(result.wire + start_up, abs=5 * width / 1e7 if ring else 1e-9)  # the large block is passed on last


@pytest.mark.parametrize("kind, wire, rows, ring", [
    ("allgatherv", "float32", (33, 32, 32), True),
    ("reduce_scatter", "float32", (32, 33, 32), True),
    ("reduce_scatter", "float16", (33, 32, 32), False),
    ("allgatherv", "float32", (32, 32, 32), False),
    ("allgatherv", "float32", (33, 32), False),
])  # fmt: skip
def test_long_blocks_go_round_where_they_are_alike_too(kind, wire, rows, ring, monkeypatch):
    """Of blocks that are alike the busiest link carries as much both ways; rows that differ a little tell which way it is."""
    monkeypatch.setattr(traffic, "RING_BLOCK", 33 * WIDTHS["float32"])
    plan = own_plan(("rows", "rows"), rows, counts=rows, wire=wire)
    result = Pricer(SPEC, simple(len(rows)), sum(rows)).price(lone(kind, wire=wire), plan)
    heaviest = sum(rows) - min(rows) if ring else (len(rows) - 1) * max(rows)
    assert result.wire == pytest.approx(heaviest * WIDTHS[wire] / 1e7)


def test_what_came_early_goes_round_while_one_still_computes():
    """Of 80 rows, 70 pass the busiest link; a late rank begins late to pass on what came: 50 go from rank 2 to rank 0 after that."""
    rows, profile = (30, 10, 40), replace(cluster((9, 9, 9), mbit=80, latency=1e-9), exchange_seconds=0.0)
    plan, norms = own_plan(("rows", "rows"), rows, counts=rows), [norm("a0", "a0")] * 1000
    work = Compute((norm("x0", "a0"), *norms), "rows", reads=("x0",), writes=("a0",))
    read = Compute((norm("b0", "c"),), "rows", reads=("b0",), writes=("c",))
    result = Pricer(SPEC, profile, sum(rows)).price((work, *lone("allgatherv"), read), plan)
    row, late = SPEC.hidden * 4 / (80e6 / 8), result.compute.max()
    assert late > 100 * row
    assert 50 * row <= result.seconds - late <= 50 * row + 2 * RING_BYTES / 1e7


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_emulated_boards_wait_for_each_collective(ranks):
    """A whole sum puts 2 (n - 1) / n of it on each link; who comes early to it computes nothing meanwhile."""
    rows = (30,) * ranks
    profile = replace(cluster((9,) * ranks, mbit=80, latency=1e-9), versions={"emulation": ",".join("1" * ranks)}, exchange_seconds=0.0)
    plan = plan_of(("heads", "columns"), (1,) * ranks, counts=rows)
    program = make_program(SPEC, plan)
    result = without_copies(Pricer(SPEC, profile, sum(rows))).price(program, plan)
    sums = sum(isinstance(step, Sync) and step.kind == "allreduce" for step in program)
    block = (ranks - 1) * 30 * SPEC.hidden * 4 / (80e6 / 8)
    wire = block * (2 * sums + 1 + 1 + ranks)  # the last sum is scattered, then gathered by the root, which sent the input to each
    assert sums == 5 and result.seconds == pytest.approx(result.compute.max() + wire, rel=1e-2)


def test_a_head_start_helps_where_all_send_and_receive_at_once():
    plan, profile = plan_of(("rows", "rows"), (1, 1, 1)), replace(simple(3), versions={"emulation": "1,1,1"})
    profiles = with_head_start(profile, 2000), profile
    rested, usual = (Pricer(SPEC, one, ROWS).price(lone("allgatherv"), plan).seconds for one in profiles)
    assert usual - rested == pytest.approx(2000 / 1e7)


def test_a_thin_link_that_has_rested_is_ahead_by_its_own_rate_where_a_faster_neighbour_sends_into_it():
    """Once voltage's price was 14 % too high, on a ring whose links go into and out of one of a tenth of their rate."""
    plan, profile = plan_of(("rows", "rows"), (1, 1, 1)), replace(simple(3), versions={"emulation": "1,1,1"})
    rates = np.array(profile.bytes_per_second)
    rates[2, :2] = rates[:2, 2] = 1e6
    profile = replace(profile, bytes_per_second=tuple(map(tuple, rates.tolist())))
    rested, usual = (Pricer(SPEC, one, ROWS).price(lone("allgatherv"), plan).seconds for one in (with_head_start(profile, 2000), profile))
    assert usual - rested == pytest.approx(2000 / 1e6)


@pytest.mark.parametrize("tiles", [1, 2, 3])
@pytest.mark.parametrize("mbit", [5, 100, 5000])
@pytest.mark.parametrize("pair", OWN_LAYOUTS, ids="/".join)
def test_wire_and_computing_go_on_at_once(pair, mbit, tiles):
    """Equal boards: never sooner than either alone, never later than one after the other."""
    profile = cluster((9,) * 3, mbit=mbit, latency=1e-4)
    plan = own_plan(pair, (1, 1, 1), rows=96, tiles=tiles)
    program = make_program(SPEC, plan)
    result = without_copies(Pricer(SPEC, profile, 96)).price(program, plan)
    exchanges = sum(isinstance(step, Sync) for step in program)
    assert result.seconds >= max(result.compute.max(), result.busy) * (1 - 1e-9)  # a tile goes out while another one comes in
    assert result.seconds <= result.compute.max() + result.wire + exchanges * profile.exchange_seconds + 1e-9
    assert (result.compute + result.wait <= result.seconds + 1e-9).all()


@pytest.mark.parametrize("pair", [("heads", "columns"), ("heads", "rows"), ("rows", "rows")], ids="/".join)
def test_tiles_hide_the_wire(pair):
    """Where wire and computing take about as long; the curve of products is a line, so that cutting costs nothing."""
    profile = simple(2, rate=4e7)
    whole, cut = (price(profile, own_plan(pair, (1, 1), rows=96, tiles=tiles)) for tiles in (1, 2))
    assert cut.bytes == whole.bytes and cut.wire == pytest.approx(whole.wire)
    assert cut.seconds < whole.seconds and cut.wait.max() < whole.wait.max()


@pytest.mark.parametrize("pair", OWN_LAYOUTS, ids="/".join)
def test_a_head_start_helps_but_does_not_make_a_link_faster(pair):
    profile, plan = simple(3, rate=1e6), own_plan(pair, (1, 1, 1), rows=96)
    back = 64 * 288 / 1e6  # of the result to the root: the one exchange that goes one way only
    seconds = []
    for amount in (0, 1e3, 1e4, 1e5, 1e9):
        result = price(with_head_start(profile, amount), plan)
        seconds.append(result.seconds)
        assert result.seconds >= max(result.compute.max(), result.wire - back - amount / 1e6) * (1 - 1e-9)
        assert result.wire == price(profile, plan).wire
    assert seconds == sorted(seconds, reverse=True) and seconds[0] > seconds[-1]


def test_what_fits_into_the_head_start_is_there_at_once():
    rows = (30, 30, 30)
    plan = own_plan(("rows", "rows"), rows, counts=rows)
    read = Compute((norm("b0", "c"),), "rows", reads=("b0",), writes=("c",))
    waits = []
    for amount in (0, 2 * 30 * 288 - 1000, 2 * 30 * 288):
        profile = with_head_start(simple(3, exchange=1e-3), amount)
        waits.append(Pricer(SPEC, profile, 90).price((*lone("allgatherv"), read), plan).wait.max())
    assert waits == pytest.approx([1e-3 + 17_280e-7, 1e-3 + 1000e-7, 1e-3])


def test_starting_an_exchange_keeps_a_rank_busy():
    """30 us a start and 1 ns a byte that is sent, before anything travels."""
    rows = (40, 40, 40)
    plan = own_plan(("rows", "rows"), (1, 1, 1), counts=rows)
    read = Compute((norm("b0", "c"),), "full", reads=("b0",), writes=("c",))
    free = simple(3)
    busy = replace(free, start_seconds=30e-6, start_seconds_per_byte=1e-9)
    before, after = (Pricer(SPEC, profile, 120).price((*lone("allgatherv"), read), plan) for profile in (free, busy))
    assert after.bytes == before.bytes and after.wire == before.wire
    assert after.seconds - before.seconds == pytest.approx(30e-6 + 1e-9 * 2 * 40 * 288)
    assert price(busy, own_plan(("heads", "rows"), (3, 2, 1))).seconds > price(free, own_plan(("heads", "rows"), (3, 2, 1))).seconds


def test_the_link_of_a_root_without_a_part_counts():
    profile, plan = simple(3), own_plan(("rows", "rows"), (0, 1, 1))
    rates = np.array(profile.bytes_per_second)
    rates[0, 1:] = rates[1:, 0] = 1e5
    slow = replace(profile, bytes_per_second=tuple(map(tuple, rates.tolist())))
    assert price(slow, plan).seconds > price(profile, plan).seconds + 97 * 288 / 1e5
    assert price(slow, plan).bytes == price(profile, plan).bytes


@pytest.mark.parametrize("rows", [(8,) * 8, (9, 8, 8, 8, 8, 8, 8, 7), (20, 8, 8, 8, 5, 5, 5, 5)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_many_ranks_are_priced_by_sums(kind, rows, monkeypatch):
    """The sums leave out that the first piece of a block passes all others on its way round a ring."""
    plan, profile = own_plan(("alltoall", "rows"), rows, counts=rows), simple(8, exchange=1e-3)
    read = Compute((norm("b0", "c"),), "rows", reads=("b0",), writes=("c",))
    program = lone(kind) if kind == "gatherv" else (*lone(kind), read)
    exact = Pricer(SPEC, profile, 64).price(program, plan)
    monkeypatch.setattr(traffic, "FAIR", 4)
    rough = Pricer(SPEC, profile, 64).price(program, plan)
    assert (rough.bytes, rough.wire) == (pytest.approx(exact.bytes, abs=1), pytest.approx(exact.wire))
    passed = 6 * (RING_BYTES / profile.bytes_per_second[0][1] + profile.latency_seconds[0][1])
    round_ = kind in ("allgatherv", "reduce_scatter") and 7 * max(rows) > RING_GAIN * (64 - min(rows))
    assert rough.seconds + passed * round_ == pytest.approx(exact.seconds, rel=0.15)


def test_ranks_of_a_host_share_its_link():
    """Two by two on two hosts; what stays on a host does not take its link."""
    plan = own_plan(("rows", "rows"), (1, 1, 1, 1), rows=40)
    rates = np.where(np.kron(np.eye(2), np.ones((2, 2))) > 0, 1e9, 1e7) * (1 - np.eye(4))
    apart = replace(simple(4), bytes_per_second=tuple(map(tuple, rates.tolist())))
    hosts = ("a", "a", "b", "b")
    paired = replace(apart, nodes=tuple(replace(one, host=host, threads=1) for one, host in zip(apart.nodes, hosts)))
    result = Pricer(SPEC, paired, 40).price(lone("allgatherv"), plan)
    assert result.wire == pytest.approx(4 * 10 * 288 / 1e7 + 10 * 288 / 1e9)  # 2 ranks x 2 peers on the link, 1 peer beside it


# all plans


def every_plan(shares):
    for pair, reduction in product(LAYOUTS, ("allreduce", "reduce_scatter")):
        yield plan_of(pair, shares, reduction)
    for pair, tiles, wire in product(OWN_LAYOUTS, (1, 2), ("float32", "float16")):
        yield own_plan(pair, shares, tiles=tiles, wire=wire)


@pytest.mark.parametrize("shares", [(1,), (5, 1, 1, 1), (1, 0, 3), (0, 1)], ids=str)
def test_what_holds_for_every_plan(shares):
    speeds = (9, 7, 20, 3)[: len(shares)]
    for plan in every_plan(shares):
        program = make_program(SPEC, plan)

        def priced(rows=ROWS, speeds=speeds, plan=plan, program=program, **links):
            return Pricer(SPEC, cluster(speeds, **links), rows).price(program, plan)

        result = priced()
        assert result.seconds > 0 and isinstance(result.bytes, int) and result.bytes >= 0
        assert (result.wait >= 0).all() and (result.compute >= 0).all()
        for rank in range(plan.ranks):
            spent = result.compute[rank] + result.wait[rank]
            if rank not in plan.active:
                assert spent == 0
            elif plan.collectives == "mpi" or len(plan.active) == 1:  # computing, waiting and wire are all that a rank does
                assert spent + result.wire == pytest.approx(result.seconds)
            else:
                assert spent <= result.seconds * (1 + 1e-9)
        slower_link, later_link = priced(mbit=10), priced(latency=1e-2)
        exchanges = len(plan.active) > 1 or 0 not in plan.active
        assert (slower_link.seconds > result.seconds and later_link.seconds > result.seconds) is exchanges
        assert slower_link.bytes == result.bytes
        assert priced(speeds=tuple(speed / 2 for speed in speeds)).seconds > result.seconds
        assert priced(ROWS * 2).seconds > result.seconds


def test_a_price_is_the_same_whatever_was_priced_before():
    """Pricers keep what repeats: two programs and two plans in turns."""
    profile = cluster((9, 7, 20))
    pricer = Pricer(SPEC, profile, ROWS)
    plans = [own_plan(("heads", "rows"), shares, tiles=tiles) for shares in ((1, 1, 1), (1, 2, 5)) for tiles in (1, 2)]
    programs = [make_program(SPEC, plan) for plan in plans]
    for _ in range(2):
        for plan, program in zip(plans, programs):
            assert pricer.price(program, plan).seconds == price(profile, plan).seconds


def test_prices_extended_by_more_layers():
    assert extended([np.array([1.0, 2.0])], 3.0).tolist() == [1.0, 2.0]
    assert extended([np.array([1.0, 2.0]), np.array([1.25, 3.0])], 3.0).tolist() == [1.75, 5.0]


def test_prices_on_the_ranks_of_a_job():
    fields = [2.5, 1.0], [[1.75, 5.0], [1.0, 1.0]], [[0.0, 2.5], [0.0, 0.0]], [1.25, 0.5], [31, 10], [0.0, 1.0]
    every = (np.array(values).T for values in fields)
    one, other = Prices(*every).each(np.array([[2], [0]]), 3)
    assert (one.seconds, one.wire, one.bytes) == (2.5, 1.25, 31)
    assert one.compute.tolist() == [5.0, 0.0, 1.75] and one.wait.tolist() == [2.5, 0.0, 0.0]
    assert (other.seconds, other.bytes, other.busy, other.compute.tolist()) == (1.0, 10, 1.0, [1.0, 0.0, 1.0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["mpi", "own"])
@pytest.mark.parametrize("emulated", [False, True])
def test_plans_priced_together_cost_what_each_costs_alone(layout, mode, emulated):
    """Of any shares, on other ranks too, with rank 0 and without, some by a ring and some not."""
    if mode == "mpi" and layout[0] == "alltoall":
        return
    profile = cluster((12, 30, 9, 20), mbit=200, hosts=["a", "b", "b", "c"])
    profile = replace(profile, versions={**profile.versions, **({EMULATION: "1"} if emulated else {})})
    make = own_plan if mode == "own" else plan_of
    shares = ((5, 1, 1, 0), (1, 1, 1, 0), (0, 1, 1, 1), (0, 9, 2, 1), (1, 0, 2, 1))
    plans = [make(layout, counts) for counts in shares]
    program = make_program(SPEC, plans[0])
    for plan, price in zip(plans, Pricer(SPEC, profile, ROWS).prices(plans, program)):
        lone = Pricer(SPEC, profile, ROWS).price(program, plan)
        assert (price.seconds, price.bytes, price.wire, price.busy) == (lone.seconds, lone.bytes, lone.wire, lone.busy)
        assert price.compute.tolist() == lone.compute.tolist() and price.wait.tolist() == lone.wait.tolist()


def test_requests_of_a_batch_are_kept_whole_where_attention_is_local():
    plan = own_plan(("local", "rows"), (48, 24, 24), rows=96)
    pricer = Pricer(SPEC, simple(3), 96, attended=24)
    result = pricer.price(make_program(SPEC, plan), plan)
    assert result.bytes == 2 * 48 * 288  # to the other two and back
    alone = plan_of(LAYOUTS[0], (1,), rows=48)
    assert result.compute[0] == pytest.approx(Pricer(SPEC, simple(1), 48, attended=24).price(make_program(SPEC, alone), alone).compute[0])


# memory


@pytest.mark.parametrize("tiles", [1, 3])
@pytest.mark.parametrize("pair", OWN_LAYOUTS, ids="/".join)
def test_activation_widths_count_every_buffer_once(pair, tiles):
    program = make_program(SPEC, own_plan(pair, (2, 1), tiles=tiles))
    full, own = activation_widths(Laid(program))
    values, numbers = distributions(program), buffers(Laid(program))
    each = {number: values[name] for name, number in numbers.items()}.values()
    for width, at in ((full, "full"), (own, "rows")):
        spans = sum(value.tile is None for value in each if value.rows == at)
        tiled = sum(value.tile is not None for value in each if value.rows == at)
        assert width == pytest.approx((spans + tiled / tiles) * SPEC.hidden)
    need = activation_bytes(SPEC, (full, own), 9, 9, np.array([0, 4, 9]), np.zeros(3))
    assert (np.diff(need) > 0).all() == (own > 0)
    assert need[0] >= (full * 9 + 9 * SPEC.ffn) * 4
    scores = activation_bytes(SPEC, (full, own), 9, 9, np.array([0, 4, 9]), np.array([0, 0.5, 1])) - need
    assert scores == pytest.approx([0, 4 * SPEC.heads * 81, 8 * SPEC.heads * 81])
    padded = [activation_bytes(SPEC, (full, own), 9, 7, np.zeros(1), np.full(1, part))[0] for part in (0, 1)]
    assert padded[1] - padded[0] >= 8 * SPEC.heads * 63


def test_a_ring_waits_for_what_else_comes_to_the_right():
    """Blocks of 1 s for rank 2 alone, and then rounds that pass it on: rank 1 sends it nothing before its link is free."""
    plan = own_plan(("rows", "rows"), (90, 4, 3), counts=(90, 4, 3))
    profile = simple(3, latency=0.0)
    walks = [Pricer(SPEC, profile, 97).batch([plan]).walk() for _ in range(2)]
    walks[1].down = walks[1].down + np.array([[0.0], [0.0], [1.0]])
    (exchange,) = lone("allgatherv")
    for one in walks:
        list(Pricer(SPEC, profile, 97).batch([plan]).steps((exchange,), one))
    usual, late = (one.up[:, 0] for one in walks)
    assert late[1] >= 1 > usual[1]


@pytest.mark.parametrize("kind", [kind for kind in EXCHANGES if kind != "slice"])
def test_what_ranks_give_each_other_is_what_moves(kind):
    """Of tiles, with ranks that have no rows or no heads."""
    random, (have, want), width = np.random.default_rng(len(kind)), EXCHANGES[kind], 48
    rows, heads = random.integers(0, 9, (4, 2, 30)), random.multinomial(12, (0.4, 0.3, 0.2, 0.1), 30).T[:, None]
    facts = facts_of([Sync(kind, ("a",), ("b",), 0, width)])
    given, taken, blocks = numbers(facts, Shares(rows, heads, heads), 12)[:, :, 0]
    ends = np.cumsum(heads, axis=0) * width // 12
    columns = np.stack([ends - heads * width // 12, ends], axis=1)
    for tile in range(2):
        both = [Held(boxes(one, rows.swapaxes(0, 1), tile, columns[:, :, 0], width), one.terms) for one in (have, want)]
        every = given[:, None, tile] * taken[None, :, tile]
        moved = cells(*both)
        apart = ~np.eye(4, dtype=bool)
        assert (every[apart] == moved[apart]).all()
        assert (blocks[:, tile] == both[have.terms].sizes).all()
