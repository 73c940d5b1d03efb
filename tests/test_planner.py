"""The planner on made-up clusters: what it chooses, what it leaves out, what it refuses."""

import re
from dataclasses import replace

import numpy as np
import pytest
from clusters import GIB, cluster

from hepti_mpi.errors import CapacityError, PlanError
from hepti_mpi.models.random_models import random_model
from hepti_mpi.planning import planner
from hepti_mpi.planning.cost import Pricer
from hepti_mpi.planning.plan import check
from hepti_mpi.planning.planner import Request, choose, kind_of, left_out
from hepti_mpi.planning.program import make_program
from hepti_mpi.shards.slicing import layer_slices

LARGE = random_model("bert-large").spec
BASE = random_model("bert-base").spec
TINY = random_model("tiny-vit").spec
ODD = replace(BASE, layers=7, hidden=72, heads=9, ffn=203)
LAYOUTS = [("heads", "columns"), ("heads", "rows"), ("rows", "columns"), ("rows", "rows")]


def decide(spec, profile, rows=128, **options):
    """The decision; every candidate in it is a valid plan that fits and is no better than the chosen one."""
    decision = choose(spec, "hash", profile, Request(rows, **options))
    limits = options.get("limits") or [node.memory_bytes for node in profile.nodes]
    for candidate in (decision.chosen, *decision.others):
        check(candidate.plan, spec, "hash", len(profile.nodes))
        assert candidate.plan.planned_rows == rows
        assert all(need <= limit for need, limit in zip(candidate.memory, limits)), kind_of(candidate.plan)
        assert candidate.price.seconds >= decision.chosen.price.seconds
        assert candidate.plan.predicted_seconds == candidate.price.seconds
    return decision


def layer_bytes(spec):
    return spec.layers * ((4 * spec.hidden + 3) * spec.hidden + (2 * spec.hidden + 1) * spec.ffn) * 4


def single_seconds(spec, profile, rank, rows):
    """What the model takes on one rank alone, priced apart from the search."""
    only = tuple(rows if r == rank else 0 for r in range(len(profile.nodes)))
    layers = (("rows", "rows"),) * spec.layers
    nothing = (0,) * len(only)
    plan = planner.Plan(spec.name, "hash", layers, nothing, nothing, only, profile.hosts, ("packed",) * len(only))
    return Pricer(spec, profile, rows).price(make_program(spec, plan), plan).seconds


# who takes part


def test_equal_boards_on_a_fast_link_share_equally():
    plan = decide(LARGE, cluster((12,) * 4)).chosen.plan
    assert plan.active == (0, 1, 2, 3)
    for counts in (plan.heads, plan.columns, plan.rows):
        assert max(counts) - min(counts) <= max(1, 0.05 * sum(counts))


def test_faster_boards_take_more():
    plan = decide(LARGE, cluster((30, 20, 10), mbit=10_000)).chosen.plan
    assert plan.active == (0, 1, 2)
    for counts in (plan.heads, plan.columns, plan.rows):
        assert not sum(counts) or counts[0] > counts[1] > counts[2]


@pytest.mark.parametrize("speeds", [(10, 40, 20), (40, 10, 20, 5), (5, 6, 7, 8, 9, 40, 11)])
def test_a_slow_link_leaves_all_but_the_fastest_out(speeds):
    profile = cluster(speeds, mbit=20, latency=0.01)
    decision = decide(LARGE, profile)
    fastest = speeds.index(max(speeds))
    assert decision.chosen.plan.active == (fastest,)
    assert decision.chosen.plan.strategy == "single"
    reasons = list(left_out(decision))
    assert [reason.split(" is ")[0] for reason in reasons] == [f"rank {rank} on pi{rank}" for rank in range(len(speeds)) if rank != fastest]
    ratios = [float(found[1]) for found in (re.search(r"takes ([\d.]+) x as long", reason) for reason in reasons) if found]
    assert ratios and min(ratios) > 1


def test_a_far_slower_board_is_left_out():
    decision = decide(LARGE, cluster((20, 20, 20, 0.05), mbit=1000))
    assert decision.chosen.plan.active == (0, 1, 2)
    assert [reason.split(" is ")[0] for reason in left_out(decision)] == ["rank 3 on pi3"]


