"""The package in a program: a model that answers from Python, with a job of its own or at a service that runs already.

Knows methods and what they return; does not know how requests wait (serving.front) nor how HTTP asks (serving.http). Imports no MPI: the
ranks are other processes.
"""

import asyncio
import base64
import http.client
import json
import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar
from urllib.parse import SplitResult, urlsplit

import numpy as np

from hepti_mpi.errors import Busy, HeptiError, InputError, NotReady, ServiceError
from hepti_mpi.models.inputs.chat import Message
from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.models.tasks.heads import Result
from hepti_mpi.models.tasks.sampling import Sampling
from hepti_mpi.serving import asking
from hepti_mpi.serving.front import Front
from hepti_mpi.serving.streams import Grown, growing
from hepti_mpi.supervisor.service import Job, Service
from hepti_mpi.weights.store import Store

Picture = Path | bytes
Input = str | tuple[str, str] | Picture
T = TypeVar("T")
USUAL_TOKENS = 256  # of an answer, where nobody says
TOGETHER = 1024  # inputs of one call to the front or over HTTP: more are asked for in parts
UNDER_WAY = 3  # such parts
LARGEST_PART = 24 << 20  # bytes of one over HTTP
LOG = logging.getLogger("hepti_mpi")


@dataclass(frozen=True)
class Ranked:
    """A text that was ranked: its place among those that were given, and its score."""

    index: int
    score: float
    text: str


@dataclass(frozen=True)
class Label:
    """A class, and how sure the model is of it."""

    label: str | int
    score: float


class Asked(Protocol):
    """What a model is asked by: each returns answers in the order of the inputs."""

    def embed(self, texts: Sequence[str]) -> np.ndarray: ...

    def classify(self, inputs: Sequence[Input]) -> list[list[Label]]: ...

    def scores(self, query: str, texts: Sequence[str]) -> np.ndarray: ...

    def stream(self, prompt: "str | Sequence[Message]", how: dict[str, Any]) -> Iterator[str]: ...

    def close(self) -> None: ...


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
        if isinstance(model, str) and model.startswith(("http://", "https://")):
            self._asked: Asked = _Address(model, api_key, timeout)
        else:
            words = ["answer", "--quiet", "--weights", str(model), *options]
            self._asked = _Own(Path(model), None if hostfile is None else Path(hostfile), mpirun, words, timeout)

    def embed(self, texts: str | Sequence[str]) -> np.ndarray:
        """Return the embeddings of texts, float32 [texts, size]; of one text alone [size].

        Raises: InputError where the model makes none, or does not take a text; ServiceError where the job cannot go on.
        """
        found = self._asked.embed(_many(texts))
        return found[0] if isinstance(texts, str) else found

    def classify(self, inputs: Input | Sequence[Input]) -> list[list[Label]]:
        """Return the best classes of each input, the best first: of texts, pairs of texts, or pictures (paths, or bytes of files).

        Raises: InputError, ServiceError.
        """
        many: Sequence[Any] = [inputs] if isinstance(inputs, (str, tuple, Path, bytes)) else inputs
        return self._asked.classify(many)

    def rerank(self, query: str, texts: Sequence[str]) -> list[Ranked]:
        """Return the texts in the order of how well they answer a query, the best first.

        Raises: InputError where the model is no reranker, ServiceError.
        """
        scores = self._asked.scores(query, _many(texts))
        return [Ranked(int(at), float(scores[at]), texts[at]) for at in np.argsort(-scores, kind="stable")]

    def generate(self, prompt: "str | Sequence[Message]", **how: Any) -> str:
        """Return how a text goes on, or what is answered in a talk: messages with role and content.

        `how`: max_tokens (256), temperature (0: the likeliest tokens), top_p, top_k, min_p, seed, stop (a list of texts), and the
        penalties, as in models.tasks.sampling. Raises: InputError where the model writes no text, ServiceError.
        """
        return "".join(self.stream(prompt, **how))

    def stream(self, prompt: "str | Sequence[Message]", **how: Any) -> Iterator[str]:
        """Yield the parts of what `generate` returns, as they come. Who stops to listen ends it."""
        return self._asked.stream(prompt, how)

    async def generate_async(self, prompt: "str | Sequence[Message]", **how: Any) -> str:
        """Do as `generate`, beside other tasks."""
        return await asyncio.to_thread(lambda: self.generate(prompt, **how))

    async def embed_async(self, texts: str | Sequence[str]) -> np.ndarray:
        """Do as `embed`, beside other tasks."""
        return await asyncio.to_thread(self.embed, texts)

    async def classify_async(self, inputs: Input | Sequence[Input]) -> list[list[Label]]:
        """Do as `classify`, beside other tasks."""
        return await asyncio.to_thread(self.classify, inputs)

    async def rerank_async(self, query: str, texts: Sequence[str]) -> list[Ranked]:
        """Do as `rerank`, beside other tasks."""
        return await asyncio.to_thread(self.rerank, query, texts)

    def close(self) -> None:
        """End the job; a service that was there before stays."""
        self._asked.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Own:
    """A job of this program."""

    def __init__(self, store: Path, hostfile: Path | None, mpirun: str, words: list[str], timeout: float) -> None:
        with Store(store) as opened:
            self.model = asking.Model(opened.spec, opened.files, opened.source_hash)
        self.timeout = timeout
        self.service = Service(Job.on(hostfile, words, mpirun), self.model.source_hash, LOG.info)
        self.service.start()
        ready = self.service.ready.wait(timeout)
        if self.service.error is not None or not ready:
            error = self.service.error or ServiceError(f"the job was not ready within {timeout:g} s; it was {self.service.doing}")
            self.close()
            raise error

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.model.check_embeds()
        parts = self._each(texts, self.model.texts, self.model.embeddings)
        return np.concatenate([np.zeros((0, 0), np.float32)] * (not texts) + list(parts))

    def classify(self, inputs: Sequence[Input]) -> list[list[Label]]:
        self.model.check_classifies()
        pictures = self.model.takes_pictures
        made = (lambda part: self.model.pictures(list(map(_content, part)))) if pictures else self.model.texts
        return [_labels(record) for part in self._each(inputs, made, self.model.records) for record in part]

    def scores(self, query: str, texts: Sequence[str]) -> np.ndarray:
        self.model.check_ranks()
        parts = self._each([(query, text) for text in texts], self.model.texts, self.model.scores)
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def stream(self, prompt: "str | Sequence[Message]", how: dict[str, Any]) -> Iterator[str]:
        return streamed(self.model, self.service.front, prompt, how, self.timeout)

    def _each(
        self, inputs: Sequence[Any], made: Callable[[Any], list[Request]], answered: Callable[[Sequence[Request], Sequence[Result]], T]
    ) -> Iterator[T]:
        """Yield what is answered of each part of the inputs, of which some are under way."""
        waiting: deque[Any] = deque()
        for first in range(0, len(inputs), TOGETHER):
            if len(waiting) == UNDER_WAY:
                yield self._result(waiting.popleft(), answered)
            requests = made(inputs[first : first + TOGETHER])
            waiting.append(_patiently(lambda: self.service.front.ask("python", requests), self.timeout))  # noqa: B023  it is called at once
        while waiting:
            yield self._result(waiting.popleft(), answered)

    def _result(self, call: Any, answered: Callable[[Sequence[Request], Sequence[Result]], T]) -> T:
        try:
            return answered(call.requests, call.future.result(self.timeout))
        except TimeoutError:
            raise ServiceError(f"no answer within {self.timeout:g} s") from None
        finally:
            self.service.front.cancel(call)

    def close(self) -> None:
        self.service.stop()


