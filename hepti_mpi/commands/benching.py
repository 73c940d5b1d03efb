"""Measures what `bench` was asked for: requests by several methods in turns, or texts, in one format of weights or several; and shows what
was found. Knows no options but what they come to.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepti_mpi.cluster.profile import CACHES
from hepti_mpi.commands.meter import meanwhile
from hepti_mpi.commands.screen import SCREEN
from hepti_mpi.tuning import turns
from hepti_mpi.wording import counted

if TYPE_CHECKING:
    from hepti_mpi.cluster.profile import ClusterProfile
    from hepti_mpi.commands.session import Session
    from hepti_mpi.engine.machine import Machine
    from hepti_mpi.engine.segments import Segments
    from hepti_mpi.planning.demand import Demand
    from hepti_mpi.tuning.bench import Bench, Chosen, Samples
    from hepti_mpi.tuning.formats import InFormat
    from hepti_mpi.tuning.turns import Holds, Method
    from hepti_mpi.weights.store import Store

PHASES = ("request", "decode")
Decide = Callable[..., tuple[Any, Any]]  # (machine, store, profile, name, request): what is done, and on rank 0 why
OneSize = tuple[int, int | None]  # rows of a request, layers that answer it; None: all


@dataclass(frozen=True)
class Choice:
    """What is measured and where that goes: the options that are the command's own."""

    rows: tuple[OneSize, ...]
    repeat: int
    output: Path | None
    cluster: str | None
    profile_file: Path | None
    fresh: bool
    memory_limit: tuple[int, ...] | None
    phase: str
    tokens: int
    formats: tuple[str, ...]
    cache_format: str | None = None


@dataclass
class Subject:
    """A checkpoint as it is measured, in one format: its sessions, and what is known of the ranks with it."""

    found: "InFormat"
    known: "ClusterProfile"
    segments: "Segments"

    @property
    def store(self) -> "Store":
        return self.found.store


def subject(session: "Session", choice: Choice, path: Path, name: str | None, folder: Path) -> Subject:
    """Return what is measured: the store that was named or, of its checkpoint in a format, one beside it. Collective.

    `path`: of profiles; `folder`: where a host keeps what it lacks of a store.
    """
    from hepti_mpi.cluster.profile import Edges
    from hepti_mpi.engine.machine import measured_profile
    from hepti_mpi.engine.segments import Segments
    from hepti_mpi.tuning.formats import InFormat, in_format

    machine, given = session.machine, InFormat("", session.store, 0, None)
    found = given if name is None else in_format(machine, session.store, name, session.tell, folder)
    with meanwhile("measuring", shown=session.root):
        known = measured_profile(machine, found.store.spec, path, choice.fresh, choice.profile_file is not None, session.tell)
    if choice.phase != "decode":  # a request begins with its embedding and ends with the last hidden state
        known = replace(known, edges=Edges())
    return Subject(found, known, Segments(found.store))


def measure(
    session: "Session", choice: Choice, subjects: Sequence[Subject], names: Sequence[str], limits: tuple[int, ...] | None, where: str,
    begin: float,
) -> None:  # fmt: skip
    """Measure requests of each size in turn, and show what was found. `where`: the cluster; `begin`: when all began."""
    from hepti_mpi.engine.machine import together
    from hepti_mpi.planning.demand import Demand
    from hepti_mpi.tuning import bench as benches
    from hepti_mpi.tuning.formats import Taken

    machine, output = session.machine, choice.output
    for number, (count, layers) in enumerate(choice.rows):
        demand = Demand(count, limits=limits, mode="packed")
        parts = [one.store if layers is None else one.store.shortened(layers) for one in subjects]
        plans = plans_of(session, subjects, parts, names, demand)
        every = [benches.Bench(machine, part, one.segments) for one, part in zip(subjects, parts)]
        before = [one.known for one in subjects]
        found, groups = _requests(session, choice, subjects, every, [chosen for chosen, _ in plans], demand, not number)
        with together(session.world):
            for one, bench, samples, (_, refused), known in zip(subjects, every, found, plans, before):
                if session.root and samples:
                    made = {"seconds": round(time.perf_counter() - begin, 3), "turns": groups}
                    made["output"] = None if output is None else str(output)
                    part = f", the first {layers} of {counted(one.store.spec.layers, 'layers')}" if layers else ""
                    SCREEN.show(one.found.title(session.store.spec.name, counted(count, "rows") + part))
                    show(bench, samples, refused, known, demand, where, made)
                    one.found.methods = {name: Taken.of(sample) for name, sample in samples.items()}
        show_formats(session, choice, subjects, count, where)
        begin = time.perf_counter()


