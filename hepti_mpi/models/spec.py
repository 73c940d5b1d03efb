"""What a model is: its sizes, its options and the weights it is made of. Knows no file format, no rank and no plan."""

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import lcm, prod
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.blocks import Layer, Norm, Weight, layer_from_json
from hepti_mpi.models.formats import F16, F32, NARROWER, Q8, Q8_BLOCKS, Q8_WIDE, Blocks, Format, format_named
from hepti_mpi.models.numerics import ACTIVATIONS
from hepti_mpi.models.older import PLAIN, back_of, front_of, heads_of, layers_of
from hepti_mpi.models.steps import Lookup, Step, Words, read_steps
from hepti_mpi.wording import counted

LISTED = ("order", "last")  # what only some models say


@dataclass(frozen=True)
class ModelSpec:
    """The sizes and options that fix what is computed.

    `heads`, `ffn`: the query heads of an attention and the columns of an MLP, which ranks divide, the same in all layers.
    `kinds`: the few layers that differ; `order`: per layer which of them it is, and maybe of more layers than there are, or () where there
    is one kind; `last`: the norm behind the last layer.
    `positions`: the largest number of rows of one request.
    `column_granule`: ranks divide the `ffn` columns in multiples of this; checksums are per head and per column granule.
    `embedding`: what a request is made of: "tokens" or "patches".
    `head`: what is answered: "none", "pooler", "sequence-classes", "token-classes", "masked-words", "image-classes", "sentence"
    or "next-token".
    `formats`: how products' weights are stored, by their names or beginnings of names up to a dot, "" for all: the longest one decides;
    float32 where none is given.
    `front`, `back`: the steps that lead to what the first layer reads, and from the rows that the head reads to its answer.
    `options`: plain values for what is done with inputs and answers (image_size, patch_size, channels, pooling, scores, prompt, ...).
    """

    family: str
    name: str
    layers: int
    hidden: int
    heads: int
    ffn: int
    positions: int
    embedding: str
    head: str
    kinds: tuple[Layer, ...]
    labels: tuple[str | int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)
    front: tuple[Step, ...] = ()
    back: tuple[Step, ...] = ()
    order: tuple[int, ...] = ()
    last: Norm | None = None

    def __post_init__(self) -> None:
        for what in ("layers", "hidden", "heads", "ffn", "positions"):
            value = getattr(self, what)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 24:
                raise ModelError(f"model {self.name}: {what} is {value!r}, expected a positive integer")
        if not isinstance(self.options, dict):
            raise ModelError(f"model {self.name}: options is {self.options!r:.60}, expected an object")
        for name in self.formats.values():
            format_named(name)
        self._check_kinds()

    def _check_kinds(self) -> None:
        """Raise ModelError unless the layers that are listed fit the sizes that all have in common."""
        listed = self.order or (0,) * self.layers * (len(self.kinds) == 1)
        if len(listed) < self.layers or not set(listed) <= set(range(len(self.kinds))):
            raise ModelError(f"model {self.name}: it has {counted(self.layers, 'layers')}, {len(listed)} are described")
        for layer in self.kinds:
            attention, mlp = layer.attention, layer.mlp
            sizes = {"hidden": self.hidden, "heads": self.heads, "ffn": self.ffn}
            found = {"hidden": attention.hidden, "heads": attention.heads, "ffn": mlp.width}
            if found != sizes or mlp.hidden != self.hidden or attention.heads % attention.kv_count or attention.dim < 1:
                raise ModelError(f"model {self.name}: a layer of it has {found}, the model {sizes}")
            if attention.kv_count != self.kv_heads:
                heads = f"{attention.kv_count} and {counted(self.kv_heads, 'heads')}"
                raise ModelError(f"model {self.name}: layers with {heads} of keys and values are not supported")
            if layer.parallel and (layer.scaled or any((*layer.given, *layer.after))):
                raise ModelError(f"model {self.name}: parallel blocks with norms or scales of what they give are not supported")
            if mlp.activation not in ACTIVATIONS:
                raise ModelError(f"model {self.name}: activation {mlp.activation!r} is not supported; supported: {', '.join(ACTIVATIONS)}")

    @property
    def head_dim(self) -> int:
        """Numbers in a row of a head."""
        return self.layer(0).attention.dim

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.kinds[0].attention.kv_count

    @property
    def group(self) -> int:
        """Query heads that read one head of keys and values."""
        return self.kinds[0].attention.group

    @cached_property
    def head_granule(self) -> int:
        """Ranks divide the query heads in multiples of this: where texts are written, as few as the formats allow; else those that read one
        head of keys and values stay together."""
        if not self.generates:
            return self.group
        every = (weight for number in range(self.layers) for weight in layer_weights(self, number)) if self.formats else ()
        return lcm(1, *{weight.format.granule(weight.shape, 0) for weight in every if weight.split == "heads" and weight.inner == 0})

    @cached_property
    def column_granule(self) -> int:
        every = (weight for number in range(self.layers) for weight in layer_weights(self, number)) if self.formats else ()
        blocks = {weight.format.granule(weight.shape, 0) for weight in every if weight.split == "columns" and weight.inner == 0}
        granule = 1
        while granule < 16 and granule * 2 * 64 <= self.ffn:
            granule *= 2
        return lcm(granule, *blocks)

    @cached_property
    def product_formats(self) -> dict[str, float]:
        """The formats of the layers' matrices by name, and the part of all their numbers that is in each."""
        found: dict[str, float] = {}
        for number in range(self.layers if self.formats else 1):
            for weight in layer_weights(self, number):
                if weight.inner is not None:
                    found[weight.format.name] = found.get(weight.format.name, 0) + prod(weight.shape)
        whole = sum(found.values())
        return {name: found[name] / whole for name in sorted(found)}

    @cached_property
    def known_weights(self) -> dict[int, tuple[Weight, ...]]:
        """What layer_weights() of each layer has returned: a planner asks for those of all layers again and again."""
        return {}

    @cached_property
    def bytes_of_layer(self) -> int:
        """The bytes that a layer's weights take in memory, as a rule."""
        return sum(layer_bytes(self).values())

    def numbers(self, by: str) -> int:
        """Return how many different numbers there are of a kind that rows are looked up by, such as "ids"; 0: the model has none."""
        return next((step.size for step in self.front if isinstance(step, Lookup) and step.by == by), 0)

    @property
    def generates(self) -> bool:
        """Whether the head tells what comes next, so that texts grow token by token."""
        return self.head == "next-token"

    @property
    def words(self) -> Words:
        """What makes logits of words from rows, in a model that has them."""
        (found,) = (step for step in self.back if isinstance(step, Words))
        return found

    @property
    def reads_each(self) -> bool:
        """Whether the head answers for rows one by one; else it reads one row that is made of them, as `pooling` says."""
        return self.head in ("token-classes", "masked-words")

    @property
    def pooling(self) -> str:
        """How the one row is made that the head reads: a mode, or several joined by "+", see tasks/pooling.py."""
        return str(self.options.get("pooling", "cls"))

    def layer(self, number: int) -> Layer:
        """Return what layer `number` is."""
        if not 0 <= number < self.layers:
            raise IndexError(f"layer {number} of {self.layers}")
        return self.kinds[self.order[number] if self.order else 0]

    def each(self) -> Iterator[Layer]:
        """Yield what the layers are, the first one first."""
        return map(self.layer, range(self.layers))

    def attended(self, number: int) -> Norm | None:
        """Return the norm whose result the attention of layer `number` reads, None where it reads a sum, or what is embedded."""
        before = self.layer(number).norm_before("attention")
        return before or (self.layer(number - 1).norm_after("mlp") if number else None)

    def stored(self, weight: Weight) -> Weight:
        """Return a weight, under its full name, with the format in which it is stored. Raises ModelError where ranks could not cut it."""
        name, found = weight.name, None
        if weight.axes[0] == "words" and name in self.formats:  # a table that rows are multiplied by
            weight = replace(weight, inner=1)
        while weight.inner is not None and self.formats:
            found = self.formats.get(name)
            if found is not None or not name:
                break
            name = name.rpartition(".")[0]
        kind = weight.format if found is None else format_named(found)
        if weight.split == "heads" and weight.inner == 0 and self.group % kind.granule(weight.shape, 0):
            assert isinstance(kind, Blocks)
            why = f"ranks divide its heads of {self.group * weight.shape[1]}, no multiple of {kind.block}"
            raise ModelError(f"{weight.name} cannot be {kind.name}: {why}")
        return weight if weight.format == kind else replace(weight, format=kind)

    def to_json(self) -> dict[str, Any]:
        data = asdict(self) | {"labels": list(self.labels)}
        return {key: value for key, value in data.items() if value or key not in LISTED}

    @classmethod
    def from_json(cls, data: Any) -> "ModelSpec":
        """Rebuild a spec. Raises ModelError when a key is missing, unknown or of the wrong kind."""
        try:
            steps = {key: read_steps(data[key]) if key in data else of(data) for key, of in (("front", front_of), ("back", back_of))}
            listed: dict[str, Any] = {"kinds": tuple(map(layer_from_json, data["kinds"]))} if data.get("kinds") else layers_of(data)
            listed |= {"order": tuple(data.get("order", ()))}
            listed |= {"last": Norm(**data["last"])} if data.get("last") is not None else {}
            listed |= {"heads": heads_of(data["heads"], listed["kinds"][0])}
            known = {key: value for key, value in data.items() if key not in PLAIN}
            return cls(**(known | steps | listed | {"labels": tuple(data["labels"])}))
        except (TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError) as error:
            raise ModelError(f"model description is damaged: {error}") from None


