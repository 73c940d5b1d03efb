"""Steps that pass from rank to rank: each has a run of layers whole, with the keys and values of those, and hands the rows on to the next.
Rank 0 embeds and chooses, whichever layers it has; the last stage finds the scores. Several steps may be under way, one behind the other.

Knows stages, messages and their order; what layers compute is decoder.py's.
"""

import time
from collections import deque
from collections.abc import Callable
from functools import partial

import numpy as np

from hepti_mpi import splits
from hepti_mpi.comm.pauses import PAUSES
from hepti_mpi.engine.decoder import Decoder
from hepti_mpi.engine.machine import Machine
from hepti_mpi.engine.orders import END, REST, STEP, Order, numbers_in
from hepti_mpi.engine.words import Words
from hepti_mpi.errors import PlanError
from hepti_mpi.models.numerics import Array
from hepti_mpi.models.tasks.sampling import Scores
from hepti_mpi.planning.memory import FULL
from hepti_mpi.program.placement import Team
from hepti_mpi.weights.slices import DecodingPart
from hepti_mpi.weights.store import Store


class _Message:
    """A step on its way: what it is, and its rows. It is used again when it has left."""

    def __init__(self, slots: int, rows: int, hidden: int) -> None:
        self.slots, numbers = slots, numbers_in(slots)
        self.values = np.zeros(numbers + rows * hidden, np.float32)
        self.numbers = self.values[:numbers].view(np.int32)
        self.rows = self.values[numbers:].reshape(rows, hidden)
        self.leaves: Callable[[], None] | None = None  # waits until it has

    def write(self, what: int | Order) -> None:
        """Say what is done next; the rows of a step are written by whoever has them."""
        if isinstance(what, Order):
            what.write(self.numbers, self.slots)
        else:
            self.numbers[0] = what

    @property
    def order(self) -> Order:
        return Order.read(self.numbers, self.slots)

    @property
    def whole(self) -> Array:
        """All that is sent of it."""
        count = self.order.rows if self.numbers[0] == STEP else 0
        return self.values[: len(self.numbers) + count * self.rows.shape[1]]


