"""The side files of a cross-encoder: a classifier of pairs of texts that sentence-transformers reads and scores.

Does what CrossEncoder(folder).predict(pairs) does. Knows the files and their keys; a classifier that nothing says to be a
cross-encoder is scored as transformers' pipelines do (families).
Source: sentence-transformers 6.2, cross_encoder/model.py.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models import sidefiles
from hepti_mpi.models.checkpoints.generation import template_of
from hepti_mpi.models.checkpoints.safetensors import TensorFiles
from hepti_mpi.models.checkpoints.sentence import (
    LIMITS,
    MODULES,
    SETTINGS,
    Sentence,
    call_of,
    check_outputs,
    folder_name,
    module_kind,
    read_json,
    read_lower_case,
    read_prompt,
    settings_name,
    tokenizer_changes,
)
from hepti_mpi.models.checkpoints.tokenizing import Built
from hepti_mpi.models.families.family import class_labels
from hepti_mpi.models.inputs.tokens import Tokens
from hepti_mpi.models.untrusted import is_file, parse_json, read_small, shown

CONFIG = "config.json"
CLASSIFIER = r"(.*\.)?classifier(\.out_proj)?\.weight"  # what every family calls the last product of its head
SAID, SAID_BEFORE = "sentence_transformers", "sbert_ce_default_activation_function"  # keys of config.json, the newer one first
SCORES = {"Identity": "none", "Sigmoid": "sigmoid", "Softmax": "softmax", "Tanh": "tanh"}
ACTIVATIONS = {f"torch.nn.{name}": kind for name, kind in SCORES.items()}
ACTIVATIONS |= {f"torch.nn.modules.{'linear' if name == 'Identity' else 'activation'}.{name}": kind for name, kind in SCORES.items()}


def read_cross_encoder(source: Path) -> Sentence | None:
    """Return what sentence-transformers adds to the classifier in `source`, None if nothing says that it is a cross-encoder.

    Raises ModelError for files that are damaged or ask for what is not supported.
    """
    settings = read_json(source, SETTINGS)
    saved = is_file(source / MODULES)  # by versions that save modules; before, all was in config.json
    config = read_json(source, CONFIG)
    if settings.get("model_type") != "CrossEncoder" and (saved or not is_marked(source, config)):
        return None
    base, own, name = source, {}, LIMITS[0]
    if saved:
        sidefiles.check(SETTINGS, settings)
        base = source / transformer_path(source)
        config, name = read_json(base, CONFIG), settings_name(base)
        own = read_json(base, name)
        sidefiles.check(name, {"transformer_task": None} | own, sidefiles.CROSS_ENCODER)  # it is for hidden states where it says nothing
        check_outputs(own, name, "logits", "scores")
    else:
        refuse_template(source)
    call = call_of(own, name)
    if call.get("truncation") == "only_first":
        raise ModelError(f"{name}: truncation only_first is not supported for pairs; supported: longest_first")
    one_score = is_untold(base, config)
    labels = 1 if one_score else len(class_labels(config))
    options = {
        "scores": read_activation(settings, config) or ("sigmoid" if labels == 1 else "none"),
        "prompt": read_prompt(settings, ()),
        "lower_case": read_lower_case(own, name),
    }
    return Sentence(base, options, (), [], tokenizer_changes(own, name), call, True, one_score)


def check_last_token(built: Built, options: Mapping[str, Any]) -> None:
    """Refuse padding behind texts by another token than the one that the head passes over when it looks for the last: of texts beside
    longer ones it would read the padding. Raises ModelError.
    """
    mark, passed = built.marks.get("pad_token"), options.get("passed_over")
    if mark is None or passed is None or json.loads(built.files["tokenizer_config.json"])["padding_side"] == "left":
        return
    found = Tokens(built.files).plain(mark, "the pad token")
    if found != [passed]:
        why = f"the tokenizer pads by {mark!r:.60}, which is {shown(found, 60)}: an answer would depend on the other texts beside it"
        raise ModelError(f"{CONFIG}: pad_token_id is {passed}, and {why}")


def refuse_template(source: Path) -> None:
    """Raise ModelError where there is a chat template: without modules.json CrossEncoder writes each pair as a talk by it."""
    name = template_of(source)
    if name:
        why = f"by which sentence-transformers would write each pair, as there is no {MODULES}"
        raise ModelError(f"{name} has a chat template, {why}; take it out if pairs are meant as they are")


def is_marked(source: Path, config: Mapping[str, Any]) -> bool:
    """Return whether the model is a classifier and config.json says that it is a cross-encoder. Raises ModelError."""
    if config.get(SAID) is None and config.get(SAID_BEFORE) is None:
        return False
    return architecture(config).endswith("ForSequenceClassification") or is_untold(source, config)


def is_untold(base: Path, config: Mapping[str, Any]) -> bool:
    """Return whether there is a classifier that config.json does not tell of: beside the architecture of the model without a head, as it
    is written where the rest was saved alone. CrossEncoder gives such a model one score. Raises ModelError.
    """
    bare = architecture(config).endswith("Model") or not config.get("architectures")
    return bare and any(re.fullmatch(CLASSIFIER, name) for name in TensorFiles(base).shapes)


def architecture(config: Mapping[str, Any]) -> str:
    """Return the first of the architectures of config.json, "" if it names none."""
    listed = config.get("architectures")
    return str(listed[0]) if isinstance(listed, list) and listed else ""


def transformer_path(source: Path) -> str:
    """Return the folder of the one module, the transformer. Raises ModelError."""
    modules = parse_json(read_small(source / MODULES), MODULES, list)
    if len(modules) != 1 or not isinstance(modules[0], dict) or not isinstance(modules[0].get("type"), str):
        raise ModelError(f"{MODULES}: a cross-encoder of {len(modules)} modules is not supported; supported: one Transformer")
    sidefiles.check(MODULES, modules[0])
    path = modules[0].get("path", "")
    if module_kind(modules[0]["type"]) != "Transformer" or not isinstance(path, str):
        raise ModelError(f"{MODULES}: module {shown(modules[0], 100)} is not supported in a cross-encoder; supported: one Transformer")
    return folder_name(path)


def read_activation(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """Return what becomes of logits: "none", "sigmoid", "softmax" or "tanh"; None where no file says. Raises ModelError."""
    newer = config.get(SAID)
    if newer is not None and not isinstance(newer, dict):
        raise ModelError(f"{CONFIG}: {SAID} is {newer!r:.60}, expected an object")
    older = newer["activation_fn"] if newer and "activation_fn" in newer else config.get(SAID_BEFORE)
    said, name = (older, CONFIG) if settings.get("activation_fn") is None else (settings["activation_fn"], SETTINGS)
    if said is None:
        return None
    if not isinstance(said, str) or said not in ACTIVATIONS:
        raise ModelError(f"{name}: activation {shown(repr(said), 100)} is not supported; supported: {', '.join(SCORES)} of torch.nn")
    return ACTIVATIONS[said]
