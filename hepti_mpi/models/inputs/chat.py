"""A talk as one text, by the chat template of the model. The only user of jinja2.

Templates are programs that others wrote: they run in the library's immutable sandbox, see nothing but the talk, and what they make has a
largest size. A template takes the content of a message as a text, as a list of parts, or as both: messages go to it as they are, and in
the other form where it cannot take them or loses what they say. Knows templates; knows no token and no model. Source: transformers 5,
utils/chat_template_utils.py.
"""

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hepti_mpi.errors import InputError, ModelError
from hepti_mpi.models.untrusted import shown

NAME = "chat_template.jinja"
WITH_TOOLS = "chat_template_tool_use.jinja"  # of a store: the template for talks with tools, where a model has one of its own for them
TOOLS_ONLY = b"{{ raise_exception('it is for talks with tools alone, and none are given') }}"
OTHER_MARKS = "named_tokens"  # in the tokenizer_config.json of a store: special tokens whose names do not say that they are tokens
LONGEST = 1 << 20  # characters of a template
LARGEST = 1 << 24  # characters of a talk
CALL = "<tool_call>", "</tool_call>"  # around a call of a tool in what a model writes, as Hermes, Qwen and SmolLM2 do
LIST = "[TOOL_CALLS]"  # before the calls that are all of an answer, as Mistral does; most tokenizers have it as no text
PLAIN = LIST, '"parameters": '  # in a template by whose form a call is all of an answer: Mistral's, Llama's
DEVELOPER = "developer"  # what newer clients call the system
NO_THOUGHT = ("enable_thinking", False), ("thinking", False), ("reasoning_effort", "none")  # so a model is that knows no such switch
SWITCHES = "enable_thinking", "thinking"  # names by which templates are told whether to think before the answer
EFFORTS = "none", "minimal", "low", "medium", "high", "xhigh", "max"  # how much, as OpenAI's and vLLM's servers name it
REASONING = "reasoning_content", "thinking", "reasoning"  # names that a message's reasoning goes by
TOLD = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within {call[0]}{call[1]} XML tags:
{call[0]}
{{"name": <function-name>, "arguments": <args-json-object>}}
{call[1]}"""  # how Hermes' and Qwen2.5's templates tell of tools
Message = Mapping[str, Any]


class _Generation(Extension):
    """The blocks {% generation %}, which mark what training looks at: their content as it is."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Arguments(dict[str, Any]):
    """Arguments of a call, with the text that said them, under a name that no template can read: it would hide an argument called so."""

    def __init__(self, values: Mapping[str, Any], text: str) -> None:
        super().__init__(values)
        self._text = text


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
        self.needs_tools = source == TOOLS_ONLY.decode()  # whether talks without tools have none
        if len(source) > LONGEST:
            raise ModelError(f"{NAME} has {len(source)} characters, the limit is {LONGEST}")
        extensions = [_Generation, "jinja2.ext.loopcontrols"]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.filters["tojson"] = _as_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.datetime.now().strftime(form)}
        self.marks, self._knows_developers = dict(marks), DEVELOPER in source
        try:
            self._template = environment.from_string(source)
            self._read = meta.find_undeclared_variables(environment.parse(source))
        except (jinja2.TemplateError, RecursionError, ValueError) as error:
            raise ModelError(f"{NAME} cannot be read: {shown(error)}") from None

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> "ChatTemplate | None":
        """Return the template of a store, None where it has none; one for talks with tools alone refuses others. Raises ModelError."""
        if not {NAME, WITH_TOOLS} & files.keys():
            return None
        said = json.loads(files.get("tokenizer_config.json", b"{}"))
        marks = {key: value for key, value in said.items() if key.endswith("_token") and isinstance(value, str)}
        marks |= said.get(OTHER_MARKS, {})
        with_tools = files[WITH_TOOLS].decode("utf-8", "replace") if WITH_TOOLS in files else None
        return cls(files.get(NAME, TOOLS_ONLY).decode("utf-8", "replace"), marks, with_tools)

    def text(
        self, messages: Sequence[Message], answer: bool = True, tools: Sequence[Any] | None = None, more: Mapping[str, Any] | None = None,
        effort: str | None = None,
    ) -> str:  # fmt: skip
        """Return the text of a talk; `answer`: up to where the model's answer begins; `more`: what else the template is told, by name, as
        enable_thinking of Qwen3; `effort`: how much is to be thought before the answer, which `more` overrules. Raises InputError when the
        template refuses it, or does not read what it is told."""
        if tools is not None and self._with_tools is not None:
            return self._with_tools.text(messages, answer, tools, more, effort)
        self._check_read(more or {})
        told = self.thought(effort) | dict(more or {})
        if tools and not self.knows_tools:
            return self._text_with_tools(messages, answer, tools, told)
        context = {"add_generation_prompt": answer, "tools": tools, "documents": None} | self.marks | told
        talk = [_reasoned(message if self._knows_developers else _of_system(message)) for message in messages]
        talk, first = self._first(talk, context)
        tried = [first]
        for turned in (_other_form, _with_calls_told):
            lost = tried[-1].lost
            if not lost:
                break
            talk = [turned(message) if place in lost else message for place, message in enumerate(talk)]
            tried.append(self._tried(talk, context))
        best = min(tried, key=lambda one: one.cost)  # the first of equals
        if best.error is not None:
            raise best.error
        return best.text

    def reads(self, name: str) -> bool:
        """Tell whether the template does anything with what it is told by this name, a word of which may stand in its text as well."""
        return name in self._read

    def thought(self, effort: str | None) -> dict[str, Any]:
        """Return what the template is told where so much is to be thought before the answer: how much, if it reads that, and whether at
        all, if it reads that; nothing where it reads neither. Raises InputError for an effort that nobody knows."""
        if not effort:
            return {}
        told: dict[str, Any] = {"reasoning_effort": effort} if self.reads("reasoning_effort") else {}
        if not told and effort not in EFFORTS:
            raise InputError(f"reasoning_effort is {shown(repr(effort), 60)}, expected one of {', '.join(EFFORTS)}")
        return {name: effort != "none" for name in SWITCHES if self.reads(name)} | told

    def passes_over(self, effort: str | None, tools: Sequence[Any] | None = None) -> bool:
        """Tell whether a talk with these tools is the same without this effort. Raises InputError as `thought`."""
        own = self if tools is None or self._with_tools is None else self._with_tools
        return bool(effort) and not own.thought(effort)

    @property
    def knows_tools(self) -> bool:
        """Whether it tells of tools itself, where a talk has some."""
        return (self._with_tools or self).reads("tools")

    def _check_read(self, more: Mapping[str, Any]) -> None:
        """Raise InputError for what the template would pass over: the answer would be that of another request."""
        for name, value in more.items():
            if not self.reads(name) and (name, value) not in NO_THOUGHT:
                raise InputError(f"{name} is {shown(repr(value), 60)}, which the model's chat template does not read; leave it out")

    def _text_with_tools(self, messages: Sequence[Message], answer: bool, tools: Sequence[Any], more: Mapping[str, Any] | None) -> str:
        """Return the text of a talk in which a message tells of the tools, as the template knows of none: the system's, or the first one
        where it has no system. Raises InputError where both are lost."""
        told = TOLD.format(tools="\n".join(map(_as_json, tools)), call=CALL)
        for talk in (_by_system(messages, told), _by_first(messages, told)):
            try:
                text = self.text(talk, answer, None, more)
            except InputError:
                continue
            if told in text:
                return text
        self.text(messages, answer, None, more)  # which may be what is wrong
        raise InputError("the model's chat template knows no tools, nor a message that tells of them; leave tools out")

    def _first(self, talk: list[Message], context: Mapping[str, Any]) -> tuple[list[Message], "_Made"]:
        """Return messages and what the template makes of them: as they are, unless it takes them, or says all of them, only where arguments
        of calls are text, or where a content of null is left out. Raises InputError when it refuses them all."""
        forms: list[list[Message]] = []
        for bare in (False, True):
            for told in (False, True):
                form = [_with_arguments_told(message) if told else message for message in (map(_bare, talk) if bare else talk)]
                forms += [form] * (form not in forms)
        if len(forms) == 1:
            return talk, self._tried(talk, context)
        found, refusal = list[tuple[list[Message], _Made]](), None
        for form in forms:
            try:
                found.append((form, self._tried(form, context)))
            except InputError as error:
                refusal = error  # that of the plainest form is told
            else:
                if not any(_odd(*found[-1])):
                    return found[-1]
        if refusal is not None and not found:
            raise refusal
        return min(found, key=lambda one: _odd(*one))  # the first of equals

    def _tried(self, talk: Sequence[Message], context: Mapping[str, Any]) -> "_Made":
        """Return what the template makes of messages in the form that they have. Raises InputError when it refuses them."""
        try:
            text = self._made(talk, context)
        except _Refusal as error:
            raise InputError(f"the model's chat template refuses the messages: {shown(error)}") from None
        except InputError:
            raise
        except Exception as error:  # of a program that somebody else wrote
            failure = InputError(f"the model's chat template cannot take the messages: {shown(error)}")
            return _Made("", math.inf, [place for place, one in enumerate(talk) if not isinstance(one.get("content"), str)], failure)
        lost = [place for place, message in enumerate(talk) if _is_lost(message, text)]
        if not any(_is_plain(talk[place]) and talk[place]["role"] == "user" for place in lost):
            lost = [place for place in lost if not _is_plain(talk[place])]  # the rest on purpose: own reasoning is not read again
        return _Made(text, len(lost), lost)

    def _made(self, talk: Sequence[Message], context: Mapping[str, Any]) -> str:
        parts: list[str] = []
        size = 0
        for part in self._template.generate(messages=talk, **context):
            size += len(part)
            if size > LARGEST:
                raise InputError(f"the talk is longer than {LARGEST} characters")
            parts.append(part)
        return "".join(parts)


