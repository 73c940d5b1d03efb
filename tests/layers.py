"""Tiny models whose layers have what layers may have, for tests: each property in at least one of them."""

import zlib
from dataclasses import replace
from functools import cache

import numpy as np

from hepti_mpi.models.blocks import Attention, Layer, Mlp, Norm, Relative, Rotary, plain, rotary
from hepti_mpi.models.checkpoints.modelfiles import ModelFiles
from hepti_mpi.models.spec import ModelSpec, named_weights

HIDDEN, FFN, EPS = 56, 101, 1e-5
LAYER, BARE, RMS = Norm(HIDDEN, EPS), Norm(HIDDEN, EPS, bias=False), Norm(HIDDEN, EPS, "rms")


def local_and_global():
    """Two rotary bases, a window in some layers, no biases, a gated MLP; the first layer has no norm before its attention."""
    near = Attention(HIDDEN, 7, 8, biases="", rotary=rotary(8, 100.0), window=2)
    far = Attention(HIDDEN, 7, 8, biases="", rotary=rotary(8, 10000.0))
    mlp = Mlp(HIDDEN, FFN, "gelu", gated=True, bias=False)
    kinds = Layer(far, mlp, before=(None, BARE)), Layer(near, mlp, before=(BARE, BARE)), Layer(far, mlp, before=(BARE, BARE))
    return 7, kinds, (0, 1, 2, 1), BARE


def grouped():
    """Causal, three heads of Q to one of K and V and wider than the residual, norms of heads, half of each turned, silu gates."""
    head = Norm(10, EPS, "rms")
    turns = Rotary((0.9, 0.2, 0.05), interleaved=True, factor=1.1)
    attention = Attention(HIDDEN, 9, 10, kv_heads=3, biases="qkv", causal=True, rotary=turns, q_norm=head, k_norm=head)
    return 9, (Layer(attention, Mlp(HIDDEN, FFN, "silu", gated=True, bias=False), before=(RMS, RMS)),), (0, 0, 0), RMS


def sandwich():
    """Norms before and after each block, a soft cap, a scale of its own, a causal window in every other layer."""
    parts = {"dim": 12, "kv_heads": 2, "biases": "o", "causal": True, "scale": 0.3, "softcap": 2.0, "rotary": rotary(12, 500.0)}
    mlp, norms = Mlp(HIDDEN, FFN, "gelu_tanh", gated=True, bias=True), {"before": (RMS, RMS), "given": (RMS, RMS)}
    kinds = tuple(Layer(Attention(HIDDEN, 4, window=window, **parts), mlp, **norms) for window in (3, None))
    return 4, kinds, (0, 1, 0), RMS


def relative():
    """Relative positions that all layers share, the norms after the sums."""
    attention = Attention(HIDDEN, 7, 8, relative=Relative(6, 9))
    return 7, (Layer(attention, Mlp(HIDDEN, FFN, "relu"), after=(LAYER, LAYER)),), (0, 0, 0), None


def scaled():
    """What blocks give is scaled; no biases of K; relative positions of what is behind alone."""
    attention = Attention(HIDDEN, 7, 8, biases="qvo", causal=True, relative=Relative(5, 8, both_ways=False))
    return 7, (Layer(attention, Mlp(HIDDEN, FFN, "silu"), before=(LAYER, LAYER), scaled=True),), (0, 0, 0), LAYER


def parallel():
    """Both blocks read the same residual, in every other layer by the same norm."""
    attention = Attention(HIDDEN, 7, 8, causal=True, rotary=rotary(4, 100.0))
    kinds = tuple(Layer(attention, Mlp(HIDDEN, FFN, "gelu"), before=(LAYER, norm), parallel=True) for norm in (LAYER, None))
    return 7, kinds, (0, 1, 0), LAYER


MADE = {made.__name__: made for made in (local_and_global, grouped, sandwich, relative, scaled, parallel)}


@cache
def odd_model(name, layers=3):
    """A model of one of MADE; its weights are large enough that a missing term shows."""
    heads, kinds, order, last = MADE[name]()
    sizes = {"layers": layers, "hidden": HIDDEN, "heads": heads, "ffn": FFN, "positions": 64}
    options = {"vocabulary": 50, "types": 2, "pooler": False}
    spec = ModelSpec("bert", name, **sizes, embedding="tokens", head="none", options=options,
                     kinds=kinds, order=order, last=last)  # fmt: skip

    def stream():
        for weight, shape in ((name, one.shape) for name, one in named_weights(spec)):
            random = np.random.default_rng(zlib.crc32(weight.encode()))
            near = 1.0 if weight.endswith(("norm.weight", "given.weight")) else 0.0
            yield weight, (near + random.normal(0, 0.25, shape)).astype(np.float32)

    return ModelFiles(spec, {"config.json": b"{}"}, "hash", stream)


def sized(spec, norm=None, **sizes):
    """Return `spec` with plain layers of other sizes; `norm`: "pre" or "post", where norms are then."""
    every = {name: sizes.get(name, getattr(spec, name)) for name in ("hidden", "heads", "ffn")}
    one, eps = spec.layer(0), next(made for made in (*spec.layer(0).before, *spec.layer(0).after) if made).eps
    first, made = any(one.before) if norm is None else norm == "pre", Norm(every["hidden"], eps)
    kinds = (plain(**every, activation=one.mlp.activation, norm=made, first=first),)
    return replace(spec, **sizes, kinds=kinds, last=made if first else None)
