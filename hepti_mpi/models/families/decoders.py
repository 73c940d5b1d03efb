"""What decoders that generate text have in common: sizes, rotary positions and their scaling, names of tensors, the head of words.

Knows the keys of config.json that they share; knows no family by name.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.blocks import Attention, Layer, Mlp, Norm, Rotary
from hepti_mpi.models.families.family import Source, Task, integer, listed, mapping, named_activation, number, pair
from hepti_mpi.models.sidefiles import Table, honoured, refused, without
from hepti_mpi.models.steps import Lookup, Step, Words
from hepti_mpi.wording import counted

WORDS = Task("next-token", (lambda sizes: Words("head.words", sizes["vocabulary"], sizes["hidden"], sizes["tied"], bias=False),))
WHOLE = "in this family positions turn all numbers of a head"
KEYS: Table = {
    **honoured("num_key_value_heads rms_norm_eps rope_theta rope_scaling rope_parameters head_dim attention_bias mlp_bias"),
    **honoured("sliding_window layer_types use_sliding_window max_window_layers"),
    **without("pretraining_tp rope_interleaved bos_token_id eos_token_id pad_token_id cache_implementation use_cache"),
    **refused("is_encoder_decoder add_cross_attention", "only decoders by themselves are supported"),
    **refused("is_causal", "texts grow from rows that see those before them only", (True,)),  # null is no to a window's mask
    **refused("partial_rotary_factor", WHOLE, (None, 1)),
    **refused("num_experts num_local_experts n_routed_experts", "mixtures of experts are not supported yet", (None, 0)),
}


@dataclass(frozen=True)
class Sizes:
    """The sizes that config.json says of a decoder."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    dim: int
    ffn: int
    positions: int
    vocabulary: int
    eps: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Sizes":
        """Read them. Raises ModelError."""
        hidden, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
        kv_heads = integer(config, "num_key_value_heads", heads) if config.get("num_key_value_heads") is not None else heads
        if heads % kv_heads:
            raise ModelError(f"config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        if config.get("head_dim") is None and hidden % heads:
            raise ModelError(f"config.json: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
        dim = hidden // heads if config.get("head_dim") is None else integer(config, "head_dim")
        positions = integer(config, "max_position_embeddings", 2048)
        return cls(
            integer(config, "num_hidden_layers"), hidden, heads, kv_heads, dim, integer(config, "intermediate_size"),
            min(positions, original_positions(config) or positions), integer(config, "vocab_size"), number(config, "rms_norm_eps", 1e-6),
        )  # fmt: skip

    @property
    def norm(self) -> Norm:
        return Norm(self.hidden, self.eps, "rms")

    @property
    def head_norm(self) -> Norm:
        return Norm(self.dim, self.eps, "rms")

    def attention(self, rotary: Rotary | None, **more: Any) -> Attention:
        """Return a causal attention without biases, but for what is said."""
        fixed: dict[str, Any] = {"biases": "", "causal": True, "rotary": rotary}
        return Attention(self.hidden, self.heads, self.dim, self.kv_heads, **fixed | more)

    def mlp(self, activation: str, **more: Any) -> Mlp:
        """Return a gated MLP without biases, but for what is said."""
        fixed: dict[str, Any] = {"gated": True, "bias": False}
        return Mlp(self.hidden, self.ffn, activation, **fixed | more)

    def fields(self, each: Sequence[Layer], front: tuple[Step, ...] = ()) -> dict[str, Any]:
        """Return the ModelSpec fields of a decoder with these layers; words alone lead to them unless `front` says more."""
        return {
            "layers": self.layers, "hidden": self.hidden, "heads": self.heads, "ffn": self.ffn, "positions": self.positions,
            "embedding": "tokens", **listed(each), "last": self.norm,
            "front": front or (Lookup("embedding.words", "ids", self.vocabulary, self.hidden),),
        }  # fmt: skip


def activation(config: Mapping[str, Any], *keys: str, default: str = "silu") -> str:
    """Return the activation of the MLP, under the first of `keys` that is there. Raises ModelError."""
    key = next((key for key in keys if config.get(key) is not None), keys[0])
    return named_activation({key: default if config.get(key) is None else config[key]}, key, default)


def windows(config: Mapping[str, Any], layers: int, window: int | None) -> list[int | None]:
    """Return per layer the window of its attention, as layer_types says; all of them have it where nothing is said.

    Raises ModelError.
    """
    kinds = config.get("layer_types")
    if kinds is None:
        return [window] * layers
    known = {"full_attention": None, "sliding_attention": window}
    if not isinstance(kinds, list) or len(kinds) != layers or not all(isinstance(kind, str) and kind in known for kind in kinds):
        raise ModelError(f"config.json: layer_types is {kinds!r:.100}, expected {' or '.join(known)} for each of {layers} layers")
    if window is None and "sliding_attention" in kinds:
        raise ModelError("config.json: layer_types has sliding_attention, and there is no sliding_window")
    return [known[kind] for kind in kinds]


def check_alike(config: Mapping[str, Any], sizes: Sizes, window: int | None) -> None:
    """Refuse what says another window than all layers of the family have: transformers then masks by the family, and forgets in its cache
    what is behind the other one, so that each token would see other rows as it is made than as it is read. Raises ModelError.
    """

    def least(one: int | None) -> int | None:
        return None if one is None or one + 1 >= sizes.positions else one

    said = next((one for one in windows(config, sizes.layers, window_of(config)) if least(one) != least(window)), window)
    if said != window:
        own = "all rows" if window is None else counted(window + 1, "rows")
        told = "all" if said is None else said + 1
        why = f"layers of this family see {own}, layer_types or sliding_window say {told}"
        raise ModelError(f"config.json: {why}; take out the one that is not meant")


def window_of(config: Mapping[str, Any]) -> int | None:
    """Return how far back a row of a local layer attends; sliding_window counts the row itself.

    Raises ModelError, also for a window of that row alone: transformers' cache then keeps the last rows that it was given at once.
    """
    window = None if config.get("sliding_window") is None else integer(config, "sliding_window")
    if window == 1:
        raise ModelError("config.json: sliding_window is 1, so that rows see nothing but themselves, expected 2 or more")
    return None if window is None else window - 1


# ---- rotary positions


def rotary_of(config: Mapping[str, Any], dim: int, kind: str | None = None, partly: bool = False) -> Rotary:
    """Return the rotary positions that config.json says, scaled as it says; `kind`: of layer, where it says it for each kind; `partly`:
    whether the family knows positions that turn a part of a head.

    Raises ModelError. Source: transformers 5, modeling_rope_utils.py.
    """
    said = scaling_said(config)
    if kind is not None and isinstance(said.get(kind), dict):
        said = said[kind]
    elif kind is None and any(isinstance(one, dict) for one in said.values()):
        raise ModelError(f"config.json: rope_parameters is {said!r:.60}, expected them for all layers alike")
    base = number({"rope_theta": said.get("rope_theta", config.get("rope_theta", 10000.0))}, "rope_theta", 10000.0)
    part = number({"partial_rotary_factor": said.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))},
                  "partial_rotary_factor", 1.0)  # fmt: skip
    if not partly and part != 1:
        raise ModelError(f"config.json: partial_rotary_factor is {part:g}, which is not supported: {WHOLE}")
    dims = int(dim * part)
    if dims < 2 or dims % 2 or not 0 < part <= 1 or base <= 1:
        raise ModelError(f"config.json: positions turn {dims} of {dim} numbers with base {base:g}, which is not possible")
    plain = [base ** (-2 * place / dims) for place in range(dims // 2)]
    name = said.get("rope_type", said.get("type", "default"))
    if name not in SCALINGS:
        raise ModelError(f"config.json: positions are scaled by {name!r:.60}, which is not supported; supported: {', '.join(SCALINGS)}")
    return SCALINGS[name](plain, base, said, config)


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


def _llama3(plain: list[float], base: float, said: Mapping[str, Any], config: Mapping[str, Any]) -> Rotary:
    factor, low, high = (_positive(said, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = _positive(said, "original_max_position_embeddings")
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
    original = _positive({"original_max_position_embeddings": config.get("max_position_embeddings")} | dict(said),
                         "original_max_position_embeddings")  # fmt: skip
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


def _positive(said: Mapping[str, Any], key: str) -> float:
    return number({key: said.get(key)}, key, 0)


# "dynamic" changes nothing up to max_position_embeddings, which no text is longer than
SCALINGS: dict[str, Scaling] = {
    "default": _plain, "linear": _linear, "dynamic": _plain, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope,
}  # fmt: skip


# ---- tensors


def decoder_sources(norms: str = "as is") -> dict[str, Source]:
    """Return where the weights of a Llama come from, and of those that call theirs alike; `norms`: the transform of norms."""
    layer = "layers.{}."
    return {
        "embedding.words": Source("as is", ("embed_tokens.weight",)),
        "final.norm.weight": Source(norms, ("norm.weight",)),
        "head.words.weight": Source("as is", ("lm_head.weight",)),
        **{key: one for m in "qkv" for key, one in pair(f"{layer}attention.{m}", f"{layer}self_attn.{m}_proj", "heads").items()},
        **pair(f"{layer}attention.o", f"{layer}self_attn.o_proj", "transpose"),
        **{f"{layer}attention.{m}.norm.weight": Source(norms, (f"{layer}self_attn.{m}_norm.weight",)) for m in "qk"},
        f"{layer}attention.norm.weight": Source(norms, (f"{layer}input_layernorm.weight",)),
        f"{layer}mlp.norm.weight": Source(norms, (f"{layer}post_attention_layernorm.weight",)),
        **pair(f"{layer}mlp.up", f"{layer}mlp.up_proj"),
        **pair(f"{layer}mlp.gate", f"{layer}mlp.gate_proj"),
        **pair(f"{layer}mlp.down", f"{layer}mlp.down_proj", "transpose"),
    }


DROPPED = {
    r"lm_head\.weight": "a repetition of the word embeddings",
}
TIED = ("lm_head.weight", "embed_tokens.weight")
