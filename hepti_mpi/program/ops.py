"""The operations: one class for each, with all that must be said of it. Pure: knows no time, rank, file or ONNX.

An operation says which values it reads and writes, its weights and the axis that ranks divide them along, what it needs and gives,
and how much work it is. How it is computed is registered for its class: as ONNX nodes in engine/kernels.py, in NumPy in
program/reference.py.

`axis` is what a rank has a part of: "heads" or "columns", its own ones; None, all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from hepti_mpi.models import blocks
from hepti_mpi.models.blocks import Weight

CASTS = {"float32": 0, "float16": 1, "int8": 3}  # to a type and back, times as long as to float16; int8 is rounded with a scale per block
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


@dataclass(frozen=True)
class Norm(Op):
    """y = norm(x), with the weights `name`."""

    norm: blocks.Norm
    name: str
    everywhere: ClassVar[bool] = True

    def weights(self) -> Roles:
        return {f"norm.{role}": (weight, None) for role, weight in self.norm.weights(self.name).items()}

    def widths(self) -> tuple[int, ...]:
        return (self.norm.width,)

    def work(self, share: Share) -> OpWork:
        return OpWork(elements=share.rows * self.norm.width)


@dataclass(frozen=True)
class AddNorm(Op):
    """What follows the block `kind` of a layer: x = x + what the block gave, with its bias, norm and scale; y = norm(x), with the weights
    `name`. Reads x and p; writes x and y, or y alone; x alone where there is no norm."""

    block: blocks.Layer
    kind: str
    norm: blocks.Norm | None
    name: str
    everywhere: ClassVar[bool] = True

    def weights(self) -> Roles:
        found = self.block.tail(f"layers.{self.layer}", self.kind)
        if self.norm:
            found |= {f"norm.{role}": weight for role, weight in self.norm.weights(self.name).items()}
        return {role: (weight, None) for role, weight in found.items()}

    @property
    def width(self) -> int:
        """Numbers in a row of the residual."""
        return self.block.block(self.kind).hidden

    def widths(self) -> tuple[int, ...]:
        return (self.width,) * len(self.writes)

    def work(self, share: Share) -> OpWork:
        return OpWork(elements=share.rows * self.width * (1 + bool(self.block.norm_given(self.kind))))

    @property
    def label(self) -> str:
        return "add_norm"


@dataclass(frozen=True)
class Join(Op):
    """What two blocks gave, added: p, p [r, width] -> p [r, width]; `term`: of terms."""

    width: int
    term: bool
    everywhere: ClassVar[bool] = True

    def gives(self) -> Form:
        return Form(term=self.term)

    def widths(self) -> tuple[int, ...]:
        return (self.width,)

    def work(self, share: Share) -> OpWork:
        return OpWork(elements=share.rows * self.width)


@dataclass(frozen=True)
class Project(Op):
    """Rows times `matrices`, "qkv", "q" or "kv": y [r, hidden] -> q [r, width], k, v [r, kv width]."""

    block: blocks.Attention
    matrices: str

    def weights(self) -> Roles:
        found = self.block.weights(f"layers.{self.layer}.attention")
        roles = (role for m in self.matrices for role in (f"{m}.weight", f"{m}.bias") if role in found)
        return {role: (found[role], self.axis and found[role].split) for role in roles}

    def gives(self) -> Form:
        return Form(self.axis)

    def widths(self) -> tuple[int, ...]:
        return tuple(map(self.block.width_of, self.matrices))

    def work(self, share: Share) -> OpWork:
        return OpWork(weights=self.block.hidden * sum(_width(self, share, m) for m in self.matrices))

    @property
    def label(self) -> str:
        return "_".join(("project", self.matrices, *([self.axis] if self.axis else [])))


@dataclass(frozen=True)
class _OfHeads(Op):
    """What is done with each head of what some of "qk" gave: [r, width] -> [r, width]."""

    block: blocks.Attention
    matrices: str

    def needs(self) -> Form:
        return Form(self.axis)

    def gives(self) -> Form:
        return Form(self.axis)

    def widths(self) -> tuple[int, ...]:
        return tuple(map(self.block.width_of, self.matrices))

    def elements(self, share: Share) -> Any:
        """Return the numbers in its values."""
        return share.rows * sum(_width(self, share, m) for m in self.matrices)

    @property
    def label(self) -> str:
        return "_".join((type(self).__name__.lower(), self.matrices, *([self.axis] if self.axis else [])))


@dataclass(frozen=True)
class HeadNorm(_OfHeads):
    """The norm of each head."""

    def weights(self) -> Roles:
        found = self.block.weights(f"layers.{self.layer}.attention")
        return {role: (weight, None) for role, weight in found.items() if role.startswith(tuple(f"{m}.norm." for m in self.matrices))}

    def work(self, share: Share) -> OpWork:
        return OpWork(elements=self.elements(share))


@dataclass(frozen=True)
class Rotate(_OfHeads):
    """Heads turned by the positions of their rows."""

    def work(self, share: Share) -> OpWork:
        return OpWork(elements=self.elements(share))


@dataclass(frozen=True)
class Mix(Op):
    """softmax(q k^T) v of the rows of each request: q [r, width], k and v [n, kv width] -> c [r, width]."""

    block: blocks.Attention

    def weights(self) -> Roles:
        return {role: (weight, self.axis) for role, weight in self.block.shared().items()}

    def needs(self) -> Form:
        return Form(self.axis)

    def gives(self) -> Form:
        return Form(self.axis)

    def widths(self) -> tuple[int, ...]:
        return (self.block.width,)

    def whole(self) -> tuple[str, ...]:
        return self.reads[1:]

    def work(self, share: Share) -> OpWork:
        width = share.attending * self.block.dim if self.axis else self.block.width
        before, rows, behind = self.block.piece or (0, 0, 0)
        pairs = np.minimum(share.pairs, share.rows * (before + rows + behind)) if rows else share.pairs
        return OpWork(attention=2.0 * pairs * width, arranged=(share.rows if rows else share.laid) * width)


@dataclass(frozen=True)
class Out(Op):
    """What the heads found, times the output matrix: c [r, width] -> p [r, hidden], a term where heads are divided."""

    block: blocks.Attention

    def weights(self) -> Roles:
        return {"o.weight": (self.block.weights(f"layers.{self.layer}.attention")["o.weight"], self.axis)}

    def needs(self) -> Form:
        return Form(self.axis)

    def gives(self) -> Form:
        return Form(term=self.axis is not None)

    def widths(self) -> tuple[int, ...]:
        return (self.block.hidden,)

    def work(self, share: Share) -> OpWork:
        return OpWork(weights=self.block.hidden * _width(self, share))


@dataclass(frozen=True)
class Mlp(Op):
    """Two products with an activation between, maybe a gate: y [r, hidden] -> p [r, hidden], a term where columns are divided."""

    block: blocks.Mlp

    def weights(self) -> Roles:
        found = self.block.weights(f"layers.{self.layer}.mlp")
        return {role: (weight, self.axis) for role, weight in found.items() if weight.split}

    def gives(self) -> Form:
        return Form(term=self.axis is not None)

    def widths(self) -> tuple[int, ...]:
        return (self.block.hidden,)

    def work(self, share: Share) -> OpWork:
        units = share.columns if self.axis else self.block.width
        weights = (2.0 + self.block.gated) * self.block.hidden * units
        return OpWork(weights=weights, activations=share.rows * units, elements=share.rows * units if self.block.gated else 0)


@dataclass(frozen=True)
class Cast(Op):
    """To `dtype`: "float16" or "int8", in which values travel on a short wire, or "float32", and back. `width`: numbers in a row of all
    `heads`. Where the short one is int8, each value is two there: numbers, and `scales` float32 scales per row of all heads,
    one for each block of columns; scale x number is the value again."""

    width: int
    heads: int
    dtype: str
    scales: int = 0
    everywhere: ClassVar[bool] = True

    @property
    def block(self) -> int:
        """Columns that have a scale in common."""
        return self.width // self.scales

    @property
    def pair(self) -> tuple[Form, Form]:
        """What a value is as int8: numbers and scales."""
        return Form(self.axis, "int8"), Form(self.axis)

    def widths(self) -> tuple[int, ...]:
        if self.dtype == "int8":
            return (self.width, self.scales) * len(self.reads)
        return (self.width,) * len(self.writes)

    def needs(self) -> Form:
        return Form(self.axis, "float32" if self.dtype != "float32" else "int8" if self.scales else "float16")

    def gives(self) -> Form:
        return Form(self.axis, self.dtype)

    def reads_as(self) -> tuple[Form, ...]:
        return self.pair * len(self.writes) if self.needs().dtype == "int8" else super().reads_as()

    def writes_as(self) -> tuple[Form, ...]:
        return self.pair * len(self.reads) if self.dtype == "int8" else super().writes_as()

    def work(self, share: Share) -> OpWork:
        width = share.heads * self.width / self.heads if self.axis else self.width
        values = len(self.reads) // (2 if self.needs().dtype == "int8" else 1)
        return OpWork(casts=share.rows * width * values * CASTS["int8" if self.scales else "float16"])

    @property
    def label(self) -> str:
        what = "from_int8" if self.scales and self.dtype == "float32" else f"to_{self.dtype}"
        return "_".join((what, *([self.axis] if self.axis else [])))


def _width(op: Project | _OfHeads | Mix | Out, share: Share, matrix: str = "q") -> Any:
    """Return the numbers in a row of what `op` computes of one of "qkv"."""
    if not op.axis:
        return op.block.width_of(matrix)
    return (share.kv_heads if matrix in "kv" else share.heads) * op.block.dim
