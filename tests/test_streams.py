"""Answers that grow: from a prompt to the parts that a client of OpenAI's API gets, with a small stand-in for the ranks."""

import asyncio
import http.client
import http.server
import json
import math
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from hepti_mpi import Model
from hepti_mpi.api.own import streamed
from hepti_mpi.errors import Busy, InputError, NotReady, ServiceError
from hepti_mpi.models.inputs.chat import ChatTemplate
from hepti_mpi.models.inputs.tokens import LETTERS, SPECIALS, Tokens, word_piece_json
from hepti_mpi.models.tasks.sampling import Chosen, Sampling, Scores
from hepti_mpi.serving import asking, front, generating, remote, sockets, streams
from hepti_mpi.serving.front import Front
from hepti_mpi.serving.generation import Generator
from hepti_mpi.serving.http import tools
from hepti_mpi.serving.http.generation import Choices, Wanted
from hepti_mpi.serving.remote import Remote
from hepti_mpi.serving.streams import Grown

WORDS = [*SPECIALS, "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "end"]
END = WORDS.index("end")
remote.IDLE_SECONDS = remote.ALIVE_SECONDS = 1e6  # the thread that tells how it is outlives its test, and must tell nobody
SOURCE = "0123"
READY = {"rows_per_second": 1, "plan": {"hosts": ["here"]}, "batches": 2, "slots": 1, "positions": 64}


class Over(Exception):
    """The test is over."""


class Counting:
    """Ranks whose next token is always the one after the last, from zero to nine and then the end; `slow`: seconds of a step; `over`:
    whether they end at the next one, whatever is left."""

    slots, positions, sure = 3, 64, 20

    def __init__(self, slow=0.0):
        self.slow, self.steps, self.over = slow, 0, threading.Event()

    def wait(self, seconds):
        if self.over.wait(seconds):
            raise Over

    def _scores(self, token):
        logits = np.zeros(len(WORDS), np.float32)
        logits[min(token + 1, END)] = self.sure
        return Scores.of_all(logits)

    def prefill(self, slot, ids, first, *how):
        return self._scores(ids[-1])

    def decode(self, rows, *how):
        self.wait(self.slow)
        self.steps += 1
        return [self._scores(token) for _, token, _ in rows]

    def copy(self, *how):
        """What follows a token is not by what is in the slot."""

    def check(self, slot, ids, *how):
        self.wait(self.slow)
        self.steps += 1
        return [self._scores(token) for token in ids]


class Rank:
    """Rank 0 with such ranks; it ends with the test, since it would print in others that follow. `every`: those that have not ended."""

    every = []

    def __init__(self, own, slow=0.0, generator=None):
        self.own, self.counting = own, Counting(slow)
        self.generator, self.remote = generator or Generator(self.counting, [END]), Remote(own.address())
        self.stepper = self.generator.stepper
        starts = own.starts
        self.remote.ready(SOURCE, 8, READY | {"rows_per_second": 100, "slots": 3})
        self.thread = threading.Thread(target=self.lead, daemon=True)
        self.thread.start()
        self.every.append(self)
        until(lambda: own.starts > starts)

    def lead(self):
        with suppress(Over):
            generating.lead(self.generator, self.remote, lambda: None)

    @classmethod
    def end(cls, own):
        for rank in [rank for rank in cls.every if rank.own is own]:
            rank.stepper.over.set()
            sockets.shut(rank.remote.connection)
            rank.thread.join(120)
            assert not rank.thread.is_alive()
            cls.every.remove(rank)


def until(condition):
    end = time.monotonic() + 120
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


TOKENS = Tokens({"tokenizer.json": json.dumps(json.loads(word_piece_json(WORDS)) | {"post_processor": None}).encode()})


def grown(own, text, **how):
    """Ask for an answer; return it and the parts that come."""
    parts = []
    one = streams.growing("a", TOKENS.plain(text, "it"), Sampling(**how), TOKENS.decode, parts.append)
    own.grow(one)
    return one, parts


def ended(parts):
    until(lambda: parts and (parts[-1].finish or parts[-1].error))
    return "".join(part.text for part in parts), parts[-1].finish


@pytest.fixture
def own():
    made = Front(SOURCE, near=True)
    yield made
    made.end()
    made.fail(ServiceError("over"))
    Rank.end(made)


def test_an_answer_grows_to_its_end(own):
    Rank(own)
    one, parts = grown(own, "two")
    assert ended(parts) == ("three four five six seven eight nine", "stop") and len(parts) == 8
    assert ended(grown(own, "two", max_tokens=3)[1]) == ("three four five", "length")
    assert one.over and not own.streams.busy


def test_more_than_there_are_slots(own):
    Rank(own)
    every = [grown(own, word)[1] for word in ("zero", "three", "six", "eight", "one", "seven")]
    assert [ended(parts)[0].split()[0] for parts in every] == ["one", "four", "seven", "nine", "two", "eight"]


def test_a_stop_text_ends_it_at_the_front(own):
    rank = Rank(own, slow=0.01)
    assert ended(grown(own, "two", stop=("six", "x"))[1]) == ("three four five ", "stop")
    until(lambda: not rank.generator.busy)


def test_who_goes_away_frees_the_slot(own):
    rank = Rank(own, slow=0.05)
    one, parts = grown(own, "zero")
    until(lambda: parts)
    own.stop(one)
    until(lambda: not rank.generator.busy)
    assert rank.stepper.steps < 8 and not own.streams.busy and not parts[-1].finish


def test_an_answer_goes_on_where_it_was_when_the_job_fails(own):
    first = Rank(own, slow=0.02)
    _, parts = grown(own, "zero", max_tokens=9)
    until(lambda: len(parts) >= 3)
    sockets.shut(first.remote.connection)
    until(lambda: own.connection is None)
    assert not parts[-1].finish
    Rank(own)
    assert ended(parts) == ("one two three four five six seven eight nine", "length")


@pytest.mark.parametrize("how", [{"temperature": 1.0, "seed": 5}, {"frequency_penalty": 3.0}])
def test_what_was_drawn_and_counted_before_a_failure_counts_after_it(own, monkeypatch, how):
    monkeypatch.setattr(Counting, "sure", 2)
    first = Rank(own, slow=0.02)
    expected = ended(grown(own, "zero", max_tokens=30, ignore_end=True, **how)[1])
    _, parts = grown(own, "zero", max_tokens=30, ignore_end=True, **how)
    until(lambda: len(parts) >= 5)
    sockets.shut(first.remote.connection)
    until(lambda: own.connection is None)
    Rank(own)
    assert ended(parts) == expected and len(parts) >= 10


def test_one_that_makes_every_job_fail_is_given_up(own):
    silent = Remote(own.address())
    silent.ready(SOURCE, 8, READY)
    until(lambda: own.starts)
    _, parts = grown(own, "zero")
    for number in range(streams.GIVEN_UP):
        until(lambda: own.streams.flying)
        sockets.shut(silent.connection)
        until(lambda: own.connection is None)
        if number < streams.GIVEN_UP - 1:
            silent = Remote(own.address())
            silent.ready(SOURCE, 8, READY)
    until(lambda: parts)
    assert "4 times at the same token" in str(parts[-1].error)


class Poisoned(Generator):
    """Makes answers, but for one prompt, for which `lose` is called."""

    def __init__(self, poison):
        super().__init__(Counting(0.0), [END])
        self.poison, self.lose, self.lost = TOKENS.plain(poison, "it"), lambda: None, False

    def submit(self, prompt, *more):
        if list(prompt) == self.poison:
            self.lost = True
            self.lose()
        return super().submit(prompt, *more)

    def step(self):
        if self.lost:
            self.stepper.wait(0.1)  # the job that it is lost with ends later
        return [] if self.lost else super().step()


def test_one_that_makes_every_job_fail_costs_no_other(own):
    """Those that had a slot beside it, and have no token yet when the job fails, are no reason."""
    gone = Remote(own.address())
    gone.ready(SOURCE, 8, READY | {"slots": 3})
    until(lambda: own.starts)
    _, bad = grown(own, "zero")
    every = [grown(own, word)[1] for word in ("three", "six", "one two")]
    until(lambda: len(own.streams.flying) == 3)
    sockets.shut(gone.connection)
    for _ in range(streams.GIVEN_UP - 1):
        until(lambda: own.connection is None)
        generator, remote = Poisoned("zero"), []
        generator.lose = lambda: (until(lambda: remote), sockets.shut(remote[0].connection))  # noqa: B023
        remote.append(Rank(own, generator=generator).remote)
    until(lambda: bad)
    assert "4 times at the same token" in str(bad[-1].error)
    until(lambda: own.connection is None)
    Rank(own)
    assert [ended(parts)[0].split()[0] for parts in every] == ["four", "seven", "three"]


def test_one_that_grows_between_failures_is_not_given_up(own):
    rank = Rank(own, slow=0.05)
    _, parts = grown(own, "zero", max_tokens=40, ignore_end=True)
    for _ in range(streams.GIVEN_UP + 1):
        count = len(parts)
        until(lambda: len(parts) > count)  # noqa: B023
        sockets.shut(rank.remote.connection)
        until(lambda: own.connection is None)
        rank = Rank(own, slow=0.05)
    assert ended(parts)[1] == "length" and len(parts) >= 10


def test_a_prompt_without_room_is_refused(own):
    Rank(own)
    with pytest.raises(InputError, match="64 tokens, there is room for 64"):
        grown(own, "zero " * 64)


def test_what_is_asked_comes_back():
    asked = Sampling(max_tokens=5, temperature=0.5, seed=3, stop=("a",), logit_bias={4: -1.5}, logprobs=2)
    assert streams.sampling_of(json.loads(json.dumps(streams.told(asked)))) == asked


def test_how_long_texts_wait(own, monkeypatch):
    """By how long the last ones took; before the first has ended, by how long those take that are under way."""
    clock = SimpleNamespace(now=10.0)
    monkeypatch.setattr(streams.time, "monotonic", lambda: clock.now)
    some = own.streams
    some.slots = 2
    for _ in range(6):
        some.ask(streams.growing("a", [1], Sampling(), TOKENS.decode, lambda part: None))
    assert some.waits == 0 and len(some.messages()) == 2
    clock.now = 13.0
    assert some.waits == 4 * 3 / 2
    some.grown([[0, 5, None, [], "stop", None]])
    clock.now = 100.0
    assert some.text_seconds == 3 and some.waits == 4 * 3 / 2
    some.messages()
    clock.now = 113.0
    some.grown([[2, 5, None, [], "stop", None]])
    assert some.text_seconds == pytest.approx(0.9 * 3 + 0.1 * 13) and some.waits == pytest.approx(3 * some.text_seconds / 2)


# over HTTP


@contextmanager
def counting(status, details, slow=0.02, keys=(), origins=()):
    """Serve the stand-in over HTTP; give its port."""
    with served(status, details, slow, keys, origins) as (_, port, _, _):
        yield port


@contextmanager
def served(status, details, slow=0.02, keys=(), origins=()):
    """The same; give the server too, its ranks, and what it told of its end, once that has come."""
    pytest.importorskip("starlette", reason="serve is an extra")
    pytest.importorskip("uvicorn", reason="serve is an extra")
    from hepti_mpi.serving.http import app, server

    own, listener = Front(SOURCE, near=True), server.listening("127.0.0.1", 0)
    rank = Rank(own, slow)
    template = ChatTemplate("{% if tools %}{% endif %}{% for message in messages %}{{ message.content }} {% endfor %}", {})
    spec = SimpleNamespace(name="counter", family="toy", layers=1, hidden=8, positions=64, numbers=lambda by: len(WORDS))
    model = SimpleNamespace(spec=spec, gives="text", tokens=TOKENS, template=template, check_writes=lambda: None)
    model.calls_tools, model.calls_plainly = True, False
    model.prompt = lambda asked: TOKENS.plain(asked, "it")
    api = app.Api(app.Parts(model, own, keys, lambda: status, lambda: details, print, origins))
    made, whole = server.Server(api.app(), listener), list[bool]()
    thread = threading.Thread(target=lambda: whole.append(asyncio.run(made.serve(int, own.drain, own.leave))), daemon=True)
    thread.start()
    yield made, listener.getsockname()[1], rank, whole
    made.end()
    own.end()
    thread.join(120)
    Rank.end(own)


@pytest.fixture(scope="module")
def port():
    with counting({"status": "ready", "hosts": [], "starts": 1}, {}) as found:
        yield found


def post(port, path, document):
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    link.request("POST", path, json.dumps(document))
    response = link.getresponse()
    content = response.read()
    link.close()
    return response.status, content


def answer(port, path, **document):
    status, content = post(port, path, document)
    assert status == 200, content
    return json.loads(content)


def events(port, path, **document):
    """The documents of a stream, which has to end as it should."""
    status, content = post(port, path, document | {"stream": True})
    assert status == 200 and content.endswith(b"data: [DONE]\n\n"), content
    lines = content.decode().split("\n\n")
    assert lines.pop() == "" and all(line.startswith(("data: ", ": ")) for line in lines)
    return [json.loads(line[6:]) for line in lines[:-1] if line.startswith("data: ")]


@pytest.mark.parametrize("hurried", [False, True])
def test_who_waits_when_there_is_no_time_left_is_told_so(monkeypatch, hurried):
    """Whether time is over, or somebody does not wait for the end: presses Ctrl-C a second time."""
    from hepti_mpi.serving.http import server

    monkeypatch.setattr(server, "DRAIN_SECONDS", 120 if hurried else 3)
    with served({"status": "ready", "hosts": [], "starts": 1}, {}, slow=1) as (made, port, rank, whole), ThreadPoolExecutor(2) as pool:
        asked = {"prompt": "zero", "max_tokens": 9}
        alone, stream = (pool.submit(post, port, "/v1/completions", asked | {"stream": streams}) for streams in (False, True))
        time.sleep(0.5)
        made.end()
        if hurried:
            time.sleep(0.2)
            made.server.force_exit = True
        (status, content), (begun, events) = alone.result(60), stream.result(60)
        until(lambda: not rank.generator.busy)
    said = "the service has ended before this was answered; ask again when it is back"
    assert status == 503 and json.loads(content)["error"]["message"] == said
    assert begun == 200 and said.encode() in events and events.endswith(b"data: [DONE]\n\n") and whole == [False]
    assert rank.counting.steps < 8  # of ten: nobody wants the rest


TALK = [{"role": "system", "content": "zero"}, {"role": "user", "content": [{"type": "text", "text": "five"}]}]


def test_a_talk(port):
    found = answer(port, "/v1/chat/completions", messages=TALK, model="counter", unknown=1)
    assert found["object"] == "chat.completion" and found["id"].startswith("chatcmpl-")
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": "six seven eight nine", "refusal": None}
    assert choice["finish_reason"] == "stop" and choice["logprobs"] is None
    assert found["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}


def test_a_talk_as_a_stream(port):
    first, *more, usage = events(port, "/v1/chat/completions", messages=TALK, stream_options={"include_usage": True}, max_tokens=3)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""} and first["object"] == "chat.completion.chunk"
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in more) == "six seven eight"
    assert [one["choices"][0]["finish_reason"] for one in more] == [None, None, "length"] and {one["usage"] for one in more} == {None}
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 3 and len({one["id"] for one in (first, *more, usage)}) == 1


