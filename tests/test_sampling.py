"""The choice of the next token."""

import math

import numpy as np
import pytest

from hepti_mpi.errors import InputError
from hepti_mpi.models.tasks.sampling import Sampler, Sampling, Scores, largest, log_sum, sampling_of

LOGITS = np.array([0.5, 3.0, 1.0, 3.0, -2.0, 2.5], np.float32)


def choose(**asked):
    return Sampler(Sampling(**asked), [0, 5]).choose(Scores.of_all(LOGITS))


def shares(count=4000, **asked):
    """How often each token is drawn."""
    sampler = Sampler(Sampling(seed=1, **asked), [])
    drawn = [sampler.choose(Scores.of_all(LOGITS)).token for _ in range(count)]
    return np.bincount(drawn, minlength=len(LOGITS)) / count


def softmax(logits):
    grown = np.exp(logits - logits.max())
    return grown / grown.sum()


def test_greedy_takes_the_lower_of_equal_ones():
    assert choose().token == 1
    assert [list(part) for part in largest(np.arange(6), LOGITS, 3)] == [[1, 3, 5], [3.0, 3.0, 2.5]]


def test_drawing_follows_the_distribution():
    np.testing.assert_allclose(shares(temperature=1.0), softmax(LOGITS), atol=0.03)
    np.testing.assert_allclose(shares(temperature=2.0), softmax(LOGITS / 2), atol=0.03)
    assert set(np.flatnonzero(shares(20, temperature=1e-300))) <= {1, 3}  # near 0 as at 0: one of the two likeliest


@pytest.mark.parametrize("asked, left", [
    ({"top_k": 2}, {1, 3}), ({"top_k": 3}, {1, 3, 5}), ({"top_p": 0.5}, {1, 3}), ({"top_p": 0.9}, {1, 3, 5}), ({"top_p": 0.01}, {1}),
    ({"min_p": 0.9}, {1, 3}), ({"min_p": 0.5}, {1, 3, 5}), ({"min_p": 1.0}, {1, 3}), ({"top_k": 5, "top_p": 0.3}, {1}),
])  # fmt: skip
def test_what_is_left_to_draw_from(asked, left):
    assert set(np.flatnonzero(shares(300, temperature=1.0, **asked))) == left


def test_seeds():
    def drawn(seed):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), [])
        return [sampler.choose(Scores.of_all(LOGITS)).token for _ in range(20)]

    assert drawn(7) == drawn(7) != drawn(8) and drawn(-1) == drawn(-1)
    assert drawn(None) != drawn(None)


def test_penalties():
    assert choose(logit_bias={1: -100, 3: -100}).token == 5
    assert Sampler(Sampling(repetition_penalty=2.0), [1, 3]).choose(Scores.of_all(LOGITS)).token == 5
    assert Sampler(Sampling(presence_penalty=2.0), [1, 3]).choose(Scores.of_all(LOGITS)).token == 1  # not of the prompt
    sampler = Sampler(Sampling(frequency_penalty=0.4), [])
    assert [sampler.choose(Scores.of_all(LOGITS)).token for _ in range(5)] == [1, 3, 1, 3, 5]


def test_candidates_of_parts_choose_as_all_do():
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    parts = [np.arange(0, 300), np.arange(300, 301), np.arange(301, 1000)]
    ids, best = map(np.concatenate, zip(*(largest(part, logits[part], 64) for part in parts)))
    joined = Scores(ids, best, log_sum(np.array([log_sum(logits[part]) for part in parts])))
    for asked in ({"logprobs": 5}, {"temperature": 0.8, "top_k": 40, "seed": 3, "logprobs": 5}):
        sampling = Sampling(**asked)
        assert not sampling.needs_all
        one, other = (Sampler(sampling, []).choose(scores) for scores in (Scores.of_all(logits), joined))
        assert one.token == other.token and one.logprob == pytest.approx(other.logprob)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
    assert joined.total == pytest.approx(math.log(np.exp(logits.astype(float)).sum()))


