"""Answers as files: JSON lines for people and programs, .npz for arrays. Knows formats, not what a model computes."""

import base64
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.files import whole_file

PER_ROW = ("last_hidden_state", "logits")  # arrays with a row per kept position, spread over the padded positions

KINDS = ("float32", "int64")
MOST_DIMS = 4
MOST_POSITIONS = 1 << 24
Finished = dict[str, Any]  # an answer as JSON: {"answer"} for people and programs, {"width", "keep", "results"} for arrays


class Placed(Protocol):
    """What is known of a request: models.preprocess.Request."""

    keep: np.ndarray
    width: int


@contextmanager
def _answer_file(path: Path) -> Iterator[IO[bytes]]:
    try:
        with whole_file(path, 0o600) as file:
            yield file
    except OSError as error:
        raise InputError(f"output {path} cannot be written: {error.strerror or error}") from None


def check_path(path: Path, kinds: Sequence[str] = (".jsonl", ".npz")) -> None:
    """Refuse an output that could not be written, or is of none of `kinds`, before hours of work. Raises InputError."""
    if path.suffix not in kinds:
        raise InputError(f"output {path} does not end in {' or '.join(kinds)}")
    if path.is_dir():
        raise InputError(f"output {path} is a folder")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"output {path}: folder {path.parent} does not exist or cannot be written")


def write_jsonl(path: Path, records: Sequence[dict[str, Any]]) -> None:
    with _answer_file(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def write_npz(path: Path, requests: Sequence[Placed], results: Sequence[dict[str, np.ndarray]]) -> None:
    """Write one array per output, first dim the request; positions that were masked or padded are 0."""
    arrays: dict[str, Any] = {}
    for name in ("last_hidden_state", "pooler_output", "logits", "embedding"):
        if results and all(name in result for result in results):
            arrays[name] = stacked(name, requests, [result[name] for result in results])
    with _answer_file(path) as file:
        np.savez(file, **arrays)


def stacked(name: str, requests: Sequence[Placed], values: Sequence[np.ndarray]) -> np.ndarray:
    """Return [requests, ...]: values with a row per kept position become [requests, positions, width], 0 elsewhere."""
    if name not in PER_ROW or values[0].ndim == 1:
        return np.stack(values)
    whole = np.zeros((len(values), max(request.width for request in requests), values[0].shape[1]), np.float32)
    for target, request, value in zip(whole, requests, values):
        target[request.keep] = value
    return whole


# answers that are kept until all are there


def finished_answer(answer: dict[str, Any]) -> Finished:
    """Return a record of models.heads.answers as it is kept."""
    return {"answer": answer}


def finished_arrays(request: Placed, result: Mapping[str, np.ndarray]) -> Finished:
    """Return the arrays of one request as they are kept."""
    return {"width": request.width, "keep": encoded(request.keep), "results": {name: encoded(array) for name, array in result.items()}}


def checked(item: Any) -> Finished:
    """Return `item` if it is an answer that was kept. Raises KeyError, TypeError or ValueError otherwise."""
    if not isinstance(item, dict):
        raise ValueError("no answer")
    if "answer" in item:
        if not isinstance(item["answer"], dict):
            raise ValueError("no answer")
    else:
        _arrays(item)
    return item


@dataclass
class _Kept:
    keep: np.ndarray
    width: int


def _arrays(item: Finished) -> tuple[_Kept, dict[str, np.ndarray]]:
    keep, width = decoded(item["keep"]), item["width"]
    if keep.dtype != np.int64 or keep.ndim != 1 or not isinstance(width, int) or not 0 <= width < MOST_POSITIONS:
        raise ValueError("no positions")
    if len(keep) and not 0 <= keep.min() <= keep.max() < width:
        raise ValueError("positions outside")
    return _Kept(keep, width), {str(name): decoded(array) for name, array in item["results"].items()}


def write_finished(path: Path, finished: Sequence[Finished]) -> None:
    """Write the output that the answers to all requests make. Raises InputError."""
    try:
        if path.suffix == ".npz":
            both = [_arrays(item) for item in finished]
            write_npz(path, [kept for kept, _ in both], [result for _, result in both])
        else:
            write_jsonl(path, [item["answer"] for item in finished])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"what was kept of {path} is of another kind of output; delete the journal and run again") from None


def encoded(array: np.ndarray) -> dict[str, Any]:
    """Return a JSON-able array. Of types other than KINDS: as float32 or int64."""
    kind = "int64" if array.dtype.kind in "iu" else "float32"
    values = np.ascontiguousarray(array, kind)
    return {"type": kind, "shape": list(array.shape), "base64": base64.b64encode(values.tobytes()).decode()}


def decoded(item: Any) -> np.ndarray:
    """Return an array that was `encoded`. Raises KeyError, TypeError or ValueError when it is none."""
    kind, shape = item["type"], item["shape"]
    if kind not in KINDS or not isinstance(shape, list) or len(shape) > MOST_DIMS or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError("no array")
    content = base64.b64decode(item["base64"], validate=True)
    if len(content) != prod(shape) * np.dtype(kind).itemsize:
        raise ValueError("another size")
    return np.frombuffer(content, kind).reshape(shape).copy()
