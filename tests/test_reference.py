"""The whole path of one process, model folder to answer, against what PyTorch and transformers computed (tests/golden)."""

import math
from pathlib import Path

import numpy as np
import pytest

from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.inputs.requests import read_requests
from hepti_mpi.models.numerics import ACTIVATIONS, activate, erf, layer_norm, softmax
from hepti_mpi.models.reference import forward
from hepti_mpi.models.tasks.heads import apply_head, embed

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(p for p in GOLDEN.glob("*/expected*.npz") if p.name != "expected_images.npz" and (p.parent / "config.json").exists())
TOLERANCE = 1e-4
MODELS: dict[str, tuple] = {}


def model_of(case):
    """The spec, files and weights of a golden case, read once."""
    if case not in MODELS:
        model = read_model(GOLDEN / case)
        MODELS[case] = model.spec, model.files, dict(model.weights())
    return MODELS[case]


def run(spec, files, weights, requests, dtype=np.float64, apart=False):
    """(last hidden state [rows, hidden], results) of packed requests; `apart`: each is embedded by itself, since BLAS may add in another
    order where there are more rows."""
    groups = [[one] for one in requests] if apart else [requests]
    arrays = [{name: np.concatenate([r.arrays[name] for r in group]) for name in requests[0].arrays} for group in groups]
    embedded = np.concatenate([embed(spec, weights, one) for one in arrays])
    hidden = forward(spec, weights, embedded, [r.rows for r in requests], dtype)
    return hidden, apply_head(spec, weights, files, hidden.astype(np.float32), requests, True)


def test_golden_cases_are_there():
    assert {path.parent.name for path in FILES} >= {
        "bert", "bert_mlm", "bert_seqcls", "bert_tokencls", "bert_fp16", "bert_bf16", "bert_sharded", "bert_sentence", "vit", "vit_cls",
        "deit",
    }  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_golden(path):
    spec, files, weights = model_of(path.parent.name)
    expected = np.load(path)
    requests = read_requests(spec, files, str(path))
    hidden, results = run(spec, files, weights, requests)
    start, compared = 0, set()
    for index, (request, result) in enumerate(zip(requests, results)):
        last = expected["expected_last_hidden_state"][index]
        np.testing.assert_allclose(hidden[start : start + request.rows], last[request.keep], atol=TOLERANCE, rtol=0)
        assert request.width == len(last)
        start += request.rows
        for key in ("pooler_output", "logits", "embedding"):
            if f"expected_{key}" not in expected:
                continue
            if key not in result:
                assert request.keep[0] or spec.head not in ("pooler", "none")
                continue
            wanted = expected[f"expected_{key}"][index]
            wanted = wanted[request.keep] if wanted.ndim == 2 else wanted
            np.testing.assert_allclose(result[key], wanted, atol=TOLERANCE, rtol=0)
            compared.add(key)
    heads = {"pooler": "pooler_output", "none": None, "sentence": "embedding"}
    assert compared >= {heads.get(spec.head, "logits")} - {None}


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-vit"])
def test_packed_requests_do_not_see_each_other(name):
    model = random_model(name)
    weights = dict(model.weights())
    requests = read_requests(model.spec, model.files, None)
    together, results = run(model.spec, model.files, weights, requests, apart=True)
    alone = [run(model.spec, model.files, weights, [request]) for request in requests]
    np.testing.assert_allclose(together, np.concatenate([hidden for hidden, _ in alone]), atol=1e-9)
    for result, (_, [own]) in zip(results, alone):
        for key in result:
            np.testing.assert_allclose(result[key], own[key], atol=1e-5)


def test_float32_is_close_to_float64():
    model = random_model("tiny-bert")
    weights = dict(model.weights())
    requests = read_requests(model.spec, model.files, None)
    exact, _ = run(model.spec, model.files, weights, requests)
    single, _ = run(model.spec, model.files, weights, requests, np.float32)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, exact, atol=1e-5)


def test_lengths_must_add_up():
    model = random_model("tiny-bert")
    with pytest.raises(ValueError, match="lengths add up to 2, x has 3 rows"):
        forward(model.spec, dict(model.weights()), np.zeros((3, 56)), [2])


def test_erf_is_exact():
    x = np.concatenate([np.linspace(-8, 8, 20001), [0.46875, -0.46875, 0.0, 1e-300, 50.0, np.inf, -np.inf]])
    np.testing.assert_allclose(erf(x), [math.erf(v) for v in x], atol=1e-15, rtol=0)
    assert np.isnan(erf(np.nan))


ACTIVATED = {  # at -30, -1, 0, 1 and 30, by torch
    "gelu": [0, -0.1586553, 0, 0.8413447, 30],
    "gelu_tanh": [0, -0.1588080, 0, 0.8411920, 30],
    "gelu_10": [0, -0.1586553, 0, 0.8413447, 10],
    "quick_gelu": [0, -0.1542038, 0, 0.8457962, 30],
    "relu": [0, 0, 0, 1, 30],
    "leaky_relu": [-0.3, -0.01, 0, 1, 30],
    "silu": [0, -0.2689414, 0, 0.7310586, 30],
    "mish": [0, -0.3034015, 0, 0.8650984, 30],
    "tanh": [-1, -0.7615942, 0, 0.7615942, 1],
}


def test_every_activation_is_known_by_its_values():
    assert ACTIVATED.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("name", ACTIVATED)
def test_activations(name):
    y = activate(name, np.array([-30.0, -1.0, 0.0, 1.0, 30.0], dtype=np.float32))
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, ACTIVATED[name], atol=1e-6)


def test_layer_norm_and_softmax():
    x = np.array([[1.0, 2.0, 3.0, 6.0], [1e4, 1e4, 1e4, 1e4]])
    y = layer_norm(x, np.full(4, 2.0), np.full(4, 0.5), 0.5)
    np.testing.assert_allclose(y[0], (x[0] - 3) / 2 * 2 + 0.5)
    np.testing.assert_allclose(y[1], 0.5)
    np.testing.assert_allclose(softmax(np.array([1e4, 1e4, 0.0])), [0.5, 0.5, 0])
