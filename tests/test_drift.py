"""What has changed, told from what batches take: ranks, links, and whether a switch is worth it."""

import re

import numpy as np
import pytest
from clusters import cluster

from hepti_mpi.cluster.profile import scaled
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.planning.search import choose
from hepti_mpi.program.build import make_program
from hepti_mpi.tuning.drift import Expectation, Links, Speeds, Waits, bucket_of, promised, worth

SPEC = random_model("tiny-bert").spec
PROFILE = cluster((1.0, 0.5, 0.25, 0.1))
HOSTS = ("pi0", "pi1", "pi2", "pi3")
BUCKET = (8, 5)


def told(speeds, batches, factors, noise=0.03, work=0.1, bucket=BUCKET, seed=1):
    """Let `speeds` hear of batches in which ranks take `factors` times as long as was expected of them in the beginning; a factor of None:
    it has nothing to do. `work`: seconds expected of each."""
    draw = np.random.default_rng(seed)
    work = np.broadcast_to(work, len(factors))
    for _ in range(batches):
        speeds.batch(bucket, {
            rank: (work[rank] * factor * np.exp(draw.laplace(0, noise)), work[rank] * speeds.used[rank])
            for rank, factor in enumerate(factors) if factor is not None
        })  # fmt: skip
    return speeds


@pytest.mark.parametrize("hosts", [HOSTS, HOSTS[:2], ("vm", "vm"), ("vm",) * 3])
def test_nothing_has_changed(hosts):
    speeds = told(Speeds(hosts), 2000, (1.0,) * len(hosts), noise=0.1)
    assert speeds.changed() is None and speeds.used.tolist() == [1] * len(hosts)


@pytest.mark.parametrize("factors, batches, who, much", [
    ((3.2, 1, 1, 1), 3, "rank 0 on pi0 computes", 3.2),
    ((1, 1, 0.5, 1), 4, "rank 2 on pi2 computes", 0.5),
    ((1, 1, 1.3, 1), 10, "rank 2 on pi2 computes", 1.3),
    ((1, 2), 4, "rank 1 on pi1 computes", 2),
    ((0.5, 1), 4, "rank 0 on pi0 computes", 0.5),
    ((2, 2, 2, 2), 5, "all ranks compute", 2),
])  # fmt: skip
def test_a_change_is_told_and_then_used(factors, batches, who, much):
    speeds = told(Speeds(HOSTS[: len(factors)]), 40, (1,) * len(factors))
    assert speeds.changed() is None
    told(speeds, batches, factors, seed=2)
    told_who, told_much = re.fullmatch(r"(.*) ([\d.]+) x as long as (?:it|they) did", speeds.changed() or "").groups()
    assert told_who == who and float(told_much) == pytest.approx(much, rel=0.1)
    assert 3 <= speeds.since() <= batches
    assert np.allclose(speeds.use(), factors, rtol=0.08) and speeds.changed() is None
    told(speeds, 100, factors, seed=3)
    assert speeds.changed() is None
    told(speeds, 8, (1,) * len(factors), seed=4)
    assert speeds.changed() is not None and np.allclose(speeds.use(), 1, rtol=0.08)


def test_two_batches_are_not_enough():
    speeds = told(Speeds(HOSTS), 40, (1, 1, 1, 1))
    assert told(speeds, 2, (9, 1, 1, 1)).changed() is None and speeds.unsure()
    assert told(speeds, 60, (1, 1, 1, 1)).changed() is None and not speeds.unsure()


@pytest.mark.parametrize("taken", [1e-7, 1e-6, 1e-3])
def test_a_rank_with_next_to_nothing_to_do_says_nothing_about_its_speed(taken):
    """Whole requests on one rank each, one request a batch: the other has nothing to compute, whatever it notes."""
    speeds = told(Speeds(HOSTS[:2]), 40, (1, 1))
    for _ in range(200):
        speeds.batch(BUCKET, {0: (0.1, 0.1), 1: (taken, 2e-5)})
        speeds.batch(BUCKET, {0: (0.1, 0.1), 1: (taken, 0.0)})
    assert speeds.changed() is None and not speeds.unsure()
    told(speeds, 5, (1, 3))
    assert speeds.changed() is not None


