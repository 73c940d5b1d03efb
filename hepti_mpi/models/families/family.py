"""What a family's file says: what Hugging Face calls its config.json keys, architectures and tensors. Knows names; reads no file.

A family is added by one file beside this one, with a Family for each of its model types in MODEL_TYPES (registry.py finds it).
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.blocks import Layer, Norm, plain
from hepti_mpi.models.sidefiles import Table
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.models.steps import Dense, LayerNorm, Lookup, Step, Words
from hepti_mpi.wording import counted

# the fields of a model, with "config" (config.json), "vocabulary", "word" (the width of a word's row), "labels" and "tied"
Sizes = Mapping[str, Any]
Make = Callable[[Sizes], Step]

LABEL_LIMIT = 1 << 17
# what steps behind the layers read of a model's sizes and its spec does not say; and how many tokens sentence-transformers leaves of a
# text, where that is more than there are positions
OF_HEADS = ("activation", "norm_eps", "limit")
ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python": "gelu",  # the same functions, written in Python
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "swish": "silu",
    **{name: name for name in ("gelu_10", "quick_gelu", "relu", "leaky_relu", "silu", "mish", "tanh")},
}


@dataclass(frozen=True)
class Source:
    """Where a weight of the store comes from.

    `transform`: "as is"; "heads" (the first two stored dims are one in the source); "transpose" (the last stored dim comes
    first in the source); "patches" (a convolution kernel); "positions" (position table, class token, patch bias and maybe registers in
    one), "positions bicubic" and "positions smooth", where the table may be resized, smooth: as Pillow resizes;
    "columns": as "transpose", of a part along the last dim; "interleaved": as "heads", each with its part of several; "plus one".
    `names`: tensor names with `{}` for the layer; more than one only for positions.
    `option`: the weight is zero, and must be absent from the source, if this entry of `spec.options` is false.
    `part`: (i, n): it is part i of n along the first dim of the tensor, which holds several matrices.
    `other`: where it comes from in models that have no tensor of the first name.
    """

    transform: str
    names: tuple[str, ...]
    option: str | None = None
    part: tuple[int, int] = (0, 1)
    other: "Source | None" = None

    def of(self, layer: str, names: Container[str]) -> "Source":
        """Return the source of a layer's weight in a model that has tensors of these names; this one where it has neither."""
        first, second = self.names[0].format(layer), self.other.names[0].format(layer) if self.other else ""
        return self.other if self.other and first not in names and second in names else self


@dataclass(frozen=True)
class Task:
    """What an architecture is for: the `head` of a ModelSpec and what makes the steps behind the layers, given the sizes.

    `labels`: of the classes, where they are not those of config.json. `options`: returns, given config.json, what the head adds to the
    options of a ModelSpec, such as how the row is made that it reads.
    """

    head: str
    back: tuple[Make, ...] = ()
    labels: tuple[str, ...] = ()
    options: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}

    def steps(self, fields: Mapping[str, Any], labels: Sequence[object], tied: bool) -> tuple[Step, ...]:
        """Return the steps behind the layers of a model with these ModelSpec fields; `tied`: its output words are its input words."""
        table = next((step for step in fields["front"] if isinstance(step, Lookup) and step.by == "ids"), Lookup("", "ids", 0, 0))
        widths = {"vocabulary": table.size, "word": table.width, "labels": len(labels), "tied": tied}
        sizes = {"config": {}, **fields, **widths}
        return tuple(make(sizes) for make in self.back)


@dataclass(frozen=True)
class Family:
    """The tables of one family. Tensor names are plain: without what wraps the model, `prefixes` stripped and `renames` applied.

    `fields`: turns config.json into the ModelSpec fields except name, head, labels and back.
    `architectures`: by name, the bare model first; "pooler" becomes "none" when the pooler weights are absent.
    `keys`: what config.json may say that other families' do not. `tokenizer`: the class where no file names one, or
    where it does too if there are no `other_tokenizers`: what transformers does for families whose published files name a wrong one.
    `sources`: store name -> Source. `dropped`: pattern -> why such a tensor is left out on purpose if no source uses it (imports.py too).
    `refused`: tensor name -> why a model with this tensor is not supported. `tied`: a tensor and the one it may repeat.
    `instead`: a tensor -> the one that it is read instead of, where both are there.
    `defaults`: what config.json means where it lacks a key, beside what `fields` says itself. Source: its class in transformers 5.23.
    Where an answer ends is none of them: of that transformers takes what the files say, and nothing from the class.
    `resized`: whether the table of positions follows the size of the preprocessor's pictures; image_size and table_size tell both then.
    `types_are_words`: whether transformers looks the types of tokens up among the words.
    """

    name: str
    fields: Callable[[Mapping[str, Any]], dict[str, Any]]
    prefixes: tuple[str, ...]
    architectures: Mapping[str, Task]
    sources: Mapping[str, Source]
    renames: tuple[tuple[str, str], ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    tied: tuple[str, str] | None = None
    instead: Mapping[str, str] = field(default_factory=dict)
    keys: Table = field(default_factory=dict)
    tokenizer: str = "BertTokenizer"
    other_tokenizers: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)
    resized: bool = False
    types_are_words: bool = False


def integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return a positive integer of config.json. Raises ModelError."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 24:
        raise ModelError(f"config.json: {key} is {value!r:.60}, expected a positive integer")
    return value


def renamed(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return config.json with what a family calls by names of its own, name -> the common one, under the common one too.

    Raises ModelError when it says both and they differ: transformers takes the one that comes last.
    """
    found = dict(config)
    for name, common in names.items():
        own, other = config.get(name), config.get(common)
        if None not in (own, other) and own != other:
            raise ModelError(f"config.json: {name} is {own!r:.60} and {common} is {other!r:.60}, which are the same thing")
        found[common] = other if own is None else own
    return found


def square(config: Mapping[str, Any], key: str, default: int) -> int:
    """Return a side length that is given as one integer or as two equal ones. Raises ModelError."""
    value = config.get(key, default)
    if isinstance(value, list) and len(value) == 2:
        if value[0] != value[1]:
            raise ModelError(f"config.json: {key} is {value!r:.60}, only squares are supported")
        value = value[0]
    return integer({key: value}, key)


def yes(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """Return a value of config.json that is true or false. Raises ModelError."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ModelError(f"config.json: {key} is {value!r:.60}, expected true or false")
    return value


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    """Return a positive number of config.json. Raises ModelError."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ModelError(f"config.json: {key} is {value!r:.60}, expected a positive number")
    return float(value)


def mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object of config.json, an empty one where it says none. Raises ModelError."""
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise ModelError(f"config.json: {key} is {value!r:.60}, expected an object")
    return value


def named_activation(config: Mapping[str, Any], key: str, default: str) -> str:
    """Return the activation that config.json names. Raises ModelError."""
    value = config.get(key, default)
    if not isinstance(value, str) or value not in ACTIVATION_NAMES:
        raise ModelError(f"config.json: {key} {value!r:.60} is not supported; supported: {', '.join(ACTIVATION_NAMES)}")
    return ACTIVATION_NAMES[value]


def shared_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields that every family reads alike, and OF_HEADS. Raises ModelError."""
    activation, eps = named_activation(config, "hidden_act", "gelu"), config.get("layer_norm_eps", 1e-12)
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps < 1:
        raise ModelError(f"config.json: layer_norm_eps is {eps!r:.60}, expected a small positive number")
    for key in ("is_decoder", "add_cross_attention"):
        if config.get(key, False):
            raise ModelError(f"config.json: {key} is set, only encoders are supported")
    return {
        "layers": integer(config, "num_hidden_layers", 12),
        "hidden": integer(config, "hidden_size", 768),
        "heads": integer(config, "num_attention_heads", 12),
        "ffn": integer(config, "intermediate_size", 3072),
        "activation": activation,
        "norm_eps": float(eps),
    }


def check_head_dim(config: Mapping[str, Any], shared: Mapping[str, Any]) -> None:
    """Refuse a width of heads that does not fill `hidden` with the heads that there are. Raises ModelError."""
    whole = shared["hidden"] // shared["heads"]
    if config.get("head_dim", whole) != whole:
        filled = f"hidden_size {shared['hidden']} in {counted(shared['heads'], 'heads')}"
        raise ModelError(f"config.json: head_dim is {config['head_dim']!r:.60}, only {filled} is supported")


def pair(
    store: str, source: str, transform: str = "as is", option: str | None = None, part: tuple[int, int] = (0, 1),
    other: Mapping[str, Source] | None = None,
) -> dict[str, Source]:  # fmt: skip
    """Return the sources of a weight and its bias; `other`: a pair too, where the first is not there."""
    bias, (weight, beside) = "heads" if transform == "heads" else "as is", other.values() if other else (None, None)
    return {
        f"{store}.weight": Source(transform, (f"{source}.weight",), part=part, other=weight),
        f"{store}.bias": Source(bias, (f"{source}.bias",), option, part, beside),
    }


def listed(layers: Sequence[Layer]) -> dict[str, Any]:
    """Return the ModelSpec fields of layers: the few kinds that there are of them, and which each is where that is several."""
    kinds = tuple(dict.fromkeys(layers))
    return {"kinds": kinds, "order": tuple(map(kinds.index, layers)) if len(kinds) > 1 else ()}


def alike(shared: Mapping[str, Any], first: bool) -> dict[str, Any]:
    """Return the ModelSpec fields of plain layers (blocks.plain), given the shared ones. Raises ModelError."""
    norm = Norm(shared["hidden"], shared["norm_eps"])
    layer = plain(shared["hidden"], shared["heads"], shared["ffn"], shared["activation"], norm, first)
    return {"kinds": (layer,), "last": norm if first else None}


def spec_of(family: Family, name: str, head: str, fields: Mapping[str, Any], **own: Any) -> ModelSpec:
    """Return the spec of a model of these fields, and of its `own`. Raises ModelError."""
    return ModelSpec(family=family.name, name=name, head=head, **{key: fields[key] for key in fields if key not in OF_HEADS}, **own)


def dense(name: str, activation: str = "identity", out: str = "hidden", inner: str = "hidden") -> Make:
    """Return what makes a Dense step; `out` and `inner` are names of sizes, `activation` of one or "own" for the model's."""
    return lambda sizes: Dense(name, sizes[inner], sizes[out], sizes["activation"] if activation == "own" else activation)


def norm(name: str, width: str = "hidden") -> Make:
    """Return what makes a LayerNorm step of a width that is called so."""
    return lambda sizes: LayerNorm(name, sizes[width], sizes["norm_eps"])


def words(width: str = "hidden") -> Make:
    """Return what makes the step from rows of a width that is called so to words."""
    return lambda sizes: Words("head.words", sizes["vocabulary"], sizes[width], sizes["tied"])


POOLER, CLASSES = dense("head.pooler", "tanh"), dense("head.classes", out="labels")


def token_front(vocabulary: int, positions: int, types: int, width: int, eps: float) -> tuple[Step, ...]:
    """Return the steps of a sum of words, types and positions with a norm behind it; no types: there is no table of them."""
    sizes = {"words": ("ids", vocabulary), "types": ("types", types), "positions": ("positions", positions)}
    tables = (Lookup(f"embedding.{name}", by, size, width) for name, (by, size) in sizes.items() if size)
    return (*tables, LayerNorm("embedding.norm", width, eps))


LEFT_OVER = {r"(classifier|qa_outputs)\.(weight|bias)": "the head of a task that the architecture is not for"}


def class_labels(config: Mapping[str, Any]) -> tuple[str | int, ...]:
    """Return the labels in the order of the classes. Raises ModelError when they are not numbered 0, 1, ..."""
    named = config.get("id2label")
    if named is None:
        count = integer(config, "num_labels", 2)
        if count > LABEL_LIMIT:
            raise ModelError(f"config.json: num_labels is {count}, more than the limit of {LABEL_LIMIT}")
        return tuple(f"LABEL_{i}" for i in range(count))
    if not named:
        raise ModelError("config.json: id2label holds no labels")
    try:
        numbered = {int(number): label for number, label in named.items()}
        labels = tuple(numbered[i] for i in range(len(named)))
    except (AttributeError, KeyError, ValueError, TypeError):
        raise ModelError("config.json: id2label does not number its labels 0, 1, 2 and so on") from None
    odd = [label for label in labels if isinstance(label, bool) or not isinstance(label, (str, int))]
    if config.get("num_labels") not in (None, len(labels)):
        why = f"num_labels is {config['num_labels']!r:.60} and id2label holds {counted(len(labels), 'labels')}"
        raise ModelError(f"config.json: {why}; take out num_labels if those are meant")
    if odd:
        raise ModelError(f"config.json: id2label holds {odd[0]!r:.60}, expected the names of labels")
    return labels


def score_kind(config: Mapping[str, Any], labels: Sequence[str | int]) -> str:
    """Return how logits become scores: "softmax", "sigmoid" or "none", as the pipelines of transformers choose. Raises ModelError."""
    problem = config.get("problem_type")
    if problem == "single_label_classification" and len(labels) == 1:
        raise ModelError("config.json: problem_type is single_label_classification, which takes two labels or more; id2label holds 1")
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or len(labels) == 1 else "softmax"
