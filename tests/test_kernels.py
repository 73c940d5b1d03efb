"""What a rank measures of itself: in which order kernels are called, and what they find."""

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from layers import sized

from hepti_mpi.cluster.boards import Work, cluster_of
from hepti_mpi.cluster.emulation import Emulation
from hepti_mpi.cluster.profile import CACHES, PLAIN
from hepti_mpi.cluster.speeds import Speeds, Timed, fitted, laying_out, together
from hepti_mpi.engine import measuring
from hepti_mpi.engine.alone import last_hidden_state
from hepti_mpi.engine.caching import ALL_KEYS, ALL_ROWS, KEYS, ROWS, attention_chain
from hepti_mpi.engine.graph import Graph
from hepti_mpi.engine.sessions import bound
from hepti_mpi.engine.timing import Behind, Timers, timers
from hepti_mpi.models.attention import mixed
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.search import choose
from hepti_mpi.planning.work import step_work
from hepti_mpi.program.build import make_program
from hepti_mpi.program.steps import Compute
from hepti_mpi.weights import writing
from hepti_mpi.weights.store import Store


@pytest.mark.parametrize("board, others", [(None, True), ("2", False)])
def test_kernels_find_what_a_product_has_left(board, others):
    """Not where a board is emulated, whose times are those of its description; and not the products, which have weights of their own."""
    called = []

    def kernel(name):
        return lambda: called.append(name)

    names = ("elements", "activations", "casts", "nothing", "between")
    timers = Timers(gemm=lambda rows: kernel("gemm"), weights=10, attention=lambda requests, length: kernel("attention"), rows=4,
                          hidden=8, **{name: kernel(name) for name in names})  # fmt: skip
    found = fitted(measuring.timed(timers, (1, 8), 64, Emulation(board), time.perf_counter, lambda: None, seconds=0.01))
    assert len(found.gemm_seconds_per_weight) == 2 and found.segment_seconds > 0
    pairs = set(zip(called, called[1:]))
    assert ("between" in called) == others and ("between", "gemm") not in pairs
    if others:  # the very first of each warms up
        for name in ("elements", "activations", "casts", "attention", "nothing"):
            assert ("between", name) in pairs
        timed = [name for name in called if name not in ("gemm", "between")]
        assert called.count("between") == len(timed) - 6


def test_a_kernel_that_was_disturbed_on_an_emulated_board_is_timed_again():
    """What the board takes is in its description: a machine that had other work at that moment does not get into the profile."""
    calls = []

    def disturbed():
        calls.append(1)
        if len(calls) < 4:  # the very first warms up
            time.sleep(0.02)

    names = ("elements", "activations", "casts", "nothing", "between")
    quick = {name: lambda: None for name in names}
    timers = Timers(gemm=lambda rows: disturbed if rows == 8 else lambda: None, weights=10_000, attention=lambda *shape: lambda: None,
                    rows=4, hidden=8, **quick)  # fmt: skip
    board = Emulation("2")
    found = measuring.timed(timers, (1, 8), 64, board, time.perf_counter, lambda: None, seconds=1e-6)
    own = board.board.seconds(Work(((8, 10_000, "f32"),)))
    assert len(calls) >= 4 and found.products[1] * 10_000 < 0.01 + own


def test_attention_of_a_text_is_timed_over_a_cache_of_each_kind():
    """Not on an emulated board, whose attention is described. What begins an attention is told from what each of the rows takes."""
    called, rows = [], []

    def behind(cache, length):
        return lambda: called.append((cache, length))

    names = ("elements", "activations", "casts", "nothing", "between")
    kernels = {name: lambda: None for name in names}
    timers = Timers(gemm=lambda rows: lambda: None, weights=10, attention=lambda requests, length: lambda: None, rows=4, hidden=8,
                    cached=Behind(behind, lambda length: Work(attention=2.0 * length, arranged=3.0)), **kernels)  # fmt: skip
    for board in (None, "2"):
        rows.append(measuring.timed(timers, (1, 8), 500, Emulation(board), time.perf_counter, lambda: None, seconds=0.01).cached)
    assert set(called) == {(cache, length) for cache in CACHES for length in (128, 499)} and rows[1] == []
    assert [[work.attention for work, _ in took] for took in rows[0]] == [[256.0, 998.0]] * 2
    timed = Timed((1,), (1e-9,), [(Work(attention=9, arranged=2), 1e-3)] * 2, [1e-3] * 3 + [1e-6], 100)
    assert fitted(timed).cached_seconds_per_mac == ()
    took = [[(Work(attention=macs, arranged=10), 1e-6 + begin + macs * each) for macs in (100, 1000)]
            for each, begin in ((1e-8, 1e-5), (2e-8, 3e-5))]  # fmt: skip
    found = fitted(replace(timed, cached=took))
    np.testing.assert_allclose((found.cached_seconds_per_mac, found.cached_arrange_seconds), ((1e-8, 2e-8), (1e-6, 3e-6)), rtol=1e-6)


