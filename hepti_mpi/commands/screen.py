"""The screen and what the commands share besides their options: words, tables, progress. Computes nothing.

Standard output is for results, standard error for what happens meanwhile. On a terminal both are coloured, plans are drawn and tables are
made to fit; elsewhere they are plain text. Under mpirun the terminal is mpirun's: a rank has none of its own, or one that nobody looks at.
What nobody reads any more (a pipe to `head`) is not an error: nothing more is printed there.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.documents import json_line

if TYPE_CHECKING:
    from rich.console import Console

    from hepti_mpi.engine.machine import Machine
    from hepti_mpi.program.plan import Plan
    from hepti_mpi.serving.request import Answered

OUT, ERR = 1, 2  # descriptors
COLUMNS = "HEPTI_COLUMNS"  # environment variable: of the terminal on which a supervisor shows what its ranks print
CLEAR = "\r\x1b[K"  # the line that the cursor is in; with color=True, as click takes it out of what goes to a pipe: under mpirun
DRAWN_SECONDS = 0.5  # between two looks of a meter on a terminal
TOLD_SECONDS = 10.0  # between two lines about how far something is, elsewhere
WIDEST_BAR, NARROWEST_BAR = 30, 8  # characters


class Screen:
    """What this process shows. `quiet`: results only. `json`: standard output is JSON lines only. `closed`: descriptors nobody reads."""

    def __init__(self) -> None:
        self.quiet = self.json = False
        self.closed: set[int] = set()

    @property
    def width(self) -> int | None:
        """Characters in a line of the terminal that results are shown on; None where there is no terminal."""
        return _width(OUT)

    @property
    def is_read(self) -> bool:
        """Whether somebody still reads the results."""
        from hepti_mpi.comm.launcher import reader_is_gone

        if OUT not in self.closed and reader_is_gone(OUT):
            _close(OUT)
        return OUT not in self.closed

    def say(self, sentence: str) -> None:
        """Tell what happens."""
        if not self.quiet:
            self.warn(sentence)

    def warn(self, sentence: str) -> None:
        """Tell what went wrong, whatever was asked for."""
        _print(ERR, self.folded(sentence, ERR))

    def folded(self, text: str, descriptor: int = ERR) -> str:
        """Return text without words that are broken at the edge of a terminal."""
        from hepti_mpi.reporting.tables import folded

        return folded(text, _width(descriptor))

    def show(self, text: str) -> None:
        """Show tables and the like to people."""
        if not self.quiet:
            self.result(text)

    def result(self, text: str) -> None:
        """Show people what they asked for, also when quiet."""
        if not self.json:
            _print(OUT, self.folded(text, OUT))

    def draw(self, plan: "Plan") -> None:
        """Show who does what: as bars on a terminal, else as numbers."""
        from hepti_mpi.reporting import records

        bars = None
        if _terminal(OUT) is not None and not self.quiet and not self.json:
            from hepti_mpi.reporting.drawing import plan_bars

            bars = plan_bars(plan, _console(OUT).width)
        if bars is None:
            self.show(records.plan_lines(plan, self.width))
        else:
            _print(OUT, bars)

    def answers(self, answers: Sequence[dict[str, Any]]) -> None:
        """Print answers, records of models.heads.answers: they are the result."""
        from hepti_mpi.reporting.records import answer_line

        for answer in answers:
            if self.json:
                _print(OUT, json_line({"kind": "answer", **answer}), plain=True)
            else:
                self.result(answer_line(answer, self.width))

    def document(self, data: dict[str, Any], always: bool = False) -> None:
        """Print a JSON document if one is asked for; `always`: also where it ends the output for people, but not on a terminal."""
        if self.json or always and not self.quiet and _terminal(OUT) is None:
            _print(OUT, json.dumps(data), plain=True)


SCREEN = Screen()


def words_options(has_document: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add --quiet and, for a command that `has_document`, --json."""

    def choose(name: str) -> Callable[[click.Context, click.Parameter, bool], None]:
        def chosen(context: click.Context, parameter: click.Parameter, value: bool) -> None:
            if value or context.parent is None or context.parent.parent is None:  # a run that is supervised adds to what is chosen
                setattr(SCREEN, name, value)

        return chosen

    def add(command: Callable[..., None]) -> Callable[..., None]:
        if has_document:
            told = "Standard output is JSON lines only: of run without --output one of kind answer per input; last one document."
            command = click.option("--json", is_flag=True, expose_value=False, callback=choose("json"), help=told)(command)
        told = "Print answers and errors only."
        return click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=choose("quiet"), help=told)(command)

    return add


