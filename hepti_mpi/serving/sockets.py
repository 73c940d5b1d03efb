"""The connection between the front of a service and rank 0: how it is made, how it sends, how it is ended. Knows sockets; does not know
what is said.
"""

import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

from hepti_mpi.errors import HostError

CONNECT_SECONDS = 3.0
GREET_SECONDS = 20.0  # for the other end to show that it is the front, whatever else its machine does


def connected(address: Mapping[str, Any]) -> Connection:
    """Return a connection to the front by the first of its addresses where it answers. Raises HostError when none does."""
    why, key = "it says no address", bytes.fromhex(address["key"])
    for host in address["addresses"]:
        place = (str(host), int(address["port"]))
        try:
            with socket.create_connection(place, CONNECT_SECONDS) as one:
                one.settimeout(None)
                connection = at_once(Connection(one.detach()))
            _wait(connection, GREET_SECONDS)  # what else listens there may say nothing
            answer_challenge(connection, key)
            deliver_challenge(connection, key)
            _wait(connection, 0)
            return connection
        except (OSError, EOFError, AuthenticationError) as error:
            why = f"{place[0]} port {place[1]}: {error}"
    raise HostError(f"the machine that serves cannot be reached from the first host ({why}); look at its firewall")


def _wait(connection: Connection, seconds: float) -> None:
    """Let a connection wait so long for what it is to read, 0: for ever; of a socket's own timeout it does not know."""
    with _socket(connection) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)))


def at_once(connection: Connection) -> Connection:
    """Let a connection send each message when it is given. Else the second of two small ones waits for word that the first was received
    (Nagle's algorithm, RFC 896), which the other end, that has nothing to say, puts off for 40 ms (RFC 1122, 4.2.3.2)."""
    with _socket(connection) as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def shut(connection: Connection) -> None:
    """End a connection that another thread waits for."""
    with suppress(OSError), _socket(connection) as one:
        one.shutdown(socket.SHUT_RDWR)


@contextmanager
def _socket(connection: Connection) -> Iterator[socket.socket]:
    """Give the socket of a connection, which stays open."""
    one = socket.socket(fileno=connection.fileno())
    try:
        yield one
    finally:
        one.detach()
