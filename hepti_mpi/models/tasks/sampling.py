"""From logits to the next token: what is asked of it, and the choice. Pure: the same logits and the same seed give the same tokens.

Knows numbers and token ids; knows no text, no schema, no model, no rank and no clock. Penalties come first, then
what the form of an answer leaves, then temperature, top-k, top-p and min-p, in the order of transformers.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.models.numerics import Array
from hepti_mpi.models.tasks.forms import Form, Unformed
from hepti_mpi.models.untrusted import is_number, shown

CANDIDATES = 64  # largest logits of each part of the vocabulary that are enough for greedy choice and for any top_k up to it
MOST_LOGPROBS = 20
FIRST = 512  # likeliest tokens that are nearly always enough to draw one
RANGES: dict[str, tuple[float, float]] = {
    "max_tokens": (1, 1 << 24), "temperature": (0, 100), "top_k": (0, 1 << 24), "top_p": (0, 1), "min_p": (0, 1),
    "repetition_penalty": (0.01, 100), "presence_penalty": (-100, 100), "frequency_penalty": (-100, 100), "logprobs": (0, MOST_LOGPROBS),
}  # fmt: skip


@dataclass(frozen=True)
class Sampling:
    """What is asked of an answer.

    `temperature` 0: always the likeliest token. `top_k` 0, `top_p` 1 and `min_p` 0 leave all tokens. `seed` None: another answer each time.
    `repetition_penalty` None: as the model's files say, without a model 1.
    `stop`: texts before which the answer ends. `logprobs`: how many likeliest tokens are told for each, beside the chosen one's; None: not
    even that. `ignore_end`: go on behind the token that ends an answer, for measuring. `response_format`: None, or as OpenAI's: {"type":
    "json_object"}, or {"type": "json_schema", "json_schema": {"schema": ...}}.
    A `logit_bias` of -inf forbids a token.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    ignore_end: bool = False
    response_format: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Raises InputError for what is no number or out of range."""
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is None and name in ("logprobs", "repetition_penalty"):
                continue
            whole = name in ("max_tokens", "top_k", "logprobs")
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not least <= value <= most:
                raise InputError(f"{name} is {value!r:.60}, expected {'a whole number' if whole else 'a number'} from {least} to {most}")
        if self.top_p == 0:
            raise InputError("top_p is 0, which leaves no token; give temperature 0 for the likeliest")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise InputError(f"seed is {self.seed!r:.60}, expected a whole number")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise InputError("stop holds what is no text, or an empty one")
        for token, bias in self.logit_bias.items():
            if not isinstance(token, int) or token < 0 or not (is_number(bias) or bias == -math.inf):
                raise InputError(f"logit_bias has {token!r:.60}: {bias!r:.60}, expected token ids and numbers")
        if self.schema is not None and self.ignore_end:
            raise InputError("ignore_end goes on behind the end that a response_format has; leave one of them out")

    @property
    def schema(self) -> Mapping[str, Any] | None:
        """The JSON schema that the answer keeps to, None where it is any text. Raises InputError for a response_format that is none."""
        form = self.response_format
        kind = form.get("type") if isinstance(form, Mapping) else None
        if form is None or kind == "text":
            return None
        if kind == "json_object":
            return {"type": "object"}
        said = form.get("json_schema") if kind == "json_schema" else None
        if isinstance(said, Mapping) and isinstance(said.get("schema"), Mapping):
            found: Mapping[str, Any] = said["schema"]
            return found
        wanted = 'text, json_object, or json_schema with {"json_schema": {"schema": {...}}}'
        raise InputError(f"response_format is {shown(repr(form), 60)}, expected an object whose type is {wanted}")

    @property
    def needs_all(self) -> bool:
        """Whether the choice needs the logits of all tokens, not only the largest CANDIDATES of each part of the vocabulary."""
        plain = self.repetition_penalty in (None, 1) and not self.presence_penalty and not self.frequency_penalty and not self.logit_bias
        return not plain or self.schema is not None or (self.temperature > 0 and not 0 < self.top_k <= CANDIDATES)

    @property
    def candidates(self) -> int:
        """How many of the largest logits of each part of the vocabulary the choice needs; 0: all."""
        return 0 if self.needs_all else 1 if self.temperature == 0 and self.logprobs is None else CANDIDATES


@dataclass(frozen=True)
class Scores:
    """Logits of one place: of tokens `ids`, [n] each; `total`: the logarithm of the sum of exp of all logits."""

    ids: Array
    logits: Array
    total: float

    @classmethod
    def of_all(cls, logits: Array) -> "Scores":
        """Return the scores of all tokens of a vocabulary."""
        return cls(np.arange(len(logits)), logits, log_sum(logits))


def log_sum(values: Array) -> float:
    """Return the logarithm of the sum of exp, without overflow; -inf of nothing."""
    if not len(values):
        return -math.inf
    top = float(values.max())
    return top if math.isinf(top) else top + math.log(float(np.exp(values.astype(np.float64) - top).sum()))


def largest(ids: Array, logits: Array, count: int) -> tuple[Array, Array]:
    """Return the `count` largest logits and their ids; of equal ones those with the lower ids, so that every plan chooses alike."""
    if count < len(logits):
        border = np.partition(logits, len(logits) - count)[len(logits) - count]
        kept = np.flatnonzero(logits >= border)
        ids, logits = ids[kept], logits[kept]
    order = np.lexsort((ids, -logits))[:count]
    return ids[order], logits[order]


@dataclass(frozen=True)
class Chosen:
    """A token and, where they are asked for, its log-probability and those of the likeliest tokens."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()

    def told(self) -> list[Any]:
        """Return it as JSON has it: [token], or [token, log-probability, [[token, log-probability], ...]]."""
        return [self.token] if self.logprob is None else [self.token, self.logprob, [list(one) for one in self.top]]

    @classmethod
    def of(cls, told: Any) -> "Chosen":
        """Return what `told` says. Raises TypeError or ValueError when it is not one."""
        token, logprob, top = (*told, None, ())[:3] if len(told) == 1 else told
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise ValueError("no token")
        return cls(token, None if logprob is None else float(logprob), tuple((int(one), float(value)) for one, value in top))


