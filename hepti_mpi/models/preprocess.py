"""From what the user gives (text, images, arrays) to requests. Knows the input files and what a model accepts; knows no weight.

Sources: None (built-in inputs), "-" (standard input, a text per line), a .txt or .jsonl file, an image, a folder of images, or a
.npz file with input_ids or pixel_values.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from hepti_mpi.errors import InputError, ModelError
from hepti_mpi.models.arrays import read_npz
from hepti_mpi.models.images import NAME, SUFFIXES, Preprocessor, built_in_images, modes, open_image, pixel_values, read_preprocessor
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.models.tokens import Tokens
from hepti_mpi.models.untrusted import is_file, parse_json

TEXT_LIMIT = 1 << 28  # bytes of one text file
SENTENCES = (
    "the cat sat on the mat",
    "a small boat crossed the wide river at night",
    "good morning",
    "how many people live in the old town?",
    "she opened the book and began to read",
    "the train to the north leaves at seven",
    "water boils at one hundred degrees",
    "after the rain, the children ran out into the garden and played until it was dark",
)
MASKED_SENTENCES = (
    "the cat sat on the {}",
    "a small {} crossed the wide river at night",
    "good {}",
    "how many {} live in the old town?",
    "she opened the {} and began to read",
    "the train to the {} leaves at seven",
    "{} boils at one hundred degrees",
    "after the rain, the {} ran out into the garden and played until it was dark",
)


@dataclass(frozen=True)
class Request:
    """One input, ready to be embedded.

    `index`: its place in the input. `origin`: where it came from, such as "line 3 of x.txt".
    `arrays`: "ids", "types" and "positions", int64 [rows]; or "patches", float32 [rows, channels * patch * patch], with zeros in
    row 0 for the class token, and "positions". `keep`: int64 [rows], where each row lies among the `width` positions of the
    padded input. `text`: the text it was made from, if it was.
    """

    index: int
    origin: str
    arrays: dict[str, np.ndarray] = field(repr=False)
    keep: np.ndarray = field(repr=False)
    width: int
    text: str | None = None

    @property
    def rows(self) -> int:
        return len(self.keep)


def read_requests(spec: ModelSpec, files: Mapping[str, bytes], source: str | None, stdin: IO[Any] | None = None) -> list[Request]:
    """Return the requests in `source`, in order; at least one.

    Raises InputError, naming the line, image or array, when an input cannot be answered by this model, and ModelError when its
    tokenizer.json or preprocessor_config.json is damaged.
    """
    path = None if source is None or source == "-" else Path(source)
    if path is not None and not os.path.exists(path):
        raise InputError(f"input {path} not found")
    if path is not None and path.suffix.lower() == ".npz":
        return array_requests(spec, path)
    if spec.embedding == "patches":
        if source == "-":
            raise InputError("an image model does not read standard input; give an image, a folder of images or a .npz file")
        return image_requests(spec, files, source)
    if path is None:
        lines = None if source is None else split_lines(read_stream(stdin), "standard input", json_lines=False)
    elif path.suffix.lower() in (".txt", ".jsonl") and is_file(path):
        lines = split_lines(read_file(path), path.name, path.suffix.lower() == ".jsonl")
    else:
        raise InputError(f"input {path} is not supported by a text model; supported: .txt, .jsonl, .npz, or - for standard input")
    return text_requests(spec, files, lines)


# ---- text


def read_file(path: Path) -> bytes:
    """Return the contents of a text file. Raises InputError."""
    try:
        with path.open("rb") as file:
            data = file.read(TEXT_LIMIT + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > TEXT_LIMIT:
        raise InputError(f"{path} is larger than {TEXT_LIMIT >> 20} MiB; give it in parts")
    return data


def read_stream(stdin: IO[Any] | None) -> bytes:
    """Return everything on a text or binary stream. Raises InputError."""
    try:
        data = b"" if stdin is None else stdin.read(TEXT_LIMIT + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"standard input cannot be read: {error}") from None
    data = data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape")
    if len(data) > TEXT_LIMIT:
        raise InputError(f"standard input is larger than {TEXT_LIMIT >> 20} MiB; give it in parts")
    return data


def split_lines(data: bytes, name: str, json_lines: bool) -> list[tuple[str, str]]:
    """Return (origin, text) of every line. Raises InputError for a line without text."""
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1].strip():
        lines.pop()  # what follows the last line end
    if not lines:
        raise InputError(f"{name} is empty; expected a text per line")
    found = []
    for number, line in enumerate(lines, 1):
        where = f"line {number} of {name}"
        try:
            text = line.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            raise InputError(f"{where} is not UTF-8: byte {error.start + 1} is {line[error.start]:#04x}") from None
        text = json_text(text, where) if json_lines else text
        if not text.strip():
            raise InputError(f"{where} is empty")
        found.append((where, text))
    return found


def json_text(line: str, where: str) -> str:
    """Return the text of a JSON string, or of an object with "text". Raises InputError."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is not valid JSON") from None
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise InputError(f'{where} is neither an object with a "text" nor a JSON string')
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate is legal JSON but no text


