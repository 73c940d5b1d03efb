"""What comes before and after the layers: embedding, head and the answers for the user, in NumPy.

Knows which rows a head reads and what its numbers mean; what is done with them is said by the model's steps (stepping.py). Knows no
layer, no weight, no rank and no file.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.models.numerics import Array, as_type, sigmoid, softmax
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.models.tasks.pooling import pooled_row
from hepti_mpi.models.tasks.stepping import Weights, apply_steps

if TYPE_CHECKING:
    from hepti_mpi.models.inputs.requests import Request
    from hepti_mpi.models.inputs.tokens import Tokens

TOP = 5
NAMES = {"none": "class_row", "pooler": "pooler_output", "sentence": "embedding"}  # of results that are no logits

DIGITS = range(6, 10)  # which tell a float32 from others: those with less are among the first
LEAST_SIZE, MOST_SIZE = -13, 20  # of numbers, as powers of ten; what they are scaled by is exact then:
POWERS = np.array([float(f"1e{power}") for power in range(23)])

Result = dict[str, np.ndarray]


def embed(spec: ModelSpec, weights: Weights, arrays: Mapping[str, np.ndarray]) -> Array:
    """Return the embedded rows, float32 [rows, hidden]; `arrays` are those of one or several requests, end to end."""
    return apply_steps(spec.front, weights, np.zeros((0, 0), np.float32), arrays)


def apply_head(
    spec: ModelSpec, weights: Weights, files: Mapping[str, bytes], hidden: Array, requests: "Sequence[Request]", full_logits: bool
) -> list[Result]:
    """Return what the head makes of the last hidden state [rows, hidden] of the `requests`, one dict for each, float32.

    Keys by `spec.head`:
    "none": class_row [hidden], the row at position 0. "pooler": pooler_output [hidden]. Neither is there for a request whose mask
    leaves out position 0: no row of it was computed.
    "sequence-classes", "image-classes": logits [labels]. "token-classes": logits [rows, labels].
    "masked-words": mask_positions [m], mask_ids [m, 5] and mask_probabilities [m, 5] of the m masks, most likely first;
    with `full_logits` also logits [rows, vocabulary]. "sentence": embedding [size].
    All are NaN for a request with a row that is not finite.
    """
    if sum(request.rows for request in requests) != len(hidden):
        raise ValueError(f"requests have {sum(request.rows for request in requests)} rows, hidden has {len(hidden)}")
    bounds = np.cumsum([0, *(request.rows for request in requests)])
    pieces = [hidden[start:stop] for start, stop in zip(bounds[:-1], bounds[1:])]  # [own rows, hidden] each
    if spec.head == "masked-words":
        results = fill_masks(spec, weights, mask_number(files), pieces, requests, full_logits)
    else:
        results = [one_head(spec, weights, piece, request) for piece, request in zip(pieces, requests)]
    return [result if np.isfinite(piece).all() else _spoilt(result) for piece, result in zip(pieces, results)]


def _spoilt(result: Result) -> Result:
    """Return what is no answer: a row that is not finite was read by others, also where the head reads none of it."""
    return {name: np.full(values.shape, np.nan, np.float32) for name, values in result.items()}


def one_head(spec: ModelSpec, weights: Weights, hidden: Array, request: "Request") -> Result:
    """Return the result of one request, `hidden` [own rows, hidden], for every head but masked-words."""
    hidden = as_type(hidden, np.float32)
    if spec.reads_each:
        return {"logits": apply_steps(spec.back, weights, hidden)}  # [rows, labels]
    if request.keep[0] and spec.pooling == "cls" and spec.head != "sentence":  # sentence-transformers takes the first that is there
        if spec.head in ("none", "pooler"):
            return {}
        raise InputError(f"{request.origin}: attention_mask leaves out position 0, which the head of this model reads")
    row = apply_steps(spec.back, weights, pooled_row(spec, hidden, request)[None])[0]  # [size]
    return {NAMES.get(spec.head, "logits"): row[: spec.options.get("truncate_dim")]}


def _tokens(files: Mapping[str, bytes]) -> "Tokens":
    """Return the tokenizer, read once: batch after batch asks for it."""
    return _read_tokens(files["tokenizer.json"], files.get("tokenizer_config.json", b"{}"))


@lru_cache(maxsize=2)
def _read_tokens(tokenizer: bytes, config: bytes) -> "Tokens":
    from hepti_mpi.models.inputs.tokens import Tokens

    return Tokens({"tokenizer.json": tokenizer, "tokenizer_config.json": config})


def mask_number(files: Mapping[str, bytes]) -> int | None:
    """Return the token id of the mask, None when the model comes without a tokenizer."""
    return _tokens(files).mask_id if "tokenizer.json" in files else None


def fill_masks(
    spec: ModelSpec, weights: Weights, mask: int | None, pieces: Sequence[Array], requests: "Sequence[Request]", full_logits: bool
) -> list[Result]:
    """Return the most likely words at every mask of every request; `pieces` are [own rows, hidden]."""
    results = []
    for piece, request in zip(pieces, requests):
        masks = np.flatnonzero(request.arrays["ids"] == mask) if mask is not None else np.zeros(0, np.int64)
        rows = piece if full_logits else piece[masks]  # [rows or m, hidden]
        logits = apply_steps(spec.back, weights, rows)  # [rows or m, vocabulary]
        chances = softmax(logits[masks] if full_logits else logits)  # [m, vocabulary]
        best = np.argsort(-chances, axis=1, kind="stable")[:, :TOP]  # [m, 5]
        result = {"mask_positions": request.keep[masks], "mask_ids": best}
        result["mask_probabilities"] = np.take_along_axis(chances, best, axis=1)  # [m, 5]
        results.append(result | ({"logits": logits} if full_logits else {}))
    return results


# ---- answers


def fault(spec: ModelSpec, request: "Request", result: Mapping[str, np.ndarray]) -> str | None:
    """Return why a result is no answer, None where it is one."""
    if not all(np.isfinite(values).all() for values in result.values()):
        return f"{request.origin}: the result is not finite: numbers became too large on the way"
    if spec.head in ("none", "pooler") and request.keep[0]:
        return f"{request.origin}: attention_mask leaves out position 0, which the head of this model reads"
    if spec.head == "masked-words" and not len(result["mask_ids"]) and "logits" not in result:
        return f"{request.origin} holds no mask, so there is no word to fill in; write its tokenizer's mask_token there, such as [MASK]"
    return None


def answers(
    spec: ModelSpec, files: Mapping[str, bytes], requests: "Sequence[Request]", results: Sequence[Mapping[str, np.ndarray]]
) -> list[dict[str, Any]]:
    """Return one JSON-ready record per request.

    Each has "id" (if the input has one), "input" (the text, or where it came from), "truncated" (if it was) and by `spec.head`:
    "class_row" or "pooler_output" (numbers; see `apply_head`), "embedding", "labels" (the five best {"label", "score"}),
    "tokens" ({"token", "label", "score"} per token of the text: those that were put around it are left out, as in transformers'
    pipeline, and labels that mean nothing, such as O, are not), or "masks" ({"position", "tokens": [{"token", "score"}]} per mask).
    """
    tokens = _tokens(files) if spec.head in ("token-classes", "masked-words") and "tokenizer.json" in files else None
    records = []
    for request, result in zip(requests, results):
        record: dict[str, Any] = request.given | ({"truncated": True} if request.truncated else {})
        if spec.head in ("sequence-classes", "image-classes"):
            record["labels"] = best_labels(spec, result["logits"])
        elif spec.head == "token-classes":
            record["tokens"] = token_labels(spec, tokens, request, result["logits"])
        elif spec.head == "masked-words":
            filled = zip(result["mask_positions"], result["mask_ids"], result["mask_probabilities"])
            record["masks"] = [{"position": int(at), "tokens": scored(tokens, ids, chances)} for at, ids, chances in filled]
        else:
            record |= {key: numbers(result[key]) for key in ("embedding", "pooler_output", "class_row") if key in result}
        records.append(record)
    return records


def numbers(values: np.ndarray) -> list[float]:
    """Return floats with the shortest decimals that give the same float32 again."""
    given = np.asarray(values, np.float32)
    exact = given.astype(np.float64)
    size = np.floor(np.log10(np.abs(exact), where=exact != 0, out=np.zeros_like(exact)))
    found, open_ = exact.copy(), (size >= LEAST_SIZE) & (size <= MOST_SIZE)
    strange, size = np.flatnonzero(~open_), np.where(open_, size, 0).astype(int)
    for digits in DIGITS:
        up, down = (POWERS[np.clip(sign * (digits - 1 - size), 0, len(POWERS) - 1)] for sign in (1, -1))
        short = np.rint(exact * up / down) * down / up
        same = open_ & (short.astype(np.float32) == given)
        found[same] = short[same]
        open_ &= ~same
        if not open_.any():
            break
    for place in strange:  # powers of ten are not exact any more
        found[place] = float(str(given[place]))
    return found.tolist()


def piece(tokens: "Tokens | None", number: int) -> str:
    """Return the text of a token, its number without a tokenizer."""
    return str(number) if tokens is None else tokens.piece(number)


def scored(tokens: "Tokens | None", ids: np.ndarray, chances: np.ndarray) -> list[dict[str, Any]]:
    """Return {"token", "score"} for `ids` and `chances`, both [n]."""
    return [{"token": piece(tokens, int(number)), "score": score} for number, score in zip(ids, numbers(chances))]


def scores_of(spec: ModelSpec, logits: Array) -> Array:
    """Return the scores of logits [..., labels], of the same shape."""
    functions: dict[str, Callable[[Array], Array]] = {"softmax": softmax, "sigmoid": sigmoid, "tanh": np.tanh, "none": np.asarray}
    return functions[spec.options.get("scores", "softmax")](logits)


def best_labels(spec: ModelSpec, logits: Array) -> list[dict[str, Any]]:
    """Return the five best {"label", "score"} for `logits` [labels]."""
    scores = scores_of(spec, logits)
    best = np.argsort(-scores, kind="stable")[:TOP]
    return [{"label": spec.labels[i], "score": score} for i, score in zip(best, numbers(scores[best]))]


def token_labels(spec: ModelSpec, tokens: "Tokens | None", request: "Request", logits: Array) -> list[dict[str, Any]]:
    """Return {"token", "label", "score"} of every token of the text, for `logits` [rows, labels]; of an unknown one what the text says."""
    scores = scores_of(spec, logits)
    best = scores.argmax(axis=1)  # [rows]
    of_text = np.arange(len(best)) if request.added is None else np.flatnonzero(~request.added)
    pieces = [request.unknown.get(int(row)) or piece(tokens, int(request.arrays["ids"][row])) for row in of_text]
    found = zip(pieces, best[of_text], numbers(scores[of_text, best[of_text]]))
    return [{"token": text, "label": spec.labels[label], "score": score} for text, label, score in found]
