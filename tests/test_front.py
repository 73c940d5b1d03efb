"""The front of a service and rank 0's end of it, in one process: what is asked is answered once, whatever becomes of rank 0."""

import socket
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from hepti_mpi.cluster.hosts import Host
from hepti_mpi.errors import Busy, HostError, InputError, NotReady, ServiceError
from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.serving import door, frames, front, remote, sockets
from hepti_mpi.serving.front import Front
from hepti_mpi.serving.remote import Remote
from hepti_mpi.supervisor.service import Job, Service

remote.IDLE_SECONDS = remote.ALIVE_SECONDS = 1e6  # a thread of a test may outlive it, and must tell nobody how it is
SOURCE = "0123"


def requests(*rows, text=""):
    return [Request(at, f"line {at}", {"ids": np.full(n, at)}, np.arange(n), n, text) for at, n in enumerate(rows)]


def answers(asked):
    return [{"embedding": np.array([request.rows, request.arrays["ids"][0]], np.float32)} for request in asked]


class Rank:
    """Rank 0, that answers up to `most` requests and then is lost; `silently`: its connection stays, as one of a host without power."""

    def __init__(self, own, most=10**9, rows=64, source=SOURCE, poison=None, batches=2, silently=False):
        self.remote, self.most, self.poison, self.silently = Remote(own.address()), most, poison, silently
        self.seen = []
        self.remote.ready(source, rows, {"rows_per_second": 1000, "plan": {"hosts": ["here"]}, "batches": batches})
        threading.Thread(target=self.work, daemon=True).start()

    def work(self):
        while not self.remote.ended:
            for one in self.remote.take(0.05):
                if len(self.seen) >= self.most or (self.poison and one.rows == self.poison):
                    return None if self.silently else self.lose()
                self.seen.append(one)
                self.remote.event(SimpleNamespace(places=[one.index], requests=[one], results=answers([one]), seconds=0.001))

    def lose(self):
        sockets.shut(self.remote.connection)


@pytest.fixture
def own():
    made = Front(SOURCE, near=True)
    yield made
    made.end()
    made.fail(ServiceError("over"))


def until(condition):
    end = time.monotonic() + 120
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def ready(own, **how):
    starts, rank = own.starts, Rank(own, **how)
    until(lambda: own.starts == starts + 1)
    return rank


def test_neither_end_keeps_a_message_back(own):
    """Else answers to one text after another took 42 ms each, whatever the ranks needed."""
    rank = ready(own)
    for end in (own.connection, rank.remote.connection):
        with sockets._socket(end) as one:
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_message_comes_back():
    asked = requests(3, 5) + requests(2, text=None)
    head, arrays = frames.unpacked(frames.asked(asked, [7, 8, 9]))
    for one, other, place in zip(asked, frames.requests_of(head, arrays), (7, 8, 9), strict=True):
        assert (other.index, other.rows, other.width, other.text is None) == (place, one.rows, one.width, one.text is None)
        np.testing.assert_array_equal(one.arrays["ids"], other.arrays["ids"])
    head, arrays = frames.unpacked(frames.answered([4], answers(asked[:1]), seconds=0.5))
    assert head["seconds"] == 0.5 and [place for place, _ in frames.results_of(head, arrays)] == [4]


def test_texts_stay_at_the_front():
    assert b"secret" not in frames.asked(requests(3, text="secret"), [1])


@pytest.mark.parametrize("at", range(0, 60, 7))
def test_a_damaged_message_is_refused(at):
    whole = frames.packed({"kind": "x"}, [np.arange(3), np.zeros((2, 2), np.float32)])
    for message in (whole[:at], whole + b"x", b"\xff" * at, whole[:4] + b"[" * 2000):
        with pytest.raises(InputError, match="is damaged"):
            frames.unpacked(message)


def test_before_it_is_ready_nothing_is_taken(own):
    with pytest.raises(NotReady, match="being loaded") as refused:
        own.ask("a", requests(3))
    assert refused.value.retry_after
    ready(own)
    results = own.ask("a", requests(3, 4, 5)).future.result(10)
    assert [list(result["embedding"]) for result in results] == [[3, 0], [4, 1], [5, 2]]
    assert own.ask("a", []).future.result(1) == []


def test_what_is_under_way_is_asked_again(own):
    ready(own, most=20)
    call = own.ask("a", requests(*[4] * 100))
    until(lambda: own.connection is None)
    assert not call.future.done() and own.answered == 20
    other = ready(own)
    results = call.future.result(10)
    assert [int(result["embedding"][1]) for result in results] == list(range(100))
    assert 80 <= len(other.seen) < 100, "what was lost on the way is asked again, what was answered is not"


