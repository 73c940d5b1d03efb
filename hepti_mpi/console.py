"""The screen and what the commands share besides their options: which files are meant, words, progress. Computes nothing.

Standard output is for results, standard error for what happens meanwhile. On a terminal both are coloured and plans are drawn; elsewhere
they are plain text. Under mpirun the terminal is mpirun's: a rank has none of its own, or one that nobody looks at.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.errors import StoreError

if TYPE_CHECKING:
    from rich.console import Console

    from hepti_mpi.planning.plan import Plan
    from hepti_mpi.runtime.machine import Machine

WEIGHTS = Path("weights")
DEFAULT_STORE = WEIGHTS / "all-MiniLM-L6-v2.h5"
OUT, ERR = 1, 2  # descriptors
DRAWN_SECONDS = 0.5  # between two looks of a progress bar


class Screen:
    """What this process shows. `quiet`: results only. `json`: standard output is JSON lines only."""

    def __init__(self) -> None:
        self.quiet = self.json = False

    def say(self, sentence: str) -> None:
        """Tell what happens."""
        if not self.quiet:
            _print(ERR, sentence)

    def warn(self, sentence: str) -> None:
        """Tell what went wrong, whatever was asked for."""
        _print(ERR, sentence)

    def show(self, text: str) -> None:
        """Show tables and the like to people."""
        if not self.quiet:
            self.result(text)

    def result(self, text: str) -> None:
        """Show people what they asked for, also when quiet."""
        if not self.json:
            _print(OUT, text)

    def draw(self, plan: "Plan") -> None:
        """Show who does what: as bars on a terminal, else as numbers."""
        from hepti_mpi.reporting import records

        bars = None
        if _terminal(OUT) is not None and not self.quiet and not self.json:
            from hepti_mpi.reporting.drawing import plan_bars

            bars = plan_bars(plan, _console(OUT).width)
        if bars is None:
            self.show(records.plan_lines(plan))
        else:
            _console(OUT).print(bars, crop=False)

    def answers(self, answers: Sequence[dict[str, Any]]) -> None:
        """Print answers, records of models.heads.answers: they are the result."""
        from hepti_mpi.reporting.records import answer_line

        for answer in answers:
            if self.json:
                click.echo(json.dumps(answer, ensure_ascii=False))
            else:
                self.result(answer_line(answer))

    def document(self, data: dict[str, Any], always: bool = False) -> None:
        """Print a JSON document if one is asked for; `always`: also where it ends the output for people."""
        if self.json or always and not self.quiet:
            click.echo(json.dumps(data))


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
            told = "Standard output is JSON only: a line per answer, then one document."
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


def _print(descriptor: int, text: str) -> None:
    if _terminal(descriptor) is None:
        click.echo(text, err=descriptor == ERR)
    else:
        _console(descriptor).print(text)


# which files are meant


def store_path(given: Path | None) -> Path:
    """Return the store that is meant when none is named. Raises StoreError when that is not clear."""
    if given is not None:
        return given
    found = sorted(WEIGHTS.glob("*.h5"))
    if len(found) == 1 or DEFAULT_STORE in found:
        return DEFAULT_STORE if DEFAULT_STORE in found else found[0]
    if found:
        raise StoreError(f"{WEIGHTS}/ has {len(found)} stores; name one with --weights: {', '.join(map(str, found[:5]))}")
    raise StoreError(f"there is no store in {WEIGHTS}/; make one with: python -m hepti_mpi slice MODEL_FOLDER {DEFAULT_STORE}")


def agreed_store_path(machine: "Machine", given: Path | None, may_lack: bool = False) -> Path:
    """Return the store that is meant on every rank; `may_lack`: also where this host has none. Collective."""
    from hepti_mpi.runtime import machine as machines

    with machines.together(machine.world):
        path = DEFAULT_STORE if may_lack and given is None and not list(WEIGHTS.glob("*.h5")) else store_path(given)
    return path


def profile_path(machine: "Machine") -> Path:
    """Return where rank 0 keeps this job's profile: beside its hostfile where mpirun tells it, else named after the first host."""
    from hepti_mpi.comm.launcher import host_name, launcher_hostfile

    hostfile = launcher_hostfile()
    if hostfile is not None:
        return Path(hostfile).with_suffix(".profile.json")
    return Path("hostfiles") / f"{host_name()}-{machine.world.size}.profile.json"


# words and progress


def say(machine: "Machine") -> Callable[[str], None]:
    """Return what tells a sentence once, on rank 0."""
    return SCREEN.say if machine.world.rank == 0 else lambda sentence: None


def put_out(output: Path | None, finished: Sequence[dict[str, Any]], head: Mapping[str, Any]) -> None:
    """Write the answers to all requests (outputs.Finished) of the run of `head` to `output`, or print them. Raises InputError."""
    from hepti_mpi.reporting import outputs
    from hepti_mpi.reporting.finished import sign

    if output is not None:
        outputs.write_finished(output, finished, partial(sign, head=head, tally=outputs.Tally.of(finished)))
    else:
        SCREEN.answers([item["answer"] for item in finished])


def size(count: float) -> str:
    from hepti_mpi.reporting.records import size

    return size(count)


@contextmanager
def progress_bar(label: str, total: int, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances a bar on standard error, which is drawn on a terminal only."""
    if not shown or SCREEN.quiet or _terminal(ERR) is None:
        yield lambda amount: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    drawn = float("-inf")
    # no thread of rich's: it would take time from what is measured
    with Progress(*columns, console=_console(ERR), transient=True, auto_refresh=False) as progress:
        _console(ERR).show_cursor(True)  # a rank can be ended at any time, which would leave the terminal without one
        task = progress.add_task(label, total=total)

        def advance(amount: int) -> None:
            nonlocal drawn
            progress.advance(task, amount)
            if time.monotonic() > drawn + DRAWN_SECONDS:
                drawn = time.monotonic()
                progress.refresh()

        yield advance
