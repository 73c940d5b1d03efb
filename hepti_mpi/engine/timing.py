"""The kernels by which a machine's speed is timed, as the engine runs its own. Knows no clock, store, plan or exchange."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import TensorProto

from hepti_mpi.cluster.boards import Work
from hepti_mpi.cluster.profile import CACHES, PLAIN
from hepti_mpi.engine import pages
from hepti_mpi.engine.caching import ALL_KEYS, ALL_ROWS, KEYS, ROWS, attention_chain
from hepti_mpi.engine.glance import PROBE_BYTES, chained, format_of, probe, products
from hepti_mpi.engine.graph import Graph
from hepti_mpi.engine.imagined import MadeUp, TextLayers, beyond_caches, divided, text_layers
from hepti_mpi.engine.kernels import WITHOUT_BIAS, activate, attend
from hepti_mpi.engine.packing import pack
from hepti_mpi.engine.products import Made, Product
from hepti_mpi.engine.sessions import bound
from hepti_mpi.models.blocks import Attention
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.memory import word_table
from hepti_mpi.weights.slices import Slice, span

KEPT_BYTES, KEPT_ROWS = 32 << 20, 1024  # of keys and values in float32, and how many rows they are of


@dataclass(frozen=True)
class Layers:
    """A chain of whole layers, as a model has them: `call(lengths)` runs it on requests of these lengths, `work(lengths)` says what it
    does."""

    call: Callable[[Sequence[int]], Callable[[], None]]
    work: Callable[[Sequence[int]], Work]


@dataclass(frozen=True)
class Behind:
    """A chain of attentions that are larger than most caches of a processor: `call(cache, length)` adds a row of a text behind `length`
    rows whose keys and values are of the numbers `cache`, `work(length)` says what it does."""

    call: Callable[[str, int], Callable[[], None]]
    work: Callable[[int], Work]


@dataclass(frozen=True)
class Timers:
    """What is timed: each call runs a kernel once. `gemm(rows)` multiplies by `weights` weights, of which a part is in each of
    `formats`; `attention(requests, length)` does that of so many requests; `elements`, `activations` and `casts` handle `rows` x `hidden`
    elements; `nothing` has next to nothing to do. `between` multiplies by some weights, as the engine does between two others of these:
    they find its caches then, not their own. `layers`: all of that together, where the model's layers are of a usual kind. `cached` and
    `texts`, whole layers, a large part of each and a small one, and `table`, some rows times a table of words, of so many bytes: of a
    model that generates text."""

    gemm: Callable[[int], Callable[[], None]]
    weights: int
    attention: Callable[[int, int], Callable[[], None]]
    elements: Callable[[], None]
    activations: Callable[[], None]
    casts: Callable[[], None]
    rows: int
    hidden: int
    nothing: Callable[[], None]
    between: Callable[[], None]
    formats: Mapping[str, float] = field(default_factory=lambda: PLAIN)
    layers: Layers | None = None
    cached: Behind | None = None
    texts: Sequence[TextLayers] = ()
    table: tuple[Callable[[int], Callable[[], None]], int] | None = None


def timers(spec: ModelSpec, threads: int, used: Mapping[str, float], whole: bool = True, most: int = sys.maxsize) -> Timers:
    """Return the kernels that are timed, whose sessions are all made here, where this thread may use all of the rank's cores: their threads
    start with those. They are at the shapes of `spec`: chains of MLP products that are larger than most caches, as the layers of a model
    are, attention among packed requests, one LayerNorm with residual, and one activation. `used`: the part of the weights in each format;
    `whole`: with whole layers; `most`: bytes of weights that whole layers of texts may have, and a table: fewer than outdo all caches."""
    held = min(most, beyond_caches())
    hidden, (tile, weights) = spec.hidden, chained(spec)
    gemm, between = products(spec, threads, used), products(spec, threads, used, 1)
    mixing = Graph()
    dim = spec.layer(0).attention.dim
    plain = Attention(hidden, max(1, hidden // dim), dim)  # heads may be wider than rows
    attend(mixing, plain, "qkv", "y", plain.heads)
    attention = probe(mixing, ["q", "k", "v", *mixing.indexes], threads)
    norm = Graph()
    one = norm.constant("ones", np.ones(hidden, np.float32))
    norm.node("LayerNormalization", [norm.node("Add", ["x", norm.node("Add", ["p", one])]), one, one], ["y"], axis=-1)
    elements = probe(norm, ["x", "p"], threads)
    turning = Graph()
    kind = spec.layer(0).mlp.activation
    activate(turning, kind, "x", None if kind in WITHOUT_BIAS else turning.constant("ones", np.ones(hidden, np.float32)), "y")
    activations = probe(turning, ["x"], threads)
    casting = Graph()
    casting.node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)
    casts = probe(casting, ["x"], threads, TensorProto.FLOAT16)
    rows = min(128, spec.positions)
    some = {count: np.resize(tile, (count, hidden)) for count in (1, rows)}
    product = np.empty((rows, hidden), np.float32)  # what the others handle lies where the threads of a product have left it

    def of_rows(count: int) -> Callable[[], None]:
        feed = {"x": np.resize(tile, (count, hidden))}
        return lambda: gemm.run(None, feed)

    def of_requests(count: int, length: int) -> Callable[[], None]:
        values = np.resize(tile, (count * length, plain.width))
        feed = {"q": values, "k": values, "v": values, **vars(pack([length] * count, 0, count * length))}
        return bound(attention, feed, np.empty_like(values))

    return Timers(
        gemm=of_rows,
        weights=weights,
        attention=of_requests,
        elements=bound(elements, {"x": some[rows], "p": product}, np.empty((rows, hidden), np.float32)),
        activations=bound(activations, {"x": product}, np.empty((rows, hidden), np.float32)),
        casts=bound(casts, {"x": product}, np.empty((rows, hidden), np.float16)),
        rows=rows,
        hidden=hidden,
        nothing=bound(casts, {"x": some[1]}, np.empty((1, hidden), np.float16)),
        between=bound(between, {"x": some[rows]}, product),
        formats=used,
        layers=_layers(spec, threads, plain, used) if whole else None,
        cached=_cached(spec, threads) if spec.generates else None,
        texts=[text_layers(part, threads) for part in divided(spec, held)] if spec.generates and whole else (),
        table=_table(spec, threads, held) if spec.generates and whole else None,
    )


def _table(spec: ModelSpec, threads: int, held: int) -> tuple[Callable[[int], Callable[[], None]], int]:
    """Return some rows times `held` bytes of the table of words, or all of it, and the bytes of that in memory."""
    weight = word_table(spec)
    (words, width), every = weight.shape, weight.format.held(weight.shape, 1)
    piece = replace(span(weight, 0, min(words, -(-held // max(1, every // words)))), inner=1)
    chain = Graph()
    Product(chain, Made(MadeUp(spec).parts(piece)), "x", piece, looks=False).write(None, "y")
    made = probe(chain, ["x"], threads)
    pages.settle()  # as it lies when it is loaded

    def of_rows(count: int) -> Callable[[], None]:
        return bound(made, {"x": np.full((count, width), 0.5, np.float32)}, np.empty((count, piece.shape[0]), np.float32))

    return of_rows, piece.format.held(piece.shape, 1)


def _cached(spec: ModelSpec, threads: int) -> Behind:
    """Return attention of one row, at the shapes of the first layer."""
    block = replace(spec.layer(0).attention, window=None, rotary=None)
    layers = max(1, min(spec.layers, KEPT_BYTES // (2 * KEPT_ROWS * block.kv_width * 4)))

    def of_row(cache: str, length: int) -> Callable[[], None]:
        shape = 2, layers, 1, block.kv_count, length + 1, block.dim
        keys, values = np.full(shape, 0.5, cache)
        widths = {"x": block.width, "k": block.kv_width, "v": block.kv_width}
        rows = {name: np.full((1, width), 0.5, np.float32) for name, width in widths.items()}
        told = {"shape": np.array([1, 1, -1]), "reach": np.array([length], np.int32), "most": np.array(length + 1, np.int32)}
        before = {name.format(layer): every[layer] for layer in range(layers) for name, every in ((KEYS, keys), (ROWS, values))}
        after = {name.format(layer): every[layer] for layer in range(layers) for name, every in ((ALL_KEYS, keys), (ALL_ROWS, values))}
        return bound(made[cache], {**rows, **told, **before}, np.empty_like(rows["x"]), after)

    made = {cache: attention_chain(block, layers, cache, threads) for cache in CACHES}
    return Behind(of_row, lambda length: Work(attention=2.0 * layers * block.width * (length + 1), arranged=layers * block.width))


def _layers(spec: ModelSpec, threads: int, attention: Attention, used: Mapping[str, float]) -> Layers | None:
    """Return a chain of whole layers, as many as the model has or outdo most caches; None where its layers are not of this kind."""
    mlp, hidden, columns, width = spec.layer(0).mlp, spec.hidden, spec.ffn, attention.width
    biases, early = spec.layer(0).attention.biases.replace("k", ""), mlp.activation in WITHOUT_BIAS  # that of K is left out
    if mlp.gated or spec.generates:
        return None
    sizes = [(width, hidden)] * 3 + [(hidden, width), (columns, hidden), (hidden, columns)]  # (outputs, inputs)
    weights = sum(outputs * inputs for outputs, inputs in sizes)
    count, chain, value = max(1, min(spec.layers, PROBE_BYTES // (4 * weights))), Graph(threads), "x"
    one, tile = chain.constant("ones", np.ones(hidden, np.float32)), chained(spec)[0].ravel()

    def bias(size: int) -> str:
        return chain.constant(f"bias_{size}", np.zeros(size, np.float32))

    def multiply(number: int, place: int, x: str, added: str | None = None) -> str:
        matrix = np.resize(tile, sizes[place]) * np.float32(1 + (number * len(sizes) + place) / 256)  # equal ones would be kept once
        kind = format_of((number + 0.5) / count, used)
        piece = Slice(f"{number}.{place}", 0, matrix.shape, kind, 1)
        return Product(chain, Made(kind.encode(matrix, 1)), x, piece, looks=False).write(added, None)

    def tail(block: str, x: str, biased: bool, output: str | None = None) -> str:
        total = chain.node("Add", [x, chain.node("Add", [block, bias(hidden)]) if biased else block])
        return chain.node("LayerNormalization", [total, one, one], [output] if output else None, axis=-1)

    for number in range(count):
        read = [multiply(number, place, value, bias(width) if name in biases else None) for place, name in enumerate("qkv")]
        attend(chain, attention, read, f"a{number}", attention.heads)
        middle = tail(multiply(number, 3, f"a{number}"), value, "o" in biases)
        wide = multiply(number, 4, middle, bias(columns) if mlp.bias and early else None)
        wide = activate(chain, mlp.activation, wide, bias(columns) if mlp.bias and not early else None)
        value = tail(multiply(number, 5, wide), middle, mlp.bias, "y" if number == count - 1 else f"x{number}")
    made = probe(chain, ["x", *chain.indexes], threads)

    def of_requests(lengths: Sequence[int]) -> Callable[[], None]:
        values = np.resize(tile, (sum(lengths), hidden))
        return bound(made, {"x": values, **vars(pack(lengths, 0, len(values)))}, np.empty_like(values))

    def work(lengths: Sequence[int]) -> Work:
        rows, laid_out = sum(lengths), float(len(lengths) * max(lengths) * width) * count
        products = tuple((rows, count * weights * part, name) for name, part in used.items())
        return Work(products, 2 * laid_out * max(lengths), laid_out, 2.0 * count * rows * hidden, float(count * rows * columns))

    return Layers(of_requests, work)