def built_in_texts(spec: ModelSpec, tokens: Tokens) -> list[tuple[str, str]]:
    """Return (origin, text) of the built-in sentences, each with a mask for a model that fills masks."""
    masked = spec.head == "masked-words" and tokens.mask_token is not None
    texts = [text.format(tokens.mask_token) for text in MASKED_SENTENCES] if masked else SENTENCES
    return [(f"built-in sentence {number}", text) for number, text in enumerate(texts, 1)]


def text_requests(spec: ModelSpec, files: Mapping[str, bytes], lines: list[tuple[str, str]] | None) -> list[Request]:
    """Return one request per (origin, text); None stands for the built-in sentences. Raises InputError."""
    tokens = Tokens(files)
    limit = spec.options.get("max_tokens")  # sentence-transformers cuts long texts off, others do not
    if limit:
        tokens.truncate(limit)
    requests = []
    for index, (origin, text) in enumerate(built_in_texts(spec, tokens) if lines is None else lines):
        full = spec.options.get("prompt", "") + text
        ids, types = tokens.encode(full.lower() if spec.options.get("lower_case") else full, origin)
        if not ids:
            raise InputError(f"{origin} has no tokens")
        if len(ids) > spec.positions:
            raise InputError(f"{origin} has {len(ids)} tokens, the model takes {spec.positions}; shorten it")
        for what, largest, count in (("token id", max(ids), "vocabulary"), ("token type", max(types), "types")):
            if largest >= spec.options[count]:
                raise ModelError(f"tokenizer.json gives {what} {largest} for {origin}, the model has {spec.options[count]}")
        requests.append(token_request(index, origin, np.array(ids), np.array(types), np.arange(len(ids)), len(ids), text))
    return requests


def token_request(
    index: int, origin: str, ids: np.ndarray, types: np.ndarray, keep: np.ndarray, width: int, text: str | None = None
) -> Request:
    """Return the request of token rows that lie at `keep` among `width` positions; all [rows]."""
    arrays = {"ids": ids.astype(np.int64), "types": types.astype(np.int64), "positions": keep.astype(np.int64)}
    return Request(index, origin, arrays, keep.astype(np.int64), width, text)


# ---- images


def image_requests(spec: ModelSpec, files: Mapping[str, bytes], source: str | None) -> list[Request]:
    """Return a request per image in a file or folder; None stands for the built-in images. Raises InputError."""
    if NAME not in files:
        raise InputError(f"the model has no {NAME}, so it takes no images; give a .npz file with pixel_values instead")
    channels = spec.options["channels"]
    modes(channels)  # refuses channels that are no image before any image is opened
    steps = read_preprocessor(parse_json(files[NAME], NAME), channels)
    if source is None:
        built_in = enumerate(built_in_images(channels))
        return [checked(spec, steps, i, f"built-in image {i + 1}", pixel_values(steps, image)) for i, image in built_in]
    paths = enumerate(image_paths(Path(source)))
    return [checked(spec, steps, i, f"image {path.name}", pixel_values(steps, open_image(path, channels))) for i, path in paths]


def image_paths(path: Path) -> list[Path]:
    """Return the image files at `path`, a file or a folder, sorted by name. Raises InputError."""
    kinds = ", ".join(SUFFIXES)
    if os.path.isdir(path):
        try:
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and is_file(p))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        if not found:
            raise InputError(f"folder {path} holds no images; supported: {kinds}")
        return found
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"input {path} is not supported by an image model; supported: {kinds}, a folder of these, .npz")
    return [path]


