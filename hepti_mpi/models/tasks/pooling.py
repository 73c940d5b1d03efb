"""From the last hidden states of a request to the one row that a head reads, as sentence-transformers computes it, in NumPy.

Knows the modes of pooling; knows no weight and no file.
Source: sentence-transformers 6.2, sentence_transformer/modules/pooling.py; for the last token of a classifier, which passes over the one
of its padding, transformers 5.23, modeling_layers.py (GenericForSequenceClassification).
"""

from typing import TYPE_CHECKING

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.models.numerics import Array, last_other
from hepti_mpi.models.spec import ModelSpec

if TYPE_CHECKING:
    from hepti_mpi.models.inputs.requests import Request


def pooled_row(spec: ModelSpec, hidden: Array, request: "Request") -> Array:
    """Return [modes * hidden] of the request with these last `hidden` states, float32 [own rows, hidden].

    Raises InputError when nothing but the prompt is left of the text.
    """
    skipped = spec.options.get("prompt_rows", 0) if request.text is not None else 0  # rows of the prompt do not count
    if skipped >= len(hidden):
        raise InputError(f"{request.origin} has no token behind the prompt")
    if "passed_over" in spec.options:
        hidden = hidden[: last_other(request.arrays["ids"], spec.options["passed_over"]) + 1]
    places = request.keep[: len(hidden)] - request.keep[0]  # [own rows]
    rows, places = hidden[skipped:], places[skipped:].astype(np.float32)  # [counting rows, hidden], [counting rows]
    return np.concatenate([pooled(mode, rows, places, 1 + spec.options.get("registers", 0)) for mode in spec.pooling.split("+")])


def pooled(mode: str, rows: Array, places: Array, first: int = 1) -> Array:
    """Return [hidden], made of `rows` [n, hidden] at the `places` [n], float32 from 0; those of a picture's patches begin with `first`."""
    if mode == "patches":
        return np.asarray(rows[first:].mean(axis=0))
    if mode == "cls":
        return rows[0]
    if mode == "lasttoken":
        return rows[-1]
    if mode == "max":
        return np.asarray(rows.max(axis=0))
    if mode == "weightedmean":
        heavy = (places + 1)[:, None]  # [n, 1]
        return np.asarray((rows * heavy).sum(axis=0) / heavy.sum())
    count = np.float32(len(rows))
    return np.asarray(rows.sum(axis=0) / {"mean": count, "mean_sqrt_len": np.sqrt(count)}[mode])