def test_layers_of_texts_are_timed_whole():
    """A large part of each and a small one tell what products take by weights, and what a layer takes whatever the part is."""
    called = []

    class Texts:
        count = 3

        def __init__(self, weights):
            self.weights = weights

        def call(self, texts, length):
            return lambda: called.append((self.weights, texts, length))

        def work(self, texts, length):
            return Work(((texts, self.weights, "q4"),), attention=1e3 * texts * length)

    names = ("elements", "activations", "casts", "nothing", "between")
    kernels = {name: lambda: None for name in names}
    timers = Timers(gemm=lambda rows: lambda: None, weights=10, attention=lambda requests, length: lambda: None, rows=4, hidden=8,
                    cached=Behind(lambda cache, length: lambda: None, lambda length: Work(attention=2.0 * length, arranged=3.0)),
                    texts=[Texts(1e6), Texts(1e5)], table=(lambda texts: lambda: called.append(f"table of {texts}"), 1000),
                    **kernels)  # fmt: skip
    found = measuring.timed(timers, (1, 8), 100, Emulation(None), time.perf_counter, lambda: None, seconds=0.01)
    tables = {"table of 1", "table of 8"}
    before = [one for one, later in zip(called, called[1:]) if later in tables]
    assert set(before) == {(1e6, 1, 99), (1e5, 8, 99), "table of 1"} and before.count((1e5, 8, 99)) == 1, "the first ones warm up"
    least, most = found.table
    assert 0 < least and fitted(found).table_seconds == (least, max(least, most))
    assert set(called) - tables == {(weights, texts, 99) for weights in (1e6, 1e5) for texts in (1, 8)} and found.layers == 3
    assert [work.products for work, _ in found.steps] == [((texts, weights, "q4"),) for weights in (1e6, 1e5) for texts in (1, 8)]
    assert len(found.whole) == 0 and len(found.cached) == 2


@pytest.mark.parametrize("begin, times", [(None, 2.0), (lambda: None, 1.0)])
def test_what_threads_wait_for_each_other_is_in_steps_of_texts(monkeypatch, begin, times):
    """By the clock of computing a token of one rank beside three at rest was predicted a fifth to two fifths too short."""
    wall, computed = [0.0], [0.0]
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: wall[0]))

    def takes(seconds):
        wall[0], computed[0] = wall[0] + 2 * seconds, computed[0] + seconds

    work = Work(((1, 1e6, "q4"),))
    steps = SimpleNamespace(count=3, call=lambda texts, length: lambda: takes(1e-3 * texts), work=lambda texts, length: work)
    kernels = {name: lambda: None for name in ("elements", "activations", "casts", "nothing", "between")}
    timers = Timers(gemm=lambda rows: lambda: takes(1e-4), weights=10, attention=lambda requests, length: lambda: None, rows=4, hidden=8,
                    texts=[steps, steps], table=(lambda texts: lambda: takes(1e-2 * texts), 1000), **kernels)  # fmt: skip
    found = measuring.timed(timers, (1, 8), 100, Emulation(None), lambda: computed[0], begin, seconds=0.01)
    np.testing.assert_allclose([taken for _, taken in found.steps], times * 1e-3 * np.array([1, 8, 1, 8]))
    np.testing.assert_allclose(found.table, times * 1e-5 * np.array([1, 8]))


AT, CURVE = (1, 8, 16, 64, 128), (1e-9, 4e-9, 8e-9, 32e-9, 64e-9)