def checked(spec: ModelSpec, steps: Preprocessor, index: int, origin: str, pixels: np.ndarray) -> Request:
    """Return the request of preprocessed pixels [channels, height, width]. Raises InputError when the size is not the model's."""
    side = spec.options["image_size"]
    if pixels.shape[1:] != (side, side):
        hint = "set size or crop_size there to the model's" if steps.size or steps.crop else "resize it"
        raise InputError(f"{origin} is {pixels.shape[1]} x {pixels.shape[2]} after {NAME}, the model takes {side} x {side}; {hint}")
    return pixel_request(spec, index, origin, pixels)


def pixel_request(spec: ModelSpec, index: int, origin: str, pixels: np.ndarray) -> Request:
    """Return the request of pixel values [channels, side, side]."""
    channels, patch = spec.options["channels"], spec.options["patch_size"]
    grid = spec.options["image_size"] // patch
    inner = pixels[:, : grid * patch, : grid * patch].reshape(channels, grid, patch, grid, patch)
    patches = np.zeros((spec.positions, channels * patch * patch), np.float32)  # [1 + grid * grid, channels * patch * patch]
    patches[1:] = inner.transpose(1, 3, 0, 2, 4).reshape(grid * grid, -1)  # in the order of the convolution kernel
    positions = np.arange(spec.positions, dtype=np.int64)
    return Request(index, origin, {"patches": patches, "positions": positions}, positions, spec.positions)


# ---- arrays


def array_requests(spec: ModelSpec, path: Path) -> list[Request]:
    """Return a request per row of the arrays in a .npz file. Raises InputError."""
    if spec.embedding == "patches":
        pixels = read_npz(path, ("pixel_values",))["pixel_values"]
        side, channels = spec.options["image_size"], spec.options["channels"]
        if pixels.dtype.kind != "f" or pixels.ndim != 4 or pixels.shape[1:] != (channels, side, side) or not len(pixels):
            expected = f"floats of shape [images, {channels}, {side}, {side}]"
            raise InputError(f"{path}: pixel_values is {pixels.dtype} of shape {list(pixels.shape)}, the model takes {expected}")
        with np.errstate(over="ignore"):
            pixels = pixels.astype(np.float32)
        if not np.isfinite(pixels).all():
            raise InputError(f"{path}: pixel_values holds values that are not finite in float32")
        return [pixel_request(spec, i, f"array {i + 1} of {path.name}", one) for i, one in enumerate(pixels)]
    return list(token_rows(spec, path))


def token_rows(spec: ModelSpec, path: Path) -> Iterator[Request]:
    """Yield a request per row of input_ids, without the positions that attention_mask leaves out. Raises InputError."""
    found = read_npz(path, ("input_ids", "attention_mask", "token_type_ids"))
    if "input_ids" not in found:
        raise InputError(f"{path} has no input_ids, only {', '.join(found)}")
    ids = found["input_ids"]
    mask, types = found.get("attention_mask", np.ones_like(ids)), found.get("token_type_ids", np.zeros_like(ids))
    for name, array, kinds in (("input_ids", ids, "iu"), ("attention_mask", mask, "iub"), ("token_type_ids", types, "iu")):
        if array.dtype.kind not in kinds or array.ndim != 2 or array.shape != ids.shape or not array.size:
            shape = "[inputs, positions]" if name == "input_ids" else str(list(ids.shape))
            raise InputError(f"{path}: {name} is {array.dtype} of shape {list(array.shape)}, expected integers of shape {shape}")
    width = ids.shape[1]
    if width > spec.positions:
        raise InputError(f"{path}: input_ids has {width} positions, the model takes {spec.positions}")
    if not np.isin(mask, (0, 1)).all():
        raise InputError(f"{path}: attention_mask holds numbers other than 0 and 1")
    first = spec.head == "sequence-classes" or spec.options.get("pooling") == "cls"
    for index in range(len(ids)):
        origin, keep = f"array {index + 1} of {path.name}", np.flatnonzero(mask[index])
        if not len(keep):
            raise InputError(f"{origin}: attention_mask leaves no position")
        if first and keep[0]:
            raise InputError(f"{origin}: attention_mask leaves out position 0, which the head of this model reads")
        for name, row, size in (("input_ids", ids[index, keep], "vocabulary"), ("token_type_ids", types[index, keep], "types")):
            if row.min() < 0 or row.max() >= spec.options[size]:
                odd = int(row.min() if row.min() < 0 else row.max())
                raise InputError(f"{origin}: {name} holds {odd}, the model takes 0 to {spec.options[size] - 1}")
        yield token_request(index, origin, ids[index, keep], types[index, keep], keep, width)
