"""Guesses of the next tokens from what the text has said before: texts that quote or repeat their prompt grow by several tokens a step.

A guess is the tokens that stood behind the last place where the newest ones stood. How long it is follows from how far the ones before
came true. Guessing is given up while it has cost more than COSTS of the time, so that a text which repeats nothing is hardly slower.
Knows tokens and seconds; does not know how a guess is checked. Source: Saxena, Prompt Lookup Decoding, 2023.
"""

from collections.abc import Sequence

KEYS = (3, 2)  # tokens that have to be as they were before; the longer ones are looked for first
LENGTHS = (1, 3, 7, 15)  # of guesses: few, as ranks get ready for each
COSTS = 0.02  # of the time that guesses may have cost in all
SURE = 2  # steps of one token that are timed before the first guess
SLOW = 0.2  # weight of the newest step in the mean


class Lookup:
    """What one text has said, and whether guessing pays."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self.seen: dict[tuple[int, ...], int] = {}  # where that stood last which follows some tokens
        self.at = 1  # of LENGTHS
        self.step_seconds, self.steps = 0.0, 0  # of steps of one token
        self.seconds = self.lost = 0.0  # in all, and by guesses; below 0: they gained
        self.timed: set[int] = set()  # lengths that ranks are ready for
        self.guessed = self.true = 0
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Note the next token of the text."""
        end = len(self.tokens)
        for size in KEYS:
            if end >= size:  # not before: what the newest tokens themselves are followed by is not known yet
                self.seen[tuple(self.tokens[end - size : end])] = end
        self.tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """Return what may come next, at most `most` tokens; nothing where nobody knows or guessing does not pay."""
        if self.steps <= SURE or self.lost > COSTS * self.seconds:
            return []
        for size in KEYS:
            place = self.seen.get(tuple(self.tokens[-size:])) if len(self.tokens) >= size else None
            if place is not None:
                there = self.tokens[place : place + min(most, LENGTHS[self.at])]
                return there[: max((length for length in LENGTHS if length <= len(there)), default=0)]
        return []

    def grew(self, guessed: int, true: int, seconds: float) -> None:
        """Hear how many of how many guessed tokens were right, in a step of so many seconds; none guessed: of one token."""
        self.seconds += seconds
        if not guessed:
            self.steps += 1
            if self.steps > 1:  # ranks get ready in the first one
                self.step_seconds += (seconds - self.step_seconds) * (1.0 if self.steps == 2 else SLOW)
            return
        self.guessed, self.true = self.guessed + guessed, self.true + true
        if guessed not in self.timed:  # a step takes no longer than its rows one by one: what is over was for getting ready
            seconds = min(seconds, (1 + guessed) * self.step_seconds)
        self.timed.add(guessed)
        self.lost += seconds - (1 + true) * self.step_seconds
        if true == guessed:
            self.at = min(self.at + 1, len(LENGTHS) - 1)
        elif 2 * true < guessed:
            self.at = max(self.at - 1, 0)
