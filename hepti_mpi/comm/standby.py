"""A process that stands by a rank, in mpirun's own process group. It passes Ctrl-C on: mpirun tells its ranks to end by the same signal,
SIGTERM, when somebody pressed it and when a rank on another host has ended, and leaves them out of what the terminal tells. It ends the
rank when mpirun is killed, which MPI may never notice. And it outlives its rank: one that is killed, or ended by MPI itself because a
connection broke, says nothing.

Knows processes and signals; does not know what is said.
"""

import os
import select
import signal
from collections.abc import Callable, Collection


def stand_by(launcher: int, passes_on: bool, at_end: Callable[[bool], object], keep: Collection[int]) -> None:
    """Begin to stand by this rank of `launcher`, whose end comes here as SIGTERM, and if `passes_on` a Ctrl-C that it hears as SIGINT. Once
    this process is no more `at_end` is called in the other one, to which the descriptors `keep` are left, and told whether Ctrl-C was
    pressed. Not where the system does not allow it."""
    rank, own, theirs = os.getpid(), os.getpgrp(), os.getpgid(launcher)
    if own == theirs:  # which hears it itself, and is ended like this one
        return
    reading, _ = os.pipe2(os.O_CLOEXEC)  # the other end stays open as long as this process
    if not os.fork():
        try:
            pressed = _stand_by(own if passes_on else None, theirs, {reading, *keep})
            _end_without(launcher, rank, reading)
            os.read(reading, 1)
            at_end(bool(pressed))
        finally:
            os._exit(0)
    os.close(reading)


def _stand_by(own: int | None, theirs: int, keep: Collection[int]) -> list[int]:
    """Return the signals of Ctrl-C that have come, as they do."""
    pressed = list[int]()

    def press(number: int, _: object) -> None:
        pressed.append(number)
        if own is not None:
            os.killpg(own, number)

    signal.signal(signal.SIGINT, press)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # of a terminal whose first process was mpirun, and ended: the rank may still be there
    os.setpgid(0, theirs)
    close_all_but(keep)  # mpirun waits until nobody writes to it any more, this process until nobody writes here
    return pressed


def _end_without(launcher: int, rank: int, ended: int) -> None:
    """Wait for the end of the launcher or of the rank, and end the rank; `ended` can be read once it has."""
    try:
        running = os.pidfd_open(launcher)
    except (AttributeError, OSError):  # an old system, or it has ended
        return
    if ended not in select.select([running, ended], [], [])[0]:
        os.kill(rank, signal.SIGTERM)


def close_all_but(keep: Collection[int]) -> None:
    """Close what this process has open, as one that was forked has all of the other's."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:  # that of the list itself
                pass
