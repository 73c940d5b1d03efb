"""DINOv2, with registers and without: a ViT that scales what its blocks give, and whose positions follow the size of the pictures."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.blocks import Attention, Layer, Mlp, Norm
from hepti_mpi.models.families.family import (
    Family,
    Sizes,
    Source,
    Task,
    check_head_dim,
    integer,
    listed,
    number,
    pair,
    shared_fields,
    square,
    yes,
)
from hepti_mpi.models.families.vit import VIT
from hepti_mpi.models.sidefiles import honoured, without
from hepti_mpi.models.steps import Dense, Lookup, Patches


def dinov2_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of a DINOv2. Raises ModelError."""
    image, patch, channels = square(config, "image_size", 224), square(config, "patch_size", 14), integer(config, "num_channels", 3)
    own = {"layer_norm_eps": 1e-6, "num_hidden_layers": 12}
    shared, registers = shared_fields(own | dict(config)), integer(config, "num_register_tokens", 4) if registered(config) else 0
    hidden, heads = shared["hidden"], shared["heads"]
    if image < patch or hidden % heads:
        raise ModelError(f"config.json: image_size {image} in patches of {patch} or hidden_size {hidden} in heads of {heads} leaves a rest")
    check_head_dim(config, shared)
    width, gated = int(hidden * number(config, "mlp_ratio", 4)), yes(config, "use_swiglu_ffn", False)
    width = (int(width * 2 / 3) + 7) // 8 * 8 if gated else width  # source: Dinov2SwiGLUFFN, transformers 5.23
    norm = Norm(hidden, shared["norm_eps"])
    attention = Attention(hidden, heads, hidden // heads, biases="qkvo" if yes(config, "qkv_bias", True) else "o")
    mlp = Mlp(hidden, width, "silu" if gated else shared["activation"], gated)
    layer = Layer(attention, mlp, before=(norm, norm), scaled=True)
    positions = 1 + registers + (image // patch) ** 2
    options = {"image_size": image, "patch_size": patch, "channels": channels, "registers": registers}
    fields = {
        "ffn": width,
        "last": norm,
        "embedding": "patches",
        "positions": positions,
        "options": options | {"table": square(config, "table_size", image) // patch},
        # rows of positions: the class token, the registers, and patches with the bias of their projection
        "front": (Patches("embedding.patches", channels * patch**2, hidden), Lookup("embedding.positions", "positions", positions, hidden)),
    }
    return shared | fields | listed([layer] * shared["layers"])


def registered(config: Mapping[str, Any]) -> bool:
    """Tell whether it is the family that has registers."""
    return config.get("model_type") == "dinov2_with_registers"


def classes(sizes: Sizes) -> Dense:
    """Return the product from the class token and the mean of the patches to classes."""
    return Dense("head.classes", 2 * sizes["hidden"], sizes["labels"])


CLASSES = Task("image-classes", (classes,), options=lambda config: {"pooling": "cls+patches"})
LAYER = "encoder.layer.{}"
TABLES = ("embeddings.position_embeddings", "embeddings.cls_token", "embeddings.patch_embeddings.projection.bias")
SOURCES = {
    "embedding.patches": Source("patches", ("embeddings.patch_embeddings.projection.weight",)),
    "embedding.positions": Source("positions bicubic", TABLES),
    **{name: source for name, source in VIT.sources.items() if ".attention." in name or name.startswith("final.")},
    **{name: replace(source, option=None) for name, source in VIT.sources.items() if name.endswith(("q.bias", "k.bias", "v.bias"))},
    **pair("layers.{}.attention.norm", f"{LAYER}.norm1"),
    "layers.{}.attention.scale": Source("as is", (f"{LAYER}.layer_scale1.lambda1",)),
    **pair("layers.{}.mlp.norm", f"{LAYER}.norm2"),
    "layers.{}.mlp.scale": Source("as is", (f"{LAYER}.layer_scale2.lambda1",)),
    **pair("layers.{}.mlp.up", f"{LAYER}.mlp.fc1", other=pair("", f"{LAYER}.mlp.weights_in", part=(1, 2))),
    **pair("layers.{}.mlp.gate", f"{LAYER}.mlp.weights_in", part=(0, 2), other=pair("", f"{LAYER}.mlp.gate_proj")),
    **pair("layers.{}.mlp.down", f"{LAYER}.mlp.fc2", "transpose", other=pair("", f"{LAYER}.mlp.weights_out", "transpose")),
    **pair("head.classes", "classifier"),
}

# in memory, and so in a state_dict that was saved as it is, transformers 5 calls them so; save_pretrained of 5.23 writes the names above
RENAMES = (
    (r"^encoder\.layer\.(\d+)\.attention\.q_proj\.", r"encoder.layer.\1.attention.attention.query."),
    (r"^encoder\.layer\.(\d+)\.attention\.k_proj\.", r"encoder.layer.\1.attention.attention.key."),
    (r"^encoder\.layer\.(\d+)\.attention\.v_proj\.", r"encoder.layer.\1.attention.attention.value."),
    (r"^encoder\.layer\.(\d+)\.attention\.o_proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"^encoder\.layer\.(\d+)\.mlp\.up_proj\.", r"encoder.layer.\1.mlp.fc1."),
    (r"^encoder\.layer\.(\d+)\.mlp\.down_proj\.", r"encoder.layer.\1.mlp.fc2."),
)


def family(kind: str, prefix: str, sources: Mapping[str, Source]) -> Family:
    """Return one of the two families, whose architectures begin with `kind`."""
    return Family(
        name="dinov2",
        fields=dinov2_fields,
        prefixes=(f"{prefix}.",),
        architectures={f"{kind}Model": Task("none"), f"{kind}ForImageClassification": CLASSES},
        sources=sources,
        renames=RENAMES,
        dropped={r"embeddings\.mask_token": "masked image modelling", r"classifier\.(weight|bias)": "a head of another architecture"},
        keys={
            **honoured("mlp_ratio use_swiglu_ffn num_register_tokens"),
            **without("layerscale_value apply_layernorm reshape_hidden_states use_mask_token interpolate_*"),
        },
        resized=True,
    )


REGISTERED = {"embedding.positions": Source("positions smooth", (*TABLES, "embeddings.register_tokens"))}
MODEL_TYPES = {
    "dinov2": family("Dinov2", "dinov2", SOURCES),
    "dinov2_with_registers": family("Dinov2WithRegisters", "dinov2_with_registers", SOURCES | REGISTERED),
}
