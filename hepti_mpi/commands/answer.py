"""The ranks of a service: what serve starts, on the hosts of its hostfile. Knows in which order they get ready; does not know who asks."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.commands.options import (
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

if TYPE_CHECKING:
    from hepti_mpi.commands.session import Session
    from hepti_mpi.engine.loading import Ready
    from hepti_mpi.serving.remote import Remote
    from hepti_mpi.supervisor.progress import State


@click.command(hidden=True)
@weights_option
@answering_options
@machine_options
@planning_options
@words_options(has_document=False)
def answer(weights: Path | None, batch_rows: int, weights_cache: Path | None, adapt: bool | None, **options: Any) -> None:
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
    sizes = service_rows(session.store.spec, batch_rows)
    ready, watched = _ready(session, state, method, planning_request(sizes, options, session.world.size), options["tolerance"])
    _answer(session, ready, found[0] if found else None, watched if adapt is not False else None, batch_rows)
    if session.root:
        channel.tell("done")


def _ready(session: "Session", state: "State", method: str, request: Any, tolerance: float) -> tuple["Ready", Any]:
    """Measure, plan and load. Collective. Return also what a watch over the plan begins with."""
    from dataclasses import asdict

    from hepti_mpi.comm import channel
    from hepti_mpi.tuning import adapt as adapting
    from hepti_mpi.tuning.prepare import Goal, prepared

    def at(what: str) -> None:
        if session.root:
            channel.tell("doing", what=what)

    startup, store = dict[str, float](), session.store
    at("measuring")
    measured = session.measured(profile_path(session.machine), False, required=False, known=state.profiles)
    if session.root:
        known = {"profile": measured.to_json(), "spec": store.spec.to_json(), "source_hash": store.source_hash}
        channel.tell("measured", method=method, request=asdict(request), **known)
    many = session.world.from_root(not state.again)
    ready, measured, _ = prepared(session.machine, store, Goal(method, request, measured, tolerance, many), startup, session.tell, at)
    return ready, adapting.Start(store.spec, store.source_hash, measured, method, request, ready.plan)


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