def of_steps(layers, each, fixed, weights=(1e6, 1e5)):
    """Return what steps of texts take where a weight takes `each` and a layer `fixed`, of 1 row and of 8."""
    timed = Timed(AT, CURVE, [(Work(attention=9, arranged=2), 1e-3)] * 2, [1e-3] * 3 + [1e-6], 100, layers=layers,
                  cached=[[(Work(attention=macs, arranged=10), 2e-6 + macs * 1e-8) for macs in (100, 1000)]] * 2)  # fmt: skip
    steps = []
    for held in weights:
        for rows, weight, layer in zip((1, 8), each, fixed):
            work = Work(((rows, held / 2, "q4"), (rows, held / 2, "q4")), attention=1e-2 * held * rows, arranged=10 * rows)
            steps.append((work, 1e-6 + held * weight + layers * layer + work.attention * 1e-8 + work.arranged * 1e-7))
    return timed, steps


@pytest.mark.parametrize("each, fixed", [((2.5e-9, 6e-9), (1e-4, 3e-4)), ((2.5e-9, 6e-9), (0.0, 0.0)), ((1e-9, 4e-9), (2e-5, 2e-5))])
def test_what_layers_of_texts_take_is_what_their_speeds_tell(each, fixed):
    """Where products take longer than in a chain of their own: of as many rows; of many, what is computed decides."""
    timed, steps = of_steps(3, each, fixed)
    before, found = fitted(timed), fitted(replace(timed, steps=steps))
    assert before.beside_seconds == () and before.gemm_seconds_per_weight == CURVE
    np.testing.assert_allclose(found.beside_seconds, fixed, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.gemm_seconds_per_weight[:2], each, rtol=1e-6)
    factor = each[1] / 4e-9
    np.testing.assert_allclose(found.gemm_seconds_per_weight[2:], (8e-9 * (factor + (1 - factor) / 7), *CURVE[3:]), rtol=1e-6)
    assert found.glance_seconds_per_weight == before.glance_seconds_per_weight


def test_parts_of_layers_that_were_disturbed_leave_speeds_that_may_be():
    timed, steps = of_steps(3, (1e-9, 4e-9), (1e-4, 3e-4))
    for changed in ([(work, 1e-6) for work, _ in steps], [*steps[2:], *steps[:2]], [*steps[:2], *[(work, 1.0) for work, _ in steps[2:]]],
                    [*steps[:2], *steps[:2]]):  # fmt: skip
        found = fitted(replace(timed, steps=changed))
        assert min(found.beside_seconds) >= 0 and np.isfinite(found.beside_seconds).all()
        curve = found.gemm_seconds_per_weight
        assert all(one >= 0.5 * before for one, before in zip(curve, CURVE)) and list(curve) == sorted(curve) and np.isfinite(curve).all()


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-llama"])
def test_sessions_are_made_before_anything_is_timed(name, monkeypatch):
    """Threads start on the cores of the thread that starts them, and what times keeps to one core: all threads of a session that is made
    there would share it, and a token of 8 ms took 48."""
    spec = random_model(name).spec
    made = timers(spec, 1, PLAIN)

    def another(*args, **options):
        raise AssertionError("a session is made")

    monkeypatch.setattr(onnxruntime, "InferenceSession", another)
    found = measuring.timed(made, (1, 8), spec.positions, Emulation(None), time.perf_counter, lambda: None, seconds=0.01)
    assert len(found.steps) == (4 if spec.generates else 0)


def test_heads_that_are_wider_than_rows_are_timed():
    spec = random_model("tiny-bert").spec
    wide = replace(spec.layer(0), attention=replace(spec.layer(0).attention, dim=spec.hidden * 2))
    assert timers(replace(spec, kinds=(wide,), order=()), 1, PLAIN).attention


@pytest.mark.parametrize("cache", CACHES)
def test_what_is_timed_over_a_cache_is_the_attention_of_a_text(cache):
    """Of each layer over a cache of its own, which has the row then."""
    block, random, length = replace(random_model("tiny-llama").spec.layer(0).attention, rotary=None), np.random.default_rng(0), 5
    shape = 2, 2, 1, block.kv_count, length + 1, block.dim  # keys and values, layers
    kept, told = random.standard_normal(shape).astype(cache), {"shape": np.array([1, 1, -1]), "most": np.array(length + 1, np.int32)}
    told["reach"] = np.array([length], np.int32)
    widths = {"x": block.width, "k": block.kv_width, "v": block.kv_width}
    rows = {name: random.standard_normal((1, width), np.float32) for name, width in widths.items()}
    past, whole = ({name.format(layer): kept[which, layer] for layer in range(2) for which, name in enumerate(both)}
                   for both in ((KEYS, ROWS), (ALL_KEYS, ALL_ROWS)))  # fmt: skip
    y = np.empty((1, block.width), np.float32)
    bound(attention_chain(block, 2, cache, 1), rows | told | past, y, whole)()
    expected, distance = rows["x"], length - np.arange(length + 1)[None]
    for layer in range(2):
        keys, values = (kept[which, layer, 0].swapaxes(0, 1).reshape(length + 1, -1).astype(np.float32) for which in range(2))
        np.testing.assert_allclose(keys[-1], rows["k"][0], rtol=1e-3)
        expected = mixed(block, expected, keys, values, distance)
    np.testing.assert_allclose(y, expected, atol=1e-5 if cache == "float32" else 5e-3)


