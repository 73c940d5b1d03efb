"""Tensors in safetensors files, one file or sharded. The only user of the safetensors library.

Knows the file format and turns every float type into float32; knows no model and no tensor name.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (lets numpy know bfloat16, which safetensors then returns)
import numpy as np
from safetensors import SafetensorError, safe_open

from hepti_mpi.errors import ModelError
from hepti_mpi.models.untrusted import is_file, parse_json, plain_name, read_small, shown

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
OTHER_FORMATS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")


class TensorFiles:
    """The tensors of a model folder; only headers are read until `read` is called.

    `shapes`: tensor name -> shape. `paths`: the files, sorted by name.
    """

    def __init__(self, folder: Path) -> None:
        """Open every file and read its header. Raises ModelError for files that are missing, damaged or disagree."""
        promised = find_files(folder)
        self.paths = [folder / name for name in sorted(promised)]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, tuple[Path, Any, str]] = {}  # tensor -> path, handle, type
        for path in self.paths:
            self._add(path, promised[path.name])

    def _add(self, path: Path, promised: set[str] | None) -> None:
        """Read the header of one file; `promised` are the tensors that the index says are in it."""
        try:
            handle: Any = safe_open(path, framework="np")
            names = set(handle.keys())
            slices = {name: handle.get_slice(name) for name in sorted(names)}
            found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
        except (SafetensorError, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
            raise ModelError(f"{path} is not a sound safetensors file: {shown(error)}") from None
        if promised is not None and promised != names:
            odd = sorted(promised ^ names)
            raise ModelError(f"{path} and {INDEX} disagree about {len(odd)} tensors, first {shown(odd[0], 100)}")
        for name, (shape, kind) in found.items():
            if name in self._files:
                raise ModelError(f"tensor {shown(name, 100)} is in {self._files[name][0].name} and in {path.name}")
            self.shapes[name], self._files[name] = shape, (path, handle, kind)

    def check_types(self, names: Iterable[str]) -> None:
        """Raise ModelError when one of these tensors is not of a type that can be converted to float32."""
        for name in names:
            path, _, kind = self._files[name]
            if kind not in FLOATS:
                raise ModelError(f"{path}: tensor {shown(name, 100)} is of type {kind}; supported: {', '.join(FLOATS.values())}")

    def read(self, name: str) -> np.ndarray:
        """Return a tensor as float32. Raises ModelError when it holds a value that is not finite."""
        path, handle, _ = self._files[name]
        try:
            array = np.asarray(handle.get_tensor(name), dtype=np.float32)
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise ModelError(f"{path}: tensor {shown(name, 100)} cannot be read: {shown(error)}") from None
        if not np.isfinite(array).all():
            raise ModelError(f"{path}: tensor {shown(name, 100)} holds {int((~np.isfinite(array)).sum())} values that are not finite")
        return array

    def hash(self, config: bytes) -> str:
        """Return the SHA-256 of `config` and of the contents of every file, in hexadecimal. Raises ModelError."""
        digest = hashlib.sha256(config)
        for path in self.paths:
            digest.update(f"\0{path.name}\0".encode())
            try:
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise ModelError(f"{path} cannot be read: {error.strerror}") from None
        return digest.hexdigest()


def find_files(folder: Path) -> dict[str, set[str] | None]:
    """Return file name -> the tensors its index promises (None without an index). Raises ModelError."""
    if is_file(folder / SINGLE):
        return {SINGLE: None}
    if not is_file(folder / INDEX):
        other = next((name for name in OTHER_FORMATS if is_file(folder / name)), None)
        if other:
            raise ModelError(f"{folder} has {other} but no {SINGLE}; convert it: load it with transformers and call save_pretrained")
        raise ModelError(f"{folder} has neither {SINGLE} nor {INDEX}")
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
