"""The tokenizer files of a checkpoint's folder to the one tokenizer.json that a run uses.

Does what AutoTokenizer of transformers 5 does: which tokens the other files add to what the tokenizer's class (tokenizerclasses.py)
makes. Knows these files; knows no class, no model and no text.
Source: transformers 5.23, models/auto/tokenization_auto.py, tokenization_utils_base.py (_from_pretrained),
tokenization_utils_tokenizers.py (TokenizersBackend).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Tokenizer

from hepti_mpi.errors import ModelError
from hepti_mpi.models import sidefiles
from hepti_mpi.models.checkpoints.tokenizerclasses import (
    CONFIG,
    JSON,
    MERGES,
    TYPED,
    VOCAB,
    WORDS,
    Kind,
    Settings,
    read_document,
    tokenizer_kind,
)
from hepti_mpi.models.inputs.tokens import guarded
from hepti_mpi.models.untrusted import parse_json

MAP, ADDED = "special_tokens_map.json", "added_tokens.json"
FILES = (JSON, CONFIG, MAP, ADDED, VOCAB, WORDS, MERGES)
SWITCHES = ("do_lower_case", "tokenize_chinese_chars", "strip_accents", "add_prefix_space")
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Built:
    """The tokenizer of a folder: the `files` that a run reads, the `special` ids that never stand for text, and the `marks`: the texts of
    its special tokens that have a name, such as bos_token, by that name."""

    files: dict[str, bytes]
    special: frozenset[int]
    marks: dict[str, str] = field(default_factory=dict)


def build_tokenizer(
    files: Mapping[str, bytes], default: object, changes: Mapping[str, Any] | None = None, others: bool = True
) -> Built:  # fmt: skip
    """Return the tokenizer that the `files` of a folder make, no files if they make none.

    `default`: the class where tokenizer_config.json names none, or in any case where there are no `others`. `changes`: settings that
    go before those of tokenizer_config.json, where sentence-transformers reads the folder.
    Raises ModelError for files that are damaged or that ask for what is not supported.
    """
    if not {JSON, VOCAB, WORDS, MERGES} & files.keys():
        return Built({}, frozenset())
    settings = parse_json(files.get(CONFIG, b"{}"), CONFIG)
    named = settings.pop("tokenizer_class", None)
    if not isinstance(named, str | None):
        raise ModelError(f"{CONFIG}: tokenizer_class is {named!r:.60}, expected a name")
    kind = tokenizer_kind((others and named) or default, files)
    sidefiles.check(CONFIG, settings, nulls=True)
    if settings.get("trust_remote_code") and JSON in files and kind.build is not read_document:
        why = f"by which transformers takes {JSON} as it is, whatever the class of the tokenizer; take it out if the class is meant"
        raise ModelError(f"{CONFIG}: trust_remote_code is {settings['trust_remote_code']!r:.60}, {why}")
    processor = settings.pop("processor_class", None)
    if changes is not None and processor:
        why = "which sentence-transformers would load; a model of texts has none"
        raise ModelError(f"{CONFIG}: processor_class is {processor!r:.60}, {why}")
    if "model_max_length" not in (changes or {}):
        check_length(settings)
    settings |= changes or {}
    check_switches(settings)
    if JSON in files:  # which says itself what is put around texts
        settings = {key: value for key, value in settings.items() if key not in ("add_bos_token", "add_eos_token")}
    given = read_tokens(settings, files, changes or {})
    for key, mark in kind.marks.items():
        settings.setdefault(key, mark)
    settings["extra_special_tokens"] = settings["extra_special_tokens"] or list(kind.extra)
    check_chance(files)
    broken = ModelError("the tokenizer cannot be made of its files")
    tokenizer = guarded(lambda: kind.build(settings, files), broken)
    guarded(lambda: add_tokens(tokenizer, settings, given), broken)
    guarded(lambda: kind.frame(tokenizer, settings), broken)
    guarded(lambda: check_one_each(tokenizer), broken)
    guarded(tokenizer.no_padding, broken)
    guarded(tokenizer.no_truncation, broken)
    named = [settings.get(key) for key in NAMED] + list(settings["own_tokens"].values()) + list(settings["extra_special_tokens"])
    special = frozenset(number for token in named if token and (number := tokenizer.token_to_id(str(token))) is not None)
    document = guarded(lambda: tokenizer.to_str(), broken)
    marks = {key: str(token) for key in NAMED if (token := settings.get(key))}
    marks |= {key: str(token) for key, token in settings["own_tokens"].items()}
    return Built({JSON: document.encode(), CONFIG: run_settings(settings, kind)}, special, marks)


def check_switches(settings: Mapping[str, Any]) -> None:
    """Raise ModelError for a setting of the classes that is neither true nor false, nor null for what each takes by default."""
    for key in SWITCHES:
        if not isinstance(settings.get(key), bool | None):
            raise ModelError(f"{CONFIG}: {key} is {settings[key]!r:.60}, expected true or false")


def check_length(settings: Mapping[str, Any]) -> None:
    """Raise ModelError for a longest text that is no number: transformers then fails at every text."""
    limit = settings.get("model_max_length", settings.get("max_len"))
    if not isinstance(limit, int | float | None):
        raise ModelError(f"{CONFIG}: model_max_length is {limit!r:.60}, expected a number")


def check_chance(files: Mapping[str, bytes]) -> None:
    """Raise ModelError where merges are left out by chance: one text then has other tokens each time."""
    model = parse_json(files[JSON], JSON).get("model") if JSON in files else None
    if isinstance(model, dict) and model.get("dropout"):
        why = "merges would be left out by chance, and no two answers be alike; set it to null and slice again"
        raise ModelError(f"{JSON}: dropout of the model is {model['dropout']!r:.60}, which is not supported: {why}")


def run_settings(settings: Settings, kind: Kind) -> bytes:
    """Return the tokenizer_config.json of a store: what tokenizer.json cannot say. Raises ModelError."""
    kept: dict[str, Any] = {key: str(settings[key]) if settings.get(key) else None for key in ("mask_token", "unk_token")}
    kept |= {"model_input_names": settings.get("model_input_names", kind.inputs)}
    kept |= {"truncation_side": settings.get("truncation_side", "right"), "padding_side": settings.get("padding_side", kind.side)}
    kept |= {"split_special_tokens": settings.get("split_special_tokens", False)}
    kept |= {"model_max_length": settings.get("model_max_length", settings.get("max_len"))}
    for key in ("truncation_side", "padding_side"):
        if kept[key] not in ("left", "right"):
            raise ModelError(f"{CONFIG}: {key} is {kept[key]!r:.60}, expected left or right")
    if not isinstance(kept["split_special_tokens"], bool):
        raise ModelError(f"{CONFIG}: split_special_tokens is {kept['split_special_tokens']!r:.60}, expected true or false")
    names = kept["model_input_names"]
    if not isinstance(names, list) or not {"input_ids"} <= set(map(str, names)) <= set(TYPED):
        raise ModelError(f"{CONFIG}: model_input_names is {names!r:.100}, expected some of {', '.join(TYPED)}")
    return json.dumps(kept).encode()


# ---- the tokens that are added


def added(token: Mapping[str, Any], special: bool | None = None) -> AddedToken:
    """Return the added token that a JSON object describes. Raises ModelError."""
    token = {key: value for key, value in token.items() if key not in ("__type", "id")}
    token |= {} if special is None else {"special": special}
    if not isinstance(token.get("content"), str):
        raise ModelError(f"an added token is {token!r:.100}, which has no content")
    return guarded(lambda: AddedToken(**token), ModelError(f"added token {token['content']!r:.60} cannot be used"))


def typed(value: Any) -> Any:
    """Return `value` with every {"__type": "AddedToken"} in it as a token."""
    if isinstance(value, dict) and value.get("__type") == "AddedToken":
        return added(value)
    if isinstance(value, list):
        return [typed(one) for one in value]
    return {key: typed(one) for key, one in value.items()} if isinstance(value, dict) else value


def read_tokens(settings: Settings, files: Mapping[str, bytes], changes: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Return the added tokens by number; settle in `settings` the special ones, and those of names of their own as own_tokens.

    Raises ModelError.
    """
    if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    own = [key for key in settings if key.endswith("_token") and key not in NAMED]
    settings["own_tokens"] = {key: settings.pop(key) for key in own if isinstance(settings[key], str)}
    name_extra(settings)
    stated = settings.pop("model_specific_special_tokens", None)  # as transformers 5 writes them once more: the others go before
    if not isinstance(stated, dict | None) or set(NAMED) & set(stated or ()):
        expected = "expected an object of tokens without keys of their own"
        raise ModelError(f"{CONFIG}: model_specific_special_tokens is {stated!r:.60}, {expected}")
    settings["own_tokens"] = settings["own_tokens"] or stated or {}
    given: dict[int, AddedToken] = {}
    table = parse_json(files.get(MAP, b"{}"), MAP)
    sidefiles.check(MAP, table)
    if "added_tokens_decoder" in settings:
        given = {number_of(key): added(token) for key, token in objects(settings["added_tokens_decoder"]).items()}
    else:
        legacy_map(settings, {key: value for key, value in table.items() if not changes.get(key)})
        given = legacy_tokens(settings, files)
    settings |= typed({key: value for key, value in settings.items() if key != "added_tokens_decoder"})
    own = [key for key, value in settings.items() if key.endswith("_token") and key not in NAMED and isinstance(value, (str, AddedToken))]
    settings["own_tokens"] = {key: settings.pop(key) for key in own} | settings["own_tokens"]
    by_text = {token.content: token for token in given.values()}
    for key in NAMED:
        if settings.get(key) is not None:
            settings[key] = by_text.get(text_of(settings[key], key), settings[key])
    if "additional_special_tokens" in settings:
        settings.setdefault("extra_special_tokens", settings["additional_special_tokens"])
    name_extra(settings)
    extra = settings.get("extra_special_tokens") or []
    for key, token in (*settings["own_tokens"].items(), *(("extra_special_tokens", token) for token in extra)):
        text_of(token, key)
    settings["extra_special_tokens"] = extra
    return given


