"""Arrays out of a .npz file, none of them trusted: no pickles, and no allocation before the sizes are checked.

Knows the npz format and the names of arrays that change no answer, so that none is passed over that might; knows no model and no request.
"""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.models.sidefiles import verdict, without
from hepti_mpi.models.untrusted import shown

SIZE_LIMIT = 1 << 30  # bytes of one array
UNPACKED, TIMES = 32 << 20, 100  # bytes that any file may unpack to, and times its own size
# what is kept beside inputs and decides no answer: what should come out, and what tokenizers tell of their texts
BESIDE = without("label labels expected_* special_tokens_mask offset_mapping length overflow_to_sample_mapping num_truncated_tokens")
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Return those of the `wanted` arrays that are in the file. Raises InputError, also for an array that might change answers and is not
    one of them: transformers takes many, such as inputs_embeds, and passing over one would be an answer to something else.
    """
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
    other = next((name for name in map(plain, members) if name not in wanted and not verdict(BESIDE, name)), None)
    if other is not None:
        hint = f"read are {', '.join(wanted)}; save the file without it if it changes no answer"
        raise InputError(f"{path} holds the array {shown(other, 60)}, which is not read; {hint}")
    return found


def plain(member: str) -> str:
    """Return what the array of a member is called."""
    return member.removesuffix(".npy")


def check_positions(path: Path, given: np.ndarray | None, own: np.ndarray, mask: np.ndarray) -> None:
    """Raise InputError when the position_ids that are `given` are others than the model's `own`, where `mask` leaves a token; all are
    [inputs, positions], and one row of position_ids stands for all inputs.
    """
    if given is None:
        return
    if given.dtype.kind not in "iu" or given.ndim != 2 or given.shape not in (own.shape, (1, own.shape[1])):
        expected = f"integers of shape {list(own.shape)}"
        raise InputError(f"{path}: position_ids is {given.dtype} of shape {list(given.shape)}, expected {expected}")
    odd = np.argwhere((given != own) & (mask != 0))
    if len(odd):
        row, place = odd[0]
        said = int(np.broadcast_to(given, own.shape)[row, place])
        where = f"array {row + 1} of {path.name}: position_ids is {said} at position {place}, where the model counts {own[row, place]}"
        raise InputError(f"{where}; other positions than its own are not supported: save the file without position_ids to have those")


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    """Return one array whose header agrees with the size of its member."""
    name = plain(info.filename)
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
