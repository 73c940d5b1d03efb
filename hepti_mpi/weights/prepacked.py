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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from hepti_mpi.documents import whole_file

FORMAT, LIST = 1, "list.json"
UNUSED_SECONDS, BROKEN_SECONDS = 30 * 86400.0, 3600.0  # after which an entry is removed, and what somebody did not finish
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

    def make(self, key: str, room: int, write: Callable[[Path], None]) -> Path | None:
        """Return the folder of a new entry that `write` fills, with at most `room` bytes; None, said once, where that fails."""
        if self.failed:
            return None
        entry, beside = self.folder / key, self.folder / f".{key}.{os.urandom(4).hex()}.part"
        try:
            beside.mkdir(parents=True, mode=0o700)
            self._sweep()
            free = shutil.disk_usage(self.folder).free
            if free < room:
                raise OSError(f"it takes {room} bytes, {free} are free")
            write(beside)
            files = [(path.name, path.stat().st_size, _checksum(path)) for path in sorted(beside.iterdir())]
            with whole_file(beside / LIST) as file:
                file.write(json.dumps({"format": FORMAT, "key": key, "files": files}).encode())
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
        finally:
            shutil.rmtree(beside, ignore_errors=True)

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
        for path in self.folder.iterdir():
            with suppress(OSError):
                age = time.time() - path.stat().st_mtime
                if age > (BROKEN_SECONDS if path.name.startswith(".") else UNUSED_SECONDS):
                    shutil.rmtree(path, ignore_errors=True)


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


def _checksum(path: Path) -> int:
    found = 0
    with open(path, "rb", buffering=0) as file:
        while content := file.read(PIECE):
            found = zlib.crc32(content, found)
    return found
