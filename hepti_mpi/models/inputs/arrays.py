"""Arrays out of a .npz file, none of them trusted: no pickles, and no allocation before the sizes are checked.

Knows the npz format; knows no model and no request.
"""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.models.untrusted import shown

SIZE_LIMIT = 1 << 30  # bytes of one array
UNPACKED, TIMES = 32 << 20, 100  # bytes that any file may unpack to, and times its own size
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Return those of the `wanted` arrays that are in the file. Raises InputError."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            found = {name: read_member(archive, members[f"{name}.npy"], path) for name in wanted if f"{name}.npy" in members}
    except InputError:
        raise
    except Exception as error:  # zipfile and zlib raise many kinds for damaged files
        raise InputError(f"{path} is not a sound .npz file: {shown(error)}") from None
    if not found:
        inside = ", ".join(sorted(members)[:5]) or "nothing"
        raise InputError(f"{path} holds none of the arrays {', '.join(wanted)}; it holds {shown(inside)}")
    return found


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    """Return one array whose header agrees with the size of its member."""
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise InputError(f"{path}: array {name} is in npy format {version[0]}.{version[1]}, expected 1.0 or 2.0")
        shape, fortran, dtype = HEADERS[version](file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or dtype.kind not in "biuf":
            raise InputError(f"{path}: array {name} is of type {str(dtype):.60}, expected numbers")
        if any(side < 0 for side in shape) or size > min(SIZE_LIMIT, info.file_size):
            raise InputError(f"{path}: array {name} claims {size} bytes, the file holds {info.file_size}, the limit is {SIZE_LIMIT}")
        if size > max(UNPACKED, TIMES * info.compress_size):
            raise InputError(f"{path}: array {name} unpacks to {size} bytes, {TIMES} times those in the file: save it uncompressed")
        data = file.read(size)
    if len(data) != size:
        raise InputError(f"{path}: array {name} ends after {len(data)} of its {size} bytes")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")