def _requests(
    session: "Session", choice: Choice, subjects: Sequence[Subject], every: "Sequence[Bench]", plans: "Sequence[Chosen]",
    demand: "Demand", trying: bool,
) -> "tuple[list[dict[str, Samples]], list[list[str]]]":  # fmt: skip
    """Return what was measured of each subject, and which methods answered in turns."""
    from hepti_mpi.tuning import bench as benches

    machine, first = session.machine, None
    found: list[dict[str, Samples]] = [{} for _ in subjects]
    loading, rounds = "loading and settling on plans", choice.repeat + benches.warm_up(machine)
    holds = {
        (number, name): benches.holds(number, plan, decision.chosen.memory)
        for number, chosen in enumerate(plans) for name, (plan, decision) in chosen.items() if decision is not None
    }  # fmt: skip
    groups = _in_turns(session, subjects, holds)
    with meanwhile(loading, rounds * len(groups), session.root) as meter:
        for group in groups:
            meter.at(loading)
            some: list[Samples] = []
            for number, (one, bench) in enumerate(zip(subjects, every)):
                if chosen := {name: plans[number][name] for which, name in group if which == number}:
                    samples, one.known = bench.ready(one.known, chosen, demand, trying)
                    found[number] |= samples
                    some += samples.values()
            meter.at("answering by all methods in turns" if len(groups) == 1 else "answering in turns")
            first = benches.answer(machine, some, demand.rows, choice.repeat, meter.advance, first)
    return found, turns.told(groups)


def _in_turns(session: "Session", subjects: Sequence[Subject], holds: "Mapping[Method, Holds]") -> "list[list[Method]]":
    """Return which methods are loaded together, and say so where memory does not hold all."""
    groups = turns.side_by_side(session.machine, holds, [node.memory_bytes for node in subjects[0].known.nodes])
    if len(groups) > 1:
        apart = "; ".join(map(", ".join, turns.told(groups)))
        session.tell(f"memory does not hold all methods at once: these answer in turns, then the next: {apart}")
    return groups


def plans_of(
    session: "Session", subjects: Sequence[Subject], parts: "Sequence[Store]", names: Sequence[str], demand: "Demand",
    decide: "Decide | None" = None,
) -> list[tuple[dict[str, tuple[Any, Any]], dict[str, str]]]:  # fmt: skip
    """Return, for each of what is measured, the plans of the methods that fit and why the others do not. Collective.

    `parts`: its store, or the first layers of it. Raises: CapacityError when nothing fits.
    """
    from hepti_mpi.errors import CapacityError

    found, last = [], None
    for one, part in zip(subjects, parts):
        try:
            found.append(choose(session.machine, part, one.known, names, demand, decide))
        except CapacityError as error:  # on every rank
            if len(subjects) > 1:
                session.tell(f"{one.found.name or one.store.path} is left out: {error}")
            found.append(({}, {}))
            last = error
    if last is not None and not any(chosen for chosen, _ in found):
        raise last
    return found


def show_formats(session: "Session", choice: Choice, subjects: Sequence[Subject], rows: int, where: str) -> None:
    """Print formats beside each other, where there are any, with the date and machine."""
    from hepti_mpi.engine import machine as machines
    from hepti_mpi.tuning import formats

    if choice.formats and session.root:
        every = [one.found for one in subjects]
        SCREEN.show("\n" + formats.compared(every, SCREEN.width))
        model = session.store.spec.name
        SCREEN.document(formats.document(model, rows, where, every) | machines.made() | {"ranks": session.world.size}, always=True)


