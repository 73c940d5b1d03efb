import select
import socket
import threading
import time

import pytest

from hepti_mpi.comm import pauses
from hepti_mpi.comm.pauses import LONGEST, nap


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """Connections that are there already, of other tests in this process, wake nobody."""
    monkeypatch.setattr(pauses, "_own", threading.local())
    sockets = pauses._own.sockets = pauses._Sockets()
    sockets._find()
    sockets.epoll.close()
    sockets.epoll = select.epoll()


def test_a_nap_ends_when_something_comes_in(monkeypatch):
    monkeypatch.setattr(pauses, "LONGEST", 1000.0)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        other, _ = server.accept()
        with other:
            timer = threading.Timer(0.2, one.sendall, [b"x"])
            timer.start()
            begin = time.monotonic()
            nap(1e6)
            assert 0.1 < time.monotonic() - begin < 500
            assert other.recv(1) == b"x"
            timer.join()


def test_a_nap_ends_without_anything_too():
    begin = time.monotonic()
    for _ in range(10):
        nap(1000.0)
    assert 10 * LONGEST <= time.monotonic() - begin


def test_connections_that_come_later_or_go_are_no_trouble(monkeypatch):
    monkeypatch.setattr(pauses, "AGAIN_SECONDS", 0.0)
    nap(0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(3):
            with socket.create_connection(server.getsockname()) as one:
                nap(0.0)
                assert one.fileno() in pauses._own.sockets.known
            nap(0.0)


def test_connections_that_come_soon_after_the_first_nap_are_found_soon():
    """Ranks connect when they first have something to say: whoever slept beside a new connection slept too long, for a second."""
    sockets = pauses._Sockets()
    sockets.sleep(0.0)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        for _ in range(30):
            sockets.sleep(1e-3)
        assert one.fileno() in sockets.known
    sockets.epoll.close()


def test_a_connection_whose_other_side_has_closed_wakes_nobody_again():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        other, _ = server.accept()
        nap(0.0)  # finds it
        other.close()
        nap(0.0)  # sees it go
        begin = time.monotonic()
        for _ in range(10):
            nap(1000.0)
        assert time.monotonic() - begin >= 10 * LONGEST
