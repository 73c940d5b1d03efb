"""What an output that is there says of the run it is of: a note that travels with the file.

Knows files and heads of runs (as in a journal); does not know how answers are computed. The note is an extended attribute: nothing in the
answers or beside them. Where a file system keeps none, or a copy has lost it, the answers do not tell by which model they were made.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.serving.answers import Answers, InOrder
from hepti_mpi.serving.journal import check_usable, difference, journal_path
from hepti_mpi.serving.outputs import Tally, write_finished
from hepti_mpi.wording import counted

NOTE = "user.hepti_mpi.run"
OTHERWISE = "write to another --output, or leave out --resume to answer all again"


@dataclass(frozen=True)
class Finished:
    """What is in an output. `head`: of the run it is of, None where it does not say."""

    path: Path
    tally: Tally
    head: dict[str, Any] | None

    def check(self, head: Mapping[str, Any]) -> None:
        """Raise InputError unless the answers are known to be of this run."""
        if self.head is None:
            why = "does not say of which model: copying a file loses the note on it, and some file systems keep none"
            raise InputError(f"output {self.path} holds {counted(self.tally.inputs, 'answers')} and {why}; {OTHERWISE}")
        which = difference(self.head, head)
        if which is not None:
            raise InputError(f"output {self.path} holds the answers of another run: {which}; {OTHERWISE}")


def sign(file: IO[bytes], head: Mapping[str, Any], tally: Tally) -> None:
    """Note on an output, written to its end, which run it is of."""
    file.flush()
    note = {"head": dict(head), "tally": asdict(tally), "bytes": os.fstat(file.fileno()).st_size}
    try:
        os.setxattr(file.fileno(), NOTE, json.dumps(note).encode())
    except OSError:  # no room for it, or no such attributes here
        pass


def write_signed(output: Path, answers: Answers, head: Mapping[str, Any]) -> Tally:
    """Write the answers to all requests of the run of `head`, with the note on it; return what became of them. Raises InputError,
    also where some are missing."""
    tally, every = answers.tally(head["requests"]), InOrder(answers)
    write_finished(output, every, partial(sign, head=head, tally=tally), every.lines())
    return tally


def finished_output(path: Path) -> Finished | None:
    """Return what the output at `path` holds, None where there is none. Raises InputError for a file that is no output."""
    if not path.exists():
        return None
    try:
        note = json.loads(os.getxattr(path, NOTE))
        if note["bytes"] == path.stat().st_size:  # it was not cut off or added to since
            return Finished(path, Tally(**note["tally"]), dict(note["head"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    try:
        return _arrays(path) if path.suffix == ".npz" else _records(path)
    except Exception as error:  # NumPy, zipfile and JSON raise nearly every kind
        raise InputError(f"output {path} is there and holds no answers ({str(error)[:80]}); {OTHERWISE}") from None


def nothing_left(output: Path, resume: bool, say: Callable[[str], None]) -> Finished | None:
    """Return what `output` holds where it is to be resumed and is finished; `say` is told when one is going to be replaced.

    Raises InputError when a running job holds its journal, or that cannot be used.
    """
    journal = journal_path(output)
    check_usable(journal)
    if resume and not journal.exists():
        return finished_output(output)
    if output.exists() and not resume:
        say(f"{output} is there already: it is replaced when all is answered")
    return None


def check_not_less(output: Path, count: int) -> None:
    """Raise InputError when a finished `output` would be replaced by one of `count` answers, fewer than it has."""
    there = finished_output(output)
    if there is not None and there.tally.inputs > count:
        both = f"{counted(there.tally.inputs, 'answers')}, this run has {counted(count, 'inputs')}"
        raise InputError(f"output {output} holds {both}; {OTHERWISE}")


def _records(path: Path) -> Finished:
    records = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    if not all("input" in record for record in records):
        raise ValueError("a line without an input")
    finished = [{"answer": record} | ({"error": str(record["error"])} if "error" in record else {}) for record in records]
    return Finished(path, Tally.of(finished), None)


def _arrays(path: Path) -> Finished:
    with np.load(path) as found:
        counts = {len(found[name]) for name in found.files[-1:]}
    return Finished(path, Tally(counts.pop(), 0, 0, ""), None)
