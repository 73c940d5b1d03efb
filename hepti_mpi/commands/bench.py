"""The bench command: measures ways to divide a model against each other."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.commands import session as sessions
from hepti_mpi.commands.benching import PHASES, Choice, OneSize, measure, measure_texts, subject
from hepti_mpi.commands.options import (
    FILE,
    FORMATS,
    ROWS,
    Machinery,
    Name,
    Size,
    cache_option,
    check_positions,
    grouped,
    machine_options,
    one_of,
    request_rows,
    said_cache,
    weights_option,
    words_options,
)
from hepti_mpi.commands.paths import profile_path
from hepti_mpi.wording import counted

if TYPE_CHECKING:
    from hepti_mpi.models.spec import ModelSpec

MOST_ROWS = 1 << 20
TOKENS = 128  # that are added to a prompt, where nobody says


class Sizes(click.ParamType):
    """Sizes of requests: 128,64:6,384:6 are 128 rows, and 64 and 384 rows of the first six layers."""

    name = "rows"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[OneSize, ...]:
        if isinstance(value, tuple):
            return value
        sizes = []
        for word in str(value).split(","):
            rows, colon, layers = word.strip().partition(":")
            if not rows.isdecimal() or not 1 <= int(rows) <= MOST_ROWS or (colon and (not layers.isdecimal() or not int(layers))):
                self.fail(f"{word!r} is no number of rows from 1 to {MOST_ROWS}, such as 128 or 128:6 (of the first 6 layers)", param, ctx)
            sizes.append((int(rows), int(layers) if colon else None))
        return tuple(dict.fromkeys(sizes))


class Formats(click.ParamType):
    """Formats of weights, such as f32,q8."""

    name = "formats"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = value if isinstance(value, tuple) else tuple(word.strip() for word in str(value).split(","))
        for name in names:
            if name not in FORMATS:
                self.fail(f"{name!r} is none of {', '.join(FORMATS)}", param, ctx)
        return tuple(dict.fromkeys(names))


USUAL = "hepti,hepti-float16,hepti-int8,tensor,hybrid,sequence,megatron,voltage,galaxy,coedge,edgeflow,ram,single"


@click.command()
@weights_option
@click.option("--methods", default=USUAL, show_default=USUAL.replace(",", ", "),
              help="What to measure; NAME-boost is another system's division with our exchanges.")
@click.option("--rows", type=Sizes(), default=(),
              help=f"Rows (tokens, patches) of the request; left out: {ROWS}, or as many as the model takes. Of a list, such as "
              "128,384:6, each is measured in turn in one job: the first by plans that were tried, the others by what that taught; ROWS:N "
              "of the first N layers.")
@one_of("--phase", words=PHASES, default=PHASES[0], show_default=True,
        help="What is measured: a request through the layers or, of a model that generates text, a prompt of --rows and tokens added "
        "to it.")
@click.option("--tokens", type=click.IntRange(1, 1 << 16), help=f"Tokens added, for --phase decode; left out: {TOKENS}.")
@click.option("--formats", type=Formats(), default=(),
              help="Measure the float32 store in these formats, such as f32,q8, in turns, and say what each costs in time, memory and "
              "accuracy. STORE-FORMAT.h5 beside it is used, and made where it is not there.")
@click.option("--repeat", type=click.IntRange(1, 1_000_000), default=7, show_default=True, help="Requests per method, in turns.")
@click.option("--output", type=FILE, help="Append all samples to this file, for the report command.")
@click.option("--cluster", type=Name(), help="Name of the cluster in the records; left out: the hostfile's.")
@click.option("--profile", "profile_file", type=FILE, help="Use this profile; an error when it does not match.")
@click.option("--fresh", is_flag=True, help="Measure the cluster even when the saved profile still matches.")
@click.option("--memory-limit", type=Size(), help="Memory of a rank for weights and activations, such as 500M; a list gives one per rank.")
@cache_option
@machine_options
@words_options()
def bench(weights: Path | None, methods: str, **options: Any) -> None:
    """Measure ways to divide a model against each other, in turns within one job.

    \b
    Example:
      mpirun -hostfile hostfiles/pi4.txt python -m hepti_mpi bench --weights weights/bert-large.h5 --methods hepti,megatron,single
    """
    from hepti_mpi.comm.leavings import own_prefix
    from hepti_mpi.engine.machine import together
    from hepti_mpi.planning.capacity import check_limits
    from hepti_mpi.reporting.benches import read_benches
    from hepti_mpi.serving import outputs

    said = said_cache(options) + ["--tokens"] * (options["tokens"] is not None)
    options["tokens"] = options["tokens"] or TOKENS
    names, choice, begin = named(methods, options["phase"]), grouped(Choice, options), time.perf_counter()
    if choice.phase == "decode":
        check_texts(choice, names)
    elif said:
        raise click.UsageError(f"{said[0]} is for texts: give --phase decode")
    session = sessions.opened(grouped(Machinery, options), weights)
    store, file, limits = session.store, choice.profile_file, choice.memory_limit
    choice = replace(choice, rows=choice.rows or ((request_rows(store.spec, None), None),))
    path = file or profile_path()
    with together(session.world):
        check_sizes(choice, store.spec)
        if choice.output is not None and session.root:
            outputs.check_path(choice.output, (".jsonl",))
            if choice.output.exists() and choice.output.stat().st_size:
                read_benches(choice.output)  # what it is added to
        check_limits(limits if limits and len(limits) > 1 else None, session.world.size)
    limits = limits * session.world.size if limits and len(limits) == 1 else limits
    with TemporaryDirectory(prefix=own_prefix()) as folder:
        subjects = [subject(session, choice, path, name, Path(folder)) for name in choice.formats or (None,)]
        where = choice.cluster or path.name.removesuffix(".profile.json")
        (measure_texts if choice.phase == "decode" else measure)(session, choice, subjects, names, limits, where, begin)


def check_texts(choice: Choice, names: Sequence[str]) -> None:
    """Raise UsageError where something is asked for that is not for texts."""
    from hepti_mpi.planning.texts import NAMES

    if choice.output is not None:
        raise click.UsageError("--output is for samples of requests; of --phase decode the last line of standard output says all")
    if any(layers is not None for _, layers in choice.rows):
        raise click.UsageError("--phase decode takes all layers: give --rows without :N")
    if not set(names) & set(NAMES):
        raise click.UsageError(f"none of --methods divides a step of a text, which has one row; there are {', '.join(NAMES)}")


def check_sizes(choice: Choice, spec: "ModelSpec") -> None:
    """Raise InputError where the model makes no text, or takes none that long, or has not as many layers."""
    from hepti_mpi.errors import InputError

    if choice.phase == "decode" and not spec.generates:
        raise InputError(f"--phase decode is for models that generate text, which {spec.name} does not; leave it out")
    for rows, layers in choice.rows:
        check_positions(spec, rows, choice.tokens if choice.phase == "decode" else 0)
        if layers is not None and layers > spec.layers:
            raise InputError(f"--rows asks for {counted(layers, 'layers')}, {spec.name} has {spec.layers}")


def named(methods: str, phase: str = PHASES[0]) -> list[str]:
    """Return the methods of a list. Raises UsageError for one that there is not in a phase."""
    from hepti_mpi.planning.methods import BOOST, OURS
    from hepti_mpi.planning.methods import NAMES as REQUESTS
    from hepti_mpi.planning.staging import NAMES as STAGES

    known = (*REQUESTS, *STAGES) if phase == "decode" else REQUESTS
    names = list(dict.fromkeys(name.strip() for name in methods.split(",")))
    for name in names:
        if name.removesuffix(BOOST) not in known or name.removesuffix(BOOST) in (*OURS, *STAGES) and name.endswith(BOOST):
            more = f"; of --phase decode also {' and '.join(STAGES)}" if known is REQUESTS else ""
            raise click.UsageError(f"there is no method {name!r}; known are {', '.join(known)}, and with {BOOST} those not our own{more}")
    return names
