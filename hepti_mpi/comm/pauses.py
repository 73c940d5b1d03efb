"""What a rank does between two looks for a message. Knows the system's clock and sockets; does not know what is waited for.

MPI has no wait that neither spins nor is late. But what comes from other hosts comes through sockets of this process, on which one can
sleep until something is there.
"""

import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress

BETWEEN = 30e-6  # seconds between two looks at least: each takes a core from those who compute, and messages come in many pieces
SHORTEST, LONGEST, PART = 0.2e-3, 0.005, 1 / 40  # seconds that one sleeps at most, and of those waited: sending needs looks as well
AGAIN_SECONDS = 1.0  # between two searches for new connections, at most: they are made when ranks first have something to say
GONE = select.EPOLLHUP | select.EPOLLRDHUP | select.EPOLLERR

Pause = Callable[[float], object]  # of the seconds waited so far


class _Sockets:
    """The connections of this process to other hosts."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.known: dict[int, int] = {}
        self.begun = self.next = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep until something has come in, or for so long."""
        now = time.monotonic()
        if now >= self.next:
            self._find()
            self.next = now + min(AGAIN_SECONDS, now - self.begun)
        for number, events in self.epoll.poll(seconds, 1):
            if events & GONE:  # its other side has closed: nothing more will come, and it would always seem to
                with suppress(OSError):
                    self.epoll.unregister(number)

    def _find(self) -> None:
        for name in os.listdir("/proc/self/fd"):
            number = int(name)
            try:
                facts = os.fstat(number)
                if self.known.get(number) == facts.st_ino or not stat.S_ISSOCK(facts.st_mode):
                    continue
                self.known[number] = facts.st_ino
                with socket.socket(fileno=os.dup(number)) as one:
                    if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                        self.epoll.register(number, select.EPOLLIN | select.EPOLLRDHUP)  # a closed one leaves by itself
            except OSError:
                continue  # closed meanwhile


_own = threading.local()


def nap(waited: float, between: float = BETWEEN) -> None:
    """Sleep until something may have come, and for `between` seconds at least."""
    if between:
        time.sleep(between)
    if not hasattr(_own, "sockets"):
        _own.sockets = _Sockets()
    _own.sockets.sleep(min(max(waited * PART, SHORTEST), LONGEST))


PAUSES: dict[str, Pause] = {"spin": lambda waited: None, "yield": lambda waited: os.sched_yield(), "sleep": nap}
