"""What pictures of benches have in common: 9 inches wide, a band with title and legend, the axes, a band with the caption, so that nothing
lies on the data. The only user of matplotlib, which is not installed by default, and where the others have it from; does not know what
is drawn.
"""

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hepti_mpi.documents import whole_file
from hepti_mpi.errors import InputError, reason_of
from hepti_mpi.reporting.benches import Bench
from hepti_mpi.wording import counted

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes as Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg as Canvas
    from matplotlib.figure import Figure as Figure
    from matplotlib.lines import Line2D as Line2D
    from matplotlib.patches import Patch as Patch
    from matplotlib.patheffects import withStroke as withStroke
    from matplotlib.textpath import TextPath
    from matplotlib.ticker import FixedLocator as FixedLocator
    from matplotlib.ticker import FuncFormatter as FuncFormatter
    from matplotlib.ticker import MaxNLocator as MaxNLocator
    from matplotlib.ticker import NullLocator as NullLocator
except ImportError:
    raise InputError("pictures need matplotlib, which is not installed; install it with: python -m pip install matplotlib") from None

WIDTH, DPI, EDGE = 9.0, 150, 0.1  # inches, dots per inch, inches
TEXT, SMALL = 10.0, 8.5  # points
SETTINGS: Any = {
    "font.size": TEXT, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "text.parse_math": False,
    "axes.titlesize": TEXT, "axes.titlelocation": "left", "legend.frameon": False, "grid.color": "#E4E4E4", "path.simplify": False,
}  # fmt: skip


def save(draw: Callable[..., Figure], path: Path, *given: Any) -> None:
    picture = io.BytesIO()
    with rc_context(SETTINGS):
        Canvas(draw(*given)).print_png(picture)  # `savefig` draws all twice
    write(path, picture.getvalue())


def write(path: Path, content: bytes) -> None:
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {reason_of(error)}") from None


def page(height: float, title: str, legend: Sequence[Any], caption: str = "") -> Figure:
    """Return a figure with `height` inches for axes and what is written around them; `legend`: handles."""
    titles, captions = textwrap.wrap(title, 98, break_on_hyphens=False), textwrap.wrap(caption, 132)
    places = _legend_columns([inches(handle.get_label(), TEXT) + 0.54 for handle in legend])
    top = EDGE + 0.22 * len(titles) + 0.215 * math.ceil(len(legend) / places) + 0.12
    bottom = 0.165 * len(captions) + EDGE
    whole = top + height + bottom
    figure = Figure((WIDTH, whole), dpi=DPI, layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, bottom / whole, 1, height / whole), h_pad=0.06, w_pad=EDGE / 2)
    left = EDGE / WIDTH
    figure.text(left, 1 - EDGE / whole, "\n".join(titles), va="top", weight="bold", size=TEXT + 1)
    if legend:
        figure.legend(
            handles=legend, loc="upper left", bbox_to_anchor=(left, 1 - (EDGE + 0.22 * len(titles)) / whole), ncols=places,
            borderpad=0, borderaxespad=0.3, handlelength=1.6, columnspacing=1.4, labelspacing=0.4,
        )  # fmt: skip
    figure.text(left, EDGE / whole, "\n".join(captions), size=SMALL, color="#444444")
    return figure


def _legend_columns(widths: Sequence[float]) -> int:
    """Return into how many columns entries of these widths fit, when they are filled one after the other as matplotlib does."""
    for columns in range(len(widths), 1, -1):
        rows, longer = divmod(len(widths), columns)
        ends = np.cumsum([rows + (place < longer) for place in range(columns)])
        if sum(max(part) for part in np.split(np.array(widths), ends[:-1])) <= WIDTH - 2 * EDGE:
            return columns
    return 1


@lru_cache(4096)  # the same numbers and names stand in many pictures
def inches(text: str, points: float) -> float:
    return TextPath((0, 0), text, size=points).get_extents().width / 72 if text.strip() else 0.0


def short(name: str, limit: int = 26) -> str:
    """Return a name on one line, without its middle where it is long.

    >>> short("a-board-with-a-name-that-goes-on-boost", 20)
    'a-board-with…n-boost'
    """
    name = " ".join(name.split())
    return name if len(name) <= limit else f"{name[: limit - 8]}…{name[-7:]}"


def what(bench: Bench) -> str:
    return f"{short(bench.model, 40)}, {counted(bench.rows, 'rows')}, {short(bench.cluster, 40)}"


def unit_of(seconds: float) -> tuple[float, str]:
    """Return the factor and the name of the unit for times of up to `seconds`."""
    return (1e3, "ms") if seconds < 10 else (1.0, "s")


def digits(value: float) -> str:
    """Return three significant digits, also noughts, which others stand below; all of them where there are more before the point.

    >>> digits(1660.4), digits(16.604), digits(20), digits(0.5), digits(99.97), digits(-1660.4), digits(0)
    ('1660', '16.6', '20.0', '0.500', '100', '-1660', '0')
    """
    return f"{value:.0f}" if abs(value) >= 100 or not value else f"{value:#.3g}".rstrip(".")


def columns(axes: Axes, heads: Sequence[str], rows: Sequence[Sequence[str]], every: int = 1) -> None:
    """Write each `every`-th row of a table to the right of `axes`, whose y is the number of the row."""
    right = 8.0
    for place, head in enumerate(heads):
        right += 72 * max(inches(text, TEXT) for text in (head, *(row[place] for row in rows))) + 4
        style: Any = {"textcoords": "offset points", "ha": "right", "annotation_clip": False}
        axes.annotate(head, (1, 1), (right, 3), "axes fraction", va="bottom", color="#444444", **style)
        for y, row in list(enumerate(rows))[::every]:
            axes.annotate(row[place], (1, y), (right, 0), ("axes fraction", "data"), va="center_baseline", **style)
        right += 10
