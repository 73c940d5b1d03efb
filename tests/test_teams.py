"""Which teams are made, and which batch goes to whom. What real ranks answer in teams: tests/mpi/test_teams.py."""

import queue
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from clusters import GIB, cluster

from hepti_mpi.cluster.profile import scaled
from hepti_mpi.comm.mail import Letter
from hepti_mpi.errors import CapacityError, PlanError
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.planning import methods, teams
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.forecast import Forecast
from hepti_mpi.program import placement as placements
from hepti_mpi.program.placement import Placement, Stage, Team
from hepti_mpi.reporting.teams import arrangement_lines, described, duties
from hepti_mpi.serving.letters import packed, packed_results, unpacked, unpacked_results
from hepti_mpi.serving.scheduler import Scheduler
from hepti_mpi.serving.teams import RESULTS, WORK, Dispatcher, partners
from hepti_mpi.tuning import teaming
from hepti_mpi.tuning.teaming import worth

SPEC = random_model("random:bert-large").spec
LAYER = 4 * (4 * 1024 * 1024 + 2 * 1024 * 4096)  # bytes


def arranged(speeds, memory=8 * GIB, mbit=200.0, pipeline=False, threads=1, **more):
    profile = cluster(speeds, mbit, memory=memory, **more)
    profile = replace(profile, nodes=tuple(replace(node, threads=threads) for node in profile.nodes))
    return teams.arranged(SPEC, "x", profile, Demand(128, 32), pipeline)


def members(found):
    return [choice.team.members for choice in found.choices]


def test_who_can_hold_the_model_is_a_team_and_exchanges_nothing():
    found = arranged((32, 9, 13, 22))
    assert members(found) == [(0,), (3,), (2,), (1,)] and list(found.alone) == [0, 1, 2, 3]
    assert found.rate == pytest.approx(sum(1 / seconds for seconds in found.alone.values()))
    assert all(stage.plan.collectives == "own" for stage in found.placement.stages), "MPI's own calls are for one thread"


def test_who_cannot_makes_a_pipeline_in_proportion_to_speed():
    found = arranged((30, 20, 10), memory=18 * LAYER)
    (choice,) = found.choices
    layers = [len(stage.plan.layers) for stage in choice.team.stages]
    assert choice.team.members == (0, 1, 2) and layers == [12, 8, 4] and not found.alone
    assert [stage.plan.first for stage in choice.team.stages] == [0, 12, 20]
    placements.check(found.placement, SPEC, "x", 3)


def test_memory_decides_where_it_is_short():
    found = arranged((30, 20, 10), memory=[8 * LAYER, 18 * LAYER, 18 * LAYER], pipeline=True)
    counts = {stage.lead: len(stage.plan.layers) for stage in found.placement.stages}
    assert counts[0] <= 7 and sum(counts.values()) == 24


def test_a_board_that_is_too_small_joins_another_and_is_not_left_over():
    found = arranged((32, 22, 9), memory=[2 * GIB, 2 * GIB, 18 * LAYER])
    assert sorted(rank for team in members(found) for rank in team) == [0, 1, 2] and len(found.choices) == 2
    assert "ms; the whole model does not fit on rank 2 on pi2\n" in arrangement_lines(found, 128, ["pi0", "pi1", "pi2"])


def test_that_mapped_weights_are_not_packed_is_told():
    """Also where nobody asked for them: no rank has room for packed ones."""
    for memory, told in ((10 * LAYER, 1), (8 * GIB, 0)):
        lines = arrangement_lines(arranged((32, 22), memory=memory), 128, ["pi0", "pi1"]).splitlines()
        assert sum("are not packed: products of few rows may take longer than predicted" in line for line in lines) == told


def test_five_boards_of_which_two_hold_a_model_make_two_teams():
    found = arranged((32, 22, 13, 9, 9), memory=[16 * LAYER] * 5)
    assert sorted(len(team) for team in members(found)) == [2, 3]
    assert "no rank alone" in arrangement_lines(found, 128, [f"pi{rank}" for rank in range(5)])


