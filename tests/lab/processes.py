"""The processes of a host as the machine sees them: found by their process namespace, told apart as ranks by their environment.

Knows /proc. Does not know labs.
"""

import os
import re
import signal
from pathlib import Path


def namespace(process: int, kind: str = "pid") -> str | None:
    """Return which namespace a process is in, or None when it is gone."""
    try:
        return os.readlink(f"/proc/{process}/ns/{kind}")
    except OSError:
        return None


def beside(process: int) -> dict[int, str]:
    """Return all processes in the process namespace of this one, by the machine's numbers, with their command lines."""
    space = namespace(process)
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()] if space else []
    lines = {number: _read(number, "cmdline") for number in numbers if namespace(number) == space}
    return {number: line.replace("\0", " ").strip() for number, line in lines.items() if line}


def rank_of(process: int) -> int | None:
    """Return the MPI rank a process is, or is a child of; None for other processes."""
    found = re.search(r"(?:^|\0)OMPI_COMM_WORLD_RANK=(\d+)", _read(process, "environ"))
    return int(found[1]) if found else None


def parent(process: int) -> int:
    fields = _read(process, "stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


def kill(process: int) -> None:
    """Send SIGKILL to a process that may be gone."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _read(process: int, name: str) -> str:
    try:
        return Path(f"/proc/{process}/{name}").read_text(errors="replace")
    except OSError:
        return ""
