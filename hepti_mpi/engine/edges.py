"""Measure what rank 0 does around the layers of a batch. Knows models and the clock; no kernel, no other rank."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hepti_mpi.cluster.profile import Edges
from hepti_mpi.models.blocks import Norm, plain
from hepti_mpi.models.inputs.requests import Request, end_to_end
from hepti_mpi.models.spec import ModelSpec, outer_weights
from hepti_mpi.models.steps import LayerNorm, Lookup, Normalize, Step
from hepti_mpi.models.tasks.heads import apply_head, embed

ROWS, REQUESTS, WORDS, CALLS = 128, 32, 1000, 15  # of a batch that only rank 0 handles


def edges_of(hidden: int) -> Edges:
    """Return what a batch takes around its layers of `hidden` numbers in a row, told from batches of sentences that differ in rows and in
    number."""
    front: list[Step] = [Lookup(by, by, size, hidden) for by, size in (("ids", WORDS), ("types", 2), ("positions", ROWS))]
    front.append(LayerNorm("norm", hidden, 1e-12))
    layer = plain(hidden, 1, 1, "gelu", Norm(hidden, 1e-12), first=False)
    like = ModelSpec("bert", "like", 1, hidden, 1, 1, ROWS, "tokens", "sentence", (layer,), options={"pooling": "mean"})
    like = replace(like, front=tuple(front), back=(Normalize("normalize"),))
    weights = {one.name: np.full(one.shape, 0.01, np.float32) for one in outer_weights(like)}
    values, square = np.full((ROWS, hidden), 0.01, np.float32), np.full((hidden, hidden), 0.01, np.float32)

    def batch(requests: int, rows: int) -> Callable[[], object]:
        places = np.arange(rows)
        arrays = {"ids": places * 7 % WORDS, "types": places * 0, "positions": places}
        every = [Request(index, "", arrays, places, rows) for index in range(requests)]
        space = np.empty((requests * rows, hidden), np.float32)

        def call() -> None:
            np.copyto(space, embed(like, weights, end_to_end(every)))
            apply_head(like, weights, {}, space, every, False)

        return call

    least, longer, more, product = _quick(batch(1, 1), batch(1, ROWS), batch(REQUESTS, 1), lambda: values @ square)
    beyond = longer - least if longer > least else longer  # a machine with much other work tells them apart no more: all of it at most
    element = beyond / ((ROWS - 1) * hidden)
    request = max((more - least) / (REQUESTS - 1) - hidden * element, 0.0)
    mac = product / (ROWS * hidden * hidden)
    return Edges(element, mac, request, max(least - request - hidden * element, 0.0))


def _quick(*calls: Callable[[], object]) -> list[float]:
    """Return the seconds of each call, of several in turns the lower quartile: what disturbs a moment disturbs all of them. Emulated boards
    do this as fast as this machine does."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(CALLS):
        for call, found in zip(calls, times):
            begin = time.perf_counter()
            call()
            found.append(time.perf_counter() - begin)
    return [sorted(found)[len(found) // 4] for found in times]
