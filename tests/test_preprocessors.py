"""What a picture's processor does, against transformers' own values; what it may not say."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hepti_mpi.errors import InputError, ModelError
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.inputs.images import center_crop, open_image, pixel_values
from hepti_mpi.models.inputs.preprocessors import KINDS, read_preprocessor

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "preprocessors" / "cases.json").read_text())
EXPECTED = np.load(GOLDEN / "preprocessors" / "expected.npz")
VIT = b'{"model_type": "vit"}'


def steps(config, channels=3, model=VIT, **others):
    files = {name.replace("_json", ".json"): json.dumps(value).encode() for name, value in others.items()}
    return read_preprocessor({"preprocessor_config.json": json.dumps(config).encode(), "config.json": model} | files, channels)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{n} {CASES[n].get('image_processor_type')}")
def test_golden_processors(number):
    for name in ("rgb", "gray"):
        found = pixel_values(steps(CASES[number]), open_image(GOLDEN / "preprocessors" / f"{name}.png", 3))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, EXPECTED[f"{name} {number}"], atol=1e-5, rtol=1e-6)


def test_every_kind_is_among_the_golden_ones():
    assert {f"{kind}ImageProcessor" for kind in KINDS} <= {case.get("image_processor_type") for case in CASES}


def test_the_model_names_the_kind_where_the_file_does_not():
    vit, deit = steps({}), steps({}, model=b'{"model_type": "deit"}')
    assert (vit.size, vit.resample, vit.crops, vit.scale) == ((224, 224), 2, (), 1 / 255)
    assert (deit.size, deit.resample, deit.crops) == ((256, 256), 3, ((224, 224),))
    assert steps({"feature_extractor_type": "DeiTFeatureExtractor"}).size == deit.size and steps({}, model=b"{}").size == vit.size
    dino = steps({}, model=b'{"model_type": "dinov2"}')  # BitImageProcessor in transformers 5.23
    assert (dino.size, dino.resample, dino.crops, dino.norms[0][0][0].item()) == (224, 3, ((224, 224),), np.float32(0.48145466))
    with pytest.raises(ModelError, match="names no image_processor_type, and a model of type 'dinov2_with_registers' has none"):
        steps({}, model=b'{"model_type": "dinov2_with_registers"}')
    assert steps({}, model=b'{"model_type": "vit", "image_processor_type": "CLIPImageProcessor"}').size == 224


def test_a_nested_processor_counts_more():
    outer = {"processor_class": "CLIPProcessor", "image_processor": {"image_processor_type": "ViTImageProcessor", "size": 30}}
    assert steps({"size": 20}, processor_config_json=outer).size == (30, 30)
    assert steps({"size": 20}, processor_config_json={"processor_class": "CLIPProcessor"}).size == (20, 20)
    assert read_preprocessor({"config.json": VIT}, 3) is None
    with pytest.raises(ModelError, match="^processor_config.json: image_processor is 3, expected an object"):
        steps({}, processor_config_json={"image_processor": 3})
    with pytest.raises(ModelError, match="^processor_config.json: size has a side of 0 pixels"):
        steps({}, processor_config_json={"image_processor": {"size": 0}})


REFUSED = [
    ({"size": 10**9}, "size has a side of 1000000000 pixels, expected 1 to 8192"),
    ({"size": {"height": 20}}, "size is {'height': 20}, which is not supported; expected height and width or shortest_edge"),
    ({"size": {"height": 20, "width": 20, "shortest_edge": 20}}, "which is not supported"),
    ({"size": {"longest_edge": 20}}, "which is not supported"),
    ({"size": {"max_height": 20, "max_width": 20}}, "which is not supported"),
    ({"size": [20, 20, 20]}, "which is not supported"),
    ({"size": "20"}, "size has a side of '20' pixels"),
    ({"size": 20.0}, "size has a side of 20.0 pixels"),
    ({"size": True}, "size has a side of True pixels"),
    ({"size": None}, "size has a side of None pixels"),
    ({"resample": 9}, "resample is 9, expected a number from 0 to 5"),
    ({"resample": "bicubic"}, "resample is 'bicubic'"),
    ({"resample": None}, "resample is None"),
    ({"image_mean": [0.5]}, "image_mean is [0.5], expected 3 numbers"),
    ({"image_std": [0.5, 0, 1]}, "none of them 0"),
    ({"image_std": 1e-60}, "none of them 0"),
    ({"rescale_factor": "x"}, "rescale_factor is 'x', expected a number"),
    ({"rescale_factor": "1/255"}, "rescale_factor is '1/255', expected a number"), ({"image_mean": [None, 0, 0]}, "expected 3 numbers"),
    ({"do_rescale": "false"}, "do_rescale is 'false', expected true or false"),
    ({"do_center_crop": True, "crop_size": {"shortest_edge": 4}}, "crop_size is {'shortest_edge': 4}"),
    ({"do_center_crop": True}, "crop_size has a side of None pixels"),
    ({"do_pad": True, "pad_size": {"shortest_edge": 4}}, "pad_size is"),
    ({"image_processor_type": "MyOwnProcessor"}, "image processor MyOwnProcessor is not supported; supported: ViT, DeiT"),
    ({"image_processor_type": "ViTHybridImageProcessor"}, "is not supported; supported: ViT, DeiT"),
    ({"feature_extractor_type": "WhisperFeatureExtractor"}, "is not supported"),
    ({"image_processor_type": "ViT"}, "is not supported"),
    ({"image_processor_type": "ConvNextImageProcessor", "size": {"height": 9, "width": 9}}, "expected a shortest_edge"),
    ({"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0}, "crop_pct 0.0"),
    ({"auto_map": {"AutoImageProcessor": "own.Own"}}, "names code in the model's folder"),
    ({"do_thumbnail": True}, "do_thumbnail is True, which is not supported: a step of other processors"),
    ({"sharpen": 3}, "'sharpen' is in no list"),
]


def test_a_key_that_is_null_says_nothing():
    assert steps({"size": 8, "sharpen": None}).size == steps({"size": 8}).size == (8, 8)


def test_numbers_that_no_float_holds():
    for key in ("rescale_factor", "size"):
        with pytest.raises(ModelError, match="^preprocessor_config.json is not valid JSON: a number has 401 digits$"):
            steps({key: 10**400})


@pytest.mark.parametrize("change, words", REFUSED, ids=lambda v: str(v)[:40])
def test_refused_processors(change, words):
    with pytest.raises(ModelError) as caught:
        steps(change)
    text = str(caught.value)
    assert words in text and text.startswith("preprocessor_config.json: ") and "\n" not in text and not text.endswith("."), text


def test_a_model_is_refused_with_its_processor(tmp_path):
    for file in (GOLDEN / "vit").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    read_model(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "Sam3ImageProcessor"}')
    with pytest.raises(ModelError, match="Sam3ImageProcessor.*without preprocessor_config.json the model takes .npz files"):
        read_model(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    read_model(tmp_path)


def test_gray_models():
    gray = {"image_mean": [0.5], "image_std": [0.5], "size": 8}
    assert pixel_values(steps(gray, 1), Image.new("L", (9, 9), 255)).max() == 1.0
    for change in ({"do_convert_rgb": True}, {"image_processor_type": "CLIPImageProcessor"}):
        with pytest.raises(ModelError, match="do_convert_rgb makes pictures of 3 channels, the model takes 1"):
            steps(gray | change, 1)
    with pytest.raises(ModelError, match="expected 1 number"):
        steps({}, 1)


@pytest.mark.parametrize(
    "config, size, words",
    [
        ({"size": {"shortest_edge": 99}}, (1, 4000), "too long to be resized"),
        ({"do_resize": False}, (1, 9000), "larger than any model takes"),
        ({"do_resize": False, "do_pad": True, "pad_size": 8}, (9, 7), "larger than the pad_size of 8 x 8"),
    ],
)
def test_pictures_that_do_not_fit(config, size, words):
    with pytest.raises(InputError, match=words):
        pixel_values(steps(config), Image.new("RGB", size))


@pytest.mark.parametrize("ending, mode, colour", [("png", "L", 40), ("png", "RGB", (40, 41, 42)), ("png", "P", 3), ("gif", "P", 3)])
def test_a_colour_that_is_transparent_is_white_where_the_processor_makes_rgb(tmp_path, ending, mode, colour):
    """As CLIPImageProcessor and its like of transformers 5.23; others, with do_convert_rgb off, leave what is behind it."""
    shape = (4, 5) if mode != "RGB" else (4, 5, 3)
    if mode == "P":
        picture = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(shape) % 5, "P")
        picture.putpalette([v for one in range(5) for v in (one * 9, one * 7, one)])
        seen = (27, 21, 3)  # of number 3
    else:
        picture, seen = Image.new(mode, (5, 4), (10, 20, 30) if mode == "RGB" else 10), colour if mode == "RGB" else (40,) * 3
        picture.putpixel((2, 1), colour)
    picture.save(tmp_path / f"x.{ending}", transparency=colour)
    plain = np.asarray(picture.convert("RGB"))
    white = np.where((plain == seen).all(-1, keepdims=True), 255, plain)
    assert (white != plain).any()
    untouched = {"do_resize": False, "do_rescale": False, "do_normalize": False, "do_center_crop": False}
    for kind, wanted in (("CLIP", white), ("Siglip", white), ("ViT", plain)):
        made = steps({"image_processor_type": f"{kind}ImageProcessor", **untouched})
        found = pixel_values(made, open_image(tmp_path / f"x.{ending}", 3))
        np.testing.assert_array_equal(found, wanted.transpose(2, 0, 1))


def test_shortest_edge_then_crop():
    taken = steps({"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": 20, "do_normalize": False})
    assert pixel_values(taken, Image.new("RGB", (31, 47), (255, 0, 51))).shape == (3, 20, 20)
    assert pixel_values(taken, Image.new("RGB", (31, 47), (255, 0, 51)))[:, 3, 3].tolist() == pytest.approx([1, 0, 0.2])


@pytest.mark.parametrize("side, expected", [(5, [0, 1, 2, 3, 0]), (4, [0, 1, 2, 3]), (3, [1, 2, 3]), (2, [1, 2]), (1, [2])])
def test_center_crop(side, expected):
    pixels = np.array([1, 2, 3])[None, :, None] * np.ones((side, 1, 1), int)
    assert center_crop(pixels, side, side)[0, :, 0].tolist() == expected


def test_segformer_neither_crops_nor_pads():
    asked = {"do_center_crop": True, "crop_size": 8, "do_pad": True, "pad_size": 90}
    config = {"image_processor_type": "SegformerImageProcessor", "size": {"height": 32, "width": 32}} | asked
    steps = read_preprocessor({"preprocessor_config.json": json.dumps(config).encode()}, 3)
    assert steps is not None and (steps.size, steps.crops, steps.pad) == ((32, 32), (), None)
