"""Stores of reduced weights: every part is where it belongs, is checked, cut, cached and told when it is damaged; old stores are read."""

import json
import zlib
from dataclasses import replace

import h5py
import made_plans
import numpy as np
import pytest

from hepti_mpi.errors import StoreError
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.weights import writing
from hepti_mpi.weights.cache import CachedStore
from hepti_mpi.weights.slices import Part, all_weights, span, whole_slices
from hepti_mpi.weights.store import Store

MODEL = random_model("tiny-bert")  # 7 heads of 8 numbers, 101 columns
FORMATS = {"": "q8", "layers.1": "q4", "layers.1.attention.o": "f16", "layers.2.mlp": "q8-blocks"}
SPEC = replace(MODEL.spec, formats=FORMATS)
LAYOUTS = [("heads", "columns"), ("rows", "columns"), ("heads", "rows")]


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.h5"
    writing.write(path, replace(MODEL, spec=SPEC))
    return path.read_bytes()


@pytest.fixture
def path(tmp_path, content):
    (tmp_path / "m.h5").write_bytes(content)
    return tmp_path / "m.h5"


def plan_of(layout):
    return made_plans.plan_of(SPEC, layout, (4, 1, 2), (2, 1, 1), (3, 0, 6))  # 64, 32 and 5 columns


def same(store, whole, piece):
    """Raise unless every part of a slice is what the whole store has there."""
    for part, array in store.parts(piece).items():
        np.testing.assert_array_equal(array, whole.array(piece, part))


def test_what_is_written_is_what_the_format_says(path):
    values = dict(MODEL.weights())
    with Store(path) as store:
        assert store.spec.formats == FORMATS and store.spec.column_granule == 32
        assert store.verify(whole_slices(SPEC)) == sum(piece.bytes for piece in whole_slices(SPEC)) < len(path.read_bytes())
        for weight in all_weights(SPEC):
            piece, exact = span(weight), values[weight.name]
            expected = weight.format.decode(weight.format.encode(exact, piece.inner), exact.shape, piece.inner)
            np.testing.assert_array_equal(piece.decode(store.parts(piece)), expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids="/".join)
@pytest.mark.parametrize("rank", range(3))
def test_a_rank_file_has_the_rank_s_parts(path, tmp_path, layout, rank):
    slices = Part(SPEC, plan_of(layout), rank).slices
    with Store(path) as whole:
        writing.write_part(tmp_path / "rank.h5", whole, slices)
        with Store(tmp_path / "rank.h5") as own:
            assert own.verify(slices) == sum(piece.bytes for piece in slices)
            for piece in slices:
                same(own, whole, piece)
            outside = span(own.weights["layers.1.mlp.down.weight"])
            if layout[1] == "columns":
                with pytest.raises(StoreError, match="of layers.1.mlp.down.weight, this rank needs 0 to 101; it was cut for another plan"):
                    own.region(outside)


def test_a_cache_grows_by_parts(path, tmp_path):
    with Store(path) as whole:
        cache = CachedStore.beginning(tmp_path / "cache.h5", (whole.spec, whole.files, whole.source_hash))
        for layout in LAYOUTS:
            slices = Part(SPEC, plan_of(layout), 1).slices
            cache.take(cache.lacking(slices), whole.parts)
            assert cache.lacking(slices) == []
            for piece in slices:
                same(cache, whole, piece)
        cache.close()


def test_a_cache_asks_for_all_that_is_sent_and_keeps_what_it_has(path, tmp_path):
    with Store(path) as whole:
        cache = CachedStore.beginning(tmp_path / "cache.h5", (whole.spec, whole.files, whole.source_hash))
        slices, asked = whole_slices(SPEC), []
        cache.take(cache.lacking(slices[:4]), whole.parts)
        before = cache.path.read_bytes()

        def fetch(piece):
            asked.append(piece)
            if len(asked) in (3, 5):
                raise StoreError("damaged on its way")
            return whole.parts(piece)

        lacking = cache.lacking(slices)
        with pytest.raises(StoreError, match="damaged on its way"):
            cache.take(lacking, fetch)
        assert asked == lacking and len(asked) > 5
        assert cache.path.read_bytes() == before and cache.lacking(slices) == lacking
        cache.close()


