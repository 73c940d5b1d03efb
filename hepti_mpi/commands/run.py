"""The command that answers: the stages of a run, and what it shows of them.

Knows the command's options and in which order a run goes; does not know how a plan is found or a batch is answered.
"""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.commands import jobs, teams
from hepti_mpi.commands import session as sessions
from hepti_mpi.commands.jobs import Aim, Job
from hepti_mpi.commands.meter import meanwhile
from hepti_mpi.commands.options import (
    FILE,
    OURS,
    Machinery,
    answering_options,
    asked,
    asking_options,
    demand_of,
    grouped,
    machine_options,
    planning_method,
    planning_options,
    said_cache,
    weights_option,
    words_options,
)
from hepti_mpi.commands.record import put_record, write_out
from hepti_mpi.commands.screen import SCREEN
from hepti_mpi.commands.terminal import is_typed
from hepti_mpi.commands.writing import Writing, no_text, refuse_for_text, writing_options

if TYPE_CHECKING:
    from hepti_mpi.commands.session import Session
    from hepti_mpi.program.placement import Placement
    from hepti_mpi.serving.loop import Desk
    from hepti_mpi.serving.request import Question
    from hepti_mpi.serving.sink import Listener, Sink
    from hepti_mpi.serving.source import Input
    from hepti_mpi.supervisor.progress import State

SETTLE_FROM = 30  # batches of a job that is worth the time to try plans out
WATCH_FROM = 8  # of one that is watched
ADAPTING = ("hepti", *OURS, "coedge")  # methods that by themselves plan again when something changes; the others are fixed plans


@dataclass(frozen=True)
class Choice:
    """How a run goes about it: the options that are its own."""

    plan_file: Path | None
    profile_file: Path | None
    fresh: bool
    adapt: bool | None
    batch_rows: int
    weights_cache: Path | None
    objective: str
    metrics: Path | None


@dataclass
class Asked:
    """What rank 0 is asked: the whole input, where its answers go, and what is on the desk."""

    input: "Input"
    sink: "Sink"
    desk: "Desk"
    requests: int  # to be answered, the repeated ones too
    plan: "Placement | None"  # that was given


@dataclass
class Work:
    """What there is to do. `asked`: on rank 0. `typical`: what a plan is made for, None where nothing is left; `state`: of a supervised
    run."""

    session: "Session"
    question: "Question"
    choice: Choice
    state: "State"
    supervised: bool
    asked: Asked | None
    typical: dict[str, int] | None
    batches: int


@click.command()
@weights_option
@asking_options
@click.option("--plan", "plan_file", type=FILE, help="Use this plan instead of making one.")
@click.option("--profile", "profile_file", type=FILE, help="Use this profile; an error when it does not match.")
@click.option("--fresh", is_flag=True, help="Measure even when the saved profile still matches.")
@answering_options
@click.option("--metrics", type=FILE, help="Keep counters and times in this .prom file, for the textfile collector of Prometheus.")
@writing_options
@machine_options
@planning_options
@words_options(has_answers=True)
def run(weights: Path | None, **options: Any) -> None:
    """Answer inputs on all ranks together.

    \b
    Examples:
      mpirun -hostfile hostfiles/pi4.txt python -m hepti_mpi run
      mpirun -hostfile hostfiles/mixed.txt python -m hepti_mpi run --weights weights/vit.h5 --input photos/ --output labels.jsonl
    """
    from hepti_mpi.comm import channel
    from hepti_mpi.engine.machine import together

    question, choice, machinery, writing = asked(options), grouped(Choice, options), grouped(Machinery, options), grouped(Writing, options)
    teams.check(options, choice.objective, choice.plan_file is not None or choice.adapt is True, weights)
    adaptable, method = _adaptable(choice, weights, options), planning_method(options)
    session = sessions.opened(machinery, weights, choice.weights_cache)
    if channel.state_path() and session.root:
        channel.tell("here", deadline=machinery.deadline)
    if session.store.spec.generates:
        _generate(session, question, writing, choice, options)
        return
    no_text(writing.said + said_cache(options), session.store.spec.name)
    work = _taken_in(session, question, choice, options["tolerance"])
    if work.typical is not None:
        demand = demand_of(work.typical, options, session.world.size, session.keeps)
        free = adaptable and method == "hepti" and choice.plan_file is None and choice.adapt is None
        teaming = teams.wanted(options, choice.objective, free, work.batches)
        many = work.batches >= SETTLE_FROM and not work.state.finished
        aim = Aim(method, demand, options["tolerance"], teaming, many, work.state, work.supervised, choice.profile_file, choice.fresh)
        _answer(work, _prepared(work, aim), adaptable and (choice.adapt is not None or method in ADAPTING))
        return
    with session.world.patience.slower(), together(session.world):
        if work.asked is not None:
            _finish_nothing(work, work.asked)