class Staged(Decoder):
    """The part of this rank in steps that pass through stages of one rank each."""

    def __init__(self, machine: Machine, part: DecodingPart, slots: int, positions: int, team: Team, cache: str = FULL) -> None:
        """`team`: its ranks as `machine` counts them; `part`: of this one's stage, or any where it has none. Collective, as a Decoder's.

        Raises PlanError for a stage of several ranks.
        """
        ranks = [stage.lead for stage in team.stages]
        if not all(splits.alone(stage.members) for stage in team.stages):
            raise PlanError("a stage of a text is one rank, the plan has one of several")
        super().__init__(machine, part, slots, positions, tuple(sorted(ranks)), cache)
        self.ends, self.end_ranks = machine.world.subset(sorted({0, ranks[-1]})), sorted({0, ranks[-1]})
        if self.ends is not None:
            self.ends.polite = machine.emulation.on
        self.last_plan, self.depth = team.stages[-1].plan, len(ranks)
        self.spent["wait_seconds"] = 0.0
        self.pause = PAUSES[machine.exchanges.way]
        self.flying: deque[Order] = deque()  # steps whose scores rank 0 has not taken
        if self.group is None:
            return
        places = [self.members.index(rank) for rank in ranks]  # in the group
        self.place = places.index(self.group.rank) if self.is_active else None
        at = len(places) if self.place is None else self.place
        self.head, self.before = places[0], places[at - 1] if at else 0  # the first stage's rows come from rank 0
        self.behind = places[at + 1] if at + 1 < len(places) else None
        self.inbox = _Message(slots, self.rows, self.spec.hidden)
        self.outboxes = deque(_Message(slots, self.rows, self.spec.hidden) for _ in range(self.depth + 1))

    @property
    def is_last(self) -> bool:
        return self.is_active and self.place == self.depth - 1

    def build(self, store: Store) -> None:
        """See Decoder."""
        if self.is_active:
            self._build_layers(store)
        if self.ends is not None:
            part = DecodingPart(self.spec, self.last_plan, 0)
            bounds = [part.words_of(0) if rank == self.end_ranks[-1] else (0, 0) for rank in self.end_ranks]
            self.words = Words(store, part, self.threads, self.ends, bounds, self.rows)

    # rank 0

    def step(self, order: Order, x: Array) -> list[Scores]:
        """See Decoder."""
        assert not self.flying, "its scores would be those of another step"
        self.submit(order, x)
        return self.collect()

    def submit(self, order: Order, x: Array) -> None:
        """Begin a step with the embedded rows `x` [rows, hidden]. Rank 0 calls it, for as many as there are stages before it takes scores.
        """
        self.resting = False
        self.flying.append(order)
        if self.place == 0:
            self._compute(order, x)
            return
        message = self._outbox()
        message.write(order)
        np.copyto(message.rows[: order.rows], x)
        self._send(message, self.head)

    def collect(self) -> list[Scores]:
        """Return the scores of the first step whose scores were not taken yet. Rank 0 calls it."""
        order = self.flying.popleft()
        if self.place:
            self._turn()
        found, begin = list[Scores](), time.perf_counter()
        if order.scored:
            with self.machine.emulation.in_time():
                found = self.words.scores(order.scored, order.candidates)
                self.machine.emulation.rest()
        self.spent["wait_seconds"] += time.perf_counter() - begin
        return found

    def rest(self) -> None:
        """See Decoder. Steps under way are done before."""
        if not self.resting and not (self.flying and self.place):
            self._pass_on(REST)
            self.resting = True

    def end(self) -> None:
        """See Decoder. What is under way is nobody's any more."""
        while self.flying:
            self.collect()
        self._pass_on(END)

    def _pass_on(self, what: int) -> None:
        """Let the other stages, one after the other, rest or go."""
        message, to = self._outbox(), self.behind if self.place == 0 else self.head
        message.write(what)
        if to is not None:
            self._send(message, to)
        if self.place:
            self._turn()
        for one in self.outboxes:
            _wait(one)

    # the others

    def follow(self) -> None:
        """See Decoder."""
        if self.group is None or self.group.rank == 0:
            return
        while self._turn() != END:
            pass
        for message in self.outboxes:
            _wait(message)

    # all

    def _turn(self) -> int:
        """Take what comes from the stage before, do it, and return what it was."""
        assert self.group is not None
        message, begin = self.inbox, time.perf_counter()
        self.group.take_over(self.before, message.values, lambda: len(message.whole), None if self.resting else self.pause)
        if not self.resting:
            self.spent["wait_seconds"] += time.perf_counter() - begin
        what = int(message.numbers[0])
        self.resting = what == REST
        if what == STEP:
            self._compute(message.order, message.rows)
        elif self.behind is not None:
            out = self._outbox()
            out.write(what)
            self._send(out, self.behind)
        return what

    def _compute(self, order: Order, x: Array) -> None:
        """Bring the first rows of `x` through this stage, and on to the next one or to the words."""
        emulation = self.machine.emulation
        emulation.refresh()
        with emulation.in_time():
            hidden = self._layers(order, x)
            if not self.is_last:
                message = self._outbox()
                message.write(order)
                np.copyto(message.rows[: order.rows], hidden)
                emulation.show()
                self._send(message, self.behind)
            elif order.scored:
                begin = time.perf_counter()
                self._to_words(order, hidden)
                self._work(partial(self.words.compute, order.scored), self._of_words(order.scored))
                emulation.show()
                self.spent["words_seconds"] += time.perf_counter() - begin
                if self.rank:
                    self.words.scores(order.scored, order.candidates)

    def _outbox(self) -> _Message:
        """Return a message that is not on its way."""
        message = self.outboxes[0]
        self.outboxes.rotate(-1)
        _wait(message)
        return message

    def _send(self, message: _Message, to: int | None) -> None:
        assert self.group is not None and to is not None
        message.leaves = self.group.pass_on(to, message.whole)


def _wait(message: _Message) -> None:
    """Wait until a message has left."""
    if message.leaves is not None:
        message.leaves()
        message.leaves = None

