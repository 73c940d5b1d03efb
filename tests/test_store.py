"""The weight store: what is written is what is read, and damage of any kind is told, never computed with."""

import json
import os
import signal
import subprocess
import sys
import zlib
from dataclasses import replace
from functools import cache
from itertools import product

import h5py
import numpy as np
import pytest
from made_plans import plan_of

from hepti_mpi.errors import ModelError, StoreError
from hepti_mpi.models.checkpoints.modelfiles import ModelFiles
from hepti_mpi.models.checkpoints.random import CONFIGS, make_spec, random_weight
from hepti_mpi.models.spec import named_weights
from hepti_mpi.weights import hdf5, writing
from hepti_mpi.weights.slices import Part, Slice, granule, whole_slices
from hepti_mpi.weights.store import READ_BYTES, Store

SIZES = {"vocab_size": 9, "max_position_embeddings": 7, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
SPEC = make_spec("odd", CONFIGS["tiny-bert"] | SIZES | {"intermediate_size": 131})  # 131 columns in granules of 2
FILES = {"config.json": b"{}", "1_Pooling/config.json": b'{"a": 1}', "empty.txt": b"", "bytes.bin": bytes(range(256))}
LAYOUTS = list(product(("heads", "rows"), ("columns", "rows")))


@cache
def weights():
    return {name: random_weight(name, weight.shape, 3) + np.float32(0.5) for name, weight in named_weights(SPEC)}


def model(stream=None, files=FILES):
    return ModelFiles(SPEC, files, "5" * 64, stream or (lambda: iter(weights().items())))


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The bytes of a good store."""
    path = tmp_path_factory.mktemp("good") / "good.h5"
    writing.write(path, model())
    return path.read_bytes()


@pytest.fixture
def path(tmp_path, content):
    """A good store of its own for each test."""
    (tmp_path / "m.h5").write_bytes(content)
    return tmp_path / "m.h5"


def check_same(store):
    """Raise unless everything that can be read is what was written."""
    assert store.spec == SPEC and store.source_hash == "5" * 64 and store.files == FILES
    store.verify(whole_slices(SPEC))
    for piece in whole_slices(SPEC):
        np.testing.assert_array_equal(store.array(piece), weights()[piece.name])


def refuse(path, words=".", slices=None):
    """Open and verify; must raise StoreError with `words`."""
    with pytest.raises(StoreError, match=words) as error, Store(path) as store:
        store.verify(whole_slices(SPEC) if slices is None else slices)
    assert str(path) in str(error.value)
    return str(error.value)


def entries(folder):
    return sorted(p.name for p in folder.iterdir())


# read and write


def test_what_is_written_is_read(path):
    with Store(path) as store:
        check_same(store)
        assert store.verify(whole_slices(SPEC)) == sum(values.nbytes for values in weights().values())
        assert set(store.names) == set(weights())


def test_descriptions_of_what_was_looked_at_take_little_memory(path):
    with Store(path) as store:
        for piece in whole_slices(store.spec):
            store.verify([piece])
        most, _, used, _ = store._file.id.get_mdc_size()
        assert (most, used <= 2 * most) == (hdf5.DESCRIBED_BYTES, True)


def test_the_first_layers_of_a_store_are_those_of_the_whole(path):
    with Store(path) as store:
        shorter = store.shortened(1)
        assert (shorter.spec, shorter.source_hash) == (replace(store.spec, layers=1), store.source_hash)
        assert set(shorter.weights) < set(store.weights) and not any(".1." in name for name in shorter.weights)
        for name, weight in shorter.weights.items():
            whole = Slice(name, 0, weight.shape)
            assert shorter.region(whole) == store.region(whole)


def test_progress_is_told_every_byte(tmp_path):
    told = []
    writing.write(tmp_path / "new" / "folder" / "m.h5", model(), told.append)
    assert sum(told) == sum(values.nbytes for values in weights().values()) and len(told) == len(weights())
    assert entries(tmp_path / "new" / "folder") == ["m.h5"]


@pytest.mark.parametrize("name, first, count", [
    ("layers.1.attention.q.weight", 1, 1), ("layers.0.attention.o.weight", 0, 2), ("layers.1.attention.v.bias", 2, 1),
    ("layers.0.mlp.up.weight", 2, 4), ("layers.1.mlp.down.weight", 128, 3), ("layers.1.mlp.up.bias", 130, 1),
    ("embedding.words", 0, 9),
])  # fmt: skip
def test_a_slice_is_one_range_of_the_file(path, name, first, count):
    expected = weights()[name][first : first + count]
    piece = Slice(name, first, expected.shape)
    with Store(path) as store:
        np.testing.assert_array_equal(store.array(piece), expected)
        region = store.region(piece)
        assert path.read_bytes()[region.offset : region.offset + region.bytes] == expected.tobytes()
        assert region.shape == expected.shape and region.offset % 4 == 0
        assert store.verify([piece, piece]) == expected.nbytes  # each once
        with pytest.raises(ValueError, match="read-only"):
            store.array(piece)[...] = 0


def test_a_store_can_be_read_by_the_documented_layout(path):
    """weights/README.md: what other programs rely on."""
    with h5py.File(path) as file:
        assert file.attrs["format"] == "hepti-store" and file.attrs["format_version"] == 3
        assert json.loads(file.attrs["spec"])["hidden"] == 12
        up = file["weights/layers.0.mlp.up.weight"]
        assert up.shape == (131, 12) and up.dtype == "<f4" and up.chunks is None
        sums = file["checksums/layers.0.mlp.up.weight"]
        assert sums.shape == (66,) and sums[65] == zlib.crc32(up[130:].tobytes()) and sums[0] == zlib.crc32(up[:2].tobytes())
        assert file["files/bytes.bin"][()].tobytes() == bytes(range(256))


@pytest.mark.parametrize("name", ["bert.h5", "a b.h5", "ü.h5", "x"])
def test_file_names(tmp_path, name):
    writing.write(tmp_path / name, model())
    with Store(tmp_path / name) as store:
        check_same(store)


def test_two_writes_give_the_same_bytes(tmp_path, content):
    writing.write(tmp_path / "again.h5", model())
    assert (tmp_path / "again.h5").read_bytes() == content


# what can go wrong while writing


def breaking(error):
    def stream():
        for number, item in enumerate(weights().items()):
            if number == 9:
                raise error
            yield item

    return stream


def changed(name, values):
    return lambda: iter((weights() | {name: values}).items())


BROKEN = [
    (breaking(ModelError("tensor x is damaged")), ModelError, "tensor x is damaged"),
    (breaking(KeyboardInterrupt()), KeyboardInterrupt, None),
    (breaking(OSError(28, "No space left on device")), StoreError, "No space left on device"),
    (changed("layers.0.mlp.up.bias", np.zeros(7, np.float32)), StoreError, r"layers.0.mlp.up.bias is float32 \(7,\), expected \(131,\)"),
    (changed("layers.0.mlp.up.bias", np.zeros(131)), StoreError, r"layers.0.mlp.up.bias is float64"),
    (changed("unheard.of", np.zeros(7, np.float32)), StoreError, "unheard.of"),
    (lambda: iter(list(weights().items())[:-2]), StoreError, r"gave no tensor layers.1.*\(2 are missing\)"),
    (lambda: iter([*weights().items(), next(iter(weights().items()))]), StoreError, "embedding"),
]


@pytest.mark.parametrize("stream, kind, words", BROKEN)
def test_an_interrupted_write_leaves_nothing(tmp_path, stream, kind, words):
    with pytest.raises(kind, match=words):
        writing.write(tmp_path / "m.h5", model(stream))
    assert entries(tmp_path) == []


def test_an_interrupted_write_leaves_the_store_that_was_there(path, content):
    with pytest.raises(ModelError):
        writing.write(path, model(breaking(ModelError("damaged"))))
    assert entries(path.parent) == ["m.h5"] and path.read_bytes() == content


def test_a_store_is_replaced_by_a_new_one(path):
    with Store(path) as old:
        writing.write(path, model(changed("layers.0.mlp.up.bias", np.full(131, 7, np.float32))))
        old.verify(whole_slices(SPEC))  # who has it open keeps the old one
        with Store(path) as new:
            assert new.array(Slice("layers.0.mlp.up.bias", 0, (131,)))[0] == 7
    assert entries(path.parent) == ["m.h5"]


@pytest.mark.parametrize("where", ["file/m.h5", "file/deeper/m.h5", "folder", "x" * 300 + ".h5"])
def test_paths_that_cannot_be_written(tmp_path, where):
    (tmp_path / "file").write_text("here")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="cannot be written"):
        writing.write(tmp_path / where, model())
    assert entries(tmp_path) == ["file", "folder"] and entries(tmp_path / "folder") == []


def test_a_full_disk_is_told_before_anything_is_written(path, tmp_path, monkeypatch):
    free = os.statvfs_result((4096, 4096, 100, 15, 15, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda folder: free)
    with pytest.raises(StoreError, match=r"m2.h5 cannot be written: it takes \d+ bytes, 61440 are free"):
        writing.write(tmp_path / "m2.h5", model())
    with Store(path) as whole, pytest.raises(StoreError, match="61440 are free"):
        writing.write_part(tmp_path / "rank00.h5", whole, whole_slices(SPEC))
    assert entries(tmp_path) == ["m.h5"]


def test_the_room_that_is_asked_for_is_enough(content):
    assert len(content) <= sum(piece.bytes + writing.PART_ROOM for piece in whole_slices(SPEC))


# damage


@pytest.mark.parametrize("at_once", [READ_BYTES, 40])  # of a granule, which may have gigabytes
def test_a_flipped_bit_in_any_tensor_is_named(path, content, at_once, monkeypatch):
    monkeypatch.setattr("hepti_mpi.weights.store.READ_BYTES", at_once)
    with Store(path) as store:
        regions = {piece.name: store.region(piece) for piece in whole_slices(SPEC)}
    for name, region in regions.items():
        for place, at in enumerate((0, region.bytes // 2, region.bytes - 1)):
            damaged = bytearray(content)
            damaged[region.offset + at] ^= 1 << (place * 3)
            path.write_bytes(damaged)
            said = refuse(path, "checksum .* fails")
            assert f" of tensor {name} " in said and "slice" in said


def test_only_what_is_asked_for_is_verified(path, content):
    piece = Slice("layers.1.mlp.down.weight", 128, (3, 12))
    with Store(path) as store:
        offset = store.region(piece).offset
    damaged = bytearray(content)
    damaged[offset - 1] ^= 1  # the last byte of column 127
    path.write_bytes(damaged)
    with Store(path) as store:
        assert store.verify([piece]) == 3 * 12 * 4
        with pytest.raises(StoreError, match="checksum 63 of tensor layers.1.mlp.down.weight fails at byte"):
            store.verify([Slice(piece.name, 126, (5, 12))])


def test_a_flipped_bit_anywhere_is_told_or_harmless(path, content):
    """Every 251st byte of the file outside the weights, and some within: descriptions, names, HDF5's own tables, gaps."""
    with Store(path) as store:
        inside = np.zeros(len(content), bool)
        for piece in whole_slices(SPEC):
            region = store.region(piece)
            inside[region.offset : region.offset + region.bytes] = True
    places = [at for at in range(len(content)) if (at % 251 == 0 and not inside[at]) or at % 1999 == 0]
    told = 0
    for number, at in enumerate(places):
        damaged = bytearray(content)
        damaged[at] ^= 1 << (number % 8)
        path.write_bytes(damaged)
        try:
            with Store(path) as store:
                check_same(store)
        except StoreError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            told += 1
    assert told > len(places) / 3


def test_truncation_at_any_length_is_told(path, content):
    for length in sorted({0, 1, 7, 8, 100, 511, 512, 513, len(content) - 1, *range(1000, len(content), 1999)}):
        path.write_bytes(content[:length])
        refuse(path)


def test_bytes_lost_within_and_added(path, content):
    middle = len(content) // 2
    path.write_bytes(content[:middle] + content[middle + 9 :])
    refuse(path)
    path.write_bytes(content[:middle] + bytes(4096) + content[middle + 4096 :])
    refuse(path)
    path.write_bytes(content + bytes(9))  # no harm
    with Store(path) as store:
        check_same(store)


@pytest.mark.parametrize("what", [b"", b"hello", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(900), os.urandom(4096)])
def test_files_that_are_no_store(tmp_path, what):
    (tmp_path / "m.h5").write_bytes(what)
    refuse(tmp_path / "m.h5", "is not a weight store or is damaged")


def test_a_store_that_somebody_writes(path):
    """Another process does: HDF5 leaves a mark in the file."""
    program = f"import h5py, sys; file = h5py.File({str(path)!r}, 'r+'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        assert "damaged" not in refuse(path, "is being written; wait for that")
        writer.stdin.close()


def test_no_file_and_a_folder(tmp_path):
    assert "python -m hepti_mpi slice" in refuse(tmp_path / "none.h5", "not found")
    refuse(tmp_path, "is no file; name a store")


# stores of others and hostile ones


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


LOOKUP = {"kind": "lookup", "name": "x", "by": "ids", "size": 3, "width": 4}


def sealed_without(file, key):
    """Give the store a spec that lacks a key, with a checksum that is right."""
    text = json.dumps({name: value for name, value in json.loads(file.attrs["spec"]).items() if name != key})
    file.attrs["spec"] = text
    file.attrs["checksum"] = np.uint32(hdf5.head_checksum(text, "5" * 64, FILES))


def sealed(file, **fields):
    """Give the store another spec with a checksum that is right."""
    text = json.dumps(json.loads(file.attrs["spec"]) | fields)
    file.attrs["spec"] = text
    file.attrs["checksum"] = np.uint32(hdf5.head_checksum(text, "5" * 64, FILES))


def put(file, name, data, **options):
    if name in file:
        first = dict(file[name].attrs)
        del file[name]
    else:
        first = {}
    made = file.create_dataset(name, data=data, **options)
    made.attrs.update(first)
    return made


BIAS, UP, SUMS = "weights/layers.0.mlp.up.bias", "weights/layers.0.mlp.up.weight", "checksums/layers.0.mlp.up.weight"
HOSTILE = [
    ("older", lambda f: f.attrs.update(format_version=0), "has store format 0, this program reads 1"),
    ("newer", lambda f: f.attrs.update(format_version=4), "has store format 4, this program reads 1 to 3"),
    ("no version", lambda f: f.attrs.pop("format_version"), "damaged"),
    ("version is a word", lambda f: f.attrs.update(format_version="one"), "damaged"),
    ("not ours", lambda f: f.attrs.update(format="somebody's"), "not a weight store of hepti_mpi"),
    ("no format", lambda f: f.attrs.pop("format"), "not a weight store of hepti_mpi"),
    ("spec changed", lambda f: f.attrs.update(spec=f.attrs["spec"].replace("1e-12", "1e-02")), "checksum of its description"),
    ("hash changed", lambda f: f.attrs.update(source_hash="6" * 64), "checksum of its description"),
    ("file changed", lambda f: f["files/config.json"].write_direct(np.frombuffer(b"[]", np.uint8)), "checksum of its description"),
    ("file missing", lambda f: f["files"].pop("bytes.bin"), "checksum of its description"),
    ("file added", lambda f: put(f, "files/more.json", np.zeros(3, np.uint8)), "checksum of its description"),
    ("file of floats", lambda f: put(f, "files/config.json", np.zeros(3)), "damaged"),
    ("a file that unfolds", lambda f: put(f, "files/big", np.zeros(1 << 20, np.uint8), compression="gzip"), "damaged"),
    ("spec no JSON", lambda f: f.attrs.update(spec="{", checksum=np.uint32(hdf5.head_checksum("{", "5" * 64, FILES))), "damaged"),
    ("spec of sizes", lambda f: sealed(f, hidden=-12), "hidden"),
    ("spec of words", lambda f: sealed(f, ffn="many"), "ffn"),
    ("a key too many", lambda f: sealed(f, more=1), "damaged"),
    ("no options", lambda f: sealed(f, options=None), "options is None"),
    ("an older one without vocabulary", lambda f: sealed_without(f, "front"), "damaged"),
    ("a step of another program", lambda f: sealed(f, back=[{"kind": "convolve"}]), "step 'convolve', which is none of"),
    ("a step that is none", lambda f: sealed(f, back=[3]), "damaged"),
    ("a step without width", lambda f: sealed(f, front=[{"kind": "lookup", "name": "x", "by": "ids", "size": 3}]), "damaged"),
    ("a step of no size", lambda f: sealed(f, back=[LOOKUP | {"size": 0}]), "size 0"),
    ("a step of too much", lambda f: sealed(f, back=[LOOKUP | {"size": 1 << 40}]), "size 1099511627776"),
    ("a step by many names", lambda f: sealed(f, back=[LOOKUP | {"name": ["x"]}]), "name \\['x'\\]"),
    ("millions of layers", lambda f: sealed(f, layers=1 << 23), "layers"),
    ("another width", lambda f: sealed(f, hidden=15), "a layer of it has .* the model"),
    ("no weights", lambda f: f.pop("weights"), "has no tensor"),
    ("a tensor less", lambda f: f.pop(UP), "has no tensor layers.0.mlp.up.weight; a file cut for another rank or plan"),
    ("no checksums", lambda f: f.pop("checksums"), "checksum"),
    ("checksums less", lambda f: put(f, SUMS, f[SUMS][:7]), "checksum"),
    ("checksums of words", lambda f: put(f, SUMS, ["a"] * 66), "checksum"),
    ("checksums 2-D", lambda f: put(f, SUMS, np.zeros((66, 2), np.uint32)), "checksum"),
    ("checksum a number", lambda f: put(f, SUMS, 7), "checksum"),
    ("checksums a group", lambda f: (f.pop(SUMS), f.create_group(SUMS)), "checksum"),
    ("doubles", lambda f: put(f, UP, f[UP][()].astype("<f8")), "float64"),
    ("big-endian", lambda f: put(f, UP, f[UP][()].astype(">f4")), ">f4"),
    ("transposed", lambda f: put(f, UP, f[UP][()].T), "expected float32"),
    ("flat", lambda f: put(f, UP, f[UP][()].ravel()), "expected float32"),
    ("a number", lambda f: put(f, BIAS, np.float32(7)), "expected float32"),
    ("empty", lambda f: put(f, BIAS, h5py.Empty("<f4")), "expected float32"),
    ("a group", lambda f: (f.pop(UP), f.create_group(UP)), "layers.0.mlp.up.weight"),
    ("chunked", lambda f: put(f, UP, f[UP][()], chunks=(7, 12)), "expected float32"),
    ("compressed", lambda f: put(f, UP, f[UP][()], compression="gzip"), "expected float32"),
    ("no first", lambda f: f[UP].attrs.pop("first"), "layers.0.mlp.up.weight"),
    ("first a word", lambda f: f[UP].attrs.update(first="a"), "damaged"),
    ("first an array", lambda f: f[UP].attrs.update(first=[1, 2]), "damaged"),
    ("first below 0", lambda f: f[UP].attrs.update(first=-1), "layers.0.mlp.up.weight|cut for another plan"),
    ("first far away", lambda f: f[UP].attrs.update(first=1 << 60), "cut for another plan"),
    ("a link to nowhere", lambda f: (f.pop(UP), f.update({UP: h5py.SoftLink("/nowhere")})), "has no tensor"),
    ("a link to itself", lambda f: (f.pop(UP), f.update({UP: h5py.SoftLink("/" + UP)})), "has no tensor|damaged"),
    ("a link to a file", lambda f: (f.pop(UP), f.update({UP: h5py.ExternalLink("/etc/passwd", "x")})), "has no tensor|damaged"),
]  # fmt: skip


@pytest.mark.parametrize("change, words", [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_stores_of_others(path, change, words):
    edit(path, change)
    assert "\n" not in refuse(path, words)


def test_data_outside_the_file_is_not_read(path, tmp_path):
    """HDF5 can keep a dataset's bytes in another file, which must not be taken for the range of this one."""
    (tmp_path / "other").write_bytes(bytes(131 * 12 * 4))
    with h5py.File(path, "r+") as file:
        del file[UP]
        made = file.create_dataset(UP, (131, 12), "<f4", external=[(str(tmp_path / "other"), 0, 131 * 12 * 4)])
        made.attrs.update(first=0, whole=131)
    refuse(path, "expected float32")


def test_space_that_was_never_written_is_not_read(path):
    with h5py.File(path, "r+") as file:
        del file[UP]
        file.create_dataset(UP, (1 << 40, 12), "<f4").attrs.update(first=0, whole=131)
    refuse(path, "expected float32|truncated")


# rank files


PLANS = [
    *(plan_of(SPEC, pair, shares, total=7) for pair in LAYOUTS for shares in ((5, 1, 1, 1), (1, 0, 3), (0, 1))),
    plan_of(SPEC, (LAYOUTS[0], LAYOUTS[3]), (1, 2), (2, 1), (1, 0), total=7),  # rank 0 holds all of layer 1, a part of layer 0
    plan_of(SPEC, (LAYOUTS[1], LAYOUTS[2]), (1, 2, 0), (0, 2, 1), (1, 0, 1), total=7),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.layers[0]}{plan.layers[1]}{plan.rows}")
def test_rank_files(path, tmp_path, plan):
    with Store(path) as whole:
        for rank in range(plan.ranks):
            part, slices = tmp_path / "parts" / f"rank{rank:02d}.h5", tuple(Part(SPEC, plan, rank).slices)
            writing.write_part(part, whole, slices)
            with Store(part) as store:
                assert (store.spec, store.files, store.source_hash) == (whole.spec, whole.files, whole.source_hash)
                assert set(store.names) == {piece.name for piece in slices}
                assert store.verify(slices) == whole.verify(slices)
                for piece in slices:
                    np.testing.assert_array_equal(store.array(piece), whole.array(piece))
    assert entries(tmp_path / "parts") == [f"rank{rank:02d}.h5" for rank in range(plan.ranks)]


def test_a_rank_file_of_another_rank_is_refused(path, tmp_path):
    plan = plan_of(SPEC, LAYOUTS[0], (1, 2), total=7)
    one, other = (tuple(Part(SPEC, plan, rank).slices) for rank in (0, 1))
    with Store(path) as whole:
        writing.write_part(tmp_path / "rank01.h5", whole, other)
    refuse(tmp_path / "rank01.h5", "holds 1 to 3 of layers.0.attention.q.weight, this rank needs 0 to 1; it was cut for another plan, "
           "which --plan names", [Slice("layers.0.attention.q.weight", 0, (1, 4, 12))])  # fmt: skip
    refuse(tmp_path / "rank01.h5", "has no tensor embedding.words; a file cut for another rank or plan", whole_slices(SPEC)[:1])
    refuse(tmp_path / "rank01.h5", "cut for another", one)


def test_a_flipped_bit_in_a_rank_file(path, tmp_path):
    plan = plan_of(SPEC, LAYOUTS[0], (1, 2), total=7)
    slices, part = tuple(Part(SPEC, plan, 1).slices), tmp_path / "rank01.h5"
    with Store(path) as whole:
        writing.write_part(part, whole, slices)
    good = part.read_bytes()
    with Store(part) as store:
        regions = [(piece, store.region(piece)) for piece in slices]
    for piece, region in regions:
        damaged = bytearray(good)
        damaged[region.offset + region.bytes - 1] ^= 0x80
        part.write_bytes(damaged)
        refuse(part, f"of tensor {piece.name} fails", slices)


def test_no_rank_file_is_cut_from_a_damaged_store(path, tmp_path, content):
    with Store(path) as store:
        offset = store.region(Slice("layers.1.attention.k.weight", 2, (1, 4, 12))).offset
    damaged = bytearray(content)
    damaged[offset] ^= 1
    path.write_bytes(damaged)
    with Store(path) as whole, pytest.raises(StoreError, match="checksum 2 of tensor layers.1.attention.k.weight"):
        writing.write_part(tmp_path / "parts" / "rank00.h5", whole, Part(SPEC, PLANS[0], 0).slices)
        writing.write_part(tmp_path / "parts" / "rank03.h5", whole, whole_slices(SPEC))
    assert "rank03.h5" not in entries(tmp_path / "parts") and not any(name.startswith(".") for name in entries(tmp_path / "parts"))


def test_slices_cover_whole_granules():
    """What a rank verifies are checksums of exactly its own bytes."""
    kinds = {name: weight for name, weight in named_weights(SPEC)}
    for plan in PLANS:
        for rank in range(plan.ranks):
            for piece in Part(SPEC, plan, rank).slices:
                step = granule(SPEC, replace(kinds[piece.name], name=piece.name))
                stop = piece.first + piece.shape[0]
                assert piece.first % step == 0 and (stop % step == 0 or stop == kinds[piece.name].shape[0])


def test_what_a_killed_slice_left_goes_with_the_next_one(tmp_path, monkeypatch):
    """It stayed for ever, as large as the store. What another program is writing stays."""
    path, code = tmp_path / "m[1].h5", (
        "import os, pathlib, signal, sys\n"
        "from hepti_mpi.weights.hdf5 import new_file\n"
        "with new_file(pathlib.Path(sys.argv[1]), 1) as file:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    writing.write(path, model())
    assert {one.name for one in tmp_path.iterdir()} == {left.name, "m[1].h5"}  # it was just begun
    monkeypatch.setattr(hdf5, "JUST_BEGUN", -1.0)
    with hdf5.new_file(path, 1):
        (mine,) = set(tmp_path.iterdir()) - {left, path}
        with hdf5.new_file(path, 1):
            assert mine.exists() and not left.exists()
    assert list(tmp_path.iterdir()) == [path]
