"""A service as its users see it: a process that answers over HTTP, whose ranks are killed meanwhile."""

import asyncio
import base64
import gzip
import http.client
import json
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import clients
import load
import numpy as np
import pytest
import rude
from services import BEGIN_SECONDS, GOLDEN, ROOT, Served, served, writing_folder
from terminals import environment

import hepti_mpi
from hepti_mpi.api.asked import are_many, asked_for, checked, checked_seconds, plain_numbers
from hepti_mpi.commands import main
from hepti_mpi.commands.serve import handed_on, read_keys
from hepti_mpi.errors import HeptiError, InputError, ServiceError, StoreError
from hepti_mpi.models.tasks.sampling import Sampling

pytest.importorskip("starlette", reason="serve is an extra")
pytest.importorskip("uvicorn", reason="serve is an extra")

PAGE = ROOT / "hepti_mpi" / "serving" / "README.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def sentences(folder):
    with served(folder, "bert_sentence", "--threads", "1") as own:
        yield own


@pytest.fixture(scope="module")
def writer(folder):
    made = writing_folder(folder, positions=512)  # the text that tells a model of tools takes 180
    with served(folder, made, "--threads", "1", "--context", "300", "--slots", "2") as own:
        yield own


EXPECTED = json.loads((GOLDEN / "bert_sentence" / "expected_text.json").read_text())


def test_embeddings_are_those_of_the_model(sentences):
    texts = EXPECTED["texts"]
    floats = sentences.answer("/v1/embeddings", {"input": texts, "model": "bert_sentence", "user": "x", "unknown": {"a": 1}})
    coded = sentences.answer("/v1/embeddings", {"input": texts, "model": "", "encoding_format": "base64"})
    alone = [sentences.answer("/v1/embeddings", {"input": text})["data"][0]["embedding"] for text in texts]
    assert [one["index"] for one in floats["data"]] == list(range(len(texts))) and floats["object"] == "list"
    values = np.array([one["embedding"] for one in floats["data"]], np.float32)
    same = np.array([np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in coded["data"]])
    np.testing.assert_allclose(same, values, atol=1e-6)
    np.testing.assert_allclose(np.array(alone), values, atol=1e-5)
    np.testing.assert_allclose(values, np.array(EXPECTED["embeddings"]), atol=1e-4)
    assert floats["usage"]["total_tokens"] == floats["usage"]["prompt_tokens"] > len(texts)


def test_token_ids_are_taken_as_they_are(sentences):
    (tokens,) = sentences.answer("/tokenize", {"inputs": "the cat sat"})
    ids = [token["id"] for token in tokens]
    assert tokens[0]["special"] and tokens[-1]["special"]
    found = sentences.answer("/tokenize", {"prompt": "the cat sat"})
    assert found["tokens"] == ids and found["count"] == len(ids) <= found["max_model_len"]
    one, many = (sentences.answer("/v1/embeddings", {"input": asked})["data"] for asked in (ids, [ids, [*ids[:2], ids[-1]]]))
    assert len(one) == 1 and len(many) == 2
    np.testing.assert_allclose(one[0]["embedding"], many[0]["embedding"], atol=1e-5)  # by itself, and beside another


def test_embed_is_of_length_one(sentences):
    values = np.array(sentences.answer("/embed", {"inputs": ["good morning", "the cat"]}))
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, atol=1e-5)
    assert len(sentences.answer("/embed", {"inputs": "x", "dimensions": 5})[0]) == 5


