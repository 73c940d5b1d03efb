import mmap
import platform
import subprocess
import sys

import numpy as np
import pytest

from hepti_mpi.engine import pages

PAGE, HUGE = mmap.PAGESIZE, 2 << 20


def there(address, size):
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        return int(pages._present(pagemap.fileno(), address, size).sum())


def test_memory_in_use_stays_as_it_is_and_what_was_never_used_is_not_taken():
    full, sparse = (mmap.mmap(-1, 8 * HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2))
    values, some = np.frombuffer(full, np.uint8), np.frombuffer(sparse, np.uint8)
    values[:] = np.random.default_rng(0).integers(0, 256, len(values), np.uint8)
    some[:: 16 * PAGE] = 7
    copy, before = values.copy(), there(some.ctypes.data, len(some))
    huge = pages.settle()
    np.testing.assert_array_equal(values, copy)
    assert there(some.ctypes.data, len(some)) == before == len(some) // (16 * PAGE)
    assert (some[:: 16 * PAGE] == 7).all() and int(some.sum()) == 7 * before
    if pages._allowed() and huge:  # this kernel knows how
        assert huge >= 6 * HUGE  # of eight, whose first and last piece may be shared with what lies beside it


def test_runs_are_of_whole_pieces_that_are_there():
    """A run may go on beyond what is held here: what is there may be given back at any time."""
    held = np.ones(6 * HUGE, np.uint8)
    first, end = held.ctypes.data, held.ctypes.data + len(held)
    inside = [(start, size) for start, size in pages._runs(HUGE) if start < end and start + size > first]
    assert inside and all(start % HUGE == 0 and size % HUGE == 0 for start, size in inside)
    own = [(max(start, -(-first // HUGE) * HUGE), min(start + size, end // HUGE * HUGE)) for start, size in inside]
    assert sum(stop - start for start, stop in own) >= 5 * HUGE
    assert all(there(start, stop - start) >= pages.FULL * (stop - start) / PAGE for start, stop in own)


def test_a_system_without_huge_pages_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(pages, "HUGE", tmp_path)
    assert pages.settle() == 0
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    (tmp_path / "hpage_pmd_size").write_text(f"{HUGE}\n")
    assert pages.settle() == 0


def test_what_is_untouched_takes_no_memory_until_it_is_written_to():
    """Not even where the C library would have given memory that was in use before."""
    for _ in range(8):
        np.ones(3 << 20, np.float32)
    values = pages.untouched(256, 3 << 12)
    assert values.dtype == np.float32 and values.shape == (256, 3 << 12) and values.flags.c_contiguous and values.flags.writeable
    assert there(values.ctypes.data, values.nbytes) == 0
    values[:2] = 1
    assert 0 < there(values.ctypes.data, values.nbytes) <= HUGE // PAGE and values[:3].sum() == 2 * (3 << 12)
    assert pages.untouched(8, 0).shape == (8, 0)



HEAPS = """
import ctypes, os, sys, threading
from hepti_mpi.engine import pages
if "one" in sys.argv:
    pages.one_heap()
library = ctypes.CDLL(None)
library.malloc.restype, library.fdopen.restype = ctypes.c_void_p, ctypes.c_void_p
library.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
barrier = threading.Barrier(4)
def take():
    barrier.wait()
    library.malloc(50_000)
    barrier.wait()
threads = [threading.Thread(target=take) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
library.malloc_info(0, library.fdopen(os.dup(1), b"w"))
library.fflush(None)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other heaps")
def test_threads_share_one_heap():
    found = {}
    for how in ("one", "many"):
        done = subprocess.run([sys.executable, "-c", HEAPS, how], capture_output=True, text=True, check=True)
        found[how] = done.stdout.count("<heap nr=")
    assert found["one"] == 1 < found["many"]
