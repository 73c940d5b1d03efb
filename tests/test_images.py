"""Which files are pictures and how they are opened: as Pillow converts them, or refused where that would lose something."""

import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from hepti_mpi.errors import InputError
from hepti_mpi.models.inputs.images import find_pictures, formats, open_image

PIXELS = np.random.default_rng(3).integers(0, 256, (11, 14, 3)).astype(np.uint8)


def as_pillow(path):
    """The picture in RGB, as load_image of transformers converts it: [height, width, 3]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def in_rgb(path):
    return np.asarray(open_image(path, 3).convert("RGB"))


def writable():
    """Every mode in every format that Pillow can write it in."""
    for suffix in ("png", "jpg", "tif", "gif", "webp", "bmp", "avif", "jp2", "ppm", "tga", "ico", "pcx", "sgi"):
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                Image.fromarray(PIXELS).convert(mode).save(io.BytesIO(), format=Image.registered_extensions()[f".{suffix}"])
                yield suffix, mode


@pytest.mark.parametrize("suffix, mode", list(writable()))
def test_every_mode_of_every_format(tmp_path, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(PIXELS).convert(mode).save(path)
    np.testing.assert_array_equal(in_rgb(path), as_pillow(path))
    renamed = path.rename(tmp_path / "picture")
    np.testing.assert_array_equal(in_rgb(renamed), as_pillow(renamed))


@pytest.mark.parametrize("way", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_turned_as_the_camera_says(tmp_path, way, suffix):
    exif = Image.Exif()
    exif[0x0112] = way
    for mode in ("RGB", "L"):
        Image.fromarray(PIXELS).convert(mode).save(tmp_path / f"a.{suffix}", exif=exif)
        np.testing.assert_array_equal(in_rgb(tmp_path / f"a.{suffix}"), as_pillow(tmp_path / f"a.{suffix}"))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_the_first_of_moving_pictures(tmp_path, suffix):
    first, *rest = (Image.fromarray(np.roll(PIXELS, shift)) for shift in range(3))
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=rest)
    np.testing.assert_array_equal(in_rgb(tmp_path / f"a.{suffix}"), as_pillow(tmp_path / f"a.{suffix}"))


def test_transparency_does_not_count(tmp_path):
    clear = Image.fromarray(PIXELS).quantize(16)
    clear.save(tmp_path / "a.png", transparency=3)
    np.testing.assert_array_equal(in_rgb(tmp_path / "a.png"), as_pillow(tmp_path / "a.png"))


DEEP = [
    ("png", PIXELS[:, :, 0].astype(np.uint16), None),
    ("png", PIXELS[:, :, 0].astype(np.uint16) * 257, r"has gray values from \d+ to \d{5}, and whole ones from 0 to 255 are taken; save"),
    ("tif", PIXELS[:, :, 0].astype(np.uint16) * 257, "gray values from"),
    ("tif", PIXELS[:, :, 0].astype(np.int32) - 300, r"gray values from -\d+ to"),
    ("tif", PIXELS[:, :, 0].astype(np.float32), None),
    ("tif", PIXELS[:, :, 0].astype(np.float32) / 255, r"gray values from 0\.0\d+ to 0\.\d+, and whole ones from 0 to 255 are taken"),
    ("pgm", PIXELS[:, :, 0].astype(np.uint16) * 257, "gray values from"),
]


@pytest.mark.parametrize("suffix, values, words", DEEP, ids=lambda v: str(v)[:20])
@pytest.mark.parametrize("channels", [1, 3])
def test_more_than_8_bits_of_gray(tmp_path, suffix, values, words, channels):
    path = tmp_path / f"a.{suffix}"
    values = values.copy()
    values[0, :2] = values.min(), values.max()
    Image.fromarray(values).save(path)
    if words is None:
        np.testing.assert_array_equal(np.asarray(open_image(path, channels)), values)
        np.testing.assert_array_equal(in_rgb(path), as_pillow(path))
    else:
        with pytest.raises(InputError, match=words):
            open_image(path, channels)


def png(width, height, bits, colours, rows, *more):
    """A PNG of rows as they are packed in one; `colours`: 0 gray, 2 RGB, 6 RGBA; `more` chunks before them, each a name and its data."""
    head = b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    chunks = [head, *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_16_bits_of_colour(tmp_path):
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in PIXELS)
    (tmp_path / "a.png").write_bytes(png(14, 11, 16, 2, rows))
    np.testing.assert_array_equal(in_rgb(tmp_path / "a.png"), PIXELS)


def test_no_gray_of_16_bits_is_transparent(tmp_path):
    """Pillow tells which one is said to be, and on its way to RGB and RGBA makes none so."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in PIXELS[:, :, 0])
    (tmp_path / "a.png").write_bytes(png(14, 11, 16, 0, rows, (b"tRNS", struct.pack(">H", PIXELS[3, 4, 0]))))
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(image.convert("RGB").convert("RGBA"))[:, :, 3].min() == 255 and "transparency" in image.info
    assert "transparency" not in open_image(tmp_path / "a.png", 3).info


