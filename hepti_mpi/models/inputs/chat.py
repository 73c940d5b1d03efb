"""A talk as one text, by the chat template of the model. The only user of jinja2.

Templates are programs that others wrote: they run in the library's immutable sandbox, see nothing but the talk, and what they make has a
largest size. Knows templates; knows no token and no model. Source: transformers 5, utils/chat_template_utils.py.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hepti_mpi.errors import InputError, ModelError
from hepti_mpi.models.untrusted import shown

NAME = "chat_template.jinja"
WITH_TOOLS = "chat_template_tool_use.jinja"  # of a store: the template for talks with tools, where a model has one of its own for them
LONGEST = 1 << 20  # characters of a template
LARGEST = 1 << 24  # characters of a talk
Message = Mapping[str, Any]


class _Generation(Extension):
    """The blocks {% generation %}, which mark what training looks at: their content as it is."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Refusal(Exception):
    """The template says that a talk is not one for it."""


def _refuse(message: str) -> None:
    raise _Refusal(message)


def _as_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class ChatTemplate:
    """What turns messages into the text that the model was trained on."""

    def __init__(self, source: str, marks: Mapping[str, str], with_tools: str | None = None) -> None:
        """`marks`: the texts of bos_token, eos_token and so on; `with_tools`: the template of talks with tools, if it is another.

        Raises ModelError for a template that cannot be read.
        """
        self._with_tools = None if with_tools is None else ChatTemplate(with_tools, marks)
        if len(source) > LONGEST:
            raise ModelError(f"{NAME} has {len(source)} characters, the limit is {LONGEST}")
        extensions = [_Generation, "jinja2.ext.loopcontrols"]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.filters["tojson"] = _as_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.datetime.now().strftime(form)}
        self.marks = dict(marks)
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, ValueError) as error:
            raise ModelError(f"{NAME} cannot be read: {shown(error)}") from None

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> "ChatTemplate | None":
        """Return the template of a store, None where it has none. Raises ModelError."""
        if NAME not in files:
            return None
        said = json.loads(files.get("tokenizer_config.json", b"{}"))
        marks = {key: value for key, value in said.items() if key.endswith("_token") and isinstance(value, str)}
        with_tools = files[WITH_TOOLS].decode("utf-8", "replace") if WITH_TOOLS in files else None
        return cls(files[NAME].decode("utf-8", "replace"), marks, with_tools)

    def text(self, messages: Sequence[Message], answer: bool = True, tools: Sequence[Any] | None = None, **more: Any) -> str:
        """Return the text of a talk; `answer`: up to where the model's answer begins. Raises InputError when the template refuses it."""
        if tools is not None and self._with_tools is not None:
            return self._with_tools.text(messages, answer, tools, **more)
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(
                messages=messages, add_generation_prompt=answer, tools=tools, documents=None, **self.marks, **more
            ):
                size += len(part)
                if size > LARGEST:
                    raise InputError(f"the talk is longer than {LARGEST} characters")
                parts.append(part)
        except _Refusal as error:
            raise InputError(f"the model's chat template refuses the messages: {shown(error)}") from None
        except InputError:
            raise
        except Exception as error:  # of a program that somebody else wrote
            raise InputError(f"the model's chat template cannot take the messages: {shown(error)}") from None
        return "".join(parts)


def checked_messages(value: object) -> list[dict[str, Any]]:
    """Return `value` if it is a list of messages with a role and a content. Raises InputError."""
    if not isinstance(value, list) or not value:
        raise InputError(f"messages is {shown(repr(value), 60)}, expected a list of objects with role and content")
    for number, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InputError(f"message {number + 1} is {shown(repr(message), 60)}, expected an object with role and content")
        content = message.get("content")
        if isinstance(content, list):  # as parts, of which texts are known
            texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
            if not all(isinstance(text, str) for text in texts):
                raise InputError(f"message {number + 1} holds parts that are no text")
            value[number] = message | {"content": "".join(text for text in texts if text)}
        elif not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise InputError(f"message {number + 1} has content {shown(repr(content), 60)}, expected a text")
    return value
