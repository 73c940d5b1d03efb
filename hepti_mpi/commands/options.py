"""Option types and the options that several commands share. Knows click and words on a command line, not what is done with them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hepti_mpi.cluster.profile import CACHES
from hepti_mpi.commands.screen import SCREEN
from hepti_mpi.wording import counted

if TYPE_CHECKING:
    from hepti_mpi.models.spec import ModelSpec
    from hepti_mpi.planning.demand import Demand
    from hepti_mpi.serving.request import Question

Group = TypeVar("Group")

DIVIDED = tuple(f"{attention}/{mlp}" for attention in ("heads", "rows", "alltoall", "recompute") for mlp in ("columns", "rows"))
FORMATS = ("f32", "f16", "q8", "q8-blocks", "q8-wide", "q4", "q4-wide")  # of weights
PIPELINE = "pipeline"  # a run of layers on each rank
LAYOUT_NAMES = (*DIVIDED, "local/rows", PIPELINE)
OURS = ("tensor", "hybrid", "sequence")
BASELINES = ("megatron", "voltage", "galaxy", "coedge", "edgeflow", "ram", "single")
ROWS = 128  # of a request, where nobody says
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class Within(click.FloatRange):
    """A number within bounds; nan is in no order with them, and Click would take it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        return self.fail(f"{value} is no number", param, ctx) if math.isnan(number) else number


class Size(click.ParamType):
    """Bytes: 500M, 1.5GiB, 200000; a list gives one per rank."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        sizes = []
        for word in str(value).split(","):
            number = word.strip().lower().removesuffix("ib").removesuffix("b")
            unit = number[-1:] if number[-1:].isalpha() else ""
            try:
                size = float(number.removesuffix(unit)) * UNITS[unit]
                if not 0 < size < 1 << 60:
                    raise ValueError
            except (ValueError, KeyError):
                self.fail(f"{word!r} is not a size such as 500M or 1.5GiB", param, ctx)
            sizes.append(int(size))
        return tuple(sizes)


class Place(click.Path):
    """A path. An empty one, which a shell's variable leaves that nobody set, would be the folder that one is in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(value, param, ctx) if str(value) else self.fail("it is empty: name a file or a folder", param, ctx)


FILE = Place(path_type=Path)


def only(context: click.Context, parameter: click.Parameter, values: tuple[Any, ...]) -> Any:
    """Return the value of an option that is given once, None where it is not. Click takes the last and says nothing of the others."""
    if len(values) > 1:
        raise click.UsageError(f"{parameter.opts[0]} is given {counted(len(values), 'times')}, and one file or folder is answered: "
                               "put all into one, or run once for each", context)  # fmt: skip
    return values[0] if values else None


class Name(click.ParamType):
    """A word with something in it: what a script's variable left empty is not taken for left out."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not str(value).strip():
            self.fail("it is empty: name one, or leave the option out", param, ctx)
        return str(value)


class Numbers(click.ParamType):
    """One number per rank, between `least` and `most` and not all 0: 2.5,3.5,6,9."""

    def __init__(self, name: str, least: float, most: float, meant: str) -> None:
        self.name, self.least, self.most, self.meant = name, least, most, meant

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(word) for word in str(value).split(","))
            if not all(self.least <= number <= self.most for number in numbers) or not any(numbers):
                raise ValueError
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers {self.meant}", param, ctx)
        return numbers


SHARES = Numbers("shares", 0, 1e9, "such as 5,1,1,1, at least one above 0")


class Boards(click.ParamType):
    """One board per rank, by its name in boards.toml or a factor of the lab's: pi5,pi4,pi4*1.5 or 2.5,3.5,6,9."""

    name = "boards"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        from hepti_mpi.cluster.boards import board_named
        from hepti_mpi.errors import ProfileError

        if isinstance(value, tuple):
            return value
        names = tuple(word.strip() for word in str(value).split(","))
        try:
            for name in names:
                board_named(name)
        except ProfileError as error:
            self.fail(str(error), param, ctx)
        return names



@dataclass(frozen=True)
class Machinery:
    """How a rank computes: the values of machine_options."""

    threads: int | None
    emulate: tuple[str, ...] | None
    deadline: float


def grouped(kind: type[Group], options: dict[str, Any]) -> Group:
    """Take the fields of a dataclass out of what a command was given, those that it has options for."""
    return kind(**{one.name: options.pop(one.name) for one in fields(kind) if one.name in options})  # type: ignore[arg-type]


