"""The answers of a run that are there already, so that a run that was cut off can go on: one line each. Of texts also what there is of
those that are not finished, a line per step.

Knows files and lines; does not know how answers are computed or what the output looks like. Nothing read from a journal is executed or
unpickled, and a last line that was cut off is no answer.
"""

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from hepti_mpi.documents import begin_with_nothing, json_line, keep
from hepti_mpi.errors import InputError, reason_of
from hepti_mpi.serving.answers import Answers
from hepti_mpi.serving.lock import check_free, open_locked
from hepti_mpi.serving.outputs import Finished, checked

if TYPE_CHECKING:
    from hepti_mpi.models.tasks.sampling import Chosen

FORMAT, FORMAT_VERSION = "hepti-journal", 3
Begun = dict[int, list["Chosen"]]  # by the place of a request, the tokens of its text so far
SUFFIX = ".journal"
SYNC_SECONDS = 0.2  # between two waits for the disk: what is lost is answered again


DIFFERENT = {  # what a head that differs means, by its key, given both values
    "model": "it is of the model {}, this run of {}",
    "source_hash": "its model has other weights, another tokenizer or other settings",
    "requests": "it has {} inputs, this run {}",
    "input_hash": "its inputs are others",
    "texts": "it was asked for with other options of texts: {}, now {}",
    "tolerance": "it was answered with --tolerance {}, this run with {}",
    "wires": "its plan sends {}, this run's {}",
    "cache_format": "it was answered with --cache-format {}, this run with {}",
    "context": "its texts may have {} rows with their prompts, this run's {}",
}


def head_of(model: str, source_hash: str, asked: str, **deciding: Any) -> dict[str, Any]:
    """Return the head of a run, which tells it from another one, whose answers are not to be mixed with its own.

    `asked`: a hash of its input. `deciding`: every option that decides an answer, as JSON has it and whatever its value is; how the work
    is divided decides none.
    """
    return {"model": model, "source_hash": source_hash, "input_hash": asked, **json.loads(json.dumps(deciding))}


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Return in which way the run whose head is `there` is not the one whose head is `here`, None where it is."""
    for key in (*DIFFERENT, *sorted(there.keys() | here.keys())):  # what says most comes first
        had, has = there.get(key), here.get(key)
        if had != has:
            if isinstance(had, dict) and isinstance(has, dict):
                changed = [one for one in sorted(had.keys() | has.keys()) if had.get(one) != has.get(one)]
                had, has = (", ".join(f"{one} {values.get(one)}" for one in changed) for values in (had, has))
            had, has = ("unknown" if value is None else value for value in (had, has))
            return DIFFERENT.get(key, f"it has {key} {{}}, this run {{}}").format(had, has)
    return None


def journal_path(output: Path) -> Path:
    return output.with_name(output.name + SUFFIX)


def noted(path: Path) -> tuple[list[int], Begun]:
    """Return which requests the journal at `path` answers, and what it has of texts that are not finished, as far as it can be read; whose
    it is, is not looked at."""
    places, begun = list[int](), Begun()
    try:
        with open(path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                data = json.loads(line)
                if isinstance(data.get("request"), int):
                    places.append(data["request"])
                    begun.pop(data["request"], None)
                add_grown(begun, data.get("grown", ()))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        pass
    return places, begun


def add_grown(begun: Begun, grown: Iterable[Any]) -> None:
    """Add tokens, [place, token as of Chosen.told] each, to what there is of texts. Raises TypeError or ValueError for others."""
    for place, told in grown:
        if not isinstance(place, int):
            raise ValueError("no such request")
        begun.setdefault(place, []).append(_token(told))


def _token(told: Any) -> "Chosen":
    from hepti_mpi.models.tasks.sampling import Chosen

    return Chosen.of(told)


def input_hash(requests: Iterable[Any]) -> str:
    """Return a hash of what the requests (models.inputs.requests.Request) ask, and what their answers say of it, in their order."""
    found = hashlib.sha256()
    for request in requests:
        found.update(json.dumps([request.given, request.error is None]).encode())
        for name, array in sorted(request.arrays.items()):
            found.update(f"{name} {array.dtype} {array.shape} ".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def hash_of(value: Any) -> str:
    """Return a hash of what JSON can say."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def output_of(path: Path) -> str:
    """Say whose journal the one at `path` is: nobody typed its name."""
    return f"of --output {path.with_name(path.name.removesuffix(SUFFIX))}"


def _unusable(path: Path, error: OSError) -> InputError:
    mend = "remove it, or write" if os.path.lexists(path) and not os.path.isfile(path) else "write"  # a file may hold answers
    said = f"the answers {output_of(path)} cannot be noted in {path} as they come: {reason_of(error)}"
    return InputError(f"{said}; {mend} to another --output")


def check_usable(path: Path) -> None:
    """Raise InputError when the journal at `path` is held by a running job, or cannot be used."""
    try:
        check_free(path)
    except OSError as error:
        raise _unusable(path, error) from None


HEAD, TAIL = '{{"request": {}, "seconds": {}, "finished": ', b"}\n"  # around an answer
ANSWER = re.compile(rb'\{"request": (\d+), "seconds": [^,]+, "finished": ')


