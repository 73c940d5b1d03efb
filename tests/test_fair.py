"""Who is next of those that wait."""

import random
from collections import Counter

import pytest

from hepti_mpi.serving.fair import Fair


def pieces(name, *rows):
    return [(count, (name, number)) for number, count in enumerate(rows)]


def test_the_longest_of_a_question_goes_first_with_what_there_is_room_for():
    queue = Fair(100)
    queue.add("a", "x", pieces("x", 3, 4, 5))
    assert queue.rows == 12 and queue.count == 3
    assert queue.take(8) == [("x", 2), ("x", 0)] and queue.take(8) == [("x", 1)] and queue.take(8) == []
    assert queue.rows == queue.count == 0 and not queue.clients and not queue.heap


def test_one_that_is_larger_than_there_is_room_comes_alone():
    queue = Fair(100)
    queue.add("a", "x", pieces("x", 50, 1))
    assert queue.take(8) == [("x", 0)] and queue.take(8) == [("x", 1)]


def test_many_texts_of_one_client_delay_no_other_nor_its_own_short_ones():
    queue = Fair(10_000)
    queue.add("greedy", "many", pieces("many", *[10] * 500))
    assert len(queue.take(100)) == 10
    queue.add("other", "one", pieces("one", 10))
    queue.add("greedy", "short", pieces("short", 10))
    assert {name for name, _ in queue.take(30)} == {"many", "one", "short"}


def test_clients_get_equal_rows():
    queue, random_rows = Fair(10**6), random.Random(1)
    for client, questions in (("a", 1), ("b", 20), ("c", 3)):
        for number in range(questions):
            queue.add(client, (client, number), pieces(client, *(random_rows.randint(1, 60) for _ in range(400))))
    had = Counter()
    sizes = {name: dict(enumerate(rows for rows, _ in pieces(name))) for name in "abc"}
    for _ in range(60):
        for name, _ in queue.take(200):
            had[name] += 1
    assert max(had.values()) < 1.25 * min(had.values()), (had, sizes)


def test_what_is_about_as_long_goes_together():
    queue = Fair(10**6)
    for number in range(30):
        queue.add("a", number, pieces(number, 40, 20, 10, 5))
    batches = []
    while taken := queue.take(200):
        batches.append([(40, 20, 10, 5)[place] for _, place in taken])
    assert sum(map(len, batches)) == 120 and all(sum(batch) <= 200 for batch in batches)
    mixed = [batch for batch in batches if min(batch) < 0.9 * max(batch)]
    assert len(mixed) <= 3, batches


def test_who_is_next_is_not_passed_over_however_long_it_is():
    queue = Fair(10**6)
    queue.add("b", "odd", pieces("odd", 97))
    for number in range(100):
        queue.add("a", number, pieces(number, *[10] * 5))
    assert ("odd", 0) in queue.take(100) + queue.take(100)


def test_one_text_of_another_length_among_many_comes_within_its_turn():
    queue, waited = Fair(10**6), 0
    queue.add("a", "odd", pieces("odd", 97))
    for number in range(100):
        queue.add("a", number, pieces(number, *[10] * 50))
    while ("odd", 0) not in queue.take(100):
        waited += 1
    assert waited <= 1


def test_who_was_away_has_no_more_than_its_part_when_it_comes_back():
    queue = Fair(10**6)
    queue.add("a", "x", pieces("x", *[1] * 1000))
    queue.take(500)
    queue.add("b", "y", pieces("y", *[1] * 400))
    taken = Counter(name for name, _ in queue.take(200))
    assert abs(taken["x"] - taken["y"]) <= 2


def test_one_that_fills_the_queue_keeps_no_other_out():
    queue = Fair(1 << 62)
    for number in range(6):
        queue.add("greedy", number, pieces(number, 1))
    assert queue.is_crowded("greedy", 6) and not queue.is_crowded("other", 6) and not queue.is_crowded("greedy", 7)
    questions = [object() for _ in range(3)]
    for question in questions:
        assert not queue.is_crowded("other", 6)
        queue.add("other", question, pieces("other", 1000))
    assert queue.is_crowded("other", 6) and not queue.is_crowded("third", 6)
    queue.drop("other", questions[1])
    assert not queue.is_crowded("other", 6)
    while queue.take(10):
        pass
    assert not queue.count and not queue.is_crowded("greedy", 1)


def test_what_is_dropped_waits_no_longer():
    queue = Fair(100)
    queue.add("a", "x", pieces("x", *[5] * 8))
    queue.add("a", "y", pieces("y", 5))
    queue.take(5)
    queue.drop("a", "x")
    queue.drop("nobody", "x")
    assert queue.take(100) == [("y", 0)] and queue.rows == queue.count == 0 and not queue.clients


@pytest.mark.parametrize("many", [True, False])
def test_it_is_full_for_all_alike_but_for_who_has_little(many):
    queue = Fair(100)
    if many:
        for number in range(20):
            queue.add("a", number, pieces(number, 5))
    else:
        queue.add("a", "x", pieces("x", *[5] * 20))
    assert queue.is_full("a") and not queue.is_full("b")
    queue.add("b", "y", pieces("y", *[5] * 20))
    assert queue.is_full("a") and queue.is_full("b") and queue.is_full("c")
