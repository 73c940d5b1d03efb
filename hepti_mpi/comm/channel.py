"""The record channel: marked JSON lines of standard output, by which the ranks of a supervised run tell their supervisor what there is.

Knows the form of a record, and whether anybody listens; does not know what is done with them. Without a supervisor ranks other than the
first tell nothing.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hepti_mpi.comm.launcher import launched_rank

MARK = "\x1e"  # RFC 7464 begins JSON records with it: no other line does
OUT, ERR = 1, 2  # descriptors
STATE = "HEPTI_STATE"  # environment variable of every rank of a supervised run: the file that the supervisor leaves on each host


def state_path() -> Path | None:
    """Return the file with what the supervisor knows, None in a run that nobody supervises."""
    return Path(os.environ[STATE]) if os.environ.get(STATE) else None


def tell(kind: str, **facts: Any) -> None:
    """Print a record."""
    sys.stdout.write(MARK + json.dumps({"kind": kind, **facts}) + "\n")
    sys.stdout.flush()


def tell_trouble(kind: str, said: str, **facts: Any) -> bool:
    """Tell the supervisor, where there is one, what is the matter with this rank or with another; it says that to people. Return whether
    there is one."""
    if state_path() is None:
        return False
    tell(kind, rank=launched_rank(), said=said, **facts)
    return True


def tell_place() -> None:
    """Tell the supervisor, where there is one, on which of its hosts this rank is: what no name can tell as well as its own file there."""
    path = state_path()
    if path is None:
        return
    try:
        host = json.loads(path.read_text()).get("host")
    except (OSError, ValueError, AttributeError):  # what else is in it is read, and refused, later
        host = None
    tell("rank", rank=launched_rank(), host=host)


def told(line: str) -> dict[str, Any] | None:
    """Return the record that a line is; None for other lines, and for one that was cut off."""
    if not line.startswith(MARK) or not line.endswith("\n"):
        return None
    try:
        record = json.loads(line[len(MARK) :])
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("kind"), str) else None


def for_people(line: str) -> str:
    """Return what is to be shown of a line that is no record: not what is left of one whose rank was killed while it told it, and a line
    of its own, so that what is shown next begins another.

    >>> for_people("hello\\n"), for_people("\\x1e{\\"kind\\": [1, 2"), for_people("hel"), for_people("hello \\x1e{")
    ('hello\\n', '', 'hel\\n', 'hello \\n')
    """
    text = line.partition(MARK)[0]
    return text if not text or text.endswith("\n") else text + "\n"


def print_on(descriptor: int, text: str) -> None:
    """Print what ranks have printed, as long as somebody reads it: mpirun stands still where nobody takes what it says."""
    with suppress(OSError):
        print(text, end="", file=(sys.stdout, sys.stderr)[descriptor == ERR], flush=True)


def untangled(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a stream in which a short record of one rank may stand in the midst of a long line of another.

    >>> list(untangled(['one \\x1e{"kind": ""}\\n', "line\\n"]))
    ['\\x1e{"kind": ""}\\n', 'one line\\n']
    """
    before = ""
    for line in lines:
        at = line.rfind(MARK)
        if at >= 0 and told(line[at:]) is not None:
            before += line[:at]
            yield line[at:]
        else:
            yield before + line
            before = ""
    if before:
        yield before
