"""What `run` does with a model that generates text: prompts in, texts out, and what it took.

Knows in which order that goes and what is shown; does not know how a step is divided or a token is chosen.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.commands.meter import meanwhile
from hepti_mpi.commands.options import planning_method, planning_request
from hepti_mpi.commands.paths import profile_path
from hepti_mpi.commands.record import put_record
from hepti_mpi.commands.screen import SCREEN, asked_of
from hepti_mpi.commands.writing import SLOTS, Writing

if TYPE_CHECKING:
    import numpy as np

    from hepti_mpi.commands.session import Session
    from hepti_mpi.engine.decoder import Decoder
    from hepti_mpi.models.inputs.prompts import Prompt
    from hepti_mpi.models.tasks.sampling import Sampling
    from hepti_mpi.planning.request import Decision
    from hepti_mpi.serving.generation import Answer, Generator
    from hepti_mpi.serving.request import Question
    from hepti_mpi.serving.sink import Sink
    from hepti_mpi.serving.stepping import Ranks
    from hepti_mpi.supervisor.progress import State

ATTENDED = 256  # rows that a row attends to, where nobody knows


@dataclass
class Loaded:
    """A job that can generate: the part of this rank, what it was chosen from (rank 0 knows), and what starting took."""

    decoder: "Decoder"
    decision: "Decision | None"
    startup: dict[str, float]


@dataclass
class Result:
    """What came out: the answer to each prompt that was left; `logits` of prompts by index."""

    answers: list["Answer"] = field(default_factory=list)
    logits: dict[int, "np.ndarray"] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Task:
    """What rank 0 is asked: all prompts, those that are left, what is `asked` of each answer, where answers go, and what the supervisor of
    a supervised run knows."""

    prompts: list["Prompt"]
    left: list["Prompt"]
    asked: dict[int, "Sampling"]
    sink: "Sink"
    state: "State | None"


@dataclass(frozen=True)
class Machining:
    """What is said of measuring and planning."""

    profile: Path | None
    fresh: bool
    options: dict[str, Any]


def generate(session: "Session", question: "Question", writing: Writing, machining: Machining) -> None:
    """Answer the prompts of a question. Collective. Raises PartlyAnswered."""
    from hepti_mpi.engine.machine import together

    world, task = session.world, None
    with world.patience.slower(), together(world):
        _check(question, writing)
        if session.root:
            task = _asked(session, question, writing)
    wanted = world.from_root(_wanted(session, task, writing) if task is not None else None)
    result, ran = Result(), None
    if wanted is not None:
        loaded = load(session, wanted["slots"], wanted["positions"], machining, task.state if task else None)
        if task is not None:
            result = led(loaded, session, partial(_answered, session=session, task=task, logits=writing.logits))
        else:
            loaded.decoder.follow()
        ran = loaded, world.gather_all(_facts(loaded.decoder))
    with world.patience.slower(), together(world):
        if task is not None:
            _finish(session, question, task, result, ran)


def _check(question: "Question", writing: Writing) -> None:
    """Raise InputError or UsageError for what does not go together, before anything is read."""
    from hepti_mpi.comm import channel
    from hepti_mpi.errors import InputError

    if writing.logits and not question.arrays:
        raise InputError("--logits is for an --output that ends in .npz")
    if writing.logits and (channel.state_path() or question.resume):
        raise InputError("--logits are too many to be kept of a run that is cut off: leave out supervise and --resume")


def _asked(session: "Session", question: "Question", writing: Writing) -> Task:
    """Read the prompts and get ready to keep their answers. Raises InputError."""
    from hepti_mpi.comm import channel, interrupts
    from hepti_mpi.errors import InputError
    from hepti_mpi.serving.sink import Filed, Shown, Sink, Spoken
    from hepti_mpi.serving.written import finished_text, head_of
    from hepti_mpi.supervisor.progress import Told, read_state

    state_file = channel.state_path()
    state = read_state(state_file) if state_file else None
    if state is not None:
        channel.tell("doing", what="reading")
    sink: Sink | None = Told(state) if state is not None else None
    if sink is None and question.output is not None:
        sink = Filed(question, SCREEN.say, lasting=not writing.logits)
    default = writing.sampling()
    prompts, asked = _prompts(session, question, writing, default)
    if any(one.stop for one in asked.values()) and "tokenizer.json" not in session.store.files:
        raise InputError("stop texts need a tokenizer, which the model lacks")
    if sink is None:
        sink = Shown(SCREEN) if SCREEN.json else Spoken(SCREEN, [asked_of(prompt.given) for prompt in prompts])
    refused = {one.index: finished_text(one, None, default.max_tokens, {}) for one in prompts if one.error is not None}
    sink.begin(head_of(session.store, prompts, default), len(prompts), refused)
    left = [one for one in prompts if one.error is None and one.index not in sink.known]
    interrupts.say(lambda: sink.interrupted(len(left)))
    return Task(prompts, left, asked, sink, state)


def _prompts(
    session: "Session", question: "Question", writing: Writing, default: "Sampling"
) -> tuple[list["Prompt"], dict[int, "Sampling"]]:  # fmt: skip
    """Return the prompts, and what is asked of the answer to each."""
    from hepti_mpi.comm.launcher import standard_input
    from hepti_mpi.errors import InputError
    from hepti_mpi.models.inputs.prompts import check_room, read_prompts
    from hepti_mpi.models.tasks.forms import check
    from hepti_mpi.models.tasks.sampling import sampling_of

    store, stdin, asked = session.store, standard_input() if question.source == "-" else None, dict[int, "Sampling"]()
    found = read_prompts(store.spec, store.files, question.source, stdin, writing.chat)
    found = check_room(found, min(writing.context or store.spec.positions, store.spec.positions))
    for place, one in enumerate(found):
        try:
            asked[one.index] = sampling_of(one.asked, default)
            check(asked[one.index].schema)
        except InputError as error:
            found[place] = replace(one, ids=[], error=one.error or f"{one.origin}: {error}")
    wrong = next((one for one in found if one.error), None)
    if wrong is not None and question.strict:
        raise InputError(wrong.error)
    return found, asked


def _wanted(session: "Session", task: Task, writing: Writing) -> dict[str, int] | None:
    """Return how many slots are needed, and how long; None where nothing is left to be answered."""
    lengths = [len(one.ids) + task.asked[one.index].max_tokens for one in task.left]
    if not lengths:
        return None
    positions = min(writing.context or max(lengths), session.store.spec.positions)
    return {"slots": writing.slots or min(SLOTS, len(lengths)), "positions": positions}


def load(session: "Session", slots: int, positions: int, machining: Machining, state: "State | None" = None) -> Loaded:
    """Measure, plan and load. `state`: what a supervisor knows, on rank 0 of a run that has one. Collective."""
    from hepti_mpi.comm import channel
    from hepti_mpi.engine import decoder as decoders
    from hepti_mpi.engine.loading import decide
    from hepti_mpi.planning import decoding

    startup: dict[str, float] = {}
    begin = time.perf_counter()
    with meanwhile("measuring", shown=session.root and state is None) as meter:

        def at(what: str) -> None:
            meter.at(what)
            if state is not None:
                channel.tell("doing", what=what)

        at(meter.label)
        path = machining.profile or profile_path(session.machine)
        known = state.profiles if state is not None else ()
        measured = session.measured(path, machining.fresh, machining.profile is not None, known)
        startup["profile"], begin = time.perf_counter() - begin, time.perf_counter()
        at("planning")
        sizes = {"rows": 1, "attended": min(positions, ATTENDED), "largest": decoders.ROWS, "longest": decoders.ROWS}
        half = max(1, sizes["attended"] // 2)  # of a text is its prompt, where nobody knows
        request = planning_request(sizes, machining.options, session.world.size)
        request = replace(request, kept=slots * positions, prompt=half, answer=half)
        method = planning_method(machining.options)
        plan, decision = decide(session.machine, session.store, measured, method, request, decoding.decide)
        startup["plan"], begin = time.perf_counter() - begin, time.perf_counter()
        if state is not None:
            facts = {"profile": measured.to_json(), "spec": session.store.spec.to_json(), "source_hash": session.store.source_hash}
            channel.tell("measured", method=method, request=asdict(request), **facts)
        at("loading weights")
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


def generator(ranks: "Ranks", session: "Session", texts: bool = True) -> "Generator":
    """Return what makes answers on the ranks, as the model's files say; not `texts`: tokens, of which somebody else makes them."""
    from hepti_mpi.models.inputs.tokens import Tokens
    from hepti_mpi.models.tasks.forms import Forms
    from hepti_mpi.serving.generation import Generator

    spec, files = session.store.spec, session.store.files
    tokens, ends = Tokens(files) if texts and "tokenizer.json" in files else None, spec.options.get("ends", ())
    decode, penalty = tokens.decode if tokens else None, spec.options.get("repetition_penalty", 1.0)
    return Generator(ranks, ends, decode, penalty, Forms(files, spec.numbers("ids"), ends))


