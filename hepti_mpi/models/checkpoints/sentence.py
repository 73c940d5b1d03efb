"""The side files of a sentence-transformers model: its modules, prompt, limit and what they ask of the tokenizer.

Does what SentenceTransformer(folder).encode(texts) does. Knows the files and their keys; the arithmetic is in pooling.py.
Source: sentence-transformers 6.2, base/model.py, base/modules/transformer.py, sentence_transformer/modules/pooling.py, dense.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models import sidefiles
from hepti_mpi.models.checkpoints.safetensors import TensorFiles
from hepti_mpi.models.checkpoints.tokenizing import Built
from hepti_mpi.models.inputs.tokens import Tokens
from hepti_mpi.models.steps import Dense, LayerNorm, Lookup, Normalize, Step
from hepti_mpi.models.untrusted import is_file, parse_json, plain_name, read_small, shown
from hepti_mpi.wording import counted

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
LIMITS = tuple(f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"))
SWITCHES = {  # in the order in which their results are put together
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
MODES = {mode: mode for mode in SWITCHES.values() if mode != "mean_sqrt_len"} | {"mean_sqrt_len_tokens": "mean_sqrt_len"}
FUNCTIONS = {"Identity": "identity", "Tanh": "tanh", "ReLU": "relu", "LeakyReLU": "leaky_relu", "GELU": "gelu", "Sigmoid": "sigmoid",
             "SiLU": "silu", "Mish": "mish"}  # fmt: skip
ACTIVATIONS = {f"torch.nn.{name}": plain for name, plain in FUNCTIONS.items()}
ACTIVATIONS |= {f"torch.nn.modules.{'linear' if name == 'Identity' else 'activation'}.{name}": plain for name, plain in FUNCTIONS.items()}
PLACES = {  # where each module may come from: under its name in any version's folders; no class of anybody else's is run
    "Transformer": "base.modules",
    "Pooling": "sentence_transformer.modules",
    "Normalize": "base.modules",
    "Dense": "base.modules",
    "LayerNorm": "sentence_transformer.modules",
    "Dropout": "sentence_transformer.modules",
}
FILE_NAMES = {"LayerNorm": "layer_norm"}
NORM_EPS = 1e-5  # of torch.nn.LayerNorm
UNLIMITED = 10**20  # transformers takes a larger model_max_length for none


@dataclass(frozen=True)
class Sentence:
    """What sentence-transformers adds to a model.

    `base`: the folder with the transformer. `options`: of the ModelSpec. `steps`: the modules behind the pooling, `folders`: of each.
    `changes`: settings of the tokenizer that replace those of tokenizer_config.json. `call`: how the tokenizer is called.
    `include_prompt`: whether the rows of the prompt count in the pooling. `one_score`: it is a classifier of one label, which config.json
    does not tell.
    """

    base: Path
    options: dict[str, Any]
    steps: tuple[Step, ...]
    folders: list[Path]
    changes: dict[str, Any]
    call: dict[str, Any]
    include_prompt: bool
    one_score: bool = False

    def finish(self, built: Built, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of the ModelSpec, with what only the tokenizer can say; `fields`: of the ModelSpec. Raises ModelError."""
        check_padding(self, built, fields)
        check_sizes(self, fields["hidden"])
        options = self.options | {"max_tokens": token_limit(self, built, fields.get("limit", fields["positions"]))}
        if self.include_prompt or not options["prompt"] or not built.files:
            return options
        padded = next((key for key in ("padding", "pad_to_multiple_of") if self.call.get(key) not in (None, True, False, "longest")), None)
        if padded:
            why = "by which sentence-transformers takes padding for a part of the prompt that is left out"
            raise ModelError(f"processing_kwargs: {padded} is {self.call[padded]!r:.60}, {why}")
        tokens = Tokens(built.files)
        if options["max_tokens"]:
            tokens.truncate(options["max_tokens"])
        if options["lower_case"]:
            tokens.lower_case()
        ids = tokens.encode([options["prompt"]], f"the prompt of {SETTINGS}").ids
        return options | {"prompt_rows": len(ids) - (bool(ids) and ids[-1] in built.special)}

    def tensors(self) -> dict[str, tuple[TensorFiles, str]]:
        """Return where each weight of the modules is found: store name -> files and name there. Raises ModelError."""
        found: dict[str, tuple[TensorFiles, str]] = {}
        opened: dict[Path, TensorFiles] = {}
        weights = [(one, at, weight) for one, at in zip(self.steps, self.folders) for weight in one.weights("head")]
        for step, folder, weight in weights:
            part = weight.name.removeprefix(f"{step.name}.")
            if not is_file(folder / "model.safetensors"):
                hint = "load the model with sentence_transformers and save it: that writes model.safetensors"
                raise ModelError(f"{folder} has no model.safetensors; {hint}")
            tensors = opened.setdefault(folder, TensorFiles(folder))
            name = part if part.startswith("residual") else f"{'linear' if isinstance(step, Dense) else 'norm'}.{part}"
            if tensors.shapes.get(name) != weight.shape:
                raise ModelError(f"{folder}: tensor {name} is {tensors.shapes.get(name)}, its config.json asks for {weight.shape}")
            found[weight.name] = (tensors, name)
        for folder, tensors in opened.items():
            spare = tensors.shapes.keys() - {name for files, name in found.values() if files is tensors}
            if spare:
                raise ModelError(f"{folder}: tensor {shown(min(spare), 60)} does not belong to the module that config.json describes")
            tensors.check_types(tensors.shapes)
        return found


