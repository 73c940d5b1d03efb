"""What is not finite stays so: rounding to fewer bits, of rows before products and of what travels, loses no NaN and no infinity."""

from pathlib import Path

import numpy as np
import pytest
from decoders import CASES
from layers import MADE
from onnx import TensorProto, helper

from hepti_mpi.engine import kernels, opening
from hepti_mpi.engine.alone import last_hidden_state
from hepti_mpi.engine.graph import Graph
from hepti_mpi.engine.products import LEAST, Made, Product
from hepti_mpi.models.formats import FORMATS, Seen
from hepti_mpi.models.numerics import ACTIVATIONS, activate
from hepti_mpi.weights.slices import Slice

ROWS, WIDTH, OUTPUTS, BAD = 5, 64, 48, 2  # the row that is spoilt


def session_of(graph, output):
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", output)]
    made = helper.make_graph(graph.nodes, "one", infos[:1], infos[1:], list(graph.initializers.values()))
    return opening.session(made, Path("."), "packed", 1)


def spoilt(values):
    """Yield rows of which one has one of `values`, at each of some places."""
    for value in values:
        for place in (0, 1, 17, 31, 32, WIDTH - 1):
            x = np.random.default_rng(place).standard_normal((ROWS, WIDTH)).astype(np.float32)
            x[BAD, place] = value
            yield x


def check(graph, output, values):
    """One row is not finite, in what is told about it, and the others are, also where it is alone."""
    session = session_of(graph, output)
    for x in spoilt(values):
        (found,) = session.run(None, {"x": x})
        sound = np.isfinite(found.reshape(ROWS, -1)).all(axis=1)
        assert sound.tolist() == [row != BAD for row in range(ROWS)], x[BAD]
        (alone,) = session.run(None, {"x": x[BAD : BAD + 1]})
        assert not np.isfinite(alone).all()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("least", [None, LEAST["relu"], LEAST["gelu_tanh"]])
def test_products_that_lead_to_the_residual(name, smoothed, least):
    """-inf is none of the values that an activation with a least one gives."""
    kind, random = FORMATS[name], np.random.default_rng(1)
    seen = Seen(None, np.linspace(0.5, 2, WIDTH).astype(np.float32)) if smoothed else None
    parts = kind.encode(random.standard_normal((WIDTH, OUTPUTS)).astype(np.float32), 0, seen)
    graph = Graph()
    output = Product(graph, Made(parts), "x", Slice("w", 0, (WIDTH, OUTPUTS), kind, 0), least).write(None, None)
    check(graph, output, (np.nan, np.inf) if least is not None else (np.nan, np.inf, -np.inf))


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("biased", [False, True])
def test_activations(kind, biased):
    graph, bias = Graph(), np.linspace(-1, 1, WIDTH).astype(np.float32)
    added = biased and kind not in kernels.WITHOUT_BIAS
    session = session_of(graph, kernels.activate(graph, kind, "x", graph.constant("bias", bias) if added else None))
    x = np.linspace(-20, 20, ROWS * WIDTH).astype(np.float32).reshape(ROWS, WIDTH)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], activate(kind, x + bias * added), atol=5e-6)
    assert np.isnan(session.run(None, {"x": np.full((ROWS, WIDTH), np.nan, np.float32)})[0]).all()


@pytest.mark.parametrize("name", FORMATS)
def test_products_that_sum_over_the_last_axis(name):
    kind = FORMATS[name]
    parts = kind.encode(np.random.default_rng(1).standard_normal((OUTPUTS, WIDTH)).astype(np.float32), 1)
    graph = Graph()
    output = Product(graph, Made(parts), "x", Slice("w", 0, (OUTPUTS, WIDTH), kind, 1)).write(None, None)
    check(graph, output, (np.nan, np.inf, -np.inf))


@pytest.mark.parametrize("block", [16, 32, 64])
def test_int8_on_the_wire(block):
    graph = Graph()
    kernels.to_int8(graph, "x", block, ("numbers", "scales"))
    check(graph, kernels.from_int8(graph, ("numbers", "scales"), block), (np.nan, np.inf, -np.inf))


def test_float16_on_the_wire():
    """A row with what float16 does not hold is NaN: a query that meets an infinite key might only leave it out."""
    graph = Graph()
    short = graph.node("Cast", [kernels.within_float16(graph, "x")], to=TensorProto.FLOAT16)
    output = graph.node("Cast", [short], to=TensorProto.FLOAT)
    check(graph, output, (np.nan, np.inf, -np.inf, 1e5, -1e5))
    x = np.array([[65504, -65504, 1e-3], [65505, 0, 0], [0, -65505, 0]], np.float32)
    (found,) = session_of(graph, output).run(None, {"x": x})
    np.testing.assert_array_equal(found[0], x[0].astype(np.float16).astype(np.float32))
    assert np.isnan(found[1:]).all()


LENGTHS, SPOILT = (2, 5, 4, 6), {0: (0, np.inf), 2: (1, np.nan), 3: (2, -np.inf)}  # of requests; of which of them one number at which row
PLAIN = ("tiny-bert", "tiny-vit")


CASES_OF_ALL = (*PLAIN, "llama")  # with every format; others with every second one in turn: what is lost depends on norm and format


@pytest.fixture(scope="module")
def exact_of(store_of):
    """A function that tells which rows float32 weights give numbers for: the same beside each format."""
    made = {}

    def exact_of(case, embedded):
        if case not in made:
            made[case] = np.isfinite(last_hidden_state(store_of(case, "f32"), embedded, LENGTHS)).all(axis=1)
        return made[case]

    return exact_of


@pytest.mark.parametrize("case, name", [
    (case, name) for row, case in enumerate((*PLAIN, *MADE, *CASES)) for column, name in enumerate(FORMATS)
    if case in CASES_OF_ALL or (row + column) % 2
])  # fmt: skip
def test_rows_that_attend_to_one(store_of, exact_of, case, name):
    """They are not finite either, as with float32 weights, also where an RMS norm left one NaN among zeros; other requests are."""
    store, starts = store_of(case, name), np.cumsum((0, *LENGTHS))
    embedded = np.random.default_rng(1).standard_normal((sum(LENGTHS), store.spec.hidden), np.float32)
    sound = np.full(len(embedded), True)
    for request, (row, value) in SPOILT.items():
        embedded[starts[request] + row, 5] = value
        sound[starts[request] + row : starts[request + 1]] = False  # those before it may not attend to it
    found = np.isfinite(last_hidden_state(store, embedded, LENGTHS)).all(axis=1)
    assert found.tolist() == exact_of(case, embedded).tolist()
    assert not (found & ~sound).any() and found[starts[1] : starts[2]].all()
