"""The answers that a run has found so far: where each is, in memory or in a line of its journal, and what counts of it.

Knows places of requests and bytes of a file; does not know how answers are found, or what an output looks like. Numbers as Python has them
take eight times the memory that a vector takes: what is in a file is read again when it is wanted.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

from hepti_mpi.documents import json_line
from hepti_mpi.errors import InputError
from hepti_mpi.serving.outputs import ABOUT, Finished, Tally

ANSWER = b'{"answer": '  # what the only thing of an answer begins with
NOTHING: Mapping[str, Any] = {}


class _Line(NamedTuple):
    """Where in the file an answer is, in bytes; whether there is nothing beside what people get; and what counts of it."""

    begin: int
    size: int
    plain: bool
    about: Mapping[str, Any]


class Answers(Mapping[int, Finished]):
    """Answers by the place of their request, in the order in which they came."""

    def __init__(self, file: IO[bytes] | None = None) -> None:
        """`file`: where those are that are `noted`."""
        self._file, self._found = file, dict[int, Finished | _Line]()

    def hold(self, found: Iterable[tuple[int, Finished]]) -> None:
        """Add answers that are kept in memory."""
        self._found.update(found)

    def noted(self, place: int, item: Finished, begin: int, size: int) -> None:
        """Add an answer that is in the file, as JSON of `size` bytes from `begin`."""
        self._found[place] = _Line(begin, size, item.keys() == {"answer"}, _about(item))

    def __getitem__(self, place: int) -> Finished:
        found = self._found[place]
        if not isinstance(found, _Line):
            return found
        item: Finished = json.loads(self._read(found))
        return item

    def __iter__(self) -> Iterator[int]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def tally(self, count: int) -> Tally:
        """Return what became of so many inputs. Raises InputError where some have no answer."""
        if missing := count - len(self):
            raise InputError(f"{missing} of {count} answers are missing")
        every = (self._found[place] for place in sorted(self._found))
        return Tally.of([found.about if isinstance(found, _Line) else found for found in every])

    def line(self, place: int) -> bytes:
        """Return an answer as people get it, in a line of JSON."""
        found = self._found[place]
        if isinstance(found, _Line) and found.plain:
            text = self._read(found)
            if text.startswith(ANSWER) and b"\\u" not in text:  # its letters are as they are
                return text[len(ANSWER) : -1] + b"\n"
        return json_line(self[place]["answer"]).encode() + b"\n"

    def _read(self, line: _Line) -> bytes:
        assert self._file is not None
        text = os.pread(self._file.fileno(), line.size, line.begin)
        if len(text) != line.size:
            raise OSError(f"{line.size - len(text)} bytes of an answer are not there any more")
        return text


class InOrder(Sequence[Finished]):
    """The answers to all inputs, in their order."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self.answers[place]

    def __len__(self) -> int:
        return len(self.answers)

    def lines(self) -> Iterator[bytes]:
        """Yield each as people get it, in a line of JSON."""
        return map(self.answers.line, range(len(self)))


def _about(item: Finished) -> Mapping[str, Any]:
    """Return what counts of an answer that is not at hand."""
    found = {key: item[key] for key in ABOUT if key in item}
    if item.get("answer", item).get("truncated"):
        found["truncated"] = True
    return found or NOTHING
