"""The commands: parse, call, print. With console and comparing the only place that prints, picks paths and reads options; computes
nothing.

MPI, ONNX Runtime and HDF5 are imported inside the commands, so that --help is instant and a usage error costs nothing.
"""

import os
import time
from dataclasses import replace
from pathlib import Path

import click

from hepti_mpi import __version__
from hepti_mpi.commands.plan import plan
from hepti_mpi.commands.run import run
from hepti_mpi.comparing import bench, report
from hepti_mpi.console import SCREEN, meanwhile, say, words_options
from hepti_mpi.doctoring import doctor
from hepti_mpi.options import FILE, machine_options, weights_option
from hepti_mpi.paths import agreed_store_path, no_model, no_store, profile_path, store_path
from hepti_mpi.pushing import push
from hepti_mpi.supervising import supervise

BUSY = 0.5  # load from which a machine is measured too slow


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="hepti_mpi")
@click.pass_context
def main(context: click.Context) -> None:
    """Run one transformer inference across several unequal machines.

    \b
    Example, from a model folder to answers on the boards of a hostfile:
      python -m hepti_mpi slice MODEL_FOLDER weights/model.h5
      mpirun -hostfile hostfiles/pi4.txt python -m hepti_mpi run
    """
    if context.invoked_subcommand in ("slice", "inspect", "plan", "report", "push"):
        from hepti_mpi.comm.launcher import launched_rank

        if launched_rank():
            context.exit()  # these need one process: under mpirun the first does it


# offline commands: no MPI


@main.command("slice")
@click.argument("source")
@click.argument("store", type=FILE)
@click.option("--plan", "plan_file", type=FILE, help="Also cut one file per rank of this plan.")
@click.option("--ranks", "folder", type=FILE, help="Folder for the rank files.")
@words_options(has_document=False)
def slice_command(source: str, store: Path, plan_file: Path | None, folder: Path | None) -> None:
    """Turn a Hugging Face model folder, or random:NAME, into a weight store.

    \b
    Examples:
      python -m hepti_mpi slice ~/models/all-MiniLM-L6-v2 weights/all-MiniLM-L6-v2.h5
      python -m hepti_mpi slice random:bert-large weights/bert-large.h5
      python -m hepti_mpi slice MODEL weights/m.h5 --plan plan.json --ranks weights/m
    """
    from hepti_mpi.errors import ModelError
    from hepti_mpi.models.hf import read_model
    from hepti_mpi.models.random_models import random_model
    from hepti_mpi.planning import plan as plans
    from hepti_mpi.reporting.tables import size
    from hepti_mpi.shards import store as stores
    from hepti_mpi.shards.slicing import rank_slices

    if (plan_file is None) != (folder is None):
        raise click.UsageError("--plan and --ranks go together: --plan PLAN.json --ranks FOLDER")
    plan = plans.load(plan_file) if plan_file else None
    begin = time.perf_counter()
    what = None if source.startswith("random:") else no_model(Path(source))
    if what is not None:
        raise ModelError(what)
    model = random_model(source.removeprefix("random:")) if source.startswith("random:") else read_model(Path(source))
    model = replace(model, spec=replace(model.spec, name=store.stem))  # people name the store, not the folder
    if plan is not None:
        plans.check(plan, model.spec, model.source_hash, plan.ranks)
    total = sum(piece.bytes for piece in stores.whole_slices(model.spec))
    with meanwhile(f"writing {store}", total, count=size) as meter:
        stores.write(store, model, meter.advance)
    SCREEN.show(f"{store}: {model.spec.family} {model.spec.name}, {size(store.stat().st_size)} in {time.perf_counter() - begin:.1f} s")
    if plan is None or folder is None:
        return
    with stores.Store(store) as whole:
        for rank in range(plan.ranks):
            path = folder / f"rank{rank:02d}.h5"
            stores.write_part(path, whole, rank_slices(whole.spec, plan, rank))
            SCREEN.show(f"{path}: {size(path.stat().st_size)}")


