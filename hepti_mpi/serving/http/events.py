"""Answers that grow, over HTTP: whole, or as server-sent events while they grow. Knows asyncio, and what a stream looks like; does not know
what the parts say (generation.py).
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from hepti_mpi.errors import HeptiError
from hepti_mpi.serving.asking import Model
from hepti_mpi.serving.front import Front
from hepti_mpi.serving.http.generation import Choices, Wanted
from hepti_mpi.serving.http.refusals import Refused
from hepti_mpi.serving.streams import Growing, Grown, growing

ANSWER_SECONDS = 600.0  # for an answer, or the next part of one that grows
QUIET_SECONDS = 10.0  # without a part, after which a comment tells clients and proxies that the answer still comes
COMMENT, DONE = b": still at it\n\n", b"data: [DONE]\n\n"


class Conversation:
    """The choices of one request, while they grow."""

    def __init__(self, model: Model, front: Front, client: str, wanted: Wanted, refused: Callable[[Exception], Refused]) -> None:
        """Ask for all of them; `refused` says of what goes wrong in a stream how its client hears it. Raises NotReady, Busy, InputError."""
        self.front, self.choices, self.refused = front, Choices(model, wanted), refused
        self.loop, self.parts = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Grown] | None]()
        self.growing: list[Growing] = []
        self.status, self.heard = 499, time.monotonic()  # how it is counted, where nobody reads it to its end; when the last part came
        decode = model.tokens.decode
        try:
            for index, (prompt, sampling) in enumerate(wanted.each()):
                one = growing(client, prompt, sampling, decode, self._hearer(index), not wanted.chat)
                front.grow(one)
                self.growing.append(one)
        except HeptiError:
            self.close()
            raise

    def _hearer(self, index: int) -> Callable[[Grown], None]:
        return lambda part: self._heard(index, part)

    def _heard(self, index: int, part: Grown) -> None:
        try:
            self.loop.call_soon_threadsafe(self.parts.put_nowait, (index, part))
        except RuntimeError:  # the server has ended
            pass

    @property
    def queued_seconds(self) -> float:
        """How long the last of them waited until it was begun."""
        return max((one.queued_seconds for one in self.growing), default=0.0)

    async def _next(self) -> tuple[int, Grown] | None:
        """Take in the next part of a choice and return it, None where none has come for QUIET_SECONDS. Raises what went wrong, and Refused
        when none has come for too long."""
        late = self.loop.call_later(QUIET_SECONDS, self.parts.put_nowait, None)  # a timeout of asyncio's own costs a task for each token
        try:
            found = await self.parts.get()
        finally:
            late.cancel()
        if found is None:
            if time.monotonic() > self.heard + ANSWER_SECONDS:
                raise Refused(504, f"nothing more of the answer came within {ANSWER_SECONDS:g} s", retry_after=10)
            return None
        self.heard = time.monotonic()
        self.choices.add(*found)
        return found

    def close(self) -> None:
        """End what has not ended."""
        for one in self.growing:
            if not one.over:
                self.front.stop(one)

    async def whole(self) -> dict[str, Any]:
        """Return the whole answer. Raises what went wrong."""
        try:
            while not self.choices.ended:
                await self._next()
            return self.choices.document()
        finally:
            self.close()

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield events; an error on the way is the last of them."""
        try:
            for document in self.choices.begin():
                yield event(document)
            sent = time.monotonic()
            while not self.choices.ended:
                part = await self._next()
                documents = [] if part is None else self.choices.part(*part)
                for document in documents:
                    yield event(document)
                is_late = part is None or time.monotonic() > sent + QUIET_SECONDS  # what may be a call of a tool is held back
                if is_late and not documents:
                    yield COMMENT
                if is_late or documents:
                    sent = time.monotonic()
            for document in self.choices.end():
                yield event(document)
            self.status = 200
            yield DONE
        except Exception as error:
            refused = self.refused(error)
            self.status = refused.status
            yield event(refused.document())
            yield DONE
        finally:
            self.close()


def event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False).encode(errors="replace") + b"\n\n"