@pytest.mark.parametrize("body, status, said", [
    (b"{", 400, "not JSON"), (b"", 400, "not JSON"), (b"\xff\xfe", 400, "not JSON"), (b"[" * 100_000, 400, "not JSON"),
    (b"[]", 422, "a list"), ({}, 422, "input is missing"),
    ({"input": None}, 422, "missing"), ({"input": 3}, 422, "a number"), ({"input": []}, 422, "empty list"),
    ({"input": ["a", 3]}, 422, "a number"), ({"input": [[]]}, 422, "a list"), ({"input": {"a": 1}}, 422, "an object"),
    ({"input": [1, 10**9]}, 422, "another tokenizer"), ({"input": [5, 6, 7]}, 422, "ask with texts"),
    ({"input": [True]}, 422, "true or false"), ({"input": "\ud800"}, 422, "half a character"),
    ({"input": "a", "model": "gpt-4"}, 404, "served is 'bert_sentence'"), ({"input": "a", "model": 3}, 422, "a number"),
    ({"input": "a", "dimensions": 10**6}, 422, "dimensions is"), ({"input": "a", "dimensions": 1.5}, 422, "whole number"),
    ({"input": "a", "dimensions": "x"}, 422, "is text"), ({"input": "a", "encoding_format": "x"}, 422, "float or base64"),
    ({"input": ["a"] * 2049}, 413, "at most 2048"),
])  # fmt: skip
def test_what_is_wrong_is_said(sentences, body, status, said):
    found, message = sentences.refusal("/v1/embeddings", body)
    assert found == status and said in message


@pytest.mark.parametrize("path, status, said", [
    ("/v1/chat/completions", 501, "it writes no text"), ("/v1/chat/completions/", 501, "it writes no text"),
    ("/rerank", 422, "it is no reranker"), ("/classify", 422, "not classes"),
    ("/nowhere", 404, "not a route"), ("/health", 405, "does not take POST; it takes GET"),
    ("/nowhere", 404, "ask one of /v1/embeddings, "), ("/v1/v1/embeddings", 404, "not a route of this server; ask /v1/embeddings"),
    ("/chat/completions", 404, "ask /v1/chat/completions"), ("/v1/tokenize", 404, "ask /tokenize"),
])  # fmt: skip
def test_what_the_model_is_not_for_is_said(sentences, path, status, said):
    found, message = sentences.refusal(path, {"input": "a", "query": "a", "documents": ["b"]})
    assert found == status and said in message


def test_a_body_that_is_too_large_is_not_read(sentences):
    status, answer, _ = sentences.call("POST", "/v1/embeddings", b"", {"Content-Length": str(1 << 30)})
    assert status == 413 and "1073741824 bytes" in answer["error"]["message"]
    link = socket.create_connection(("127.0.0.1", sentences.port))
    link.sendall(b"POST /embed HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    with pytest.raises(OSError):  # one that does not say how much there is
        for _ in range(1000):
            link.sendall(b"100000\r\n" + b"a" * (1 << 20) + b"\r\n")
    link.close()


def test_a_compressed_body_is_said_to_be_one(sentences):
    """It was no JSON, with byte 0x8b in position 1."""
    status, answer, _ = sentences.call("POST", "/v1/embeddings", gzip.compress(b'{"input": "a"}'), {"Content-Encoding": "gzip"})
    assert status == 415 and "leave out Content-Encoding" in answer["error"]["message"]
    assert sentences.call("POST", "/embed", b'{"inputs": "a"}', {"Content-Encoding": "identity"})[0] == 200


def test_models_health_and_metrics(sentences):
    _, listed, _ = sentences.get("/v1/models")
    assert [one["id"] for one in listed["data"]] == ["bert_sentence"]
    assert sentences.get("/v1/models/bert_sentence")[0] == 200 and sentences.get("/v1/models/x")[0] == 404
    _, health, _ = sentences.get("/health")
    assert health["status"] == "ready" and health["hosts"] == [{"host": "localhost", "state": "here"}]
    _, status, _ = sentences.get("/status")
    assert status["plan"]["hosts"] and status["events"] and status["queue"]["waiting"] == 0
    sentences.answer("/v1/embeddings", {"input": "good morning"})
    metrics = sentences.get("/metrics")[1].decode()
    for name in ("hepti_ready 1.0", "hepti_job_starts", 'hepti_request_count_total{route="/v1/embeddings"', "hepti_inputs_total"):
        assert name in metrics


def test_silent_and_broken_connections_keep_nobody_out(sentences):
    links = [socket.create_connection(("127.0.0.1", sentences.port)) for _ in range(200)]
    try:
        for number, link in enumerate(links):
            link.sendall((b"", b"POST /v1/embeddings HTTP/1.1\r\nHo", b"\x16\x03\x01\x02\x00" + b"x" * 300,
                          b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n{\"in")[number % 4])  # fmt: skip
        assert sentences.answer("/v1/embeddings", {"input": "good morning"})
    finally:
        for link in links:
            link.close()
    assert sentences.answer("/v1/embeddings", {"input": "good morning"}) and "Traceback" not in sentences.said


def test_many_at_once_are_answered_each_with_its_own(sentences):
    texts = [f"{word} " * (1 + number % 7) for number, word in enumerate(["cat", "river", "train", "book"] * 50)]
    whole = sentences.answer("/v1/embeddings", {"input": texts})["data"]
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda text: sentences.answer("/v1/embeddings", {"input": text})["data"][0]["embedding"], texts))
    for one, other in zip(whole, found, strict=True):
        np.testing.assert_allclose(one["embedding"], other, atol=1e-5)


