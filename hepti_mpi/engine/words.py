"""The scores of the next token: every rank multiplies rows by its part of the vocabulary, and rank 0 gets the likeliest ones, or all.

Knows parts of a table and how they come together; does not know what is chosen of them.
"""

import numpy as np

from hepti_mpi.comm.ranks import Comm
from hepti_mpi.engine import pages, sessions
from hepti_mpi.engine.caching import words_session
from hepti_mpi.models.numerics import Array
from hepti_mpi.models.tasks.sampling import Scores, largest, log_sum
from hepti_mpi.weights.slices import DecodingPart
from hepti_mpi.weights.store import Store


class Words:
    """This rank's part of the vocabulary. `counts`: words of each rank of `group`, whose first one is the root."""

    def __init__(self, store: Store, part: DecodingPart, threads: int, group: Comm, bounds: list[tuple[int, int]], rows: int) -> None:
        """`bounds`: the (start, stop) of the words of each rank of `group`, those of `part` for this one, or none; `rows`: the most
        that are scored at once."""
        self.group = group
        self.counts = [stop - start for start, stop in bounds]
        self.starts = [start for start, _ in bounds]
        self.ids = np.arange(*bounds[group.rank])
        self.cap = part.logit_cap
        self.x = np.zeros((rows, part.spec.hidden), np.float32)
        self.logits = pages.untouched(rows, len(self.ids))  # seldom of so many rows
        self.session = None
        if len(self.ids):
            table, bias = part.words_slices
            self.session = words_session(store, table, bias, part.plan.weights_mode[part.rank], threads)
        self.runs = {rows: sessions.bound(self.session, {"x": self.x[:rows]}, self.logits[:rows]) for rows in (1, rows) if self.session}

    def compute(self, rows: int) -> None:
        """Find the logits of the first `rows` rows of `x`."""
        if self.session is None:
            return
        if rows not in self.runs:
            self.runs[rows] = sessions.bound(self.session, {"x": self.x[:rows]}, self.logits[:rows])
        self.runs[rows]()

    def scores(self, rows: int, candidates: int) -> list[Scores]:
        """Return, on the root, the scores of so many rows, after `compute`: of all words, or of the `candidates` likeliest of each part.

        Collective in the group.
        """
        logits = self.logits[:rows]
        if self.cap and candidates != 1:
            logits = np.float32(self.cap) * np.tanh(logits / np.float32(self.cap))
        if candidates == 0:
            return self._all(logits)
        every = np.zeros((rows * (1 if self.group.rank else self.group.size), 1 + 2 * candidates), np.float32)
        own = every[:rows]
        own[:, 0], own[:, 1::2] = -np.inf, -np.inf
        if len(self.ids):
            self._pick(logits, candidates, own)
        self.group.gather_rows(every, [rows] * self.group.size)
        if self.group.rank:
            return []
        parts = every.reshape(-1, rows, own.shape[1])
        found = [self._joined(parts[:, row]) for row in range(rows)]
        return found

    def _pick(self, logits: Array, candidates: int, own: Array) -> None:
        """Write (sum, logit, id, logit, id, ...) of each row; ids as they are in the bits of a float32."""
        numbers = own.view(np.int32)
        if candidates == 1:
            best = logits.argmax(axis=1)
            own[:, 1], numbers[:, 2] = logits[np.arange(len(best)), best], self.ids[best]
            if self.cap:
                own[:, 1] = self.cap * np.tanh(own[:, 1] / self.cap)
            return
        for row, values in enumerate(logits):
            ids, top = largest(self.ids, values, candidates)
            own[row, 0] = log_sum(values)
            own[row, 1 : 1 + 2 * len(top) : 2], numbers[row, 2 : 2 + 2 * len(top) : 2] = top, ids

    @staticmethod
    def _joined(parts: Array) -> Scores:
        """Return the scores of one row from what each rank picked [ranks, 1 + 2 candidates]."""
        logits, ids = parts[:, 1::2].ravel(), parts.view(np.int32)[:, 2::2].ravel()
        there = logits > -np.inf
        return Scores(ids[there], logits[there], log_sum(parts[:, 0]))

    def _all(self, logits: Array) -> list[Scores]:
        rows = len(logits)
        sizes = [rows * count for count in self.counts]
        every = own = np.ascontiguousarray(logits).reshape(-1, 1)
        if self.group.rank == 0:
            every = np.empty((sum(sizes), 1), np.float32)
            every[: len(own)] = own
        self.group.gather_rows(every, sizes)
        if self.group.rank:
            return []
        bounds = np.cumsum([0, *sizes])
        parts = [every[first:last].reshape(rows, -1) for first, last in zip(bounds, bounds[1:])]
        order = np.argsort(self.starts, kind="stable")
        return [Scores.of_all(np.concatenate([parts[place][row] for place in order])) for row in range(rows)]