def test_completions(port):
    found = answer(port, "/v1/completions", prompt=["two", "seven"], max_tokens=2, n=2, echo=True)
    assert [one["text"] for one in found["choices"]] == ["two three four"] * 2 + ["seven eight nine"] * 2
    assert [one["index"] for one in found["choices"]] == [0, 1, 2, 3] and found["choices"][0]["finish_reason"] == "length"
    ids = TOKENS.plain("zero one", "it")
    assert answer(port, "/v1/completions", prompt=ids, max_tokens=1, temperature=0)["choices"][0]["text"] == " two"
    assert "".join(one["choices"][0]["text"] for one in events(port, "/v1/completions", prompt=ids, stop="five")) == " two three four "


def test_logprobs(port):
    found = answer(port, "/v1/chat/completions", messages=TALK, logprobs=True, top_logprobs=2, max_tokens=1)
    (one,) = found["choices"][0]["logprobs"]["content"]
    assert one["token"] == " six" and one["bytes"] == list(b" six") and abs(one["logprob"]) < 1e-3 and len(one["top_logprobs"]) == 2
    found = answer(port, "/v1/completions", prompt="[MASK] five", logprobs=1, max_tokens=1)["choices"][0]["logprobs"]
    assert found["tokens"] == [" six"] and list(found["top_logprobs"][0]) == [" six"]


