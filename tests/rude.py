"""Clients that are as rude as can be: silent ones, slow readers, half-closed ones, endless bodies, bytes that are no HTTP, and damaged
and made-up requests; beside them one that asks all the time and must not feel it. `python tests/load.py rude` begins it.
"""

import argparse
import asyncio
import json
import random
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

from load import PATIENCE, Link, grown, part, watched
from services import Served

FINE = {501, 503}  # statuses above 499 that are no fault
SLOW, JUNK = 8, 300
WATCH_SECONDS = 0.25  # between two looks at the memory


async def rude(port: int, fuzz: int, seed: int = 7, silent: int = 1000) -> dict[str, Any]:
    """Be as rude as clients can, beside one that asks all the time; return what became of it."""
    answers, waits, ended = Counter[str](), list[float](), asyncio.Event()

    async def witness() -> None:
        link = Link(port)
        while not ended.is_set():
            begin = time.monotonic()
            try:
                status, *_ = await asyncio.wait_for(link.ask("/tokenize", b'{"inputs": "good morning"}'), PATIENCE)
            except (OSError, ValueError, asyncio.TimeoutError) as error:
                status = type(error).__name__
                link.close()
            answers[str(status)] += 1
            waits.append(time.monotonic() - begin)
            await asyncio.sleep(0.1)
        link.close()

    beside = asyncio.ensure_future(witness())
    found: dict[str, Any] = {"half_closed": (await asyncio.to_thread(half_closed, port))[:15]}
    links = [await asyncio.open_connection("127.0.0.1", port) for _ in range(silent)]
    slow = [await asyncio.to_thread(slow_reader, port) for _ in range(SLOW)]
    found["endless_mib"] = await asyncio.to_thread(endless, port)
    await asyncio.to_thread(junk, port, seed)
    found["fuzzed"] = await fuzzed(port, fuzz, seed)
    for link in slow:
        link.close()
    for _, writer in links:
        writer.close()
    ended.set()
    await beside
    return found | {"witness": dict(answers), "witness_median_seconds": part(waits, 0.5), "witness_longest_seconds": part(waits, 1.0)}


def slow_reader(port: int) -> socket.socket:
    """Ask for much and read nothing."""
    body = json.dumps({"input": ["x"] * 1000, "prompt": "w5", "max_tokens": 60, "stream": True}).encode()
    link = socket.socket()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    link.connect(("127.0.0.1", port))
    path = "/v1/completions" if random.random() < 0.5 else "/v1/embeddings"
    link.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return link


