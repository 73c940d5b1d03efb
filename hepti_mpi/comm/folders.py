"""The folders that Open MPI keeps: whether they can be made, have room, and are gone when nobody else removes them. Does not start MPI."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from hepti_mpi.comm.leavings import own_prefix, scratch
from hepti_mpi.errors import HostError, RankError, reason_of

ROOM = 1 << 20  # bytes for mpirun's files: 100 KiB were seen with two ranks


def check_scratch() -> None:
    """Raise HostError where TMPDIR leads to where no folder can be made: Open MPI keeps one there and breaks down without it."""
    folder = os.environ.get("TMPDIR")
    try:
        if folder:
            os.makedirs(folder, exist_ok=True)  # as Open MPI does
            os.rmdir(tempfile.mkdtemp(dir=folder))
    except OSError as error:
        raise HostError(f"Open MPI can make no folder in {folder}, where TMPDIR leads: {reason_of(error)}; unset TMPDIR") from None


def check_room() -> None:
    """Raise HostError where mpirun would break down, with a bus error, since files that it maps find no room in its folder."""
    folder = scratch()
    if os.path.isdir(folder) and shutil.disk_usage(folder).free < ROOM:
        raise HostError(f"mpirun needs {ROOM >> 20} MiB in {folder}, and less is free there; make room, or set TMPDIR")


def check_rank() -> None:
    """Raise HostError before this rank starts MPI where mpirun would break down as soon as all have; one of a host tells it."""
    try:
        check_room()
    except HostError as error:
        silent = os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0") != "0"
        told = RankError("another rank of this host tells it") if silent else error
        told.agreed = True  # mpirun ends all when one has ended
        raise told from None


def own_folder() -> str:
    """Make a folder that is this process's own and a leaving once it has ended. Raises HostError."""
    try:
        made = tempfile.mkdtemp(prefix=own_prefix())
    except OSError as error:
        raise HostError(f"Open MPI needs a folder, and none can be made: {reason_of(error)}; set TMPDIR") from None
    if not os.access(made, os.W_OK | os.X_OK):
        os.rmdir(made)
        raise HostError("the umask keeps this user out of the folders that it makes, and Open MPI needs some; before this: umask 022")
    return made


@contextmanager
def leaving_nothing() -> Iterator[None]:
    """Let MPI start in a process that nobody launched, after whose end nobody removes what MPI has made, a good one neither: in a folder
    that goes at once, and without a segment of memory for others. What is set for that is not for processes that this one starts. Raises
    HostError."""
    check_scratch()
    folder, before = own_folder(), dict(os.environ)
    own = {"TMPDIR": folder, "OMPI_MCA_btl": before.get("OMPI_MCA_btl", "self")}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            os.environ.pop(name)
            os.environ.update({name: before[name]} if name in before else {})
        shutil.rmtree(folder, ignore_errors=True)
