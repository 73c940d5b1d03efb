"""The door of a service: rank 0 knocks here, shows that it has the key, and is listened to until its connection ends.

Knows connections and who may come in; does not know what is said. Who says nothing, or has another key, keeps nobody out.
"""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener, answer_challenge, deliver_challenge
from typing import Any

from hepti_mpi.comm.names import own_addresses
from hepti_mpi.errors import InputError
from hepti_mpi.serving import frames, sockets

STRANGERS = 8  # connections that have not shown that they are rank 0's; for one more the first has to leave
LARGEST_MESSAGE = 1 << 30  # bytes


class Door:
    """Where rank 0 comes in. `near`: all hosts are this machine. `hear` is told each message and its connection, `lost` that one ended;
    both by a thread of that connection."""

    def __init__(
        self, near: bool, hear: Callable[[Connection, frames.Head, Sequence[Any]], None], lost: Callable[[Connection], None]
    ) -> None:  # fmt: skip
        self.near, self.hear, self.lost = near, hear, lost
        self.key = secrets.token_bytes(32)
        self.listener = Listener(("127.0.0.1" if near else "0.0.0.0", 0), "AF_INET", backlog=STRANGERS)
        self.strangers: deque[Connection] = deque()
        self.changing = threading.Lock()
        self.closed = False
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def address(self) -> dict[str, Any]:
        """Return where this is, and the key."""
        port = self.listener.address[1]
        return {"addresses": ["127.0.0.1", *([] if self.near else own_addresses())], "port": port, "key": self.key.hex()}

    def close(self) -> None:
        """Let nobody in any more; who is in stays."""
        self.closed = True
        with suppress(OSError):
            self.listener.close()

    def _accept(self) -> None:
        while not self.closed:
            try:
                connection = sockets.at_once(self.listener.accept())
            except OSError:
                if self.closed:
                    return
                time.sleep(0.1)  # too many files are open
                continue
            with self.changing:
                self.strangers.append(connection)
                first = self.strangers.popleft() if len(self.strangers) > STRANGERS else None
            if first is not None:
                sockets.shut(first)
            threading.Thread(target=self._let_in, args=(connection,), name="rank 0", daemon=True).start()

    def _let_in(self, connection: Connection) -> None:
        """Listen to a connection once it has shown that it is rank 0's."""
        try:
            deliver_challenge(connection, self.key)
            answer_challenge(connection, self.key)
        except (OSError, EOFError, AuthenticationError, ValueError):
            connection.close()
            return
        finally:
            with self.changing, suppress(ValueError):
                self.strangers.remove(connection)
        try:
            while True:
                self.hear(connection, *frames.unpacked(connection.recv_bytes(LARGEST_MESSAGE)))
        except (OSError, EOFError, InputError):
            pass
        finally:
            self.lost(connection)
            with suppress(OSError):
                connection.close()
