"""What a layer is made of: attention, MLP and norms, each with its sizes and its weights. Pure.

Knows neither the layer's number nor what the model is called: layers that are alike have equal blocks. Knows no rank and no plan.
"""

from dataclasses import dataclass

from hepti_mpi.models.formats import F32, Format

KINDS = ("attention", "mlp")  # the blocks of a layer, in the order in which they are computed
DIVIDED = ("heads", "columns")  # axes that ranks divide among themselves


@dataclass(frozen=True)
class Weight:
    """One tensor of the store.

    `name`: its name in the store, with `{}` for the layer number when it belongs to a layer.
    `part`: "embedding", "attention", "mlp", "norm" or "head"; says which ranks need it.
    `axes`: what its dimensions are, the first of them "heads" or "columns" where ranks divide it along that one.
    `shape`: numbers along each of `axes`.
    `inner`: what a product of rows with it sums over: 1, its last axis; 0, all the others; None where it is no matrix of a product.
    `format`: how its numbers are stored; as the blocks make it, plain (ModelSpec.stored).
    """

    name: str
    part: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    inner: int | None = None
    format: Format = F32

    @property
    def split(self) -> str | None:
        """The axis along which ranks divide it, None when it is held whole."""
        return self.axes[0] if self.axes[0] in DIVIDED else None

    @property
    def bytes(self) -> int:
        return self.format.bytes(self.shape, self.inner or 0)

    @property
    def held(self) -> int:
        """The bytes of it in memory, when it is computed with."""
        return self.format.held(self.shape, self.inner or 0)


@dataclass(frozen=True)
class Norm:
    """LayerNorm of rows of `width` numbers."""

    width: int
    eps: float

    def weights(self, name: str) -> dict[str, Weight]:
        """Return the weights of the norm `name` by what each is to it."""
        return {part: Weight(f"{name}.{part}", "norm", ("hidden",), (self.width,)) for part in ("weight", "bias")}


@dataclass(frozen=True)
class Attention:
    """Self-attention of rows of `hidden` numbers: `heads` heads of `dim` numbers each; Q, K, V and the output have biases."""

    hidden: int
    heads: int
    dim: int

    @property
    def width(self) -> int:
        """Numbers in a row of all heads."""
        return self.heads * self.dim

    def weights(self, name: str) -> dict[str, Weight]:
        """Return the weights of the block `name` by what each is to it, in the order of the store.

        Q, K, V, O are [heads, dim, hidden], so that what a rank holds of each is one contiguous range: O is the transpose of what
        PyTorch stores.
        """
        axes, shape = ("heads", "dim", "hidden"), (self.heads, self.dim, self.hidden)
        found = {f"{m}.weight": Weight(f"{name}.{m}.weight", "attention", axes, shape, int(m != "o")) for m in "qkvo"}
        found |= {f"{m}.bias": Weight(f"{name}.{m}.bias", "attention", axes[:2], shape[:2]) for m in "qkv"}
        return found | {"o.bias": Weight(f"{name}.o.bias", "norm", ("hidden",), (self.hidden,))}  # the tail adds it

    def bias(self, name: str) -> str:
        """Return the name of the bias that is added once to what the block gives."""
        return f"{name}.o.bias"


@dataclass(frozen=True)
class Mlp:
    """Two products with `activation` between, from rows of `hidden` numbers to `width` columns and back; both have biases."""

    hidden: int
    width: int
    activation: str

    def weights(self, name: str) -> dict[str, Weight]:
        """Return the weights of the block `name` by what each is to it, in the order of the store.

        Both matrices are [width, hidden]: the second is the transpose of what PyTorch stores.
        """
        axes, shape = ("columns", "hidden"), (self.width, self.hidden)
        found = {f"{m}.weight": Weight(f"{name}.{m}.weight", "mlp", axes, shape, inner) for m, inner in (("up", 1), ("down", 0))}
        found["up.bias"] = Weight(f"{name}.up.bias", "mlp", axes[:1], shape[:1])
        return found | {"down.bias": Weight(f"{name}.down.bias", "norm", ("hidden",), (self.hidden,))}  # the tail adds it

    def bias(self, name: str) -> str:
        """Return the name of the bias that is added once to what the block gives."""
        return f"{name}.down.bias"


@dataclass(frozen=True)
class Layer:
    """Blocks that each add something to the residual, one after the other.

    `before`, `after`: per kind of block, the norm of what the block reads, and that of the residual sum behind it; None: there is none.
    """

    attention: Attention
    mlp: Mlp
    before: tuple[Norm | None, Norm | None] = (None, None)
    after: tuple[Norm | None, Norm | None] = (None, None)

    def block(self, kind: str) -> Attention | Mlp:
        """Return the block of a kind of KINDS."""
        return self.attention if kind == "attention" else self.mlp

    def norm_before(self, kind: str) -> Norm | None:
        """Return the norm of what a block reads."""
        return self.before[KINDS.index(kind)]

    def norm_after(self, kind: str) -> Norm | None:
        """Return the norm of the residual sum behind a block."""
        return self.after[KINDS.index(kind)]

    def weights(self, name: str) -> tuple[Weight, ...]:
        """Return the weights of the layer `name` in the order of the store: those that ranks divide come first."""
        found = [weight for kind in KINDS for weight in self.block(kind).weights(f"{name}.{kind}").values()]
        for kind in KINDS:
            norm = self.norm_before(kind) or self.norm_after(kind)
            found += norm.weights(f"{name}.{kind}.norm").values() if norm else ()
        return tuple(sorted(found, key=lambda weight: weight.split is None))
