"""ViT, and DeiT without a distillation token: what their config.json and their tensors are called."""

from collections.abc import Mapping
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.families.family import (
    CLASSES,
    LEFT_OVER,
    POOLER,
    Family,
    Source,
    Task,
    alike,
    check_head_dim,
    integer,
    pair,
    shared_fields,
    square,
)
from hepti_mpi.models.steps import Lookup, Patches


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
    check_head_dim(config, shared)
    channels, positions, hidden = integer(config, "num_channels", 3), (image // patch) ** 2 + 1, shared["hidden"]
    options = {"image_size": image, "patch_size": patch, "channels": channels, "qkv_bias": qkv_bias}
    # row 0 of positions holds the class token, the others the bias of the patch projection: one addition at run time
    tables = Patches("embedding.patches", channels * patch**2, hidden), Lookup("embedding.positions", "positions", positions, hidden)
    fields = {"embedding": "patches", "positions": positions, "options": options, "front": tables}
    return shared | alike(shared, first=True) | fields


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
VIT = Family(
    name="vit",
    fields=vit_fields,
    prefixes=("vit.",),
    architectures={"ViTModel": Task("pooler", (POOLER,)), "ViTForImageClassification": Task("image-classes", (CLASSES,))},
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
    architectures={name.replace("ViT", "DeiT"): task for name, task in VIT.architectures.items()} | dict(VIT.architectures),
    sources=VIT_SOURCES,
    renames=VIT_RENAMES,
    dropped=VIT.dropped,
    refused={"embeddings.distillation_token": DISTILLED},
)
MODEL_TYPES = {"vit": VIT, "deit": DEIT}
