"""Pictures: which files are pictures, how they are opened, and their pixel values. The only user of Pillow.

Opens as load_image of transformers does and follows the image processors of its PIL backend, step by step as preprocessors.py
gives them. Knows no model and no request.
"""

import io
import math
import os
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hepti_mpi.errors import InputError, dead_link, reason_of
from hepti_mpi.models.inputs.heldout import pictures
from hepti_mpi.models.inputs.preprocessors import SIDE_LIMIT, Preprocessor
from hepti_mpi.models.untrusted import shown

CLOSED = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}  # Pillow has no decoder of its own for these, or starts another program
ELSEWHERE = (".heic", ".heif", ".jxl", ".svg")  # pictures too, though Pillow reads none of them
TAKEN = "the model takes pictures: one, a folder of them, or .npz with pixel_values"
PIXEL_LIMIT = Image.MAX_IMAGE_PIXELS = 1 << 27  # pixels of one picture
UNPACKED, TIMES = 176 << 20, 400  # bytes that any file may unpack to (a page of 600 dots an inch does), and for each of its bytes
HELD = {"1": 2, "L": 2, "RGB": 4, "P": 5}  # bytes of memory for a pixel, by Pillow's mode; 8 in others
GRAY = ("1", "L", "LA")
DEEP = ("I", "F")  # beginnings of the modes with more than 8 bits


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are read."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in CLOSED)


def suffixes() -> tuple[str, ...]:
    """Return the endings, in lower case, of files that are taken for pictures whatever they hold."""
    return (*(suffix for suffix, name in Image.registered_extensions().items() if name in formats()), *ELSEWHERE)


def find_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files in a folder that are pictures, by their ending or else their content, and what else is there, both by name.

    What is hidden is left out of both. Raises InputError when the folder cannot be read.
    """
    try:
        seen = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {reason_of(error)}") from None
    known = suffixes()
    files = [path for path in seen if os.path.isfile(path) or dead_link(path)]  # such a link is a picture that cannot be read
    taken = [path for path in files if (path.suffix.lower() in known or is_picture(path))]
    chosen = set(taken)
    return taken, [path for path in seen if path not in chosen]


def check_kind(path: Path) -> None:
    """Raise InputError when a file is not even called a picture, such as one of texts."""
    if path.suffix.lower() not in suffixes() and not is_picture(path):
        raise InputError(f"input {path} is no picture that can be read; {TAKEN}")


def is_picture(path: Path) -> bool:
    """Tell whether a file begins as a picture does and has its header. Never raises."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
        accepted = (Image.OPEN[name][1] for name in formats())
        if not any(accepts(start) is True for accepts in accepted if accepts is not None):
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(path.read_bytes()), formats=formats()):
                return True
    except Exception:  # Pillow's decoders raise nearly every kind
        return False


def open_image(path: Path, channels: int) -> Image.Image:
    """Return the picture in a file, as `picture` does. Raises InputError."""
    try:
        content = path.read_bytes()  # from a file Pillow would ask for as many bytes as a chunk says that it has
    except OSError as error:
        raise InputError(f"image {path.name} cannot be read: {shown(reason_of(error))}") from None
    return picture(content, f"image {path.name}", channels)


