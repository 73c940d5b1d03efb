"""What a rank measures of itself: in which order kernels are called, and what they find."""

import time
from dataclasses import replace

import numpy as np
import pytest
from layers import sized

from hepti_mpi.cluster.boards import Work, cluster_of
from hepti_mpi.cluster.emulation import Emulation
from hepti_mpi.cluster.profile import PLAIN
from hepti_mpi.cluster.speeds import Speeds, Timed, fitted, together
from hepti_mpi.engine import measuring
from hepti_mpi.engine.timing import Timers, timers
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning.request import Request
from hepti_mpi.planning.search import choose
from hepti_mpi.planning.work import step_work
from hepti_mpi.program.build import make_program
from hepti_mpi.program.steps import Compute


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


def test_short_calls_are_not_repeated_for_ever():
    """However long there is: a pass of a kernel ends after so many calls, and one that has no time has one."""
    called = []
    for seconds, passes in ((1e6, 1), (0.0, 1)):
        times = []
        measuring._time(lambda: called.append(1), seconds, time.perf_counter, times)
        assert len(times) == (measuring.MOST_CALLS if seconds else passes)
    assert len(called) == measuring.MOST_CALLS + 1 + 2  # and the very first of each warms up


def test_what_whole_layers_take_beyond_their_parts_is_in_the_products():
    parts = Speeds((1e-9, 2e-9, 4e-9), 1e-9, 2e-9, 1e-6, 1e-9, 3e-9, 1e-9)
    work = {rows: Work(((rows, 1e6, "f32"),), attention=1e5, arranged=2e5, elements=3e5, activations=4e5) for rows in (8, 32)}
    others = 1e-6 + 1e5 * 1e-9 + 2e5 * 1e-9 + 3e5 * 2e-9 + 4e5 * 3e-9
    found = together(parts, (1, 8, 32), [(work[8], others + 3e-3), (work[32], others + 4.4e-3)])
    np.testing.assert_allclose(found.gemm_seconds_per_weight, [1.5e-9, 3e-9, 4.4e-9])
    assert found.element_seconds == parts.element_seconds
    glance = replace(parts, glance_seconds_per_weight=4e-9)  # a later job times it as it was timed: products alone
    assert together(glance, (1, 8, 32), [(work[8], others + 3e-3), (work[32], others + 40e-3)]).glance_seconds_per_weight == 4e-9
    timed = Timed((1, 8, 32), (1e-9, 2e-9, 4e-9), [(work[8], 1e-3), (work[32], 4e-3)], [1e-3] * 4, 100, [(work[8], 1.0), (work[32], 1.0)])
    assert fitted(timed).glance_seconds_per_weight == 4e-9 < fitted(timed).gemm_seconds_per_weight[2]
    sooner = together(parts, (1, 8, 32), [(work[8], 1e-6), (work[32], 1e-6)])  # the other parts were timed too slow
    np.testing.assert_allclose(sooner.gemm_seconds_per_weight, [0.5e-9, 1e-9, 2e-9])


@pytest.mark.parametrize("name, last", [("minilm", 0), ("vit-base", 16 * 64)])
def test_whole_layers_do_what_a_plan_of_one_rank_is_priced_for(name, last):
    """`last`: elements of the norm behind all layers."""
    spec = sized(random_model(name).spec, layers=2, hidden=64, heads=4, ffn=96)
    profile = cluster_of(["pi4"], 100.0, 2e-4, (64, 96))
    plan = choose(spec, "hash", profile, Request(16, mode="packed")).chosen.plan
    (step,) = (step for step in make_program(spec, plan) if isinstance(step, Compute))
    layers = timers(spec, 1, PLAIN).layers
    layers.call(2, 8)()
    work, priced = layers.work(2, 8), step_work(spec, plan, 0, step, 16, 16 * 8)
    assert sum(product[0] * product[1] for product in work.products) == sum(product[0] * product[1] for product in priced.products)
    for part in ("attention", "arranged", "activations"):
        assert getattr(work, part) == pytest.approx(getattr(priced, part)), part
    assert work.elements == priced.elements - last
    assert timers(sized(random_model("llama-3.2-1b").spec, layers=2, hidden=64, heads=4, ffn=96), 1, PLAIN).layers is None
