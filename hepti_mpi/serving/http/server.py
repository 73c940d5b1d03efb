"""The HTTP server around the routes: addresses, connections that say nothing, and an end in good order. The only user of uvicorn.

Knows sockets and signals; does not know routes.
"""

import asyncio
import errno
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hepti_mpi.errors import HeptiError

HEAD_SECONDS = 20.0  # for a connection to say what it wants
KEEP_SECONDS = 75.0  # that one is kept after an answer: longer than proxies keep theirs
DRAIN_SECONDS = 120  # for what is asked to be answered when the service is to end
LAST_SECONDS = 2.0  # of these, in which whoever waits still is told that it is not
FILES = 65536  # that may be open, where the system lets it: a connection is one


class Protocol(H11Protocol):
    """One that does not wait for ever for a connection that says nothing, or its request letter by letter."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.late = self.loop.call_later(HEAD_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.conn.their_state is h11.IDLE and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.late.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.late.cancel()
        self.late = self.loop.call_later(KEEP_SECONDS + HEAD_SECONDS, self._close_if_silent)


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens. What is said on its connections is sent at once: asyncio lets the content of an answer wait until its
    head is known to be received, which clients put off for 40 ms, since it takes them for no TCP. Raises HeptiError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, place = found[0]
        listener = socket.create_server(place[:2], family=family, backlog=2048)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # on Linux connections begin with what it has
        return listener
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        hint = "; choose another with --port" if number in (errno.EADDRINUSE, errno.EACCES) else (
            "; --host takes an address of this machine, or 0.0.0.0 for all of them")  # fmt: skip
        why = os.strerror(number) if number and number > 0 else getattr(error, "strerror", None) or error  # Python adds the address to it
        raise HeptiError(f"cannot listen on {host} port {port}: {why}{hint}") from None


def make_room() -> None:
    """Let this process have as many connections as the system lets it."""
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if most == resource.RLIM_INFINITY else min(FILES, most)
    if least < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


class Server:
    """Serves an app on a socket, until it is told to end."""

    def __init__(self, app: Any, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app, http=Protocol, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
            timeout_keep_alive=int(KEEP_SECONDS), timeout_graceful_shutdown=DRAIN_SECONDS,
        )  # fmt: skip
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)  # what goes wrong is told in sentences of our own
        self.server, self.listener = uvicorn.Server(config), listener

    def run(self, began: Callable[[], object], ending: Callable[[], object], late: Callable[[], object]) -> bool:
        """Serve until a signal or `end`; then answer what is asked already, and tell whether there was time for all of it. `began`,
        `ending`: called at both ends of it; `late`: where there was none, or a second signal, to tell who waits still."""
        previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
        # uvicorn raises again what it has caught, for whoever listened before: nobody
        hangup = signal.signal(signal.SIGHUP, lambda *_: self.end())
        try:
            return asyncio.run(self.serve(began, ending, late))
        finally:
            for number, handler in [*previous.items(), (signal.SIGHUP, hangup)]:
                signal.signal(number, handler)

    async def serve(self, began: Callable[[], object], ending: Callable[[], object], late: Callable[[], object]) -> bool:
        """The same, but for signals."""
        whole = True

        async def tell() -> None:
            nonlocal whole
            while not self.server.should_exit:
                await asyncio.sleep(0.05)
            ending()
            await asyncio.sleep(DRAIN_SECONDS - LAST_SECONDS)
            whole = False
            late()  # before uvicorn ends what is under way, without a word

        telling = asyncio.ensure_future(tell())
        began()
        await self.server.serve(sockets=[self.listener])
        telling.cancel()
        if self.server.force_exit:  # somebody does not wait for what is under way: who asked for it is told
            late()
            until = time.monotonic() + LAST_SECONDS
            while self.server.server_state.connections and time.monotonic() < until:
                await asyncio.sleep(0.02)
        return whole and not self.server.force_exit

    def end(self) -> None:
        """End, as a signal does. Any thread may call it."""
        self.server.should_exit = True
