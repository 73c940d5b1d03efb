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
    macs = 0.0
    if spec.embedding == "patches":
        macs += rows * hidden * spec.options["channels"] * spec.options["patch_size"] ** 2
    if spec.options.get("pooler"):
        macs += requests * hidden * hidden
    if spec.head in ("sequence-classes", "image-classes", "token-classes"):
        macs += (rows if spec.head == "token-classes" else requests) * hidden * len(spec.labels)
    if spec.head == "masked-words":
        macs += requests * hidden * (hidden + spec.options["vocabulary"])
        seconds += requests * spec.options["vocabulary"] * SORTED * edges.element
    return seconds + macs * edges.mac
