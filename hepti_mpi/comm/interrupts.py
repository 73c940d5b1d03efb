"""What becomes of Ctrl-C and of a request to end: one sentence, also while this process is inside a call that cannot be interrupted.

Knows signals and threads; does not know what is said. mpirun passes Ctrl-C on as SIGTERM, and kills what has not ended a second later,
or when the first rank has ended.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from hepti_mpi.comm.keys import pass_on_from
from hepti_mpi.comm.launcher import has_ranks_elsewhere, parent, rank_is_gone

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_CODE = 130
GRACE_SECONDS = 0.4  # for the main thread to put away what is half written

_lock = threading.Lock()
_word: list[int] = []  # a pipe with one byte: who reads that, this process or one that it has forked, says the sentence
_heard = set[int]()  # the signals that have come
_ending: Callable[[int], object] = os._exit
_tell: Callable[[str], object] | None = None


_sentence: Callable[[str], str | None] = str


class Interrupted(BaseException):
    """Somebody wants this process to end; raised in the main thread."""


def listen(tell: Callable[[str], object] | None) -> None:
    """Begin to listen in this, the main thread. `tell` says a sentence; None: another rank does."""
    global _tell
    _tell = tell
    if tell is not None and has_ranks_elsewhere():
        pass_on_from(parent())
    reading, word = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.write(word, b"!")
    _word[:] = [reading]
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


def say(sentence: Callable[[str], str | None]) -> None:
    """Ask `sentence`, which is given why this process ends, what to say at an interruption; None: nothing."""
    global _sentence
    _sentence = sentence


def end_by(end: Callable[[int], object]) -> None:
    """Let `end` end this process with an exit code."""
    global _ending
    _ending = end


def rest() -> None:
    """Let signals end this process at once and without a word from now on: it is leaving, and has said why."""
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


def _speak() -> None:
    with _lock:
        if _tell is not None and _has_the_word() and (said := _said()):
            _tell(said)


def _said() -> str | None:
    why = "interrupted"
    try:
        why = _why()
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
