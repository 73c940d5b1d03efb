"""What rank 0 takes for what lies around the layers of a batch: embedding, head and the requests themselves. Pure.

Knows which products there are and how often; what an element, a product and a request take is in the profile.
"""

from collections.abc import Sequence

from hepti_mpi.cluster.profile import Edges
from hepti_mpi.models.spec import ModelSpec

SORTED = 12  # elements that it takes as long as to rank one word of the vocabulary


def edge_seconds(spec: ModelSpec, edges: Edges, lengths: Sequence[int]) -> float:
    """Return the seconds for a batch of requests of `lengths` rows; one that fills masks is taken to have one mask."""
    rows, requests, hidden = sum(lengths), len(lengths), spec.hidden
    seconds = edges.batch + requests * edges.request + rows * hidden * edges.element
    answered = rows if spec.reads_each and spec.head != "masked-words" else requests
    macs = rows * sum(step.macs for step in spec.front) + answered * sum(step.macs for step in spec.back)
    if spec.head == "masked-words":
        seconds += requests * spec.numbers("ids") * SORTED * edges.element
    return seconds + macs * edges.mac
