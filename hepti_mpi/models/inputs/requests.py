"""From what the user gives (text, images, arrays) to requests. Knows what a model accepts; knows no weight, nor how texts lie in files.

Sources: None (built-in inputs), "-" (standard input), a file of texts (text.py), an image, a folder of images, or a .npz file
with input_ids or pixel_values. An input that cannot be answered becomes a request that says why. What opens images is imported where there
are some: Pillow takes longer to import than a few texts to answer.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.models.inputs.arrays import check_positions, read_npz
from hepti_mpi.models.inputs.heldout import TEXTS, masked
from hepti_mpi.models.inputs.passages import PASSAGES
from hepti_mpi.models.inputs.preprocessors import NAME, Preprocessor, read_preprocessor
from hepti_mpi.models.inputs.text import Item, Reading, read_texts
from hepti_mpi.models.inputs.tokens import Encoded, Tokens
from hepti_mpi.models.numerics import last_other
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.models.untrusted import check_there, shown
from hepti_mpi.wording import counted

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
    padded input. `text`, `pair`, `id`: as in inputs.Item. `truncated`: whether tokens were cut off, because the checkpoint says so.
    `added`: bool [rows], the tokens that are not of the text but were put around it. `unknown`: by row, what the text says where the
    tokenizer knows no token, as inputs.Encoded. `error`: why it cannot be answered; then it has
    no rows.
    """

    index: int
    origin: str
    arrays: dict[str, np.ndarray] = field(repr=False)
    keep: np.ndarray = field(repr=False)
    width: int
    text: str | None = None
    pair: str | None = None
    id: Any = None
    truncated: bool = False
    added: np.ndarray | None = field(default=None, repr=False)
    unknown: dict[int, str] = field(default_factory=dict, repr=False)
    error: str | None = None

    @property
    def rows(self) -> int:
        return len(self.keep)

    @property
    def given(self) -> dict[str, Any]:
        """What was given, for its record: {"id"} if it has one, and {"input"}, its text, both texts of a pair, or where it came from."""
        both = self.text if self.pair is None else [self.text, self.pair]
        return ({} if self.id is None else {"id": self.id}) | {"input": self.origin if self.text is None else both}


def end_to_end(requests: Sequence[Request]) -> dict[str, np.ndarray]:
    """Return the arrays of requests, which have the same ones, [rows of all, ...]."""
    return {name: np.concatenate([request.arrays[name] for request in requests]) for name in requests[0].arrays}


def read_requests(
    spec: ModelSpec, files: Mapping[str, bytes], source: str | None, stdin: IO[Any] | None = None, reading: Reading | None = None
) -> list[Request]:
    """Return the requests in `source`, in order; at least one. Those that this model cannot answer have an `error`.

    Raises InputError when nothing can be read or, where `reading` is strict, naming the first line, image or array that cannot be
    answered, and ModelError when its tokenizer.json or preprocessor_config.json is damaged.
    """
    if spec.generates:
        raise InputError(f"model {spec.name} generates text; give it prompts with: python -m hepti_mpi run")
    reading = reading or Reading()
    path = None if source is None or source == "-" else Path(source)
    if path is not None:
        check_there(path)
    if (reading.field or reading.pair) and (spec.embedding == "patches" or source is None or path and path.suffix.lower() == ".npz"):
        raise InputError("--field and --pair are for texts in .jsonl, .csv and .tsv files")
    if path is not None and path.suffix.lower() == ".npz":
        return array_requests(spec, path, reading.strict)
    if spec.embedding == "patches":
        if source == "-":
            from hepti_mpi.models.inputs.images import TAKEN

            raise InputError(f"pictures are not read from standard input; {TAKEN}")
        return image_requests(spec, files, source, reading.strict)
    return text_requests(spec, files, None if source is None else read_texts(source, stdin, reading), reading.strict)


def held_out_requests(spec: ModelSpec, files: Mapping[str, bytes]) -> list[Request]:
    """Return requests of built-in inputs that are none of the others. Raises InputError."""
    if spec.embedding == "patches":
        return image_requests(spec, files, None, False, held_out=True)
    mask = text_tokens(spec, files).mask_token if spec.head == "masked-words" else None
    texts = TEXTS if mask is None else [masked(text, mask) for text in TEXTS]
    return text_requests(spec, files, [Item(f"held-out text {number}", text) for number, text in enumerate(texts, 1)], False)


def each_request(items: Iterable[tuple[Item, Callable[[int], Request]]], strict: bool) -> list[Request]:
    """Return the request of each item, which its call makes of its index, or one with the error where that raises an InputError.

    Raises InputError for the first of these when `strict`.
    """
    requests = []
    for index, (item, make) in enumerate(items):
        try:
            if item.error is not None:
                raise InputError(item.error)
            requests.append(make(index))
        except InputError as error:
            if strict:
                raise
            nothing = Request(index, item.origin, {}, np.zeros(0, np.int64), 0, error=str(error))
            requests.append(replace(nothing, text=item.text, pair=item.pair, id=item.id))
    return requests


