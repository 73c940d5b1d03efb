"""What chat and completions ask of a model that writes text, and the documents that answer them: OpenAI's, whole and in parts, with a name
and a time of their own. Knows fields, templates and tokens; knows no connection and no engine.
"""

import codecs
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hepti_mpi.errors import InputError
from hepti_mpi.models.inputs.chat import CALL, checked_messages, checked_options
from hepti_mpi.models.inputs.prompts import checked_ids
from hepti_mpi.models.inputs.unmet import TALKS, TEXTS
from hepti_mpi.models.tasks.forms import NoForms, check
from hepti_mpi.models.tasks.sampling import MOST_LOGPROBS, RANGES, Chosen, Sampling, check_biases
from hepti_mpi.serving.asking import Model
from hepti_mpi.serving.http.fields import Fields, is_tokens, listed, shown, sound
from hepti_mpi.serving.http.inquiries import check_name
from hepti_mpi.serving.http.refusals import Refused
from hepti_mpi.serving.http.tools import Held, calls, chosen, names, schema_of_call
from hepti_mpi.serving.http.unmet import check_met
from hepti_mpi.serving.streams import Grown
from hepti_mpi.wording import counted

MOST_ANSWERS, MOST_STOPS = 16, 16
MARKED = f"{CALL[0]}\n", "arguments", False  # as call_form of a model
PASSED_OVER = "x-ignored-fields"  # header: fields that change nothing in an answer of this model, which some clients always send
USUAL_TOKENS = 16  # of a completion that does not say how many, as OpenAI's


@dataclass
class Wanted:
    """Prompts that are to be gone on with, in tokens, each `count` times."""

    chat: bool
    name: str
    prompts: list[list[int]]
    texts: list[str]  # of the prompts
    count: int
    sampling: Sampling
    stream: bool
    with_usage: bool
    echo: bool
    calls: bool = False  # whether calls of tools are looked for in what is written
    plain: tuple[str, ...] = ()  # names of the tools whose calls need no mark (tools.calls)
    most_calls: int | None = None  # that are given of an answer
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    headers: dict[str, str] = field(default_factory=dict)  # what the answer's say besides

    def each(self) -> list[tuple[list[int], Sampling]]:
        """Return the prompt and what is asked of each choice; with a seed, each has another."""
        seed = self.sampling.seed
        seeds = [None if seed is None else seed + number for number in range(self.count)]
        return [(prompt, replace(self.sampling, seed=own)) for prompt in self.prompts for own in seeds]

    @property
    def head(self) -> dict[str, Any]:
        kind = "chat.completion" if self.chat else "text_completion"
        return {"id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}", "object": kind, "created": self.created, "model": self.name}


def chat(model: Model, fields: Fields, room: int) -> Wanted:
    """/v1/chat/completions. `room`: tokens that prompt and answer may have together."""
    check_name(model, fields)
    check_met(fields, TALKS)
    if fields.values.get("functions"):
        raise Refused(422, "functions are not supported: ask with tools and tool_choice, which took their place", "functions")
    if "modalities" in fields and fields.texts("modalities")[0] != ["text"]:
        raise Refused(422, f"modalities is {shown(fields.values['modalities'])}, answers are text", "modalities")
    template = model.template
    fields.text("reasoning_effort", "")
    asked = checked_options(fields.values)
    tools, must = chosen(asked["tools"], fields.values.get("tool_choice"))
    asked["tools"] = tools
    text = template.text(checked_messages(fields.any("messages")), **asked)
    marked = not template.knows_tools  # then a message tells of tools, and how calls are marked
    begin, arguments, many = (MARKED if marked else model.call_form) if must else ("", "", False)
    prompt = checked_ids(model.spec, model.tokens.plain(text + begin, "the talk"), "the talk")
    top, is_told = int(fields.number("top_logprobs", 0, MOST_LOGPROBS, whole=True) or 0), fields.flag("logprobs", False)
    if top and not is_told:
        raise Refused(422, f"top_logprobs is {top}, and nothing is told of tokens without logprobs: give logprobs true", "top_logprobs")
    most = fields.one_of("max_tokens", "max_completion_tokens")
    wanted = _wanted(model, fields, (True, [prompt], [text]), most, (room, room), top if is_told else None)
    if tools and wanted.sampling.schema is not None:
        raise Refused(422, 'response_format and tools do not go together: a call is none; give tool_choice "none"', "response_format")
    if template.passes_over(asked["effort"], tools):
        wanted.headers[PASSED_OVER] = "reasoning_effort"  # a model without such a switch answers as without the field
    known, most_calls = names(tools or ()), None if fields.flag("parallel_tool_calls", True) else 1
    if must:
        form = {"type": "json_schema", "json_schema": {"schema": schema_of_call(tools or (), arguments, many)}}
        sampling = _formed(wanted.sampling, form, "tool_choice")
        return replace(wanted, sampling=sampling, calls=True, plain=known, most_calls=1)
    return replace(wanted, calls=bool(tools) and (marked or model.calls_tools), plain=known * model.calls_plainly, most_calls=most_calls)