def half_closed(port: int) -> str:
    """Ask, and say that nothing more will come, as one that goes away does; return the first line of what is answered, if anything is."""
    body = b'{"inputs": "hi"}'
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as link:
        link.sendall(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        link.shutdown(socket.SHUT_WR)
        return link.recv(200).decode(errors="replace").partition("\r\n")[0]


def endless(port: int) -> int:
    """Send a body that does not end; return after how many MiB the service cuts it off, 1024 if it does not."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as link:
        link.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for size in range(1024):
            try:
                link.sendall(b"100000\r\n" + b"a" * (1 << 20) + b"\r\n")
            except OSError:
                return size
    return 1024


def junk(port: int, seed: int) -> None:
    """Send bytes that are no HTTP."""
    draw = random.Random(seed)
    for _ in range(JUNK):
        with socket.create_connection(("127.0.0.1", port)) as link:
            link.sendall(draw.randbytes(draw.randint(1, 300)))


PATHS = ("/v1/embeddings /embed /rerank /v1/rerank /predict /classify /tokenize /v1/models /status /metrics /health / /nope "
         "/v1/chat/completions /v1/chat/completions /v1/chat/completions /v1/completions /v1/completions").split()  # fmt: skip
KEYS = ("input inputs query documents texts model dimensions encoding_format top_n truncate normalize prompt messages stream n stop "
        "raw_scores add_special_tokens return_text temperature top_p top_k min_p seed logprobs top_logprobs logit_bias tools tool_choice "
        "response_format stream_options echo suffix presence_penalty frequency_penalty repetition_penalty "
        "max_completion_tokens").split()  # fmt: skip
KINDS = ("application/json", "multipart/form-data; boundary=x", "multipart/form-data", "text/plain", "")
ODD = (0, -1, 1e308, 1e-9, 2**70, -(2**63), 3.5, 101, 7592, float("nan"), float("inf"), 10**400)
SIGNS = (32, 65, 97, 0, 10, 233, 0x1F600, 0x4E2D, 0xD800, 0xFFFF)
MESSAGES = ({"role": "user", "content": "w5 w6"}, {"role": "user", "content": [{"type": "text", "text": "w5"}]}, {"role": "tool"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "{"}}]}, {"role": 3, "content": None}, "user")
USUAL = ("good morning", "", "float", "base64", 3, [1, 2, 3], ["a", "b"], [["a", "b"]], {"type": "json_object"},
         {"type": "function", "function": {"name": "x", "parameters": {}}}, {"include_usage": True}, {"5": 3},
         {"5": float("inf")}, {"5": 10**400}, {"5": -1e308})  # fmt: skip


def value(draw: random.Random, depth: int = 0) -> Any:
    """Return something that a field may be thought to hold."""
    kind = draw.randrange(14)
    if kind == 0:
        return draw.choice((None, True, False))
    if kind == 1:
        return draw.choice(ODD)
    if kind == 2:
        return "".join(chr(draw.choice(SIGNS)) for _ in range(draw.randint(0, 20)))
    if kind == 3 and depth < 3:
        return [value(draw, depth + 1) for _ in range(draw.randint(0, 4))]
    if kind == 4 and depth < 3:
        return {str(value(draw, 9)): value(draw, depth + 1) for _ in range(draw.randint(0, 3))}
    return [draw.choice(MESSAGES) for _ in range(draw.randint(0, 3))] if kind == 5 else draw.choice(USUAL)


def made_up(draw: random.Random) -> tuple[str, bytes, str, str]:
    """Return path, body, method and content type of a request that somebody might send."""
    path, keys = draw.choice(PATHS), draw.sample(KEYS, draw.randint(0, 6))
    asked = {key: value(draw) for key in keys} | {"max_tokens": draw.choice((1, 3, 3, value(draw)))}
    if draw.random() < 0.5:  # sound but for what was drawn
        asked = {"messages": [MESSAGES[0]], "prompt": "w5 w6", "input": "w5", "inputs": "w5"} | asked
    body, damage, kind = json.dumps(asked).encode(errors="surrogatepass"), draw.randrange(10), draw.choice(KINDS)
    if damage == 0:
        body = body[: draw.randrange(len(body) + 1)]
    elif damage == 1:
        body = draw.randbytes(draw.randint(0, 200))
    elif damage == 2:
        head, end = b"--x\r\nContent-Disposition: form-data; name=f; filename=a\r\n\r\n", draw.choice((b"\r\n--x--\r\n", b"", b"\r\n--x"))
        path, body, kind = draw.choice(("/classify", path)), head + body + end, KINDS[1]
    return path, body, draw.choice(("POST",) * 9 + ("GET", "PUT", "OPTIONS")), kind


async def fuzzed(port: int, count: int, seed: int) -> dict[str, Any]:
    """Send made-up requests, some at once; return how often each status came, and the faults among them."""
    statuses, faults, draw, left = Counter[str](), list[str](), random.Random(seed), iter(range(count))

    async def one() -> None:
        link = Link(port)
        for _ in left:
            path, body, method, kind = made_up(draw)
            try:
                status, _, content = await asyncio.wait_for(link.ask(path, body, method, kind), PATIENCE)
            except (OSError, ValueError, asyncio.TimeoutError) as error:
                link.close()
                statuses[type(error).__name__] += 1
                faults.append(f"{type(error).__name__} {method} {path} {body[:200]!r}")
                continue
            statuses[str(status)] += 1
            if status >= 500 and status not in FINE:
                faults.append(f"{status} {method} {path} {content[:200]!r} {body[:300]!r}")
        link.close()

    await asyncio.gather(*(one() for _ in range(8)))
    return {"statuses": dict(statuses), "faults": faults[:5]}


def annoyed(own: Served, options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Do `rude`; return what came of it and what was missed. Memory is judged from its most in the first fifth on: before, the service is
    cold, and loads and prepares what it has not needed yet."""
    descriptors, fifth = own.descriptors(), options.fuzz // 5
    first, before = asyncio.run(watched(own, rude(own.port, fifth, seed=1, silent=options.silent), WATCH_SECONDS))
    rest, after = asyncio.run(watched(own, rude(own.port, options.fuzz - fifth, silent=options.silent), WATCH_SECONDS))
    memory, missed = grown(max(before), max(*after[-max(1, len(after) // 4) :], own.memory()))  # a fifth of all, too
    for one in (first, rest):
        missed += one["fuzzed"]["faults"]
        missed += [f"witness: {count} x {status}" for status, count in one["witness"].items() if status != "200"]
        missed += ["an endless body is taken"] if one["endless_mib"] >= 1024 else []
    missed += [f"log: {line}" for line in own.said.splitlines() if "Traceback" in line or "Error:" in line][:5]
    own.until(lambda: own.descriptors() <= descriptors + 8, 150)
    memory["memory_mib"] |= {"most": round(max(*before, *after)), "begin": round(before[0])}
    return {"first_fifth": first, **rest} | memory, missed
