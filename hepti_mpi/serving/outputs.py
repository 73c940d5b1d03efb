"""Answers as files: JSON lines for people and programs, .npz for arrays. Knows formats, not what a model computes."""

import base64
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from hepti_mpi.documents import check_place, json_line, whole_file
from hepti_mpi.errors import InputError, PartlyAnswered, reason_of

ARRAYS = ("last_hidden_state", "pooler_output", "class_row", "logits", "embedding")
PER_ROW = ("last_hidden_state", "logits")  # arrays with a row per kept position, spread over the padded positions

ABOUT = ("error", "truncated", "id")  # what a .npz file says of an input beside its arrays
KINDS = ("float32", "int64")
MOST_DIMS = 4
MOST_POSITIONS = 1 << 24
# an answer as JSON: {"answer"} for people and programs, {"width", "keep", "results"} for arrays; both with "error" if there is none.
# a text is {"answer", "row": {"width", "keep", "most"}}: "most" tokens were asked for; in memory also its "logits"
Finished = dict[str, Any]
Sign = Callable[[IO[bytes]], None]


class Placed(Protocol):
    """Where the rows of a request lie: models.inputs.requests.Request."""

    @property
    def keep(self) -> np.ndarray: ...

    @property
    def width(self) -> int: ...


class Asked(Placed, Protocol):
    """What else is known of a request."""

    @property
    def id(self) -> Any: ...

    @property
    def truncated(self) -> bool: ...


@contextmanager
def _answer_file(path: Path) -> Iterator[IO[bytes]]:
    try:
        with whole_file(path) as file:
            yield file
    except OSError as error:
        raise InputError(f"output {path} cannot be written: {reason_of(error)}") from None


def check_path(path: Path, kinds: Sequence[str] = (".jsonl", ".npz")) -> None:
    """Refuse an output that could not be written, or is of none of `kinds`, before hours of work. Raises InputError."""
    if path.suffix not in kinds:
        raise InputError(f"output {path} does not end in {' or '.join(kinds)}")
    check_place(path, InputError, "output ")


def write_jsonl(path: Path, records: Iterable[dict[str, Any]], sign: Sign = lambda file: None) -> None:
    """Write a line per record; `sign` is called with the file when all is in it."""
    write_lines(path, (json_line(record).encode() + b"\n" for record in records), sign)


def write_lines(path: Path, lines: Iterable[bytes], sign: Sign) -> None:
    """Write lines; `sign` is called with the file when all are in it."""
    with _answer_file(path) as file:
        file.writelines(lines)
        sign(file)


def write_npz(
    path: Path, requests: Sequence[Placed], results: Sequence[Mapping[str, np.ndarray]], more: dict[str, Any],
    sign: Sign = lambda file: None,
) -> None:  # fmt: skip
    """Write one array per output, first dim the request: NaN where one has none, 0 at positions that were masked or padded; and `more`.

    `sign` is called with the file when all is in it.
    """
    arrays: dict[str, Any] = {}
    for name in ARRAYS:
        if any(name in result for result in results):
            arrays[name] = stacked(name, requests, [result.get(name) for result in results])
    with _answer_file(path) as file:
        np.savez(file, **arrays, **more)
        sign(file)


def stacked(name: str, requests: Sequence[Placed], values: Sequence[np.ndarray | None]) -> np.ndarray:
    """Return [requests, ...]: values with a row per kept position become [requests, positions, width], 0 elsewhere. None becomes NaN."""
    shape = next(value.shape for value in values if value is not None)
    per_row = name in PER_ROW and len(shape) > 1
    if per_row:
        shape = max(request.width for request in requests), shape[1]
    whole = np.zeros((len(values), *shape), np.float32)
    for target, request, value in zip(whole, requests, values):
        if value is not None and value.shape != ((len(request.keep), shape[1]) if per_row else shape):
            raise ValueError(f"{name} is of shape {value.shape} beside {shape}")
        target[request.keep if per_row and value is not None else ...] = np.nan if value is None else value
    return whole


# answers that are kept until all are there


def finished_answer(answer: dict[str, Any], error: str | None = None) -> Finished:
    """Return a record of models.tasks.heads.answers as it is kept; with an `error` it is what was given."""
    return {"answer": answer} if error is None else {"answer": answer | {"error": error}, "error": error}


def finished_arrays(request: Asked, result: Mapping[str, np.ndarray], error: str | None = None) -> Finished:
    """Return the arrays of one request as they are kept."""
    more = {"error": error, "id": request.id, "truncated": request.truncated or None}
    kept = {"width": request.width, "keep": encoded(request.keep), "results": {name: encoded(array) for name, array in result.items()}}
    return kept | {key: value for key, value in more.items() if value is not None}


