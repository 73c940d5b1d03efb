"""Formats: what is encoded is decoded, as exactly as the format can, and the bytes are those of the parts."""

from dataclasses import replace

import numpy as np
import pytest

from hepti_mpi.errors import FormatError, ModelError
from hepti_mpi.models.blocks import Weight
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.formats import BLOCK, FORMATS, Q4, Q4_WIDE, Q8, Q8_BLOCKS, SCALES, VALUES, Rows, Seen
from hepti_mpi.models.spec import layer_bytes, layer_weights, named_weights, reduced
from hepti_mpi.weights.slices import all_weights, span, whole_slices
from hepti_mpi.weights.writing import encoded

ERROR = {"f32": 0, "f16": 5e-4, "q8": 5e-3, "q8-blocks": 5e-3, "q8-wide": 5e-3, "q4": 0.13, "q4-wide": 0.13}  # of the largest number


SHAPES = [
    ((7,), 0), ((3, 8, 9), 1), ((1, 5), 0), ((0, 4), 0), ((0, 4), 1), ((70, 3), 0), ((70, 65), 1), ((5, 24, 7), 0), ((3, 64, 8), 0),
    ((6, 8, 9), 0),
]  # fmt: skip
PLAIN = ("f32", "f16")  # the others are of products only


@pytest.mark.parametrize("name, shape, inner", [(name, *one) for name in FORMATS for one in SHAPES if len(one[0]) > 1 or name in PLAIN])
def test_what_is_encoded_is_decoded(name, shape, inner):
    values, kind = np.random.default_rng(0).standard_normal(shape).astype(np.float32), FORMATS[name]
    parts = kind.encode(values, inner)
    assert {part: (array.dtype, array.shape) for part, array in parts.items()} == {
        part: (array.kind, array.shape) for part, array in kind.parts(shape, inner).items()
    }
    assert kind.bytes(shape, inner) == sum(array.nbytes for array in parts.values()) <= 4 * kind.held(shape, inner)
    decoded = kind.decode(parts, shape, inner)
    assert decoded.shape == shape and decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, values, rtol=0, atol=ERROR[name] * np.abs(values).max(initial=0))


