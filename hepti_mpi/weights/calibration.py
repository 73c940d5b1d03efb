"""What built-in inputs show of a model while its weights pass, a layer at a time: how large the numbers are that each product reads, and
what float32 answers. Knows operations, their formulas and which formats ask for what; knows no file and no ONNX.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np

from hepti_mpi.errors import InputError, ModelError
from hepti_mpi.models.blocks import Weight
from hepti_mpi.models.checkpoints.modelfiles import ModelFiles
from hepti_mpi.models.formats import Seen
from hepti_mpi.models.inputs.requests import Request, end_to_end, held_out_requests, passage_requests, read_requests
from hepti_mpi.models.reference import widened
from hepti_mpi.models.spec import ModelSpec, outer_weights, shared_weights
from hepti_mpi.models.tasks.heads import embed
from hepti_mpi.models.untrusted import is_number
from hepti_mpi.program import ops
from hepti_mpi.program.build import make_program
from hepti_mpi.program.operation import Op
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.reference import REFERENCES, Where
from hepti_mpi.program.steps import EMBEDDED, RESULT, Sync

MOST_ROWS, WRITING = 256, 1280  # of built-in inputs; where they are texts of a model that writes some
MOST_OTHERS = 800  # rows of inputs that no weight is rounded by: of those that a format may be chosen by, and of those held out
EVEN = 0.6  # alpha: how much of the difference between channels goes from rows into the weights, which rounding costs less than rows
Pass = TypeVar("Pass", bound="Calibration")
Group = dict[str, np.ndarray]  # tensors by their names: those of a layer, or one of the others


@dataclass(frozen=True)
class Inputs:
    """Requests and what the layers end with in float32, [rows of all, hidden]."""

    requests: tuple[Request, ...]
    hidden: np.ndarray

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(request.rows for request in self.requests)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return end_to_end(self.requests)


@dataclass(frozen=True)
class Accuracy:
    """How far a store's answers are from float32's on so many built-in `requests` of so many `rows` in all.

    `largest`, `median`: differences of numbers of the last hidden state, whose root mean square is `usual`; `least_cosine`,
    `median_cosine`: of embeddings, or the vectors that the head reads; `agreement`: in which part of all answers the best label, or the
    likeliest word, is the same. Of the next word in texts, `divergence`: mean of KL(float32 || store), in nats; `perplexity`, and
    `exact_perplexity` in float32. None: the model has no such answers. `against`: where the float32 numbers are those
    that others stood for, which formats these were in.
    """

    requests: int
    rows: int
    largest: float
    median: float
    usual: float
    least_cosine: float
    median_cosine: float
    agreement: float | None = None
    divergence: float | None = None
    perplexity: float | None = None
    exact_perplexity: float | None = None
    against: str | None = field(default=None, kw_only=True)

    @property
    def error(self) -> float:
        """What it is measured by: the divergence where the model writes texts, else by how much the least cosine is below 1."""
        return 1 - self.least_cosine if self.divergence is None else self.divergence


def read_accuracy(data: Mapping[str, Any]) -> Accuracy:
    """Rebuild it. Raises TypeError or ValueError when something is missing or no number."""
    found = Accuracy(**data)
    if not isinstance(found.against, str | None):
        raise ValueError("what it is against is no text")
    missing = {field.name for field in fields(Accuracy) if field.default is None and getattr(found, field.name) is None}
    if not all(is_number(value) for key, value in vars(found).items() if key not in {*missing, "against"}):
        raise ValueError("a value is no number")
    return found


def grouped(weights: Iterator[tuple[str, np.ndarray]]) -> Iterator[Group]:
    """Yield the tensors of each layer together, the others one by one."""
    group, layer = Group(), ""
    for name, values in weights:
        own = ".".join(name.split(".")[:2]) if name.startswith("layers.") else ""
        if group and (own != layer or not own):
            yield group
            group = {}
        group[name], layer = values, own
    if group:
        yield group


class Calibration:
    """The forward pass of a model's built-in inputs, as far as the weights have come that it needs.

    Weights are rounded by what the first ones show. `choosing`: of which a format may be chosen by, too; `held_out`: nothing is decided by.
    """

    def __init__(self, spec: ModelSpec, first: Sequence[Request], choosing: Sequence[Request], held_out: Sequence[Request]) -> None:
        self.spec, self.requests, self.held_out = spec, (*first, *choosing, *held_out), len(held_out)
        self.shown = sum(request.rows for request in first)
        lengths = [request.rows for request in self.requests]
        self.left = deque[Op | Sync]()
        for step in make_program(spec, Plan.lone(spec, "", sum(lengths))):
            self.left += [step] if isinstance(step, Sync) else step.ops
        of, at = np.repeat(np.arange(len(lengths)), lengths), np.concatenate([np.arange(length) for length in lengths])
        self.where = Where(of, of, at, at)
        self.own, self.values = Group(), Group()
        self.embedded = False
        self.wanted = {weight.name for weight in (*outer_weights(spec), *shared_weights(spec)) if weight.part != "head"}

    @classmethod
    def of(cls: type[Pass], model: ModelFiles) -> Pass | None:
        """Return that of a model's built-in inputs, None where it takes none, as a model without a tokenizer."""
        try:
            spec, files = model.spec, model.files
            read = passage_requests(spec, files) if spec.generates else read_requests(spec, files, None)
            others = [request for request in held_out_requests(spec, files) if request.error is None]
        except InputError:
            return None
        first, most = [request for request in read if request.error is None], WRITING if spec.generates else MOST_ROWS
        if not first or len(others) < 2:
            return None
        return cls(spec, fewer(first, most), fewer(others[::2], MOST_OTHERS), fewer(others[1::2], MOST_OTHERS))

    def take(self, group: Group) -> dict[str, Seen]:
        """Go on with these weights; return, by the name of each matrix of a layer, what is known of the products with it.

        Raises ModelError where numbers become too large for float32 on the way: nothing can be rounded by those.
        """
        inner = any(name.startswith("layers.") for name in group)
        self.own |= {name: values for name, values in group.items() if inner or name in self.wanted}
        if not inner:
            return {}
        if not self.embedded:
            self._embed()
        seen = self._advance()
        self.own = {name: values for name, values in self.own.items() if name not in group or values.ndim == 1}
        return seen

    def finished(self) -> tuple[Inputs, Inputs]:
        """Return what came of it when all weights have passed: of the inputs that a format may be chosen by, and of those held out.

        Raises ModelError as `take` does.
        """
        self._advance()
        assert not self.left
        _check(self.values[RESULT], "behind the last layer")
        count = len(self.requests) - self.held_out
        hidden, rows = self.values[RESULT], sum(request.rows for request in self.requests[:count])
        return Inputs(self.requests[:count], hidden[:rows]), Inputs(self.requests[count:], hidden[rows:])

    def _embed(self) -> None:
        self.values[EMBEDDED], self.embedded = embed(self.spec, self.own, end_to_end(self.requests)), True
        self.own = {name: values for name, values in self.own.items() if not name.startswith("embedding.")}

    def _advance(self) -> dict[str, Seen]:
        seen: dict[str, Seen] = {}
        while self.left:
            step = self.left[0]
            if not isinstance(step, Sync):
                names = {role: weight.name for role, (weight, _) in step.weights().items()}
                if not all(name in self.own for name in names.values()):
                    break
                x = self.values[step.reads[0]]
                _check(x, f"in front of {next(iter(names.values()))}" if names else "on the way")
                if step.products():
                    seen |= self._seen(step, {role: self.own[name] for role, name in names.items()}, x[: self.shown])
            self.values |= written(step, self.values, self.own, self.where)  # the next one finds what is not finite
            self.left.popleft()
        return seen

    def _seen(self, step: Op, own: Group, x: np.ndarray) -> dict[str, Seen]:
        """Return what is known of the products of x [rows, K] with the matrices of an operation, whose weights are its `own`."""
        first, *others = step.products()
        channels = self._channels(x, first)
        found = {weight.name: Seen(x, channels) for weight in first}
        if isinstance(step, ops.Mlp):
            ((down,),) = others
            found[down.name] = Seen(widened(step.block, own, x) if self.spec.stored(down).format.follows else None)
        return found

    def _channels(self, x: np.ndarray, weights: Sequence[Weight]) -> np.ndarray:
        """Return by what x [rows, K] is best multiplied before products with all of these weights, [K].

        Source: Xiao et al., SmoothQuant, arXiv:2211.10438, equation 4.
        """
        matrices = [np.moveaxis(self.own[one.name].reshape(-1, one.shape[-1]), one.inner or 0, 1) for one in weights]  # [N, K] each
        heavy = np.max([np.abs(matrix).max(axis=0) for matrix in matrices], axis=0)
        found = _spread(heavy, 1 - EVEN) / _spread(np.abs(x).max(axis=0), EVEN)
        return (found / np.exp(np.log(found).mean())).astype(np.float32)