@dataclass(frozen=True)
class _Made:
    """What a template made of a talk: the text, the places of the messages that it lost, how many, or why it made nothing."""

    text: str
    cost: float
    lost: Sequence[int]
    error: InputError | None = None


def _is_lost(message: Message, text: str) -> bool:
    """Tell whether a template left out what a message says, or wrote its parts as a program would."""
    content, calls = message.get("content"), message.get("tool_calls")
    said = [part["text"] for part in content] if isinstance(content, list) else [content or ""]
    named = [call["function"].get("name") for call in calls if _is_call(call)] if isinstance(calls, list) else []
    return (isinstance(content, list) and repr(content) in text) or any(str(one).strip() not in text for one in (*said, *named))


def _odd(talk: Sequence[Message], made: _Made) -> tuple[float, int]:
    """Return how much a template lost of messages, and how often it wrote what only programs write: None, or arguments in Python."""
    calls = [call for message in talk for call in message.get("tool_calls") or () if _is_call(call)]
    wrote = [repr(one) for call in calls if isinstance(one := call["function"].get("arguments"), dict) and one]
    return made.cost, made.text.count("None") + sum(one in made.text for one in wrote)


def _bare(message: Message) -> Message:
    """Return a message without a content of null."""
    return {key: one for key, one in message.items() if key != "content" or one is not None}