def completion(model: Model, fields: Fields, room: int) -> Wanted:
    """/v1/completions: of a text, a list of texts, token ids, or a list of those."""
    check_name(model, fields)
    check_met(fields, TEXTS)
    if fields.text("suffix", ""):
        raise Refused(422, "suffix is not supported: texts are gone on with at their end", "suffix")
    best = fields.number("best_of", 1, MOST_ANSWERS, whole=True)
    if best is not None and best > (fields.number("n", 1, MOST_ANSWERS, whole=True) or 1):
        raise Refused(422, f"best_of is {best:g}, and no more answers are made than are given: ask for n of them", "best_of")
    tokens, asked = model.tokens, fields.any("prompt")
    if is_tokens(asked):
        asked = [asked]
    if isinstance(asked, list) and asked and all(map(is_tokens, asked)):
        prompts = [[int(token) for token in one] for one in listed("prompt", asked)]
        words = model.spec.numbers("ids")
        if not all(0 <= token < words for one in prompts for token in one):
            raise Refused(422, f"prompt has token ids that are not of this model, which has {words}", "prompt")
        texts = [tokens.decode(one) for one in prompts]
    else:
        texts = fields.texts("prompt")[0]
        named = [(f"prompt {number}", text) for number, text in enumerate(texts, 1)]
        prompts = [list(checked_ids(model.spec, tokens.encode([text], name).ids, name)) for name, text in named]
    told = fields.number("logprobs", 0, MOST_LOGPROBS, whole=True)
    if told is not None and fields.flag("echo", False):
        raise Refused(422, "logprobs with echo would be those of the prompt too, which are not known: leave one of them out", "logprobs")
    return _wanted(model, fields, (False, prompts, texts), "max_tokens", (room, USUAL_TOKENS), None if told is None else int(told))


Prompts = tuple[bool, list[list[int]], list[str]]  # whether it is a talk, the tokens, and the texts


def _wanted(model: Model, fields: Fields, asked: Prompts, most: str, rooms: tuple[int, int], logprobs: int | None) -> Wanted:
    """`most`: the field that says how many tokens an answer may have; `rooms`: tokens that there are for a prompt with its answer, and that
    an answer has at most where nobody says."""
    is_chat, prompts, texts = asked
    room, longest = rooms[0], max(map(len, prompts))
    if longest >= room:
        larger = f", or start the service with a larger --context, up to {model.spec.positions}" if room < model.spec.positions else ""
        said = f"the prompt has {counted(longest, 'tokens')}, there is room for {room} with its answer; shorten it{larger}"
        raise Refused(400, said, "messages" if is_chat else "prompt", "context_length_exceeded")
    count = int(fields.number("n", 1, MOST_ANSWERS, whole=True) or 1)
    if len(prompts) * count > MOST_ANSWERS:
        many = f"{len(prompts)} prompts with n {count} are {counted(len(prompts) * count, 'answers')}"
        raise Refused(413, f"{many}, at most {MOST_ANSWERS} are given at once")
    limit = fields.number(most, 1, 1 << 24, whole=True)
    options: dict[str, Any] = {
        "max_tokens": min(rooms[1], room - longest) if limit is None else int(limit),
        "temperature": 1.0,
        "logprobs": logprobs,
    }
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        value = fields.number(name, *RANGES[name])
        options |= {} if value is None else {name: value}
    for name, least, largest in (("top_k", -1, RANGES["top_k"][1]), ("seed", -(1 << 63), 1 << 63)):
        whole = fields.number(name, least, largest, whole=True)
        options |= {} if whole is None else {name: max(0, int(whole)) if name == "top_k" else int(whole)}
    try:
        sampling = Sampling(**options, stop=_stops(fields), logit_bias=_biases(fields, model.spec.numbers("ids")))
    except InputError as error:
        raise Refused(422, str(error)) from None
    sampling = _formed(sampling, fields.values.get("response_format"), "response_format")
    more = fields.values.get("stream_options")
    with_usage = isinstance(more, dict) and more.get("include_usage") is True
    stream, echo = fields.flag("stream", False), not is_chat and fields.flag("echo", False)
    return Wanted(is_chat, model.spec.name, prompts, texts, count, sampling, stream, with_usage, echo)


