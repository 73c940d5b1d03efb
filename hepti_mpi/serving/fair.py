"""Who is next: requests of many clients that wait, and how many may. Pure: knows rows and names of clients; no clock, no engine.

The client that has had the fewest rows while it waited is next, and of what it asks that which has had the fewest. So one that asks for
thousands of texts delays nobody else, nor its own short questions. With what is next goes first what is about as long, in the same order:
attention pays for the longest of a batch.
"""

import heapq
import itertools
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Generic, TypeVar

ALIKE = 0.9  # of the longer one that the shorter of two may have for them to be about as long
ENOUGH = 7 / 8  # of the rows that a batch may have: then it takes nothing that is shorter
MOST_PASSED = 64  # questions without such a piece that are passed over for it

Piece = TypeVar("Piece")


@dataclass(order=True)
class Turn(Generic[Piece]):
    """What waits of one question, or of one client: the `rows` it has had, and when it came, by which turns are ordered."""

    rows: float
    number: int
    name: object = field(compare=False)
    pieces: list[tuple[int, Piece]] = field(compare=False, default_factory=list)  # of a question, with their rows, the longest last
    turns: "list[Turn[Piece]]" = field(compare=False, default_factory=list)  # of a client: a heap of its questions
    waiting: int = field(compare=False, default=0)  # rows
    count: int = field(compare=False, default=0)  # of a client: its pieces that wait

    def place(self, low: float, high: float) -> int | None:
        """Return where the longest piece of low to high rows is."""
        at = bisect_right(self.pieces, high, key=itemgetter(0)) - 1
        return at if at >= 0 and self.pieces[at][0] >= low else None


class Fair(Generic[Piece]):
    """The requests that wait. `rows`: how many they have in all; `limit`: how many may wait."""

    def __init__(self, limit: int) -> None:
        self.limit, self.rows, self.count = limit, 0, 0
        self.clients: dict[str, Turn[Piece]] = {}
        self.heap: list[Turn[Piece]] = []
        self.numbers = itertools.count()
        self.now = 0.0  # the rows that the last client had when it was its turn

    def is_full(self, client: str) -> bool:
        """Tell whether no more may wait, of this client: one that has less waiting than its part may go on up to that. How much is asked at
        once does not matter: many small questions and a large one are treated alike."""
        own = self.clients.get(client)
        return self._no_room(self.rows, self.limit, own, own.waiting if own else 0)

    def is_crowded(self, client: str, most: int) -> bool:
        """Tell the same of a limit to how many `pieces` wait, whatever rows they have."""
        own = self.clients.get(client)
        return self._no_room(self.count, most, own, own.count if own else 0)

    def _no_room(self, there: int, limit: int, own: Turn[Piece] | None, waiting: int) -> bool:
        part = limit / (len(self.clients) + (own is None))
        return there >= limit and (waiting >= part or there >= 2 * limit)

    def add(self, client: str, question: object, pieces: Iterable[tuple[int, Piece]]) -> None:
        """Let the pieces of a question wait, each with its rows."""
        turn: Turn[Piece] = Turn(0, next(self.numbers), question, sorted(pieces, key=itemgetter(0)))
        turn.waiting = sum(rows for rows, _ in turn.pieces)
        if not turn.pieces:
            return
        own = self.clients.get(client)
        if own is None:
            own = self.clients[client] = Turn(self.now, next(self.numbers), client)
            heapq.heappush(self.heap, own)
        turn.rows = own.turns[0].rows if own.turns else 0
        heapq.heappush(own.turns, turn)
        own.waiting += turn.waiting
        own.count += len(turn.pieces)
        self.rows += turn.waiting
        self.count += len(turn.pieces)

    def take(self, most: int) -> list[Piece]:
        """Return who is next and what goes with it, of at most `most` rows together; one that has more by itself comes alone. What is
        shorter or longer comes along where others leave room for it."""
        taken = list[tuple[int, Piece]]()
        self._take(taken, 0, float("inf"), 1)  # who is next, however long
        if taken:
            longest = taken[0][0]
            self._take(taken, ALIKE * longest, longest / ALIKE, most - longest)
            rows = sum(rows for rows, _ in taken)
            if rows < ENOUGH * most:
                self._take(taken, 0, float("inf"), most - rows)
        return [piece for _, piece in taken]

    def _take(self, taken: list[tuple[int, Piece]], low: float, high: float, room: float) -> None:
        """Take pieces of low to high rows in turn, each the longest of its question that there is room for; the first one has room."""
        passed, without = list[tuple[Turn[Piece], Turn[Piece]]](), list[Turn[Piece]]()  # questions with none, and clients
        while self.heap and room > 0 and len(passed) < MOST_PASSED:
            client = self.heap[0]
            turn = heapq.heappop(client.turns)
            at = turn.place(low, min(high, room) if taken else high)
            if at is not None:
                rows, _ = turn.pieces[at]
                taken.append(turn.pieces.pop(at))
                room -= rows
                self._had(client, turn, rows)
            elif turn.pieces:  # else it was dropped
                passed.append((client, turn))
            if client.turns:
                heapq.heapreplace(self.heap, client)
            else:
                without.append(heapq.heappop(self.heap))
        for client, turn in passed:
            if not client.turns:
                heapq.heappush(self.heap, client)
            heapq.heappush(client.turns, turn)
        for client in without:
            if not client.turns:
                self.clients.pop(str(client.name), None)

    def _had(self, client: Turn[Piece], turn: Turn[Piece], rows: int) -> None:
        """Note that a question of a client, which is not among its others now, had a piece of so many rows."""
        self.now = client.rows
        for one in (client, turn):
            one.rows += rows
            one.waiting -= rows
        client.count -= 1
        self.rows, self.count = self.rows - rows, self.count - 1
        if turn.pieces:
            heapq.heappush(client.turns, turn)

    def drop(self, client: str, question: object) -> None:
        """Let what is left of a question wait no longer."""
        own = self.clients.get(client)
        for turn in own.turns if own else ():
            if turn.name is question and own is not None:
                own.waiting -= turn.waiting
                self.rows -= turn.waiting
                self.count -= len(turn.pieces)
                own.count -= len(turn.pieces)
                turn.pieces.clear()
                turn.waiting = 0
