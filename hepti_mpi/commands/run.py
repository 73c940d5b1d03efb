"""The command that answers: the stages of a run, and what it shows of them.

Knows the command's options and in which order a run goes; does not know how a plan is found or a batch is answered.
"""

import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from hepti_mpi.commands.asking import Asked, Question
from hepti_mpi.commands.options import (
    FILE,
    OURS,
    asking_options,
    machine_options,
    planning_method,
    planning_options,
    planning_request,
    weights_option,
)
from hepti_mpi.commands.paths import agreed_store_path, profile_path
from hepti_mpi.commands.screen import SCREEN, meanwhile, say, words_options

SETTLE_FROM = 30  # batches of a job that is worth the time to try plans out
ADAPTING = ("hepti", *OURS, "coedge")  # methods that by themselves plan again when something changes; the others are fixed plans


@click.command()
@weights_option
@asking_options
@click.option("--plan", "plan_file", type=FILE, help="Use this plan instead of making one.")
@click.option("--profile", "profile_file", type=FILE, help="Use this profile; an error when it does not match.")
@click.option("--fresh", is_flag=True, help="Measure even when the saved profile still matches.")
@click.option("--adapt/--no-adapt", default=None, help="Plan again when boards or links change; left out: where there are enough requests.")
@click.option(
    "--batch-rows", type=click.IntRange(1, 1 << 20), default=256, show_default=True, help="Pack requests together up to this many rows."
)
@click.option("--weights-cache", type=FILE, help="Where a host without the store keeps what other ranks send it of the weights.")
@click.option("--metrics", type=FILE, help="Keep counters and times in this .prom file, for the textfile collector of Prometheus.")
@machine_options
@planning_options
@words_options()
def run(
    weights: Path | None,
    plan_file: Path | None,
    profile_file: Path | None,
    fresh: bool,
    adapt: bool | None,
    threads: int | None,
    emulate: tuple[str, ...] | None,
    deadline: float,
    batch_rows: int,
    weights_cache: Path | None,
    metrics: Path | None,
    **options: Any,
) -> None:
    """Answer inputs on all ranks together.

    \b
    Examples:
      mpirun -hostfile hostfiles/pi4.txt python -m hepti_mpi run
      mpirun -hostfile hostfiles/mixed.txt python -m hepti_mpi run --weights weights/vit.h5 --input photos/ --output labels.jsonl
    """
    from hepti_mpi.comm import channel, interrupts
    from hepti_mpi.comm.launcher import host_name
    from hepti_mpi.engine import fetching, loading
    from hepti_mpi.engine import machine as machines
    from hepti_mpi.planning.forecast import Forecast
    from hepti_mpi.program import plan as plans
    from hepti_mpi.serving import scheduler
    from hepti_mpi.serving.loop import answer
    from hepti_mpi.supervisor import progress
    from hepti_mpi.tuning import adapt as adapting
    from hepti_mpi.tuning.prepare import prepared
    from hepti_mpi.tuning.watch import Steady, Watch

    question = Question.taken(options)
    narrowing = [name for name, value in options.items() if value not in (None, "auto", False, 0)]
    narrowing += ["profile"] * (profile_file is not None) + ["fresh"] * fresh + ["adapt"] * (adapt is True)
    if plan_file is not None and narrowing:
        raise click.UsageError(f"--plan says who does what; it cannot be used with --{narrowing[0].replace('_', '-')}")
    cut = weights is not None and weights.is_dir()
    if adapt and (cut or options["shares"] is not None):
        why = f"{weights} was cut for one plan: it" if cut else "--shares say who does what: they"
        raise click.UsageError(f"{why} cannot be used with --adapt")
    method = planning_method(options)
    machine = machines.start(threads, emulate, deadline)
    world, tell, root, state_file = machine.world, say(machine), machine.world.rank == 0, channel.state_path()
    if state_file and root:
        channel.tell("here", deadline=deadline)
    store = fetching.open_store(machine, agreed_store_path(machine, weights, weights_cache is not None), weights_cache)
    asked, chosen, typical = None, None, None
    state = progress.State()
    with world.patience.slower(), machines.together(world):
        if root:
            state = progress.read_state(state_file) if state_file else state
            asked = Asked(store, question, state if state_file else None)
            interrupts.say(asked.interrupted)
            if asked.left_out:
                tell(asked.left_out)
            if metrics is not None:
                from hepti_mpi.serving.metrics import Metered, check_path

                check_path(metrics)
            chosen = plans.load(plan_file) if plan_file else None
            typical = scheduler.typical_rows(asked.left, batch_rows, store.spec.hidden) if asked.left else None
    typical = world.from_root(typical if root else None)
    if typical is None:
        with world.patience.slower(), machines.together(world):
            if asked is not None:
                _finish_nothing(store, asked, tell)
        return

    startup: dict[str, float] = {}
    request, wire_error, measured = planning_request(typical, options, world.size), 0.0, None
    lengths = [one.rows for one in asked.left] if asked else []
    batches = world.from_root(asked and question.repeat * len(scheduler.batches(lengths, batch_rows, store.spec.hidden)))
    with meanwhile("measuring", shown=root) as meter:
        if plan_file is None:
            begin = time.perf_counter()
            path = profile_file or profile_path(machine)
            measured = machines.measured_profile(
                machine, store.spec, path, fresh, required=profile_file is not None, say=tell, known=state.profiles
            )
            startup["profile"] = time.perf_counter() - begin
            if state_file and root:
                known = {"profile": measured.to_json(), "spec": store.spec.to_json(), "source_hash": store.source_hash}
                channel.tell("measured", method=method, request=asdict(request), **known)
            settling = batches >= SETTLE_FROM and not state.finished
            ready, measured, wire_error = prepared(
                machine, store, measured, method, request, options["tolerance"], world.from_root(settling), startup, tell, meter.at
            )
        else:
            the_plan = plans.from_json(world.from_root(chosen.to_json() if chosen else None))
            hosts = tuple(world.gather_all(host_name()))
            if hosts != the_plan.hosts:
                tell(f"plan {plan_file} was made for {', '.join(the_plan.hosts)}, here are {', '.join(hosts)}: its shares may be wrong")
            meter.at("loading weights")
            ready = loading.load(machine, store, the_plan, None, startup)
            wire_error = loading.wire_error(ready, typical["rows"])
    if root:
        _show_plan(ready)
    watch: Watch | None = None
    if adapt is None:
        adapt = method in ADAPTING and batches >= adapting.FROM and options["shares"] is None and not cut
    if root and adapt and measured is not None:
        watch = adapting.Adapter(
            store.spec, store.source_hash, measured, method, request, ready.plan, ready.startup_seconds["load"], tell
        )  # fmt: skip
    forecast = Forecast(store.spec, measured, ready.plan) if root and measured is not None else None
    metered = None
    if root and metrics is not None:
        metered = watch = Metered(watch or Steady(), metrics, store.spec.name, ready.plan, tell)
    begin = time.perf_counter()
    with metered or nullcontext(), meanwhile("answering", asked.asked if asked else 0, root and not state_file) as meter:

        def done(part: Any, results: Any, seconds: float) -> bool:
            if asked is not None:
                asked.note(part, results, seconds)
            meter.advance(len(part))
            if metered is not None:
                metered.answered_requests(len(part))
            return asked is not None and not asked.is_wanted

        requests, keep = (asked.left, asked.keeps_nothing) if asked else (None, True)
        ready, outcome = answer(ready, requests, batch_rows, question.repeat, question.beside, done, watch, keep)
    with world.patience.slower(), machines.together(world):
        if asked is not None:
            _finish(ready, outcome, asked, wire_error, forecast, begin)


