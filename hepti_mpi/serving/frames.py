"""Messages between the front of a service and rank 0: a head, which is JSON, and arrays. Pure: knows bytes, no socket.

Nothing that is read is executed or unpickled.
"""

import json
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.models.tasks.heads import Result

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
    heads = [
        {"place": place, "origin": f"input {request.index + 1}", "width": request.width, "text": request.text is not None}
        | {"names": sorted(request.arrays)}
        for place, request in zip(places, requests)
    ]
    arrays = [array for request in requests for array in (request.keep, *(request.arrays[name] for name in sorted(request.arrays)))]
    return packed({"kind": "asked", "requests": heads}, arrays)


def requests_of(head: Head, arrays: Sequence[np.ndarray]) -> list[Request]:
    """Return the requests of a message, with their places for indices. Raises InputError when it is damaged."""
    left, found = iter(arrays), []
    try:
        for one in head["requests"]:
            keep = next(left)
            own = {name: next(left) for name in one["names"]}
            found.append(Request(one["place"], one["origin"], own, keep, one["width"], "" if one["text"] else None))
    except (KeyError, TypeError, StopIteration):
        raise InputError("a message between the front and rank 0 is damaged: requests lack arrays") from None
    return found


def answered(places: Sequence[int], results: Sequence[Result], **facts: Any) -> bytes:
    """Return the message that requests were answered, with `facts` about their batch."""
    names = [sorted(result) for result in results]
    arrays = [result[name] for result, own in zip(results, names) for name in own]
    return packed({"kind": "answered", "places": list(places), "names": names, **facts}, arrays)


def results_of(head: Head, arrays: Sequence[np.ndarray]) -> list[tuple[int, Result]]:
    """Return the place and the result of each request that a message answers. Raises InputError when it is damaged."""
    left = iter(arrays)
    try:
        return [(place, {name: next(left) for name in own}) for place, own in zip(head["places"], head["names"], strict=True)]
    except (KeyError, TypeError, ValueError, StopIteration):
        raise InputError("a message between the front and rank 0 is damaged: answers lack arrays") from None
