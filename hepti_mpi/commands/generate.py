"""What `run` does with a model that generates text: prompts in, texts out, and what it took.

Knows in which order that goes and what is shown; does not know how a step is divided or a token is chosen.
"""

import time
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hepti_mpi.commands import writers
from hepti_mpi.commands.meter import meanwhile
from hepti_mpi.commands.record import put_record, write_out
from hepti_mpi.commands.screen import SCREEN, asked_of
from hepti_mpi.commands.terminal import is_typed
from hepti_mpi.commands.writers import Loaded, Machining
from hepti_mpi.commands.writing import SLOTS, Writing

if TYPE_CHECKING:
    import numpy as np

    from hepti_mpi.commands.session import Session
    from hepti_mpi.models.inputs.prompts import Prompt
    from hepti_mpi.models.tasks.sampling import Sampling
    from hepti_mpi.serving.generation import Answer
    from hepti_mpi.serving.request import Question
    from hepti_mpi.serving.sink import Sink
    from hepti_mpi.supervisor.progress import State

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


def generate(session: "Session", question: "Question", writing: Writing, machining: Machining) -> None:
    """Answer the prompts of a question. Collective. Raises PartlyAnswered."""
    from hepti_mpi.comm import channel
    from hepti_mpi.engine.machine import together

    world, task = session.world, None
    with world.patience.slower(), together(world):
        _check(question, writing)
        if session.root:
            with meanwhile("reading", shown=channel.state_path() is None and not is_typed(question.source)):
                task = _asked(session, question, writing, machining.options)
    wanted = world.from_root(_wanted(session, task, writing) if task is not None else None)
    result, ran = Result(), None
    if wanted is not None:
        room = wanted.pop("slots"), wanted.pop("positions")
        machining = replace(machining, objective="latency" if writing.logits else machining.objective, **wanted)
        loaded = writers.load(session, *room, machining, task.state if task else None)
        before = copy(session.machine.emulation)
        if task is not None:
            result = writers.led(loaded, session, partial(_answered, loaded, session, task, writing.logits, question.strict))
        else:
            writers.follow(loaded, session)
        ran = loaded, world.gather_all(writers.facts(loaded, session) | session.machine.emulation.since(before))
    with world.patience.slower(), together(world):
        if task is not None:
            _finish(session, question, task, result, ran)


def _check(question: "Question", writing: Writing) -> None:
    """Raise InputError or UsageError for what does not go together, before anything is read."""
    from hepti_mpi.comm import channel
    from hepti_mpi.errors import InputError

    if writing.logits and not question.arrays:
        raise InputError("--logits is for an --output that ends in .npz")
    if writing.logprobs is not None and (question.arrays or question.output is None and not SCREEN.json):
        raise InputError("--logprobs is for an --output that ends in .jsonl, or for --json: log-probabilities are told nowhere else")
    if writing.logits and (channel.state_path() or question.resume):
        raise InputError("--logits are too many to be kept of a run that is cut off: leave out supervise and --resume")


def _asked(session: "Session", question: "Question", writing: Writing, options: dict[str, Any]) -> Task:
    """Read the prompts and get ready to keep their answers. Raises InputError."""
    from hepti_mpi.cluster.profile import CACHES
    from hepti_mpi.comm import channel, interrupts
    from hepti_mpi.errors import InputError
    from hepti_mpi.serving.sink import Filed, Shown, Sink, Spoken
    from hepti_mpi.serving.written import finished_text, texts_head
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
    cache = options["cache_format"] or CACHES[0]
    head = texts_head(session.store, prompts, default, cache, _rows(session, writing), options["tolerance"])
    sink.begin(head, len(prompts), refused)
    left = [one for one in prompts if one.error is None and one.index not in sink.known]
    interrupts.keeping(lambda: sink.kept(len(left)), left=sink.left)
    return Task(prompts, left, asked, sink, state)


def _rows(session: "Session", writing: Writing) -> int:
    """Return how many rows an answer may have with its prompt."""
    positions = session.store.spec.positions
    return min(writing.context or positions, positions)


