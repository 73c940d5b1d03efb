"""Clients of a service on a host of the lab, until standard input ends. Each answer is compared with the first one to the same question;
every event is a line of JSON on standard output.

    python tests/lab/asking.py embedded|token PORT
    python tests/lab/asking.py rate PORT LENGTHS.json      # or once for each of these numbers of tokens: prints rows a second
"""

import http.client
import json
import sys
import threading
import time

TEXTS = [[f"the cat sat on the mat near river {number}"] * 20 for number in range(5)]
PROMPTS = [{"prompt": f"w{number} w6 w7", "max_tokens": 90, "temperature": 0.8, "seed": number, "logit_bias": {"2": -100}, "stream": True}
           for number in range(3)]  # fmt: skip
WAIT_SECONDS, CLOSE = 300, 1e-4
CLIENTS, AT_ONCE = 16, 32  # of `rate`, and texts that each asks at once
ended, lock, known = threading.Event(), threading.Lock(), dict[str, object]()


def tell(kind: str, **facts: object) -> None:
    with lock:
        print(json.dumps({"time": time.time(), "kind": kind, **facts}), flush=True)


def differs(name: str, answer: "list[float] | str") -> str:
    """Return how an answer is not what it was the first time, nothing when it is."""
    with lock:
        first = known.setdefault(name, answer)
    if isinstance(answer, str):
        same = next((place for place, (one, other) in enumerate(zip(answer, str(first))) if one != other), "all")
        return "" if answer == first else f"another text after {same} letters"
    assert isinstance(first, list)
    worst = max(abs(one - other) for one, other in zip(answer, first, strict=True))
    return "" if worst < CLOSE else f"off by {worst:.2g}"


def embed(port: int, number: int) -> None:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
    link.request("POST", "/v1/embeddings", json.dumps({"input": TEXTS[number % len(TEXTS)]}))
    response = link.getresponse()
    said = json.loads(response.read())
    link.close()
    if response.status == 429:
        tell("busy")
        time.sleep(1)
        return
    values = [value for one in said["data"] for value in one["embedding"]] if response.status == 200 else []
    why = differs(f"embedding {number % len(TEXTS)}", values) if values else f"status {response.status}: {said}"
    tell("wrong" if why else "embedded", **({"why": why} if why else {}))


def write(port: int, number: int) -> None:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
    link.request("POST", "/v1/completions", json.dumps(PROMPTS[number % len(PROMPTS)]))
    response, text, done = link.getresponse(), "", False
    if response.status == 429:
        tell("busy")
        time.sleep(1)
        return
    for line in response:
        done = done or line == b"data: [DONE]\n"
        if line.startswith(b"data: {"):
            part = json.loads(line[6:])
            if "error" in part:
                tell("wrong", why=part["error"]["message"])
                return
            text += part["choices"][0]["text"]
            tell("token")
    link.close()
    why = differs(f"text {number % len(PROMPTS)}", text) if done else f"status {response.status}, cut off after {len(text)} letters"
    tell("wrong" if why else "written", **({"why": why} if why else {}))


def rate(port: int, lengths: "list[int]") -> float:
    """Return the rows a second of many clients that ask for embeddings of texts of so many tokens, some texts at once each."""
    left = [lengths[first : first + AT_ONCE] for first in range(0, len(lengths), AT_ONCE)][::-1]

    def client() -> None:
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
        while left:
            asked = [[1 + place % 25 for place in range(length)] for length in left.pop()]
            link.request("POST", "/v1/embeddings", json.dumps({"input": asked, "encoding_format": "base64"}))
            response = link.getresponse()
            said = response.read()
            if response.status != 200:
                tell("wrong", why=f"status {response.status}: {said[:300]!r}")
                return
        link.close()

    threads, begin = [threading.Thread(target=client) for _ in range(CLIENTS)], time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(lengths) / (time.monotonic() - begin)


def again_and_again(work: object, port: int, first: int) -> None:
    number = first
    while not ended.is_set():
        try:
            work(port, number)  # type: ignore[operator]
        except (OSError, ValueError, http.client.HTTPException) as error:
            tell("wrong", why=f"{type(error).__name__}: {error}")
            time.sleep(0.5)
        number += 1
        time.sleep(0.05)


def main() -> None:
    if sys.argv[1] == "rate":
        with open(sys.argv[3]) as file:
            tell("rate", rows_per_second=rate(int(sys.argv[2]), json.load(file)))
        return
    work = {"embedded": embed, "token": write}[sys.argv[1]]
    threads = [threading.Thread(target=again_and_again, args=(work, int(sys.argv[2]), first)) for first in range(3)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    ended.set()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
