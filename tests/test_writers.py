"""Texts by teams: which teams, which of them writes a text, and what rank 0 makes of what it hears."""

import json
import queue
import threading
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from clusters import cluster
from test_decoding import ROW, SPEC, TEXT, decide
from test_generation import END, Counting, finished

from hepti_mpi.comm.mail import Letter
from hepti_mpi.errors import InputError
from hepti_mpi.models.tasks.sampling import Sampling
from hepti_mpi.planning import writing
from hepti_mpi.planning.writing import Writer
from hepti_mpi.program.placement import Stage, Team, whole
from hepti_mpi.reporting.generation import writers_lines
from hepti_mpi.serving.generation import Generator
from hepti_mpi.serving.teams import RESULTS, WORK
from hepti_mpi.serving.writers import TeamGenerator, follow

SLOTS = 4


def letters(ids, more=False):
    return "".join(chr(97 + one % 26) for one in ids)


def arranged(profile, texts=64, forced=True, **changes):
    request = replace(TEXT, **{"kept": SLOTS * 256, **changes})
    one = whole(decide(profile, **{"kept": request.kept, "limits": request.limits}).chosen.plan)
    return writing.arranged(SPEC, "0" * 64, profile, request, one, (SLOTS, texts), forced)


def members(found):
    return [one.team.members for one in found.every]


def test_each_board_that_can_writes_texts_of_its_own():
    found = arranged(cluster([5.0, 20.0, 10.0], mbit=20))
    assert members(found) == [(1,), (2,), (0,)] and writing.worth(found)
    rates = [one.rate for one in found.every]
    assert rates[0] > 1.2 * rates[1] > 1.4 * rates[2]
    assert found.seconds == pytest.approx(64 * TEXT.answer / sum(rates), rel=0.1)
    text = writers_lines(found, ["a", "b", "c"], 80)
    assert "rank 1 on b" in text and "at rest" not in text and max(map(len, text.splitlines()[:-1])) <= 80


def test_a_text_or_two_are_sooner_together():
    near = cluster([20.0, 20.0, 20.0], latency=1e-6, mbit=100_000)
    assert not writing.worth(arranged(near, texts=1)) and writing.worth(arranged(near, texts=300))
    far = cluster([20.0, 20.0, 20.0], latency=0.02)
    assert not writing.worth(arranged(far, texts=1)) and writing.worth(arranged(far, texts=3))


def test_boards_that_cannot_hold_it_alone_hold_it_together():
    alone = decide(cluster([20.0]), kept=0).chosen.memory[0] + 1025 * ROW
    found = arranged(cluster([20.0, 9.0, 9.0, 9.0, 9.0], memory=[alone, *4 * [0.7 * alone]], latency=1e-5))
    assert sorted(members(found)) == [(0,), (1, 2), (3, 4)]
    some = arranged(cluster([20.0, 20.0, 9.0], memory=[alone, alone, 0.1 * alone], latency=1e-5))
    assert members(some) == [(0,), (1,)] and "at rest: rank 2 on c" in writers_lines(some, ["a", "b", "c"])
    assert arranged(cluster([20.0, 9.0], memory=[alone, 0.1 * alone], latency=1e-5)) is None, "one team is none"


def test_ranks_of_one_host_are_teams_or_one_of_them_is():
    found = arranged(cluster([20.0, 20.0, 20.0], hosts=["a", "a", "b"]))
    assert {rank for team in members(found) for rank in team} in ({0, 1, 2}, {0, 2})
    assert sorted(members(arranged(cluster([20.0, 20.0, 20.0], hosts=["a", "a", "b"]), forced=False))) == [(0,), (2,)]
    assert arranged(cluster([20.0, 20.0], hosts=["a", "a"]), forced=False) is None, "they share a memory"


@pytest.mark.parametrize("texts", [1, 3, 4, 5, 11])
def test_seconds_of_texts(texts):
    one = Writer(Team((Stage((0,), None),)), 0.5, (1.0, 1.2, 1.4, 2.0), 10)
    rest = {1: 10, 3: 14, 4: 20, 5: 20 + 10, 11: 20 + 20 + 14}[texts]
    assert one.seconds(texts) == pytest.approx(0.5 * texts + rest)
    assert writing.shared([one], texts) == pytest.approx(one.seconds(texts))
    assert writing.shared([one] * 11, texts) == pytest.approx(one.seconds(1))
    assert writing.shared([one], 3000) == pytest.approx(one.seconds(3000), rel=0.01)