def _formed(sampling: Sampling, form: Any, field: str) -> Sampling:
    """Return what is asked of an answer that keeps to a form, which a `field` wants. Raises Refused."""
    try:
        formed = replace(sampling, response_format=form)
    except InputError as error:
        raise Refused(422, str(error), field) from None
    try:
        check(formed.schema)
    except InputError as error:
        raise Refused(501 if isinstance(error, NoForms) else 400, str(error), field) from None
    return formed


def _stops(fields: Fields) -> tuple[str, ...]:
    value = fields.values.get("stop", [])
    many = [value] if isinstance(value, str) else value
    if not isinstance(many, list) or len(many) > MOST_STOPS:
        raise Refused(422, f"stop is {shown(value)}, expected a text or a list of at most {MOST_STOPS}", "stop")
    return tuple(sound("stop", one) for one in many if one != "")


def _biases(fields: Fields, words: int) -> dict[int, float]:
    """Return what is added to the logits of tokens of a vocabulary of `words`."""
    value = fields.values.get("logit_bias", {})
    try:
        found = {int(token): float(bias) for token, bias in value.items()}
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise Refused(422, f"logit_bias is {shown(value)}, expected an object of token ids and numbers", "logit_bias") from None
    try:
        check_biases(found, words)
    except InputError as error:
        raise Refused(422, str(error), "logit_bias") from None
    return found


class Places:
    """Where tokens begin in their text; one that ends a letter begins with it."""

    def __init__(self) -> None:
        self.letters, self.decoder = 0, codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, content: bytes | None) -> int:
        """Return where the next token begins, which has this `content`."""
        begin = self.letters
        self.letters += len(self.decoder.decode(content or b""))
        return begin


