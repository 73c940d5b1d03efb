"""The one list of what the small files beside the weights may say: per file and key, what becomes of it.

A key is honoured (its value decides answers, and the code that reads the file follows it), without influence on answers, or
refused, with the reason; a key that the list does not know is refused too, never skipped. Knows names of files and keys only:
what an honoured key does is known by the module that reads the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.untrusted import shown

HONOURED, WITHOUT, REFUSED = "honoured", "without influence", "refused"


@dataclass(frozen=True)
class Verdict:
    """What becomes of one key: `kind`; for a refused one the `reason` and the values that are `harmless` all the same."""

    kind: str
    reason: str = ""
    harmless: tuple[Any, ...] = ()


Table = Mapping[str, Verdict]


def honoured(keys: str) -> dict[str, Verdict]:
    """Return the verdict of these keys, separated by blanks: the reader of the file follows each."""
    return dict.fromkeys(keys.split(), Verdict(HONOURED))


def without(keys: str) -> dict[str, Verdict]:
    """Return the verdict of these keys, separated by blanks and with `*` for any characters: none changes an answer."""
    return dict.fromkeys(keys.split(), Verdict(WITHOUT))


def refused(keys: str, reason: str, harmless: tuple[Any, ...] = (None, False)) -> dict[str, Verdict]:
    """Return the verdict of these keys: refused for `reason`, unless the value is one of `harmless`."""
    return dict.fromkeys(keys.split(), Verdict(REFUSED, reason, harmless))


def verdict(table: Table, key: str) -> Verdict | None:
    """Return what `table` says of a key, by name first, then by pattern; None if it does not know the key."""
    if key in table:
        return table[key]
    return next((found for pattern, found in table.items() if "*" in pattern and fnmatchcase(key, pattern)), None)


def check(name: str, data: Mapping[str, Any], table: Table | None = None) -> None:
    """Hold every key of the parsed file `name` against `table`, by default the one of that file in FILES.

    Raises ModelError for the first key that is refused or not known.
    """
    table = FILES[name.rsplit("/", 1)[-1]] if table is None else table
    for key, value in data.items():
        found = verdict(table, key)
        if found is None:
            hint = "it is not known whether it changes answers; if it does not, take it out and slice again"
            raise ModelError(f"{name}: {shown(repr(key), 60)} is in no list of what this file may say: {hint}")
        if found.kind == REFUSED and value not in found.harmless:
            raise ModelError(f"{name}: {key} is {shown(repr(value), 60)}, which is not supported: {found.reason}")


# ---- the list: one table per side file, by the plain name of the file

# of a picture's processor; some of the keys count for some kinds of processor only, see preprocessors.py
PICTURES = (
    honoured("image_processor_type feature_extractor_type do_resize size default_to_square resample crop_pct do_center_crop crop_size")
    | honoured("do_rescale rescale_factor rescale_offset do_normalize include_top image_mean image_std do_pad pad_size do_convert_rgb")
    | without("processor_class _valid_processor_keys data_format input_data_format device return_tensors disable_grouping")
    | without("max_size do_reduce_labels reduce_labels image_seq_length size_divisor num_channels patch_size image_size")
    | refused("use_square_size", "size is to be written as height and width")
    | refused("do_flip_channel_order do_thumbnail do_align_long_axis do_color_quantize keep_aspect_ratio", "a step of other processors")
    | refused("auto_map", "it names code in the model's folder, which is never run", (None, {}))
)

UNTRUSTED = "it names code of the folder, which is never run"
TOKENIZER = {
    **honoured("tokenizer_class do_lower_case strip_accents tokenize_chinese_chars add_prefix_space added_tokens_decoder"),
    **honoured("additional_special_tokens extra_special_tokens split_special_tokens model_input_names truncation_side"),
    **honoured("padding_side model_max_length max_len bos_token eos_token unk_token sep_token pad_token cls_token mask_token"),
    **without("add_bos_token add_eos_token"),  # transformers drops both where there is a tokenizer.json, and BERT needs neither
    **honoured("*_token"),  # special tokens with a name of their own
    **refused("auto_map", UNTRUSTED, (None, {}, [])),
    **refused("fast_tokenizer_files", "one tokenizer.json of several would have to be chosen; keep the one that is meant", (None, [])),
    **refused("processor_class", "a model of texts has a tokenizer only"),
    **refused("init_inputs", "it changes how the tokenizer is built", (None, [], ())),
    **refused("vocab merges tokenizer_object gguf_file model_specific_special_tokens", "tokens have to be in tokenizer.json", (None,)),
    # written by some version, read by none or only for what is no token: paths, chats, padding, slow tokenizers, other languages' models
    **without("*_file *_files *_token_id *_token_type_id name_or_path _name_or_path _commit_hash transformers_version from_slow"),
    **without("clean_up_tokenization_spaces* clean_text do_basic_tokenize never_split wordpieces_prefix tokenizer_type use_fast"),
    **without("max_length stride truncation_strategy truncation padding pad_to_multiple_of return_* verbose backend is_local is_fast"),
    **without("local_files_only chat_template chat_control_tokens response_template response_schema legacy legacy_behaviour errors"),
    **without("sp_model_kwargs keep_accents remove_space trim_offsets use_default_system_prompt fix_mistral_regex device_map"),
    **without("full_tokenizer_file language languages do_remove_space cache_dir trust_remote_code revision torch_dtype dtype"),
}
SPECIALS = {
    **honoured("additional_special_tokens extra_special_tokens *_token"),
}
# sentence-transformers: modules.json (per module), config_sentence_transformers.json, sentence_*_config.json, <module>/config.json
ENTRY = honoured("type path name") | without("idx kwargs")
SENTENCES = {
    **honoured("prompts default_prompt_name truncate_dim model_type"),
    **without("__version__ similarity_fn_name requirements"),  # a similarity compares embeddings, it does not make them
}
TRANSFORMER = {
    **honoured("max_seq_length do_lower_case processor_kwargs tokenizer_args processing_kwargs modality_config module_output_name"),
    **honoured("model_kwargs model_args config_kwargs config_args"),  # see LOADING and CONFIGURING
    **refused("transformer_task", "only a transformer that gives hidden states makes embeddings", (None, "feature-extraction")),
    **refused("tokenizer_name_or_path", "the tokenizer has to lie in the folder of the model", (None,)),
    **without("unpad_inputs query_length document_length query_expansion"),  # encode() is called without a task
}
LOADING = {
    **without("attn_implementation low_cpu_mem_usage use_safetensors add_pooling_layer device_map cache_dir revision trust_remote_code"),
    **refused("torch_dtype dtype", "everything is computed in float32", (None, "auto", "float32", "torch.float32")),
}
CONFIGURING = without("use_cache output_attentions trust_remote_code cache_dir revision attn_implementation")
PROCESSING = honoured("text common") | without("audio image video chat_template")
CALLING = {
    **honoured("max_length truncation"),
    **without("padding pad_to_multiple_of return_tensors return_attention_mask verbose"),
    **refused("padding_side", "an embedding would depend on the other texts beside it", (None, "right")),
    **refused("add_special_tokens", "texts without special tokens are for other models", (True,)),
}
MODULES: dict[str, Table] = {
    "Transformer": {},
    "Pooling": honoured("pooling_mode pooling_mode_* include_prompt") | without("word_embedding_dimension embedding_dimension"),
    "Normalize": honoured("module_input_name module_output_name"),
    "Dense": honoured("in_features out_features bias activation_function use_residual module_input_name module_output_name"),
    "LayerNorm": honoured("dimension"),
    "Dropout": without("dropout"),
}
FILES: dict[str, Table] = {
    "modules.json": ENTRY,
    "config_sentence_transformers.json": SENTENCES,
    "sentence_bert_config.json": TRANSFORMER,
    "preprocessor_config.json": PICTURES,
    "processor_config.json": honoured("image_processor") | without("processor_class"),
    "tokenizer_config.json": TOKENIZER,
    "special_tokens_map.json": SPECIALS,
}
