"""What a run is asked and where the answers go: a journal while it runs and then the output, or the screen at once. Rank 0's only.

Knows requests, journals and outputs; does not know ranks or plans.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.commands.screen import SCREEN, InOrder, put_out

if TYPE_CHECKING:
    from hepti_mpi.serving.outputs import Tally
    from hepti_mpi.supervisor.progress import State
    from hepti_mpi.weights.store import Store


@dataclass(frozen=True)
class Question:
    """What a run is asked (options.asking_options): which input, how it is read, and where the answers go."""

    source: str | None = None
    output: Path | None = None
    resume: bool = False
    field: str | None = None
    pair: str | None = None
    strict: bool = False
    hidden: bool = False
    repeat: int = 1

    @classmethod
    def taken(cls, options: dict[str, Any]) -> "Question":
        """Take what the options say out of them. Raises UsageError when it does not go together."""
        asked = cls(**{one.name: options.pop(one.name) for one in fields(cls)})
        if asked.resume and (asked.output is None or asked.repeat > 1):
            raise click.UsageError("--resume goes on with an --output, and answers what is left once: leave out --repeat")
        if asked.hidden and not asked.arrays:
            raise click.UsageError("--hidden is for an --output that ends in .npz: it adds last_hidden_state to it")
        return asked

    @property
    def arrays(self) -> bool:
        """Whether the answers are arrays."""
        return self.output is not None and self.output.suffix == ".npz"

    @property
    def beside(self) -> tuple[str, ...]:
        """What is wanted besides the answers of the head (serving.loop)."""
        return ("logits",) * self.arrays + ("last_hidden_state",) * self.hidden


class Asked:
    """`every` request of the input, and those that are `left` to be answered. `refused`: by their places, those that cannot be.

    `left_out`: a sentence on what of a folder is no input.
    """

    def __init__(self, store: "Store", question: Question, state: "State | None") -> None:
        """Read the input and open the journal. `state`: of a supervised run, whose supervisor keeps the journal.

        Raises: InputError when the input cannot be read or the output could not be written.
        """
        from hepti_mpi.comm import channel
        from hepti_mpi.comm.launcher import standard_input
        from hepti_mpi.models.inputs.requests import left_out, read_requests
        from hepti_mpi.models.inputs.text import Reading
        from hepti_mpi.serving import finished as outcomes
        from hepti_mpi.serving import outputs
        from hepti_mpi.serving.journal import Journal, input_hash, journal_path
        from hepti_mpi.supervisor.progress import Reported

        self.store, self.question, output = store, question, question.output
        self.already: Any = None  # the finished output, where there is one to be resumed
        if output is not None and state is None:
            outputs.check_apart(output, question.source)
            outputs.check_path(output)
            self.already = outcomes.nothing_left(output, question.resume, SCREEN.say)
        reading = Reading(question.field, question.pair, question.strict)
        stdin = standard_input() if question.source == "-" else None
        self.every = read_requests(store.spec, store.files, question.source, stdin, reading)
        self.left_out = left_out(store.spec, question.source)
        self.refused = {request.index: self._none(request, {}, request.error) for request in self.every if request.error is not None}
        self.journal: Any = None
        head: dict[str, Any] = {"model": store.spec.name, "source_hash": store.source_hash, "input_hash": input_hash(self.every)}
        head |= {"hidden": True} if question.hidden else {}
        self.head = {"requests": len(self.every), **head}
        if state is not None:
            channel.tell("begin", requests=len(self.every), head=head, refused=list(self.refused.items()))
            self.journal = Reported(state)
        elif self.already is not None:
            self.already.check(self.head)
        elif output is not None and question.repeat == 1:
            if question.resume:
                outcomes.check_not_less(output, len(self.every))
            self.journal = Journal(journal_path(output), head, len(self.every), question.resume)
        self.is_supervised = state is not None
        self.shown = InOrder(self.refused) if output is None and state is None else None
        finished = self.journal.finished if self.journal is not None else {}
        asked = range(0 if self.already is not None else len(self.every))
        self.places = [place for place in asked if place not in finished and place not in self.refused]
        self.left = [self.every[place] for place in self.places]
        self.asked, self.answered = question.repeat * len(self.left), 0

    def note(self, part: Sequence[int], results: Sequence[dict[str, Any]], seconds: float) -> None:
        """Keep or show the results of some of the requests that are left, which took `seconds`. Raises InputError when one is none, if
        strict."""
        self.answered += len(part)
        keeping = self.shown or self.journal
        if keeping is not None:
            keeping.add([self.places[place] for place in part], self._finished([self.left[place] for place in part], results), seconds)

    @property
    def keeps_nothing(self) -> bool:
        """Whether all results are wanted again when the last one is there."""
        return self.shown is None and self.journal is None

    @property
    def is_wanted(self) -> bool:
        """Whether somebody will see the answers to come."""
        return self.shown is None or SCREEN.is_read

    def write(self, results: Sequence[dict[str, Any]] = ()) -> "Tally | None":
        """Write the output, where there is one; `results`: of all that was left, where no journal was kept.

        Return what became of the inputs; None where the supervisor writes and knows.
        """
        from hepti_mpi.serving.outputs import Tally

        if self.is_supervised:
            return None
        if self.already is not None:
            return self.already.tally
        if self.shown is not None:
            return self.shown.rest()
        answered = self.journal.finished if self.journal is not None else dict(zip(self.places, self._finished(self.left, results)))
        whole = self.refused | answered
        finished = [whole[place] for place in range(len(self.every))]
        put_out(self.question.output, finished, self.head)
        if self.journal is not None:
            self.journal.remove()
        return Tally.of(finished)

    def interrupted(self) -> str | None:
        """Say what is kept of a run that is interrupted now, and what goes on with it."""
        if self.is_supervised:  # its supervisor says that
            return None
        if self.journal is None:
            why = "nothing is kept without --output FILE" if self.question.output is None else "nothing is kept with --repeat"
            return f"interrupted after {self.answered} of {self.asked} answers; {why}"
        kept = len(self.journal.finished)
        if not kept:
            return f"interrupted before the first of {len(self.every)} answers"
        return f"interrupted; {kept} of {len(self.every)} answers are kept in {self.journal.path}; {going_on()}"

    def _finished(self, requests: Sequence[Any], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        from hepti_mpi.errors import InputError
        from hepti_mpi.models.tasks.heads import answers, fault
        from hepti_mpi.serving.outputs import finished_answer, finished_arrays

        faults = [fault(self.store.spec, request, result) for request, result in zip(requests, results)]
        if self.question.strict and any(faults):
            raise InputError(next(why for why in faults if why is not None))
        finished = []
        for request, result, why in zip(requests, results, faults):
            if why is not None:
                finished.append(self._none(request, result, why))
            elif self.question.arrays:
                finished.append(finished_arrays(request, result))
            else:
                finished.append(finished_answer(answers(self.store.spec, self.store.files, [request], [result])[0]))
        return finished

    def _none(self, request: Any, result: dict[str, Any], why: str) -> dict[str, Any]:
        """Return what stands for an answer that there is not."""
        import numpy as np

        from hepti_mpi.serving.outputs import finished_answer, finished_arrays

        if self.question.arrays:
            return finished_arrays(request, {name: values for name, values in result.items() if np.isfinite(values).all()}, why)
        return finished_answer(request.given, why)


def going_on() -> str:
    """Say with which command a run that was cut off goes on: the one that was typed, with --resume."""
    from hepti_mpi.comm.launcher import command_line

    words = command_line()
    if not words:
        return "go on with the same command and --resume"
    return f"go on with: {shlex.join(words + ['--resume'] * ('--resume' not in words))}"
