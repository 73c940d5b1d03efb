"""A run whose batches are answered by teams: when one is wanted, and what is shown of it.

Knows options and in which order such a run goes; does not know how teams are chosen or a batch is answered.
"""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.commands.meter import meanwhile
from hepti_mpi.commands.options import PIPELINE
from hepti_mpi.commands.screen import SCREEN

if TYPE_CHECKING:
    from hepti_mpi.comm.mail import Mail
    from hepti_mpi.commands.run import Asked, Choice, Work
    from hepti_mpi.serving.metrics import MeteredTeams
    from hepti_mpi.serving.sink import Listener
    from hepti_mpi.serving.teams import Outcome
    from hepti_mpi.tuning.teaming import Teamed, Teaming


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


def wanted(options: dict[str, Any], choice: "Choice", adaptable: bool, method: str, batches: int) -> "Teaming | None":
    """Return how teams are wanted for a job of so many batches, None where they are not."""
    from hepti_mpi.tuning.teaming import FROM, Teaming

    pipeline = options["layout"] == PIPELINE
    if choice.objective == "throughput" or pipeline:
        return Teaming(batches, forced=True, pipeline=pipeline)
    free = choice.objective == "auto" and choice.plan_file is None and choice.adapt is None
    if free and adaptable and method == "hepti" and options["layout"] is None and batches >= FROM:
        return Teaming(batches)
    return None


def answer(work: "Work", job: "Teamed") -> None:
    """Answer all that is asked by teams, and put the answers out. Collective. Raises PartlyAnswered."""
    from hepti_mpi.engine.machine import together
    from hepti_mpi.serving import teams
    from hepti_mpi.serving.request import Answerer

    session, asked = work.session, work.asked
    world = session.world
    if asked is not None and not work.supervised:
        _show_teams(work, job)
    mail = teams.mail_of(world, job.placement, job.crew)
    outcome, begin = None, time.perf_counter()
    if asked is None:
        teams.answer(job.crew, mail, Answerer(session.store, work.question), None)
    else:
        outcome = _led(work, job, asked, mail)
    mail.close()
    facts = world.gather_all(teams.facts(session.machine, job.crew))
    with world.patience.slower(), together(world):
        if asked is not None and outcome is not None:
            _finish(work, job, asked, outcome, facts, begin)


def _led(work: "Work", job: "Teamed", asked: "Asked", mail: "Mail") -> "Outcome":
    """Answer on rank 0, while another thread writes."""
    from hepti_mpi.comm import interrupts
    from hepti_mpi.serving.sink import Beside
    from hepti_mpi.serving.teams import Front
    from hepti_mpi.serving.teams import answer as answered

    def interrupted() -> str | None:
        beside.stop()
        return asked.sink.interrupted(asked.requests)

    metered = _metered(work, job)
    listeners: list[Listener] = [asked.sink, *([metered] if metered else [])]
    with (
        metered or nullcontext(),
        meanwhile("answering", asked.requests, not work.supervised) as meter,
        Beside(*listeners, meter) as beside,
    ):
        interrupts.say(interrupted)
        asked.desk.sink = beside
        front = Front(asked.desk, mail, job.placement, job.paces)
        answered(job.crew, mail, asked.desk.answerer, front)
    return front.outcome


def _metered(work: "Work", job: "Teamed") -> "MeteredTeams | None":
    """Return what keeps counters, where they are wanted."""
    if work.choice.metrics is None:
        return None
    from hepti_mpi.serving.metrics import MeteredTeams

    return MeteredTeams(work.choice.metrics, work.session.store.spec.name, job.placement, work.batches, work.session.tell)


def _finish(work: "Work", job: "Teamed", asked: "Asked", outcome: "Outcome", facts: list[dict[str, Any]], begin: float) -> None:
    """Put the answers out, and print the summary and the document. Raises PartlyAnswered."""
    from hepti_mpi.commands.run import put_record
    from hepti_mpi.reporting.teams import teams_lines, teams_record

    tally, output = asked.sink.write(), work.question.output
    seconds = time.perf_counter() - begin
    done, spec = [], work.session.store.spec
    for number, (team, pace) in enumerate(zip(outcome.teams, job.paces)):
        predicted = job.arrangement.predicted(spec, number, team.shapes) if job.arrangement and team.shapes else 1 / pace
        done.append(vars(team) | {"predicted_rows_per_second": predicted})
    record = teams_record(
        spec, job.placement, done, facts, seconds, job.startup_seconds, None if output is None else str(output)
    )
    hosts = [fact["host"] for fact in facts]
    put_record(record, tally, lambda: SCREEN.show("\n" + teams_lines(record, hosts, SCREEN.width)))


def _show_teams(work: "Work", job: "Teamed") -> None:
    from hepti_mpi.reporting.teams import arrangement_lines

    if job.arrangement is not None and work.typical is not None:
        SCREEN.show(arrangement_lines(job.arrangement, work.typical["rows"], work.session.machine.cores.hosts, SCREEN.width) + "\n")
