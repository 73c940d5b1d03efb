"""Read a Hugging Face model folder: config.json, tokenizer or preprocessor files, and weights in the shapes of the store.

Knows which files make up a model; knows no tensor name (families/), nothing of sentence-transformers (sentence.py), no store file
and no plan.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hepti_mpi.errors import ModelError
from hepti_mpi.models import sidefiles
from hepti_mpi.models.checkpoints.crossencoder import check_last_token, read_cross_encoder
from hepti_mpi.models.checkpoints.generation import chat_files, writing_options
from hepti_mpi.models.checkpoints.modelfiles import ModelFiles
from hepti_mpi.models.checkpoints.safetensors import TensorFiles
from hepti_mpi.models.checkpoints.sentence import UNLIMITED, Sentence, read_sentence, whole_number
from hepti_mpi.models.checkpoints.tokenizerclasses import JSON
from hepti_mpi.models.checkpoints.tokenizing import FILES as TOKENIZER_FILES
from hepti_mpi.models.checkpoints.tokenizing import Built, build_tokenizer
from hepti_mpi.models.families.family import Family, Task, class_labels, integer, score_kind, spec_of
from hepti_mpi.models.families.imports import check_untied, match, plain_names, stored
from hepti_mpi.models.families.registry import FAMILIES, choose_task
from hepti_mpi.models.identity import source_hash
from hepti_mpi.models.inputs.preprocessors import read_preprocessor
from hepti_mpi.models.spec import ModelSpec, named_weights
from hepti_mpi.models.untrusted import is_file, parse_json, read_small, shown

KEPT_FILES = ("config.json", "preprocessor_config.json", "processor_config.json")
PROCESSORS = (*KEPT_FILES[1:], "video_preprocessor_config.json")  # which name a class that sentence-transformers would load
VOCABULARIES = r"tekken\.json|tokenizer\.model|tiktoken\.model"  # source: transformers, PreTrainedTokenizerBase.from_pretrained
# values of model_name by which transformers passes over tokenizer_class. Source: models/auto/tokenization_auto.py of 5.23
MISNAMED = """arctic chatlm ernie4_5 ernie4_5_moe fuyu h2ovl_chat hyperclovax hyperclovax_vlm hyperclovax_vision_v2 internlm2 internlm3
iquestcoder jamba llava llava_next minicpm3 minicpmv minimax_m2 modernbert modernbert-decoder molmo molmo2 nemotron nvfp4 opencua openvla
paddleocr_vl phi3 phi3_v phimoe qwen2 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen4_exp step3_vl vipllava cohere_asr camembertv2-base siglip2
smolvlm""".split()


def read_model(source: Path) -> ModelFiles:
    """Return the model in the folder `source`; its weights are read when they are asked for.

    Raises ModelError when a file is missing, damaged, hostile, or describes a model that is not supported.
    """
    source = Path(source)
    if not os.path.isdir(source):
        said = "is not a folder" if os.path.exists(source) else "not found"
        raise ModelError(f"{source} {said}; expected a folder with config.json and model.safetensors, a .gguf file, a store or "
                         "random:NAME; from the Hugging Face hub: hf download NAME --local-dir models/NAME")  # fmt: skip
    sentence = read_sentence(source) or read_cross_encoder(source)
    base = source if sentence is None else sentence.base
    files = {name: read_small(base / name) for name in KEPT_FILES if is_file(base / name)}
    refuse_adapters(base)
    if sentence:
        refuse_processors(base)
    if "config.json" not in files:
        raise ModelError(f"{base} has no config.json: name the folder that has it, beside model.safetensors")
    config = parse_json(files["config.json"], "config.json")
    family = family_of(config)
    sidefiles.check("config.json", config, {**sidefiles.CONFIG, **family.keys}, nulls=True)
    own, config = config, {**family.defaults, **config}
    if sentence and sentence.one_score:
        classifiers = [name for name in family.architectures if name.endswith("ForSequenceClassification")]
        config |= {"architectures": classifiers or config.get("architectures"), "id2label": None, "num_labels": 1}
    if family.resized:
        config = sized(config, files)
    texts = {name: read_small(base / name) for name in TOKENIZER_FILES if is_file(base / name)}
    refuse_vocabularies(source, texts)
    kind = class_named(family, config, texts)
    built = build_tokenizer(texts, kind, sentence.changes if sentence else None, family.other_tokenizers)
    files |= built.files
    tensors = TensorFiles(base)
    plain = plain_names(family, tensors.shapes)
    spec = make_spec(source.resolve().name, family, config, (sentence, built), plain, tensors)
    if spec.generates:
        files |= chat_files(base, built)
        spec = replace(spec, options=spec.options | writing_options(base, own))
    if spec.embedding == "patches":
        read_preprocessor(files, spec.options["channels"])  # refuses what no picture could be prepared with
    imports = match(family, spec, {short: tensors.shapes[name] for short, name in plain.items()})
    tensors.check_types(plain[tensor] for one in imports for tensor in one.tensors)
    modules = sentence.tensors() if sentence else {}
    by_name = {one.name: one for one in imports}

    def stream() -> Iterator[tuple[str, np.ndarray]]:
        for name, _ in named_weights(spec):
            if name in modules:
                yield name, modules[name][0].read(modules[name][1])
            else:
                one = by_name[name]
                yield name, stored(one, [tensors.read(plain[tensor]) for tensor in one.tensors])

    opened = {id(found): found for found in (tensors, *(found for found, _ in modules.values()))}.values()
    hashes = chain.from_iterable(found.hashes() for found in opened)
    return ModelFiles(spec, files, source_hash(spec, files, [*(one.derived for one in imports), *hashes]), stream)


def sized(config: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return config.json with the size of the preprocessor's pictures as image_size, where they have one, and table_size: its own."""
    steps, image = read_preprocessor(files, integer(config, "num_channels", 3)), config.get("image_size", 224)
    size = (*([steps.size] if isinstance(steps.size, tuple) else []), *steps.crops)[-1:] if steps else ()
    side = size[0][0] if size and size[0][0] == size[0][1] else image
    return {**config, "image_size": side, "table_size": image}


