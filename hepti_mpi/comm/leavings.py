"""What jobs that were killed leave on a host: Open MPI's segments in shared memory, which is memory, and its session folders, of which one
lets an mpirun fail that is given the same process number again; and folders of our own.

Uses the standard library only: its text is also sent to other hosts. Knows one host and one user; ends nobody. Containers may share the
host's name and folders and not its processes: what one of them uses is left alone by all.
"""

import fcntl
import os
import re
import shutil
import signal
import time

HOST = os.uname().nodename
MEMORY = "/dev/shm"
SEGMENT = re.compile(rf"sm_segment\.(?:{re.escape(HOST)}|{re.escape(HOST.partition('.')[0])})\.{os.getuid()}\..*")
PROCESSES = "/proc/self/ns/pid"  # among which a process number means something
OWN = f"hepti-{HOST}-{os.stat(PROCESSES).st_ino if os.path.exists(PROCESSES) else 0}-"
FOLDER = re.compile(rf"(?:ompi\.|prted\.|({re.escape(OWN)}))(\d+)(?:-\w+)?")
FRESH_SECONDS = 60  # in which what is there may not yet be used: the ranks of a host do not come at the same moment


def own_prefix() -> str:
    """Return how the name of a folder begins that is a leaving once this process has ended."""
    return f"{OWN}{os.getpid()}-"


def session_folder(mpirun: int) -> str:
    """Return the folder of an mpirun on this host, by its process number."""
    return os.path.join(scratch(), f"ompi.{mpirun}")


def leavings(had: str = "") -> dict[str, int]:
    """Return the segments and folders of this user and host that no living process has, and the bytes of each. Of what is fresh only
    what is in `had`: what processes had mapped that were ended, and that may take a moment to let go of it."""
    found = {}
    for folder, is_left in ((MEMORY, _is_segment), (scratch(), _is_folder)):
        for entry in _entries(folder):
            try:
                status, ended = entry.stat(follow_symlinks=False), f"{entry.path}/" in had or f"{entry.path}\n" in had
                old = time.time() - status.st_mtime > FRESH_SECONDS
                if status.st_uid == os.getuid() and is_left(entry) and (ended or old and not is_used(entry.path)):
                    found[entry.path] = status.st_blocks * 512  # what was never written takes nothing
            except OSError:  # removed meanwhile
                continue
    return found


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


def scratch() -> str:
    """Return where Open MPI makes its session folders."""
    return next((os.environ[name] for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)), "/tmp")


def _entries(folder: str) -> "list[os.DirEntry[str]]":
    try:
        return list(os.scandir(folder))
    except OSError:
        return []


def _is_segment(entry: "os.DirEntry[str]") -> bool:
    return SEGMENT.fullmatch(entry.name) is not None and entry.is_file(follow_symlinks=False)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Tell whether this is a session folder or one of our own, of a process that has ended and was on this host: several may share it."""
    named = FOLDER.fullmatch(entry.name)
    if not named or not entry.is_dir(follow_symlinks=False) or os.path.exists(f"/proc/{named[2]}"):
        return False
    return bool(named[1]) or any(name.startswith(f"pmix.{HOST}.") for name in os.listdir(entry.path))


def is_used(path: str) -> bool:
    """Tell whether any process has a file, or one in a folder, open or mapped, also one of another container, which is in no /proc here:
    then there is no lease, nor on a file system that knows none, where nothing is removed."""
    if os.path.isdir(path):
        return any(is_used(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)  # sent to whoever holds a lease when one opens the file: SIGIO would end it
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