def test_a_crowd_and_rude_clients_for_a_moment(sentences, writer):
    """tests/load.py does it for minutes."""
    found = asyncio.run(load.crowd(sentences.port, 20, 1))
    assert found["texts"] and set(found["statuses"]) <= {"200", "429"} and not found["wrong"]
    for own in (sentences, writer):
        found = asyncio.run(rude.rude(own.port, 100, silent=50))
        assert found["fuzzed"]["faults"] == [] and set(found["witness"]) == {"200"}, found
        assert found["endless_mib"] < 1024 and "Traceback" not in own.said and "Error:" not in own.said


def test_a_client_that_goes_away_is_forgotten(sentences):
    link = socket.create_connection(("127.0.0.1", sentences.port))
    body = json.dumps({"input": ["the cat sat on the mat and slept there for a while"] * 2000}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    link.sendall(head + body)
    sentences.until(lambda: sentences.get("/status")[1]["queue"]["waiting"] > 0)
    link.close()
    sentences.until(lambda: sentences.get("/status")[1]["queue"]["waiting"] == 0)
    assert sentences.get("/status")[1]["queue"]["answered"] < 100_000


def test_nothing_is_lost_when_ranks_are_killed(sentences):
    texts = [f"cat number {number} sat on the mat near the river" for number in range(700)]
    expected = sentences.answer("/v1/embeddings", {"input": texts[:3]})["data"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sentences.answer, "/v1/embeddings", {"input": texts})
        sentences.until(lambda: sentences.get("/status")[1]["queue"]["under_way"] > 0)
        (rank,) = sentences.ranks()
        os.kill(rank, signal.SIGKILL)
        found = waiting.result(BEGIN_SECONDS)["data"]
    assert len(found) == 700
    sentences.until(lambda: sentences.get("/health")[1]["starts"] >= 2)  # all may have been answered when it was killed
    assert sentences.get("/health")[1]["doing"] is None
    for one, other in zip(expected, found):
        np.testing.assert_allclose(one["embedding"], other["embedding"], atol=1e-5)


def test_teams_answer_the_same(folder, sentences):
    texts = [f"cat number {number} sat on the mat near the river" for number in range(300)]
    expected = sentences.answer("/v1/embeddings", {"input": texts})["data"]
    with served(folder, "bert_sentence", "--threads", "1", "--objective", "throughput", "--batch-rows", "64") as own:
        found = own.answer("/v1/embeddings", {"input": texts})["data"]
        assert 'hepti_plan_info{' in own.get("/metrics")[1].decode() and 'strategy="teams"' in own.get("/metrics")[1].decode()
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one["embedding"], other["embedding"], atol=1e-5)


def test_what_was_asked_is_answered_before_the_end(folder, sentences):
    own = Served(folder, "bert_sentence", "--threads", "1").ready()
    texts = [f"cat number {number} sat on the mat near the river" for number in range(700)]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(own.answer, "/v1/embeddings", {"input": texts})
        own.until(lambda: own.get("/status")[1]["queue"]["under_way"] > 0)
        own.process.send_signal(signal.SIGTERM)
        assert len(waiting.result(BEGIN_SECONDS)["data"]) == 700
    assert own.process.wait(BEGIN_SECONDS) == 0 and "all that was asked is answered" in own.said and own.ranks() == []


