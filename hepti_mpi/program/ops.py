"""The operations: one class for each, with all that must be said of it. Pure: knows no time, rank, file or ONNX.

An operation says which values it reads and writes, its weights and the axis that ranks divide them along, what it needs and gives,
and how much work it is. How it is computed is registered for its class: as ONNX nodes in engine/kernels.py, in NumPy in
program/reference.py.

`axis` is what a rank has a part of: "heads" or "columns", its own ones; None, all of them.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hepti_mpi.models import blocks
from hepti_mpi.models.blocks import Weight
from hepti_mpi.program.operation import Form, Op, OpWork, Roles, Share

CASTS = {"float32": 0, "float16": 1, "int8": 3}  # to a type and back, times as long as to float16; int8 is rounded with a scale per block


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

    def products(self) -> tuple[tuple[Weight, ...], ...]:
        ((*wide, last),) = super().products()
        return tuple(wide), (last,)

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