def machine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what says how a rank computes."""
    threads = "Threads per rank; left out: the host's cores divided among its ranks."
    deadline = "Seconds that a rank waits for another before the job ends and says for whom; 0 waits for ever."
    for option in (
        click.option("--deadline", type=Within(0, 1e6), default=60.0, show_default=True, help=deadline),
        click.option("--emulate", type=Boards(), help="Be as slow as these boards, one a rank, such as pi5,pi4,pi4: what would they do?"),
        click.option("--threads", type=click.IntRange(1, 1024), envvar="HEPTI_THREADS", help=threads),
    ):
        command = option(command)
    return command


def asking_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what a run is asked and where the answers go: the fields of serving.request.Question."""
    source = "Text (.txt, .jsonl, .csv, .tsv), images, arrays (.npz), or - for standard input; left out: built-in examples."
    resume = "Go on with the run that was cut off: what is in OUTPUT.journal is not answered again."
    field = "Where the text is in .jsonl, .csv or .tsv; left out: in text, and its pair, if any, in text_pair."
    repeat = "Answer the input this many times, for measuring."
    for option in (
        click.option("--repeat", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help=repeat),
        click.option("--hidden", is_flag=True, help="Also write last_hidden_state, all rows of it, into a .npz output."),
        click.option("--strict", is_flag=True, help="End at the first input that cannot be answered, and write nothing."),
        click.option("--pair", type=Name(), help="Where the text is that each text is paired with, in .jsonl, .csv or .tsv."),
        click.option("--field", type=Name(), help=field),
        click.option("--resume", is_flag=True, help=resume),
        click.option("--output", type=FILE, help="Answers as .jsonl or .npz; left out: on the screen."),
        click.option("--input", "source", type=Place(), multiple=True, callback=only, help=source),
    ):
        command = option(command)
    return command


def asked(options: dict[str, Any]) -> "Question":
    """Take what a run is asked out of what it was given. Raises UsageError when it does not go together."""
    from hepti_mpi.serving.request import Question

    question = grouped(Question, options)
    if question.resume and question.output is None:
        raise click.UsageError("--resume goes on with answers in a file: name it with --output")
    if question.resume and question.repeat > 1:
        raise click.UsageError("--resume answers what is left once: leave out --repeat")
    if question.hidden and not question.arrays:
        raise click.UsageError("--hidden is for an --output that ends in .npz: it adds last_hidden_state to it")
    return question