def test_log_probabilities():
    chosen = choose(logprobs=2)
    assert chosen.logprob == pytest.approx(math.log(softmax(LOGITS)[1]), abs=1e-6)
    assert [token for token, _ in chosen.top] == [1, 3] and choose(logprobs=0).top == ()


NEED_ALL = [{"temperature": 0.5}, {"temperature": 1.0, "top_k": 65}, {"presence_penalty": 1.0}, {"logit_bias": {1: 2.0}}]


@pytest.mark.parametrize("asked", NEED_ALL)
def test_what_needs_all_logits(asked):
    assert Sampling(**asked).needs_all


@pytest.mark.parametrize("asked", [
    {"temperature": -1}, {"temperature": math.nan}, {"top_p": 0}, {"top_p": 2}, {"max_tokens": 0}, {"max_tokens": 1.5}, {"top_k": -1},
    {"stop": ("",)}, {"seed": "x"}, {"logit_bias": {-1: 1}}, {"repetition_penalty": 0}, {"temperature": True}, {"logprobs": 21},
    {"logit_bias": {1: math.inf}}, {"logit_bias": {1: 10**400}}, {"temperature": 10**400},
])  # fmt: skip
def test_refusals(asked):
    with pytest.raises(InputError):
        Sampling(**asked)


def test_what_a_request_asks_for_itself():
    default = Sampling(temperature=0.7, stop=("a",))
    assert sampling_of({"prompt": "x"}, default) == default
    assert sampling_of({"stop": "b", "max_tokens": 3, "logit_bias": {"5": 1}}, default) == Sampling(
        temperature=0.7, stop=("b",), max_tokens=3, logit_bias={5: 1}
    )
    with pytest.raises(InputError, match="max_tokens and max_completion_tokens are both given, 3 and 4: leave one out"):
        sampling_of({"max_completion_tokens": 4, "max_tokens": 3}, default)
    assert sampling_of({"max_completion_tokens": 4, "max_tokens": 4}, default).max_tokens == 4
    assert sampling_of({"max_completion_tokens": 4, "temperature": None, "stop": ""}, default) == Sampling(4, 0.7)  # as services take them
    for wrong in ({"stop": 3}, {"logit_bias": {"x": 1}}, {"logit_bias": [1]}):
        with pytest.raises(InputError):
            sampling_of(wrong, default)


def test_logits_that_are_no_numbers():
    with pytest.raises(InputError, match="not finite"):
        Sampler(Sampling(), []).choose(Scores.of_all(np.full(5, np.nan, np.float32)))


@pytest.mark.parametrize("asked", [{}, {"top_p": 0.9}, {"top_p": 0.3}, {"min_p": 0.02}, {"min_p": 1e-6, "top_p": 0.999}, {"top_k": 700},
                                   {"temperature": 30.0}, {"temperature": 30.0, "top_p": 0.99}])  # fmt: skip
def test_what_is_drawn_of_a_large_vocabulary_is_what_a_whole_order_gives(asked):
    draw = np.random.default_rng(3)
    sampling = Sampling(**{"temperature": 1.0, "seed": 5} | asked)
    sampler, random = Sampler(sampling, []), np.random.Generator(np.random.PCG64(5))
    for _ in range(40):
        logits = (3 * draw.standard_normal(5000)).astype(np.float32)
        order = np.argsort(-logits, kind="stable")[: sampling.top_k or len(logits)]
        shares = np.exp(logits[order].astype(np.float64) / sampling.temperature)
        shares /= shares.sum()
        if sampling.top_p < 1:
            shares = shares[: int(np.searchsorted(np.cumsum(shares), sampling.top_p)) + 1]
        shares = shares[shares >= sampling.min_p * shares[0]]
        right = order[min(int(np.searchsorted(np.cumsum(shares / shares.sum()), random.random(), side="right")), len(shares) - 1)]
        assert sampler.choose(Scores.of_all(logits)).token == right