def measure_texts(
    session: "Session", choice: Choice, subjects: Sequence[Subject], names: Sequence[str], limits: tuple[int, ...] | None, where: str,
    begin: float,
) -> None:  # fmt: skip
    """Measure a prompt of each size in turn, with the tokens added to it, and show what was found."""
    from hepti_mpi.engine import machine as machines
    from hepti_mpi.engine import texts as loading
    from hepti_mpi.engine.decoder import ROWS
    from hepti_mpi.planning import decoding
    from hepti_mpi.planning.demand import Demand
    from hepti_mpi.planning.texts import NAMES
    from hepti_mpi.program.plan import WIRES
    from hepti_mpi.tuning import texts
    from hepti_mpi.tuning.formats import Taken

    machine = session.machine
    other = [name for name in names if name not in NAMES]
    names = [name for name in names if name not in other]
    for prompt, _ in choice.rows:
        kept, chunk = prompt + choice.tokens, min(prompt, ROWS)
        demand = Demand(1, prompt + choice.tokens // 2, chunk, chunk, limits=limits, mode="packed", kept=kept, prompt=prompt,
                          answer=choice.tokens, cache=choice.cache_format or CACHES[0])  # fmt: skip
        plans = plans_of(session, subjects, [one.store for one in subjects], names, demand, loading.decide)
        holds = {
            (number, name): texts.holds(number, name, what)
            for number, (chosen, _) in enumerate(plans) for name, (_, what) in chosen.items() if what is not None
        }  # fmt: skip
        groups, every = _in_turns(session, subjects, holds), [dict[str, texts.Written]() for _ in subjects]
        with meanwhile("loading, and writing by all methods in turns", (choice.repeat + 1) * len(groups), session.root) as meter:
            for group in groups:
                ways = [(subjects[number].store, *plans[number][0][name]) for number, name in group]
                for (number, name), written in zip(group, texts.measured(machine, ways, demand, choice.repeat, meter.advance)):
                    every[number][name] = written
        first = next(written for found in every for written in found.values())
        for one, found, (_, refused) in zip(subjects, every, plans):
            if session.root and found:
                own = [plan for written in found.values() if (plan := written.placement.together) is not None]
                wires = [wire for wire in WIRES if wire == WIRES[0] or wire in {plan.shortest for plan in own}]
                model = one.store.spec, one.store.source_hash, one.known
                firsts = {wire: decoding.prompt_bound(*model, replace(demand, wires=(WIRES[0], wire)), own) for wire in wires}
                bounds = firsts, decoding.bound(one.store.spec, one.known, demand.attended)
                refused |= {", ".join(other): "not for texts, a step of which has one row"} if other else {}
                SCREEN.show(one.found.title(session.store.spec.name, f"{counted(choice.tokens, 'tokens')} after {counted(prompt, 'rows')}"))
                SCREEN.show(texts.compared(found, refused, bounds, SCREEN.width))
                made = {"ranks": session.world.size, "versions": machines.versions(machine, one.store.spec)}
                made |= {"seconds": round(time.perf_counter() - begin, 3), "turns": turns.told(groups)}
                SCREEN.document(texts.document(one.store.spec.name, where, demand, found, bounds) | machines.made() | made, always=True)
                one.found.methods = {name: Taken.of_text(written, first) for name, written in found.items()}
        show_formats(session, choice, subjects, prompt, where)
        begin = time.perf_counter()


def choose(
    machine: "Machine", store: "Store", profile: "ClusterProfile", names: Sequence[str], demand: "Demand",
    decide: "Decide | None" = None,
) -> tuple[dict[str, tuple[Any, Any]], dict[str, str]]:  # fmt: skip
    """Return the plans of the methods that fit, with rank 0's decisions, and why the others do not. Collective.

    `decide`: what turns a name into a plan, or a placement, where that is not for requests. Raises: CapacityError when none fits.
    """
    from hepti_mpi.engine import loading
    from hepti_mpi.engine import machine as machines
    from hepti_mpi.errors import CapacityError

    chosen: dict[str, tuple[Any, Any]] = {}
    refused: dict[str, str] = {}
    for name in names:
        try:
            chosen[name] = (decide or loading.decide)(machine, store, profile, name, demand)
        except CapacityError as error:  # on every rank
            refused[name] = str(error)
    with machines.together(machine.world):
        if not chosen:
            raise CapacityError.of_all(refused[names[0]])
    return chosen, refused


def show(
    bench: "Bench", samples: dict[str, "Samples"], refused: dict[str, str], profile: "ClusterProfile", demand: "Demand", where: str,
    made: dict[str, Any],
) -> None:  # fmt: skip
    """Print what a bench found, and append it to the file that `made` names."""
    from hepti_mpi.cluster.profile import soonest
    from hepti_mpi.documents import append_lines
    from hepti_mpi.engine import machine as machines
    from hepti_mpi.errors import InputError
    from hepti_mpi.planning.bound import bound
    from hepti_mpi.tuning import comparison

    machine, store = bench.machine, bench.store
    wires = sorted({sample.part.plan.shortest for sample in samples.values()})  # settling may have changed it
    plans = [sample.part.plan for sample in samples.values()]
    profile = soonest([profile, *(sample.profile for sample in samples.values() if sample.profile)])  # no price is below the bound by it
    bounds = {wire: bound(store.spec, store.source_hash, profile, replace(demand, wires=(wire,)), plans) for wire in wires}
    about = machines.made() | {"ranks": machine.world.size, "versions": machines.versions(machine, store.spec)} | made
    above = {name: comparison.above_of(sample, store.spec, profile, demand.rows, bounds) for name, sample in samples.items()}
    whole = bench.segments.store.spec.layers == store.spec.layers
    model = store.spec.name if whole else f"{store.spec.name}-{store.spec.layers}-layers"
    found = comparison.Found(model, demand.rows, where, machine.boards, samples, bounds, about, above, profile.cores)
    records, failure = list(comparison.lines(found)), None
    if made["output"] is not None:
        try:
            append_lines(Path(made["output"]), list(map(json.dumps, records)), InputError)
        except InputError as error:  # what was measured is shown all the same
            failure, found = error, replace(found, made=about | {"output": None})
            records[-1]["output"] = None
    SCREEN.show(comparison.comparison(found, refused, SCREEN.width))
    SCREEN.document(records[-1], always=True)
    if failure is not None:
        raise failure
