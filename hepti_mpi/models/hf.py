"""Read a Hugging Face model folder: config.json, tokenizer or preprocessor files, and weights in the shapes of the store.

Knows which files make up a model and what sentence-transformers adds; knows no tensor name (families.py), no store file and no
plan.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hepti_mpi.errors import ModelError
from hepti_mpi.models.families import FAMILIES, Family, check_untied, choose_head, class_labels, match, plain_names, score_kind, stored
from hepti_mpi.models.identity import source_hash
from hepti_mpi.models.preprocessors import read_preprocessor
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.models.tensors import TensorFiles
from hepti_mpi.models.tokenizing import FILES as TOKENIZER_FILES
from hepti_mpi.models.tokenizing import build_tokenizer
from hepti_mpi.models.untrusted import is_file, parse_json, plain_name, read_small, shown

KEPT_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}


@dataclass(frozen=True)
class ModelFiles:
    """A model that can be written into a store.

    `files`: the small files that a run needs, by name. `source_hash`: of all that decides an answer, see identity.py.
    """

    spec: ModelSpec
    files: dict[str, bytes]
    source_hash: str
    stream: Callable[[], Iterator[tuple[str, np.ndarray]]] = field(repr=False)

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, float32 C-contiguous array) of every weight in the order of the store, one in memory at a time."""
        return self.stream()


def read_model(source: Path) -> ModelFiles:
    """Return the model in the folder `source`; its weights are read when they are asked for.

    Raises ModelError when a file is missing, damaged, hostile, or describes a model that is not supported.
    """
    source = Path(source)
    if not os.path.isdir(source):
        said = "is not a folder" if os.path.exists(source) else "not found"
        raise ModelError(f"{source} {said}; expected a folder with config.json and model.safetensors")
    files = {name: read_small(source / name) for name in KEPT_FILES if is_file(source / name)}
    if "config.json" not in files:
        raise ModelError(f"{source} has no config.json")
    config = parse_json(files["config.json"], "config.json")
    family = family_of(config)
    texts = {name: read_small(source / name) for name in TOKENIZER_FILES if is_file(source / name)}
    files |= build_tokenizer(texts, config).files
    sentence = sentence_options(source, files) if "modules.json" in files else None
    refuse_adapters(source)
    tensors = TensorFiles(source)
    plain = plain_names(family, tensors.shapes)
    spec = make_spec(source.resolve().name, family, config, sentence, plain, tensors)
    if spec.embedding == "patches":
        read_preprocessor(files, spec.options["channels"])  # refuses what no picture could be prepared with
    imports = match(family, spec, {short: tensors.shapes[name] for short, name in plain.items()})
    tensors.check_types(plain[tensor] for one in imports for tensor in one.tensors)

    def stream() -> Iterator[tuple[str, np.ndarray]]:
        for one in imports:
            yield one.name, stored(one.transform, [tensors.read(plain[tensor]) for tensor in one.tensors], one.shape)

    derived = (f"{one.name}: {one.transform} of {', '.join(one.tensors)}" for one in imports)
    return ModelFiles(spec, files, source_hash(spec, files, [*derived, *tensors.hashes()]), stream)


def refuse_adapters(source: Path) -> None:
    """Raise ModelError when the folder holds an adapter: transformers would add it to the weights."""
    found = sorted(path.name for path in source.glob("adapter_*"))
    if found:
        hint = "merge it into the weights first (peft: merge_and_unload, then save_pretrained), or move it away to go without it"
        raise ModelError(f"{source} has {shown(found[0])}: an adapter, which is not added here; {hint}")


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
    sentence: Mapping[str, Any] | None,
    plain: Mapping[str, str],
    tensors: TensorFiles,
) -> ModelSpec:
    """Return the spec of a model; `sentence` holds what sentence-transformers adds, if it is such a model. Raises ModelError."""
    head, pooler = ("sentence", False) if sentence is not None else choose_head(family, config, plain)
    labels = class_labels(config) if head.endswith("-classes") else ()
    fields = family.fields(config)
    options = fields.pop("options") | {"pooler": pooler} | dict(sentence or {})
    if head in ("sequence-classes", "image-classes"):
        options["scores"] = score_kind(config, labels)
    if head == "sentence":
        if fields["embedding"] != "tokens":
            raise ModelError("modules.json: only text models are supported as sentence-transformers models")
        limit = options.get("max_tokens")
        options["max_tokens"] = min(fields["positions"], limit) if limit else fields["positions"]
    if head == "masked-words":
        if not config.get("tie_word_embeddings", True):
            check_untied(family, plain)
        options["tied"] = is_tied(family, config, plain, tensors)
    return ModelSpec(family=family.name, name=name, head=head, labels=labels, options=options, **fields)