def _terminal(descriptor: int) -> str | None:
    """Return the terminal that people see this descriptor on, or None: under mpirun that of mpirun."""
    from hepti_mpi.comm.launcher import LAUNCHERS, launched

    if (sys.stdout, sys.stderr)[descriptor == ERR] is not (sys.__stdout__, sys.__stderr__)[descriptor == ERR]:
        return None  # somebody collects what is printed
    try:
        if launched() and Path(f"/proc/{os.getppid()}/comm").read_text().strip() not in LAUNCHERS:
            return None  # a script between mpirun and this rank: its terminal may be one that mpirun made
        path = os.readlink(f"/proc/{os.getppid() if launched() else 'self'}/fd/{descriptor}")
    except OSError:
        return None
    return path if path.startswith(("/dev/pts/", "/dev/tty")) else None


@cache
def _console(descriptor: int) -> "Console":
    from rich.console import Console
    from rich.highlighter import RegexHighlighter
    from rich.theme import Theme

    class Words(RegexHighlighter):
        base_style = "hepti."
        highlights = [
            r"(?P<good>\bchosen\b)", r"(?P<faint>\bleft out\b|-> | \| )", r"(?m)^(?P<bad>error\b)", r"(?m)(?P<name>^[\w.-]+(?=: ))",
            r"(?m)(?P<number>(?<![\w.])[-+]?\d[\d,]*\.?\d*(?= |$|[],;)%]))", r"(?m)(?P<head>^ {6,}\S.*$|^(candidate|method|host) .*$)",
        ]  # fmt: skip

    theme = Theme({"hepti.good": "bold green", "hepti.faint": "dim", "hepti.bad": "bold red", "hepti.name": "bold",
                   "hepti.number": "cyan", "hepti.head": "bold"})  # fmt: skip
    terminal = _terminal(descriptor)
    width = None
    if terminal is not None:
        try:
            with open(terminal, "rb") as file:
                width = os.get_terminal_size(file.fileno()).columns or None
        except OSError:
            pass
    return Console(file=sys.stdout if descriptor == OUT else sys.stderr, force_terminal=terminal is not None, width=width,
                   highlighter=Words(), theme=theme, markup=False, emoji=False, soft_wrap=True)  # fmt: skip


def _width(descriptor: int) -> int | None:
    if _terminal(descriptor) is not None:
        return _console(descriptor).width
    told = os.environ.get(COLUMNS, "")
    return int(told) if told.isdecimal() and int(told) else None


def _print(descriptor: int, text: Any, plain: bool = False) -> None:
    """Print text, or on a terminal what rich can draw; `plain`: as it is, for programs."""
    if descriptor in SCREEN.closed:
        return
    make_room()
    try:
        if plain or _terminal(descriptor) is None:
            click.echo(text, err=descriptor == ERR)
        else:
            if descriptor == ERR:
                click.echo(CLEAR, err=True, nl=False, color=True)  # another rank may have drawn there
            _console(descriptor).print(text, crop=False)
    except BrokenPipeError:
        _close(descriptor)


def _close(descriptor: int) -> None:
    """Print nothing more there, neither when Python writes out what is left at the end."""
    SCREEN.closed.add(descriptor)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


