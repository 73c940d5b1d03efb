"""Fields of other servers' requests that nothing here follows, refused: of texts those of models/inputs/unmet.py, of embeddings these.
Fields that nobody knows are ignored (fields.py).

Sources: OpenAI's API reference; Cohere's, Jina's and Voyage's embeddings.
"""

from hepti_mpi.models.inputs.unmet import Plain, first_unmet
from hepti_mpi.serving.http.fields import Fields, shown
from hepti_mpi.serving.http.refusals import Refused

VECTORS: Plain = {
    **dict.fromkeys("input_type task late_chunking truncate_prompt_tokens instruction output_dimension".split(), ()),
    **dict.fromkeys("output_dtype embedding_type".split(), ("float",)), "embedding_types": (["float"],),
}  # fmt: skip


def check_met(fields: Fields, unmet: Plain) -> None:
    """Raise Refused for the first field that asks for what is not done here."""
    if (name := first_unmet(fields.values, unmet)) is not None:
        raise Refused(422, f"{name} is {shown(fields.values[name])}, which is not supported here; leave it out", name)
