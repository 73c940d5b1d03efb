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
from importlib.machinery import ExtensionFileLoader
from typing import Any

from hepti_mpi.comm.channel import state_path
from hepti_mpi.comm.lastword import BEGUN, DONE, KEPT, SPOKEN, LastWord, hand_on, joined
from hepti_mpi.comm.launcher import PARENT, first_rank, has_ranks_elsewhere, host_name, mpirun_is_here, past_launcher, rank_is_gone
from hepti_mpi.comm.standby import stand_by
from hepti_mpi.comm.starved import starved
from hepti_mpi.wording import counted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_CODE = 130
PRESSED = "interrupted"
LOST = "a rank was lost"  # this one or another, whose end MPI may make that of all; mpirun says which, as far as it knows
AGAIN_SECONDS = 0.01
IMPORTS = "<frozen importlib._bootstrap>"  # the file of Python's own frames of an import
GRACE_SECONDS = 0.4  # for the main thread to put away what is half written

_lock = threading.Lock()
_last: list[LastWord] = []
_first: Callable[[], object] = bool  # what is done before it is said
_left: Callable[[], str] = str  # tells what is kept of a job that an error ends
_heard = set[int]()  # the signals that have come
_before: list[int] = []  # processes that the system had ended for want of memory when this one began to listen
_ending: Callable[[int], object] = os._exit
_tell: Callable[[str], object] | None = None


def _somebody_else() -> None:
    """Stand for what is kept where a supervisor says that."""


class Interrupted(BaseException):
    """Somebody wants this process to end; raised in the main thread."""


def listen(tell: Callable[[str], object] | None, tell_last: Callable[[str], object] = bool) -> None:
    """Begin to listen in this, the main thread. `tell` says a sentence; None: another rank does. `tell_last` says one in the process that
    outlives this."""
    global _tell
    _tell = tell
    _before[:] = [starved()]
    last = LastWord(_somebody_else if state_path() else str)
    _last[:] = [last]

    def speak(pressed: bool) -> None:
        if last.begun or last.taken():
            tell_last(last.noted(PRESSED if pressed else f"{PRESSED}, or a rank ended" if last.begun else _for_memory(LOST)))

    beyond = past_launcher() if tell is not None else None
    if beyond is not None:  # whoever supervises a run hears of its ranks' ends
        stand_by(PARENT, has_ranks_elsewhere(), bool if state_path() else speak, {last.token, beyond})
    reading, arriving = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(arriving, False)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _interrupt)
    signal.set_wakeup_fd(arriving, warn_on_full_buffer=False)
    sys.unraisablehook = _unraisable
    threading.Thread(target=_listen, args=(reading,), name="interrupts", daemon=True).start()