def test_keys(folder, tmp_path, sentences):
    keys = tmp_path / "keys.txt"
    keys.write_text("# of the kitchen\nsecret-of-one\n\nsecret-of-two\n")
    own = Served(folder, "bert_sentence", "--threads", "1", "--api-key-file", str(keys))
    try:
        kinds = {"Bearer secret-of-three": 401, "Bearer secret-of-two": 200, "Basic secret-of-two": 401, "Bearer \xe9\xff": 401, "": 401}
        for given, status in kinds.items():
            assert own.call("GET", "/v1/models", headers={"Authorization": given})[0] == status
        assert own.get("/health")[1]["status"] in ("loading", "ready") and own.get("/metrics")[0] == 401
    finally:
        assert own.end(signal.SIGINT) == 0


@pytest.mark.parametrize("content, said", [("short\n", "at least 8"), ("# none\n", "no key"), ("two words here\n", "no blank")])
def test_keys_that_are_none(tmp_path, content, said):
    (tmp_path / "keys").write_text(content)
    with pytest.raises(InputError, match=said):
        read_keys(tmp_path / "keys")
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(tmp_path / "nowhere")


def test_options_for_the_ranks_are_handed_on(monkeypatch):
    monkeypatch.setenv("HEPTI_THREADS", "3")
    verb = main.main.commands["serve"]
    words = ["hosts.txt", "--port", "1", "--no-adapt", "--batch-rows", "64", "--memory-limit", "500M", "--layout", "heads/columns"]
    context = verb.make_context("serve", words)
    found = handed_on(context)
    options = main.main.commands["answer"].make_context("answer", list(found)).params
    expected = {"threads": 3, "adapt": False, "batch_rows": 64, "memory_limit": (500 << 20,), "layout": "heads/columns"}
    assert {name: options[name] for name in expected} == expected and len(found) == 9


