"""Pretend to be another board: after each piece of computing, wait until the time has passed that it would take there.

That time follows from the piece's work and the board's description, whatever this machine took, so that results are the same on every
machine that is fast enough. Only computing is emulated; messages take the time that they take. Knows boards and clocks, no model.

The ranks of all boards share this machine's cores, so that a short piece may find them taken by long ones of others. Hence every rank
keeps its board's own clock: pieces that follow each other without a message in between are computed as soon as this machine can, and it
waits for its board only before others, or the order of what comes next, can tell. Short pieces, and waits, go first where the system
allows it. Who was late all the same catches up with the pieces that follow without a pause.
What others see of a board is when its messages leave: how much later than from the board is what a result may be wrong by.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hepti_mpi.cluster.boards import Board, Work, board_named
from hepti_mpi.comm.precedence import MOMENT, before_others, go_first
from hepti_mpi.errors import PlanError, ProfileError

LATENCY = re.compile(r"(?P<board>\S+) (?P<latency>\d{1,7}(\.\d{1,3})?)us")  # a board and what its link takes longer
NAP_SECONDS = 60e-6  # what a sleep lasts longer than asked for; the rest is spent yielding
OUTRUN = 1.02  # times as long as on the board


class Emulation:
    """The board that this rank pretends to be: given, or in the file that HEPTI_EMULATE_FILE names, read again for every request.

    `said`: its description as given; `calls` of pieces and those `overruns` among them that took longer than on the board;
    `late_seconds`: by which messages left later than from there, in all; `due`: when the board has done what this rank has.
    """

    def __init__(self, given: str | None = None) -> None:
        """Raises: PlanError when what is given, or in the file, means no board."""
        self.path = None if given is not None else os.environ.get("HEPTI_EMULATE_FILE")
        self.said = given
        self.board: Board | None = None
        self.latency_seconds = 0.0  # of the board's link, one way
        self.calls = self.overruns = 0
        self.late_seconds = 0.0
        self.due, self.shown = time.perf_counter(), 0.0  # `shown`: seconds of being late that others have seen
        self.first = False  # whether this rank goes before the others
        if given is not None:
            self._be(given, "--emulate")
        self.refresh()

    @property
    def on(self) -> bool:
        return self.board is not None

    def since(self, before: "Emulation") -> dict[str, Any]:
        """Return what a record says of this rank's board after a copy of this was made, `before`."""
        calls, overruns = self.calls - before.calls, self.overruns - before.overruns
        late = self.late_seconds - before.late_seconds
        return {"emulated_board": self.said, "overruns": overruns / max(1, calls), "late_seconds": late}

    def refresh(self) -> None:
        """Read the file again."""
        if self.path is None:
            return
        try:
            with open(self.path) as file:
                said = file.read(64).strip()
        except (OSError, ValueError) as error:
            raise PlanError(f"HEPTI_EMULATE_FILE {self.path} cannot be read: {error}") from None
        if said != self.said or self.board is None:
            self._be(said, f"HEPTI_EMULATE_FILE {self.path}")

    def _be(self, said: str, where: str) -> None:
        try:
            words = LATENCY.fullmatch(said)
            self.said, self.board = said, board_named(words["board"] if words else said)
            self.latency_seconds = float(words["latency"]) * 1e-6 if words else 0.0
        except ProfileError as error:
            raise PlanError(f"{where}: {error}") from None

    def now(self) -> float:
        """Return what the board's clock says, which is ahead of this machine's where a piece was done sooner than there."""
        return max(self.due, time.perf_counter()) if self.board is not None else time.perf_counter()

    def run(self, call: Callable[[], object], work: Work) -> None:
        """Call, and return when what `work` takes on the board has passed since it began."""
        self.rest()
        self.go_on(call, work)
        self.keep_time()

    def outrun(self, work: Work, seconds: float) -> bool:
        """Tell whether `work` that took so long was the machine's time and not the board's; never without a board."""
        return self.board is not None and seconds > OUTRUN * self.board.seconds(work) + NAP_SECONDS

    def rest(self) -> None:
        """Note that the board waited for others: what it was late by before is past mending."""
        self.due, self.shown = self.now(), 0.0

    def keep_time(self) -> None:
        """Wait for the board, where this rank is ahead of it."""
        while (left := self.due - time.perf_counter()) > 0:
            if left > NAP_SECONDS:
                time.sleep(left - NAP_SECONDS)
            else:
                os.sched_yield()  # to sleep for no time takes 20 us and more

    def show(self) -> None:
        """Let others see how far this board is, once it is there: a message leaves, or an answer."""
        if self.board is None:
            return
        self.keep_time()
        late = time.perf_counter() - self.due
        self.late_seconds += max(late - self.shown, 0.0)
        self.shown = late

    def took(self, seconds: float) -> None:
        """Note what took as long on the board as here."""
        self.due += seconds

    def go_on(self, call: Callable[[], object], work: Work) -> None:
        """Call; on the board that takes what `work` does there, and begins when the piece before is done."""
        if self.board is None:
            call()
            return
        seconds, begin = self.board.seconds(work), time.perf_counter()
        if self.first and seconds > MOMENT:
            go_first(max(self.due - begin, 0.0) + seconds)
            call()
            go_first()
        else:
            call()
        self.calls += 1
        self.overruns += time.perf_counter() > begin + seconds
        self.due += seconds

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """Let this rank's pieces and its waits go before what else the machine does."""
        self.rest()
        if not self.on:
            yield
            return
        try:
            with before_others() as self.first:
                yield
        finally:
            self.first = False