def _prompts(
    session: "Session", question: "Question", writing: Writing, default: "Sampling"
) -> tuple[list["Prompt"], dict[int, "Sampling"]]:  # fmt: skip
    """Return the prompts, and what is asked of the answer to each."""
    from hepti_mpi.comm.launcher import standard_input
    from hepti_mpi.errors import InputError
    from hepti_mpi.models.inputs.prompts import check_met, check_room, read_prompts
    from hepti_mpi.models.tasks.forms import check
    from hepti_mpi.models.tasks.sampling import check_biases, sampling_of

    store, stdin, asked = session.store, standard_input() if question.source == "-" else None, dict[int, "Sampling"]()
    found = read_prompts(store.spec, store.files, question.source, stdin, writing.chat)
    found = check_room(found, _rows(session, writing), store.spec.positions)
    for place, one in enumerate(found):
        try:
            check_met(one)
            asked[one.index] = sampling_of(one.asked, default)
            check(asked[one.index].schema)
            check_biases(asked[one.index].logit_bias, store.spec.numbers("ids"))
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
    return {"slots": writing.slots or min(SLOTS, len(lengths)), "positions": positions, "texts": len(lengths), **_typical(task)}


def _typical(task: Task) -> dict[str, int]:
    """Return how many rows of a prompt are taken in, and how long answers may be."""
    from hepti_mpi.serving.chunks import rows_taken_in

    count, answers = len(task.left), [task.asked[one.index].max_tokens for one in task.left]
    return {"prompt": max(1, round(rows_taken_in(one.ids for one in task.left) / count)), "answer": round(sum(answers) / count)}


def _answered(loaded: Loaded, session: "Session", task: Task, logits: bool, strict: bool) -> Result:
    """Answer all prompts that are left, as many at once as there are slots, while another thread writes."""
    from hepti_mpi.comm import interrupts
    from hepti_mpi.serving.generation import Event
    from hepti_mpi.serving.sink import Beside, Noted, Spoken
    from hepti_mpi.serving.written import Ahead, Written, finished_text

    loaded.rest()  # while the tokenizer is read
    result, making = Result(), writers.maker(loaded, session)
    if logits:
        ranks = writers.ranks_of(loaded, session)
        result.logits = {one.index: ranks.all_logits(one.ids) for one in task.left}
    shown = task.state is None and not isinstance(task.sink, Spoken)
    with meanwhile("writing", len(task.left), shown) as meter, Beside(task.sink, meter, Noted()) as beside:

        def tell(events: list[Event], seconds: float) -> None:
            written = Written(seconds, strict=strict, rows_left=ahead.left(events))
            for event in events:
                prompt = prompts[id(event.answer)]
                written.add(prompt, event)
                if event.finish is not None:
                    written.requests.append(prompt)
                    written.kept.append(finished_text(prompt, event.answer, event.answer.sampling.max_tokens, result.logits))
            if beside.behind:  # whoever reads is slow: nobody is to take this rank for lost meanwhile
                loaded.rest()
            beside.event(written)

        interrupts.keeping(lambda: task.sink.kept(len(task.left)), beside.stop, task.sink.left)
        begin = time.perf_counter()
        begun = task.sink.begun
        result.answers = [making.submit(one.ids, task.asked[one.index], begun.get(one.index, ()), one.goes_on) for one in task.left]
        prompts, ahead = {id(answer): prompt for answer, prompt in zip(result.answers, task.left)}, Ahead(result.answers)
        tell([Event(one, None, one.text, one.finish_reason) for one in result.answers if one.made], 0.0)
        while making.busy and task.sink.wanted:
            clock = time.perf_counter()
            tell(making.step(), time.perf_counter() - clock)
        result.seconds = time.perf_counter() - begin
    return result


def _finish(
    session: "Session", question: "Question", task: Task, result: Result, ran: tuple[Loaded, list[dict[str, Any]]] | None
) -> None:  # fmt: skip
    """Put the answers out and print what they took. Raises PartlyAnswered."""
    from hepti_mpi.reporting.generation import generation_lines, generation_record, ranks_record

    begin = time.perf_counter()
    tally, told = write_out(task.sink, question.output, task.state is None)
    result.seconds += time.perf_counter() - begin
    if not task.left and any(one.error is None for one in task.prompts):
        session.tell(told)
    document = generation_record(session.store.spec, result.answers, result.seconds)
    if ran is not None:
        teams = ran[0].making.facts if ran[0].making else ()
        document |= ranks_record(ran[0].placement, ran[0].startup, ran[1], teams, result.seconds, ran[0].wire_error)
    document["output"] = None if question.output is None else str(question.output)
    put_record(document, tally, lambda: SCREEN.show(generation_lines(document)))
