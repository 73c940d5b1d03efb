"""The HDF5 file of a weight store: how it is opened, what its description holds and where a part of a tensor lies. The only user of h5py.

Knows the file; does not know what a rank needs of it, nor how weights are made. Version 1.10 metadata carries checksums of its own; every
dataset is contiguous, so a slice along dim 0 is one byte range. The layout is described in weights/README.md.
"""

import errno
import fcntl
import glob
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import h5py
import numpy as np

from hepti_mpi.documents import behind_links, unfinished
from hepti_mpi.errors import StoreError, reason_of
from hepti_mpi.models.formats import VALUES

FORMAT, FORMAT_VERSION = "hepti-store", 3
READ = (1, 2, 3)  # versions; the first knows float32 only, both first count query heads that read the same K and V as one
DESCRIBED_BYTES = 16 << 10  # of descriptions that HDF5 keeps of a file that is read: those of a large model would take megabytes
JUST_BEGUN = 60.0  # seconds after which a file that is being written is locked where locks are known
AGAIN = "make it again with: python -m hepti_mpi slice SOURCE STORE"
File: TypeAlias = h5py.File
Dataset: TypeAlias = h5py.h5d.DatasetID  # HDF5's own: what h5py puts around it takes three times as long, and a model has hundreds


@contextmanager
def new_file(path: Path, size: int) -> Iterator[File]:
    """Yield a new HDF5 file that takes the name `path`, or what that points to, when all went well and leaves nothing behind otherwise.

    That there is room for `size` bytes is checked before: HDF5 may end the process when a disk is full.
    """
    place = behind_links(path)
    try:
        with unfinished(place) as temporary:
            place.parent.mkdir(parents=True, exist_ok=True)
            _sweep(place)
            system = os.statvfs(place.parent)
            if system.f_bavail * system.f_frsize < size:
                raise OSError(errno.ENOSPC, f"it takes {size} bytes, {system.f_bavail * system.f_frsize} are free")
            with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb") as written:
                with suppress(OSError):  # some file systems know no locks
                    fcntl.flock(written, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # v110 metadata carries checksums of its own; every tensor begins at a multiple of 64 bytes
                how = {"libver": ("v110", "v110"), "locking": False, "alignment_threshold": 1, "alignment_interval": 64}
                with h5py.File(temporary, "w", **how) as file:
                    yield file
                os.fsync(written.fileno())
            temporary.replace(place)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {reason_of(error)}") from None


def _sweep(place: Path) -> None:
    """Remove what programs that were killed left of the file at `place`: nobody holds it, and it was not just begun."""
    for left in glob.glob(f".{glob.escape(place.name)}.{'[0-9a-f]' * 8}.part", root_dir=place.parent):
        with suppress(OSError), open(place.parent / left, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(file.fileno()).st_mtime > JUST_BEGUN:
                (place.parent / left).unlink()


@contextmanager
def changed(path: Path) -> Iterator[File]:
    """Yield the file at `path` to add to its description. Raises: StoreError."""
    try:
        with h5py.File(path, "r+", locking=False) as file:
            yield file
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {short(error)}") from None


def opened(path: Path) -> File:
    """Return the file at `path`, open for reading. Raises: StoreError."""
    try:
        file = h5py.File(path, "r", locking=False)
        kept = file.id.get_mdc_config()
        kept.set_initial_size, kept.initial_size, kept.min_size, kept.max_size = True, *[DESCRIBED_BYTES] * 3
        file.id.set_mdc_config(kept)
        return file
    except (OSError, RuntimeError, ValueError) as error:
        if "already open for write" in str(error) or "unable to lock file" in str(error):
            raise StoreError(f"{path} is being written; wait for that, or where nobody writes it any more {AGAIN}") from None
        raise StoreError(f"{path} is not a weight store or is damaged ({short(error)}); {AGAIN}") from None


def files_in(file: File, path: Path) -> dict[str, bytes]:
    """Return the files beside the weights in the file at `path`, by name. Raises: StoreError where one is none, or larger than all."""
    found: list[tuple[str, h5py.Dataset]] = []  # a file's name may have a folder in it
    if "files" in file:
        file["files"].visititems(lambda name, item: found.append((name, item)) if isinstance(item, h5py.Dataset) else None)
    for name, dataset in found:
        if dataset.dtype != np.uint8 or dataset.nbytes > path.stat().st_size:
            raise StoreError(f"{path}: file {name} in it is damaged; {AGAIN}")
    return {name: dataset[()].tobytes() for name, dataset in found}


def dataset(file: File, at: str) -> Dataset:
    """Return the dataset at a place. Raises KeyError when nothing is there."""
    found = h5py.h5o.open(file.id, at.encode())
    if not isinstance(found, h5py.h5d.DatasetID):
        raise TypeError(f"{at} is no dataset")
    return found


def number(of: Dataset, name: str, otherwise: int | None = None) -> int:
    """Return a number that is noted of a dataset; `otherwise`: where it may not be."""
    if otherwise is not None and not h5py.h5a.exists(of, name.encode()):
        return otherwise
    noted = h5py.h5a.open(of, name.encode())
    if noted.shape != ():
        raise TypeError(f"{name} is no number")
    value = np.empty((), noted.dtype)
    noted.read(value)
    return int(value)


def content(of: Dataset) -> np.ndarray:
    """Return all numbers of a dataset."""
    values = np.empty(of.shape, of.dtype)
    of.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values


def head_checksum(spec: str, source_hash: str, files: Mapping[str, bytes]) -> int:
    """Return the checksum of what describes a store."""
    value = zlib.crc32(f"{spec}\n{source_hash}".encode())
    for name in sorted(files):
        value = zlib.crc32(name.encode() + b"\n" + files[name], value)
    return value


def place(name: str, part: str) -> str:
    """Return where the file has a part of a tensor."""
    return f"weights/{name}" if part == VALUES else f"{part}/{name}"


def place_of_sums(name: str, part: str) -> str:
    """Return where the file has the checksums of a part of a tensor."""
    return f"checksums/{name}" if part == VALUES else f"checksums/{place(name, part)}"


def short(error: Exception) -> str:
    """Return what a library says of an error, on one line."""
    return " ".join(str(error).split())[:120] or type(error).__name__
