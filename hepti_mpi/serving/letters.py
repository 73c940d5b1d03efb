"""A batch and its results as what letters hold: facts and arrays. Pure: knows requests and results; knows no rank."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.models.tasks.heads import Result

Arrays = dict[str, np.ndarray]
IDS = "ids"  # of what a request was embedded from, all that a head reads


def packed(requests: Sequence[Request], embedded: bool = False) -> tuple[dict[str, Any], Arrays]:
    """Return a batch; `embedded`: without what only the embedding reads."""
    names = [name for name in requests[0].arrays if not embedded or name == IDS]
    arrays = {f"in.{name}": np.concatenate([request.arrays[name] for request in requests]) for name in names}
    arrays["keep"] = np.concatenate([request.keep for request in requests])
    return {"requests": [[one.index, one.origin, one.width, one.rows] for one in requests]}, arrays


def unpacked(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Request]:
    """Return the requests of a batch, as far as embedding and head read them."""
    found, first = [], 0
    for index, origin, width, rows in facts["requests"]:
        own = {name.removeprefix("in."): values[first : first + rows] for name, values in arrays.items() if name.startswith("in.")}
        found.append(Request(index, origin, own, arrays["keep"][first : first + rows], width))
        first += rows
    return found


def packed_results(results: Sequence[Result]) -> Arrays:
    """Return the results of a batch, in the order of its requests."""
    return {f"{number}.{name}": values for number, result in enumerate(results) for name, values in result.items()}


def unpacked_results(count: int, arrays: Mapping[str, np.ndarray]) -> list[Result]:
    """Return the results of `count` requests."""
    found: list[Result] = [{} for _ in range(count)]
    for key, values in arrays.items():
        number, _, name = key.partition(".")
        found[int(number)][name] = values
    return found
