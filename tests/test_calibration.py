"""Weights in fewer bits: what built-in inputs show while they pass, what it is good for, and what a format costs is told and kept."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from hepti_mpi.commands import main
from hepti_mpi.engine.accuracy import accuracy_of
from hepti_mpi.engine.alone import last_hidden_state
from hepti_mpi.errors import StoreError
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.formats import CHANNELS
from hepti_mpi.models.reference import forward
from hepti_mpi.weights import store as stores
from hepti_mpi.weights.calibration import Calibration, grouped
from hepti_mpi.weights.slices import span
from hepti_mpi.weights.store import Store


def uneven(name, format_name):
    """A tiny model some of whose channels are far above the others, as trained models have them."""
    model = random_model(name)

    def stream():
        for called, values in model.weights():
            large = values * np.float32(5) if called.startswith("layers") and "norm" not in called else values
            if called.endswith("norm.weight"):
                large[[3, 20]] = 12, 6
            yield called, large

    return replace(model, stream=stream).in_format(format_name)


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-vit"])
def test_float32_answers_while_weights_pass(name):
    model = random_model(name)
    calibration, groups = Calibration.of(model), list(grouped(model.weights()))
    assert sum(any(one.startswith("layers.") for one in group) for group in groups) == model.spec.layers
    seen = {}
    for group in groups:
        seen |= calibration.take(group)
    channels = {name: one.channels for name, one in seen.items() if one.channels is not None}
    found = calibration.finished()
    right = forward(model.spec, dict(model.weights()), found.embedded, found.lengths)
    np.testing.assert_allclose(found.hidden, right, rtol=0, atol=1e-4)
    roles = ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.up")
    assert set(channels) == {f"layers.{number}.{role}.weight" for number in range(3) for role in roles}
    for number in range(3):  # one rounding serves all three
        q, k, v = (channels[f"layers.{number}.attention.{m}.weight"] for m in "qkv")
        assert (q == k).all() and (k == v).all() and (q > 0).all() and q.shape == (56,)


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-vit"])
def test_channels_make_8_bits_cost_less(tmp_path, name):
    model, errors = uneven(name, "q8"), []
    for smooth in (False, True):
        calibration = Calibration.of(model)
        stores.write(tmp_path / f"{smooth}.h5", model, calibration=calibration if smooth else None)
        if not smooth:
            for group in grouped(model.weights()):
                calibration.take(group)
        with Store(tmp_path / f"{smooth}.h5") as store:
            assert (store.array(span(store.weights["layers.0.mlp.up.weight"]), CHANNELS) != 1).any() == smooth
            errors.append(accuracy_of(store, calibration.finished()).median)
    assert errors[1] < 0.9 * errors[0]


def test_a_model_in_another_format_is_another_model():
    model = random_model("tiny-bert")
    assert model.in_format("f32") == model
    hashes = {model.in_format(name).source_hash for name in ("f32", "f16", "q8", "q4")}
    assert len(hashes) == 4
    assert model.in_format("q4").spec.formats["layers.0.attention.o.weight"] == "q8"  # no block divides its heads
    assert random_model("minilm").in_format("q4").spec.formats == {"": "q4"}


@pytest.mark.parametrize("name", ["f16", "q8", "q4"])
def test_slice_tells_what_a_format_costs(tmp_path, name):
    path = tmp_path / "m.h5"
    done = CliRunner().invoke(main.main, ["slice", "random:tiny-bert", str(path), "--format", name])
    assert done.exit_code == 0 and "against float32, on 8 built-in inputs of 234 rows: hidden state off by" in done.output
    seen = CliRunner().invoke(main.main, ["inspect", str(path)])
    assert seen.exit_code == 0 and done.output.splitlines()[-1][:60] in seen.output and f"{name} " in seen.output
    document = json.loads(CliRunner().invoke(main.main, ["inspect", str(path), "--json"]).output)
    assert document["accuracy"]["rows"] == 234 and document["accuracy"]["least_cosine"] > 0.999
    assert sum(document["format_bytes"].values()) < 310_000 and document["format_bytes"][name] > 40_000


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"requests": "a"}', "[", json.dumps(dict.fromkeys(
    ("requests", "rows", "largest", "median", "usual", "least_cosine", "median_cosine"), float("nan"))),
], ids=range(6))  # fmt: skip
def test_an_accuracy_that_is_none(tmp_path, text):
    path = tmp_path / "m.h5"
    stores.write(path, random_model("tiny-bert").in_format("q8"))
    with h5py.File(path, "r+") as file:
        file.attrs["accuracy"] = text
    with Store(path) as store, pytest.raises(StoreError, match="what it says about its accuracy is damaged") as error:
        assert store.accuracy
    assert "\n" not in str(error.value)


def test_a_row_of_nothing_harms_no_other(tmp_path):
    """It has no scale to be rounded with; the others answer as without it."""
    path, embedded = tmp_path / "m.h5", np.random.default_rng(0).standard_normal((6, 56), np.float32)
    stores.write(path, random_model("tiny-bert").in_format("q8"))
    empty = embedded.copy()
    empty[2] = 0
    with Store(path) as store:
        one, other = (last_hidden_state(store, x, (1,) * 6) for x in (embedded, empty))
    assert np.isfinite(other).all()
    np.testing.assert_array_equal(np.delete(one, 2, axis=0), np.delete(other, 2, axis=0))


@pytest.mark.parametrize("error, name", [(0.5, "q4-wide"), (1e-6, "q8"), (1e-9, "f16"), (0, "f32")])
def test_as_few_bits_as_an_error_allows(tmp_path, error, name):
    path = tmp_path / "m.h5"
    done = CliRunner().invoke(main.main, ["slice", "random:tiny-bert", str(path), "--format", "auto", "--error", str(error)])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == f"{path}: {name}, which has the fewest bits of those that cost at most {error:g}"
    with Store(path) as store:
        assert store.spec.formats.get("", "f32") == name
        assert store.accuracy is None or 1 - store.accuracy.least_cosine <= error
    assert [one.name for one in tmp_path.iterdir()] == ["m.h5"]


def test_auto_and_its_error_go_together(tmp_path):
    for more in (["--format", "auto"], ["--error", "0.1"], ["--format", "auto", "--error", "2"]):
        done = CliRunner().invoke(main.main, ["slice", "random:tiny-bert", str(tmp_path / "m.h5"), *more])
        assert done.exit_code == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("first, second", [("f32", "q8"), ("f32", "f32"), ("q8", "f32"), ("q4", "q8-blocks")])
def test_a_store_is_a_source_too(tmp_path, first, second):
    """Of float32 weights the same comes as of the model, of others the numbers that they stand for."""
    model = uneven("tiny-bert", first)
    stores.write(tmp_path / "a.h5", model)
    done = CliRunner().invoke(main.main, ["slice", str(tmp_path / "a.h5"), str(tmp_path / "b.h5"), "--format", second])
    assert done.exit_code == 0, done.output
    assert ("has weights in" in done.output) == (first != "f32")
    with Store(tmp_path / "a.h5") as one, Store(tmp_path / "b.h5") as other:
        assert other.files == one.files
        if first == "f32":
            assert other.source_hash == model.in_format(second).source_hash
            assert (other.accuracy is None) == (second == "f32")
        else:
            assert other.source_hash != random_model("tiny-bert").source_hash
        for name, weight in one.weights.items():
            mine, theirs = span(weight), span(other.weights[name])
            if second == "f32":
                np.testing.assert_array_equal(mine.decode(one.parts(mine)), theirs.decode(other.parts(theirs)))


def test_stores_that_are_no_source(tmp_path):
    whole, part = tmp_path / "a.h5", tmp_path / "rank00.h5"
    stores.write(whole, random_model("tiny-bert"))
    with Store(whole) as store:
        stores.write_part(part, store, [span(store.weights["layers.0.attention.q.weight"], 0, 2)])
    few, before = tmp_path / "few.h5", whole.read_bytes()
    stores.write(few, random_model("tiny-bert").in_format("q8"))
    for source, said, *more in (
        (part, "only a whole store can be written anew", "--format", "q8"),
        (whole, "would be written over while it is read", "--format", "q8"),
        (few, "is in q8 already", "--format", "q8"),
        (few, "measures against float32", "--format", "auto", "--error", "0.1"),
    ):
        done = CliRunner().invoke(main.main, ["slice", str(source), str(whole), *more])
        assert done.exit_code != 0 and (said in done.output or said in str(done.exception)), done.output
        assert whole.read_bytes() == before
