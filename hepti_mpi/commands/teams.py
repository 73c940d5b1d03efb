"""When teams are wanted. Knows options; does not know how teams are chosen or a batch is answered."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.commands.options import PIPELINE

if TYPE_CHECKING:
    from hepti_mpi.tuning.teaming import Teaming

FROM = 30  # batches of a job that is worth teams


def check(options: dict[str, Any], objective: str, fixed: bool, weights: Path | None) -> None:
    """Refuse options that do not go together with teams; `fixed`: a plan is given or wanted to adapt. Raises UsageError."""
    pipeline = options["layout"] == PIPELINE
    if pipeline and objective == "latency":
        raise click.UsageError(f"--layout {PIPELINE} keeps several batches under way: leave out --objective latency")
    if objective != "throughput" and not pipeline:
        return
    what = f"--layout {PIPELINE}" if pipeline else "--objective throughput"
    for name, value, default in (("strategy", options["strategy"], "auto"), ("shares", options["shares"], None)):
        if value != default:
            raise click.UsageError(f"{what} makes teams by itself: leave out --{name}")
    if fixed:
        raise click.UsageError(f"{what} makes teams by itself: leave out --plan and --adapt")
    if weights is not None and weights.is_dir():
        raise click.UsageError(f"{weights} was cut for one plan, teams are another one: leave out {what}, or give the store")


def wanted(options: dict[str, Any], objective: str, free: bool, batches: int) -> "Teaming | None":
    """Return how teams are wanted for a job of so many batches, None where they are not; `free`: they may be, by the other options."""
    pipeline = options["layout"] == PIPELINE
    forced = objective == "throughput" or pipeline
    if not forced and not (objective == "auto" and free and options["layout"] is None and batches >= FROM):
        return None
    from hepti_mpi.tuning.teaming import Teaming

    return Teaming(batches, forced, pipeline)
