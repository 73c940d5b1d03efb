"""Passes Ctrl-C on to a rank. mpirun tells its ranks to end by the same signal, SIGTERM, when somebody pressed it and when a rank on
another host has ended, and leaves them out of what the terminal tells: so a process of ours listens in mpirun's own process group.

Knows processes and signals; does not know what is said.
"""

import os
import signal


def pass_on_from(launcher: int) -> None:
    """Begin to pass on, as SIGINT, a Ctrl-C that `launcher` hears. The process that does so ends with this one, and at once where the
    system does not allow it."""
    own, theirs = os.getpgrp(), os.getpgid(launcher)
    if own == theirs:  # which hears it itself
        return
    reading, _ = os.pipe2(os.O_CLOEXEC)  # the other end stays open as long as this process
    if not os.fork():
        try:
            _pass_on(own, theirs, reading)
        finally:
            os._exit(0)
    os.close(reading)


def _pass_on(own: int, theirs: int, reading: int) -> None:
    signal.signal(signal.SIGINT, lambda *_: os.killpg(own, signal.SIGINT))
    os.setpgid(0, theirs)
    for name in os.listdir("/proc/self/fd"):  # mpirun waits until nobody writes to it any more, this process until nobody writes here
        if int(name) != reading:
            try:
                os.close(int(name))
            except OSError:  # that of the list itself
                pass
    os.read(reading, 1)
