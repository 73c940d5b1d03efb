"""How fast a rank is that has no part in the requests: it times a small product now and then. Knows a clock, not what is made of it."""

import time

import numpy as np

from hepti_mpi.cluster.boards import Work
from hepti_mpi.engine.machine import Machine
from hepti_mpi.models.spec import ModelSpec

ROWS, WIDEST, CALLS = 16, 1024, 3
DUTY = 100  # times as long as it takes lies between two


class Pulse:
    """The pulse of this rank. What it was when this was made is what later ones are compared with."""

    def __init__(self, machine: Machine, spec: ModelSpec) -> None:
        width = min(spec.hidden, WIDEST)
        self.emulation = machine.emulation
        self.work = Work(((ROWS, width * width),))
        self.values = np.full((ROWS, width), 0.5, np.float32)
        self.weights = np.full((width, width), 0.01, np.float32)
        self.result = np.empty((ROWS, width), np.float32)
        self.next = 0.0
        self.emulation.run(self._once, self.work)  # brings the weights into the cache
        self.reference = self._seconds()

    def due(self) -> bool:
        return time.monotonic() >= self.next

    def factor(self) -> float:
        """Return how many times longer it takes than in the beginning."""
        begin = time.monotonic()
        self.emulation.refresh()
        factor = self._seconds() / self.reference
        self.next = time.monotonic() + DUTY * (time.monotonic() - begin)
        return factor

    def _seconds(self) -> float:
        times = []
        for _ in range(CALLS):
            begin = time.perf_counter()
            self.emulation.run(self._once, self.work)
            times.append(time.perf_counter() - begin)
        return max(min(times), 1e-9)

    def _once(self) -> None:
        np.matmul(self.values, self.weights, out=self.result)
