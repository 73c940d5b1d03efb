"""Answers as files: JSON lines for people and programs, .npz for arrays. Knows formats, not what a model computes."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.files import whole_file

PER_ROW = ("last_hidden_state", "logits")  # arrays with a row per kept position, spread over the padded positions


class Placed(Protocol):
    """What is known of a request: models.preprocess.Request."""

    keep: np.ndarray
    width: int


@contextmanager
def _answer_file(path: Path) -> Iterator[IO[bytes]]:
    try:
        with whole_file(path) as file:
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
