"""A file that one job at a time may use. Knows locks, processes and files; does not know what is in the file.

The lock is the kernel's (flock): it ends with the process that holds it, however that ends. A file system without locks has none, then
nothing is kept apart.
"""

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import IO

from hepti_mpi.errors import InputError

PATIENT_SECONDS = 2.0  # that a job which is being ended may take for it
LOOK_SECONDS = 0.05


def open_locked(path: Path) -> IO[bytes]:
    """Return the file at `path`, made if need be, locked until it is closed. Raises OSError, and InputError when a running job holds it."""
    end = time.monotonic() + PATIENT_SECONDS
    while True:
        file = os.fdopen(os.open(path, os.O_CREAT | os.O_RDWR, 0o600), "r+b")
        try:
            if _locked(file) and _same(file, path):
                return file
        except BaseException:
            file.close()
            raise
        who = _holder(file)
        file.close()
        if time.monotonic() > end:
            raise InputError(f"{path} is in use by a job that runs{who}; wait for it, end it, or write to another --output")
        time.sleep(LOOK_SECONDS)


def check_free(path: Path) -> None:
    """Raise InputError when a running job holds the file at `path`."""
    if path.exists():
        open_locked(path).close()


def _locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)  # others: there are no locks here
    return True


def _same(file: IO[bytes], path: Path) -> bool:
    """Tell whether the file still has that name: the job that held it may have deleted it meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(file: IO[bytes]) -> str:
    """Return which process holds the lock, as far as this host knows."""
    try:
        number = os.fstat(file.fileno()).st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()  # number: FLOCK ADVISORY WRITE process device:inode from to
            if len(words) > 5 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(number) and words[4] != "-1":
                return f" (process {words[4]})"
    except (OSError, ValueError):
        pass
    return ""