def picture(content: bytes, name: str, channels: int) -> Image.Image:
    """Return a picture, the first if it moves, turned as its camera says, in RGB or, if it has no colours, in gray.

    A model of 1 channel takes only the latter. Raises InputError, in which the picture is called `name`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # of a picture in a picture; outer ones are refused below
            with Image.open(io.BytesIO(content), formats=formats()) as image:
                check_size(name, image, len(content))
                ImageOps.exif_transpose(image, in_place=True)
                return plain(name, image, channels)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{name} is no picture that can be read; save it as PNG or JPEG") from None
    except Exception as error:  # Pillow's decoders raise nearly every kind
        raise InputError(f"{name} cannot be read: {shown(error)}") from None


def check_size(name: str, image: Image.Image, size: int) -> None:
    """Raise InputError when a picture, in a file of `size` bytes, would unpack to more than can be meant."""
    pixels, each = image.width * image.height, HELD.get(image.mode, 8)
    limit = min(PIXEL_LIMIT, max(UNPACKED, TIMES * size) // each)
    if pixels > limit:
        of = "" if limit == PIXEL_LIMIT else " for a file of its size"
        raise InputError(f"{name} has {image.width} x {image.height} pixels, more than the limit of {limit}{of}")


def plain(name: str, image: Image.Image, channels: int) -> Image.Image:
    """Return a picture in mode RGB, or L if it has no colours. Raises InputError where that would lose what is in it."""
    if image.mode.startswith(DEEP):
        gray, values = image.convert("L"), np.asarray(image)
        if not np.array_equal(values, np.asarray(gray)):
            least, most, taken = values.min(), values.max(), "and whole ones from 0 to 255 are taken; save it with 8 bits first"
            raise InputError(f"{name} has gray values from {least:g} to {most:g}, {taken}")
        gray.info.pop("transparency", None)  # which Pillow forgets on its way from more than 8 bits to RGB
        return gray
    if image.mode in GRAY:
        return image if image.mode == "L" else image.convert("L")
    image = image.convert("RGB")
    if channels == 1:
        red, green, blue = (np.asarray(band) for band in image.split())
        if not (np.array_equal(red, green) and np.array_equal(red, blue)):
            raise InputError(f"{name} has colours, the model takes gray pictures; save it in gray first")
        return image.convert("L")
    return image


def modes(channels: int) -> str:
    """Return Pillow's name for pictures of this many channels. Raises InputError."""
    names = {1: "L", 3: "RGB"}
    if channels not in names:
        raise InputError(f"the model takes images of {channels} channels; give a .npz file with pixel_values instead")
    return names[channels]


def pixel_values(steps: Preprocessor, image: Image.Image) -> np.ndarray:
    """Return float32 [channels, height, width] of a picture as open_image returns them. Raises InputError."""
    image = on_white(image) if steps.on_white else image
    if steps.size is not None:
        height, width = resized(steps, image.height, image.width)
        image = image.resize((width, height), resample=Image.Resampling(steps.resample))
    pixels = np.asarray(image)  # [height, width] or [height, width, channels], uint8
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    for crop in steps.crops:
        pixels = center_crop(pixels, *crop)
    rows, columns = pixels.shape[:2]
    if max(rows, columns) > SIDE_LIMIT:
        raise InputError(f"a picture of {columns} x {rows} pixels is larger than any model takes; resize it")
    values = np.broadcast_to(pixels, (rows, columns, steps.channels)).astype(np.float32)
    if steps.scale is not None:
        values = (values.astype(np.float64) * steps.scale).astype(np.float32) - np.float32(steps.offset)
    for mean, deviation in steps.norms:
        values = (values - mean) / deviation
    return np.ascontiguousarray(padded(steps, values).transpose(2, 0, 1))


def on_white(image: Image.Image) -> Image.Image:
    """Return a picture on a white ground, where a colour of it stands for transparent (of GIF and PNG files; others have lost theirs).

    Source: transformers, image_transforms.convert_to_rgb, after load_image.
    """
    if image.info.get("transparency") is None:
        return image
    seen = image.convert("RGB").convert("RGBA")  # by way of the colour, which several places of a palette may have
    return Image.alpha_composite(Image.new("RGBA", seen.size, (255, 255, 255, 255)), seen).convert("RGB")


def padded(steps: Preprocessor, values: np.ndarray) -> np.ndarray:
    """Return `values` [height, width, channels] with zeros below and to the right. Raises InputError."""
    if steps.pad is None:
        return values
    rows, columns = values.shape[:2]
    below, after = steps.pad[0] - rows, steps.pad[1] - columns
    if below < 0 or after < 0:
        raise InputError(f"a picture of {columns} x {rows} pixels is larger than the pad_size of {steps.pad[1]} x {steps.pad[0]}")
    return np.pad(values, ((0, below), (0, after), (0, 0)))


def resized(steps: Preprocessor, height: int, width: int) -> tuple[int, int]:
    """Return (height, width) after resizing; a shortest edge keeps the proportions. Raises InputError."""
    if isinstance(steps.size, tuple):
        return steps.size
    assert steps.size is not None
    short, long = min(height, width), max(height, width)
    exact = float(steps.size)
    if steps.longest is not None and long / short * exact > steps.longest:
        exact = steps.longest * short / long
    less, more = max(1, round(exact)), int(exact * long / short)
    if more > 8 * SIDE_LIMIT:
        raise InputError(f"a picture of {width} x {height} pixels is too long to be resized to a shortest edge of {steps.size}")
    return (more, less) if width <= height else (less, more)


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


def held_out_images(channels: int) -> list[Image.Image]:
    """Return built-in pictures that are no others."""
    return [Image.fromarray(pixels).convert(modes(channels)) for pixels in pictures()]