def _with_arguments_told(message: Message) -> Message:
    """Return a message in which the arguments of calls are text: for templates that put them between others, as DeepSeek R1's."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    told = [call | {"function": call["function"] | {"arguments": _text_of(call["function"].get("arguments"))}} if _is_call(call) else call
            for call in calls]  # fmt: skip
    return {**message, "tool_calls": told}


def _text_of(arguments: Any) -> Any:
    return arguments._text if isinstance(arguments, _Arguments) else _as_json(arguments) if isinstance(arguments, dict) else arguments


def _is_plain(message: Message) -> bool:
    return isinstance(message.get("content"), str) and not message.get("tool_calls")


def _is_call(call: Any) -> bool:
    return isinstance(call, dict) and isinstance(call.get("function"), dict)


def _other_form(message: Message) -> Message:
    """Return a message with its parts as one text, or its text as one part; with an empty text where it has none."""
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": "".join(part["text"] for part in content)}
    return {**message, "content": [{"type": "text", "text": content}] if content and _is_plain(message) else content or ""}


def _with_calls_told(message: Message) -> Message:
    """Return a message whose calls of tools are what the model wrote: for templates that know of none."""
    calls = [call["function"] for call in message.get("tool_calls") or () if _is_call(call)]
    wrote = [CALL[0] + json.dumps({key: call.get(key) for key in ("name", "arguments")}, ensure_ascii=False) + CALL[1] for call in calls]
    if not isinstance(message.get("content"), str) or not wrote:
        return message
    return {key: value for key, value in message.items() if key != "tool_calls"} | {"content": message["content"] + "\n".join(wrote)}


def _by_system(messages: Sequence[Message], told: str) -> list[Message]:
    """Return the messages with one of the system before them, or its own with more at its end."""
    if messages and messages[0].get("role") in ("system", DEVELOPER):
        return [_longer(messages[0], "", f"\n\n{told}"), *messages[1:]]
    return [{"role": "system", "content": told}, *messages]


def _by_first(messages: Sequence[Message], told: str) -> list[Message]:
    """Return the messages, the first of the user with more before what it says."""
    first = next((place for place, message in enumerate(messages) if message.get("role") == "user"), len(messages))
    return [_longer(message, f"{told}\n\n", "") if place == first else message for place, message in enumerate(messages)]


def _longer(message: Message, before: str, behind: str) -> Message:
    """Return a message that says more."""
    content = message.get("content") or ""
    if isinstance(content, list):
        parts = [{"type": "text", "text": text} if text else None for text in (before, behind)]
        return {**message, "content": [part for part in (parts[0], *content, parts[1]) if part]}
    return {**message, "content": f"{before}{content}{behind}"}


def _of_system(message: Message) -> Message:
    """Return a message of a developer as one of the system, which it is to templates that would leave it out or refuse it."""
    return {**message, "role": "system"} if message.get("role") == DEVELOPER else message


def _reasoned(message: Message) -> Message:
    """Return a message with its reasoning under the names that templates read."""
    reasoning = next((message[key] for key in REASONING if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def checked_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a request says to the template beside its messages: `tools`, `more` and `effort` of `text`. Raises InputError."""
    tools, more, effort = (values.get(name) for name in ("tools", "chat_template_kwargs", "reasoning_effort"))
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise InputError(f"tools is {shown(repr(tools), 60)}, expected a list of objects")
    if more is not None and not isinstance(more, dict):
        raise InputError(f"chat_template_kwargs is {shown(repr(more), 60)}, expected an object of names and values for the template")
    if effort is not None and not isinstance(effort, str):
        raise InputError(f"reasoning_effort is {shown(repr(effort), 60)}, expected a text, such as low")
    return {"tools": tools or None, "more": more or {}, "effort": effort or None}


