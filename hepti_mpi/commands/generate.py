"""What `run` does with a model that generates text: prompts in, texts out, and what it took.

Knows in which order that goes and what is shown; does not know how a step is divided or a token is chosen.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.commands.meter import Meter, meanwhile
from hepti_mpi.commands.options import planning_method, planning_request
from hepti_mpi.commands.paths import profile_path
from hepti_mpi.commands.screen import SCREEN
from hepti_mpi.commands.writing import SLOTS, Writing

if TYPE_CHECKING:
    import numpy as np

    from hepti_mpi.commands.session import Session
    from hepti_mpi.engine.decoder import Decoder
    from hepti_mpi.models.inputs.prompts import Prompt
    from hepti_mpi.planning.request import Decision
    from hepti_mpi.serving.generation import Answer, Generator
    from hepti_mpi.serving.request import Question
    from hepti_mpi.serving.stepping import Ranks

ATTENDED = 256  # rows that a row attends to, where nobody knows


@dataclass
class Loaded:
    """A job that can generate: the part of this rank, what it was chosen from (rank 0 knows), and what starting took."""

    decoder: "Decoder"
    decision: "Decision | None"
    startup: dict[str, float]


@dataclass
class Result:
    """What came out: per prompt its answer, None where there is none; `logits` of prompts by index."""

    answers: list["Answer | None"] = field(default_factory=list)
    logits: dict[int, "np.ndarray"] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Machining:
    """What is said of measuring and planning."""

    profile: Path | None
    fresh: bool
    options: dict[str, Any]


def generate(session: "Session", question: "Question", writing: Writing, machining: Machining) -> None:
    """Answer the prompts of a question. Collective. Raises PartlyAnswered."""
    from hepti_mpi.engine.machine import together

    world, prompts = session.world, list["Prompt"]()
    with world.patience.slower(), together(world):
        _check(question, writing)
        if session.root:
            prompts = _prompts(session, question, writing)
    wanted = world.from_root(_wanted(session, prompts, writing) if session.root else None)
    result = Result()
    if wanted is not None:
        loaded = load(session, wanted["slots"], wanted["positions"], machining)
        if session.root:
            with meanwhile("writing", len(prompts)) as meter:
                result = led(loaded, session, lambda ranks: _answered(ranks, session, prompts, writing, meter))
        else:
            loaded.decoder.follow()
        facts = world.gather_all(_facts(loaded.decoder))
    with world.patience.slower(), together(world):
        if session.root:
            _finish(session, question, prompts, result, None if wanted is None else (loaded, facts))


def _check(question: "Question", writing: Writing) -> None:
    """Raise InputError or UsageError for what does not go together, before anything is read."""
    from hepti_mpi.comm import channel
    from hepti_mpi.errors import InputError
    from hepti_mpi.serving.outputs import check_apart, check_path

    if channel.state_path():
        raise InputError("supervise does not go on with texts yet; start run without it")
    if writing.logits and not question.arrays:
        raise InputError("--logits is for an --output that ends in .npz")
    if question.output is not None:
        check_path(question.output)
        check_apart(question.output, question.source)


def _prompts(session: "Session", question: "Question", writing: Writing) -> list["Prompt"]:
    from hepti_mpi.comm.launcher import standard_input
    from hepti_mpi.errors import InputError
    from hepti_mpi.models.inputs.prompts import check_room, read_prompts

    store, stdin = session.store, standard_input() if question.source == "-" else None
    found = read_prompts(store.spec, store.files, question.source, stdin, writing.chat)
    found = check_room(found, min(writing.context or store.spec.positions, store.spec.positions))
    wrong = next((one for one in found if one.error), None)
    if wrong is not None and question.strict:
        raise InputError(wrong.error)
    return found


def _wanted(session: "Session", prompts: list["Prompt"], writing: Writing) -> dict[str, int] | None:
    """Return how many slots are needed, and how long; None where nothing can be answered."""
    lengths = [len(one.ids) + _most(one, writing) for one in prompts if one.error is None]
    if not lengths:
        return None
    positions = min(writing.context or max(lengths), session.store.spec.positions)
    return {"slots": writing.slots or min(SLOTS, len(lengths)), "positions": positions}


def _most(prompt: "Prompt", writing: Writing) -> int:
    asked = prompt.asked.get("max_tokens")
    return asked if isinstance(asked, int) and asked > 0 else writing.sampling().max_tokens


def load(session: "Session", slots: int, positions: int, machining: Machining) -> Loaded:
    """Measure, plan and load. Collective."""
    from hepti_mpi.engine import decoder as decoders
    from hepti_mpi.engine.loading import decide
    from hepti_mpi.planning import decoding

    startup: dict[str, float] = {}
    begin = time.perf_counter()
    with meanwhile("measuring", shown=session.root) as meter:
        path = machining.profile or profile_path(session.machine)
        measured = session.measured(path, machining.fresh, required=machining.profile is not None)
        startup["profile"], begin = time.perf_counter() - begin, time.perf_counter()
        meter.at("planning")
        sizes = {"rows": 1, "attended": min(positions, ATTENDED), "largest": decoders.ROWS, "longest": decoders.ROWS}
        request = planning_request(sizes, machining.options, session.world.size)
        method = planning_method(machining.options)
        plan, decision = decide(session.machine, session.store, measured, method, request, decoding.decide)
        startup["plan"], begin = time.perf_counter() - begin, time.perf_counter()
        meter.at("loading weights")
        decoder = decoders.load(session.machine, session.store, plan, slots, positions)
        startup["load"] = time.perf_counter() - begin
    return Loaded(decoder, decision, startup)


def led(loaded: Loaded, session: "Session", work: Callable[["Ranks"], Result]) -> Result:
    """Return what `work` does with the ranks, which are let go then, however it ends. Rank 0 calls it, the others follow."""
    from hepti_mpi.serving.request import OuterWeights
    from hepti_mpi.serving.stepping import Ranks

    if not session.world.size == 1:
        SCREEN.draw(loaded.decoder.part.plan)
    try:
        return work(Ranks(loaded.decoder, OuterWeights(session.store)))
    finally:
        loaded.decoder.end()


def generator(ranks: "Ranks", session: "Session") -> "Generator":
    """Return what makes answers on the ranks, as the model's files say."""
    from hepti_mpi.models.inputs.tokens import Tokens
    from hepti_mpi.serving.generation import Generator

    tokens = Tokens(session.store.files) if "tokenizer.json" in session.store.files else None
    return Generator(ranks, session.store.spec.options.get("ends", ()), tokens.decode if tokens else None)


