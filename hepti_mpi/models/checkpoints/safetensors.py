"""Tensors in safetensors files, one file or sharded. The only user of the safetensors library.

The library checks a file; its tensors are then read by their offsets, one at a time, since a mapped file would stay in memory as
a whole. Turns every float type into float32; knows no model and no tensor name.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import numpy as np
from safetensors import SafetensorError, safe_open

from hepti_mpi.errors import ModelError, reason_of
from hepti_mpi.models.checkpoints.finite import check_finite
from hepti_mpi.models.untrusted import is_file, parse_json, plain_name, read_small, refuse_pointer, shown
from hepti_mpi.wording import counted

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}  # NumPy has no bfloat16: its bits are the upper half of a float32
HEADER_LIMIT = 32 << 20  # bytes
DISTRIBUTED = r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors"  # source: transformers 5.23, distributed/checkpoint.py
PICKLE = "pytorch_model.bin"
CONVERT = (  # makes SINGLE of PICKLE
    "import torch, safetensors.torch as s; d = torch.load('pytorch_model.bin', 'cpu', weights_only=True); "
    "s.save_file({k: v.contiguous().clone() for k, v in d.items()}, 'model.safetensors', {'format': 'pt'})"
)
GRAPHS = ("*.onnx", "onnx/*.onnx", "openvino_*.xml", "openvino/*.xml")
OTHER_FORMATS = ("pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `start` and `size` in bytes of the file, `kind` as safetensors calls it."""

    path: Path
    kind: str
    shape: tuple[int, ...]
    start: int
    size: int


class TensorFiles:
    """The tensors of a model folder; only headers are read until `read` is called.

    `shapes`: tensor name -> shape. `paths`: the files, sorted by name.
    """

    def __init__(self, folder: Path) -> None:
        """Read the header of every file. Raises ModelError for files that are missing, damaged or disagree."""
        promised = find_files(folder)
        self.paths = [folder / name for name in sorted(promised)]
        self._tensors: dict[str, Tensor] = {}
        for path in self.paths:
            found = read_header(path)
            expected = promised[path.name]
            if expected is not None and expected != found.keys():
                odd = sorted(expected ^ found.keys())
                raise ModelError(f"{path} and {INDEX} disagree about {counted(len(odd), 'tensors')}, first {shown(odd[0], 100)}")
            self._tensors |= found  # an index names one file for each tensor, so that no name comes twice
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def check_types(self, names: Iterable[str]) -> None:
        """Raise ModelError when one of these tensors is not of a type that can be converted to float32."""
        for name in names:
            tensor = self._tensors[name]
            if tensor.kind not in FLOATS:
                raise ModelError(f"{tensor.path}: tensor {name} is of type {tensor.kind}; supported: {', '.join(FLOATS.values())}")

    def read(self, name: str) -> np.ndarray:
        """Return a tensor as float32. Raises ModelError when it holds a value that is not finite."""
        tensor = self._tensors[name]
        try:
            with tensor.path.open("rb") as file:
                file.seek(tensor.start)
                array = np.fromfile(file, STORED[tensor.kind], math.prod(tensor.shape)).reshape(tensor.shape)
        except (OSError, ValueError) as error:
            raise ModelError(f"{tensor.path}: tensor {name} cannot be read: {shown(error)}") from None
        if tensor.kind == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # a float64 that float32 cannot hold becomes infinite
            values = np.asarray(array, dtype=np.float32)
        check_finite(values, f"{tensor.path}: tensor {name}", array)
        return values

    def hashes(self) -> Iterator[str]:
        """Yield the name of every file and the SHA-256 of its contents, in hexadecimal. Raises ModelError."""
        for path in self.paths:
            digest = hashlib.sha256()
            try:
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise ModelError(f"{path} cannot be read: {reason_of(error)}") from None
            yield f"{path.name} {digest.hexdigest()}"


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file whose header the safetensors library accepts. Raises ModelError."""
    refuse_pointer(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > HEADER_LIMIT:
                raise ValueError(f"its header claims {length} bytes, the limit is {HEADER_LIMIT}")
            with safe_open(path, framework="np"):
                pass  # checks the header, that the tensors fill the file without overlap, and every size
            header = json.loads(file.read(length))
            whole = os.fstat(file.fileno()).st_size
        header.pop("__metadata__", None)
        found: dict[str, Tensor] = {}
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            found[name] = Tensor(path, entry["dtype"], tuple(entry["shape"]), 8 + length + start, stop - start)
            wanted = math.prod(entry["shape"]) * np.dtype(STORED.get(entry["dtype"], "u1")).itemsize
            if stop < start or 8 + length + stop > whole or (entry["dtype"] in STORED and wanted != stop - start):
                raise ValueError(f"tensor {name} does not lie inside the file with its {wanted} bytes")
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ModelError(f"{path} is not a sound safetensors file: {shown(error)}") from None
    return found


def find_files(folder: Path) -> dict[str, set[str] | None]:
    """Return file name -> the tensors its index promises (None without an index). Raises ModelError."""
    part = min((path.name for path in folder.glob("shard-*") if re.fullmatch(DISTRIBUTED, path.name)), default=None)
    if part is not None:
        hint = "load the folder with transformers and call save_pretrained, or move such files away to go without them"
        raise ModelError(f"{folder} has {part}, a part of a distributed checkpoint, which transformers reads before {SINGLE}; {hint}")
    if is_file(folder / SINGLE):
        return {SINGLE: None}
    if not is_file(folder / INDEX):
        raise ModelError(f"{folder} has neither {SINGLE} nor {INDEX}{_instead(folder)}")
    weight_map = parse_json(read_small(folder / INDEX), INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{INDEX} has no weight_map")
    promised: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not plain_name(name) or not name.endswith(".safetensors"):
            raise ModelError(f"{INDEX}: {name!r:.100} is not the plain name of a safetensors file of this folder")
        promised.setdefault(name, set()).add(tensor)
    for name in promised:
        if not is_file(folder / name):
            raise ModelError(f"{INDEX} names {shown(name)}, which is not in {folder}")
    return dict(promised)


def _instead(folder: Path) -> str:
    """Return what a folder without weights that can be read has instead, and how they are made of it, for a sentence."""
    if is_file(folder / PICKLE):
        refuse_pointer(folder / PICKLE)
        return f', only {PICKLE}, which is never unpickled here; convert it, in that folder and where torch is: python -c "{CONVERT}"'
    other = next((name for name in OTHER_FORMATS if is_file(folder / name)), None)
    if other:
        return f", only {other}; load it with transformers, by the class that architectures in config.json names, and call save_pretrained"
    blocks = min(folder.glob("*.gguf"), default=None)
    if blocks is not None:
        made = f"python -m hepti_mpi slice {quote(str(blocks))} weights/model.h5"
        return f", only {shown(blocks.name, 60)}; name that file instead of its folder: {made}"
    graph = min((path for pattern in GRAPHS for path in folder.glob(pattern)), default=None)
    if graph is not None:
        return f", only {shown(graph.relative_to(folder), 60)}, a graph whose weights are not read; fetch the model's {SINGLE} too"
    found = sorted(path.name for path in folder.glob("*.safetensors") if os.path.isfile(path))
    return f", only {shown(', '.join(found))}; rename the one that is meant to {SINGLE}" if found else ""