def _answered(ranks: "Ranks", session: "Session", task: Task, logits: bool) -> Result:
    """Answer all prompts that are left, as many at once as there are slots, while another thread writes."""
    from hepti_mpi.comm import interrupts
    from hepti_mpi.serving.generation import Event
    from hepti_mpi.serving.sink import Beside, Spoken
    from hepti_mpi.serving.written import Written, finished_text

    ranks.decoder.rest()  # while the tokenizer is read
    result, making = Result(), generator(ranks, session)
    if logits:
        result.logits = {one.index: ranks.all_logits(one.ids) for one in task.left}
    shown = task.state is None and not isinstance(task.sink, Spoken)
    with meanwhile("writing", len(task.left), shown) as meter, Beside(task.sink, meter) as beside:

        def interrupted() -> str | None:
            beside.stop()
            return task.sink.interrupted(len(task.left))

        def tell(events: list[Event], seconds: float) -> None:
            written = Written(seconds)
            for event in events:
                prompt = prompts[id(event.answer)]
                written.add(prompt, event)
                if event.finish is not None:
                    written.requests.append(prompt)
                    written.finished.append(finished_text(prompt, event.answer, event.answer.sampling.max_tokens, result.logits))
            if beside.behind:  # whoever reads is slow: nobody is to take this rank for lost meanwhile
                ranks.decoder.rest()
            beside.event(written)

        interrupts.say(interrupted)
        begin = time.perf_counter()
        result.answers = [making.submit(one.ids, task.asked[one.index], task.sink.begun.get(one.index, ())) for one in task.left]
        prompts = {id(answer): prompt for answer, prompt in zip(result.answers, task.left)}
        tell([Event(one, None, one.text, one.finish_reason) for one in result.answers if one.made], 0.0)
        while making.busy and task.sink.wanted:
            clock = time.perf_counter()
            tell(making.step(), time.perf_counter() - clock)
        result.seconds = time.perf_counter() - begin
    return result