def name_extra(settings: Settings) -> None:
    """Take extra_special_tokens that have names to own_tokens. Raises ModelError."""
    extra = settings.get("extra_special_tokens")
    if extra is not None and not isinstance(extra, (dict, list)):
        raise ModelError(f"{CONFIG}: extra_special_tokens is {extra!r:.100}, expected a list of tokens")
    if isinstance(extra, dict):
        settings["own_tokens"] |= settings.pop("extra_special_tokens")


def legacy_map(settings: Settings, table: Mapping[str, Any]) -> None:
    """Let what special_tokens_map.json says replace the settings. Raises ModelError."""
    for key, value in table.items():
        if isinstance(value, dict) and key != "extra_special_tokens":
            value = added(value, special=True)
        elif key == "extra_special_tokens" and isinstance(value, list):
            there = list(settings.get(key) or [])
            fresh = [added(token, special=True) if isinstance(token, dict) else token for token in value]
            value = there + [token for token in fresh if token not in there]
        settings[key] = value
    name_extra(settings)


def legacy_tokens(settings: Settings, files: Mapping[str, bytes]) -> dict[int, AddedToken]:
    """Return the tokens of added_tokens.json and of tokenizer.json. Raises ModelError."""
    special = {str(settings[key]) for key in NAMED if settings.get(key)}
    special |= {str(token) for token in settings.get("extra_special_tokens") or ()}
    given: dict[int, AddedToken] = {}
    for text, number in parse_json(files.get(ADDED, b"{}"), ADDED).items():
        given[number_of(number)] = added({"content": text, "normalized": text not in special, "special": text in special})
    listed = parse_json(files[JSON], JSON).get("added_tokens", []) if JSON in files else []
    if not isinstance(listed, list) or not all(isinstance(token, dict) for token in listed):
        raise ModelError(f"{JSON}: added_tokens is no list of tokens")
    check_numbers(given, ADDED, {token.get("content"): token.get("id") for token in listed})
    there = {number_of(token.get("id")): added(token) for token in listed}
    for number in given.keys() & there.keys():
        if given[number].content != there[number].content:
            both = f"{given[number].content!r:.60} in {ADDED} and of {there[number].content!r:.60} in {JSON}"
            raise ModelError(f"the number {number} is that of the added token {both}: which is meant?")
    return given | there


