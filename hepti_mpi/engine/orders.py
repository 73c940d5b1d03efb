"""What rank 0 tells the others that a step of texts is, in the first message of it. Knows slots, rows and numbers of a message; no model,
no exchange."""

from dataclasses import dataclass, replace

import numpy as np

from hepti_mpi import splits
from hepti_mpi.models.numerics import Array
from hepti_mpi.program.plan import tiles_of

END, REST, STEP = 0, 1, 2  # what rank 0 says
HEADER, COPY = 8, 4  # numbers of a message before the rows that each text has, and of each copy behind those


@dataclass(frozen=True)
class Order:
    """What a step is: `each` rows of `count` texts, in the slots from `first` on, which have `lengths` rows already.

    `candidates`: how many of the likeliest words of each part of the vocabulary are wanted behind the last row of each text, or behind
    `every` row; 0: all of them; -1: no scores at all. `copies`: of rows between slots (State.copy) before it, as many as slots at most.
    """

    first: int
    count: int
    each: int
    lengths: tuple[int, ...]
    candidates: int
    every: bool = False
    copies: tuple[tuple[int, int, int, int], ...] = ()

    @classmethod
    def read(cls, numbers: Array, slots: int) -> "Order":
        """Return what `write` wrote."""
        first, count, each, candidates, every, copied = numbers[1:7].tolist()
        copies = numbers[HEADER + slots :][: COPY * copied].reshape(-1, COPY).tolist()
        return cls(first, count, each, tuple(numbers[HEADER:][:count].tolist()), candidates, bool(every), tuple(map(tuple, copies)))

    def write(self, numbers: Array, slots: int) -> None:
        """Write it into a message's int32 numbers [numbers_in(slots)], as STEP."""
        numbers[:7] = STEP, self.first, self.count, self.each, self.candidates, self.every, len(self.copies)
        numbers[HEADER:][: self.count] = self.lengths
        if self.copies:
            numbers[HEADER + slots :][: COPY * len(self.copies)] = np.ravel(self.copies)

    def cut(self, tiles: int) -> "list[tuple[int, Order]]":
        """Return the parts that are computed one after the other, each with the row it begins at: of rows of one text up to so many
        tiles, else all."""
        if self.count > 1 or tiles_of(tiles, self.each) == 1:
            return [(0, self)]
        sizes = splits.even(self.each, tiles_of(tiles, self.each))
        return [(begin, replace(self, each=size, lengths=(self.lengths[0] + begin,), copies=()))
                for begin, size in zip(splits.starts(sizes), sizes)]  # fmt: skip

    @property
    def rows(self) -> int:
        return self.count * self.each

    @property
    def scored(self) -> int:
        """How many rows are scored."""
        return 0 if self.candidates < 0 else self.rows if self.every else self.count


def numbers_in(slots: int) -> int:
    """Return how many numbers of a message say what a step is."""
    return HEADER + slots + COPY * slots
