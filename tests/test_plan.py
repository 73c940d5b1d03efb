import hashlib
import json
from dataclasses import asdict, replace

import pytest
from layers import sized

from hepti_mpi.comm.advice import with_ranks
from hepti_mpi.errors import PlanError
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.program.plan import Plan, check, granules_fit, in_words, kind_of, wire_of

SPEC = sized(random_model("tiny-bert").spec, ffn=131)  # columns in granules of 2
TENSOR, SEQUENCE, LEFT, RIGHT = ("heads", "columns"), ("rows", "rows"), ("heads", "rows"), ("rows", "columns")
ALLTOALL, RECOMPUTE, LOCAL = ("alltoall", "rows"), ("recompute", "rows"), ("local", "rows")
PLAN = Plan("tiny-bert", "hash", (TENSOR,) * 3, (4, 0, 3), (64, 67, 0), (5, 0, 4), ("a", "b", "c"), ("packed", "mapped", "packed"),
            predicted_seconds=0.25)  # fmt: skip
TILED = replace(PLAN, reduction="reduce_scatter", collectives="own", wire="float16", tiles=((3, 0, 1), (2, 0, 3)))
MIXED = replace(TILED, wire=("float16", "int8", "int8"))


def test_properties():
    assert (PLAN.ranks, PLAN.planned_rows, PLAN.active, PLAN.layouts[1][1], PLAN.layouts[1][0]) == (
        3,
        9,
        (0, 1, 2),
        "columns",
        "heads",
    )
    nothing = replace(PLAN, heads=(7, 0, 0), columns=(131, 0, 0), rows=(9, 0, 0))
    assert nothing.active == (0,) and nothing.strategy == "single" and not nothing.divided and PLAN.divided


@pytest.mark.parametrize("layers, expected", [
    ((TENSOR,) * 3, "tensor"), ((SEQUENCE,) * 3, "sequence"), ((LEFT,) * 3, "hybrid"), ((RIGHT,) * 3, "hybrid"),
    ((LEFT, RIGHT, LEFT), "hybrid"), ((SEQUENCE, SEQUENCE, TENSOR), "mix"), ((ALLTOALL, SEQUENCE, RECOMPUTE), "sequence"),
    ((("alltoall", "columns"),) * 3, "hybrid"), ((TENSOR, ALLTOALL, TENSOR), "mix"),
])  # fmt: skip
def test_strategy(layers, expected):
    assert replace(PLAN, layers=layers).strategy == expected


@pytest.mark.parametrize("rows, expected", [(9, (5, 0, 4)), (18, (10, 0, 8)), (1, (1, 0, 0)), (7, (4, 0, 3)), (0, (0, 0, 0))])
def test_row_counts(rows, expected):
    assert PLAN.row_counts(rows) == expected
    assert PLAN.tile_counts(rows) == (expected,)


@pytest.mark.parametrize("rows, expected", [
    (9, ((3, 0, 1), (2, 0, 3))),
    (18, ((6, 0, 2), (4, 0, 6))),
    (10, ((4, 0, 1), (2, 0, 3))),  # 3.33, 1.11, 2.22 and 3.33: the row that is left goes to the first of the largest remainders
    (1, ((1, 0, 0), (0, 0, 0))),  # a tile may be empty
    (0, ((0, 0, 0), (0, 0, 0))),
])  # fmt: skip
def test_tile_counts(rows, expected):
    assert TILED.tile_counts(rows) == TILED.counts((rows,)) == TILED.counts((1,) * rows) == expected
    assert TILED.row_counts(rows) == tuple(map(sum, zip(*expected)))


@pytest.mark.parametrize("lengths, expected", [
    ((9,), (9, 0, 0)), ((4, 5), (4, 0, 5)), ((5, 4), (5, 0, 4)), ((2, 2, 2, 2), (4, 0, 4)), ((1,), (1, 0, 0)),
])  # fmt: skip
def test_whole_requests(lengths, expected):
    assert replace(PLAN, layers=(LOCAL,) * 3).counts(lengths) == (expected,)


