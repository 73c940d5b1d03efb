"""From what a client gives, in memory, to requests of the model, and from results to what is answered. Knows the model's tokenizer and
heads; knows neither engine nor protocol, and no weight.
"""

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from hepti_mpi.errors import HeptiError, InputError
from hepti_mpi.models.inputs.chat import CALL, LIST, PLAIN, WITH_TOOLS, ChatTemplate, Message, checked_messages
from hepti_mpi.models.inputs.chat import NAME as TEMPLATE
from hepti_mpi.models.inputs.preprocessors import NAME, read_preprocessor
from hepti_mpi.models.inputs.prompts import checked_ids
from hepti_mpi.models.inputs.requests import Request, image_request, many_text_requests, text_tokens, token_request
from hepti_mpi.models.inputs.text import Item
from hepti_mpi.models.inputs.tokens import Tokens
from hepti_mpi.models.numerics import sigmoid
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.models.tasks.heads import Result, answers, fault
from hepti_mpi.wording import counted

Text = str | tuple[str, str]  # or a pair
GIVES = {  # what the heads make, for sentences
    "sentence": "embeddings", "sequence-classes": "classes", "image-classes": "classes of pictures", "token-classes": "classes of tokens",
    "masked-words": "words for masks", "pooler": "pooler outputs", "none": "hidden states",
    "next-token": "text",
}  # fmt: skip


class NoText(InputError):
    """The model writes no text."""