def test_nothing_is_said_of_ranks_that_take_part():
    assert list(left_out(decide(LARGE, cluster((12, 12), mbit=10_000)))) == []


def test_a_board_behind_a_slow_link_is_left_out():
    profile = cluster((20, 20, 20), mbit=1000)
    rates = np.array(profile.bytes_per_second)
    rates[1, :] = rates[:, 1] = 1e5
    np.fill_diagonal(rates, 0)
    profile = replace(profile, bytes_per_second=tuple(map(tuple, rates.tolist())))
    assert decide(LARGE, profile).chosen.plan.active == (0, 2)


def test_wire_decides_the_layout():
    assert kind_of(decide(LARGE, cluster((12,) * 4, mbit=100)).chosen.plan) == "rows/rows"  # K and V once a layer is the least traffic
    fast = decide(LARGE, cluster((12,) * 4, mbit=1e6, latency=1e-7), rows=3).chosen.plan
    assert fast.strategy == "tensor"  # with fewer rows than ranks only heads and columns can be divided


# the fastest


def random_cluster(seed):
    random = np.random.default_rng(seed)
    ranks = int(random.integers(1, 8))
    memory = [int(size) for size in random.uniform(0.1, 1.6, ranks) * layer_bytes(ODD) + 6e6]
    return cluster(tuple(random.uniform(2, 40, ranks)), float(10 ** random.uniform(0, 4)), float(10 ** random.uniform(-6, -2)), memory)


@pytest.mark.parametrize("seed", range(40))
def test_any_cluster(seed):
    """Valid plans within memory, by the planner's count and by that of the slices; never slower than the best rank alone."""
    profile = random_cluster(seed)
    rows = 1 + 16 * (seed % 9)
    try:
        decision = decide(ODD, profile, rows, mode="packed")
    except CapacityError:
        assert sum(node.memory_bytes for node in profile.nodes) < 1.5 * layer_bytes(ODD) + 12e6 * len(profile.nodes)
        return
    program = make_program(ODD, decision.chosen.plan)
    for rank, need in enumerate(decision.chosen.memory):
        held = sum(piece.bytes for piece in layer_slices(ODD, decision.chosen.plan, program, rank))
        assert held <= need <= profile.nodes[rank].memory_bytes
    for rank, node in enumerate(profile.nodes):
        if node.memory_bytes >= layer_bytes(ODD) * 1.01 + 6e6:
            alone = single_seconds(ODD, profile, rank, rows)
            assert decision.chosen.price.seconds <= alone * (1 + 1e-9)


def test_the_best_lone_rank_is_found_between_the_fastest_and_the_largest():
    """The fastest can not hold the model, the largest is the slowest: a rank in between is the best."""
    small, enough = layer_bytes(ODD) // 10, 2 * layer_bytes(ODD) + 10**7
    profile = cluster((40, 39, 20, 5, 3, 2), mbit=0.1, latency=1.0, memory=[small, small, enough, enough + 1, enough + 2, enough + 3])
    assert decide(ODD, profile).chosen.plan.active == (2,)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_auto_is_not_slower_than_what_is_forced(layout):
    profile = cluster((30, 9, 17), mbit=300)
    best = decide(BASE, profile).chosen.price.seconds
    assert decide(BASE, profile, layout=layout).chosen.price.seconds >= best * (1 - 1e-9)


def test_one_rank():
    for strategy in ("auto", "tensor", "hybrid", "sequence"):
        assert decide(TINY, cluster((9,)), rows=26, strategy=strategy).chosen.plan.strategy == "single"


def test_the_same_decision_every_time():
    profile = cluster((13, 12, 12, 11, 7, 7, 5), mbit=300)
    one, other = (decide(BASE, profile) for _ in range(2))
    assert one.chosen.plan.hash == other.chosen.plan.hash
    assert [c.plan.hash for c in one.others] == [c.plan.hash for c in other.others]


@pytest.mark.parametrize("ranks", [16, 64])
def test_many_ranks_need_few_pricings(ranks, monkeypatch):
    calls = []
    price = Pricer.price
    monkeypatch.setattr(Pricer, "price", lambda *args: calls.append(1) or price(*args))
    decide(BASE, cluster(tuple(np.linspace(5, 50, ranks)), mbit=1000))
    assert ranks <= len(calls) <= 1500