def test_where_in_the_text_the_tokens_of_logprobs_are(port):
    (choice,) = answer(port, "/v1/completions", prompt="five", logprobs=0, max_tokens=3)["choices"]
    found = choice["logprobs"]
    assert (found["tokens"], found["text_offset"]) == ([" six", " seven", " eight"], [0, 4, 10]) and choice["text"] == " six seven eight"
    assert [list(top) for top in found["top_logprobs"]] == [[" six"], [" seven"], [" eight"]], "what was chosen is there in any case"
    parts = [one["choices"][0]["logprobs"] for one in events(port, "/v1/completions", prompt="five", logprobs=0, max_tokens=3)]
    assert [one["text_offset"] for one in parts] == [[0], [4], [10]]


def test_parts_of_letters_are_told_apart_in_logprobs():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    tokens = Tokens({"tokenizer.json": made.to_str().encode()})
    spelt = {byte: made.token_to_id(LETTERS[byte]) for byte in range(256)}
    wanted = Wanted(False, "x", [[0]], ["x"], 1, Sampling(logprobs=2), False, False, False)
    choices, found = Choices(SimpleNamespace(tokens=tokens), wanted), []
    for token in [*(spelt[byte] for byte in "aé🙂".encode()), made.token_to_id("<end>"), spelt[ord("b")]]:
        others = ((spelt[0x80], -0.5), (spelt[0x81], -0.75))
        (part,) = choices.part(0, Grown("", Chosen(token, -1.0, others)))
        found.append(part["choices"][0]["logprobs"])
    assert [one["text_offset"] for one in found] == [[0], [1], [1], [2], [2], [2], [2], [3], [3]]
    names = [one["tokens"][0] for one in found]
    assert names == ["a", *(rf"bytes:\x{byte:02x}" for byte in "é🙂".encode()), "<end>", "b"]
    assert found[0]["top_logprobs"] == [{r"bytes:\x80": -0.5, r"bytes:\x81": -0.75, "a": -1.0}]