@pytest.mark.parametrize("change", [
    {"model": "other"}, {"source_hash": "other"}, {"layers": (TENSOR, TENSOR, SEQUENCE)}, {"heads": (3, 1, 3)}, {"columns": (66, 65, 0)},
    {"rows": (4, 1, 4)}, {"hosts": ("a", "b", "d")}, {"weights_mode": ("packed",) * 3}, {"reduction": "reduce_scatter"},
    {"collectives": "own"}, {"wire": "float16"}, {"wire": MIXED.wire}, {"tiles": ((5, 0, 4),)}, {"tiles": ((5, 0, 0), (0, 0, 4))},
    {"prompt_tiles": 2},
])  # fmt: skip
def test_the_hash_is_of_all_that_is_done(change):
    assert replace(PLAN, **change).hash != PLAN.hash
    assert replace(PLAN, predicted_seconds=7.0).hash == PLAN.hash == replace(PLAN).hash
    before = {key: value for key, value in asdict(PLAN).items() if key not in ("predicted_seconds", "prompt_tiles")}
    assert PLAN.hash == hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()[:16], "as in files without prompt_tiles"


def test_sums_of_texts_have_no_int8():
    with pytest.raises(PlanError, match="needs collectives 'own'"):
        check(replace(PLAN, wire="int8"), replace(SPEC, head="next-token"), "hash", 3)


def test_check_accepts():
    check(PLAN, SPEC, "hash", 3)
    check(replace(PLAN, columns=(0, 0, 131)), SPEC, "hash", 3)
    check(replace(PLAN, columns=(130, 1, 0)), SPEC, "hash", 3)  # an empty part may begin anywhere
    check(replace(PLAN, layers=(SEQUENCE,) * 3, heads=(0,) * 3, columns=(0,) * 3), SPEC, "hash", 3)
    check(replace(PLAN, layers=(SEQUENCE, LEFT, SEQUENCE), columns=(0,) * 3, reduction="reduce_scatter"), SPEC, "hash", 3)
    check(replace(PLAN, tiles=(PLAN.rows,)), SPEC, "hash", 3)  # one tile is none
    check(replace(PLAN, prompt_tiles=4), SPEC, "hash", 3)
    check(replace(PLAN, wire="float16"), replace(SPEC, head="next-token"), "hash", 3)  # of whole sums, which others have no short type for
    check(TILED, SPEC, "hash", 3)
    check(MIXED, SPEC, "hash", 3)
    check(replace(TILED, tiles=((5, 0, 0), (0, 0, 4), (0, 0, 0))), SPEC, "hash", 3)
    check(replace(TILED, tiles=(), layers=(ALLTOALL, RIGHT, RECOMPUTE)), SPEC, "hash", 3)
    check(replace(TILED, layers=(RECOMPUTE, SEQUENCE, RECOMPUTE), heads=(0,) * 3, columns=(0,) * 3, reduction="allreduce"), SPEC, "hash", 3)
    check(replace(PLAN, layers=(RECOMPUTE, TENSOR, LEFT)), SPEC, "hash", 3)
    check(replace(PLAN, layers=(LOCAL,) * 3, heads=(0,) * 3, columns=(0,) * 3), SPEC, "hash", 3)


