"""Boards described by figures (boards.toml): how long one takes for a piece of work, and the profile of a cluster that nobody measured.

Knows the file and the model of a call's time; does not know models, plans or ranks.
"""

import json
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hepti_mpi.cluster.profile import BOARDS, PLAIN, ClusterProfile, NodeProfile, in_formats
from hepti_mpi.errors import ProfileError
from hepti_mpi.models.formats import FORMATS, Blocks, Columns

FILE = Path(__file__).with_name("boards.toml")
FIGURES = ("float32_gflops", "int8_gops", "int4_gops", "memory_gbs", "call_us")
SOURCES = ("measured", "published", "derived")
MOST_BOARDS = 1024
WIDTH = 78  # columns of what is printed to be copied
LAB, MOST_TIMES = "lab", 1000.0  # the board that a factor alone makes slower
ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 384)

# How arithmetic and reading add up, and what other work costs in operations of a product: one thread of x86 servers, ONNX Runtime 1.32.
# Products of BERT-Large and BERT-Base at 1 to 384 rows are within 7 %. The rest was measured on a Zen 4 of 98 to 110 GFLOP/s and 23 to
# 27 GB/s (tests/lab/results/kinds-of-work.md); boards with narrower vectors may need fewer operations for an element.
OVERLAP = 1.3  # p of the p-norm of both times: 1 is one after the other, infinity whichever is longer
ATTENTION = 1.2  # times as long as a product that a multiply-add of attention takes: 1.0 for one request, 1.4 for packed ones
ELEMENT = 80.0  # operations for an element of a residual sum with LayerNorm: 74 to 94
ACTIVATION = 80.0  # for one of an activation: 73 to 87 (gelu)
ARRANGED = 160.0  # for one that attention lays out by heads and back: 60 to 150 of one request, 190 to 250 of several packed ones
CAST = 5.0  # operations for an element cast to or from float16: 3 to 7.4
USABLE = 0.85  # of the memory: the system has the rest
SQUARE = 1024  # of a matrix by which the bytes of a weight are reckoned
CALLS = 8  # calls that an exchange of next to nothing takes its rank, beside the latency of the link


@dataclass(frozen=True)
class Work:
    """What a call does. `products`: (rows, weights) of matrix products, and the format of these where that is not f32; `attention`:
    multiply-adds of softmax(Q K^T) V and the elements that it lays out (`arranged`); `elements` of norms and residual sums, of
    `activations`, of `casts`; `copied`: bytes read and written by copies and sums; `calls` in which it is done."""

    products: tuple[tuple[float, float] | tuple[float, float, str], ...] = ()
    attention: float = 0.0
    arranged: float = 0.0
    elements: float = 0.0
    activations: float = 0.0
    casts: float = 0.0
    copied: float = 0.0
    calls: float = 1


@dataclass(frozen=True)
class Board:
    """A board by its figures: operations and bytes per second of all its cores. `sources`: of each figure, by its name in the file."""

    name: str
    title: str
    cores: int
    memory_bytes: int
    float32: float
    int8: float
    int4: float
    memory: float
    call_seconds: float
    sources: dict[str, str]

    def product_seconds(self, rows: float, weights: float = 1.0, format_name: str = "f32") -> float:
        """Return the seconds of a product of `rows` rows with a matrix of `weights` weights in a format, that no cache holds."""
        kind = FORMATS[format_name]  # blocks of 8 and of 4 bits have the same kernel
        rate = self.int8 if isinstance(kind, Columns) else self.int4 if isinstance(kind, Blocks) else self.float32
        arithmetic, reading = 2 * rows * weights / rate, weights * kind.held((SQUARE, SQUARE)) / SQUARE**2 / self.memory
        return float((arithmetic**OVERLAP + reading**OVERLAP) ** (1 / OVERLAP))

    def seconds(self, work: Work) -> float:
        """Return what a call takes that does this work."""
        spent = work.calls * self.call_seconds + sum(self.product_seconds(*product) for product in work.products)
        rest = ATTENTION * 2 * work.attention + ARRANGED * work.arranged + ELEMENT * work.elements + ACTIVATION * work.activations
        rest += CAST * work.casts
        return spent + rest / self.float32 + work.copied / self.memory

    def slower(self, times: float) -> "Board":
        """Return a board that takes `times` as long for everything."""
        speeds = {name: getattr(self, name) / times for name in ("float32", "int8", "int4", "memory")}
        return replace(self, call_seconds=self.call_seconds * times, **speeds)

    def node(self, host: str, formats: Mapping[str, float]) -> NodeProfile:
        """Return what measuring such a board, as a rank with all its cores, would find; `formats`: the part of the weights in each."""
        curve = (sum(part * self.product_seconds(rows, format_name=name) for name, part in formats.items()) for rows in ROWS)
        return NodeProfile(
            host, self.cores, self.cores, int(USABLE * self.memory_bytes), ROWS, tuple(curve),
            attention_seconds_per_mac=ATTENTION * 2 / self.float32, element_seconds=ELEMENT / self.float32,
            segment_seconds=self.call_seconds, cast_seconds=CAST / self.float32,
            activation_seconds=ACTIVATION / self.float32, arrange_seconds=ARRANGED / self.float32,
        )  # fmt: skip


