"""What lies before and behind the layers, as data: steps that each make rows of numbers out of rows, with their sizes and weights. Pure.

The front of a model looks rows up in tables, or multiplies patches, and goes on from there; the back (a head) goes on from rows of the
last hidden state. Knows no layer, no family and no arithmetic: that is in tasks/stepping.py, one function per kind.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from hepti_mpi.errors import ModelError
from hepti_mpi.models.blocks import Weight


@dataclass(frozen=True)
class Lookup:
    """Add the rows of the table `name` [size, width] that the numbers `by` of a request choose: "ids", "types" or "positions"."""

    name: str
    by: str
    size: int
    width: int
    kind: str = field(default="lookup", init=False)
    macs: ClassVar[int] = 0

    def weights(self, part: str) -> tuple[Weight, ...]:
        return (Weight(self.name, part, (self.name.rsplit(".", 1)[-1], "hidden"), (self.size, self.width)),)


@dataclass(frozen=True)
class Patches:
    """Multiply patches of `pixels` numbers by the matrix `name` [width, pixels]."""

    name: str
    pixels: int
    width: int
    kind: str = field(default="patches", init=False)

    @property
    def macs(self) -> int:
        return self.pixels * self.width

    def weights(self, part: str) -> tuple[Weight, ...]:
        return (Weight(self.name, part, ("hidden", "pixels"), (self.width, self.pixels)),)


@dataclass(frozen=True)
class LayerNorm:
    """LayerNorm of rows of `width` numbers."""

    name: str
    width: int
    eps: float
    bias: bool = True
    kind: str = field(default="layer_norm", init=False)
    macs: ClassVar[int] = 0

    def weights(self, part: str) -> tuple[Weight, ...]:
        return tuple(Weight(f"{self.name}.{one}", part, ("hidden",), (self.width,)) for one in ("weight", "bias")[: 1 + self.bias])


@dataclass(frozen=True)
class Dense:
    """Multiply rows of `inner` numbers by a matrix [out, inner], add the bias, apply the `activation`; `residual`: and add the row.

    The row is multiplied by a matrix of its own first where `inner` and `out` differ.
    """

    name: str
    inner: int
    out: int
    activation: str = "identity"
    bias: bool = True
    residual: bool = False
    kind: str = field(default="dense", init=False)

    @property
    def macs(self) -> int:
        return self.inner * self.out * (2 if self.residual and self.inner != self.out else 1)

    def weights(self, part: str) -> tuple[Weight, ...]:
        found = [Weight(f"{self.name}.weight", part, ("out", "in"), (self.out, self.inner))]
        if self.bias:
            found.append(Weight(f"{self.name}.bias", part, ("out",), (self.out,)))
        if self.residual and self.inner != self.out:
            found.append(Weight(f"{self.name}.residual.weight", part, ("out", "in"), (self.out, self.inner)))
        return tuple(found)


@dataclass(frozen=True)
class Normalize:
    """Divide each row by its length."""

    name: str
    kind: str = field(default="normalize", init=False)
    macs: ClassVar[int] = 0

    def weights(self, part: str) -> tuple[Weight, ...]:
        return ()


@dataclass(frozen=True)
class Scale:
    """Multiply each row by `factor`."""

    name: str
    factor: float
    kind: str = field(default="scale", init=False)
    macs: ClassVar[int] = 0

    def weights(self, part: str) -> tuple[Weight, ...]:
        return ()


@dataclass(frozen=True)
class Words:
    """Multiply rows of `width` numbers by a table [size, width] of words, add the bias; `tied`: by the table of the embedding."""

    name: str
    size: int
    width: int
    tied: bool
    bias: bool = True
    kind: str = field(default="words", init=False)

    @property
    def table(self) -> str:
        """The name of the table of words."""
        return "embedding.words" if self.tied else f"{self.name}.weight"

    @property
    def macs(self) -> int:
        return self.size * self.width

    @property
    def rows(self) -> Weight:
        """The table of words, as the rows that it gives logits by."""
        return Weight(self.table, "head", ("words", "hidden"), (self.size, self.width))

    def weights(self, part: str) -> tuple[Weight, ...]:
        own = () if self.tied else (replace(self.rows, part=part),)
        return own + ((Weight(f"{self.name}.bias", part, ("words",), (self.size,)),) if self.bias else ())


Step = Lookup | Patches | LayerNorm | Dense | Normalize | Scale | Words
KINDS: dict[str, type[Step]] = {
    "lookup": Lookup,
    "patches": Patches,
    "layer_norm": LayerNorm,
    "dense": Dense,
    "normalize": Normalize,
    "scale": Scale,
    "words": Words,
}


def read_steps(data: Iterable[Mapping[str, Any]]) -> tuple[Step, ...]:
    """Return the steps that a store describes. Raises ModelError for odd ones, TypeError and KeyError for other keys than their own."""
    found = []
    for one in data:
        if one["kind"] not in KINDS:
            raise ModelError(f"model description has a step {one['kind']!r:.60}, which is none of {', '.join(KINDS)}")
        step = KINDS[one["kind"]](**{key: value for key, value in one.items() if key != "kind"})
        for part in fields(step):
            value = getattr(step, part.name)
            if type(value) is not part.type or part.type is int and not 0 < value < 1 << 24:
                raise ModelError(f"model description has a step {step.kind} of {part.name} {value!r:.60}")
        found.append(step)
    return tuple(found)
