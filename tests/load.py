"""Many clients at once, and rude ones, against a service of this machine.

    python tests/load.py crowd weights/all-MiniLM-L6-v2.h5 --clients 200 --seconds 300
    python tests/load.py rude weights/all-MiniLM-L6-v2.h5 --fuzz 10000
    python tests/load.py speed weights/all-MiniLM-L6-v2.h5 --reference ref/bin/python --folder MODEL
    python tests/load.py alone weights/all-MiniLM-L6-v2.h5

`crowd`: each client asks again when it has its answer. It is done in turns with `run`, since the speed of a machine changes within minutes
by more than what is to be told: after each turn of the crowd, `run` answers texts that were answered in it, with the same store and
options. Both are warm: the service stays, and must take next to no CPU meanwhile; `run` answers its texts three times. A turn lasts from
its first request to its last answer; of `run` count its own seconds, without start and loading. Medians of the turns are compared.
`rude`: see rude.py. `speed`: embeddings a second over HTTP, beside sentence-transformers in one process. `alone`: how long one client waits
that asks again when it has its answer, over HTTP and in Python. What follows `--` are options of serve. The last line is JSON.
"""

import argparse
import asyncio
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from services import ROOT, Served, served

WORDS = "cat river train book house night water bread stone cloud the of is at my garden window paper".split()
SIZES = (1, 1, 1, 1, 2, 8, 64)  # texts of one request
ALONE = 100  # answers of each kind that one client waits for
PATIENCE = 120  # seconds for an answer, after which it is missing
RUNS = 3  # times that `run` answers the texts of a turn, of which the first is a little slower
GOOD_PART = 0.9  # of the throughput of `run`
GROWTH, MORE = 0.05, 8  # by what part, and how many MiB besides, memory may grow after the first fifth
IDLE_CORES = 0.02  # that a service may take while nobody asks, for what is measured beside it to be right


