"""From requests to steps, and from events to what is kept of them, beside the thread that makes them."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from hepti_mpi.errors import InputError
from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.serving.outputs import finished_answer
from hepti_mpi.serving.scheduler import Scheduler, typical_rows
from hepti_mpi.serving.sink import WAITING, Beside, Shown
from hepti_mpi.serving.source import Given

ANSWERER = SimpleNamespace(spec=SimpleNamespace(hidden=1000))


def requests(*rows):
    return [Request(index, f"line {index + 1}", {}, np.arange(count), count) for index, count in enumerate(rows)]


def event(*places):
    """An event as a sink hears it."""
    finished = [finished_answer({"input": str(place)}) for place in places]
    return SimpleNamespace(places=list(places), requests=places, finished=finished, seconds=0.1)


def test_a_source_that_ends():
    source = Given(requests(3, 4))
    assert not source.ended and len(source.take(0.0)) == 2 and source.ended and source.take(0.0) == []


def test_steps_are_given_round_after_round():
    scheduler = Scheduler(ANSWERER, 8, repeat=2)
    assert scheduler.next() is None and scheduler.left == 0
    scheduler.add(requests(3, 4, 9, 1))
    assert scheduler.shapes == [(9,), (4, 3, 1)] and scheduler.left == 4
    given = [scheduler.next() for _ in range(4)]
    assert [[one.index for one in step.requests] for step in given] == [[2], [1, 0, 3]] * 2
    assert scheduler.next() is None
    done = scheduler.done(given[1], [{}, {}, {}], 0.5)
    assert done.places == [1, 0, 3] and done.seconds == 0.5 and (done.rows, done.rows_left) == (8, 26)


def test_steps_are_cut_where_fewer_rows_are_wanted():
    scheduler = Scheduler(ANSWERER, 8, repeat=2)
    scheduler.add(requests(3, 4, 9, 1))
    assert (scheduler.rows_left, scheduler.first_rows) == (34, 9)
    steps = [scheduler.next(rows) for rows in (5, 6, 7, 9, 4, 8)]
    assert [step.lengths for step in steps] == [(9,), (4,), (3, 1), (9,), (4,), (3, 1)]
    assert [scheduler.done(step, [], 0.1).rows_left for step in steps] == [25, 21, 17, 8, 4, 0]
    assert (scheduler.rows_left, scheduler.first_rows, scheduler.left, scheduler.next(3)) == (0, 0, 0, None)


def test_what_comes_later_waits_for_what_came_before():
    scheduler = Scheduler(ANSWERER, 8)
    scheduler.add(requests(3, 4))
    scheduler.add(requests(5))
    assert scheduler.left == 1 and scheduler.next().lengths == (4, 3) and scheduler.left == 0
    scheduler.add(requests(2))
    assert scheduler.shapes == [(5, 2)] and scheduler.left == 1


def test_what_a_plan_is_made_for():
    assert typical_rows([(9,), (4, 3, 1)]) == {"rows": 9, "attended": 4, "largest": 9, "longest": 9}
    with pytest.raises(InputError, match="nothing to answer"):
        typical_rows([])


class Heard(list):
    """A listener that notes places, and fails at `bad`."""

    bad = None

    def event(self, event):
        if event.places[0] == self.bad:
            raise InputError("the disk is full")
        self.extend(event.places)


def test_events_are_handed_on_in_order_by_another_thread():
    heard, threads = Heard(), set()
    with Beside(heard, SimpleNamespace(event=lambda event: threads.add(threading.current_thread().name))) as beside:
        for place in range(3 * WAITING):
            beside.event(event(place))
    assert heard == list(range(3 * WAITING)) and threads == {"answers"}


@pytest.mark.parametrize("bad", [0, 5, 3 * WAITING - 1])
def test_what_a_listener_raises_is_raised_where_the_events_are_made(bad):
    heard = Heard()
    heard.bad = bad
    with pytest.raises(InputError, match="disk is full"), Beside(heard) as beside:
        for place in range(3 * WAITING):
            beside.event(event(place))
    assert heard == list(range(bad))


def test_nothing_is_handed_on_after_a_stop():
    heard = Heard()
    with pytest.raises(KeyboardInterrupt), Beside(heard) as beside:
        beside.event(event(0))
        beside.stop()
        count = len(heard)
        beside.event(event(1))
        raise KeyboardInterrupt
    assert count in (0, 1) and len(heard) == count


def test_answers_are_shown_in_the_order_of_their_inputs():
    shown = []
    sink = Shown(SimpleNamespace(is_read=True, answers=shown.extend))
    sink.begin({}, 4, {1: finished_answer({"input": "1"}, "is empty")})
    assert sink.kept(3) == "none of 3 answers is there yet"
    for places in ((2,), (3,), (0,), (0, 2)):  # the last is asked again, to measure
        sink.event(event(*places))
    assert [one["input"] for one in shown] == ["0", "1", "2", "3"]
    tally = sink.write()
    assert (tally.inputs, tally.errors, sink.answered) == (4, 1, 5)
    assert sink.kept(8) == "5 of 8 were answered, of which nothing is kept without --output FILE"
