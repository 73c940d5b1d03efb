"""What is answered next, and together with what. Knows requests and their rows; does not know how they are answered.

Requests that wait are put together when there is nothing else to answer: all of a file at once, of a source without an end what has come.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.models.tasks.heads import Result
from hepti_mpi.planning.memory import PADDED_SCORES
from hepti_mpi.serving.request import Answered, Answerer

if TYPE_CHECKING:
    from hepti_mpi.models.inputs.requests import Request

USUAL_ROWS = 32  # of a text of a service, of which nobody knows what it will be asked
Lengths = tuple[int, ...]  # rows of the requests that are answered together


@dataclass(frozen=True)
class Step:
    """Requests that are answered together."""

    requests: "tuple[Request, ...]"

    @property
    def lengths(self) -> Lengths:
        return tuple(request.rows for request in self.requests)


class Scheduler:
    """Makes steps of at most `most_rows` rows, of layers of `hidden` columns, of the requests that are added: each `repeat` times."""

    def __init__(self, answerer: Answerer, most_rows: int, repeat: int = 1) -> None:
        self.answerer, self.most_rows, self.repeat = answerer, most_rows, repeat
        self.waiting: list[Request] = []
        self.steps: list[Step] = []  # of one round
        self.given, self.cut = 0, 0  # steps of all rounds, and requests of the next one
        self.rows, self.rows_given = 0, 0  # of one round, and of all that was given
        self.rows_under_way = 0  # given and not answered yet

    def add(self, requests: "Sequence[Request]") -> None:
        """Take in requests, which wait until what was added before is answered."""
        self.waiting += requests
        if self.given == self.repeat * len(self.steps) and self.waiting:
            lengths = [request.rows for request in self.waiting]
            parts = batches(lengths, self.most_rows, self.answerer.spec.hidden)
            self.steps = [Step(tuple(self.waiting[place] for place in part)) for part in parts]
            self.waiting, self.given, self.rows_given, self.rows = [], 0, 0, sum(lengths)

    @property
    def left(self) -> int:
        """How many steps are to come, of what is known."""
        return self.repeat * len(self.steps) - self.given

    @property
    def rows_left(self) -> int:
        """The rows that are to come, of what is known."""
        return self.repeat * self.rows - self.rows_given

    @property
    def first_rows(self) -> int:
        """The rows of the request that is next, 0 where there is none."""
        return self.steps[self.given % len(self.steps)].requests[self.cut].rows if self.left else 0

    @property
    def shapes(self) -> list[Lengths]:
        """The lengths of each step of a round."""
        return [step.lengths for step in self.steps]

    def next(self, rows: float = float("inf")) -> Step | None:
        """Return what is to be answered next, of at most so many rows or of one request; None when that is nothing."""
        if not self.left:
            return None
        requests = self.steps[self.given % len(self.steps)].requests[self.cut :]
        ends = np.cumsum([request.rows for request in requests])
        count = max(1, int(np.searchsorted(ends, rows, side="right")))
        self.rows_given += int(ends[count - 1])
        self.rows_under_way += int(ends[count - 1])
        if count < len(requests):
            self.cut += count
        else:
            self.given, self.cut = self.given + 1, 0
        return Step(requests[:count])

    def done(self, step: Step, results: Sequence[Result], seconds: float) -> Answered:
        """Return the event that a step, which took `seconds`, is for those that wait for its answers."""
        self.rows_under_way -= sum(step.lengths)
        return Answered(step.requests, results, seconds, self.answerer, self.rows_left + self.rows_under_way)


def batches(lengths: Sequence[int], most_rows: int, hidden: int) -> list[list[int]]:
    """Pack requests of similar length into batches of at most `most_rows` rows, as lists of indices; a longer one goes alone.

    Rows are packed end to end, so products pay for no padding; only attention works on [requests, longest], and a batch ends
    where that would add more than PADDED_SCORES x rows x hidden to its scores.

    >>> batches([3, 4, 9, 1], 8, 1000)
    [[2], [1, 0, 3]]
    """
    result: list[list[int]] = []
    rows = scores = longest = 0
    for index in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        length = lengths[index]
        padding = (len(result[-1]) + 1) * longest**2 - scores - length**2 if result else 0
        if not result or rows + length > most_rows or padding > PADDED_SCORES * (rows + length) * hidden:
            result.append([])
            rows, scores, longest = 0, 0, length
        result[-1].append(index)
        rows, scores = rows + length, scores + length**2
    return result


def typical_rows(shapes: Sequence[Lengths]) -> dict[str, int]:
    """Return what the plan for steps of these shapes is made for, under the names of planning.Request: rows of the median batch
    and the median request, which are priced, and of the largest batch and the longest request, which memory must hold."""
    lengths, sizes = sorted(length for shape in shapes for length in shape), sorted(map(sum, shapes))
    if not sizes:
        raise InputError("the input is empty: there is nothing to answer")
    return {"rows": sizes[len(sizes) // 2], "attended": lengths[len(lengths) // 2], "largest": sizes[-1], "longest": lengths[-1]}


def service_rows(spec: ModelSpec, batch_rows: int) -> dict[str, int]:
    """Return what the plan of a service is made for, as `typical_rows` does: batches that are full, of texts of usual length or of
    pictures, of which all have as many rows; memory must hold the longest request."""
    usual = spec.positions if spec.embedding == "patches" else min(spec.positions, USUAL_ROWS)
    largest = max(batch_rows, spec.positions)
    return {"rows": usual * max(1, batch_rows // usual), "attended": usual, "largest": largest, "longest": spec.positions}