class Journal:
    """The journal of one output. `finished`: answers (outputs.Finished) by the place of their request in the input; `begun`: texts that
    are not."""

    def __init__(self, path: Path, head: Mapping[str, Any], count: int, resume: bool) -> None:
        """Open the journal at `path` for a run of `count` requests, or begin it with `head`, which says what it is of.

        `resume`: go on with what is there.

        Raises: InputError when it is another run's, or there and not to be resumed, or held by a job that runs, or cannot be written.
        """
        self.path, self.begun, self.synced = path, Begun(), time.monotonic()
        whole = {"format": FORMAT, "format_version": FORMAT_VERSION, "requests": count, **head}
        try:
            self.file: IO[bytes] = open_locked(path)
            self.finished = Answers(self.file)
            try:
                kept = self._read(whole, count, resume)
            except InputError:
                self.file.close()
                raise
            self.file.truncate(kept)
            self.file.seek(kept)
            self.size = kept
            if not kept:
                self._begin(json.dumps(whole).encode() + b"\n")
                begin_with_nothing(path)
        except OSError as error:
            raise _unusable(path, error) from None

    def add(self, places: Sequence[int], finished: Sequence[Finished], seconds: float = 0.0, grown: Sequence[Any] = ()) -> None:
        """Note the answers to the requests at `places`, which took `seconds`, and the tokens of texts that have `grown` (add_grown).

        Raises InputError when the disk is full.
        """
        lines = [json.dumps({"grown": grown}).encode() + b"\n"] if grown else []
        at, where = self.size + sum(map(len, lines)), list[tuple[int, int]]()
        for place, one in zip(places, finished):
            head, answer = HEAD.format(place, json.dumps(seconds)).encode(), json_line(one).encode()
            where.append((at + len(head), len(answer)))
            lines.append(head + answer + TAIL)
            at += len(lines[-1])
        keep(self.path)
        try:
            self._write(lines)
            self.size = at
            if time.monotonic() - self.synced > SYNC_SECONDS:
                self._sync()
        except OSError as error:
            with suppress(OSError):  # else what is left to be written is tried again when all ends
                self.file.close()
            there = set(noted(self.path)[0])  # as whoever goes on will find it: a part of many is there mostly
            self.finished.hold((place, one) for place, one in zip(places, finished) if place in there)
            said = f"the answers {output_of(self.path)} cannot be noted in {self.path} any more: {reason_of(error)}"
            said += "; free space there" * (error.errno in (errno.ENOSPC, errno.EDQUOT))  # else what goes on ends alike
            raise InputError(said) from None
        add_grown(self.begun, grown)
        for place, one, (begin, size) in zip(places, finished, where):
            self._finish(place, one, begin, size)

    def _finish(self, place: int, one: Finished, begin: int, size: int) -> None:
        self.finished.noted(place, one, begin, size)
        self.begun.pop(place, None)

    def remove(self) -> None:
        """Delete it: the output is there."""
        self.path.unlink(missing_ok=True)
        keep(self.path)
        self.file.close()

    def _write(self, lines: Sequence[bytes]) -> None:
        self.file.write(b"".join(lines))
        self.file.flush()

    def _begin(self, line: bytes) -> None:
        """Write the first line, or leave no file. Raises OSError."""
        try:
            self._write([line])
            self._sync()
            self.size = len(line)
        except OSError:
            self.path.unlink(missing_ok=True)
            raise

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
                if head is None:
                    head = json.loads(line)
                    if not self._is_of(head, whole):
                        return 0
                elif (found := ANSWER.match(line)) is not None and line.endswith(TAIL):
                    ((place, answer),) = self._known([(int(found[1]), line[found.end() : -len(TAIL)])], count)
                    self._finish(place, checked(json.loads(answer)), kept + found.end(), len(answer))
                else:
                    add_grown(self.begun, self._known(json.loads(line)["grown"], count))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise InputError(f"journal {self.path} is damaged after byte {kept}; delete it and run again") from None
            kept += len(line)
        if (self.finished or self.begun) and not resume:
            more = f" and the beginnings of {len(self.begun)}" if self.begun else ""
            held = f"{len(self.finished)} of {count} answers{more} of a run that was cut off"
            raise InputError(f"journal {self.path} holds {held}; go on with --resume, or delete it")
        return kept

    @staticmethod
    def _known(items: Sequence[tuple[int, Any]], count: int) -> Sequence[tuple[int, Any]]:
        """Return what is of requests by their places. Raises TypeError or ValueError where there is no such request."""
        if not all(isinstance(place, int) and 0 <= place < count for place, _ in items):
            raise ValueError("no such request")
        return items

    def _is_of(self, head: Any, whole: Mapping[str, Any]) -> bool:
        """Tell whether it is of this run; False: of another one, but with nothing in it. Raises InputError otherwise."""
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise InputError(f"{self.path} is not a journal of hepti_mpi; delete it or write to another --output")
        which = difference(head, whole)  # of which the plan is no part: a run may go on by another one
        if which is not None and self.file.read(1):
            raise InputError(f"journal {self.path} is of another run: {which}; delete it or write to another --output")
        return which is None