def _generate(session: "Session", question: "Question", writing: Writing, choice: Choice, options: dict[str, Any]) -> None:
    """Answer prompts. Collective."""
    from hepti_mpi.commands.generate import generate
    from hepti_mpi.commands.writers import Machining

    kept = {name: getattr(question, name) for name in ("field", "pair", "hidden", "repeat")}
    refuse_for_text(kept | {"plan": choice.plan_file, "adapt": choice.adapt, "metrics": choice.metrics})
    refuse_for_text({"boost": options["boost"]})
    generate(session, question, writing, Machining(choice.profile_file, choice.fresh, options, choice.objective))


def _adaptable(choice: Choice, weights: Path | None, options: dict[str, Any]) -> bool:
    """Tell whether another plan may be used on the way. Raises UsageError for options that do not go together."""
    narrowing = [name for name, value in options.items() if value not in (None, "auto", False, 0)]
    narrowing += ["profile"] * (choice.profile_file is not None) + ["fresh"] * choice.fresh + ["adapt"] * (choice.adapt is True)
    if choice.plan_file is not None and narrowing:
        raise click.UsageError(f"--plan says who does what; it cannot be used with --{narrowing[0].replace('_', '-')}")
    cut = weights is not None and weights.is_dir()
    if choice.adapt and (cut or options["shares"] is not None):
        why = f"{weights} was cut for one plan: it" if cut else "--shares say who does what: they"
        raise click.UsageError(f"{why} cannot be used with --adapt")
    return options["shares"] is None and not cut


def _taken_in(session: "Session", question: "Question", choice: Choice, tolerance: float) -> Work:
    """Read the input and get ready to keep its answers, on rank 0; all ranks know what a plan is made for. Collective."""
    from hepti_mpi.comm import channel
    from hepti_mpi.engine.machine import together
    from hepti_mpi.serving.scheduler import typical_rows
    from hepti_mpi.supervisor.progress import State, read_state

    world, state_file = session.world, channel.state_path()
    state, found = State(), None
    with world.patience.slower(), together(world):
        if session.root:
            state = read_state(state_file) if state_file else state
            seen = state_file is None and not is_typed(question.source)
            with meanwhile("reading", shown=seen):  # 100,000 texts, or as many answers that are there, take their time
                found = _asked(session, question, choice, tolerance, state if state_file else None)
    shapes = found.desk.scheduler.shapes if found is not None else []
    typical, batches = world.from_root([typical_rows(shapes) if shapes else None, question.repeat * len(shapes)])
    return Work(session, question, choice, state, state_file is not None, found, typical, batches)


def _asked(session: "Session", question: "Question", choice: Choice, tolerance: float, state: "State | None") -> Asked:
    """Read the input. `state`: of a supervised run, whose supervisor keeps the answers. Raises InputError."""
    from hepti_mpi.comm import interrupts
    from hepti_mpi.program import placement as placements
    from hepti_mpi.serving.loop import Desk
    from hepti_mpi.serving.request import Answerer
    from hepti_mpi.serving.scheduler import Scheduler
    from hepti_mpi.serving.sink import Filed, Shown, Sink
    from hepti_mpi.serving.source import Input
    from hepti_mpi.supervisor.progress import Told

    sink: Sink = Told(state) if state else Shown(SCREEN) if question.output is None else Filed(question, SCREEN.say)
    plan = placements.load(choice.plan_file) if choice.plan_file else None  # whatever is wrong with it is told before ranks are measured
    read, answerer = Input(session.store, question, tolerance, plan.rounding if plan else ()), Answerer(session.store, question)
    sink.begin(read.head, len(read.every), {one.index: answerer.refused(one, one.error or "") for one in read.refused})
    source, scheduler = read.without(sink.known), Scheduler(answerer, choice.batch_rows, question.repeat)
    requests = question.repeat * len(source.left)
    interrupts.keeping(lambda: sink.kept(requests), left=sink.left)
    if read.left_out:
        session.tell(read.left_out)
    if choice.metrics is not None:
        from hepti_mpi.serving.metrics import check_path

        check_path(choice.metrics)
    scheduler.add(source.take(0.0))
    return Asked(read, sink, Desk(source, scheduler, answerer, sink, wanted=lambda: sink.wanted), requests, plan)