def read_sentence(source: Path) -> Sentence | None:
    """Return what sentence-transformers adds to the model in `source`, None if it is no such model.

    Raises ModelError for files that are damaged or ask for what is not supported.
    """
    if not is_file(source / MODULES):
        refuse_remains(source)
        return None
    settings = read_json(source, SETTINGS)
    sidefiles.check(SETTINGS, settings)
    kind = settings.get("model_type", "SentenceTransformer")
    if kind == "CrossEncoder":
        return None  # a classifier of pairs: crossencoder.py
    if kind != "SentenceTransformer":
        raise ModelError(f"{SETTINGS}: model_type {kind!r:.60} is not supported; supported: SentenceTransformer, CrossEncoder")
    modules = read_modules(source)
    base = source / modules[0]["path"]
    name = settings_name(base)
    own = read_json(base, name)
    sidefiles.check(name, own, sidefiles.FILES[LIMITS[0]])
    check_outputs(own, name, "last_hidden_state", "token_embeddings")
    mode, include_prompt, steps, folders = read_steps(source, modules[1:])
    options: dict[str, Any] = {"pooling": mode, "prompt": read_prompt(settings)}
    options["lower_case"] = read_lower_case(own, name)
    size = settings.get("truncate_dim")
    if size is not None:
        options["truncate_dim"] = whole_number(size, SETTINGS, "truncate_dim")
    return Sentence(base, options, tuple(steps), folders, tokenizer_changes(own, name), call_of(own, name), include_prompt)


def refuse_remains(source: Path) -> None:
    """Raise ModelError when a folder without modules.json holds files that only count with it: sentence-transformers would skip them."""
    folders = sorted(path.name for path in source.glob("[0-9]_[A-Z]*") if is_file(path / "config.json"))
    found = next((name for name in (SETTINGS, *LIMITS, *folders) if name in folders or is_file(source / name)), None)
    if found is None:
        return
    whole = source.absolute().parent
    if is_file(whole / MODULES):
        raise ModelError(f"{source} is a part of a sentence-transformers model; name the folder with its {MODULES}: {whole}")
    hint = f"fetch the whole folder, or move {shown(found)} away to have the plain model that transformers reads"
    raise ModelError(f"{source} has {shown(found)} of a sentence-transformers model, which counts only beside a {MODULES}; {hint}")


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Return a JSON object of `folder`, an empty one if there is no such file. Raises ModelError."""
    found: dict[str, Any] = parse_json(read_small(folder / name), name) if is_file(folder / name) else {}
    return found


def whole_number(value: object, name: str, key: str) -> int:
    """Return a positive integer. Raises ModelError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"{name}: {key} is {value!r:.60}, expected a positive integer")
    return value


# ---- modules


