"""Where requests come from: a file, a folder or standard input is a source that ends. Rank 0's only.

Knows inputs; does not know what becomes of requests.
"""

from collections.abc import Callable, Container, Sequence
from typing import Protocol

from hepti_mpi.comm.launcher import standard_input
from hepti_mpi.models.inputs.requests import Request, left_out, read_requests
from hepti_mpi.models.inputs.text import Reading
from hepti_mpi.serving.journal import head_of, input_hash
from hepti_mpi.serving.request import Question
from hepti_mpi.weights.store import Store


class Source(Protocol):
    """What gives requests as they arrive. `ring` is called, by any thread, when some have come: for whoever waits for more than that."""

    ring: Callable[[], object]

    @property
    def ended(self) -> bool:
        """Whether no more will come."""

    def take(self, timeout: float) -> list[Request]:
        """Return what has come since, waiting for `timeout` seconds at most where that is nothing."""


class Given:
    """Requests that are known."""

    def __init__(self, requests: list[Request]) -> None:
        self.left, self.ended = requests, False
        self.ring: Callable[[], object] = lambda: None

    def take(self, timeout: float) -> list[Request]:
        taken, self.left, self.ended = self.left, [], True
        return taken


class Input:
    """What a question names: read whole, since plans are made for what is asked and batches are of requests of one length.

    `every` request of it; `refused`: those that cannot be answered. `left_out`: a sentence on what of a folder is no input.
    """

    def __init__(self, store: Store, question: Question, tolerance: float = 0.0, wires: Sequence[str] = ()) -> None:
        """`tolerance`: by how much values may change on their way; `wires`: by which a plan that was given lets them travel.

        Raises InputError when the input cannot be read.
        """
        reading = Reading(question.field, question.pair, question.strict)
        stdin = standard_input() if question.source == "-" else None
        self.every = read_requests(store.spec, store.files, question.source, stdin, reading)
        self.refused = [request for request in self.every if request.error is not None]
        self.left_out = left_out(store.spec, question.source)
        deciding = {"hidden": question.hidden, "tolerance": tolerance, "wires": list(wires)}
        self.head = head_of(store.spec.name, store.source_hash, input_hash(self.every), **deciding)

    def without(self, known: Container[int]) -> Given:
        """Return the source of what is to be answered: not what is refused, nor the places that are `known`."""
        return Given([request for request in self.every if request.error is None and request.index not in known])
