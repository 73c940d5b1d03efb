"""What each name of a method leads to: a valid plan with its price and its memory, or one sentence."""

import re
from dataclasses import replace

import pytest
from clusters import GIB, cluster

from hepti_mpi.errors import CapacityError, PlanError
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning import baselines
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.methods import BOOST, NAMES, OURS, decide
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.planning.reasons import left_out
from hepti_mpi.planning.refine import TILES
from hepti_mpi.planning.scale import by_ranks
from hepti_mpi.planning.search import choose
from hepti_mpi.program.build import make_program
from hepti_mpi.program.plan import Plan, check

BASE = replace(random_model("bert-base").spec, layers=4)
TINY = random_model("tiny-vit").spec
MIXED = cluster((16, 11.4, 6.7, 4.4), mbit=200)
EVEN = cluster((10,) * 4, mbit=1000)
BOOSTED = tuple(name + BOOST for name in baselines.NAMES)


CHOSEN = {}


def chosen(name, profile=MIXED, spec=BASE, **options):
    """The plan of `name`, searched once: several tests ask for the same."""
    key = repr((name, profile, spec, options))
    if key not in CHOSEN:
        CHOSEN[key] = decided(name, profile, spec, options)
    return CHOSEN[key]


def decided(name, profile, spec, options):
    """The plan of `name`, which is one that can be run, with its price and within memory."""
    demand = Demand(**{"rows": 96, **options})
    decision = decide(name, spec, "hash", profile, demand)
    one = decision.chosen
    check(one.plan, spec, "hash", len(profile.nodes))
    program = make_program(spec, one.plan)
    assert one.price.seconds == Pricer(spec, profile, demand.rows, demand.attended).price(program, one.plan).seconds
    assert one.plan.predicted_seconds == one.price.seconds and one.plan.planned_rows == demand.rows
    limits = demand.limits or [node.memory_bytes for node in profile.nodes]
    assert len(one.memory) == one.plan.ranks and all(need <= limit for need, limit in zip(one.memory, limits))
    assert all((need > 0) == (rank in one.plan.active) for rank, need in enumerate(one.memory))
    assert set(decision.with_rank) >= set(one.plan.active)
    assert bool(list(left_out(decision))) == (len(one.plan.active) < one.plan.ranks)
    return one


STRATEGIES = {"tensor": "tensor", "hybrid": "hybrid", "sequence": "sequence", "megatron": "tensor", "voltage": "sequence",
              "galaxy": "tensor", "coedge": "sequence", "edgeflow": "sequence", "ram": "tensor", "single": "single"}  # fmt: skip


@pytest.mark.parametrize("profile", [MIXED, EVEN], ids=["mixed", "even"])
@pytest.mark.parametrize("name", NAMES)
def test_every_name_leads_to_a_plan(name, profile):
    one = chosen(name, profile)
    assert one.plan.strategy == STRATEGIES.get(name, one.plan.strategy)
    if name in baselines.NAMES:  # as published
        assert (one.plan.collectives, one.plan.wire, one.plan.tiles) == ("mpi", "float32", ())
        assert one.plan == baselines.baseline(name, BASE, "hash", profile, 96)
    else:
        assert one.plan.wire == "float32" or name in ("hepti-float16", "hepti-int8")
    if profile is EVEN:  # where plans that are as good tempt most
        assert decide(name, BASE, "hash", profile, Demand(96)).chosen.plan.hash == one.plan.hash, "asked again"


@pytest.mark.parametrize("name", baselines.NAMES)
def test_a_boost_keeps_the_division(name):
    plain, boosted = chosen(name), chosen(name + BOOST)
    for kept in ("layers", "heads", "columns", "rows", "weights_mode", "wire"):
        assert getattr(boosted.plan, kept) == getattr(plain.plan, kept)
    if name == "single":  # nothing of it travels
        assert boosted.plan == plain.plan
        return
    assert boosted.plan.collectives == "own"
    pricer = Pricer(BASE, MIXED, 96)
    for tiles in (1, *TILES):
        other = baselines.boosted(plain.plan, tiles)
        assert boosted.price.seconds <= pricer.price(make_program(BASE, other), other).seconds


