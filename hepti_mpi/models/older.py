"""How stores describe a model that were made before front, head and plain layers were said: what follows from sizes and options.

Knows the keys of those descriptions; knows no weight and no family. Store names of weights are the same.
"""

from collections.abc import Mapping
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.blocks import Layer, Norm, plain
from hepti_mpi.models.steps import Dense, LayerNorm, Lookup, Normalize, Patches, Step, Words

NORM_EPS = 1e-5  # of torch.nn.LayerNorm
PLAIN = ("norm", "norm_eps", "activation")  # what told what plain layers are


def heads_of(heads: int, layer: Layer) -> int:
    """Return the query heads, where a description may have those of keys and values in their place."""
    return layer.attention.heads if heads == layer.attention.kv_heads else heads


def layers_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layers, which are all alike, and the norm behind them. Raises KeyError, TypeError or ModelError for what is none."""
    if data["norm"] not in ("pre", "post"):
        raise ModelError(f"model {data['name']}: norm {data['norm']!r} is neither pre nor post")
    norm, first = Norm(data["hidden"], data["norm_eps"]), data["norm"] == "pre"
    layer = plain(data["hidden"], data["heads"], data["ffn"], data["activation"], norm, first)
    return {"kinds": (layer,), "last": norm if first else None}


def front_of(data: Mapping[str, Any]) -> tuple[Step, ...]:
    """Return the steps before the layers. Raises KeyError for a description that lacks something."""
    hidden, positions, options = data["hidden"], data["positions"], data["options"]
    places = Lookup("embedding.positions", "positions", positions, hidden)
    if data["embedding"] == "patches":
        return Patches("embedding.patches", options["channels"] * options["patch_size"] ** 2, hidden), places
    words = Lookup("embedding.words", "ids", options["vocabulary"], hidden)
    types = Lookup("embedding.types", "types", options["types"], hidden)
    return words, types, places, LayerNorm("embedding.norm", hidden, data["norm_eps"])


def back_of(data: Mapping[str, Any]) -> tuple[Step, ...]:
    """Return the steps behind the layers. Raises KeyError for a description that lacks something."""
    hidden, options, head = data["hidden"], data["options"], data["head"]
    steps: list[Step] = []
    if options.get("pooler"):
        steps.append(Dense("head.pooler", hidden, hidden, "tanh"))
    if head in ("sequence-classes", "token-classes", "image-classes"):
        steps.append(Dense("head.classes", hidden, len(data["labels"])))
    if head == "masked-words":
        steps += [Dense("head.transform", hidden, hidden, data["activation"]), LayerNorm("head.norm", hidden, data["norm_eps"])]
        steps.append(Words("head.words", options["vocabulary"], hidden, options["tied"]))
    modules = options.get("modules", [{"kind": "normalize"}] if options.get("normalize") else [])
    return (*steps, *(_module(f"head.modules.{number}", module) for number, module in enumerate(modules)))


def _module(name: str, module: Mapping[str, Any]) -> Step:
    if module["kind"] == "dense":
        return Dense(name, module["in"], module["out"], module["activation"], module["bias"], module["residual"])
    return LayerNorm(name, module["size"], NORM_EPS) if module["kind"] == "layer_norm" else Normalize(name)
