"""Rotary positions and how they are scaled, as config.json says it. Knows the keys that families share; knows no family by name."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.blocks import Rotary, rotary
from hepti_mpi.models.families.family import integer, mapping, number

WHOLE = "in this family positions turn all numbers of a head"


def rotary_of(config: Mapping[str, Any], dim: int, kind: str | None = None, partly: bool = False) -> Rotary:
    """Return the rotary positions that config.json says, scaled as it says; `kind`: of layer, where it says it for each kind; `partly`:
    whether the family knows positions that turn a part of a head.

    Raises ModelError. Source: transformers 5, modeling_rope_utils.py.
    """
    said = scaling_said(config)
    if kind is not None:  # of several kinds transformers reads `truncate` beside them, and never below one
        nested = isinstance(said.get(kind), dict)
        said = {**(said[kind] if nested else said), "truncate": said.get("truncate", True) if nested else True}
    elif any(isinstance(one, dict) for one in said.values()):
        raise ModelError(f"config.json: rope_parameters is {said!r:.60}, expected them for all layers alike")
    base = number({"rope_theta": said.get("rope_theta", config.get("rope_theta", 10000.0))}, "rope_theta", 10000.0)
    part = number({"partial_rotary_factor": said.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))},
                  "partial_rotary_factor", 1.0)  # fmt: skip
    if not partly and part != 1:
        raise ModelError(f"config.json: partial_rotary_factor is {part:g}, which is not supported: {WHOLE}")
    dims = int(dim * part)
    if dims < 2 or dims % 2 or not 0 < part <= 1 or base <= 1:
        raise ModelError(f"config.json: positions turn {dims} of {dim} numbers with base {base:g}, which is not possible")
    name = said.get("rope_type", said.get("type", "default"))
    if name not in SCALINGS:
        raise ModelError(f"config.json: positions are scaled by {name!r:.60}, which is not supported; supported: {', '.join(SCALINGS)}")
    return SCALINGS[name](list(rotary(dims, base).frequencies), base, said, config)


def scaling_said(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what config.json says of how positions are scaled, under its newer name or its older one.

    Raises ModelError when it says both and they differ: transformers then forgets the base that the newer one says.
    """
    new, old = mapping(config, "rope_parameters"), mapping(config, "rope_scaling")
    if new and old and new != old:
        raise ModelError("config.json has rope_parameters and rope_scaling, which differ; put what is meant into rope_parameters alone")
    return new or old


Scaling = Callable[[list[float], float, Mapping[str, Any], Mapping[str, Any]], Rotary]


def _plain(plain: list[float], base: float, said: Mapping[str, Any], config: Mapping[str, Any]) -> Rotary:
    return Rotary(tuple(plain))


def _linear(plain: list[float], base: float, said: Mapping[str, Any], config: Mapping[str, Any]) -> Rotary:
    factor = _positive(said, "factor")
    return Rotary(tuple(one / factor for one in plain))


def _dynamic(plain: list[float], base: float, said: Mapping[str, Any], config: Mapping[str, Any]) -> Rotary:
    """It changes nothing up to max_position_embeddings, which no text is longer than."""
    _positive(said, "factor")
    return Rotary(tuple(plain))


def _llama3(plain: list[float], base: float, said: Mapping[str, Any], config: Mapping[str, Any]) -> Rotary:
    factor, low, high = (_positive(said, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = _original(said, config)
    if high <= low:
        raise ModelError("config.json: high_freq_factor is not above low_freq_factor")

    def scaled(one: float) -> float:
        turns = original * one / (2 * math.pi)
        smooth = min(max((turns - low) / (high - low), 0), 1)
        return (1 - smooth) * one / factor + smooth * one

    return Rotary(tuple(map(scaled, plain)))


def _yarn(plain: list[float], base: float, said: Mapping[str, Any], config: Mapping[str, Any]) -> Rotary:
    """Source: Peng et al., YaRN, arXiv:2309.00071, section 3; _compute_yarn_parameters of transformers."""
    factor, dims = _positive(said, "factor"), 2 * len(plain)
    original = _original(said, config)
    fast, slow = said.get("beta_fast") or 32, said.get("beta_slow") or 1

    def place(turns: float) -> float:
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = place(fast), place(slow)
    if said.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    high += 0.001 * (high == low)

    def scaled(number: int, one: float) -> float:
        kept = 1 - min(max((number - low) / (high - low), 0), 1)
        return one / factor * (1 - kept) + one * kept

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    told, both = said.get("attention_factor"), (said.get("mscale"), said.get("mscale_all_dim"))
    whole = magnitude(both[0]) / magnitude(both[1]) if both[0] and both[1] else magnitude(1)
    return Rotary(tuple(scaled(number, one) for number, one in enumerate(plain)), factor=whole if told is None else float(told))


def _longrope(plain: list[float], base: float, said: Mapping[str, Any], config: Mapping[str, Any]) -> Rotary:
    """The factors of short texts: `Sizes.positions` ends where those of long ones would begin. Source: Ding et al., LongRoPE,
    arXiv:2402.13753."""
    short, original = said.get("short_factor"), original_positions(config)
    if not isinstance(short, list) or len(short) != len(plain) or original is None or original < 2:
        raise ModelError(f"config.json: longrope needs {len(plain)} numbers as short_factor, and original_max_position_embeddings")
    factors = [_positive({"short_factor": one}, "short_factor") for one in short]
    whole = integer(config, "max_position_embeddings", 2048) / original if said.get("factor") is None else _positive(said, "factor")
    told = said.get("attention_factor")
    scale = math.sqrt(1 + math.log(whole) / math.log(original)) if whole > 1 else 1.0
    return Rotary(tuple(one / factor for one, factor in zip(plain, factors)), factor=scale if told is None else float(told))


def original_positions(config: Mapping[str, Any]) -> int | None:
    """Return the rows of a text up to which longrope has factors of their own, None without longrope. Raises ModelError.

    What config.json says beside rope_parameters comes first. Source: transformers, RotaryEmbeddingConfigMixin.standardize_rope_params.
    """
    said = scaling_said(config)
    if said.get("rope_type", said.get("type")) != "longrope":
        return None
    key = "original_max_position_embeddings"
    given = (one for one in (config.get(key), said.get(key), config.get("max_position_embeddings")) if one is not None)
    return integer({key: next(given, None)}, key)


def _original(said: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    """Return the rows of a text that the model was first trained with: as many as now, where nothing is said. Raises ModelError."""
    key = "original_max_position_embeddings"
    return _positive({key: config.get("max_position_embeddings")} | dict(said), key)


def _positive(said: Mapping[str, Any], key: str) -> float:
    return number({key: said.get(key)}, key, 0)


SCALINGS: dict[str, Scaling] = {
    "default": _plain, "linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope,
}  # fmt: skip