class Choices:
    """The choices of an answer, as their parts come."""

    def __init__(self, model: Model, wanted: Wanted) -> None:
        self.model, self.wanted = model, wanted
        self.texts = ["" for _ in wanted.each()]
        self.chosen: list[list[Chosen]] = [[] for _ in self.texts]
        self.finish: list[str | None] = [None for _ in self.texts]
        self.held = [Held(wanted.plain) for _ in self.texts]
        self.places = [Places() for _ in self.texts]  # of the tokens whose logarithms were told
        if wanted.echo:
            self.texts = [text for text in wanted.texts for _ in range(wanted.count)]

    @property
    def ended(self) -> bool:
        return all(self.finish)

    def add(self, index: int, part: Grown) -> None:
        """Take in what was added to a choice. Raises what went wrong."""
        if part.error is not None:
            raise part.error
        self.texts[index] += part.text
        self.chosen[index] += [part.chosen] if part.chosen is not None else []
        self.finish[index] = part.finish

    def usage(self) -> dict[str, int]:
        prompts, made = sum(map(len, self.wanted.prompts)), sum(map(len, self.chosen))
        return {"prompt_tokens": prompts, "completion_tokens": made, "total_tokens": prompts + made}

    def document(self) -> dict[str, Any]:
        """Return the whole answer."""
        choices = []
        for index, (text, finish) in enumerate(zip(self.texts, self.finish)):
            own: dict[str, Any] = {"text": text}
            if self.wanted.chat:
                said, called = calls(text, self.wanted.plain) if self.wanted.calls else (text, [])
                called = called[: self.wanted.most_calls]
                finish = "tool_calls" if called else finish
                message = {"role": "assistant", "content": said or (None if called else ""), "refusal": None}
                own = {"message": message | ({"tool_calls": called} if called else {})}
            choices.append({"index": index, **own, "logprobs": self._logprobs(index, self.chosen[index]), "finish_reason": finish})
        return self.wanted.head | {"choices": choices, "usage": self.usage()}

    # parts

    def begin(self) -> list[dict[str, Any]]:
        """Return the first parts: of a talk who speaks, of a completion what is echoed."""
        if self.wanted.chat:
            return [self._part(index, {"role": "assistant", "content": ""}, None, None) for index in range(len(self.texts))]
        return [self._part(index, text, None, None) for index, text in enumerate(self.texts) if text]

    def part(self, index: int, part: Grown) -> list[dict[str, Any]]:
        """Return what is to be sent of a part of a choice."""
        if not self.wanted.calls:
            is_told = part.text or part.finish or (part.chosen is not None and part.chosen.logprob is not None)
            content: Any = {"content": part.text} if self.wanted.chat else part.text
            return [self._part(index, content, part.chosen, part.finish)] if is_told else []
        text, called = self.held[index].add(part.text), list[dict[str, Any]]()
        if part.finish is not None:
            more, called = self.held[index].end()
            called = called[: self.wanted.most_calls]
            text += more
        is_told = text or (part.chosen is not None and part.chosen.logprob is not None)
        found = [self._part(index, {"content": text}, part.chosen, None)] if is_told else []
        if called:
            found.append(self._part(index, {"tool_calls": [{"index": at, **one} for at, one in enumerate(called)]}, None, None))
        if part.finish is not None:
            found.append(self._part(index, {}, None, "tool_calls" if called else part.finish))
        return found

    def _part(self, index: int, content: Any, chosen: Chosen | None, finish: str | None) -> dict[str, Any]:
        if self.wanted.chat and finish is not None and not content.get("content"):
            content = {}
        own = {"delta": content} if self.wanted.chat else {"text": content}
        choice = {"index": index, **own, "logprobs": self._logprobs(index, [chosen] if chosen else []), "finish_reason": finish}
        return self._chunk([choice]) | ({"usage": None} if self.wanted.with_usage else {})

    def end(self) -> list[dict[str, Any]]:
        """Return the last parts."""
        return [self._chunk([]) | {"usage": self.usage()}] if self.wanted.with_usage else []

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = self.wanted.head
        return head | ({"object": "chat.completion.chunk"} if self.wanted.chat else {}) | {"choices": choices}

    def _logprobs(self, index: int, chosen: Sequence[Chosen]) -> dict[str, Any] | None:
        """Return the logarithms of the tokens that come next in a choice."""
        if self.wanted.sampling.logprobs is None or not chosen:
            return None
        if self.wanted.chat:
            return {"content": [self._token(one.token, one.logprob) | {"top_logprobs": [self._token(*top) for top in one.top]}
                                for one in chosen], "refusal": None}  # fmt: skip
        tokens = self.model.tokens
        begins = [self.places[index].of(tokens.content(one.token) if tokens.within(one.token) else b"") for one in chosen]
        return {
            "tokens": [self._name(one.token) for one in chosen],
            "token_logprobs": [one.logprob for one in chosen],
            "top_logprobs": [{self._name(token): value for token, value in (*one.top, (one.token, one.logprob))} for one in chosen],
            "text_offset": begins,
        }

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        content = self.model.tokens.content(token)
        return {"token": self._text(token), "logprob": logprob, "bytes": None if content is None else list(content)}

    def _text(self, token: int) -> str:
        return self.model.tokens.within(token) or self.model.tokens.piece(token)

    def _name(self, token: int) -> str:
        """Return the text of a token; of one that is a part of a letter its bytes, as OpenAI's completions do: others look alike."""
        text, content = self._text(token), self.model.tokens.content(token)
        is_part = content is not None and content.decode("utf-8", "replace") != content.decode("utf-8", "ignore")
        return f"bytes:{str(content)[2:-1]}" if is_part else text
