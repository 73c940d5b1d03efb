"""The hill climb: it ends with a plan that is valid, fits, and is not slower than what it began with; and its moves keep sums."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from clusters import cluster
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import sized
from made_plans import plan_of

from hepti_mpi import splits
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning.candidates import Candidate, Tried, Variants
from hepti_mpi.planning.demand import MPI, Demand, Exchange
from hepti_mpi.planning.prices import Price, Prices
from hepti_mpi.planning.refine import COLUMN_STEPS, CUTTING, MOST_IMPROVED, MOST_MOVES, ROW_STEPS, TILES, Refinement, order
from hepti_mpi.planning.search import LEANER, _Search
from hepti_mpi.program.plan import check

BASE = random_model("bert-base").spec
ODD = sized(BASE, layers=3, hidden=72, heads=9, ffn=203)
LAYOUTS = [pair for pair in LEANER if pair[0] != "local"]
OWN = Exchange("reduce_scatter", "own")


def search_of(speeds, mbit=100, rows=97, spec=ODD, **options):
    return _Search(spec, "hash", cluster(speeds, mbit=mbit), Demand(rows, mode="packed", **options))


def first(search, layout, exchange=OWN, subset=None):
    """The plan that the planner begins with."""
    plan = search.planned((layout,) * search.spec.layers, subset or tuple(range(search.ranks)), exchange)
    assert plan is not None
    return priced(search, plan)


def priced(search, plan):
    return search.costs.candidates([plan])[0]


def sums(plan):
    return sum(plan.heads), sum(plan.columns), sum(plan.rows), plan.ranks


def refinement_of(search, tried=None):
    return Refinement(search.spec, tried or search.costs.tried, search.seconds, search.freely)


def made_up(rows, price, heads=(5, 4, 0), tiles=()):
    """A refinement in which plans of three ranks cost what `price` says, and its start."""
    plan = plan_of(ODD, ("heads", "columns"), heads, (96, 96, 11), rows, sum(rows), tiles, reduction="reduce_scatter", collectives="own")

    def tried(variants):
        every = [variants.at(number) for number in range(len(variants))]
        seconds = np.array([price(plan) if max(plan.rows) < 80 else np.inf for plan in every])
        nothing, each = np.zeros(len(every)), np.zeros((3, len(every)))
        prices = Prices(seconds, each, each, nothing, nothing, nothing)
        return Tried(variants, seconds, prices, lambda some: some.cells.sum(axis=1), np.arange(3)[:, None])

    start = Candidate(plan, Price(price(plan), np.zeros(3), np.zeros(3), 0.0, 0), plan.rows)
    return Refinement(ODD, tried, price, lambda plan: plan.rows), start


def every(variants):
    return [] if variants is None else [variants.at(number) for number in range(len(variants))]


# what is priced


@pytest.mark.parametrize("speeds, mbit", [((9, 30), 20), ((16, 11.4, 6.7, 4.4), 100), ((30, 3, 3), 1000)], ids=str)
def test_no_plan_takes_less_than_it_computes_or_sends(speeds, mbit):
    """Of any layout and exchange, whole or cut into tiles."""
    search = search_of(speeds, mbit)
    for layout, exchange in product(LAYOUTS, (OWN, MPI)):
        if exchange is not MPI or layout[0] != "alltoall":
            plan = search.planned((layout,) * search.spec.layers, tuple(range(len(speeds))), exchange)
            cut = [replace(plan, tiles=tuple(zip(*(splits.even(count, 2) for count in plan.rows))))] * (exchange is OWN)
            for one in (plan, *cut):
                batch, programs = search.pricer.batch([one]), search.costs.programs(one)
                least, prices = batch.least(*programs, times=search.costs.further), batch.prices(*programs, times=search.costs.further)
                assert 0.3 * prices.seconds[0] < least[0] <= prices.seconds[0]


def test_what_is_hopeless_is_not_priced():
    """One plan of each kind is, and of fewer ranks those that do not compute or send longer than what was found takes."""
    search = search_of((16, 11.4, 6.7, 4.4))
    plans = [search.planned((layout,) * 3, subset, OWN) for layout in LAYOUTS for subset in ((0, 1, 2, 3), (0, 1, 2), (2, 3), (3,))]
    every = {candidate.plan: candidate.price for candidate in search.costs.candidates(plans)}
    most = min(price.seconds for price in every.values())
    some = list(search.costs.promising(plans, lambda plan: most))
    assert {plan for plan, _ in some} == set(plans)
    found = [one for _, one in some if one is not None]
    assert all(one.price.seconds == every[one.plan].seconds and search.costs.fits(one) for one in found)
    assert most == min(one.price.seconds for one in found) and len(found) < len(plans) / 2
    assert [len(one.plan.active) for one in found] == sorted((len(one.plan.active) for one in found), reverse=True)
    assert all(one is not None for _, one in search.costs.promising(plans, lambda plan: np.inf))
    assert not list(search_of((16, 11.4, 6.7, 4.4), limits=(1,) * 4).costs.promising(plans, lambda plan: np.inf)), "no memory"


def test_a_climb_that_comes_too_late_is_given_up():
    """Where many more moves like the last one would not lead to what is aimed at."""
    climbs, start = made_up((60, 30, 7), lambda plan: 1 + sum(abs(a - b) for a, b in zip(plan.rows, (20, 33, 44))))
    every = list(climbs.steps_from(start, 1))
    assert [one.price.seconds for one in every] == sorted((one.price.seconds for one in every), reverse=True) and len(every) > 2
    assert [one.plan for one in climbs.steps_from(start, 1, every[-1].price.seconds)] == [one.plan for one in every]
    assert len(list(climbs.steps_from(start, 1, -1e9))) == 1


# the climb


@pytest.mark.parametrize("exchange", [OWN, MPI], ids=["own", "mpi"])
@pytest.mark.parametrize("layout", LAYOUTS, ids="/".join)
@pytest.mark.parametrize("speeds", [(9, 30), (16, 11.4, 6.7, 4.4)], ids=str)
def test_what_is_found_is_valid_and_not_slower(speeds, layout, exchange):
    if exchange is MPI and layout[0] == "alltoall":
        return
    search = search_of(speeds)
    start = first(search, layout, exchange)
    found = refinement_of(search).improve([start])
    assert 1 <= len(found) <= 2 and [one.price.seconds for one in found] == sorted(one.price.seconds for one in found)
    assert found[0].price.seconds <= start.price.seconds
    for one in found:
        check(one.plan, ODD, "hash", len(speeds))
        assert search.costs.fits(one) and sums(one.plan) == sums(start.plan)
        assert (one.plan.layers, one.plan.collectives, one.plan.wire) == (start.plan.layers, start.plan.collectives, start.plan.wire)
        assert one.plan.tiles == () or exchange is OWN
        alone = priced(search, one.plan)
        assert one.price.seconds == alone.price.seconds and one.memory == alone.memory and one.plan == alone.plan
        assert one.plan.predicted_seconds == one.price.seconds
        assert one.plan.tiles == () or [sum(counts) for counts in zip(*one.plan.tiles)] == list(one.plan.rows)
    again = refinement_of(search_of(speeds)).improve([start])
    assert [order(one) for one in again] == [order(one) for one in found], "the same every time"


@pytest.mark.parametrize("layout", LAYOUTS, ids="/".join)
def test_a_bad_start_is_left(layout):
    """All rows but one on the slowest rank."""
    search = search_of((30, 30, 3), mbit=1000)
    start = first(search, layout)
    bad = priced(search, replace(start.plan, rows=(1, 1, 95)))
    found = refinement_of(search).improve([bad])[0]
    assert found.price.seconds < bad.price.seconds and (found.plan.rows[2] < 60 or layout == ("heads", "columns"))


def test_memory_is_kept_to():
    """The fast rank would take more, and may not."""
    free = search_of((30, 10, 10), spec=BASE)
    start = first(free, ("heads", "columns"))
    even = priced(free, replace(start.plan, heads=(4, 4, 4), columns=(1024,) * 3))
    limits = tuple(int(1.02 * need) for need in even.memory)
    bound = search_of((30, 10, 10), spec=BASE, limits=limits)
    better, best = refinement_of(bound).improve([priced(bound, even.plan)])[0], refinement_of(free).improve([even])[0]
    assert all(need <= limit for need, limit in zip(better.memory, limits))
    assert best.price.seconds < better.price.seconds <= even.price.seconds and any(n > limit for n, limit in zip(best.memory, limits))


def test_a_rank_alone_whole_requests_and_mpi_are_not_cut():
    search = search_of((9, 30, 9), rows=96, attended=24)
    alone = first(search, ("heads", "columns"), MPI, (1,))
    local = first(search, ("local", "rows"))
    climbs = refinement_of(search)
    for one in (alone, local):
        (same,) = climbs.improve([one])
        assert same is one
    for one in (alone, local, first(search, ("heads", "columns"), MPI)):
        assert not climbs.divisible(one.plan) and climbs.promise(one) == (one.price.seconds, one.price.seconds, [one])
    assert climbs.divisible(first(search, ("heads", "columns")).plan)


def test_every_move_that_helps_is_taken():
    """A bowl: the price is how far the rows are from what is best; the climb goes down to the bottom by moves of one row."""
    climbs, start = made_up((60, 30, 7), lambda plan: 1 + sum(abs(a - b) for a, b in zip(plan.rows, (20, 33, 44))))
    found = climbs.climb(start)
    assert found.plan.rows == (20, 33, 44) and found.price.seconds == 1
    assert (found.plan.heads, found.plan.columns) == (start.plan.heads, start.plan.columns)


def test_heads_and_columns_move_too():
    """Columns by whole granules, so that every part still begins at one."""
    goal = (2, 2, 5), (64, 64, 75)
    climbs, start = made_up((60, 30, 7), lambda plan: 1 + sum(abs(a - b) for a, b in zip(plan.heads + plan.columns, goal[0] + goal[1])))
    found = climbs.climb(start).plan
    assert found.heads == goal[0] and sum(abs(a - b) for a, b in zip(found.columns, goal[1])) <= 3 * ODD.column_granule
    check(found, replace(ODD, name="m"), "hash", 3)


def test_too_small_a_gain_is_no_gain():
    climbs, start = made_up((60, 30, 7), lambda plan: 1 - 1e-6 * plan.rows[2])
    assert climbs.climb(start) is start


def test_a_climb_ends():
    """Where every move helps a little for ever, after so many moves."""
    calls = []
    climbs, start = made_up((60, 30, 7), lambda plan: calls.append(1) or 0.999 ** len(calls))
    seconds = climbs.climb(start).price.seconds
    assert len(calls) <= MOST_MOVES * len(climbs.moves(start, [start.plan])) * 1.5 and seconds < 0.999**MOST_MOVES


def test_what_is_promising_is_improved():
    """All are handed back, soonest first; those far behind as they were."""
    search = search_of((16, 11.4, 6.7, 4.4), mbit=60)
    starts = [first(search, layout) for layout in LAYOUTS] + [first(search, ("heads", "columns"), MPI)]
    climbs = refinement_of(search)
    found = climbs.improve_best([one] for one in starts)
    assert len(found) == len(starts)
    assert [order(ones[0]) for ones in found] == sorted(order(ones[0]) for ones in found)
    assert {ones[0].plan.layers for ones in found} == {one.plan.layers for one in starts}
    best, untouched = found[0][0], [ones[0] for ones in found if any(ones[0] is one for one in starts)]
    assert len(starts) - len(untouched) <= MOST_IMPROVED
    assert best.price.seconds <= min(one.price.seconds for one in starts)
    for one in starts:
        seconds, hope, begins = climbs.promise(one)
        assert hope <= seconds <= begins[0].price.seconds <= one.price.seconds
        assert any(begin is one for begin in begins)
    again = climbs.improve_best([one] for one in starts[::-1])
    assert [order(ones[0]) for ones in again] == [order(ones[0]) for ones in found], "in whatever order they come"


def test_one_rank_alone_is_no_measure_of_hope():
    """Nothing improves it, so that several ranks, which are far behind it at first, may still win."""
    search = search_of((16, 11.4, 6.7), mbit=20)
    starts, alone = [first(search, layout) for layout in LAYOUTS], first(search, ("heads", "columns"), MPI, (0,))
    alone = replace(alone, price=replace(alone.price, seconds=min(one.price.seconds for one in starts) / 30))
    found = refinement_of(search).improve_best([one] for one in (*starts, alone))
    (better,) = [ones[0] for ones in found if not any(ones[0] is one for one in (*starts, alone))]
    assert found[0][0] is alone and better.price.seconds < min(one.price.seconds for one in starts)


def test_what_is_hopeless_is_not_cut():
    """No plan computes, or sends, in less than the busiest rank: beside one that is far sooner, no cut is tried."""
    search, tried = search_of((16, 11.4, 6.7), mbit=60), []
    start = first(search, ("heads", "rows"))
    climbs = refinement_of(search, lambda variants: tried.append(len(variants)) or search.costs.tried(variants))
    least = max(start.price.compute.max(), start.price.busy) / CUTTING
    hopeless = 0.99 * start.price.compute.max() / CUTTING
    assert climbs.promise(start, hopeless) == (start.price.seconds, start.price.seconds, [start]) and not tried
    climbs.starts(start)
    gathered = len(tried)
    climbs.promise(start, 0.99 * least)
    assert len(tried) == 2 * gathered
    assert climbs.promise(start, 1.01 * least)[0] <= start.price.seconds and len(tried) == 3 * gathered + 1


def test_what_single_moves_come_to_is_known():
    """From where no single move helps, two at once are tried without pricing single ones again."""
    search, tried = search_of((16, 11.4, 6.7), mbit=60), []
    climbs = refinement_of(search, lambda variants: tried.append(len(variants)) or search.costs.tried(variants))
    top = climbs.climb(first(search, ("heads", "rows")))
    singles = len(list(every(climbs.moves(top, [top.plan]))))
    tried.clear()
    assert climbs.climb(top) is top and not tried
    climbs.climb(top, 2)
    assert tried and singles not in tried[:1]


def test_order_of_equals():
    _, one = made_up((60, 30, 7), lambda plan: 1.0)
    _, fewer = made_up((67, 30, 0), lambda plan: 1.0)
    fewer = replace(fewer, plan=replace(fewer.plan, columns=(103, 100, 0)))
    assert order(fewer) < order(one)


# moves


plans = st.tuples(st.lists(st.integers(0, 60), min_size=3, max_size=3).filter(any), st.sampled_from((0, *TILES)), st.data())


@settings(max_examples=60, deadline=None)
@given(plans)
def test_moves_keep_sums(case):
    rows, tiles, data = case
    cells = [[data.draw(st.integers(0, count)) for count in rows] for _ in range(max(0, tiles - 1))]
    if tiles:
        cells.append([max(0, count - sum(row[rank] for row in cells)) for rank, count in enumerate(rows)])
        rows = [sum(column) for column in zip(*cells)]
    climbs, start = made_up(tuple(rows), lambda plan: 1.0, tiles=tuple(map(tuple, cells)))
    for plan in every(climbs.moves(start, [start.plan])):
        assert sums(plan) == sums(start.plan) and plan != start.plan
        assert min(plan.heads + plan.columns + plan.rows) >= 0 and len(plan.tiles) == len(start.plan.tiles)
        assert all(min(tile) >= 0 for tile in plan.tiles)
        check(plan, replace(ODD, name="m"), "hash", 3)
        assert all(after or not before for after, before in zip(plan.rows, start.plan.rows)), "who has rows keeps some"


def test_all_moves_are_tried():
    """Of rows, heads and granules of columns, every step between every two ranks that has as many, and rows between tiles."""
    climbs, start = made_up((60, 30, 7), lambda plan: 1.0, heads=(4, 3, 2))
    rows = sum(step < count for count in start.plan.rows for step in ROW_STEPS) * 2
    columns = [sum(step <= count // ODD.column_granule for step in COLUMN_STEPS) for count in start.plan.columns]
    whole = [plan for plan in every(climbs.moves(start, [start.plan])) if plan.columns == start.plan.columns]
    assert len(whole) == len(set(whole)) == rows + 6
    assert 0 < len(every(climbs.moves(start, [start.plan]))) - len(whole) <= 2 * sum(columns)
    _, cut = made_up((60, 30, 7), lambda plan: 1.0, heads=(9, 0, 0), tiles=((60, 0, 7), (0, 30, 0)))
    between = [plan for plan in every(climbs.moves(cut, [cut.plan])) if plan.rows == cut.plan.rows and plan.tiles != cut.plan.tiles]
    assert len(between) == sum(step <= count for count in (60, 30, 7) for step in ROW_STEPS)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 90), min_size=3, max_size=3).filter(any), st.sampled_from(TILES))
def test_tilings_keep_rows(rows, count):
    climbs, start = made_up(tuple(rows), lambda plan: 1.0)
    tilings = every(climbs.tilings([start.plan], count))
    assert tilings or max(rows) < count or sum(rows) < 40
    for plan in tilings:
        assert len(plan.tiles) == count and all(map(any, plan.tiles))
        check(plan, replace(ODD, name="m"), "hash", 3)
        assert plan.rows == tuple(rows)
    assert all(max(counts) - min(counts) <= 1 for plan in tilings[:1] for counts in zip(*plan.tiles)), "the first is even"


@pytest.mark.parametrize("rows, ways", [((30, 0, 12, 9), 6), ((30, 7, 12, 9), 14), ((30, 0, 0, 0), 0), ((9, 8, 7, 6, 5), 4)])
def test_ranks_may_have_all_their_rows_in_one_tile(rows, ways):
    """All ways of few ranks, without those that leave a tile empty; of many some."""
    found = [cells for cells in Refinement._cuts(np.array(rows), 2) if (cells.max(axis=0) == rows).all()]
    assert len({cells.tobytes() for cells in found}) >= ways and all((cells.sum(axis=0) == rows).all() for cells in found)


def test_a_variant_is_a_plan():
    _, start = made_up((60, 30, 7), lambda plan: 1.0)
    heads, columns = np.array([[5, 4, 0]] * 2), np.array([[96, 96, 11]] * 2)
    whole = Variants(start.plan, np.array([[[60, 30, 7]], [[10, 20, 67]]]), heads, columns)
    assert whole.at(0) == start.plan and (whole.at(1).rows, whole.at(1).tiles) == ((10, 20, 67), ())
    cut = Variants(start.plan, np.array([[[10, 20, 30], [1, 2, 34]]] * 2), heads, columns).at(1)
    assert cut.tiles == ((10, 20, 30), (1, 2, 34)) and cut.rows == (11, 22, 64) and cut.heads == (5, 4, 0)


@pytest.mark.parametrize("speeds, gain", [((20, 16, 10, 5), 1.0), ((40, 33, 20, 10), 1.05)])
def test_a_climb_begins_from_rows_as_if_what_travels_were_free(monkeypatch, speeds, gain):
    """What it comes to is never later than what one climb does, and on some clusters much sooner."""
    search = search_of(speeds, 200, 384, random_model("bert-large").spec)
    start, seconds = first(search, ("alltoall", "rows")), []
    monkeypatch.setattr(Refinement, "in_others", lambda self, ones: list(ones))  # which finds some of it from where else
    for freed in (Refinement.freed, lambda self, plan: []):
        monkeypatch.setattr(Refinement, "freed", freed)
        found = refinement_of(search).improve_best([[start]])[0][0]
        assert sums(found.plan) == sums(start.plan)
        seconds.append(found.price.seconds)
    assert seconds[1] >= gain * seconds[0]


def test_the_best_plan_is_tried_in_three_tiles(monkeypatch):
    search = search_of((20, 16, 10, 5), 200, 128, random_model("bert-large").spec)
    start, seconds = first(search, ("alltoall", "rows")), []
    for others in (Refinement.in_others, lambda self, ones: list(ones)):
        monkeypatch.setattr(Refinement, "in_others", others)
        found = refinement_of(search).improve_best([[start]])[0][0]
        seconds.append((found.price.seconds, len(found.plan.tiles)))
    assert [tiles for _, tiles in seconds] == [3, 2] and seconds[0][0] < 0.995 * seconds[1][0]


def test_rows_are_divided_by_computing_where_what_travels_is_free():
    search = search_of((16, 16, 8), mbit=20)
    plan = first(search, ("recompute", "rows")).plan
    free = search.freely(plan)
    assert sum(free) == sum(plan.rows) and free[2] < plan.rows[2]  # where sending costs, rows cost all ranks more alike
    assert max(free[:2]) - min(free[:2]) <= 1 and free[2] == pytest.approx(sum(free) / 5, abs=2)
