"""The life of a request: asked, read, embedded, answered, kept. The only place that asks what comes before and after the layers.

Knows what a request becomes at each station; does not know how requests are put together, nor where answers go.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.models.tasks.heads import Result, answers, apply_head, embed, fault
from hepti_mpi.serving.outputs import Finished, finished_answer, finished_arrays
from hepti_mpi.weights.outer import OuterWeights
from hepti_mpi.weights.store import Store

if TYPE_CHECKING:
    from hepti_mpi.models.inputs.requests import Request


@dataclass(frozen=True)
class Question:
    """What a run is asked: which input, how it is read, and where the answers go."""

    source: str | None = None
    output: Path | None = None
    resume: bool = False
    field: str | None = None
    pair: str | None = None
    strict: bool = False
    hidden: bool = False
    repeat: int = 1

    @property
    def arrays(self) -> bool:
        """Whether the answers are arrays."""
        return self.output is not None and self.output.suffix == ".npz"


class Answerer:
    """Brings the requests of one question from arrays to what is kept of their answers."""

    def __init__(self, store: Store, question: Question) -> None:
        self.store, self.spec, self.question = store, store.spec, question
        self.errors: dict[int, str] = {}  # of requests that have no result, by their places: whoever takes results takes these too
        self.weights = OuterWeights(store)

    def embedded(self, requests: "Sequence[Request]") -> np.ndarray:
        """Return what the layers begin with, float32 [rows of all, hidden]."""
        from hepti_mpi.models.inputs.requests import end_to_end

        return embed(self.spec, self.weights, end_to_end(requests))

    def results(self, requests: "Sequence[Request]", hidden: np.ndarray) -> list[Result]:
        """Return what the head makes of the last hidden state [rows of all, hidden]; nothing of it lies in that buffer."""
        results = apply_head(self.spec, self.weights, self.store.files, hidden, requests, self.question.arrays)
        bounds = np.cumsum([0, *(request.rows for request in requests)])
        for result, first, last in zip(results, bounds, bounds[1:]):
            for name, values in result.items():
                if np.may_share_memory(values, hidden):
                    result[name] = values.copy()
            if self.question.hidden:
                result["last_hidden_state"] = hidden[first:last].copy()
        return results

    def finished(self, requests: "Sequence[Request]", results: Sequence[Result]) -> list[Finished]:
        """Return what is kept of results. Raises InputError when one is no answer, if strict."""
        return [self._finished(request, result) for request, result in zip(requests, results)]

    def _finished(self, request: "Request", result: Result) -> Finished:
        why = fault(self.spec, request, result)
        if why is not None:
            if self.question.strict:
                raise InputError(why)
            return self.refused(request, why, result)
        if self.question.arrays:
            return finished_arrays(request, result)
        return finished_answer(answers(self.spec, self.store.files, [request], [result])[0])

    def refused(self, request: "Request", why: str, result: Mapping[str, np.ndarray] | None = None) -> Finished:
        """Return what stands for an answer that there is not."""
        if self.question.arrays:
            sound = {name: values for name, values in (result or {}).items() if np.isfinite(values).all()}
            return finished_arrays(request, sound, why)
        return finished_answer(request.given, why)


@dataclass
class Answered:
    """The event that requests were answered together, in `seconds`; `rows_left`: those of what is not answered yet."""

    requests: "Sequence[Request]"
    results: Sequence[Result]
    seconds: float
    answerer: Answerer
    rows_left: int

    @property
    def rows(self) -> int:
        """What they had together."""
        return sum(request.rows for request in self.requests)

    @property
    def places(self) -> list[int]:
        """Where they stand in the input."""
        return [request.index for request in self.requests]

    @property
    def grown(self) -> Sequence[Any]:
        """Tokens of texts that are not finished (serving.journal): there are none."""
        return ()

    @cached_property
    def finished(self) -> list[Finished]:
        """What is kept of them, found when it is asked for first. Raises InputError when one is no answer, if strict."""
        return self.answerer.finished(self.requests, self.results)