def checked_messages(value: object) -> list[dict[str, Any]]:
    """Return the messages of `value`, each with a role and a content, or calls of tools in its place; null is the same as left out, but
    for a content, and arguments of calls that are text, as OpenAI's are, become the objects that they say: templates turn these into JSON
    themselves.

    Raises InputError.
    """
    if not isinstance(value, list) or not value:
        raise InputError(f"messages is {shown(repr(value), 60)}, expected a list of objects with role and content")
    for number, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InputError(f"message {number + 1} is {shown(repr(message), 60)}, expected an object with role and content")
        content = message.get("content")
        if isinstance(content, list):
            texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
            if not all(isinstance(text, str) for text in texts):
                raise InputError(f"message {number + 1} holds parts that are no text, which is all that the model reads")
        elif not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise InputError(f"message {number + 1} has content {shown(repr(content), 60)}, expected a text")
    return [_opened({key: one for key, one in message.items() if one is not None or key == "content"}) for message in value]


def _opened(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message in which the arguments of calls are objects."""
    calls = message.get("tool_calls")
    return message | {"tool_calls": [_with_arguments(call) for call in calls]} if isinstance(calls, list) else message


def _with_arguments(call: Any) -> Any:
    if not _is_call(call) or not isinstance(call["function"].get("arguments"), str):
        return call
    text = call["function"]["arguments"]
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return call
    return call | {"function": call["function"] | {"arguments": _Arguments(said, text) if isinstance(said, dict) else said}}