def test_many_boards_are_not_tried_in_all_ways():
    found = arranged((13,) * 12, memory=[8 * GIB] * 8 + [14 * LAYER] * 4, mbit=1000)
    assert len(found.choices) == 10 and sorted(map(len, members(found))) == [1] * 8 + [2] * 2


def test_what_no_team_can_hold_is_refused_with_numbers():
    with pytest.raises(CapacityError, match="bytes|GB|MB"):
        teams.arranged(SPEC, "x", cluster((30, 20)), Demand(128, 32, limits=(3 * LAYER,) * 2))
    assert all(set(stage.plan.weights_mode) == {"mapped"} for stage in arranged((30, 20), memory=3 * LAYER).placement.stages)


def test_all_ranks_as_stages():
    found = arranged((30, 20, 10), pipeline=True)
    assert len(found.choices) == 1 and described(found.choices[0].team) == "stages of 12 + 8 + 4 layers"


def test_stages_that_are_asked_for_are_made_on_one_host_too():
    """One rank with all cores of the host was chosen for them, without a word."""
    profile = cluster((20, 20), hosts=["pi0", "pi0"])
    nodes = tuple(replace(node, threads=1, alone=replace(node, threads=2)) for node in profile.nodes)
    (choice,) = teams.arranged(SPEC, "x", replace(profile, nodes=nodes), Demand(128, 32), pipeline=True).choices
    assert described(choice.team) == "stages of 12 + 12 layers"