@pytest.mark.parametrize("shape, inner", [((70, 3), 0), ((70, 65), 1), ((5, 24, 7), 0), ((3, 64, 8), 0), ((6, 8, 9), 0)], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_a_cut_at_a_granule_is_one_range_of_each_part(name, shape, inner):
    values, kind = np.random.default_rng(0).standard_normal(shape).astype(np.float32), FORMATS[name]
    parts, step = kind.encode(values, inner), kind.granule(shape, inner)
    whole = kind.decode(parts, shape, inner)
    for first in range(0, shape[0], step):
        for stop in {min(first + step, shape[0]), shape[0]}:
            cut = (stop - first, *shape[1:])
            own = {part: parts[part][slice(*array.cut(first, stop))] for part, array in kind.parts(shape, inner).items()}
            assert {part: array.shape for part, array in own.items()} == {part: a.shape for part, a in kind.parts(cut, inner).items()}
            np.testing.assert_array_equal(kind.decode(own, cut, inner), whole[first:stop])


def test_a_scale_of_8_bits_is_that_of_an_output():
    values = np.array([[1.0, -2, 127], [0, 0, 0]], np.float32)
    parts = Q8.encode(values, 1)
    np.testing.assert_array_equal(parts[SCALES], [1, 1])
    np.testing.assert_array_equal(parts[VALUES], [[1, -2, 127], [0, 0, 0]])
    np.testing.assert_array_equal(Q8.encode(values.T, 0)[VALUES], parts[VALUES].T)


def test_channels_are_undone_where_values_are_read():
    values, channels = np.random.default_rng(1).standard_normal((9, 6)).astype(np.float32), np.array([1, 10, 0.1, 1, 2, 5], np.float32)
    values[:, 1] *= 50  # an odd input: its column shares no scale with the others then
    plain, smooth = (Q8.decode(Q8.encode(values, 1, Seen(channels=given)), values.shape, 1) for given in (None, channels))
    others = [0, 2, 3, 4, 5]
    assert np.abs(smooth - values)[:, others].mean() < np.abs(plain - values)[:, others].mean()
    assert np.abs(smooth - values).max() < 0.1 * np.abs(values).max()


@pytest.mark.parametrize("kind, packed", [(Q4, 16), (Q8_BLOCKS, 32)])
def test_blocks_hold_what_gguf_does(kind, packed):
    """A block of Q4_0: scale * (nibble - 8), of Q8_0: scale * integer; any of them is kept as it is."""
    draw, middle = np.random.default_rng(2), 1 << (int(kind.bits) - 1)
    whole = draw.integers(0 if kind is Q4 else 1, 2 * middle, (5, 3, BLOCK)).astype(np.uint8)
    scales = draw.standard_normal((5, 3)).astype(np.float16)
    values = ((whole.astype(np.float32) - middle) * scales[..., None].astype(np.float32)).reshape(5, 96)
    for inner, matrix in ((1, values), (0, values.T)):
        parts = kind.pack(whole, scales, inner, kind.parts(matrix.shape, inner))
        assert parts[VALUES].shape[-1] == packed
        np.testing.assert_array_equal(kind.decode(parts, matrix.shape, inner), matrix)


@pytest.mark.parametrize("kind, farthest", [(Q4, -8), (Q8_BLOCKS, 127)])
def test_numbers_that_were_in_blocks_are_kept(kind, farthest):
    """As GGUF makes them, the number farthest from 0 in a block is the last whole number: reading and storing them loses nothing."""
    draw = np.random.default_rng(3)
    whole = draw.integers(1 + min(farthest, -127 if farthest > 0 else farthest), abs(farthest), (7, 4, BLOCK))
    whole[:, :, 5] = farthest
    scales = draw.standard_normal((7, 4)).astype(np.float16).astype(np.float32)
    scales = np.abs(scales) if kind is Q8_BLOCKS else scales
    values = (whole * scales[..., None]).astype(np.float32).reshape(7, 128)
    for inner, matrix in ((1, values), (0, values.T)):
        np.testing.assert_array_equal(kind.decode(kind.encode(matrix, inner), matrix.shape, inner), matrix)


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-vit", "bert-large"])
def test_the_bytes_of_a_layer_are_those_of_its_slices(name):
    spec = random_model(name).spec
    by_axis = layer_bytes(spec)
    hidden, ffn = spec.hidden, spec.ffn
    assert by_axis == {"heads": (4 * hidden + 3) * hidden * 4, "columns": (2 * hidden + 1) * ffn * 4, None: 6 * hidden * 4}
    assert sum(by_axis.values()) == sum(span(weight).bytes for weight in layer_weights(spec, 0))
    assert [piece.name for piece in whole_slices(spec)] == [name for name, _ in named_weights(spec)]


def test_the_longest_beginning_of_a_name_says_the_format():
    spec = replace(random_model("bert-large").spec, formats={"": "q8", "layers.1": "q4", "layers.1.mlp.up": "f32"})
    found = {weight.name: weight.format.name for weight in all_weights(spec)}
    assert [found[f"layers.{name}.weight"] for name in ("0.mlp.up", "1.mlp.up", "1.mlp.down")] == ["q8", "f32", "q4"]
    assert found["layers.10.attention.o.weight"] == "q8" and found["layers.1.attention.o.weight"] == "q4"
    assert found["layers.1.mlp.up.bias"] == found["layers.0.attention.norm.weight"] == found["embedding.words"] == "f32"
    assert spec.column_granule == 32 and replace(spec, formats={"": "q8"}).column_granule == 16
    assert sum(layer_bytes(spec).values()) < sum(layer_bytes(replace(spec, formats={})).values()) / 3.4


def test_what_ranks_could_not_cut_is_refused():
    with pytest.raises(ModelError, match=r"layers.0.attention.o.weight cannot be q4: ranks divide its heads of 8, no multiple of 32"):
        all_weights(replace(random_model("tiny-bert").spec, formats={"": "q4"}))
    with pytest.raises(ModelError, match="no format of weights is called 'q5'; there are f32, f16, q8, q8-blocks, q8-wide, q4, q4-wide"):
        replace(random_model("tiny-bert").spec, formats={"": "q5"})


def test_every_axis_has_a_name():
    for name in ("tiny-bert", "tiny-vit"):
        assert all(len(weight.axes) == len(weight.shape) for _, weight in named_weights(random_model(name).spec))


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_a_table_are_looked_up_in_any_format(name):
    values, kind, chosen = np.random.default_rng(0).standard_normal((70, 65)).astype(np.float32), FORMATS[name], np.array([69, 0, 3, 3])
    parts = kind.encode(values, 1)
    table = Rows(kind, parts, values.shape)
    np.testing.assert_array_equal(table[chosen], kind.decode(parts, values.shape, 1)[chosen])
    np.testing.assert_array_equal(table, kind.decode(parts, values.shape, 1))


def test_words_of_texts_are_in_a_format_too_where_the_model_says_so():
    spec = random_model("smollm2-135m").spec
    (table,) = (weight.name for weight in all_weights(spec) if weight.axes[0] == "words")
    found = {name: {weight.name: weight for weight in all_weights(reduced(spec, name))}[table].format.name for name in FORMATS}
    narrow, wide = dict.fromkeys(("q8", "q8-blocks", "q4"), "q8-blocks"), dict.fromkeys(("q8-wide", "q4-wide"), "q8-wide")
    assert found == {"f32": "f32", "f16": "f16"} | narrow | wide
    before = replace(spec, formats={"": "q4"})  # as stores were written once
    assert {weight.name: weight for weight in all_weights(before)}[table].format.name == "f32"
    encoder = random_model("tiny-bert").spec
    assert all(weight.format.name == "f32" for weight in all_weights(reduced(encoder, "q4")) if weight.part in ("embedding", "head"))


@pytest.mark.parametrize("layers", ["f32", "q4", "q4-wide"])
@pytest.mark.parametrize("head", FORMATS)
def test_words_are_in_the_format_that_is_asked_for(layers, head):
    spec = random_model("smollm2-135m").spec
    (table,) = (weight.name for weight in all_weights(spec) if weight.axes[0] == "words")
    found = {weight.name: weight.format.name for weight in all_weights(reduced(spec, layers, head))}
    assert found.pop(table) == head
    plain = {weight.name: weight.format.name for weight in all_weights(reduced(spec, layers))}
    assert found == {name: kind for name, kind in plain.items() if name != table}
    with pytest.raises(ModelError, match="writes no texts.*leave out --head-format"):
        reduced(random_model("tiny-bert").spec, layers, head)


def test_ranks_that_could_not_cut_wide_blocks_have_narrow_ones():
    spec = reduced(random_model("smollm2-135m").spec, "q4-wide")
    found = {weight.name: weight.format.name for weight in all_weights(spec) if weight.name.startswith("layers.7.")}
    o, down, q = (found[f"layers.7.{name}.weight"] for name in ("attention.o", "mlp.down", "attention.q"))
    assert (o, down, q) == ("q4-wide", "q4-wide", "q4-wide")
    assert spec.column_granule == 64
    assert {weight.format.name for weight in all_weights(reduced(random_model("tiny-bert").spec, "q4-wide"))} >= {"q4-wide", "q8"}
    assert Q4_WIDE.bytes((64, 256), 1) == 64 * (128 + 8) < Q4.bytes((64, 256), 1) == 64 * (128 + 16)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("inner", [0, 1])
def test_a_value_that_is_too_large_for_float16_is_refused(name, inner):
    """Its number, or the scale of its block, would be infinite; formats whose scales reach it keep it."""
    values = np.ones((64, 4), np.float32)
    values[3, 2] = 1e6
    weight = Weight("x", "mlp", ("columns", "hidden"), values.shape, inner, FORMATS[name])
    if name in ("f16", "q4", "q4-wide"):
        with pytest.raises(ModelError, match="tensor x holds values up to 1e"):
            encoded(weight, values, None)
    else:
        found = FORMATS[name].decode(encoded(weight, values, None), values.shape, inner)
        assert np.abs(found - values).max() < 1e6 * 5e-3


@pytest.mark.parametrize("tensor, part, name, instead", [
    ("layers.0.mlp.up.weight", "mlp", "q4", "--format q8 or f32"), ("layers.0.mlp.up.weight", "mlp", "f16", "--format q8 or f32"),
    ("head.words.weight", "head", "q8-blocks", "--head-format f32"), ("embedding.words", "embedding", "f16", "--head-format f32"),
])  # fmt: skip
def test_what_is_taken_instead_of_a_format_that_cannot_hold_a_tensor(tensor, part, name, instead):
    values = np.full((2, 64), 1e20, np.float32)
    with pytest.raises(FormatError, match=f"^tensor {tensor} holds values up to 1e[+]20, too large for {name}, .* take {instead}$"):
        encoded(Weight(tensor, part, ("words", "hidden"), values.shape, 1, FORMATS[name]), values, None)