def test_texts_are_among_what_was_answered(port):
    """The status of a service that had written texts said that nothing had been answered."""
    before = status(port)["answered"]
    answer(port, "/v1/completions", prompt=["two", "seven"], max_tokens=2, n=2)
    answer(port, "/v1/completions", prompt="two", max_tokens=5, stop="four")
    assert status(port)["answered"] - before == 5


def queue(port):
    """How many texts grow, and how many wait."""
    found = status(port)
    return found["growing"], found["waiting"]


def status(port):
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    link.request("GET", "/status")
    found = json.loads(link.getresponse().read())["queue"]
    link.close()
    return found


def metrics(port):
    """The samples without buckets, by name and labels."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    link.request("GET", "/metrics")
    lines = link.getresponse().read().decode().splitlines()
    link.close()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_texts_that_wait_and_grow_are_counted():
    with counting({"status": "ready", "hosts": [], "starts": 1}, {}, slow=0.05) as own:
        asked = {"prompt": "zero", "max_tokens": 60, "temperature": 5, "seed": 1, "logit_bias": {str(END): -100}, "stream": True}
        threads = [threading.Thread(target=post, args=(own, "/v1/completions", asked)) for _ in range(5)]
        for thread in threads:
            thread.start()
        until(lambda: metrics(own)["hepti_queue_size"] == 2)
        assert metrics(own)["hepti_queue_rows"] == 2
        for thread in threads:
            thread.join()
        gone = http.client.HTTPConnection("127.0.0.1", own, timeout=120)
        gone.request("POST", "/v1/completions", json.dumps(asked))
        gone.getresponse().read(10)
        gone.close()
        answer(own, "/v1/completions", prompt="zero", max_tokens=2)
        count = 'hepti_request_count_total{route="/v1/completions",status="%d"}'
        until(lambda: metrics(own).get(count % 499) == 1)
        found = metrics(own)
    assert found["hepti_queue_size"] == 0 and found[count % 200] == 6 and found["hepti_request_queue_duration_seconds_count"] == 7
    name = 'hepti_request_duration_seconds_bucket{le="0.5",route="/v1/completions"}'
    assert found[name] <= 2, "60 steps of 50 ms each take as long as the last of them"


def test_an_answer_that_stays_away_has_an_end(monkeypatch):
    from hepti_mpi.serving.http import events as growing

    monkeypatch.setattr(growing, "QUIET_SECONDS", 0.02)
    monkeypatch.setattr(growing, "ANSWER_SECONDS", 0.1)
    with counting({"status": "ready", "hosts": [], "starts": 1}, {}, slow=1) as own:
        status, content = post(own, "/v1/completions", {"prompt": "zero"})
        assert status == 504 and "nothing more of the answer came within 0.1 s" in json.loads(content)["error"]["message"]
        status, content = post(own, "/v1/completions", {"prompt": "zero", "stream": True})
        assert status == 200 and b'"timeout_error"' in content and content.endswith(b"[DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_the_program_is_told_here_and_to_the_client(monkeypatch, capsys, stream):
    """Where an answer grows too: its client would see a connection that breaks off."""
    monkeypatch.setattr(tools.Held, "add", lambda self, text: 1 / 0)
    monkeypatch.setattr("hepti_mpi.serving.http.generation.calls", lambda text, plain: 1 / 0)
    with counting({"status": "ready", "hosts": [], "starts": 1}, {}) as own:
        asked = {"messages": TALK, "tools": [{"function": {"name": "x"}}], "stream": stream}
        status, content = post(own, "/v1/chat/completions", asked)
        assert status == (200 if stream else 500) and b"the server has a fault; its log says which" in content
        until(lambda: metrics(own).get('hepti_request_count_total{route="/v1/chat/completions",status="500"}') == 1)
    assert "/v1/chat/completions: ZeroDivisionError: division by zero" in capsys.readouterr().out


def test_bodies_that_are_read_beside_each_other_have_one_limit(monkeypatch):
    from hepti_mpi.serving.http import app

    monkeypatch.setattr(app, "HELD_BODIES", 60_000)
    body = json.dumps({"prompt": "zero", "pad": "x" * 50_000}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    with counting({"status": "ready", "hosts": [], "starts": 1}, {}) as own:
        both = [socket.create_connection(("127.0.0.1", own), 120) for _ in range(2)]
        for one in both:
            one.sendall(head + body[:40_000])
        (refused,), *_ = select.select(both, [], [], 120)
        assert refused.recv(1 << 16).startswith(b"HTTP/1.1 429 ")
        (other,) = (one for one in both if one is not refused)
        other.sendall(body[40_000:])
        assert other.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        for one in both:
            one.close()


def test_a_stream_whose_text_is_held_back_tells_that_it_goes_on(monkeypatch):
    from hepti_mpi.serving.http import events as growing

    monkeypatch.setattr(growing, "QUIET_SECONDS", 0.3)
    monkeypatch.setattr(tools.Held, "add", lambda self, text: "")
    with counting({"status": "ready", "hosts": [], "starts": 1}, {}, slow=0.05) as own:
        asked = {"max_tokens": 50, "temperature": 5, "seed": 1, "logit_bias": {str(END): -100}, "stream": True}
        _, content = post(own, "/v1/chat/completions", {"messages": TALK, "tools": [{"function": {"name": "x"}}], **asked})
    assert content.count(b": still at it\n\n") >= 2 and content.endswith(b"data: [DONE]\n\n")


def test_one_client_that_asks_for_much_keeps_no_other_from_being_written_for(own, monkeypatch):
    monkeypatch.setattr(front, "MOST_PROMPTS", 4)
    Rank(own, slow=0.5)
    for _ in range(3):
        grown(own, "zero")
    until(lambda: len(own.streams.flying) == 3)
    for _ in range(4):
        grown(own, "zero")
    with pytest.raises(Busy, match="4 prompts wait already"):
        grown(own, "zero")
    other = streams.growing("b", TOKENS.plain("one", "it"), Sampling(), TOKENS.decode, lambda part: None)
    own.grow(other)
    assert own.waiting == (5, 5)


def test_one_that_sends_many_keys_is_one_client_where_none_is_wanted(monkeypatch):
    monkeypatch.setattr(front, "MOST_PROMPTS", 4)
    with counting({"status": "ready", "hosts": [], "starts": 1}, {}, slow=2) as own:
        links = [http.client.HTTPConnection("127.0.0.1", own, timeout=120) for _ in range(8)]
        for number, link in enumerate(links):
            link.request("POST", "/v1/completions", json.dumps({"prompt": "zero"}), {"Authorization": f"Bearer key-{number}"})
            until(lambda: number == 7 or queue(own) == (min(number + 1, 3), max(0, number - 2)))  # noqa: B023  it is called at once
        refused = links[7].getresponse()
        assert refused.status == 429 and 1 <= int(refused.headers["retry-after"]) <= 30
        assert f"ask again in {refused.headers['retry-after']} s" in json.loads(refused.read())["error"]["message"]
        for link in links:
            link.close()


def test_a_probe_for_tools_is_answered(port):
    """As Home Assistant asks: three tokens, with tools, plain and as a stream."""
    tools = [{"type": "function", "function": {"name": "x", "parameters": {"type": "object", "properties": {}}}}]
    asked = {"messages": TALK, "tools": tools, "max_tokens": 3}
    assert answer(port, "/v1/chat/completions", **asked)["choices"][0]["finish_reason"] == "length"
    assert events(port, "/v1/chat/completions", **asked)[-1]["choices"][0]["finish_reason"] == "length"
    parts = events(port, "/v1/chat/completions", **asked | {"max_tokens": 9}, logprobs=True)
    told = [one["token"] for part in parts for one in (part["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert told == [" six", " seven", " eight", " nine", " end"], "those whose text is held back, or that have none, too"


@pytest.mark.parametrize("path, body, status, said", [
    ("/v1/chat/completions", {}, 422, "messages is missing"), ("/v1/chat/completions", {"messages": "x"}, 422, "expected a list"),
    ("/v1/chat/completions", {"messages": TALK, "temperature": "hot"}, 422, "temperature is text"),
    ("/v1/chat/completions", {"messages": TALK, "temperature": -1}, 422, "temperature is -1"),
    ("/v1/chat/completions", {"messages": TALK, "response_format": {"type": "xml"}}, 422, "json_object, or json_schema"),
    ("/v1/chat/completions", {"messages": TALK, "top_logprobs": 2}, 422, "top_logprobs is 2, and nothing is told of tokens without"),
    ("/v1/chat/completions", {"messages": TALK, "n": 99}, 422, "n is 99"), ("/v1/completions", {"prompt": ["a"] * 17}, 413, "17 prompts"),
    ("/v1/completions", {"prompt": [1, 99]}, 422, "not of this model"),
    ("/v1/completions", {"prompt": "one", "suffix": "x"}, 422, "suffix"),
    ("/v1/completions", {"prompt": "one", "echo": True, "logprobs": 1}, 422, "leave one of them out"),
    ("/v1/completions", {"prompt": "one " * 80}, 400, "there is room for 64"),
    ("/v1/completions", {"prompt": ""}, 422, "has no tokens"),
    ("/v1/completions", {"prompt": "one", "best_of": 3}, 422, "best_of is 3"),
    ("/v1/completions", {"prompt": "one", "logit_bias": []}, 422, "logit_bias"),
    ("/v1/completions", {"prompt": "one", "logit_bias": {"1": math.inf}}, 422, "logit_bias has 1: inf"),
    ("/v1/completions", {"prompt": "one", "logit_bias": {"1": 10**400}}, 422, "logit_bias is"),
    ("/v1/completions", {"prompt": "one", "logit_bias": {"99": 1}}, 422, "not of this model"),
    ("/v1/completions", {"prompt": "one", "max_tokens": 10**400}, 422, "expected a whole number from 1 to 16777216"),
    ("/v1/completions", {"prompt": "one", "seed": -(10**400)}, 422, "expected a whole number from -9223372036854775808 to"),
    ("/v1/completions", {"prompt": "one", "stop": 3}, 422, "stop is 3"),
])  # fmt: skip
def test_what_is_wrong_is_said(port, path, body, status, said):
    found, content = post(port, path, body)
    assert found == status and said in json.loads(content)["error"]["message"]
    assert post(port, path, body | {"stream": True}) == (found, content)


CALL = '<tool_call>{"name": "light", "arguments": {"on": true}}</tool_call>'


@pytest.mark.parametrize("text, said, names", [
    (CALL, "", ["light"]), ("sure " + CALL + CALL, "sure", ["light"] * 2), ("no call ", "no call ", []),
    ('<tool_call>\n[{"name": "a"}, {"name": "b"}]\n', "", ["a", "b"]), ('<tool_call>{"x": 1}', '<tool_call>{"x": 1}', []),
    ("<tool_call>{</tool_call>", "<tool_call>{</tool_call>", []),
])  # fmt: skip
def test_calls_of_tools(text, said, names):
    found, called = tools.calls(text)
    assert found == said and [one["function"]["name"] for one in called] == names
    assert all(json.loads(one["function"]["arguments"]) is not None for one in called)
    assert all(len(one["id"]) == 9 and one["id"].isalnum() for one in called), "templates of Mistral refuse others"
    held = tools.Held()
    early = "".join(held.add(letter) for letter in text)
    late, again = held.end()
    assert "<tool" not in early and len(again) == len(called) and (early + late).strip() == said.strip()


@pytest.mark.parametrize("text, names", [
    ('{"name": "light", "parameters": {"on": true}}', ["light"]), ('\n {"name": "light", "parameters": {}} ', ["light"]),
    ('[{"name": "light", "arguments": {"on": 1}}, {"name": "heat", "arguments": {}}]', ["light", "heat"]),
    ('[TOOL_CALLS] [{"name": "heat", "arguments": {}}]', ["heat"]), ('{"name": "Tom", "age": 4}', []), ('{"name": "light", "para', []),
    ('[1, 2] are numbers', []), ("Light is on", []), ("", []), (CALL, ["light"]),
])  # fmt: skip
def test_calls_that_are_all_of_an_answer(text, names):
    """As Llama 3 and Mistral write them, whose tokens before them are no text: only those of tools that there are."""
    found, called = tools.calls(text, ("light", "heat"))
    assert [one["function"]["name"] for one in called] == names and found == ("" if names else text)
    assert text.startswith("<tool_call>") or tools.calls(text) == (text, [])
    held = tools.Held(("light", "heat"))
    early = "".join(held.add(letter) for letter in text)
    late, again = held.end()
    assert len(again) == len(called) and early + late == found and (early == "") == (not text.startswith("L"))


@pytest.mark.parametrize("template, form", [
    ('{{ "<tool_call>" }} {{ \'{"name": x, "parameters": y}\' }}', (True, False)), ("{{ messages }}", (False, False)),
    ('{{- \'{"name": "\' + call.name + \'", \' }}{{- \'"parameters": \' }}', (True, True)), ('{{- "[TOOL_CALLS] [" }}', (True, True)),
])  # fmt: skip
def test_how_a_template_has_calls(template, form):
    model = asking.Model(SimpleNamespace(), {"chat_template.jinja": template.encode()}, "")
    assert (model.calls_tools, model.calls_plainly) == form


async def listened(model):
    """Listen to two streams beside each other, to one of them not to its end."""

    async def to(prompt, most):
        parts, found = model.stream_async(prompt), []
        async for part in parts:
            found.append(part)
            if len(found) == most:
                await parts.aclose()
        return found

    return tuple(await asyncio.gather(to("one", 2), to("seven", 9)))


def test_a_program_goes_on_with_texts(port, own):
    with Model(f"http://127.0.0.1:{port}") as model:
        assert model.generate("four", stop="eight") == " five six seven " and model.generate("nine") == ""
        assert model.generate(TALK) == "six seven eight nine" == asyncio.run(model.generate_async("five")).strip()
        for part in model.stream("one"):
            assert part == " two"
            break
        assert asyncio.run(listened(model)) == ([" two", " three"], [" eight", " nine", ""])
        assert list(model.generate("seven", stream=True)) == [" eight", " nine", ""]
        for wrong, said in ({"temperature": -1}, "temperature is -1"), ({"n": 2}, "n is nothing"), ({"stop": 5}, "stop is 5"):
            with pytest.raises(InputError, match=said):
                model.generate("one", **wrong)
        with pytest.raises(InputError, match="the prompt is of type NoneType"):
            model.generate(None)
        assert model.generate(TALK, logprobs=2) == "six seven eight nine"
        with pytest.raises(InputError, match="ignore_end is not for a service"):
            model.generate("one", ignore_end=True)
        with pytest.raises(InputError, match="async for part in model.stream_async"):
            asyncio.run(model.generate_async("one", stream=True))
        with pytest.raises(InputError, match="temperature is -1"):
            asyncio.run(model.stream_async("one", temperature=-1).__anext__())
    Rank(own)
    spec = SimpleNamespace(numbers=lambda by: len(WORDS))
    stand_in = SimpleNamespace(tokens=TOKENS, spec=spec, prompt=lambda asked: TOKENS.plain(asked, "it"))
    assert list(streamed(stand_in, own, "seven", {}, 10)) == [" eight", " nine", ""]
    parts = streamed(stand_in, own, "one", {"max_tokens": 5}, 10)
    assert next(parts) == " two"
    parts.close()
    until(lambda: not own.streams.busy)
    with pytest.raises(InputError, match="hot is nothing"):
        next(streamed(stand_in, own, "one", {"hot": 1}, 10))
    with pytest.raises(InputError, match="not of this model"):
        next(streamed(stand_in, own, "one", {"logit_bias": {99: 1}}, 10))


@pytest.mark.parametrize("status, headers, error, said", [
    (502, {}, ServiceError, "says 502 Bad Gateway"), (413, {}, InputError, f"says 413 {http.HTTPStatus(413).phrase}"),
    (503, {"Retry-After": "Sat, 28 Nov 2026 10:00:00 GMT"}, NotReady, "says 503 Service Unavailable"),
    (200, {}, ServiceError, "gives no JSON: it is no service of hepti_mpi"),
])  # fmt: skip
def test_what_a_proxy_says_in_between_is_told(status, headers, error, said):
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"<html><body>nginx</body></html>")

        def log_message(self, *words):
            """Nothing is logged."""

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        with pytest.raises(error, match=said):
            Model(f"http://127.0.0.1:{proxy.server_port}", timeout=0.5)
        proxy.shutdown()


def test_pages_of_other_origins_ask_only_where_that_is_wanted(port):
    def asked(port, origin, method="OPTIONS", path="/v1/chat/completions"):
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        link.request(method, path, headers=headers)
        response = link.getresponse()
        response.read()
        link.close()
        return response.status, response.headers.get("access-control-allow-origin")

    assert asked(port, "https://chat.lan") == (405, None) and asked(port, "https://chat.lan", "GET", "/v1/models") == (200, None)
    status = {"status": "ready", "hosts": [], "starts": 1}
    with counting(status, {}, keys=["secret-key"], origins=["https://chat.lan"]) as other:
        assert asked(other, "https://chat.lan") == (200, "https://chat.lan")  # a browser asks that without a key
        assert asked(other, "https://chat.lan", "GET", "/v1/models") == (401, "https://chat.lan")  # and reads why it was refused
        assert asked(other, "https://evil.lan")[1] is asked(other, "https://evil.lan", "GET", "/v1/models")[1] is None


def test_a_client_that_goes_away_in_a_stream(port):
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    link.request("POST", "/v1/completions", json.dumps({"prompt": "zero", "stream": True, "ignored": 1}))
    link.getresponse().read(10)
    link.close()
    with_all = [threading.Thread(target=answer, args=(port, "/v1/completions"), kwargs={"prompt": "eight"}) for _ in range(6)]
    for thread in with_all:
        thread.start()
    for thread in with_all:
        thread.join(120)
        assert not thread.is_alive()
