"""The file of a plan: what is read again, and what is refused."""

import json
from dataclasses import replace

import pytest
from test_plan import MIXED, PLAN, TILED

from hepti_mpi.errors import PlanError
from hepti_mpi.program import placement as placements


@pytest.mark.parametrize("plan", [PLAN, TILED, MIXED])
def test_a_saved_plan_is_the_same(tmp_path, plan):
    path = tmp_path / "plan.json"
    placements.whole(plan).save(path)
    loaded = placements.load(path).together
    assert loaded == plan and loaded.predicted_seconds == 0.25 and loaded.hash == plan.hash
    assert placements.from_json(placements.whole(plan).to_json()).together == plan  # on rank 0 what is told is no JSON
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    data = json.loads(path.read_text())
    assert (data["format"], data["format_version"], data["hash"]) == ("hepti-plan", 2, placements.whole(plan).hash)


def test_what_a_plan_rounds():
    """By layer too, so that a run with another wire does not go on with what this one answered; one type is told as it always was."""
    told = [placements.whole(plan).rounding for plan in (PLAN, TILED, MIXED, replace(MIXED, wire=("int8", "float16", "float16")))]
    assert told == [(), ("float16",), ("float16 x1 + int8 x2",), ("int8 x1 + float16 x2",)]


def test_a_type_for_each_layer_that_is_the_same(tmp_path):
    """Is the wire of all of them, by whatever name."""
    document = placements.whole(TILED).to_json()
    document["teams"][0][0]["plan"]["wire"] = ["float16"] * 3
    (tmp_path / "plan.json").write_text(json.dumps(document))
    assert placements.load(tmp_path / "plan.json").together == TILED


def test_a_plan_that_cannot_be_saved(tmp_path):
    with pytest.raises(PlanError, match="no/plan.json cannot be written"):
        placements.whole(PLAN).save(tmp_path / "no" / "plan.json")


def document(plan, **fields):
    stage = {"members": [0, 1, 2], "plan": plan}
    return json.dumps({"format": "hepti-plan", "format_version": 2, "hash": placements.whole(PLAN).hash, "teams": [[stage]]} | fields)


def edited(**fields):
    return document(PLAN.to_json() | fields)


DAMAGED = [
    ("", "not JSON"),
    ("{", "not JSON"),
    ("[" * 100_000, "not JSON"),
    (b"\xff\xfe\x00", "not JSON"),
    ("[]", "not a plan"),
    ("7", "not a plan"),
    ('{"format": "hepti-profile"}', "not a plan"),
    (document(PLAN.to_json(), format_version=1), "format version 1, this program reads 2; make it with: python -m hepti_mpi plan --output"),
    (document(PLAN.to_json(), format_version=None), "has no format version"),
    (document(PLAN.to_json(), teams=[]), "damaged"),
    (document(PLAN.to_json(), teams=[[]]), "damaged"),
    (document(PLAN.to_json(), teams=[[{"members": [0], "plan": 7}]]), "damaged"),
    (document(PLAN.to_json(), hash="0"), "does not match its own hash"),
    (edited(heads=[3, 1, 3]), "does not match its own hash"),
    (edited(reduction="reduce_scatter"), "does not match its own hash"),
    (edited(hash="0" * 16), "does not match its own hash"),
    (edited(heads=[4, 0, 3.0]), "damaged"),
    (edited(heads=[4, 0, True]), "damaged"),
    (edited(heads=[4, -1, 4]), "damaged"),
    (edited(heads="403"), "damaged"),
    (edited(heads=None), "damaged"),
    (edited(layers=[["heads"]]), "damaged"),
    (edited(layers=7), "damaged"),
    (edited(tiles=[[5, 0, 4.0]]), "damaged"),
    (edited(tiles=[5, 0, 4]), "damaged"),
    (edited(tiles=[[5, 0, 4]]), "does not match its own hash"),
    (edited(wire="float16"), "does not match its own hash"),
    (edited(wire=["float16", "int8", "int8"]), "does not match its own hash"),
    (edited(wire=["float16", "int8", "float8"]), "damaged"),
    (edited(wire=["float16", ["int8"], "int8"]), "damaged"),
    (edited(wire=[]), "damaged"),
    (edited(wire=7), "damaged"),
    *((document({key: value for key, value in PLAN.to_json().items() if key != missing}), "damaged")
      for missing in ("columns", "collectives", "wire", "tiles")),
    (edited(predicted_seconds="soon"), "damaged"),
    (edited(predicted_seconds=float("inf")), "damaged"),
]


@pytest.mark.parametrize("text, words", DAMAGED)
def test_damaged_plans(tmp_path, text, words):
    path = tmp_path / "plan.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PlanError, match=words) as error:
        placements.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_no_plan_and_a_folder(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(PlanError, match="cannot be read"):
            placements.load(path)
