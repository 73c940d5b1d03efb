"""A job of this program: it is started with the model and ends with it. Knows the service that keeps it; does not know HTTP."""

import logging
import queue
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np

from hepti_mpi.api.asked import TOGETHER, Input, Label, T, asked_for, content, labels, patiently, waiting
from hepti_mpi.errors import ServiceError, StoreError
from hepti_mpi.models.inputs.chat import Message
from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.models.tasks.forms import check
from hepti_mpi.models.tasks.heads import Result
from hepti_mpi.models.tasks.sampling import check_biases
from hepti_mpi.serving import asking
from hepti_mpi.serving.front import Front
from hepti_mpi.serving.streams import Grown, growing
from hepti_mpi.supervisor.service import Job, Service
from hepti_mpi.weights.places import NO_STORE, no_store
from hepti_mpi.weights.store import Store

ANSWER = ("answer", "--quiet", "--weights")  # the command of the ranks, before the store
UNDER_WAY = 3  # parts of what is asked
PLACE = re.compile(r"[A-Za-z]+://|[\w.-]+:\d+/?$")  # what looks like an address
LOG = logging.getLogger("hepti_mpi")


def store_of(model: str | Path) -> Path:
    """Return the path of a store. Raises StoreError for what is none, with the next command."""
    path = Path(model)
    if not str(model).strip():
        raise StoreError(f"the name of the model is empty; {NO_STORE}")
    if PLACE.match(str(model)):
        raise StoreError(f"{model} is no store; the address of a service begins with http, such as http://{str(model).rpartition('//')[2]}")
    what = no_store(path)
    if what is not None:
        raise StoreError(what)
    return path


class Own:
    """A job of this program."""

    def __init__(self, store: Path, hostfile: Path | None, mpirun: str, words: list[str], timeout: float) -> None:
        with Store(store) as opened:
            self.model = asking.Model(opened.spec, opened.files, opened.source_hash)
        self.timeout, self.takes_pictures = timeout, self.model.takes_pictures
        self.service = Service(Job.on(hostfile, words, mpirun), self.model.source_hash, LOG.info)
        self.service.start()
        try:
            self.model.warm_up()  # ranks get ready meanwhile
            ready = self.service.ready.wait(timeout)
            if self.service.error is not None or not ready:
                raise self.service.error or ServiceError(f"the job was not ready within {timeout:g} s; it was {self.service.doing}")
        except BaseException:  # Ctrl-C too: in a notebook ranks that nobody can ask would keep their memory
            self.close()
            raise

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.model.check_embeds()
        return np.concatenate(list(self._each(texts, self.model.texts, self.model.embeddings)))

    def classify(self, inputs: Sequence[Input]) -> list[list[Label]]:
        self.model.check_classifies()
        made = (lambda part: self.model.pictures(list(map(content, part)))) if self.takes_pictures else self.model.texts
        return [labels(record) for part in self._each(inputs, made, self.model.records) for record in part]

    def scores(self, query: str, texts: Sequence[str]) -> np.ndarray:
        self.model.check_ranks()
        parts = self._each([(query, text) for text in texts], self.model.texts, self.model.scores)
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def stream(self, prompt: "str | Sequence[Message]", how: dict[str, Any]) -> Generator[str, None, None]:
        return streamed(self.model, self.service.front, prompt, how, self.timeout)

    def _each(
        self, inputs: Sequence[Any], made: Callable[[Any], list[Request]], answered: Callable[[Sequence[Request], Sequence[Result]], T]
    ) -> Iterator[T]:
        """Yield what is answered of each part of the inputs, of which some are under way."""
        calls: deque[Any] = deque()

        def end() -> None:
            for call in list(calls):
                self.service.front.cancel(call)

        waiting().ends(end)
        try:
            for first in range(0, len(inputs), TOGETHER):
                if len(calls) == UNDER_WAY:
                    yield self._result(calls[0], answered)
                    calls.popleft()
                requests = made(inputs[first : first + TOGETHER])
                calls.append(patiently(lambda: self.service.front.ask("python", requests), self.timeout))  # noqa: B023  it is called at once
            while calls:
                yield self._result(calls[0], answered)
                calls.popleft()
        finally:
            end()

    def _result(self, call: Any, answered: Callable[[Sequence[Request], Sequence[Result]], T]) -> T:
        if waiting().given_up:  # what was asked at that moment is not ended
            raise CancelledError
        try:
            return answered(call.requests, call.future.result(self.timeout))
        except TimeoutError:
            raise ServiceError(f"no answer within {self.timeout:g} s") from None

    def close(self) -> None:
        self.service.stop()


def streamed(
    model: asking.Model, front: Front, prompt: "str | Sequence[Message]", how: dict[str, Any], seconds: float
) -> Generator[str, None, None]:
    """Yield the parts of an answer that a front gives; `seconds` to wait for each. Raises InputError, ServiceError."""
    sampling = asked_for(prompt, how)
    check(sampling.schema)
    check_biases(sampling.logit_bias, model.spec.numbers("ids"))
    parts: queue.SimpleQueue[Grown] = queue.SimpleQueue()
    one = growing("python", model.prompt(prompt), sampling, model.tokens.decode, parts.put, isinstance(prompt, str))
    waiting().ends(lambda: parts.put(Grown("", error=ServiceError("nobody waits for the answer any more"))))
    patiently(lambda: front.grow(one), seconds)
    try:
        while True:
            part = parts.get(timeout=seconds)
            if part.error is not None:
                raise part.error
            yield part.text
            if part.finish is not None:
                return
    except queue.Empty:
        raise ServiceError(f"nothing more of the answer came within {seconds:g} s") from None
    finally:
        if not one.over:
            front.stop(one)
