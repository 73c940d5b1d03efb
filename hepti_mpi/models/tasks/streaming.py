"""The text of an answer as it grows: token by token, with what may still change held back.

Knows how tokens become text and where a stop text begins; knows no model and no rank.
"""

from collections.abc import Sequence
from typing import Protocol

from hepti_mpi.models.inputs.tokens import UNFINISHED

CONTEXT = 8  # last tokens of a text, by which its next one is written


class Decode(Protocol):
    """Tokens become text. `more`: others may follow; what they may still change ends with UNFINISHED."""

    def __call__(self, ids: Sequence[int], more: bool = False) -> str: ...


class Streamed:
    """Text of tokens that come one by one. `stopped`: whether a stop text came; what is behind it is no more part of the text."""

    def __init__(self, decode: Decode, stop: Sequence[str] = (), behind: Sequence[int] = ()) -> None:
        """`behind`: tokens of the text that this one goes on with; whether there is a space between them depends on both."""
        self.decode, self.stop = decode, tuple(stop)
        context = list(behind[-CONTEXT:])
        self.ids = [] if decode(context, True).endswith(UNFINISHED) else context
        self.text, self.sent, self.stopped = "", 0, False
        self.begin, self.done = 0, len(self.ids)  # tokens before `begin` are text for good; those up to `done` are its last context

    def add(self, token: int) -> str:
        """Take the next token; return what is sure to be text since the last call."""
        self.ids.append(token)
        before, after = self.decode(self.ids[self.begin : self.done]), self.decode(self.ids[self.begin :], True)
        if len(after) > len(before) and not after.endswith(UNFINISHED):
            self.text += after[len(before) :]
            self.begin, self.done = self.done, len(self.ids)
        return self._safe()

    def end(self) -> str:
        """Return the rest when no more tokens come."""
        if not self.stopped:
            before, after = self.decode(self.ids[self.begin : self.done]), self.decode(self.ids[self.begin :])
            self.text += after[len(before) :]
            self.begin = self.done = len(self.ids)
            self._stop()
        found, self.sent = self.text[self.sent :], len(self.text)
        return found

    def _safe(self) -> str:
        self._stop()
        held = 0 if self.stopped else max((_overlap(self.text, stop) for stop in self.stop), default=0)
        until = max(self.sent, len(self.text) - held)
        found, self.sent = self.text[self.sent : until], until
        return found

    def _stop(self) -> None:
        places = [place for stop in self.stop if (place := self.text.find(stop, max(0, self.sent - len(stop)))) >= 0]
        if places:
            self.text, self.stopped = self.text[: min(places)], True


def _overlap(text: str, stop: str) -> int:
    """Return how many letters at the end of `text` may be the beginning of `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
