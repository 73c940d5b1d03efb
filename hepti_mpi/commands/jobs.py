"""Ranks that can answer, whichever way: all together by one plan, or teams of them. A run and a service ask the same of both.

Knows in which order ranks get ready, and what is shown and told of them; does not know what is asked, nor where answers go.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hepti_mpi.commands.paths import profile_path
from hepti_mpi.commands.screen import SCREEN

if TYPE_CHECKING:
    from hepti_mpi.cluster.profile import ClusterProfile
    from hepti_mpi.commands.session import Session
    from hepti_mpi.engine.loading import Ready
    from hepti_mpi.planning.demand import Decision, Demand
    from hepti_mpi.program.placement import Placement
    from hepti_mpi.program.plan import Plan
    from hepti_mpi.serving import loop, teams
    from hepti_mpi.serving.loop import Desk
    from hepti_mpi.serving.metrics import Metered
    from hepti_mpi.serving.request import Answerer
    from hepti_mpi.supervisor.progress import State
    from hepti_mpi.tuning.teaming import Teamed, Teaming
    from hepti_mpi.tuning.watch import Watch


@dataclass(frozen=True)
class Aim:
    """What ranks get ready for: by which method, for requests of which sizes, what the wire's type may change, how teams are wanted (None:
    not), and whether there are so `many` batches that plans are worth to be tried, as far as rank 0 knows. `file`: of the profile that
    must match; `state`: what is known from before; `told`: a supervisor hears what is done."""

    method: str
    demand: "Demand"
    tolerance: float
    teaming: "Teaming | None"
    many: bool
    state: "State"
    told: bool
    file: Path | None = None
    fresh: bool = False


class Job(Protocol):
    """Ranks that can answer. Those that follow rank 0 have all of it but what was decided."""

    @property
    def startup(self) -> Mapping[str, float]:
        """Seconds that getting ready took, by what."""

    def show(self) -> None:
        """Show who does what, and why."""

    @property
    def facts(self) -> dict[str, Any]:
        """What is told of them as soon as they are ready: the plan's document, reasons, speed, batches that they have at once."""

    def watched(self, say: Callable[[str], None]) -> "Watch":
        """Return the watch that plans again when something changes, where the plan may be changed."""

    def metered(self, metered: "Metered", watch: "Watch") -> "Watch":
        """Let a run's counters know who answers; return the watch that tells them what it hears."""

    def answer(self, answerer: "Answerer", desk: "Desk | None") -> None:
        """Answer what comes to the desk of rank 0, the others have none. Collective."""

    def record(self, seconds: float, output: str | None) -> dict[str, Any]:
        """Return the document of what was answered in so long."""

    def lines(self, record: dict[str, Any], width: int | None) -> str:
        """Return the summary of that for people."""


def told(session: "Session", plan: "Plan", decision: "Decision | None") -> dict[str, Any]:
    """Return what is told of ranks that answer by a plan (see Job.facts)."""
    from hepti_mpi.planning.reasons import reasons, unpacked

    why = unpacked(session.store.spec, [plan], session.keeps) if decision is None else [*reasons(decision), *decision.notes]
    speed = plan.planned_rows / plan.predicted_seconds if plan.predicted_seconds else None
    return {"plan": plan.to_json(), "why": why, "rows_per_second": speed, "batches": 2}  # one is answered, and the next


@dataclass
class Together:
    """All ranks, by one plan. `measured`: of the ranks."""

    session: "Session"
    ready: "Ready"
    method: str
    demand: "Demand"
    measured: "ClusterProfile | None" = None
    outcome: "loop.Outcome | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.first = self.ready.plan  # another one may be in use later

    @property
    def startup(self) -> Mapping[str, float]:
        return self.ready.startup_seconds

    @property
    def facts(self) -> dict[str, Any]:
        return told(self.session, self.ready.plan, self.ready.decision)

    def show(self) -> None:
        SCREEN.draw(self.ready.plan)
        for reason in self.facts["why"]:
            SCREEN.show(reason)
        SCREEN.show("")

    def watched(self, say: Callable[[str], None]) -> "Watch":
        from hepti_mpi.tuning.adapt import Adapter, Start
        from hepti_mpi.tuning.watch import Steady

        if self.measured is None:
            return Steady()
        store = self.session.store
        start = Start(store.spec, store.source_hash, self.measured, self.method, self.demand, self.ready.plan)
        return Adapter(start, self.startup["load"], say)

    def metered(self, metered: "Metered", watch: "Watch") -> "Watch":
        from hepti_mpi.serving.metrics import MeteredWatch

        return MeteredWatch(watch, metered, self.ready.plan)

    def answer(self, answerer: "Answerer", desk: "Desk | None") -> None:
        from hepti_mpi.serving.loop import answer

        self.ready, self.outcome = answer(self.ready, desk)

    def record(self, seconds: float, output: str | None) -> dict[str, Any]:
        from hepti_mpi.planning.forecast import Forecast, compared
        from hepti_mpi.reporting import records

        outcome, ready = self.outcome, self.ready
        assert outcome is not None and outcome.seconds is not None
        spent = records.divide_time(ready.program, ready.plan.active, outcome.seconds)
        took = seconds - outcome.warm_seconds - outcome.end_seconds
        startup = {**self.startup, "warm_up": outcome.warm_seconds}
        measured = records.Measured(outcome.latencies, outcome.rows, outcome.answered, outcome.facts, spent, took)
        record = records.run_record(ready.spec, ready.plan, measured, startup, ready.wire_error, outcome.decisions, output)
        if self.measured is None:
            return record
        forecast = Forecast(ready.spec, self.measured, self.first)
        return record | compared(forecast, outcome.lengths, outcome.latencies, [item["batch"] for item in outcome.decisions])

    def lines(self, record: dict[str, Any], width: int | None) -> str:
        from hepti_mpi.reporting.summary import run_lines

        return run_lines(record, self.ready.decision, width)


