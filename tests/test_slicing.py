from dataclasses import replace
from itertools import product
from operator import attrgetter

import pytest
from layers import sized
from made_plans import plan_of
from operations import operations

from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.spec import named_weights
from hepti_mpi.program.steps import Compute
from hepti_mpi.weights.slices import Part, Slice, all_weights, granule, root_slices, span

BERT, VIT = random_model("tiny-bert").spec, random_model("tiny-vit").spec
LAYOUTS = list(product(("heads", "rows", "alltoall", "recompute"), ("columns", "rows")))
SHARES = [(1,), (5, 1, 1, 1), (1, 0, 3), (0, 1), (1,) * 7]


def test_a_slice_knows_its_bytes():
    assert Slice("x", 3, (7, 8, 9)).bytes == 4 * 7 * 8 * 9
    assert Slice("x", 0, (7,)).bytes == 28


def test_all_weights_have_full_names():
    for spec in (BERT, VIT):
        names = [weight.name for weight in all_weights(spec)]
        assert names == [name for name, _ in named_weights(spec)] and len(set(names)) == len(names)
        assert not any("{" in name for name in names)


@pytest.mark.parametrize("ffn, name, expected", [
    (101, "layers.0.mlp.up.weight", 1), (131, "layers.0.mlp.down.weight", 2), (4096, "layers.2.mlp.up.bias", 16),
    (101, "layers.0.attention.q.weight", 1), (101, "layers.1.attention.k.bias", 1), (101, "layers.0.mlp.down.bias", 56),
    (101, "embedding.words", 120),
])  # fmt: skip
def test_granule(ffn, name, expected):
    spec = sized(BERT, ffn=ffn)
    weight = {weight.name: weight for weight in all_weights(spec)}[name]
    assert granule(spec, weight) == expected


QKV_PART = {**{f"{m}.weight": (3, (2, 8, 56)) for m in "qkv"}, **{f"{m}.bias": (3, (2, 8)) for m in "qkv"}}
QKV = {**{f"{m}.weight": (0, (7, 8, 56)) for m in "qkv"}, **{f"{m}.bias": (0, (7, 8)) for m in "qkv"}}
OPS = [  # (kind, distribution) and the first and count of each slice for rank 1 of 3, which has 2 of 7 heads and 31 of 101 columns
    ("project_qkv_heads", "full", QKV_PART),
    ("out_heads", "full", {"o.weight": (3, (2, 8, 56))}),
    ("project_qkv", "rows", QKV),
    ("project_q", "rows", {name: at for name, at in QKV.items() if name[0] == "q"}),
    ("project_kv", "full", {name: at for name, at in QKV.items() if name[0] != "q"}),
    ("out", "rows", {"o.weight": (0, (7, 8, 56))}),
    ("mix", "rows", {}),
    ("mix_heads", "full", {}),
    ("mlp_columns", "full", {"up.weight": (40, (31, 56)), "up.bias": (40, (31,)), "down.weight": (40, (31, 56))}),
    ("mlp", "rows", {"up.weight": (0, (101, 56)), "up.bias": (0, (101,)), "down.weight": (0, (101, 56))}),
]  # fmt: skip


@pytest.mark.parametrize("kind, distribution, expected", OPS)
def test_an_operation(kind, distribution, expected):
    plan = plan_of(BERT, LAYOUTS[0], (3, 2, 2), (40, 31, 30), (4, 4, 1))
    found = Part(BERT, plan, 1).op(operations(BERT, 2)[kind], distribution)
    block = "mlp" if kind.startswith("mlp") else "attention"
    inner = ("q.weight", "k.weight", "v.weight", "up.weight")  # what sums over its last axis
    assert found == {short: Slice(f"layers.2.{block}.{short}", *at, inner=int(short in inner)) for short, at in expected.items()}


def test_norms_and_tails():
    part = Part(BERT, plan_of(BERT, [LAYOUTS[0]] * 3, (1, 1)), 0)
    tail = operations(BERT, 1)["add_norm"]
    names = {"norm.weight": "layers.1.mlp.norm.weight", "norm.bias": "layers.1.mlp.norm.bias", "bias": "layers.1.mlp.down.bias"}
    assert part.op(tail, "full") == {short: Slice(name, 0, (56,)) for short, name in names.items()}
    assert set(part.op(operations(BERT)["norm"], "full")) == {"norm.weight", "norm.bias"}


