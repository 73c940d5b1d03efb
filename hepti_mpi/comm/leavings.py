"""What jobs that were killed leave on a host: Open MPI's segments in shared memory, which is memory, and its session folders, of which one
lets an mpirun fail that is given the same process number again; and folders of our own.

Uses the standard library only: its text is also sent to other hosts. Knows one host and one user; ends nobody.
"""

import os
import re
import shutil
import time

HOST = os.uname().nodename
MEMORY = "/dev/shm"
SEGMENT = re.compile(rf"sm_segment\.(?:{re.escape(HOST)}|{re.escape(HOST.partition('.')[0])})\.{os.getuid()}\..*")
FOLDER = re.compile(rf"(?:ompi\.|prted\.|(hepti-{re.escape(HOST)}-))(\d+)(?:-\w+)?")
FRESH_SECONDS = 60  # in which what is there may not yet be used: the ranks of a host do not come at the same moment


def own_prefix() -> str:
    """Return how the name of a folder begins that is a leaving once this process has ended."""
    return f"hepti-{HOST}-{os.getpid()}-"


def session_folder(mpirun: int) -> str:
    """Return the folder of an mpirun on this host, by its process number."""
    return os.path.join(_scratch(), f"ompi.{mpirun}")


def leavings(had: str = "") -> dict[str, int]:
    """Return the segments and folders of this user and host that no living process has, and the bytes of each. Of what is fresh only
    what `had` names: what processes had mapped that were ended."""
    found = {}
    for folder, is_left in ((MEMORY, _is_segment), (_scratch(), _is_folder)):
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    fresh = time.time() - status.st_mtime < FRESH_SECONDS and entry.path not in had
                    if status.st_uid == os.getuid() and not fresh and is_left(entry):
                        found[entry.path] = status.st_blocks * 512  # what was never written takes nothing
        except OSError:  # not there, or removed meanwhile
            continue
    used = "".join(mapped(number) for number in os.listdir("/proc") if number.isdigit()) if found else ""
    return {path: size for path, size in found.items() if path not in used}


def mapped(process: str) -> str:
    """Return what a process has mapped, "" where it has ended or is another user's."""
    try:
        with open(f"/proc/{process}/maps", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def remove(had: str = "") -> None:
    """Remove what `leavings` returns."""
    for path in leavings(had):
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
            continue
        try:
            os.unlink(path)
        except OSError:  # another one was sooner
            pass


def _scratch() -> str:
    return os.environ.get("TMPDIR") or "/tmp"


def _is_segment(entry: "os.DirEntry[str]") -> bool:
    return SEGMENT.fullmatch(entry.name) is not None and entry.is_file(follow_symlinks=False)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Tell whether this is a session folder or one of our own, of a process that has ended and was on this host: several may share it."""
    named = FOLDER.fullmatch(entry.name)
    if not named or not entry.is_dir(follow_symlinks=False) or os.path.exists(f"/proc/{named[2]}"):
        return False
    return bool(named[1]) or any(name.startswith(f"pmix.{HOST}.") for name in os.listdir(entry.path))
