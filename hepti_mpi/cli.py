"""The commands: parse, call, print. The only place that prints, picks paths and reads options; computes nothing.

MPI, ONNX Runtime and HDF5 are imported inside the commands, so that --help is instant and a usage error costs nothing.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi import __version__
from hepti_mpi.errors import RankError, StoreError
from hepti_mpi.options import FILE, OURS, Size, machine_options, planning_options, weights_option

if TYPE_CHECKING:
    from hepti_mpi.planning.plan import Plan
    from hepti_mpi.planning.planner import Decision, Request
    from hepti_mpi.runtime.job import Machine

WEIGHTS = Path("weights")
DEFAULT_STORE = WEIGHTS / "all-MiniLM-L6-v2.h5"
SETTLE_FROM = 30  # batches of a job that is worth the time to try plans out


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="hepti_mpi")
@click.pass_context
def main(context: click.Context) -> None:
    """Run one transformer inference across several unequal machines.

    \b
    Example, from a model folder to answers on the boards of a hostfile:
      python -m hepti_mpi slice MODEL_FOLDER weights/model.h5
      mpirun -hostfile hostfiles/pi4.txt python -m hepti_mpi run
    """
    if context.invoked_subcommand in ("slice", "inspect", "plan", "report"):
        from hepti_mpi.comm.launcher import launched_rank

        if launched_rank():
            context.exit()  # these need one process: under mpirun the first does it


# offline commands: no MPI


@main.command("slice")
@click.argument("source")
@click.argument("store", type=FILE)
@click.option("--plan", "plan_file", type=FILE, help="Also cut one file per rank of this plan.")
@click.option("--ranks", "folder", type=FILE, help="Folder for the rank files.")
def slice_command(source: str, store: Path, plan_file: Path | None, folder: Path | None) -> None:
    """Turn a Hugging Face model folder, or random:NAME, into a weight store.

    \b
    Examples:
      python -m hepti_mpi slice ~/models/all-MiniLM-L6-v2 weights/all-MiniLM-L6-v2.h5
      python -m hepti_mpi slice random:bert-large weights/bert-large.h5
      python -m hepti_mpi slice MODEL weights/m.h5 --plan plan.json --ranks weights/m
    """
    from hepti_mpi.models.hf import read_model
    from hepti_mpi.models.random_models import random_model
    from hepti_mpi.planning import plan as plans
    from hepti_mpi.shards import store as stores
    from hepti_mpi.shards.slicing import rank_slices

    if (plan_file is None) != (folder is None):
        raise click.UsageError("--plan and --ranks go together: --plan PLAN.json --ranks FOLDER")
    plan = plans.load(plan_file) if plan_file else None
    begin = time.perf_counter()
    model = random_model(source.removeprefix("random:")) if source.startswith("random:") else read_model(Path(source))
    model = replace(model, spec=replace(model.spec, name=store.stem))  # people name the store, not the folder
    if plan is not None:
        plans.check(plan, model.spec, model.source_hash, plan.ranks)
    total = sum(piece.bytes for piece in stores.whole_slices(model.spec))
    with _progress(f"writing {store}", total) as done:
        stores.write(store, model, done)
    click.echo(f"{store}: {model.spec.family} {model.spec.name}, {_size(store.stat().st_size)} in {time.perf_counter() - begin:.1f} s")
    if plan is None or folder is None:
        return
    with stores.Store(store) as whole:
        for rank in range(plan.ranks):
            path = folder / f"rank{rank:02d}.h5"
            stores.write_part(path, whole, rank_slices(whole.spec, plan, rank))
            click.echo(f"{path}: {_size(path.stat().st_size)}")


@main.command()
@click.argument("store", type=FILE)
def inspect(store: Path) -> None:
    """Print what a store holds: family, shapes, parameters, and bytes per strategy and rank count.

    \b
    Example:
      python -m hepti_mpi inspect weights/all-MiniLM-L6-v2.h5
    """
    from hepti_mpi.reporting.inspection import inspection_lines
    from hepti_mpi.shards.store import Store

    with Store(store) as opened:
        click.echo(inspection_lines(opened))


@main.command()
@weights_option
@click.option("--profile", "profile_file", type=FILE, required=True, help="Measured by the profile command.")
@click.option("--rows", type=click.IntRange(1, 1 << 20), default=128, show_default=True, help="Rows (tokens, patches) of a request.")
@click.option("--output", type=FILE, help="Write the plan to this file.")
@click.option("--scale", type=FILE, help="Draw the latency of the best plan on the first n ranks, for growing n, to this picture.")
@planning_options
def plan(weights: Path | None, profile_file: Path, rows: int, output: Path | None, scale: Path | None, **options: Any) -> None:
    """Find the best division of a model over measured ranks; needs no MPI.

    \b
    Example:
      python -m hepti_mpi plan --weights weights/bert-large.h5 --profile hostfiles/pi4.profile.json --rows 128 --output plan.json
    """
    from hepti_mpi.cluster import profile as profiles
    from hepti_mpi.errors import ProfileError
    from hepti_mpi.planning import methods
    from hepti_mpi.reporting import records
    from hepti_mpi.shards.store import Store

    profile = profiles.load(profile_file)
    given = _store_path(weights)
    with Store(given / "rank00.h5" if given.is_dir() else given) as store:
        shape = (store.spec.hidden, store.spec.ffn)
        if profile.shape != shape:
            raise ProfileError(
                f"profile {profile_file} was measured at (hidden, ffn) {profile.shape}, the model has {shape}; "
                "measure with: mpirun -hostfile FILE python -m hepti_mpi profile --weights STORE"
            )
        begin = time.perf_counter()
        request = _request({"rows": rows}, options, len(profile.nodes))
        decision = methods.decide(_method(options), store.spec, store.source_hash, profile, request)
        seconds = time.perf_counter() - begin
    click.echo(records.decision_lines(decision))
    click.echo("\n" + records.plan_lines(decision.chosen.plan))
    click.echo("\n" + records.share_lines(decision))
    click.echo(f"planned {len(profile.nodes)} ranks in {seconds:.2f} s")
    if output is not None:
        decision.chosen.plan.save(output)
        click.echo(f"plan written to {output}")
    if scale is not None:
        _draw_scale(scale, store.spec, store.source_hash, profile, request, _method(options))


def _draw_scale(path: Path, spec: Any, source_hash: str, profile: Any, request: Any, method: str) -> None:
    from hepti_mpi.planning.scale import by_ranks
    from hepti_mpi.reporting import plots

    chosen = by_ranks(method, spec, source_hash, profile, request)
    click.echo("\n".join(f"{n} ranks: {c.price.seconds * 1e3:.0f} ms on {len(c.plan.active)}" for n, c in chosen.items()))
    seconds, active = [c.price.seconds for c in chosen.values()], [len(c.plan.active) for c in chosen.values()]
    plots.plot_scale(list(chosen), seconds, active, path, f"{spec.name}, {request.rows} rows: the best plan on the first n ranks")
    click.echo(f"picture written to {path}")


# collective commands: under mpirun


@main.command()
@weights_option
@click.option("--output", type=FILE, help="Where to keep the profile; left out: beside the hostfile.")
@click.option("--fresh", is_flag=True, help="Measure even when the saved profile still matches.")
@machine_options
def profile(weights: Path | None, output: Path | None, fresh: bool, threads: int | None, emulate: tuple[float, ...] | None) -> None:
    """Measure the speed, links and memory of all ranks.

    \b
    Example:
      mpirun -hostfile hostfiles/pi4.txt python -m hepti_mpi profile --weights weights/bert-large.h5
    """
    from hepti_mpi.reporting.inspection import profile_lines
    from hepti_mpi.runtime import job

    machine = job.start(threads, emulate)
    store = job.open_store(machine, _agreed_store_path(machine, weights))
    path = output or _profile_path(machine)
    begin = time.perf_counter()
    measured = job.measured_profile(machine, store.spec, path, fresh, required=False, say=_say(machine))
    if machine.world.rank == 0:
        click.echo(profile_lines(measured))
        click.echo(f"{path} ({time.perf_counter() - begin:.1f} s)")


@main.command()
@weights_option
@click.option("--input", "source", help="Text (.txt, .jsonl), images, arrays (.npz), or - for standard input; left out: built-in examples.")
@click.option("--output", type=FILE, help="Answers as .jsonl or .npz; left out: on the screen.")
@click.option("--plan", "plan_file", type=FILE, help="Use this plan instead of making one.")
@click.option("--profile", "profile_file", type=FILE, help="Use this profile; an error when it does not match.")
@click.option("--fresh", is_flag=True, help="Measure even when the saved profile still matches.")
@click.option(
    "--repeat", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="Answer the input this many times, for measuring."
)
@click.option(
    "--batch-rows", type=click.IntRange(1, 1 << 20), default=256, show_default=True, help="Pack requests together up to this many rows."
)
@machine_options
@planning_options
def run(
    weights: Path | None,
    source: str | None,
    output: Path | None,
    plan_file: Path | None,
    profile_file: Path | None,
    fresh: bool,
    threads: int | None,
    emulate: tuple[float, ...] | None,
    repeat: int,
    batch_rows: int,
    **options: Any,
) -> None:
    """Answer inputs on all ranks together.

    \b
    Examples:
      mpirun -hostfile hostfiles/pi4.txt python -m hepti_mpi run
      mpirun -hostfile hostfiles/mixed.txt python -m hepti_mpi run --weights weights/vit.h5 --input photos/ --output labels.jsonl
    """
    from hepti_mpi.comm.launcher import host_name, standard_input
    from hepti_mpi.models.preprocess import read_requests
    from hepti_mpi.planning import plan as plans
    from hepti_mpi.planning import planner
    from hepti_mpi.reporting import outputs
    from hepti_mpi.runtime import job
    from hepti_mpi.runtime.graphs import Segments
    from hepti_mpi.runtime.settle import settle

    narrowing = [name for name, value in options.items() if value not in (None, "auto", False, 0)]
    narrowing += ["profile"] * (profile_file is not None) + ["fresh"] * fresh
    if plan_file is not None and narrowing:
        raise click.UsageError(f"--plan says who does what; it cannot be used with --{narrowing[0].replace('_', '-')}")
    machine = job.start(threads, emulate)
    world, say, root = machine.world, _say(machine), machine.world.rank == 0
    store = job.open_store(machine, _agreed_store_path(machine, weights))
    requests, chosen, typical = None, None, None
    with job.together(world):
        if root:
            if output is not None:
                outputs.check_path(output)
            requests = read_requests(store.spec, store.files, source, standard_input() if source == "-" else None)
            typical = job.typical_rows(requests, batch_rows, store.spec.hidden)
            chosen = plans.load(plan_file) if plan_file else None
    typical = world.from_root(typical if root else None)

    startup: dict[str, float] = {}
    decision: planner.Decision | None = None
    if plan_file is None:
        begin = time.perf_counter()
        path = profile_file or _profile_path(machine)
        measured = job.measured_profile(machine, store.spec, path, fresh, required=profile_file is not None, say=say)
        startup["profile"] = time.perf_counter() - begin
        begin = time.perf_counter()
        with job.together(world):
            request = _request(typical, options, world.size)
        the_plan, decision = job.decide(machine, store, measured, _method(options), request)
        startup["plan"] = time.perf_counter() - begin
    else:
        the_plan = plans.from_json(world.from_root(chosen.to_json() if chosen else None))
        hosts = tuple(world.gather_all(host_name()))
        if hosts != the_plan.hosts:
            say(f"plan {plan_file} was made for {', '.join(the_plan.hosts)}, these ranks are on {', '.join(hosts)}: its shares may not fit")
    segments = Segments(store.spec, store)
    ready = job.load(machine, store, the_plan, decision, startup, segments)
    many = requests is not None and _batches(requests, batch_rows, store.spec.hidden, repeat) >= SETTLE_FROM
    if plan_file is None and world.from_root(many and decision is not None and options["strategy"] in ("auto", *OURS)):
        begin = time.perf_counter()
        the_plan, _ = settle(machine, store.spec, store.source_hash, segments, measured, request, decision)
        ready = job.swap(ready, the_plan, segments)
        ready.startup_seconds["settle"] = time.perf_counter() - begin
    wire_error = job.wire_error(ready, segments, typical["rows"]) if the_plan.wire != "float32" else 0.0
    if wire_error > options["tolerance"] and plan_file is None:
        say(f"float16 on the wire changes results by {wire_error:.2g}, more than --tolerance {options['tolerance']:g}: float32 is used")
        ready, wire_error = job.swap(ready, replace(ready.plan, wire="float32", predicted_seconds=None), segments), 0.0
    if root:
        _show_plan(ready)
    with _progress("answering", len(requests or ()) * repeat, root) as done:
        outcome = job.answer(ready, requests, batch_rows, repeat, full_logits=output is not None and output.suffix == ".npz", progress=done)
    with job.together(world):
        if requests is not None:
            _finish(ready, outcome, requests, repeat, output, wire_error)


@main.command()
@click.argument("records", type=FILE)
@click.option("--output", type=FILE, required=True, help="Folder for the pictures.")
def report(records: Path, output: Path) -> None:
    """Draw what the bench command recorded: latency, one request across ranks, predicted against measured.

    \b
    Example:
      python -m hepti_mpi report records.jsonl --output pictures
    """
    from hepti_mpi.reporting import plots

    for path in plots.write_report(records, output):
        click.echo(path)


@main.command()
@weights_option
@click.option("--methods", default="hepti,hepti-float16,tensor,hybrid,sequence,megatron,voltage,galaxy,coedge,edgeflow,ram,single",
              show_default=True, help="What to measure; NAME-boost is another system's division with our exchanges.")
@click.option("--rows", type=click.IntRange(1, 1 << 20), default=128, show_default=True, help="Rows (tokens, patches) of the request.")
@click.option("--repeat", type=click.IntRange(1, 1_000_000), default=7, show_default=True, help="Requests per method, in turns.")
@click.option("--output", type=FILE, help="Append all samples to this file, for the report command.")
@click.option("--cluster", default="", help="Name of the cluster in the records; left out: the hostfile's.")
@click.option("--profile", "profile_file", type=FILE, help="Use this profile; an error when it does not match.")
@click.option("--fresh", is_flag=True, help="Measure the cluster even when the saved profile still matches.")
@click.option("--memory-limit", type=Size(), help="Memory of a rank for weights and activations, such as 500M; a list gives one per rank.")
@machine_options
def bench(weights: Path | None, methods: str, rows: int, repeat: int, output: Path | None, cluster: str, profile_file: Path | None,
          fresh: bool, memory_limit: tuple[int, ...] | None, threads: int | None, emulate: tuple[float, ...] | None) -> None:  # fmt: skip
    """Measure ways to divide a model against each other, in turns within one job.

    \b
    Example:
      mpirun -hostfile hostfiles/pi4.txt python -m hepti_mpi bench --weights weights/bert-large.h5 --methods hepti,megatron,single
    """
    from hepti_mpi.errors import CapacityError, PlanError
    from hepti_mpi.planning.methods import BOOST, NAMES, OURS
    from hepti_mpi.planning.planner import Request
    from hepti_mpi.reporting import comparison, outputs
    from hepti_mpi.runtime import bench as benches
    from hepti_mpi.runtime import job

    names = list(dict.fromkeys(name.strip() for name in methods.split(",")))
    for name in names:
        if name.removesuffix(BOOST) not in NAMES or name.removesuffix(BOOST) in OURS and name.endswith(BOOST):
            raise click.UsageError(f"there is no method {name!r}; known are {', '.join(NAMES)}, and with {BOOST} those not our own")
    machine = job.start(threads, emulate)
    world, root = machine.world, machine.world.rank == 0
    store = job.open_store(machine, _agreed_store_path(machine, weights))
    path = profile_file or _profile_path(machine)
    measured = job.measured_profile(machine, store.spec, path, fresh, required=profile_file is not None, say=_say(machine))
    limits = memory_limit * world.size if memory_limit and len(memory_limit) == 1 else memory_limit
    plans: dict[str, Plan] = {}
    decisions: dict[str, Decision] = {}
    refused: dict[str, str] = {}
    with job.together(world):
        if limits is not None and len(limits) != world.size:
            raise PlanError(f"--memory-limit has {len(limits)} entries, the job has {world.size} ranks")
        if output is not None and root:
            outputs.check_path(output)
    for name in [*names, benches.UNDILATED]:
        try:
            request = Request(rows, limits=None if name == benches.UNDILATED else limits, mode="packed")
            method = "single" if name == benches.UNDILATED else name
            plans[name], decision = job.decide(machine, store, measured, method, request)
            decisions |= {name: decision} if decision else {}
        except CapacityError as error:
            refused[name] = str(error)
        except RankError:
            refused[name] = ""
    with job.together(world):
        if not any(name in plans for name in names):
            raise CapacityError(refused[names[0]])
    with _progress("answering", repeat + benches.WARM_UP, root) as done:
        samples = benches.measure(machine, store, measured, plans, decisions, Request(rows, limits=limits), repeat, done)
    with job.together(world):
        if root:
            where = cluster or path.name.removesuffix(".profile.json")
            records = list(comparison.lines(store.spec.name, rows, where, machine.factors, samples))
            click.echo(comparison.comparison(samples, refused, machine.factors))
            if output is not None:
                with open(output, "a") as file:
                    file.writelines(json.dumps(record) + "\n" for record in records)
            click.echo(json.dumps(records[-1]))


def _finish(ready: Any, outcome: Any, requests: Any, repeat: int, output: Path | None, wire_error: float) -> None:
    """Write and print the answers and the summary; the last line is the run's JSON document."""
    from hepti_mpi.models.heads import answers
    from hepti_mpi.reporting import outputs, records

    spec, plan = ready.spec, ready.plan
    if output is not None and output.suffix == ".npz":
        outputs.write_npz(output, requests, outcome.results)
    else:
        lines = answers(spec, ready.store.files, requests, outcome.results)
        if output is not None:
            outputs.write_jsonl(output, lines)
        else:
            for line in lines:
                click.echo(records.answer_line(line))
    spent = records.divide_time(ready.program, plan.active, outcome.seconds)
    record = records.run_record(
        spec.name, spec.family, plan, outcome.latencies, outcome.rows, len(requests) * repeat, ready.startup_seconds, outcome.facts, spent,
        wire_error,
    )  # fmt: skip
    click.echo("\n" + records.run_lines(record, ready.decision))
    click.echo(json.dumps(record))


