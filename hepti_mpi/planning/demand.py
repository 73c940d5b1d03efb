"""What a plan is wanted for, and what the search answers. Knows no search and no price of its own."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from hepti_mpi.errors import PlanError
from hepti_mpi.models.formats import F32, FORMATS, Format
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.capacity import check_limits
from hepti_mpi.planning.memory import FULL
from hepti_mpi.program.plan import Wire
from hepti_mpi.wording import counted

if TYPE_CHECKING:
    from hepti_mpi.planning.candidates import Candidate  # which those who only ask need not import


@dataclass(frozen=True)
class Demand:
    """What a plan is wanted for. `rows`: of the batch that is priced; `attended`: rows that each row attends to, as a rule.
    `largest`, `longest`: rows of the largest batch and of the longest request that memory must hold; None: `rows`.
    `limits`: bytes per rank, or None to use what the profile found; `shares`: forced proportions.

    `strategy`: auto, tensor, hybrid or sequence; `layout`: a forced (attention, mlp) layout; `mode`: packed, mapped or auto.
    `wires`: what may travel, each as of a plan's `wire`.
    `prepacked`: whether ranks keep mapped weights as kernels read them, in files of their own.

    `kept`: rows whose keys and values stay with who has their heads, of texts under way, whose words are divided as columns are; None: not
    texts. `cache`: the type of numbers in which they stay. `prompt`, `answer`: rows that a text begins with, and how many are added one by
    one.
    """

    rows: int
    attended: int | None = None
    largest: int | None = None
    longest: int | None = None
    strategy: str = "auto"
    layout: tuple[str, str] | None = None
    shares: tuple[float, ...] | None = None
    limits: tuple[int, ...] | None = None
    mode: str = "auto"
    wires: tuple[Wire, ...] = ("float32",)
    kept: int | None = None
    cache: str = FULL
    prompt: int = 0
    answer: int = 1
    prepacked: bool = False

    @property
    def paged(self) -> tuple[Format, ...]:
        """The formats in which weights may stay in pages of a file: of the store's products can read float32 numbers only."""
        if self.mode != "mapped":
            return ()
        return tuple(FORMATS.values()) if self.prepacked else (F32,)

    def check(self, ranks: int) -> None:
        """Raise PlanError unless what is given for each rank is given for so many."""
        if self.shares is not None and (len(self.shares) != ranks or min(self.shares) < 0 or not sum(self.shares)):
            given = f"{counted(len(self.shares), 'entries')}, the job has {counted(ranks, 'ranks')}"
            raise PlanError(f"--shares has {given}; shares are at least 0 and not all 0")
        check_limits(self.limits, ranks)

    def paging(self, spec: ModelSpec) -> str:
        """Return the options with which weights stay in pages of a file; "" where they do."""
        cache = not self.plain(spec) and not self.prepacked
        return "--weights-mode mapped" * (self.mode != "mapped" or cache) + " --weights-cache FOLDER" * cache

    def mapped(self, spec: ModelSpec) -> "Demand":
        """Return the same with weights in pages of a file, of a rank's own where products can read none of the store."""
        return replace(self, mode="mapped", prepacked=self.prepacked or not self.plain(spec))

    @staticmethod
    def plain(spec: ModelSpec) -> bool:
        """Tell whether products can read all weights of the layers from the store's own file."""
        return set(spec.product_formats) == {F32.name}


class Exchange(NamedTuple):
    """How values travel: plan.reduction, plan.collectives and plan.wire."""

    reduction: str
    collectives: str
    wire: Wire = "float32"


MPI = Exchange("allreduce", "mpi")


@dataclass(frozen=True)
class Decision:
    """The chosen candidate and the best of every other kind, soonest first; `unfit`: kinds that no subset of ranks can hold.

    `with_rank`: seconds of the best plan that gives each rank a part beside others; missing where no such plan was allowed or fits.
    `by_ranks`: seconds of the best for each number of ranks. `close`: what its climb led to as well, cut into tiles in another way.
    `ruled_out`: of ranks that no plan could give a part, why.
    """

    chosen: "Candidate"
    others: "tuple[Candidate, ...]"
    unfit: tuple[str, ...]
    notes: tuple[str, ...]
    with_rank: dict[int, float]
    close: "tuple[Candidate, ...]" = ()
    by_ranks: dict[int, float] = field(default_factory=dict)
    ruled_out: dict[int, str] = field(default_factory=dict)
