"""How many bytes a rank needs besides the weights of its layers: buffers, inner values, keys and values, words; and those of the layers
that are in memory where they are read from a file. Pure; knows nothing of time and of machines."""

from collections.abc import Collection, Sequence

import numpy as np

from hepti_mpi.comm.sizes import FLOAT
from hepti_mpi.models.blocks import Attention, Layer, Weight
from hepti_mpi.models.formats import F32, Format
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.program.buffers import Laid, buffers
from hepti_mpi.program.build import PAGED_BYTES

FULL = "float32"  # of keys and values, where nobody says
PADDED_SCORES = 0.3  # of rows x hidden: padding that a batch may add to its attention scores, at most a twentieth of its multiply-adds


def activation_widths(laid: Laid) -> tuple[float, float]:
    """Return the elements that the engine's buffers hold per row of the batch and per row of the rank's own."""
    tiles = 1 + max(value.tile or 0 for value in laid.values.values())
    held = {number: laid.values[name] for name, number in buffers(laid).items()}
    full, own = 0.0, 0.0
    for value in held.values():
        part = 1.0 if value.tile is None else 1 / tiles
        full, own = full + part * value.width * (value.rows == "full"), own + part * value.width * (value.rows == "rows")
    return full, own


def activation_bytes(
    spec: ModelSpec, widths: tuple[float, float], rows: int, longest: int, own: np.ndarray, part: np.ndarray
) -> np.ndarray:  # fmt: skip
    """Return, per rank, the bytes of its buffers and of the largest segment's inner values for a batch of `rows` rows.

    `longest`: rows of the longest request in it; `own`: the rank's rows; `part`: its part of the attention scores, 0 to 1.
    """
    padded = PADDED_SCORES * rows * spec.hidden if longest < rows else 0  # what batching allows beyond the requests' own scores
    inner, scores = (max(sizes) for sizes in zip(*(_inner(layer, longest) for layer in spec.kinds)))
    return (widths[0] * rows + widths[1] * own + rows * inner + scores * (rows * longest + padded) * part) * FLOAT


def cache_bytes(blocks: Sequence[Attention], heads: int, kind: str = FULL) -> int:
    """Return the bytes that the keys and values of one row take in layers with these attentions, of so many heads of each, as numbers of a
    `kind`."""
    return sum(2 * np.dtype(kind).itemsize * heads * block.dim for block in blocks)


def less_cache(kind: str) -> str:
    """Return the options with which keys and values that are numbers of a `kind` take less."""
    return "--slots and --context" + ", or with --cache-format float16" * (kind == FULL)


def word_table(spec: ModelSpec) -> Weight:
    """Return the table by which rows become logits of a text, as it is stored."""
    return spec.stored(spec.words.rows)


def word_bytes(spec: ModelSpec, paged: Collection[Format] = ()) -> int:
    """Return the bytes that it takes in memory; `paged`: as of layer_bytes."""
    table = word_table(spec)
    return 0 if table.format in paged else table.held


def making_bytes(spec: ModelSpec, paged: Collection[Format]) -> int:
    """Return how many bytes of weights are in memory at most while files are made, or opened, with weights as kernels read them: those of
    a segment, or of the words; of a small model all it has. 0 where there are no such files: float32 weights alone stay in the store's."""
    if set(paged) <= {F32}:
        return 0
    words = word_bytes(spec) if spec.generates else 0
    return max(min(PAGED_BYTES, spec.layers * spec.bytes_of_layer), spec.bytes_of_layer, words)


def _inner(layer: Layer, longest: int) -> tuple[int, float]:
    """Return the most numbers that a row has inside a segment, and those per pair of rows: scores, and what is added to them."""
    attention, mlp = layer.attention, layer.mlp
    within = min(1.0, sum(attention.piece) / longest) if attention.piece else 1.0
    pairs = attention.heads * (3 if attention.relative else 2) + (not attention.plain)
    return max(len(mlp.inner) * mlp.width, 2 * (attention.width + 2 * attention.kv_width)), pairs * within