def written(step: Op | Sync, values: Mapping[str, np.ndarray], own: Group, where: Where) -> Group:
    """Return what a step writes, by name: float32 of all rows. `values`: what is there; `own`: weights by their names."""
    found = [values[name] for name in step.reads]
    if not isinstance(step, Sync):
        weights = {role: own[weight.name] for role, (weight, _) in step.weights().items()}
        with np.errstate(over="ignore", invalid="ignore"):
            found = REFERENCES[type(step)](step, weights, found, where)
    return dict(zip(step.writes, found, strict=True))


def fewer(requests: Sequence[Request], most: int) -> Sequence[Request]:
    """Return the first requests that have at most so many rows in all; at least one."""
    return requests[: max(1, int((np.cumsum([request.rows for request in requests]) <= most).sum()))]


def _check(values: np.ndarray, where: str) -> None:
    """Raise ModelError for numbers that are not finite."""
    if not np.isfinite(values).all():
        why = "numbers become too large for float32 on the way"
        raise ModelError(f"what the model makes of built-in inputs is not finite {where}: {why}, so that no weight can be rounded by them; "
                         "take --format f32")  # fmt: skip


def _spread(largest: np.ndarray, power: float) -> np.ndarray:
    """Return numbers above 0 to a power; those that are next to nothing count as a thousandth of the largest."""
    most = float(largest.max(initial=0)) or 1.0
    return np.asarray(np.maximum(largest, 1e-3 * most, dtype=np.float64) ** power)
