"""A batch and its results as what letters and messages hold: facts, which JSON can say, and few arrays, however many requests there are.
Pure: knows requests and results; knows no rank and no socket.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.models.tasks.heads import Result

Arrays = dict[str, np.ndarray]
IDS = "ids"  # of what a request was embedded from, all that a head reads


def packed(requests: Sequence[Request], embedded: bool = False) -> tuple[dict[str, Any], Arrays]:
    """Return a batch, without texts; `embedded`: without what only the embedding reads."""
    names = [name for name in requests[0].arrays if not embedded or name == IDS]
    arrays = {f"in.{name}": np.concatenate([request.arrays[name] for request in requests]) for name in names}
    arrays["keep"] = np.concatenate([request.keep for request in requests])
    return {"requests": [[one.index, one.origin, one.width, one.rows, one.text is not None] for one in requests]}, arrays


def unpacked(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Request]:
    """Return the requests of a batch, as far as embedding and head read them: of a text, that there was one."""
    inputs = {name.removeprefix("in."): values for name, values in arrays.items() if name.startswith("in.")}
    found, first = [], 0
    for index, origin, width, rows, is_text in facts["requests"]:
        own = slice(first, first := first + rows)
        taken = {name: values[own] for name, values in inputs.items()}
        found.append(Request(index, origin, taken, arrays["keep"][own], width, "" if is_text else None))
    return found


def packed_results(results: Sequence[Result]) -> tuple[dict[str, Any], Arrays]:
    """Return the results of a batch, in the order of its requests."""
    shapes: dict[str, list[tuple[int, list[int]]]] = {}  # of each name, whose results have it, and of what shape
    parts: dict[str, list[np.ndarray]] = {}
    for number, result in enumerate(results):
        for name, values in result.items():
            shapes.setdefault(name, []).append((number, list(values.shape)))
            parts.setdefault(name, []).append(values.reshape(-1))
    return {"count": len(results), "shapes": shapes}, {name: np.concatenate(own) for name, own in parts.items()}


def unpacked_results(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Result]:
    """Return the results of a batch."""
    found: list[Result] = [{} for _ in range(facts["count"])]
    for name, shapes in facts["shapes"].items():
        ends = accumulate(prod(shape) for _, shape in shapes)
        for (number, shape), end in zip(shapes, ends):
            found[number][name] = arrays[name][end - prod(shape) : end].reshape(shape)
    return found
