"""Compare one rank of hepti_mpi with a single whole-model ONNX Runtime session of the same weights, operators and threads.

    python tests/compare_whole_model.py weights/bert-large.h5 --rows 128 --repeat 30

The whole-model session has the layers only, [1, rows, hidden] in and out, as an exporter would write them: no packing of
requests, no plan, weights mapped from the same store. Requests alternate between the two in one process. The last line is JSON.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from hepti_mpi.engine import fetching, loading
from hepti_mpi.engine import machine as machines
from hepti_mpi.program.plan import Plan
from hepti_mpi.weights.slices import Slice
from hepti_mpi.weights.store import Store

MICROSOFT = "com.microsoft"


def anonymous_bytes() -> int:
    """Return the anonymous memory of this process: what cannot be dropped and read from a file again."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def whole_model(store: Store) -> onnxruntime.InferenceSession:
    """Return one session of all layers, from "x" [1, rows, hidden] to "y"."""
    spec, nodes, weights = store.spec, [], {}

    def weight(name: str, shape: tuple[int, ...]) -> str:
        piece = Slice(name, 0, store.weights[name].shape)
        region = store.region(piece)
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", store.path.name), ("offset", region.offset), ("length", region.bytes)):
            tensor.external_data.add(key=key, value=str(value))
        weights[name] = tensor
        return name

    def node(kind: str, inputs: list[str], output: str, domain: str = "", **options: object) -> str:
        nodes.append(helper.make_node(kind, inputs, output.split(","), domain=domain, **options))
        return output

    def linear(
        x: str, name: str, out: str, bias: bool = True, transposed: int = 1, inner: int = spec.hidden, outer: int = spec.hidden
    ) -> str:
        shape = (outer, inner) if transposed else (inner, outer)
        return node(
            "Gemm", [x, weight(f"{name}.weight", shape), *([weight(f"{name}.bias", (outer,))] if bias else [])], out, transB=transposed
        )

    eps = next(norm.eps for norm in (*spec.layer(0).before, *spec.layer(0).after) if norm)

    def norm_of(x: str, p: str, name: str, bias: str, out: str, total: str) -> None:
        node("Add", [x, node("Add", [p, weight(bias, (spec.hidden,))], f"{total}_biased")], total)
        node("LayerNormalization", [total, *(weight(f"{name}.{part}", (spec.hidden,)) for part in ("weight", "bias"))], out,
             epsilon=eps, axis=-1)  # fmt: skip

    wide = helper.make_tensor("wide", TensorProto.INT64, [3], [1, -1, spec.hidden])
    flat = helper.make_tensor("flat", TensorProto.INT64, [2], [-1, spec.hidden])
    x = y = node("Reshape", ["x", "flat"], "x_flat")
    first = "layers.0.attention.norm"
    if spec.last is not None:
        inputs = [x, *(weight(f"{first}.{part}", (spec.hidden,)) for part in ("weight", "bias"))]
        y = node("LayerNormalization", inputs, "y_first", epsilon=eps, axis=-1)
    for number in range(spec.layers):
        name = f"layers.{number}"
        q, k, v = (node("Reshape", [linear(y, f"{name}.attention.{m}", f"{name}.{m}"), "wide"], f"{name}.{m}3") for m in "qkv")
        mixed = node("MultiHeadAttention", [q, k, v], f"{name}.mixed", MICROSOFT, num_heads=spec.heads)
        p = linear(node("Reshape", [mixed, "flat"], f"{name}.mixed2"), f"{name}.attention.o", f"{name}.p", bias=False, transposed=0)
        after = f"{name}.attention.norm" if spec.last is None else f"{name}.mlp.norm"
        norm_of(x, p, after, f"{name}.attention.o.bias", f"{name}.y1", f"{name}.x1")
        y, x = f"{name}.y1", f"{name}.{'y1' if spec.norm == 'post' else 'x1'}"
        up = linear(y, f"{name}.mlp.up", f"{name}.up", bias=False, outer=spec.ffn)
        act = node("BiasGelu", [up, weight(f"{name}.mlp.up.bias", (spec.ffn,))], f"{name}.act", MICROSOFT)
        p = linear(act, f"{name}.mlp.down", f"{name}.p2", bias=False, transposed=0, inner=spec.ffn)
        following = f"layers.{number + 1}.attention.norm" if number + 1 < spec.layers else "final.norm"
        norm_of(x, p, f"{name}.mlp.norm" if spec.last is None else following, f"{name}.mlp.down.bias", f"{name}.y2", f"{name}.x2")
        y, x = f"{name}.y2", f"{name}.{'y2' if spec.norm == 'post' else 'x2'}"
    node("Reshape", [y, "wide"], "y")
    info = [helper.make_tensor_value_info(value, TensorProto.FLOAT, [1, None, spec.hidden]) for value in "xy"]
    graph = helper.make_graph(nodes, "whole", info[:1], info[1:], [*weights.values(), wide, flat])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(store.path.parent.resolve()))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--limit", type=float, default=1.02, help="exit with 1 when one rank takes more times as long; default: 1.02")
    wanted = parser.parse_args()
    machine = machines.start(wanted.threads)
    store = fetching.open_store(machine, wanted.store)
    spec = store.spec
    before = anonymous_bytes()
    plan = Plan(
        spec.name,
        store.source_hash,
        (("heads", "columns"),) * spec.layers,
        (spec.heads,),
        (spec.ffn,),
        (wanted.rows,),
        ("here",),
        ("packed",),
    )
    ready = loading.load(machine, store, plan, None, {})
    anonymous = anonymous_bytes()
    session = whole_model(store)
    x = np.random.default_rng(0).standard_normal((wanted.rows, spec.hidden), dtype=np.float32)
    times: dict[str, list[float]] = {"hepti": [], "whole": []}
    for turn in range(wanted.repeat + 3):
        for name in ("hepti", "whole") if turn % 2 else ("whole", "hepti"):
            begin = time.perf_counter()
            result = ready.engine.run((wanted.rows,), x) if name == "hepti" else session.run(None, {"x": x[None]})[0][0]
            if turn >= 3:
                times[name].append(time.perf_counter() - begin)
            if name == "hepti":
                ours = result.copy()
            else:
                theirs = result
    medians = {name: statistics.median(values) for name, values in times.items()}
    pairs = statistics.median(one / other for one, other in zip(times["hepti"], times["whole"]))
    slices, difference = ready.engine.weight_bytes, float(np.abs(ours - theirs).max())
    print(
        json.dumps(
            {
                "model": spec.name,
                "rows": wanted.rows,
                "threads": machine.cores.threads,
                "median_seconds": medians,
                "ratio_of_medians": medians["hepti"] / medians["whole"],
                "median_ratio": pairs,
                "largest_difference": difference,
                "slice_bytes": slices,
                "anonymous_bytes_before_loading": before,
                "anonymous_bytes_after_loading": anonymous,
                "anonymous_limit": 1.15 * slices + 150e6,
                "within_limit": anonymous <= 1.15 * slices + 150e6,
            }
        )
    )
    if pairs > wanted.limit or difference > 1e-4 or anonymous > 1.15 * slices + 150e6:
        sys.exit(1)


if __name__ == "__main__":
    main()