CASTS = ("to_float16", "to_float32", "to_int8", "from_int8")
HEADS, COLUMNS = ("project_qkv_heads", "mix_heads", "out_heads", *(f"{cast}_heads" for cast in CASTS)), ("mlp_columns",)
WHOLE, MINE = ("project_qkv", "project_q", "project_kv", "mix", "out", "mlp"), ("norm", "add_norm", *CASTS)
WEIGHTLESS = ("mix", "mix_heads", *CASTS, *(f"{cast}_heads" for cast in CASTS))
TAKES_PART = [  # per rank of a plan where each has another thing: (distribution, operations that it does anything of)
    (0, "full", HEADS + MINE), (1, "full", COLUMNS + MINE), (2, "full", WHOLE + MINE), (3, "full", MINE),
    (0, "rows", HEADS), (1, "rows", COLUMNS), (2, "rows", WHOLE + MINE), (3, "rows", ()),
]  # fmt: skip


@pytest.mark.parametrize("rank, distribution, expected", TAKES_PART)
def test_who_takes_part(rank, distribution, expected):
    plan = plan_of(BERT, (LAYOUTS[0], LAYOUTS[3], LAYOUTS[0]), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0))
    part = Part(BERT, plan, rank)
    for kind in HEADS + COLUMNS + WHOLE + MINE:
        op = operations(BERT)[kind]
        assert part.takes_part(op, distribution) == (kind in expected), kind
        assert bool(part.op(op, distribution)) == (kind in expected and kind not in WEIGHTLESS), kind
        assert part.held(Compute((op,), distribution)) == ({op: part.op(op, distribution)} if kind in expected else {}), kind


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_active_rank_has_all(layout):
    """Whatever its shares say: a layout that divides no heads leaves them 0."""
    part = Part(BERT, plan_of(BERT, layout, (0, 1)), 1)
    whole = [span(weight) for weight in all_weights(BERT) if weight.name.startswith("layers.")]
    assert sorted(part.of_layers, key=attrgetter("name")) == sorted(whole, key=attrgetter("name"))


def test_a_rank_without_a_part_reads_nothing():
    plan = plan_of(BERT, LAYOUTS[0], (1, 0, 0), (0, 1, 0))
    assert list(Part(BERT, plan, 2).slices) == []


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("spec", [BERT, VIT], ids=lambda spec: spec.name)
def test_all_ranks_together_hold_every_weight(spec, shares):
    """Split weights once in all, whole ones on every rank that has rows; everything inside the tensor."""
    whole = {weight.name: weight for weight in all_weights(spec)}
    for layers in product(LAYOUTS, repeat=2):
        plan = plan_of(spec, (*layers, layers[0]), shares)
        held = {}
        for rank in range(plan.ranks):
            pieces = Part(spec, plan, rank).of_layers
            assert len(set(pieces)) == len(pieces) and bool(pieces) == (rank in plan.active)
            for piece in pieces:
                assert 0 <= piece.first and piece.first + piece.shape[0] <= whole[piece.name].shape[0]
                assert piece.shape[1:] == whole[piece.name].shape[1:]
                held.setdefault(piece.name, []).append((piece.first, piece.first + piece.shape[0]))
        for name, weight in whole.items():
            if weight.part in ("embedding", "head"):
                assert name not in held
                continue
            ranges = sorted(held[name])
            _, layer, kind, *_ = name.split(".") if weight.split else ("", 0, "")
            by_rows = weight.split and plan.layouts[int(layer)][kind == "mlp"] not in ("heads", "columns")
            if weight.split is None or by_rows:
                assert set(ranges) == {(0, weight.shape[0])}
            else:
                assert ranges[0][0] == 0 and ranges[-1][1] == weight.shape[0]
                assert all(end == begin for (_, end), (begin, _) in zip(ranges, ranges[1:]))


@pytest.mark.parametrize("spec", [BERT, VIT], ids=lambda spec: spec.name)
def test_the_root_reads_embedding_and_head_besides(spec):
    plan = plan_of(spec, [LAYOUTS[0]] * 3, (0, 1, 1))
    assert set(Part(spec, plan, 0).slices) == set(root_slices(spec))
    assert {piece.name for piece in root_slices(spec)} == {w.name for w in all_weights(spec) if w.part in ("embedding", "head")}
    assert not set(Part(spec, plan, 1).slices) & set(root_slices(spec))


@pytest.mark.parametrize("first, count, parts", [(0, 3, {"embedding", "head"}), (0, 2, {"embedding"}), (2, 1, {"head"}), (1, 1, set())])
def test_who_leads_a_stage_reads_what_lies_before_and_behind_it(first, count, parts):
    plan = replace(plan_of(BERT, [LAYOUTS[0]] * count, (1, 1)), first=first)
    names = {piece.name for piece in Part(BERT, plan, 0).slices}
    assert {weight.part for weight in all_weights(BERT) if weight.name in names and weight.part in ("embedding", "head")} == parts
    assert {int(name.split(".")[1]) for name in names if name.startswith("layers.")} >= set(range(first, first + count))
