"""From files to requests: what is read, what is refused, and damaged bytes."""

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hepti_mpi.errors import HeptiError, InputError, ModelError
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.checkpoints.random import CONFIGS, random_model
from hepti_mpi.models.inputs.requests import left_out, pixel_request, read_requests
from hepti_mpi.models.inputs.text import Reading

GOLDEN = Path(__file__).parent / "golden"
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CASES = ("bert", "bert_mlm", "bert_seqcls", "bert_sentence", "vit", "vit_cls", "deit")
MODELS = {name: read_model(GOLDEN / name) for name in CASES}


def read(case, source, stdin=None, files=None, **how):
    model = MODELS[case]
    given = None if source is None else str(source)
    return read_requests(model.spec, model.files if files is None else files, given, stdin, Reading(**how))


def refused(case, source, *words, error=InputError, **options):
    with pytest.raises(error) as caught:
        read(case, source, strict=True, **options)
    text = str(caught.value)
    for word in words:
        assert word in text, text
    assert "\n" not in text and not text.endswith("."), text


# ---- text


def test_text_lines(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("the cat\r\nsat on\u2028 the mat\nZoë!".encode())
    requests = read("bert", path)
    assert [r.origin for r in requests] == ["line 1 of x.txt", "line 2 of x.txt", "line 3 of x.txt"]
    assert [r.index for r in requests] == [0, 1, 2]
    assert requests[0].text == "the cat" and requests[0].rows == requests[0].width == 4
    first = requests[0].arrays
    assert all(first[name].dtype == np.int64 and first[name].shape == (4,) for name in ("ids", "types", "positions"))
    assert first["ids"][[0, -1]].tolist() == [2, 3] and first["positions"].tolist() == [0, 1, 2, 3] == requests[0].keep.tolist()


def test_jsonl(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "the cat", "id": 7}\n"the\\ncat"\n"lone \\ud800"\n')
    requests = read("bert", path)
    assert [r.text for r in requests] == ["the cat", "the\ncat", "lone \ud800"]
    assert requests[2].error == 'line 3 of x.jsonl holds "\\ud800", which is half a character'
    np.testing.assert_array_equal(requests[0].arrays["ids"], requests[1].arrays["ids"])


@pytest.mark.parametrize("stream", [io.StringIO("the cat\nthe mat\n"), io.BytesIO(b"the cat\nthe mat")])
def test_standard_input(stream):
    assert [r.origin for r in read("bert", "-", stream)] == ["line 1 of standard input", "line 2 of standard input"]


TEXT_CASES = [
    ("a.txt", b"", "a.txt is empty"),
    ("a.txt", b"\n", "a.txt is empty"),
    ("a.txt", b"cat\n\ndog\n", "line 2 of a.txt is empty"),
    ("a.txt", b"cat\n \t\n", "line 2 of a.txt is empty"),
    ("a.txt", b"cat\nd\xffg\n", "line 2 of a.txt is not UTF-8: byte 2 is 0xff"),
    ("a.txt", b"cat\n" + b"cat " * 600, "line 2 of a.txt has 602 tokens, the model takes 512"),
    ("a.jsonl", b'"cat"\n{"text": 3}\n', "line 2 of a.jsonl has something else than text as \"text\""),
    ("a.jsonl", b'"cat"\n{"tex": "cat"}\n', "line 2 of a.jsonl has no \"text\""),
    ("a.jsonl", b'"cat"\n{cat}\n', "line 2 of a.jsonl is not valid JSON"),
    ("a.jsonl", b"[" * 99999, "line 1 of a.jsonl is not taken as JSON: it is nested too deeply"),
    ("a.jsonl", b'""\n\n"a"', "line 2 of a.jsonl is empty"),
    ("a.pdf", b"cat", "the model takes texts: .txt, .jsonl, .csv, .tsv, .npz"),
    ("a.png", b"cat", "the model takes texts: .txt, .jsonl, .csv, .tsv, .npz"),
]


@pytest.mark.parametrize("name, data, words", TEXT_CASES, ids=lambda v: str(v)[:30])
def test_refused_text(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    refused("bert", tmp_path / name, words)


def test_sources_that_are_not_there(tmp_path):
    refused("bert", tmp_path / "x.txt", "not found")
    refused("bert", tmp_path, "the model takes texts: .txt")
    os.mkfifo(tmp_path / "pipe.png")  # which nobody writes to: it would be waited for
    for family in ("bert", "vit"):
        refused(family, tmp_path / "pipe.png", "pipe.png is neither a file nor a folder; write", "given as -")
    refused("bert", "x" * 5000 + ".txt", "cannot be read: File name too long")
    refused("bert", "-", "standard input is empty")
    refused("bert", None, "no tokenizer.json", ".npz", files={})


def test_sentence_models_cut_texts_off():
    expected = json.loads((GOLDEN / "bert_sentence" / "expected_text.json").read_text())
    lines = io.StringIO("\n".join(expected["texts"]))
    assert [r.arrays["ids"].tolist() for r in read("bert_sentence", "-", lines)] == expected["input_ids"]


def test_what_is_cut_off_is_marked(tmp_path):
    limit = MODELS["bert_sentence"].spec.options["max_tokens"]
    both = [("the cat", None), ("the cat " * limit, None), ("the cat", "the mat"), ("the cat", "the mat " * limit)]
    lines = [json.dumps({"text": text, "text_pair": pair, "id": number}) for number, (text, pair) in enumerate(both)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    requests = read("bert_sentence", tmp_path / "x.jsonl")
    assert [request.truncated for request in requests] == [False, True, False, True]
    assert [request.rows for request in requests][1::2] == [limit, limit] and [request.id for request in requests] == [0, 1, 2, 3]
    assert requests[2].given == {"id": 2, "input": ["the cat", "the mat"]}


def test_bad_inputs_keep_their_place(tmp_path):
    (tmp_path / "x.csv").write_text("id,text\n1,the cat\n2,\n3," + "cat " * 600 + "\n4,the mat\n")
    requests = read("bert", tmp_path / "x.csv")
    assert [request.error for request in requests] == [None, 'line 3 of x.csv has nothing in column "text"',
                                                       "line 4 of x.csv has 602 tokens, the model takes 512; shorten it", None]  # fmt: skip
    assert [request.id for request in requests] == ["1", "2", "3", "4"] and [request.index for request in requests] == [0, 1, 2, 3]
    assert [request.rows > 0 for request in requests] == [True, False, False, True]
    refused("bert", tmp_path / "x.csv", 'line 3 of x.csv has nothing in column "text"')
    mask = np.array([[1, 1, 1, 1], [0, 0, 0, 0]])
    assert [r.error for r in read("bert", npz(tmp_path / "x.npz", input_ids=IDS, attention_mask=mask))] == [
        None, "array 2 of x.npz: attention_mask leaves no position"]  # fmt: skip
    refused("vit", None, "--field and --pair are for texts", field="text")
    refused("bert", tmp_path / "x.npz", "--field and --pair are for texts", pair="b")


def test_built_in_sentences():
    assert len(read("bert", None)) == 8
    masked = read("bert_mlm", None)
    assert all((r.arrays["ids"] == 4).sum() == 1 and "[MASK]" in r.text for r in masked)


@pytest.mark.parametrize("name", [name for name in CONFIGS if not random_model(name).spec.generates])
def test_random_models_take_any_ascii(name):
    model = random_model(name)
    requests = read_requests(model.spec, model.files, None)
    assert all(r.rows <= model.spec.positions for r in requests)
    if model.spec.embedding == "tokens":
        text = "".join(map(chr, range(33, 127))) + " Hello World 42 don't"
        [request] = read_requests(model.spec, model.files, "-", io.StringIO(text))
        assert 1 not in request.arrays["ids"]  # [UNK]


TOKENIZERS = [b"", b"{}", b"[]", b"\xff", b"null", b'{"version": "1.0", "model": {"type": "WordPiece"}}', b"[" * 50000]


@pytest.mark.parametrize("data", TOKENIZERS, ids=lambda v: str(v)[:30])
def test_damaged_tokenizer(data):
    refused("bert", None, "tokenizer.json cannot be used", error=ModelError, files={"tokenizer.json": data})


def test_tokenizer_of_another_model():
    files = random_model("bert-base").files
    refused("bert", "-", "line 1", "gives token id", "the model has only 120", files=files, stdin=io.StringIO("water"))


@FUZZ
@given(data=st.data())
def test_flipped_tokenizer(data):
    whole = bytearray(MODELS["bert"].files["tokenizer.json"])
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(32, 126))
    try:
        read("bert", None, files={"tokenizer.json": bytes(whole)})
    except HeptiError as error:
        assert "\n" not in str(error)


# ---- arrays


def npz(path: Path, **arrays):
    np.savez(path, **arrays)
    return path


IDS = np.array([[2, 9, 8, 3], [2, 7, 3, 0]])


def test_masked_rows_are_dropped(tmp_path):
    mask = np.array([[0, 1, 0, 1], [1, 1, 1, 0]], dtype=bool)
    one, two = read("bert", npz(tmp_path / "x.npz", input_ids=IDS.astype(np.uint8), attention_mask=mask))
    assert (one.origin, two.origin) == ("array 1 of x.npz", "array 2 of x.npz")
    assert one.arrays["ids"].tolist() == [9, 3] and one.arrays["positions"].tolist() == [1, 3] == one.keep.tolist()
    assert (one.rows, one.width, two.rows, two.width, one.text) == (2, 4, 3, 4, None)
    assert one.arrays["ids"].dtype == one.keep.dtype == np.int64 and not two.arrays["types"].any()


def test_no_array_is_passed_over(tmp_path):
    """What transformers takes and is not read here would change the answer; what is kept beside inputs does not."""
    mask, beside = np.array([[1, 1, 1, 1], [1, 1, 1, 0]]), {"labels": np.zeros(2), "expected_logits": IDS}
    own = np.array([[0, 1, 2, 3], [0, 1, 2, 99]])  # where the mask leaves out a token, its position is nothing
    taken = npz(tmp_path / "x.npz", input_ids=IDS, attention_mask=mask, position_ids=own, **beside)
    assert [request.arrays["positions"].tolist() for request in read("bert", taken)] == [[0, 1, 2, 3], [0, 1, 2]]
    read("bert", npz(tmp_path / "x.npz", input_ids=IDS, position_ids=np.arange(4)[None]))
    npz(tmp_path / "x.npz", input_ids=IDS, position_ids=np.arange(4)[None] + 3)
    refused("bert", tmp_path / "x.npz", "array 1 of x.npz: position_ids is 3 at position 0, where the model counts 0")
    refused("bert", npz(tmp_path / "x.npz", input_ids=IDS, position_ids=np.arange(4)), "position_ids is int64 of shape [4]")
    npz(tmp_path / "x.npz", input_ids=IDS, inputs_embeds=np.ones((2, 4, 8)))
    refused("bert", tmp_path / "x.npz", "holds the array inputs_embeds, which is not read")
    side = MODELS["vit"].spec.options["image_size"]
    pixels = np.zeros((1, MODELS["vit"].spec.options["channels"], side, side), np.float32)
    refused("vit", npz(tmp_path / "x.npz", pixel_values=pixels, bool_masked_pos=np.ones((1, 4), bool)), "the array bool_masked_pos")


def test_masked_ids_may_be_anything(tmp_path):
    ids = np.array([[2, -100, 3]])
    [request] = read("bert", npz(tmp_path / "x.npz", input_ids=ids, attention_mask=np.array([[1, 0, 1]])))
    assert request.arrays["ids"].tolist() == [2, 3]


ARRAY_CASES = [
    ({"input_ids": IDS.astype(float)}, "input_ids is float64", "expected integers"),
    ({"input_ids": IDS[0]}, "of shape [4], expected integers of shape [inputs, positions]"),
    ({"input_ids": IDS[:, :0]}, "of shape [2, 0], which holds nothing"),
    ({"input_ids": IDS[:0]}, "of shape [0, 4], which holds nothing"),
    ({"input_ids": IDS, "attention_mask": IDS[:, :3] * 0 + 1}, "attention_mask is int64 of shape [2, 3]", "[2, 4]"),
    ({"input_ids": IDS, "attention_mask": IDS}, "other than 0 and 1"),
    ({"input_ids": IDS, "attention_mask": np.array([[1] * 4, [0] * 4])}, "array 2 of x.npz: attention_mask leaves no position"),
    ({"input_ids": IDS, "token_type_ids": IDS}, "array 1 of x.npz: token_type_ids holds 9, the model takes 0 to 1"),
    ({"input_ids": IDS - 1}, "array 2 of x.npz: input_ids holds -1, the model takes 0 to 119"),
    ({"input_ids": IDS + 112}, "array 1 of x.npz: input_ids holds 121"),
    ({"input_ids": np.full((1, 2), 2**64 - 1, np.uint64)}, "input_ids holds 18446744073709551615"),
    ({"input_ids": np.ones((1, 513), int)}, "513 positions, the model takes 512"),
    ({"attention_mask": IDS}, "no input_ids, only attention_mask"),
    ({"pixel_values": IDS}, "holds none of the arrays input_ids", "pixel_values.npy"),
    ({"input_ids": np.array([["a"]])}, "array input_ids is of type <U1, expected numbers"),
    ({"input_ids": np.array([[None]])}, "array input_ids is of type object"),
    ({}, "holds nothing"),
]


@pytest.mark.parametrize("case", ARRAY_CASES, ids=lambda c: c[1][:50])
def test_refused_arrays(tmp_path, case):
    refused("bert", npz(tmp_path / "x.npz", **case[0]), *case[1:])


def test_heads_that_read_position_0_refuse_to_mask_it(tmp_path):
    path = npz(tmp_path / "x.npz", input_ids=IDS, attention_mask=np.array([[1, 1, 1, 1], [0, 1, 1, 1]]))
    assert [r.rows for r in read("bert", path)] == [4, 3]
    refused("bert_seqcls", path, "array 2 of x.npz", "position 0")


def zipped(path: Path, header: bytes, data: bytes = b""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("input_ids.npy", header + data)
    return path


def npy(shape, descr="<i8"):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


HOSTILE = [
    (npy((1 << 20, 1 << 20)), "claims 8796093022208 bytes"),
    (npy((1 << 62, 1 << 62)), "claims"),
    (npy((1, 3)), "ends after 0 of its 24 bytes"),
    (npy((1, 300)), "claims 2400 bytes"),
    (npy((-1, 3)), "claims"),
    (npy((1, 1), "|O"), "of type object"),
    (b"", "not a sound .npz file"),
    (b"\x93NUMPY\x01\x00\xff\xff{", "not a sound .npz file"),
    (b"\x93NUMPY\x09\x00", "npy format 9.0"),
    (b"\x93NUMPY\x01\x00\x10\x00__import__('os')", "not a sound .npz file"),
]


@pytest.mark.parametrize("header, word", HOSTILE, ids=lambda v: str(v)[:30])
def test_hostile_npz(tmp_path, header, word):
    refused("bert", zipped(tmp_path / "x.npz", header), word)


def test_npz_that_is_no_zip(tmp_path):
    for data in (b"", b"PK\x03\x04", b"cat" * 100):
        (tmp_path / "x.npz").write_bytes(data)
        refused("bert", tmp_path / "x.npz", "not a sound .npz file")


@FUZZ
@given(data=st.data())
def test_flipped_npz(tmp_path, data):
    path = npz(tmp_path / "x.npz", input_ids=IDS, attention_mask=np.ones_like(IDS))
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        read("bert", path)
    except HeptiError as error:
        assert "\n" not in str(error)


# ---- images


@pytest.mark.parametrize("case", ["vit_cls", "deit"])
def test_golden_images(case):
    spec = MODELS[case].spec
    expected = np.load(GOLDEN / case / "expected_images.npz")["expected_pixel_values"]
    requests = read(case, GOLDEN / case)
    assert [r.origin for r in requests] == ["image gray.png", "image rgb.png"]
    for request, pixels in zip(requests, expected):
        np.testing.assert_allclose(request.arrays["patches"], pixel_request(spec, 0, "", pixels).arrays["patches"], atol=1e-6)
    [alone] = read(case, GOLDEN / case / "rgb.png")
    np.testing.assert_array_equal(alone.arrays["patches"], requests[1].arrays["patches"])


def test_patches_are_in_the_order_of_the_kernel(tmp_path):
    pixels = np.random.default_rng(0).normal(size=(2, 3, 20, 20)).astype(np.float16)
    one, two = read("vit", npz(tmp_path / "x.npz", pixel_values=pixels))
    patches = two.arrays["patches"]
    assert patches.dtype == np.float32 and patches.shape == (26, 48) and not patches[0].any()
    np.testing.assert_array_equal(patches[1 + 5 * 2 + 3], pixels[1, :, 8:12, 12:16].reshape(-1).astype(np.float32))
    assert (one.rows, one.width, one.arrays["positions"].tolist()) == (26, 26, list(range(26)))


PIXEL_CASES = [
    (np.zeros((1, 3, 20, 20), int), "int64"),
    (np.zeros((1, 3, 20, 24)), "[1, 3, 20, 24]"),
    (np.zeros((1, 1, 20, 20)), "[images, 3, 20, 20]"),
    (np.zeros((0, 3, 20, 20)), "[0, 3, 20, 20]"),
    (np.zeros((3, 20, 20)), "[3, 20, 20]"),
    (np.full((1, 3, 20, 20), np.nan), "array 1 of x.npz: pixel_values holds values that are not finite"),
]


@pytest.mark.parametrize("pixels, word", PIXEL_CASES, ids=lambda v: str(v)[:20])
def test_refused_pixels(tmp_path, pixels, word):
    refused("vit", npz(tmp_path / "x.npz", pixel_values=pixels), word)


def test_refused_images(tmp_path):
    refused("vit", tmp_path, "holds no pictures")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    refused("vit", tmp_path, "a.png cannot be read")
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    refused("vit", tmp_path / "a.png", "a.png cannot be read")
    Image.new("1", (20000, 20000)).save(tmp_path / "a.png")
    refused("vit", tmp_path / "a.png", "a.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.txt").write_text("cat")
    refused("vit", tmp_path / "b" / "a.txt", "a.txt is no picture that can be read", ".npz")
    refused("vit", tmp_path / "b", "holds no pictures; it holds a.txt")
    refused("vit", "-", "from standard input", "the model takes pictures")
    refused("vit", GOLDEN / "deit" / "rgb.png", "no preprocessor_config.json", ".npz", files={})


def test_what_else_is_in_a_folder_is_named(tmp_path):
    spec = MODELS["vit"].spec
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    assert left_out(spec, str(tmp_path)) is None and left_out(spec, str(tmp_path / "a.png")) is None and left_out(spec, None) is None
    for name in ("notes.txt", "Thumbs.db", "more"):
        (tmp_path / name).mkdir() if name == "more" else (tmp_path / name).write_text("x")
    others = f"of {tmp_path} are left out, for they are no pictures: Thumbs.db, notes.txt"
    assert left_out(spec, str(tmp_path)) == f"{others}; folders in {tmp_path} are not looked into: more/"
    for name in ("y.csv", "z.csv"):
        (tmp_path / name).write_text("x")
    assert left_out(spec, str(tmp_path)).startswith(f"{others}, y.csv and 1 more; folders in ")
    (tmp_path / "y.csv").unlink()
    (tmp_path / "a.png").unlink()
    refused("vit", tmp_path, "holds no pictures; it holds Thumbs.db, more/, notes.txt and 1 more")


SIZES = [
    ({"size": 24}, "is 24 x 24 after preprocessor_config.json, the model takes 20 x 20"),
    ({"size": {"shortest_edge": 20}}, "is 20 x 26 after"),
    ({"do_resize": False}, "is 48 x 64 after"),
]


@pytest.mark.parametrize("change, words", SIZES, ids=lambda v: str(v)[:40])
def test_sizes_that_are_not_the_models(change, words):
    config = json.loads(MODELS["vit"].files["preprocessor_config.json"]) | change
    refused("vit", None, words, files={"preprocessor_config.json": json.dumps(config).encode()})


def test_built_in_images():
    assert [r.origin for r in read("vit", None)] == ["built-in image 1", "built-in image 2"]
