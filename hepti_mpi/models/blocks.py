"""What a layer is made of: attention, MLP and norms, each with its sizes and its weights. Pure.

Knows neither the layer's number nor what the model is called: layers that are alike have equal blocks. Knows no rank and no plan.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.formats import F32, Format
from hepti_mpi.wording import counted

KINDS = ("attention", "mlp")  # the blocks of a layer, in the order in which they are computed
DIVIDED = ("heads", "kv_heads", "columns")  # axes that ranks divide among themselves


@dataclass(frozen=True)
class Weight:
    """One tensor of the store.

    `name`: its name in the store, with `{}` for the layer number when it belongs to a layer.
    `part`: "embedding", "attention", "mlp", "norm" or "head"; says which ranks need it.
    `axes`: what its dimensions are, the first of them one of DIVIDED where ranks divide it along that one. Of "kv_heads" a rank has those
    that its "heads" read, so that one may be on several.
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
    """The norm of rows of `width` numbers. `kind`: "layer" (LayerNorm) or "rms" (RMSNorm, which has no bias).

    A family whose norm multiplies by 1 + weight (Gemma) adds the 1 when it is imported.
    """

    width: int
    eps: float
    kind: str = "layer"
    bias: bool = True

    def weights(self, name: str) -> dict[str, Weight]:
        """Return the weights of the norm `name` by what each is to it."""
        parts = ("weight", "bias") if self.bias and self.kind == "layer" else ("weight",)
        return {part: Weight(f"{name}.{part}", "norm", ("hidden",), (self.width,)) for part in parts}


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: pairs of the first numbers of a head are turned by the row's position times the pair's frequency.

    `frequencies`: of each pair, in radians a row, scaled as the family scales them; `interleaved`: pairs are neighbours, else the first
    half of the numbers goes with the second; `factor`: what the turned numbers are multiplied by.
    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, arXiv:2104.09864.
    """

    frequencies: tuple[float, ...]
    interleaved: bool = False
    factor: float = 1.0

    @property
    def dims(self) -> int:
        """Numbers of a head that are turned."""
        return 2 * len(self.frequencies)


def rotary(dims: int, base: float, interleaved: bool = False) -> Rotary:
    """Return rotary positions of `dims` numbers of a head, whose frequencies fall from 1 towards 1 / base."""
    return Rotary(tuple(base ** (-2 * pair / dims) for pair in range(dims // 2)), interleaved)


@dataclass(frozen=True)
class Relative:
    """A learned number per head that is added to scores by how far the key is from the query; all layers share the table.

    `buckets` of distances: half of them, or all where `both_ways` is false, lie behind the query; beyond `distance` all are one.
    Source: Raffel et al., "Exploring the Limits of Transfer Learning", 2020, arXiv:1910.10683, section 2.1.
    """

    buckets: int
    distance: int
    both_ways: bool = True


SHARED = "relative.weight"  # the table of Relative in the store


@dataclass(frozen=True)
class Attention:
    """Self-attention of rows of `hidden` numbers: `heads` heads of `dim` numbers each.

    `kv_heads`: heads of K and V, each read by `group` heads of Q that follow each other; 0: as many as of Q. Ranks divide the heads of Q,
    and have those of K and V that their own read.
    `biases`: which of "qkvo" have one. `causal`: a row attends to itself and those before it only; `window`: to those at most so far
    away only. `q_norm`, `k_norm`: of each head, before `rotary`. `scale`: of the scores, 1 / sqrt(dim) for None; `softcap`: they become
    softcap x tanh(score / softcap), 0: as they are.
    """

    hidden: int
    heads: int
    dim: int
    kv_heads: int = 0
    biases: str = "qkvo"
    causal: bool = False
    window: int | None = None
    rotary: Rotary | None = None
    relative: Relative | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    scale: float | None = None
    softcap: float = 0.0

    @property
    def kv_count(self) -> int:
        """Heads of K, and of V."""
        return self.kv_heads or self.heads

    @property
    def group(self) -> int:
        """Heads of Q that read one of K and V."""
        return self.heads // self.kv_count

    @property
    def width(self) -> int:
        """Numbers in a row of all heads of Q."""
        return self.heads * self.dim

    @property
    def kv_width(self) -> int:
        """Numbers in a row of all heads of K, and of V."""
        return self.kv_count * self.dim

    def width_of(self, matrix: str) -> int:
        """Return the numbers in a row of what one of "qkv" gives."""
        return self.width if matrix == "q" else self.kv_width

    def axis_of(self, matrix: str) -> str:
        """Return the axis along which ranks divide one of "qkvo"."""
        return "kv_heads" if matrix in "kv" and self.group > 1 else "heads"

    @property
    def multiplier(self) -> float:
        """What scores are multiplied by."""
        return self.dim**-0.5 if self.scale is None else self.scale

    @property
    def counts_rows(self) -> bool:
        """Whether it matters how far apart two rows are."""
        return self.causal or self.window is not None or self.rotary is not None or self.relative is not None

    @property
    def plain(self) -> bool:
        """Whether every row attends to all of its request by its scores alone, with as many heads of K and V as of Q."""
        return self.group == 1 and not (self.causal or self.window is not None or self.relative or self.softcap)

    @property
    def piece(self) -> tuple[int, int, int] | None:
        """In a window attention is computed piece by piece: rows before it that a piece attends to, its own rows, and those behind it."""
        if self.window is None:
            return None
        return self.window, max(self.window, 1), 0 if self.causal else self.window

    def head_norm(self, matrix: str) -> Norm | None:
        """Return the norm of each head of what one of "qkv" gives."""
        return {"q": self.q_norm, "k": self.k_norm}.get(matrix)

    def weights(self, name: str) -> dict[str, Weight]:
        """Return the weights of the block `name` by what each is to it, in the order of the store.

        Q, K, V, O are [heads, dim, hidden], so that what a rank holds of each is one contiguous range: O is the transpose of what PyTorch
        stores.
        """
        axes = {m: (self.axis_of(m), "dim", "hidden") for m in "qkvo"}
        shapes = {m: (self.kv_count if m in "kv" else self.heads, self.dim, self.hidden) for m in "qkvo"}
        found = {f"{m}.weight": Weight(f"{name}.{m}.weight", "attention", axes[m], shapes[m], int(m != "o")) for m in "qkvo"}
        found |= {f"{m}.bias": Weight(f"{name}.{m}.bias", "attention", axes[m][:2], shapes[m][:2]) for m in "qkv" if m in self.biases}
        for m in "qk":
            norm = self.head_norm(m)
            found |= {f"{m}.norm.{role}": one for role, one in norm.weights(f"{name}.{m}.norm").items()} if norm else {}
        return found | self.tail(name)

    def tail(self, name: str) -> dict[str, Weight]:
        """Return the bias that is added once to what the block gives, if there is one."""
        return {"o.bias": Weight(f"{name}.o.bias", "norm", ("hidden",), (self.hidden,))} if "o" in self.biases else {}

    def shared(self) -> dict[str, Weight]:
        """Return the weights that it shares with other layers."""
        if self.relative is None:
            return {}
        return {"relative": Weight(SHARED, "attention", ("heads", "buckets"), (self.heads, self.relative.buckets))}


@dataclass(frozen=True)
class Mlp:
    """Two products with `activation` between, from rows of `hidden` numbers to `width` columns and back.

    `gated`: what `gate` gives is activated and multiplied by what `up` gives (GLU). `bias`: whether the products have biases.
    """

    hidden: int
    width: int
    activation: str
    gated: bool = False
    bias: bool = True

    @property
    def inner(self) -> tuple[str, ...]:
        """The matrices from rows to columns."""
        return ("up", "gate") if self.gated else ("up",)

    def weights(self, name: str) -> dict[str, Weight]:
        """Return the weights of the block `name` by what each is to it, in the order of the store.

        All matrices are [width, hidden]: the last is the transpose of what PyTorch stores.
        """
        axes, shape = ("columns", "hidden"), (self.width, self.hidden)
        found = {f"{m}.weight": Weight(f"{name}.{m}.weight", "mlp", axes, shape, int(m != "down")) for m in (*self.inner, "down")}
        found |= {f"{m}.bias": Weight(f"{name}.{m}.bias", "mlp", axes[:1], shape[:1]) for m in self.inner if self.bias}
        return found | self.tail(name)

    def tail(self, name: str) -> dict[str, Weight]:
        """Return the bias that is added once to what the block gives, if there is one."""
        return {"down.bias": Weight(f"{name}.down.bias", "norm", ("hidden",), (self.hidden,))} if self.bias else {}


Norms = tuple[Norm | None, Norm | None]  # one per kind of block


@dataclass(frozen=True)
class Layer:
    """Blocks that each add something to the residual, one after the other.

    Per kind of block, None: there is none: `before`: the norm of what the block reads; `given`: that of what it gives, before it is added
    (Gemma's sandwich); `after`: that of the residual sum behind it. `scaled`: what a block gives is multiplied by a weight, number by
    number, before it is added. `parallel`: both blocks read the same residual, and what they give is added at once; an MLP without a norm
    of its own reads what the attention reads (GPT-NeoX, GPT-J).
    """

    attention: Attention
    mlp: Mlp
    before: Norms = (None, None)
    after: Norms = (None, None)
    given: Norms = (None, None)
    scaled: bool = False
    parallel: bool = False

    def block(self, kind: str) -> Attention | Mlp:
        """Return the block of a kind of KINDS."""
        return self.attention if kind == "attention" else self.mlp

    def norm_before(self, kind: str) -> Norm | None:
        """Return the norm of what a block reads."""
        return self.before[KINDS.index(kind)]

    def norm_after(self, kind: str) -> Norm | None:
        """Return the norm of the residual sum behind a block."""
        return self.after[KINDS.index(kind)]

    def norm_given(self, kind: str) -> Norm | None:
        """Return the norm of what a block gives."""
        return self.given[KINDS.index(kind)]

    @property
    def described(self) -> str:
        """What people read of it."""
        attention, mlp = self.attention, self.mlp
        norms = {"before": self.before, "after": self.after, "inside": self.given}
        said = {
            f"{counted(attention.heads, 'heads')} read {attention.kv_count} of keys and values": attention.group > 1,
            "causal": attention.causal,
            f"a window of {attention.window} rows": attention.window is not None,
            "rotary positions": attention.rotary is not None,
            "relative positions": attention.relative is not None,
            "gated MLP": mlp.gated,
            "parallel blocks": self.parallel,
            "scaled blocks": self.scaled,
        }
        kinds = {norm.kind for some in norms.values() for norm in some if norm}
        where = " and ".join(place for place, some in norms.items() if any(some))
        return ", ".join([f"{' and '.join(sorted(kinds))} norms {where}", *(word for word, there in said.items() if there)])

    def tail(self, name: str, kind: str) -> dict[str, Weight]:
        """Return the weights, by what each is, with which the layer `name` adds what a block gives to the residual."""
        block = f"{name}.{kind}"
        found = dict(zip(("bias",), self.block(kind).tail(block).values()))
        if self.parallel and kind == "mlp":
            found |= zip(("beside",), self.attention.tail(f"{name}.attention").values())
        norm = self.norm_given(kind)
        if norm:
            found |= {f"given.{role}": weight for role, weight in norm.weights(f"{block}.given").items()}
        if self.scaled:
            found["scale"] = Weight(f"{block}.scale", "norm", ("hidden",), (self.block(kind).hidden,))
        return found

    def weights(self, name: str) -> tuple[Weight, ...]:
        """Return the weights of the layer `name` in the order of the store: those that ranks divide come first."""
        found = [weight for kind in KINDS for weight in self.block(kind).weights(f"{name}.{kind}").values()]
        for kind in KINDS:
            norm = self.norm_before(kind) or self.norm_after(kind)
            found += norm.weights(f"{name}.{kind}.norm").values() if norm else ()
        for kind in KINDS:
            found += (weight for role, weight in self.tail(name, kind).items() if role not in ("bias", "beside"))
        return tuple(sorted(found, key=lambda weight: weight.split is None))


def plain(hidden: int, heads: int, ffn: int, activation: str, norm: Norm, first: bool) -> Layer:
    """Return a layer of BERT's kind, with all biases and as many heads of keys as of queries; `first`: norms come before the blocks (ViT).

    Raises ModelError where the heads leave a rest.
    """
    if hidden % heads:
        raise ModelError(f"hidden {hidden} is not a multiple of its {counted(heads, 'heads')}")
    attention, mlp, norms = Attention(hidden, heads, hidden // heads), Mlp(hidden, ffn, activation), (norm, norm)
    return Layer(attention, mlp, before=norms) if first else Layer(attention, mlp, after=norms)


def layer_from_json(data: Mapping[str, Any]) -> Layer:
    """Rebuild a layer from what dataclasses.asdict gives. Raises KeyError or TypeError when something is missing or unknown."""

    def norm(one: Mapping[str, Any] | None) -> Norm | None:
        return None if one is None else Norm(**one)

    attention = dict(data["attention"])
    for key in ("q_norm", "k_norm"):
        attention[key] = norm(attention[key])
    if attention["rotary"] is not None:
        attention["rotary"] = Rotary(**attention["rotary"] | {"frequencies": tuple(attention["rotary"]["frequencies"])})
    if attention["relative"] is not None:
        attention["relative"] = Relative(**attention["relative"])
    norms = {key: (norm(data[key][0]), norm(data[key][1])) for key in ("before", "after", "given")}
    return Layer(**dict(data) | {"attention": Attention(**attention), "mlp": Mlp(**data["mlp"])} | norms)
