"""Descriptions of models in stores that were made before front and head were steps: read as what the same models are today."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.spec import ModelSpec, outer_weights
from hepti_mpi.models.steps import Dense, LayerNorm, Normalize

GOLDEN = Path(__file__).parent / "golden"
OLDER = {data["name"]: data for data in json.loads((GOLDEN / "older.json").read_text())}
LATER = {"max_tokens"}  # at which labelled texts are cut off: an older store has them whole, or says that they are too long


@pytest.mark.parametrize("name", [name for name in OLDER if (GOLDEN / name).is_dir()])
def test_same_model(name):
    old, new = ModelSpec.from_json(OLDER[name]), read_model(GOLDEN / name).spec
    assert replace(old, options={}) == replace(new, options={})
    later = {key: value for key, value in new.options.items() if key not in old.options}
    assert new.options.items() - later.items() <= old.options.items() and later.keys() <= LATER
    assert outer_weights(old) == outer_weights(new)


def test_modules():
    steps = (Dense("head.modules.0", 40, 7, "tanh", residual=True), LayerNorm("head.modules.1", 7, 1e-5))
    assert ModelSpec.from_json(OLDER["bert_dense"]).back == steps
    assert ModelSpec.from_json(OLDER["bert_normalize"]).back == (Normalize("head.modules.0"),)