def check_numbers(given: Mapping[int, AddedToken], name: str, there: Mapping[Any, Any]) -> None:
    """Raise ModelError where the file `name` gives an added token another number than tokenizer.json has for it."""
    for number, token in given.items():
        if there.get(token.content, number) != number:
            both = f"{number} in {name} and {there[token.content]} in {JSON}"
            raise ModelError(f"added token {token.content!r:.60} has the number {both}: which is meant?")


def check_one_each(tokenizer: Tokenizer) -> None:
    """Raise ModelError where two added tokens are one after normalising: which of them a text gets is left to chance; and where one was
    normalised and is so no more: it is then written as it was, which the file that is made cannot say.

    Source: tokenizers, AddedVocabulary.refresh_added_tokens, which goes through a hash map, and keeps what it normalised.
    """
    seen: dict[str, str] = {}
    for number, token in tokenizer.get_added_tokens_decoder().items():
        plain = tokenizer.normalizer.normalize_str(token.content) if token.normalized and tokenizer.normalizer else token.content
        if (written := tokenizer.id_to_token(number)) != plain:
            why = f"normalised in {JSON}, and not in {CONFIG}: transformers then writes it as {written!r:.60}"
            raise ModelError(f"the added token {token.content!r:.60} is {why}; set normalized to the same in both")
        if plain in seen and token.normalized:
            both = f"{seen[plain]!r:.60} and {token.content!r:.60}"
            raise ModelError(f"the added tokens {both} are one after normalising, and which of them a text gets is left to chance")
        if token.normalized:
            seen[plain] = token.content