# memory


def test_less_memory_goes_from_sequence_over_mixes_to_tensor_and_then_refuses():
    profile, spec = cluster((12,) * 4, mbit=100), BASE
    seen, seconds = [], []
    for fraction in np.linspace(1.3, 0.1, 25):
        try:
            decision = decide(spec, profile, limits=(int(layer_bytes(spec) * fraction) + 8_000_000,) * 4, mode="packed")
        except CapacityError:
            seen.append("refused")
            continue
        seen.append(decision.chosen.plan.strategy)
        seconds.append(decision.chosen.price.seconds)
    order = ["sequence", "mix", "hybrid", "tensor", "refused"]
    assert set(seen) >= {"sequence", "mix", "tensor", "refused"} <= set(order)
    assert seen[0] == "sequence" and seen[-1] == "refused" and seen[seen.index("refused") :] == ["refused"] * seen.count("refused")
    last = len(seen) - 1 - seen[::-1].index("sequence")
    assert seen[: last + 1] == ["sequence"] * (last + 1)
    assert [s for s in seen if s not in ("mix", "hybrid")] == sorted((s for s in seen if s not in ("mix", "hybrid")), key=order.index)
    assert all(later >= earlier * (1 - 0.02) for earlier, later in zip(seconds, seconds[1:])), "less memory never answers much sooner"


def test_a_mix_holds_as_many_rich_layers_as_fit():
    limit = int(layer_bytes(BASE) * 0.9) + 8_000_000
    plan = decide(BASE, cluster((12,) * 4, mbit=100), limits=(limit,) * 4, mode="packed").chosen.plan
    assert plan.strategy == "mix"
    rich, lean = plan.layers[0], plan.layers[-1]
    count = plan.layers.count(rich)
    search = planner._Search(BASE, "hash", cluster((12,) * 4, mbit=100), Request(128, limits=(limit,) * 4, mode="packed"))
    assert search.counts((rich,) * count + (lean,) * (BASE.layers - count), (0, 1, 2, 3), strict=True) is not None
    assert search.counts((rich,) * (count + 1) + (lean,) * (BASE.layers - count - 1), (0, 1, 2, 3), strict=True) is None


