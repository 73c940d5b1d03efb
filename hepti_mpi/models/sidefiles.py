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


def check(name: str, data: Mapping[str, Any], table: Table | None = None, nulls: bool = False) -> None:
    """Hold every key of the parsed file `name` against `table`, by default the one of that file in FILES; `nulls`: a key that the list
    does not know says nothing where it is null.

    Raises ModelError for the first key that is refused or not known.
    """
    table = FILES[name.rsplit("/", 1)[-1]] if table is None else table
    for key, value in data.items():
        found = verdict(table, key)
        if found is None:
            if nulls and value is None:
                continue
            hint = "it is not known whether it changes answers; if it does not, take it out and slice again"
            raise ModelError(f"{name}: {shown(repr(key), 60)} is in no list of what this file may say: {hint}")
        if found.kind == REFUSED and value not in found.harmless:
            raise ModelError(f"{name}: {key} is {shown(repr(value), 60)}, which is not supported: {found.reason}")


# ---- the list: one table per side file, by the plain name of the file

# of a picture's processor; some of the keys count for some kinds of processor only, see preprocessors.py
PICTURES = (
    honoured("image_processor_type feature_extractor_type do_resize size default_to_square resample crop_pct do_center_crop crop_size")
    | honoured("do_rescale rescale_factor rescale_offset do_normalize include_top image_mean image_std do_pad pad_size do_convert_rgb")
    | without("processor_class data_format input_data_format device return_tensors disable_grouping")
    | without("max_size do_reduce_labels reduce_labels image_seq_length size_divisor num_channels patch_size image_size")
    | without("use_fast antialias _* name_or_path transformers_version torch_dtype dtype")  # written, and read by no processor
    | refused("use_square_size", "size is to be written as height and width")
    | refused("do_flip_channel_order do_thumbnail do_align_long_axis do_color_quantize keep_aspect_ratio", "a step of other processors")
    | refused("auto_map", "it names code in the model's folder, which is never run", (None, {}))
)