def test_a_price_that_is_off_for_other_batches_is_no_change():
    """Batches come sorted by length: what prices say of long requests may be off by another factor than of short ones."""
    speeds = Speeds(HOSTS[:3])
    for place, length in enumerate((190, 100, 60, 30, 15, 8, 4)):
        off = 1.6 - 0.12 * place
        factors, bucket = (off, off * (1 + 0.02 * place), off * (1 - 0.02 * place)), bucket_of([length] * (256 // length))
        told(speeds, 30, factors, bucket=bucket, seed=place)
        assert speeds.changed() is None, (length, speeds.changed())


def test_another_s_work_on_the_only_host_is_no_reason_to_plan_again():
    speeds = told(Speeds(("vm",) * 3), 40, (1, 1, 1))
    assert told(speeds, 100, (2, 2, 2)).changed() is None


def test_ranks_without_a_part_are_told_by_their_pulse():
    speeds = told(Speeds(HOSTS), 40, (1, 1, 1, None))
    for _ in range(100):
        speeds.idle(3, 1.0)
    assert speeds.changed() is None
    for _ in range(4):
        speeds.idle(3, 0.2)
    assert speeds.changed() == "rank 3 on pi3 computes 0.20 x as long as it did"
    assert np.allclose(speeds.use(), (1, 1, 1, 0.2), rtol=0.08)


def test_a_board_that_is_half_as_fast_as_its_profile_is_told_in_the_beginning():
    speeds = told(Speeds(HOSTS), 8, (1, 1, 2.5, 1))
    assert speeds.changed() is not None and np.allclose(speeds.use(), (1, 1, 2.5, 1), rtol=0.1)


def rates(profile, changes=None, noise=0.1, seed=0):
    draw = np.random.default_rng(seed)
    return {pair: profile.bytes_per_second[pair[0]][pair[1]] * (changes or {}).get(pair, 1.0) * np.exp(draw.normal(0, noise))
            for pair in Links(profile.hosts, profile).charts}  # fmt: skip


def test_links_that_changed():
    links = Links(PROFILE.hosts, PROFILE)
    for look in range(300):
        links.looked(rates(PROFILE, seed=look), PROFILE)
    assert links.use(PROFILE) == (PROFILE, None)
    changes = {(1, 2): 0.1, (2, 3): 0.33}
    for look in range(5):
        links.looked(rates(PROFILE, changes, seed=look), PROFILE)
    found, what = links.use(PROFILE)
    assert what.startswith(f"the link between rank 1 on {PROFILE.hosts[1]} and rank 2 on {PROFILE.hosts[2]} carries ")
    for (one, other), part in {**changes, (0, 1): 1.0}.items():
        assert found.bytes_per_second[one][other] == found.bytes_per_second[other][one]
        assert found.bytes_per_second[one][other] == pytest.approx(part * PROFILE.bytes_per_second[one][other], rel=0.2)


@pytest.mark.parametrize("again, carries", [(1.2, 1.0), (0.8, 1.0), (1.5, 1.5), (0.5, 0.5)])
def test_a_link_that_is_back_carries_what_was_measured(again, carries):
    """A look, which is short and begins with a link at rest, finds up to a quarter more or less."""
    links, pair = Links(PROFILE.hosts, PROFILE), (1, 2)
    slow, _ = used(links, PROFILE, {pair: 0.1})
    assert slow.bytes_per_second[1][2] == pytest.approx(0.1 * PROFILE.bytes_per_second[1][2], rel=0.2)
    profile, what = used(links, slow, {pair: again * PROFILE.bytes_per_second[1][2] / slow.bytes_per_second[1][2]})
    assert what is not None
    assert profile.bytes_per_second[1][2] == pytest.approx(carries * PROFILE.bytes_per_second[1][2], rel=1e-6 if carries == 1 else 0.1)


def used(links, profile, changes):
    """Return what `links` makes of a profile after some looks at what it says and some at something else."""
    for look in range(65):
        links.looked(rates(profile, changes if look >= 60 else None, noise=0.02, seed=look), profile)
    return links.use(profile)


def test_one_look_tells_nothing():
    links = Links(PROFILE.hosts, PROFILE)
    links.looked(rates(PROFILE, {(0, 1): 0.01}), PROFILE)
    assert not links.changed and links.unsure() == [(0, 1)]


def test_inside_a_host_there_is_no_link():
    hosts = ("a", "a", "b", "b")
    profile = cluster((1,) * 4, hosts=hosts)
    links = Links(hosts, profile)
    assert not Links(("vm",) * 4, profile).charts and list(links.charts) == [(0, 2)]
    for look in range(5):
        links.looked(rates(profile, {(0, 2): 0.1}, seed=look), profile)
    found, _ = links.use(profile)
    before = profile.bytes_per_second[0][1]
    assert found.bytes_per_second[0][1] == found.bytes_per_second[2][3] == before
    assert {found.bytes_per_second[one][other] for one in (0, 1) for other in (2, 3)} == {found.bytes_per_second[0][2]}
    assert found.bytes_per_second[1][3] < 0.2 * before


def test_what_batches_take_beyond_computing():
    waits, draw = Waits(), np.random.default_rng(1)
    for _ in range(500):
        waits.batch(BUCKET, 1.3 * np.exp(draw.laplace(0, 0.1)), 1.0)  # prices are off, always by as much
    assert not waits.changed
    for _ in range(4):
        waits.batch(BUCKET, 2.6, 1.0)
    assert waits.changed and waits.since <= 4
    waits.accept(explained=False)
    for _ in range(100):
        waits.batch(BUCKET, 2.6 * np.exp(draw.laplace(0, 0.1)), 1.0)
    assert not waits.changed


@pytest.mark.parametrize("before, after, left, lasted, cost, wanted", [
    (1.0, 0.5, 100, 10, 1.0, True), (1.05, 1.0, 1000, 100, 0.1, False), (1.0, 0.5, 3, 10, 1.0, False), (1.0, 1.5, 100, 100, 0.0, False),
    (1.0, 0.5, 100, 1, 1.0, False), (1.0, 0.5, 100, 2, 1.0, True), (1.0, 0.5, None, 1, 1.0, False), (1.0, 0.5, None, 2, 1.0, True),
])  # fmt: skip
def test_what_is_worth_a_switch(before, after, left, lasted, cost, wanted):
    assert worth(before, after, left, lasted, cost) == wanted


@pytest.mark.parametrize("advised, present, measured, after", [
    (0.5, 1.0, 1.0, 0.5), (0.5, 1.0, 2.0, 1.5), (0.5, 1.0, 0.6, 0.3),
])  # fmt: skip
def test_what_a_promise_comes_to(advised, present, measured, after):
    assert promised(advised, present, measured) == pytest.approx(after)


def test_what_batches_should_take():
    demand = Demand(20)
    plan = choose(SPEC, "x", PROFILE, demand).chosen.plan
    expected, program = Expectation(SPEC, PROFILE, plan, 20), make_program(SPEC, plan)
    for rows in (1, 2, 7, 20, 31, 100):
        seconds, compute = expected.of([rows])
        price = Pricer(SPEC, PROFILE, rows).price(program, plan)
        assert seconds == pytest.approx(price.seconds) and np.allclose(compute, price.compute)
    slow = Expectation(SPEC, scaled(PROFILE, [2, 2, 2, 2]), plan, 20)
    assert np.allclose(slow.of([20])[1], 2 * expected.of([20])[1])


def test_batches_are_priced_by_their_own_requests():
    """Where requests stay whole a batch of one leaves ranks without work, and long requests take longer than as many rows of short ones."""
    plan = choose(SPEC, "x", cluster((1.0, 1.0)), Demand(20, 5, layout=("local", "rows"))).chosen.plan
    expected = Expectation(SPEC, cluster((1.0, 1.0)), plan, 20)
    assert sorted(expected.of([20])[1] > 0) == [False, True] and (expected.of([10, 10])[1] > 0).all()
    assert expected.of([10, 10])[1].sum() > expected.of([5] * 4)[1].sum()


def test_the_last_batches_of_a_rank_say_how_fast_it_is_before_they_are_enough_for_an_alarm():
    """It may be left out just then."""
    speeds, expected = Speeds(["a", "b", "c"]), 0.5
    for taken in [0.5] * 10 + [0.5 / 3] * 2:
        speeds.batch((7, 7), {0: (taken, expected), 1: (0.5, expected), 2: (0.5, expected)})
    assert speeds.changed() is None
    assert speeds.last(0) == pytest.approx(1 / 3, rel=0.01) and speeds.last(1) == pytest.approx(1.0)