@cache
def board_named(text: str) -> Board:
    """Return the board that `text` means: a name, NAME*2 for one twice as slow, or a number f for a board of the lab, LAB*f.

    Raises: ProfileError when it means none.
    """
    known, (name, star, times) = read_boards(), text.partition("*")
    if name not in known:
        name, star, times = LAB, "*", text
    try:
        factor = float(times) if star else 1.0
    except ValueError:
        raise ProfileError(f"no board {text!r:.40} is described; boards: {', '.join(known)}, or a factor such as 2.5") from None
    if not 1 <= factor <= MOST_TIMES:
        raise ProfileError(f"board {text!r:.40} is {factor:g} times slower, expected 1 to {MOST_TIMES:g}")
    return known[name].slower(factor)


def cluster_of(
    names: Sequence[str], mbit: float, latency_seconds: float, shape: tuple[int, int], formats: Mapping[str, float] = PLAIN
) -> ClusterProfile:  # fmt: skip
    """Return the profile of described boards, one rank each, on links of `mbit` Mbit/s; `shape`: (hidden, ffn) of the model; `formats`:
    the part of its weights that is in each.

    Raises: ProfileError for a board that is not described.
    """
    known = read_boards()
    unknown = [name for name in names if name not in known]
    if unknown:
        how = "each is named as often as there are, as in pi4,pi4,pi5; profile --describe, on another, says its entry for boards.toml"
        raise ProfileError(f"no board {unknown[0]!r:.40} is described; boards: {', '.join(known)}; {how}")
    if len(names) > MOST_BOARDS:
        raise ProfileError(f"{len(names)} boards are too many; at most {MOST_BOARDS}")
    boards = [known[name] for name in names]
    nodes = tuple(board.node(f"{board.name}-{names[: at + 1].count(board.name)}", formats) for at, board in enumerate(boards))

    def every(value: float) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(value if one != other else 0.0 for other in range(len(names))) for one in range(len(names)))

    calls = max(board.call_seconds for board in boards)
    exchange, start = (latency_seconds + CALLS * calls, calls) if len(boards) > 1 else (0.0, 0.0)
    about = {BOARDS: ",".join(names)} | in_formats(formats)
    return ClusterProfile(nodes, every(latency_seconds), every(mbit * 125e3), about, shape, exchange, start,
                          max(1 / board.memory for board in boards))  # fmt: skip


def read_boards(file: Path = FILE) -> dict[str, Board]:
    """Return every board of the file by its name. Raises ProfileError with the place of the first mistake."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProfileError(f"{file} cannot be read: {error}") from None
    return {name: _board(name, table, f"{file.name}, board {name}") for name, table in tables.items()}


def entry(board: Board) -> str:
    """Return a board as it stands in the file, in lines that a terminal does not break."""
    values = (board.float32 * 1e-9, board.int8 * 1e-9, board.int4 * 1e-9, board.memory * 1e-9, board.call_seconds * 1e6)
    lines = [f"[{board.name}]", _line("title", board.title), f"cores = {board.cores}"]
    lines += [f"memory_gib = {board.memory_bytes / (1 << 30):.3g}", *(f"{key} = {value:.3g}" for key, value in zip(FIGURES, values))]
    return "\n".join([*lines, f"[{board.name}.source]", *(_line(key, board.sources[key]) for key in FIGURES)])


def _line(key: str, text: str) -> str:
    """Return a text of a TOML file, which is in several lines where one would be too long. Source: TOML 1.0, "line ending backslash"."""
    line = f"{key} = {json.dumps(text)}"
    if len(line) <= WIDTH:
        return line
    parts = [json.dumps(part)[1:-1] for part in textwrap.wrap(text, WIDTH - 4, break_long_words=False, break_on_hyphens=False)]
    return f'{key} = """\\\n  ' + " \\\n  ".join(parts) + '"""'


def check_name(name: str, place: str) -> None:
    """Raise ProfileError when `name` cannot be a board's."""
    if not re.fullmatch(r"[a-z0-9-]{1,32}", name):
        raise ProfileError(f"{place}: {name!r:.40} is no name for a board; use a-z, 0-9 and -")


def _board(name: str, table: Any, place: str) -> Board:
    wanted = {"title", "cores", "memory_gib", *FIGURES, "source"}
    if not isinstance(table, dict) or set(table) != wanted:
        odd = sorted(wanted ^ set(table)) if isinstance(table, dict) else [name]
        raise ProfileError(f"{place}: wants {', '.join(sorted(wanted))} and nothing else; look at {', '.join(odd)}")
    check_name(name, place)
    for key in ("cores", "memory_gib", *FIGURES):
        value = table[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
            raise ProfileError(f"{place}: {key} is {value!r:.40}, expected a number above 0")
    source = table["source"]
    if not isinstance(source, dict) or set(source) != set(FIGURES):
        raise ProfileError(f"{place}: [{name}.source] wants a line for each of {', '.join(FIGURES)}")
    for key, text in source.items():
        if not isinstance(text, str) or text.partition(":")[0] not in SOURCES:
            raise ProfileError(f"{place}: the source of {key} begins with none of {', '.join(SOURCES)}")
    if not isinstance(table["cores"], int) or not isinstance(table["title"], str):
        raise ProfileError(f"{place}: cores is a whole number and title a text")
    float32, int8, int4, memory, call = (table[key] for key in FIGURES)
    return Board(name, table["title"], table["cores"], int(table["memory_gib"] * (1 << 30)), float32 * 1e9, int8 * 1e9, int4 * 1e9,
                 memory * 1e9, call * 1e-6, dict(source))  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A real call: its kind, what of it, the work that it is, what it took. `weights`: type of those of a product."""

    kind: str
    what: str
    work: Work
    seconds: float
    weights: str = "float32"
