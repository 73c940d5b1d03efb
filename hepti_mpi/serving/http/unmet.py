"""Fields of other servers' requests that nothing here follows: passed over, the answer would be that of another request. Knows their names
and what asks for nothing by them; fields that nobody knows are ignored (fields.py).

Sources: OpenAI's API reference; vLLM's and llama.cpp's servers, text-generation-inference; Cohere's, Jina's and Voyage's embeddings.
"""

from typing import Any

from hepti_mpi.serving.http.fields import Fields, shown
from hepti_mpi.serving.http.refusals import Refused

Plain = dict[str, tuple[Any, ...]]  # by which values a field asks for nothing; where none are named: false, 0, and what is empty
_NONE: tuple[Any, ...] = ()
TEXTS: Plain = {
    **dict.fromkeys("min_tokens ignore_eos stop_token_ids include_stop_str_in_output allowed_token_ids bad_words".split(), _NONE),
    **dict.fromkeys("guided_json guided_regex guided_choice guided_grammar structured_outputs grammar json_schema".split(), _NONE),
    **dict.fromkeys("use_beam_search prompt_logprobs truncate_prompt_tokens top_a".split(), _NONE),
    **dict.fromkeys("mirostat mirostat_mode dry_multiplier dynatemp_range xtc_probability".split(), _NONE),
    **dict.fromkeys("length_penalty repeat_penalty typical_p typ_p tfs tfs_z".split(), (1,)),
    **dict.fromkeys("n_predict top_n_sigma".split(), (-1, 0)),
    **dict.fromkeys("skip_special_tokens add_special_tokens".split(), (True,)),
}
TALKS: Plain = TEXTS | {
    **dict.fromkeys("documents chat_template continue_final_message echo add_special_tokens".split(), _NONE),
    "web_search_options": (False,), "verbosity": ("medium",), "function_call": ("none", "auto"), "add_generation_prompt": (True,),
}  # fmt: skip
VECTORS: Plain = {
    **dict.fromkeys("input_type task late_chunking truncate_prompt_tokens instruction output_dimension".split(), _NONE),
    **dict.fromkeys("output_dtype embedding_type".split(), ("float",)), "embedding_types": (["float"],),
}  # fmt: skip


def check_met(fields: Fields, unmet: Plain) -> None:
    """Raise Refused for the first field that asks for what is not done here."""
    for name, plain in unmet.items():
        value = fields.values.get(name)
        if value is not None and (value not in plain if plain else value):
            raise Refused(422, f"{name} is {shown(value)}, which is not supported here; leave it out", name)
