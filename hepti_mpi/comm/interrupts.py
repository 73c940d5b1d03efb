"""What becomes of Ctrl-C and of a request to end: one sentence, also while this process is inside a call that cannot be interrupted.

Knows signals and threads; does not know what is said. mpirun passes Ctrl-C on as SIGTERM, and kills what has not ended a second later,
or when the first rank has ended.
"""

import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from hepti_mpi.comm.channel import state_path
from hepti_mpi.comm.launcher import has_ranks_elsewhere, launched, parent, rank_is_gone, stand_for_rank
from hepti_mpi.comm.standby import stand_by

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_CODE = 130
LOST = "a rank was lost"  # this one or another, whose end MPI may make that of all; mpirun says which, as far as it knows
GRACE_SECONDS = 0.4  # for the main thread to put away what is half written

_lock = threading.Lock()
_word: list[int] = []  # a pipe with one byte: who reads that, this process or one that it has forked, says the sentence
_heard = set[int]()  # the signals that have come
_ending: Callable[[int], object] = os._exit
_tell: Callable[[str], object] | None = None


_sentence: Callable[[str], str | None] = str
_first: Callable[[], object] = bool  # what is done before that is asked
_LAST_BYTES = 1 << 16
_last: list[mmap.mmap] = []  # what the process that stands by says when this one ended without a word; it has that memory too


class Interrupted(BaseException):
    """Somebody wants this process to end; raised in the main thread."""


def listen(tell: Callable[[str], object] | None, tell_last: Callable[[str], object] = bool) -> None:
    """Begin to listen in this, the main thread. `tell` says a sentence; None: another rank does. `tell_last` says one in the process that
    outlives this."""
    global _tell
    _tell = tell
    reading, word = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.write(word, b"!")
    _word[:] = [reading]
    if tell is not None and launched():
        _have_stand_by(reading, tell_last)
    reading, arriving = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(arriving, False)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _interrupt)
    signal.set_wakeup_fd(arriving, warn_on_full_buffer=False)
    sys.unraisablehook = _unraisable
    threading.Thread(target=_listen, args=(reading,), name="interrupts", daemon=True).start()


def arrived() -> bool:
    """Say whether Interrupted is raised, whatever becomes of it: Python 3.11 raises a RuntimeError in its stead where it comes in a
    `__set_name__`, and a library may do alike."""
    return not _heard.isdisjoint(SIGNALS)


def leave() -> None:
    """Leave signals to the handlers that somebody sets now."""
    signal.set_wakeup_fd(-1)


def say(sentence: Callable[[str], str | None], first: Callable[[], object] = bool) -> None:
    """Ask `sentence`, which is given why this process ends, what to say at an interruption, once `first` has been called; None: nothing."""
    global _sentence, _first
    _sentence, _first = sentence, first
    note()


def note() -> None:
    """Note what is to be said should this process end without a word from now on."""
    if _last:
        said = (_sentence(LOST) or "").encode(errors="replace")
        _last[0].seek(0)
        _last[0].write(said[: _LAST_BYTES - 1] + b"\0")


def told() -> None:
    """Note that it has been said why this process ends."""
    _has_the_word()


def end_by(end: Callable[[int], object]) -> None:
    """Let `end` end this process with an exit code."""
    global _ending
    _ending = end


def rest() -> None:
    """Let signals end this process at once and without a word from now on: it is leaving, and has said why."""
    told()
    for one in SIGNALS:
        signal.signal(one, signal.SIG_DFL)


def finish() -> None:
    """Say the sentence, if that has not been done, and end this process; a rank that has none only then when the one that has it has
    spoken: mpirun, which is being interrupted, ends with the first of them."""
    try:
        _speak()
        if _tell is None:
            time.sleep(GRACE_SECONDS)
    finally:
        _ending(EXIT_CODE)


def _have_stand_by(word: int, tell: Callable[[str], object]) -> None:
    """Have a process stand by this one, which speaks for it where nobody else does: whoever supervises a run hears of its ranks' ends."""

    def speak() -> None:
        said = _last[0][:].partition(b"\0")[0].decode()
        if said and _has_the_word():
            tell(said)

    speaks = state_path() is None
    if speaks or has_ranks_elsewhere():
        _last[:] = [mmap.mmap(-1, _LAST_BYTES)]
        note()
        stand_for_rank()
        stand_by(parent(), has_ranks_elsewhere(), speak if speaks else bool, {word})


def _speak() -> None:
    with _lock:
        if _tell is not None and _has_the_word() and (said := _said()):
            _tell(said)


def _said() -> str | None:
    why = "interrupted"
    try:
        why = _why()
        _first()
        return _sentence(why)
    except Exception:  # noqa: BLE001  to look for more may fail like all else, and nobody else says even this
        return why


def _why() -> str:
    """Say why this process is to end, as far as that is known: `kill` of mpirun is like the end of a rank on another host."""
    if rank_is_gone():
        return "a rank ended"
    return "interrupted, or a rank on another host ended" if has_ranks_elsewhere() and signal.SIGINT not in _heard else "interrupted"


def _has_the_word() -> bool:
    try:
        return not _word or bool(os.read(_word[0], 1))
    except BlockingIOError:
        return False


def _interrupt(number: int, frame: Any) -> None:
    for one in SIGNALS:
        signal.signal(one, lambda *_: None)  # once is enough; what is half written is put away
    _heard.add(number)
    raise Interrupted


def _unraisable(what: Any) -> None:
    """Say nothing of an interruption that came where Python lets nothing be raised: the process ends all the same."""
    if what.exc_type is not Interrupted:
        sys.__unraisablehook__(what)


def _listen(reading: int) -> None:
    while not arrived():
        _heard.update(os.read(reading, 256))
    try:
        _speak()
        time.sleep(GRACE_SECONDS)
    finally:
        finish()
