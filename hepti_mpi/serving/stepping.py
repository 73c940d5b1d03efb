"""What a Generator drives: the ranks of a job, seen from rank 0. Embeds tokens and says which rows a step is of.

Knows slots and the tables in front of the layers; does not know how ranks divide a step, nor what is asked.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hepti_mpi.engine.decoder import Decoder
from hepti_mpi.engine.orders import Order
from hepti_mpi.engine.stages import Staged
from hepti_mpi.models.numerics import Array
from hepti_mpi.models.tasks.sampling import Scores
from hepti_mpi.models.tasks.stepping import Weights, apply_steps
from hepti_mpi.serving.chunks import CHUNK


class Ranks:
    """The ranks that a Decoder is a part of."""

    def __init__(self, decoder: Decoder, weights: Weights) -> None:
        """`weights`: the tables in front of the layers, by name."""
        self.decoder, self.weights, self.spec = decoder, weights, decoder.spec
        self.slots, self.positions = decoder.slots, decoder.positions
        self.lengths = np.zeros(self.slots, np.int64)  # rows that are in each slot
        self.copies: list[tuple[int, int, int, int]] = []  # that are made before the next step

    def copy(self, source: int, slot: int, first: int, stop: int) -> None:
        """See serving.generation.Stepper."""
        self.copies.append((source, slot, first, stop))
        self.lengths[slot] = stop

    def _order(self, order: Order) -> Order:
        """Return it with the copies that are to be made before it."""
        copies, self.copies = tuple(self.copies), []
        return replace(order, copies=copies) if copies else order

    def prefill(self, slot: int, ids: Sequence[int], first: int, candidates: int | None) -> Scores | None:
        """See serving.generation.Stepper."""
        found = self.decoder.step(*self._chunk(slot, ids, first, candidates))
        return found[0] if found else None

    def _chunk(self, slot: int, ids: Sequence[int], first: int, candidates: int | None) -> tuple[Order, Array]:
        self.lengths[slot] = first + len(ids)
        order = self._order(Order(slot, 1, len(ids), (first,), -1 if candidates is None else candidates))
        return order, self.embedded(np.array(ids), np.arange(first, first + len(ids)))

    def logits(self, slot: int, ids: Sequence[int], first: int) -> Array:
        """Take rows as `prefill` does; return the logits behind each of them [rows, words]."""
        return np.stack([scores.logits for scores in self.check(slot, ids, first, 0)])

    def check(self, slot: int, ids: Sequence[int], first: int, candidates: int) -> list[Scores]:
        """See serving.generation.Stepper."""
        order, rows = self._chunk(slot, ids, first, candidates)  # of which all count as written, also what was guessed wrong
        return self.decoder.step(replace(order, every=True), rows)

    def all_logits(self, ids: Sequence[int]) -> Array:
        """Return the logits behind each token of a prompt [tokens, words]; whatever was in the first slot is gone."""
        parts = [self.logits(0, ids[first : first + CHUNK], first) for first in range(0, len(ids), CHUNK)]
        return np.concatenate(parts)

    def decode(self, rows: Sequence[tuple[int, int, int]], candidates: int) -> list[Scores]:
        """See serving.generation.Stepper. A step takes neighbouring slots: one in between without a row writes where its next will."""
        found = self.decoder.step(*self._rows(rows, candidates))
        return [found[slot - rows[0][0]] for slot, _, _ in rows]

    def _rows(self, rows: Sequence[tuple[int, int, int]], candidates: int) -> tuple[Order, Array]:
        first, last = rows[0][0], rows[-1][0]
        count = last - first + 1
        ids, lengths = np.zeros(count, np.int64), np.minimum(self.lengths[first : last + 1], self.positions - 1)
        for slot, token, place in rows:
            ids[slot - first], lengths[slot - first] = token, place
        for slot, _, place in rows:
            self.lengths[slot] = place + 1
        return self._order(Order(first, count, 1, tuple(lengths.tolist()), candidates)), self.embedded(ids, lengths)

    def embedded(self, ids: Array, places: Array) -> Array:
        """Return what the layers begin with, float32 [rows, hidden]."""
        arrays = {"ids": ids, "positions": places}
        return apply_steps(self.spec.front, self.weights, np.zeros((0, 0), np.float32), arrays)


class InStages(Ranks):
    """Ranks whose steps pass through stages, so that several may be under way; see serving.passing.Stages."""

    def __init__(self, decoder: Staged, weights: Weights) -> None:
        """See Ranks."""
        super().__init__(decoder, weights)
        self.stages, self.depth = decoder, decoder.depth
        self.wanted: deque[list[int]] = deque()  # of each step under way, the texts of it whose scores are

    def begin_prefill(self, slot: int, ids: Sequence[int], first: int, candidates: int | None) -> None:
        self.stages.submit(*self._chunk(slot, ids, first, candidates))
        self.wanted.append([] if candidates is None else [0])

    def begin_decode(self, rows: Sequence[tuple[int, int, int]], candidates: int) -> None:
        self.stages.submit(*self._rows(rows, candidates))
        self.wanted.append([slot - rows[0][0] for slot, _, _ in rows])

    def end(self) -> list[Scores]:
        found = self.stages.collect()
        return [found[place] for place in self.wanted.popleft()]
