"""Where labs keep their state, which of them live, and how the rest of a dead one is removed.

A lab is a folder LABS/NAME. Its process `starter` made it, and `switch` is the first process of its process namespace: when that
one ends, the kernel ends every process of the lab, and with them go all namespaces, links and mounts. A lab lives as long as its
starter or, once it is marked to stay, its switch. Knows files and process ids; does not know what a host is.
"""

import os
import re
import subprocess
import time
from pathlib import Path

from .errors import LabError
from .processes import kill

LABS = Path("/run/hepti-lab")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
END_SECONDS = 60  # for the kernel to end the processes of a lab


def create(name: str) -> Path:
    """Make and return the folder of a new lab; what a dead one of that name left is removed first. Raises LabError."""
    if not NAME.fullmatch(name):  # it becomes a folder, of which what was there before is removed
        raise LabError(f"{name!r} is no name for a lab: small letters, digits and - within, at most 64")
    folder = LABS / name
    if is_alive(folder):
        raise LabError(f"{name} is up already; take it down with: python -m tests.lab down {name}")
    remove(folder)
    draft = LABS / f".{name}.{os.getpid()}"  # appears under its name only with its starter in it
    draft.mkdir(parents=True, mode=0o700)
    (draft / "starter").write_text(f"{os.getpid()} {_started(os.getpid())}\n")
    try:
        draft.rename(folder)
    except OSError:
        remove(draft)
        raise LabError(f"{name} is being brought up by another process") from None
    return folder


def names() -> list[str]:
    """Return the names of all labs, alive or dead."""
    return sorted(path.name for path in LABS.iterdir() if path.name[0] != ".") if LABS.is_dir() else []


def is_alive(folder: Path) -> bool:
    return _runs(folder / "starter") or ((folder / "stays").exists() and _runs(folder / "switch"))


def stay(folder: Path) -> None:
    """Mark a lab to outlive its starter."""
    (folder / "stays").touch()


def remove(folder: Path) -> None:
    """End the processes of a lab and delete its folder. Raises LabError where they do not end."""
    deadline = time.monotonic() + END_SECONDS
    while _runs(folder / "switch"):
        kill(process(folder / "switch"))
        if time.monotonic() > deadline:
            raise LabError(f"the processes of {folder.name} did not end within {END_SECONDS} s")
        time.sleep(0.01)
    # never into another file system: a mount that was not private would lead out of the folder
    if folder.exists():
        subprocess.run(["rm", "-rf", "--one-file-system", folder], stderr=subprocess.DEVNULL)
    if folder.exists():
        raise LabError(f"cannot remove {folder}")


def process(file: Path) -> int:
    """Return the process id that a file of a lab holds."""
    return int(file.read_text().split()[0])


def _runs(file: Path) -> bool:
    """Say whether the process in the file, `ID START`, still is that process and runs."""
    try:
        number, started = file.read_text().split()
    except (OSError, ValueError):
        return False
    return _started(int(number)) == started


def _started(number: int) -> str | None:
    """Return when a process began, in clock ticks since the boot; None when it is gone or has only to be reaped."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
