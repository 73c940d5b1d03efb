"""Tensors and metadata in a GGUF file, as llama.cpp writes them.

Every count and length is held against the size of the file before anything is made of it. Turns the types of ggml.py into float32, one
tensor at a time; knows no model and no tensor name.
Source: the format's description, docs/gguf.md of ggml, versions 2 and 3.
"""

import hashlib
import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from hepti_mpi.errors import ModelError, reason_of
from hepti_mpi.models.checkpoints.finite import check_finite
from hepti_mpi.models.checkpoints.ggml import TYPES, UNREAD, GgmlType
from hepti_mpi.models.untrusted import refuse_pointer, shown

MAGIC, VERSIONS = b"GGUF", (2, 3)
NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8", 12: "<f8"}
BOOL, STRING, ARRAY = 7, 8, 9
MOST_KEYS, MOST_TENSORS, MOST_STRINGS, MOST_DIMS = 1 << 14, 1 << 16, 1 << 22, 4
LONGEST_NAME, LONGEST_STRING = 1 << 10, 1 << 22
LARGEST = 1 << 40  # numbers of a tensor


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: `start` and `size` in bytes of the file. `shape`: the last dimension is the one that is contiguous."""

    kind: GgmlType
    shape: tuple[int, ...]
    start: int
    size: int


class GgufFile:
    """One GGUF file. `metadata`: key -> number, bool, string, list of strings or array of numbers. `shapes`: tensor name -> shape."""

    def __init__(self, path: Path) -> None:
        """Read metadata and the list of tensors. Raises ModelError for a file that is damaged or of a kind that is not read."""
        refuse_pointer(path)
        self.path = path
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                self.metadata, self._tensors = _Reader(content).read()
        except (OSError, ValueError, struct.error, UnicodeDecodeError) as error:
            raise ModelError(f"{path} is not a sound GGUF file: {shown(error)}") from None
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    @property
    def kinds(self) -> dict[str, int]:
        """How many tensors are of which type."""
        return dict(Counter(tensor.kind.name for tensor in self._tensors.values()))

    @property
    def reduced(self) -> list[GgmlType]:
        """The types in it that have fewer than 16 bits a weight, by name."""
        kinds = {tensor.kind.name: tensor.kind for tensor in self._tensors.values()}
        return [kind for _, kind in sorted(kinds.items()) if 8 * kind.bytes < 16 * kind.values]

    def read(self, name: str) -> np.ndarray:
        """Return a tensor as float32. Raises ModelError when it holds a value that is not finite."""
        tensor = self._tensors[name]
        try:
            with self.path.open("rb") as file:
                file.seek(tensor.start)
                blocks = np.fromfile(file, np.uint8, tensor.size).reshape(-1, tensor.kind.bytes)
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.path}: tensor {name} cannot be read: {shown(error)}") from None
        with np.errstate(over="ignore", invalid="ignore"):
            held = tensor.kind.decode(blocks).reshape(tensor.shape)
            values = held.astype(np.float32, copy=False)
        check_finite(values, f"{self.path}: tensor {name}", held)
        return values

    def hashes(self) -> Iterator[str]:
        """Yield the SHA-256 of the file's contents, in hexadecimal: not its name, which people choose. Raises ModelError."""
        digest = hashlib.sha256()
        try:
            with self.path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise ModelError(f"{self.path} cannot be read: {reason_of(error)}") from None
        yield f"gguf {digest.hexdigest()}"


class _Reader:
    """Reads the head of a file from its beginning. Raises ValueError or struct.error for what does not fit."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.size, self.at = content, len(content), 0

    def read(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        if self.take(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self.number(4)
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}, read are {' and '.join(map(str, VERSIONS))} in little-endian order")
        tensors, keys = self.count("tensors", MOST_TENSORS), self.count("keys", MOST_KEYS)
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            name = self.text(LONGEST_NAME)
            if name in metadata:
                raise ValueError(f"key {name} comes twice")
            metadata[name] = self.value(self.number(4))
        infos = [self.info() for _ in range(tensors)]
        align = metadata.get("general.alignment", 32)
        if not isinstance(align, int) or align < 1 or align & (align - 1) or align > 1 << 20:
            raise ValueError(f"general.alignment is {align!r:.60}, expected a power of two")
        data = -(-self.at // align) * align
        found: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in infos:
            if name in found:
                raise ValueError(f"tensor {name} comes twice")
            found[name] = self.tensor(name, shape, kind, data, offset)
        return metadata, found

    def take(self, size: int) -> bytes:
        if size < 0 or self.at + size > self.size:
            raise ValueError(f"it ends at byte {self.size}, byte {self.at + size} is asked for")
        self.at += size
        return self.content[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def count(self, what: str, most: int) -> int:
        count = self.number(8)
        if count > most:
            raise ValueError(f"it claims {count} {what}, the limit is {most}")
        return count

    def text(self, longest: int) -> str:
        return self.take(self.count("bytes of a text", longest)).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text(LONGEST_STRING)
        if kind == ARRAY:
            return self.array()
        if kind not in NUMBERS:
            raise ValueError(f"a value is of type {kind}, which is not known")
        found = np.frombuffer(self.take(np.dtype(NUMBERS[kind]).itemsize), NUMBERS[kind])[0]
        return bool(found) if kind == BOOL else found.item()

    def array(self) -> list[str] | np.ndarray:
        kind = self.number(4)
        if kind == STRING:
            return [self.text(LONGEST_STRING) for _ in range(self.count("texts of a list", MOST_STRINGS))]
        if kind not in NUMBERS:
            raise ValueError(f"a list is of type {kind}, which is not read")
        dtype = np.dtype(NUMBERS[kind])
        count = self.count("numbers of a list", self.size // dtype.itemsize)
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.text(LONGEST_NAME)
        dims = self.number(4)
        if not 1 <= dims <= MOST_DIMS:
            raise ValueError(f"tensor {name} has {dims} dimensions, the limit is {MOST_DIMS}")
        shape = tuple(self.number(8) for _ in range(dims))[::-1]
        return name, shape, self.number(4), self.number(8)

    def tensor(self, name: str, shape: tuple[int, ...], number: int, data: int, offset: int) -> GgufTensor:
        kind = TYPES.get(number)
        if kind is None:
            known = ", ".join(one.name for one in TYPES.values())
            raise ValueError(f"tensor {name} is of type {UNREAD.get(number, number)}; supported: {known}")
        if not all(shape) or prod(shape) > LARGEST or shape[-1] % kind.values:
            raise ValueError(f"tensor {name} of shape {list(shape)} cannot be of type {kind.name}, whose blocks are of {kind.values}")
        size = prod(shape) // kind.values * kind.bytes
        if data + offset + size > self.size:
            raise ValueError(f"it ends at byte {self.size}, tensor {name} at {data + offset + size}: it is truncated")
        return GgufTensor(kind, shape, data + offset, size)