REFUSED = [
    ({"source_hash": "other"}, "source hash other, the store holds tiny-bert with hash; name the store of that model .run --weights STORE. "
                               "or a plan for this one"),
    ({"layers": (TENSOR,) * 2}, "the plan has 2 layers, model tiny-bert has 3"),
    ({"layers": (TENSOR, TENSOR, ("columns", "heads"))}, "unknown layout columns/heads"),
    ({"heads": (7, 0)}, "different lengths, expected 3"),
    ({"weights_mode": ("packed",)}, "different lengths, expected 3"),
    ({"heads": (4, 0, 4)}, "the plan has 8 heads, model tiny-bert has 7"),
    ({"columns": (64, 66, 0)}, "the plan has 130 columns, model tiny-bert has 131"),
    ({"layers": (SEQUENCE,) * 3}, "heads"),  # shares that no layer uses
    ({"columns": (65, 66, 0)}, "do not start at multiples of 2"),
    ({"rows": (0, 0, 0)}, "no rows"),
    ({"reduction": "guess"}, "reduction 'guess', expected allreduce or reduce_scatter"),
    ({"collectives": "yours"}, "collectives 'yours', expected mpi or own"),
    ({"wire": "float8"}, "wire 'float8', expected float32 or float16 or int8"),
    ({"wire": ("int8", "float32", "float8")}, "wire 'float8', expected float32 or float16 or int8"),
    ({"wire": ("int8", "float32")}, "a wire for 2 layers and 3 layers"),
    ({"wire": MIXED.wire}, "needs collectives 'own'"),
    ({"layers": (ALLTOALL, RECOMPUTE, RIGHT), "heads": (0,) * 3}, "the plan has 0 heads, model tiny-bert has 7"),
    ({"layers": (RECOMPUTE, RIGHT, RIGHT)}, "the plan has 7 heads"),  # which no layer divides
    ({"tiles": ((5, 0), (0, 4))}, "tiles do not add up"),
    ({"tiles": ((5, 0, 4), (0, 0, 0, 9))}, "tiles do not add up"),
    ({"tiles": ((3, 0, 1), (2, 0, 2))}, "tiles do not add up"),
    ({"tiles": ((5, 0, 4), (5, 0, 4))}, "tiles do not add up"),
    ({"tiles": ((3, 0, 1), (2, 0, 3))}, "needs collectives 'own'"),
    ({"wire": "float16"}, "needs collectives 'own'"),
    ({"prompt_tiles": 0}, "has 0 as prompt_tiles, expected 1 to 4"),
    ({"prompt_tiles": 5}, "has 5 as prompt_tiles, expected 1 to 4"),
    ({"prompt_tiles": 2, "reduction": "reduce_scatter"}, "and 1 without reduction 'allreduce'"),
    ({"layers": (ALLTOALL, RIGHT, RIGHT), "reduction": "reduce_scatter"}, "needs collectives 'own'"),
    ({"layers": (LOCAL, LOCAL, RECOMPUTE), "heads": (0,) * 3, "columns": (0,) * 3}, "keeps requests whole in some layers only"),
    ({"layers": (LOCAL, SEQUENCE, LOCAL), "heads": (0,) * 3, "columns": (0,) * 3}, "keeps requests whole in some layers only"),
    ({"layers": (LOCAL,) * 3, "heads": (0,) * 3, "columns": (0,) * 3, "collectives": "own", "tiles": ((5, 0, 0), (0, 0, 4))}, "into tiles"),
    ({"collectives": "own"}, "reduce with 'reduce_scatter'"),
    ({"collectives": "own", "layers": (RECOMPUTE, RIGHT, SEQUENCE), "heads": (0,) * 3}, "reduce with 'reduce_scatter'"),
    ({"weights_mode": ("packed", "mapped", "eaten")}, "weights modes"),
]


@pytest.mark.parametrize("change, words", REFUSED)
def test_check_refuses(change, words):
    with pytest.raises(PlanError, match=words):
        check(replace(PLAN, **change), SPEC, "hash", 3)


def test_the_wire_of_each_layer():
    assert PLAN.wires == ("float32",) * 3 and TILED.wires == ("float16",) * 3 and MIXED.wires == MIXED.wire
    assert (PLAN.shortest, TILED.shortest, MIXED.shortest) == ("float32", "float16", "int8")
    assert wire_of(TILED.wires) == TILED.wire and wire_of(list(MIXED.wires)) == MIXED.wire
    assert replace(TILED, wire=wire_of(["float16"] * 3)).hash == TILED.hash


@pytest.mark.parametrize("wire, words, kind", [
    ("float32", "float32", ""), ("int8", "int8", ", int8 wire"), (MIXED.wire, "int8 in 2 of 3 layers", ", int8 wire in 2 of 3 layers"),
    (("float32", "float32", "float16"), "float16 in 1 of 3 layers", ", float16 wire in 1 of 3 layers"),
])  # fmt: skip
def test_a_wire_in_words(wire, words, kind):
    assert "".join(in_words(wire)) == words
    assert kind_of(replace(TILED, wire=wire)) == f"heads/columns x3, 2 tiles{kind}".replace(" x3", "")


def test_check_names_both_rank_counts():
    with pytest.raises(PlanError, match="for 3 ranks, this job has 4; start it with: mpirun -n 3"):
        check(PLAN, SPEC, "hash", 4, start=with_ranks)


def test_what_a_supervisor_started_is_not_to_be_typed_again(monkeypatch, tmp_path):
    monkeypatch.setenv("HEPTI_STATE", str(tmp_path / "state.json"))
    with pytest.raises(PlanError, match="for 3 ranks, this job has 4; start it with a hostfile of 3 slots$"):
        check(PLAN, SPEC, "hash", 4, start=with_ranks)


@pytest.mark.parametrize(
    "columns, granule, expected", [((8, 9), 4, True), ((9, 8), 4, False), ((9, 0, 0), 4, True), ((0, 0, 9), 4, True), ((7, 0, 2), 7, True)]
)
def test_granules_fit(columns, granule, expected):
    assert granules_fit(columns, granule) is expected
