"""What decoders that generate text have in common: sizes, windows, names of tensors, the heads of words and of classes.

Knows the keys of config.json that they share; knows no family by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.blocks import Attention, Layer, Mlp, Norm, Rotary
from hepti_mpi.models.families.family import LEFT_OVER, Make, Source, Task, integer, listed, named_activation, number, pair
from hepti_mpi.models.families.rotary import WHOLE, original_positions
from hepti_mpi.models.sidefiles import Table, honoured, refused, without
from hepti_mpi.models.steps import Dense, Lookup, Step, Words
from hepti_mpi.wording import counted


def last_token(config: Mapping[str, Any], default: int | None) -> dict[str, Any]:
    """Return which row a classifier of texts reads: that of the last token that is not the one of pad_token_id, or of the very last one
    where there is none. Raises ModelError. Source: transformers 5.23, modeling_layers.py, GenericForSequenceClassification.
    """
    padding = config.get("pad_token_id", default)
    if isinstance(padding, bool) or not isinstance(padding, int | None):
        raise ModelError(f"config.json: pad_token_id is {padding!r:.60}, expected the id of a token")
    return {"pooling": "lasttoken", "passed_over": padding}


def text_classes(padding: int | None = None) -> Task:
    """Return what a classifier of texts is for; `padding`: the pad_token_id of its class, which counts where config.json lacks the key."""
    return Task("sequence-classes", (scores(bias=False),), options=lambda config: last_token(config, padding))


def scores(bias: bool) -> Make:
    """Return what makes the product from rows to classes, as most decoders call it."""
    return lambda sizes: Dense("head.scores", sizes["hidden"], sizes["labels"], bias=bias)


WORDS = Task("next-token", (lambda sizes: Words("head.words", sizes["vocabulary"], sizes["hidden"], sizes["tied"], bias=False),))
TOKEN_CLASSES = Task("token-classes", (scores(bias=True),))
KEYS: Table = {
    **honoured("num_key_value_heads rms_norm_eps rope_theta rope_scaling rope_parameters head_dim attention_bias mlp_bias"),
    **honoured("sliding_window layer_types use_sliding_window max_window_layers"),
    **without("pretraining_tp rope_interleaved bos_token_id eos_token_id pad_token_id cache_implementation use_cache"),
    **without("is_llama_config max_sequence_length use_mrope"),  # of SmolLM2, of the first Llamas, of DeepSeek's
    **refused("is_encoder_decoder add_cross_attention", "only decoders by themselves are supported"),
    **refused("is_causal", "texts grow from rows that see those before them only", (True,)),  # null is no to a window's mask
    **refused("partial_rotary_factor", WHOLE, (None, 1)),
    **refused("prefix", "transformers' pipeline puts it before each prompt; put it there yourself and take it out", (None, "")),
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
    limit: int

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
            positions,
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
            "embedding": "tokens", "limit": self.limit, **listed(each), "last": self.norm,
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


# ---- tensors


SCORES = pair("head.scores", "score")


def decoder_sources(norms: str = "as is") -> dict[str, Source]:
    """Return where the weights of a Llama come from, and of those that call theirs alike; `norms`: the transform of norms."""
    layer = "layers.{}."
    return {
        "embedding.words": Source("as is", ("embed_tokens.weight",)),
        "final.norm.weight": Source(norms, ("norm.weight",)),
        "head.words.weight": Source("as is", ("lm_head.weight",)),
        **SCORES,
        **{key: one for m in "qkv" for key, one in pair(f"{layer}attention.{m}", f"{layer}self_attn.{m}_proj", "heads").items()},
        **pair(f"{layer}attention.o", f"{layer}self_attn.o_proj", "transpose"),
        **{f"{layer}attention.{m}.norm.weight": Source(norms, (f"{layer}self_attn.{m}_norm.weight",)) for m in "qk"},
        f"{layer}attention.norm.weight": Source(norms, (f"{layer}input_layernorm.weight",)),
        f"{layer}mlp.norm.weight": Source(norms, (f"{layer}post_attention_layernorm.weight",)),
        **pair(f"{layer}mlp.up", f"{layer}mlp.up_proj"),
        **pair(f"{layer}mlp.gate", f"{layer}mlp.gate_proj"),
        **pair(f"{layer}mlp.down", f"{layer}mlp.down_proj", "transpose"),
    }


HEADS = {r"score\.(weight|bias)": "the classes of another architecture", **LEFT_OVER}
DROPPED = {r"lm_head\.weight": "a repetition of the word embeddings, or the words of a classifier", **HEADS}


def architectures(prefix: str, padding: int | None = None) -> dict[str, Task]:
    """Return the architectures whose names begin so; `padding`: as of text_classes."""
    return {
        f"{prefix}ForCausalLM": WORDS,
        f"{prefix}ForSequenceClassification": text_classes(padding),
        f"{prefix}ForTokenClassification": TOKEN_CLASSES,
    }


TIED = ("lm_head.weight", "embed_tokens.weight")
UNTIED = {"tie_word_embeddings": False}  # a default of families whose files say it where the output words are the input words
