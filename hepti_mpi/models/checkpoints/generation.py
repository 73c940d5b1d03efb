"""What a folder says of how its model generates text: where an answer ends, what repeating costs, and how a talk is written.

Knows generation_config.json, chat templates and the special tokens of tokenizer_config.json; knows no tensor.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hepti_mpi.errors import InputError, ModelError
from hepti_mpi.models import sidefiles
from hepti_mpi.models.checkpoints.tokenizing import Built
from hepti_mpi.models.inputs.chat import NAME as TEMPLATE
from hepti_mpi.models.inputs.chat import OTHER_MARKS, WITH_TOOLS, ChatTemplate
from hepti_mpi.models.tasks.sampling import Sampling
from hepti_mpi.models.untrusted import is_file, parse_json, read_small, shown

CONFIG, GENERATION = "tokenizer_config.json", "generation_config.json"
OTHERS = "additional_chat_templates"


def writing_options(base: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a ModelSpec that generates: "ends", the ids behind which an answer ends, and "repetition_penalty", if any.

    Raises ModelError for values that are none, and for what changes answers and is not supported.
    """
    if is_file(base / GENERATION):
        name, said = GENERATION, parse_json(read_small(base / GENERATION), GENERATION)
    else:  # then transformers takes what config.json has of it, and nothing that its class says where a key is left out
        table = sidefiles.FILES[GENERATION]
        name, said = "config.json", {key: value for key, value in config.items() if sidefiles.verdict(table, key)}
    sidefiles.check(name, said, sidefiles.FILES[GENERATION], nulls=True)
    penalty = said.get("repetition_penalty")
    try:
        Sampling(repetition_penalty=penalty)
    except InputError as error:
        raise ModelError(f"{name}: {error}") from None
    return {"ends": end_tokens(said, name)} | ({} if penalty in (None, 1) else {"repetition_penalty": float(penalty)})


def end_tokens(said: Mapping[str, Any], name: str) -> list[int]:
    """Return the ids behind which an answer ends, none where the file `name` says none. Raises ModelError when one is no id."""
    found = said.get("eos_token_id")
    ends = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in ends):
        raise ModelError(f"{name}: eos_token_id is {found!r:.60}, expected ids of tokens")
    return ends


def _check_cleaning(said: Mapping[str, Any], built: Built) -> None:
    """Refuse a tokenizer that takes spaces before marks out of what is written.

    Source: transformers, TokenizersBackend._decode: never done with merges, unless that is asked for by a key of its own.
    """
    key = "clean_up_tokenization_spaces"
    forced = f"{key}_for_bpe_even_though_it_will_corrupt_output"
    kind = json.loads(built.files["tokenizer.json"])["model"]["type"] if "tokenizer.json" in built.files else "BPE"
    if said.get(key) and (said.get(forced) or kind != "BPE"):
        hint = "set it to false and slice again; the spaces before marks then stay in the text"
        raise ModelError(f"{CONFIG}: {key} is {said[key]!r:.60}, which is not supported for a model that writes; {hint}")


def _utf8(path: Path) -> str:
    """Return the text of a small file. Raises ModelError where it is in another encoding."""
    try:
        return read_small(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path.name} is not in UTF-8: {error.reason} at byte {error.start}") from None


def templates(base: Path, said: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the name of what holds the chat templates of a folder, of which tokenizer_config.json is `said`, and these by their names.

    Raises ModelError for one that cannot be read.
    """
    others = {path.stem: path for path in (base / OTHERS).glob("*.jinja")}
    paths = {"default": others.pop("file", base / TEMPLATE)} | others  # its key in transformers is the one of another called file
    there = {name: path for name, path in paths.items() if is_file(path)}
    if there:  # then those of the other file do not count
        return next(iter(there.values())).name, {name: _utf8(path) for name, path in there.items()}
    template = said.get("chat_template")
    if isinstance(template, list):  # several by name
        if not all(isinstance(one, dict) and {"name", "template"} <= one.keys() for one in template):
            raise ModelError(f"{CONFIG}: chat_template is {shown(template, 60)}, expected a name and a template for each of several")
        template = {one["name"]: one["template"] for one in template}
    return CONFIG, template if isinstance(template, dict) else {} if template is None else {"default": template}


def template_of(base: Path) -> str | None:
    """Return the name of the file with the chat template of a folder, None where there is none. Raises ModelError."""
    name, found = templates(base, parse_json(read_small(base / CONFIG), CONFIG) if is_file(base / CONFIG) else {})
    return name if found else None


def chat_files(base: Path, built: Built) -> dict[str, bytes]:
    """Return the chat template of a folder, and the tokenizer_config.json that was built with the special tokens that templates name.

    Raises ModelError for a template that cannot be read, or when what is written would be cleaned.
    """
    raw = parse_json(read_small(base / CONFIG), CONFIG) if is_file(base / CONFIG) else {}
    _check_cleaning(raw, built)
    _, named = templates(base, raw)
    found: dict[str, bytes] = {}
    for key, name in ((TEMPLATE, "default"), (WITH_TOOLS, "tool_use")):
        if isinstance(source := named.get(name), str):
            ChatTemplate(source, {})
            found[key] = source.encode()
    if CONFIG in built.files:
        more = {name: text for name, text in built.marks.items() if not name.endswith("_token")}
        found[CONFIG] = json.dumps(json.loads(built.files[CONFIG]) | built.marks | ({OTHER_MARKS: more} if more else {})).encode()
    return found
