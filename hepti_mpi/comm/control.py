"""Control data as bytes: a head of fixed size, which says how long the data are and has all of them where they are short, and the rest.

Sizes and values would be two exchanges; nearly all that ranks tell each other before they answer is short. Knows JSON, and nothing of MPI.
"""

import json
from typing import Any

import numpy as np

HEAD_BYTES, SIZE_BYTES = 256, 8
SHORT_BYTES = HEAD_BYTES - SIZE_BYTES  # that are in the head


def head_of(content: bytes) -> np.ndarray:
    """Return the head of JSON: its size in bytes and as many of them as there is room for."""
    head, first = np.zeros(HEAD_BYTES, np.uint8), content[:SHORT_BYTES]
    head[:SIZE_BYTES] = np.array([len(content)], np.int64).view(np.uint8)
    head[SIZE_BYTES : SIZE_BYTES + len(first)] = np.frombuffer(first, np.uint8)
    return head


def rest_of(content: bytes) -> np.ndarray:
    """Return the bytes that are not in the head."""
    return np.frombuffer(content[SHORT_BYTES:], np.uint8)


def left(head: np.ndarray) -> int:
    """Return how many bytes are not in a head."""
    return max(0, _size(head) - SHORT_BYTES)


def value_of(head: np.ndarray, rest: np.ndarray) -> Any:
    """Return what JSON says of which this is the head and the rest.

    >>> [value_of(head_of(text), rest_of(text)) for text in (b"7", json.dumps(["x" * 300]).encode())] == [7, ["x" * 300]]
    True
    """
    return json.loads((head[SIZE_BYTES:].tobytes() + rest.tobytes())[: _size(head)])


def _size(head: np.ndarray) -> int:
    return int(head[:SIZE_BYTES].copy().view(np.int64)[0])