# ---- text


def passage_requests(spec: ModelSpec, files: Mapping[str, bytes]) -> list[Request]:
    """Return requests of texts of many kinds, for a model that writes texts. Raises InputError."""
    return text_requests(spec, files, [Item(f"built-in text {number}", text) for number, text in enumerate(PASSAGES, 1)], False)


def built_in_texts(spec: ModelSpec, tokens: Tokens) -> list[Item]:
    """Return the built-in sentences, each with a mask for a model that fills masks."""
    masked = spec.head == "masked-words" and tokens.mask_token is not None
    texts = [text.format(tokens.mask_token) for text in MASKED_SENTENCES] if masked else SENTENCES
    return [Item(f"built-in sentence {number}", text) for number, text in enumerate(texts, 1)]


def text_requests(spec: ModelSpec, files: Mapping[str, bytes], items: Sequence[Item] | None, strict: bool) -> list[Request]:
    """Return one request per item; None stands for the built-in sentences. Raises InputError."""
    tokens = text_tokens(spec, files)
    items = built_in_texts(spec, tokens) if items is None else items
    return each_request(((item, partial(text_request, spec, tokens, item)) for item in items), strict)


def text_tokens(spec: ModelSpec, files: Mapping[str, bytes]) -> Tokens:
    """Return the tokenizer as this model's texts go through it. Raises ModelError, and InputError for a model without one."""
    tokens = Tokens(files)
    limit = spec.options.get("max_tokens")  # sentence-transformers cuts long texts off, others do not
    if limit:
        tokens.truncate(limit)
    if spec.options.get("lower_case"):
        tokens.lower_case()
    return tokens


def text_request(spec: ModelSpec, tokens: Tokens, item: Item, index: int) -> Request:
    """Return the request of a text or pair of texts. Raises InputError when the model does not take it."""
    return _encoded_request(spec, item, index, tokens.encode(_said(spec, item), item.origin))


def many_text_requests(spec: ModelSpec, tokens: Tokens, items: Sequence[Item]) -> list[Request]:
    """Return what `text_request` returns of each item. Raises InputError for the first that the model does not take."""
    encoded = tokens.encode_all([_said(spec, item) for item in items], [item.origin for item in items])
    return [_encoded_request(spec, item, index, one) for index, (item, one) in enumerate(zip(items, encoded))]


def _said(spec: ModelSpec, item: Item) -> list[str]:
    """Return the text of an item, or both, as they are tokenised.

    An empty second text is one to sentence-transformers, whose models have a prompt, and none to transformers' pipelines.
    """
    paired = item.pair is not None and (item.pair != "" or "prompt" in spec.options)
    return [spec.options.get("prompt", "") + (item.text or ""), *([item.pair or ""] if paired else [])]


def _encoded_request(spec: ModelSpec, item: Item, index: int, encoded: Encoded) -> Request:
    ids, types = encoded.ids, encoded.types
    if not ids:
        raise InputError(f"{item.origin} has no tokens")
    if len(ids) > spec.positions:
        raise InputError(f"{item.origin} has {counted(len(ids), 'tokens')}, the model takes {spec.positions}; shorten it")
    for what, largest, count in (("token id", max(ids), spec.numbers("ids")), ("token type", max(types), spec.numbers("types"))):
        if count and largest >= count:
            raise InputError(f"{item.origin}: tokenizer.json gives {what} {largest}, the model has only {count}")
    there, keep = np.array(ids, np.int64), np.arange(len(ids))
    arrays = {"ids": there, "types": np.array(types, np.int64), "positions": numbered(spec, there)}
    added = np.array(encoded.added, bool)
    return Request(
        index, item.origin, arrays, keep, len(ids), item.text, item.pair, item.id, encoded.truncated, added, encoded.unknown
    )  # fmt: skip


def token_request(spec: ModelSpec, index: int, origin: str, row: tuple[np.ndarray, np.ndarray], keep: np.ndarray) -> Request:
    """Return the request of the tokens at `keep` [rows] of a padded `row`: ids and types, [positions] each."""
    ids, types = row
    keep = keep.astype(np.int64)
    arrays = {"ids": ids[keep].astype(np.int64), "types": types[keep].astype(np.int64), "positions": numbered(spec, ids)[keep]}
    return Request(index, origin, arrays, keep, len(ids))