def _facts(decoder: "Decoder") -> dict[str, Any]:
    from hepti_mpi.comm.launcher import host_name

    part = decoder.part
    own = {"host": host_name(), "threads": decoder.threads, "heads": part.granules, "columns": part.plan.columns[part.rank]}
    return own | {"words": part.words_of(part.rank)[1] - part.words_of(part.rank)[0], **decoder.spent}


def _finish(
    session: "Session", question: "Question", task: Task, result: Result, ran: tuple[Loaded, list[dict[str, Any]]] | None
) -> None:  # fmt: skip
    """Put the answers out and print what they took. Raises PartlyAnswered."""
    from hepti_mpi.reporting.generation import generation_lines, generation_record

    tally = task.sink.write()
    if not task.left and any(one.error is None for one in task.prompts):
        session.tell(f"all of {question.output or 'the input'} had been answered already: nothing is left")
    plan = ran[0].decoder.part.plan if ran else None
    document = generation_record(
        session.store.spec, plan, result.answers, result.seconds, ran[0].startup if ran else {}, ran[1] if ran else []
    )
    document["output"] = None if question.output is None else str(question.output)
    put_record(document, tally, lambda: SCREEN.show(generation_lines(document)))


def no_text(writing: Writing) -> None:
    """Raise UsageError where options for text were given and the model does not generate any."""
    if writing.said:
        raise click.UsageError(f"{writing.said[0]} is for models that generate text, which this one does not")