def test_what_a_host_without_power_had_is_asked_again(own):
    ready(own, most=20, silently=True)
    call = own.ask("a", requests(*[4] * 100))
    until(lambda: own.answered == 20)
    before = own.connection
    ready(own)
    results = call.future.result(60)
    assert [int(result["embedding"][1]) for result in results] == list(range(100))
    until(lambda: before.closed)
    assert own.connection is not None and own.idle


def test_one_that_makes_the_job_fail_is_given_up_and_no_other(own):
    ready(own, poison=7)
    bad, good = own.ask("a", requests(7)), own.ask("b", requests(*[4] * 50))
    until(lambda: own.connection is None)
    for _ in range(front.GIVEN_UP - 1):
        ready(own, poison=7)
        until(lambda: bad.future.done() or own.connection is None)
    with pytest.raises(ServiceError, match="under way each of 4 times that the job failed"):
        bad.future.result(10)
    ready(own)
    assert len(good.future.result(10)) == 50


RANK = """
import sys
import numpy as np
from types import SimpleNamespace
from pathlib import Path
from hepti_mpi.comm import channel
from hepti_mpi.serving.remote import Remote
from hepti_mpi.supervisor.progress import read_state

remote = Remote(read_state(channel.state_path()).front)
remote.ready("0123", 64, {"rows_per_second": 1000, "plan": {"hosts": ["here"]}, "batches": 2})
while not remote.ended:
    for one in remote.take(0.05):
        if one.rows == 7:
            sys.exit(%d)
        remote.event(SimpleNamespace(places=[one.index], requests=[one], results=[{"embedding": np.zeros(2)}], seconds=0.001))
channel.tell("done")
"""


@pytest.mark.parametrize("code", [1, 2])
def test_a_service_goes_on_without_what_makes_every_job_fail(tmp_path, code):
    (tmp_path / "rank.py").write_text(RANK % code)
    (tmp_path / "launcher.sh").write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path}/rank.py\n")
    (tmp_path / "launcher.sh").chmod(0o755)
    own = Service(Job(["answer"], [Host("localhost")], [str(tmp_path / "launcher.sh")]), SOURCE, lambda _: None)
    own.start()
    try:
        until(own.ready.is_set)
        for _ in range(3):
            with pytest.raises(ServiceError, match="under way each of 4 times that the job failed"):
                own.front.ask("a", requests(7)).future.result(120)
        assert len(own.front.ask("a", requests(4)).future.result(120)) == 1
    finally:
        own.stop()
    assert own.error is None and sum("not tried again" in event["what"] for event in own.events) == 3


def test_too_much_is_refused_with_a_time(own):
    ready(own, most=0)
    own.queue.limit = 100
    own.ask("a", requests(*[10] * 50))
    for client in ("a", "b"):
        with pytest.raises(Busy, match="wait already") as refused:
            own.ask(client, requests(1))
        assert refused.value.retry_after >= 1


def test_nobody_looks_at_the_queue_while_another_thread_changes_it(own):
    """Else a request might meet a queue that has lost its only client in between, and be answered with 500."""
    ready(own)
    looking = threading.Thread(target=own.check, args=("a",))
    with own.changed:
        looking.start()
        looking.join(0.2)
        assert looking.is_alive()
    looking.join(10)
    assert not looking.is_alive()


def test_ranks_have_as_many_batches_as_they_say(own):
    ready(own, rows=8, batches=5)
    assert own.window == 40


def test_a_call_that_is_cancelled_is_forgotten(own):
    ready(own, rows=8, most=0)
    call = own.ask("a", requests(*[4] * 50))
    own.cancel(call)
    assert own.queue.count == own.queue.rows == 0
    ready(own)
    assert len(own.ask("a", requests(3)).future.result(10)) == 1
    until(lambda: own.idle)


def test_what_is_not_begun_is_left_by_rank_0_too(own):
    rank = Remote(own.address())
    rank.ready(SOURCE, 8, {"rows_per_second": 1000, "plan": {"hosts": ["here"]}, "batches": 2})
    until(lambda: own.starts)
    call, other = own.ask("a", requests(*[4] * 50)), own.ask("b", requests(4))
    until(lambda: len(rank.waiting) == 4)
    own.cancel(call)
    until(lambda: [request.rows for request in rank.waiting] == [4] and len(own.flying) == 1 and own.flying_rows == 4)
    (request,) = rank.take(0)
    rank.event(SimpleNamespace(places=[request.index], requests=[request], results=answers([request]), seconds=0.001))
    assert len(other.future.result(10)) == 1 and own.idle and not own.flying_rows