class Link:
    """A connection that asks again and again, as plainly as one can: what it costs is not the service's."""

    def __init__(self, port: int) -> None:
        self.port, self.streams = port, None

    async def ask(self, path: str, body: bytes, method: str = "POST", kind: str = "application/json") -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and content. Raises OSError, ValueError."""
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        try:
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
            if headers.get("transfer-encoding") == "chunked":
                content = b""
                while size := int(await reader.readuntil(b"\r\n"), 16):
                    content += (await reader.readexactly(size + 2))[:-2]
                await reader.readexactly(2)
            else:
                content = await reader.readexactly(int(headers.get("content-length", 0)))
        except asyncio.IncompleteReadError as error:
            self.close()
            raise ConnectionError("cut off") from error
        if headers.get("connection") == "close":
            self.close()
        return int(first.split()[1]), headers, content

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


def texts(draw: random.Random, count: int) -> list[str]:
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 40))) for _ in range(count)]


class Crowd:
    """Clients of a service, in turns of some seconds each, and what came of them all."""

    def __init__(self, port: int, clients: int) -> None:
        self.port, self.clients = port, [random.Random(seed) for seed in range(clients)]
        self.statuses, self.queued, self.total, self.wrong = Counter[str](), list[float](), list[float](), list[str]()
        self.answered: list[str] = []  # texts, in the last turn
        self.texts, self.seconds, self.rates = 0, 0.0, list[float]()  # texts a second, of each turn

    async def turn(self, seconds: float) -> None:
        """Let all ask for embeddings for so many seconds, and hear the answers to what they asked."""
        self.answered, begin = [], time.monotonic()
        self.last, self.end = begin, begin + seconds
        await asyncio.gather(*map(self._client, self.clients))
        taken = self.last - begin
        self.texts, self.seconds = self.texts + len(self.answered), self.seconds + taken
        self.rates.append(round(len(self.answered) / max(taken, 1e-9), 1))

    async def _client(self, draw: random.Random) -> None:
        link = Link(self.port)
        while time.monotonic() < self.end:
            asked = texts(draw, draw.choice(SIZES))
            body, since = json.dumps({"input": asked, "encoding_format": "base64"}).encode(), time.monotonic()
            try:
                status, headers, content = await asyncio.wait_for(link.ask("/v1/embeddings", body), PATIENCE)
            except (OSError, ValueError, asyncio.TimeoutError) as error:
                self.statuses[type(error).__name__] += 1
                link.close()
                continue
            self.statuses[str(status)] += 1
            self.last = max(self.last, time.monotonic())
            if status == 200:
                self.total.append(time.monotonic() - since)
                self.queued.append(float(headers["x-queue-time"]) / 1000)
                self.answered += asked
                if content.count(b'"embedding":') != len(asked):
                    self.wrong.append(f"{len(asked)} texts, {content.count(b'embedding')} embeddings")
            elif status == 429:
                await asyncio.sleep(min(float(headers["retry-after"]), 5, max(0.0, self.end - time.monotonic())))
            else:
                self.wrong.append(f"{status}: {content[:100]!r}")
        link.close()

    def found(self) -> dict[str, Any]:
        """Return what came of all turns."""
        told = {"statuses": dict(self.statuses), "texts": self.texts, "seconds": round(self.seconds, 1)}
        told |= {"texts_per_second": round(median(self.rates), 1), "texts_per_second_by_turns": self.rates}
        told |= {f"{name}_{word}_seconds": part(times, share) for name, times in (("queued", self.queued), ("total", self.total))
                 for word, share in (("median", 0.5), ("p99", 0.99), ("longest", 1.0))}  # fmt: skip
        return told | {"wrong": self.wrong[:5], "client_cpu_seconds": round(time.process_time(), 1)}


async def crowd(port: int, clients: int, seconds: float) -> dict[str, Any]:
    """Let a crowd ask for so many seconds; return what came of it."""
    own = Crowd(port, clients)
    await own.turn(seconds)
    return own.found()


def part(times: list[float], share: float) -> float | None:
    """Return the time that this share of the times does not exceed."""
    return round(sorted(times)[min(len(times) - 1, int(len(times) * share))], 3) if times else None


async def watched(own: Served, work: Any, seconds: float = 1.0) -> tuple[Any, list[float]]:
    """Return what work returns, and the memory of the service meanwhile, MiB."""
    memory, task = list[float](), asyncio.ensure_future(work)
    while not task.done():
        memory.append(await asyncio.to_thread(own.memory))
        await asyncio.wait([task], timeout=seconds)
    return task.result(), memory


def run_rate(store: Path, folder: Path, asked: list[str], options: list[str]) -> float:
    """Return the texts a second of `run`."""
    source = folder / "texts.txt"
    source.write_text("\n".join(asked) + "\n")
    words = ["run", "--weights", str(store), "--input", str(source), "--output", str(folder / "run.npz"), "--json", "--repeat", str(RUNS)]
    done = subprocess.run([sys.executable, "-m", "hepti_mpi", *words, *options], capture_output=True, text=True, cwd=ROOT, check=True)
    rate: float = json.loads(done.stdout.splitlines()[-1])["requests_per_second"]
    return rate


async def in_turns(own: Served, options: argparse.Namespace, folder: Path) -> tuple[Crowd, list[float], list[float], float]:
    """Let a crowd and `run` have turns; return the crowd, the service's memory in its turns, what `run` answered a second in each of its
    own, and how many cores the service took then."""
    asking, memory, rates, idle, passed = Crowd(own.port, options.clients), list[float](), list[float](), 0.0, 0.0
    turns = max(1, round(options.seconds / options.turn))
    for _ in range(turns):
        _, some = await watched(own, asking.turn(options.seconds / turns))
        memory += some
        if options.texts:
            cpu, begin = own.cpu_seconds(), time.monotonic()
            rates.append(await asyncio.to_thread(run_rate, own.store, folder, asking.answered[: options.texts], options.rest))
            idle, passed = idle + own.cpu_seconds() - cpu, passed + time.monotonic() - begin
    return asking, memory, rates, idle / max(passed, 1e-9)


def grown(settled: float, last: float) -> tuple[dict[str, Any], list[str]]:
    """Return the memory of a service after a fifth of what was done with it and at the end, MiB, and what is missed."""
    much = last > (1 + GROWTH) * settled + MORE
    missed = [f"memory grew from {settled:.0f} to {last:.0f} MiB"] if much else []
    return {"memory_mib": {"after_a_fifth": round(settled), "at_the_end": round(last)}}, missed


def crowded(own: Served, options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Do `crowd`, in turns with `run`; return what came of it and what was missed."""
    asking, memory, rates, idle = asyncio.run(in_turns(own, options, folder))
    fifth = max(1, len(memory) // 5)
    found, missed = grown(max(memory[:fifth]), max(memory[-fifth:]))
    found = asking.found() | found
    missed += [f"{count} x {status}" for status, count in asking.statuses.items() if status not in ("200", "429")] + found["wrong"]
    if not rates:
        return found, missed
    parts = [round(one / other, 3) for one, other in zip(asking.rates, rates)]
    whole = round(median(asking.rates) / median(rates), 3)
    found |= {"run_texts_per_second": round(median(rates), 1), "run_texts_per_second_by_turns": [round(rate, 1) for rate in rates]}
    found |= {"part_of_run": whole, "part_of_run_by_turns": parts, "idle_cores": round(idle, 4)}
    missed += [f"{whole} of run"] if whole < GOOD_PART else []
    missed += [f"the service took {idle:.3f} of a core while nobody asked"] if idle > IDLE_CORES else []
    return found, missed


def sped(own: Served, options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Measure embeddings a second over HTTP and in the reference, in turns; return what came of it and what was missed."""
    asked = options.input.read_text().splitlines() if options.input else texts(random.Random(0), options.texts)
    source = folder / "asked.txt"
    source.write_text("\n".join(asked) + "\n")
    rates: dict[str, list[float]] = {"serve_one_request": [], "serve_32_texts_8_clients": [], "reference": []}
    for _ in range(options.repeat):
        for name, size, clients in (("serve_one_request", len(asked), 1), ("serve_32_texts_8_clients", 32, 8)):
            rates[name].append(round(asyncio.run(embedded(own.port, asked, size, clients)), 1))
        if options.reference:
            command = [options.reference, "-c", REFERENCE, options.folder, str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rates["reference"].append(round(float(done.stdout.split()[-1]), 1))
    middle = {name: sorted(found)[len(found) // 2] for name, found in rates.items() if found}
    missed = [f"{name} {rate} < {middle['reference']}" for name, rate in middle.items() if rate < middle.get("reference", 0.0)]
    return {"texts": len(asked), "texts_per_second": rates, "medians": middle}, missed


REFERENCE = """
import sys, time
from sentence_transformers import SentenceTransformer
model, texts = SentenceTransformer(sys.argv[1], device="cpu"), open(sys.argv[2]).read().splitlines()
model.encode(texts[:64])
begin = time.perf_counter()
model.encode(texts)
print(len(texts) / (time.perf_counter() - begin))
"""


async def embedded(port: int, asked: list[str], size: int, clients: int) -> float:
    """Return texts a second."""
    parts, begin = iter([asked[first : first + size] for first in range(0, len(asked), size)]), time.monotonic()

    async def one() -> None:
        link = Link(port)
        for some in parts:
            status, _, content = await link.ask("/v1/embeddings", json.dumps({"input": some, "encoding_format": "base64"}).encode())
            assert status == 200, content
        link.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    return len(asked) / (time.monotonic() - begin)


def waited(own: Served, options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Measure how long one client waits for an answer; return what came of it. Nothing is promised."""
    from hepti_mpi import Model

    found: dict[str, dict[str, list[float]]] = {"http": {}, "python": {}}
    asked = {count: texts(random.Random(count), count) for count in (1, 8, 32)}
    for count, some in asked.items():
        found["http"][str(count)] = asyncio.run(times_over_http(own.port, some))
    own.end()
    with Model(own.store, options=options.rest) as model:
        for count, some in asked.items():
            times = []
            for _ in range(ALONE):
                begin = time.monotonic()
                model.embed(some)
                times.append(time.monotonic() - begin)
            found["python"][str(count)] = times
    summed = {way: {count: [round(1e3 * time, 1) for time in quantiles(times, n=10)[::4]] for count, times in each.items()}
              for way, each in found.items()}  # fmt: skip
    return {"milliseconds_10_50_90_percent_by_texts": summed}, []


async def times_over_http(port: int, some: list[str]) -> list[float]:
    """Return the seconds of each answer on a connection that is kept."""
    link, times, body = Link(port), list[float](), json.dumps({"input": some, "encoding_format": "base64"}).encode()
    for _ in range(ALONE):
        begin = time.monotonic()
        status, _, content = await link.ask("/v1/embeddings", body)
        times.append(time.monotonic() - begin)
        assert status == 200, content
    link.close()
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("what", choices=("crowd", "rude", "speed", "alone"))
    parser.add_argument("weights", type=Path)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--turn", type=float, default=20, help="seconds of each turn of the crowd")
    parser.add_argument("--texts", type=int, default=2000, help="of a turn of `run`, at most, 0: without; of speed")
    parser.add_argument("--input", type=Path, help="texts of speed, a line each; left out: made up")
    parser.add_argument("--fuzz", type=int, default=10000)
    parser.add_argument("--silent", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--reference", help="a Python with sentence-transformers")
    parser.add_argument("--folder", help="the model's folder, for the reference")
    parser.add_argument("rest", nargs="*", help="options of serve, behind --")
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), most))
    import rude  # which imports from here

    works: dict[str, Callable[..., tuple[dict[str, Any], list[str]]]] = {
        "crowd": crowded, "rude": rude.annoyed, "speed": sped, "alone": waited,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name, served(Path(name), options.weights.resolve(), *options.rest) as own:
        found, missed = works[options.what](own, options, Path(name))
    for sentence in missed:
        print(f"missed: {sentence}")
    print(json.dumps({"format": "hepti-load", "what": options.what, **found, "missed": missed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
