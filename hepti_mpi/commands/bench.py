"""The bench command: measures ways to divide a model against each other."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hepti_mpi.commands.options import FILE, Size, machine_options, weights_option
from hepti_mpi.commands.paths import agreed_store_path, profile_path
from hepti_mpi.commands.screen import SCREEN, meanwhile, say, words_options

if TYPE_CHECKING:
    from hepti_mpi.planning.search import Decision
    from hepti_mpi.program.plan import Plan


@click.command()
@weights_option
@click.option("--methods", default="hepti,hepti-float16,tensor,hybrid,sequence,megatron,voltage,galaxy,coedge,edgeflow,ram,single",
              show_default=True, help="What to measure; NAME-boost is another system's division with our exchanges.")
@click.option("--rows", type=click.IntRange(1, 1 << 20), default=128, show_default=True, help="Rows (tokens, patches) of the request.")
@click.option("--repeat", type=click.IntRange(1, 1_000_000), default=7, show_default=True, help="Requests per method, in turns.")
@click.option("--output", type=FILE, help="Append all samples to this file, for the report command.")
@click.option("--cluster", default="", help="Name of the cluster in the records; left out: the hostfile's.")
@click.option("--profile", "profile_file", type=FILE, help="Use this profile; an error when it does not match.")
@click.option("--fresh", is_flag=True, help="Measure the cluster even when the saved profile still matches.")
@click.option("--memory-limit", type=Size(), help="Memory of a rank for weights and activations, such as 500M; a list gives one per rank.")
@machine_options
@words_options()
def bench(weights: Path | None, methods: str, rows: int, repeat: int, output: Path | None, cluster: str, profile_file: Path | None,
          fresh: bool, memory_limit: tuple[int, ...] | None, threads: int | None, emulate: tuple[str, ...] | None,
          deadline: float) -> None:  # fmt: skip
    """Measure ways to divide a model against each other, in turns within one job.

    \b
    Example:
      mpirun -hostfile hostfiles/pi4.txt python -m hepti_mpi bench --weights weights/bert-large.h5 --methods hepti,megatron,single
    """
    from hepti_mpi.cluster.profile import Edges
    from hepti_mpi.engine import fetching, loading
    from hepti_mpi.engine import machine as machines
    from hepti_mpi.errors import CapacityError
    from hepti_mpi.planning.bound import bound
    from hepti_mpi.planning.capacity import check_limits
    from hepti_mpi.planning.methods import BOOST, NAMES, OURS
    from hepti_mpi.planning.search import Request
    from hepti_mpi.serving import outputs
    from hepti_mpi.tuning import bench as benches
    from hepti_mpi.tuning import comparison

    names = list(dict.fromkeys(name.strip() for name in methods.split(",")))
    for name in names:
        if name.removesuffix(BOOST) not in NAMES or name.removesuffix(BOOST) in OURS and name.endswith(BOOST):
            raise click.UsageError(f"there is no method {name!r}; known are {', '.join(NAMES)}, and with {BOOST} those not our own")
    begin = time.perf_counter()
    machine = machines.start(threads, emulate, deadline)
    world, root = machine.world, machine.world.rank == 0
    store = fetching.open_store(machine, agreed_store_path(machine, weights))
    path = profile_file or profile_path(machine)
    measured = machines.measured_profile(machine, store.spec, path, fresh, required=profile_file is not None, say=say(machine))
    measured = replace(measured, edges=Edges())  # a request begins with its embedding and ends with the last hidden state
    limits = memory_limit * world.size if memory_limit and len(memory_limit) == 1 else memory_limit
    plans: dict[str, Plan] = {}
    decisions: dict[str, Decision] = {}
    refused: dict[str, str] = {}
    with machines.together(world):
        check_limits(limits, world.size)
        if output is not None and root:
            outputs.check_path(output, (".jsonl",))
    for name in names:
        try:
            request = Request(rows, limits=limits, mode="packed")
            plans[name], decision = loading.decide(machine, store, measured, name, request)
            decisions |= {name: decision} if decision else {}
        except CapacityError as error:  # on every rank
            refused[name] = str(error)
    with machines.together(world):
        if not any(name in plans for name in names):
            raise CapacityError(refused[names[0]])
    with meanwhile("loading and settling on plans", repeat + benches.WARM_UP, root) as meter:

        def done(rounds: int) -> None:
            meter.at("answering by all methods in turns")
            meter.advance(rounds)

        samples = benches.measure(machine, store, measured, plans, decisions, Request(rows, limits=limits), repeat, done)
    with machines.together(world):
        if root:
            where = cluster or path.name.removesuffix(".profile.json")
            wires = sorted({sample.ready.plan.wire for sample in samples.values()})  # settling may have changed it
            bounds = {wire: bound(store.spec, store.source_hash, measured, Request(rows, limits=limits, mode="packed", wires=(wire,)))
                      for wire in wires}  # fmt: skip
            made = machines.made() | {"ranks": world.size, "versions": machines.versions(machine)}
            made |= {"seconds": round(time.perf_counter() - begin, 3), "output": None if output is None else str(output)}
            above = {name: comparison.above_of(sample, store.spec, measured, rows, bounds) for name, sample in samples.items()}
            found = comparison.Found(store.spec.name, rows, where, machine.boards, samples, bounds, made, above)
            records = list(comparison.lines(found))
            SCREEN.show(comparison.comparison(found, refused, SCREEN.width))
            SCREEN.document(records[-1], always=True)
            if output is not None:
                with open(output, "a") as file:
                    file.writelines(json.dumps(record) + "\n" for record in records)