def checked(item: Any) -> Finished:
    """Return `item` if it is an answer that was kept. Raises KeyError, TypeError or ValueError otherwise."""
    if not isinstance(item, dict) or not isinstance(item.get("error", ""), str):
        raise ValueError("no answer")
    if "answer" in item:
        if not isinstance(item["answer"], dict):
            raise ValueError("no answer")
    else:
        _arrays(item)
    return item


@dataclass(frozen=True)
class Tally:
    """What became of all inputs. `first`: why the first of the `errors` was not answered. `truncated`: how many texts were cut off."""

    inputs: int
    errors: int
    truncated: int
    first: str

    @classmethod
    def of(cls, finished: Sequence[Mapping[str, Any]]) -> "Tally":
        wrong = [item["error"] for item in finished if "error" in item]
        cut = sum(bool(item.get("answer", item).get("truncated")) for item in finished)
        return cls(len(finished), len(wrong), cut, wrong[0] if wrong else "")

    @property
    def numbers(self) -> dict[str, int]:
        return {"errors": self.errors, "truncated": self.truncated}

    def check(self) -> None:
        """Raise PartlyAnswered when not all inputs were answered."""
        if self.errors:
            more = f", and {self.errors - 1} more" * (self.errors > 1)
            what = f"{self.errors} of {self.inputs} inputs could not be answered (the others were)"
            if self.errors == self.inputs:
                what = "the only input could not be answered" if self.inputs == 1 else f"none of {self.inputs} inputs could be answered"
            raise PartlyAnswered(f"{what}: {self.first}{more}")


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


def _beside(finished: Sequence[Finished]) -> dict[str, Any]:
    """Return what a .npz file holds beside the outputs where any input has it: "errors" ("" for none), "truncated", "id"."""
    found: dict[str, np.ndarray] = {}
    if any("error" in item for item in finished):
        found["errors"] = np.array([item.get("error", "") for item in finished])
    if any("truncated" in item for item in finished):
        found["truncated"] = np.array([bool(item.get("truncated")) for item in finished])
    if any("id" in item for item in finished):
        called = [item.get("id", "") for item in finished]
        whole = all(isinstance(one, int) and abs(one) < 1 << 63 for one in called)
        found["id"] = np.array(called if whole else [one if isinstance(one, str) else json.dumps(one) for one in called])
    return found


def check_apart(output: Path, source: str | None) -> None:
    """Raise InputError when the answers would be written over what is asked."""
    if source is not None and output.exists() and os.path.exists(source) and os.path.samefile(output, source):
        raise InputError(f"--output {output} is the --input: the answers would replace what is asked; name another --output")


def write_finished(
    path: Path, finished: Sequence[Finished], sign: Sign = lambda file: None, lines: Iterable[bytes] | None = None
) -> None:  # fmt: skip
    """Write the output that the answers to all requests make; `sign` is called with the file when all is in it. `lines`: those of a .jsonl
    output, where they are there. Raises InputError."""
    try:
        if path.suffix == ".npz" and len(finished) and "row" in finished[0]:
            _write_tokens(path, list(finished), sign)
        elif path.suffix == ".npz":
            kept, results, about = list[_Kept](), list[dict[str, np.ndarray]](), list[Finished]()
            for item in finished:  # once: each may be read from a file
                one, arrays = _arrays(item)
                kept.append(one)
                results.append(arrays)
                about.append({key: item[key] for key in ABOUT if key in item})
            write_npz(path, kept, results, _beside(about), sign)
        elif lines is not None:
            write_lines(path, lines, sign)
        else:
            write_jsonl(path, (item["answer"] for item in finished), sign)
    except (KeyError, TypeError, ValueError):
        raise InputError(f"what was kept of {path} is of another kind of output; delete the journal and run again") from None


def _write_tokens(path: Path, finished: Sequence[Finished], sign: Sign) -> None:
    """Write `tokens` [texts, most that were asked for], -1 behind the end, and, where there are any, `logits` [texts, positions, words],
    0 where there is no token, NaN of a prompt that was not answered; "errors" and "id" where there are any."""
    tokens = np.full((len(finished), max(item["row"]["most"] for item in finished)), -1, np.int64)
    for row, item in zip(tokens, finished):
        made = item["answer"].get("tokens", ())
        row[: len(made)] = made
    arrays: dict[str, Any] = {"tokens": tokens}
    words = next((item["logits"].shape[1] for item in finished if "logits" in item), None)
    if words is not None:
        arrays["logits"] = np.zeros((len(finished), max(item["row"]["width"] for item in finished), words), np.float32)
        for target, item in zip(arrays["logits"], finished):
            target[decoded(item["row"]["keep"]) if "logits" in item else ...] = item.get("logits", np.nan)
    named = [item | ({"id": item["answer"]["id"]} if "id" in item["answer"] else {}) for item in finished]
    with _answer_file(path) as file:
        np.savez(file, **arrays, **_beside(named))
        sign(file)


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
