"""The ranks of a service: what serve starts, on the hosts of its hostfile. Knows in which order they get ready; does not know who asks."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.commands.options import (
    PIPELINE,
    Machinery,
    answering_options,
    grouped,
    machine_options,
    planning_method,
    planning_options,
    planning_request,
    weights_option,
    words_options,
)
from hepti_mpi.commands.paths import profile_path
from hepti_mpi.commands.writing import room_options

if TYPE_CHECKING:
    from hepti_mpi.commands.session import Session
    from hepti_mpi.engine.loading import Ready
    from hepti_mpi.serving.remote import Remote
    from hepti_mpi.supervisor.progress import State
    from hepti_mpi.tuning.prepare import Goal


@click.command(hidden=True)
@weights_option
@answering_options
@room_options
@machine_options
@planning_options
@words_options(has_document=False)
def answer(
    weights: Path | None, batch_rows: int, weights_cache: Path | None, adapt: bool | None, objective: str, slots: int, context: int,
    **options: Any,
) -> None:  # fmt: skip
    """Answer what the front of a service asks, on all ranks together. It is started by serve, which leaves a file for it on each host.

    \b
    Example:
      python -m hepti_mpi serve hostfiles/pi4.txt
    """
    from hepti_mpi.comm import channel
    from hepti_mpi.commands import session as sessions
    from hepti_mpi.engine.machine import together
    from hepti_mpi.serving.remote import Remote
    from hepti_mpi.serving.scheduler import service_rows
    from hepti_mpi.supervisor.progress import State, read_state

    state_file, state, found = channel.state_path(), State(), list[Remote]()
    if state_file is None:
        raise click.UsageError("this is for serve to start: python -m hepti_mpi serve")
    machinery, method = grouped(Machinery, options), planning_method(options)
    session = sessions.opened(machinery, weights, weights_cache)
    with session.world.patience.slower(), together(session.world):
        if session.root:
            channel.tell("here", deadline=machinery.deadline)
            state = read_state(state_file)
            found = [Remote(state.front or {"addresses": []})]
    remote = found[0] if found else None
    if session.store.spec.generates:
        _write(session, options, remote, (slots, context), state)
        if session.root:
            channel.tell("done")
        return
    sizes = service_rows(session.store.spec, batch_rows)
    goal, startup = _goal(session, state, method, planning_request(sizes, options, session.world.size), options["tolerance"])
    if objective == "throughput" or options["layout"] == PIPELINE:
        _answer_in_teams(session, goal, startup, remote, batch_rows, options["layout"] == PIPELINE)
    else:
        ready, watched = _ready(session, goal, startup)
        _answer(session, ready, remote, watched if adapt is not False else None, batch_rows)
    if session.root:
        channel.tell("done")


def _write(
    session: "Session", options: dict[str, Any], remote: "Remote | None", room: tuple[int, int], state: "State"
) -> None:  # fmt: skip
    """Write what is asked until nothing more will come. `room`: slots, and rows of each. Collective."""
    from hepti_mpi.commands import generate
    from hepti_mpi.planning.reasons import reasons
    from hepti_mpi.serving.generating import lead
    from hepti_mpi.serving.generation import Generator
    from hepti_mpi.serving.request import OuterWeights
    from hepti_mpi.serving.stepping import Ranks

    spec = session.store.spec
    known = state if session.root else None
    loaded = generate.load(session, room[0], min(spec.positions, room[1]), generate.Machining(None, False, options), known)
    decoder = loaded.decoder
    if remote is None:
        decoder.follow()
        return
    plan = decoder.part.plan
    why = [*reasons(loaded.decision), *loaded.decision.notes] if loaded.decision is not None else []
    speed = plan.planned_rows / plan.predicted_seconds if plan.predicted_seconds else None
    facts = {"source_hash": session.store.source_hash, "batch_rows": 1, "rows_per_second": speed}
    remote.tell("ready", plan=plan.to_json(), why=why, slots=decoder.slots, positions=decoder.positions, **facts)
    try:
        # text is made at the front, which has the tokenizer
        lead(Generator(Ranks(decoder, OuterWeights(session.store)), spec.options.get("ends", ())), remote, decoder.rest)
    finally:
        decoder.end()


def _at(session: "Session") -> "Callable[[str], None]":
    """Return what tells the supervisor what is done now."""
    from hepti_mpi.comm import channel

    return lambda what: channel.tell("doing", what=what) if session.root else None


def _goal(session: "Session", state: "State", method: str, request: Any, tolerance: float) -> tuple["Goal", dict[str, float]]:
    """Measure. Collective. Return what a plan is made for, and what that took."""
    from dataclasses import asdict

    from hepti_mpi.comm import channel
    from hepti_mpi.tuning.prepare import Goal

    startup, store = dict[str, float](), session.store
    _at(session)("measuring")
    measured = session.measured(profile_path(session.machine), False, required=False, known=state.profiles)
    if session.root:
        known = {"profile": measured.to_json(), "spec": store.spec.to_json(), "source_hash": store.source_hash}
        channel.tell("measured", method=method, request=asdict(request), **known)
    return Goal(method, request, measured, tolerance, session.world.from_root(not state.again)), startup


def _ready(session: "Session", goal: "Goal", startup: dict[str, float]) -> tuple["Ready", Any]:
    """Plan and load. Collective. Return also what a watch over the plan begins with."""
    from hepti_mpi.tuning import adapt as adapting
    from hepti_mpi.tuning.prepare import prepared

    store = session.store
    ready, measured, _ = prepared(session.machine, store, goal, startup, session.tell, _at(session))
    return ready, adapting.Start(store.spec, store.source_hash, measured, goal.method, goal.request, ready.plan)


def _answer_in_teams(
    session: "Session", goal: "Goal", startup: dict[str, float], remote: "Remote | None", batch_rows: int, pipeline: bool
) -> None:  # fmt: skip
    """Answer by teams until nothing more will come. Collective."""
    from hepti_mpi.serving import teams
    from hepti_mpi.serving.loop import Desk
    from hepti_mpi.serving.remote import Counting, PatientAnswerer
    from hepti_mpi.serving.scheduler import Scheduler
    from hepti_mpi.serving.sink import Beside
    from hepti_mpi.tuning.teaming import Teaming, teamed

    job = teamed(session.machine, session.store, goal, Teaming(0, forced=True, pipeline=pipeline), startup, _at(session))
    assert job is not None, "teams are wanted in any case"
    mail = teams.mail_of(session.world, job.placement, job.crew)
    answerer = PatientAnswerer(session.store, {} if remote is None else remote.errors)
    if remote is None:
        teams.answer(job.crew, mail, answerer, None)
    else:
        hosts = session.machine.cores.hosts
        plan = {"strategy": "teams", "hash": job.placement.hash, "hosts": hosts, **job.placement.to_json()}
        facts = {"source_hash": session.store.source_hash, "batch_rows": batch_rows}
        remote.tell("ready", plan=plan, why=[], rows_per_second=sum(1 / pace for pace in job.paces), **facts)
        with Beside(Counting(remote)) as beside:
            desk = Desk(remote, Scheduler(answerer, batch_rows), answerer, beside)
            teams.answer(job.crew, mail, answerer, teams.Front(desk, mail, job.placement, job.paces))
    mail.close()


def _answer(session: "Session", ready: "Ready", remote: "Remote | None", watched: Any, batch_rows: int) -> None:
    """Answer until nothing more will come. Collective."""
    from hepti_mpi.planning.reasons import reasons
    from hepti_mpi.serving.loop import Desk
    from hepti_mpi.serving.loop import answer as answer_all
    from hepti_mpi.serving.remote import PatientAnswerer, Watched
    from hepti_mpi.serving.scheduler import Scheduler
    from hepti_mpi.serving.sink import Beside
    from hepti_mpi.tuning import adapt as adapting
    from hepti_mpi.tuning.watch import Steady, Watch

    if remote is None:
        answer_all(ready, None)
        return
    watch: Watch = Steady()
    if watched is not None:

        def say(sentence: str) -> None:
            remote.tell("said", what=sentence)

        watch = adapting.Adapter(watched, ready.startup_seconds["load"], say)
    answerer = PatientAnswerer(session.store, remote.errors)
    why = [*reasons(ready.decision), *ready.decision.notes] if ready.decision is not None else []
    speed = ready.plan.planned_rows / ready.plan.predicted_seconds if ready.plan.predicted_seconds else None
    facts = {"source_hash": session.store.source_hash, "batch_rows": batch_rows, "rows_per_second": speed}
    remote.tell("ready", plan=ready.plan.to_json(), why=why, **facts)
    with Beside(remote) as beside:
        answer_all(ready, Desk(remote, Scheduler(answerer, batch_rows), answerer, beside, Watched(watch, remote)))