@pytest.mark.parametrize("words, said", [
    (["--weights", "nowhere.h5"], "not found"), (["--host", "256.1.1.1"], "cannot listen on 256.1.1.1"),
    (["--host", "192.0.2.1"], "--host takes an address of this machine, or 0.0.0.0"),
    (["--emulate", "pi4"], "leave them out"), (["nowhere.txt"], "cannot be read"),
])  # fmt: skip
def test_what_keeps_it_from_starting_is_one_sentence(folder, sentences, words, said):
    given = ["--weights", str(sentences.store)] * ("--weights" not in words)
    command = [sys.executable, "-m", "hepti_mpi", "serve", "--port", "0", *given, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_ranks_of_a_service_are_told_how_wide_its_terminal_is(folder, sentences):
    master, slave = pty.openpty()
    subprocess.run(["stty", "cols", "47"], stdin=slave, check=True)
    command = [sys.executable, "-m", "hepti_mpi", "serve", "--port", "0", "--weights", str(sentences.store)]
    process = subprocess.Popen(command, cwd=folder, stdin=slave, stdout=slave, stderr=slave, env=environment())
    os.close(slave)
    shown = b""
    try:
        while b"ready on" not in shown:
            shown += os.read(master, 1 << 16)
        [rank] = [child for file in Path(f"/proc/{process.pid}/task").glob("*/children") for child in file.read_text().split()]
        assert b"HEPTI_COLUMNS=47" in Path(f"/proc/{rank}/environ").read_bytes().split(b"\0")
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(BEGIN_SECONDS) == 0
        os.close(master)


def curls():
    """The lines of the page that ask."""
    return [line for line in PAGE.read_text().splitlines() if line.startswith("curl ")]


def asked_by(line):
    """Return what a line of curl asks: path, body and headers."""
    words = shlex.split(line)
    path = next(word for word in words if word.startswith("http://")).partition("8080")[2]
    given = dict(zip(words[1:], words[2:]))
    if "-F" in given:
        picture = (GOLDEN / "vit_cls" / "rgb.png").read_bytes()
        body = b'--xx\r\nContent-Disposition: form-data; name="file"; filename="photo.jpg"\r\n\r\n' + picture + b"\r\n--xx--\r\n"
        return "POST", path, body, {"Content-Type": "multipart/form-data; boundary=xx"}
    return ("POST", path, given["-d"], {}) if "-d" in given else ("GET", path, None, {})


def test_the_lines_of_the_page_are_answered(folder, sentences, writer):
    lines = curls()
    assert len(lines) >= 10
    others = {"/predict": "bert_seqcls", "/classify": "vit_cls", "/rerank": None}
    for line in lines:
        method, path, body, headers = asked_by(line)
        if path in ("/v1/chat/completions", "/v1/completions"):
            assert writer.call(method, path, body, headers)[0] == 200, line
        elif path not in others:
            assert sentences.call(method, path, body, headers)[0] == 200, line
        elif others[path] is not None:
            with served(folder, others[path], "--threads", "1") as own:
                status, answer, _ = own.call(method, path, body, headers)
                assert status == 200, (line, answer)
                labels = answer["data"][0]["labels"] if path == "/classify" else answer
                assert labels and set(labels[0]) == {"label", "score"}


def test_a_program_asks_as_the_page_says(folder, sentences, capsys):
    """With a job of its own, and the service that is there."""
    block = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    exec(block.replace("weights/all-MiniLM-L6-v2.h5", str(sentences.store)), {})  # noqa: S102
    assert capsys.readouterr().out == "(2, 40) float32\n"
    with hepti_mpi.Model(f"http://127.0.0.1:{sentences.port}/v1") as model:
        found = model.embed(EXPECTED["texts"] * 300)
        np.testing.assert_allclose(found[: len(EXPECTED["texts"])], np.array(EXPECTED["embeddings"]), atol=1e-4)
        np.testing.assert_array_equal(model.embed(EXPECTED["texts"][0]), asyncio.run(model.embed_async([EXPECTED["texts"][0]]))[0])
        assert model.embed([]).shape == (0, 40)
        wrong = {"not classes": lambda: model.classify("a"), "no reranker": lambda: model.rerank("a", ["b"])}
        wrong |= {"input 1 is of type int": lambda: model.embed([3]), "half a character": lambda: model.embed("\ud800")}
        for said, ask in wrong.items():
            with pytest.raises(InputError, match=said):
                ask()


@pytest.mark.parametrize("where", ["a service", "a job"])
def test_who_stops_to_wait_ends_what_is_under_way(sentences, where):
    """asyncio.run itself waits until the thread that asked has ended."""
    texts, asked = ["the cat sat on the mat and slept there for a while"] * 1_000_000, []

    async def give_up(model):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(model.embed_async(texts), 2)

    with hepti_mpi.Model(*(sentences.url,) if where == "a service" else (sentences.store,)) as model:
        ask = model._asked.embed
        model._asked.embed = lambda texts: asked.append(1) or ask(texts)
        begin = time.monotonic()
        asyncio.run(give_up(model))
        assert asked and time.monotonic() < begin + 60, "a million texts take minutes"
        assert model.embed("the cat").shape == (40,)
    sentences.until(lambda: sentences.queue["waiting"] == sentences.queue["under_way"] == 0)


BOTH = {"vit_cls": (["rgb.png", "gray.png"], [("a", "b"), 5, "nowhere.png", b"no picture"]),
        "bert_seqcls": (["the cat", ("the cat", "a dog")], [("a",), ("a", "b", "c"), 5, b"a", Path("a")])}  # fmt: skip


@pytest.mark.parametrize("name", BOTH)
def test_classes_are_the_same_of_a_job_and_of_a_service(folder, name):
    good, bad = BOTH[name]
    if name == "vit_cls":
        good = [str(GOLDEN / name / one) for one in good]
        good += [Path(good[0]), Path(good[1]).read_bytes()]
    with served(folder, name, "--threads", "1") as own:
        with hepti_mpi.Model(own.url) as asked, hepti_mpi.Model(own.store, options=["--threads", "1"]) as model:
            for each in (asked, model):
                many = each.classify(good)
                assert len(many) == len(good) and all(len(one) >= 3 and one[0].score >= one[1].score for one in many)
                assert each.classify(good[0])[0][0].label == many[0][0].label and each.classify([]) == []
                for one in bad:
                    with pytest.raises(InputError) as caught:
                        each.classify(one)
                    if one == b"no picture":
                        assert str(caught.value) == "input 1 is no picture that can be read; save it as PNG or JPEG"
            every = [[label.score for one in each.classify(good) for label in one] for each in (asked, model)]
            np.testing.assert_allclose(*every, atol=1e-5)
    with pytest.raises(InputError, match="leave out hostfile and options"):
        hepti_mpi.Model(own.url, options=["--threads", "1"])


class Scoring:
    """Stands in for whatever is asked: the longer a text, the better."""

    def scores(self, query, texts):
        return np.array([len(text) for text in texts], np.float32)


@pytest.mark.parametrize("texts", ["some", ("one", "three"), {"one": 1, "three": 2}.keys()])
def test_texts_that_are_no_list_are_ranked_as_they_are(texts):
    model = object.__new__(hepti_mpi.Model)
    model._asked = Scoring()
    every = [texts] if isinstance(texts, str) else list(texts)
    for given in (texts, iter(every)):
        assert [one.text for one in model.rerank("x", given)] == every[::-1]
    with pytest.raises(InputError, match="of type int"):
        model.rerank("x", [5])
    with pytest.raises(InputError, match="of type dict"):
        model.rerank("x", {"one": 1})


@pytest.mark.parametrize("model, error, said", [
    ("http://127.0.0.1:1", ServiceError, "cannot be asked"), ("http://", InputError, "is no address"),
    ("http://[::1", InputError, "is no address"), ("http://a:99999", InputError, "is no address"),
    ("http://a b", InputError, "is no address"), (5, InputError, "of type int"),
    ("HTTP://127.0.0.1:1", ServiceError, "cannot be asked"),
    ("http://127.0.0.1:1", ServiceError, "nothing listens there; start it with: python -m hepti_mpi serve"),
    ("nowhere.h5", StoreError, "not found"), ("", StoreError, "name of the model is empty; name a store"),
    ("random:minilm", StoreError, "slice random:minilm weights/minilm.h5"), ("hostfiles", StoreError, "a folder without a store"),
    ("some-org/some-model", StoreError, "hf download some-org/some-model"), ("pi4-1:8080", StoreError, "such as http://pi4-1:8080"),
    ("ftp://pi4-1", StoreError, "begins with http, such as http://pi4-1"),
])  # fmt: skip
def test_a_model_that_is_not_there(monkeypatch, model, error, said):
    monkeypatch.chdir(ROOT)
    with pytest.raises(error, match=said):
        hepti_mpi.Model(model)


@pytest.mark.parametrize("model", ["tiny.h5", "http://127.0.0.1:1"])
@pytest.mark.parametrize("argument, value, said", [
    ("timeout", "10", "timeout is '10', expected seconds above 0"), ("timeout", None, "timeout is None"), ("timeout", -1, "timeout is -1"),
    ("timeout", float("nan"), "timeout is nan"), ("timeout", True, "timeout is True"), ("timeout", 1e9, "at most 1,000,000"),
    ("options", "--threads 2", "options is of type str, expected a list of words"), ("options", None, "options is of type NoneType"),
    ("api_key", 5, "api_key"), ("api_key", "two\nlines", "api_key"), ("api_key", "☃", "api_key"),
])  # fmt: skip
def test_an_argument_that_is_none_is_one_sentence(model, argument, value, said):
    with pytest.raises(InputError, match=said):
        hepti_mpi.Model(model, **{argument: value})


@pytest.mark.parametrize("argument, value, said", [
    ("hostfile", 3, "hostfile is of type int"), ("hostfile", ["a", "b"], "hostfile is of type list"),
    ("mpirun", None, "mpirun is of type NoneType"), ("mpirun", "", "called by an empty word"),
    ("mpirun", "mpirun '", "which a shell cannot read: no closing quotation"),
])  # fmt: skip
def test_how_a_job_is_started_is_looked_at_before(folder, sentences, argument, value, said):
    (folder / "here.txt").write_text("localhost slots=1\n")
    with pytest.raises(HeptiError, match=said):
        hepti_mpi.Model(sentences.store, **{"hostfile": folder / "here.txt", argument: value})


def test_who_does_not_wait_for_a_model_has_no_ranks_left(sentences, monkeypatch):
    """As by Ctrl-C in a notebook, which goes on; they kept their memory, and nobody could end them."""
    own = SimpleNamespace(store=sentences.store, process=SimpleNamespace(pid=os.getpid()))

    def interrupted(model):
        sentences.until(lambda: Served.ranks(own))
        raise KeyboardInterrupt

    monkeypatch.setattr("hepti_mpi.serving.asking.Model.warm_up", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hepti_mpi.Model(sentences.store)
    assert not Served.ranks(own)


@pytest.mark.parametrize("texts", [{"a", "b"}, frozenset("ab"), None, 5, {"text": "a"}, np.array("a"), np.array([["a"]])])
def test_what_has_no_order_is_no_list_of_texts(texts):
    """Nor is what would give its keys, or the names of its columns."""
    model = object.__new__(hepti_mpi.Model)
    for each in (texts, b"a"):
        with pytest.raises(InputError, match="expected a text or a list of texts"):
            model.embed(each)
    assert not are_many(texts) and are_many(np.array(["a", "b"])) and are_many({"a": 1}.keys())


def test_numbers_may_be_of_numpy():
    how = {"max_tokens": np.int64(5), "temperature": np.float32(0.5), "seed": np.int8(3)}
    assert asked_for("a", plain_numbers(how)) == Sampling(max_tokens=5, temperature=0.5, seed=3)
    assert checked_seconds(np.int64(5)) == 5.0


def test_half_a_character_is_named():
    model = object.__new__(hepti_mpi.Model)
    with pytest.raises(InputError, match="input 2 holds half a character"):
        model.embed(["whole", "half \ud83d"])
    with pytest.raises(InputError, match="input 1 holds half a character"):
        checked([("whole", "half \ud83d")], pictures=False)


def test_the_package_alone_imports_nothing_large():
    code = "import sys, hepti_mpi\nassert not {'numpy', 'mpi4py', 'click'} & set(sys.modules)\nfrom hepti_mpi import Model\n"
    code += "assert not {'mpi4py', 'onnxruntime', 'click', 'starlette'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_threads_do_not_grow(sentences):
    def threads():
        sentences.answer("/v1/embeddings", {"input": "good morning"})
        return len(list(Path(f"/proc/{sentences.process.pid}/task").iterdir())), threading.active_count()

    before = threads()
    for _ in range(5):
        after = threads()
    assert after[0] <= before[0] + 2 < 60 and after[1] <= before[1]


@pytest.mark.parametrize("more", [{}, {"stream": True}])
def test_who_always_says_how_much_is_to_be_thought_is_answered(writer, more):
    asked = {"messages": [{"role": "user", "content": "w5"}], "max_tokens": 3, "temperature": 0} | more
    plain, told = (writer.post("/v1/chat/completions", asked | effort) for effort in ({}, {"reasoning_effort": "high"}))
    assert plain[0] == told[0] == 200 and "x-ignored-fields" not in plain[2] and told[2]["x-ignored-fields"] == "reasoning_effort"
    if not more:
        assert plain[1]["choices"] == told[1]["choices"]


def test_texts_go_on_where_they_were_when_ranks_are_killed(writer):
    asked = {"prompt": "w5 w6 w7", "max_tokens": 90, "temperature": 0.8, "seed": 3, "logit_bias": {"2": -100}}
    expected = writer.answer("/v1/completions", asked)["choices"][0]
    assert expected["finish_reason"] == "length" and len(expected["text"].split()) > 40
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            before = writer.get("/status")[1]["queue"]["tokens"]
            every = [pool.submit(writer.answer, "/v1/completions", asked) for _ in range(3)]
            writer.until(lambda: writer.get("/status")[1]["queue"]["tokens"] > before + 5)  # noqa: B023
            for rank in writer.ranks():
                os.kill(rank, signal.SIGKILL)
            assert [one.result(BEGIN_SECONDS)["choices"][0] for one in every] == [expected] * 3
    talk = writer.answer("/v1/chat/completions", {"messages": [{"role": "user", "content": "w5"}], "max_tokens": 3, "temperature": 0})
    assert talk["choices"][0]["message"]["role"] == "assistant" and talk["usage"]["prompt_tokens"] == 1
    for path, said in (("/v1/embeddings", "not embeddings"), ("/classify", "not classes")):
        assert said in writer.refusal(path, {"input": "w5"})[1]
    assert "it writes text" in writer.refusal("/predict", {"inputs": "w5"})[1]


def test_while_it_is_loaded_it_says_so_and_a_stream_is_finished_before_it_ends(folder, writer):
    own = Served(folder, writer.store, "--threads", "1", "--context", "100")
    asked = {"prompt": "w5 w6 w7", "max_tokens": 90, "temperature": 0, "logit_bias": {"2": -100}}
    status, answer, headers = own.post("/v1/completions", asked)
    assert status == 503 and "being loaded" in answer["error"]["message"] and int(headers["retry-after"]) > 0
    assert own.get("/health")[0] == 503 and own.get("/health")[1]["status"] == "loading" and own.get("/v1/models")[0] == 200
    own.ready()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(own.post, "/v1/completions", asked | {"stream": True})
        own.until(lambda: own.queue["tokens"] > 5)
        own.process.send_signal(signal.SIGTERM)
        status, stream, _ = waiting.result(BEGIN_SECONDS)
    assert status == 200 and stream.endswith(b"data: [DONE]\n\n")
    assert b'"finish_reason": "length"' in stream and own.process.wait(BEGIN_SECONDS) == 0 and own.ranks() == []
    assert "all that was asked is answered" in own.said


def test_who_does_not_wait_for_its_end_is_not_told_that_all_is_answered(folder, writer):
    own = Served(folder, writer.store, "--threads", "1", "--context", "100", "--slots", "1").ready()
    asked = {"prompt": "w5 w6 w7", "max_tokens": 90, "temperature": 2, "logit_bias": {"2": -100}, "stream": True, "n": 16}
    link = http.client.HTTPConnection("127.0.0.1", own.port, timeout=BEGIN_SECONDS)
    link.request("POST", "/v1/completions", json.dumps(asked))
    link.getresponse().read(10)
    for _ in range(2):
        own.process.send_signal(signal.SIGINT)
        own.until(lambda: own.process.poll() is not None or not listens(own.port))
    own.process.wait(BEGIN_SECONDS)
    link.close()
    assert "all that was asked" not in own.said and "what was still under way is not answered" in own.said and own.ranks() == []
    assert "what is asked already is answered first; Ctrl-C again ends at once" in own.said


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 10).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("package", [name for name in clients.CLIENTS if not name or find_spec(name)])
def test_clients_that_people_have(sentences, writer, package):
    """Those that are installed; tests/clients.py says how the others are tried."""
    clients.CLIENTS[package](sentences.url, writer.url)


def test_a_plan_of_texts_is_kept(folder, writer):
    command = [sys.executable, "-m", "hepti_mpi", "serve", "--weights", str(writer.store), "--port", "0", "--adapt"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2 and "leave out --adapt" in done.stderr


def test_texts_of_a_service_in_teams(folder, writer):
    """Two ranks write texts of their own: the same ones, more at once."""
    asked = [{"prompt": f"{word} is", "max_tokens": 8, "temperature": 0, "stop": ["zz"]} for word in "the cat sat on a mat".split()]
    right = [writer.answer("/v1/completions", one)["choices"][0] for one in asked]
    (folder / "two.txt").write_text("localhost slots=2\n")
    words = ["two.txt", "--threads", "1", "--context", "100", "--slots", "2", "--objective", "throughput"]
    with served(folder, writer.store, *words) as own, ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda one: own.answer("/v1/completions", one)["choices"][0], asked))
        assert [one["text"] for one in found] == [one["text"] for one in right]
        status = own.get("/status")[1]
        assert status["plan"]["strategy"] == "teams" and len(status["why"]) == 3 and "by all ranks together" in status["why"][-1]
        own.until(lambda: [team["inputs"] for team in own.get("/status")[1]["teams"]] == [0, 0])
        teams = own.get("/status")[1]["teams"]
        assert sorted(team["ranks"] for team in teams) == [[0], [1]] and all(team["rows_per_second"] > 0 for team in teams)
        assert b"hepti_rank_inputs{host=" in own.get("/metrics")[1]



def test_a_program_has_texts_written(writer):
    with hepti_mpi.Model(writer.store, options=["--slots", "1", "--threads", "1"]) as model:
        parts = list(model.stream("w5 w6", max_tokens=8))
        assert "".join(parts) == model.generate("w5 w6", max_tokens=8) and len(parts) > 3
        with pytest.raises(InputError, match="not embeddings"):
            model.embed("w5")
