"""What each product loses in fewer bits, and what `slice --format auto` keeps in more."""

import re
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from hepti_mpi.commands import main
from hepti_mpi.commands import slice as slicing
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.spec import layer_weights
from hepti_mpi.weights.calibration import Calibration, grouped
from hepti_mpi.weights.sensitivity import Sensitivity, most_worth
from hepti_mpi.weights.store import Store

MIXED = re.compile(r"m\.h5: (?P<few>[\w-]+) with (?P<count>\d+) of (?P<all>\d+) products in (?P<more>[\w-]+), which has the fewest bits")


def changed(model, change):
    """A model whose weights are what `change` makes of their names and values."""
    return replace(model, stream=lambda: ((name, change(name, values)) for name, values in model.weights()))


def passed(calibration, model):
    """What all weights of a model have shown."""
    seen = {}
    for group in grouped(model.weights()):
        seen |= calibration.take(group)
    return seen


def auto(tmp_path, error, source="random:tiny-bert"):
    return CliRunner().invoke(main.main, ["slice", source, str(tmp_path / "m.h5"), "--format", "auto", "--error", str(error)])


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-vit", "tiny-llama"])
def test_a_product_loses_what_rounding_it_alone_changes(name):
    """Told apart by another way: the same model with those weights rounded, from end to end. Of the last layer, behind which is nothing."""
    model = random_model(name)
    few = model.in_format("q4")
    sensitivity, weights = Sensitivity.of(few), dict(model.weights())
    seen, (exact, _) = passed(sensitivity, model), sensitivity.finished()
    last = f"layers.{model.spec.layers - 1}."
    own = {names: loss for names, loss in sensitivity.losses.items() if names[0].startswith(last)}
    assert {names[0].removeprefix(last) for names in own} > {"attention.q.weight", "attention.o.weight", "mlp.down.weight"}
    assert len(sensitivity.losses) == len(own) * model.spec.layers
    stored = {weight.name: weight for weight in layer_weights(few.spec, model.spec.layers - 1)}
    for names, loss in own.items():
        rounded = {}
        for one in names:
            weight = stored[one]
            parts = weight.format.encode(weights[one], weight.inner, seen[one])
            rounded[one] = weight.format.decode(parts, weight.shape, weight.inner)
        other = changed(model, lambda called, values, rounded=rounded: rounded.get(called, values))
        calibration = Calibration.of(other)
        passed(calibration, other)
        off = calibration.finished()[0].hidden.astype(np.float64) - exact.hidden
        assert loss == pytest.approx(np.square(off).sum() / np.square(exact.hidden.astype(np.float64)).sum(), rel=1e-3, abs=1e-11)
        assert loss > 1e-10


def test_what_is_known_of_weights_is_the_same_while_losses_are_measured():
    model = random_model("tiny-bert").in_format("q8")
    passes = Calibration.of(model), Sensitivity.of(model)
    one, other = (passed(each, model) for each in passes)
    assert one.keys() == other.keys()
    for name, seen in one.items():
        np.testing.assert_array_equal(seen.rows, other[name].rows)
        np.testing.assert_array_equal(seen.channels, other[name].channels)
    for mine, theirs in zip(*(each.finished() for each in passes), strict=True):
        np.testing.assert_array_equal(mine.hidden, theirs.hidden)


def test_what_loses_most_for_a_byte_comes_first():
    """What is in the same format in both is none of those to keep."""
    model = random_model("tiny-bert")
    few, more = model.in_format("q4").spec, model.in_format("q8").spec
    q, o, up, down = ((f"layers.0.{name}.weight",) for name in ("attention.q", "attention.o", "mlp.up", "mlp.down"))
    assert few.formats[o[0]] == "q8"
    sizes = {name: {weight.name: weight.bytes for weight in layer_weights(spec, 0)} for name, spec in (("few", few), ("more", more))}
    further = {names: sizes["more"][names[0]] - sizes["few"][names[0]] for names in (q, up, down)}
    losses = {q: 2e-6 * further[q], o: 1.0, up: 3e-6 * further[up], down: 1e-6 * further[down]}
    assert most_worth(losses, few, more) == [up, q, down]