def test_ours_is_the_soonest():
    """By its own prices, on equal and unequal boards, boosted or not."""
    for profile in (MIXED, EVEN, cluster((16, 4, 4), mbit=40)):
        best = chosen("hepti", profile).price.seconds
        for name in (*NAMES, *BOOSTED):
            assert name in ("hepti-float16", "hepti-int8") or chosen(name, profile).price.seconds >= best * (1 - 1e-3), name
        short, shorter = (chosen(name, profile).price.seconds for name in ("hepti-float16", "hepti-int8"))
        assert short <= best * (1 + 1e-3) and shorter <= short * (1 + 1e-3)


def test_the_name_decides_what_is_searched_and_the_request_the_rest():
    three = cluster((16, 11.4, 6.7), mbit=50)  # they tell names apart as well as MIXED, and are searched sooner
    for name, fields in OURS.items():
        demand = Demand(40, strategy="sequence" if name == "tensor" else "tensor", mode="packed")
        expected = choose(BASE, "hash", three, replace(demand, **fields)).chosen.plan
        assert decide(name, BASE, "hash", three, demand).chosen.plan.hash == expected.hash
    short = chosen("sequence", cluster((16, 11, 9), mbit=40), wires=("float32", "float16")).plan
    assert short.wire == "float16" and short.strategy == "sequence"
    forced = chosen("hepti", layout=("rows", "columns"), shares=(3, 2, 1, 1)).plan
    assert set(forced.layers) == {("rows", "columns")} and forced.rows == (41, 27, 14, 14)
    assert chosen("hepti", mode="mapped").plan.weights_mode == ("mapped",) * 4
    assert chosen("sequence", attended=24, mode="packed").plan.planned_rows == 96


@pytest.mark.parametrize("name", ["", "fly", "Hepti", BOOST, "fly-boost", *(name + BOOST for name in OURS), "megatron-boost-boost"])
def test_unknown_names(name):
    with pytest.raises(PlanError, match="there is no baseline"):
        decide(name, BASE, "hash", MIXED, Demand(96))


@pytest.mark.parametrize("name", ["megatron", "coedge-boost", "single"])
@pytest.mark.parametrize("options, words", [
    ({"layout": ("rows", "rows")}, "leave out --layout and --shares"),
    ({"shares": (1, 1, 1, 1)}, "leave out --layout and --shares"),
    ({"mode": "mapped"}, "leave out --weights-mode mapped"),
    ({"limits": (GIB,) * 3}, "--memory-limit has 3 entries, the job has 4 ranks"),
])  # fmt: skip
def test_what_the_rules_of_others_do_not_have(name, options, words):
    with pytest.raises(PlanError, match=words):
        decide(name, BASE, "hash", MIXED, Demand(96, **options))


@pytest.mark.parametrize("name", [*NAMES, *BOOSTED])
def test_too_little_memory_is_told(name):
    with pytest.raises(CapacityError, match=r"rank \d on pi\d lacks \d+ bytes"):
        decide(name, BASE, "hash", MIXED, Demand(96, limits=(100_000,) * 4))


def test_where_only_some_fit():
    """As much memory as an even share of the heads and columns takes: rows can not be divided, and one rank has no room."""
    limits = tuple(int(1.05 * need) for need in chosen("megatron").memory)
    for name in ("hepti", "tensor", "megatron", "galaxy", "ram"):
        assert chosen(name, limits=limits).plan.strategy == "tensor"
    for name in ("sequence", "voltage", "coedge", "edgeflow", "single"):
        with pytest.raises(CapacityError):
            decide(name, BASE, "hash", MIXED, Demand(96, limits=limits))


def test_a_boost_stays_within_memory_too():
    """Galaxy fills a rank to the brim; tiles that need more buffers than that are not taken."""
    exact = chosen("galaxy").memory
    boosted = chosen("galaxy" + BOOST)
    assert any(need > limit for need, limit in zip(boosted.memory, exact)), "with plenty of memory the tiles take more"
    try:
        tight = chosen("galaxy" + BOOST, limits=exact)
    except CapacityError as error:
        assert "galaxy-boost does not fit" in str(error)
    else:
        assert all(need <= limit for need, limit in zip(tight.memory, exact))


