"""The profile command: speed, links and memory of all ranks, or a description of this machine as a board."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.commands import session as sessions
from hepti_mpi.commands.meter import meanwhile
from hepti_mpi.commands.options import FILE, Machinery, grouped, machine_options, weights_option, words_options
from hepti_mpi.commands.paths import profile_path
from hepti_mpi.commands.screen import SCREEN

if TYPE_CHECKING:
    from hepti_mpi.commands.session import Session


@click.command()
@weights_option
@click.option("--output", type=FILE, help="Where to keep the profile; left out: beside the hostfile.")
@click.option("--fresh", is_flag=True, help="Measure even when the saved profile still matches.")
@click.option("--describe", metavar="NAME", help="Print an entry of boards.toml for this machine instead, and how well it describes it.")
@machine_options
@words_options()
def profile(weights: Path | None, output: Path | None, fresh: bool, describe: str | None, **options: Any) -> None:
    """Measure the speed, links and memory of all ranks.

    \b
    Examples:
      mpirun -hostfile hostfiles/pi4.txt python -m hepti_mpi profile --weights weights/bert-large.h5
      python -m hepti_mpi profile --describe my-pi5
    """
    from hepti_mpi.reporting.inspection import profile_lines

    machinery = grouped(Machinery, options)
    if describe is not None:
        if weights is not None or output is not None or fresh or machinery.emulate is not None:
            raise click.UsageError("--describe measures this machine and prints: leave out --weights, --output, --fresh and --emulate")
        _describe(describe, machinery.threads)
        return
    session = sessions.opened(machinery, weights)
    _check_place(session, output)
    path = output or profile_path()
    begin, before = time.perf_counter(), _written(path)
    with meanwhile("measuring", shown=session.root):
        measured = session.measured(path, fresh, required=False, must_keep=True)
    if session.root:
        SCREEN.show(profile_lines(measured, SCREEN.width))
        SCREEN.document(measured.to_json())
        if before is not None and _written(path) == before:
            when = f"on {measured.date}" if measured.date else "before"
            SCREEN.show(f"{path}, as it was measured {when}, since it still matches; --fresh measures again")
        else:
            SCREEN.show(f"{path} ({time.perf_counter() - begin:.1f} s)")


def _written(path: Path) -> int | None:
    """Return when a file was written last, in nanoseconds."""
    return path.stat().st_mtime_ns if path.exists() else None


def _check_place(session: "Session", output: Path | None) -> None:
    """Raise ProfileError where what is measured could not be written, before it is. Collective."""
    from hepti_mpi.documents import check_document_place
    from hepti_mpi.engine import machine as machines
    from hepti_mpi.errors import ProfileError

    with machines.together(session.world):
        if output is not None and session.root:
            check_document_place(output, ProfileError, "--output ", making=True)


def _describe(name: str, threads: int | None) -> None:
    """Describe this machine as a board, and show real calls beside what that says."""
    from hepti_mpi.cluster import load
    from hepti_mpi.cluster.boards import check_name, entry
    from hepti_mpi.engine import describing
    from hepti_mpi.engine import machine as machines
    from hepti_mpi.errors import PlanError
    from hepti_mpi.reporting.inspection import call_lines, description_document

    check_name(name, "--describe")
    machine = machines.start(threads)
    with machines.together(machine.world):
        if not machine.world.alone:
            raise PlanError(f"--describe is for one rank and this job has {machine.world.size}; start it without mpirun")
    used, made = machine.cores.threads, machines.made()
    title = machines.processor() + f", {used} of them" * (used < len(machine.cores.whole))
    watch = load.Watch(machine.cores.whole)
    with meanwhile("measuring calls of every kind"):
        board, calls = describing.describe(name, title, used, made["date"])
    others = watch.others(watch.spent)
    if used > 1 and others > machines.BUSY:  # a lone thread's own time leaves out what else the machine does
        SCREEN.say(f"others had {others:.0%} of this machine's cores meanwhile: the figures are too low")
    SCREEN.copied(entry(board) + "\n")
    SCREEN.show(call_lines(board, calls, SCREEN.width))
    SCREEN.document(description_document(board, calls))
