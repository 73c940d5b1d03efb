"""Writing weight stores: of a whole model, of one rank's slices, and what was measured of one later.

Knows what is written of a model and in which order; how a file is laid out is hdf5's, how a format encodes is models/formats'.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from hepti_mpi import __version__
from hepti_mpi.errors import FormatError, StoreError
from hepti_mpi.models.blocks import Weight
from hepti_mpi.models.checkpoints.modelfiles import ModelFiles
from hepti_mpi.models.formats import VALUES, Columns, Seen
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.weights import hdf5
from hepti_mpi.weights.calibration import Accuracy, Calibration, grouped
from hepti_mpi.weights.slices import Slice, Whole, all_weights, granule, joined, span, whole_slices

PART_ROOM = 4096  # bytes that HDF5 needs at most for the description and checksums of a part of a usual tensor
Progress = Callable[[int], None]


def write(path: Path, model: ModelFiles, progress: Progress = lambda written: None, calibration: Calibration | None = None) -> None:
    """Write the store of `model`, layer by layer; `progress` is told the bytes of each tensor as they are written.

    `calibration`: sees all weights pass, and says what those are multiplied with that a format rounds by that.
    Raises: StoreError when the file cannot be written, ModelError from the model's reader.
    """
    expected = {weight.name: weight for weight in all_weights(model.spec)}
    with hdf5.new_file(path, _size(whole_slices(model.spec))) as file:
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
                parts = encoded(weight, values, seen.get(name))
                _write_tensor(file, piece, weight, parts, granule(model.spec, weight))
                progress(piece.bytes)
        if expected:
            raise StoreError(f"the model gave no tensor {next(iter(expected))} ({len(expected)} are missing)")


def note_accuracy(path: Path, found: Accuracy) -> None:
    """Keep in the store at `path` what its formats cost, where that is finite. Raises: StoreError."""
    if not math.isfinite(found.largest):
        return
    with hdf5.changed(path) as file:
        file.attrs["accuracy"] = json.dumps(asdict(found))


def write_part(path: Path, whole: Whole, slices: Iterable[Slice], progress: Progress = lambda written: None) -> None:
    """Cut one rank's slices out of `whole` into a store of their own. Raises: StoreError."""
    weights, pieces = {weight.name: weight for weight in all_weights(whole.spec)}, joined(whole.spec, slices)
    with hdf5.new_file(path, _size(pieces)) as file:
        _write_head(file, whole.spec, whole.files, whole.source_hash)
        for piece in pieces:
            weight = weights[piece.name]
            whole.verify([piece])
            _write_tensor(file, piece, weight, whole.parts(piece), granule(whole.spec, weight))
            progress(piece.bytes)


def encoded(weight: Weight, values: np.ndarray, seen: Seen | None) -> dict[str, np.ndarray]:
    """Return the parts of a tensor in its format. Raises FormatError where they would not be finite: float16 ends at 65504."""
    kind = weight.format
    with np.errstate(over="ignore", invalid="ignore"):
        parts = kind.encode(values, weight.inner or 0, seen)
    if all(part.dtype.kind != "f" or np.isfinite(part).all() for part in parts.values()):
        return parts
    largest = f"tensor {weight.name} holds values up to {np.abs(values).max():.3g}"
    why = "" if isinstance(kind, Columns) else ", whose numbers or scales are float16"
    inside = weight.part in ("attention", "mlp")
    instead = "--format f32" if isinstance(kind, Columns) else "--format q8 or f32" if inside else "--head-format f32"
    raise FormatError(f"{largest}, too large for {kind.name}{why}; take {instead}")


def _size(slices: Sequence[Slice]) -> int:
    """Return how many bytes a file of slices takes at most."""
    return sum(piece.bytes + PART_ROOM * len(piece.parts) for piece in slices)


def _write_head(file: hdf5.File, spec: ModelSpec, files: dict[str, bytes], source_hash: str) -> None:
    text = json.dumps(spec.to_json())
    file.attrs.update(format=hdf5.FORMAT, format_version=hdf5.FORMAT_VERSION, made_by=f"hepti_mpi {__version__}")
    file.attrs.update(spec=text, source_hash=source_hash)
    file.attrs["checksum"] = np.uint32(hdf5.head_checksum(text, source_hash, files))
    for name, content in files.items():
        file.create_dataset(f"files/{name}", data=np.frombuffer(content, np.uint8))


def _write_tensor(file: hdf5.File, piece: Slice, weight: Weight, parts: Mapping[str, np.ndarray], step: int) -> None:
    """Write a slice of a weight, part by part, with a checksum for what belongs to every `step` of its entries."""
    for part, array in piece.parts.items():
        values = np.asarray(parts[part])
        if (values.dtype, values.shape) != (array.kind, array.shape):
            raise StoreError(f"{part} of tensor {weight.name} are {values.dtype} {values.shape}, expected {array.kind} {array.shape}")
        dataset = file.create_dataset(hdf5.place(weight.name, part), data=values)
        if part == VALUES:
            dataset.attrs.update(first=piece.first, count=piece.shape[0], whole=weight.shape[0])
        size = array.entries(step)
        sums = [zlib.crc32(np.ascontiguousarray(values[begin : begin + size]).data) for begin in range(0, len(values), size)]
        file.create_dataset(hdf5.place_of_sums(weight.name, part), data=np.array(sums, np.uint32))
