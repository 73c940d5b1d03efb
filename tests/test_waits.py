"""What a request does not wait for on its way: word that something was received, threads that are woken for nothing. Options and counts are
looked at, no clock."""

import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from hepti_mpi.errors import ServiceError
from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.models.inputs.tokens import SPECIALS, word_piece_json
from hepti_mpi.models.tasks.sampling import Sampling
from hepti_mpi.serving import frames
from hepti_mpi.serving.asking import Model
from hepti_mpi.serving.front import Front
from hepti_mpi.serving.http.server import listening
from hepti_mpi.serving.remote import Remote
from hepti_mpi.serving.streams import growing

READY = {"kind": "ready", "source_hash": "0123", "rows_per_second": 100, "batches": 2, "batch_rows": 8, "slots": 2, "positions": 64}


@pytest.fixture
def front():
    """A front whose rank 0 takes in what it is told and says what the test says. `woken`: how many times its thread was."""
    made, woken = Front("0123", near=True), []
    made.changed.notify = lambda count=1, plain=made.changed.notify: (woken.append(count), plain(count))
    rank = SimpleNamespace(send_bytes=lambda message: None, fileno=lambda: -1)
    made._hear(rank, READY, [])
    woken.clear()
    made.woken = woken
    yield made
    made.end()
    made.fail(ServiceError("over"))




def test_no_part_of_an_answer_is_kept_back_until_another_is_received():
    """Else each answer on a connection that is kept, and each token of a text, comes 40 ms later."""
    with listening("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_batch_is_answered_by_one_message(monkeypatch):
    sent = []
    monkeypatch.setattr("hepti_mpi.serving.sockets.connected", lambda address: SimpleNamespace(send_bytes=sent.append))
    monkeypatch.setattr(Remote, "_read", lambda self: None)
    monkeypatch.setattr(Remote, "_beat", lambda self: None)
    requests = [Request(7, "", {}, np.arange(3), 3), Request(9, "", {}, np.arange(4), 4)]
    remote = Remote({})
    remote.computed = {0: 0.25}
    remote.event(SimpleNamespace(places=[7, 9], requests=requests, results=[{"x": np.ones(2)}, {"x": np.zeros(2)}], seconds=0.5))
    (message,) = sent
    head, arrays = frames.unpacked(message)
    assert head["kind"] == "answered" and (head["rows"], head["seconds"], head["computed"]) == (7, 0.5, {"0": 0.25})
    assert [place for place, _ in frames.results_of(head, arrays)] == [7, 9]


def test_a_token_wakes_nobody_but_whoever_reads_it(front):
    heard = []
    one = growing("one", [1, 2], Sampling(max_tokens=9), lambda ids, more=False: "", heard.append)
    with front.changed:
        front.streams.ask(one)
        front.streams.messages()
    for token in range(3, 7):
        front._hear(front.connection, {"kind": "grown", "events": [[0, token, None, [], None, None]]}, [])
    assert len(heard) == 4 and not front.woken
    front.grow(growing("one", [1, 2], Sampling(max_tokens=9), lambda ids, more=False: "", heard.append))
    assert front.woken, "it has a slot"


def test_who_hands_requests_on_is_woken_when_there_is_room_only(front):
    with front.changed:  # the thread that hands them on has to wait
        front.ask("one", [Request(0, "", {"ids": np.zeros(8, np.int64)}, np.arange(8), 8, "") for _ in range(2)])
        assert front.woken, "there is room"
        places = range(2)
        front.flying.update(zip(places, front._next() + front._next()))
        front.flying_rows = 16
        front.woken.clear()
        front.ask("one", [Request(0, "", {"ids": np.zeros(8, np.int64)}, np.arange(8), 8, "")])
        assert not front.woken, "there is none"
        front._answered({"errors": {}, "seconds": 1.0}, [(0, {})])
        assert front.woken, "there is again"
        assert len(front._next()) == 1 and not front.queue.count
        front.woken.clear()
        front._answered({"errors": {}, "seconds": 1.0}, [(1, {})])
        assert not front.woken, "nothing waits"


def test_the_first_request_waits_for_no_tokenizer(monkeypatch):
    """It is read while ranks get ready."""
    from hepti_mpi.commands import serve

    done = []
    service = SimpleNamespace(start=lambda: done.append("start"), stop=lambda: None, error=None, failed=threading.Event())
    service.front = SimpleNamespace(drain=None, leave=None)
    server = SimpleNamespace(run=lambda began, ending, late: began() or True, end=lambda: None)
    files = {"tokenizer.json": word_piece_json([*SPECIALS, "zero"])}
    model = Model(SimpleNamespace(embedding="words", name="one", head="sentence", options={}), files, "0123")
    serve.run(service, server, "http://here", model)
    service.failed.set()
    assert done == ["start"] and "_tokens" in vars(model)


def test_the_first_stream_loads_no_library():
    """Starlette's own streams load one between the first request and its first token."""
    program = """if True:
        import asyncio, sys
        from types import SimpleNamespace
        from hepti_mpi.serving.http.app import Growing

        async def stream():
            yield b"data: 1"

        async def waiting():
            await asyncio.sleep(1000)

        async def send(message):
            sent.append((message["type"], message.get("body")))

        sent, ended = [], []
        choices = SimpleNamespace(wanted=SimpleNamespace(headers={}))
        conversation = SimpleNamespace(stream=stream, close=lambda: None, queued_seconds=0.0, status=200, choices=choices)
        growing = Growing(conversation, lambda seconds: None)
        growing.ended = ended.append
        asyncio.run(growing({"type": "http", "asgi": {"spec_version": "2.3"}}, waiting, send))
        assert [body for _, body in sent] == [None, b"data: 1", b""] and ended == [200]
        assert not [name for name in sys.modules if name.startswith("anyio._backends")]
    """
    subprocess.run([sys.executable, "-c", program], check=True)