def _show_plan(ready: Any) -> None:
    from hepti_mpi.planning.planner import left_out
    from hepti_mpi.reporting import records

    click.echo(records.plan_lines(ready.plan))
    if ready.decision is not None:
        for reason in (*left_out(ready.decision), *ready.decision.notes):
            click.echo(reason)
    click.echo("")


# paths, progress and words


def _request(sizes: dict[str, int], options: dict[str, Any], ranks: int) -> "Request":
    from hepti_mpi.errors import PlanError
    from hepti_mpi.planning.planner import Request

    limits = options["memory_limit"]
    if limits is not None and len(limits) == 1:
        limits = limits * ranks
    layout = tuple(options["layout"].split("/")) if options["layout"] else None
    strategy = options["strategy"]
    if layout and strategy != "auto":
        raise PlanError("use just one of --layout and --strategy: a layout is a strategy")
    return Request(
        sizes["rows"], sizes.get("attended"), sizes.get("largest"), sizes.get("longest"),
        strategy, layout, options["shares"], limits, options["weights_mode"],
        ("float32", "float16") if options["tolerance"] else ("float32",),
    )  # fmt: skip


def _batches(requests: Any, batch_rows: int, hidden: int, repeat: int) -> int:
    """Return how many batches a job will answer."""
    from hepti_mpi.runtime import job

    return repeat * len(job.batches([request.rows for request in requests], batch_rows, hidden))


