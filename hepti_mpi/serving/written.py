"""Answers that are texts, as records for people and programs and as arrays. Knows what a finished answer is; knows no rank."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hepti_mpi.documents import whole_file
from hepti_mpi.errors import InputError
from hepti_mpi.models.inputs.prompts import Prompt
from hepti_mpi.serving.generation import Answer


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
    return prompt.given | found


def write_arrays(path: Path, prompts: Sequence[Prompt], answers: Sequence[Answer | None], logits: Mapping[int, np.ndarray]) -> None:
    """Write `tokens` [prompts, most tokens asked for], -1 behind the end, and, where there are any, `logits` [prompts, positions, words], 0
    where there is no token; "errors" where there are any. Raises InputError."""
    most = max((answer.sampling.max_tokens for answer in answers if answer is not None), default=0)
    arrays = {"tokens": np.full((len(prompts), most), -1, np.int64)}
    for row, answer in zip(arrays["tokens"], answers):
        if answer is not None:
            row[: len(answer.tokens)] = answer.tokens
    if logits:
        words = next(iter(logits.values())).shape[1]
        width = max(max(one.width, len(one.ids)) for one in prompts)
        arrays["logits"] = np.zeros((len(prompts), width, words), np.float32)
        for target, prompt in zip(arrays["logits"], prompts):
            if prompt.index in logits:
                target[np.arange(len(prompt.ids)) if prompt.keep is None else prompt.keep] = logits[prompt.index]
    if any(prompt.error for prompt in prompts):
        arrays["errors"] = np.array([prompt.error or "" for prompt in prompts])
    try:
        with whole_file(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"output {path} cannot be written: {error.strerror or error}") from None
