"""StarCoder2: what its config.json and its tensors are called."""

from collections.abc import Mapping
from typing import Any

from hepti_mpi.models.blocks import Layer, Norm
from hepti_mpi.models.families.decoders import (
    DROPPED,
    KEYS,
    TIED,
    Sizes,
    activation,
    architectures,
    check_alike,
    decoder_sources,
    window_of,
)
from hepti_mpi.models.families.family import Family, number, pair, yes
from hepti_mpi.models.families.rotary import rotary_of
from hepti_mpi.models.sidefiles import honoured, refused, without

OTHER = "transformers passes over it"  # and answers as if it were not there


def starcoder2_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of a StarCoder2, whose layers all may look back so far only. Raises ModelError."""
    sizes = Sizes.of(dict(config) | {"rms_norm_eps": number(config, "norm_epsilon", 1e-5)})
    check_alike(config, sizes, window_of(config))
    norm, biased = Norm(sizes.hidden, sizes.eps), yes(config, "use_bias", True)
    attention = sizes.attention(rotary_of(config, sizes.dim), window=window_of(config), biases="qkvo" if biased else "")
    mlp = sizes.mlp(activation(config, "hidden_act", default="gelu_pytorch_tanh"), gated=False, bias=biased)
    return sizes.fields([Layer(attention, mlp, before=(norm, norm))] * sizes.layers) | {"last": norm}


SOURCES = {
    **decoder_sources(),
    **pair("final.norm", "norm"),
    **pair("layers.{}.attention.norm", "layers.{}.input_layernorm"),
    **pair("layers.{}.mlp.norm", "layers.{}.post_attention_layernorm"),
    **pair("layers.{}.mlp.up", "layers.{}.mlp.c_fc"),
    **pair("layers.{}.mlp.down", "layers.{}.mlp.c_proj", "transpose"),
}
STARCODER2 = Family(
    name="starcoder2",
    fields=starcoder2_fields,
    prefixes=("model.",),
    architectures=architectures("Starcoder2"),
    sources=SOURCES,
    dropped=DROPPED,
    tied=TIED,
    keys={
        **KEYS,
        **honoured("norm_epsilon use_bias"),
        **refused("mlp_type", OTHER, (None, "default")),
        **refused("norm_type", OTHER, (None, "layer_norm")),
        **without("activation_function layer_norm_epsilon"),  # of the model that it was made after
    },
    tokenizer="GPT2Tokenizer",
    defaults={"num_key_value_heads": 2, "max_position_embeddings": 4096},
)
MODEL_TYPES = {"starcoder2": STARCODER2}
