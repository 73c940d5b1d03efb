"""Options for models that generate text. Knows click and words on a command line, not what is done with them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.commands.options import Within

if TYPE_CHECKING:
    from hepti_mpi.models.tasks.sampling import Sampling

SLOTS = 8  # answers under way at once, where nobody says
SERVED, CONTEXT = 4, 2048  # of a service: answers at once, and rows of each with its prompt


@dataclass(frozen=True)
class Writing:
    """How text is generated: the values of writing_options, or of sampling_options; None, () and False: not said."""

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop: tuple[str, ...]
    context: int | None
    logprobs: int | None = None
    chat: bool = False
    logits: bool = False
    slots: int | None = None

    @property
    def said(self) -> list[str]:
        """The options that were given."""
        given = [name for name, value in asdict(self).items() if value is not None and value != () and value is not False]
        return [f"--{name.replace('_', '-')}" for name in given]

    def sampling(self) -> "Sampling":
        """Return what is asked of every answer that does not say more. Raises InputError."""
        from hepti_mpi.models.tasks.sampling import Sampling, sampling_of

        said = {name: value for name, value in asdict(self).items() if value is not None}
        return sampling_of(said, Sampling())


def room_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what says for how many and how long texts a service keeps memory."""
    context = "Text: rows that an answer of a service may have with its prompt, where the model takes more; each slot has memory for them."
    slots = "Text: answers of a service under way at once."
    for option in (
        click.option("--context", type=click.IntRange(2, 1 << 24), default=CONTEXT, show_default=True, help=context),
        click.option("--slots", type=click.IntRange(1, 256), default=SERVED, show_default=True, help=slots),
    ):
        command = option(command)
    return command


def writing_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what says how texts are generated from many prompts."""
    probable = "Text: also give log-probabilities of tokens and of so many others, in a .jsonl output or with --json."
    for option in (
        click.option("--slots", type=click.IntRange(1, 256), help=f"Text: answers under way at once; left out: up to {SLOTS}."),
        click.option("--logits", is_flag=True, help="Text: also write the logits behind each token of the prompts into a .npz output."),
        click.option("--chat", is_flag=True, help="Text: prompts are what a user says, put into the model's chat template."),
        click.option("--logprobs", type=click.IntRange(0, 20), help=probable),
    ):
        command = option(command)
    return sampling_options("what the input needs")(command)


def sampling_options(context: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add what says how one text is generated; `context`: the rows that it may have where nobody says."""
    number, whole = Within(-100, 100), click.IntRange(1, 1 << 24)
    chance = "Text: how much chance there is; left out: none, the likeliest."
    repetition = "Text: divides logits of tokens so far; left out: as the model's files say."

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in (
            click.option("--context", type=whole, help=f"Text: rows that an answer may have with its prompt; left out: {context}."),
            click.option("--stop", multiple=True, help="Text: end an answer before this text; may be given several times."),
            click.option("--seed", type=int, help="Text: the same answers each time, also with a temperature."),
            click.option("--frequency-penalty", type=number, help="Text: taken off a token's logit each time that the answer has it."),
            click.option("--presence-penalty", type=number, help="Text: taken off the logits of tokens that the answer has."),
            click.option("--repetition-penalty", type=Within(0.01, 100), help=repetition),
            click.option("--min-p", type=Within(0, 1), help="Text: leave tokens this part as likely as the likeliest, or more."),
            click.option("--top-p", type=Within(0, 1), help="Text: leave the likeliest tokens that together are this likely."),
            click.option("--top-k", type=click.IntRange(0, 1 << 24), help="Text: leave so many of the likeliest tokens."),
            click.option("--temperature", type=Within(0, 100), help=chance),
            click.option("--max-tokens", type=whole, help="Text: the longest answer; left out: 256."),
        ):
            command = option(command)
        return command

    return add


def refuse_for_text(options: dict[str, Any]) -> None:
    """Raise UsageError for an option that was given and has no meaning for text that is generated."""
    for name, value in options.items():
        if value is True or value not in (None, False, "auto", 0, 1):  # True is equal to 1
            raise click.UsageError(f"the model generates text, which --{name.replace('_', '-')} is not for yet; leave it out")


def no_text(said: Sequence[str], name: str) -> None:
    """Raise UsageError where options for text were said and the model of that name does not generate any."""
    if said:
        raise click.UsageError(f"{said[0]} is for models that generate text, which {name} does not; name the store of one with --weights")
