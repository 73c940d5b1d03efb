"""The last word of a rank: why it ends and what is kept. It is said once, by the rank or by a process that was forked of it; another rank
of the same host, which knows better why all end, hands its reason on and says nothing itself.

Knows that one of the two may end without a word; does not know what is said, nor how.
"""

import mmap
import os
from collections.abc import Callable
from pathlib import Path

BYTES = 1 << 16  # of what is kept, and as many of a reason
NAME = "hepti-last-word"
NONE, DONE, SPOKEN, BEGUN = b"\0", b"\1", b"\2", b"\3"  # in the place of a reason: none is known; there is no last word; it has been said;
# or is about to be, by a rank that may be killed before that
KEPT = Callable[[], str | None]


class LastWord:
    """`kept`: tells what is kept, "" where there is nothing to say of it and None where somebody else says all."""

    def __init__(self, kept: KEPT = str) -> None:
        self.kept = kept
        self.token, given = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)  # whoever reads what is in it has the word
        os.write(given, b"!")
        self._page = _shared()  # which a process that is forked has too
        self.note()

    def taken(self, state: bytes = DONE) -> bool:
        """Take the word; tell whether nobody had it. `state`: SPOKEN or BEGUN where whoever takes it says why all end."""
        try:
            if not os.read(self.token, 1):  # whoever had it is no more
                return False
        except BlockingIOError:
            return False
        if self._page[BYTES : BYTES + 1] == NONE:
            self._page[BYTES : BYTES + 1] = state
        return True

    def spoken(self) -> None:
        """Note that what was begun has been said."""
        if self.begun:
            self._page[BYTES : BYTES + 1] = SPOKEN

    @property
    def begun(self) -> bool:
        """Whether somebody was about to say why all end, and has not."""
        return self._page[BYTES : BYTES + 1] == BEGUN

    def note(self) -> None:
        """Note what is kept now, for the process that outlives this one."""
        self._page.seek(0)
        self._page.write(_cell(self.kept() or ""))

    def noted(self, why: str) -> str:
        """Return what is to be said for a process that is no more."""
        return joined(self.reason() or why, _text(self._page[:BYTES]))

    def reason(self) -> str:
        """Return why all end, as another rank has handed it on, "" where none has."""
        return _text(self._page[BYTES:]).strip((DONE + SPOKEN + BEGUN).decode())


def hand_on(reason: str, process: int) -> bool:
    """Give the reason to the last word of a process, the first one counts; tell whether it says one, or has."""
    try:
        for path in Path(f"/proc/{process}/fd").iterdir():
            if _name(path).startswith(f"/memfd:{NAME}"):
                with open(path, "r+b", buffering=0) as page:
                    page.seek(BYTES)
                    before = page.read(1)
                    if before == NONE:
                        page.seek(BYTES)
                        page.write(_cell(reason))
                    return before != DONE
    except OSError:  # it has ended
        pass
    return False


def _name(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:  # it was closed meanwhile
        return ""


def _shared() -> mmap.mmap:
    """Return a page for what is kept and a reason, which others of this user find, where the system is not too old."""
    try:
        page = os.memfd_create(NAME)
    except (AttributeError, OSError):
        return mmap.mmap(-1, 2 * BYTES)
    try:
        os.ftruncate(page, 2 * BYTES)
        return mmap.mmap(page, 2 * BYTES)  # which has a descriptor of its own
    finally:
        os.close(page)


def _cell(text: str) -> bytes:
    return text.encode(errors="backslashreplace")[: BYTES - 1] + b"\0"


def _text(cell: bytes) -> str:
    return cell.partition(b"\0")[0].decode(errors="ignore")  # it may have been cut within a letter


def joined(why: str, kept: str) -> str:
    return "; ".join(filter(None, (why, kept)))
