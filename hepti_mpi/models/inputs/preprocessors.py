"""What preprocessor_config.json, or the image processor of processor_config.json, says to do to a picture.

Follows the image processors of transformers 5 in their PIL form. Knows the files, their keys and what each kind of processor takes
for keys that are left out; knows no picture (images.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hepti_mpi.errors import ModelError
from hepti_mpi.models import sidefiles
from hepti_mpi.models.untrusted import is_number, parse_json, shown
from hepti_mpi.wording import counted

NAME, OUTER = "preprocessor_config.json", "processor_config.json"
ENDING = "ImageProcessor"
SIDE_LIMIT = 1 << 13  # pixels of a side that a preprocessor may ask for

HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
OPENAI = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
EVERY: dict[str, Any] = {"do_resize": True, "do_center_crop": False, "do_rescale": True, "do_normalize": True, "do_pad": False}
EVERY |= {"do_convert_rgb": False, "resample": 3, "rescale_factor": 1 / 255, "default_to_square": True}
EVERY |= {"crop_size": None, "pad_size": None} | HALF
EDGE = {"size": {"shortest_edge": 224}, "default_to_square": False, "crop_size": 224, "do_center_crop": True}
CLIP = EDGE | OPENAI | {"do_convert_rgb": True}
KINDS: dict[str, dict[str, Any]] = {  # what a kind of processor takes where the file says nothing, if it is not as in EVERY
    "ViT": {"size": [224, 224], "resample": 2},
    "DeiT": {"size": [256, 256], "crop_size": 224, "do_center_crop": True},
    "Beit": {"size": [224, 224], "crop_size": 224},
    "Bit": CLIP,
    "Blip": {"size": [384, 384], "do_convert_rgb": True} | OPENAI,
    "CLIP": CLIP,
    "ChineseCLIP": CLIP,
    "ConvNext": {"size": {"shortest_edge": 384}, "default_to_square": False, "crop_pct": 224 / 256},
    "EfficientNet": {"size": [346, 346], "crop_size": 289, "rescale_offset": False, "include_top": True},
    "Levit": EDGE | IMAGENET,
    "MobileNetV1": EDGE | {"size": {"shortest_edge": 256}, "resample": 2},
    "MobileNetV2": EDGE | {"size": {"shortest_edge": 256}, "resample": 2},
    "Pvt": {"size": [224, 224]} | IMAGENET,
    "Segformer": {"size": [512, 512], "resample": 2} | IMAGENET,
    "Siglip": {"size": [224, 224], "default_to_square": False, "do_convert_rgb": True},
}
OWN = {"deit": "DeiT", "dinov2": "Bit", "dinov2_with_registers": None}  # of a model, where no file names a kind; ViT of all others
UNPADDED = ("Beit", "ConvNext", "EfficientNet", "MobileNetV2", "Segformer")  # do_pad is nothing to them
UNCROPPED = ("Segformer",)  # nor do_center_crop to these
SWITCHES = "do_resize do_center_crop do_rescale do_normalize do_pad do_convert_rgb default_to_square rescale_offset include_top".split()


@dataclass(frozen=True)
class Preprocessor:
    """What is done to a picture, in the order of the fields. Sizes are (height, width)."""

    channels: int
    size: tuple[int, int] | int | None  # an int is the length of the shortest edge; None: not resized
    longest: int | None  # that the other edge may be, where `size` is the shortest
    resample: int
    crops: tuple[tuple[int, int], ...]
    scale: float | None
    offset: float  # taken off after scaling
    norms: tuple[tuple[np.ndarray, np.ndarray], ...]  # (mean, deviation), each [channels]
    pad: tuple[int, int] | None  # with zeros, below and to the right
    on_white: bool = False  # first of all: what a picture says to be transparent by a colour of its own becomes white


def read_preprocessor(files: Mapping[str, bytes], channels: int) -> Preprocessor | None:
    """Return the steps that the files of a model name, None where they name none.

    Raises ModelError when they say what is not supported, or what cannot be done to pictures of so many channels.
    """
    name, config = chosen(files)
    if config is None:
        return None
    sidefiles.check(name, config, sidefiles.FILES[NAME], nulls=True)
    full = kind_of(config, files)
    kind = full.removesuffix(ENDING)
    if kind not in KINDS or kind == full:
        hint = f"supported: {', '.join(KINDS)}; without {name} the model takes .npz files with pixel_values"
        raise ModelError(f"{name}: the image processor {shown(full, 60)} is not supported; {hint}")
    said = EVERY | KINDS[kind] | config
    try:
        return steps(kind, said, channels)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None


def chosen(files: Mapping[str, bytes]) -> tuple[str, dict[str, Any] | None]:
    """Return the name and contents of what describes the processor: nested in the outer file it counts more. Raises ModelError."""
    if OUTER in files:
        outer = parse_json(files[OUTER], OUTER)
        sidefiles.check(OUTER, outer)
        inner = outer.get("image_processor")
        if isinstance(inner, dict):
            return OUTER, inner
        if inner is not None:
            raise ModelError(f"{OUTER}: image_processor is {inner!r:.60}, expected an object")
    return NAME, parse_json(files[NAME], NAME) if NAME in files else None


def kind_of(config: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    """Return the full name of the kind of processor: what the file says, then config.json, then the model's own. Raises ModelError."""
    said = config.get("image_processor_type")
    if said is None and config.get("feature_extractor_type") is not None:
        said = str(config["feature_extractor_type"]).replace("FeatureExtractor", ENDING)
    if said is None:
        model = parse_json(files.get("config.json", b"{}"), "config.json")
        said, own = model.get("image_processor_type"), OWN.get(str(model.get("model_type")), "ViT")
        if said is None and own is None:
            family = shown(repr(model["model_type"]), 60)
            hint = "write the kind there that its authors named, often BitImageProcessor"
            raise ModelError(f"{NAME} names no image_processor_type, and a model of type {family} has none of its own; {hint}")
        said = said or f"{own}{ENDING}"
    return str(said).removesuffix("Fast").removesuffix("Pil")


