"""What layers may be: kernels and references of what each has say the same, and a store says what its layers are."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from clusters import cluster
from layers import MADE, odd_model
from made_plans import plan_of

from hepti_mpi.engine import sessions
from hepti_mpi.engine.packing import Rows
from hepti_mpi.errors import ModelError
from hepti_mpi.models.attention import bucket, turned
from hepti_mpi.models.blocks import Relative, Rotary, rotary
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.spec import ModelSpec, layer_bytes, layer_weights
from hepti_mpi.planning import search
from hepti_mpi.planning.candidates import steady
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.planning.work import layer_work
from hepti_mpi.program.build import make_program
from hepti_mpi.program.plan import check
from hepti_mpi.program.reference import REFERENCES, Where
from hepti_mpi.program.steps import Compute
from hepti_mpi.weights import writing
from hepti_mpi.weights.slices import Part
from hepti_mpi.weights.store import Store

LENGTHS = (5, 1, 9)
LAYOUTS = [("heads", "columns"), ("rows", "rows")]


@cache
def kept(folder, name):
    path = folder / f"{name}.h5"
    model = odd_model(name)
    writing.write(path, model)
    return model.spec, dict(model.weights()), Store(path)


def part_of(spec, layout, rank=1):
    return Part(spec, plan_of(spec, layout, (1, 1), total=15), rank)


@pytest.mark.parametrize("layout", LAYOUTS, ids="/".join)
@pytest.mark.parametrize("name", MADE)
def test_kernels_compute_what_the_references_say(tmp_path_factory, name, layout):
    """Every operation of the second of two ranks, on rows of packed requests that begin in the middle of one."""
    spec, weights, store = kept(tmp_path_factory.getbasetemp(), name)
    part, random = part_of(spec, layout), np.random.default_rng(5)
    request, at = np.repeat(np.arange(len(LENGTHS)), LENGTHS), np.concatenate([np.arange(length) for length in LENGTHS])
    done = set()
    for step in (step for step in part.program if isinstance(step, Compute)):
        own = slice(8, 15) if step.distribution == "rows" else slice(0, 15)
        rows, where = Rows(LENGTHS, own.start, own.stop), Where(request[own], request, at[own], at)
        for op in step.ops:
            pieces = part.op(op, step.distribution)
            w = {role: weights[piece.name][piece.first :][: piece.shape[0]].astype(np.float64) for role, piece in pieces.items()}
            reads = [random.standard_normal((own.stop - own.start, width_of(part, op, name)), np.float32) for name in op.reads]
            if type(op).__name__ == "Mix":
                reads[1:] = [random.standard_normal((15, values.shape[1]), np.float32) for values in reads[1:]]
            expected = REFERENCES[type(op)](op, w, [values.astype(np.float64) for values in reads], where)
            alone = Compute((op,), step.distribution, op.reads, op.writes, step.tile)
            segment = sessions.build(alone, store, part.held(alone), part.heads, "packed", 1)
            asked = rows.inputs(op, segment.tables.get(op))
            feed = dict(zip(op.reads, reads)) | {key: values for key, values in asked.items() if key in segment.asked}
            for found, values in zip(segment.session.run(op.writes, feed), expected, strict=True):
                np.testing.assert_allclose(found, values, rtol=0, atol=2e-5 * max(1, np.abs(values).max()), err_msg=op.label)
            done.add(type(op).__name__)
    assert done >= {"AddNorm", "Project", "Mix", "Out", "Mlp"} | ({"Norm", "HeadNorm", "Rotate"} if name == "grouped" else set())


def width_of(part, op, read):
    """Numbers in a row of what an operation reads, as the rank has it."""
    kind = type(op).__name__
    if kind in ("Norm", "AddNorm", "Project", "Mlp", "Join"):
        return part.spec.hidden
    matrix = {"HeadNorm": op.matrices, "Rotate": op.matrices}[kind][op.reads.index(read)] if kind in ("HeadNorm", "Rotate") else (
        "q" if kind == "Out" else "qkv"[op.reads.index(read)])
    whole = op.block.width_of(matrix)
    return whole * part.heads // part.spec.heads if op.axis else whole


@pytest.mark.parametrize("name", MADE)
def test_a_store_says_what_layers_are(name):
    spec = odd_model(name).spec
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_plain_layers_that_are_said_by_sizes_alone_are_read():
    """As stores have it that were made before all layers were said one way."""
    spec = random_model("tiny-vit").spec
    older = {key: value for key, value in spec.to_json().items() if key not in ("kinds", "last")}
    older |= {"norm": "pre", "norm_eps": spec.last.eps, "activation": "gelu"}
    assert ModelSpec.from_json(older) == spec
    with pytest.raises(ModelError, match="is not a multiple of its 5 heads"):
        ModelSpec.from_json(older | {"heads": 5})
    with pytest.raises(ModelError, match="neither pre nor post"):
        ModelSpec.from_json(older | {"norm": "none"})


DAMAGE = [{"order": [0, 9, 0]}, {"order": [0]}, {"heads": 3}, {"kinds": [{"attention": 1}]}, {"kinds": 5}, {"last": [3]}]


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_damaged_layers_are_refused(damage):
    with pytest.raises(ModelError):
        ModelSpec.from_json(odd_model("local_and_global").spec.to_json() | damage)


def test_bytes_of_a_layer_are_those_of_all_layers():
    spec = odd_model("local_and_global").spec
    every = sum(weight.bytes for number in range(3) for weight in layer_weights(spec, number))
    assert sum(layer_bytes(spec).values()) * 3 == pytest.approx(every, abs=9) and layer_bytes(spec)[None] < 2 * 56 * 4
    assert layer_bytes(replace(spec, layers=1))[None] == 56 * 4


def test_rotary_pairs():
    x = np.arange(8.0).reshape(1, 1, 8)
    halves = turned(Rotary((np.pi / 2, 0.0)), x, np.array([1]))
    np.testing.assert_allclose(halves[0, 0], [-2, 1, 0, 3, 4, 5, 6, 7], atol=1e-6)
    neighbours = turned(Rotary((np.pi / 2, 0.0), interleaved=True), x, np.array([1]))
    np.testing.assert_allclose(neighbours[0, 0], [-1, 0, 2, 3, 4, 5, 6, 7], atol=1e-6)
    assert rotary(4, 100.0).frequencies == pytest.approx((1, 0.1))


def test_buckets_of_distances():
    both, behind = Relative(8, 16), Relative(8, 16, both_ways=False)
    assert bucket(both, np.array([0, 1, 2, 5, 6, 99, -1, -2, -99])).tolist() == [0, 1, 2, 2, 3, 3, 5, 6, 7]
    assert bucket(behind, np.array([0, 3, 4, 15, 99, -5])).tolist() == [0, 3, 4, 7, 7, 0]


@pytest.mark.parametrize("name", MADE)
def test_plans_of_all_layers(name):
    spec = replace(odd_model(name).spec, positions=4096)
    for rows in (9, 512):
        decision = search.choose(spec, "hash", cluster((12, 40, 5)), Demand(rows, mode="packed"))
        check(decision.chosen.plan, spec, "hash", 3)
        assert decision.chosen.price.seconds > 0


def test_windows_and_grouped_heads_cost_less():
    def seconds(window):
        spec = odd_model("local_and_global").spec
        layer = spec.kinds[-1]
        spec = replace(spec, kinds=(replace(layer, attention=replace(layer.attention, window=window)),), order=(0,) * 3)
        plan = part_of(spec, ("heads", "columns")).plan
        return Pricer(spec, cluster((12, 12), mbit=100), 2000).price(make_program(spec, plan), plan).seconds

    assert seconds(2) < seconds(500) < 0.999 * seconds(None)
    work = layer_work(odd_model("grouped").spec, 100.0)
    assert work.attention == 56 * (2 * 90 + 2 * 30) and work.mlp == 3 * 56 * 101 and (work.width, work.kv_width) == (90, 30)
    assert layer_work(odd_model("sandwich").spec, 100.0).attended == pytest.approx((6 + 100 + 6) / 3)


@pytest.mark.parametrize("order, found", [
    ([0] + [1 if place % 3 else 2 for place in range(1, 22)], (4, 7)), ([0, 1] * 13, (2, 4)),
    ([0] * 5 + [1] + [0] * 5 + [1] + [0] * 3, (3, 9)),
    ([0] + [1] * 11, (2, 4)), ([0] * 12, (2, 4)), ([0, 1, 2, 1], ()), ([0] * 4, ()), ([0, 0, 0, 0, 0, 1, 1, 0, 1, 0], ()),
])  # fmt: skip
def test_layers_that_repeat_are_priced_by_a_few(order, found):
    made, layers = odd_model("local_and_global").spec, len(order)
    spec = replace(made, layers=layers, order=tuple(order))
    assert steady(spec) == found
    if found:
        plan = replace(part_of(spec, ("heads", "columns")).plan, collectives="own", reduction="reduce_scatter")
        (few, more, whole) = (Pricer(spec, cluster((12, 30)), 96).price(make_program(spec, part), part).seconds
                              for part in (replace(plan, layers=plan.layers[:depth]) for depth in (*found, layers)))  # fmt: skip
        assert few + (more - few) * (layers - found[0]) / (found[1] - found[0]) == pytest.approx(whole, rel=0.02)
