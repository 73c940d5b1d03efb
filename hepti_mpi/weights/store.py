"""An open weight store: one HDF5 file that holds a model, or one rank's part of it.

Knows where each part of a tensor lies in the file and whether its bytes are those that were written; does not know which rank needs
which, nor how a file is laid out (hdf5) or written (writing). What a rank needs ONNX Runtime maps from this very file.
"""

import json
import os
import zlib
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hepti_mpi.errors import StoreError
from hepti_mpi.models.blocks import Weight
from hepti_mpi.models.formats import VALUES
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.weights import hdf5
from hepti_mpi.weights.hdf5 import AGAIN
from hepti_mpi.weights.places import no_file
from hepti_mpi.weights.prepacked import Prepacked
from hepti_mpi.weights.slices import Slice, all_weights, granule, span

if TYPE_CHECKING:
    from hepti_mpi.weights.calibration import Accuracy

READ_BYTES = 1 << 20  # that are read at once to be checked: a granule may be a whole table of words
MOST_LAYERS = 4096  # of a store that is read: the list of its tensors is made before any is looked at


@dataclass(frozen=True)
class Region:
    """Where a slice lies in the file."""

    offset: int
    bytes: int
    shape: tuple[int, ...]


class Store:
    """An open store. Reads only what it is asked for; usable as a context manager. `prepacked`: where this rank keeps weights as kernels
    read them."""

    def __init__(self, path: Path, prepacked: Prepacked | None = None) -> None:
        """Open `path` and read its description. Raises StoreError when it is missing, damaged or of another format."""
        self.path, self.prepacked = path, prepacked
        if not path.is_file():
            raise StoreError(no_file(path))
        self.file = path.resolve()  # where the bytes lie: ONNX Runtime reads none by a link into another folder
        try:
            str(self.file).encode()  # as kernels are told it
        except UnicodeEncodeError:
            raise StoreError(f"{path} has a name that is no UTF-8 here; name it and its folders otherwise, or set LC_ALL=C.UTF-8") from None
        self._file = hdf5.opened(path)
        self._size = path.stat().st_size
        self._descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead into what other ranks hold
        self._maps: np.memmap | None = None
        self._sound: dict[str, set[int]] = {}  # numbers of checksums that held, by the place of a part
        self._verified: dict[Slice, int] = {}  # bytes of those of which all checksums held: every plan asks for some of them again
        self._held: dict[str, Slice] = {}  # what the file says that it has of a tensor
        self._datasets: dict[str, tuple[Any, Any, Any]] = {}
        self._sums: dict[str, np.ndarray] = {}  # all checksums of a part
        try:
            self._read_head()
        except StoreError:
            self.close()
            raise
        except Exception as error:  # h5py raises almost anything on damaged metadata
            self.close()
            raise StoreError(f"{path} is damaged ({hdf5.short(error)}); {AGAIN}") from None

    def _read_head(self) -> None:
        attributes = self._file.attrs
        if attributes.get("format") != hdf5.FORMAT:
            raise StoreError(f"{self.path} is an HDF5 file but not a weight store of hepti_mpi")
        version = int(attributes["format_version"])
        if version not in hdf5.READ:
            known = f"{hdf5.READ[0]} to {hdf5.READ[-1]}"
            raise StoreError(f"{self.path} has store format {version}, this program reads {known}; {AGAIN}")
        text, self.source_hash = str(attributes["spec"]), str(attributes["source_hash"])
        self.files = hdf5.files_in(self._file, self.path)
        if hdf5.head_checksum(text, self.source_hash, self.files) != int(attributes["checksum"]):
            raise StoreError(f"{self.path}: the checksum of its description fails; {AGAIN}")
        self.spec = ModelSpec.from_json(json.loads(text))
        if self.spec.layers > MOST_LAYERS:
            raise StoreError(f"{self.path} describes {self.spec.layers} layers, more than {MOST_LAYERS}; {AGAIN}")
        self.weights = {weight.name: weight for weight in all_weights(self.spec)}
        self._group = self.spec.group if version < 3 else 1  # heads that the file counts as one

    def _as_one(self, weight: Weight) -> int:
        """Return how many entries of a weight the file counts as one."""
        return self._group if weight.split == "heads" else 1

    @property
    def accuracy(self) -> "Accuracy | None":
        """What its formats cost, as far as somebody has measured it. Raises StoreError."""
        from hepti_mpi.weights.calibration import read_accuracy

        try:
            return read_accuracy(json.loads(self._file.attrs["accuracy"])) if "accuracy" in self._file.attrs else None
        except Exception as error:
            raise StoreError(f"{self.path}: what it says about its accuracy is damaged ({hdf5.short(error)}); {AGAIN}") from None

    def shortened(self, layers: int) -> "Store":
        """Return this store as if the model had only its first `layers` layers. Closing either closes both."""
        shorter = copy(self)
        shorter.spec = replace(self.spec, layers=layers)
        shorter.weights = {weight.name: weight for weight in all_weights(shorter.spec)}
        return shorter

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        os.close(self._descriptor)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._file["weights"]) if "weights" in self._file else ()

    def piece(self, name: str) -> Slice | None:
        """Return what the file holds of a tensor, None where that is none of the model's or damaged."""
        try:
            held = self._piece(name)
            for part in held.parts:
                self.region(held, part)
            return held
        except Exception:  # h5py raises almost anything on damaged metadata
            return None

    def _piece(self, name: str) -> Slice:
        """Return what the file says that it has of a tensor: read once, since every plan asks for every tensor."""
        if name not in self._held:
            dataset, weight = hdf5.dataset(self._file, hdf5.place(name, VALUES)), self.weights[name]
            self._datasets[hdf5.place(name, VALUES)] = dataset.get_offset(), dataset.shape, dataset.dtype
            entries = dataset.shape[0] if dataset.shape else weight.shape[0]  # of a store of version 1
            first, count = hdf5.number(dataset, "first"), hdf5.number(dataset, "count", entries)
            first, count = first * self._as_one(weight), count * self._as_one(weight)
            self._held[name] = span(weight, first, first + count)
        return self._held[name]

    def region(self, piece: Slice, part: str = VALUES) -> Region:
        """Return the byte range of a part of a slice. Raises StoreError when the file does not hold it."""
        try:
            held, (offset, shape, kind) = self._piece(piece.name), self._stored(piece.name, part)
        except KeyError:
            raise StoreError(f"{self.path} has no tensor {piece.name}; a file cut for another rank or plan") from None
        except Exception as error:
            raise StoreError(f"{self.path}: tensor {piece.name} is damaged ({hdf5.short(error)}); {AGAIN}") from None
        array = held.parts[part]
        if self._as_one(self.weights[piece.name]) > 1 and prod(shape) == prod(array.shape):
            shape = array.shape  # the same numbers in the same order
        if (kind, shape) != (array.kind, array.shape) or offset is None or (held.format, held.shape[1:]) != (piece.format, piece.shape[1:]):
            expected = f"{array.kind} {array.shape}"
            what = f"{part} of " * (part != VALUES) + f"tensor {piece.name}"
            raise StoreError(f"{self.path}: {what}: {kind} {shape}, expected {expected}; {AGAIN}")
        begin, count = piece.first - held.first, piece.shape[0]
        if begin < 0 or begin + count > held.shape[0]:
            has, wanted = f"{held.first} to {held.first + held.shape[0]}", f"{piece.first} to {piece.first + count}"
            mend = "it was cut for another plan, which --plan names"
            raise StoreError(f"{self.path} holds {has} of {piece.name}, this rank needs {wanted}; {mend}")
        start, stop = array.cut(begin, begin + count)
        row = array.bytes // max(shape[0], 1)
        end = offset + array.bytes
        if end > self._size:
            raise StoreError(f"{self.path} ends at {self._size} bytes, tensor {piece.name} at {end}: it is truncated; {AGAIN}")
        return Region(offset + start * row, (stop - start) * row, (stop - start, *shape[1:]))

    def _stored(self, name: str, part: str) -> tuple[Any, Any, Any]:
        """Return (byte offset, shape, type) of a part's dataset."""
        at = hdf5.place(name, part)
        if at not in self._datasets:
            dataset = hdf5.dataset(self._file, at)
            self._datasets[at] = dataset.get_offset(), dataset.shape, dataset.dtype
        return self._datasets[at]

    def array(self, piece: Slice, part: str = VALUES) -> np.ndarray:
        """Return a part of a slice as a read-only array mapped from the file."""
        region = self.region(piece, part)
        if self._maps is None:
            self._maps = np.memmap(self.path, np.uint8, "r")
        return self._maps[region.offset : region.offset + region.bytes].view(piece.parts[part].kind).reshape(region.shape)

    def parts(self, piece: Slice) -> dict[str, np.ndarray]:
        """Return all parts of a slice."""
        return {part: self.array(piece, part) for part in piece.parts}

    def _checksums(self, piece: Slice, part: str, begin: int, stop: int) -> list[int]:
        """Return checksums [begin, stop) of a part. Raises StoreError."""
        at = hdf5.place(piece.name, part)
        try:
            if at not in self._sums:  # read once, since every plan asks for them
                dataset = hdf5.dataset(self._file, hdf5.place_of_sums(piece.name, part))
                if dataset.dtype == np.uint32 and len(dataset.shape) == 1 and 4 * dataset.shape[0] <= self._size:
                    self._sums[at] = hdf5.content(dataset)
            if at in self._sums and stop <= len(self._sums[at]):
                found: list[int] = self._sums[at][begin:stop].tolist()
                return found
        except Exception as error:
            raise StoreError(f"{self.path}: the checksums of tensor {piece.name} are damaged ({hdf5.short(error)}); {AGAIN}") from None
        raise StoreError(f"{self.path}: the checksums of tensor {piece.name} are damaged; {AGAIN}")

    def _checked(self, piece: Slice) -> Slice:
        """Return a slice with what shares a checksum with it. Raises StoreError when the file does not hold it."""
        if self._as_one(self.weights[piece.name]) == 1:
            return piece
        self.region(piece)
        held, each = self._piece(piece.name), granule(self.spec, self.weights[piece.name]) * self._as_one(self.weights[piece.name])
        first, stop = piece.first - held.first, piece.first + piece.shape[0] - held.first
        return span(self.weights[piece.name], held.first + first // each * each, held.first + min(-(-stop // each) * each, held.shape[0]))

    def _sums_of(self, piece: Slice, part: str, count: int) -> tuple[int, int, list[int]]:
        """Return how many entries of a part share a checksum, the number of the first one of a slice, and those of the slice, which has
        `count` entries of that part."""
        weight, array = self.weights[piece.name], piece.parts[part]
        step = array.entries(granule(self.spec, weight) * self._as_one(weight))
        begin = array.cut(piece.first - self._piece(piece.name).first, 0)[0]
        return step, begin // step, self._checksums(piece, part, begin // step, -(-(begin + count) // step))

    def content(self, slices: Iterable[Slice]) -> bytes:
        """Return what tells slices of the same numbers: their checksums. Raises StoreError."""
        found = []
        for piece in slices:
            checked = self._checked(piece)
            for part in piece.parts:
                sums = self._sums_of(checked, part, self.region(checked, part).shape[0])[2]
                found.append((piece.name, piece.format.name, piece.first, piece.shape[0], part, sums))
        return json.dumps([self.source_hash, found]).encode()

    def verify(self, slices: Iterable[Slice]) -> int:
        """Read each slice that was not found sound before, and compare its checksums; return the bytes of all.

        Raises: StoreError naming the first bad one.
        """
        wanted = dict.fromkeys(slices)
        for piece in wanted:
            if piece not in self._verified:
                self._verified[piece] = sum(self._verify(piece, part) for part in piece.parts)
        return sum(self._verified[piece] for piece in wanted)

    def _verify(self, piece: Slice, part: str) -> int:
        """Verify a part of a slice; return its bytes."""
        piece, at = self._checked(piece), hdf5.place(piece.name, part)
        region = self.region(piece, part)
        count, row = region.shape[0], region.bytes // max(region.shape[0], 1)
        step, first_sum, sums = self._sums_of(piece, part, count)
        sound = self._sound.setdefault(at, set())
        if sound.issuperset(range(first_sum, first_sum + len(sums))):
            return region.bytes
        os.posix_fadvise(self._descriptor, region.offset, region.bytes, os.POSIX_FADV_WILLNEED)
        buffer = memoryview(bytearray(min(READ_BYTES, min(step, count) * row)))
        for number, (first, expected) in enumerate(zip(range(0, count, step), sums), first_sum):
            if number in sound:
                continue
            begin = region.offset + first * row
            if self._checksum(begin, min(step, count - first) * row, buffer) != expected:
                what = f"{part} of " * (part != VALUES) + f"tensor {piece.name}"
                raise StoreError(f"{self.path}: checksum {number} of {what} fails at byte {begin}; {AGAIN}")
            sound.add(number)
        return region.bytes

    def _checksum(self, begin: int, size: int, buffer: memoryview) -> int | None:
        """Return the checksum of `size` bytes of the file from `begin` on, read through a buffer; None where it has fewer."""
        value = 0
        for at in range(begin, begin + size, READ_BYTES):
            some = buffer[: begin + size - at]
            if os.preadv(self._descriptor, [some], at) != len(some):
                return None
            value = zlib.crc32(some, value)
        return value
