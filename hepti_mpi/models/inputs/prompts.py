"""What the user gives to be continued: lines, JSON lines and arrays become prompts of token ids.

An object has a "prompt", or the "messages" of a talk, and may say how its own answer is sampled. Knows files, the tokenizer and the chat
template; knows no rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.models.inputs.arrays import check_positions, read_npz
from hepti_mpi.models.inputs.chat import ChatTemplate, checked_messages, checked_options
from hepti_mpi.models.inputs.text import ID, SHOWN, bad_byte, json_value, lines_of, no_json, read_text
from hepti_mpi.models.inputs.tokens import Tokens
from hepti_mpi.models.inputs.unmet import TALKS, TEXTS, first_unmet
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.models.untrusted import check_there, shown
from hepti_mpi.wording import counted

QUESTIONS = ("What is the capital of France?", "Why is the sky blue?")
BEGINNINGS = ("Once upon a time", "The capital of France is")
FIELDS = ("prompt", "text")  # where the text is, the first one that is there
ALONE = {"n": 1, "best_of": 1, "echo": False, "suffix": "", "functions": []}  # unless so, more or other than one answer
TAKEN = "a model that generates text takes .txt, .jsonl, .npz with input_ids, or - for standard input"


@dataclass(frozen=True)
class Prompt:
    """One prompt. `index`: its place in the input; `given`: its record, {"id"} if it has one and {"input"}; `ids`: its tokens.

    `asked`: what it says itself of its answer; `keep`: of arrays, where each token lies among the `width` positions of its row.
    `goes_on`: its text goes on with that of its answer. `error`: why it cannot be answered; then it has no tokens.
    """

    index: int
    origin: str
    given: dict[str, Any]
    ids: list[int] = field(default_factory=list, repr=False)
    asked: Mapping[str, Any] = field(default_factory=dict)
    keep: np.ndarray | None = None
    width: int = 0
    goes_on: bool = False
    error: str | None = None


class Prompter:
    """Turns texts and talks into tokens, as the model's files say."""

    def __init__(self, spec: ModelSpec, files: Mapping[str, bytes]) -> None:
        """Raises ModelError when a file is damaged, InputError when the model has no tokenizer."""
        self.spec, self.tokens, self.template = spec, Tokens(files), ChatTemplate.of(files)

    def of_text(self, text: str, where: str) -> list[int]:
        """Return the tokens of a text that is to be continued. Raises InputError."""
        return checked_ids(self.spec, self.tokens.encode([text], where).ids, where)

    def of_messages(self, messages: Sequence[Mapping[str, Any]], where: str, asked: Mapping[str, Any] | None = None) -> list[int]:
        """Return the tokens of a talk up to where the model's answer begins; `asked`: what else its request says. Raises InputError."""
        if self.template is None:
            raise InputError(f"{where} has messages, the model has no chat template; give a prompt instead")
        choice = (asked or {}).get("tool_choice")
        if choice not in (None, "auto", "none"):
            raise InputError(f"{where} has tool_choice {shown(repr(choice), 60)}, which a service keeps to alone: start serve and ask it")
        try:
            options = checked_options(asked or {}) | ({"tools": None} if choice == "none" else {})
            text = self.template.text(checked_messages(messages), **options)
            effort = options["effort"]
            if effort != "none" and self.template.passes_over(effort, options["tools"]):  # a service says so beside the answer
                raise InputError(f"reasoning_effort is {effort}, which the model's chat template does not read; leave it out")
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        return checked_ids(self.spec, self.tokens.plain(text, where), where)


def checked_ids(spec: ModelSpec, ids: list[int], where: str) -> list[int]:
    """Return the tokens of a prompt. Raises InputError where there are none, or the model has no embedding for one."""
    size = spec.numbers("ids")
    if not ids:
        raise InputError(f"{where} has no tokens")
    if max(ids) >= size:
        raise InputError(f"{where}: tokenizer.json gives token id {max(ids)}, the model has only {size}")
    return ids


def read_prompts(
    spec: ModelSpec, files: Mapping[str, bytes], source: str | None, stdin: IO[Any] | None = None, chat: bool = False
) -> list[Prompt]:  # fmt: skip
    """Return the prompts in `source`, at least one; None stands for built-in ones. `chat`: texts are what a user says to the model.

    Raises InputError when nothing can be read.
    """
    if source is not None and source != "-" and Path(source).suffix.lower() == ".npz":
        check_there(Path(source))
        return array_prompts(spec, Path(source))
    prompter = Prompter(spec, files)
    if source is None:
        talks = prompter.template is not None and not prompter.template.needs_tools
        texts = enumerate(QUESTIONS if talks else BEGINNINGS)
        return [_prompt(prompter, place, f"built-in prompt {place + 1}", {"prompt": text}, talks) for place, text in texts]
    if source != "-":
        check_there(Path(source))
    name, suffix, content = read_text(source, stdin, ".txt")
    if suffix not in (".txt", ".jsonl"):
        raise InputError(f"input {source} is not supported; {TAKEN}")
    lines = lines_of(content, name)
    if not lines:
        raise InputError(f"{name} is empty; expected a prompt per line")
    found = []
    for place, (where, line) in enumerate(lines):
        given: dict[str, Any] = {"input": shown(line, SHOWN) or line}
        try:
            values = _object(line, where) if suffix == ".jsonl" else {"prompt": _text(line, where)}
            given = _named(values) | given
            found.append(_prompt(prompter, place, where, values, chat))
        except InputError as error:
            found.append(Prompt(place, where, given, error=str(error)))
    return found


