"""What the JSON of a request says, field by field, each of the type that is asked for. Pure: knows JSON; knows no route.

Fields that nobody asks for are ignored, as OpenAI's servers do; those of other servers that would change an answer: unmet.py.
"""

import base64
import binascii
import json
from typing import Any

from hepti_mpi.models import untrusted
from hepti_mpi.serving.http.refusals import Refused
from hepti_mpi.wording import counted

MOST_INPUTS = 2048  # of one request
SHOWN = 60


def parsed(body: bytes) -> "Fields":
    """Return the fields of a body. Raises Refused."""
    try:
        value = json.loads(body, object_pairs_hook=untrusted.each_once)
    except (ValueError, RecursionError) as error:
        what = "is not JSON" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError) else "is not taken as JSON"
        raise Refused(400, f"the body {what}: {untrusted.shown(error)}") from None
    if not isinstance(value, dict):
        raise Refused(422, f"the body is {_kind(value)}, expected an object")
    return Fields(value)


class Fields:
    """The fields of a request; null is the same as left out."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = {name: value for name, value in values.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def any(self, name: str) -> Any:
        """Return a field that has to be there."""
        if name not in self.values:
            raise Refused(422, f"{name} is missing", name)
        return self.values[name]

    def one_of(self, *names: str) -> str:
        """Return which of several fields, that stand for the same, is there: the first where none is, or where all say the same."""
        given = [name for name in names if name in self.values]
        if any(self.values[name] != self.values[given[0]] for name in given):
            raise Refused(422, f"{' and '.join(given)} are both given: leave one out", given[1])
        return given[0] if given else names[0]

    def text(self, name: str, default: str | None = None) -> str:
        value = self.any(name) if default is None else self.values.get(name, default)
        return sound(name, value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise Refused(422, f"{name} is {_kind(value)}, expected true or false", name)
        return value

    def number(self, name: str, least: float, most: float, whole: bool = False) -> float | None:
        """Return a number between `least` and `most`, None where it is left out."""
        value = self.values.get(name)
        if value is None:
            return None
        number = untrusted.is_number(value)
        if not number or not least <= value <= most or (whole and value != int(value)):
            found, kind = shown(value) if isinstance(value, (int, float)) else _kind(value), "a whole number" if whole else "a number"
            raise Refused(422, f"{name} is {found}, expected {kind} from {least} to {most}", name)
        return int(value) if whole else float(value)

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """Return one of the choices, the first where it is left out."""
        value = self.values.get(name, choices[0])
        if value not in choices:
            raise Refused(422, f"{name} is {shown(value)}, expected {' or '.join(choices)}", name)
        return str(value)

    def texts(self, name: str) -> tuple[list[str], bool]:
        """Return a text or a list of some, and whether it was one alone."""
        value = self.any(name)
        if isinstance(value, str):
            return [sound(name, value)], True
        return [sound(name, text) for text in listed(name, value)], False


def listed(name: str, value: Any, alone: bool = True) -> list[Any]:
    """Return a list that is not empty nor too long. `alone`: one text would do as well."""
    if not isinstance(value, list):
        raise Refused(422, f"{name} is {_kind(value)}, expected {'a text or ' * alone}a list of texts", name)
    if not value:
        raise Refused(422, f"{name} is an empty list: there is nothing to answer", name)
    if len(value) > MOST_INPUTS:
        raise Refused(413, f"{name} has {counted(len(value), 'inputs')}, at most {MOST_INPUTS} are taken at once: ask in parts", name)
    return value


def sound(name: str, value: Any) -> str:
    """Return a text that is one: without half characters, which no tokenizer takes."""
    if not isinstance(value, str):
        raise Refused(422, f"{name} holds {_kind(value)}, expected text", name)
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise Refused(422, f"{name} holds half a character (a lone surrogate), which is no text", name)
    return value


def is_tokens(value: Any) -> bool:
    """Tell whether a value is a list of token ids."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)


def data_url(name: str, value: Any) -> bytes:
    """Return the content of a data URL, the only kind of address that is opened: a server that fetches others reaches into networks that
    its clients do not."""
    head, comma, content = sound(name, value).partition(",")
    if not head.lower().startswith("data:") or not comma or not head.lower().endswith(";base64"):
        raise Refused(422, f"{name} is {shown(value)}, expected a picture as data:image/png;base64,...", name)
    try:
        return base64.b64decode("".join(content.split()), validate=True)  # some break lines
    except (binascii.Error, ValueError):
        raise Refused(422, f"{name} holds base64 that is damaged", name) from None


def shown(value: Any) -> str:
    """Return a value for a sentence: short, and none of a long text."""
    text = json.dumps(value, default=str)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)
