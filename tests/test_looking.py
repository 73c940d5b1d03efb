"""Segments of encoders look for what is not finite only where it may come from inside: behind a norm of finite weights it cannot."""

from dataclasses import replace

import numpy as np
import pytest

from hepti_mpi.engine import sessions
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import Compute
from hepti_mpi.weights import writing
from hepti_mpi.weights.slices import Part
from hepti_mpi.weights.store import Store


def looks(store, monkeypatch):
    """Return how many sums of rows the only segment has, by which products look; and whether weights were read for it."""
    spec, graphs, asked = store.spec, [], []
    part = Part(spec, Plan.lone(spec, store.source_hash), 0)
    (step,) = (step for step in part.program if isinstance(step, Compute))
    add = sessions.Bounds.add
    monkeypatch.setattr(sessions.Bounds, "add", lambda self, op, own: asked.append(op) or add(self, op, own))
    monkeypatch.setattr(sessions, "of_store", lambda graph, *given: graphs.append(graph))
    sessions.build(step, store, part.held(step), part.heads, "packed", 1)
    return sum(node.op_type == "ReduceSum" for node in graphs[0].node), bool(asked)


@pytest.fixture
def stored(tmp_path):
    def made(name, format_name, factor=1.0):
        model = random_model(name)
        stream = [(called, values * np.float32(factor if "mlp.up" in called else 1)) for called, values in model.weights()]
        writing.write(tmp_path / "s.h5", replace(model, stream=lambda: iter(stream)).in_format(format_name))
        return Store(tmp_path / "s.h5")

    return made




def test_behind_a_norm_nothing_is_looked_for(stored, monkeypatch):
    with stored("tiny-vit", "q8") as store:
        assert looks(store, monkeypatch) == (0, True)


def test_what_may_overflow_is_looked_for(stored, monkeypatch):
    with stored("tiny-vit", "q8", 1e33) as store:
        assert looks(store, monkeypatch) == (store.spec.layers, True)


def test_the_first_block_of_rows_that_nothing_is_known_of(stored, monkeypatch):
    """BERT's first block begins with no norm that is in the segment."""
    with stored("tiny-bert", "q8") as store:
        count, _ = looks(store, monkeypatch)
        assert 0 < count < 2 * store.spec.layers


def test_float32_weights_are_not_read_for_it(stored, monkeypatch):
    with stored("tiny-vit", "f32") as store:
        assert looks(store, monkeypatch) == (0, False)
