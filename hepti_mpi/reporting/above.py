"""Where the time above the bound went: what a request took, beyond the least that is possible, told apart. Pure.

Knows prices and what each rank measured of each step; does not know how it is shown.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import OUTER, Compute, Program, Sync

MEANT = {
    "share": "this rank's part of the work, as fast as it does that of many rows, less the bound: it has more to do than where the bound "
    "is reached; below 0 where the wire sets the bound, or few rows do, which cost time where it is reached too",
    "few rows": "what its computing took beyond that: products of few rows are bound by reading the weights; also by what calls took "
    "longer than priced or, below 0, shorter",
    "waiting": "blocked by an exchange for longer than the rank that it blocked least: for a slower one",
    "starts": "what it takes to begin calls of computing and exchanges, by the profile",
    "rest": "what is left, above or below: copies and sums of exchanges, what lies between steps",
}
EXCHANGES = {
    "bcast": "the request from rank 0 to all", "scatterv": "each rank's rows from rank 0", "gatherv": "results back to rank 0",
    "allreduce": "sums of what each rank has, to all", "reduce_scatter": "sums of what each rank has, each rank its rows",
    "allgatherv": "the rows of each rank to all", "to_heads": "rows of all heads for all rows of the own heads",
    "to_rows": "and back, rows of the own heads for own rows of all heads",
}  # fmt: skip
LAST = ("waiting", "starts", "rest")  # of the parts, after the exchanges


def ordered(parts: Iterable[str]) -> list[str]:
    """Return each part once, those that are no exchange first and last."""
    every = dict.fromkeys(parts)
    return [part for part in every if part not in LAST] + [part for part in LAST if part in every]


def meant(part: str) -> str:
    """Say what a part is."""
    brought = f" ({EXCHANGES[part]})" if part in EXCHANGES else ""
    return MEANT.get(part, f"exposed wire: blocked by exchanges of the kind {part}{brought} while there was nothing to compute")


@dataclass(frozen=True)
class Above:
    """Seconds of a method's median request above the bound, in parts that sum to `seconds`, as the critical rank, `rank`, spent them.

    That is the one of the plan's that computes longest. `wire`: by kind of exchange, blocked by it while there was nothing to compute, as
    long as the rank that was blocked least, and by those with rank 0 in all; `waiting`: blocked for longer than that. `share`: its work at
    the speed of many rows, less the bound; `few_rows`: what computing took beyond that work and its calls; `starts`: of calls and our own
    exchanges, by the profile. `rest`: whatever else, so that the sum is exact: copies and sums of exchanges, what lies between steps.
    Medians over the requests.
    """

    rank: int
    seconds: float
    share: float
    few_rows: float
    starts: float
    waiting: float
    wire: dict[str, float]

    @property
    def rest(self) -> float:
        return self.seconds - self.share - self.few_rows - self.starts - self.waiting - sum(self.wire.values())

    def parts(self) -> dict[str, float]:
        """Return every part by its name, exchanges by their kinds."""
        own = {"share": self.share, "few rows": self.few_rows, **self.wire}
        return own | {"waiting": self.waiting, "starts": self.starts, "rest": self.rest}

    def to_json(self) -> dict[str, Any]:
        parts = {name: _short(value) for name, value in self.parts().items()}
        return {"rank": self.rank, "seconds": _short(self.seconds), "parts_seconds": parts}


def _short(value: float) -> float:
    return float(f"{value:.5g}")


class _Steady(Pricer):
    """Prices products as if few rows were multiplied as efficiently as many, and calls as if they cost nothing."""

    def __init__(self, spec: ModelSpec, profile: ClusterProfile, rows: int) -> None:
        super().__init__(spec, profile, rows)
        self.segment = np.zeros_like(self.segment)

    def _curve(self, rows: tuple[int, ...], seconds: tuple[float, ...]) -> np.ndarray:
        return np.arange(self.rows + 1) * float((np.array(seconds) / rows).min())


@dataclass(frozen=True)
class Measured:
    """What a method did: `seconds` of each request, `steps` [ranks, requests, steps] of seconds, and, of the last request, when each
    began, `began` [ranks, steps], by clocks that all ranks started together."""

    seconds: Sequence[float]
    steps: np.ndarray
    began: np.ndarray


def above_bound(
    spec: ModelSpec, profile: ClusterProfile, rows: int, plan: Plan, program: Program, measured: Measured, bound_seconds: float
) -> Above:  # fmt: skip
    """Return where the time of a request of `rows` rows above `bound_seconds` went."""
    steps = measured.steps
    computing = [place for place, step in enumerate(program) if isinstance(step, Compute)]
    computed = np.median(steps[:, :, computing].sum(axis=2), axis=1)  # [ranks]
    rank = max(plan.active, key=lambda one: computed[one])
    steady = _Steady(spec, profile, rows)
    place = int(steady.places(plan.active)[plan.active.index(rank)])
    least = float(steady.price(program, plan).compute[rank])
    segment = Pricer(spec, profile, rows).segment[place]
    calls = float(segment) * int((steps[rank][:, computing] > 0).any(axis=0).sum())
    starts = profile.start_seconds if plan.collectives == "own" and {0, *plan.active} != {rank} else 0.0
    exchanges = [(at, step) for at, step in enumerate(program) if isinstance(step, Sync) and step.kind != "slice"]
    wire, waiting = _blocked(plan, rank, exchanges, steps)
    late = measured.seconds[-1] - float((measured.began[rank] + steps[rank, -1]).max())
    if rank != 0 and late > 0:  # what comes to rank 0 after the critical one has done all
        wire["gatherv"] = wire.get("gatherv", 0.0) + late
    return Above(
        rank, float(np.median(measured.seconds)) - bound_seconds, least - bound_seconds, float(computed[rank]) - calls - least,
        calls + starts * len(exchanges), waiting, {kind: value for kind, value in wire.items() if value > 0},
    )  # fmt: skip


def _blocked(plan: Plan, rank: int, exchanges: Sequence[tuple[int, Sync]], steps: np.ndarray) -> tuple[dict[str, float], float]:
    """Return the seconds for which exchanges blocked a rank, by their kind, and those for which it waited for a slower one."""
    wire: dict[str, np.ndarray] = {}
    waited = np.zeros(steps.shape[1])
    for place, step in exchanges:
        own = steps[rank, :, place]
        least = own if step.kind in OUTER else steps[list(plan.active), :, place].min(axis=0)
        wire[step.kind] = wire.get(step.kind, 0.0) + least
        waited += own - least
    return {kind: float(np.median(values)) for kind, values in wire.items()}, float(np.median(waited))
