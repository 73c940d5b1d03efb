"""What ONNX Runtime's attention takes from a cache of float32, float16 and int8, for one row and for 128 behind many others: a line each
with milliseconds of the processor's time for all layers, each with a cache of its own, and the largest error beside float32's.

    python tests/cache_formats.py 9 3 30      # heads, heads of K and V, layers: SmolLM2-135M
    python tests/cache_formats.py 32 8 16     # Llama-3.2-1B
"""

import sys
import time
from statistics import median

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

DIM, PASTS, ROWS = 64, (128, 1024, 4096), (1, 128)
KINDS = {"float32": (np.float32, np.float32), "float16": (np.float16, np.float16), "int8": (np.float32, np.int8)}  # of rows, of the cache
ELEMENT = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16, np.dtype(np.int8): TensorProto.INT8,
           np.dtype(np.int32): TensorProto.INT32}  # fmt: skip


def session(heads, kv_heads, arrays, kind):
    """Return a session of one attention for inputs like `arrays`; int8 has a scale for each number of a head."""
    given, cache = (helper.np_dtype_to_tensor_dtype(np.dtype(one)) for one in KINDS[kind])
    names, more = list(arrays), {}
    if kind == "int8":
        names[7:7] = [""] * 5
        more = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    node = helper.make_node("GroupQueryAttention", names, ["y", "keys", "values"], domain="com.microsoft",
                            num_heads=heads, kv_num_heads=kv_heads, **more)  # fmt: skip
    inputs = [helper.make_tensor_value_info(name, ELEMENT[array.dtype], [None] * array.ndim) for name, array in arrays.items()]
    outputs = [helper.make_tensor_value_info(name, kind, [None] * dims) for name, kind, dims in
               (("y", given, 3), ("keys", cache, 4), ("values", cache, 4))]  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "attention", inputs, outputs), opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def attention(heads, kv_heads, layers, past, rows, kind):
    """Return what does a step of all layers, and where the last one leaves its rows."""
    random, (dtype, stored) = np.random.default_rng(0), KINDS[kind]
    named = {"q": heads, "k": kv_heads, "v": kv_heads}
    arrays = {name: random.standard_normal((1, rows, count * DIM), np.float32).astype(dtype) for name, count in named.items()}
    y, bound = np.zeros((1, rows, heads * DIM), dtype), []
    for _ in range(layers):
        caches = [random.standard_normal((1, kv_heads, past + rows, DIM), np.float32) for _ in range(2)]
        scales = {}
        if kind == "int8":
            scales = {name: np.abs(one).max(axis=(0, 2))[:, None] / np.float32(127) for name, one in zip(("k_scale", "v_scale"), caches)}
            caches = [np.rint(one / scale[None]) for one, scale in zip(caches, scales.values())]
        keys, values = (one.astype(stored) for one in caches)
        every = arrays | {"past_keys": keys, "past_values": values, "reach": np.array([past + rows - 1], np.int32)}
        every |= {"most": np.array(past + rows, np.int32)} | scales
        run = bound[0][0] if bound else session(heads, kv_heads, every, kind)
        binding = run.io_binding()
        for name, array in every.items():
            binding.bind_input(name, "cpu", 0, ELEMENT[array.dtype], array.shape, array.ctypes.data)
        for name, array in (("y", y), ("keys", keys), ("values", values)):
            binding.bind_output(name, "cpu", 0, ELEMENT[array.dtype], array.shape, array.ctypes.data)
        bound.append((run, binding, every))
    return lambda: [run.run_with_iobinding(binding) for run, binding, _ in bound], y


def timed(act):
    begin = time.thread_time()
    act()
    return 1e3 * (time.thread_time() - begin)


def compare(past, rows, made, turns):
    """Print what each of `made`, by kind what acts and where its result is, takes in turns, and its largest error beside float32's."""
    times = {kind: [] for kind in made}
    for _ in range(turns):
        for kind, (act, _) in made.items():
            times[kind].append(timed(act))
    right = made["float32"][1]
    errors = {kind: np.abs(y - right).max() / np.abs(right).max() for kind, (_, y) in made.items()}
    parts = ", ".join(f"{kind} {median(times[kind]):.2f} ({errors[kind]:.0e})" for kind in made)
    print(f"{rows} rows behind {past}, ms (error): {parts}", flush=True)


def main():
    heads, kv_heads, layers = map(int, sys.argv[1:])
    for past in PASTS:
        for rows in ROWS:
            compare(past, rows, {kind: attention(heads, kv_heads, layers, past, rows, kind) for kind in KINDS}, 3)


if __name__ == "__main__":
    main()
