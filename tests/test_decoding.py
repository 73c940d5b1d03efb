"""Plans for texts: keys, values and words count in memory and in the price, and what does not fit is refused with the reason."""

from dataclasses import replace

import numpy as np
import pytest
from clusters import cluster

from hepti_mpi.cluster.profile import CACHES, EMULATION
from hepti_mpi.errors import CapacityError
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning import decoding, staging
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.memory import cache_bytes, word_table
from hepti_mpi.planning.stepping import Steps
from hepti_mpi.planning.work import bytes_of_number, word_numbers
from hepti_mpi.program.build import make_program
from hepti_mpi.program.grouping import shared

SPEC = random_model("smollm2-135m").spec
LLAMA = random_model("llama-3.2-1b").spec
ROW = cache_bytes([layer.attention for layer in SPEC.each()], SPEC.kv_heads)
TEXT = Demand(1, 128, 128, 128, kept=1000, prompt=128, answer=128)


def decide(profile, method="hepti", **changes):
    return decoding.decide(method, SPEC, "0" * 64, profile, replace(TEXT, **changes))


def test_keys_values_and_words_count_in_memory():
    profile = cluster([20.0, 20.0], latency=1e-5)
    few, many = (decide(profile, "tensor", kept=kept).chosen for kept in (0, 1000))
    assert many.plan.strategy == "tensor" and few.plan.heads == many.plan.heads
    for rank, heads in enumerate(shared(np.array(many.plan.heads), SPEC.group)[0]):  # of K and V
        assert many.memory[rank] - few.memory[rank] == pytest.approx(1000 * ROW * heads / SPEC.kv_heads, rel=1e-3)
    plain = decide(profile, "tensor", kept=None).chosen
    assert sum(few.memory) - sum(plain.memory) == pytest.approx(word_table(SPEC).held, rel=0.01)


def test_a_cache_in_float16_takes_half():
    profile, asked = cluster([20.0, 20.0], latency=1e-5), {"kept": 20000, "shares": (1.0, 1.0)}
    few = decide(profile, "tensor", **asked | {"kept": 0}).chosen.memory
    more = [np.subtract(decide(profile, "tensor", **asked, cache=cache).chosen.memory, few) for cache in ("float32", "float16")]
    np.testing.assert_allclose(more[0], 2 * more[1], rtol=1e-3)
    memory = decide(cluster([20.0]), kept=0).chosen.memory[0] + 600 * ROW
    small, packed = cluster([20.0], memory=memory), {"mode": "packed"}
    with pytest.raises(CapacityError, match="--slots and --context, or with --cache-format float16"):
        decide(small, **packed)
    assert decide(small, **packed, cache="float16").chosen.memory[0] <= memory
    with pytest.raises(CapacityError, match="--slots and --context, or give more memory"):
        decide(small, **packed, cache="float16", kept=2000)


def test_a_token_is_priced_by_what_a_cache_of_its_numbers_takes():
    """As it was measured, where it was; prompts, whose rows are many, as any attention is."""
    plain, asked = cluster([20.0, 20.0], latency=1e-5), {"attended": 4096, "prompt": 4032, "kept": 4160}
    measured = replace(plain, nodes=tuple(replace(node, cached_seconds_per_mac=(1e-10, 3e-10), cached_arrange_seconds=(0.0, 1e-8))
                                          for node in plain.nodes))  # fmt: skip
    assert len({decide(plain, "single", **asked, cache=cache).chosen.price.seconds for cache in CACHES}) == 1
    block = SPEC.layer(0).attention
    macs, rows = SPEC.layers * 2.0 * 4096 * block.width, SPEC.layers * block.width
    shares = {"single": {}, "tensor": {"shares": (1.0, 1.0)}}
    for method in (*shares, "stages"):
        demand = replace(TEXT, **asked)
        if method == "stages":
            team = staging.staged("stages", SPEC, "0" * 64, measured, demand).placement.teams[0]
            found = [staging.of_team(SPEC, measured, replace(demand, cache=cache), team) for cache in CACHES]
            seconds, prompts = [sum(one.stage_seconds) for one in found], [one.prompt_seconds for one in found]
        else:
            found = [decide(measured, method, **asked, **shares[method], cache=cache) for cache in CACHES]
            seconds = [one.chosen.price.seconds for one in found]
            plan = found[0].chosen.plan
            prompts = [decoding.prompt_seconds(SPEC, measured, replace(demand, cache=cache), plan) for cache in CACHES]
        part = max(found[0].chosen.plan.heads) / SPEC.heads if method == "tensor" else 1
        assert seconds[1] - seconds[0] == pytest.approx(part * (macs * 2e-10 + rows * 1e-8), rel=1e-6)
        assert prompts[0] == pytest.approx(prompts[1])