def place_read(spec: ModelSpec, ids: np.ndarray) -> int | None:
    """Return the one position of a padded row of `ids` that a classifier reads, None where the head reads others, too."""
    if spec.head != "sequence-classes":
        return None
    return {"cls": 0, "lasttoken": last_other(ids, spec.options.get("passed_over"))}.get(spec.pooling)


def numbered(spec: ModelSpec, ids: np.ndarray) -> np.ndarray:
    """Return the number of each position [positions] of a padded row of `ids`: from 0, or in order of the tokens that are no padding.

    Source: create_position_ids_from_input_ids of transformers' RoBERTa: these begin behind the id of the padding, which has its own.
    """
    padding = spec.options.get("padding_id")
    if padding is None:
        return np.arange(len(ids), dtype=np.int64)
    there = (ids != padding).astype(np.int64)
    return np.cumsum(there) * there + padding


# ---- images


def image_requests(
    spec: ModelSpec, files: Mapping[str, bytes], source: str | None, strict: bool, held_out: bool = False
) -> list[Request]:  # fmt: skip
    """Return a request per image in a file or folder; None stands for those that are built in, or of them the ones `held_out`. Raises
    InputError."""
    from hepti_mpi.models.inputs.images import built_in_images, held_out_images, modes, open_image

    channels, built_in = spec.options["channels"], held_out_images if held_out else built_in_images
    modes(channels)  # refuses channels that are no image before any image is opened
    steps = read_preprocessor(files, channels)
    if steps is None:
        raise InputError(f"the model has no {NAME}, so it takes no images; give a .npz file with pixel_values instead")
    if source is None:
        opened = [(f"built-in image {i}", partial(lambda one: one, image)) for i, image in enumerate(built_in(channels), 1)]
    else:
        opened = [(f"image {path.name}", partial(open_image, path, channels)) for path in image_paths(Path(source))]
    items = ((Item(origin), partial(image_request, spec, steps, origin, image)) for origin, image in opened)
    return each_request(items, strict)


def image_request(spec: ModelSpec, steps: Preprocessor, origin: str, image: Callable[[], Any], index: int) -> Request:
    """Return the request of the image that `image` opens. Raises InputError."""
    from hepti_mpi.models.inputs.images import pixel_values

    return checked(spec, steps, index, origin, pixel_values(steps, image()))


def image_paths(path: Path) -> list[Path]:
    """Return the picture files at `path`, a file or a folder, sorted by name. Raises InputError."""
    from hepti_mpi.models.inputs.images import check_kind, find_pictures

    if not os.path.isdir(path):
        check_kind(path)
        return [path]
    found, others = find_pictures(path)
    if not found:
        raise InputError(f"folder {path} holds no pictures{f'; it holds {named(others)}' if others else ''}")
    return found


def left_out(spec: ModelSpec, source: str | None) -> str | None:
    """Return a sentence on what is in a folder of pictures and is none, None if all is taken. Raises InputError."""
    if spec.embedding != "patches" or source is None or not os.path.isdir(source):
        return None
    from hepti_mpi.models.inputs.images import find_pictures

    _, others = find_pictures(Path(source))
    files, folders = ([path for path in others if path.is_dir() == which] for which in (False, True))
    said = [f"of {source} are left out, for they are no pictures: {named(files)}"] if files else []
    said += [f"folders in {source} are not looked into: {named(folders)}"] if folders else []
    return "; ".join(said) or None


def named(paths: Sequence[Path]) -> str:
    """Return the names of the first of some files and folders, and how many more there are."""
    names = [shown(path.name, 60) + "/" * path.is_dir() for path in paths[:3]]
    return ", ".join(names) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def checked(spec: ModelSpec, steps: Preprocessor, index: int, origin: str, pixels: np.ndarray) -> Request:
    """Return the request of preprocessed pixels [channels, height, width]. Raises InputError when the size is not the model's."""
    side = spec.options["image_size"]
    if pixels.shape[1:] != (side, side):
        hint = "set size or crop_size there to the model's" if steps.size or steps.crops else "resize it"
        raise InputError(f"{origin} is {pixels.shape[1]} x {pixels.shape[2]} after {NAME}, the model takes {side} x {side}; {hint}")
    return pixel_request(spec, index, origin, pixels)


def pixel_request(spec: ModelSpec, index: int, origin: str, pixels: np.ndarray) -> Request:
    """Return the request of pixel values [channels, side, side]."""
    channels, patch = spec.options["channels"], spec.options["patch_size"]
    grid = spec.options["image_size"] // patch
    inner = pixels[:, : grid * patch, : grid * patch].reshape(channels, grid, patch, grid, patch)
    patches = np.zeros((spec.positions, channels * patch * patch), np.float32)  # [1 + registers + grid * grid, pixels of a patch]
    # in the order of the convolution kernel
    patches[spec.positions - grid * grid :] = inner.transpose(1, 3, 0, 2, 4).reshape(grid * grid, -1)
    positions = np.arange(spec.positions, dtype=np.int64)
    return Request(index, origin, {"patches": patches, "positions": positions}, positions, spec.positions)


