"""What a program costs: one plan's price, and those of many plans at once. Pure: knows numbers, not how they are found."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Price:
    """Predicted `seconds` of one batch, from its input on rank 0 to its answers, and, per rank of the job, how those of the layers divide;
    `bytes` on the wire in all; `busy`: seconds that the busiest way, into a rank or out of it, carries."""

    seconds: float
    compute: np.ndarray
    wait: np.ndarray
    wire: float
    bytes: int
    busy: float = 0.0

    def in_exchanges(self, collectives: str) -> float:
        """Return the seconds that a rank of a plan with these `collectives` is in exchanges beside computing and waiting: none where links
        work meanwhile, of which `wire` is how long they are in use."""
        return self.wire if collectives == "mpi" else 0.0


@dataclass(frozen=True)
class Prices:
    """The same of many plans: [plans], `compute` and `wait` [ranks, plans] of the active ranks."""

    seconds: np.ndarray
    compute: np.ndarray
    wait: np.ndarray
    wire: np.ndarray
    bytes: np.ndarray
    busy: np.ndarray

    def each(self, ranks: np.ndarray, size: int) -> list[Price]:
        """Return the price of each plan, on the `ranks` [ranks, plans or 1] of a job of `size` ranks."""
        spread = np.zeros((2, len(self.seconds), size))
        spread[:, np.arange(len(self.seconds)), ranks] = self.compute, self.wait
        totals = zip(*(values.tolist() for values in (self.seconds, self.wire, self.bytes, self.busy)))
        return [
            Price(seconds, compute, wait, wire, round(moved), busy)
            for (seconds, wire, moved, busy), compute, wait in zip(totals, *spread)
        ]  # fmt: skip
