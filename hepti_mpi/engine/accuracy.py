"""What a store's formats cost: its answers for built-in inputs beside those of float32. Knows sessions and a calibration's inputs."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hepti_mpi.engine.alone import last_hidden_state
from hepti_mpi.engine.caching import words_session
from hepti_mpi.models.checkpoints.modelfiles import ModelFiles
from hepti_mpi.models.numerics import Array
from hepti_mpi.models.tasks.heads import apply_head, embed
from hepti_mpi.models.tasks.pooling import pooled_row
from hepti_mpi.program.plan import Plan
from hepti_mpi.weights.calibration import Accuracy, Inputs
from hepti_mpi.weights.outer import OuterWeights
from hepti_mpi.weights.slices import DecodingPart
from hepti_mpi.weights.store import Store

AT_ONCE = 32  # rows whose scores of all words are in memory


def accuracy_of(store: Store, model: ModelFiles, inputs: Inputs, threads: int = 1) -> Accuracy:
    """Return how far the answers of `store`, which was made of `model`, are from those of float32. Raises ModelError and StoreError."""
    spec, right = store.spec, inputs.hidden
    found = last_hidden_state(store, embed(spec, OuterWeights(store), inputs.arrays), inputs.lengths, threads)
    off = np.abs(found - right)
    sizes = len(inputs.requests), len(right), float(off.max()), float(np.median(off)), float(np.sqrt(np.square(right).mean()))
    if spec.generates:
        alike = _cosines(found, right)
        return Accuracy(*sizes, float(alike.min()), float(np.median(alike)), *_of_texts(store, model, inputs, found, threads))
    one, other = (_answers(store, inputs, hidden) for hidden in (found, right))
    alike = np.concatenate([_cosines(*vectors) for vectors in zip(one[0], other[0], strict=True)])
    best = np.concatenate([mine == theirs for mine, theirs in zip(one[1], other[1], strict=True)])
    return Accuracy(*sizes, float(alike.min()), float(np.median(alike)), float(best.mean()) if len(best) else None)


def _cosines(one: Array, other: Array) -> Array:
    """Return the cosines of vectors [n, numbers] with others: [n]."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(axis=1) / np.maximum(lengths, 1e-30))


def _answers(store: Store, inputs: Inputs, hidden: Array) -> tuple[list[Array], list[Array]]:
    """Return of each request its embedding, or the vectors that the head reads, [vectors, numbers], and which labels or words are best."""
    spec, bounds = store.spec, np.cumsum([0, *inputs.lengths])
    results = apply_head(spec, OuterWeights(store), store.files, hidden, inputs.requests, False)
    vectors, best = list[Array](), list[Array]()
    for request, result, first, stop in zip(inputs.requests, results, bounds, bounds[1:], strict=False):
        mine = hidden[first:stop]
        row = result.get("embedding")
        vectors.append(mine if spec.reads_each else row[None] if row is not None else pooled_row(spec, mine, request)[None])
        scores = np.atleast_2d(result.get("logits", np.zeros((0, 2))))
        words = result["mask_ids"][:, 0] if "mask_ids" in result else scores.argmax(axis=1)
        best.append(words if scores.shape[1] > 1 else words[:0])  # one alone is no label
    return vectors, best


def _of_texts(store: Store, model: ModelFiles, inputs: Inputs, found: Array, threads: int) -> list[float | None]:
    """Return the agreement, divergence and perplexities of the words that follow each row of the states `found`."""
    targets = np.full(len(found), -1)
    for stop, request in zip(np.cumsum(inputs.lengths), inputs.requests):
        targets[stop - request.rows : stop - 1] = request.arrays["ids"][1:]
    divergences, equal, lost, exactly = list[Array](), list[Array](), list[Array](), list[Array]()
    for rows, one, other in _scores(store, model, found, inputs.hidden, threads):
        q, p = (values - np.logaddexp.reduce(values, axis=1, keepdims=True) for values in (one, other))  # [rows, words]
        divergences.append((np.exp(p) * (p - q)).sum(axis=1))
        equal.append(q.argmax(axis=1) == p.argmax(axis=1))
        told = np.flatnonzero(targets[rows] >= 0)
        lost.append(-q[told, targets[rows][told]])
        exactly.append(-p[told, targets[rows][told]])
    perplexities = [float(np.exp(np.concatenate(values).mean())) if any(map(len, values)) else None for values in (lost, exactly)]
    return [*(float(np.concatenate(values).mean()) for values in (equal, divergences)), *perplexities]


def _scores(store: Store, model: ModelFiles, found: Array, right: Array, threads: int) -> Iterator[tuple[slice, Array, Array]]:
    """Yield some rows and their logits, float64 [rows, words], of the store, as ranks make them, and of float32."""
    spec = store.spec
    part = DecodingPart(spec, Plan.lone(spec, store.source_hash), 0)
    table, bias = part.words_slices
    exact = _float_weights(model, [piece.name for piece in (table, bias) if piece])
    session = words_session(store, table, bias, "packed", threads)
    for first in range(0, len(found), AT_ONCE):
        rows = slice(first, first + AT_ONCE)
        (one,) = session.run(None, {"x": found[rows]})
        other = right[rows] @ exact[table.name].T + (exact[bias.name] if bias else 0)
        yield rows, _capped(one, part.logit_cap), _capped(other, part.logit_cap)


def _capped(logits: Array, cap: float) -> Array:
    return cap * np.tanh(logits.astype(np.float64) / cap) if cap else logits.astype(np.float64)


def _float_weights(model: ModelFiles, names: Sequence[str]) -> Mapping[str, Array]:
    """Return the float32 values of some of a model's weights, read once more: to keep them would take as much memory as all others."""
    left, found = set(names), dict[str, Array]()
    for name, values in model.weights():
        if name in left:
            found[name] = values
        if found.keys() == left:
            break
    return found
