"""Who is next: requests of many clients that wait, and how many may. Pure: knows rows and names of clients; no clock, no engine.

The client that has had the fewest rows while it waited is next, and of what it asks that which has had the fewest. So one that asks for
thousands of texts delays nobody else, nor its own short questions.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Piece = TypeVar("Piece")


@dataclass(order=True)
class Turn(Generic[Piece]):
    """What waits of one question, or of one client: the `rows` it has had, and when it came, by which turns are ordered."""

    rows: float
    number: int
    name: object = field(compare=False)
    pieces: deque[tuple[int, Piece]] = field(compare=False, default_factory=deque)  # of a question, with their rows
    turns: "list[Turn[Piece]]" = field(compare=False, default_factory=list)  # of a client: a heap of its questions
    waiting: int = field(compare=False, default=0)  # rows
    count: int = field(compare=False, default=0)  # of a client: its pieces that wait


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
        turn: Turn[Piece] = Turn(0, next(self.numbers), question, deque(pieces))
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
        """Return who is next, of at most `most` rows together; one that has more by itself comes alone."""
        taken, room = list[Piece](), most
        while self.heap:
            client = self.heap[0]
            turn = client.turns[0]
            if not turn.pieces:  # it was dropped
                heapq.heappop(client.turns)
                self._leave_or_stay(client, 0)
                continue
            rows, piece = turn.pieces[0]
            if rows > room and taken:
                break
            turn.pieces.popleft()
            taken.append(piece)
            room -= rows
            self.now = client.rows
            self.count -= 1
            client.count -= 1
            turn.waiting -= rows
            if turn.pieces:
                turn.rows += rows
                heapq.heapreplace(client.turns, turn)
            else:
                heapq.heappop(client.turns)
            self._leave_or_stay(client, rows)
            if room <= 0:
                break
        return taken

    def _leave_or_stay(self, client: Turn[Piece], rows: int) -> None:
        """Give the first client its place behind others after it had `rows`."""
        client.waiting -= rows
        self.rows -= rows
        client.rows += rows
        if client.turns:
            heapq.heapreplace(self.heap, client)
        else:
            heapq.heappop(self.heap)
            del self.clients[str(client.name)]

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
