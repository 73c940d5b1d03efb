"""What a request does not wait for on its way: word that something was received, threads that are woken for nothing. Options and counts are
looked at, no clock."""

import socket

from hepti_mpi.serving.http.server import listening


def test_no_part_of_an_answer_is_kept_back_until_another_is_received():
    """Else each answer on a connection that is kept, and each token of a text, comes 40 ms later."""
    with listening("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
