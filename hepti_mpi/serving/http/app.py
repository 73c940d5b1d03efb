"""The routes of a service. Knows HTTP by way of Starlette, whose only user it is; does not know what a route asks of the model
(inquiries.py), nor what answers it (the front).
"""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from hepti_mpi import __version__
from hepti_mpi.errors import HeptiError, place_of
from hepti_mpi.serving.asking import Model
from hepti_mpi.serving.front import Call, Front
from hepti_mpi.serving.http import generation, inquiries
from hepti_mpi.serving.http.events import ANSWER_SECONDS, Conversation
from hepti_mpi.serving.http.fields import Fields, parsed
from hepti_mpi.serving.http.forms import parts
from hepti_mpi.serving.http.generation import Wanted
from hepti_mpi.serving.http.inquiries import Inquiry
from hepti_mpi.serving.http.meters import Meters
from hepti_mpi.serving.http.refusals import Refused

LARGEST_BODY = 32 << 20  # bytes of one request
HELD_BODIES = 256 << 20  # of all that are being read or made into requests
BODY_SECONDS = 60.0  # for a body to come
SMALL = 4 << 10  # bytes of a body for which no other thread is worth the way
OPEN = ("/health", "/")  # that need no key: they tell nothing that a key protects
Inquire = Callable[[Model, Fields], Inquiry]
ROUTES: dict[str, Inquire] = {
    "/v1/embeddings": inquiries.embeddings, "/embeddings": inquiries.embeddings, "/embed": inquiries.embed,
    "/v1/rerank": inquiries.rerank, "/rerank": inquiries.rerank, "/predict": inquiries.predict, "/classify": inquiries.classify,
}  # fmt: skip
Want = Callable[[Model, Fields, int], Wanted]
WRITING: dict[str, Want] = {"/v1/chat/completions": generation.chat, "/v1/completions": generation.completion}


