"""Answers that grow, over HTTP: whole, or as server-sent events while they grow. Knows asyncio, and what a stream looks like; does not know
what the parts say (generation.py).
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from hepti_mpi.errors import HeptiError
from hepti_mpi.serving.asking import Model
from hepti_mpi.serving.front import Front
from hepti_mpi.serving.http.generation import Choices, Wanted
from hepti_mpi.serving.http.refusals import Refused
from hepti_mpi.serving.streams import Growing, Grown, growing

QUIET_SECONDS = 10.0  # without a part, after which a comment tells clients and proxies that the answer still comes
COMMENT, DONE = b": still at it\n\n", b"data: [DONE]\n\n"


class Conversation:
    """The choices of one request, while they grow."""

    def __init__(self, model: Model, front: Front, client: str, wanted: Wanted) -> None:
        """Ask for all of them. Raises NotReady, Busy, InputError."""
        self.front, self.choices = front, Choices(model, wanted)
        self.loop, self.parts = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Grown]]()
        self.growing: list[Growing] = []
        decode = model.tokens.decode
        try:
            for index, (prompt, sampling) in enumerate(wanted.each()):
                one = growing(client, prompt, sampling, decode, self._hearer(index))
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

    def close(self) -> None:
        """End what has not ended."""
        for one in self.growing:
            if not one.over:
                self.front.stop(one)

    async def whole(self) -> dict[str, Any]:
        """Return the whole answer. Raises what went wrong."""
        try:
            while not self.choices.ended:
                self.choices.add(*await self.parts.get())
            return self.choices.document()
        finally:
            self.close()

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield events; an error on the way is the last of them."""
        try:
            for document in self.choices.begin():
                yield event(document)
            while not self.choices.ended:
                try:
                    index, part = await asyncio.wait_for(self.parts.get(), QUIET_SECONDS)
                except asyncio.TimeoutError:
                    yield COMMENT
                    continue
                self.choices.add(index, part)
                for document in self.choices.part(index, part):
                    yield event(document)
            for document in self.choices.end():
                yield event(document)
            yield DONE
        except HeptiError as error:
            yield event(Refused.of(error).document())
            yield DONE
        finally:
            self.close()


def event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False).encode(errors="replace") + b"\n\n"
