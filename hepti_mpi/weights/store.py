"""The weight store: one HDF5 file that holds a model, or one rank's part of it. The only user of h5py.

Knows where each part of a tensor lies in the file and whether its bytes are those that were written; does not know which rank needs
which. Every dataset is contiguous, so a slice along dim 0 is one byte range, which ONNX Runtime maps from this very file.
The layout is described in weights/README.md.
"""

import errno
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hepti_mpi import __version__
from hepti_mpi.errors import StoreError, reason_of
from hepti_mpi.models.blocks import Weight
from hepti_mpi.models.checkpoints.modelfiles import ModelFiles
from hepti_mpi.models.formats import VALUES, encoded
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.weights.calibration import Accuracy, Calibration, grouped, read_accuracy
from hepti_mpi.weights.places import no_file
from hepti_mpi.weights.prepacked import Prepacked
from hepti_mpi.weights.slices import Slice, Whole, all_weights, granule, joined, span

FORMAT, FORMAT_VERSION = "hepti-store", 3
READ = (1, 2, 3)  # versions; the first knows float32 only, both first count query heads that read the same K and V as one
DESCRIBED_BYTES = 16 << 10  # of descriptions that HDF5 keeps: each is read once, and those of a large model would take megabytes
PART_ROOM = 4096  # bytes that HDF5 needs at most for the description and checksums of a part of a usual tensor
MOST_LAYERS = 4096  # of a store that is read: the list of its tensors is made before any is looked at
AGAIN = "make it again with: python -m hepti_mpi slice SOURCE STORE"
Progress = Callable[[int], None]


def whole_slices(spec: ModelSpec) -> tuple[Slice, ...]:
    """Return every tensor of a model, whole."""
    return tuple(span(weight) for weight in all_weights(spec))


@dataclass(frozen=True)
class Region:
    """Where a slice lies in the file."""

    offset: int
    bytes: int
    shape: tuple[int, ...]


@contextmanager
def _new_file(path: Path, slices: Sequence[Slice]) -> Iterator[h5py.File]:
    """Yield a new HDF5 file that takes the name `path` when all went well and leaves nothing behind otherwise.

    That there is room for `slices` is checked before: HDF5 may end the process when a disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        system, size = os.statvfs(path.parent), sum(piece.bytes + PART_ROOM * len(piece.parts) for piece in slices)
        if system.f_bavail * system.f_frsize < size:
            raise OSError(errno.ENOSPC, f"it takes {size} bytes, {system.f_bavail * system.f_frsize} are free")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        # v110 metadata carries checksums of its own; every tensor begins at a multiple of 64 bytes
        with h5py.File(temporary, "w", libver=("v110", "v110"), locking=False, alignment_threshold=1, alignment_interval=64) as file:
            yield file
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {reason_of(error)}") from None
    finally:
        with suppress(OSError):  # whatever kept it from being made has been told
            temporary.unlink()


def write(path: Path, model: ModelFiles, progress: Progress = lambda written: None, calibration: Calibration | None = None) -> None:
    """Write the store of `model`, layer by layer; `progress` is told the bytes of each tensor as they are written.

    `calibration`: sees all weights pass, and says what those are multiplied with that a format rounds by that.
    Raises: StoreError when the file cannot be written, ModelError from the model's reader.
    """
    expected = {weight.name: weight for weight in all_weights(model.spec)}
    with _new_file(path, whole_slices(model.spec)) as file:
        _write_head(file, model.spec, model.files, model.source_hash)
        for group in grouped(model.weights()) if calibration else ({name: values} for name, values in model.weights()):
            for name, values in group.items():
                weight = expected.get(name)
                if weight is None or values.shape != weight.shape or values.dtype != np.float32:
                    raise StoreError(f"tensor {name} is {values.dtype} {values.shape}, expected {weight and weight.shape}")
            seen = calibration.take(group) if calibration else {}
            for name, values in group.items():
                weight = expected.pop(name)
                piece = span(weight)
                parts = encoded(name, weight.format, values, piece.inner, seen.get(name))
                _write_tensor(file, piece, weight, parts, granule(model.spec, weight))
                progress(piece.bytes)
        if expected:
            raise StoreError(f"the model gave no tensor {next(iter(expected))} ({len(expected)} are missing)")


def note_accuracy(path: Path, found: Accuracy) -> None:
    """Keep in the store at `path` what its formats cost, where that is finite. Raises: StoreError."""
    if not math.isfinite(found.largest):
        return
    try:
        with h5py.File(path, "r+", locking=False) as file:
            file.attrs["accuracy"] = json.dumps(asdict(found))
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {_short(error)}") from None


def write_part(path: Path, whole: Whole, slices: Iterable[Slice], progress: Progress = lambda written: None) -> None:
    """Cut one rank's slices out of `whole` into a store of their own. Raises: StoreError."""
    weights, pieces = {weight.name: weight for weight in all_weights(whole.spec)}, joined(whole.spec, slices)
    with _new_file(path, pieces) as file:
        _write_head(file, whole.spec, whole.files, whole.source_hash)
        for piece in pieces:
            weight = weights[piece.name]
            whole.verify([piece])
            _write_tensor(file, piece, weight, whole.parts(piece), granule(whole.spec, weight))
            progress(piece.bytes)


