"""The memory that weights lie in once they are loaded: what loading left over is given back, the rest is put into huge pages, so that
reading all of it for every token needs few entries of the processor's page tables. Buffers of which little is used take no more.

Knows the kernel's view of this process (Linux) and the C library; does not know what lies where. Sources: madvise(2), MADV_COLLAPSE;
mallopt(3).
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

HUGE = Path("/sys/kernel/mm/transparent_hugepage")
PROCESS = Path("/proc/self")
COLLAPSE = 25  # MADV_COLLAPSE, of Linux 6.1 and later
ARENA_MAX = -8  # M_ARENA_MAX of mallopt
PRESENT = 63  # the bit of a page in pagemap that says whether it is in memory
FULL = 0.9  # of a huge page's pages must be there: the others would be taken too


def settle() -> int:
    """Give free memory back and put what is in use into huge pages; return the bytes that were. Nothing where the system has none."""
    library = trim()
    if not hasattr(library, "madvise") or not _allowed():
        return 0
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    total = 0
    for first, size in _runs(int((HUGE / "hpage_pmd_size").read_text())):
        if library.madvise(first, size, COLLAPSE) == 0:
            total += size
        elif ctypes.get_errno() in (errno.ENOSYS, errno.EPERM):
            break
    return total


def trim() -> ctypes.CDLL:
    """Give free memory back; return the C library."""
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "malloc_trim"):  # of glibc
        library.malloc_trim(0)
    return library


def one_heap() -> None:
    """Let all threads take memory from one heap: with one each, what sessions have given back to the heap of one thread is not there for
    another, and a process that answers batches of ever other shapes grows for minutes."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # of glibc
        library.mallopt(ARENA_MAX, 1)


def untouched(*shape: int) -> np.ndarray:
    """Return float32 zeros that take no memory where nothing is written to them: of pages of their own, since what the C library has had
    back before is in memory already."""
    size = prod(shape)
    if not size:
        return np.zeros(shape, np.float32)
    return np.frombuffer(mmap.mmap(-1, 4 * size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.float32, size).reshape(shape)


def _allowed() -> bool:
    try:
        return "[never]" not in (HUGE / "enabled").read_text() and int((HUGE / "hpage_pmd_size").read_text()) > 0
    except (OSError, ValueError):
        return False


def _runs(piece: int) -> Iterator[tuple[int, int]]:
    """Yield (address, bytes) of memory of this process alone, in whole pieces nearly all of whose pages are there."""
    with (PROCESS / "pagemap").open("rb", buffering=0) as pagemap:
        for start, stop in _areas():
            first, count = -(-start // piece), stop // piece - -(-start // piece)
            if count <= 0:
                continue
            full = np.flatnonzero(_present(pagemap.fileno(), first * piece, count * piece).reshape(count, -1).mean(axis=1) >= FULL)
            for run in np.split(full, np.flatnonzero(np.diff(full) > 1) + 1):
                if len(run):
                    yield (first + int(run[0])) * piece, len(run) * piece


def _present(pagemap: int, address: int, size: int) -> np.ndarray:
    page = os.sysconf("SC_PAGE_SIZE")
    entries = np.frombuffer(os.pread(pagemap, 8 * size // page, 8 * address // page), np.uint64)
    return (entries >> np.uint64(PRESENT)).astype(bool)


def _areas() -> list[tuple[int, int]]:
    """Return (start, stop) of what is mapped from no file and may be written."""
    found = []
    for line in (PROCESS / "maps").read_bytes().split(b"\n")[:-1]:  # a file's name may hold anything else, also half a letter
        span, access, _, _, inode, *name = line.split(maxsplit=5)
        if access == b"rw-p" and inode == b"0" and (not name or name[0].strip() == b"[heap]" or name[0].startswith(b"[anon")):
            start, stop = (int(part, 16) for part in span.split(b"-"))
            found.append((start, stop))
    return found
