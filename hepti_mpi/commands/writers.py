"""Ranks that can write, whichever way: all together by one plan, or teams of them. A run, a talk and a service ask the same of both.

Knows in which order ranks get ready and are let go; does not know what is asked, nor where answers go.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hepti_mpi.commands import terminal
from hepti_mpi.commands.meter import meanwhile
from hepti_mpi.commands.options import PIPELINE, demand_of, planning_method
from hepti_mpi.commands.paths import profile_path
from hepti_mpi.commands.screen import SCREEN, say

if TYPE_CHECKING:
    from hepti_mpi.cluster.profile import ClusterProfile
    from hepti_mpi.comm.mail import Mail
    from hepti_mpi.commands.session import Session
    from hepti_mpi.engine.decoder import Decoder
    from hepti_mpi.planning.demand import Demand
    from hepti_mpi.planning.texts import Chosen
    from hepti_mpi.planning.writing import Writers
    from hepti_mpi.program.placement import Placement
    from hepti_mpi.serving.generating import Maker
    from hepti_mpi.serving.generation import Generator
    from hepti_mpi.serving.stepping import Ranks
    from hepti_mpi.serving.writers import TeamGenerator
    from hepti_mpi.supervisor.progress import State

STAGES = "stages"  # of planning.texts.NAMES, what --layout pipeline means
ATTENDED = 256  # rows that a row attends to, where nobody knows
FULL = 4  # times as many texts as a team writes at once, for each rank, where nobody knows how many there will be
R = TypeVar("R")


@dataclass
class Loaded:
    """A job that can generate: who does what, the part of this rank, None where it rests, what starting took and, on rank 0, what was
    chosen: for all ranks together, or `writers`, teams, whose ranks have `mail`. `room`: slots of a team, and rows of each; `groups`: in
    how many texts go through stages, one behind the other, where that is known; `wire_error`: by how much the wire's type was found to
    change a probability of a word."""

    placement: "Placement"
    decoder: "Decoder | None"
    chosen: "Chosen | None"
    startup: dict[str, float]
    room: tuple[int, int]
    writers: "Writers | None" = None
    mail: "Mail | None" = None
    making: "TeamGenerator | None" = None  # answers, by teams
    groups: int | None = None
    wire_error: float = 0.0

    def rest(self) -> None:
        """Let the others of this rank's team sleep until the next step."""
        if self.decoder is not None:
            self.decoder.rest()


@dataclass(frozen=True)
class Machining:
    """What is said of measuring and planning. `objective`: as of options.answering_options; `texts`: how many are to be written, and
    `prompt` and `answer`: tokens of one that are taken in, and that it grows by; 0: nobody knows."""

    profile: Path | None
    fresh: bool
    options: dict[str, Any]
    objective: str = "latency"
    texts: int = 0
    prompt: int = 0
    answer: int = 0


