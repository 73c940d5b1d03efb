"""Fields of requests for a text that nothing here follows: passed over, the answer would be that of another request. Knows their names
and what asks for nothing by them; fields that nobody knows are ignored.

Sources: OpenAI's API reference; vLLM's and llama.cpp's servers, text-generation-inference.
"""

from collections.abc import Mapping
from typing import Any

Plain = dict[str, tuple[Any, ...]]  # by which values a field asks for nothing; where none are named: false, 0, and what is empty
_NONE: tuple[Any, ...] = ()
TEXTS: Plain = {
    **dict.fromkeys("min_tokens ignore_eos stop_token_ids include_stop_str_in_output allowed_token_ids bad_words".split(), _NONE),
    **dict.fromkeys("guided_json guided_regex guided_choice guided_grammar structured_outputs grammar json_schema".split(), _NONE),
    **dict.fromkeys("use_beam_search prompt_logprobs truncate_prompt_tokens truncate top_a samplers n_probs".split(), _NONE),
    **dict.fromkeys("regex ebnf logits_processors watermark lora lora_path n_indent thinking_token_budget".split(), _NONE),
    **dict.fromkeys("mirostat mirostat_mode dry_multiplier dynatemp_range xtc_probability".split(), _NONE),
    **dict.fromkeys("length_penalty repeat_penalty typical_p typ_p tfs tfs_z".split(), (1,)),
    **dict.fromkeys("n_predict t_max_predict_ms top_n_sigma".split(), (-1, 0)),
    **dict.fromkeys("skip_special_tokens add_special_tokens".split(), (True,)),
}
TALKS: Plain = TEXTS | {
    **dict.fromkeys("documents chat_template continue_final_message echo add_special_tokens".split(), _NONE),
    "web_search_options": (False,), "verbosity": ("medium",), "function_call": ("none", "auto"), "add_generation_prompt": (True,),
}  # fmt: skip


def first_unmet(values: Mapping[str, Any], unmet: Plain) -> str | None:
    """Return the name of the first field of `values` that asks for what is not done here, None where none does.

    >>> first_unmet({"min_tokens": 5}, TEXTS), first_unmet({"min_tokens": 0, "tfs": 1, "what": 2}, TEXTS)
    ('min_tokens', None)
    """
    for name, plain in unmet.items():
        value = values.get(name)
        if value is not None and (value not in plain if plain else value):
            return name
    return None
