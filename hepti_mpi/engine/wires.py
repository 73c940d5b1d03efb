"""In which layers values travel in a short type, by what that was found to change. Knows types and layers; not how a change is measured."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from hepti_mpi.program.plan import WIRES

PARTS = 8  # of the layers: smaller ones are not tried with a type of their own on the wire


class ByLayer:
    """The types that travel in each layer, as short as they were found to change results by no more than is tolerated: float32 to begin
    with, which changes nothing. `error`: by how much they change them."""

    def __init__(self, tolerance: float, error_of: Callable[[tuple[str, ...]], float], layers: int) -> None:
        """`error_of`: by how much types by layer change results; it may be collective, and so is what follows then."""
        self.tolerance, self.error_of = tolerance, error_of
        self.wires, self.error = (WIRES[0],) * layers, 0.0

    def search(self, wires: tuple[str, ...]) -> None:
        """Begin with types that were found to change too much: the shortest one travels in as many layers as do not, the next longer one
        in the others."""
        for longer, short in reversed([*pairwise(WIRES)]):
            places = [place for place, one in enumerate(wires) if one == short]
            wires = tuple(longer if one == short else one for one in wires)
            if places and (longer == WIRES[0] or self.takes(wires)):
                self.shorten(places, short, too_many=True)
                return

    def takes(self, wires: tuple[str, ...]) -> bool:
        """Take these instead, if they do not change too much; tell whether."""
        error = self.error_of(wires)
        if error <= self.tolerance:  # which a result that is no number does not pass
            self.wires, self.error = wires, error
        return error <= self.tolerance

    def shorten(self, places: Sequence[int], short: str, too_many: bool = False) -> bool:
        """Let a short type travel in layers at `places`: in all, or else in as many of each half; tell whether in all. `too_many`: it is
        known that not in all. Some layers change results ten times as much as others, wherever they are."""
        if not too_many and self.takes(tuple(short if place in places else one for place, one in enumerate(self.wires))):
            return True
        half = len(places) // 2
        if half * PARTS >= len(self.wires):
            every = self.shorten(places[:half], short)
            self.shorten(places[half:], short, too_many=every)
        return False