def test_gray_models_take_gray_pictures(tmp_path):
    gray = Image.fromarray(PIXELS).convert("L")
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        gray.convert(mode).save(tmp_path / "a.png")
        np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.png", 1)), np.asarray(gray.convert(mode).convert("L")))
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="a.png has colours, the model takes gray pictures; save it in gray first"):
        open_image(tmp_path / "a.png", 1)


def test_a_folder_of_photos(tmp_path):
    picture = Image.fromarray(PIXELS)
    for name in ("b.JPG", "a.jpeg", "c.tiff", "d.Gif", "noname.png"):
        picture.save(tmp_path / name, "JPEG" if name.endswith("png") else None)
    (tmp_path / "noname.png").rename(tmp_path / "noname")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    (tmp_path / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    for name, content in ((".DS_Store", b"x"), (".hidden.png", b"x"), ("Thumbs.db", b"\xd0\xcf\x11\xe0"), ("Python.txt", b"Python is")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "more.png").mkdir()
    for name in ("gone.png", "gone.txt"):
        (tmp_path / name).symlink_to("/no/such.png")
    taken, others = find_pictures(tmp_path)
    assert [path.name for path in taken] == ["a.jpeg", "b.JPG", "broken.png", "c.tiff", "d.Gif", "gone.png", "noname", "phone.HEIC"]
    assert [path.name for path in others] == ["Python.txt", "Thumbs.db", "gone.txt", "more.png"]
    with pytest.raises(InputError, match="^image gone.png cannot be read: it is a link to /no/such.png, where nothing is"):
        open_image(tmp_path / "gone.png", 3)


def test_programs_are_not_started_for_a_picture(tmp_path):
    assert not {"EPS", "WMF"} & set(formats())
    Image.fromarray(PIXELS).save(tmp_path / "a.eps")
    with pytest.raises(InputError, match="^image a.eps is no picture that can be read"):
        open_image(tmp_path / "a.eps", 3)


def test_a_scanned_page_is_taken(tmp_path):
    (tmp_path / "page.png").write_bytes(png(4960, 7016, 1, 0, (b"\0" + b"\xff" * 620) * 7016))  # A4 at 600 dots an inch
    page = open_image(tmp_path / "page.png", 3)
    assert (page.size, page.mode, page.getextrema()) == ((4960, 7016), "L", (255, 255))


@pytest.mark.parametrize("side, colours", [(10000, 0), (7000, 2), (5000, 6)])
def test_bombs_are_not_taken(tmp_path, side, colours):
    (tmp_path / "bomb.png").write_bytes(png(side, side, 8, colours, b""))
    with pytest.raises(InputError, match=f"^image bomb.png has {side} x {side} pixels, more than the limit of .* for a file of its size"):
        open_image(tmp_path / "bomb.png", 3)
    (tmp_path / "bomb.png").write_bytes(png(20000, 20000, 8, colours, b""))
    with pytest.raises(InputError, match="bomb.png cannot be read: .*400000000 pixels"):
        open_image(tmp_path / "bomb.png", 3)