def test_a_flipped_bit_in_any_part_is_named(path, content):
    with Store(path) as store:
        regions = {(piece.name, part): store.region(piece, part) for piece in whole_slices(SPEC) for part in piece.parts}
    assert {part for _, part in regions} == {"values", "scales", "channels"}
    for (name, part), region in regions.items():
        if "layers" not in name:
            continue
        damaged = bytearray(content)
        damaged[region.offset + region.bytes // 2] ^= 4
        path.write_bytes(damaged)
        what = f"tensor {name}" if part == "values" else f"{part} of tensor {name}"
        with Store(path) as store, pytest.raises(StoreError, match=rf"checksum \d+ of {what}"):
            store.verify(whole_slices(SPEC))


SCALES, UP = "scales/layers.1.mlp.up.weight", "layers.1.mlp.up.weight"


def put(file, values):
    file.pop(SCALES)
    file.create_dataset(SCALES, data=values)


@pytest.mark.parametrize("change, words", [
    (lambda f: f.pop(SCALES), "has no tensor"),
    (lambda f: f.pop("scales"), "has no tensor"),
    (lambda f: f.pop(f"checksums/{SCALES}"), "checksums of tensor layers.1.mlp.up.weight are damaged"),
    (lambda f: f.move(SCALES, "scales/other"), "has no tensor"),
    (lambda f: put(f, np.ones((101, 2), "<f4")), r"scales of tensor layers.1.mlp.up.weight: float32 \(101, 2\), expected float16"),
    (lambda f: put(f, np.ones((2, 101), "<f2")), r"expected float16 \(101, 2\)"),
    (lambda f: (f.pop(SCALES), f.create_group(SCALES)), "layers.1.mlp.up.weight"),
    (lambda f: f[f"weights/{UP}"].attrs.update(count=100), r"expected uint8 \(100, 2, 16\)"),
    (lambda f: f[f"weights/{UP}"].attrs.update(count=1 << 60), "expected uint8"),
    (lambda f: f[f"weights/{UP}"].attrs.update(count=-3), "layers.1.mlp.up.weight"),
    (lambda f: f[f"weights/{UP}"].attrs.update(count="a"), "damaged"),
], ids=range(11))  # fmt: skip
def test_stores_of_others(path, change, words):
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(StoreError, match=words) as error, Store(path) as store:
        store.verify(whole_slices(SPEC))
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("formats", [{"": "q5"}, {"": 3}, ["q8"], 7, {"": "q4"}], ids=str)
def test_formats_that_are_none(path, formats):
    with h5py.File(path, "r+") as file:
        text = json.dumps(json.loads(file.attrs["spec"]) | {"formats": formats})
        files = {name: data[()].tobytes() for name, data in file["files"].items()}
        value = zlib.crc32(f"{text}\n{file.attrs['source_hash']}".encode())
        for name in sorted(files):
            value = zlib.crc32(name.encode() + b"\n" + files[name], value)
        file.attrs.update(spec=text, checksum=np.uint32(value))
    with pytest.raises(StoreError, match="no format of weights|damaged|cannot be q4") as error:
        Store(path)
    assert "\n" not in str(error.value)


def test_a_store_of_version_1_is_read(tmp_path):
    """As the program before formats wrote it: no formats in its description, no counts."""
    path = tmp_path / "old.h5"
    writing.write(path, MODEL)
    with h5py.File(path, "r+") as file:
        spec = {key: value for key, value in json.loads(file.attrs["spec"]).items() if key != "formats"}
        text, source = json.dumps(spec), file.attrs["source_hash"]
        value = zlib.crc32(f"{text}\n{source}".encode())
        for name in sorted(file["files"]):
            value = zlib.crc32(name.encode() + b"\n" + file["files"][name][()].tobytes(), value)
        file.attrs.update(format_version=1, spec=text, checksum=np.uint32(value))
        for dataset in file["weights"].values():
            del dataset.attrs["count"]
    with Store(path) as store:
        assert store.spec == MODEL.spec
        store.verify(whole_slices(store.spec))
        for name, values in MODEL.weights():
            np.testing.assert_array_equal(store.array(span(store.weights[name])), values)
