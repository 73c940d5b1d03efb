"""What a short type on the wire changes of results, and the layers in which one travels where that is too much.

Knows plans, engines and what they answer for built-in inputs; of texts shortening.py finds out what changes.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import numpy as np

from hepti_mpi.engine.loading import Ready, swap
from hepti_mpi.errors import InputError
from hepti_mpi.models.tasks.heads import embed
from hepti_mpi.program.plan import WIRES, wire_of
from hepti_mpi.weights.outer import OuterWeights
from hepti_mpi.weights.store import Store

PARTS = 8  # of the layers: smaller ones are not tried with a type of their own on the wire


class ByLayer:
    """The types that travel in each layer: those that were wanted, or where these change results by more than is tolerated, the shortest
    one in as many layers as do not, the next longer one in the others; float32 changes nothing. `error`: by how much they change them, and
    `told`: by how much those that were wanted do."""

    def __init__(self, tolerance: float, error_of: Callable[[tuple[str, ...]], float], wires: tuple[str, ...]) -> None:
        """`error_of`: by how much types by layer change results; where that is collective, this is."""
        self.tolerance, self.error_of = tolerance, error_of
        self.wires, self.error, self.told = (WIRES[0],) * len(wires), 0.0, error_of(wires)
        if self.told <= tolerance:  # which a result that is no number does not pass
            self.wires, self.error = wires, self.told
            return
        for longer, short in reversed([*pairwise(WIRES)]):
            places = [place for place, one in enumerate(wires) if one == short]
            wires = tuple(longer if one == short else one for one in wires)
            if places and (longer == WIRES[0] or self.takes(wires)):
                self.shorten(places, short, too_many=True)
                return

    def takes(self, wires: tuple[str, ...]) -> bool:
        """Take these instead, if they do not change too much; tell whether."""
        error = self.error_of(wires)
        if error <= self.tolerance:
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


def within(ready: Ready) -> tuple[Ready, float]:
    """Return what is ready knowing what its wire changes; where that is more than its tolerance, with types by layer. Collective.

    Return also the largest change that was found of the wire as it was.
    """
    if ready.plan.wire == WIRES[0]:
        return replace(ready, wire_error=0.0), 0.0
    exact = Exact(ready, ready.plan.planned_rows)

    def error_of(wires: tuple[str, ...]) -> float:
        return exact.error(swap(ready, replace(ready.plan, wire=wire_of(wires))))

    found = ByLayer(ready.tolerance, error_of, ready.plan.wires)
    if found.wires != ready.plan.wires:
        ready = swap(ready, replace(ready.plan, wire=wire_of(found.wires), predicted_seconds=None))
    return replace(ready, wire_error=found.error), found.told


class Exact:
    """The last hidden state of built-in inputs with float32 on the wire, to compare plans with that differ from it in that only.

    The inputs are as many as have `rows` rows: numbers of real ones differ more in size than random ones.
    """

    def __init__(self, ready: Ready, rows: int) -> None:
        """Collective. What is ready can be used as before."""
        self.world = ready.machine.world
        lengths, embedded = _built_in(ready.store, rows) if self.world.rank == 0 else ([], None)
        self.embedded = embedded
        self.lengths = tuple(self.world.from_root(lengths))
        self.hidden = self._answer(swap(ready, replace(ready.plan, wire=WIRES[0])))

    def error(self, ready: Ready) -> float:
        """Return the largest difference of a number when `ready` answers, which can be used as before. Collective."""
        found, exact = self._answer(ready), self.hidden
        return float(self.world.from_root(None if found is None or exact is None else float(np.abs(found - exact).max())))

    def _answer(self, ready: Ready) -> np.ndarray | None:
        hidden = ready.engine.run(self.lengths, self.embedded)
        hidden = None if hidden is None else hidden.copy()
        self.world.barrier()  # before buffers are given up that others may still read
        ready.engine.close()
        return hidden


def _built_in(store: Store, rows: int) -> tuple[list[int], np.ndarray]:
    """Return how long built-in inputs are and what the layers begin with, or a random one of the magnitude that LayerNorm gives, where the
    model takes none."""
    from hepti_mpi.models.inputs.requests import end_to_end, read_requests

    requests = []
    with suppress(InputError):
        requests = [one for one in read_requests(store.spec, store.files, None) if one.error is None]
    if not requests:
        return [rows], np.random.default_rng(0).standard_normal((rows, store.spec.hidden), np.float32)
    fitting = int((np.cumsum([one.rows for one in requests]) <= rows).sum())
    requests = requests[: max(1, fitting)]
    return [one.rows for one in requests], embed(store.spec, OuterWeights(store), end_to_end(requests))