class Model:
    """What is known of a model beside its weights: how it is asked and what its answers mean. Usable by several threads."""

    def __init__(self, spec: ModelSpec, files: Mapping[str, bytes], source_hash: str) -> None:
        self.spec, self.files, self.source_hash = spec, files, source_hash
        self.lock = threading.Lock()

    @property
    def takes_pictures(self) -> bool:
        return self.spec.embedding == "patches"

    @property
    def gives(self) -> str:
        """What it answers with, in words."""
        return GIVES.get(self.spec.head, self.spec.head)

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest text that it takes."""
        return int(self.spec.options.get("max_tokens") or self.spec.positions)

    @cached_property
    def _tokens(self) -> Tokens:
        return text_tokens(self.spec, self.files)

    @property
    def tokens(self) -> Tokens:
        with self.lock:
            return self._tokens

    def warm_up(self) -> None:
        """Read what the first request would have to wait for."""
        with suppress(HeptiError):  # whoever asks hears of it
            _ = self._preprocessor if self.takes_pictures else self.tokens

    @cached_property
    def template(self) -> ChatTemplate:
        """What makes one text of a talk. Raises InputError for a model that has none."""
        found = ChatTemplate.of(self.files)
        if found is None:
            raise InputError(f"model {self.spec.name} has no chat template: give a prompt, not messages (over HTTP to /v1/completions)")
        return found

    def _forms_calls(self, *marks: str) -> bool:
        """Tell whether its template for talks with tools has one of these marks."""
        return any(mark.encode() in self.files.get(WITH_TOOLS, self.files.get(TEMPLATE, b"")) for mark in marks)

    @property
    def calls_tools(self) -> bool:
        """Whether its template has a form for calls of tools that is known."""
        return self._forms_calls(CALL[0], *PLAIN)

    @property
    def calls_plainly(self) -> bool:
        """Whether an answer that calls tools is nothing but the calls."""
        return self._forms_calls(*PLAIN) and not self._forms_calls(CALL[0])

    @property
    def call_form(self) -> tuple[str, str, bool]:
        """How its answer begins where that is a call of a tool, how it names the arguments, and whether it is a list of calls; where its
        template has no form that is known, it is nothing but a call."""
        if self._forms_calls(CALL[0]):
            return f"{CALL[0]}\n", "arguments", False
        if self._forms_calls(LIST):
            return LIST, "arguments", True
        return "", "parameters" if self.calls_plainly else "arguments", False

    @cached_property
    def _preprocessor(self) -> Any:
        from hepti_mpi.models.inputs.images import modes

        channels = self.spec.options["channels"]
        modes(channels)
        steps = read_preprocessor(self.files, channels)
        if steps is None:
            raise InputError(f"the model has no {NAME}, so it takes no pictures")
        return steps

    # requests

    def texts(self, texts: Sequence[Text]) -> list[Request]:
        """Return the requests of texts or pairs of texts. Raises InputError for the first that the model does not take."""
        if self.takes_pictures:
            raise InputError(f"model {self.spec.name} takes pictures, not texts")
        return many_text_requests(self.spec, self.tokens, [_item(index, text) for index, text in enumerate(texts)])

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The special tokens that its tokenizer puts before a text and behind it."""
        try:
            made = self.tokens.encode(["a"], "a text")
        except HeptiError:  # it has none, and is asked with token ids alone
            return [], []
        own = [place for place, added in enumerate(made.added) if not added]
        return (made.ids[: own[0]], made.ids[own[-1] + 1 :]) if own else ([], [])

    def ids(self, lists: Sequence[Sequence[int]]) -> list[Request]:
        """Return the requests of token ids of this model, taken as they are: with the special tokens that are among them. Raises
        InputError for the first that the model does not take: of another tokenizer they would be another text."""
        if self.takes_pictures:
            raise InputError(f"model {self.spec.name} takes pictures, not tokens")
        requests, words = [], self.spec.numbers("ids")
        most = self.most_tokens
        for index, own in enumerate(lists):
            if not own or len(own) > most:
                raise InputError(f"input {index + 1} has {counted(len(own), 'tokens')}, the model takes 1 to {most}")
            if not 0 <= min(own) <= max(own) < words:
                why = "they are of another tokenizer: ask with texts"
                raise InputError(f"input {index + 1} has token ids from {min(own)} to {max(own)}, the model has {words}; {why}")
            before, behind = self._around
            if list(own[: len(before)]) != before or list(own[len(own) - len(behind) :]) != behind:
                why = "they are of another tokenizer; ask with texts (LangChain: check_embedding_ctx_length=False)"
                raise InputError(f"input {index + 1} has token ids without {before + behind}, the model's own around each text: {why}")
            array = np.array(own, np.int64)
            requests.append(token_request(self.spec, index, f"input {index + 1}", (array, np.zeros_like(array)), np.arange(len(own))))
        return requests

    def prompt(self, asked: "str | Sequence[Message]") -> list[int]:
        """Return the tokens of a text that is to be gone on with, or of a talk. Raises InputError."""
        self.check_writes()
        if isinstance(asked, str):
            return checked_ids(self.spec, self.tokens.encode([asked], "the prompt").ids, "the prompt")
        return checked_ids(self.spec, self.tokens.plain(self.template.text(checked_messages(list(asked))), "the talk"), "the talk")

    def pictures(self, contents: Sequence[bytes]) -> list[Request]:
        """Return the requests of pictures, each as the bytes of its file. Raises InputError for the first that the model does not take."""
        if not self.takes_pictures:
            raise InputError(f"model {self.spec.name} takes texts, not pictures")
        from hepti_mpi.models.inputs.images import picture  # Pillow, which texts do without

        channels, steps = self.spec.options["channels"], self._preprocessor
        names = [f"input {index + 1}" for index in range(len(contents))]
        opened = [partial(picture, content, name, channels) for content, name in zip(contents, names)]
        return [image_request(self.spec, steps, name, image, index) for index, (name, image) in enumerate(zip(names, opened))]

    # answers

    def records(self, requests: Sequence[Request], results: Sequence[Result], raw: bool = False) -> list[dict[str, Any]]:
        """Return what `run` answers with (models.tasks.heads.answers); `raw`: with scores as the model gives them, as in `scores`.

        Raises InputError for the first result that is none.
        """
        self._sound(requests, results)
        spec = replace(self.spec, options={**self.spec.options, "scores": "none"}) if raw else self.spec
        return answers(spec, self.files, requests, results)

    def embeddings(self, requests: Sequence[Request], results: Sequence[Result]) -> np.ndarray:
        """Return float32 [requests, size]. Raises InputError for the first result that is none."""
        self._sound(requests, results)
        return np.array([result["embedding"] for result in results], np.float32)

    def scores(self, requests: Sequence[Request], results: Sequence[Result], raw: bool = False) -> np.ndarray:
        """Return how well each text of a pair goes with the other, float32 [requests]; `raw`: as the model gives it, before the function
        that it names for that. Raises InputError for the first result that is none."""
        self._sound(requests, results)
        logits = np.array([result["logits"][0] for result in results], np.float32)  # [requests]
        kind = self.spec.options.get("scores", "softmax")
        if raw or kind == "none":
            return logits
        return np.asarray(np.tanh(logits) if kind == "tanh" else sigmoid(logits))  # a softmax of one label would say nothing

    def _sound(self, requests: Sequence[Request], results: Sequence[Result]) -> None:
        for request, result in zip(requests, results):
            why = fault(self.spec, request, result) if result else f"{request.origin} has no answer"
            if why is not None:
                raise InputError(why)

    # what it is for

    def check_writes(self) -> None:
        """Raise NoText for a model that writes no text."""
        if not self.spec.generates:
            raise NoText(f"model {self.spec.name} gives {self.gives}: it writes no text; slice one that does")

    def check_embeds(self) -> None:
        """Raise InputError for a model that makes no embeddings."""
        if self.spec.head != "sentence":
            raise InputError(f"model {self.spec.name} gives {self.gives}, not embeddings; slice a sentence-transformers folder for those")

    def check_ranks(self) -> None:
        """Raise InputError for a model that is no reranker: one that gives a pair of texts one score."""
        if self.spec.head != "sequence-classes" or len(self.spec.labels) != 1:
            lacks = "not one score for a pair of texts: it is no reranker; slice a cross-encoder for that"
            raise InputError(f"model {self.spec.name} gives {self.gives}, {lacks}")

    def check_classifies(self) -> None:
        """Raise InputError for a model that gives no classes."""
        if self.spec.head not in ("sequence-classes", "image-classes", "token-classes"):
            raise InputError(f"model {self.spec.name} gives {self.gives}, not classes; slice a classifier for those")


def _item(index: int, text: Text) -> Item:
    if isinstance(text, str):
        return Item(f"input {index + 1}", text)
    return Item(f"input {index + 1}", text[0], text[1])
