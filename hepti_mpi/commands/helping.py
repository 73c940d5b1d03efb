"""Where commands are found, and what --help and a wrong command line show, with lines that end between words. Knows click; does not know
what commands do."""

import importlib
import io
from collections.abc import Iterable, Iterator, Mapping, MutableMapping

import click

from hepti_mpi.commands.screen import SCREEN

KEPT = "\b\n"  # in front of lines that are not joined: commands, to be copied
WHOLE = 10_000  # characters: what a command is for is never cut
WORDS = f"{__name__}.words"  # in the meta of a context: the command line
HOSTS = ("--hostfile", "--machinefile", "--hosts")  # of mpirun, as people write them behind the command
PLACES = dict.fromkeys(HOSTS, ("hostfile",)) | {"--weights": ("store",), "--output": ("store",), "--input": ("records", "source")}
HYPHEN = "\N{NON-BREAKING HYPHEN}"  # behind the other one lines would end, within names such as hepti-float16


class Formatter(click.HelpFormatter):
    """Folds examples as the program's other commands are, so that they can be copied from a narrow terminal, and no word at its hyphen."""

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        super().write_dl([(first, text.replace("-", HYPHEN)) for first, text in rows], col_max, col_spacing)

    def getvalue(self) -> str:
        return super().getvalue().replace(HYPHEN, "-")

    def write_text(self, text: str) -> None:
        from hepti_mpi.reporting.tables import folded

        for number, paragraph in enumerate(text.split("\n\n")):
            if number:
                self.write_paragraph()
            if not paragraph.startswith(KEPT):
                super().write_text(paragraph.replace("-", HYPHEN))
                continue
            indent = " " * self.current_indent
            lines = folded(paragraph.removeprefix(KEPT), self.width - self.current_indent).splitlines()
            self.write("".join(f"{indent}{line}\n" for line in lines))


class Context(click.Context):
    formatter_class = Formatter


class Commands(MutableMapping[str, click.Command]):
    """The commands by name. One is imported when it is asked for: of a short job each of them is a part that counts."""

    def __init__(self, places: Mapping[str, str]) -> None:
        """`places`: the module of each and what it is called there."""
        self.places, self.found = dict(places), dict[str, click.Command]()

    def __getitem__(self, name: str) -> click.Command:
        if name not in self.found:
            module, _, called = self.places[name].partition(":")
            self[name] = getattr(importlib.import_module(module), called)
        return self.found[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        command.context_class = Context
        self.found[name] = command

    def __delitem__(self, name: str) -> None:
        del self.places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class Group(click.Group):
    """The commands, each with the whole sentence that says what it is for."""

    context_class = Context

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = ctx.meta[WORDS] = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = next((word for word in words if word in self.commands), None)
            if name is not None and error.option_name in _options(self.commands[name]):
                raise click.UsageError(f"{error.option_name} belongs behind the name of its command: {ctx.command_path} {name} "
                                       f"{error.option_name} ...", ctx) from None  # fmt: skip
            raise

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and not args[0].startswith("-"):
            from difflib import get_close_matches

            alike = get_close_matches(args[0], [name for name, command in self.commands.items() if not command.hidden])
            how = f"did you mean {' or '.join(alike)}?" if alike else f"{ctx.command_path} --help lists the commands"
            raise click.UsageError(f"no such command {args[0]!r:.40}; {how}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        shown = [(name, command) for name, command in sorted(self.commands.items()) if not command.hidden]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(WHOLE)) for name, command in shown])


def _options(command: click.Command) -> set[str]:
    return {name for parameter in command.params if isinstance(parameter, click.Option) for name in parameter.opts}


def _left_over(command: click.Command) -> str:
    """Return how things are named for which a command that takes options only got a bare word."""
    if any(isinstance(parameter, click.Argument) for parameter in command.params):
        return ""
    ways = {"--input": "what is to be answered with --input (one file, or a folder of pictures)", "--weights": "a store with --weights",
            "--deadline": f"hosts with mpirun -hostfile FILE python -m hepti_mpi {command.name}"}  # fmt: skip
    named = [way for option, way in ways.items() if option in _options(command)]
    return f"; name {', '.join(named)}" if named else ""


def _without_option(command: click.Command, option: str) -> str | None:
    """Return how that is named which other commands take by an option, or a person would, where this one takes it otherwise."""
    if any(isinstance(one, click.Argument) and one.name in PLACES.get(option, ()) for one in command.params):
        pieces = [piece for piece in command.collect_usage_pieces(click.Context(command)) if piece != "[OPTIONS]"]
        return f"it is named without one: python -m hepti_mpi {command.name} {' '.join(pieces)}"
    if option in HOSTS and "--deadline" in _options(command):
        return f"hosts are named to mpirun: mpirun -hostfile FILE python -m hepti_mpi {command.name}"
    return None


def _word_of(option: str, words: Iterable[str]) -> str:
    """Return the word of a command line in which an unknown option was found: click takes -hostfile for seven of one letter each."""
    if option.startswith("--"):
        return option
    names = (word.partition("=")[0] for word in words if word[:1] == "-" != word[1:2])
    return next((name for name in names if len(name) > len(option) and option[1:] in name), option)


def tell_misuse(error: click.ClickException) -> None:
    """Tell what is wrong with a command line."""
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        word = _word_of(error.option_name, error.ctx.meta.get(WORDS, ()))
        option = word if word.startswith("--") else f"-{word}"
        how = _without_option(error.ctx.command, option)
        if how is None and option != word and option in _options(error.ctx.command):
            how = f"it has two dashes: {option}"
        error = error if how is None else click.UsageError(f"no option {word} here; {how}", error.ctx)
    if isinstance(error, click.UsageError) and error.ctx is not None and error.message.startswith("Got unexpected extra argument"):
        error = click.UsageError(error.message + _left_over(error.ctx.command), error.ctx)
    told = io.StringIO()
    error.show(told)
    SCREEN.warn(told.getvalue().rstrip())
