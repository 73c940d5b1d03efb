"""Plans for texts: keys, values and words count in memory and in the price, and what does not fit is refused with the reason."""

from dataclasses import replace

import pytest
from clusters import cluster

from hepti_mpi.errors import CapacityError
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning import decoding
from hepti_mpi.planning.memory import cache_bytes, word_table
from hepti_mpi.planning.request import Request

SPEC = random_model("smollm2-135m").spec
ROW = cache_bytes([layer.attention for layer in SPEC.each()], SPEC.heads)
TEXT = Request(1, 128, 128, 128, kept=1000, prompt=128, answer=128)


def decide(profile, method="hepti", **changes):
    return decoding.decide(method, SPEC, "0" * 64, profile, replace(TEXT, **changes))


def test_keys_values_and_words_count_in_memory():
    profile = cluster([20.0, 20.0], latency=1e-5)
    few, many = (decide(profile, "tensor", kept=kept).chosen for kept in (0, 1000))
    assert many.plan.strategy == "tensor" and few.plan.heads == many.plan.heads
    for rank, heads in enumerate(many.plan.heads):
        assert many.memory[rank] - few.memory[rank] == pytest.approx(1000 * ROW * heads / SPEC.heads, rel=1e-3)
    plain = decide(profile, "tensor", kept=None).chosen
    assert sum(few.memory) - sum(plain.memory) == pytest.approx(word_table(SPEC).held, rel=0.01)


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
