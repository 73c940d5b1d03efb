"""What becomes of the keys of a GGUF file that are not of its architecture: the list for tokenizers and for how tokens are chosen.

Knows names of keys; knows no tensor and no token. Source: gguf-py/gguf/constants.py and src/llama-vocab.cpp of llama.cpp.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hepti_mpi.errors import InputError, ModelError
from hepti_mpi.models import sidefiles
from hepti_mpi.models.sidefiles import CHOICES, Table, Verdict, honoured, refused, without
from hepti_mpi.models.tasks.sampling import Sampling

FILE, KEY, CHOOSING = "the GGUF file", "tokenizer.ggml.", "general.sampling."


def below(prefix: str, table: Table) -> dict[str, Verdict]:
    """Return a table whose keys are below a common one."""
    return {prefix + key: found for key, found in table.items()}


SUPPRESSED = below(KEY, refused("suppress_tokens", CHOICES, (None, [])))
OTHERWISE = "texts would be cut into other tokens; put the model's tokenizer.json beside the file"
TOKENIZER = SUPPRESSED | below(KEY, {
    **honoured("tokens token_type scores merges model pre add_bos_token add_eos_token add_space_prefix normalizer.nfc eos_token_ids"),
    **honoured("*_token_id"),  # of these bos, eos, eot and eom
    # of WordPiece, Unigram and pairs of texts, which no architecture that is read has
    **without("add_*_token token_type_count remove_extra_whitespaces precompiled_charsmap clean_spaces"),
    **refused("normalizer.lowercase normalizer.strip_accents treat_whitespace_as_suffix", OTHERWISE, (False,)),
    **refused("escape_whitespaces", OTHERWISE, (True,)),
}) | honoured("tokenizer.chat_template*") | without("tokenizer.huggingface.json tokenizer.rwkv.world")  # fmt: skip
SAMPLING = below(CHOOSING, {
    **honoured("penalty_repeat penalty_last_n"),
    **without("sequence temp top_k top_p min_p xtc_threshold mirostat_tau mirostat_eta"),  # as in generation_config.json
    **refused("xtc_probability mirostat penalty_present penalty_freq", CHOICES, (0,)),
    **refused("typ_p", CHOICES, (1,)),
})  # fmt: skip


def check_keys(metadata: Mapping[str, Any], own: bool) -> None:
    """Hold the keys against the list; `own`: a tokenizer.json is taken instead of what the file says of texts. Raises ModelError."""
    table = SAMPLING | (SUPPRESSED | without("tokenizer.*") if own else TOKENIZER)
    said = {key: _plain(value) for key, value in metadata.items() if key.startswith(("tokenizer.", CHOOSING))}
    sidefiles.check(FILE, said, table)


def choosing_options(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a ModelSpec that say how tokens are chosen: "repetition_penalty", if any. Raises ModelError."""
    penalty, last = (_plain(metadata.get(CHOOSING + key)) for key in ("penalty_repeat", "penalty_last_n"))
    if penalty in (None, 0, 1):
        return {}
    try:
        Sampling(repetition_penalty=penalty)
    except InputError as error:
        raise ModelError(f"{FILE}: {error}") from None
    if last not in (None, -1):
        raise ModelError(f"{FILE}: {CHOOSING}penalty_last_n is {last!r:.60}, which is not supported: a penalty counts all tokens")
    return {"repetition_penalty": float(f"{penalty:.7g}")}  # a float32 that JSON says in fewer digits


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value
