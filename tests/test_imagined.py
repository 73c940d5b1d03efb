"""Whole layers of texts with weights that are made up, as their steps are timed: of all families and formats, the engine's own segments."""

from dataclasses import replace

import numpy as np
import pytest
from decoders import CASES, write_folder

from hepti_mpi.engine import caching, imagined
from hepti_mpi.engine.imagined import text_layers
from hepti_mpi.engine.timing import timers
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.formats import FORMATS
from hepti_mpi.models.spec import product_formats
from hepti_mpi.planning.work import layer_work
from hepti_mpi.weights.slices import DecodingPart

FEW = replace(random_model("smollm2-135m").spec, layers=2)
PLAIN_ROWS = 5  # that each text has


@pytest.mark.parametrize("case", CASES)
def test_layers_of_every_family_take_a_step(case, tmp_path, monkeypatch):
    spec = read_model(write_folder(case, tmp_path)).spec
    bound = []

    def running(session, feed, results):
        bound.append((feed, results))
        return real(session, feed, results)

    real = imagined.running
    monkeypatch.setattr(imagined, "running", running)
    layers = text_layers(spec, 1)
    assert layers.count == spec.layers
    for texts in (1, 3):
        layers.call(texts, PLAIN_ROWS)()
        feed, results = bound[-1]
        for number in range(spec.layers):  # a row is added to each text, and those before it stay
            for kind in (caching.ALL_KEYS, caching.ALL_ROWS):
                array = results[kind.format(number)]
                assert array.shape[0] == texts and (array[:, :, :PLAIN_ROWS] == 0.5).all() and (array[:, :, PLAIN_ROWS:] != 0.5).any()
        assert all(np.isfinite(results[name]).all() for name in layers.segment.outputs)


@pytest.mark.parametrize("kind", FORMATS)
def test_they_are_of_the_formats_of_the_model_and_no_two_weights_are_equal(kind):
    spec = replace(FEW, formats={"": kind})
    layers, store = text_layers(spec, 1), imagined._MadeUp(spec)
    layers.call(2, PLAIN_ROWS)()
    pieces = [piece for piece in DecodingPart(spec, layers.plan, 0).of_layers if len(piece.shape) > 1]
    assert {piece.format.name for piece in pieces} == {kind}
    values = [store.array(piece).tobytes() for piece in pieces]
    assert len(set(values)) == len(values)
    work, one = layers.work(2, PLAIN_ROWS), layer_work(spec, PLAIN_ROWS + 1)
    assert sum(weights for _, weights, _ in work.products) == layers.count * (one.attention + one.mlp)
    assert {(rows, name) for rows, _, name in work.products} == {(2, kind)}
    assert work.attention == layers.count * 2 * 2 * (PLAIN_ROWS + 1) * spec.layer(0).attention.width


@pytest.mark.parametrize("sizes, counts", [(("32K", "1024K", "32768K"), (5, 30, 1)), (("48K",), (1, 1, 1)), ((), (3, 16, 1)),
                                           (("x",), (3, 16, 1))])  # fmt: skip
def test_they_are_as_many_as_outdo_the_caches(sizes, counts, tmp_path, monkeypatch):
    for number, size in enumerate(sizes):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(f"{size}\n")
    monkeypatch.setattr(imagined, "CACHES", tmp_path)
    monkeypatch.setattr(imagined, "beyond_caches", imagined.beyond_caches.__wrapped__)
    spec = random_model("smollm2-135m").spec
    found = [imagined.enough(replace(spec, formats={"": kind})) for kind in ("f32", "q4")]
    assert (*found, imagined.enough(random_model("llama-3.2-1b").spec)) == counts


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-llama"])
def test_texts_are_timed_of_models_that_write_some(name):
    spec = random_model(name).spec
    assert (timers(spec, 1, product_formats(spec)).texts is not None) == spec.generates