@dataclass
class InTeams:
    """Teams of ranks. `rows`: of the batches that they were made for."""

    session: "Session"
    teamed: "Teamed"
    rows: int
    outcome: "teams.Outcome | None" = field(default=None, init=False)

    @property
    def startup(self) -> Mapping[str, float]:
        return self.teamed.startup_seconds

    @property
    def facts(self) -> dict[str, Any]:
        from hepti_mpi.reporting.teams import duties
        from hepti_mpi.serving.teams import most_under_way

        placement, hosts = self.teamed.placement, self.session.machine.cores.hosts
        plan = {"strategy": "teams", "hash": placement.hash, "hosts": hosts, **placement.to_json()}
        speed, batches = sum(1 / pace for pace in self.teamed.paces), sum(map(most_under_way, placement.teams))
        return {"plan": plan, "why": duties(placement, hosts), "rows_per_second": speed, "batches": batches}

    def show(self) -> None:
        from hepti_mpi.reporting.teams import arrangement_lines

        if self.teamed.arrangement is not None:
            SCREEN.show(arrangement_lines(self.teamed.arrangement, self.rows, self.session.machine.cores.hosts, SCREEN.width) + "\n")

    def watched(self, say: Callable[[str], None]) -> "Watch":
        from hepti_mpi.tuning.watch import Steady

        return Steady()  # who becomes slow is given less

    def metered(self, metered: "Metered", watch: "Watch") -> "Watch":
        metered.planned("teams", self.teamed.placement.hash)
        return watch

    def answer(self, answerer: "Answerer", desk: "Desk | None") -> None:
        from hepti_mpi.serving.teams import answer

        self.outcome = answer(self.session.machine, self.teamed, answerer, desk)

    def record(self, seconds: float, output: str | None) -> dict[str, Any]:
        from hepti_mpi.reporting.teams import teams_record

        assert self.outcome is not None
        spec, done, arrangement = self.session.store.spec, [], self.teamed.arrangement
        for number, (team, pace) in enumerate(zip(self.outcome.teams, self.teamed.paces)):
            predicted = arrangement.predicted(spec, number, team.shapes) if arrangement and team.shapes else 1 / pace
            done.append(vars(team) | {"predicted_rows_per_second": predicted})
        outcome = self.outcome
        return teams_record(spec, self.teamed.placement, done, outcome.facts, seconds, outcome.seconds, self.startup, output)

    def lines(self, record: dict[str, Any], width: int | None) -> str:
        from hepti_mpi.reporting.teams import teams_lines

        assert self.outcome is not None
        return teams_lines(record, [fact["host"] for fact in self.outcome.facts], width)


def prepared(session: "Session", aim: Aim, at: Callable[[str], None]) -> Job:
    """Measure, plan and load. `at` is told what is done now. Collective."""
    from hepti_mpi.comm import channel
    from hepti_mpi.engine.machine import together
    from hepti_mpi.tuning import prepare

    store, startup, begin = session.store, dict[str, float](), time.perf_counter()
    with together(session.world):  # what cannot be asked of so many ranks is refused before they are measured
        if session.root:
            from hepti_mpi.planning import methods

            methods.check(aim.method, aim.demand, session.world.size)
    if aim.teaming is not None:
        session.machine.tell_threads_apart()
    measured = session.measured(aim.file or profile_path(), aim.fresh, aim.file is not None, aim.state.profiles)
    startup["profile"] = time.perf_counter() - begin
    if aim.told and session.root:
        known = {"profile": measured.to_json(), "spec": store.spec.to_json(), "source_hash": store.source_hash}
        channel.tell("measured", method=aim.method, demand=asdict(aim.demand), **known)
    goal = prepare.Goal(aim.method, aim.demand, measured, aim.tolerance, session.world.from_root(aim.many))
    if aim.teaming is not None:
        from hepti_mpi.tuning.teaming import teamed

        if (found := teamed(session.machine, store, goal, aim.teaming, startup, at)) is not None:
            return InTeams(session, found, aim.demand.rows)
    ready, measured = prepare.prepared(session.machine, store, goal, startup, session.tell, at)
    return Together(session, ready, aim.method, aim.demand, measured)


def given(session: "Session", aim: Aim, placement: "Placement | None", file: Path, at: Callable[[str], None]) -> Job:
    """Load the plan that is in `file`, which rank 0 has read. Collective."""
    from hepti_mpi.comm.launcher import host_name
    from hepti_mpi.engine import loading
    from hepti_mpi.program import placement as placements
    from hepti_mpi.tuning import teaming, wires

    placement = placements.from_json(session.world.from_root(placement.to_json() if placement else None))
    hosts, meant = tuple(session.world.gather_all(host_name())), placement.hosts
    if any(rank < len(hosts) and hosts[rank] != host for rank, host in meant.items()):
        made = ", ".join(dict.fromkeys(meant.values()))
        session.tell(f"plan {file} was made for {made}, here are {', '.join(hosts)}: its shares may be wrong")
    at("loading weights")
    if placement.together is None:
        return InTeams(session, teaming.given(session.machine, session.store, placement), aim.demand.rows)
    ready, _ = wires.within(loading.load(session.machine, session.store, placement.together, None, {}))
    return Together(session, ready, aim.method, aim.demand)
