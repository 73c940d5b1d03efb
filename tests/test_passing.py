"""Answers on stages: several steps under way, whose scores come in the order in which the steps began."""

from collections import deque

import pytest
from test_generation import END, Counting, finished

from hepti_mpi.models.tasks.sampling import Sampling
from hepti_mpi.serving.chunks import CHUNK
from hepti_mpi.serving.generation import Generator
from hepti_mpi.serving.passing import Passing


class Queue(Counting):
    """Stands in for stages: a step is done when it began, its scores are told when it ends."""

    def __init__(self, slots=4, depth=3):
        super().__init__(slots, 8000)
        self.depth, self.told, self.most, self.scored = depth, deque(), 0, []

    def begin_prefill(self, slot, ids, first, candidates):
        found = self.prefill(slot, ids, first, candidates)
        self.scored.append(candidates is not None)
        self.began([] if found is None else [found])

    def begin_decode(self, rows, candidates):
        self.began(self.decode(rows, candidates))

    def began(self, scores):
        self.told.append(scores)
        self.most = max(self.most, len(self.told))

    def end(self):
        return self.told.popleft()

    def check(self, *what):
        assert not self.told, "a step that is waited for is alone"
        return super().check(*what)


ASKED = [([3 + place, 9], Sampling(max_tokens=5 + place % 4)) for place in range(9)] + [([1, 2] * CHUNK, Sampling(max_tokens=3))]


@pytest.mark.parametrize("depth, groups, slots", [(2, 2, 4), (3, 1, 4), (3, 3, 2), (5, 3, 6)])
def test_the_same_answers_as_one_step_after_another(depth, groups, slots):
    lone, stages = Generator(Counting(slots, 8000), [END]), Queue(slots, depth)
    making = Passing(stages, groups, [END])
    right, found = ([one.submit(*asked) for asked in ASKED] for one in (lone, making))
    events = list(finished(lone)), list(finished(making))
    assert [one.tokens for one in found] == [one.tokens for one in right] and not stages.told
    assert [len([event for event in some if event.finish]) for some in events] == [len(ASKED)] * 2
    assert 2 <= stages.most <= depth + 1
    sizes = [len(slots) for kind, slots, *_ in stages.steps if kind == "decode"]
    assert sum(sizes) / len(sizes) > 0.6 * slots / groups, "answers go in few groups, whenever they came in"


def test_parts_of_a_prompt_do_not_wait_for_each_other():
    stages = Queue(depth=3)
    making = Passing(stages, 3, [END])
    answer = making.submit([3] * (5 * CHUNK), Sampling(max_tokens=2))
    making.step()
    assert stages.most == 4 and not answer.tokens, "as many parts as there are stages, and one that waits"
    list(finished(making))
    assert answer.tokens == [4, 5]


def test_a_long_prompt_keeps_answers_waiting_no_longer_than_a_few_parts():
    stages = Queue(depth=3)
    making = Passing(stages, 3, [END])
    short = making.submit([3], Sampling(max_tokens=40))
    while len(short.tokens) < 3:
        making.step()
    making.submit([9] * (30 * CHUNK), Sampling(max_tokens=1))
    taken = []
    while len(short.tokens) < 12:
        before = len(stages.steps)
        while len(short.tokens) < 4 + len(taken):
            making.step()
        taken.append(sum(kind == "prefill" for kind, *_ in stages.steps[before:]))
    assert max(taken) <= stages.depth + 2 and sum(taken) > len(taken)
    assert all(stages.scored), "parts of prompts count as under way until they are done"


def test_who_does_not_want_an_answer_any_more_gets_none_and_its_slot_is_free():
    stages = Queue(slots=2, depth=2)
    making = Passing(stages, 2, [END])
    first, second, third = (making.submit([start], Sampling(max_tokens=6)) for start in (3, 10, 20))
    while not first.tokens:
        making.step()
    making.cancel(first)
    events = list(finished(making))
    assert (first.finish_reason, second.tokens, third.tokens) == ("cancelled", [11, 12, 13, 14, 15, 16], [21, 22, 23, 24, 25, 26])
    assert all(event.answer is not first for event in events)


@pytest.mark.parametrize("slots", [2, 5])
def test_prompts_that_begin_alike_and_answers_to_the_same_one(slots):
    stages = Queue(slots)
    making, common = Passing(stages, 2, [END]), [1, 2] * CHUNK
    prompts = [[*common, start] for start in (5, 15, 15, 25, 15)]
    answers = [making.submit(prompt, Sampling(max_tokens=3)) for prompt in prompts]
    making.step()
    making.cancel(answers[1])
    list(finished(making))
    assert [one.tokens for one in answers[2:]] == [[prompt[-1] + more for more in (1, 2, 3)] for prompt in prompts[2:]]
    assert [step[2] for step in stages.steps if step[0] == "prefill"].count(CHUNK) == 2 and not making.under_way