def test_a_request_that_has_no_answer_says_why(own):
    rank = ready(own)
    rank.remote.errors[0] = "input 1 has no token behind the prompt"
    with pytest.raises(InputError, match="behind the prompt"):
        own.ask("a", requests(3)).future.result(10)


def test_another_model_behind_it_is_a_failure(own):
    Rank(own, source="other")
    until(lambda: own.error)
    with pytest.raises(ServiceError, match="another store"):
        own.ask("a", requests(3))


def test_only_rank_0_gets_in(own):
    with pytest.raises(HostError, match="cannot be reached"):
        Remote(own.address() | {"key": "00" * 32})
    silent = [socket.create_connection(("127.0.0.1", own.address()["port"])) for _ in range(2 * door.STRANGERS)]
    ready(own)
    assert own.ask("a", requests(3)).future.result(10)
    for one in silent:
        one.close()


def test_what_else_listens_and_says_nothing_is_not_waited_for(own, monkeypatch):
    """Another program may have that port on the first host."""
    monkeypatch.setattr(sockets, "GREET_SECONDS", 0.3)
    address = own.address()
    with socket.create_server(("127.0.0.2", address["port"])):
        with pytest.raises(HostError, match="127.0.0.2 port"):
            sockets.connected(address | {"addresses": ["127.0.0.2"]})
        sockets.connected(address | {"addresses": ["127.0.0.2", "127.0.0.1"]}).close()


def test_when_all_is_over_who_waits_hears_why(own):
    ready(own, most=0)
    call = own.ask("a", requests(*[4] * 50))
    own.fail(ServiceError("no host is left"))
    with pytest.raises(ServiceError, match="no host is left"):
        call.future.result(10)


def test_rank_0_ends_when_the_front_does(own):
    rank = ready(own)
    own.end()
    until(lambda: rank.remote.ended)


def test_what_teams_do_is_told_when_it_is_known_who_they_are(monkeypatch):
    """The front would look for hosts of a plan that it does not have, and lose the connection over it."""
    monkeypatch.setattr(remote, "ALIVE_SECONDS", 0.01)
    monkeypatch.setattr(remote.channel, "tell", lambda kind: None)
    heard = []
    own = Front(SOURCE, near=True, heard=lambda record: heard.append(record["kind"]))
    rank = Remote(own.address())
    rank.doing = lambda: [{"ranks": [0], "rows_per_second": 1.0, "inputs": 0}]
    time.sleep(0.2)
    assert heard == []
    rank.ready(SOURCE, 8, {"rows_per_second": 1000, "plan": {"hosts": ["here"]}, "batches": 2})
    until(lambda: heard == ["ready", "teams"])
    rank.ended = True
    sockets.shut(rank.connection)
    until(lambda: heard == ["ready", "teams", "lost"])
    own.end()


def test_what_a_lost_job_did_last_is_not_what_is_done_now(tmp_path):
    """It said "loading weights" until the ranks of the next start said something."""
    done = []
    (tmp_path / "launcher.sh").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "launcher.sh").chmod(0o755)
    own = Service(Job(["answer"], [Host("localhost")], [str(tmp_path / "launcher.sh")]), SOURCE, lambda _: done.append(own.doing))
    own._heard({"kind": "doing", "what": "loading weights"})
    own.front.starts = 1
    assert own.status()["status"] == "restarting" and own.status()["doing"] == "loading weights"
    own._heard_of_rank_0({"kind": "lost"})
    assert own.status()["doing"] == "starting"
    own._heard({"kind": "doing", "what": "loading weights"})  # of a start that fails before it is ready
    own.start()
    until(own.failed.is_set)
    own.stop()
    assert len(done) > 1 and set(done) == {"starting"}


def test_teams_of_a_job_that_is_lost_have_nothing():
    meters = pytest.importorskip("hepti_mpi.serving.http.meters", reason="serve is an extra").Meters(dict)
    service = Service(Job(["answer"], [Host("localhost")]), SOURCE, lambda said: None)
    service.listeners.append(meters.heard)
    teams = [{"ranks": [0], "rows_per_second": 5.0, "inputs": 3}, {"ranks": [0, 1], "rows_per_second": 2.0, "inputs": 4}]
    service._heard_of_rank_0({"kind": "ready", "plan": {"hosts": ["a", "b"]}})
    service._heard_of_rank_0({"kind": "teams", "teams": teams})
    assert b'hepti_rank_inputs{host="a",rank="0"} 7.0' in meters.page() and service.details()["teams"] == teams
    service._heard_of_rank_0({"kind": "lost"})
    assert b"hepti_rank_inputs{" not in meters.page() and [team["inputs"] for team in service.details()["teams"]] == [0, 0]
    service.front.end()
