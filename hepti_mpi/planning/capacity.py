"""The words where no plan fits into memory: which rank lacks how many bytes, and what would help. Pure: knows numbers, no plan."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hepti_mpi.errors import CapacityError, PlanError
from hepti_mpi.wording import counted


@dataclass(frozen=True)
class Lack:
    """What the worst rank lacks under the leanest plan, of a `strategy` on so many `ranks`: `bytes` of memory beside the `has` that it has.

    `whole`: bytes of all layers' weights, 0 where they stay in the file; `shared`: whether the plan fits when every rank gets as much more;
    `paging`: the options with which they stay there. `making`: bytes of them that are in memory while files with mapped ones are made or
    opened, where that is more than the rank has, else 0; `plain`: whether they can be mapped without such files.
    """

    strategy: str
    ranks: int
    rank: int
    host: str
    bytes: float
    has: int
    whole: int
    shared: bool
    paging: str
    making: int
    plain: bool

    @property
    def missing(self) -> int:
        return max(1, math.ceil(self.bytes))

    @property
    def way(self) -> str:
        """How weights take less memory, "" where they cannot."""
        how = [f"with {self.paging}"] * bool(self.paging) + ["without --weights-cache"] * bool(self.making)
        if not how or self.making and not self.plain:
            return ""
        there = ", if each host has the store" * bool(self.making)
        return f"run {' and '.join(how)}{there}, which reads weights from storage while computing"


def check_limits(limits: Sequence[int] | None, ranks: int) -> None:
    """Raise PlanError unless there is a limit for each rank, or none at all."""
    if limits is not None and len(limits) != ranks:
        raise PlanError(f"--memory-limit has {counted(len(limits), 'entries')}, the job has {counted(ranks, 'ranks')}")


def refusal(lack: Lack, room: Callable[[int], float], largest: int, longest: int) -> CapacityError:
    """Return the error that says so and what helps. `room`: bytes that are left for weights on the worst rank when batches have so many
    rows; `largest`, `longest`: rows of the largest batch and of the longest request."""
    weights = f"the layers' weights are {lack.whole} bytes in all" if lack.whole else "weights stay in the file"
    if lack.making and not lack.whole:
        weights = f"{lack.making} bytes of weights are in memory while a file of --weights-cache is made or opened, then {weights}"
    plan = f"{lack.strategy} on {counted(lack.ranks, 'ranks')}"
    given = "; given to every rank it suffices" * lack.shared
    return CapacityError(
        f"no plan fits: under the leanest plan allowed ({plan}) rank {lack.rank} on {lack.host} lacks {lack.missing} bytes "
        f"(it has {lack.has}, {weights}{given}); {_ways(lack, room, largest, longest)}"
    )


def _ways(lack: Lack, room: Callable[[int], float], largest: int, longest: int) -> str:
    least, also = f"give each rank at least {lack.has + lack.missing} bytes", f"{lack.way}, and " * bool(lack.way)
    if (lack.whole or lack.way) and room(largest) >= 0:
        more = "give more memory, add ranks" if lack.whole else least
        return f"{more}, or {lack.way}" if lack.way else "give more memory or add ranks"
    if longest < largest and room(longest) >= 0:
        return f"{least}, or {also}make batches of fewer rows than {largest}, with --batch-rows {longest}"
    if longest > 1 and room(1) >= 0:
        return f"{least}, or {also}give shorter requests than one of {counted(longest, 'rows')}"
    return f"{least}: what it has is too little for a request of any length"
