"""What ranks must have before they load: the same model, the same plan, and each its slices, undamaged. Weights for ranks whose host has no
store come from a rank that has one, into a cache of their own.

Knows which rank has what and sends it; what the file looks like is weights.cache's business.
"""

import base64
import json
import time
import zlib
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path
from shlex import quote

import numpy as np

from hepti_mpi.comm.ranks import Comm
from hepti_mpi.engine.machine import Machine, together
from hepti_mpi.errors import PlanError, StoreError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.weights.cache import CachedStore
from hepti_mpi.weights.prepacked import Prepacked
from hepti_mpi.weights.slices import Slice, span
from hepti_mpi.weights.store import Store


def open_store(machine: Machine, path: Path, cache: Path | None = None, prepacked: Prepacked | None = None) -> Store:
    """Open the store, or this rank's file in a folder of rank files, and check that all ranks have the same model. Collective.

    `cache`: where a rank that has none keeps what it is sent; None: then it is an error. `prepacked`: where this rank keeps weights as
    kernels read them.
    """
    world, found = machine.world, list[Store]()
    own = path / f"rank{world.rank:02d}.h5" if path.is_dir() else path
    with together(world):
        if own.exists() or cache is None:
            if path.is_dir() and not own.exists():
                parts = f"--plan PLAN --ranks {quote(str(path))}"
                raise StoreError(f"{own} not found; cut it with: python -m hepti_mpi slice SOURCE STORE {parts}")
            found.append(Store(own, prepacked))
    hashes = world.gather_all(found[0].source_hash if found else None)
    holders = [rank for rank, one in enumerate(hashes) if one]
    with together(world):
        if not holders:
            raise StoreError(f"no rank has {path}; make it with: python -m hepti_mpi slice SOURCE {quote(str(path))}")
        if found and hashes[world.rank] != hashes[holders[0]]:
            own_hash, first = hashes[world.rank][:12], hashes[holders[0]][:12]
            raise StoreError(
                f"{own} holds a model with source hash {own_hash}, rank {holders[0]} has {first}; copy the same store to every host"
            )
    place = (cache or Path()).expanduser() / f"{hashes[holders[0]][:32]}-rank{world.rank:02d}.h5"
    with together(world):
        if not found and (kept := CachedStore.existing(place, hashes[holders[0]], prepacked)):
            found.append(kept)
    bare = [rank for rank, has in enumerate(world.gather_all(bool(found))) if not has]
    if not bare:
        return found[0]
    content = _packed(found[0]) if world.rank == holders[0] else b""
    size = world.gather_all(len(content))[holders[0]]
    for rank in bare:
        if world.rank == holders[0]:
            world.send(rank, np.frombuffer(content, np.uint8))
        elif world.rank == rank:
            content = world.receive(holders[0], size).tobytes()
    with together(world):
        if not found:
            found.append(CachedStore.beginning(place, _unpacked(content), prepacked))
    return found[0]


def _packed(store: Store) -> bytes:
    files = {name: base64.b64encode(content).decode() for name, content in store.files.items()}
    return json.dumps([store.spec.to_json(), files, store.source_hash]).encode()


def _unpacked(content: bytes) -> tuple[ModelSpec, dict[str, bytes], str]:
    spec, files, source_hash = json.loads(content)
    return ModelSpec.from_json(spec), {name: base64.b64decode(text) for name, text in files.items()}, source_hash


def same_plan(machine: Machine, own: str) -> None:
    """Check that the hash of this rank's plan is that of rank 0's. Collective. Raises: PlanError."""
    world = machine.world
    hashes = world.gather_all(own)
    with together(world):
        if own != hashes[0]:
            raise PlanError(f"this rank has plan {own}, rank 0 has {hashes[0]}; give every host the same plan file")


def hold(machine: Machine, store: Store, wanted: Collection[Slice]) -> dict[str, float]:
    """Make sure that this rank holds `wanted`, undamaged; return the seconds of `fetch` where something came, on all ranks. Collective.

    Raises: StoreError.
    """
    begin = time.perf_counter()
    came = fetch(machine, store, wanted)
    seconds = {"fetch": time.perf_counter() - begin} if came else {}
    with together(machine.world):
        store.verify(wanted)
    return seconds


def fetch(machine: Machine, store: Store, wanted: Iterable[Slice]) -> int:
    """Make sure that this rank holds `wanted`; return the bytes that came, to all ranks. Collective."""
    world, pieces = machine.world, list[Slice]()
    with together(world):
        if isinstance(store, CachedStore):
            pieces = store.lacking(wanted)
    said = world.gather_all([isinstance(store, CachedStore), [[piece.name, piece.first, list(piece.shape)] for piece in pieces]])
    holders = [rank for rank, (cached, _) in enumerate(said) if not cached]
    asked = {
        rank: [span(store.weights[name], first, first + shape[0]) for name, first, shape in every]
        for rank, (_, every) in enumerate(said) if every
    }  # fmt: skip
    serving = {rank: holders[number % len(holders)] for number, rank in enumerate(asked)}
    mine = {rank: asked[rank] for rank, holder in serving.items() if holder == world.rank}
    with together(world):
        for each in mine.values():
            store.verify(each)
    with world.patience.slower(), together(world):
        for rank, each in mine.items():
            for piece in each:
                for array in store.parts(piece).values():
                    values = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
                    world.send(rank, values)
                    world.send(rank, np.array([zlib.crc32(values.data)], np.uint32).view(np.uint8))
        if pieces:
            assert isinstance(store, CachedStore)
            store.take(pieces, partial(_received, world, serving[world.rank]))
    return sum(piece.bytes for every in asked.values() for piece in every)


def _received(world: Comm, holder: int, piece: Slice) -> dict[str, np.ndarray]:
    """Take a piece, part by part, from the rank that sends it. Raises StoreError where it came otherwise than it was sent."""
    found, sound = dict[str, np.ndarray](), True
    for part, array in piece.parts.items():
        values, checksum = world.receive(holder, array.bytes), world.receive(holder, 4).view(np.uint32)
        sound &= bool(zlib.crc32(values.data) == checksum[0])
        found[part] = values.view(array.kind).reshape(array.shape)
    if not sound:
        raise StoreError(f"{piece.name} from rank {holder} was damaged on its way; run again")
    return found