def _text(line: str, where: str) -> str:
    wrong = bad_byte(line, where)
    if wrong or not line.strip():
        raise InputError(wrong or f"{where} is empty")
    return line


def _object(line: str, where: str) -> dict[str, Any]:
    """Return the object of a line, without what is null in it; a JSON string is a prompt. Raises InputError."""
    try:
        value = json_value(_text(line, where))
    except (ValueError, RecursionError) as error:
        raise InputError(no_json(where, error)) from None
    value = {"prompt": value} if isinstance(value, str) else value
    if not isinstance(value, dict):
        raise InputError(_no_prompt(where))
    return {name: one for name, one in value.items() if one is not None}


def _no_prompt(where: str) -> str:
    return f'{where} is no object with a "prompt" or "messages"'


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an object is called."""
    return {} if values.get(ID) is None else {"id": values[ID]}


def _prompt(prompter: Prompter, place: int, where: str, values: Mapping[str, Any], chat: bool) -> Prompt:
    """Return the prompt of an object. Raises InputError."""
    if "messages" in values:
        if other := next((key for key in FIELDS if key in values), None):
            raise InputError(f'{where} has both "messages" and "{other}", of which one is answered; leave the other out')
        ids = prompter.of_messages(values["messages"], where, values)
        return Prompt(place, where, _named(values) | {"input": values["messages"]}, ids, values)
    if not any(key in values for key in FIELDS):
        raise InputError(_no_prompt(where))
    text = next(values[key] for key in FIELDS if key in values)
    if not isinstance(text, str):
        raise InputError(f"{where} has {shown(repr(text), 60)} as prompt, expected a text")
    ids = prompter.of_messages([{"role": "user", "content": text}], where, values) if chat else prompter.of_text(text, where)
    return Prompt(place, where, _named(values) | {"input": text}, ids, values, goes_on=not chat)


def check_met(prompt: Prompt) -> None:
    """Raise InputError where a prompt asks for several answers, for more than its end, or for what is not to be had here."""
    asked = prompt.asked
    for name, plain in ALONE.items():
        if asked.get(name) not in (None, plain):
            raise InputError(f"{name} is {shown(repr(asked[name]), 60)}, but a line is gone on with once, at its end; leave that out")
    if (unmet := first_unmet(asked, TEXTS if prompt.goes_on else TALKS)) is not None:
        raise InputError(f"{unmet} is {shown(repr(asked[unmet]), 60)}, which is not supported here; leave it out")


def array_prompts(spec: ModelSpec, path: Path) -> list[Prompt]:
    """Return a prompt per row of input_ids [prompts, positions] in a .npz file. Raises InputError."""
    found = read_npz(path, ("input_ids", "attention_mask", "position_ids"))
    if "input_ids" not in found:
        raise InputError(f"{path} has no input_ids, only {', '.join(found)}")
    ids = found["input_ids"]
    mask = found.get("attention_mask", np.ones_like(ids))
    for name, array, kinds in (("input_ids", ids, "iu"), ("attention_mask", mask, "iub")):
        if array.dtype.kind not in kinds or array.ndim != 2 or array.shape != ids.shape or not array.size:
            shape = "[prompts, positions]" if name == "input_ids" else str(list(ids.shape))
            raise InputError(f"{path}: {name} is {array.dtype} of shape {list(array.shape)}, expected integers of shape {shape}")
    if not np.isin(mask, (0, 1)).all():
        raise InputError(f"{path}: attention_mask holds numbers other than 0 and 1")
    check_positions(path, found.get("position_ids"), np.cumsum(mask, axis=1) - 1, mask)
    return [_row(spec, place, f"array {place + 1} of {path.name}", *both) for place, both in enumerate(zip(ids, mask))]


def _row(spec: ModelSpec, place: int, where: str, ids: np.ndarray, mask: np.ndarray) -> Prompt:
    keep = np.flatnonzero(mask)
    kept, size = ids[keep], spec.numbers("ids")
    made = Prompt(place, where, {"input": where}, kept.tolist(), keep=keep, width=len(ids))
    if not len(keep):
        return replace(made, ids=[], error=f"{where}: attention_mask leaves no position")
    if keep[-1] - keep[0] >= len(keep) and any(layer.attention.window is not None for layer in spec.each()):
        why = "this model's layers look back over a number of positions, those that are left out among them"
        return replace(made, ids=[], error=f"{where}: attention_mask leaves out positions between others; {why}")
    if kept.min() < 0 or kept.max() >= size:
        odd = int(kept.min() if kept.min() < 0 else kept.max())
        return replace(made, ids=[], error=f"{where}: input_ids holds {odd}, the model takes 0 to {size - 1}")
    return made


def check_room(prompts: Sequence[Prompt], positions: int, most: int) -> list[Prompt]:
    """Return the prompts, those with an error that leave no room for an answer among `positions`, of which the model takes `most`."""
    found, mend = [], "shorten it" if positions >= most else f"shorten it, or give a larger --context, up to {most}"
    for one in prompts:
        if len(one.ids) >= positions:
            said = f"{one.origin} has {counted(len(one.ids), 'tokens')}, there is room for {positions} with its answer; {mend}"
            one = replace(one, ids=[], error=said)
        found.append(one)
    return found