def read_modules(source: Path) -> list[dict[str, Any]]:
    """Return the modules of modules.json, each with its "kind". Raises ModelError."""
    modules = parse_json(read_small(source / MODULES), MODULES, list)
    for module in modules:
        if not isinstance(module, dict) or not isinstance(module.get("type"), str) or not isinstance(module.get("path"), str):
            raise ModelError(f"{MODULES}: a module lacks its type or path")
        sidefiles.check(MODULES, module)
        module["path"] = folder_name(module["path"])
        module["kind"] = module_kind(module["type"])
    kinds = [module["kind"] for module in modules]
    # sentence-transformers goes on from what has been made so far: nothing but a Normalize may stand before the pooling, without effect
    before = kinds.index("Pooling") if "Pooling" in kinds else 0
    if not kinds or kinds[0] != "Transformer" or not before or kinds.count("Transformer") + kinds.count("Pooling") != 2:
        raise ModelError(f"{MODULES}: modules {shown(', '.join(kinds))} are not supported; expected one Transformer, then one Pooling")
    if set(kinds[1:before]) - {"Normalize"}:
        raise ModelError(f"{MODULES}: {shown(', '.join(kinds[1:before]))} before the Pooling is not supported")
    if len({module.get("name") for module in modules}) != len(modules):
        raise ModelError(f"{MODULES}: two modules have one name")
    return list(modules)


def folder_name(path: str) -> str:
    """Return the plain name of a module's folder, "" for that of the model; `./` before it and `/` behind it say nothing.

    Raises ModelError.
    """
    name = "" if path in (".", "./") else path.removeprefix("./")
    name = name.removesuffix("/") if name != "/" else name
    if name and not plain_name(name):
        raise ModelError(f"{MODULES}: {path!r:.60} is not the plain name of a folder of the model")
    return name


def module_kind(said: str) -> str:
    """Return the class that a module's full name means. Raises ModelError for any but the known ones."""
    name = said.rsplit(".", 1)[-1]
    if name in PLACES:
        file = f"{PLACES[name]}.{FILE_NAMES.get(name, name.lower())}"
        own = file.rsplit(".", 1)[-1]
        places = {f"models.{name}", f"models.{name}.{name}", f"models.{own}.{name}", f"{PLACES[name]}.{name}", f"{file}.{name}"}
        places |= {f"sentence_transformer.modules.{name}", f"sentence_transformer.modules.{own}.{name}"}
        if said in {f"sentence_transformers.{place}" for place in places}:
            return name
    known = ", ".join(PLACES)
    raise ModelError(f"{MODULES}: module {shown(said, 100)} is not supported; supported: {known} of sentence_transformers")


def read_steps(source: Path, modules: list[dict[str, Any]]) -> tuple[str, bool, list[Step], list[Path]]:
    """Return pooling, whether the prompt counts in it, what follows it, and the folder of each that follows. Raises ModelError."""
    mode, include_prompt = "", True
    steps: list[Step] = []
    folders: list[Path] = []
    for module in modules:
        folder, name = source / module["path"], f"{module['path']}/config.json"
        config = read_json(folder, "config.json") if module["path"] else {}
        if module["kind"] in ("Pooling", "Dense", "LayerNorm") and not config:
            raise ModelError(f"{name} is missing or empty; it says what the model's {module['kind']} does: fetch the whole folder")
        sidefiles.check(name, config, sidefiles.MODULES[module["kind"]])
        for key in ("module_input_name", "module_output_name"):
            if config.get(key) not in (None, "sentence_embedding"):
                raise ModelError(f"{name}: {key} {config[key]!r:.60} is not supported; supported: sentence_embedding")
        if module["kind"] == "Pooling":
            mode, include_prompt = pooling_modes(config, name), config.get("include_prompt", True)
            if not isinstance(include_prompt, bool):
                raise ModelError(f"{name}: include_prompt is {include_prompt!r:.60}, expected true or false")
        elif mode and module["kind"] != "Dropout":  # dropout is for training
            steps.append(read_step(module["kind"], config, name, f"head.modules.{len(steps)}"))
            folders.append(folder)
    return mode, include_prompt, steps, folders