def _answered(ranks: "Ranks", session: "Session", prompts: list["Prompt"], writing: Writing, meter: Meter) -> Result:
    """Answer all prompts, as many at once as there are slots."""
    from hepti_mpi.models.tasks.sampling import sampling_of

    result, default = Result(), writing.sampling()
    if writing.logits:
        result.logits = {one.index: ranks.all_logits(one.ids) for one in prompts if one.error is None}
    making, begin = generator(ranks, session), time.perf_counter()
    result.answers = [None if one.error else making.submit(one.ids, sampling_of(one.asked, default)) for one in prompts]
    while making.busy:
        for event in making.step():
            if event.answer.finish_reason is not None:
                meter.advance(1)
    result.seconds = time.perf_counter() - begin
    return result


def _facts(decoder: "Decoder") -> dict[str, Any]:
    from hepti_mpi.comm.launcher import host_name

    part = decoder.part
    own = {"host": host_name(), "threads": decoder.threads, "heads": part.granules, "columns": part.plan.columns[part.rank]}
    return own | {"words": part.words_of(part.rank)[1] - part.words_of(part.rank)[0], **decoder.spent}


def _finish(
    session: "Session", question: "Question", prompts: list["Prompt"], result: Result, ran: tuple[Loaded, list[dict[str, Any]]] | None
) -> None:  # fmt: skip
    """Put the answers out and print what they took. Raises PartlyAnswered."""
    from hepti_mpi.reporting.generation import generation_lines, generation_record
    from hepti_mpi.serving.outputs import Tally, write_jsonl
    from hepti_mpi.serving.written import record, write_arrays

    answers = result.answers or [None] * len(prompts)
    records = [record(prompt, answer) for prompt, answer in zip(prompts, answers)]
    if question.arrays and question.output is not None:
        write_arrays(question.output, prompts, answers, result.logits)
    elif question.output is not None:
        write_jsonl(question.output, records)
    else:
        SCREEN.texts(records)
    tally = Tally.of([{"answer": one} | ({"error": one["error"]} if "error" in one else {}) for one in records])
    made = [answer for answer in answers if answer is not None]
    plan = ran[0].decoder.part.plan if ran else None
    document = generation_record(session.store.spec, plan, made, result.seconds, ran[0].startup if ran else {}, ran[1] if ran else [])
    document |= tally.numbers | {"output": None if question.output is None else str(question.output)}
    SCREEN.show("\n" + generation_lines(document))
    SCREEN.document(document, always=True)
    tally.check()


def no_text(writing: Writing) -> None:
    """Raise UsageError where options for text were given and the model does not generate any."""
    if writing.said:
        raise click.UsageError(f"{writing.said[0]} is for models that generate text, which this one does not")