PARALLEL = replace(SPEC.layer(0), parallel=True, before=(SPEC.layer(0).before[0], None))


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, kinds=(PARALLEL,))])
def test_what_layers_take_beside_their_products_is_as_much_on_every_rank(spec):
    """Whatever the share: the starts of small kernels. By the rows of a step; prompts are priced as before."""
    plain = cluster([20.0, 20.0], latency=1e-5)
    none = replace(plain, nodes=tuple(replace(node, beside_seconds=(0.0, 0.0)) for node in plain.nodes))
    some = replace(plain, nodes=tuple(replace(node, beside_seconds=(1e-4, 8e-4)) for node in plain.nodes))
    one = decide(plain, "single").chosen.plan
    two = decide(plain, "tensor", shares=(1.0, 2.0)).chosen.plan
    for plan in (one, two):
        for rows, more in ((1, 1e-4), (8, 8e-4), (4, 4e-4)):
            base, found = (Steps(spec, profile, rows, 128, "float32").seconds(plan) for profile in (none, some))
            assert found - base == pytest.approx(spec.layers * more, rel=1e-6)
            assert base < Steps(spec, plain, rows, 128, "float32").seconds(plan), "elements and activations are in it"
        before, after = (Steps(spec, profile, 128, 128).seconds(plan) for profile in (plain, some))
        assert before == after


def test_words_are_priced_by_a_table_that_was_timed():
    """And so is what no plan takes less than: all weights by the rate of the table, whatever the starts of small products take."""
    plain = cluster([20.0], latency=1e-5)
    node = plain.nodes[0]
    as_layers = node.gemm_seconds_per_weight[0] / bytes_of_number(SPEC)
    plan = decide(plain, "single").chosen.plan
    before, bound_before = Steps(SPEC, plain, 1, 128).seconds(plan), decoding.bound(SPEC, plain)
    for times in (1.0, 0.5, 3.0):
        timed = replace(plain, nodes=(replace(node, table_seconds=(times * as_layers, 3 * times * as_layers)),))
        words = word_table(SPEC).held * as_layers
        assert Steps(SPEC, timed, 1, 128).seconds(plan) == pytest.approx(before - (1 - times) * words)
        assert decoding.bound(SPEC, timed) == pytest.approx(min(times, 1.0) * bound_before), "nor by a table whose timing was disturbed"
        twice = replace(timed, nodes=(replace(timed.nodes[0], table_seconds=(2 * times * as_layers, 6 * times * as_layers)),))
        for rows, cache, of_one in ((1, "float32", 1), (8, "float32", 3), (8, None, 1)):  # of a prompt its last row alone is scored
            seconds = [Steps(SPEC, one, rows, 128, cache).seconds(plan) for one in (timed, twice)]
            assert seconds[1] - seconds[0] == pytest.approx(of_one * times * words)


def test_answers_that_fit_on_no_rank_alone_are_kept_by_several():
    alone = decide(cluster([20.0]), kept=0).chosen.memory[0]
    memory = alone + 1001 * ROW
    assert decide(cluster([20.0, 1.0], latency=0.02, memory=memory), kept=1000).chosen.plan.active == (0,)
    divided = decide(cluster([20.0, 1.0], latency=0.02, memory=memory), kept=1500).chosen
    assert len(divided.plan.active) == 2 and max(divided.memory) <= memory
    with pytest.raises(CapacityError, match="keys and values: those of 20000 rows take .* --slots and --context"):
        decide(cluster([20.0, 1.0], memory=memory), kept=20000)


@pytest.mark.parametrize("latency, ranks", [(1e-6, 2), (0.02, 1)])
def test_as_many_ranks_as_the_links_are_worth(latency, ranks):
    assert len(decide(cluster([20.0, 20.0], latency=latency)).chosen.plan.active) == ranks


def test_a_long_prompt_and_a_long_answer_may_want_different_ranks():
    """Rows of a prompt are computed together, so that a latency that is too much for each token is not for them."""
    profile = cluster([20.0, 20.0], mbit=10000, latency=0.002)
    first, last = (decide(profile, prompt=prompt, answer=answer) for prompt, answer in ((4096, 1), (1, 4096)))
    assert (len(first.chosen.plan.active), len(last.chosen.plan.active)) == (2, 1)
    assert last.chosen.price.seconds < first.chosen.price.seconds