# words and progress


def say(machine: "Machine") -> Callable[[str], None]:
    """Return what tells a sentence once, on rank 0."""
    return SCREEN.say if machine.world.rank == 0 else lambda sentence: None


class Meter:
    """How far something is that takes long: a line that is drawn again and again on a terminal, else a new one every ten seconds."""

    def __init__(self, label: str, total: int | None, count: Callable[[int], str] = str) -> None:
        """`count` says so many of what is counted."""
        self.label, self.total, self.done, self.count = label, total, 0, count
        self.terminal = _terminal(ERR) is not None
        self.begin, self.drawn, self.is_drawn = time.monotonic(), float("-inf"), False
        self.ended, self.lock = threading.Event(), threading.RLock()

    def advance(self, amount: int) -> None:
        self.done += amount
        if self.terminal and time.monotonic() > self.drawn + DRAWN_SECONDS:
            self._draw()

    def event(self, event: "Answered") -> None:
        """Count answers (serving.sink.Listener)."""
        self.advance(len(event.requests))

    def at(self, label: str) -> None:
        """Name what is done now."""
        self.label = label

    def count_from(self, total: int) -> None:
        """Begin to count answers now."""
        self.label, self.total, self.done, self.begin = "answering", total, 0, time.monotonic()

    def wipe(self) -> None:
        """Make room for something else; it is drawn again when it is looked at next."""
        with self.lock:
            if self.is_drawn:
                self.is_drawn, self.drawn = False, float("-inf")
                click.echo(CLEAR, err=True, nl=False, color=True)

    def watch(self) -> None:
        """Draw or tell now and then, until it has ended. No thread draws while something is counted: that would take time from it."""
        while not self.ended.wait(TOLD_SECONDS if not self.terminal else DRAWN_SECONDS):
            if not self.terminal:
                _print(ERR, self.words())
            elif self.total is None or not self.done:
                self._draw()

    def words(self) -> str:
        from hepti_mpi.reporting.tables import duration

        passed = time.monotonic() - self.begin
        if not self.total or not self.done:
            return f"{self.label}: {duration(passed)}"
        left = duration(passed * (self.total - self.done) / self.done)
        return f"{self.label}: {self.count(self.done)} of {self.count(self.total)} in {duration(passed)}, about {left} left"

    def _draw(self) -> None:
        with self.lock:
            if self.ended.is_set():
                return
            self.is_drawn, self.drawn = True, time.monotonic()
            text = self.words()
            room = _console(ERR).width - len(text) - 3
            if self.total and room >= NARROWEST_BAR:
                bar = min(room, WIDEST_BAR)
                full = bar * min(self.done, self.total) // self.total
                text += "  " + "━" * full + "╌" * (bar - full)
            # the cursor stays in front: what another rank prints begins where this line does
            click.echo(CLEAR + text[: _console(ERR).width - 1] + "\r", err=True, nl=False, color=True)


METER: Meter | None = None  # what is drawn now


def make_room() -> None:
    """Wipe the line of progress, which is drawn again: something else is shown there now."""
    if METER is not None:
        METER.wipe()


def end_meter() -> None:
    """Draw no meter any more: what is said now is the last."""
    if METER is not None:
        METER.ended.set()
        METER.wipe()


@contextmanager
def meanwhile(label: str, total: int | None = None, shown: bool = True, count: Callable[[int], str] = str) -> Iterator[Meter]:
    """Show on standard error how far something is; `shown`: only where so."""
    global METER
    meter = Meter(label, total, count)
    if not shown or SCREEN.quiet:
        meter.terminal, meter.drawn = False, float("inf")
        yield meter
        return
    before, METER = METER, meter
    threading.Thread(target=meter.watch, name="meter", daemon=True).start()
    try:
        yield meter
    finally:
        meter.ended.set()
        meter.wipe()
        METER = before
