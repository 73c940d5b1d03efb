"""The answers of a run that are there already, so that a run that was cut off can go on: one line each.

Knows files and lines; does not know how answers are computed or what the output looks like. Nothing read from a journal is executed or
unpickled, and a last line that was cut off is no answer.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.serving.lock import open_locked
from hepti_mpi.serving.outputs import Finished, checked

FORMAT, FORMAT_VERSION = "hepti-journal", 3
SYNC_SECONDS = 0.2  # between two waits for the disk: what is lost is answered again


def journal_path(output: Path) -> Path:
    return output.with_name(output.name + ".journal")


def finished_places(path: Path) -> list[int]:
    """Return which requests the journal at `path` answers, as far as it can be read; whose it is, is not looked at."""
    places = []
    try:
        with open(path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                place = json.loads(line).get("request")
                places += [place] * isinstance(place, int)
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    return places


def input_hash(requests: Iterable[Any]) -> str:
    """Return a hash of what the requests (models.inputs.requests.Request) ask, and what their answers say of it, in their order."""
    found = hashlib.sha256()
    for request in requests:
        found.update(json.dumps([request.given, request.error is None]).encode())
        for name, array in sorted(request.arrays.items()):
            found.update(f"{name} {array.dtype} {array.shape} ".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


class Journal:
    """The journal of one output. `finished`: answers (outputs.Finished) by the place of their request in the input."""

    def __init__(self, path: Path, head: Mapping[str, Any], count: int, resume: bool) -> None:
        """Open the journal at `path` for a run of `count` requests, or begin it with `head`, which says what it is of.

        `resume`: go on with what is there.

        Raises: InputError when it is another run's, or there and not to be resumed, or held by a job that runs, or cannot be written.
        """
        self.path, self.finished = path, dict[int, Finished]()
        self.synced = time.monotonic()
        whole = {"format": FORMAT, "format_version": FORMAT_VERSION, "requests": count, **head}
        try:
            self.file: IO[bytes] = open_locked(path)
            try:
                kept = self._read(whole, count, resume)
            except InputError:
                self.file.close()
                raise
            self.file.truncate(kept)
            self.file.seek(kept)
            if not kept:
                self._write([whole])
                self._sync()
        except OSError as error:
            raise InputError(f"journal {path} cannot be used: {error.strerror or error}") from None

    def add(self, places: Sequence[int], finished: Sequence[Finished], seconds: float = 0.0) -> None:
        """Note the answers to the requests at `places`, which took `seconds`. Raises InputError when the disk is full."""
        self.finished.update(zip(places, finished))
        try:
            self._write({"request": place, "seconds": seconds, "finished": one} for place, one in zip(places, finished))
            if time.monotonic() - self.synced > SYNC_SECONDS:
                self._sync()
        except OSError as error:
            raise InputError(f"journal {self.path} cannot be written: {error.strerror or error}") from None

    def remove(self) -> None:
        """Delete it: the output is there."""
        self.path.unlink(missing_ok=True)
        self.file.close()

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self.file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        self.file.flush()

    def _sync(self) -> None:
        os.fsync(self.file.fileno())
        self.synced = time.monotonic()

    def _read(self, whole: Mapping[str, Any], count: int, resume: bool) -> int:
        """Read what is finished and return the bytes up to the end of the last whole line; 0: nothing is of use."""
        kept, head = 0, None
        for line in self.file:
            if not line.endswith(b"\n"):
                break
            try:
                data = json.loads(line)
                if head is None:
                    head = data
                    self._check(head, whole)
                else:
                    place = data["request"]
                    if not isinstance(place, int) or not 0 <= place < count:
                        raise ValueError("no such request")
                    self.finished[place] = checked(data["finished"])
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise InputError(f"journal {self.path} is damaged after byte {kept}; delete it and run again") from None
            kept += len(line)
        if self.finished and not resume:
            held = f"{len(self.finished)} of {count} answers of a run that was cut off"
            raise InputError(f"journal {self.path} holds {held}; go on with --resume, or delete it")
        return kept

    def _check(self, head: Any, whole: Mapping[str, Any]) -> None:
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise InputError(f"{self.path} is not a journal of hepti_mpi; delete it or write to another --output")
        for key in {**whole, **head}:  # not the plan: a run may go on by another one
            if head.get(key) != whole.get(key):
                which = f"it has {key} {head.get(key)!r}, this run {whole.get(key)!r}"
                raise InputError(f"journal {self.path} is of another run: {which}; delete it or write to another --output")