@pytest.mark.usefixtures("costs_once")
def test_auto_keeps_the_sensitive_products_in_more_bits(tmp_path, monkeypatch):
    """One product has numbers in each block that leave few steps to the others."""
    sensitive = "layers.1.mlp.down.weight"

    def change(name, values):
        large = values * np.float32(5) if name.startswith("layers") and "norm" not in name else values
        if name == sensitive:
            large[::16] *= 40
        return large

    model = changed(random_model("tiny-bert"), change)
    monkeypatch.setattr(slicing, "_model", lambda *given: model)
    whole = auto(tmp_path, 0)
    costs = {name: float(cost) for name, cost in re.findall(r"^(\S+) costs (\S+) on the inputs", whole.output, re.MULTILINE)}
    error = np.sqrt(costs["q4"] * costs["q8"])
    done = auto(tmp_path, error)
    assert done.exit_code == 0, done.output
    found = MIXED.search(done.output)
    assert found and (found["few"], found["more"]) == ("q4", "q8") and 0 < int(found["count"]) < int(found["all"]), done.output
    with Store(tmp_path / "m.h5") as store:
        formats = {weight.name: weight.format.name for number in range(store.spec.layers) for weight in layer_weights(store.spec, number)}
        assert store.spec.formats[""] == "q4" and formats[sensitive] == "q8" and "q4" in formats.values()
        assert store.accuracy is not None and store.source_hash not in {model.in_format(name).source_hash for name in ("q4", "q8")}
        assert store.spec.bytes_of_layer < model.in_format("q8").spec.bytes_of_layer
    assert [one.name for one in tmp_path.iterdir()] == ["m.h5"]
    inspected = CliRunner().invoke(main.main, ["inspect", str(tmp_path / "m.h5")])
    (line,) = (line for line in inspected.output.splitlines() if line.startswith("formats: "))
    assert inspected.exit_code == 0 and {"q4", "q8"} < {part.split()[0] for part in line.removeprefix("formats: ").split(", ")}


@pytest.mark.usefixtures("costs_once")
def test_one_format_for_all_where_a_mix_saves_too_little(tmp_path, monkeypatch):
    monkeypatch.setattr(slicing, "LESS", 0.0)
    done = auto(tmp_path, 1e-6)
    assert done.exit_code == 0 and "products in" not in done.output and "m.h5: q8, which has the fewest bits" in done.output
    with Store(tmp_path / "m.h5") as store:
        assert store.spec.formats == {"": "q8"}


@pytest.mark.usefixtures("costs_once")
def test_every_mix_that_is_kept_costs_little_enough(tmp_path):
    """Also by what it says: the last one that did not cost too much is what is written."""
    done = auto(tmp_path, 1e-6)
    tried = dict(re.findall(r"^(.+) costs (\S+) on the inputs that the format is chosen by$", done.output, re.MULTILINE))
    found = MIXED.search(done.output)
    assert found and float(tried[found[0].removeprefix("m.h5: ").removesuffix(", which has the fewest bits")]) <= 1e-6, done.output
    assert all(float(cost) > 1e-6 for name, cost in tried.items() if " of " in name and int(name.split()[2]) < int(found["count"]))


@pytest.mark.usefixtures("costs_once")
def test_nothing_half_written_is_left_of_a_mix(tmp_path, monkeypatch):
    tried = []

    def cost(path, model, inputs):
        tried.append(path)
        if len(tried) > 3:
            raise KeyboardInterrupt
        return real(path, model, inputs)

    real = slicing._cost
    monkeypatch.setattr(slicing, "_cost", cost)
    done = auto(tmp_path, 1e-6)
    assert done.exit_code != 0 and len(tried) == 4 and not list(tmp_path.iterdir())