def load(session: "Session", slots: int, positions: int, machining: Machining, state: "State | None" = None) -> Loaded:
    """Measure, plan and load. `state`: what a supervisor knows, on rank 0 of a run that has one. Collective."""
    from hepti_mpi.comm import channel
    from hepti_mpi.comm.mail import Mail
    from hepti_mpi.engine import decoder as decoders
    from hepti_mpi.engine import texts
    from hepti_mpi.engine.machine import together
    from hepti_mpi.planning import staging
    from hepti_mpi.planning import texts as plans
    from hepti_mpi.serving.teams import partners
    from hepti_mpi.tuning import shortening

    startup: dict[str, float] = {}
    begin = time.perf_counter()
    with meanwhile("measuring", shown=session.root and state is None) as meter:

        def at(what: str) -> None:
            meter.at(what)
            if state is not None:
                channel.tell("doing", what=what)

        at(meter.label)
        sizes = {"rows": 1, "attended": min(positions, ATTENDED), "largest": decoders.ROWS, "longest": decoders.ROWS}
        half = max(1, sizes["attended"] // 2)  # of a text is its prompt, where nobody knows
        demand = demand_of(sizes, machining.options, session.world.size, session.keeps)
        demand = replace(demand, kept=slots * positions, prompt=machining.prompt or half, answer=machining.answer or half)
        method = method_of(machining.options)
        with together(session.world):  # what cannot be asked of so many ranks is refused before they are measured
            plans.check(method, session.store.spec, demand, session.world.size)
        path = machining.profile or profile_path()
        known = state.profiles if state is not None else ()
        measured = session.measured(path, machining.fresh, machining.profile is not None, known)
        startup["profile"], begin = time.perf_counter() - begin, time.perf_counter()
        at("planning")
        at_once = min(slots, machining.texts) if machining.objective != "latency" and machining.texts else 1
        placement, chosen = texts.decide(session.machine, session.store, measured, method, demand, at_once)
        placement, writers = _arranged(session, measured, demand, placement, machining, slots)
        startup["plan"], begin = time.perf_counter() - begin, time.perf_counter()
        if state is not None:
            facts = {"profile": measured.to_json(), "spec": session.store.spec.to_json(), "source_hash": session.store.source_hash}
            channel.tell("measured", method=method, demand=asdict(demand), **facts)
        at("loading weights")
        load = partial(texts.load, session.machine, session.store, slots=slots, positions=positions, cache=demand.cache)
        goal = shortening.Goal(session.store, measured, method, demand, machining.options["tolerance"], load, say(session.machine))
        placement, chosen, decoder, wire_error = shortening.loaded(session.machine, goal, placement, chosen)
        startup["load"] = time.perf_counter() - begin
    columns = session.world.from_root(terminal.columns_of_lines() if session.root and state is None else None)
    if columns is not None and not session.root:
        terminal.beside[:] = [columns]  # from now on texts grow there
    mail = None
    if not placement.is_one:
        mail = Mail(session.world, partners(placement, session.world.rank, session.world.size))
    groups = None
    if chosen is not None and chosen.in_stages and chosen.staged is not None:
        groups = staging.grouped(session.store.spec, measured, demand, chosen.staged, slots)[1]
    return Loaded(placement, decoder, chosen, startup, (slots, positions), writers, mail, groups=groups, wire_error=wire_error)


def method_of(options: dict[str, Any]) -> str:
    """Return the method of planning.texts that the options mean. Raises UsageError when they do not go together."""
    method = planning_method(options)
    return STAGES if options["layout"] == PIPELINE else method


def _arranged(
    session: "Session", measured: "ClusterProfile", demand: "Demand", one: "Placement", machining: Machining, slots: int
) -> tuple["Placement", "Writers | None"]:  # fmt: skip
    """Return the placement of teams where those are wanted, else `one`, of all ranks together; and on rank 0 why. Collective."""
    from hepti_mpi.engine.machine import together
    from hepti_mpi.planning import writing
    from hepti_mpi.program import placement as placements

    world, objective, options = session.world, machining.objective, machining.options
    free = planning_method(options) == "hepti" and options["layout"] is None and options["shares"] is None
    found = None
    with world.patience.slower(), together(world):
        if session.root and not world.alone and objective != "latency" and free:
            texts = machining.texts or FULL * slots * world.size
            forced = objective == "throughput"
            found = writing.arranged(session.store.spec, session.store.source_hash, measured, demand, one, (slots, texts), forced)
            if found is not None and objective == "auto" and not (machining.texts and writing.worth(found)):
                found = None
    document = world.from_root(None if found is None else found.placement.to_json())
    return (one if document is None else placements.from_json(document)), found


def led(loaded: Loaded, session: "Session", work: Callable[[], R]) -> R:
    """Return what `work` does with the ranks, which are let go then, however it ends. Rank 0 calls it, the others follow."""
    from hepti_mpi.reporting.generation import stages_lines, writers_lines

    if loaded.writers is not None:
        SCREEN.show(writers_lines(loaded.writers, session.machine.cores.hosts, SCREEN.width) + "\n")
    elif loaded.chosen is not None and loaded.chosen.in_stages and loaded.chosen.staged is not None:
        SCREEN.show(stages_lines(loaded.chosen.staged, session.machine.cores.hosts, SCREEN.width) + "\n")
    elif not session.world.alone and loaded.placement.together is not None:
        SCREEN.draw(loaded.placement.together)
    try:
        return work()
    finally:
        end(loaded)


def end(loaded: Loaded) -> None:
    """Let the other ranks go. Rank 0 calls it."""
    from hepti_mpi.serving.teams import WORK

    if loaded.decoder is not None:
        loaded.decoder.end()
    if loaded.mail is not None:
        for rank in loaded.mail.partners:
            loaded.mail.send(rank, WORK, {"do": "end"})
        loaded.mail.close()


def follow(loaded: Loaded, session: "Session") -> None:
    """Do what rank 0 wants until it wants no more; the other ranks call it."""
    from hepti_mpi.serving import writers

    decoder = loaded.decoder
    if loaded.mail is None or (decoder is not None and decoder.rank):
        if decoder is not None:
            decoder.follow()
    else:
        writers.follow(loaded.mail, None if decoder is None else lambda: _generator(loaded, session, False), loaded.rest)
        if decoder is not None:
            decoder.end()
    if loaded.mail is not None:
        loaded.mail.close()


def _generator(loaded: Loaded, session: "Session", texts: bool) -> "Generator":
    """Return what makes answers on the ranks of a team, for its first rank."""
    from hepti_mpi.engine.stages import Staged
    from hepti_mpi.serving.generation import Generator
    from hepti_mpi.serving.passing import Passing
    from hepti_mpi.serving.stepping import InStages
    from hepti_mpi.weights.outer import OuterWeights

    if isinstance(loaded.decoder, Staged):
        stepper = InStages(loaded.decoder, OuterWeights(session.store))
        return Passing(stepper, loaded.groups or stepper.depth, **_manner(session, texts))
    return Generator(ranks_of(loaded, session), **_manner(session, texts))


def ranks_of(loaded: Loaded, session: "Session") -> "Ranks":
    """Return the ranks of this rank's team, for its first rank."""
    from hepti_mpi.serving.stepping import Ranks
    from hepti_mpi.weights.outer import OuterWeights

    assert loaded.decoder is not None, "this rank rests"
    return Ranks(loaded.decoder, OuterWeights(session.store))


def _manner(session: "Session", texts: bool) -> dict[str, Any]:
    """Return how answers are made, as the model's files say (serving.generation.Asked); not `texts`: tokens, of which somebody else makes
    them."""
    from hepti_mpi.models.inputs.tokens import Tokens
    from hepti_mpi.models.tasks.forms import Forms

    spec, files = session.store.spec, session.store.files
    tokens, ends = Tokens(files) if texts and "tokenizer.json" in files else None, spec.options.get("ends", ())
    penalty = spec.options.get("repetition_penalty", 1.0)
    forms = Forms(files, spec.numbers("ids"), ends)
    return {"ends": ends, "decode": tokens.decode if tokens else None, "penalty": penalty, "forms": forms}


def maker(loaded: Loaded, session: "Session", texts: bool = True) -> "Maker":
    """Return what makes answers on all ranks. Rank 0 calls it; `texts`: as of _manner."""
    from hepti_mpi.serving.writers import TeamGenerator

    if loaded.writers is None or loaded.mail is None:
        return _generator(loaded, session, texts)
    own = None if loaded.decoder is None else _generator(loaded, session, False)
    loaded.making = TeamGenerator(own, loaded.mail, loaded.writers.every, loaded.room[1], **_manner(session, texts))
    return loaded.making


def told(loaded: Loaded, session: "Session") -> dict[str, Any]:
    """Return what is told of the ranks as soon as they are ready (commands.jobs.Job.facts), and how much they write at once. Rank 0 calls
    it."""
    from hepti_mpi.commands import jobs
    from hepti_mpi.reporting.generation import why_teams
    from hepti_mpi.reporting.teams import duties

    slots, positions = loaded.room
    if loaded.writers is None:
        room = {"slots": slots, "positions": positions}
        if loaded.placement.together is not None:
            decision, notes = (None, ()) if loaded.chosen is None else (loaded.chosen.decision, loaded.chosen.notes)
            found = jobs.told(session, loaded.placement.together, decision)
            return found | room | {"why": [*found["why"], *notes]}
        plan = {"strategy": STAGES, "hash": loaded.placement.hash, "hosts": session.machine.cores.hosts, **loaded.placement.to_json()}
        speed = None if loaded.chosen is None else 1 / loaded.chosen.seconds
        return {"plan": plan, "why": duties(loaded.placement, session.machine.cores.hosts), "rows_per_second": speed, "batches": 1} | room
    plan = {"strategy": "teams", "hash": loaded.placement.hash, "hosts": session.machine.cores.hosts, **loaded.placement.to_json()}
    why = [*duties(loaded.placement, session.machine.cores.hosts), why_teams(loaded.writers)]
    found = {"plan": plan, "why": why, "rows_per_second": loaded.writers.rate, "batches": len(loaded.writers.every)}
    return found | {"slots": slots * len(loaded.writers.every), "positions": positions}


def facts(loaded: Loaded, session: "Session") -> dict[str, Any]:
    """Return what is recorded of this rank."""
    from hepti_mpi.comm.launcher import host_name

    decoder, own = loaded.decoder, dict[str, Any](host=host_name())
    if decoder is None or not decoder.is_active:
        return own | {"threads": session.machine.cores.threads, "heads": 0, "kv_heads": 0, "columns": 0, "words": 0}
    part = decoder.part
    own |= {"threads": decoder.threads, **{axis: part.computed(axis) for axis in ("heads", "kv_heads")}}
    own |= {"columns": part.plan.columns[part.rank]}
    own |= {"cache_format": decoder.cache, "cache_bytes": decoder.state.bytes}
    return own | {"words": part.words_of(part.rank)[1] - part.words_of(part.rank)[0], **decoder.spent}
