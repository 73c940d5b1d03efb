"""Messages between the front of a service and rank 0: a head, which is JSON, and arrays. Pure: knows bytes, no socket.

Nothing that is read is executed or unpickled.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.models.tasks.heads import Result
from hepti_mpi.serving import letters

KINDS = ("float32", "float64", "int64", "bool")
MOST_DIMS = 8
Head = dict[str, Any]


def packed(head: Head, arrays: Sequence[np.ndarray] = ()) -> bytes:
    """Return a message."""
    sound = [np.ascontiguousarray(array) for array in arrays]
    told = json.dumps([head, [[str(array.dtype), array.shape] for array in sound]]).encode()
    return b"".join([len(told).to_bytes(4, "little"), told, *(array.tobytes() for array in sound)])


def unpacked(message: bytes) -> tuple[Head, list[np.ndarray]]:
    """Return the head of a message and its arrays. Raises InputError when it is none."""
    try:
        at = 4 + int.from_bytes(message[:4], "little")
        head, described = json.loads(message[4:at])
        arrays = []
        for kind, shape in described:
            if kind not in KINDS or len(shape) > MOST_DIMS or not all(isinstance(side, int) and side >= 0 for side in shape):
                raise ValueError("no array")
            array = np.frombuffer(message, kind, prod(shape), at)
            arrays.append(array.reshape(shape))
            at += array.nbytes
        if not isinstance(head, dict) or at != len(message):
            raise ValueError("another length")
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"a message between the front and rank 0 is damaged: {str(error)[:80]}") from None
    return head, arrays


def asked(requests: Sequence[Request], places: Sequence[int]) -> bytes:
    """Return the message that requests are to be answered; `places` tell them apart. Their texts stay behind: ranks see rows."""
    facts, arrays = letters.packed(requests)
    heads = [[place, f"input {index + 1}", *rest] for place, (index, _, *rest) in zip(places, facts["requests"], strict=True)]
    return packed({"kind": "asked", "requests": heads, "arrays": list(arrays)}, [*arrays.values()])


def requests_of(head: Head, arrays: Sequence[np.ndarray]) -> list[Request]:
    """Return the requests of a message, with their places for indices. Raises InputError when it is damaged."""
    with _sound("requests"):
        return letters.unpacked(head, dict(zip(head["arrays"], arrays, strict=True)))


def answered(places: Sequence[int], results: Sequence[Result], **facts: Any) -> bytes:
    """Return the message that requests were answered, with `facts` about their batch."""
    shapes, arrays = letters.packed_results(results)
    return packed({"kind": "answered", "places": list(places), "results": shapes, "arrays": list(arrays), **facts}, [*arrays.values()])


def results_of(head: Head, arrays: Sequence[np.ndarray]) -> list[tuple[int, Result]]:
    """Return the place and the result of each request that a message answers. Raises InputError when it is damaged."""
    with _sound("answers"):
        results = letters.unpacked_results(head["results"], dict(zip(head["arrays"], arrays, strict=True)))
        return list(zip(head["places"], results, strict=True))


@contextmanager
def _sound(what: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise InputError(f"a message between the front and rank 0 is damaged: {what} lack arrays") from None