def _finish(ready: Any, outcome: Any, asked: Asked, wire_error: float, forecast: Any, begin: float) -> None:
    """Put the answers out and print the summary; where there is no terminal the last line is the run's JSON document. `begin`: when
    answering began. Raises PartlyAnswered."""
    from hepti_mpi.comm import channel
    from hepti_mpi.planning.forecast import compared
    from hepti_mpi.reporting import records

    tally = asked.write(outcome.results)
    seconds, output = time.perf_counter() - begin, asked.question.output
    spec, plan = ready.spec, ready.plan
    spent = records.divide_time(ready.program, plan.active, outcome.seconds)
    record = records.run_record(
        spec.name, spec.family, plan, outcome.latencies, outcome.rows, asked.answered, ready.startup_seconds, outcome.facts, spent,
        wire_error, outcome.decisions, seconds, None if output is None else str(output),
    )  # fmt: skip
    if forecast is not None:
        record |= compared(forecast, outcome.lengths, outcome.latencies, [item["batch"] for item in outcome.decisions])
    if tally is None:
        channel.tell("done", record=record)
        return
    record |= tally.numbers
    SCREEN.show("\n" + records.run_lines(record, ready.decision, SCREEN.width))
    SCREEN.document(record, always=True)
    tally.check()


def _finish_nothing(store: Any, asked: Asked, tell: Any) -> None:
    """Put the answers out where none was left to be found. Raises PartlyAnswered."""
    from hepti_mpi.comm import channel
    from hepti_mpi.reporting import records

    tally, record = asked.write(), records.idle_record(store.spec.name, store.spec.family)
    if len(asked.refused) < len(asked.every):
        tell(f"all of {asked.question.output or 'the input'} had been answered already: nothing is left")
    if tally is None:
        channel.tell("done", record=record)
        return
    SCREEN.document(record | tally.numbers, always=True)
    tally.check()


def _show_plan(ready: Any) -> None:
    from hepti_mpi.planning.reasons import reasons

    SCREEN.draw(ready.plan)
    if ready.decision is not None:
        for reason in (*reasons(ready.decision), *ready.decision.notes):
            SCREEN.show(reason)
    SCREEN.show("")