def words_options(has_document: bool = True, has_answers: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add --quiet and, for a command that `has_document`, --json; `has_answers`: lines of their own come before the document."""

    def choose(name: str) -> Callable[[click.Context, click.Parameter, bool], None]:
        def chosen(context: click.Context, parameter: click.Parameter, value: bool) -> None:
            if value or context.parent is None or context.parent.parent is None:  # a run that is supervised adds to what is chosen
                setattr(SCREEN, name, value)

        return chosen

    def add(command: Callable[..., None]) -> Callable[..., None]:
        if has_document:
            lines = "JSON lines only: without --output one of kind answer per input; last one document"
            told = f"Standard output is {lines if has_answers else 'JSON only: a document a line'}."
            command = click.option("--json", is_flag=True, expose_value=False, callback=choose("json"), help=told)(command)
        told = "Print answers and errors only."
        return click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=choose("quiet"), help=told)(command)

    return add


def weights_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--weights", type=FILE, help="Store, or folder of rank files. Left out: the one store in weights/.")(command)


class OneOf(click.Option):
    """One of several words, which --help lists as text, whose lines end between words; behind the name a terminal would cut their list."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        found, words = super().get_help_record(ctx), getattr(self.type, "choices", ())
        return found and (found[0], f"{found[1]}  [one of {', '.join(words)}]")


def one_of(*names: str, words: Sequence[str], **more: Any) -> Callable[[Any], Any]:
    """Return an option that is one of `words`."""
    return click.option(*names, type=click.Choice(words), metavar="NAME", cls=OneOf, **more)


def answering_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what says how ranks go about what they are asked."""
    adapt = "Plan again when boards or links change; left out: where there are enough requests."
    cache = "Where a host keeps what it is sent of a store that it lacks, and mapped weights as kernels read them."
    pack = "Pack requests together up to this many rows."
    objective = "What counts: how soon all ranks answer a batch, or how many batches or texts teams do; auto: teams where they gain."
    objectives = ("auto", "latency", "throughput")
    for option in (
        one_of("--objective", words=objectives, default="auto", show_default=True, help=objective),
        click.option("--weights-cache", type=FILE, help=cache),
        click.option("--batch-rows", type=click.IntRange(1, 1 << 20), default=256, show_default=True, help=pack),
        click.option("--adapt/--no-adapt", default=None, help=adapt),
    ):
        command = option(command)
    return command


def cache_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add what says how keys and values of texts stay in memory; None where nobody does."""
    told = "Text: keep keys and values as these numbers; float16 halves their memory, and rounds. Left out: float32."
    return one_of("--cache-format", words=CACHES, help=told)(command)


def said_cache(options: dict[str, Any]) -> list[str]:
    """Return that option where it was given."""
    return ["--cache-format"] if options["cache_format"] is not None else []


def planning_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what narrows the planner's search."""
    for option in (
        one_of(
            "--weights-mode",
            words=("packed", "mapped", "auto"),
            default="auto",
            show_default=True,
            help="Copy weights into the kernels' order, or page them from the file.",
        ),
        click.option(
            "--memory-limit", type=Size(), help="Memory of a rank for weights and activations, such as 500M; a list gives one per rank."
        ),
        click.option("--shares", type=SHARES, help="Force the proportions of the ranks, such as 5,1,1,1."),
        one_of("--layout", words=LAYOUT_NAMES, help="Force how attention / MLP are divided, or layers."),
        one_of(
            "--strategy",
            words=("auto", *OURS, *BASELINES),
            default="auto",
            show_default=True,
            help="Consider only plans of this strategy, or divide as another system does.",
        ),
        click.option("--boost", is_flag=True, help="Give another system's division our exchanges, which travel while ranks compute."),
        click.option(
            "--tolerance",
            type=Within(0, 1),
            default=0.0,
            show_default=True,
            help="Allow float16 or int8 on the wire, in as many layers as change no value of the result by more; 0 is exact.",
        ),
    ):
        command = option(command)
    return cache_option(command)


def demand_of(sizes: dict[str, int], options: dict[str, Any], ranks: int, prepacked: bool = False) -> "Demand":
    """Return what the planning options ask of `ranks` ranks; `sizes`: rows and, where known, attended, largest and longest; `prepacked`: as
    of a Demand."""
    from hepti_mpi.planning.demand import Demand
    from hepti_mpi.program.plan import WIRES

    limits = options["memory_limit"]
    if limits is not None and len(limits) == 1:
        limits = limits * ranks
    layout = tuple(options["layout"].split("/")) if options["layout"] and options["layout"] != PIPELINE else None
    return Demand(
        sizes["rows"], sizes.get("attended"), sizes.get("largest"), sizes.get("longest"),
        options["strategy"], layout, options["shares"], limits, options["weights_mode"],
        WIRES if options["tolerance"] else WIRES[:1], prepacked=prepacked, cache=options["cache_format"] or CACHES[0],
    )  # fmt: skip


def planning_method(options: dict[str, Any]) -> str:
    """Return the method of planning.methods that the options mean. Raises UsageError when they do not go together."""
    strategy = options["strategy"]
    if options["layout"] and strategy != "auto":
        raise click.UsageError("use just one of --layout and --strategy: a layout is a strategy")
    if options["boost"] and strategy not in BASELINES:
        raise click.UsageError(f"--boost is for the other systems' strategies: {', '.join(BASELINES)}")
    if strategy in BASELINES:
        for name, value, why in (("shares", None, "divides by its own rule"), ("tolerance", 0, "sends float32")):
            if options[name] != value:
                raise click.UsageError(f"strategy {strategy} {why}: leave out --{name}")
        if options["weights_mode"] == "mapped":
            raise click.UsageError(f"strategy {strategy} holds its weights in memory: leave out --weights-mode mapped")
    if not options["boost"]:
        return "hepti" if strategy == "auto" else str(strategy)
    from hepti_mpi.planning.methods import BOOST

    return f"{strategy}{BOOST}"


def request_rows(spec: "ModelSpec", rows: int | None) -> int:
    """Return how many rows a request or prompt has: as usual where nobody says, if the model takes as many."""
    return rows or min(ROWS, max(1, spec.positions // 2) if spec.generates else spec.positions)


def check_positions(spec: "ModelSpec", rows: int, tokens: int = 0) -> None:
    """Raise InputError for a request of more rows than the model takes; `tokens`: that are added to them."""
    from hepti_mpi.errors import InputError

    if rows + tokens > spec.positions:
        what = f"a prompt of {rows} rows and {counted(tokens, 'tokens')}" if tokens else f"a request of {rows} rows"
        smaller = "--rows or --tokens" if tokens else "--rows"
        raise InputError(f"{spec.name} has {counted(spec.positions, 'positions')}, too few for {what}; make {smaller} smaller")


def check_alone(name: str, example: str) -> None:
    """Raise UsageError where mpirun started a command that calls mpirun itself, whose ranks would take themselves for the first one's."""
    from hepti_mpi.comm.launcher import launched

    if launched():
        raise click.UsageError(f"{name} starts ranks itself: call it without mpirun, as python -m hepti_mpi {name} {example}")
