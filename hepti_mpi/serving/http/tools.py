"""Calls of tools in what a model writes, for the families whose templates have a form for them. Pure: knows texts and JSON; calls nothing.

Hermes, Qwen and SmolLM2 mark them: <tool_call>{"name", "arguments"}</tool_call>. Llama 3 writes nothing but {"name", "parameters"}, and
Mistral nothing but a list of calls; tokens of their own before these are no text.
"""

import json
import re
import secrets
from collections.abc import Collection, Sequence
from typing import Any

from hepti_mpi.models.inputs.chat import CALL, LIST

BEGIN, END = CALL
MARKED = re.compile(re.escape(BEGIN) + r"(.*?)(?:" + re.escape(END) + r"|\Z)", re.DOTALL)


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


def as_objects(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages in which the arguments of calls are objects, which templates turn into JSON themselves; clients send text."""
    return [message | {"tool_calls": [_opened(call) for call in message["tool_calls"]]} if isinstance(message.get("tool_calls"), list)
            else message for message in messages]  # fmt: skip


def _opened(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        return call | {"function": function | {"arguments": json.loads(function["arguments"])}}
    except (ValueError, RecursionError):
        return call


def names(tools: Sequence[Any]) -> tuple[str, ...]:
    """Return the names of tools that a request gives."""
    functions = [tool.get("function", tool) for tool in tools]
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
