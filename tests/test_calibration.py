"""Weights in fewer bits: what built-in inputs show while they pass, what it is good for, and what a format costs is told and kept."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from hepti_mpi.commands import main
from hepti_mpi.commands import slice as slicing
from hepti_mpi.engine.accuracy import accuracy_of
from hepti_mpi.engine.alone import last_hidden_state
from hepti_mpi.errors import ModelError, StoreError
from hepti_mpi.models import identity
from hepti_mpi.models.checkpoints.random import random_model, random_weight
from hepti_mpi.models.formats import CHANNELS, FORMATS, VALUES
from hepti_mpi.models.inputs.requests import held_out_requests
from hepti_mpi.models.reference import forward
from hepti_mpi.models.spec import named_weights
from hepti_mpi.models.tasks.heads import apply_head, embed
from hepti_mpi.weights import calibration as calibrations
from hepti_mpi.weights import writing
from hepti_mpi.weights.calibration import Accuracy, Calibration, grouped
from hepti_mpi.weights.outer import OuterWeights
from hepti_mpi.weights.slices import span
from hepti_mpi.weights.store import Store


def untied(model):
    """The same with a table of its own for the words that are scored."""
    spec = replace(model.spec, back=(replace(model.spec.back[0], tied=False),))

    def stream():
        for called, weight in named_weights(spec):
            yield called, random_weight(called, weight.shape, 0)

    return replace(model, spec=spec, stream=stream)


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


def scaled(name, roles, factor):
    """A tiny model with the matrices of these roles that many times as large."""
    model = random_model(name)

    def stream():
        for called, values in model.weights():
            yield called, values * np.float32(factor if called.endswith(tuple(f"{role}.weight" for role in roles)) else 1)

    return replace(model, stream=stream)


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-vit"])
def test_float32_answers_while_weights_pass(name):
    model = random_model(name)
    calibration, groups = Calibration.of(model), list(grouped(model.weights()))
    assert sum(any(one.startswith("layers.") for one in group) for group in groups) == model.spec.layers
    seen = {}
    for group in groups:
        seen |= calibration.take(group)
    channels = {name: one.channels for name, one in seen.items() if one.channels is not None}
    weights = dict(model.weights())
    for found in calibration.finished():
        right = forward(model.spec, weights, embed(model.spec, weights, found.arrays), found.lengths)
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
        writing.write(tmp_path / f"{smooth}.h5", model, calibration=calibration if smooth else None)
        if not smooth:
            for group in grouped(model.weights()):
                calibration.take(group)
        with Store(tmp_path / f"{smooth}.h5") as store:
            assert (store.array(span(store.weights["layers.0.mlp.up.weight"]), CHANNELS) != 1).any() == smooth
            errors.append(accuracy_of(store, model, calibration.finished()[1]).median)
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("name, numbers", [
    ("q8", (-11, -41, 81, -127, -2, -29, 46, -15, -11, -39, 21, -26, 50, 72, -43, -4, 33, -18, 11, -10, -59, 9, 72, -39, -37, -13)),
    ("q4", (87, 13, 88, 124, 87, 106, 203, 134, 122, 121, 131, 93, 118, 68, 166, 38, 168, 104, 150, 136, 152, 7, 117, 152, 214, 135)),
])  # fmt: skip
def test_the_same_weights_become_the_same_numbers(tmp_path, name, numbers):
    """Where they become others, stores of before and after answer otherwise and must not have one hash: a journal would mix them."""
    model = random_model("tiny-bert").in_format(name)
    writing.write(tmp_path / "m.h5", model, calibration=Calibration.of(model))
    with Store(tmp_path / "m.h5") as store:
        found = np.ravel(store.array(span(store.weights["layers.0.mlp.up.weight"]), VALUES))[: len(numbers)]
    assert identity.ROUNDING == 3 and (found == numbers).mean() > 0.85, "one more for ROUNDING, and the new numbers here"


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
    said = "against float32, on 19 built-in inputs of 791 rows by which nothing was decided: hidden state off by"
    assert done.exit_code == 0 and said in done.output
    seen = CliRunner().invoke(main.main, ["inspect", str(path)])
    assert seen.exit_code == 0 and done.output.splitlines()[-1][:60] in seen.output and f"{name} " in seen.output
    document = json.loads(CliRunner().invoke(main.main, ["inspect", str(path), "--json"]).output)
    assert document["accuracy"]["rows"] == 791 and document["accuracy"]["least_cosine"] > 0.999
    assert sum(document["format_bytes"].values()) < 310_000 and document["format_bytes"][name] > 40_000


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"requests": "a"}', "[", json.dumps(dict.fromkeys(
    ("requests", "rows", "largest", "median", "usual", "least_cosine", "median_cosine"), float("nan"))),
], ids=range(6))  # fmt: skip
def test_an_accuracy_that_is_none(tmp_path, text):
    path = tmp_path / "m.h5"
    writing.write(path, random_model("tiny-bert").in_format("q8"))
    with h5py.File(path, "r+") as file:
        file.attrs["accuracy"] = text
    with Store(path) as store, pytest.raises(StoreError, match="what it says about its accuracy is damaged") as error:
        assert store.accuracy
    assert "\n" not in str(error.value)


def test_a_row_of_nothing_harms_no_other(tmp_path):
    """It has no scale to be rounded with; the others answer as without it."""
    path, embedded = tmp_path / "m.h5", np.random.default_rng(0).standard_normal((6, 56), np.float32)
    writing.write(path, random_model("tiny-bert").in_format("q8"))
    empty = embedded.copy()
    empty[2] = 0
    with Store(path) as store:
        one, other = (last_hidden_state(store, x, (1,) * 6) for x in (embedded, empty))
    assert np.isfinite(other).all()
    np.testing.assert_array_equal(np.delete(one, 2, axis=0), np.delete(other, 2, axis=0))


@pytest.mark.usefixtures("costs_once")
@pytest.mark.parametrize("error, name", [(0.5, "q4-wide"), (1e-6, "q8"), (1e-9, "f16"), (0, "f32")])
def test_as_few_bits_as_an_error_allows(tmp_path, monkeypatch, error, name):
    monkeypatch.setattr(slicing, "LESS", 0.0)  # all products in one format: mixes are in test_sensitivity.py
    path = tmp_path / "m.h5"
    done = CliRunner().invoke(main.main, ["slice", "random:tiny-bert", str(path), "--format", "auto", "--error", str(error)])
    assert done.exit_code == 0, done.output
    assert f"{path}: {name}, which has the fewest bits of those that cost at most {error:g}" in done.output.splitlines()
    assert ".trial" not in done.output and f"{name}: bert" in done.output  # by its format, not by the file that it is tried in
    with Store(path) as store:
        assert store.spec.formats.get("", "f32") == name
        assert (store.accuracy is None) == (name == "f32")
        more = store.accuracy is not None and store.accuracy.error > error
    assert ("by which it was not chosen, it costs" in done.output) == more
    assert [one.name for one in tmp_path.iterdir()] == ["m.h5"]


def test_formats_are_tried_from_the_fewest_bits_on():
    """All that there are: else one of more bits would be taken where one of fewer costs little enough."""
    sizes = {name: form.bytes((1024, 1024)) for name, form in FORMATS.items()}
    assert list(slicing.FEWEST_FIRST) == sorted(sizes, key=sizes.__getitem__)


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-vit", "tiny-llama"])
def test_what_is_held_out_decides_nothing(monkeypatch, name):
    """Neither how weights are rounded nor what a format costs on the inputs by which it is chosen."""
    model, found = random_model(name), []
    for least in (2, 10):
        monkeypatch.setattr(calibrations, "held_out_requests", lambda spec, files, n=least: held_out_requests(spec, files)[:n])
        calibration, seen = Calibration.of(model), {}
        for group in grouped(model.weights()):
            seen |= calibration.take(group)
        found.append((seen, *calibration.finished()))
    one, other = found
    assert len(one[2].hidden) < len(other[2].hidden)
    read = [{b"".join(values.tobytes() for values in request.arrays.values()) for request in inputs.requests} for inputs in one[1:]]
    assert not read[0] & read[1]
    for key, values in one[0].items():
        for mine, theirs in ((values.rows, other[0][key].rows), (values.channels, other[0][key].channels)):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)  # products of more rows add up in another order


def test_auto_says_where_other_inputs_cost_more(tmp_path, monkeypatch):
    """Here the inputs by which it is chosen are those that cost least."""
    costs = iter([0.02, 0.005, 0.4])
    monkeypatch.setattr(slicing, "_cost", lambda *given: Accuracy(1, 1, 1.0, 1.0, 1.0, 1 - next(costs), 1.0))
    path = tmp_path / "m.h5"
    done = CliRunner().invoke(main.main, ["slice", "random:tiny-bert", str(path), "--format", "auto", "--error", "0.01"])
    assert done.exit_code == 0 and "on these inputs, by which it was not chosen, it costs 0.4, more than 0.01" in done.output
    with Store(path) as store:
        assert store.spec.formats[""] == "q4" and store.accuracy.least_cosine == 0.6


@pytest.mark.parametrize("head, tied", [("q4", True), ("q8-blocks", True), ("q4", False)])
def test_the_head_s_own_rounding_counts(tmp_path, head, tied):
    """Where all else is float32, too: words are scored in fewer bits, and looked up so where the tables are one."""
    model = random_model("tiny-llama")
    if not tied:
        model = untied(model)
    path, model = tmp_path / "m.h5", model.in_format("f32", head)
    calibration = Calibration.of(model)
    writing.write(path, model, calibration=calibration)
    held_out = calibration.finished()[1]
    with Store(path) as store:
        cost = accuracy_of(store, model, held_out)
        table, weights = span(store.weights[model.spec.back[0].table]), dict(model.weights())
        rounded = table.decode(store.parts(table))
    assert (cost.largest > 1e-5) == tied and cost.divergence > 1e-7 and cost.error == cost.divergence and 0 < cost.agreement <= 1
    logits = [held_out.hidden.astype(np.float64) @ one.astype(np.float64).T for one in (weights[table.name], rounded)]
    p, q = (one - np.logaddexp.reduce(one, axis=1, keepdims=True) for one in logits)
    if not tied:  # of rounding the weights alone; rows are rounded besides
        assert 0.9 < cost.divergence / (np.exp(p) * (p - q)).sum(axis=1).mean() < 1.5
    ends, told = np.cumsum(held_out.lengths) - 1, np.concatenate([request.arrays["ids"] for request in held_out.requests])
    follow = np.delete(np.arange(len(told)), ends)
    assert cost.exact_perplexity == pytest.approx(np.exp(-p[follow, told[follow + 1]].mean()), rel=1e-4)
    assert cost.perplexity == pytest.approx(cost.exact_perplexity, rel=0.1) and cost.perplexity != cost.exact_perplexity


def test_labels_that_change_are_counted(tmp_path):
    path, model = tmp_path / "m.h5", uneven("tiny-vit", "q4")
    calibration = Calibration.of(model)
    writing.write(path, model, calibration=calibration)
    held_out = calibration.finished()[1]
    with Store(path) as store:
        cost, weights = accuracy_of(store, model, held_out), OuterWeights(store)
        states = last_hidden_state(store, embed(model.spec, weights, held_out.arrays), held_out.lengths), held_out.hidden
        results = (apply_head(model.spec, weights, store.files, state, held_out.requests, False) for state in states)
        one, other = ([answer["logits"].argmax() for answer in answers] for answers in results)
    assert cost.agreement == np.mean(np.equal(one, other)) and cost.divergence is None


@pytest.mark.parametrize("format_name", ["q8", "auto"])
def test_nothing_is_rounded_by_numbers_that_float32_does_not_hold(tmp_path, monkeypatch, format_name):
    monkeypatch.setattr(slicing, "_model", lambda *given: scaled("tiny-bert", ("mlp.up", "mlp.down"), 1e25))
    error = ["--error", "0.1"] if format_name == "auto" else []
    done = CliRunner().invoke(main.main, ["slice", "random:tiny-bert", str(tmp_path / "m.h5"), "--format", format_name, *error])
    assert isinstance(done.exception, ModelError) and str(done.exception).endswith("take --format f32")
    assert "is not finite in front of layers.1.attention.q.weight: numbers become too large for float32" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_auto_leaves_out_formats_that_cannot_hold_the_weights(tmp_path, monkeypatch):
    """Scales of float16 end at 65504 times a whole number; those of q8 are float32."""
    monkeypatch.setattr(slicing, "_model", lambda *given: scaled("tiny-bert", ["mlp.down"], 1e9))
    path = tmp_path / "m.h5"
    done = CliRunner().invoke(main.main, ["slice", "random:tiny-bert", str(path), "--format", "auto", "--error", "0.5"])
    assert done.exit_code == 0 and "q4-wide is left out: tensor layers.0.mlp.down.weight holds values up to" in done.output
    with Store(path) as store:
        assert store.spec.formats[""] == "q8"


def test_answers_that_are_not_finite_are_no_accuracy(tmp_path):
    """Weights whose products float32 does not hold: the store says nothing, rather than what nobody can read."""
    path, model = tmp_path / "m.h5", random_model("tiny-bert")

    def stream():
        for called, values in model.weights():
            yield called, values * np.float32(1e38 if called.endswith("attention.q.weight") else 1)

    with_large = replace(model, stream=stream)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slicing, "_model", lambda *given: with_large)
        done = CliRunner().invoke(main.main, ["slice", "random:tiny-bert", str(path), "--format", "q8"])
    assert done.exit_code == 0 and "is not finite: choose another format" in done.output
    seen = CliRunner().invoke(main.main, ["inspect", str(path)])
    assert seen.exit_code == 0 and "what the formats cost was not measured" in seen.output


def test_auto_and_its_error_go_together(tmp_path):
    for more in (["--format", "auto"], ["--error", "0.1"], ["--format", "auto", "--error", "2"]):
        done = CliRunner().invoke(main.main, ["slice", "random:tiny-bert", str(tmp_path / "m.h5"), *more])
        assert done.exit_code == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("first, second", [("f32", "q8"), ("f32", "f32"), ("q8", "f32"), ("q4", "q8-blocks")])
def test_a_store_is_a_source_too(tmp_path, first, second):
    """Of float32 weights the same comes as of the model, of others the numbers that they stand for."""
    model = uneven("tiny-bert", first)
    writing.write(tmp_path / "a.h5", model)
    done = CliRunner().invoke(main.main, ["slice", str(tmp_path / "a.h5"), str(tmp_path / "b.h5"), "--format", second])
    assert done.exit_code == 0, done.output
    assert ("has weights in" in done.output) == (first != "f32")
    with Store(tmp_path / "a.h5") as one, Store(tmp_path / "b.h5") as other:
        assert other.files == one.files
        assert (other.accuracy is None) == (second == "f32")
        if other.accuracy is not None:
            formats = " and ".join(sorted(set(one.spec.formats.values())))
            said = f"the float32 numbers that {formats} stood for" if formats else "float32"
            inspected = CliRunner().invoke(main.main, ["inspect", str(tmp_path / "b.h5")]).output
            assert f"against {said}, on 19" in done.output and f"against {said}, on 19" in inspected
        if first == "f32":
            assert other.source_hash == model.in_format(second).source_hash
        else:
            assert other.source_hash != random_model("tiny-bert").source_hash
        for name, weight in one.weights.items():
            mine, theirs = span(weight), span(other.weights[name])
            if second == "f32":
                np.testing.assert_array_equal(mine.decode(one.parts(mine)), theirs.decode(other.parts(theirs)))


def test_stores_that_are_no_source(tmp_path):
    whole, part = tmp_path / "a.h5", tmp_path / "rank00.h5"
    writing.write(whole, random_model("tiny-bert"))
    with Store(whole) as store:
        writing.write_part(part, store, [span(store.weights["layers.0.attention.q.weight"], 0, 2)])
    few, before = tmp_path / "few.h5", whole.read_bytes()
    writing.write(few, random_model("tiny-bert").in_format("q8"))
    for source, said, *more in (
        (part, "only a whole store can be written anew", "--format", "q8"),
        (whole, "would be written over while it is read", "--format", "q8"),
        (few, "is in q8 already", "--format", "q8"),
        (few, "measures against float32", "--format", "auto", "--error", "0.1"),
    ):
        done = CliRunner().invoke(main.main, ["slice", str(source), str(whole), *more])
        assert done.exit_code != 0 and (said in done.output or said in str(done.exception)), done.output
        assert whole.read_bytes() == before