def add_tokens(tokenizer: Tokenizer, settings: Settings, given: Mapping[int, AddedToken]) -> None:
    """Add every token that the tokenizer lacks, in the order of transformers: it decides their numbers."""
    before = tokenizer.get_added_tokens_decoder()
    there = {token.content: number for number, token in before.items()}
    if "added_tokens_decoder" in settings:  # without it they are those of tokenizer.json
        check_numbers(given, f"added_tokens_decoder of {CONFIG}", there)
    fresh: list[Any] = [token for _, token in sorted(given.items())]  # those too that are there: they may be special by name
    texts = set(there) | {text_of(token, "") for token in fresh}
    named = [token for key in NAMED if (token := settings.get(key)) is not None] + list(settings["own_tokens"].values())
    for token in (*named, *settings["extra_special_tokens"]):
        if text_of(token, "") not in texts and token not in fresh:
            fresh.append(token)
    # a token that was special stays so in the library, whatever is said of it later, until it is written and read again
    marks = {text_of(token, "") for token in named if token} | {token.content for token in before.values() if token.special}
    for place, token in enumerate(fresh):
        if isinstance(token, str):
            fresh[place] = AddedToken(token, special=True)
        elif not token.special and token.content in marks:
            token.special = True
    told: dict[str, AddedToken] = {}
    for token in fresh:  # of which then stands in memory what the library, given its own file, does not make again
        if repr(told.setdefault(token.content, token)) != repr(token):
            raise ModelError(f"the added token {token.content!r:.60} is named twice, and not alike; take one of them out")
    tokenizer.add_tokens(fresh)


def text_of(token: Any, key: str) -> str:
    """Return the text of a token. Raises ModelError when it is none."""
    if isinstance(token, AddedToken):
        return str(token.content)
    if not isinstance(token, str):
        raise ModelError(f"{CONFIG}: {key} is {token!r:.100}, expected a token")
    return token


def number_of(value: object) -> int:
    """Return the number of a token, which JSON keys hold as text. Raises ModelError."""
    try:
        return int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        raise ModelError(f"an added token has the number {value!r:.60}") from None


def objects(value: object) -> dict[str, dict[str, Any]]:
    """Return a JSON object of objects. Raises ModelError."""
    if not isinstance(value, dict) or not all(isinstance(one, dict) for one in value.values()):
        raise ModelError(f"{CONFIG}: added_tokens_decoder is no object of tokens")
    return value
