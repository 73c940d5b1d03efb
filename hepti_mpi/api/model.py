"""The package in a program: a model that answers from Python, with a job of its own or at a service that runs already.

Knows methods and what they return; does not know how requests wait (serving.front) nor how HTTP asks (serving.http). Imports no MPI: the
ranks are other processes.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

import numpy as np

from hepti_mpi.api.address import Address
from hepti_mpi.api.asked import (
    WAITS,
    Asked,
    Input,
    Label,
    Ranked,
    T,
    Waiting,
    are_many,
    check_whole,
    checked,
    checked_seconds,
    of_type,
    plain_numbers,
    words_of,
)
from hepti_mpi.api.own import ANSWER, Own, store_of
from hepti_mpi.errors import InputError
from hepti_mpi.models.inputs.chat import Message


class Model:
    """A model that is kept warm.

    >>> with Model("weights/all-MiniLM-L6-v2.h5", hostfile="hostfiles/pi4.txt") as model:  # doctest: +SKIP
    ...     vectors = model.embed(["the cat sat on the mat", "good morning"])  # float32 [2, 384]
    """

    def __init__(
        self, model: str | Path, hostfile: str | Path | None = None, *, mpirun: str = "mpirun", options: Sequence[str] = (),
        api_key: str | None = None, timeout: float = 600.0,
    ) -> None:  # fmt: skip
        """Start a job and wait until it is ready: on this machine, or on the hosts of a hostfile by mpirun; or use the service at an
        address that begins with http.

        `model`: a store, or the address. `options`: more words for the ranks, such as ["--threads", "2"]. `timeout`: seconds to wait for
        readiness, and for an answer.
        Raises: StoreError, HostError, ServiceError and other HeptiErrors, each a sentence that says what to do.
        """
        of_type("model", model, (str, Path), "a store, or the address of a service")
        words, seconds = words_of(options), checked_seconds(timeout)
        if isinstance(model, str) and model.lower().startswith(("http://", "https://")):
            if hostfile is not None or options:
                raise InputError(f"the service at {model} has hosts and options of its own: leave out hostfile and options")
            self._asked: Asked = Address(model, api_key, seconds)
        else:
            if api_key is not None:
                raise InputError(
                    "a job of one's own needs no api_key: leave it out, or give the address of a service, such as http://pi4-1:8080"
                )
            of_type("hostfile", hostfile, (str, Path, type(None)), "the path of a hostfile")
            of_type("mpirun", mpirun, str, "how mpirun is called, such as mpirun")
            found = Path(store_of(model))
            self._asked = Own(found, None if hostfile is None else Path(hostfile), mpirun, [*ANSWER, str(found), *words], seconds)

    def embed(self, texts: str | Sequence[str]) -> np.ndarray:
        """Return the embeddings of texts, float32 [texts, size]; of one text alone [size].

        Raises: InputError where the model makes none, or does not take a text; ServiceError where the job cannot go on.
        """
        many = _many(texts)
        found = self._asked.embed(many or [""])[: len(many)]  # of none, how large one is
        return found[0] if isinstance(texts, str) else found

    def classify(self, inputs: Input | Sequence[Input]) -> list[list[Label]]:
        """Return the best classes of each input, the best first: of texts, pairs of texts, or pictures (paths, or bytes of files).

        Raises: InputError, ServiceError.
        """
        one = isinstance(inputs, (str, tuple, bytes)) or not are_many(inputs)
        many: Any = [inputs] if one else inputs
        return self._asked.classify(checked(list(many), self._asked.takes_pictures))

    def rerank(self, query: str, texts: Sequence[str]) -> list[Ranked]:
        """Return the texts in the order of how well they answer a query, the best first.

        Raises: InputError where the model is no reranker, ServiceError.
        """
        (asked,), many = _many([query]), _many(texts)
        scores = self._asked.scores(asked, many)
        return [Ranked(int(at), float(scores[at]), many[at]) for at in np.argsort(-scores, kind="stable")]

    @overload
    def generate(self, prompt: "str | Sequence[Message]", *, stream: Literal[False] = False, **how: Any) -> str: ...

    @overload
    def generate(self, prompt: "str | Sequence[Message]", *, stream: Literal[True], **how: Any) -> Iterator[str]: ...

    def generate(self, prompt: "str | Sequence[Message]", *, stream: bool = False, **how: Any) -> str | Iterator[str]:
        """Return how a text goes on, or what is answered in a talk: messages with role and content; `stream`: as `stream` does.

        `how`: max_tokens (256), temperature (0: the likeliest tokens), top_p, top_k, min_p, seed, stop (a list of texts), and the
        penalties, as in models.tasks.sampling. Raises: InputError where the model writes no text, ServiceError.
        """
        parts = self.stream(prompt, **how)
        return parts if stream else "".join(parts)

    def stream(self, prompt: "str | Sequence[Message]", **how: Any) -> Iterator[str]:
        """Yield the parts of what `generate` returns, as they come. Who stops to listen ends it."""
        return self._asked.stream(prompt, plain_numbers(how))

    def stream_async(self, prompt: "str | Sequence[Message]", **how: Any) -> AsyncIterator[str]:
        """Do as `stream`, beside other tasks: `async for part in model.stream_async(...)`. Who stops to listen ends it."""
        return _beside(self._asked.stream(prompt, plain_numbers(how)))

    async def generate_async(self, prompt: "str | Sequence[Message]", **how: Any) -> str:
        """Do as `generate`, beside other tasks."""
        if how.pop("stream", False):
            raise InputError("generate_async returns a whole text; its parts come with: async for part in model.stream_async(...)")
        return "".join([part async for part in self.stream_async(prompt, **how)])

    async def embed_async(self, texts: str | Sequence[str]) -> np.ndarray:
        """Do as `embed`, beside other tasks. Who stops to wait, as asyncio.timeout does, ends it."""
        return await _awaited(lambda: self.embed(texts))

    async def classify_async(self, inputs: Input | Sequence[Input]) -> list[list[Label]]:
        """Do as `classify`, beside other tasks."""
        return await _awaited(lambda: self.classify(inputs))

    async def rerank_async(self, query: str, texts: Sequence[str]) -> list[Ranked]:
        """Do as `rerank`, beside other tasks."""
        return await _awaited(lambda: self.rerank(query, texts))

    def close(self) -> None:
        """End the job; a service that was there before stays."""
        self._asked.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _many(texts: str | Iterable[str]) -> list[str]:
    """Return texts, of one text a list of it. Raises InputError for what is no text."""
    if not are_many(texts) or isinstance(texts, bytes | bytearray | memoryview):  # which would give numbers
        raise InputError(f"what is asked is of type {type(texts).__name__}, expected a text or a list of texts")
    many = [texts] if isinstance(texts, str) else list(texts)
    for number, text in enumerate(many, 1):
        if not isinstance(text, str):
            raise InputError(f"input {number} is of type {type(text).__name__}, expected a text")
        check_whole(number, text)
    return many


async def _awaited(work: Callable[[], T]) -> T:
    """Return what work returns, which a thread does."""
    waits, context = Waiting(), copy_context()
    context.run(WAITS.set, waits)
    try:
        return await asyncio.get_running_loop().run_in_executor(None, lambda: context.run(work))
    except asyncio.CancelledError:
        waits.give_up()
        raise


async def _beside(parts: Generator[str, None, None]) -> AsyncIterator[str]:
    """Yield parts that a thread waits for."""
    loop, came = asyncio.get_running_loop(), asyncio.Queue[str | BaseException | None]()
    waits, context = Waiting(), copy_context()
    context.run(WAITS.set, waits)

    def pump() -> None:
        end: BaseException | None = None
        try:
            for part in parts:
                if waits.given_up:
                    return
                loop.call_soon_threadsafe(came.put_nowait, part)
        except BaseException as error:  # noqa: BLE001  whoever listens raises it
            end = error
        finally:
            parts.close()  # it ends the answer
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(came.put_nowait, end)

    threading.Thread(target=lambda: context.run(pump), name="stream", daemon=True).start()
    try:
        while (part := await came.get()) is not None:
            if isinstance(part, BaseException):
                raise part
            yield part
    finally:
        waits.give_up()