@pytest.mark.parametrize("emulated", [False, True])
def test_a_prompt_is_cut_into_tiles_where_its_sums_take_long(emulated):
    """They travel while others are computed, so that a prompt takes little more than computing it, and nothing else changes."""
    versions = {EMULATION: "40,40,40"} if emulated else {}
    for mbit, most in ((1000, 1.1), (1e6, 1.1)):
        plain = cluster([40.0] * 3, mbit=mbit, latency=2e-5)  # SmolLM2 has three heads of keys and values
        profile = replace(plain, versions={**plain.versions, **versions})
        chosen = decide(profile, "tensor").chosen
        bare = replace(chosen.plan, prompt_tiles=1)
        cut, whole = (decoding.prompt_seconds(SPEC, profile, TEXT, plan) for plan in (chosen.plan, bare))
        least = decoding.prompt_bound(SPEC, "0" * 64, profile, TEXT, [bare])
        assert (chosen.plan.prompt_tiles > 1) == (mbit < 1e6) == (cut < 0.9 * whole)
        assert least <= cut < most * least, (least, cut, whole)
        assert decoding.step_seconds(SPEC, profile, TEXT, chosen.plan, 40) == decoding.step_seconds(SPEC, profile, TEXT, bare, 40)
        short = replace(TEXT, prompt=31)  # of rows that are no two tiles
        assert decoding.prompt_seconds(SPEC, profile, replace(short, largest=31), chosen.plan) > 0
        assert decide(profile, "megatron").chosen.plan.prompt_tiles == 1


@pytest.mark.parametrize("emulated", [False, True])
def test_sums_travel_in_a_short_type_where_that_is_allowed_and_sooner(emulated):
    versions, asked = {EMULATION: "20,20,20"} if emulated else {}, {"wires": ("float32", "float16")}
    for mbit, sooner in ((100, 0.85), (1e6, 1.0)):
        plain = cluster([20.0] * 3, mbit=mbit, latency=2e-5)
        profile = replace(plain, versions={**plain.versions, **versions})
        exact, short = decide(profile, "tensor").chosen, decide(profile, "tensor", **asked).chosen
        assert exact.plan.wire == "float32" and short.plan.wire == ("float16" if sooner < 1 else "float32")
        times = [decoding.prompt_seconds(SPEC, profile, TEXT, one.plan) for one in (exact, short)]
        steps = [decoding.step_seconds(SPEC, profile, TEXT, one.plan, 1) for one in (exact, short)]
        assert times[1] <= sooner * times[0] and (steps[1] < steps[0]) == (sooner < 1)
        assert steps[1] == short.price.seconds
        least = decoding.prompt_bound(SPEC, "0" * 64, profile, replace(TEXT, **asked), [exact.plan])
        assert least <= min(times) and least <= decoding.prompt_bound(SPEC, "0" * 64, profile, TEXT, [exact.plan])
        some = replace(short.plan, wire=("float32",) * 20 + ("float16",) * 10)
        every = [Steps(SPEC, profile, 1, 128).seconds(replace(some, wire=wire)) for wire in ("float32", "float16")]
        assert Steps(SPEC, profile, 1, 128).seconds(some) == pytest.approx((2 * every[0] + every[1]) / 3)
        assert decide(profile, "megatron", **asked).chosen.plan.wire == "float32"
        forced = decide(profile, "hepti-float16").chosen.plan
        assert forced.wire == decide(profile, **asked).chosen.plan.wire


@pytest.mark.parametrize("speeds, latency", [((20.0, 20.0, 5.0), 1e-5), ((20.0, 20.0), 0.02), ((20.0,), 1e-5)])
def test_no_method_beats_the_bound(speeds, latency):
    profile = cluster(list(speeds), latency=latency)
    least = decoding.bound(SPEC, profile, TEXT.attended)
    found = {name: decide(profile, name).chosen for name in decoding.BY_WEIGHTS}
    assert min(one.price.seconds for one in found.values()) >= least > 0
    for one in found.values():
        assert decoding.prompt_seconds(SPEC, profile, TEXT, one.plan) > one.price.seconds
        assert one.plan.reduction == "allreduce" or len(one.plan.active) == 1, "one row cannot be scattered"


def test_the_bound_is_all_boards_reading_and_a_latency_a_sum():
    one, two = (decoding.bound(SPEC, cluster([20.0] * ranks, latency=1e-5)) for ranks in (1, 2))
    assert two == pytest.approx(one / 2 + 2 * SPEC.layers * 1e-5)


