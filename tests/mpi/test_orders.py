"""Orders on real ranks: taken in their order, reports arrive, plans change between batches and answers stay the same."""


import time
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from made_plans import plan_of
from test_answers import GOLDEN, SHARES, desk_of, loaded, opened

from hepti_mpi.cluster import links
from hepti_mpi.comm.control import SHORT_BYTES
from hepti_mpi.comm.mail import RESTING_SECONDS, Mail
from hepti_mpi.comm.sizes import PART_BYTES
from hepti_mpi.engine import loading
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.program import plan as plans
from hepti_mpi.serving import loop
from hepti_mpi.serving.loop import answer
from hepti_mpi.tuning.watch import Steady
from hepti_mpi.tuning.wires import Exact

COUNT = 50


@pytest.mark.parametrize("size", [0, SHORT_BYTES - 3, SHORT_BYTES - 2, SHORT_BYTES - 1, 5000])
def test_all_hear_what_each_says(world, size):
    """Of values around those that one message holds, on all ranks or on one alone, and of other values on each."""
    every = ["x" * (size + rank) for rank in range(world.size)]
    assert world.gather_all(every[world.rank]) == every
    assert world.gather_all("x" * size if world.rank == world.size - 1 else None) == [*[None] * (world.size - 1), "x" * size]
    assert world.from_root({"said": every[world.rank]}) == {"said": every[0]}


def test_orders_come_in_order_and_reports_come_back(world, machine):
    mail = Mail(world, lead=0, pause=machine.exchanges.pause)
    if world.rank == 0:
        for number in range(COUNT):
            mail.tell("orders", {"number": number, "text": "x" * number * 50})
        found = [mail.take("reports", 60) for _ in range(COUNT * (world.size - 1))]
        for rank in range(1, world.size):
            assert [letter.facts["twice"] for letter in found if letter.sender == rank] == [2 * number for number in range(COUNT)]
    else:
        for number in range(COUNT):
            order = mail.take("orders", idle=RESTING_SECONDS * (world.rank % 2 == 0)).facts
            assert order == {"number": number, "text": "x" * number * 50}
            mail.send(0, "reports", {"twice": 2 * number})
        mail.send(0, "unread", {"nobody": "reads this"}, {"large": np.zeros(1 << 18)})
    mail.close()


def test_one_look_finds_what_has_come(world, machine):
    """A thread looks a few hundred times a second at most: a letter that needs several looks comes later by so much on each of its ways."""
    mail = Mail(world, lead=0, pause=machine.exchanges.pause)
    world.barrier()
    if world.rank == 0:
        mail.tell("orders", {"do": "this"})
    else:
        time.sleep(0.5)  # for it to come, while this rank does not look
        mail._look()
        assert not mail.boxes["orders"].empty()
    mail.close()


def test_who_waits_for_its_lead_hears_that_it_is_there(world, monkeypatch):
    """Where there is nothing to do for longer than a rank waits for another."""
    monkeypatch.setattr(world.patience, "seconds", 1.5)
    left, first = [], world.rank == 0

    def pause(waited):
        left.append(world.patience.left())
        time.sleep(0.01)

    mail = Mail(world, (), range(1, world.size)) if first else Mail(world, lead=0, pause=pause)
    if first:
        time.sleep(4)
        for rank in range(1, world.size):
            mail.send(rank, "work", {"do": "end"})
    else:
        assert mail.take("work").facts == {"do": "end"}
        assert len(left) > 10 and min(left) > 0.5 * world.rank, "each wait lasts a part of the deadline only"
    mail.close()


def test_links_are_measured_again(world):
    """Both ends of every pair find a rate, and nobody waits for the wrong one."""
    pairs = links.round_robin(world.size)
    found = links.links_again(world, pairs, [100_000] * len(pairs), 70_000)
    assert set(found) == set(range(world.size)) - {world.rank}
    assert all(rate > 1e5 for rate in found.values())


