"""What is said of any operation: the values it reads and writes, its weights, what it needs and gives, and how much work it is.

Knows no operation by name; knows no time, rank, file or ONNX.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from hepti_mpi.models.blocks import Weight

Roles = Mapping[str, tuple[Weight, str | None]]  # what a weight is to an operation: the weight and the axis that it is divided along


class OpWork(NamedTuple):
    """The work of one operation: `weights` of matrices by which each of its rows is multiplied, and, of all rows, `attention`
    multiply-adds and the elements that it lays out (`arranged`), `elements` of norms and residual sums, `activations`, `casts`.
    Numbers, or arrays of one per rank."""

    weights: Any = 0
    attention: Any = 0
    arranged: Any = 0
    elements: Any = 0
    activations: Any = 0
    casts: Any = 0


@dataclass(frozen=True)
class Share:
    """What a rank does an operation on. `rows`: of the step; `pairs`: of a query and a key that these rows attend to where they attend to
    all of their request; `heads`, `columns`: the own ones; `kv_heads`: of K and V, that its heads read; `attending`: its heads and those
    that pad them where it has a part of a group; `laid`: rows as attention lays them out, requests as long as the longest. Numbers, or
    arrays of one per rank."""

    rows: Any
    pairs: Any
    heads: Any
    columns: Any
    kv_heads: Any = None
    attending: Any = None
    laid: Any = None

    def __post_init__(self) -> None:
        for what in ("kv_heads", "attending"):  # as many as `heads` where each reads one of its own
            if getattr(self, what) is None:
                object.__setattr__(self, what, self.heads)
        if self.laid is None:  # requests of one length
            object.__setattr__(self, "laid", self.rows)


@dataclass(frozen=True)
class Form:
    """What a value is like, apart from its rows. `axis`: "heads" where it has the columns of the own heads; `dtype`: of its numbers;
    `term`: whether it must be summed over the ranks."""

    axis: str | None = None
    dtype: str = "float32"
    term: bool = False


@dataclass(frozen=True)
class Op(ABC):
    """One operation inside a Compute: of layer `layer`, or -1 where it belongs to none."""

    layer: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    axis: str | None = field(default=None, kw_only=True)
    everywhere: ClassVar[bool] = False  # whether ranks without rows of their own do it too, on the rows that all have

    def weights(self) -> Roles:
        """Return the weights that it needs, by what each is to it."""
        return {}

    def products(self) -> tuple[tuple[Weight, ...], ...]:
        """Return the matrices of products, those together that read the same rows; the first of them read the first of `reads`."""
        every = tuple(weight for weight, _ in self.weights().values() if weight.inner is not None)
        return (every,) if every else ()

    def needs(self) -> Form:
        """Return what the values are like that it reads."""
        return Form()

    def gives(self) -> Form:
        """Return what the values are like that it writes."""
        return Form()

    def reads_as(self) -> tuple[Form, ...]:
        """Return what each value is like that it reads."""
        return (self.needs(),) * len(self.reads)

    def writes_as(self) -> tuple[Form, ...]:
        """Return what each value is like that it writes."""
        return (self.gives(),) * len(self.writes)

    @abstractmethod
    def widths(self) -> tuple[int, ...]:
        """Return the numbers in a row of each value that it writes, of all heads."""

    def whole(self) -> tuple[str, ...]:
        """Return those of its reads of which it needs the rows of all tiles."""
        return ()

    @abstractmethod
    def work(self, share: Share) -> OpWork:
        """Return how much work it is."""

    def sort(self) -> tuple[object, ...]:
        """Return what it has in common with the operations that are as much work."""
        left_out = ("layer", "reads", "writes", "name")
        return type(self), len(self.reads), *(value for name, value in vars(self).items() if name not in left_out)

    @property
    def label(self) -> str:
        """What people read of it."""
        return "_".join((type(self).__name__.lower(), *([self.axis] if self.axis else [])))