def refuse_adapters(source: Path) -> None:
    """Raise ModelError when the folder holds an adapter: transformers would add it to the weights."""
    found = sorted(path.name for path in source.glob("adapter_*"))
    if found:
        hint = "merge it into the weights first (peft: merge_and_unload, then save_pretrained), or move it away to go without it"
        raise ModelError(f"{source} has {shown(found[0])}: an adapter, which is not added here; {hint}")


def refuse_processors(source: Path) -> None:
    """Raise ModelError when a file of a model of texts names a processor, which sentence-transformers would load for its tokenizer."""
    for name in filter(lambda name: is_file(source / name), PROCESSORS):
        named = parse_json(read_small(source / name), name).get("processor_class")
        if named:
            why = "which sentence-transformers would load; a model of texts has none"
            raise ModelError(f"{name}: processor_class is {named!r:.60}, {why}")


def refuse_vocabularies(source: Path, texts: Mapping[str, bytes]) -> None:
    """Raise ModelError where transformers would take another vocabulary than the one that there is in place of a tokenizer.json."""
    found = min((path.name for path in source.glob("*") if re.search(VOCABULARIES, path.name)), default=None)
    if texts and JSON not in texts and found:
        hint = "move it away, or save the tokenizer with transformers' AutoTokenizer"
        raise ModelError(f"{source} has {shown(found)} and no {JSON}, so that transformers takes it for the vocabulary; {hint}")