def test_who_has_no_room_for_a_layer_is_no_stage_nor_are_more_ranks_than_layers():
    found = arranged((30, 20, 10), memory=[8 * GIB, LAYER // 2, 8 * GIB], pipeline=True)
    assert members(found) == [(0, 2)] and described(found.choices[0].team) == "stages of 18 + 6 layers"
    few = teams.arranged(replace(SPEC, layers=2), "x", cluster((30, 20, 10)), Demand(128, 32), pipeline=True)
    assert members(few) == [(0, 1)]


def test_nobody_is_in_a_team_without_a_part_in_it():
    found = arranged((32, 22), memory=[8 * GIB, LAYER // 2])
    assert members(found) == [(0,)]
    assert all(set(stage.computing) == set(stage.members) for stage in found.placement.stages)
    assert list(found.others) == ["1 team of 1 rank"]


def test_ranks_of_one_host_share_its_cores():
    apart, shared = arranged((20, 20), threads=4), arranged((20, 20), threads=4, hosts=["pi0", "pi0"])
    assert shared.rate < 0.6 * apart.rate


@pytest.mark.parametrize("times, chosen", [(1.7, {0}), (1.1, {0}), (0.4, {0, 1})])
def test_ranks_of_a_host_must_promise_far_more_than_one_with_all_of_its_cores(times, chosen):
    profile = cluster((20, 20), hosts=["pi0", "pi0"])
    sooner = scaled(profile, (1 / times, 1 / times)).nodes
    nodes = tuple(replace(node, threads=1, alone=replace(one, threads=2)) for node, one in zip(profile.nodes, sooner))
    found = teams.arranged(SPEC, "x", replace(profile, nodes=nodes), Demand(128, 32))
    beside, lone = (found.others[what] for what in ("2 teams of 2 ranks", "1 team of 1 rank"))
    assert beside > lone and {rank for team in members(found) for rank in team} == chosen


def test_each_thread_of_a_rank_alone_answers_batches_of_its_own():
    whole, found = arranged((20, 9)), arranged((20, 9), threads=4)
    assert members(found) == [(0,)] * 4 + [(1,)] * 4 and found.placement.apart(1) == 4 and found.placement.leads == (0, 1)
    assert found.rate == pytest.approx(teams.APART * whole.rate) and found.choices[0].team == whole.choices[0].team
    assert found.predicted(SPEC, 0, {(128, 32, 4): 1}) == pytest.approx(128 / found.choices[0].seconds, rel=0.01)
    placements.check(found.placement, SPEC, "x", 2)
    said = ["rank 0 on pi0: alone, 4 batches at once", "rank 1 on pi1: alone, 4 batches at once"]
    lines = arrangement_lines(found, 128, ["pi0", "pi1"])
    assert duties(found.placement, ["pi0", "pi1"]) == said and lines.count("4 batches at once") == 2
    assert f"one batch at a time takes rank 0 {1e3 * found.alone[0]:.1f} ms, rank 1 {1e3 * found.alone[1]:.1f} ms\n" in lines
    assert placements.from_json(found.placement.to_json()) == found.placement


def test_memory_decides_how_many_batches_a_rank_answers_at_once():
    used = 24 * LAYER + (16 << 20)  # its weights, and what a few batches of 128 rows need beside them
    counts = [len(arranged((20,), threads=4, memory=used + more).choices) for more in (-8 << 20, 0, 1 << 30)]
    assert counts == [1, 2, 4]


def test_who_is_slower_than_thought_promises_less():
    found = arranged((20, 20, 9), hosts=["pi0", "pi0", "pi1"])
    slower = found.slowed((2.0, 2.0, 1.0))
    assert slower.placement == found.placement
    for one, other in zip(slower.choices, found.choices):
        assert one.seconds == pytest.approx(other.seconds * (1 if other.team.members == (2,) else 2))
    assert slower.predicted(SPEC, 0, {(128, 32, 4): 1}) < found.predicted(SPEC, 0, {(128, 32, 4): 1})
    assert slower.alone == pytest.approx({0: 2 * found.alone[0], 1: 2 * found.alone[1], 2: found.alone[2]})


def test_what_threads_take_beside_each_other_is_not_said_of_one_batch_at_a_time():
    """"one batch at a time takes rank 0 21.3 ms" was said of 11.8."""
    found = arranged((20, 9), threads=4)
    slower = found.slowed((2.0, 1.0))
    assert slower.choices[0].seconds == pytest.approx(2 * found.choices[0].seconds) and slower.alone == found.alone


@pytest.mark.parametrize("priced, part", [(0.02, 1.0), (0.2, 0.5), (4.0, 0.25)])
def test_teams_are_tried_by_as_much_of_a_batch_as_takes_no_long_and_believed_on_average(monkeypatch, priced, part):
    """By a quarter of a short batch, and the soonest of three tries of new threads, 0.7 to 1.3 times of what came was promised."""
    now, tries, asked = [0.0], [9.0, 1.0, 2.0, 3.0], []  # the first does not count
    monkeypatch.setattr(teaming, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    world = SimpleNamespace(size=1, barrier=lambda: None, from_root=lambda value: value, gather_all=lambda value: [value])
    found = arranged((20,))
    choice = replace(found.choices[0], seconds=priced)
    found = replace(found, choices=(choice,))

    def run(lengths, embedded):
        asked.append(list(lengths))
        assert embedded.shape == (sum(lengths), SPEC.hidden)
        now[0] += tries[len(asked) - 1] * scale

    crew = SimpleNamespace(leads=True, engine=SimpleNamespace(run=run))
    scale = Forecast(SPEC, found.profile, choice.team.stages[0].plan).seconds([32] * int(4 * part)) / 1.6
    slower = teaming.tried.__wrapped__(SimpleNamespace(world=world), SPEC, Demand(128, 32), [crew], found)
    assert asked == [[32] * int(4 * part)] * 4
    assert slower.choices[0].seconds == pytest.approx(priced * 2.0 / 1.6, rel=0.01)


@pytest.mark.parametrize("more, why", [
    (0.9, "at rest: rank 1 on pi0, since that is sooner"),
    (1.2, "at rest: rank 1 on pi0, since ranks of one host slow each other down by more than prices know: more of them would have to"),
])  # fmt: skip
def test_why_ranks_are_at_rest_agrees_with_the_figures_below(more, why):
    found = arranged((20,))
    found = replace(found, others={"1 team of 1 rank": found.rate, "2 teams of 2 ranks": more * found.rate})
    assert why in arrangement_lines(found, 128, ["pi0", "pi0"])


def test_more_ranks_than_cores_are_said_to_be_too_many():
    found = replace(arranged((20,) * 5), profile=cluster((20,) * 5, hosts=["pi0"] * 5))
    said = arrangement_lines(found, 128, ["pi0"] * 5)
    assert "pi0 has 4 cores: as many ranks would do there, instead of 5" in said


def test_what_a_team_should_answer_is_told_by_its_own_batches():
    found = arranged((32, 22))
    even = found.predicted(SPEC, 0, {(128, 32, 4): 3})
    assert even == pytest.approx(128 / found.choices[0].seconds, rel=0.01)
    assert found.predicted(SPEC, 0, {(128, 128, 1): 3}) < even < found.predicted(SPEC, 0, {(128, 32, 4): 3, (512, 32, 16): 9})
    assert found.predicted(SPEC, 1, {(128, 32, 4): 3}) < even


def test_when_teams_are_worth_it():
    found = arranged((32, 22, 13, 9))
    assert worth(found, 1.2 / found.rate, 100) and not worth(found, 0.9 / found.rate, 100)
    assert not worth(found, found.alone[0] * 0.9, 1), "one batch is sooner on all of them"
    assert found.seconds(1) == pytest.approx(min(found.alone.values())) and found.seconds(100) >= 100 / found.rate


@pytest.mark.parametrize("speeds, mbit", [((32, 22, 13, 9), 100_000.0), ((20, 20), 1000.0), ((30, 6, 6), 200.0)])
def test_no_division_of_batches_is_sooner_than_one_that_loses_nothing(speeds, mbit):
    found = arranged(speeds, mbit=mbit)
    assert found.undivided == pytest.approx(sum(1 / seconds for seconds in found.alone.values()))
    together = methods.decide("hepti", SPEC, "x", found.profile, Demand(128, 32)).chosen.price.seconds
    assert 1 / found.undivided <= together
    assert arranged(speeds, memory=[2 * LAYER, *[8 * GIB] * (len(speeds) - 1)], mbit=mbit).undivided is None


@pytest.mark.parametrize("batches, memory, asked", [(100, 8 * GIB, 0), (3, 8 * GIB, 1), (100, [8 * GIB, 20 * LAYER, 20 * LAYER], 1)])
def test_how_all_divide_batches_is_looked_for_only_where_it_could_be_sooner(monkeypatch, batches, memory, asked):
    """A few batches end when the slowest team ends; where some hold parts only, all together may be sooner than their teams."""
    found, calls = arranged((32, 22, 20), memory=memory), []
    other = SimpleNamespace(chosen=SimpleNamespace(price=SimpleNamespace(seconds=2 / found.rate)))
    monkeypatch.setattr(methods, "decide", lambda *_: calls.append(1) or other)
    goal = SimpleNamespace(method="hepti", profile=found.profile, demand=Demand(128, 32))
    assert teaming._worth(found, SimpleNamespace(spec=SPEC, source_hash="x"), goal, batches)
    assert len(calls) == asked


@pytest.mark.parametrize("change, words", [
    (lambda t: Placement((Team((t[0].stages[0], t[1].stages[0])), t[0])), "each of which may be in one team"),
    (lambda t: Placement((Team((Stage((7,), t[0].stages[0].plan),)),)), "plan is for 8 ranks, this job has 4$"),
    (lambda t: Placement((Team((Stage((-1,), t[0].stages[0].plan),)),)), "the plan's teams are of ranks \\[-1\\], this job has 4"),
    (lambda t: Placement(()), "the plan's teams"),
    (lambda t: Placement((Team(t[0].stages * 2),)), "each of which may be in one team"),
])  # fmt: skip
def test_placements_that_are_none(change, words):
    every = arranged((32, 22, 13, 9)).placement.teams
    with pytest.raises(PlanError, match=words):
        placements.check(change(every), SPEC, "x", 4)


def test_layers_that_are_missing_are_refused():
    (team,) = arranged((30, 20, 10), pipeline=True).placement.teams
    with pytest.raises(PlanError, match="team 0 of the plan has layers"):
        placements.check(Placement((Team(team.stages[:2]),)), SPEC, "x", 3)


def test_a_placement_is_the_same_after_its_way_to_other_ranks():
    found = arranged((30, 20, 10), memory=18 * LAYER).placement
    again = placements.from_json(found.to_json())
    assert again == found and again.hash == found.hash and found.place(1) == (0, 1) and found.place(9) is None


# batches and letters


def requests(*rows):
    made = []
    for index, count in enumerate(rows):
        arrays = {"ids": np.arange(count), "types": np.zeros(count, np.int64)}
        made.append(Request(index, f"line {index + 1}", arrays, np.arange(count), count + 1))
    return made


def test_a_batch_and_its_results_survive_the_way():
    given = requests(3, 1, 5)
    facts, arrays = packed(given)
    for one, other in zip(unpacked(facts, arrays), given, strict=True):
        assert (one.index, one.origin, one.width, one.rows) == (other.index, other.origin, other.width, other.rows)
        assert one.text is None
        assert all(np.array_equal(one.arrays[name], other.arrays[name]) for name in other.arrays)
    assert set(packed(given, embedded=True)[1]) == {"in.ids", "keep"}
    said = [replace(given[0], text="secret"), given[1]]  # which poolings ask, whose rows of a prompt do not count
    assert [one.text for one in unpacked(*packed(said))] == ["", None]
    results = [{"logits": np.ones(2)}, {}, {"logits": np.zeros(2), "mask_ids": np.arange(3)}]
    again = unpacked_results(*packed_results(results))
    assert [sorted(result) for result in again] == [["logits"], [], ["logits", "mask_ids"]] and again[2]["mask_ids"].tolist() == [0, 1, 2]


class Simulated:
    """Mail whose teams answer as fast as they are said to, by a clock of their own."""

    def __init__(self, seconds):
        self.seconds, self.free, self.now, self.waiting = seconds, dict.fromkeys(seconds, 0.0), 0.0, []
        self.count, self.ended, self.partners, self.rank = dict.fromkeys(seconds, 0), [], list(seconds), 0

    def send(self, peer, box, facts, arrays=None):
        assert box == WORK
        if facts["do"] == "end":
            self.ended.append(peer)
            return
        rows = sum(rows for _, _, _, rows, _ in facts["requests"])
        self.free[peer] = max(self.free[peer], self.now) + rows * self.seconds[peer]
        self.waiting.append((self.free[peer], peer, facts["ticket"], rows, len(facts["requests"])))

    def take(self, box, timeout=None):
        assert box == RESULTS
        first = min(self.waiting)
        self.waiting.remove(first)
        self.now, peer, ticket, rows, count = first
        self.count[peer] += 1
        spent = [rows * self.seconds[peer]]
        shapes, arrays = packed_results([{"x": np.array([peer])}] * count)
        return Letter(peer, {"do": "step", "ticket": ticket, "spent": spent, "errors": {}, "results": shapes}, arrays)


def dispatcher_of(mail, count, paces, rows=10):
    source = SimpleNamespace(ended=True)
    events = []
    scheduler = Scheduler(SimpleNamespace(spec=SimpleNamespace(hidden=1000)), rows)
    scheduler.add(requests(*[rows] * count))
    sink = SimpleNamespace(event=events.append)
    answerer = SimpleNamespace(errors={})
    desk = SimpleNamespace(source=source, scheduler=scheduler, sink=sink, wanted=lambda: True, answerer=answerer)
    placement = Placement(tuple(Team((Stage((rank,), None),)) for rank in mail.seconds))
    return Dispatcher(desk, mail, placement, paces), events


@pytest.mark.parametrize("speeds", [(1, 1, 1), (8, 4, 2, 1), (20, 1)])
@pytest.mark.parametrize("known", [True, False], ids=["known", "thought alike"])
def test_batches_go_to_whoever_will_have_answered_first(speeds, known):
    mail = Simulated({rank: 0.01 / speed for rank, speed in enumerate(speeds)})
    paces = list(mail.seconds.values()) if known else [0.01] * len(speeds)
    dispatcher, events = dispatcher_of(mail, 200, paces)
    dispatcher._work()
    assert dispatcher.error is None and sorted(place for event in events for place in event.places) == list(range(200))
    least = 200 * 10 / sum(1 / seconds for seconds in mail.seconds.values())
    assert mail.now <= 1.05 * least + 10 * max(mail.seconds.values()) * (not known)
    assert sorted(mail.ended) == list(mail.seconds) and dispatcher.outcome.answered == 200
    assert [team.batches for team in dispatcher.outcome.teams] == list(mail.count.values())


@pytest.mark.parametrize("speeds", [(32, 23, 13, 9), (16, 16, 13, 13, 10, 10, 7, 7), (20, 1)])
def test_all_teams_end_together(speeds):
    """Also where a full batch of the slowest takes a tenth of the job."""
    mail = Simulated({rank: 0.01 / speed for rank, speed in enumerate(speeds)})
    dispatcher, events = dispatcher_of(mail, 1, list(mail.seconds.values()), rows=256)
    rows = [4 + 7 * number % 61 for number in range(300)]
    dispatcher.desk.scheduler.given = 1
    dispatcher.desk.scheduler.add(requests(*rows))
    dispatcher._work()
    assert dispatcher.error is None and sorted(place for event in events for place in event.places) == list(range(300))
    assert mail.now <= 1.05 * sum(rows) / sum(1 / seconds for seconds in mail.seconds.values())


def test_a_team_that_becomes_slow_gets_less():
    mail = Simulated({0: 0.001, 1: 0.001})
    dispatcher, events = dispatcher_of(mail, 100, [0.001, 0.001])
    real = mail.take

    def take(box, timeout=None):
        letter = real(box, timeout)
        if sum(mail.count.values()) == 20:
            mail.seconds[1] = 0.01
        return letter

    mail.take = take
    dispatcher._work()
    assert mail.count[0] > 2 * mail.count[1] and len(events) == 100


class Open:
    """A source without an end, of which nothing comes until somebody asks."""

    def __init__(self):
        self.came, self.ended = queue.SimpleQueue(), False

    def take(self, timeout):
        return self.came.get() if timeout else [] if self.came.empty() else self.came.get()

    def ask(self, *asked):
        self.came.put([*asked])
        self.ring()


@pytest.fixture
def service():
    """Return what makes teams of a service that answer nothing: who asks, and a queue of what they are given. They end with the test."""
    ends = []

    def begin(*paces):
        letters, given = queue.SimpleQueue(), queue.SimpleQueue()

        def send(peer, box, facts, arrays=None):
            (letters if box == RESULTS else given).put(Letter(peer, facts))

        mail = SimpleNamespace(seconds=dict(enumerate(paces)), rank=0, partners=[], send=send, take=lambda box, timeout=None: letters.get())
        dispatcher, _ = dispatcher_of(mail, 0, paces, rows=128)
        source = dispatcher.desk.source = Open()
        thread = threading.Thread(target=Dispatcher(dispatcher.desk, mail, dispatcher.placement, paces)._work, daemon=True)
        ends.append(lambda: (setattr(source, "ended", True), letters.put(Letter(0, {})), source.came.put([]), thread.join(20)))
        thread.start()
        return source, given

    yield begin
    for end in ends:
        end()


def handed(given, count):
    """Return to whom so many letters go, and the rows of each request in them."""
    letters = [given.get(timeout=20) for _ in range(count)]
    return [(letter.sender, [rows for _, _, _, rows, _ in letter.facts["requests"]]) for letter in letters]


def test_a_team_that_is_free_begins_with_what_comes_while_another_answers(service):
    """Else of two who ask at the same time one waits for the other, and half of the teams rest."""
    source, given = service(0.01, 0.01)
    for one in requests(5, 6):
        source.ask(one)
    assert handed(given, 2) == [(0, [5]), (1, [6])]


@pytest.mark.parametrize("paces, rows, parts", [
    ((0.01, 0.01), [16] * 8, [(0, [16] * 4), (1, [16] * 4)]),
    ((0.01, 0.01), [19, 15, 12, 10, 8, 7, 6, 4], [(0, [19, 15, 12]), (1, [10, 8, 7, 6, 4])]),
    ((0.01,) * 4, [16] * 8, [(0, [16] * 2), (1, [16] * 2), (2, [16] * 2), (3, [16] * 2)]),
    ((0.01, 0.03), [16] * 8, [(0, [16] * 6), (1, [16] * 2)]),
    ((0.01, 0.5), [16] * 8, [(0, [16] * 8)]),
    ((0.01, 0.01), [5, 4, 4], [(0, [5, 4, 4])]),
    ((0.01, 0.01), [60], [(0, [60])]),
])  # fmt: skip
def test_what_comes_while_all_teams_are_free_is_shared_out_by_speed(service, paces, rows, parts):
    """Else eight texts are answered by one core of a board while the others rest."""
    source, given = service(*paces)
    source.ask(*requests(*rows))
    assert handed(given, len(parts)) == parts and given.empty()


def test_what_comes_while_some_are_busy_is_not_cut(service):
    source, given = service(0.01, 0.01)
    source.ask(*requests(100))
    assert handed(given, 1) == [(0, [100])]
    source.ask(*requests(*[16] * 6))
    assert handed(given, 1) == [(1, [16] * 6)]


def test_a_sink_that_fails_ends_all_teams():
    mail = Simulated({0: 0.001, 1: 0.001})
    dispatcher, _ = dispatcher_of(mail, 20, [0.001, 0.001])

    def full(event):
        raise OSError("no space left")

    dispatcher.desk.sink.event = full
    dispatcher._work()
    assert isinstance(dispatcher.error, OSError) and sorted(mail.ended) == [0, 1]


def test_who_writes_to_whom():
    placement = arranged((30, 20, 10), pipeline=True).placement
    assert [partners(placement, rank, 3) for rank in range(3)] == [{0, 1, 2}] * 3
    alone = arranged((30, 20, 10)).placement
    assert partners(alone, 2, 3) == {0, 2} and partners(alone, 0, 3) == {0, 1, 2}


def test_who_rests_hears_that_rank_0_is_there_and_of_the_end():
    placement = Placement((Team((Stage((1, 2), None),)),))
    assert partners(placement, 0, 5) == {0, 1, 3, 4} and partners(placement, 3, 5) == {0} and partners(placement, 2, 5) == set()
    mail = Simulated({1: 0.01})
    mail.partners = [1, 3, 4]
    dispatcher, _ = dispatcher_of(mail, 3, [0.01])
    dispatcher._work()
    assert sorted(mail.ended) == [1, 3, 4]


def test_handing_out_many_batches_does_not_count_all_that_are_left_each_time():
    spent = []
    for repeat in (200, 2000):
        dispatcher, events = dispatcher_of(Simulated({0: 0.01, 1: 0.01}), 20, [0.01, 0.01])
        dispatcher.desk.scheduler.repeat = repeat
        begin = time.process_time()
        dispatcher._work()
        spent.append(time.process_time() - begin)
        assert len(events) == 20 * repeat
    assert spent[1] < 40 * spent[0]  # about 10 times as much; counting each time would be 100
