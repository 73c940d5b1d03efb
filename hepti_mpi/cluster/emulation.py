"""Pretend to be a slower board: after each piece of computing, sleep until a factor times the CPU time that it took has passed.

Only computing is stretched; messages take the time that they take. Right only for ranks that compute with one thread, in the calling
thread. CPU quotas do not emulate a slow board: a rank that waits saves its quota up.
"""

import os
import time
from collections.abc import Callable

from hepti_mpi.errors import PlanError

MOST = 1000.0
NAP_SECONDS = 60e-6  # what a sleep lasts longer than asked for; the rest is spent yielding


class Dilation:
    """The factor of this rank: given, or in the file that HEPTI_EMULATE_FILE names, which is read again for every request."""

    def __init__(self, factor: float | None = None) -> None:
        """Raises: PlanError when the file holds no factor between 1 and 1000."""
        self.given = factor
        self.path = None if factor is not None else os.environ.get("HEPTI_EMULATE_FILE")
        self.factor = 1.0
        self.late = 0.0  # seconds that the last sleep took too long
        self.refresh()

    @property
    def on(self) -> bool:
        return self.given is not None or self.path is not None

    def refresh(self) -> None:
        """Read the factor again."""
        if self.path is None:
            self.factor = self.given or 1.0
            return
        try:
            with open(self.path) as file:
                factor = float(file.read(64))
        except (OSError, ValueError) as error:
            raise PlanError(f"HEPTI_EMULATE_FILE {self.path} holds no factor: {error}") from None
        if not 1 <= factor <= MOST:
            raise PlanError(f"HEPTI_EMULATE_FILE {self.path} holds factor {factor:g}, expected 1 to {MOST:g}")
        self.factor = factor

    def run(self, call: Callable[[], object]) -> None:
        """Call, and return when the factor times its CPU time has passed since it began."""
        if not self.on:
            call()
            return
        begin, used = time.perf_counter(), time.thread_time()
        call()
        end = begin - self.late + self.factor * (time.thread_time() - used)
        left = end - time.perf_counter()
        if left <= 0:
            self.late = 0.0
            return
        while left > 0:
            time.sleep(left - NAP_SECONDS if left > NAP_SECONDS else 0)
            left = end - time.perf_counter()
        self.late = min(-left, NAP_SECONDS)

    def clock(self) -> float:
        """Return seconds of a clock that runs as fast as the emulated board computes."""
        return time.thread_time() * self.factor
