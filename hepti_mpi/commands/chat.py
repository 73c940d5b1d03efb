"""The chat command: a talk in the terminal, whose answers appear as they grow. Knows lines and turns; computes nothing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.commands import terminal
from hepti_mpi.commands.meter import meanwhile
from hepti_mpi.commands.options import FILE, Machinery, grouped, machine_options, planning_options, weights_option, words_options
from hepti_mpi.commands.screen import SCREEN
from hepti_mpi.commands.terminal import Flow
from hepti_mpi.commands.writing import Writing, sampling_options
from hepti_mpi.weights.places import WEIGHTS, some
from hepti_mpi.wording import counted

if TYPE_CHECKING:
    from hepti_mpi.commands.session import Session
    from hepti_mpi.commands.writers import Loaded
    from hepti_mpi.serving.generating import Maker
    from hepti_mpi.serving.generation import Answer, Event

CONTEXT = 4096  # rows of a talk, where nobody says and the model takes as many
PROMPT = "> "


@click.command()
@weights_option
@click.option("--system", help="What the model is told before the talk begins.")
@click.option("--profile", "profile_file", type=FILE, help="Use this profile; an error when it does not match.")
@sampling_options(f"{CONTEXT}, or what the model takes")
@machine_options
@planning_options
@words_options(has_document=False)
def chat(weights: Path | None, system: str | None, profile_file: Path | None, **options: Any) -> None:
    """Talk with a model: a line of yours, then its answer, as it grows. An empty line ends it; Ctrl-D too, but not under mpirun.

    \b
    Example:
      mpirun -hostfile hostfiles/pi4.txt python -m hepti_mpi chat --weights weights/smollm2.h5
    """
    from hepti_mpi.commands import session as sessions
    from hepti_mpi.commands import writers
    from hepti_mpi.engine.machine import together
    from hepti_mpi.errors import InputError
    from hepti_mpi.models.inputs.chat import ChatTemplate

    machinery, writing = grouped(Machinery, options), grouped(Writing, options)
    able = [weights] if weights else _writers()
    session = sessions.opened(machinery, able[0] if len(able) == 1 else None)
    spec = session.store.spec
    with session.world.patience.slower(), together(session.world):
        template = ChatTemplate.of(session.store.files) if spec.generates else None
        if template is None or template.needs_tools:
            more = f", or name one that does with --weights: {some(able)}" if len(able) > 1 else ""
            lacks = "has no chat template" if template is None else "has a chat template for talks with tools only"
            raise InputError(f"model {spec.name} {lacks}; give its prompts to run" if spec.generates else
                             f"model {spec.name} does not generate text; give its inputs to run{more}")  # fmt: skip
        writing.sampling()
    machining = writers.Machining(profile_file, False, options)
    loaded = writers.load(session, 1, min(writing.context or CONTEXT, spec.positions), machining)
    if session.root:
        writers.led(loaded, session, lambda: _talk(loaded, session, system, writing))
    else:
        writers.follow(loaded, session)
    session.world.barrier(patient=True)


def _writers() -> list[Path]:
    """Return the stores in weights/ of models that write: where there is one, whatever lies beside it, that is meant."""
    from hepti_mpi.errors import StoreError
    from hepti_mpi.weights.store import Store

    found = []
    for path in sorted(WEIGHTS.glob("*.h5")):
        with suppress(StoreError), Store(path) as store:
            found += [path] * store.spec.generates
    return found


def _talk(loaded: "Loaded", session: "Session", system: str | None, writing: Writing) -> None:
    """Answer line after line. What the model has read of the talk is not read again."""
    from hepti_mpi.comm.launcher import typed_lines
    from hepti_mpi.commands.writers import maker
    from hepti_mpi.models.inputs.prompts import Prompter
    from hepti_mpi.models.inputs.text import bad_byte

    prompter, making, sampling = Prompter(session.store.spec, session.store.files), maker(loaded, session), writing.sampling()
    messages = [{"role": "system", "content": system}] if system else []
    lines = terminal.typed(PROMPT) if terminal.has_keys() else _asked(typed_lines())
    while True:
        loaded.rest()
        line = _line(lines)
        if not line:
            return
        wrong = bad_byte(line, "that line")
        if wrong:
            SCREEN.warn(f"{wrong}; it was not sent")
            continue
        messages.append({"role": "user", "content": line})
        answer = _submitted(lambda: making.submit(prompter.of_messages(messages, "the talk"), sampling), messages, bool(system))
        if answer is None:
            continue
        flow = Flow(SCREEN.width)
        with meanwhile("reading"):  # a long line takes minutes on small boards
            begun = _first(making)
        for event in chain(begun, _rest(making)):
            SCREEN.part(flow.add(event.text))
        SCREEN.part(flow.end() + "\n")
        if answer.finish_reason != "stop":
            cut = f"the answer was cut off at {counted(len(answer.tokens), 'tokens')}; --max-tokens and --context say how long it may be"
            SCREEN.warn(answer.error or cut)
        messages.append({"role": "assistant", "content": answer.text})


def _submitted(submit: "Callable[[], Answer]", messages: list[dict[str, str]], first: int) -> "Answer | None":
    """Return the answer to the last of `messages`, which will grow, None where that alone is refused. A talk that is refused for what
    came before begins anew with it; the `first` messages are always there."""
    from hepti_mpi.errors import InputError

    try:
        return submit()
    except InputError as error:
        refused = error
    if len(messages) > first + 1:
        del messages[first:-1]
        SCREEN.warn(f"{str(refused).partition(';')[0]}; the talk begins anew with that line, and may be longer by --context")
        try:
            return submit()
        except InputError as error:
            refused = error
    SCREEN.warn(f"{refused}; that line was not sent")
    del messages[first:]
    return None


def _first(making: "Maker") -> "Sequence[Event]":
    """Return what the first step that adds to an answer does, none where there is nothing to do."""
    events: Sequence[Event] = ()
    while making.busy and not events:
        events = making.step()
    return events


def _rest(making: "Maker") -> "Iterator[Event]":
    while making.busy:
        yield from making.step()


def _asked(lines: Iterator[str]) -> Iterator[str]:
    """Yield lines as they are handed on, a prompt before each."""
    SCREEN.part(PROMPT)
    for line in lines:
        if terminal.path(terminal.IN) is not None:
            terminal.begun.clear()  # who typed it has ended the line
            if "\x1b" in line:
                SCREEN.warn("that line has keys in it that are no letters, such as arrows, and was not sent; they work without mpirun")
                line = ""
        if line:
            yield line
        SCREEN.part(PROMPT)


def _line(lines: Iterator[str]) -> str:
    """Return the next line, empty at the end."""
    line = next(lines, None)
    if line is None:
        SCREEN.part("\n")  # what comes next on the screen is not the talk
    return (line or "").strip()