def test_one_rank():
    for name in (*NAMES, *BOOSTED):
        one = chosen(name, cluster((9,)), spec=TINY, rows=26)
        assert one.plan.strategy == "single" and one.price.bytes == 0


def test_more_ranks_than_rows():
    for name in (*NAMES, *BOOSTED):
        assert isinstance(chosen(name, cluster((9, 8, 7, 6, 5)), spec=TINY, rows=3).plan, Plan)


@pytest.mark.parametrize("name", ["hepti", "megatron"])
def test_growing_clusters(name):
    """The best plan on the first n ranks: with more of them ours is never slower, up to all."""
    profile = cluster((9, 9, 9, 9, 9), mbit=300)
    found = by_ranks(name, BASE, "hash", profile, Demand(96, limits=(8 * GIB,) * 5))
    assert list(found) == [1, 2, 3, 4, 5]
    assert all(one.plan.ranks == count for count, one in found.items())
    seconds = [one.price.seconds for one in found.values()]
    if name == "hepti":
        assert all(later <= sooner * (1 + 1e-3) for sooner, later in zip(seconds, seconds[1:]))
    assert found[1].plan.strategy == "single"


@pytest.mark.parametrize("name, options, words", [
    ("single", {}, "another rank alone is sooner"),
    ("coedge", {"rows": 3}, "the rule of coedge gives it nothing"),
    ("tensor", {"shares": (1, 1, 0, 0)}, "--shares gives it nothing"),
    ("hepti", {"limits": (1 << 40, 1 << 40, 1 << 40, 1000)}, "it has 1000 bytes of memory, and no rank takes less than"),
    ("sequence", {"rows": 1}, "its part of 1 row is none in every plan"),
])  # fmt: skip
def test_why_a_rank_is_left_out_under_each_strategy(name, options, words):
    decision = decide(name, BASE, "hash", MIXED, Demand(**{"rows": 128} | options))
    told = list(left_out(decision))
    assert told and any(words in one for one in told), told
    named = [int(rank) for one in told for rank in re.findall(r"rank (\d) on", one)]
    assert sorted(named) == sorted(set(range(4)) - set(decision.chosen.plan.active)), "each once"
    assert not any("no plan that was priced" in one for one in told)


@pytest.mark.parametrize("hosts, cores, said", [
    (["a"] * 4, 2, "a has 2 cores for 4 ranks, "), (["a"] * 4, 4, "a has 4 cores for 4 ranks, "),
    (["a", "a", "a", "b"], 2, "a has 2 cores for 3 ranks, "), (list("abcd"), 1, None),
])  # fmt: skip
def test_ranks_of_one_host_are_told_where_a_plan_is_forced(hosts, cores, said):
    """Four ranks on two cores took twice what was predicted, and two on two nearly so; nothing said why."""
    expected = [f"{said}which slow each other down by more than prices know: that may take longer than predicted"] if said else []
    profile = cluster((10,) * 4, mbit=1000, hosts=hosts)
    profile = replace(profile, nodes=tuple(replace(node, cores=cores, threads=1) for node in profile.nodes))
    for name in ("megatron", "voltage"):
        assert [note for note in decide(name, BASE, "hash", profile, Demand(96)).notes if "slow each other down" in note] == expected
    emulated = replace(profile, versions=profile.versions | {"emulation": "pi4,pi4,pi4,pi4"})
    assert not decide("megatron", BASE, "hash", emulated, Demand(96)).notes


@pytest.mark.parametrize("options, formats, is_said", [
    ({"mode": "mapped"}, {}, True), ({"mode": "mapped"}, {"": "q8", "layers.1": "f32"}, True), ({"mode": "mapped"}, {"": "q8"}, False),
    ({"mode": "mapped", "prepacked": True}, {}, False), ({"mode": "packed"}, {}, False),
], ids=str)  # fmt: skip
def test_where_products_read_weights_that_are_not_packed_it_is_told(options, formats, is_said):
    """Of few rows they took twice what was predicted, by prices of packed ones, and nothing said why."""
    said = "float32 weights stay in their file and are not packed: products of few rows may take longer than predicted"
    assert decide("tensor", replace(BASE, formats=formats), "hash", EVEN, Demand(11, **options)).notes == (said,) * is_said