def class_named(family: Family, config: Mapping[str, Any], texts: Mapping[str, bytes]) -> object:
    """Return the class of the tokenizer where none of its own files, `texts`, names one. Raises ModelError where names do not count."""
    said = config.get("model_name")
    if texts and family.other_tokenizers and said in MISNAMED:
        raise ModelError(f"config.json: model_name is {said!r}, by which transformers passes over any tokenizer_class; take it out")
    return (family.other_tokenizers and config.get("tokenizer_class")) or family.tokenizer


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family that config.json names. Raises ModelError."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        said = "has no model_type" if kind is None else f"has model_type {kind!r:.60}, which is not supported"
        raise ModelError(f"config.json {said}; supported: {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def make_spec(
    name: str,
    family: Family,
    config: Mapping[str, Any],
    texts: tuple[Sentence | None, Built],
    plain: Mapping[str, str],
    tensors: TensorFiles,
) -> ModelSpec:
    """Return the spec of a model; `texts` are what sentence-transformers adds, if it is such a model, and the tokenizer.

    Raises ModelError.
    """
    fields, (sentence, built) = family.fields(config), texts
    task = Task("sentence") if sentence and "pooling" in sentence.options else choose_task(family, config, plain)
    head, fields["options"] = task.head, fields.get("options", {}) | task.options(config)
    if family.types_are_words and head != "next-token":
        refuse_types(built)
    added = sentence.finish(built, fields) if sentence else {}
    labels = (task.labels or class_labels(config)) if head.endswith("-classes") else ()
    if head == "next-token" and not all(layer.attention.causal for layer in fields["kinds"]):
        raise ModelError("config.json: rows of the model see those behind them, so that no text grows from them; embeddings are made of "
                         "them in a folder with modules.json")  # fmt: skip
    options = fields.pop("options")
    if head in ("sequence-classes", "image-classes"):
        options["scores"] = score_kind(config, labels)
    if task.labels:
        options["scores"] = "sigmoid"
    elif head == "token-classes":
        options["max_tokens"] = tokens_limit(built, fields["positions"])
    if added and fields["embedding"] != "tokens":
        raise ModelError("modules.json: only text models are supported as sentence-transformers models")
    if "scores" in added and head != "sequence-classes":
        named = f"config.json has architectures {config.get('architectures')!r:.60}"
        raise ModelError(f"the model is said to be a cross-encoder, but {named}; expected one that ends in ForSequenceClassification")
    if "scores" in added:
        check_last_token(built, options)
    tied = head in ("masked-words", "next-token") and words_tied(family, config, plain, tensors)
    back = sentence.steps if sentence and head == "sentence" else task.steps(fields | {"config": config}, labels, tied)
    return spec_of(family, name, head, fields, labels=labels, options=options | added, back=back)


def tokens_limit(built: Built, positions: int) -> int | None:
    """Return the number of tokens after which transformers' pipeline of token classes cuts texts off, as no other of its pipelines does;
    None for never, and where a text that is cut off is too long all the same. Raises ModelError."""
    limit = json.loads(built.files.get("tokenizer_config.json", b"{}")).get("model_max_length")
    if limit is None or not 0 < limit <= UNLIMITED:
        return None
    return found if (found := whole_number(limit, "tokenizer_config.json", "model_max_length")) <= positions else None


def refuse_types(built: Built) -> None:
    """Raise ModelError when the tokenizer gives types, which become words by all but the pipeline that writes."""
    if built.files and "token_type_ids" in parse_json(built.files["tokenizer_config.json"], "tokenizer_config.json")["model_input_names"]:
        meant = '"model_input_names": ["input_ids", "attention_mask"] into tokenizer_config.json if they are not meant'
        raise ModelError(f"the tokenizer gives token_type_ids, which this family looks up among its words: not supported; put {meant}")


def words_tied(family: Family, config: Mapping[str, Any], plain: Mapping[str, str], tensors: TensorFiles) -> bool:
    """Return whether the output words are the input words. Raises ModelError."""
    if not config.get("tie_word_embeddings", True):
        check_untied(family, plain)
    return is_tied(family, config, plain, tensors)


def is_tied(family: Family, config: Mapping[str, Any], plain: Mapping[str, str], tensors: TensorFiles) -> bool:
    """Return whether the output words are the input words: absent, or the same numbers. Raises ModelError."""
    assert family.tied is not None
    copy, original = family.tied
    tied = bool(config.get("tie_word_embeddings", True))
    if not tied and copy not in plain:
        said = "config.json does not say that the output words are the input words"
        raise ModelError(f'tensor {copy} is missing, and {said}; if they are, put "tie_word_embeddings": true into it')
    if copy not in plain or original not in plain:
        return tied
    if tensors.shapes[plain[copy]] != tensors.shapes[plain[original]]:
        return False
    tensors.check_types((plain[copy], plain[original]))
    return np.array_equal(tensors.read(plain[copy]), tensors.read(plain[original]))
