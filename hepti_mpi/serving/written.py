"""Texts of a run: what tells one run from another, and what is kept of answers while they grow and when they have ended.

Knows prompts and answers; knows no rank, and not where what is kept goes (serving.sink).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.models.inputs.prompts import Prompt
from hepti_mpi.models.tasks.sampling import Sampling
from hepti_mpi.serving.generation import Answer, Event
from hepti_mpi.serving.journal import hash_of, head_of
from hepti_mpi.serving.outputs import Finished, encoded
from hepti_mpi.serving.streams import told
from hepti_mpi.weights.store import Store


@dataclass
class Written:
    """The event that texts grew in a step of `seconds` (serving.sink.Event). `requests`: prompts whose answers have ended, of which `kept`
    is there; `said`: what was added to texts, by places; `strict`: a text that cannot be written ends the run; `rows_left`: tokens that
    all are thought to get yet."""

    seconds: float
    requests: list[Prompt] = field(default_factory=list)
    kept: list[Finished] = field(default_factory=list)
    grown: list[list[Any]] = field(default_factory=list)
    said: list[tuple[int, str]] = field(default_factory=list)
    strict: bool = False
    rows_left: int = 0

    @property
    def rows(self) -> int:
        return len(self.grown)

    @property
    def finished(self) -> list[Finished]:
        """What is kept of those that have ended. Raises InputError when one is no answer, if strict."""
        wrong = next((one["error"] for one in self.kept if "error" in one), None)
        if self.strict and wrong is not None:
            raise InputError(wrong)
        return self.kept

    @property
    def places(self) -> list[int]:
        """Where those that have ended stand in the input."""
        return [prompt.index for prompt in self.requests]

    def add(self, prompt: Prompt, event: Event) -> None:
        """Take in what happened to the answer to a prompt."""
        if event.chosen is not None:
            self.grown.append([prompt.index, event.chosen.told()])
        self.said.append((prompt.index, event.text))


class Ahead:
    """How many tokens `answers` are thought to get yet: as many as those that have ended got on average, before that as many as they
    may."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.growing = len(answers)
        self.tokens = sum(len(one.tokens) for one in answers)  # of those that grow
        self.most = sum(one.sampling.max_tokens for one in answers) / max(1, len(answers))
        self.ended, self.tokens_ended = 0, 0

    def left(self, events: Sequence[Event]) -> int:
        """Return it behind some events."""
        for event in events:
            self.tokens += event.chosen is not None
            if event.finish is not None:
                self.growing, self.tokens = self.growing - 1, self.tokens - len(event.answer.tokens)
                self.ended, self.tokens_ended = self.ended + 1, self.tokens_ended + len(event.answer.tokens)
        usual = self.tokens_ended / self.ended if self.ended else self.most
        return max(self.growing, round(self.growing * usual) - self.tokens)


def texts_head(
    store: Store, prompts: Sequence[Prompt], sampling: Sampling, cache: str, rows: int, tolerance: float = 0.0
) -> dict[str, Any]:  # fmt: skip
    """Return the head of a run (serving.journal) whose texts are kept in a `cache` of that format, and have so many rows at most;
    `tolerance`: by how much sums may change on their way."""
    said = told(sampling)
    asked = [[prompt.given, prompt.ids, {key: prompt.asked[key] for key in sorted(prompt.asked) if key in said}] for prompt in prompts]
    return head_of(store.spec.name, store.source_hash, hash_of(asked), texts=said, cache_format=cache, context=rows, tolerance=tolerance)


def record(prompt: Prompt, answer: Answer | None) -> dict[str, Any]:
    """Return the record of an answer: {"input", "text", "tokens", "finish_reason", "prompt_tokens", "completion_tokens"}, or its error."""
    if answer is None:
        return prompt.given | {"error": prompt.error}
    found: dict[str, Any] = {} if answer.streamed is None else {"text": answer.text}
    found |= {"tokens": answer.tokens, "finish_reason": answer.finish_reason}
    found |= {"prompt_tokens": len(answer.prompt), "completion_tokens": len(answer.tokens)}
    if answer.sampling.logprobs is not None:
        found["logprobs"] = [
            {"token": one.token, "logprob": one.logprob, "top": [{"token": token, "logprob": value} for token, value in one.top]}
            for one in answer.chosen
        ]
    return prompt.given | found | ({} if answer.error is None else {"error": answer.error})


def finished_text(prompt: Prompt, answer: Answer | None, most: int, logits: Mapping[int, np.ndarray]) -> Finished:
    """Return what is kept of an answer that has ended, None where the prompt has an error; `most`: the tokens it was asked for."""
    keep = np.arange(len(prompt.ids)) if prompt.keep is None else prompt.keep
    row = {"width": max(prompt.width, len(keep)), "keep": encoded(keep), "most": most}
    why = prompt.error if answer is None else answer.error
    found: Finished = {"answer": record(prompt, answer), "row": row} | ({} if why is None else {"error": why})
    return found | ({"logits": logits[prompt.index]} if prompt.index in logits else {})
