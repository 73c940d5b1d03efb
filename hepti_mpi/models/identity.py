"""Which model a store holds: one hash of all that decides an answer. Two stores of the same hash answer alike.

Knows what was read and what was derived from it; reads nothing itself.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping

from hepti_mpi.models.spec import ModelSpec

ROUNDING = 3  # of numbers to fewer bits: one more whenever the same weights become other numbers


def source_hash(spec: ModelSpec, files: Mapping[str, bytes], weights: Iterable[str]) -> str:
    """Return the SHA-256, in hexadecimal, of what was derived (but for the name, which people choose), of every small file, and of what
    `weights` says of the weights: where each comes from, and hashes of the files they are in."""
    derived = {key: value for key, value in spec.to_json().items() if key != "name"}
    kept = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return hashlib.sha256(json.dumps([derived, kept, list(weights)], sort_keys=True).encode()).hexdigest()


def reduced_hash(whole: str, formats: Mapping[str, str]) -> str:
    """Return the hash of the model of hash `whole` when its weights are in these formats: it answers otherwise, so it is another one."""
    return hashlib.sha256(json.dumps([whole, formats, ROUNDING], sort_keys=True).encode()).hexdigest() if formats else whole
