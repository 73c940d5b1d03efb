"""Let the calling thread run before all others of the machine for a while, where the system allows it.

Knows the system's scheduler; does not know what the while is for. Who goes first must sleep when it waits: all else stands still beside
a thread that spins.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

MOMENT = 250e-6  # seconds within which what is shorter has to end too
FIRST, PER_OCTAVE = 60, 4  # the priority of a moment, and how much less twice the time has


@contextmanager
def before_others() -> Iterator[bool]:
    """Go before all threads that have not asked for it; yield whether the system allowed it, which it does for root."""
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield go_first()
    finally:
        _be(policy, parameter.sched_priority)


def go_first(within: float = MOMENT) -> bool:
    """Go before all others, and before those who have more time than these seconds; tell whether the system allowed it.

    Source: Leung and Whitehead, "On the complexity of fixed-priority scheduling of periodic, real-time tasks", 1982: by deadlines.
    """
    return _be(os.SCHED_RR, FIRST - round(PER_OCTAVE * min(max(math.log2(within / MOMENT), 0), 14)))


def _be(policy: int, priority: int) -> bool:
    try:
        os.sched_setscheduler(0, policy, os.sched_param(priority))  # of this thread
    except OSError:
        return False
    return True
