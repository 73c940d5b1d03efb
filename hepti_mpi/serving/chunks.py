"""What of prompts need not be taken in again: chunks that a slot still has, and those that prompts begin with alike. Pure: knows tokens;
knows no answer and no step.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CHUNK = 128  # rows of a prompt that are taken in at once: a longer one would make the answers under way wait


@dataclass(frozen=True)
class Kept:
    """What a slot still has: rows of `tokens`, of which the first `read` were taken in as a prompt; `begun`, `whole`: as of
    generation.Running."""

    tokens: list[int]
    read: int
    begun: int
    whole: int

    def reused(self, rows: Sequence[int]) -> tuple[int, int]:
        """Return how many of `rows` need not be taken in again, and from which row on chunks are counted then.

        A talk that goes on behind an answer has all that was said. Else the same chunks are taken in as before: one row alone is computed
        by another kernel than as one of many, and a prompt would have another answer when it is asked again, where two tokens are
        about as likely.
        """
        common = alike(self.tokens, rows)
        if common > self.read:
            return common, common
        begun = self.begun if common >= self.begun else 0
        known = common if begun == self.begun else min(common, self.whole)
        return begun + (known - begun) // CHUNK * CHUNK, begun


def alike(known: Sequence[int], prompt: Sequence[int]) -> int:
    """Return how many rows of `prompt` are known; never all of them, since the last one has to be scored."""
    most = min(len(known), len(prompt) - 1)
    return next((place for place in range(most) if known[place] != prompt[place]), max(most, 0))


def rows_taken_in(prompts: Iterable[Sequence[int]]) -> int:
    """Return how many rows are computed of prompts that are answered beside each other: chunks that they begin with alike once.

    >>> rows_taken_in([range(300), range(300), range(260), range(1, 301)])
    604
    """
    known, found = dict[tuple[int, tuple[int, ...]], int](), 0  # a chunk behind what is before it
    for prompt in prompts:
        before = 0
        for first in range(0, len(prompt), CHUNK):
            chunk = before, tuple(prompt[first : first + CHUNK])
            if chunk not in known:
                known[chunk], found = len(known) + 1, found + len(chunk[1])
            before = known[chunk]
    return found