class _Address:
    """A service at an address."""

    def __init__(self, address: str, key: str | None, timeout: float) -> None:
        self.place: SplitResult = urlsplit(address.rstrip("/").removesuffix("/v1"))
        if not self.place.hostname:
            raise InputError(f"{address!r} is no address such as http://pi4-1:8080")
        self.key, self.timeout = key, timeout
        _patiently(lambda: self._ask("/v1/models"), timeout)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        found = [np.zeros((0, 0), np.float32)] * (not texts)
        for part in _parts(texts):
            data = self._ask("/v1/embeddings", {"input": part, "encoding_format": "base64"})["data"]
            found.append(np.array([np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in data]))
        return np.concatenate(found)

    def classify(self, inputs: Sequence[Input]) -> list[list[Label]]:
        found = []
        for part in _parts([one if isinstance(one, (str, tuple)) else _data_url(_content(one)) for one in inputs]):
            if any(isinstance(one, tuple) for one in part):
                found += self._ask("/predict", {"inputs": [[one] if isinstance(one, str) else list(one) for one in part]})
            else:
                found += [one["labels"] for one in self._ask("/classify", {"input": part})["data"]]
        return [_labels({"labels": labels}) for labels in found]

    def scores(self, query: str, texts: Sequence[str]) -> np.ndarray:
        found = [np.zeros(0, np.float32)]
        for part in _parts(texts):
            scores = np.zeros(len(part), np.float32)
            for one in self._ask("/rerank", {"query": query, "texts": part}):
                scores[one["index"]] = one["score"]
            found.append(scores)
        return np.concatenate(found)

    def stream(self, prompt: "str | Sequence[Message]", how: dict[str, Any]) -> Iterator[str]:
        asked = {"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}
        document = {"stream": True, "max_tokens": USUAL_TOKENS, "temperature": 0, **asked, **how}
        path = "/v1/completions" if isinstance(prompt, str) else "/v1/chat/completions"
        link, response = _patiently(lambda: self._opened(path, document), self.timeout)
        try:
            for line in response:
                if line.startswith(b"data: {"):
                    part = json.loads(line[6:])
                    if "error" in part:
                        raise ServiceError(part["error"]["message"])
                    for choice in part["choices"]:
                        yield choice["text"] if "text" in choice else choice["delta"].get("content") or ""
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServiceError(f"the answer was cut off: {error or type(error).__name__}") from None
        finally:
            link.close()

    def close(self) -> None:
        """It belongs to somebody else."""

    def _ask(self, path: str, document: dict[str, Any] | None = None) -> Any:
        """Return what is answered. Raises what the status means."""
        return _patiently(lambda: self._asked_once(path, document), self.timeout)

    def _asked_once(self, path: str, document: dict[str, Any] | None) -> Any:
        link, response = self._opened(path, document)
        try:
            return json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unheard(error) from None
        finally:
            link.close()

    def _opened(self, path: str, document: dict[str, Any] | None) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Return a connection and the answer on it that is to be read. Raises what its status means."""
        kind = http.client.HTTPSConnection if self.place.scheme == "https" else http.client.HTTPConnection
        link = kind(str(self.place.hostname), self.place.port, timeout=self.timeout)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        try:
            body = None if document is None else json.dumps(document)
            link.request("GET" if document is None else "POST", self.place.path + path, body, headers)
            response = link.getresponse()
            if response.status == 200:
                return link, response
            said = json.loads(response.read()).get("error", {}).get("message") or f"status {response.status}"
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            link.close()
            raise self._unheard(error) from None
        link.close()
        kinds: dict[int, type[ServiceError]] = {429: Busy, 503: NotReady}
        if response.status in kinds:
            raise kinds[response.status](said, float(response.headers.get("retry-after") or 1))
        raise InputError(said) if response.status < 500 or response.status == 501 else ServiceError(said)

    def _unheard(self, error: Exception) -> ServiceError:
        return ServiceError(f"the service at {self.place.scheme}://{self.place.netloc} cannot be asked: {error or type(error).__name__}")


def streamed(model: asking.Model, front: Front, prompt: "str | Sequence[Message]", how: dict[str, Any], seconds: float) -> Iterator[str]:
    """Yield the parts of an answer that a front gives; `seconds` to wait for each. Raises InputError, ServiceError."""
    unknown = sorted(how.keys() - {one.name for one in fields(Sampling)})
    if unknown:
        raise InputError(f"{unknown[0]} is nothing that is known of an answer")
    stop = how.get("stop") or ()
    sampling = Sampling(**{"max_tokens": USUAL_TOKENS, **how, "stop": (stop,) if isinstance(stop, str) else tuple(stop)})
    parts: queue.SimpleQueue[Grown] = queue.SimpleQueue()
    one = growing("python", model.prompt(prompt), sampling, model.tokens.decode, parts.put)
    _patiently(lambda: front.grow(one), seconds)
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


def _patiently(ask: Callable[[], T], seconds: float) -> T:
    """Ask again when it is said to be too early, for so many seconds."""
    end = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except (Busy, NotReady) as error:
            wait = error.retry_after or 1.0
            if time.monotonic() + wait > end:
                raise
            time.sleep(min(wait, 5.0))


def _many(texts: str | Sequence[str]) -> list[str]:
    many = [texts] if isinstance(texts, str) else list(texts)
    for number, text in enumerate(many, 1):
        if not isinstance(text, str):
            raise InputError(f"input {number} is of type {type(text).__name__}, expected a text")
    return many


def _parts(inputs: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield the inputs in parts that one request may hold."""
    part, size = list[Any](), 0
    for one in inputs:
        own = sum(map(len, one)) if isinstance(one, tuple) else len(one)
        if part and (len(part) == TOGETHER or size + 6 * own > LARGEST_PART):  # JSON spells a letter with up to 6
            yield part
            part, size = [], 0
        part.append(one)
        size += 6 * own if isinstance(one, tuple) or not one.startswith("data:") else own
    if part:
        yield part


def _content(picture: Any) -> bytes:
    """Return the bytes of a picture. Raises InputError."""
    if isinstance(picture, bytes):
        return picture
    try:
        return Path(picture).read_bytes()
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"picture {str(picture)[:100]} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _data_url(content: bytes) -> str:
    return f"data:image/*;base64,{base64.b64encode(content).decode()}"


def _labels(record: dict[str, Any]) -> list[Label]:
    if "labels" not in record:
        raise InputError("the model gives classes of tokens, not of whole texts: ask for them over HTTP, with /classify")
    return [Label(one["label"], one["score"]) for one in record["labels"]]


__all__ = ["HeptiError", "Label", "Model", "Ranked"]
