"""What Hugging Face calls things, one table per model family: config.json keys, architectures and tensor names.

Knows names, shapes and the few transforms between the Hugging Face layout and the store; knows no file format and reads no
file. A family is added by writing its tables and one entry of FAMILIES.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hepti_mpi.errors import ModelError
from hepti_mpi.models.checkpoints.untrusted import shown
from hepti_mpi.models.spec import ModelSpec, module_weights, named_weights
from hepti_mpi.wording import counted

LABEL_LIMIT = 1 << 17
ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "gelu_python": "gelu",  # the same functions, written in Python
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
}


@dataclass(frozen=True)
class Source:
    """Where a weight of the store comes from.

    `transform`: "as is"; "heads" (the first two stored dims are one in the source); "transpose" (the last stored dim comes
    first in the source); "patches" (a convolution kernel); "positions" (position table, class token and patch bias in one).
    `names`: tensor names with `{}` for the layer; more than one only for "positions".
    `option`: the weight is zero, and must be absent from the source, if this entry of `spec.options` is false.
    """

    transform: str
    names: tuple[str, ...]
    option: str | None = None


@dataclass(frozen=True)
class Family:
    """The tables of one family. Tensor names are plain: without what wraps the model, `prefixes` stripped and `renames` applied.

    `fields`: turns config.json into the ModelSpec fields except name, head and labels.
    `architectures`: architecture -> head; "pooler" becomes "none" when the pooler weights are absent.
    `pooler_heads`: the heads that read the pooler.
    `sources`: store name -> Source. `dropped`: pattern -> why such a tensor is left out on purpose, if no source uses it.
    `refused`: tensor name -> why a model with this tensor is not supported. `tied`: a tensor and the one it may repeat.
    `instead`: a tensor -> the one that it is read instead of, where both are there.
    """

    name: str
    fields: Callable[[Mapping[str, Any]], dict[str, Any]]
    prefixes: tuple[str, ...]
    architectures: Mapping[str, str]
    pooler_heads: tuple[str, ...]
    sources: Mapping[str, Source]
    renames: tuple[tuple[str, str], ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    tied: tuple[str, str] | None = None
    instead: Mapping[str, str] = field(default_factory=dict)


# ---- config.json


def integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return a positive integer of config.json. Raises ModelError."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 24:
        raise ModelError(f"config.json: {key} is {value!r:.60}, expected a positive integer")
    return value


def square(config: Mapping[str, Any], key: str, default: int) -> int:
    """Return a side length that is given as one integer or as two equal ones. Raises ModelError."""
    value = config.get(key, default)
    if isinstance(value, list) and len(value) == 2:
        if value[0] != value[1]:
            raise ModelError(f"config.json: {key} is {value!r:.60}, only squares are supported")
        value = value[0]
    return integer({key: value}, key)


def shared_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields that every family reads alike. Raises ModelError."""
    activation, eps = config.get("hidden_act", "gelu"), config.get("layer_norm_eps", 1e-12)
    if not isinstance(activation, str) or activation not in ACTIVATION_NAMES:
        raise ModelError(f"config.json: hidden_act {activation!r:.60} is not supported; supported: {', '.join(ACTIVATION_NAMES)}")
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
        "activation": ACTIVATION_NAMES[activation],
        "norm_eps": float(eps),
    }


