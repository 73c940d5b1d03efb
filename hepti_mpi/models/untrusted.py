"""Read what others wrote: files of bounded size, JSON documents, names that go into messages. Knows no model and no format but JSON."""

import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hepti_mpi.errors import InputError, ModelError, dead_link, reason_of

FILE_LIMIT = 32 << 20  # bytes of a file that is read as a whole
MOST_DIGITS = 300  # of a whole number
POINTER = b"version https://git-lfs.github.com/spec/"  # how a file begins that only says which one Git LFS keeps in its place


def read_small(path: Path) -> bytes:
    """Return the contents of a file of at most 32 MiB. Raises ModelError."""
    refuse_pointer(path)
    try:
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT + 1)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {reason_of(error)}") from None
    if len(data) > FILE_LIMIT:
        raise ModelError(f"{path} is larger than {FILE_LIMIT >> 20} MiB")
    return data


def refuse_pointer(path: Path) -> None:
    """Raise ModelError when a file is not itself but a pointer of Git LFS, or cannot be read."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(POINTER))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {reason_of(error)}") from None
    if begin == POINTER:
        raise ModelError(f"{path} is a pointer of Git LFS, not the file itself; fetch it: git lfs pull, in the folder that was cloned")


def is_file(path: Path) -> bool:
    """Return whether `path` is a file that can be seen. Raises ModelError for a link that leads nowhere: what it stands for is lacking, as
    in a copy of a folder of huggingface_hub's cache without what its links lead to, and must not be taken for what the model has not."""
    if link := dead_link(path):
        raise ModelError(f"{path} cannot be read: {link}; copy the model anew with what its links lead to, as cp -rL does")
    return os.path.isfile(path)


def check_there(path: Path) -> None:
    """Raise InputError where there is no input at `path`, nobody may look, or it is a pipe or a device, which may never have an end."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        gone = isinstance(error, (FileNotFoundError, NotADirectoryError)) and dead_link(path) is None
        raise InputError(f"input {path} {'not found' if gone else f'cannot be read: {reason_of(error)}'}") from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        instead = "write what comes from there to a file and give that; texts on standard input are given as -"
        raise InputError(f"input {path} is neither a file nor a folder; {instead}")


def parse_json(data: bytes, name: str, kind: type = dict) -> Any:
    """Return the JSON document in `data`, an object (`kind` dict) or an array (list). Raises ModelError naming `name`."""
    try:
        value = json.loads(data.decode("utf-8"), parse_int=whole_number)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} is not valid JSON: {shown(error)}") from None
    if not isinstance(value, kind):
        raise ModelError(f"{name} holds a JSON {type(value).__name__}, expected {'an object' if kind is dict else 'an array'}")
    return value


def whole_number(word: str) -> int:
    """Return a whole number of JSON, which is none of hundreds of digits: no float holds that. Raises ValueError."""
    if len(word) > MOST_DIGITS:
        raise ValueError(f"a number has {len(word)} digits")
    return int(word)


def each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of an object of JSON, for json's object_pairs_hook. Raises ValueError where one is there twice: which is meant?

    >>> each_once([("text", "a"), ("id", 1)])
    {'text': 'a', 'id': 1}
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"it has {json.dumps(shown(twice, 40))} twice")
    return found


def is_number(value: object) -> bool:
    """Return whether a value of JSON is a number that a float holds: finite, and no whole number of hundreds of digits."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def half_character(text: str, where: str) -> str | None:
    """Return what is wrong with a text that holds half of a pair of surrogates, which JSON can say and no tokenizer takes."""
    half = next((letter for letter in text if "\ud800" <= letter <= "\udfff"), None)
    return None if half is None else f"{where} holds {json.dumps(half)}, which is half a character"


def plain_name(name: object) -> bool:
    """Return whether `name` names something directly in a folder: no separator, no drive, not `..`, not too long."""
    return isinstance(name, str) and 0 < len(name) < 200 and name not in (".", "..") and not any(c in name for c in "/\\:\0")


def shown(text: object, limit: int = 200) -> str:
    """Return `text` on one line, cut off after `limit` characters, with `?` for what cannot be printed, without a full stop."""
    line = " ".join(str(text).split())[:limit].rstrip(". ")
    return "".join(c if c.isprintable() else "?" for c in line)
