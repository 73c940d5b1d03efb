"""The terminal that people see what is printed on, if there is one. Knows descriptors and letters; does not know what is said.

Under mpirun the terminal is mpirun's: a rank has none of its own, or one that nobody looks at. What nobody reads any more (a pipe to
`head`, a terminal that was closed) is not an error: nothing more is printed there.
"""

import errno
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.errors import HostError

if TYPE_CHECKING:
    from rich.console import Console

IN, OUT, ERR = 0, 1, 2  # descriptors
TAB = 8  # columns between the stops of a terminal
COLUMNS = "HEPTI_COLUMNS"  # environment variable: of the terminal on which this process shows what its ranks print
CLEAR = "\r\x1b[K"  # the line that the cursor is in; with color=True, as click takes it out of what goes to a pipe: under mpirun

closed: set[int] = set()  # descriptors that nobody reads
drawn: list[Callable[[], None]] = []  # wipes what is drawn where something else is to be printed now
begun: set[str] = set()  # places (terminals, pipes, files) with a line that goes on
beside: list[int] = []  # where another rank may have begun a line that goes on, which this one does not know of: columns, 0 in a log


def place_of(descriptor: int) -> str | None:
    """Return where what is written to this descriptor ends up, of two that share a pipe or a file the same: under mpirun that of mpirun."""
    from hepti_mpi.comm.launcher import LAUNCHERS, PARENT, launched

    if (sys.stdout, sys.stderr)[descriptor == ERR] is not (sys.__stdout__, sys.__stderr__)[descriptor == ERR]:
        return None  # somebody collects what is printed
    try:
        if launched() and Path(f"/proc/{PARENT}/comm").read_text(errors="replace").strip() not in LAUNCHERS:
            return None  # a script between mpirun and this rank: its terminal may be one that mpirun made
        return os.readlink(f"/proc/{PARENT if launched() else 'self'}/fd/{descriptor}")
    except OSError:
        return None


def path(descriptor: int) -> str | None:
    """Return the terminal that people see this descriptor on, or None: under mpirun that of mpirun."""
    found = place_of(descriptor)
    return found if found is not None and found.startswith(("/dev/pts/", "/dev/tty")) else None


def is_typed(source: str | None) -> bool:
    """Tell whether an input is what people type, whose lines are on the terminal that they see."""
    return source == "-" and path(IN) is not None


@cache
def console(descriptor: int) -> "Console":
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
    place, columns = path(descriptor), None
    if place is not None:
        try:
            with open(place, "rb") as file:
                columns = os.get_terminal_size(file.fileno()).columns or None
        except OSError:
            pass
    return Console(file=sys.stdout if descriptor == OUT else sys.stderr, force_terminal=place is not None, width=columns,
                   highlighter=Words(), theme=theme, markup=False, emoji=False, soft_wrap=True)  # fmt: skip


def width(descriptor: int) -> int | None:
    if path(descriptor) is not None:
        return console(descriptor).width
    if beside:
        return beside[0] or None
    told = os.environ.get(COLUMNS, "")
    return int(told) if told.isdecimal() and int(told) else None


def hand_on(descriptor: int) -> None:
    """Tell processes that are started from now on how wide the terminal is where what they print is shown, if there is one."""
    columns = width(descriptor)
    if columns is not None:
        os.environ[COLUMNS] = str(columns)


def write(descriptor: int, text: Any, plain: bool = False, ends: bool = True) -> None:
    """Print text, or on a terminal what rich can draw; `plain`: as it is, for programs; not `ends`: the line goes on. Raises HostError."""
    if descriptor in closed:
        return
    make_room()
    place = path(descriptor)
    try:
        if ends:
            end_line(descriptor)
        elif (where := place_of(descriptor)) is not None:
            (begun.discard if text.endswith("\n") else begun.add)(where)
        if beside and descriptor == ERR:
            draw(_new_line(beside[0]))
        if plain or place is None:
            click.echo(text, err=descriptor == ERR, nl=ends)
        else:
            if descriptor == ERR and not beside:
                draw(CLEAR)  # another rank may have drawn there
            console(descriptor).print(text, crop=False)
    except OSError as error:
        _refused(descriptor, error)


def pass_on(descriptor: int, text: str) -> None:
    """Print whole lines of other processes. Raises HostError."""
    if text:
        write(descriptor, text.removesuffix("\n"), plain=True)


def draw(text: str) -> None:
    """Put text where the cursor is on the terminal that shows standard error, where that is still there."""
    try:
        if ERR not in closed:
            click.echo(text, err=True, nl=False, color=True)
    except OSError as error:
        _refused(ERR, error)


