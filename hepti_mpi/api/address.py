"""A service at an address, asked over HTTP. Knows its routes; does not know how it answers."""

import base64
import http.client
import json
import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np

from hepti_mpi.api.asked import TOGETHER, USUAL_TOKENS, Input, Label, asked_for, content, labels, of_type, patiently, waiting
from hepti_mpi.errors import Busy, InputError, NotReady, ServiceError
from hepti_mpi.models.inputs.chat import Message

LARGEST_PART = 24 << 20  # bytes of one request


class Address:
    """A service at an address."""

    def __init__(self, address: str, key: str | None, timeout: float) -> None:
        try:
            self.place: SplitResult = urlsplit(address.rstrip("/").removesuffix("/v1"))
            sound = bool(self.place.hostname) and self.place.port != 0 and address.isprintable() and " " not in address
        except ValueError:
            sound = False
        if not sound:
            raise InputError(f"{address!r} is no address such as http://pi4-1:8080")
        of_type("api_key", key, (str, type(None)), "a text")
        if key and not (key.isascii() and key.isprintable()):
            raise InputError("api_key holds a letter that no key has: keys are of ASCII, in one line")
        self.key, self.timeout = key, timeout
        try:
            (one,) = self._ask("/v1/models")["data"]
            self.takes_pictures = one["meta"]["gives"] == "classes of pictures"
        except (LookupError, TypeError, ValueError):
            raise ServiceError(f"what answers at {address} is no service of hepti_mpi") from None

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        found = []
        for part in _parts(texts):
            data = self._ask("/v1/embeddings", {"input": part, "encoding_format": "base64"})["data"]
            found.append(np.array([np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in data]))
        return np.concatenate(found)

    def classify(self, inputs: Sequence[Input]) -> list[list[Label]]:
        found = []
        for part in _parts([_data_url(content(one)) for one in inputs] if self.takes_pictures else inputs):
            if any(isinstance(one, tuple) for one in part):
                asked = {"inputs": [[one] if isinstance(one, str) else list(one) for one in part]}
                found += [{"labels": one} if isinstance(one, list) else one for one in self._ask("/predict", asked)]
            else:
                found += self._ask("/classify", {"input": part})["data"]
        return list(map(labels, found))

    def scores(self, query: str, texts: Sequence[str]) -> np.ndarray:
        found = [np.zeros(0, np.float32)]
        for part in _parts(texts):
            scores = np.zeros(len(part), np.float32)
            for one in self._ask("/rerank", {"query": query, "texts": part}):
                scores[one["index"]] = one["score"]
            found.append(scores)
        return np.concatenate(found)

    def stream(self, prompt: "str | Sequence[Message]", how: dict[str, Any]) -> Generator[str, None, None]:
        if asked_for(prompt, how).ignore_end:  # a service ignores what it does not know, and gives several answers where they are asked for
            raise InputError("ignore_end is not for a service that others use: leave it out, or use a store")
        # None is the same as left out, and of logprobs a text tells nothing
        how = {name: value for name, value in how.items() if name != "logprobs" and value is not None}
        asked = {"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}
        document = {"stream": True, "max_tokens": USUAL_TOKENS, "temperature": 0, **asked, **how}
        path = "/v1/completions" if isinstance(prompt, str) else "/v1/chat/completions"
        link, response = patiently(lambda: self._opened(path, document), self.timeout)
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
        return patiently(lambda: self._asked_once(path, document), self.timeout)

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
            link.connect()
            waiting().ends(lambda: _shut(link))
            link.request("GET" if document is None else "POST", self.place.path + path, body, headers)
            response = link.getresponse()
            if response.status == 200:
                return link, response
            said = _said(response.read()) or f"what answers at {self.place.netloc} says {response.status} {response.reason}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            link.close()
            raise self._unheard(error) from None
        link.close()
        kinds: dict[int, type[ServiceError]] = {429: Busy, 503: NotReady}
        if response.status in kinds:
            wait = response.headers.get("retry-after", "")
            raise kinds[response.status](said, float(wait) if wait.isdecimal() else 1.0)  # from a proxy it may be a date
        raise InputError(said) if response.status < 500 or response.status == 501 else ServiceError(said)

    def _unheard(self, error: Exception) -> ServiceError:
        return ServiceError(f"the service at {self.place.scheme}://{self.place.netloc} cannot be asked: {_why(error)}")


def _shut(link: http.client.HTTPConnection) -> None:
    """End a connection that another thread waits for."""
    with suppress(OSError):
        if link.sock is not None:
            link.sock.shutdown(socket.SHUT_RDWR)


def _said(content: bytes) -> str | None:
    """Return what an error object says, None for what is none, such as a page of a proxy."""
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return None


def _why(error: Exception) -> str:
    """Return what keeps a service from being asked, in words, with what can be done."""
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there; start it with: python -m hepti_mpi serve"
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return "what answers there gives no JSON: it is no service of hepti_mpi"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


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


def _data_url(content: bytes) -> str:
    return f"data:image/*;base64,{base64.b64encode(content).decode()}"