class Sampler:
    """Chooses the tokens of one answer, one after the other."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int], made: Sequence[int] = (), form: Form | None = None) -> None:
        """`made`: tokens of the answer that there are already, at the end of `prompt`: it goes on as if all had been chosen here. `form`:
        what the answer keeps to, behind them."""
        self.sampling, self.form = sampling, form
        self.seen, self.made = set(prompt), Counter(made)
        self.random = np.random.Generator(np.random.PCG64(None if sampling.seed is None else sampling.seed % (1 << 64)))
        if sampling.temperature > 0:
            self.random.random(len(made))  # one for each token

    def choose(self, scores: Scores) -> Chosen:
        """Return the next token; `scores` must be of all tokens where `sampling.needs_all`.

        Raises InputError for logits that are not finite, Unformed where its form leaves no token.
        """
        asked = self.sampling
        ids, logits = self._left(scores.ids, self._changed(scores))
        if not np.isfinite(logits.max()):
            raise InputError("the model gave logits that are not finite")
        token = int(largest(ids, logits, 1)[0][0]) if asked.temperature == 0 else self._drawn(ids, logits)
        self.made[token] += 1
        self.seen.add(token)
        if self.form is not None:
            self.form.add(token)
        if asked.logprobs is None:
            return Chosen(token)
        own = float(scores.logits[np.flatnonzero(scores.ids == token)[0]]) - scores.total
        found = largest(scores.ids, scores.logits, asked.logprobs) if asked.logprobs else ((), ())
        return Chosen(token, own, tuple((int(one), float(value) - scores.total) for one, value in zip(*found)))

    def _left(self, ids: Array, logits: Array) -> tuple[Array, Array]:
        """Return the tokens that the form leaves, and their logits."""
        if self.form is None:
            return ids, logits
        kept = np.flatnonzero(self.form.allowed()[ids])
        kept = kept[logits[kept] != -np.inf]
        if not len(kept):
            raise Unformed("no token is left that keeps to the response_format; leave out logit_bias or take another schema")
        return ids[kept], logits[kept]

    def _changed(self, scores: Scores) -> Array:
        """Return the logits after penalties. Source: Keskar et al., CTRL, arXiv:1909.05858, section 4.1; OpenAI's API reference."""
        asked, logits = self.sampling, scores.logits
        if asked.repetition_penalty in (None, 1) and not (asked.presence_penalty or asked.frequency_penalty or asked.logit_bias):
            return logits
        logits = logits.astype(np.float64)
        seen = np.array(sorted(one for one in self.seen if one < len(logits)), np.int64)
        penalty = 1.0 if asked.repetition_penalty is None else asked.repetition_penalty
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        for token, count in self.made.items():
            logits[token] -= asked.presence_penalty + asked.frequency_penalty * count
        for token, bias in asked.logit_bias.items():
            if token < len(logits):
                logits[token] += bias
        return logits

    @np.errstate(over="ignore")  # a share that is too small for a number is 0
    def _drawn(self, ids: Array, logits: Array) -> int:
        asked, chance = self.sampling, float(self.random.random())
        if asked.top_k:
            ids, logits = largest(ids, logits, asked.top_k)
        top = float(logits.max())
        total = float(np.exp((logits.astype(np.float64) - top) / asked.temperature).sum())  # no overflow
        for count in (FIRST, len(logits)):  # to put a whole vocabulary in order takes longer than a step may
            first, some = largest(ids, logits, count)  # the likeliest first
            shares = np.exp((some.astype(np.float64) - top) / asked.temperature) / total
            place = self._place(shares, chance, count >= len(logits))
            if place is not None:
                return int(first[place])
        raise AssertionError("all tokens together have a place for every chance")

    def _place(self, shares: Array, chance: float, whole: bool) -> int | None:
        """Return which of the likeliest tokens is drawn, None where that depends on others; `whole`: there are none."""
        asked, sums, kept = self.sampling, np.cumsum(shares), len(shares)
        if asked.top_p < 1:
            kept = min(kept, int(np.searchsorted(sums, asked.top_p)) + 1)
            whole = whole or float(sums[-1]) >= asked.top_p
        if asked.min_p > 0:
            likely = max(1, int((shares >= asked.min_p * shares[0]).sum()))
            whole, kept = whole or likely < len(shares), min(kept, likely)
        cut = asked.top_p < 1 or asked.min_p > 0
        if not whole and (cut or chance >= sums[-1]):
            return None
        goal = chance * float(sums[kept - 1]) if cut or whole else chance
        return min(int(np.searchsorted(sums[:kept], goal, side="right")), kept - 1)


