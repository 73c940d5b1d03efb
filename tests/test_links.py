"""How long messages between ranks take, as a profile has it: without MPI."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from hepti_mpi.cluster import links
from hepti_mpi.comm import ranks
from hepti_mpi.comm.ranks import Comm

SAVED = 128 << 10  # bytes that pass a link at once when it has rested


@pytest.mark.parametrize("latencies, late", [([], 0.0), ([0.0, 0.0], 0.0), ([0.0, 2e-3], 2e-3)])
def test_a_message_takes_what_it_takes_and_what_its_link_does(latencies, late, monkeypatch):
    """There and back: two messages, each over a link with its latency."""
    now = [0.0]

    def moves(*args):
        now[0] += 5e-7

    monkeypatch.setattr(ranks, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    mpi, patience = SimpleNamespace(Send=moves, Recv=moves), SimpleNamespace(waiting=lambda who: nullcontext())
    comm = SimpleNamespace(rank=0, latencies=latencies, mpi=mpi, patience=patience)
    assert Comm.ping_pong(comm, 1, 20) == pytest.approx(1e-6 + 2 * late)


class Wire:
    """A link with a clock of its own, that saves up at its rate what it then sends at once; `rate`: bytes per second."""

    def __init__(self, rate: float) -> None:
        self.rate, self.now, self.saved = rate, 0.0, float(SAVED)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.saved = min(float(SAVED), self.saved + seconds * self.rate)

    def both_ways(self, peer: int, size: int, pause: object) -> float:
        seconds = (size - self.saved) / self.rate
        self.now, self.saved = self.now + seconds, 0.0
        return seconds


@pytest.mark.parametrize("mbit", [5, 50, 940])
def test_a_link_has_come_to_rest_before_it_is_timed_again(mbit, monkeypatch):
    wire = Wire(mbit * 125e3)
    monkeypatch.setattr(links, "time", SimpleNamespace(sleep=wire.sleep))
    some, all_ = (links._least(wire, 1, size, None) for size in (links.MEDIUM, links.LARGE))
    rate = (links.LARGE - links.MEDIUM) / (all_ - some)
    assert rate == pytest.approx(wire.rate) and links.MEDIUM - rate * some == pytest.approx(SAVED)
