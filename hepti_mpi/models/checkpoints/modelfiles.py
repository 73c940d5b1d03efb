"""A model as what writes stores takes it. Knows no kind of checkpoint: who only reads stores imports none of them."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from hepti_mpi.models.identity import reduced_hash
from hepti_mpi.models.spec import ModelSpec, keeping, reduced


@dataclass(frozen=True)
class ModelFiles:
    """A model that can be written into a store.

    `files`: the small files that a run needs, by name. `source_hash`: of all that decides an answer, see identity.py. `rounded`: formats of
    fewer bits that its numbers were in, in words; empty where they were in none.
    """

    spec: ModelSpec
    files: dict[str, bytes]
    source_hash: str
    stream: Callable[[], Iterator[tuple[str, np.ndarray]]] = field(repr=False)
    rounded: str = ""

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, float32 C-contiguous array) of every weight in the order of the store, one in memory at a time."""
        return self.stream()

    def in_format(self, name: str, head: str | None = None) -> "ModelFiles":
        """Return the model with the weights of its layers in a format, and the words of which it writes in `head`, if given. Raises
        ModelError when there is none of that name, and where `head` is given and there are no such words."""
        return self._described(reduced(self.spec, name, head))

    def keeping(self, few: "ModelFiles", more: "ModelFiles", names: Collection[str]) -> "ModelFiles":
        """Return the model in the formats of `few`, but for the weights of these names, which are in those of `more`: two that are this
        one in a format."""
        return self._described(keeping(few.spec, more.spec, names))

    def _described(self, spec: ModelSpec) -> "ModelFiles":
        return replace(self, spec=spec, source_hash=reduced_hash(self.source_hash, spec.formats))
