"""Images to pixel values, as preprocessor_config.json says. The only user of Pillow.

Follows the PIL image processors of transformers (ViTImageProcessorPil, DeiTImageProcessorPil). Knows no model and no request.
"""

import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from hepti_mpi.errors import InputError, ModelError
from hepti_mpi.models.untrusted import shown

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
PIXEL_LIMIT = 1 << 27  # pixels of one image
UNPACKED, TIMES = 1 << 24, 100  # pixels that any file may unpack to, and for each of its bytes
SIDE_LIMIT = 1 << 13  # pixels of a side that a preprocessor may ask for
NAME = "preprocessor_config.json"


@dataclass(frozen=True)
class Preprocessor:
    """What is done to an image, in the order of the fields. Sizes are (height, width)."""

    size: tuple[int, int] | int | None  # an int is the length of the shortest edge; None: not resized
    resample: int
    crop: tuple[int, int] | None
    scale: float | None
    mean: np.ndarray | None  # [channels]
    deviation: np.ndarray | None  # [channels]


def read_preprocessor(config: Mapping[str, Any], channels: int) -> Preprocessor:
    """Return the steps in a preprocessor_config.json. Raises ModelError."""
    deit = "DeiT" in str(config.get("image_processor_type", config.get("feature_extractor_type", "")))  # defaults differ
    do = {key: config.get(f"do_{key}", default) for key, default in DO.items()} | {"center_crop": config.get("do_center_crop", deit)}
    size = edge(config.get("size", 256 if deit else 224), "size")
    crop = edge(config.get("crop_size", 224), "crop_size")
    resample = config.get("resample", 3 if deit else 2)
    scale = config.get("rescale_factor", 1 / 255)
    if isinstance(resample, bool) or not isinstance(resample, int) or resample not in range(6):
        raise ModelError(f"{NAME}: resample is {resample!r:.60}, expected a number from 0 to 5")
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ModelError(f"{NAME}: rescale_factor is {scale!r:.60}, expected a number")
    if do["center_crop"] and not isinstance(crop, tuple):
        raise ModelError(f"{NAME}: crop_size has no height and width")
    return Preprocessor(
        size=size if do["resize"] else None,
        resample=resample,
        crop=crop if do["center_crop"] and isinstance(crop, tuple) else None,
        scale=float(scale) if do["rescale"] else None,
        mean=per_channel(config.get("image_mean", 0.5), "image_mean", channels) if do["normalize"] else None,
        deviation=per_channel(config.get("image_std", 0.5), "image_std", channels) if do["normalize"] else None,
    )


DO = {"resize": True, "rescale": True, "normalize": True}


def edge(value: Any, key: str) -> tuple[int, int] | int:
    """Return (height, width), or the length of the shortest edge. Raises ModelError."""
    if isinstance(value, dict) and "shortest_edge" in value and value.get("longest_edge") is None:
        sides: tuple[Any, ...] = (value["shortest_edge"],)
    elif isinstance(value, dict):
        sides = (value.get("height"), value.get("width"))
    else:
        sides = tuple(value) if isinstance(value, list) and len(value) == 2 else (value, value)
    if not all(isinstance(side, int) and not isinstance(side, bool) and 0 < side <= SIDE_LIMIT for side in sides):
        raise ModelError(f"{NAME}: {key} {value!r:.100} is not supported; expected height and width, or shortest_edge")
    return (sides[0], sides[1]) if len(sides) == 2 else sides[0]


def per_channel(value: Any, key: str, channels: int) -> np.ndarray:
    """Return a mean or deviation as float32 [channels]. Raises ModelError."""
    values = value if isinstance(value, list) else [value] * channels
    fits = all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    if len(values) != channels or not fits or (key == "image_std" and not all(values)):
        raise ModelError(f"{NAME}: {key} is {value!r:.100}, expected {channels} numbers{', none of them 0' * (key == 'image_std')}")
    return np.array(values, dtype=np.float32)


def open_image(path: Path, channels: int) -> Image.Image:
    """Return the image in a file, turned as its camera says, in RGB (3 channels) or gray (1). Raises InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about sizes that are refused below
            content = path.read_bytes()  # from a file Pillow would ask for as many bytes as a chunk says that it has
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                limit = min(PIXEL_LIMIT, max(UNPACKED, TIMES * len(content)))
                if image.width * image.height > limit:
                    of = "" if limit == PIXEL_LIMIT else " for a file of its size"
                    raise InputError(f"image {path} has {image.width} x {image.height} pixels, more than the limit of {limit}{of}")
                return ImageOps.exif_transpose(image).convert(modes(channels))
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every kind
        raise InputError(f"image {path} cannot be read: {shown(error)}") from None


def modes(channels: int) -> str:
    """Return Pillow's name for images of this many channels. Raises InputError."""
    names = {1: "L", 3: "RGB"}
    if channels not in names:
        raise InputError(f"the model takes images of {channels} channels; give a .npz file with pixel_values instead")
    return names[channels]


def pixel_values(steps: Preprocessor, image: Image.Image) -> np.ndarray:
    """Return float32 [channels, height, width]."""
    if steps.size is not None:
        height, width = resized(steps.size, image.height, image.width)
        image = image.resize((width, height), resample=Image.Resampling(steps.resample))
    pixels = np.asarray(image)  # [height, width] or [height, width, channels], uint8
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if steps.crop is not None:
        pixels = center_crop(pixels, *steps.crop)
    values = pixels.astype(np.float32)
    if steps.scale is not None:
        values = (pixels.astype(np.float64) * steps.scale).astype(np.float32)
    if steps.mean is not None and steps.deviation is not None:
        values = (values - steps.mean) / steps.deviation
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def resized(size: tuple[int, int] | int, height: int, width: int) -> tuple[int, int]:
    """Return (height, width) after resizing; a shortest edge keeps the proportions. Raises InputError."""
    if isinstance(size, tuple):
        return size
    longest = int(size * max(height, width) / min(height, width))
    if longest > 8 * SIDE_LIMIT:
        raise InputError(f"an image of {width} x {height} pixels is too long to be resized to a shortest edge of {size}")
    return (longest, size) if width <= height else (size, longest)


def center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the middle of `pixels` [h, w, channels] as [height, width, channels], with zeros where it is too small.

    Where the odd pixel goes follows center_crop of transformers.
    """
    rows, columns = pixels.shape[:2]
    above, before = max(0, math.ceil((height - rows) / 2)), max(0, math.ceil((width - columns) / 2))
    below, after = max(0, height - rows - above), max(0, width - columns - before)
    top, left = (rows - height) // 2 + above, (columns - width) // 2 + before
    padded = np.pad(pixels, ((above, below), (before, after), (0, 0)))
    return padded[top : top + height, left : left + width]


def built_in_images(channels: int) -> list[Image.Image]:
    """Return a colour gradient and a checkerboard of 64 x 48 pixels."""
    y, x = np.mgrid[0:48, 0:64]
    gradient = np.stack([x * 4, y * 5, 255 - x * 2 - y * 2], axis=-1)
    board = np.repeat(((x // 8 + y // 8) % 2 * 255)[:, :, None], 3, axis=2)
    return [Image.fromarray(pixels.astype(np.uint8)).convert(modes(channels)) for pixels in (gradient, board)]
