"""What is asked between batches: how many to answer next, or to go on with another plan. Knows orders; does not decide (adapt.py)."""

from collections.abc import Sequence
from typing import Any, Protocol

from hepti_mpi.program.plan import Wire

ORDER_SECONDS = 0.05  # that the batches of one order should take at least: orders are not to be noticed
MOST_AT_ONCE = 64  # batches of one order: what is reported of them is a small message


class Watch(Protocol):
    """What rank 0 asks between batches what to do next, and tells what came of it."""

    def next(self, left: int | None) -> dict[str, Any]:
        """Return an order. `left`: how many batches are to come, None where nobody knows; at least one is there."""

    def answered(self, number: int, lengths: Sequence[Sequence[int]], seconds: Sequence[float], compute: Sequence[float]) -> None:
        """Hear of batches from `number` on: the rows of each request, latencies, and rank 0's seconds of computing."""

    def heard(self, rank: int, facts: dict[str, Any]) -> None:
        """Hear what a rank reports of such batches, which may be some time later."""

    def swapped(self, seconds: float, load_seconds: float, wire: Wire) -> None:
        """Hear that the plan of the last order is in use, and how long requests stood still for it, loading among it. `wire`: what travels:
        that of the plan, unless it changes results by more than is allowed."""

    def linked(self, bytes_per_second: list[dict[str, float]], seconds: float) -> None:
        """Hear what the links that the last order named carry, per rank, by the other rank's number; it took `seconds` to find out."""

    def decisions(self) -> list[dict[str, Any]]:
        """Return what was decided and why, for the record."""


class Steady:
    """The watch of a run that keeps its plan."""

    def __init__(self) -> None:
        self.seconds = ORDER_SECONDS

    def next(self, left: int | None) -> dict[str, Any]:
        return {"do": "answer", "count": at_once(self.seconds)}

    def answered(self, number: int, lengths: Sequence[Sequence[int]], seconds: Sequence[float], compute: Sequence[float]) -> None:
        self.seconds = min(seconds)

    def heard(self, rank: int, facts: dict[str, Any]) -> None:
        pass

    def swapped(self, seconds: float, load_seconds: float, wire: Wire) -> None:
        pass

    def linked(self, bytes_per_second: list[dict[str, float]], seconds: float) -> None:
        pass

    def decisions(self) -> list[dict[str, Any]]:
        return []


class Overheard:
    """A watch that hears and says what another does; those made of it tell somebody else too, and decide nothing."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def next(self, left: int | None) -> dict[str, Any]:
        return self.watch.next(left)

    def answered(self, number: int, lengths: Sequence[Sequence[int]], seconds: Sequence[float], compute: Sequence[float]) -> None:
        self.watch.answered(number, lengths, seconds, compute)

    def heard(self, rank: int, facts: dict[str, Any]) -> None:
        self.watch.heard(rank, facts)

    def swapped(self, seconds: float, load_seconds: float, wire: Wire) -> None:
        self.watch.swapped(seconds, load_seconds, wire)

    def linked(self, bytes_per_second: list[dict[str, float]], seconds: float) -> None:
        self.watch.linked(bytes_per_second, seconds)

    def decisions(self) -> list[dict[str, Any]]:
        return self.watch.decisions()


def at_once(seconds: float) -> int:
    """Return how many batches one order should be for at most, where one takes `seconds`."""
    return max(1, min(MOST_AT_ONCE, round(ORDER_SECONDS / max(seconds, 1e-6))))