class Sent:
    """Mail between threads: teams whose first ranks have a generator each."""

    rank = 0

    def __init__(self, teams):
        self.partners, self.boxes = list(teams), {rank: queue.SimpleQueue() for rank in [0, *teams]}
        self.given, self.threads = [], []
        for rank in teams:
            post = SimpleNamespace(take=partial(self.take_of, rank), send=self.send)
            work = partial(follow, post, lambda: Generator(Counting(SLOTS), [END]), lambda: None)
            self.threads.append(threading.Thread(target=work, daemon=True))
            self.threads[-1].start()

    def send(self, peer, box, facts, arrays=None):
        assert box == (WORK if peer else RESULTS)
        self.given += [(peer, facts.get("do"))]
        self.boxes[peer].put(Letter(0, json.loads(json.dumps(facts)), arrays or {}))

    def take_of(self, rank, box, timeout=None):
        try:
            return self.boxes[rank].get(timeout=timeout)
        except queue.Empty:
            return None

    def take(self, box, timeout):
        return self.take_of(0, box, timeout)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for rank in self.partners:
            self.send(rank, WORK, {"do": "end"})
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()


def writer(rank, step=0.1, slots=SLOTS):
    return Writer(Team((Stage((rank,), None),)), 0.0, (step,) * slots, 8)


def test_teams_write_the_same_texts():
    """By rank 0's own team and others, one text with a stop text among them and one that ends by itself."""
    lone = Generator(Counting(), [END], letters)
    asked = [([3, 3, 4 + number], Sampling(max_tokens=5 + number % 7)) for number in range(30)]
    asked[7] = [3, 3, 4], Sampling(max_tokens=20, stop=("hi",))
    asked[8] = [3, 3, 44], Sampling(max_tokens=20)
    right = [lone.submit(*one) for one in asked]
    list(finished(lone))
    with Sent([2, 5]) as mail:
        making = TeamGenerator(Generator(Counting(SLOTS), [END]), mail, [writer(0), writer(2), writer(5)], 300, [END], letters)
        answers = [making.submit(*one) for one in asked]
        events = list(finished(making))
    for one, wanted in zip(answers, right):
        assert (one.tokens, one.text, one.finish_reason) == (wanted.tokens, wanted.text, wanted.finish_reason)
        assert "".join(event.text for event in events if event.answer is one) == one.text
        assert one.first_token and one.ended >= one.first_token
    assert sum(one["texts"] for one in making.facts) == 30 and min(one["texts"] for one in making.facts) >= SLOTS
    assert not making.made and not making.flying


def test_a_slow_team_gets_no_text_that_others_write_sooner():
    with Sent([1]) as mail:
        making = TeamGenerator(Generator(Counting(SLOTS), [END]), mail, [writer(0, 0.01), writer(1, 1e6)], 300, [END])
        answers = [making.submit([3, 3], Sampling(max_tokens=4)) for _ in range(3 * SLOTS)]
        list(finished(making))
        assert {one.finish_reason for one in answers} == {"length"} and mail.given == []


def test_what_others_have_made_goes_on_in_a_team():
    with Sent([1]) as mail:
        making = TeamGenerator(None, mail, [writer(1)], 300, [END], letters)
        first = making.submit([3, 3], Sampling(max_tokens=9))
        list(finished(making))
        again = making.submit([3, 3], Sampling(max_tokens=9), first.chosen[:4])
        list(finished(making))
    assert again.tokens == first.tokens and again.made == 4 and making.facts[0]["tokens"] == 9 + 5


def test_an_answer_that_fails_in_a_team_costs_itself():
    with Sent([]) as mail:
        making = TeamGenerator(None, mail, [writer(1)], 300, [END], letters)
        mail.boxes[1] = queue.SimpleQueue()
        with pytest.raises(InputError, match="room for 300"):
            making.submit(range(400), Sampling())
        good, bad = making.submit([3, 3], Sampling(max_tokens=1)), making.submit([3, 3], Sampling(max_tokens=4))
        making._hand_out()
        mail.boxes[0].put(Letter(1, {"events": [[1, None, None, [], "error", "on pi1: it cannot be"], [0, 4, None, [], "length", None]]}))
        events = list(finished(making))
    assert (bad.finish_reason, bad.error) == ("error", "on pi1: it cannot be") and good.finish_reason == "length"
    assert [event.finish for event in events if event.answer is bad] == ["error"]


def test_a_prompt_that_comes_while_others_write_is_handed_out():
    with Sent([]) as mail:
        making = TeamGenerator(None, mail, [writer(1)], 300, [END])
        mail.boxes[1] = queue.SimpleQueue()
        making.submit([3, 3], Sampling(max_tokens=4))
        mail.take = lambda box, timeout: mail.take_of(0, box, 60 if timeout else 0)
        threading.Timer(0.1, making.wake).start()
        assert making.step() == []
        making.submit([3, 3], Sampling(max_tokens=4))
        making.wake()
        assert making.step() == [] and mail.given.count((1, "prompt")) == 2


def test_a_cancelled_text_is_nobodys():
    with Sent([1]) as mail:
        making = TeamGenerator(None, mail, [writer(1)], 300, [END], letters)
        answers = [making.submit([3, 3], Sampling(max_tokens=250)) for _ in range(SLOTS + 1)]
        making._hand_out()
        for one in answers:
            making.cancel(one)
        assert not making.busy and mail.given.count((1, "cancel")) == mail.given.count((1, "prompt")) == SLOTS
        assert making.step() == [], "what was on its way is of nobody"
    assert {one.finish_reason for one in answers} == {"cancelled"}
