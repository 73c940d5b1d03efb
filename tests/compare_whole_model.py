"""Compare one rank of hepti_mpi with whole-model ONNX Runtime sessions of the same weights and format.

    python tests/compare_whole_model.py weights/bert-large-q8.h5 --rows 128 --layers 6

The whole-model sessions have the layers only, [1, rows, hidden] in and out, with ONNX Runtime's defaults and all of its optimisations:
no packing of requests, no plan. They come in two forms: "nodes", as an exporter writes a model (ONNX Runtime fuses it by itself), and
"fused", as its optimiser for transformers does (Attention, SkipLayerNormalization). Of a q8 store they are what its quantize_dynamic makes
of the float32 weights, of a q4 store MatMulNBits of the same blocks at each accuracy level that has a kernel. Requests take turns in one
process. The last line is JSON; the exit code is 1 where one rank takes more than `--limit` times as long as the soonest.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from hepti_mpi.engine import loading
from hepti_mpi.engine import machine as machines
from hepti_mpi.models.formats import Blocks, Columns
from hepti_mpi.program.plan import Plan
from hepti_mpi.weights.slices import Slice
from hepti_mpi.weights.store import Store

MICROSOFT = "com.microsoft"
ACCURACY_LEVELS = (0, 4)  # of MatMulNBits with 4 bits: float32 arithmetic, rows rounded to 8 bits


class Whole:
    """A model of all layers of a store, of BERT's or ViT's kind, from "x" [1, rows, hidden] to "y". `level`: of MatMulNBits, where weights
    are to stay in blocks."""

    def __init__(self, store: Store, fused: bool, level: int | None = None) -> None:
        self.store, self.fused, self.level = store, fused, level
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        spec = store.spec
        self.eps = next(norm.eps for norm in (*spec.layer(0).before, *spec.layer(0).after) if norm)
        self.post = spec.last is None
        x = y = "x"
        if not self.post:
            y = self.node("LayerNormalization", [x, *self.norm("layers.0.attention.norm")], epsilon=self.eps, axis=-1)
        for number in range(spec.layers):
            name = f"layers.{number}"
            following = f"layers.{number + 1}.attention.norm" if number + 1 < spec.layers else "final.norm"
            p = self.matmul(self.attention(y, f"{name}.attention"), f"{name}.attention.o.weight")
            x, y = self.add_norm(x, p, f"{name}.attention.o.bias", f"{name}.attention.norm" if self.post else f"{name}.mlp.norm")
            p = self.node("Add", [self.matmul(y, f"{name}.mlp.up.weight"), self.weight(f"{name}.mlp.up.bias")])
            p = self.matmul(self.node("Gelu", [p], MICROSOFT), f"{name}.mlp.down.weight")
            x, y = self.add_norm(x, p, f"{name}.mlp.down.bias", f"{name}.mlp.norm" if self.post else following)
        self.nodes.append(helper.make_node("Identity", [y], ["y"]))

    def node(self, kind: str, inputs: list[str], domain: str = "", outputs: int = 1, **options: object) -> str:
        names = [f"n{len(self.nodes)}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, domain=domain, **options))
        return names[0]

    def piece(self, name: str) -> Slice:
        piece = self.store.piece(name)
        assert piece is not None
        return piece

    def values(self, name: str) -> np.ndarray:
        piece = self.piece(name)
        return piece.decode(self.store.parts(piece))

    def constant(self, name: str, values: np.ndarray) -> str:
        self.weights[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self.values(name).reshape(-1))

    def norm(self, name: str) -> list[str]:
        return [self.weight(f"{name}.{part}") for part in ("weight", "bias")]

    def matrix(self, name: str) -> np.ndarray:
        """Return a weight as [K, N]."""
        values, inner = self.values(name), self.piece(name).inner
        matrix = values.reshape(-1, values.shape[-1])
        return matrix.T if inner else matrix

    def matmul(self, x: str, name: str) -> str:
        piece = self.piece(name)
        if self.level is None or not isinstance(piece.format, Blocks):
            return self.node("MatMul", [x, self.constant(name, self.matrix(name))])
        values, scales = piece.format.unpacked(self.store.parts(piece), piece.shape, piece.inner)
        inputs = [x, self.constant(name, values), self.constant(f"{name}.scales", scales.astype(np.float32))]
        n, blocks = scales.shape
        return self.node("MatMulNBits", inputs, MICROSOFT, K=self.matrix(name).shape[0], N=n, bits=piece.format.bits,
                         block_size=piece.format.block, accuracy_level=self.level)  # fmt: skip

    def attention(self, y: str, name: str) -> str:
        heads = self.store.spec.heads
        if self.fused:
            joined = self.constant(f"{name}.qkv", np.concatenate([self.matrix(f"{name}.{m}.weight") for m in "qkv"], axis=1))
            bias = self.constant(f"{name}.qkv.bias", np.concatenate([self.values(f"{name}.{m}.bias").reshape(-1) for m in "qkv"]))
            return self.node("Attention", [y, joined, bias], MICROSOFT, num_heads=heads)
        q, k, v = (self.node("Add", [self.matmul(y, f"{name}.{m}.weight"), self.weight(f"{name}.{m}.bias")]) for m in "qkv")
        return self.node("MultiHeadAttention", [q, k, v], MICROSOFT, num_heads=heads)

    def add_norm(self, x: str, p: str, bias: str, norm: str) -> tuple[str, str]:
        """Return the residual sum, as the next block adds to it, and its norm."""
        if self.fused:
            y = self.node("SkipLayerNormalization", [p, x, *self.norm(norm), self.weight(bias)], MICROSOFT, 4, epsilon=self.eps)
            total = f"{y[:-1]}3"
            if self.post:
                del self.nodes[-1].output[1:]
            else:
                self.nodes[-1].output[1:3] = ["", ""]
        else:
            total = self.node("Add", [x, self.node("Add", [p, self.weight(bias)])])
            y = self.node("LayerNormalization", [total, *self.norm(norm)], epsilon=self.eps, axis=-1)
        return (y, y) if self.post else (total, y)

    def model(self) -> onnx.ModelProto:
        info = [helper.make_tensor_value_info(value, TensorProto.FLOAT, [1, None, self.store.spec.hidden]) for value in "xy"]
        graph = helper.make_graph(self.nodes, "whole", info[:1], info[1:], list(self.weights.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)], ir_version=9)


def session(model: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def wholes(store: Store) -> dict[str, onnxruntime.InferenceSession]:
    """Return ONNX Runtime's own sessions of a store's layers by what they are."""
    kind = store.weights["layers.0.mlp.up.weight"].format
    if isinstance(kind, Blocks):
        return {f"nodes, level {level}": session(Whole(store, False, level).model()) for level in ACCURACY_LEVELS}
    found = {}
    for name, fused in (("nodes", False), ("fused", True)):
        model = Whole(store, fused).model()
        if not isinstance(kind, Columns):
            found[name] = session(model)
            continue
        with tempfile.TemporaryDirectory() as folder:
            more = {"DefaultTensorType": TensorProto.FLOAT}  # of what operators of ONNX Runtime's own give
            quantize_dynamic(model, Path(folder) / "q.onnx", weight_type=QuantType.QInt8, extra_options=more)
            del model
            found[name] = session(Path(folder) / "q.onnx")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--limit", type=float, default=1.02, help="exit with 1 when one rank takes more times as long; default: 1.02")
    wanted = parser.parse_args()
    machine = machines.start(wanted.threads)
    store = Store(wanted.store)
    store = store.shortened(wanted.layers or store.spec.layers)
    spec = store.spec
    ready = loading.load(machine, store, Plan.lone(spec, store.source_hash, wanted.rows), None, {})
    others = wholes(store)
    x = np.random.default_rng(0).standard_normal((wanted.rows, spec.hidden), dtype=np.float32)
    times: dict[str, list[float]] = {"hepti": [], **{name: [] for name in others}}
    names, results = list(times), {}
    for turn in range(wanted.repeat + 3):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = time.perf_counter()
            result = ready.engine.run((wanted.rows,), x) if name == "hepti" else others[name].run(None, {"x": x[None]})[0][0]
            if turn >= 3:
                times[name].append(time.perf_counter() - begin)
            if turn == 0:
                results[name] = result.copy()
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {name: statistics.median(one / other for one, other in zip(times["hepti"], times[name])) for name in others}
    print(
        json.dumps(
            {
                "model": spec.name,
                "layers": spec.layers,
                "rows": wanted.rows,
                "threads": machine.cores.threads,
                "median_seconds": medians,
                "least_seconds": {name: min(values) for name, values in times.items()},
                "median_ratio": ratios,
                "largest_difference": {name: float(np.abs(results["hepti"] - results[name]).max()) for name in others},
            }
        )
    )
    if max(ratios.values()) > wanted.limit:
        sys.exit(1)


if __name__ == "__main__":
    main()
