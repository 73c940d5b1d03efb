"""A rank's own copy of what it needs of a store that another rank has: a store file that grows. Knows files and ranges; does not know
how the bytes come. What writes it is imported where something is written: few ranks have such a copy.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hepti_mpi.errors import StoreError, reason_of
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.weights.prepacked import Prepacked
from hepti_mpi.weights.slices import Slice, joined
from hepti_mpi.weights.store import Store

Fetch = Callable[[Slice], Mapping[str, np.ndarray]]


class Source:
    """Stands in for the store that a file is cut from (writing.write_part): its head, and pieces as they come from `fetch`."""

    def __init__(self, spec: ModelSpec, files: dict[str, bytes], source_hash: str, fetch: Fetch) -> None:
        self.spec, self.files, self.source_hash, self.fetch = spec, files, source_hash, fetch

    def parts(self, piece: Slice) -> Mapping[str, np.ndarray]:
        return self.fetch(piece)

    def verify(self, slices: Iterable[Slice]) -> int:
        """Each piece is checked as it comes."""
        return 0


class CachedStore(Store):
    """What a rank holds of another's store, in a file of its own."""

    @classmethod
    def existing(cls, path: Path, source_hash: str, prepacked: Prepacked | None = None) -> "CachedStore | None":
        """Return the one at `path`, None where there is none of that model."""
        try:
            store = cls(path, prepacked)
        except StoreError:  # there is none, or it is damaged
            return None
        if store.source_hash == source_hash:
            return store
        store.close()
        return None

    @classmethod
    def beginning(cls, path: Path, head: Any, prepacked: Prepacked | None = None) -> "CachedStore":
        """Return a new one without weights for the model of `head` (spec, files, source hash). Raises StoreError when it cannot be
        written."""
        from hepti_mpi.weights.writing import write_part

        spec, files, source_hash = head
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreError(f"{path.parent} cannot be made: {reason_of(error)}") from None
        write_part(path, Source(spec, files, source_hash, _nothing), ())
        return cls(path, prepacked)

    def lacking(self, wanted: Iterable[Slice]) -> list[Slice]:
        """Return what must come for `wanted` to be there and sound, joined with what is held of the same tensors."""
        held = {piece.name: piece for piece in self.held()}
        found = []
        for piece in joined(self.spec, wanted):
            try:
                self.verify([piece])
            except StoreError:
                found += joined(self.spec, [held.get(piece.name, piece), piece])
        return found

    def held(self) -> list[Slice]:
        """Return the pieces in the file, one of each tensor that it has any of."""
        return [piece for name in self.names if (piece := self.piece(name)) is not None]

    def take(self, pieces: Sequence[Slice], fetch: Fetch) -> None:
        """Write the file again with `pieces`. Raises StoreError; then nothing has changed.

        `fetch` is asked for each of them in their order, also where something fails, since who sends them sends all.
        """
        from hepti_mpi.weights.writing import write_part

        coming = {piece.name: piece for piece in pieces}

        def parts(piece: Slice) -> Mapping[str, np.ndarray]:
            return fetch(coming.pop(piece.name)) if piece.name in coming else self.parts(piece)

        try:
            kept = [piece for piece in self.held() if piece.name not in coming and not self.lacking([piece])]
            write_part(self.path, Source(self.spec, self.files, self.source_hash, parts), [*kept, *pieces])
        finally:
            for piece in coming.values():
                with suppress(StoreError):
                    fetch(piece)
        self.close()
        Store.__init__(self, self.path, self.prepacked)


def _nothing(piece: Slice) -> Mapping[str, np.ndarray]:
    raise StoreError(f"nobody has {piece.name}")