def hear_again() -> None:
    """Take back what a library has taken: UCX, of Open MPI, has SIGHUP for a debugger of its own, and a job outlived its terminal."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if (handler := signal.getsignal(number)) is not None:
                signal.signal(number, handler)


def arrived() -> bool:
    """Say whether Interrupted is raised, whatever becomes of it: Python 3.11 raises a RuntimeError in its stead where it comes in a
    `__set_name__`, and a library may do alike."""
    return not _heard.isdisjoint(SIGNALS)


def leave() -> None:
    """Leave signals to the handlers that somebody sets now."""
    signal.set_wakeup_fd(-1)


def keeping(kept: KEPT, first: Callable[[], object] = bool, left: Callable[[], str] = str) -> None:
    """Have `kept` tell what is kept whenever this process ends early, once `first` has been called where that can be, and `left` what an
    error has left that can be gone on with."""
    global _first, _left
    _first, _left = first, left
    for last in _last:
        last.kept = kept
        last.note()


def note() -> None:
    """Note what is kept should this process end without a word from now on."""
    for last in _last:
        last.note()


def with_left(error: str) -> str:
    """Return what is to be said of an error that ends this process: it, and what can be gone on with."""
    return joined(error, _left())


def told(speaks: bool = False) -> bool:
    """Note that it has been said why this process ends, or need not be; tell whether it had not been noted before. `speaks`: why all do."""
    return _taken(SPOKEN if speaks else DONE)


def _taken(state: bytes) -> bool:
    return all(last.taken(state) for last in _last)


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
    """Say why and what is kept, if that has not been done, and end this process; a rank that says nothing only then when the one that does
    has spoken: mpirun, which is being interrupted, ends with the first of them."""
    try:
        speak()
        if _tell is None:
            time.sleep(GRACE_SECONDS)
    finally:
        getattr(sys.modules.get("hepti_mpi.documents"), "put_away", bool)()  # where the main thread is within a long call
        _ending(EXIT_CODE)


def speak(why: str = "") -> bool:
    """Say why this process ends and what is kept, unless that has been said; or hand on why. Tell whether it is done."""
    with _lock:
        if _tell is None:
            return bool(why) and handed_on(why)
        if _taken(BEGUN):
            if said := _said(why):
                _tell(said)
            for last in _last:
                last.spoken()
    return True


def handed_on(why: str) -> bool:
    """Have the first rank say why all end, which mpirun ends with this one; tell whether it will. Not where this is the first."""
    first = first_rank() if _tell is None else None
    return first is not None and hand_on(why, first)


def _said(why: str) -> str | None:
    try:
        why = why or _why()
        _first()
        kept = _last[0].kept() if _last else ""
        return None if kept is None else joined(why, kept)
    except Exception:  # noqa: BLE001  to look for more may fail like all else, and nobody else says even this
        return why or PRESSED


def _why() -> str:
    """Say why this process is to end, as far as that is known: `kill` of mpirun is like the end of a rank on another host."""
    for last in _last:
        if reason := last.reason():
            return reason
    if past_launcher() is not None and not mpirun_is_here():
        return _for_memory("mpirun ended")
    if rank_is_gone():
        return _for_memory("a rank ended")
    return f"{PRESSED}, or a rank on another host ended" if has_ranks_elsewhere() and signal.SIGINT not in _heard else PRESSED


def _for_memory(what: str) -> str:
    """Return what has ended, and whether that may be for want of memory: whom the system ends for that it tells its own log only."""
    ended = starved() - _before[0] if _before else 0
    return joined(what, want_of_memory(ended, host_name(), "this began") if ended > 0 else "")


def want_of_memory(ended: int, host: str, since: str) -> str:
    """Say that the system of a host has `ended` so many processes for want of memory."""
    what = f"for want of memory the system has ended {counted(ended, 'processes')} on {host} since {since}"
    return f"{what}: free memory there, or give ranks less with --memory-limit"


def _interrupt(number: int, frame: Any) -> None:
    for one in SIGNALS:
        signal.signal(one, lambda *_: None)  # once is enough; what is half written is put away
    _heard.add(number)
    _raise(number, frame)


def _raise(number: int, frame: Any) -> None:
    """Raise Interrupted, a little later where Python itself looks for a module: what is raised there may leave its lock of all imports
    taken, for which the thread that listens would wait for ever. So too where one in C++ is being made: of nanobind, as onnx is, it aborts
    with pages of what all it was doing."""
    if frame is not None and frame.f_code.co_filename == IMPORTS or _is_made_of_c(frame):
        signal.signal(signal.SIGALRM, _raise)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        return
    raise Interrupted


def _is_made_of_c(frame: Any) -> bool:
    """Say whether this is within the import of an extension module."""
    while frame is not None:
        if frame.f_code.co_name in ("create_module", "exec_module") and isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return False


def _unraisable(what: Any) -> None:
    """Say nothing of an interruption that came where Python lets nothing be raised: the process ends all the same."""
    if what.exc_type is not Interrupted:
        sys.__unraisablehook__(what)


def _listen(reading: int) -> None:
    while not arrived():
        _heard.update(os.read(reading, 256))
    try:
        speak()
        time.sleep(GRACE_SECONDS)
    finally:
        finish()
