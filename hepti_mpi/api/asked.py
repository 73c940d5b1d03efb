"""What a model is asked and answers with, from Python: words that both ways of asking share. Knows no job and no address."""

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextvars import ContextVar
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from hepti_mpi.errors import Busy, InputError, NotReady, reason_of
from hepti_mpi.models.inputs.chat import Message
from hepti_mpi.models.tasks.sampling import Sampling, sampling_of

Picture = Path | bytes
Input = str | tuple[str, str] | Picture
T = TypeVar("T")
USUAL_TOKENS = 256  # of an answer, where nobody says
LONGEST = 1_000_000  # seconds that are waited
TOGETHER = 1024  # inputs that are asked for at once: more are asked for in parts


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

    @property
    def takes_pictures(self) -> bool: ...

    def embed(self, texts: Sequence[str]) -> np.ndarray: ...

    def classify(self, inputs: Sequence[Input]) -> list[list[Label]]: ...

    def scores(self, query: str, texts: Sequence[str]) -> np.ndarray: ...

    def stream(self, prompt: "str | Sequence[Message]", how: dict[str, Any]) -> Generator[str, None, None]: ...

    def close(self) -> None: ...


class Waiting:
    """Somebody who waits for an answer, and may give up."""

    def __init__(self) -> None:
        self.given_up = False
        self._end: Callable[[], object] = lambda: None

    def give_up(self) -> None:
        """End what is under way. Any thread may call it."""
        self.given_up = True
        self._end()

    def ends(self, end: Callable[[], object]) -> None:
        """Let `end` be how what is under way now is ended, which is done at once where nobody waits any more."""
        self._end = end
        if self.given_up:
            end()


WAITS: ContextVar[Waiting | None] = ContextVar("waits", default=None)  # who waits for what this thread asks, where it may give up


def waiting() -> Waiting:
    """Return who waits for what this thread asks."""
    return WAITS.get() or Waiting()


def of_type(name: str, value: Any, kinds: type | tuple[type, ...], wanted: str) -> None:
    """Raise InputError for an argument of another type."""
    if not isinstance(value, kinds):
        raise InputError(f"{name} is of type {type(value).__name__}, expected {wanted}")


def are_many(inputs: Any) -> bool:
    """Tell whether these are inputs in an order: sets have none, and mappings and tables would give their keys and the names of columns."""
    return isinstance(inputs, Iterable) and not isinstance(inputs, set | frozenset | Mapping) and getattr(inputs, "ndim", 1) == 1


def words_of(options: Any) -> list[str]:
    """Return options for the ranks. Raises InputError."""
    of_type("options", options, (list, tuple), 'a list of words, such as ["--threads", "2"]')
    return [str(word) for word in options]


def checked_seconds(seconds: Any) -> float:
    """Return how long is waited. Raises InputError."""
    seconds = plain(seconds)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= LONGEST:
        raise InputError(f"timeout is {seconds!r}, expected seconds above 0, at most {LONGEST:,}")
    return float(seconds)


def patiently(ask: Callable[[], T], seconds: float) -> T:
    """Return what is answered; ask again when it is said to be too early, for so many seconds. Raises CancelledError when nobody waits for
    it any more."""
    end = time.monotonic() + seconds
    while True:
        if waiting().given_up:
            raise CancelledError
        try:
            return ask()
        except (Busy, NotReady) as error:
            wait = error.retry_after or 1.0
            if time.monotonic() + wait > end:
                raise
            time.sleep(min(wait, 5.0))


def checked(inputs: Sequence[Any], pictures: bool) -> list[Input]:
    """Return pictures, or texts and pairs of texts. Raises InputError for what is none."""
    kinds = (str, Path, bytes) if pictures else (str,)
    wanted = "a picture: its path, or the bytes of its file" if pictures else "a text or a pair of texts"
    for number, one in enumerate(inputs, 1):
        pair = not pictures and isinstance(one, tuple) and len(one) == 2 and all(isinstance(text, str) for text in one)
        if not pair and not isinstance(one, kinds):
            kind = f"tuple of {len(one)}" if isinstance(one, tuple) else type(one).__name__
            raise InputError(f"input {number} is of type {kind}, expected {wanted}")
        if not pictures:
            for text in one if pair else (one,):
                check_whole(number, text)
    return list(inputs)


def check_whole(number: int, text: str) -> None:
    """Raise InputError for a text with half a character, which no tokenizer takes."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(f"input {number} holds half a character (a lone surrogate), which is no text")


def asked_for(prompt: Any, how: Mapping[str, Any]) -> Sampling:
    """Return what is asked of the answer to a prompt. Raises InputError, and for a prompt that is none."""
    if not isinstance(prompt, (str, list, tuple)):
        raise InputError(f"the prompt is of type {type(prompt).__name__}, expected a text or a list of messages")
    unknown = sorted(how.keys() - {one.name for one in fields(Sampling)})
    if unknown:
        raise InputError(f"{unknown[0]} is nothing that is known of an answer")
    return sampling_of(how, Sampling(max_tokens=USUAL_TOKENS))


def plain(value: Any) -> Any:
    """Return a number of NumPy as one of Python's."""
    return value.item() if isinstance(value, np.generic) else value


def plain_numbers(how: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is asked of an answer, without numbers of NumPy."""
    return {name: plain(value) for name, value in how.items()}


def content(picture: Any) -> bytes:
    """Return the bytes of a picture. Raises InputError."""
    if isinstance(picture, bytes):
        return picture
    try:
        return Path(picture).read_bytes()
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"picture {str(picture)[:100]} cannot be read: {reason_of(error)}") from None


def labels(record: dict[str, Any]) -> list[Label]:
    """Return the classes of an answer. Raises InputError where it has none."""
    if "labels" not in record:
        raise InputError("the model gives classes of tokens, not of whole texts: ask for them over HTTP, with /classify")
    return [Label(one["label"], one["score"]) for one in record["labels"]]