@pytest.mark.parametrize("ahead", [1, 100_000, 300_000])
def test_a_look_fills_no_link(world, monkeypatch, ahead):
    """A link of 20 Mbit/s with a queue of 0.2 s was told as 13: more was on the way than it could hold, and was sent again."""
    sent, came, under_way, waited = [], [], [], world.done

    def done(requests, *how):
        if requests and requests[0] not in sent:
            under_way.append(len(sent) - len(came))
            came.extend(requests)
        waited(requests, *how)

    class Spying:
        def __getattr__(self, name):
            return getattr(mpi, name)

        def Isend(self, *what):
            sent.append(mpi.Isend(*what))
            return sent[-1]

    mpi = world.mpi
    if world.rank < 2 <= world.size:
        with monkeypatch.context() as spying:
            spying.setattr(world, "mpi", Spying())
            spying.setattr(world, "done", done)
            assert world.both_ways(1 - world.rank, 500_000, ahead) > 0
        assert len(sent) == len(came) == -(-ahead // PART_BYTES) + -(-500_000 // PART_BYTES)
        assert max(under_way) == -(-ahead // PART_BYTES)
    world.barrier()


class Restless(Steady):
    """A watch that changes the plan after every batch, and looks at the links now and then."""

    def __init__(self, plans, ranks):
        super().__init__()
        self.plans, self.turn, self.ranks, self.swaps, self.heard_of = plans, 0, ranks, 0, set()
        self.wires = []  # of each plan that was taken

    def next(self, left):
        self.turn += 1
        if self.turn % 3 == 0:
            return {"do": "swap", "plan": self.plans[self.turn // 3 % len(self.plans)].to_json()}
        if self.turn % 7 == 0:
            pairs = links.round_robin(self.ranks)
            return {"do": "links", "pairs": pairs, "sizes": [20_000] * len(pairs), "ahead": 1000}
        return {"do": "answer", "count": min(2, left), "pulse": True}

    def heard(self, rank, facts):
        self.heard_of.add((rank, *facts))

    def swapped(self, seconds, load_seconds, wire):
        assert seconds >= load_seconds > 0
        self.swaps += 1
        self.wires.append(wire)


@pytest.mark.parametrize("shares", [("even", "uneven"), ("with nothing", "all on the last")])
def test_plans_change_between_batches(machine, folder, shares):
    """Layouts, shares and who takes part change in the middle: every answer is that of a run that keeps its plan."""
    world, store = machine.world, opened(folder, "bert", machine.world.rank, machine.world)
    own = {"reduction": "reduce_scatter", "collectives": "own"}
    layouts = (("alltoall", "rows"), ("heads", "columns"), ("rows", "rows"))
    made = [plan_of(store, layout, SHARES[share](world.size), total=40, **own)
            for layout in layouts for share in shares]  # fmt: skip
    results, source = [], GOLDEN / "bert" / "expected_padded.npz"
    for watch in (Steady(), Restless(made, world.size)):
        ready = loaded(machine, store, made[0])
        requests, desk = desk_of(ready, source, 16, 12, watch=watch)
        ready, outcome = answer(ready, desk)
        results.append(desk and desk.sink)
        assert len({plan for plan in world.gather_all(ready.plan.hash)}) == 1
        if world.rank == 0:
            assert sorted(desk.sink.places) == sorted([*range(len(requests))] * 12) and len(outcome.latencies) == len(outcome.rows)
    if world.rank == 0:
        assert watch.swaps > 3 and outcome.seconds.shape[0] == world.size
        for one, other in zip(*results):
            assert set(one) == set(other)
            assert all(np.abs(one[name] - other[name]).max() < 1e-4 for name in one)
        if world.size > 1:
            assert {kind for _, *kinds in watch.heard_of for kind in kinds} >= {"number", "compute"}


SOME = [(*wires,) for wires in product(("float16", "int8"), repeat=3) if len(set(wires)) > 1]  # layers


@pytest.mark.parametrize("part, wires", [(1.01, ["int8"]), (0.99, SOME), (1e-9, ["float32"])])
def test_a_new_plan_changes_results_by_no_more_than_is_tolerated(machine, folder, part, wires):
    """What int8 changes is measured again after each switch: the record has the last one's error, and what is too much is not used."""
    world, store = machine.world, opened(folder, "bert", machine.world.rank, machine.world)
    own = {"reduction": "reduce_scatter", "collectives": "own"}
    made = [replace(plan_of(store, layout, SHARES["even"](world.size), total=40, **own),
                    wire="int8") for layout in (("alltoall", "rows"), ("heads", "columns"))]  # fmt: skip
    exact = loaded(machine, store, replace(made[0], wire="float32"))
    compared = Exact(exact, 40)
    errors = [compared.error(loading.swap(exact, plan)) for plan in made]
    watch = Restless(made, world.size)
    ready = replace(loaded(machine, store, exact.plan), tolerance=part * min(errors) if part < 1 else part * max(errors))
    _, desk = desk_of(ready, GOLDEN / "bert" / "expected_padded.npz", 16, 8, watch=watch)
    ready, _ = answer(ready, desk)
    expected = wires if world.size > 1 else ["int8"]  # one rank alone sends nothing, which changes nothing
    assert ready.plan.wire in expected and ready.wire_error <= ready.tolerance
    assert ready.wire_error == Exact(ready, 40).error(ready)
    if expected is not SOME:
        assert ready.wire_error == (0 if expected == ["float32"] else errors[made.index(replace(ready.plan, predicted_seconds=None))])
    assert world.rank or (watch.swaps > 3 and set(watch.wires) <= set(expected))


class Arriving:
    """A source whose requests come one after the other, after looks at which none is there."""

    def __init__(self, requests):
        self.requests, self.looks = list(requests), 0

    @property
    def ended(self):
        return not self.requests

    def take(self, timeout):
        self.looks += 1
        return [self.requests.pop(0)] if self.looks % 3 == 2 and self.requests else []


@pytest.mark.parametrize("beat", [0.0, 60.0])
def test_requests_may_come_while_others_are_answered(machine, folder, monkeypatch, beat):
    """Of shapes that no rank has prepared, also to ranks that rest; the answers are those of a source that is known from the beginning."""
    monkeypatch.setattr(loop, "REST_SECONDS", beat)
    monkeypatch.setattr(loop, "BEAT_SECONDS", beat)
    world, store = machine.world, opened(folder, "bert", machine.world.rank, machine.world)
    plan = plan_of(store, ("rows", "rows"), SHARES["uneven"](world.size), total=40)
    results = []
    for arriving in (False, True):
        ready = loaded(machine, store, plan)
        requests, desk = desk_of(ready, GOLDEN / "bert" / "expected_padded.npz", 16)
        if arriving and desk is not None:
            desk.source = Arriving(requests)
        _, outcome = answer(ready, desk)
        results.append(desk and desk.sink)
    if world.rank == 0:
        assert outcome.answered == len(requests) and sorted(desk.sink.places) == list(range(len(requests)))
        for one, other in zip(*results):
            assert set(one) == set(other) and all(np.abs(one[name] - other[name]).max() < 1e-4 for name in one)


def test_a_plan_is_the_same_after_its_journey():
    spec = random_model("tiny-bert").spec
    plan = replace(plan_of(spec, ("heads", "rows"), SHARES["even"](3), total=40), predicted_seconds=0.5)
    assert plans.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("predicted, more", [(1e-3, 10), (0.05, 3), (0.4, 1), (10.0, 0), (None, 0)])
def test_a_short_first_batch_is_answered_before_it_counts(machine, folder, monkeypatch, predicted, more):
    """So that it is not cold; nothing of that is noted, and a long one is not made to wait. Cores of a lone rank have rested besides."""
    world, store = machine.world, opened(folder, "bert", machine.world.rank, machine.world)
    plan = plan_of(store, ("rows", "rows"), SHARES["uneven"](world.size), total=40)
    ready = loaded(machine, store, replace(plan, predicted_seconds=predicted))
    more = min(more, 3) if plan.divided else more
    ran, run = [], ready.engine.run
    monkeypatch.setattr(ready.engine, "run", lambda lengths, embedded: (ran.append(tuple(lengths)), run(lengths, embedded))[1])
    requests, desk = desk_of(ready, GOLDEN / "bert" / "expected_padded.npz", 16)
    _, outcome = answer(ready, desk)
    assert len(ran) == len(outcome.latencies) + more if world.rank == 0 else len(ran) > more
    assert len(set(ran[: more + 1])) == 1
    if world.rank == 0:
        assert sorted(desk.sink.places) == list(range(len(requests)))
