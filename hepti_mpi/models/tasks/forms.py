"""Answers that keep to a JSON schema: which tokens may come next. The one place that knows llguidance, an extra that need not be there.

Knows tokenizer.json, schemas and token ids; knows no logits (sampling.py), no slot and no rank. A form is of one answer and holds what has
been said of it; the tokenizer is read once, when the first is asked for.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from hepti_mpi.errors import InputError
from hepti_mpi.models.inputs.tokens import guarded
from hepti_mpi.models.numerics import Array
from hepti_mpi.models.untrusted import shown

SPACES = r"[\x20\x0A\x0D\x09]{1,16}"  # between what a schema asks for: as people write, but no model may go on with it for ever
LARGEST = 1 << 16  # characters of a schema: a larger one takes seconds to read, while other answers wait
REFUSED = "the schema of the answer cannot be kept to"


class NoForms(InputError):
    """The library that reads schemas is not installed."""


class Unformed(InputError):
    """An answer that cannot go on as its form wants it; others can."""


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        how = "install it, in the checkout, with: pip install '.[schema]'"
        raise NoForms(f"llguidance is not installed, which an answer by a schema needs; {how}") from None
    return llguidance


def _grammar(schema: Mapping[str, Any]) -> str:
    make, said = _library().LLMatcher.grammar_from_json_schema, str(guarded(lambda: json.dumps(schema), InputError(REFUSED)))
    if len(said) > LARGEST:
        raise InputError(f"{REFUSED}: it has {len(said)} characters, the limit is {LARGEST}")
    return str(guarded(lambda: make(said, defaults={"whitespace_pattern": SPACES}), InputError(REFUSED)))


def check(schema: Mapping[str, Any] | None) -> None:
    """Refuse a schema that no answer can be held to, before anything is computed; None: there is none. Raises InputError, NoForms."""
    if schema is not None:
        grammar, look = _grammar(schema), _library().LLMatcher.validate_grammar_with_warnings
        wrong, said = guarded(lambda: look(grammar), InputError(REFUSED))
        if wrong:
            raise InputError(f"{REFUSED}: {shown(said[0])}")


class Forms:
    """Makes the forms of answers, for one model."""

    def __init__(self, files: Mapping[str, bytes], words: int, ends: Iterable[int]) -> None:
        """`words`: token ids that the model has; `ends`: tokens behind which an answer ends."""
        self.files, self.words, self.ends = files, words, sorted(ends)

    @cached_property
    def _tokenizer(self) -> Any:
        if "tokenizer.json" not in self.files:
            raise InputError("an answer by a schema needs a tokenizer, which the model lacks")
        if not self.ends:
            raise InputError("an answer by a schema needs a token that ends it, and the model names none")
        make, broken = _library().LLTokenizer, InputError("no schema can be kept to with this model's tokenizer")
        return guarded(lambda: make(self.files["tokenizer.json"].decode(), n_vocab=self.words, eos_token=self.ends[0]), broken)

    def load(self) -> None:
        """Read the tokenizer, which takes a second or so the first time. Raises InputError."""
        _ = self._tokenizer

    def form(self, schema: Mapping[str, Any], made: Sequence[int] = ()) -> "Form":
        """Return the form of an answer that has the tokens `made` already. Raises InputError."""
        make, grammar, tokenizer = _library().LLMatcher, _grammar(schema), self._tokenizer
        found = Form(guarded(lambda: make(tokenizer, grammar, log_level=0), InputError(REFUSED)), self.ends)
        for token in made:
            found.add(token)
        return found


class Form:
    """What may come next in one answer."""

    def __init__(self, matcher: Any, ends: Sequence[int]) -> None:
        self._matcher, self._ends = matcher, ends

    def allowed(self) -> Array:
        """Return which tokens may come next, bool [words or more]: one that ends the answer where it is whole. Raises Unformed when
        none can be told."""
        bits = np.frombuffer(guarded(self._matcher.compute_bitmask, Unformed(REFUSED)), np.uint8)
        self._check()  # else the bits would be those of an end
        found = np.unpackbits(bits, bitorder="little").astype(bool)
        found[self._ends] = found[self._ends[0]]  # the library knows one
        return found

    def add(self, token: int) -> None:
        """Go on behind a token of the answer. Raises Unformed when it may not stand there."""
        if token not in self._ends:
            guarded(lambda: self._matcher.consume_token(token), Unformed(REFUSED))
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            said = self._matcher.get_error().strip().splitlines()  # behind the first line are the library's own affairs
            why = said[0] if said else "no reason given"
            raise Unformed(f"{REFUSED}: {'nothing fulfils it' if why.startswith('NoExtension') else shown(why)}")
