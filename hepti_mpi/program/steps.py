"""The steps of one inference: what is computed between which exchanges. Pure: knows no time, file, MPI or ONNX.

A **program** is one flat tuple of `Compute` and `Sync` steps, the same for every rank: ranks differ only in how many heads,
columns and rows they hold (`Plan`). The cost model prices it, `Part` lists the weights of a rank, the graph builder makes one ONNX
segment of each Compute and the engine walks it, so these four cannot disagree about what is done.

Every value is [rows, width] and has one of three distributions: `full` (every rank holds all rows), `rows` (rank i holds its own
rows) or `partial` (all rows of a term; the sum over ranks is the value). A block of a layer is computed by heads or
columns (needs full, gives partial) or by rows (needs rows, gives rows). After each block comes its tail: residual sum and LayerNorm.

The rows of a request may be cut into tiles, each divided among the ranks: a step is then done per tile, and while one tile travels
the next is computed. The order of the steps is one in which they can be done; `dependencies` says which must wait for which.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from hepti_mpi.program.operation import Op
from hepti_mpi.program.ownership import EXCHANGES, Holding

EMBEDDED = "embedded"  # [rows, hidden] on the root: what the layers start from
RESULT = "result"  # [rows, hidden] on the root: the last hidden state
BYTES = {"float32": 4, "float16": 2, "int8": 1}  # of a number


@dataclass(frozen=True)
class Compute:
    """A run of operations without an exchange: one ONNX segment, the same for all tiles.

    All its rows are in one distribution, `full` or `rows`, and in tile `tile`.
    """

    ops: tuple[Op, ...]
    distribution: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    tile: int = 0

    def of_tile(self, tile: int) -> "Compute":
        """Return the same of another tile."""
        return Compute(self.ops, self.distribution, self.reads, self.writes, tile)


@dataclass(frozen=True)
class Sync:
    """An exchange between ranks that turns `reads` into `writes`, one for one.

    `kind`: what the move is called, of EXCHANGES: bcast and scatterv bring the embedding from the root; allreduce (partial to full),
    reduce_scatter (partial to rows), allgatherv (rows to full), to_heads (rows of all heads to all rows of the own heads) and to_rows
    (back); gatherv takes the result to the root; slice (full to rows) moves nothing. `width`: numbers in a row of each value, of all heads.

    `wire`: the type that travels; where it is int8, `scales`: how many a row has. What it reads is of that type then, numbers and scales of
    one value after the other; of a sum of rows it reads the float32 term too, first, and writes a float32 sum.
    """

    kind: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    tile: int = 0
    width: int = 0
    wire: str = "float32"
    scales: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of all values as they travel."""
        values = len(self.writes) // (2 if self.scales and not self.have.terms else 1)
        return values * (self.width * BYTES[self.wire] + self.scales * BYTES["float32"])

    def of_tile(self, tile: int) -> "Sync":
        """Return the same of another tile."""
        return Sync(self.kind, self.reads, self.writes, tile, self.width, self.wire, self.scales)

    @property
    def have(self) -> Holding:
        """How ranks hold what it reads."""
        return EXCHANGES[self.kind][0]

    @property
    def want(self) -> Holding:
        """How ranks hold what it writes."""
        return EXCHANGES[self.kind][1]


class Value(NamedTuple):
    """What a rank holds of a value that outlives its Compute. `rows`: "full", "rows" (its own) or "root" (all, on rank 0 alone);
    `columns`: "hidden" (all) or "heads" (those of its own heads); `tile`: None where it spans all tiles; `dtype`: of its numbers;
    `width`: numbers in a row, of all heads."""

    rows: str
    columns: str
    tile: int | None
    dtype: str = "float32"
    width: int = 0


class Same:
    """What something is known by that has no quick hash: itself. Whoever keeps this keeps `it`, so that nothing else has its place."""

    def __init__(self, it: Any) -> None:
        self.it = it

    def __hash__(self) -> int:
        return id(self.it)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.it is other.it


Step = Compute | Sync
Program = tuple[Step, ...]
OUTER = ("bcast", "scatterv", "gatherv")
KEPT_STEPS = 12_000  # of programs of late: a search makes some 40 of a few layers, by which the next one for the same model begins