def _prepared(work: Work, aim: Aim) -> Job:
    """Get ready as is aimed at, or load the plan that was given. Collective."""
    from hepti_mpi.comm import channel

    session, choice = work.session, work.choice
    with meanwhile("measuring", shown=session.root and not work.supervised) as meter:

        def at(what: str) -> None:
            meter.at(what)
            if work.supervised and session.root:  # whose supervisor shows it
                channel.tell("doing", what=what)

        at(meter.label)
        if choice.plan_file is None:
            return jobs.prepared(session, aim, at)
        return jobs.given(session, aim, work.asked.plan if work.asked else None, choice.plan_file, at)


def _answer(work: Work, job: Job, adaptable: bool) -> None:
    """Answer all that is asked, and put the answers out. Collective. Raises PartlyAnswered."""
    from hepti_mpi.engine.machine import together
    from hepti_mpi.serving.request import Answerer

    asked, world, begin = work.asked, work.session.world, 0.0
    if asked is None:
        job.answer(Answerer(work.session.store, work.question), None)
    else:
        job.show()
        begin = time.perf_counter()
        _led(work, job, asked, adaptable)
    with world.patience.slower(), together(world):
        if asked is not None:
            _finish(work, job, asked, begin)


def _led(work: Work, job: Job, asked: Asked, adaptable: bool) -> None:
    """Answer on rank 0, while another thread writes; `adaptable`: under a watch, where the job is worth one."""
    from hepti_mpi.comm import interrupts
    from hepti_mpi.serving.sink import Beside, Noted

    session, choice, desk = work.session, work.choice, asked.desk
    if adaptable and work.batches >= WATCH_FROM if choice.adapt is None else choice.adapt:
        desk.watch = job.watched(session.tell)
    metered = None
    if choice.metrics is not None:
        from hepti_mpi.serving.metrics import Metered

        metered = Metered(choice.metrics, session.store.spec.name, work.batches, SCREEN.warn)
        desk.watch = job.metered(metered, desk.watch)
    listeners: list[Listener] = [asked.sink, *([metered] if metered else [])]
    with (
        metered or nullcontext(),
        meanwhile("answering", asked.requests, not work.supervised) as meter,
        Beside(*listeners, meter, Noted()) as beside,
    ):
        interrupts.keeping(lambda: asked.sink.kept(asked.requests), beside.stop, asked.sink.left)
        desk.sink = beside
        job.answer(desk.answerer, desk)


def _finish(work: Work, job: Job, asked: Asked, begin: float) -> None:
    """Put the answers out and print the summary; where there is no terminal the last line is the run's JSON document. `begin`: when
    answering began. Raises PartlyAnswered."""
    output = work.question.output
    tally, _ = write_out(asked.sink, output, not work.supervised)
    record = job.record(time.perf_counter() - begin, None if output is None else str(output))
    gap = "\n" * (work.question.output is None)  # behind answers; behind the plan there is one
    put_record(record, tally, lambda: SCREEN.show(gap + job.lines(record, SCREEN.width)))


def _finish_nothing(work: Work, asked: Asked) -> None:
    """Put the answers out where none was left to be found. Raises PartlyAnswered."""
    from hepti_mpi.reporting import records

    output = work.question.output
    tally, told = write_out(asked.sink, output, not work.supervised)
    if len(asked.input.refused) < len(asked.input.every):
        work.session.tell(told)
    put_record(records.idle_record(work.session.store.spec, None if output is None else str(output)), tally)