def read_step(kind: str, config: Mapping[str, Any], name: str, store: str) -> Step:
    """Return a module after the pooling, called `store` in stores; `config` is its file `name`. Raises ModelError."""
    if kind == "Normalize":
        return Normalize(store)
    if kind == "LayerNorm":
        return LayerNorm(store, whole_number(config.get("dimension"), name, "dimension"), NORM_EPS)
    inner, out = (whole_number(config.get(key), name, key) for key in ("in_features", "out_features"))
    switches = [config.get(key, default) for key, default in (("bias", True), ("use_residual", False))]
    for key, value in zip(("bias", "use_residual"), switches):
        if not isinstance(value, bool):
            raise ModelError(f"{name}: {key} is {value!r:.60}, expected true or false")
    said = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not isinstance(said, str) or said not in ACTIVATIONS:
        known = ", ".join(sorted(set(ACTIVATIONS.values())))
        raise ModelError(f"{name}: activation_function {said!r:.100} is not supported; supported: {known} of torch.nn")
    return Dense(store, inner, out, ACTIVATIONS[said], *switches)


def pooling_modes(config: Mapping[str, Any], name: str) -> str:
    """Return the pooling of a Pooling module: a mode, or several joined by "+" whose results are put together. Raises ModelError."""
    said = config.get("pooling_mode")  # newer files name it, older ones have a switch for each
    if "pooling_mode" not in config:
        return "+".join(mode for key, mode in SWITCHES.items() if config.get(key)) or "mean"
    modes = [said] if isinstance(said, str) else said
    if not isinstance(modes, list) or not modes or not all(isinstance(mode, str) and mode in MODES for mode in modes):
        raise ModelError(f"{name}: pooling_mode {said!r:.100} is not supported; supported: {', '.join(MODES)}")
    return "+".join(MODES[mode] for mode in modes)


# ---- prompt, limit and tokenizer


def read_prompt(settings: Mapping[str, Any], always: tuple[str, ...] = ("query", "document")) -> str:
    """Return the text that is put before every input, usually none; `always`: prompts that are there without text. Raises ModelError."""
    chosen, prompts = settings.get("default_prompt_name"), settings.get("prompts", {})
    if not isinstance(prompts, dict):
        raise ModelError(f"{SETTINGS}: prompts is {prompts!r:.60}, expected an object")
    if chosen is None:
        return ""
    known = dict.fromkeys(always) | prompts
    text = known.get(chosen, 0) if isinstance(chosen, str) else 0
    if text is not None and not isinstance(text, str):
        raise ModelError(f"{SETTINGS}: default_prompt_name {chosen!r:.60} is not one of its prompts")
    return text or ""


def settings_name(base: Path) -> str:
    """Return the name of the file with the settings of the transformer in `base`. Raises ModelError."""
    return next((name for name in LIMITS if read_json(base, name)), LIMITS[0])


def read_lower_case(own: Mapping[str, Any], name: str) -> bool:
    """Return whether texts are lower-cased first. Raises ModelError."""
    said = own.get("do_lower_case") or False
    if not isinstance(said, bool):
        raise ModelError(f"{name}: do_lower_case is {said!r:.60}, expected true or false")
    return said


def check_outputs(own: Mapping[str, Any], name: str, output: str, feature: str) -> None:
    """Raise ModelError unless the transformer gives its `output` for texts, and as `feature`."""
    modalities = own.get("modality_config", {"text": {"method": "forward", "method_output_name": output}})
    text = modalities.get("text") if isinstance(modalities, dict) else None
    given = text.get("method_output_name") if isinstance(text, dict) else None
    if not isinstance(text, dict) or "message" in modalities or given not in (output, [output]) or text.get("method") != "forward":
        hint = f"supported: text by forward to {output}"
        raise ModelError(f"{name}: modality_config {shown(modalities, 100)} is not supported; {hint}")
    if own.get("module_output_name", feature) != feature:
        raise ModelError(f"{name}: module_output_name {own['module_output_name']!r:.60} is not supported; supported: {feature}")


def part_of(own: Mapping[str, Any], name: str, new: str, old: str) -> dict[str, Any]:
    """Return the object under the key `old`, which goes before its newer name `new`. Raises ModelError."""
    found = own.get(old, own.get(new)) or {}
    if not isinstance(found, dict):
        raise ModelError(f"{name}: {old if old in own else new} is {found!r:.60}, expected an object")
    return found


