"""A message that is seen some time after it came in, as over a link with a latency: where the system cannot delay frames themselves.

Knows requests of MPI and a clock; does not know what is sent. Only who receives waits: what is sent leaves at once.
"""

import time
from typing import Any


class Late:
    """A persistent receive whose message counts as there `seconds` after it came."""

    def __init__(self, request: Any, seconds: float) -> None:
        self.request, self.seconds, self.due = request, seconds, 0.0

    def Start(self) -> None:  # as MPI spells it
        self.due = 0.0
        self.request.Start()

    def Test(self) -> bool:
        if not self.due:
            if not self.request.Test():
                return False
            self.due = time.perf_counter() + self.seconds
        return time.perf_counter() >= self.due

    def Free(self) -> None:
        self.request.Free()