UNTRUSTED = "it names code of the folder, which is never run"
TOKENIZER = {
    **honoured("tokenizer_class do_lower_case strip_accents tokenize_chinese_chars add_prefix_space added_tokens_decoder"),
    **honoured("additional_special_tokens extra_special_tokens split_special_tokens model_input_names truncation_side"),
    **honoured("padding_side model_max_length max_len bos_token eos_token unk_token sep_token pad_token cls_token mask_token"),
    **honoured("add_bos_token add_eos_token legacy model_specific_special_tokens"),
    **honoured("*_token"),  # special tokens with a name of their own
    **refused("auto_map", UNTRUSTED, (None, {}, [])),
    **refused("fast_tokenizer_files", "one tokenizer.json of several would have to be chosen; keep the one that is meant", (None, [])),
    **refused("fix_mistral_regex", "it splits texts by another rule than tokenizer.json; save the tokenizer with transformers"),
    **honoured("processor_class"),  # sentence-transformers alone reads it
    **honoured("trust_remote_code"),  # refused where a class would make another tokenizer than tokenizer.json holds
    **refused("init_inputs", "it changes how the tokenizer is built", (None, [], ())),
    **refused("vocab merges tokenizer_object gguf_file", "tokens have to be in tokenizer.json", (None,)),
    # written by some version, read by none or only for what is no token: paths, chats, padding, slow tokenizers, other languages' models
    **without("*_file *_files *_token_id *_token_type_id name_or_path _name_or_path _commit_hash transformers_version from_slow"),
    **honoured("clean_up_tokenization_spaces*"),  # of models that write: refused there where it changes the text
    **without("clean_text do_basic_tokenize never_split wordpieces_prefix tokenizer_type use_fast"),
    **without("max_length stride truncation_strategy truncation padding pad_to_multiple_of return_* verbose backend is_local is_fast"),
    **without("local_files_only chat_template chat_control_tokens response_template response_schema legacy_behaviour errors"),
    **without("do_split_on_punc spaces_between_special_tokens vocab_size"),
    **without("sp_model_kwargs keep_accents remove_space trim_offsets use_default_system_prompt device_map"),
    **without("full_tokenizer_file language languages do_remove_space cache_dir revision torch_dtype dtype model_type"),
    **without("lowercase add_dummy_prefix_space tool_parser_type chat_template_type max_seq_length"),  # of trainers, MLX and others
}
SPECIALS = {
    **honoured("additional_special_tokens extra_special_tokens *_token"),
    **refused("add_bos_token add_eos_token", "what is put around texts has to be in tokenizer.json", ()),
}
# sentence-transformers: modules.json (per module), config_sentence_transformers.json, sentence_*_config.json, <module>/config.json
ENTRY = honoured("type path name") | without("idx kwargs")
SENTENCES = {
    **honoured("prompts default_prompt_name truncate_dim model_type activation_fn"),
    **without("keep_in_fp32_modules __version__ requirements"),
    **without("similarity_fn_name"),  # a similarity compares embeddings, it does not make them
}
TRANSFORMER = {
    **honoured("max_seq_length do_lower_case processor_kwargs tokenizer_args processing_kwargs modality_config module_output_name"),
    **honoured("model_kwargs model_args config_kwargs config_args"),  # see LOADING and CONFIGURING
    **refused("transformer_task", "only a transformer that gives hidden states makes embeddings", (None, "feature-extraction")),
    **refused("tokenizer_name_or_path", "the tokenizer has to lie in the folder of the model", (None,)),
    **without("unpad_inputs query_length document_length query_expansion"),  # encode() is called without a task
}
CROSS_ENCODER = TRANSFORMER | refused("transformer_task", "a cross-encoder is a classifier", ("sequence-classification",))
LOADING = {
    **without("attn_implementation low_cpu_mem_usage add_pooling_layer device_map cache_dir revision trust_remote_code"),
    **refused("use_safetensors", "weights of no other file are read", (None, True)),
    **refused("torch_dtype dtype", "everything is computed in float32", (None, "auto", "float32", "torch.float32")),
}
CONFIGURING = without("use_cache output_attentions trust_remote_code cache_dir revision attn_implementation")
PROCESSING = honoured("text common") | without("audio image video chat_template")
BESIDE = "an embedding would depend on the other texts beside it"
CALLING = {
    **honoured("max_length truncation padding pad_to_multiple_of"),
    **without("return_tensors verbose"),
    **refused("padding_side", BESIDE, (None, "right")),
    **refused("return_attention_mask", BESIDE, (None, True)),
    **refused("add_special_tokens", "texts without special tokens are for other models", (True,)),
}
MODULES: dict[str, Table] = {
    "Transformer": {},
    "Pooling": {
        **honoured("pooling_mode pooling_mode_cls_token pooling_mode_max_tokens pooling_mode_mean_tokens include_prompt"),
        **honoured("pooling_mode_mean_sqrt_len_tokens pooling_mode_weightedmean_tokens pooling_mode_lasttoken"),
        **without("word_embedding_dimension embedding_dimension"),
    },
    "Normalize": honoured("module_input_name module_output_name"),
    "Dense": honoured("in_features out_features bias activation_function use_residual module_input_name module_output_name"),
    "LayerNorm": honoured("dimension"),
    "Dropout": without("dropout"),
}
TIMM = "by it transformers passes over the kind of image processor that preprocessor_config.json names"
CUSTOM = "it names code of the folder, which is never run; the class that transformers itself has may answer differently"
# config.json of a BERT, ViT or DeiT. What the models of transformers 5 do not read has no influence: training, generation, other
# libraries, other families. A key that nobody knows is refused all the same: whoever wrote it may have meant another model
CONFIG = {
    **honoured("model_type architectures vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act"),
    **honoured("max_position_embeddings type_vocab_size layer_norm_eps position_embedding_type is_decoder add_cross_attention"),
    **honoured("image_size patch_size num_channels qkv_bias head_dim pooler_act pooler_output_size tie_word_embeddings"),
    **honoured("id2label num_labels problem_type sentence_transformers sbert_ce_default_activation_function tokenizer_class"),
    **honoured("image_processor_type"),
    **refused("auto_map", CUSTOM, (None, {}, [])),
    **refused("quantization_config compression_config", "weights are read as they are, in float", (None, {})),
    **refused("pretrained_cfg", TIMM, ()),
    **refused("pruned_heads", "heads of which a layer lacks some are not supported", (None, {}, [])),
    **refused("per_layer_config layer_types sliding_window", "all layers have to be alike and see all tokens", (None, {}, [])),
    **refused("is_encoder_decoder is_causal", "only encoders are supported"),
    **refused("rope_scaling rope_parameters rotary_emb_fraction", "positions are a table", (None, {}, 0, 0.0)),
    **refused("directionality", "every token has to see all others", (None, "bidi")),
    # written by transformers: versions, names, number formats, what training and generation use, what else is to be returned
    **without("_* transformers_version torch_dtype dtype attn_implementation return_dict use_return_dict output_* use_cache"),
    **without("torchscript xla_device tf_legacy_loss use_bfloat16 chunk_size_feed_forward name_or_path gradient_checkpointing"),
    **without("*dropout* *_drop_rate drop_path_rate layerdrop *_layerdrop initializer_* classifier_bias_init *_token_id *_token_ids"),
    **without("label2id finetuning_task task_specific_params function_to_apply prefix encoder_stride"),
    **without("tie_encoder_decoder cross_attention_hidden_size decoder_* summary_* base_model_tp_plan base_model_pp_plan"),
    **without("max_length min_length do_sample early_stopping num_beams num_beam_groups temperature top_k top_p typical_p"),
    **without("repetition_penalty length_penalty diversity_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids"),
    **without("num_return_sequences return_dict_in_generate remove_invalid_values exponential_decay_length_penalty suppress_tokens"),
    **without("begin_suppress_tokens forced_* *_cutoff encoder_repetition_penalty assistant_* num_assistant_* target_lookbehind"),
    # of the first BERTs, of other families that people begin with, of trainers
    **without("pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type structure cell training"),
    **without("embedding_size num_hidden_groups inner_group_num net_type down_scale_factor gap_size rope_theta scale_grad_by_freq"),
    **without("language languages name tags license author description model_name base_model* train* *_lr learning_rate loss_* seed"),
    **without("model_max_length max_seq_length max_seq_len do_lower_case adapters adapter_* use_flash_attn* unpad_inputs pad_logits"),
    **without("use_memory_efficient_attention logn_attention_* fp16 bf16 out_features out_indices stage_names num_classes"),
    **without("transformers.js_config unsloth_* matryoshka_dim* add_pooling_layer trust_remote_code ignore_mismatched_sizes"),
    **without("mean_resizing return_all_scores custom_pipelines"),
    **without("pre_trained pretrained* version date epoch* batch_size vocab_size_or_config_json_file emb_size pretraining_tp use_fast"),
}
# how a model of texts is asked where nobody says: whether to draw tokens, by which chances and how many, is said by whoever asks here
CHOICES = "the choice of tokens does not know it"
EXACT = "dynamic static offloaded offloaded_static hybrid hybrid_chunked offloaded_hybrid offloaded_hybrid_chunked sliding_window"
GENERATION = {
    **honoured("eos_token_id repetition_penalty"),
    **without("_* transformers_version *_token_id trust_remote_code torch_dtype dtype"),
    **without("do_sample temperature top_k top_p min_p max_length max_new_tokens max_time early_stopping"),
    **without("length_penalty renormalize_logits remove_invalid_values use_cache use_mtp cache_* max_cache_len return_* output_*"),
    **without("assistant_* is_assistant num_assistant_* prompt_lookup_num_tokens max_matching_ngram_size target_lookbehind"),
    **without("speculation_type compile_config disable_compile continuous_batching_config low_memory prefill_chunk_size"),
    **without("chat_format max_window_size max_context_size presence_penalty frequency_penalty"),  # of others' code
    **refused("min_length min_new_tokens no_repeat_ngram_size encoder_no_repeat_ngram_size", CHOICES, (None, 0)),
    **refused("epsilon_cutoff eta_cutoff diversity_penalty", CHOICES, (None, 0)),
    **refused("typical_p top_h encoder_repetition_penalty guidance_scale", CHOICES, (None, 1)),
    **refused("num_beams num_beam_groups", "beams are not searched", (None, 1)),
    **refused("num_return_sequences", "a prompt gets one answer", (None, 1)),
    **refused("bad_words_ids force_words_ids suppress_tokens begin_suppress_tokens sequence_bias constraints", CHOICES, (None, [], {})),
    **refused("forced_bos_token_id forced_eos_token_id forced_decoder_ids exponential_decay_length_penalty", CHOICES, (None, [])),
    **refused("penalty_alpha dola_layers watermarking_config token_healing", CHOICES, (None, 0, False)),
    **refused("cache_implementation", "keys and values would be kept in fewer bits", (None, *EXACT.split())),
    **refused("stop_strings", "an answer ends where whoever asks says so", (None, [])),
}
FILES: dict[str, Table] = {
    "config.json": CONFIG,
    "generation_config.json": GENERATION,
    "modules.json": ENTRY,
    "config_sentence_transformers.json": SENTENCES,
    "sentence_bert_config.json": TRANSFORMER,
    "preprocessor_config.json": PICTURES,
    "processor_config.json": honoured("image_processor") | without("processor_class"),
    "tokenizer_config.json": TOKENIZER,
    "special_tokens_map.json": SPECIALS,
}
