"""Guesses of tokens: the same texts in fewer steps, and given up where they cost more than they gain."""

import numpy as np
import pytest
from test_generation import VOCABULARY, Counting, finished

from hepti_mpi.models.inputs.prompts import Prompt
from hepti_mpi.models.tasks.sampling import Chosen, Sampling, Scores
from hepti_mpi.serving.generating import told
from hepti_mpi.serving.generation import Generator
from hepti_mpi.serving.lookup import COSTS, KEYS, LENGTHS, SURE, Lookup
from hepti_mpi.serving.written import Written


class Repeating(Counting):
    """Says a sentence of 11 tokens again and again, some of them by chance."""

    def scores(self, slot):
        draw = np.random.default_rng([*self.cache[slot][-3:], len(self.cache[slot]) % 11])
        return Scores.of_all((5 * draw.random(VOCABULARY)).astype(np.float32))


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=120), Sampling(max_tokens=120, temperature=0.2, seed=4, logprobs=2)])
@pytest.mark.parametrize("stepper", [Counting, Repeating])
def test_the_same_texts(sampling, stepper):
    made = {}
    for guesses in (False, True):
        generator = Generator(stepper(), ())
        generator.guesses = guesses
        answer = generator.submit([7, 8, 9], sampling)
        list(finished(generator))
        made[guesses] = answer.chosen
        checked = [step[2] for step in generator.stepper.steps if step[0] == "check"]
        assert bool(checked) == guesses
    assert made[True] == made[False] and len(made[True]) == 120


def test_guesses_end_with_the_answer():
    for most in (61, 62, 63, 64, 200):
        generator = Generator(Counting(positions=90), ())
        answer = generator.submit([*range(50), 0, 1, 2], Sampling(max_tokens=most))
        list(finished(generator))
        assert len(answer.tokens) == min(most, 90 - 53) and answer.finish_reason == "length"


def timed(lookup, tokens, cost):
    """Let a text grow whose step of guesses takes `cost` times as long as one of a token; return the seconds in all."""
    seconds, at = 0.0, 0
    while at < len(tokens):
        guess = lookup.guess(len(tokens) - at - 1)
        true = next((place for place, both in enumerate(zip(guess, tokens[at:])) if both[0] != both[1]), len(guess))
        for token in tokens[at : at + true + 1]:
            lookup.add(token)
        took = cost if guess else 1.0
        lookup.grew(len(guess), true, took)
        seconds, at = seconds + took, at + true + 1
    return seconds


def test_what_is_repeated_comes_sooner():
    prompt = np.random.default_rng(0).integers(0, 1000, 200).tolist()
    lookup = Lookup(prompt)
    assert timed(lookup, prompt, 1.5) < 200 / 4 and lookup.at == len(LENGTHS) - 1


@pytest.mark.parametrize("cost", [1.1, 2.0, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_not_repeated_is_hardly_slower(cost, seed):
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, 6, 1500).tolist()  # pairs and triples come again, and what follows them does not
    assert timed(Lookup(tokens[:500]), tokens[500:], cost) < 1000 * (1 + COSTS) + 6 * cost


def test_the_first_guesses_pay_for_wrong_ones():
    lookup = Lookup([1, 2, 3, 4, 1, 2, 3])
    for _ in range(SURE + 1):
        lookup.grew(0, 0, 1.0)
    for length, true in ((3, 3), (7, 7), (15, 2), (7, 0)):
        lookup.grew(length, true, 0.3 * (1 + length))
    assert lookup.guess(5) == [4, 1, 2]


@pytest.mark.parametrize("seconds", [2.0, 50.0])  # with what ranks take to get ready
def test_a_first_guess_that_is_wrong_is_dear(seconds):
    lookup = Lookup([1, 2, 3, 4, 1, 2, 3])
    for _ in range(SURE + 1):
        lookup.grew(0, 0, 1.0)
    lookup.grew(3, 0, seconds)
    assert lookup.guess(5) == [] and lookup.lost <= 3


def test_no_guess_before_a_step_is_timed():
    lookup = Lookup([1, 2, 3, 4, 1, 2, 3])
    for _ in range(SURE + 1):
        assert lookup.guess(5) == []
        lookup.grew(0, 0, 1.0)
    assert lookup.guess(5) == [4, 1, 2] and lookup.guess(2) == [4] and lookup.guess(0) == []


def test_a_guess_takes_as_long_in_a_long_text():
    class Counted(dict):
        looks = 0

        def get(self, *words):
            Counted.looks += 1
            return super().get(*words)

    lookup = Lookup(range(100_000))
    lookup.seen, lookup.steps = Counted(lookup.seen), SURE + 1
    for token in range(1000):
        lookup.add(token)
        assert len(lookup.guess(9)) <= 9
    assert 1000 <= Counted.looks <= 1000 * len(KEYS)


def test_a_step_tells_each_of_its_tokens_and_the_end_once():
    generator = Generator(Counting(), [40])
    answer = generator.submit([*range(50), 0, 1, 2], Sampling(max_tokens=90, logprobs=1))
    written, heard, steps = Written(0.1), [], 0
    while generator.busy:
        events = generator.step()
        steps += 1
        heard += [told(5, event) for event in events]
        for event in events:
            written.add(Prompt(0, "", {}), event)
    assert answer.tokens == [*range(3, 41)] and steps < 20
    assert [one[1] for one in heard] == answer.tokens and [one[4] for one in heard] == [None] * 37 + ["stop"]
    assert [one[1][0] for one in written.grown] == answer.tokens
    assert [Chosen.of(one[1]) for one in written.grown] == answer.chosen
