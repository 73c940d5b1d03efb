"""The answers of a run that are there already, so that a run that was cut off can go on: one line each.

Knows files and arrays; does not know what they mean or how they are computed. Nothing read from a journal is executed or unpickled, and
a last line that was cut off is no answer.
"""

import base64
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from hepti_mpi.errors import InputError

FORMAT, FORMAT_VERSION = "hepti-journal", 1
KINDS = ("float32", "int64")
SYNC_SECONDS = 0.2  # between two waits for the disk: what is lost is answered again
MOST_DIMS = 4
Results = dict[str, np.ndarray]


def journal_path(output: Path) -> Path:
    return output.with_name(output.name + ".journal")


def input_hash(requests: Iterable[Any]) -> str:
    """Return a hash of what the requests (models.preprocess.Request) ask, in their order."""
    found = hashlib.sha256()
    for request in requests:
        for name, array in sorted(request.arrays.items()):
            found.update(f"{name} {array.dtype} {array.shape} ".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


class Journal:
    """The journal of one output. `finished`: results by the place of their request in the input."""

    def __init__(self, path: Path, head: Mapping[str, Any], count: int, resume: bool, leave_out: Sequence[str] = ()) -> None:
        """Open the journal at `path` for a run of `count` requests, or begin it with `head`, which says what it is of.

        `resume`: go on with what is there; `leave_out`: results that the output does not need.

        Raises: InputError when it is another run's, or there and not to be resumed, or cannot be written.
        """
        self.path, self.leave_out, self.finished = path, tuple(leave_out), dict[int, Results]()
        self.synced = time.monotonic()
        whole = {"format": FORMAT, "format_version": FORMAT_VERSION, "requests": count, **head}
        try:
            kept = self._read(whole, count, resume) if path.exists() else 0
            self.file: IO[bytes] = os.fdopen(os.open(path, os.O_CREAT | os.O_RDWR, 0o600), "r+b")
            self.file.truncate(kept)
            self.file.seek(kept)
            if not kept:
                self._write([whole])
                self._sync()
        except OSError as error:
            raise InputError(f"journal {path} cannot be used: {error.strerror or error}") from None

    def add(self, places: Sequence[int], results: Sequence[Results]) -> None:
        """Note the results of the requests at `places`. Raises InputError when the disk is full."""
        lines = []
        for place, result in zip(places, results):
            self.finished[place] = result
            arrays = {name: encoded(array) for name, array in result.items() if name not in self.leave_out}
            lines.append({"request": place, "results": arrays})
        try:
            self._write(lines)
            if time.monotonic() - self.synced > SYNC_SECONDS:
                self._sync()
        except OSError as error:
            raise InputError(f"journal {self.path} cannot be written: {error.strerror or error}") from None

    def remove(self) -> None:
        """Delete it: the output is there."""
        self.file.close()
        self.path.unlink(missing_ok=True)

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self.file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        self.file.flush()

    def _sync(self) -> None:
        os.fsync(self.file.fileno())
        self.synced = time.monotonic()

    def _read(self, whole: Mapping[str, Any], count: int, resume: bool) -> int:
        """Read what is finished and return the bytes up to the end of the last whole line; 0: nothing is of use."""
        kept, head = 0, None
        with open(self.path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    data = json.loads(line)
                    if head is None:
                        head = data
                        self._check(head, whole, resume)
                    else:
                        place = data["request"]
                        if not isinstance(place, int) or not 0 <= place < count:
                            raise ValueError("no such request")
                        self.finished[place] = {str(name): decoded(item) for name, item in data["results"].items()}
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    raise InputError(f"journal {self.path} is damaged after byte {kept}; delete it and run again") from None
                kept += len(line)
        if self.finished and not resume:
            held = f"{len(self.finished)} of {count} answers of a run that was cut off"
            raise InputError(f"journal {self.path} holds {held}; go on with --resume, or delete it")
        return kept

    def _check(self, head: Any, whole: Mapping[str, Any], resume: bool) -> None:
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise InputError(f"{self.path} is not a journal of hepti_mpi; delete it or write to another --output")
        for key, value in whole.items():
            if head.get(key) != value:  # not the plan: a run may go on by another one
                which = f"it has {key} {head.get(key)!r}, this run {value!r}"
                raise InputError(f"journal {self.path} is of another run: {which}; delete it or write to another --output")


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