def _write_head(file: h5py.File, spec: ModelSpec, files: dict[str, bytes], source_hash: str) -> None:
    text = json.dumps(spec.to_json())
    file.attrs.update(format=FORMAT, format_version=FORMAT_VERSION, spec=text, source_hash=source_hash, made_by=f"hepti_mpi {__version__}")
    file.attrs["checksum"] = np.uint32(_head_checksum(text, source_hash, files))
    for name, content in files.items():
        file.create_dataset(f"files/{name}", data=np.frombuffer(content, np.uint8))


def _head_checksum(spec: str, source_hash: str, files: dict[str, bytes]) -> int:
    value = zlib.crc32(f"{spec}\n{source_hash}".encode())
    for name in sorted(files):
        value = zlib.crc32(name.encode() + b"\n" + files[name], value)
    return value


def _write_tensor(file: h5py.File, piece: Slice, weight: Weight, parts: Mapping[str, np.ndarray], step: int) -> None:
    """Write a slice of a weight, part by part, with a checksum for what belongs to every `step` of its entries."""
    for part, array in piece.parts.items():
        values, at = np.asarray(parts[part]), _place(weight.name, part)
        if (values.dtype, values.shape) != (array.kind, array.shape):
            raise StoreError(f"{part} of tensor {weight.name} are {values.dtype} {values.shape}, expected {array.kind} {array.shape}")
        dataset = file.create_dataset(at, data=values)
        if part == VALUES:
            dataset.attrs.update(first=piece.first, count=piece.shape[0], whole=weight.shape[0])
        size = array.entries(step)
        sums = [zlib.crc32(np.ascontiguousarray(values[begin : begin + size]).data) for begin in range(0, len(values), size)]
        file.create_dataset(f"checksums/{at}" if part != VALUES else f"checksums/{weight.name}", data=np.array(sums, np.uint32))


