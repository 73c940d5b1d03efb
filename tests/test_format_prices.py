"""What weights in fewer bits take: time on described boards and in measured curves, memory, and which profile is of use for them."""

from dataclasses import replace

import numpy as np
import pytest

from hepti_mpi.cluster.boards import ROWS, cluster_of, read_boards
from hepti_mpi.cluster.profile import in_formats, load_all, mismatch
from hepti_mpi.engine.timing import timers
from hepti_mpi.errors import CapacityError
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.formats import F32
from hepti_mpi.models.spec import layer_bytes
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.search import choose
from hepti_mpi.planning.work import step_work
from hepti_mpi.program.build import PAGED_BYTES, make_program
from hepti_mpi.program.steps import Compute

BASE = random_model("bert-base").spec
REDUCED = {name: random_model("bert-base").in_format(name).spec for name in ("f16", "q8", "q4")}
SOME = replace(BASE, formats={"": "q8", "layers.0": "f32"})  # one layer of 12


def boards(spec, *names):
    return cluster_of(names or ["pi5"], 940.0, 2e-4, (spec.hidden, spec.ffn), spec.product_formats)


def test_a_spec_says_how_much_is_in_which_format():
    assert BASE.product_formats == {"f32": 1} and REDUCED["q8"].product_formats == {"q8": 1}
    assert SOME.product_formats == pytest.approx({"f32": 1 / 12, "q8": 11 / 12})
    assert [in_formats(spec.product_formats) for spec in (BASE, REDUCED["q4"], SOME)] == [
        {}, {"formats": "q4"}, {"formats": "8% f32, 92% q8"},
    ]  # fmt: skip


def test_described_boards_have_a_curve_for_each_format():
    board = read_boards()["pi5"]
    curves = {name: boards(spec).nodes[0].gemm_seconds_per_weight for name, spec in {"f32": BASE, **REDUCED, "some": SOME}.items()}
    assert curves["f32"] == curves["f16"] == tuple(board.product_seconds(rows) for rows in ROWS)
    assert curves["q8"][-1] == pytest.approx(2 * ROWS[-1] / board.int8, rel=0.05)
    assert curves["q8"][0] < curves["f32"][0] / 3.5 and curves["q4"][0] < curves["q8"][0]  # of one row, bytes count
    np.testing.assert_allclose(curves["some"], np.add(curves["f32"], np.multiply(11, curves["q8"])) / 12)


def test_profiles_are_of_use_for_the_formats_they_were_measured_with(tmp_path):
    profile, reduced = boards(BASE), boards(REDUCED["q8"])
    nodes = [(node.host, node.cores, node.threads, node.threads) for node in profile.nodes]
    assert mismatch(reduced, nodes, reduced.versions, reduced.shape) is None
    assert mismatch(profile, nodes, reduced.versions, reduced.shape) == "it was measured with weights in float32, here with weights in q8"
    assert mismatch(reduced, nodes, profile.versions, reduced.shape) == "it was measured with weights in q8, here with weights in float32"
    for one in (profile, reduced, profile):
        one.save(tmp_path / "p.json")
    assert [one.versions.get("formats") for one in load_all(tmp_path / "p.json")] == ["q8", None]


@pytest.mark.parametrize("spec", [random_model("tiny-bert").in_format(name).spec for name in ("f32", "f16", "q8", "q4")]
                         + [replace(random_model("tiny-bert").spec, formats={"layers.1": "q8"})], ids=range(5))  # fmt: skip
def test_what_is_timed_is_what_the_store_needs(spec):
    found = timers(spec, 1, spec.product_formats)
    for rows in (1, 8):
        found.gemm(rows)()
    assert found.formats == spec.product_formats


def test_work_says_the_formats_of_products():
    spec = replace(SOME, layers=1, formats={"": "q8", "layers.0.mlp.up": "f32"})
    plan = choose(spec, "h", boards(spec), Demand(8)).chosen.plan
    (step,) = (step for step in make_program(spec, plan) if isinstance(step, Compute))
    products = step_work(spec, plan, 0, step, 8, 64).products
    by = {name: sum(weights for _, weights, kind in products if kind == name) for name in ("f32", "q8")}
    assert by == {"f32": 768 * 3072, "q8": 4 * 768 * 768 + 768 * 3072} and {rows for rows, *_ in products} == {8}


def test_plans_are_priced_and_fit_by_format():
    prices = {name: choose(spec, "h", boards(spec), Demand(128)).chosen.price.seconds for name, spec in {"f32": BASE, **REDUCED}.items()}
    assert prices["q8"] < 0.7 * prices["f32"] and prices["f16"] == prices["f32"]
    whole = sum(layer_bytes(BASE).values()) * BASE.layers
    memory = choose(REDUCED["q8"], "h", boards(BASE), Demand(16, limits=(whole // 3,))).chosen.memory[0]  # float32 would not fit
    assert whole / 4 < memory < whole / 3


def test_only_float32_stays_in_the_file():
    assert layer_bytes(BASE, [F32]) == {"heads": 0, "columns": 0, None: layer_bytes(BASE)[None]}
    for spec in REDUCED.values():
        held, mapped = layer_bytes(spec), layer_bytes(spec, [F32])
        assert 0.99 * held["columns"] < mapped["columns"] <= held["columns"]  # all but biases


@pytest.mark.parametrize("name", ["f16", "q8", "q4"])
def test_kept_files_let_a_share_larger_than_memory_in(name):
    """Of weights that no product can read in the store; all but the segment that is made or opened."""
    spec = replace(REDUCED[name], layers=48)
    limit = PAGED_BYTES + (8 << 20)
    assert sum(layer_bytes(spec).values()) * spec.layers > 1.5 * limit
    with pytest.raises(CapacityError, match="run with --weights-mode mapped --weights-cache FOLDER, which reads"):
        choose(spec, "h", boards(spec), Demand(16, limits=(limit,), mode="mapped"))
    chosen = choose(spec, "h", boards(spec), Demand(16, limits=(limit,), mode="mapped", prepacked=True)).chosen
    assert chosen.plan.weights_mode == ("mapped",) and PAGED_BYTES <= chosen.memory[0] <= limit
    segments = [step for step in make_program(spec, chosen.plan) if isinstance(step, Compute)]
    assert len(segments) > 1
    layers = max(len({op.layer for op in step.ops if op.layer >= 0}) for step in segments)
    assert layers * sum(layer_bytes(spec).values()) <= PAGED_BYTES
    with pytest.raises(CapacityError, match=r"weights stay in the file\); give each rank at least \d{9} bytes"):
        choose(spec, "h", boards(spec), Demand(16, limits=(PAGED_BYTES // 2,), mode="mapped", prepacked=True))


def test_float32_weights_stay_in_the_store_without_files():
    with pytest.raises(CapacityError, match="run with --weights-mode mapped, which reads"):
        choose(BASE, "h", boards(BASE), Demand(16, limits=(PAGED_BYTES,)))
    assert choose(BASE, "h", boards(BASE), Demand(16, limits=(PAGED_BYTES // 2,), mode="mapped")).chosen.memory[0] < PAGED_BYTES // 2
    packed = make_program(BASE, choose(BASE, "h", boards(BASE), Demand(16)).chosen.plan)
    assert sum(isinstance(step, Compute) for step in packed) == 1
