"""The ranks of a service: what serve starts, on the hosts of its hostfile. Knows in which order they get ready; does not know who asks."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.commands import jobs, teams, writers
from hepti_mpi.commands.jobs import Aim, Job
from hepti_mpi.commands.options import (
    Machinery,
    answering_options,
    demand_of,
    grouped,
    machine_options,
    planning_method,
    planning_options,
    weights_option,
    words_options,
)
from hepti_mpi.commands.writers import Machining
from hepti_mpi.commands.writing import room_options

if TYPE_CHECKING:
    from hepti_mpi.commands.session import Session
    from hepti_mpi.serving.remote import Remote
    from hepti_mpi.supervisor.progress import State

MANY = 1000  # batches that a service is thought to answer: it has no end


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
        _write(session, Machining(None, False, options, objective), remote, (slots, context), state)
        if session.root:
            channel.tell("done")
        return
    demand = demand_of(service_rows(session.store.spec, batch_rows), options, session.world.size, session.keeps)
    teaming = teams.wanted(options, objective, adapt is None and method == "hepti", MANY)
    aim = Aim(method, demand, options["tolerance"], teaming, not state.again, state, told=True)
    _answer(session, jobs.prepared(session, aim, _at(session)), remote, adapt is not False, batch_rows)
    if session.root:
        channel.tell("done")


def _write(session: "Session", machining: Machining, remote: "Remote | None", room: tuple[int, int], state: "State") -> None:
    """Write what is asked until nothing more will come. `room`: slots of a team, and rows of each. Collective."""
    from hepti_mpi.serving.generating import lead

    loaded = writers.load(session, room[0], min(session.store.spec.positions, room[1]), machining, state if session.root else None)
    if remote is None:
        writers.follow(loaded, session)
        return
    try:
        making = writers.maker(loaded, session, texts=False)  # the front makes texts of tokens
        remote.ring = making.wake
        remote.doing = remote.doing if loaded.making is None else loaded.making.doing
        remote.ready(session.store.source_hash, 1, writers.told(loaded, session))
        lead(making, remote, loaded.rest)
    finally:
        writers.end(loaded)


def _at(session: "Session") -> "Callable[[str], None]":
    """Return what tells the supervisor what is done now."""
    from hepti_mpi.comm import channel

    return lambda what: channel.tell("doing", what=what) if session.root else None


def _answer(session: "Session", job: Job, remote: "Remote | None", adapt: bool, batch_rows: int) -> None:
    """Answer until nothing more will come; `adapt`: under a watch over the plan. Collective."""
    from hepti_mpi.serving.loop import Desk
    from hepti_mpi.serving.remote import PatientAnswerer, Watched
    from hepti_mpi.serving.scheduler import Scheduler
    from hepti_mpi.serving.sink import Beside
    from hepti_mpi.tuning.watch import Steady, Watch

    answerer = PatientAnswerer(session.store, {} if remote is None else remote.errors)
    if remote is None:
        job.answer(answerer, None)
        return

    def say(sentence: str) -> None:
        remote.tell("said", what=sentence)

    watch: Watch = job.watched(say) if adapt else Steady()
    remote.ready(session.store.source_hash, batch_rows, job.facts)
    with Beside(remote) as beside:
        desk = Desk(remote, Scheduler(answerer, batch_rows), answerer, beside, Watched(watch, remote))
        remote.doing = lambda: desk.doing()  # which is known when there are teams
        job.answer(answerer, desk)