def _place(name: str, part: str) -> str:
    """Return where the file has a part of a tensor."""
    return f"weights/{name}" if part == VALUES else f"{part}/{name}"


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
        try:
            self._file = h5py.File(path, "r", locking=False)
            kept = self._file.id.get_mdc_config()
            kept.set_initial_size, kept.initial_size, kept.min_size, kept.max_size = True, *[DESCRIBED_BYTES] * 3
            self._file.id.set_mdc_config(kept)
        except (OSError, RuntimeError, ValueError) as error:
            if "already open for write" in str(error) or "unable to lock file" in str(error):
                raise StoreError(f"{path} is being written; wait for that, or where nobody writes it any more {AGAIN}") from None
            raise StoreError(f"{path} is not a weight store or is damaged ({_short(error)}); {AGAIN}") from None
        self._size = path.stat().st_size
        self._descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead into what other ranks hold
        self._maps: np.memmap | None = None
        self._sound: set[tuple[str, int]] = set()  # checksums that held: (place of a part, number)
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
            raise StoreError(f"{path} is damaged ({_short(error)}); {AGAIN}") from None

    def _read_head(self) -> None:
        attributes = self._file.attrs
        if attributes.get("format") != FORMAT:
            raise StoreError(f"{self.path} is an HDF5 file but not a weight store of hepti_mpi")
        version = int(attributes["format_version"])
        if version not in READ:
            known = f"{READ[0]} to {READ[-1]}"
            raise StoreError(f"{self.path} has store format {version}, this program reads {known}; {AGAIN}")
        text, self.source_hash = str(attributes["spec"]), str(attributes["source_hash"])
        self.files: dict[str, bytes] = {}
        found: list[tuple[str, Any]] = []  # a file's name may have a folder in it
        if "files" in self._file:
            self._file["files"].visititems(lambda name, item: found.append((name, item)) if isinstance(item, h5py.Dataset) else None)
        for name, dataset in found:
            if dataset.dtype != np.uint8 or dataset.nbytes > self._size:
                raise StoreError(f"{self.path}: file {name} in it is damaged; {AGAIN}")
            self.files[name] = dataset[()].tobytes()
        if _head_checksum(text, self.source_hash, self.files) != int(attributes["checksum"]):
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
    def accuracy(self) -> Accuracy | None:
        """What its formats cost, as far as somebody has measured it. Raises StoreError."""
        try:
            return read_accuracy(json.loads(self._file.attrs["accuracy"])) if "accuracy" in self._file.attrs else None
        except Exception as error:
            raise StoreError(f"{self.path}: what it says about its accuracy is damaged ({_short(error)}); {AGAIN}") from None

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
            dataset, weight = self._file[_place(name, VALUES)], self.weights[name]
            entries = dataset.shape[0] if dataset.shape else weight.shape[0]  # of a store of version 1
            first, count = int(dataset.attrs["first"]), int(dataset.attrs.get("count", entries))
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
            raise StoreError(f"{self.path}: tensor {piece.name} is damaged ({_short(error)}); {AGAIN}") from None
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
            raise StoreError(f"{self.path} holds {has} of {piece.name}, this rank needs {wanted}; it was cut for another plan")
        start, stop = array.cut(begin, begin + count)
        row = array.bytes // max(shape[0], 1)
        end = offset + array.bytes
        if end > self._size:
            raise StoreError(f"{self.path} ends at {self._size} bytes, tensor {piece.name} at {end}: it is truncated; {AGAIN}")
        return Region(offset + start * row, (stop - start) * row, (stop - start, *shape[1:]))

    def _stored(self, name: str, part: str) -> tuple[Any, Any, Any]:
        """Return (byte offset, shape, type) of a part's dataset."""
        at = _place(name, part)
        if at not in self._datasets:
            dataset = self._file[at]
            self._datasets[at] = dataset.id.get_offset(), dataset.shape, dataset.dtype
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
        at = _place(piece.name, part)
        try:
            if at not in self._sums:  # read once, since every plan asks for them
                dataset = self._file[f"checksums/{at}" if part != VALUES else f"checksums/{piece.name}"]
                if dataset.dtype == np.uint32 and dataset.ndim == 1 and dataset.nbytes <= self._size:
                    self._sums[at] = dataset[()]
            if at in self._sums and stop <= len(self._sums[at]):
                found: list[int] = self._sums[at][begin:stop].tolist()
                return found
        except Exception as error:
            raise StoreError(f"{self.path}: the checksums of tensor {piece.name} are damaged ({_short(error)}); {AGAIN}") from None
        raise StoreError(f"{self.path}: the checksums of tensor {piece.name} are damaged; {AGAIN}")

    def _checked(self, piece: Slice) -> Slice:
        """Return a slice with what shares a checksum with it. Raises StoreError when the file does not hold it."""
        if self._as_one(self.weights[piece.name]) == 1:
            return piece
        self.region(piece)
        held, each = self._piece(piece.name), granule(self.spec, self.weights[piece.name]) * self._as_one(self.weights[piece.name])
        first, stop = piece.first - held.first, piece.first + piece.shape[0] - held.first
        return span(self.weights[piece.name], held.first + first // each * each, held.first + min(-(-stop // each) * each, held.shape[0]))

    def _sums_of(self, piece: Slice, part: str) -> tuple[int, int, list[int]]:
        """Return how many entries of a part share a checksum, the number of the first one of a slice, and those of the slice."""
        count, weight = self.region(piece, part).shape[0], self.weights[piece.name]
        step = piece.parts[part].entries(granule(self.spec, weight) * self._as_one(weight))
        begin = piece.parts[part].cut(piece.first - self._piece(piece.name).first, 0)[0]
        return step, begin // step, self._checksums(piece, part, begin // step, -(-(begin + count) // step))

    def content(self, slices: Iterable[Slice]) -> bytes:
        """Return what tells slices of the same numbers: their checksums. Raises StoreError."""
        found = [
            (piece.name, piece.format.name, piece.first, piece.shape[0], part, self._sums_of(self._checked(piece), part)[2])
            for piece in slices for part in piece.parts
        ]  # fmt: skip
        return json.dumps([self.source_hash, found]).encode()

    def verify(self, slices: Iterable[Slice]) -> int:
        """Read each slice that was not found sound before, and compare its checksums; return the bytes of all.

        Raises: StoreError naming the first bad one.
        """
        return sum(self._verify(piece, part) for piece in dict.fromkeys(slices) for part in piece.parts)

    def _verify(self, piece: Slice, part: str) -> int:
        """Verify a part of a slice; return its bytes."""
        piece, at = self._checked(piece), _place(piece.name, part)
        region, (step, first_sum, sums) = self.region(piece, part), self._sums_of(piece, part)
        count, row = region.shape[0], region.bytes // max(region.shape[0], 1)
        if {(at, first_sum + number) for number in range(len(sums))} <= self._sound:
            return region.bytes
        os.posix_fadvise(self._descriptor, region.offset, region.bytes, os.POSIX_FADV_WILLNEED)
        for number, (first, expected) in enumerate(zip(range(0, count, step), sums), first_sum):
            want = min(step, count - first) * row
            if (at, number) in self._sound:
                continue
            content = os.pread(self._descriptor, want, region.offset + first * row)
            if len(content) != want or zlib.crc32(content) != expected:
                what = f"{part} of " * (part != VALUES) + f"tensor {piece.name}"
                where = f"checksum {number} of {what} fails at byte {region.offset + first * row}"
                raise StoreError(f"{self.path}: {where}; {AGAIN}")
            self._sound.add((at, number))
        return region.bytes


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
