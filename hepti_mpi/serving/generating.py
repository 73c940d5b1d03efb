"""Make answers for others, step after step. Knows who asks, and what makes answers; does not know how ranks do a step."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from hepti_mpi.comm.launcher import host_name
from hepti_mpi.errors import InputError
from hepti_mpi.models.tasks.sampling import Chosen, Sampling
from hepti_mpi.serving.generation import Answer, Event
from hepti_mpi.serving.remote import Prompt

WAIT_SECONDS = 0.05  # for prompts, where nothing is under way


class Maker(Protocol):
    """What makes answers (serving.generation.Generator, serving.writers.TeamGenerator)."""

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""

    def wake(self) -> None:
        """Let a step that waits end: something has come that it may begin with. Any thread may call it."""

    def submit(self, prompt: Sequence[int], sampling: Sampling, made: Sequence[Chosen] = (), goes_on: bool = False) -> Answer:
        """Take a prompt. Raises InputError."""

    def cancel(self, answer: Answer) -> None:
        """End an answer that nobody wants any more."""

    def step(self) -> list[Event]:
        """Let answers grow."""


class Asking(Protocol):
    """Whoever asks (serving.remote.Remote, serving.writers.Post)."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""

    def take_prompts(self, timeout: float) -> list[Prompt | list[int]]:
        """Return the prompts that have come, and lists of places that nobody wants any more, in their order."""

    def grown(self, events: Sequence[Sequence[Any]]) -> None:
        """Hear what was added to answers, as `told` tells it."""


def lead(generator: Maker, remote: Asking, rest: Callable[[], None]) -> None:
    """Make answers until nothing more will come. `rest` is called when there is nothing to do, again and again."""
    places: dict[int, Answer] = {}
    names: dict[int, int] = {}  # place by the answer's identity
    while not remote.ended or generator.busy:
        for taken in remote.take_prompts(0.0 if generator.busy else WAIT_SECONDS):
            if isinstance(taken, list):
                for place in taken:
                    if place in places:
                        generator.cancel(places.pop(place))
                continue
            if taken.sampling.schema is not None:
                rest()  # the first of them needs the tokenizer
            try:
                begun = len(taken.ids) - taken.made
                made = [Chosen(token) for token in taken.ids[begun:]]
                answer = generator.submit(taken.ids[:begun], taken.sampling, made)
                if answer.finish_reason is not None:  # the job before this one could not tell that any more
                    remote.grown([[taken.place, None, None, (), answer.finish_reason, None]])
                    continue
                places[taken.place], names[id(answer)] = answer, taken.place
            except InputError as error:
                remote.grown([[taken.place, None, None, (), "error", f"{host_name()}: {error}"]])
        if not generator.busy:
            rest()
            continue
        found = [told(names[id(event.answer)], event) for event in generator.step() if id(event.answer) in names]
        if found:
            remote.grown(found)
        places = {place: answer for place, answer in places.items() if answer.finish_reason is None}
        names = {id(answer): place for place, answer in places.items()}


def told(place: int, event: Event) -> list[object]:
    """Return an event as the front hears it."""
    if event.chosen is None:
        return [place, None, None, [], event.finish, event.answer.error]
    chosen = event.chosen
    return [place, chosen.token, chosen.logprob, [list(one) for one in chosen.top], event.finish, None]