class Document(Response):
    """JSON in one piece, its letters as they are."""

    media_type = "application/json"

    def __init__(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(json.dumps(content, ensure_ascii=False).encode(errors="replace"), status, dict(headers or {}))


class Growing(Response):
    """An answer as events, as long as its client reads, which is counted when it has ended: `ended` is told as what. Starlette's own would
    load a library for the first of them."""

    def __init__(self, conversation: Conversation, queued: Callable[[float], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "Content-Type": "text/event-stream; charset=utf-8"}
        super().__init__(None, headers=headers | conversation.choices.wanted.headers)
        del self.headers["content-length"]
        self.conversation, self.queued = conversation, queued
        self.ended: Callable[[int], None] = lambda status: None

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for piece in self.conversation.stream():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent, gone = asyncio.ensure_future(self._send(send)), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((sent, gone), return_when=asyncio.FIRST_COMPLETED)
            if sent.done():
                sent.result()
        finally:
            for one in (sent, gone):
                one.cancel()
            await asyncio.gather(sent, gone, return_exceptions=True)
            self.conversation.close()  # a stream that nobody has begun to read does not do that itself
            self.queued(self.conversation.queued_seconds)
            self.ended(self.conversation.status)


@dataclass
class Parts:
    """What the routes need: the `model`, its `front`, the `keys` of which each request needs one (none: it needs none), `status` of the
    service, what tells a sentence, and the `origins` whose pages in a browser may ask, "*": all of them."""

    model: Model
    front: Front
    keys: Sequence[str]
    status: Callable[[], dict[str, Any]]
    details: Callable[[], dict[str, Any]]
    say: Callable[[str], None]
    origins: Sequence[str] = ()


class Api:
    """Answers requests."""

    def __init__(self, own: Parts) -> None:
        self.own, self.model, self.front = own, own.model, own.front
        self.meters = Meters(self._look)
        self.born, self.held = int(time.time()), 0
        self.page = (files("hepti_mpi.serving.http") / "page.html").read_bytes()

    def _look(self) -> dict[str, float]:
        status, (count, rows) = self.own.status(), self.front.waiting
        lost = [host for host in status["hosts"] if host["state"] == "lost"]
        ready = status["status"] in ("ready", "degraded")
        found = {"waiting": count, "waiting_rows": rows, "ready": ready, "starts": status["starts"]}
        found["tokens"] = self.front.streams.tokens
        return found | {"lost": len(lost), "hosts": len(status["hosts"])}

    def app(self) -> Starlette:
        """Return the routes, all guarded."""
        asking = [self._route(path, self._inquired(inquire), ["POST"]) for path, inquire in ROUTES.items()]
        plain: list[tuple[str, Callable[[Request], Awaitable[Response]], list[str]]] = [
            ("/", self._home, ["GET"]), ("/health", self._health, ["GET"]), ("/metrics", self._metrics, ["GET"]),
            ("/status", self._status, ["GET"]), ("/v1/models", self._models, ["GET"]), ("/models", self._models, ["GET"]),
            ("/v1/models/{name:path}", self._one_model, ["GET"]), ("/tokenize", self._tokenize, ["POST"]),
            *((path, self._written(want), ["POST"]) for path, want in WRITING.items()),
        ]  # fmt: skip
        other = {404: self._unknown, 405: self._unknown}
        routes = [*asking, *(self._route(*one) for one in plain)]
        return Starlette(routes=routes, exception_handlers=other, middleware=[*shared(self.own.origins), Middleware(Slashless)])

    def _route(self, path: str, work: Callable[[Request], Awaitable[Response]], methods: list[str]) -> Route:
        async def guarded(request: Request) -> Response:
            begin, response = time.perf_counter(), None
            try:
                if path not in OPEN:
                    self._check_key(request)
                response = await work(request)
            except ClientDisconnect:
                response = Response(status_code=499)  # nobody reads it
            except Exception as error:
                refused = self._refused(path, error)
                unread = {"Connection": "close"} if refused.status in (408, 413, 415) else {}  # what is left of a body is not waited for
                response = Document(refused.document(), refused.status, refused.headers() | unread)
            finally:
                if isinstance(response, Growing):
                    response.ended = lambda status: self.meters.answered(path, status, time.perf_counter() - begin)
                else:
                    self.meters.answered(path, response.status_code if response else 499, time.perf_counter() - begin)
            return response

        return Route(path, guarded, methods=methods)

    def _refused(self, path: str, error: Exception) -> Refused:
        """Return why there is no answer; of a fault of the program one sentence is said here, and none of its insides to the client."""
        if isinstance(error, HeptiError):
            return Refused.of(error)
        self.own.say(f"{path}: {type(error).__name__}: {' '.join(str(error).split())[:200]} ({place_of(error)})")
        return Refused(500, "the server has a fault; its log says which")

    def _key(self, request: Request) -> str:
        """Return the key that is sent."""
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        return given.strip() if kind.lower() == "bearer" else request.headers.get("api-key", "")

    def _check_key(self, request: Request) -> None:
        if not self.own.keys:
            return
        given = self._key(request)
        if not any([hmac.compare_digest(given.encode(), key.encode()) for key in self.own.keys]):  # all are looked at: time tells nothing
            raise Refused(401, "this server needs an API key: send it as Authorization: Bearer KEY")

    # requests for answers

    def _inquired(self, inquire: Inquire) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            client = self._client(request)
            self.front.check(client)  # before anything is read or made of it
            body = await self._body(request)
            try:
                kind = request.headers.get("content-type", "")
                inquiry = await beside(len(body) > SMALL, lambda: self._inquiry(inquire, kind, body))
            finally:
                self.held -= len(body)
            begin = time.perf_counter()
            call = self.front.ask(client, inquiry.requests)
            results = await self._results(request, call)
            self.meters.queued.observe(call.queued_seconds)
            document = await beside(len(results) > 8, lambda: inquiry.reply(results))
            told = {"x-queue-time": f"{1000 * call.queued_seconds:.0f}", "x-total-time": f"{1000 * (time.perf_counter() - begin):.0f}"}
            return await beside(len(results) > 8, lambda: Document(document, headers=told | inquiry.headers))

        return answer

    def _inquiry(self, inquire: Inquire, kind: str, body: bytes) -> Inquiry:
        if kind.lower().startswith("multipart/form-data"):
            if inquire is not inquiries.classify:
                raise Refused(422, "forms are for pictures, with /classify; send JSON")
            return inquiries.pictures(self.model, parts(kind, body))
        return inquire(self.model, parsed(body))

    def _client(self, request: Request) -> str:
        """Return who asks: between such names the service is fair. A key that nobody looks at makes no client: else one that sends another
        each time would be many."""
        address = request.client.host if request.client else ""
        return f"{self._key(request) if self.own.keys else ''} {address}"

    async def _body(self, request: Request) -> bytes:
        """Return the body, which counts as held until the caller says otherwise. Raises Refused."""
        coding = request.headers.get("content-encoding", "") or "identity"
        if coding != "identity":
            raise Refused(415, f"the body is sent as {coding[:60]}, it is taken as it is: leave out Content-Encoding")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > LARGEST_BODY:
            raise Refused(413, f"the body has {length} bytes, at most {LARGEST_BODY} are taken")
        self._check_held()
        pieces = list[bytes]()
        try:
            await asyncio.wait_for(self._read(request, pieces), BODY_SECONDS)
        except BaseException as error:
            self.held -= sum(map(len, pieces))
            if isinstance(error, asyncio.TimeoutError):
                raise Refused(408, f"the body did not come within {BODY_SECONDS:g} s") from None
            raise
        return b"".join(pieces)

    def _check_held(self) -> None:
        if self.held > HELD_BODIES:
            raise Refused(429, "the bodies of other requests fill the memory that is for them; ask again in a moment", retry_after=1)

    async def _read(self, request: Request, pieces: list[bytes]) -> None:
        size = 0
        async for piece in request.stream():
            pieces.append(piece)
            size += len(piece)
            self.held += len(piece)
            if size > LARGEST_BODY:
                raise Refused(413, f"the body has more than {LARGEST_BODY} bytes, which is the most that is taken")
            self._check_held()  # others may be reading theirs beside this one

    async def _results(self, request: Request, call: Call) -> Sequence[Any]:
        """Wait for the results of a call as long as its client does. Raises Refused, ClientDisconnect and what the call fails with."""
        answered: asyncio.Future[Any] = asyncio.wrap_future(call.future)
        gone: asyncio.Future[Any] = asyncio.ensure_future(_gone(request.receive))
        try:
            await asyncio.wait((answered, gone), timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if answered.done():
                return answered.result()
            if gone.done():
                raise ClientDisconnect
            raise Refused(504, f"no answer within {ANSWER_SECONDS:g} s", retry_after=10)
        finally:
            gone.cancel()
            if not answered.done():
                self.front.cancel(call)

    # answers that grow

    def _written(self, want: Want) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            client = self._client(request)
            self.model.check_writes()
            self.front.check(client)
            body = await self._body(request)
            try:
                room = self.front.streams.positions
                wanted = await beside(len(body) > SMALL, lambda: want(self.model, parsed(body), room))
            finally:
                self.held -= len(body)
            conversation = Conversation(self.model, self.front, client, wanted, partial(self._refused, request.url.path))
            if wanted.stream:
                return Growing(conversation, self.meters.queued.observe)
            document = await self._whole(request, conversation)
            self.meters.queued.observe(conversation.queued_seconds)
            return Document(document, headers={"x-queue-time": f"{1000 * conversation.queued_seconds:.0f}"} | wanted.headers)

        return answer

    async def _whole(self, request: Request, conversation: Conversation) -> dict[str, Any]:
        """Return the whole answer as long as its client waits. Raises ClientDisconnect and what goes wrong."""
        answered: asyncio.Future[Any] = asyncio.ensure_future(conversation.whole())
        gone: asyncio.Future[Any] = asyncio.ensure_future(_gone(request.receive))
        try:
            await asyncio.wait((answered, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answered.done():
                raise ClientDisconnect
            found: dict[str, Any] = answered.result()
            return found
        finally:
            gone.cancel()
            answered.cancel()

    # others

    async def _tokenize(self, request: Request) -> Response:
        body = await self._body(request)
        try:
            return Document(await beside(len(body) > SMALL, lambda: inquiries.tokenize(self.model, parsed(body), self._room)))
        finally:
            self.held -= len(body)

    @property
    def _room(self) -> int:
        """Tokens that the service takes of a text, with its answer where it writes: as many as its slots have, once it is loaded."""
        return self.front.streams.positions or self.model.most_tokens

    async def _models(self, request: Request) -> Response:
        return Document({"object": "list", "data": [self._described()]})

    async def _one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self.model.spec.name:
            raise Refused(404, f"model {name[:60]!r} is not served here; served is {self.model.spec.name!r}", "model", "model_not_found")
        return Document(self._described())

    def _described(self) -> dict[str, Any]:
        spec = self.model.spec
        meta = {"gives": self.model.gives, "family": spec.family, "layers": spec.layers, "hidden": spec.hidden, "positions": self._room}
        return {"id": spec.name, "object": "model", "created": self.born, "owned_by": "hepti_mpi", "meta": meta}

    async def _health(self, request: Request) -> Response:
        status = self.own.status()
        well = status["status"] in ("ready", "degraded", "restarting")  # what is asked while it starts again is answered
        return Document(status, 200 if well else 503, {} if well else {"Retry-After": "5"})

    async def _status(self, request: Request) -> Response:
        front, (count, rows) = self.front, self.front.waiting
        asked: dict[str, Any] = {"waiting": count, "waiting_rows": rows, "under_way": len(front.flying)}
        asked |= {"answered": front.answered + front.streams.answered, "answered_rows": front.answered_rows}
        asked |= {"rows_per_second": front.rows_per_second}
        asked |= {"tokens": front.streams.tokens, "growing": len(front.streams.flying)}
        return Document({"version": __version__, **self.own.status(), "model": self._described(), "queue": asked, **self.own.details()})

    async def _metrics(self, request: Request) -> Response:
        return Response(self.meters.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _home(self, request: Request) -> Response:
        safe = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
        return Response(self.page, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": safe})

    async def _unknown(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            what = f"is not a route of this server; ask {meant(request.url.path, [route.path for route in request.app.routes])}"
        else:
            methods = sorted((error.headers or {}).get("Allow", "").split(", "))  # which come in any order
            what = f"does not take {request.method}; it takes {' or '.join(methods)}"
        refused = Refused(error.status_code, f"{request.url.path[:100]} {what}")
        return Document(refused.document(), refused.status, error.headers)


class Slashless:
    """Takes a path with a slash at its end for that without: a redirection is nothing to a client that does not follow it, such as curl."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        await self.app({**scope, "path": path.rstrip("/") or "/"} if path.endswith("/") else scope, receive, send)


def meant(path: str, routes: Sequence[str]) -> str:
    """Return which of the routes somebody may mean who asks another path, such as one without /v1 or with two of them: the first that ends
    as it does; else all."""
    parts, plain = path.strip("/").split("/"), [route for route in routes if "{" not in route]
    for number in range(len(parts)):
        alike = [route for route in plain if route.endswith("/" + "/".join(parts[number:])) and route != "/"]
        if alike:
            return alike[0]
    return "one of " + ", ".join(plain)


def shared(origins: Sequence[str]) -> list[Middleware]:
    """Return what lets pages of these origins ask and read answers; a key they send themselves, a browser's cookies are nothing here."""
    told = ["Retry-After", "x-queue-time", "x-total-time", "x-truncated-inputs", generation.PASSED_OVER]
    how: dict[str, Any] = {"allow_methods": ["GET", "POST"], "allow_headers": ["*"], "expose_headers": told, "max_age": 3600}
    return [Middleware(CORSMiddleware, allow_origins=list(origins), **how)] if origins else []


async def _gone(receive: Receive) -> None:
    """Return when a client has gone away, whose body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def beside(long: bool, work: Callable[[], Any]) -> Any:
    """Return what work returns, which is done beside other requests where it is `long`."""
    return await asyncio.to_thread(work) if long else work()