def bert_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of a BERT. Raises ModelError."""
    kind = config.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise ModelError(f"config.json: position_embedding_type {kind!r:.60} is not supported; supported: absolute")
    options = {"vocabulary": integer(config, "vocab_size", 30522), "types": integer(config, "type_vocab_size", 2)}
    positions = integer(config, "max_position_embeddings", 512)
    return shared_fields(config) | {"norm": "post", "embedding": "tokens", "positions": positions, "options": options}


def vit_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of a ViT. Raises ModelError."""
    image, patch = square(config, "image_size", 224), square(config, "patch_size", 16)
    shared = shared_fields(config)
    if image < patch:
        raise ModelError(f"config.json: image_size {image} is less than patch_size {patch}")
    if config.get("pooler_act") not in (None, "tanh"):
        raise ModelError(f"config.json: pooler_act {config['pooler_act']!r:.60} is not supported; supported: tanh")
    qkv_bias = config.get("qkv_bias", True)
    if not isinstance(qkv_bias, bool):
        raise ModelError(f"config.json: qkv_bias is {qkv_bias!r:.60}, expected true or false")
    if config.get("head_dim", shared["hidden"] // shared["heads"]) != shared["hidden"] // shared["heads"]:
        whole = f"hidden_size {shared['hidden']} in {counted(shared['heads'], 'heads')}"
        raise ModelError(f"config.json: head_dim is {config['head_dim']!r:.60}, only {whole} is supported")
    options = {"image_size": image, "patch_size": patch, "channels": integer(config, "num_channels", 3), "qkv_bias": qkv_bias}
    positions = (image // patch) ** 2 + 1
    return shared | {"norm": "pre", "embedding": "patches", "positions": positions, "options": options}


# ---- tensor names


def pair(store: str, source: str, transform: str = "as is", option: str | None = None) -> dict[str, Source]:
    """Return the sources of a weight and its bias."""
    bias = "heads" if transform == "heads" else "as is"
    return {
        f"{store}.weight": Source(transform, (f"{source}.weight",)),
        f"{store}.bias": Source(bias, (f"{source}.bias",), option),
    }


BERT_SOURCES = {
    "embedding.words": Source("as is", ("embeddings.word_embeddings.weight",)),
    "embedding.positions": Source("as is", ("embeddings.position_embeddings.weight",)),
    "embedding.types": Source("as is", ("embeddings.token_type_embeddings.weight",)),
    **pair("embedding.norm", "embeddings.LayerNorm"),
    **pair("layers.{}.attention.q", "encoder.layer.{}.attention.self.query", "heads"),
    **pair("layers.{}.attention.k", "encoder.layer.{}.attention.self.key", "heads"),
    **pair("layers.{}.attention.v", "encoder.layer.{}.attention.self.value", "heads"),
    **pair("layers.{}.attention.o", "encoder.layer.{}.attention.output.dense", "transpose"),
    **pair("layers.{}.attention.norm", "encoder.layer.{}.attention.output.LayerNorm"),
    **pair("layers.{}.mlp.up", "encoder.layer.{}.intermediate.dense"),
    **pair("layers.{}.mlp.down", "encoder.layer.{}.output.dense", "transpose"),
    **pair("layers.{}.mlp.norm", "encoder.layer.{}.output.LayerNorm"),
    **pair("head.pooler", "pooler.dense"),
    **pair("head.classes", "classifier"),
    **pair("head.transform", "cls.predictions.transform.dense"),
    **pair("head.norm", "cls.predictions.transform.LayerNorm"),
    "head.words.weight": Source("as is", ("cls.predictions.decoder.weight",)),
    "head.words.bias": Source("as is", ("cls.predictions.bias",)),
}
VIT_SOURCES = {
    "embedding.patches": Source("patches", ("embeddings.patch_embeddings.projection.weight",)),
    "embedding.positions": Source(
        "positions", ("embeddings.position_embeddings", "embeddings.cls_token", "embeddings.patch_embeddings.projection.bias")
    ),
    **pair("layers.{}.attention.norm", "encoder.layer.{}.layernorm_before"),
    **pair("layers.{}.attention.q", "encoder.layer.{}.attention.attention.query", "heads", "qkv_bias"),
    **pair("layers.{}.attention.k", "encoder.layer.{}.attention.attention.key", "heads", "qkv_bias"),
    **pair("layers.{}.attention.v", "encoder.layer.{}.attention.attention.value", "heads", "qkv_bias"),
    **pair("layers.{}.attention.o", "encoder.layer.{}.attention.output.dense", "transpose"),
    **pair("layers.{}.mlp.norm", "encoder.layer.{}.layernorm_after"),
    **pair("layers.{}.mlp.up", "encoder.layer.{}.intermediate.dense"),
    **pair("layers.{}.mlp.down", "encoder.layer.{}.output.dense", "transpose"),
    **pair("final.norm", "layernorm"),
    **pair("head.pooler", "pooler.dense"),
    **pair("head.classes", "classifier"),
}
# transformers 5 names the modules like the left column; save_pretrained of 5.23 still writes the names of the right one
VIT_RENAMES = (
    (r"^layers\.(\d+)\.attention\.q_proj\.", r"encoder.layer.\1.attention.attention.query."),
    (r"^layers\.(\d+)\.attention\.k_proj\.", r"encoder.layer.\1.attention.attention.key."),
    (r"^layers\.(\d+)\.attention\.v_proj\.", r"encoder.layer.\1.attention.attention.value."),
    (r"^layers\.(\d+)\.attention\.o_proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"^layers\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"^layers\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
    (r"^layers\.(\d+)\.layernorm_", r"encoder.layer.\1.layernorm_"),
)
DISTILLED = "it is a DeiT with a distillation token, which is not supported; use one without, such as deit-base-patch16-224"

LEFT_OVER = {r"(classifier|qa_outputs)\.(weight|bias)": "the head of a task that the architecture is not for"}

BERT = Family(
    name="bert",
    fields=bert_fields,
    prefixes=("bert.",),
    architectures={
        "BertModel": "pooler",
        "BertForMaskedLM": "masked-words",
        "BertForPreTraining": "masked-words",
        "BertForSequenceClassification": "sequence-classes",
        "BertForTokenClassification": "token-classes",
    },
    pooler_heads=("pooler", "sequence-classes"),
    sources=BERT_SOURCES,
    renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    dropped={
        r"embeddings\.(position|token_type)_ids": "a counter",
        r"cls\.seq_relationship\.(weight|bias)": "next sentence prediction",
        r"pooler\.dense\.(weight|bias)": "a pooler that the head does not use",
        r"cls\.predictions\.decoder\.weight": "a repetition of the word embeddings",
        r"cls\.predictions\..*": "a word head of an architecture without one",
        **LEFT_OVER,
    },
    tied=("cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"),
    instead={"cls.predictions.decoder.bias": "cls.predictions.bias"},  # source: BertLMPredictionHead.forward, transformers 5
)
VIT = Family(
    name="vit",
    fields=vit_fields,
    prefixes=("vit.",),
    architectures={"ViTModel": "pooler", "ViTForImageClassification": "image-classes"},
    pooler_heads=("pooler",),
    sources=VIT_SOURCES,
    renames=VIT_RENAMES,
    dropped={
        r"embeddings\.mask_token": "masked image modelling",
        r"pooler\.dense\.(weight|bias)": "a pooler that the head does not use",
        r"decoder\.0\.(weight|bias)": "masked image modelling",
        **LEFT_OVER,
    },
)
DEIT = Family(
    name="vit",
    fields=vit_fields,
    prefixes=("deit.", "vit."),
    architectures={"DeiTModel": "pooler", "DeiTForImageClassification": "image-classes"} | dict(VIT.architectures),
    pooler_heads=VIT.pooler_heads,
    sources=VIT_SOURCES,
    renames=VIT_RENAMES,
    dropped=VIT.dropped,
    refused={"embeddings.distillation_token": DISTILLED},
)
FAMILIES: dict[str, Family] = {"bert": BERT, "vit": VIT, "deit": DEIT}


# ---- from tensors to the store


@dataclass(frozen=True)
class Import:
    """One weight of the store and the tensors (by plain name) it is made of; no tensors: it is zero."""

    name: str
    shape: tuple[int, ...]
    transform: str
    tensors: tuple[str, ...]


def plain_names(family: Family, names: Iterable[str]) -> dict[str, str]:
    """Return plain name -> name in the file. Raises ModelError when two names mean the same tensor."""
    plain: dict[str, str] = {}
    names = list(names)
    outer = wrapper(family, names)
    for name in names:
        short = name.removeprefix(outer)
        short = next((short.removeprefix(p) for p in family.prefixes if short.startswith(p)), short)
        for pattern, replacement in family.renames:
            short = re.sub(pattern, replacement, short)
        if short in plain:
            raise ModelError(f"tensors {shown(plain[short], 100)} and {shown(name, 100)} are two names of the same weight")
        plain[short] = name
    for name, reason in family.refused.items():
        if name in plain:
            raise ModelError(f"the model has the tensor {plain[name]}: {reason}")
    for name, other in family.instead.items():
        if name in plain:
            plain[other] = plain.pop(name)
    return plain


def check_untied(family: Family, plain: Mapping[str, str]) -> None:
    """Raise ModelError when output words that are not the input words come without the bias that is theirs."""
    for name, other in family.instead.items():
        if other in plain and not plain[other].endswith(name):
            lacks = f"tie_word_embeddings is false, so the bias of the words is {name}, which is missing (transformers takes zeros)"
            raise ModelError(f"config.json: {lacks}; if {shown(plain[other], 100)} is meant, save it under that name as well")


def wrapper(family: Family, names: Iterable[str]) -> str:
    """Return what stands before all names of the model because it was saved inside another module, such as "module."; "" if nothing."""
    anchor = family.sources["embedding.positions"].names[0]
    found = {name.removesuffix(anchor) for name in names if name.endswith(anchor)}
    outer = {next((before.removesuffix(p) for p in family.prefixes if before.endswith(p)), before) for before in found}
    return outer.pop() if len(outer) == 1 else ""


def source_shapes(transform: str, spec: ModelSpec, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes that the tensors of a source must have for a stored `shape`."""
    if transform == "heads":
        return [(shape[0] * shape[1], *shape[2:])]
    if transform == "transpose":
        return [(shape[-1], math.prod(shape[:-1]))]
    if transform == "patches":
        return [(shape[0], spec.options["channels"], spec.options["patch_size"], spec.options["patch_size"])]
    if transform == "positions":
        return [(1, *shape), (1, 1, shape[1]), (shape[1],)]
    return [shape]


def stored(transform: str, tensors: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Return the stored weight, float32 and C-contiguous, made of float32 source tensors; no tensors: zeros."""
    if not tensors:
        return np.zeros(shape, np.float32)
    if transform == "transpose":
        return np.ascontiguousarray(tensors[0].T).reshape(shape)  # [hidden, columns] -> [columns, hidden]
    if transform == "positions":
        table, token, bias = tensors  # [1, positions, hidden], [1, 1, hidden], [hidden]
        table = table[0] + np.concatenate([token[0], np.broadcast_to(bias, (shape[0] - 1, shape[1]))])
        return np.ascontiguousarray(table, dtype=np.float32)
    return np.ascontiguousarray(tensors[0]).reshape(shape)


def match(family: Family, spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> list[Import]:
    """Return how each weight of the store is made, in its order, from tensors of these plain names and shapes.

    Raises ModelError that names missing, unknown and wrongly shaped tensors.
    """
    if spec.layers > len(shapes):
        raise ModelError(f"config.json says {counted(spec.layers, 'layers')}, the files hold {len(shapes)} tensors in all")
    own = module_weights(spec)  # of sentence-transformers, in files of their own
    imports: list[Import] = []
    missing: list[str] = []
    for name, weight in named_weights(spec):
        if weight in own:
            continue
        layer = name.split(".")[1] if weight.name != name else ""
        source = family.sources[weight.name]
        absent = source.option is not None and not spec.options[source.option]
        tensors = () if absent else tuple(tensor.format(layer) for tensor in source.names)
        missing += [tensor for tensor in tensors if tensor not in shapes]
        imports.append(Import(name, weight.shape, source.transform, tensors))
    if missing:
        raise ModelError(f"{len(missing)} of the tensors that config.json asks for are missing: {few(missing)}")
    used = {tensor for one in imports for tensor in one.tensors}
    unknown = [name for name in shapes if name not in used and not any(re.fullmatch(p, name) for p in family.dropped)]
    if unknown:
        raise ModelError(f"{len(unknown)} tensors do not belong to the model that config.json describes: {few(unknown)}")
    for one in imports:
        for tensor, expected in zip(one.tensors, source_shapes(one.transform, spec, one.shape)):
            if shapes[tensor] != expected:
                raise ModelError(f"tensor {tensor} has shape {list(shapes[tensor])}, config.json asks for {list(expected)}")
    return imports


def few(names: Sequence[str], count: int = 3) -> str:
    """Return the first few names for an error message."""
    return ", ".join(shown(name, 100) for name in names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def choose_head(family: Family, config: Mapping[str, Any], names: Iterable[str]) -> tuple[str, bool]:
    """Return the head, and whether it reads the pooler. Raises ModelError for an architecture without a table entry."""
    listed = config.get("architectures")
    default = next(iter(family.architectures))  # the bare model
    architecture = listed[0] if isinstance(listed, list) and listed else default
    if not isinstance(architecture, str) or architecture not in family.architectures:
        raise ModelError(f"architecture {architecture!r:.60} is not supported; supported: {', '.join(family.architectures)}")
    head = family.architectures[architecture]
    if head == "pooler" and "pooler.dense.weight" not in set(names):
        head = "none"
    return head, head in family.pooler_heads


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
