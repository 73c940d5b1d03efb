"""A model as what writes stores takes it. Knows no kind of checkpoint: who only reads stores imports none of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from hepti_mpi.models.identity import reduced_hash
from hepti_mpi.models.spec import ModelSpec, reduced


@dataclass(frozen=True)
class ModelFiles:
    """A model that can be written into a store.

    `files`: the small files that a run needs, by name. `source_hash`: of all that decides an answer, see identity.py.
    """

    spec: ModelSpec
    files: dict[str, bytes]
    source_hash: str
    stream: Callable[[], Iterator[tuple[str, np.ndarray]]] = field(repr=False)

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, float32 C-contiguous array) of every weight in the order of the store, one in memory at a time."""
        return self.stream()

    def in_format(self, name: str, head: str | None = None) -> "ModelFiles":
        """Return the model with the weights of its layers in a format, and the words of which it writes in `head`, if given. Raises
        ModelError when there is none of that name, and where `head` is given and there are no such words."""
        spec = reduced(self.spec, name, head)
        return replace(self, spec=spec, source_hash=reduced_hash(self.source_hash, spec.formats))
