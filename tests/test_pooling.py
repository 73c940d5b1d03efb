"""The arithmetic behind the last hidden states, on numbers that can be checked by hand."""

from dataclasses import replace

import numpy as np
import pytest
from layers import sized

from hepti_mpi.errors import InputError
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.inputs.requests import token_request
from hepti_mpi.models.spec import ModelSpec, outer_weights
from hepti_mpi.models.steps import Dense, LayerNorm, Normalize
from hepti_mpi.models.tasks.heads import apply_head
from hepti_mpi.serving.letters import packed, unpacked

HIDDEN = np.array([[0, 4], [2, -4], [4, 0]], np.float32)


def spec(back=(), **options) -> ModelSpec:
    made = random_model("tiny-bert").spec
    return sized(made, hidden=2, heads=1, head="sentence", back=tuple(back), options={"pooling": "mean"} | options)


def embedded(keep=(0, 1, 2), weights=None, text="a text", hidden=HIDDEN, back=(), **options):
    model, ids = spec(back, **options), np.zeros(9, np.int64)
    request = replace(token_request(model, 0, "line 1", (ids, ids), np.array(keep)), text=text)
    [result] = apply_head(model, weights or {}, {}, hidden, [request], False)
    [sent] = apply_head(model, weights or {}, {}, hidden, unpacked(*packed([request])), False)  # as the rank of a team sees it
    np.testing.assert_array_equal(result["embedding"], sent["embedding"])
    return result["embedding"]


POOLED = [
    ("mean", [2, 0]),
    ("cls", [0, 4]),
    ("max", [4, 4]),
    ("mean_sqrt_len", [2 * np.sqrt(3), 0]),
    ("lasttoken", [4, 0]),
    ("weightedmean", [16 / 6, -4 / 6]),
    ("cls+mean", [0, 4, 2, 0]),
]


@pytest.mark.parametrize("pooling, expected", POOLED)
def test_pooling(pooling, expected):
    found = embedded(pooling=pooling)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_places_of_rows_count_from_the_first_that_is_there():
    heavy = np.array([1, 3, 4])
    np.testing.assert_allclose(embedded((2, 4, 5), pooling="weightedmean"), heavy @ HIDDEN / heavy.sum(), rtol=1e-6)
    np.testing.assert_allclose(embedded((2, 4, 5), pooling="cls"), HIDDEN[0])


def test_rows_of_the_prompt_do_not_count():
    np.testing.assert_allclose(embedded(prompt_rows=1), [3, -2])
    np.testing.assert_allclose(embedded(prompt_rows=1, pooling="weightedmean"), [16 / 5, -8 / 5])
    np.testing.assert_allclose(embedded(prompt_rows=1, pooling="cls"), [2, -4])
    np.testing.assert_allclose(embedded(prompt_rows=1, text=None), [2, 0])  # given as numbers, without a prompt
    with pytest.raises(InputError, match="^line 1 has no token behind the prompt$"):
        embedded(prompt_rows=3)


def test_steps_one_after_the_other():
    steps = Normalize("zero"), Dense("one", 2, 3, "relu"), LayerNorm("two", 3, 1e-5)
    assert [w.shape for w in outer_weights(spec(steps)) if w.part == "head"] == [(3, 2), (3,), (3,), (3,)]
    weights = {"one.weight": np.array([[1, 0], [-1, 0], [3, 1]]), "one.bias": np.array([0, 0, 1])}
    weights |= {"two.weight": np.array([1, 1, 2]), "two.bias": np.array([0, 1, 0])}
    turned = np.array([1, 0, 4])  # of the mean [2, 0], normalised to [1, 0]
    normed = (turned - turned.mean()) / np.sqrt(turned.var() + 1e-5) * [1, 1, 2] + [0, 1, 0]
    np.testing.assert_allclose(embedded(weights=weights, back=steps), normed, rtol=1e-5)
    np.testing.assert_allclose(embedded(weights=weights, back=steps, truncate_dim=2), normed[:2], rtol=1e-5)


ACTIVATED = {"identity": [2, -1], "relu": [2, 0], "tanh": np.tanh([2, -1]), "sigmoid": 1 / (1 + np.exp([-2.0, 1]))}
ACTIVATED |= {"silu": [2 / (1 + np.exp(-2)), -1 / (1 + np.e)], "gelu": [1.9544997, -0.15865525]}


@pytest.mark.parametrize("name", ACTIVATED)
def test_residual_and_activations(name):
    weights = {"one.weight": np.array([[1, 0], [-0.5, 0]])}
    step = Dense("one", 2, 2, name, bias=False, residual=True)
    np.testing.assert_allclose(embedded(weights=weights, back=[step]), np.array(ACTIVATED[name]) + [2, 0], rtol=1e-6)
    wider = Dense("one", 2, 3, name, bias=False, residual=True)
    assert [w.name for w in wider.weights("head")] == ["one.weight", "one.residual.weight"]
    weights |= {"one.weight": np.zeros((3, 2)), "one.residual.weight": np.array([[1, 0], [0, 1], [1, 1]])}
    zero = {"sigmoid": 0.5}.get(name, 0)
    np.testing.assert_allclose(embedded(weights=weights, back=[wider]), np.array([2, 0, 2]) + zero, rtol=1e-6)