def tokenizer_changes(own: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the settings of the tokenizer that a sentence_*_config.json replaces. Raises ModelError."""
    for new, old, table in (("model_kwargs", "model_args", sidefiles.LOADING), ("config_kwargs", "config_args", sidefiles.CONFIGURING)):
        sidefiles.check(f"{name}: {new}", part_of(own, name, new, old), table)
    changes = dict(part_of(own, name, "processor_kwargs", "tokenizer_args"))
    table = sidefiles.TOKENIZER | sidefiles.refused("tokenizer_class tokenizer_type model_type", "name a class in tokenizer_config.json")
    table |= sidefiles.refused("*_file", "texts are cut by the files of the folder")
    table |= sidefiles.refused("add_bos_token add_eos_token", "what is put around texts has to be in tokenizer.json", ())
    sidefiles.check(f"{name}: processor_kwargs", changes, table)
    if own.get("max_seq_length") is not None:
        changes.setdefault("model_max_length", own["max_seq_length"])
    return changes


def call_of(own: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return how the tokenizer is called with texts: max_length and truncation, where the file says. Raises ModelError."""
    given = part_of(own, name, "processing_kwargs", "processing_kwargs")
    sidefiles.check(f"{name}: processing_kwargs", given, sidefiles.PROCESSING)
    call: dict[str, Any] = {}
    for key in ("text", "common"):  # the common ones go before
        part = part_of(given, name, key, key)
        sidefiles.check(f"{name}: processing_kwargs.{key}", part, sidefiles.CALLING)
        call |= part
    return call


def check_sizes(sentence: Sentence, hidden: int) -> None:
    """Raise ModelError where a module behind the pooling takes rows of another width than those that come to it."""
    width = hidden * len(sentence.options.get("pooling", "").split("+"))
    for step, folder in zip(sentence.steps, sentence.folders):
        taken = step.inner if isinstance(step, Dense) else step.width if isinstance(step, LayerNorm) else width
        if taken != width:
            raise ModelError(f"{folder.name}/config.json describes a module for {taken} numbers, what comes to it has {width}")
        width = step.out if isinstance(step, Dense) else width


def check_padding(sentence: Sentence, built: Built, fields: Mapping[str, Any]) -> None:
    """Refuse padding that counts: of texts without a mask, and in front of texts where a row's place among all of them counts. There each
    embedding would depend on the others.

    Where only distances count, as of rotary positions, it changes nothing: the poolings begin behind it. Raises ModelError.
    """
    if not built.files:
        return
    why, said = "an answer would depend on the other texts beside it", json.loads(built.files["tokenizer_config.json"])
    if "attention_mask" not in said["model_input_names"]:
        raise ModelError(f"tokenizer_config.json: model_input_names has no attention_mask, so that padding counts as text: {why}")
    if said["padding_side"] == "right":
        return
    placed = ["a table of positions"] * any(isinstance(step, Lookup) and step.by == "positions" for step in fields["front"])
    first = "scores" in sentence.options and fields.get("options", {}).get("pooling", "cls") == "cls"
    placed += ["a cross-encoder, which reads the first token"] * first
    if placed:
        raise ModelError(f"the tokenizer's padding_side left is not supported together with {placed[0]}: {why}")


def token_limit(sentence: Sentence, built: Built, positions: int) -> int | None:
    """Return the number of tokens after which texts are cut off, None for never. Raises ModelError."""
    config = json.loads(built.files.get("tokenizer_config.json", b"{}"))
    limit = config.get("model_max_length")
    limit = UNLIMITED + 1 if limit is None else limit
    if isinstance(limit, (int, float)) and "model_max_length" not in sentence.changes:
        limit = min(limit, positions)
    if sentence.call.get("max_length") is not None:
        limit = sentence.call["max_length"]
    elif isinstance(limit, (int, float)) and limit > UNLIMITED:
        return None
    truncation = sentence.call.get("truncation", True)
    if truncation not in (True, "longest_first", "only_first", False, None, "do_not_truncate"):
        raise ModelError(f"truncation {truncation!r:.60} is not supported; supported: longest_first")
    if truncation in (False, None, "do_not_truncate"):
        return None
    found = whole_number(limit, "the sentence_*_config.json or tokenizer_config.json", "max_seq_length, or what stands for it,")
    multiple = sentence.call.get("pad_to_multiple_of")
    if multiple and sentence.call.get("padding", True) and found % whole_number(multiple, "processing_kwargs", "pad_to_multiple_of"):
        why = f"of which the {counted(found, 'tokens')} that texts are cut to are no multiple: transformers then fails at every text"
        raise ModelError(f"processing_kwargs: pad_to_multiple_of is {multiple}, {why}")
    return found
