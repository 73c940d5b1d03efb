"""A `serve` of this machine in a process of its own, and small models for it: what the tests of services and the load on them share."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import decoders

from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.inputs.tokens import SPECIALS, word_piece_json
from hepti_mpi.weights import writing

ROOT, GOLDEN = Path(__file__).parent.parent, Path(__file__).parent / "golden"
BEGIN_SECONDS = 300


class Served:
    """A `serve` in a process of its own."""

    def __init__(self, folder, model, *options):
        """`model`: a store, a folder of golden models, or one elsewhere, of which a store is made in `folder`."""
        model = Path(model)
        self.store = model if model.suffix == ".h5" else folder / f"{model.name}.h5"
        self.log = folder / f"{model.name}.{time.monotonic_ns()}.log"
        if not self.store.exists():
            writing.write(self.store, read_model(GOLDEN / model))
        words = [sys.executable, "-m", "hepti_mpi", "serve", "--weights", str(self.store), "--port", "0", *options]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, cwd=folder)
        self.until(lambda: "http://" in self.said)
        self.port = int(re.search(r"http://127.0.0.1:(\d+)", self.said)[1])
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def said(self):
        return self.log.read_text()

    def until(self, condition, seconds=BEGIN_SECONDS):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end and self.process.poll() is None, self.said
            time.sleep(0.05)

    def ready(self):
        self.until(lambda: self.get("/health")[0] == 200)
        return self

    def call(self, method, path, body=None, headers=None, timeout=BEGIN_SECONDS):
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            link.request(method, path, body, headers or {})
            response = link.getresponse()
            content = response.read()
            is_json = "json" in response.headers.get("content-type", "")
            return response.status, json.loads(content) if is_json else content, response.headers
        finally:
            link.close()

    def get(self, path, **headers):
        return self.call("GET", path, headers=headers)

    def post(self, path, document, **headers):
        return self.call("POST", path, document if isinstance(document, bytes) else json.dumps(document), headers)

    def answer(self, path, document):
        status, answer, _ = self.post(path, document)
        assert status == 200, answer
        return answer

    def refusal(self, path, document):
        status, answer, headers = self.post(path, document)
        assert set(answer) == {"error"} and set(answer["error"]) == {"message", "type", "param", "code"}
        return status, answer["error"]["message"]

    @property
    def queue(self):
        return self.get("/status")[1]["queue"]

    def ranks(self):
        """The processes of its ranks."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words, parent = path.read_bytes().split(b"\0"), (path.parent / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if b"answer" in words and str(self.store).encode() in words and int(parent) == self.process.pid:
                found.append(int(path.parent.name))
        return found

    def memory(self):
        """Return the anonymous memory of the front and of all ranks that are its children, MiB."""
        return sum(anonymous_bytes(number) for number in (self.process.pid, *self.ranks())) / 2**20

    def cpu_seconds(self):
        """Return what the front and all ranks that are its children have computed."""
        taken = [Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[11:13] for number in (self.process.pid, *self.ranks())]
        return sum(int(ticks) for one in taken for ticks in one) / os.sysconf("SC_CLK_TCK")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def end(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(BEGIN_SECONDS)


def anonymous_bytes(number):
    """Return the memory of a process that is no file's."""
    lines = Path(f"/proc/{number}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


@contextmanager
def served(folder, model, *options):
    own = Served(folder, model, *options)
    try:
        yield own.ready()
    finally:
        own.process.kill() if own.end() else None
        assert own.ranks() == []


def writing_folder(folder, positions=128):
    """Write the folder of a tiny model that writes text, with words for its tokens and a template for talks; return it. `positions`: that
    it has."""
    source = decoders.write_folder("llama", folder)
    words = [*SPECIALS, *(f"w{number}" for number in range(decoders.BASE["vocab_size"] - len(SPECIALS)))]
    (source / "tokenizer.json").write_text(json.dumps(json.loads(word_piece_json(words)) | {"post_processor": None}))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
    (source / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }} {% endfor %}")
    return source