def layer_weights(spec: ModelSpec, number: int) -> tuple[Weight, ...]:
    """Return the weights of layer `number` under their full names, in the order of the store."""
    if number not in spec.known_weights:
        spec.known_weights[number] = tuple(map(spec.stored, spec.layer(number).weights(f"layers.{number}")))
    return spec.known_weights[number]


def layer_bytes(spec: ModelSpec, paged: Collection[Format] = ()) -> dict[str | None, int]:
    """Return the bytes that a layer's weights take in memory by the axis along which ranks divide them; None: those that are held whole.

    Where layers differ, or are stored in different formats, the mean of all. `paged`: formats in which what ranks divide stays in a file's
    pages, which the system can evict."""
    alike = not spec.formats and len(spec.kinds) < 2
    numbers, result = range(1 if alike else spec.layers), dict[str | None, int]({"heads": 0, "columns": 0, None: 0})
    for number in numbers:
        for weight in layer_weights(spec, number):
            if not (weight.split and weight.format in paged):
                result["heads" if weight.split == "kv_heads" else weight.split] += weight.held
    return {axis: -(-total // len(numbers)) for axis, total in result.items()}


def kv_bytes(spec: ModelSpec, paged: Collection[Format] = ()) -> int:
    """Return those bytes of a layer, as layer_bytes has them, that belong to heads of keys and values which several query heads read."""
    numbers = range(spec.layers if spec.formats or len(spec.kinds) > 1 else 1)
    every = (weight for number in numbers for weight in layer_weights(spec, number) if weight.split == "kv_heads")
    return -(-sum(weight.held for weight in every if weight.format not in paged) // len(numbers))


def shared_weights(spec: ModelSpec) -> tuple[Weight, ...]:
    """Return the weights that several layers share, each once."""
    return tuple(dict.fromkeys(weight for layer in dict.fromkeys(spec.each()) for weight in layer.attention.shared().values()))


def reduced(spec: ModelSpec, name: str, head: str | None = None) -> ModelSpec:
    """Return the spec of the model with all matrices in a format; narrower blocks, or 8 bits, where ranks could not cut one that is stored
    so, and 8 bits where they are words that texts are written in, all of which every token is compared with: fewer bits cost it more
    there than elsewhere; or the format `head`, where one is given. Raises ModelError, also where a head is given and there are no words."""
    kind = format_named(name)
    tables = [step.table for step in spec.back if isinstance(step, Words)] if spec.generates else []
    if head is not None:
        return _with_head(spec, kind, format_named(head), tables)
    if kind is F32:
        return spec
    every = [weight for number in range(spec.layers) for weight in layer_weights(spec, number)]
    cut = {weight.name: _cut(weight, kind, spec.group) for weight in every if weight.split == "heads" and weight.inner == 0}
    wide = isinstance(kind, Blocks) and kind.block == Q8_WIDE.block
    words = dict.fromkeys(tables, name if kind is F16 else (Q8_WIDE if wide else Q8_BLOCKS).name)
    return replace(spec, formats={"": name} | {weight: one.name for weight, one in cut.items() if one is not kind} | words)


def keeping(few: ModelSpec, more: ModelSpec, names: Collection[str]) -> ModelSpec:
    """Return the spec `few`, of a model whose matrices are in a format, but for the layers' weights of these names, which are as in `more`,
    the same model in another one."""
    every = (weight for number in range(more.layers) for weight in layer_weights(more, number))
    return replace(few, formats=few.formats | {weight.name: weight.format.name for weight in every if weight.name in names})


def _with_head(spec: ModelSpec, kind: Format, head: Format, tables: list[str]) -> ModelSpec:
    if not tables:
        raise ModelError(f"{spec.family} {spec.name} writes no texts, and its embedding and head stay float32: leave out --head-format")
    layers = {weight: one for weight, one in reduced(spec, kind.name).formats.items() if weight not in tables}
    return replace(spec, formats=layers | (dict.fromkeys(tables, head.name) if head is not F32 else {}))


def _cut(weight: Weight, kind: Format, group: int) -> Format:
    """Return the format like `kind` in which ranks can cut a weight along its sum, at least between groups of so many heads."""
    while group % kind.granule(weight.shape, 0):
        kind = NARROWER.get(kind, Q8)
    return kind


def outer_weights(spec: ModelSpec) -> tuple[Weight, ...]:
    """Return the weights outside the layers: those of the front, the final norm and those of the back."""
    final = spec.last.weights("final.norm").values() if spec.last else ()
    front = (weight for step in spec.front for weight in step.weights("embedding"))
    back = (weight for step in spec.back for weight in step.weights("head"))
    return tuple(map(spec.stored, (*front, *final, *back)))


def named_weights(spec: ModelSpec) -> Iterator[tuple[str, Weight]]:
    """Yield (full name, weight) of every tensor in the order of the store: the outer ones, then layer after layer.

    The weights of a layer are called the same in all of them: with `{}` for its number.
    """
    for weight in outer_weights(spec):
        yield weight.name, weight
    for weight in shared_weights(spec):
        yield weight.name, weight
    for number in range(spec.layers):
        for weight in spec.layer(number).weights("layers.{}"):
            yield weight.name.format(number), weight
