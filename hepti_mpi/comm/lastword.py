"""The last word of a rank: why it ends and what is kept. It is said once, by the rank or by a process that was forked of it.

Knows that one of the two may end without a word; does not know what is said, nor how.
"""

import mmap
import os
from collections.abc import Callable

BYTES = 1 << 16
KEPT = Callable[[], str | None]


class LastWord:
    """`kept`: tells what is kept, "" where there is nothing to say of it and None where somebody else says all."""

    def __init__(self, kept: KEPT = str) -> None:
        self.kept = kept
        self.token, given = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)  # whoever reads what is in it has the word
        os.write(given, b"!")
        self._page = mmap.mmap(-1, BYTES)  # which a process that is forked has too
        self.note()

    def taken(self) -> bool:
        """Take the word; tell whether nobody had it."""
        try:
            return bool(os.read(self.token, 1))
        except BlockingIOError:
            return False

    def note(self) -> None:
        """Note what is kept now, for the process that outlives this one."""
        self._page.seek(0)
        self._page.write((self.kept() or "").encode(errors="backslashreplace")[: BYTES - 1] + b"\0")

    def noted(self, why: str) -> str:
        """Return what is to be said for a process that is no more."""
        return joined(why, self._page[:].partition(b"\0")[0].decode(errors="ignore"))  # it may have been cut within a letter


def joined(why: str, kept: str) -> str:
    return f"{why}; {kept}" if kept else why