def test_plans_of_equal_layouts_are_priced_at_once_and_by_a_few_layers():
    profile, steps = cluster([20.0, 12.0, 5.0], latency=1e-4), Steps(SPEC, cluster([20.0, 12.0, 5.0], latency=1e-4), 1, 128)
    plan = decide(profile, "tensor").chosen.plan
    granule = SPEC.column_granule
    shares = ((3, 3, 3), plan.columns), ((0, 5, 4), (SPEC.ffn - 2 * granule, granule, granule))
    some = [replace(plan, heads=heads, columns=columns) for heads, columns in shares]
    assert steps.each(some) == pytest.approx([steps.seconds(one) for one in some])
    whole = steps.pricer.price(make_program(SPEC, plan, everywhere=True), plan).seconds
    words = word_numbers(SPEC) * (steps.pricer.gemm[:3, 1] * np.array(plan.columns)).max() / SPEC.ffn
    assert steps.seconds(plan) == pytest.approx(whole - steps.elsewhere + words)


@pytest.mark.parametrize("emulated", [False, True])
def test_equal_boards_have_equal_shares_though_links_differ_a_little(emulated):
    """A step is of one row, which one rank has in what the search prices; the sums that are done are the same for all."""
    profile = cluster([20.0] * 4, mbit=500, latency=8e-5)
    links = tuple(tuple(one * (1 + 0.3 * ((at + to) % 2)) for to, one in enumerate(row)) for at, row in enumerate(profile.latency_seconds))
    profile = replace(profile, latency_seconds=links, versions=profile.versions | ({EMULATION: "4,4,4,4"} if emulated else {}))
    plan = decoding.decide("tensor", LLAMA, "0" * 64, profile, TEXT).chosen.plan
    assert plan.heads == (8, 8, 8, 8) and max(plan.columns) - min(plan.columns) <= LLAMA.column_granule


def test_shares_follow_the_speed_of_one_row_and_memory_holds_them():
    """Boards that are further apart for many rows than for one have what they read, since a text has one row a step."""
    profile = cluster([20.0, 20.0, 5.0, 5.0], latency=1e-5)  # all read equally fast
    apart = replace(profile, nodes=tuple(replace(one, gemm_seconds_per_weight=(2e-9 if at > 1 else 1e-9, *one.gemm_seconds_per_weight[1:]))
                                         for at, one in enumerate(profile.nodes)))  # fmt: skip
    for cluster_, ratio in ((profile, 1), (apart, 2)):
        plan = decoding.decide("tensor", LLAMA, "0" * 64, cluster_, replace(TEXT, prompt=1, answer=1000)).chosen.plan
        assert plan.columns[0] / plan.columns[3] == pytest.approx(ratio, rel=0.05)
    free = decoding.decide("tensor", LLAMA, "0" * 64, apart, TEXT).chosen
    limits = (free.memory[0] * 9 // 10, *[8 << 30] * 3)
    tight = decoding.decide("tensor", LLAMA, "0" * 64, apart, replace(TEXT, limits=limits)).chosen
    assert tight.memory[0] <= limits[0] and sum(tight.plan.columns) == LLAMA.ffn and tight.price.seconds > free.price.seconds


@pytest.mark.parametrize("prompt, answer, ratio", [(1, 1000, 3.0), (512, 48, 4.0), (2000, 100, 4.0)])
def test_shares_go_by_prompts_where_those_take_longer(prompt, answer, ratio):
    """Two boards that are a third as fast as two others in tokens and a fifth in prompts have to give at once: no move between two ranks
    makes anything sooner then."""
    profile = cluster([20.0, 20.0, 4.0, 4.0], latency=2e-5)
    slow = tuple(replace(one, gemm_seconds_per_weight=(3e-9, *one.gemm_seconds_per_weight[1:])) for one in profile.nodes[2:])
    profile, wanted = replace(profile, nodes=(*profile.nodes[:2], *slow)), replace(TEXT, prompt=prompt, answer=answer)
    plan = decoding.decide("tensor", LLAMA, "0" * 64, profile, wanted).chosen.plan
    assert sum(plan.columns[:2]) >= 0.98 * ratio * sum(plan.columns[2:]), plan.columns
    bound = decoding.prompt_bound(LLAMA, "0" * 64, profile, wanted, [plan])
    assert prompt == 1 or decoding.prompt_seconds(LLAMA, profile, wanted, plan) <= 1.1 * bound