@main.command()
@click.argument("store", type=FILE, required=False)
@words_options()
def inspect(store: Path | None) -> None:
    """Print what a store, or the one in weights/, holds: family, shapes, parameters, and bytes per strategy and rank count.

    \b
    Example:
      python -m hepti_mpi inspect weights/all-MiniLM-L6-v2.h5
    """
    from hepti_mpi.errors import StoreError
    from hepti_mpi.reporting.inspection import inspection_document, inspection_lines
    from hepti_mpi.shards.store import Store

    store = store or store_path(None)
    what = no_store(store)
    if what is not None:
        raise StoreError(what)
    with Store(store) as opened:
        SCREEN.show(inspection_lines(opened, SCREEN.width))
        SCREEN.document(inspection_document(opened))


# collective commands: under mpirun


@main.command()
@weights_option
@click.option("--output", type=FILE, help="Where to keep the profile; left out: beside the hostfile.")
@click.option("--fresh", is_flag=True, help="Measure even when the saved profile still matches.")
@click.option("--describe", metavar="NAME", help="Print an entry of boards.toml for this machine instead, and how well it describes it.")
@machine_options
@words_options()
def profile(weights: Path | None, output: Path | None, fresh: bool, describe: str | None, threads: int | None,
            emulate: tuple[str, ...] | None, deadline: float) -> None:  # fmt: skip
    """Measure the speed, links and memory of all ranks.

    \b
    Examples:
      mpirun -hostfile hostfiles/pi4.txt python -m hepti_mpi profile --weights weights/bert-large.h5
      python -m hepti_mpi profile --describe my-pi5
    """
    from hepti_mpi.reporting.inspection import profile_lines
    from hepti_mpi.runtime import fetching
    from hepti_mpi.runtime import machine as machines

    if describe is not None:
        if weights is not None or output is not None or fresh or emulate is not None:
            raise click.UsageError("--describe measures this machine and prints: leave out --weights, --output, --fresh and --emulate")
        _describe(describe, threads)
        return
    machine = machines.start(threads, emulate, deadline)
    store = fetching.open_store(machine, agreed_store_path(machine, weights))
    path = output or profile_path(machine)
    begin = time.perf_counter()
    measured = machines.measured_profile(machine, store.spec, path, fresh, required=False, say=say(machine))
    if machine.world.rank == 0:
        SCREEN.show(profile_lines(measured, SCREEN.width))
        SCREEN.document(measured.to_json())
        SCREEN.show(f"{path} ({time.perf_counter() - begin:.1f} s)")


def _describe(name: str, threads: int | None) -> None:
    """Describe this machine as a board, and show real calls beside what that says."""
    from hepti_mpi.cluster.boards import check_name, entry
    from hepti_mpi.errors import PlanError
    from hepti_mpi.reporting.inspection import call_lines, description_document
    from hepti_mpi.runtime import describing
    from hepti_mpi.runtime import machine as machines

    check_name(name, "--describe")
    machine = machines.start(threads)
    with machines.together(machine.world):
        if machine.world.size > 1:
            raise PlanError(f"--describe is for one rank and this job has {machine.world.size}; start it without mpirun")
    before = os.getloadavg()[0]
    used, made = machine.cores.threads, machines.made()
    title = machines.processor() + f", {used} of them" * (used < len(machine.cores.whole))
    with meanwhile("measuring calls of every kind"):
        board, calls = describing.describe(name, title, used, made["date"])
    if used > 1 and before > BUSY:
        SCREEN.say(f"this machine had other work (load {before:.1f}): with all its threads the figures are too low")
    SCREEN.show(entry(board) + "\n")
    SCREEN.show(call_lines(board, calls, SCREEN.width))
    SCREEN.document(description_document(board, calls))


main.add_command(bench)
main.add_command(doctor)
main.add_command(plan)
main.add_command(push)
main.add_command(report)
main.add_command(run)
main.add_command(supervise)
