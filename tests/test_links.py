"""What is measured of a link, with one that is made up."""

from types import SimpleNamespace

import pytest

from hepti_mpi.cluster import links

SAVED = 128 << 10  # bytes that pass a link at once when it has rested


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
