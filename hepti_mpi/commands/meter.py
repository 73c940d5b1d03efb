"""How far something is that takes long. Knows counts and seconds; does not know of what."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hepti_mpi.commands import terminal
from hepti_mpi.commands.screen import SCREEN
from hepti_mpi.commands.terminal import CLEAR, ERR

if TYPE_CHECKING:
    from hepti_mpi.serving.request import Answered

DRAWN_SECONDS = 0.5  # between two looks of a meter on a terminal
TOLD_SECONDS = 10.0  # between two lines about how far something is, elsewhere
WIDEST_BAR, NARROWEST_BAR = 30, 8  # characters


class Meter:
    """How far something is that takes long: a line that is drawn again and again on a terminal, else a new one every ten seconds."""

    def __init__(self, label: str, total: int | None, count: Callable[[int], str] = str) -> None:
        """`count` says so many of what is counted."""
        self.label, self.total, self.done, self.before, self.count = label, total, 0, 0, count
        self.work = self.work_left = 0  # of what is counted, where it is not alike
        self.terminal = terminal.path(ERR) is not None
        self.begin, self.drawn, self.is_drawn = time.monotonic(), float("-inf"), False
        self.ended, self.lock = threading.Event(), threading.RLock()

    def advance(self, amount: int, work: int = 0, left: int = 0) -> None:
        """Count so many more; `work`: what these took and what all that is `left` takes, where it is known."""
        self.done, self.work, self.work_left = self.done + amount, self.work + work, left
        if self.terminal and time.monotonic() > self.drawn + DRAWN_SECONDS:
            self._draw()

    def event(self, event: "Answered") -> None:
        """Count answers (serving.sink.Listener)."""
        self.advance(len(event.requests), event.rows, event.rows_left)

    def at(self, label: str) -> None:
        """Name what is done now."""
        self.label = label

    def count_from(self, done: int, total: int) -> None:
        """Begin to count answers now; `done`: those that are there, of which nobody knows how long they took."""
        self.label, self.total, self.done, self.before, self.begin = "answering", total, done, done, time.monotonic()

    def wipe(self) -> None:
        """Make room for something else; it is drawn again when it is looked at next."""
        with self.lock:
            if self.is_drawn:
                self.is_drawn, self.drawn = False, float("-inf")
                terminal.draw(CLEAR)

    def watch(self) -> None:
        """Draw or tell now and then, until it has ended. No thread draws while something is counted: that would take time from it."""
        while not self.ended.wait(TOLD_SECONDS if not self.terminal else DRAWN_SECONDS):
            if not self.terminal:
                terminal.write(ERR, self.words())
            elif self.total is None or not self.done:
                self._draw()

    def words(self) -> str:
        from hepti_mpi.reporting.tables import duration

        passed = time.monotonic() - self.begin
        if not self.total or self.done == self.before:
            return f"{self.label}: {duration(passed)}"
        work, ahead = (self.work, self.work_left) if self.work else (self.done - self.before, self.total - self.done)
        left = duration(passed * ahead / work)
        return f"{self.label}: {self.count(self.done)} of {self.count(self.total)} in {duration(passed)}, about {left} left"

    def _draw(self) -> None:
        from hepti_mpi.reporting.tables import columns, shortened

        with self.lock:
            if self.ended.is_set() or terminal.goes_on(ERR):
                return
            self.is_drawn, self.drawn = True, time.monotonic()
            width = terminal.console(ERR).width
            text = shortened(self.words(), width - 1)
            room = width - columns(text) - 3
            if self.total and room >= NARROWEST_BAR:
                bar = min(room, WIDEST_BAR)
                full = bar * min(self.done, self.total) // self.total
                text += "  " + "━" * full + "╌" * (bar - full)
            # the cursor stays in front: what another rank prints begins where this line does
            terminal.draw(CLEAR + text + "\r")


METERS: list[Meter] = []  # what is drawn now


def end_meters() -> None:
    """Draw no meter any more: what is said now is the last."""
    for meter in METERS:
        meter.ended.set()
        meter.wipe()


@contextmanager
def meanwhile(label: str, total: int | None = None, shown: bool = True, count: Callable[[int], str] = str) -> Iterator[Meter]:
    """Show on standard error how far something is; `shown`: only where so."""
    meter = Meter(label, total, count)
    if not shown or SCREEN.quiet:
        meter.terminal, meter.drawn = False, float("inf")
        yield meter
        return
    terminal.drawn.append(meter.wipe)
    METERS.append(meter)
    threading.Thread(target=meter.watch, name="meter", daemon=True).start()
    try:
        yield meter
    finally:
        meter.ended.set()
        meter.wipe()
        METERS.remove(meter)
        terminal.drawn.remove(meter.wipe)
