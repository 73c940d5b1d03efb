"""Which tools a model may call or has to, and calls in what it writes, for the families whose templates have a form for them. Knows
texts and JSON; calls nothing.

Hermes, Qwen and SmolLM2 mark them: <tool_call>{"name", "arguments"}</tool_call>. Llama 3 writes nothing but {"name", "parameters"}, and
Mistral nothing but a list of calls; tokens of their own before these are no text.
"""

import json
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hepti_mpi.models.inputs.chat import CALL, LIST
from hepti_mpi.serving.http.fields import shown
from hepti_mpi.serving.http.refusals import Refused

BEGIN, END = CALL
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}  # parameters of a tool that tells none
OPEN = set("additionalProperties patternProperties unevaluatedProperties allOf anyOf oneOf if $ref".split())  # say what else there is
MARKED = re.compile(re.escape(BEGIN) + r"(.*?)(?:" + re.escape(END) + r"|\Z)", re.DOTALL)


def chosen(tools: Sequence[Any] | None, choice: Any) -> tuple[Sequence[Any] | None, bool]:
    """Return which of its tools a request lets a model call, by its `tool_choice`, and whether one has to be called. Raises Refused."""
    if choice in (None, "auto"):
        return tools, False
    if choice == "none":
        return None, False
    asked = choice if isinstance(choice, dict) else {}
    must, named = choice == "required" or asked.get("type") == "function", None
    if asked.get("type") == "function":
        named = names([asked])
    elif asked.get("type") == "allowed_tools":
        own = asked.get("allowed_tools", asked)
        if isinstance(own, dict) and isinstance(own.get("tools"), list) and own.get("mode") in ("auto", "required"):
            must, named = own["mode"] == "required", names(own["tools"])
    if named == () or not (must or named):
        what = "none, auto, required, a function of tools by its name, or allowed_tools with some of them"
        raise Refused(422, f"tool_choice is {shown(choice)}, expected {what}", "tool_choice")
    there = names(tools or ())
    missing = [name for name in named or () if name not in there]
    if missing or not there:
        what = f"has no function {missing[0][:60]!r}, which tool_choice names" if missing else "has no function, and tool_choice wants one"
        raise Refused(422, f"tools {what}; give it there, or leave tool_choice out", "tool_choice")
    wanted = there if named is None else named
    return [tool for tool in tools or () if any(name in wanted for name in names([tool]))], must


def schema_of_call(tools: Sequence[Any], arguments: str, many: bool) -> dict[str, Any]:
    """Return the schema of a call of one of these tools, which has the arguments under that name; `many`: of a list of one call."""
    known = {function["name"]: function.get("parameters") for function in (tool.get("function", tool) for tool in tools)}
    every = [(name, f"call{number}", given or NOTHING) for number, (name, given) in enumerate(known.items())]
    call: dict[str, Any] = {"anyOf": [
        {"type": "object", "properties": {"name": {"const": name}, arguments: {"$ref": f"#/$defs/{place}"}},
         "required": ["name", arguments], "additionalProperties": False}
        for name, place, _ in every
    ]}  # fmt: skip
    definitions = {
        place: _moved({"type": "object", **given} if isinstance(given, dict) else given, f"#/$defs/{place}") for _, place, given in every
    }
    return ({"type": "array", "items": call, "minItems": 1, "maxItems": 1} if many else call) | {"$defs": definitions}


def _moved(schema: Any, place: str, closed: bool = True) -> Any:
    """Return a schema whose references are right where it stands at `place` of another; `closed`: objects have nothing but their properties
    where it does not say otherwise, else a small model goes on to make some up."""
    if isinstance(schema, list):
        return [_moved(one, place, closed) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: place + one[1:] if key == "$ref" and isinstance(one, str) and one.startswith("#")
             else _moved(one, place, closed and key != "allOf") for key, one in schema.items()}  # fmt: skip
    closes = closed and schema.get("type") == "object" and "properties" in schema and not OPEN & schema.keys()
    return found | {"additionalProperties": False} if closes else found


def calls(text: str, plain: Collection[str] = ()) -> tuple[str, list[dict[str, Any]]]:
    """Return what a text says besides calls, and the calls, as OpenAI's documents have them; a mark with no sound call in it stays text.
    `plain`: names of the tools whose calls need no mark, where they are all of the text."""
    found = _calls(text.strip().removeprefix(LIST)) if plain else []
    if found and all(one["function"]["name"] in plain for one in found):
        return "", found
    found = []

    def taken(match: "re.Match[str]") -> str:
        own = _calls(match[1])
        found.extend(own)
        return "" if own else match[0]

    left = MARKED.sub(taken, text)
    return (left.strip() if found else text), found


def _calls(text: str) -> list[dict[str, Any]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    many = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in many):
        return []
    return [_call(one["name"], one.get("arguments", one.get("parameters", {}))) for one in many]


def _call(name: str, arguments: Any) -> dict[str, Any]:
    """Return a call; Mistral's templates take it back only with an id of nine letters or digits."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": secrets.token_hex(5)[:9], "type": "function", "function": {"name": name, "arguments": text}}


def names(tools: Sequence[Any]) -> tuple[str, ...]:
    """Return the names of tools that a request gives."""
    functions = [tool.get("function", tool) for tool in tools if isinstance(tool, dict)]
    return tuple(one["name"] for one in functions if isinstance(one, dict) and isinstance(one.get("name"), str))


class Held:
    """The text of a stream, of which what may be a call is held back until the end. `plain`: as of `calls`."""

    def __init__(self, plain: Collection[str] = ()) -> None:
        self.text, self.sent, self.plain = "", 0, plain

    def add(self, text: str) -> str:
        """Return what is surely no call."""
        self.text += text
        if self.plain and self.text.lstrip()[:1] in ("", "{", "["):
            return ""
        at = self.text.find(BEGIN)
        if at < 0:
            at = len(self.text) - next((size for size in range(len(BEGIN) - 1, 0, -1) if self.text.endswith(BEGIN[:size])), 0)
        found, self.sent = self.text[self.sent : max(at, self.sent)], max(at, self.sent)
        return found

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """Return the rest: text, and calls."""
        return calls(self.text[self.sent :], self.plain)