def test_a_small_board_holds_less():
    memory = [2 * layer_bytes(BASE), layer_bytes(BASE) // 5, 2 * layer_bytes(BASE)]
    plan = decide(BASE, cluster((12, 40, 12), memory=memory), strategy="tensor").chosen.plan
    assert 0 < plan.heads[1] < plan.heads[0]  # though it is the fastest


def refused(spec, profile, rows=128, **options):
    with pytest.raises(CapacityError) as error:
        decide(spec, profile, rows, **options)
    found = re.search(r"rank (\d+) on (\S+) lacks (\d+) bytes \(it has (\d+), ", str(error.value))
    assert found, error.value
    return int(found[1]), found[2], int(found[3]), int(found[4])


@pytest.mark.parametrize("limit", [1000, 4_000_000, 100_000_000, 300_000_000])
@pytest.mark.parametrize("options", [{}, {"strategy": "sequence"}, {"strategy": "tensor"}, {"mode": "mapped"}], ids=str)
def test_one_rank_lacks_exactly_what_is_said(limit, options):
    profile = cluster((12,), hosts=["lonely"])
    if "mode" in options and limit > 4_000_000:
        limit = 8000  # norms and activations only
    rank, host, lack, has = refused(BASE, profile, limits=(limit,), **{"mode": "packed"} | options)
    assert (rank, host, has) == (0, "lonely", limit)
    decide(BASE, profile, limits=(limit + lack,), **{"mode": "packed"} | options)
    refused(BASE, profile, limits=(limit + lack - 2,), **{"mode": "packed"} | options)


@pytest.mark.parametrize(
    "limits", [(20_000_000,) * 4, (60_000_000, 1000, 30_000_000), (1000, 1000), (5_000_000, 60_000_000, 70_000_000, 1, 9_000_000)]
)
def test_with_what_is_lacking_the_leanest_plan_fits(limits):
    """The bytes that are named, given to every rank, are enough but for the rounding to whole heads and columns."""
    profile = cluster((12,) * len(limits))
    rank, host, lack, has = refused(BASE, profile, limits=limits, mode="packed")
    assert host == f"pi{rank}" and has == limits[rank] and lack > 0
    heads = layer_bytes(BASE) // BASE.heads
    decide(BASE, profile, limits=tuple(limit + lack + heads for limit in limits), mode="packed")
    refused(BASE, profile, limits=tuple(limit + lack // 2 for limit in limits), mode="packed")


def test_the_rank_with_the_least_memory_is_named_when_all_need_everything():
    rank, host, lack, has = refused(BASE, cluster((12,) * 3), strategy="sequence", limits=(9 * 10**7, 7 * 10**7, 8 * 10**7), mode="packed")
    assert (rank, host, has) == (1, "pi1", 7 * 10**7)


@pytest.mark.parametrize("shares", [(5, 1, 1), (1, 0, 3)])
def test_forced_shares_are_not_bent_to_fit(shares):
    limits = (layer_bytes(BASE) // 2,) * 3
    decide(BASE, cluster((12,) * 3), limits=limits, mode="packed")
    rank, *_ = refused(BASE, cluster((12,) * 3), limits=limits, shares=shares, mode="packed")
    assert rank == shares.index(max(shares))


def test_without_a_limit_weights_are_mapped_when_they_do_not_fit():
    profile = cluster((12, 12), memory=layer_bytes(BASE) // 4)
    decision = decide(BASE, profile)
    assert set(decision.chosen.plan.weights_mode) == {"mapped"}
    assert any("no packed plan fits" in note for note in decision.notes)
    with pytest.raises(CapacityError):
        decide(BASE, profile, mode="packed")
    with pytest.raises(CapacityError):
        decide(BASE, profile, limits=(layer_bytes(BASE) // 4,) * 2)


def test_mapped_weights_do_not_count_but_activations_do():
    limits = (10**8, 1000, 10**8)
    plan = decide(BASE, cluster((12, 90, 12), mbit=10_000), limits=limits, mode="mapped").chosen.plan
    assert plan.active in ((0,), (2,), (0, 2)) and plan.heads[1] == plan.columns[1] == plan.rows[1] == 0
    for layout in LAYOUTS:
        assert 1 not in decide(BASE, cluster((12, 90, 12)), limits=limits, mode="mapped", layout=layout).chosen.plan.active


# what is forced


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_forced_layout(layout):
    decision = decide(BASE, cluster((12, 9, 40)), layout=layout)
    assert decision.chosen.plan.layers == (layout,) * BASE.layers
    assert len(decision.chosen.plan.active) >= 2
    assert not decision.others


@pytest.mark.parametrize("strategy", ["tensor", "hybrid", "sequence"])
def test_a_forced_strategy_is_never_a_single_rank(strategy):
    for mbit in (1, 1000):
        decision = decide(BASE, cluster((12, 9, 40), mbit=mbit), strategy=strategy)
        assert {c.plan.strategy for c in (decision.chosen, *decision.others)} == {strategy}


@pytest.mark.parametrize("shares", [(5, 1, 1, 1), (1, 0, 3, 0), (0, 0, 1, 0), (0.5, 0.25, 0.125, 0.125), (1, 1, 1, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_forced_shares(layout, shares):
    plan = decide(ODD, cluster((12, 9, 40, 3)), rows=97, shares=shares, layout=layout).chosen.plan
    assert plan.active == tuple(rank for rank, share in enumerate(shares) if share)
    for counts, granule in ((plan.heads, 1), (plan.columns, ODD.column_granule), (plan.rows, 1)):
        for count, share in zip(counts, shares):
            assert not sum(counts) or abs(count - sum(counts) * share / sum(shares)) < 1 * granule + granule


@pytest.mark.parametrize("options, words", [
    ({"shares": (1, 2)}, "--shares has 2 entries, the job has 3 ranks"),
    ({"shares": (0, 0, 0)}, "not all 0"),
    ({"shares": (1, -1, 1)}, "at least 0"),
    ({"limits": (GIB, GIB)}, "--memory-limit has 2 entries, the job has 3 ranks"),
])  # fmt: skip
def test_impossible_requests(options, words):
    with pytest.raises(PlanError, match=words):
        decide(BASE, cluster((12,) * 3), **options)