def is_tied(family: Family, config: Mapping[str, Any], plain: Mapping[str, str], tensors: TensorFiles) -> bool:
    """Return whether the output words are the input words: absent, or the same numbers. Raises ModelError."""
    assert family.tied is not None
    copy, original = family.tied
    if copy not in plain or original not in plain:
        return bool(config.get("tie_word_embeddings", True))
    if tensors.shapes[plain[copy]] != tensors.shapes[plain[original]]:
        return False
    tensors.check_types((plain[copy], plain[original]))
    return np.array_equal(tensors.read(plain[copy]), tensors.read(plain[original]))


# ---- sentence-transformers


def sentence_options(source: Path, files: dict[str, bytes]) -> dict[str, Any]:
    """Return pooling, normalize, max_tokens, lower_case and prompt of a sentence-transformers model; add its files to `files`.

    Raises ModelError for a module other than Transformer, Pooling, Normalize.
    """
    modules = parse_json(files["modules.json"], "modules.json", list)
    if not all(isinstance(m, dict) and isinstance(m.get("type"), str) and isinstance(m.get("path", ""), str) for m in modules):
        raise ModelError("modules.json: a module lacks its type or path")
    kinds = [m["type"].rsplit(".", 1)[-1] for m in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelError(f"modules.json: modules {shown(', '.join(kinds))} are not supported; supported: Transformer, Pooling, Normalize")
    if modules[0].get("path"):
        raise ModelError(f"modules.json: the transformer lies in {modules[0]['path']!r:.60}; give a model with it in the top folder")
    folder = modules[1].get("path", "")
    if not plain_name(folder):
        raise ModelError(f"modules.json: {folder!r:.60} is not the plain name of a folder of the model")
    name = f"{folder}/config.json"
    files[name] = read_small(source / folder / "config.json")
    pooling = parse_json(files[name], name)
    settings = parse_json(files.get("sentence_bert_config.json", b"{}"), "sentence_bert_config.json")
    options = {"pooling": pooling_mode(pooling, name), "normalize": kinds[-1] == "Normalize", "prompt": prompt(files, pooling)}
    return options | {"lower_case": settings.get("do_lower_case") is True, "max_tokens": token_limit(settings, files)}


def pooling_mode(config: Mapping[str, Any], name: str) -> str:
    """Return the one pooling mode of a Pooling module: "cls", "mean", "max" or "mean_sqrt_len". Raises ModelError."""
    said = config.get("pooling_mode")  # newer files name it, older ones have a switch for each
    if isinstance(said, str):
        chosen = [said]
    else:
        chosen = [POOLINGS.get(key, key) for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in POOLINGS.values():
        raise ModelError(f"{name}: pooling {chosen!r:.100} is not supported; supported: one of {', '.join(POOLINGS.values())}")
    return chosen[0]


def token_limit(settings: Mapping[str, Any], files: Mapping[str, bytes]) -> int | None:
    """Return the number of tokens after which texts are cut off, None if neither file says. Raises ModelError."""
    limit = settings.get("max_seq_length")
    if limit is None and "tokenizer_config.json" in files:
        limit = json.loads(files["tokenizer_config.json"]).get("model_max_length")
        limit = min(limit, 1 << 24) if isinstance(limit, (int, float)) else None  # "no limit" is written as 1e30
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ModelError(f"sentence_bert_config.json: max_seq_length is {limit!r:.60}, expected a positive integer")
    return limit


def prompt(files: Mapping[str, bytes], pooling: Mapping[str, Any]) -> str:
    """Return the text that is put before every input, usually none. Raises ModelError."""
    name = "config_sentence_transformers.json"
    settings = parse_json(files.get(name, b"{}"), name)
    chosen, prompts = settings.get("default_prompt_name"), settings.get("prompts")
    if chosen is None:
        return ""
    text = prompts.get(chosen) if isinstance(prompts, dict) and isinstance(chosen, str) else None
    if not isinstance(text, str):
        raise ModelError(f"{name}: default_prompt_name {chosen!r:.60} is not one of its prompts")
    if text and pooling.get("include_prompt", True) is not True:
        raise ModelError(f"{name}: leaving the prompt out of the pooling (include_prompt false) is not supported")
    return text