def test_short_calls_are_not_repeated_for_ever():
    """However long there is: a pass of a kernel ends after so many calls, and one that has no time has one."""
    called = []
    for seconds, passes in ((1e6, 1), (0.0, 1)):
        times, spans = [], []
        measuring._time(lambda: called.append(1), seconds, time.perf_counter, (times, spans), None, True)
        assert len(times) == len(spans) == (measuring.MOST_CALLS if seconds else passes)
    assert len(called) == measuring.MOST_CALLS + 1 + 2  # and the very first of each warms up


@pytest.mark.parametrize("spans, factor", [((2.2, 1.1, 9.0), 1.1), ((0.9, 0.99, 1.0), 1.0)])
def test_what_threads_wait_for_each_other_is_told_from_the_least_disturbed_call(spans, factor):
    assert measuring._waits(spans, (1.0, 1.0, 1.0)) == pytest.approx(factor)


def test_what_whole_layers_take_beyond_their_parts_is_in_the_products():
    parts = Speeds((1e-9, 2e-9, 4e-9), 1e-9, 2e-9, 1e-6, 1e-9, 3e-9, 1e-9)
    work = {rows: Work(((rows, 1e6, "f32"),), attention=1e5, arranged=2e5, elements=3e5, activations=4e5) for rows in (8, 32)}
    others = 1e-6 + 1e5 * 1e-9 + 2e5 * 1e-9 + 3e5 * 2e-9 + 4e5 * 3e-9
    whole = [(work[8], others + 3e-3), (work[32], others + 4.4e-3)]
    found = together(parts, (1, 8, 32), whole)  # one row waits for as many starts of small kernels as eight
    np.testing.assert_allclose(found.gemm_seconds_per_weight, [2e-9, 3e-9, 4.4e-9])
    more = together(replace(parts, gemm_seconds_per_weight=(1e-9, 2e-9, 3e-9, 4e-9, 8e-9)), (1, 8, 20, 32, 64), whole)
    np.testing.assert_allclose(more.gemm_seconds_per_weight, [2e-9, 3e-9, 3.7e-9, 4.4e-9, 8.8e-9])
    assert found.element_seconds == parts.element_seconds
    glance = replace(parts, glance_seconds_per_weight=4e-9)  # a later job times it as it was timed: products alone
    assert together(glance, (1, 8, 32), [(work[8], others + 3e-3), (work[32], others + 40e-3)]).glance_seconds_per_weight == 4e-9
    timed = Timed((1, 8, 32), (1e-9, 2e-9, 4e-9), [(work[8], 1e-3), (work[32], 4e-3)], [1e-3] * 4, 100,
                  [(work[8], 1.0), (work[32], 1.0), (work[8], 1.0)])  # fmt: skip
    assert fitted(timed).glance_seconds_per_weight == 4e-9 < fitted(timed).gemm_seconds_per_weight[2]
    sooner = together(parts, (1, 8, 32), [(work[8], 1e-6), (work[32], 1e-6)])  # the other parts were timed too slow
    np.testing.assert_allclose(sooner.gemm_seconds_per_weight, [0.5e-9, 1e-9, 2e-9])


def test_whole_layers_of_few_rows_are_timed():
    """Of those of 64 rows and more alone, 4 rows were predicted in 1.0 ms and took 2.5: products without what lies between them, in caches
    that have no room for all layers."""
    counts = [sum(lengths) for lengths in measuring.WHOLE[:-1]]
    assert counts == sorted(set(counts)) and counts[0] <= 8