def _method(options: dict[str, Any]) -> str:
    """Return the method of planning.methods that the options mean."""
    from hepti_mpi.errors import PlanError
    from hepti_mpi.planning.baselines import NAMES
    from hepti_mpi.planning.methods import BOOST

    strategy = options["strategy"]
    if options["tolerance"] and strategy in NAMES:
        raise PlanError(f"--tolerance is for our own strategies: {strategy} sends float32")
    if options["boost"] and strategy not in NAMES:
        raise PlanError(f"--boost is for the other systems' strategies: {', '.join(NAMES)}")
    return "hepti" if strategy == "auto" else strategy + BOOST * options["boost"]


def _store_path(given: Path | None) -> Path:
    """Return the store that is meant when none is named. Raises StoreError when that is not clear."""
    if given is not None:
        return given
    found = sorted(WEIGHTS.glob("*.h5"))
    if len(found) == 1 or DEFAULT_STORE in found:
        return DEFAULT_STORE if DEFAULT_STORE in found else found[0]
    if found:
        raise StoreError(f"{WEIGHTS}/ has {len(found)} stores; name one with --weights: {', '.join(map(str, found[:5]))}")
    raise StoreError(f"there is no store in {WEIGHTS}/; make one with: python -m hepti_mpi slice MODEL_FOLDER {DEFAULT_STORE}")


def _agreed_store_path(machine: "Machine", given: Path | None) -> Path:
    from hepti_mpi.runtime import job

    with job.together(machine.world):
        path = _store_path(given)
    return path


def _profile_path(machine: "Machine") -> Path:
    """Return where rank 0 keeps this job's profile: beside its hostfile where mpirun tells it, else named after the first host."""
    from hepti_mpi.comm.launcher import host_name, launcher_hostfile

    hostfile = launcher_hostfile()
    if hostfile is not None:
        return Path(hostfile).with_suffix(".profile.json")
    return Path("hostfiles") / f"{host_name()}-{machine.world.size}.profile.json"


def _say(machine: "Machine") -> Callable[[str], None]:
    return lambda sentence: click.echo(sentence, err=True) if machine.world.rank == 0 else None


def _size(count: float) -> str:
    from hepti_mpi.reporting.records import size

    return size(count)


@contextmanager
def _progress(label: str, total: int, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances a bar on standard error, which is drawn on a terminal only."""
    if not shown or not sys.stderr.isatty():
        yield lambda amount: None
        return
    with click.progressbar(length=total, label=label, file=sys.stderr) as bar:
        yield bar.update