def steps(kind: str, said: Mapping[str, Any], channels: int) -> Preprocessor:
    """Return the steps of a kind of processor with every key filled in. Raises ModelError."""
    for key in SWITCHES:
        if not isinstance(said.get(key), bool | None):  # null switches off
            raise ModelError(f"{key} is {said[key]!r:.60}, expected true or false")
    if said["do_convert_rgb"] and channels != 3:
        raise ModelError(f"do_convert_rgb makes pictures of 3 channels, the model takes {channels}")
    size, longest, crops = resizing(kind, said) if said["do_resize"] else (None, None, ())
    if said["do_center_crop"] and kind not in UNCROPPED:
        crops = (*crops, area(said["crop_size"], "crop_size"))
    padded = said["do_pad"] and said["pad_size"] is not None and kind not in UNPADDED  # without a size: to the largest of a batch
    return Preprocessor(
        channels=channels,
        size=size,
        longest=longest,
        resample=method(said["resample"]) if said["do_resize"] else 0,
        crops=crops,
        scale=number(said["rescale_factor"], "rescale_factor") if said["do_rescale"] else None,
        offset=float(kind == "EfficientNet" and said["do_rescale"] is True and said["rescale_offset"] is True),
        norms=tuple(norms(kind, said, channels)),
        pad=area(said["pad_size"], "pad_size") if padded else None,
        on_white=said["do_convert_rgb"] is True,
    )


def resizing(kind: str, said: Mapping[str, Any]) -> tuple[tuple[int, int] | int, int | None, tuple[tuple[int, int], ...]]:
    """Return the size, the limit of the longest edge, and what is cropped right after. Raises ModelError."""
    size, longest = edges(said["size"], said["default_to_square"])
    if kind == "Levit" and isinstance(size, int):
        return within(int(256 / 224 * size), "size"), None, ()
    if kind == "ConvNext":
        part = number(said["crop_pct"], "crop_pct")
        if not isinstance(size, int) or not 0 < part <= 1:
            raise ModelError(f"size is {shown(repr(said['size']), 60)} and crop_pct {part}; expected a shortest_edge, and 0 to 1")
        return (within(int(size / part), "size"), None, ((size, size),)) if size < 384 else ((size, size), None, ())
    return size, longest, ()


def norms(kind: str, said: Mapping[str, Any], channels: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the (mean, deviation) pairs of a picture's normalisations, each [channels]. Raises ModelError."""
    again = kind == "EfficientNet" and said["include_top"] is True
    if not said["do_normalize"] and not again:
        return []
    deviation = per_channel(said["image_std"], "image_std", channels)
    first = [(per_channel(said["image_mean"], "image_mean", channels), deviation)] if said["do_normalize"] else []
    return first + [(np.zeros_like(deviation), deviation)] * again


def edges(value: Any, square: bool) -> tuple[tuple[int, int] | int, int | None]:
    """Return (height, width), or the length of the shortest edge and the limit of the longest. Raises ModelError."""
    if isinstance(value, dict) and "shortest_edge" in value:
        extra = value.keys() - {"shortest_edge", "longest_edge"}
        if not extra:
            longest = value.get("longest_edge")
            return within(value["shortest_edge"], "size"), None if longest is None else within(longest, "size")
    elif isinstance(value, int) and not square:
        return within(value, "size"), None
    return area(value, "size"), None


def area(value: Any, key: str) -> tuple[int, int]:
    """Return (height, width); a number is both. Raises ModelError."""
    if isinstance(value, dict):
        sides = (value["height"], value["width"]) if value.keys() == {"height", "width"} else ()
    elif isinstance(value, list):
        sides = tuple(value) if len(value) == 2 else ()
    else:
        sides = (value, value)
    if not sides:
        hint = " or shortest_edge" if key == "size" else ""
        raise ModelError(f"{key} is {shown(repr(value), 100)}, which is not supported; expected height and width{hint}")
    return within(sides[0], key), within(sides[1], key)


def within(side: Any, key: str) -> int:
    """Return a side in pixels. Raises ModelError."""
    if isinstance(side, bool) or not isinstance(side, int) or not 0 < side <= SIDE_LIMIT:
        raise ModelError(f"{key} has a side of {shown(repr(side), 60)} pixels, expected 1 to {SIDE_LIMIT}")
    return side


def method(value: Any) -> int:
    """Return Pillow's number of a way of resampling. Raises ModelError."""
    if isinstance(value, bool) or not isinstance(value, int) or value not in range(6):
        raise ModelError(f"resample is {shown(repr(value), 60)}, expected a number from 0 to 5")
    return value


def number(value: Any, key: str) -> float:
    """Return a finite number. Raises ModelError."""
    if not is_number(value):
        raise ModelError(f"{key} is {value!r:.60}, expected a number")
    return float(value)


def per_channel(value: Any, key: str, channels: int) -> np.ndarray:
    """Return a mean or deviation as float32 [channels]. Raises ModelError."""
    values = value if isinstance(value, list) else [value] * channels
    if len(values) != channels or not all(map(is_number, values)) or (key == "image_std" and not all(np.float32(v) for v in values)):
        raise ModelError(f"{key} is {value!r:.100}, expected {counted(channels, 'numbers')}{', none of them 0' * (key == 'image_std')}")
    return np.array(values, dtype=np.float32)
