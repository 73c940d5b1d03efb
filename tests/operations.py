"""One operation of each kind, for tests of what is said about them."""

from dataclasses import replace

from hepti_mpi.models.blocks import Norm, rotary
from hepti_mpi.program import ops


def operations(spec, layer=0, reads=("a", "b"), writes=("c",)):
    """By what people read of it, every operation that a layer of `spec` may have, on values of the same names."""
    block = spec.layer(layer)
    norm = block.norm_before("mlp") or block.norm_after("mlp")
    at = (layer, reads, writes)
    name = f"layers.{layer}.mlp"
    of_heads = Norm(block.attention.dim, 1e-6, "rms")
    turned = replace(block.attention, rotary=rotary(block.attention.dim, 10000.0), q_norm=of_heads, k_norm=of_heads)
    made = [ops.Norm(*at, norm, f"{name}.norm"), ops.AddNorm(*at, block, "mlp", norm, f"{name}.norm"),
            ops.Join(*at, spec.hidden, True), *(ops.Project(*at, block.attention, matrices) for matrices in ("qkv", "q", "kv")),
            *(ops.Cast(*at, spec.hidden, spec.heads, dtype, axis=axis) for dtype in ("float16", "float32") for axis in (None, "heads")),
            *(ops.Cast(layer, reads[:1], ("s", "t"), spec.hidden, spec.heads, "int8", spec.heads, axis=axis) for axis in (None, "heads")),
            *(ops.Cast(layer, ("s", "t"), writes, spec.hidden, spec.heads, "float32", spec.heads, axis=axis) for axis in (None, "heads")),
            *(kind(*at, block.attention, axis=axis) for kind in (ops.Mix, ops.Out) for axis in (None, "heads")),
            *(kind(*at, turned, some, axis=axis) for kind in (ops.HeadNorm, ops.Rotate) for some, axis in (("qk", "heads"), ("k", None))),
            *(ops.Mlp(*at, block.mlp, axis=axis) for axis in (None, "columns")),
            ops.Project(*at, block.attention, "qkv", axis="heads")]  # fmt: skip
    return {op.label: op for op in made}
