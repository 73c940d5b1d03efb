"""Weights in the order in which the kernels of one processor read them, in a folder of a rank's cache: made once, mapped from then on.

An entry is a folder by the name of its key, with files that a runtime wrote and a list of them with their sizes and checksums, which is
written last. It gets its name when it is whole, so that processes that make the same one do not meet. Knows files and keys; does not know
what is in the files, nor what decides a key but for the processor.
"""

import json
import os
import platform
import shutil
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from hepti_mpi.documents import unfinished, whole_file

FORMAT, LIST = 1, "list.json"
UNUSED_SECONDS, BROKEN_SECONDS = 30 * 86400.0, 3600.0  # after which an entry is removed, and what somebody did not finish
OLD_SECONDS = 86400.0  # after which an entry is removed where the disk is full
PIECE = 1 << 22  # bytes that are checked at once


@dataclass
class Prepacked:
    """The entries in `folder`. `say`: is told, once, why none can be made."""

    folder: Path
    say: Callable[[str], None]
    failed: bool = False

    @property
    def writable(self) -> bool:
        """Whether entries can be made, as far as is known before one is."""
        there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        return there.is_dir() and os.access(there, os.W_OK | os.X_OK)

    def find(self, key: str) -> Path | None:
        """Return the folder of an entry whose files are those that were written; None where there is none."""
        entry = self.folder / key
        try:
            listed = json.loads((entry / LIST).read_bytes())
            if listed["format"] != FORMAT or listed["key"] != key:
                return None
            for name, size, checksum in listed["files"]:
                if (entry / name).stat().st_size != size or _checksum(entry / name) != checksum:
                    return None
            with suppress(OSError):  # of another user, who must see to its age
                os.utime(entry)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return entry

    def make(self, key: str, room: int, write: Callable[[Path], None], of: Mapping[str, str] | None = None) -> Path | None:
        """Return the folder of a new entry that `write` fills, with at most `room` bytes; None, said once, where that fails. `of`: what is
        told of it (Entry)."""
        if self.failed:
            return None
        entry = self.folder / key
        try:
            with unfinished(entry) as beside:
                beside.mkdir(parents=True, mode=0o700)
                self._sweep()
                free = self._freed(room)
                if free < room:
                    raise OSError(f"it takes {room} bytes, {free} are free")
                write(beside)
                files = [(path.name, path.stat().st_size, _checksum(path)) for path in sorted(beside.iterdir())]
                with whole_file(beside / LIST) as file:
                    file.write(json.dumps({"format": FORMAT, "key": key, "files": files, "of": dict(of or {})}).encode())
                if entry.exists() and self.find(key) is None:
                    shutil.rmtree(entry, ignore_errors=True)
                with suppress(OSError):  # another process was sooner
                    beside.rename(entry)
                if found := self.find(key):
                    return found
                raise PermissionError(f"{entry.name} in it cannot be replaced")
        except Exception as error:  # of the runtime too, which has no class of errors for files
            self.fail(error)
            return None

    def fail(self, error: Exception, entry: Path | None = None) -> None:
        """Say why there is no entry, or none that can be used, which is removed; there is no other attempt."""
        if entry is not None:
            shutil.rmtree(entry, ignore_errors=True)
        if not self.failed:
            why = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
            self.say(f"{self.folder} cannot keep weights as kernels read them ({why}): going on without")
        self.failed = True

    def _sweep(self) -> None:
        """Remove what nobody used for long, and what was not finished."""
        for entry in entries(self.folder):
            if entry.age > (UNUSED_SECONDS if entry.whole else BROKEN_SECONDS):
                shutil.rmtree(entry.path, ignore_errors=True)

    def _freed(self, room: int) -> int:
        """Return the bytes that are free on the disk, after the entries that were not used for longest are removed, as far as there must be
        `room`."""
        for entry in entries(self.folder):
            if shutil.disk_usage(self.folder).free >= room:
                break
            if entry.whole and entry.age > OLD_SECONDS:
                shutil.rmtree(entry.path, ignore_errors=True)
        return shutil.disk_usage(self.folder).free


@dataclass(frozen=True)
class Entry:
    """What lies at `path`: `bytes`, not used for `age` seconds. `whole`: whether it was finished; `of`: `model`, whose weights these are,
    its `source`, and the `runtime` and `processor` that read them; nothing of older ones."""

    path: Path
    bytes: int
    age: float
    whole: bool
    of: Mapping[str, str]

    @property
    def old(self) -> bool:
        """Whether nobody used it lately, or nobody can on this processor."""
        here = processor_name()
        return self.age > OLD_SECONDS or self.of.get("processor", here) != here


def entries(folder: Path) -> list[Entry]:
    """Return what is in a folder of entries, what was not used for longest first. Raises OSError when it cannot be read."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):
            age, of = time.time() - path.stat().st_mtime, dict[str, str]()
            size = sum(file.stat().st_size for file in path.iterdir())
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                of = {str(name): str(said) for name, said in json.loads((path / LIST).read_bytes())["of"].items()}
            found.append(Entry(path, size, age, not path.name.startswith("."), of))
    return sorted(found, key=lambda entry: -entry.age)


def clear(folder: Path, every: bool) -> list[Entry]:
    """Remove the old entries of a folder, or `every` one; return those that are gone. What is mapped stays until its process ends."""
    chosen = [entry for entry in entries(folder) if every or entry.old]
    for entry in chosen:
        shutil.rmtree(entry.path, ignore_errors=True)
    return [entry for entry in chosen if not entry.path.exists()]


def key_of(*what: bytes) -> str:
    """Return the key of an entry that depends on `what`, in this order, and on the processor."""
    found = sha256(f"{FORMAT}\n{processor()}".encode())
    for one in what:
        found.update(len(one).to_bytes(8, "little") + one)
    return found.hexdigest()


def processor() -> str:
    """Return what is known of the processor: its kind, name and instructions."""
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    lines = [platform.machine()]
    with suppress(OSError):
        found = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        lines += sorted({line for line in found if line.split("\t")[0].strip() in wanted})
    return "\n".join(lines)


def processor_name() -> str:
    """Return a short name of the processor, which others of its kind have too."""
    return sha256(processor().encode()).hexdigest()[:12]


def _checksum(path: Path) -> int:
    found = 0
    with open(path, "rb", buffering=0) as file:
        while content := file.read(PIECE):
            found = zlib.crc32(content, found)
    return found