# ---- arrays


def array_requests(spec: ModelSpec, path: Path, strict: bool) -> list[Request]:
    """Return a request per row of the arrays in a .npz file. Raises InputError."""
    if spec.embedding == "patches":
        pixels = read_npz(path, ("pixel_values",))["pixel_values"]
        side, channels = spec.options["image_size"], spec.options["channels"]
        if not pixels.size:
            raise InputError(f"{path}: pixel_values is of shape {list(pixels.shape)}, which holds nothing")
        if pixels.dtype.kind != "f" or pixels.ndim != 4 or pixels.shape[1:] != (channels, side, side):
            expected = f"floats of shape [images, {channels}, {side}, {side}]"
            raise InputError(f"{path}: pixel_values is {pixels.dtype} of shape {list(pixels.shape)}, the model takes {expected}")
        with np.errstate(over="ignore"):
            pixels = pixels.astype(np.float32)
        items = [Item(f"array {i} of {path.name}") for i in range(1, len(pixels) + 1)]
        return each_request(((item, partial(finite_pixels, spec, item.origin, one)) for item, one in zip(items, pixels)), strict)
    return each_request(token_rows(spec, path), strict)


def finite_pixels(spec: ModelSpec, origin: str, pixels: np.ndarray, index: int) -> Request:
    """Return the request of pixel values [channels, side, side]. Raises InputError."""
    if not np.isfinite(pixels).all():
        raise InputError(f"{origin}: pixel_values holds values that are not finite in float32")
    return pixel_request(spec, index, origin, pixels)


def token_rows(spec: ModelSpec, path: Path) -> Iterator[tuple[Item, Callable[[int], Request]]]:
    """Yield each row of input_ids and what makes its request. Raises InputError for arrays that do not go together."""
    found = read_npz(path, ("input_ids", "attention_mask", "token_type_ids", "position_ids"))
    if "input_ids" not in found:
        raise InputError(f"{path} has no input_ids, only {', '.join(found)}")
    ids = found["input_ids"]
    if not ids.size:
        raise InputError(f"{path}: input_ids is of shape {list(ids.shape)}, which holds nothing")
    mask, types = found.get("attention_mask", np.ones_like(ids)), found.get("token_type_ids", np.zeros_like(ids))
    for name, array, kinds in (("input_ids", ids, "iu"), ("attention_mask", mask, "iub"), ("token_type_ids", types, "iu")):
        if array.dtype.kind not in kinds or array.ndim != 2 or array.shape != ids.shape:
            shape = "[inputs, positions]" if name == "input_ids" else str(list(ids.shape))
            raise InputError(f"{path}: {name} is {array.dtype} of shape {list(array.shape)}, expected integers of shape {shape}")
    width = ids.shape[1]
    if width > spec.positions:
        raise InputError(f"{path}: input_ids has {counted(width, 'positions')}, the model takes {spec.positions}")
    if not np.isin(mask, (0, 1)).all():
        raise InputError(f"{path}: attention_mask holds numbers other than 0 and 1")
    check_positions(path, found.get("position_ids"), np.stack([numbered(spec, row) for row in ids]), mask)
    for index in range(len(ids)):
        origin = f"array {index + 1} of {path.name}"
        yield Item(origin), partial(row_request, spec, origin, ids[index], mask[index], types[index])


def row_request(spec: ModelSpec, origin: str, ids: np.ndarray, mask: np.ndarray, types: np.ndarray, index: int) -> Request:
    """Return the request of a row [positions], without the positions that its mask leaves out. Raises InputError."""
    keep = np.flatnonzero(mask)
    if not len(keep):
        raise InputError(f"{origin}: attention_mask leaves no position")
    if keep[-1] - keep[0] >= len(keep) and any(layer.attention.counts_rows for layer in spec.each()):
        raise InputError(f"{origin}: attention_mask leaves out positions between others; this model's layers go by how far apart they are")
    read = place_read(spec, ids)
    if read is not None and not mask[read]:
        raise InputError(f"{origin}: attention_mask leaves out position {read}, which the head of this model reads")
    for name, row, size in (("input_ids", ids[keep], spec.numbers("ids")), ("token_type_ids", types[keep], spec.numbers("types"))):
        if size and (row.min() < 0 or row.max() >= size):
            odd = int(row.min() if row.min() < 0 else row.max())
            raise InputError(f"{origin}: {name} holds {odd}, the model takes 0 to {size - 1}")
    return token_request(spec, index, origin, (ids, types), keep)
