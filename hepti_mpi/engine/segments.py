"""The sessions of one store in this process, by what they compute: plans and tiles with the same operations on the same weights share one.

Does not know how a session is made (sessions.py), and imports that with the first one: ranks that rest need none.
"""

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from hepti_mpi.program.steps import Compute
from hepti_mpi.weights.slices import Part
from hepti_mpi.weights.store import Store

if TYPE_CHECKING:
    from hepti_mpi.engine.sessions import Segment


class Segments:
    """The sessions of one store in this process."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.made: WeakValueDictionary[tuple[object, ...], Segment] = WeakValueDictionary()  # as long as an engine uses it

    def get(self, compute: Compute, part: Part, mode: str, threads: int) -> "Segment":
        from hepti_mpi.engine import sessions

        held = part.held(compute)
        pieces = tuple((op, *slices.values()) for op, slices in held.items())
        heads = part.heads if any(op.axis == "heads" for op in compute.ops) else 0
        key = (compute.ops, compute.reads, compute.writes, compute.distribution, heads, pieces, mode, threads)
        segment = self.made.get(key)
        if segment is None:
            segment = self.made[key] = sessions.build(compute, self.store, held, heads, mode, threads)
        return segment