def end_line(descriptor: int = ERR) -> None:
    """End the line that goes on, if there is one there: something else is said now, which would wipe it, or stick to it."""
    if goes_on(descriptor):
        begun.discard(place_of(descriptor) or "")
        click.echo(err=descriptor == ERR)


def columns_of_lines() -> int | None:
    """Return the columns of the terminal on which lines that go on and what is said meanwhile are seen, 0 of a log or pipe that gets both,
    None where they are apart."""
    place = place_of(OUT)
    if place is None or place != place_of(ERR):
        return None
    return console(OUT).width if path(OUT) is not None else 0


def _new_line(columns: int) -> str:
    """Return what leads to the beginning of a line that is empty, wherever the cursor is: blanks of a whole line fill what is left of one
    that goes on and a part of the next, or an empty one and no more. Source: PROMPT_SP of zsh."""
    return " " * columns + CLEAR if columns else "\n"


def goes_on(descriptor: int) -> bool:
    """Say whether a line goes on where this descriptor leads."""
    return bool(begun) and place_of(descriptor) in begun


def has_keys() -> bool:
    """Say whether a line can be changed while it is typed: not where the terminal is that of mpirun, which hands on whole lines."""
    from hepti_mpi.comm.launcher import launched

    return not launched() and None is not path(IN) == path(OUT)


def typed(prompt: str) -> Iterator[str]:
    """Yield lines that are typed behind `prompt` where keys can be had: arrows move in a line and call back those before it, and lines
    that are pasted are one."""
    with suppress(ImportError):  # a Python that was built without it
        import readline

        readline.parse_and_bind("set enable-bracketed-paste on")  # Python turns that off, for its own prompt
    place = path(OUT) or ""
    with suppress(EOFError):
        while True:
            begun.add(place)
            line = input(prompt)
            begun.clear()  # who typed it has ended the line
            yield line


def flush() -> None:
    """Write what standard output has not got yet. Raises HostError."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _refused(OUT, error)


def check_printed(error: OSError) -> None:
    """Raise HostError where standard output did not take what click prints by itself, --help and --version."""
    import traceback

    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    if frame.f_globals.get("__name__") == click.echo.__module__:
        _refused(OUT, error)


def _refused(descriptor: int, error: OSError) -> None:
    is_gone = isinstance(error, BrokenPipeError) or error.errno == errno.EIO and path(descriptor) is not None
    close(descriptor)
    if descriptor == OUT and not is_gone:  # nobody can be told what standard error does not take
        raise HostError(f"standard output takes no more: {error.strerror}; free space there, or send it elsewhere") from None


class Flow:
    """Text that comes in parts, folded between words where lines have a `width`, else as it is: the newest word waits for its end."""

    def __init__(self, width: int | None) -> None:
        self.width, self.column, self.word = width, 0, ""

    def add(self, text: str) -> str:
        """Return what is to be shown after the next part of the text."""
        if self.width is None:
            return text
        shown = []
        for letter in text:
            if letter not in "\n\t" and unicodedata.category(letter) == "Cc":
                continue  # a model's words move no cursor and tell the terminal nothing
            wide = unicodedata.east_asian_width(letter) in "WF"
            if letter not in " \n\t" and not wide:
                self.word += letter
                continue
            shown.append(self.end())
            if letter == "\n":
                shown.append(letter)
                self.column = 0
            elif wide:
                shown.append(self._placed(letter, 2))
            elif self.column < self.width:  # a blank at the end of a line is not seen
                blanks = 1 if letter == " " else min(TAB - self.column % TAB, self.width - self.column)
                shown.append(" " * blanks)
                self.column += blanks
        return "".join(shown)

    def end(self) -> str:
        """Return the word that waits."""
        word, self.word = self.word, ""
        if not word:
            return ""
        from hepti_mpi.reporting.tables import columns

        return self._placed(word, columns(word))

    def _placed(self, word: str, size: int) -> str:
        assert self.width is not None
        ahead = "\n" if self.column and self.column + size > self.width else ""
        self.column = ((0 if ahead else self.column) + size - 1) % self.width + 1
        return ahead + word


def close(descriptor: int) -> None:
    """Print nothing more there, neither when Python writes out what is left at the end."""
    closed.add(descriptor)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def make_room() -> None:
    """Wipe what is drawn, which is drawn again: something else is shown there now."""
    for wipe in list(drawn):
        wipe()