def test_laying_requests_out_costs_what_padded_ones_take_more():
    speeds = Speeds((1e-9, 2e-9, 4e-9), 1e-9, 2e-9, 1e-6, 1e-9, 3e-9, 1e-9)
    alike = [(Work(((rows, 1e6, "f32"),), attention=1e5, arranged=1e3 * rows), seconds) for rows, seconds in ((8, 2e-3), (32, 4e-3))]
    dearer = replace(speeds, arrange_seconds=7e-9)
    found = together(dearer, (1, 8, 32), alike)
    padded = Work(((20, 1e6, "f32"),), attention=3e5, arranged=9e4)  # as 20 rows, laid out as 90
    products = float(np.interp(20, (1, 8, 32), found.gemm_seconds_per_weight)) * 1e6
    took = padded, products + found.segment_seconds + 3e5 * 1e-9 + 9e4 * 7e-9
    assert laying_out(together(speeds, (1, 8, 32), alike), (1, 8, 32), alike, took) == pytest.approx(7e-9)
    assert laying_out(speeds, (1, 8, 32), alike, (took[0], 1e-6)) == speeds.arrange_seconds  # it is never less than alone
    plain = Work(((20, 1e6, "f32"),), attention=3e5, arranged=2e4), 1.0
    assert laying_out(speeds, (1, 8, 32), alike, plain) == speeds.arrange_seconds  # nothing was padded


@pytest.mark.parametrize("name, last", [("minilm", 0), ("vit-base", 16 * 64)])
def test_whole_layers_do_what_a_plan_of_one_rank_is_priced_for(name, last):
    """`last`: elements of the norm behind all layers."""
    spec = sized(random_model(name).spec, layers=2, hidden=64, heads=4, ffn=96)
    profile = cluster_of(["pi4"], 100.0, 2e-4, (64, 96))
    plan = choose(spec, "hash", profile, Demand(16, mode="packed")).chosen.plan
    (step,) = (step for step in make_program(spec, plan) if isinstance(step, Compute))
    layers = timers(spec, 1, PLAIN).layers
    layers.call((8, 8))()
    work, priced = layers.work((8, 8)), step_work(spec, plan, 0, step, 16, 16 * 8)
    assert sum(product[0] * product[1] for product in work.products) == sum(product[0] * product[1] for product in priced.products)
    for part in ("attention", "arranged", "activations"):
        assert getattr(work, part) == pytest.approx(getattr(priced, part)), part
    assert work.elements == priced.elements - last


def test_whole_layers_of_another_kind_are_not_timed_as_plain_ones():
    """Little of its table of words: more than all caches hold is gigabytes on a large server."""
    spec = sized(random_model("llama-3.2-1b").spec, layers=2, hidden=64, heads=4, ffn=96)
    assert timers(spec, 1, PLAIN, most=1 << 20).layers is None


@pytest.mark.parametrize("format_name", ["f32", "q8", "q4"])
def test_a_bias_of_k_adds_the_same_to_all_scores_of_a_query(tmp_path, format_name):
    """So it is left out."""
    model = random_model("tiny-bert").in_format(format_name)

    def stream(number):
        for name, values in model.weights():
            yield name, np.full_like(values, number) if name.endswith("attention.k.bias") else values

    rows, found = np.random.default_rng(0).standard_normal((9, 56), np.float32), []
    for number in (0.0, 3.0):
        path = tmp_path / f"{number}.h5"
        writing.write(path, replace(model, stream=lambda number=number: stream(number)))
        with Store(path) as store:
            found.append(last_hidden_state(store, rows, (4, 5)))
    np.testing.assert_array_equal(*found)


def test_rows_are_scaled_alike_inside_a_product_and_behind_it(tmp_path):
    """By one thread and by several, with the same bits."""
    path, rows = tmp_path / "m.h5", np.random.default_rng(0).standard_normal((9, 56), np.float32)
    writing.write(path, random_model("tiny-bert").in_format("q8"))
    with Store(path) as store:
        one, several = (last_hidden_state(store, rows, (4, 5), threads) for threads in (1, 2))
    np.testing.assert_array_equal(one, several)


def test_a_constant_takes_the_place_of_no_other():
    """A chain that is timed had two by one name: what came first was lost, and an older ONNX Runtime refused what was left."""
    graph = Graph()
    graph.constant("one", np.ones(3, np.float32))
    assert graph.constant("one", np.ones(3, np.float32)) == "one"  # layers name what they share
    with pytest.raises(AssertionError, match="constant one is"):
        graph.constant("one", np.array(1, np.float32))
