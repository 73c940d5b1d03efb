"""Whole layers of texts with weights that are made up, as their steps are timed: of all families and formats, the engine's own segments."""

from dataclasses import replace

import numpy as np
import pytest
from decoders import CASES, write_folder

from hepti_mpi.engine import caching, imagined, timing
from hepti_mpi.engine.imagined import divided, text_layers
from hepti_mpi.engine.timing import timers
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.formats import FORMATS
from hepti_mpi.planning.work import layer_work

FEW = replace(random_model("smollm2-135m").spec, layers=2)
PLAIN_ROWS = 5  # that each text has


@pytest.mark.parametrize("case", CASES)
def test_layers_of_every_family_take_a_step(case, tmp_path, monkeypatch):
    """All of them, and a small part of each."""
    spec = read_model(write_folder(case, tmp_path)).spec
    bound = []

    def running(session, feed, results):
        bound.append((feed, results))
        return real(session, feed, results)

    real = imagined.running
    monkeypatch.setattr(imagined, "running", running)
    for part in divided(spec, imagined.beyond_caches()):
        layers = text_layers(part, 1)
        assert layers.count == spec.layers
        for texts in (1, 3):
            layers.call(texts, PLAIN_ROWS)()
            feed, results = bound[-1]
            for number in range(spec.layers):  # a row is added to each text, and those before it stay
                for kind in (caching.ALL_KEYS, caching.ALL_ROWS):
                    array = results[kind.format(number)]
                    assert array.shape[:2] == (texts, part.computed("kv_heads"))
                    assert (array[:, :, :PLAIN_ROWS] == 0.5).all() and (array[:, :, PLAIN_ROWS:] != 0.5).any()
            assert all(np.isfinite(results[name]).all() for name in layers.segment.outputs)


@pytest.mark.parametrize("kind", FORMATS)
def test_they_are_of_the_formats_of_the_model_and_no_two_weights_are_equal(kind):
    spec = replace(FEW, formats={"": kind})
    whole, few = divided(spec, imagined.beyond_caches())
    one = layer_work(spec, PLAIN_ROWS + 1)
    assert (whole.plan.heads, whole.plan.columns) == ((spec.heads, 0), (spec.ffn, 0)) and not whole.plan.divided
    assert (few.plan.heads[0], few.plan.columns[0]) == (spec.group * max(1, spec.head_granule // spec.group), spec.column_granule)
    for part, heads, columns in ((whole, spec.heads, spec.ffn), (few, few.plan.heads[0], few.plan.columns[0])):
        layers, store = text_layers(part, 1), imagined.MadeUp(spec)
        layers.call(2, PLAIN_ROWS)()
        pieces = [piece for piece in part.of_layers if len(piece.shape) > 1]
        assert {piece.format.name for piece in pieces} == {kind}
        values = [store.array(piece).tobytes() for piece in pieces]
        assert len(set(values)) == len(values)
        work = layers.work(2, PLAIN_ROWS)
        expected = one.attention * heads / spec.heads + one.mlp * columns / spec.ffn
        assert sum(weights for _, weights, _ in work.products) == pytest.approx(layers.count * expected)
        assert {(rows, name) for rows, _, name in work.products} == {(2, kind)}
        assert work.attention == layers.count * 2 * 2 * (PLAIN_ROWS + 1) * spec.layer(0).attention.width * heads / spec.heads


@pytest.mark.parametrize("sizes, counts", [(("32K", "1024K", "32768K"), (5, 30, 1)), (("48K",), (1, 1, 1)), ((), (3, 16, 1)),
                                           (("x",), (3, 16, 1))])  # fmt: skip
def test_they_are_as_many_as_outdo_the_caches_and_not_many_more(sizes, counts, tmp_path, monkeypatch):
    for number, size in enumerate(sizes):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(f"{size}\n")
    monkeypatch.setattr(imagined, "CACHES", tmp_path)
    monkeypatch.setattr(imagined, "beyond_caches", imagined.beyond_caches.__wrapped__)
    wanted, spec = imagined.beyond_caches(), random_model("smollm2-135m").spec
    specs = [*(replace(spec, formats={"": kind}) for kind in ("f32", "q4")), random_model("llama-3.2-1b").spec]
    found = []
    for spec in specs:
        part = divided(spec, wanted)[0]
        held = sum(piece.format.held(piece.shape, piece.inner) for piece in part.of_layers)
        granules = len(part.plan.layers) * spec.bytes_of_layer * (spec.group / spec.heads + spec.column_granule / spec.ffn)
        assert min(wanted, 0.99 * spec.layers * spec.bytes_of_layer) <= held <= wanted + granules
        found.append(len(part.plan.layers))
    assert tuple(found) == counts


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-llama"])
def test_texts_are_timed_of_models_that_write_some(name):
    """Not where a board is emulated, which is described."""
    spec = random_model(name).spec
    assert len(timers(spec, 1, spec.product_formats).texts) == (2 if spec.generates else 0)
    assert not timers(spec, 1, spec.product_formats, whole=False).texts


def test_they_take_no_more_memory_than_they_may(monkeypatch):
    """A cloud's processor told of 480 MiB of cache: four ranks that measured themselves for a model of 513 MiB had 2.5 GiB each."""
    monkeypatch.setattr(timing, "beyond_caches", lambda: 960 << 20)
    spec, most = FEW, 4 << 20
    made = timers(spec, 1, spec.product_formats, most=most)
    assert made.texts[0].count == 1 and made.texts[0].part.plan.heads[0] < spec.heads
    held = sum(piece.format.held(piece.shape, piece.inner) for piece in made.texts[0].part.of_layers)
    assert most <= held < 1.5 * most and made.table is not None and most <= made.table[1] < 1.01 * most
