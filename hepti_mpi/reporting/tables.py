"""Numbers as people say them, and tables that fit where they are shown. Knows text and widths; does not know what is told.

Widths are columns of a screen, of which letters of Chinese, Japanese and Korean and emoji take two.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

GAP = 2  # characters between columns
INDENT = 2  # of cells under a name that has a line of its own, and of what goes on in the next line
TOGETHER = "\0"  # a blank at which no line ends
WIDER = "\1"  # stands for the second column of what takes two
COMMAND = re.compile(r"(?:(?<=: )|(?<=^  ))(?:[^\s;]*/)?(?:mpirun|python3?|hepti_mpi|ssh|scp|rsync|bash) (?:'[^']*'|[^;'])*")
UNIT = re.compile(r"(?<=\d) (?=(?:h|min|s|ms|us|ns|[KMG]?i?B|[MGT]?bit|[MGT]?FLOP|Gop|GHz|%|x)\b|%)")  # the blank in front of it
WORD = re.compile(r"(?:'[^']*'|\"[^\"]*\"|\S)+")  # of a command


def columns(text: str) -> int:
    """Return how many columns of a screen `text` takes; of emoji that are joined from several the most that terminals draw.

    >>> columns("four"), columns("你好")
    (4, 4)
    """
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return max(cell_len(text), sum(map(cell_len, text)))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], width: int | None = None) -> str:
    """Return a plain table; the first column is text, the others are aligned to the right.

    `width`: columns of the screen. Where all columns are wider together, those to the right go below the others, with the first column
    again; where the first column is wider than half of it, its cells have lines of their own. No cell is cut or wrapped.
    """
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(columns(line[column]) for line in lines) for column in range(len(head))]
    if width is None or sum(widths) + GAP * (len(widths) - 1) <= width:
        return "\n".join(_block(lines, widths, range(1, len(widths)), False))
    apart = widths[0] > width // 2
    room = width - (INDENT - GAP if apart else widths[0])
    return "\n\n".join("\n".join(_block(lines, widths, some, apart)) for some in _shared_out(widths, room))


def _shared_out(widths: Sequence[int], room: int) -> list[range]:
    """Return the columns after the first in as few blocks as have room, about as wide as each other."""

    def blocks(most: int) -> list[range]:
        found, begin, used = [], 1, 0
        for column in range(1, len(widths)):
            needed = widths[column] + GAP
            if column > begin and used + needed > most:
                found.append(range(begin, column))
                begin, used = column, 0
            used += needed
        return [*found, range(begin, len(widths))]

    fewest = len(blocks(room))
    return next(found for most in range(1, room + 1) if len(found := blocks(most)) == fewest) if room > 0 else blocks(room)


def _block(lines: Sequence[Sequence[str]], widths: Sequence[int], some: range, apart: bool) -> Iterator[str]:
    """Yield the lines of a table with the first column and `some` of the others."""

    def blanks(line: Sequence[str], column: int) -> str:
        return " " * (widths[column] - columns(line[column]))

    for number, line in enumerate(lines):
        cells = (" " * GAP).join(blanks(line, column) + line[column] for column in some).rstrip()
        if not apart:
            yield (line[0] + blanks(line, 0) + " " * GAP + cells).rstrip()
            continue
        if number and line[0]:
            yield line[0]
        yield " " * INDENT + cells


def folded(text: str, width: int | None) -> str:
    """Return `text` with lines of at most `width` columns, broken between words and not before a unit; a longer word is left
    whole, and so is a command that stands at the beginning or after a colon, so that it can be copied: it goes on after a backslash.

    >>> print(folded("  why:  ranks that cannot connect wait for ever", 30))
      why:  ranks that cannot
        connect wait for ever
    >>> print(folded("86.6 MiB in 10.5 s", 17))
    86.6 MiB in
      10.5 s
    >>> print(folded("start it: mpirun -n 2 python -m hepti_mpi run", 30))
    start it:
      mpirun -n 2 python -m \\
      hepti_mpi run
    """
    lines: list[str] = []
    for line in text.split("\n"):
        if not width or columns(line) <= width:  # a terminal that does not know how wide it is says 0
            lines.append(line)
            continue
        indent = " " * (len(line) - len(line.lstrip(" ")) + INDENT)
        begin = 0
        for found in COMMAND.finditer(line):
            lines += _wrapped(line[begin : found.start()], width, indent if begin else "", indent)
            lines += _continued(found[0], width, indent if line[: found.start()].strip() else indent[INDENT:])
            begin = found.end()
        lines += _wrapped(line[begin:].removeprefix(";"), width, indent if begin else "", indent)
    return "\n".join(lines)


def _wrapped(text: str, width: int, first: str, indent: str) -> list[str]:
    text = UNIT.sub(TOGETHER, text.strip() if first else text.rstrip())
    if not text.isascii():
        text = "".join(letter + WIDER * (columns(letter) - 1) for letter in text)
    lines = textwrap.wrap(text, width, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace(TOGETHER, " ").replace(WIDER, "") for line in lines]


def _continued(command: str, width: int, indent: str) -> list[str]:
    lines = [indent]
    for word in WORD.findall(command):
        if lines[-1] != indent and columns(lines[-1]) + 1 + columns(word) + 2 > width:
            lines[-1] += " \\"
            lines.append(indent)
        lines[-1] += word if lines[-1] == indent else f" {word}"
    return lines


def shortened(text: str, most: int) -> str:
    """Return `text` with at most so many columns.

    >>> shortened("a small boat", 8), shortened("一条小船", 6)
    ('a small…', '一条…')
    """
    if columns(text) <= most:
        return text
    end = room = max(most - 1, 0)
    while columns(text[:end]) > room:
        end -= 1
    while columns(text[: end + 1]) <= room:  # of letters that take none, such as accents by themselves
        end += 1
    return text[:end] + "…"


def milliseconds(seconds: float | None) -> str:
    """Return a time, or the difference of two, in milliseconds.

    >>> [milliseconds(seconds) for seconds in (None, 0.01234, 12.345, -4e-5, -6e-5)]
    ['-', '12.3', '12345', '0.0', '-0.1']
    """
    return "-" if seconds is None else f"{round(seconds * 1e3, 1) + 0.0:.1f}" if seconds < 10 else f"{seconds * 1e3:.0f}"


def duration(seconds: float) -> str:
    """Return a time as people say it.

    >>> [duration(seconds) for seconds in (0.0123, 4.56, 31.9, 754, 7380)]
    ['0.01 s', '4.6 s', '32 s', '12 min 34 s', '2 h 3 min']
    """
    if seconds < 9.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 7200 else f"{whole // 3600} h {whole % 3600 // 60} min"


def rate(a_second: float) -> str:
    """Return how many a second, with three digits.

    >>> [rate(value) for value in (0.1234, 7.891, 45.67, 1234.5)]
    ['0.123', '7.89', '45.7', '1,234']
    """
    digits = next((digits for digits, least in ((0, 100), (1, 10), (2, 1)) if a_second >= least), 3)
    return f"{a_second:,.{digits}f}"


def size(count: float) -> str:
    """Return bytes as people say them.

    >>> size(1536 * 1024)
    '1.5 MiB'
    """
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
