"""What rank 0 tells the others between requests, and what they report to it: one way each, so nobody waits for an answer.

Knows small JSON messages; does not know what is ordered or reported. Other threads of a rank may call MPI meanwhile, in turns.
"""

import json
import time
from contextlib import nullcontext
from typing import Any

import numpy as np

from hepti_mpi.comm.pauses import Pause
from hepti_mpi.comm.ranks import Comm

ORDER, REPORT = 1, 2  # tags
IDLE_SECONDS = 0.001  # between two looks of a rank that has nothing to do meanwhile; twice as long each time, up to
RESTING_SECONDS = 0.008


class Orders:
    """Orders from rank 0, taken by every other rank in the order in which they were given."""

    def __init__(self, world: Comm, pause: Pause) -> None:
        """`pause`: what a rank that is about to compute does between two looks. Collective."""
        self.world, self.pause = world, pause
        with world.patience.waiting():
            self.mpi = world.mpi.Dup()
        self.under_way: list[Any] = []

    def give(self, order: dict[str, Any]) -> None:
        """Tell all other ranks; rank 0 calls it."""
        self._send(order, [rank for rank in range(self.world.size) if rank != self.world.rank], ORDER)

    def take(self, idle: bool) -> dict[str, Any]:
        """Return the next order; `idle`: this rank has no part in the requests."""
        with self.world.patience.slower() if idle else nullcontext(), self.world.patience.waiting(lambda: [0]):
            rest, begin = IDLE_SECONDS, time.perf_counter()
            while not self._is_there(0, ORDER):  # an idle rank waits for as long as whole batches take
                if idle:
                    time.sleep(rest)
                    rest = min(2 * rest, RESTING_SECONDS)  # its host's cores may be another rank's
                else:
                    self.pause(time.perf_counter() - begin)
        return self._received(0, ORDER)[1]

    def report(self, facts: dict[str, Any]) -> None:
        """Tell rank 0; it reads that when it likes."""
        self._send(facts, [0], REPORT)

    def reports(self) -> list[tuple[int, dict[str, Any]]]:
        """Return (rank, facts) of what has been reported since; rank 0 calls it."""
        from mpi4py import MPI

        found = []
        while self._is_there(MPI.ANY_SOURCE, REPORT):
            found.append(self._received(MPI.ANY_SOURCE, REPORT))
        return found

    def close(self) -> None:
        """Give up the communicator. Collective; whatever was reported has been read or is not wanted."""
        with self.world.patience.waiting():
            if self.world.rank:
                self._settle()
            done = self.mpi.Ibarrier()
            while not done.Test():
                if self.world.rank == 0:
                    self.reports()  # whoever sent them waits for that
                time.sleep(IDLE_SECONDS)
            self._settle()
        self.mpi.Free()

    def _send(self, value: dict[str, Any], ranks: list[int], tag: int) -> None:
        content = np.frombuffer(json.dumps(value).encode(), np.uint8)
        with self.world.patience.waiting():
            self._settle()
        with self.world.turn:
            self.under_way = [self.mpi.Isend(content, rank, tag) for rank in ranks]

    def _settle(self) -> None:
        """Wait until what was sent before may be forgotten."""
        while not self._is_out():
            time.sleep(IDLE_SECONDS)

    def _is_out(self) -> bool:
        with self.world.turn:
            return all(request.Test() for request in self.under_way)

    def _is_there(self, source: int, tag: int) -> bool:
        with self.world.turn:
            return bool(self.mpi.Iprobe(source, tag))

    def _received(self, source: int, tag: int) -> tuple[int, dict[str, Any]]:
        from mpi4py import MPI

        status = MPI.Status()
        with self.world.turn:
            message = self.mpi.Mprobe(source, tag, status)
            content = np.empty(status.Get_count(MPI.BYTE), np.uint8)
            message.Recv(content)
        return status.Get_source(), json.loads(content.tobytes())