def sampling_of(asked: Mapping[str, Any], default: Sampling) -> Sampling:
    """Return `default` with what a request asks for itself; null is the same as left out. Raises InputError."""
    known = {name: asked[name] for name in Sampling.__dataclass_fields__ if asked.get(name) is not None}
    newer = asked.get("max_completion_tokens")  # OpenAI's name
    if newer is not None and known.setdefault("max_tokens", newer) != newer:
        given = f"{known['max_tokens']!r:.60} and {newer!r:.60}"
        raise InputError(f"max_tokens and max_completion_tokens are both given, {given}: leave one out")
    if isinstance(known.get("stop"), str):
        known["stop"] = (known["stop"],) if known["stop"] else ()
    elif "stop" in known:
        if not isinstance(known["stop"], list | tuple):
            raise InputError(f"stop is {known['stop']!r:.60}, expected a text or a list of texts")
        known["stop"] = tuple(known["stop"])
    if "logit_bias" in known:
        try:
            known["logit_bias"] = {int(token): bias for token, bias in known["logit_bias"].items()}
        except (AttributeError, TypeError, ValueError):
            raise InputError(f"logit_bias is {known['logit_bias']!r:.60}, expected an object of token ids and numbers") from None
    return Sampling(**{name: getattr(default, name) for name in Sampling.__dataclass_fields__} | known)


def check_biases(biases: Mapping[int, float], words: int) -> None:
    """Raise InputError for a logit_bias of a token that a model of so many `words` lacks: it is of another tokenizer."""
    if not all(0 <= token < words for token in biases):
        raise InputError(f"logit_bias has token ids that are not of this model, which has {words}")
