"""The slice command: from a model folder to a weight store, and to one file per rank. Needs one process; no MPI."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hepti_mpi.commands.meter import meanwhile
from hepti_mpi.commands.options import FILE, FORMATS, Place, Within, one_of, words_options
from hepti_mpi.commands.screen import SCREEN
from hepti_mpi.weights.places import FIRST_PART, check_new, no_model

if TYPE_CHECKING:
    from hepti_mpi.models.checkpoints.modelfiles import ModelFiles
    from hepti_mpi.weights.calibration import Accuracy, Calibration, Inputs

AUTO = "auto"
FEWEST_FIRST = ("q4-wide", "q4", "q8", "q8-blocks", "f16", "f32")


@click.command("slice")
@click.argument("source", type=Place())
@click.argument("store", type=FILE)
@click.option("--plan", "plan_file", type=FILE, help="Also cut one file per rank of this plan.")
@click.option("--ranks", "folder", type=FILE, help="Folder for the rank files.")
@one_of(
    "--format",
    "format_name",
    words=(*FORMATS, AUTO),
    default="f32",
    show_default=True,
    help="How the weights of the layers are stored; its cost is measured and said. auto: in the fewest bits that --error allows.",
)
@one_of(
    "--head-format",
    words=FORMATS,
    help="How the words are stored that texts are written in. Left out: in 8 bits where --format has fewer than 16, else as it says.",
)
@click.option("--error", type=Within(0, 1), help="With --format auto, on built-in inputs: by how much the cosine of what the "
              "head reads may be less than 1, at most; of a model that writes texts, the KL divergence of the next word.")  # fmt: skip
@words_options(has_document=False)
def slice_command(
    source: str, store: Path, plan_file: Path | None, folder: Path | None, format_name: str, head_format: str | None, error: float | None
) -> None:  # fmt: skip
    """Turn a Hugging Face model folder, a GGUF file, another store or random:NAME into a weight store.

    \b
    Examples:
      python -m hepti_mpi slice ~/models/all-MiniLM-L6-v2 weights/all-MiniLM-L6-v2.h5
      python -m hepti_mpi slice SmolLM2-135M-Instruct.Q4_1.gguf weights/smollm2.h5
      python -m hepti_mpi slice random:bert-large weights/bert-large.h5
      python -m hepti_mpi slice MODEL weights/m-q8.h5 --format q8
      python -m hepti_mpi slice weights/m.h5 weights/m-q8.h5 --format q8
      python -m hepti_mpi slice MODEL weights/m-q4.h5 --format q4 --head-format q4
      python -m hepti_mpi slice MODEL weights/m.h5 --format auto --error 0.005
      python -m hepti_mpi slice MODEL weights/m.h5 --plan plan.json --ranks weights/m
    """
    from hepti_mpi.program import placement as placements
    from hepti_mpi.reporting.tables import size
    from hepti_mpi.weights import writing
    from hepti_mpi.weights.slices import Part
    from hepti_mpi.weights.store import Store

    if (plan_file is None) != (folder is None):
        raise click.UsageError("--plan and --ranks go together: --plan PLAN.json --ranks FOLDER")
    if (format_name == AUTO) != (error is not None):
        raise click.UsageError("--format auto and --error go together: --format auto --error 0.005")
    if format_name == AUTO and plan_file is not None:
        raise click.UsageError("--plan is of a model in one format, --format auto looks for it: leave out one of them")
    plan = placements.load(plan_file) if plan_file else None
    for path in (store, *([folder / FIRST_PART] if folder else [])):
        check_new(path)
    model = _model(source, format_name, head_format)
    if store.exists() and Path(source).exists() and store.samefile(source):
        raise click.UsageError(f"{source} would be written over while it is read: name another file for the new store")
    model = replace(model, spec=replace(model.spec, name=store.stem))  # people name the store, not the folder
    if error is not None:
        _write_fewest(store, model, head_format, error)
        return
    model = model.in_format(format_name, head_format)
    if plan is not None:
        placements.check(plan, model.spec, model.source_hash, plan.ranks)
    calibration = _write(store, model)
    if calibration is not None:
        _tell_cost(store, model, calibration.finished()[1])
    if plan is None or folder is None:
        return
    with Store(store) as whole:
        for rank in range(plan.ranks):
            path = folder / f"rank{rank:02d}.h5"
            own = plan.plan_of(rank)
            writing.write_part(path, whole, Part(whole.spec, *own).slices if own else ())
            SCREEN.show(f"{path}: {size(path.stat().st_size)}")


def _write(store: Path, model: "ModelFiles", called: str | None = None) -> "Calibration | None":
    """Write the store; return what its inputs showed; None where nothing is rounded, or the model takes no built-in inputs. `called`: what
    people know it by."""
    from hepti_mpi.reporting.tables import size
    from hepti_mpi.weights import writing
    from hepti_mpi.weights.calibration import Calibration
    from hepti_mpi.weights.slices import whole_slices

    begin = time.perf_counter()
    total = sum(piece.bytes for piece in whole_slices(model.spec))
    called = called or str(store)
    with meanwhile(f"writing {called}", total, count=size) as meter:
        calibration = Calibration.of(model) if model.spec.formats else None
        writing.write(store, model, meter.advance, calibration)
    SCREEN.show(f"{called}: {model.spec.family} {model.spec.name}, {size(store.stat().st_size)} in {time.perf_counter() - begin:.1f} s")
    if calibration is None and model.spec.formats:
        SCREEN.show("what the format costs was not measured, and channels are not smoothed: the model takes no built-in inputs")
    return calibration


def _cost(store: Path, model: "ModelFiles", inputs: "Inputs") -> "Accuracy":
    """Return what the formats of a store, which was made of `model`, cost on inputs."""
    from hepti_mpi.engine.accuracy import accuracy_of
    from hepti_mpi.weights.store import Store

    with Store(store) as written:
        return accuracy_of(written, model, inputs)


def _tell_cost(store: Path, model: "ModelFiles", held_out: "Inputs") -> "Accuracy":
    """Measure, say, keep and return what a store's formats cost on inputs by which nothing was decided."""
    from hepti_mpi.reporting.inspection import accuracy_line
    from hepti_mpi.weights import writing

    found = _cost(store, model, held_out)
    writing.note_accuracy(store, found)
    if math.isfinite(found.largest):
        SCREEN.show(accuracy_line(found))
    else:
        SCREEN.say(f"what {store} makes of built-in inputs is not finite: choose another format")
    return found


def _write_fewest(store: Path, model: "ModelFiles", head: str | None, error: float) -> None:
    """Write the store in the format of the fewest bits that costs at most `error`. Raises ModelError where that cannot be measured."""
    from hepti_mpi.errors import FormatError, ModelError

    trial = store.with_name(f".{store.name}.trial")
    try:
        for name in FEWEST_FIRST:
            reduced = model.in_format(name, head)
            try:
                calibration = _write(trial, reduced, name)
            except FormatError as refusal:
                SCREEN.show(f"{name} is left out: {str(refusal).partition('; ')[0]}")
                continue
            if calibration is None and name != "f32":
                raise ModelError("the model takes no built-in inputs, so what formats cost is not known; give --format q8 instead of auto")
            choosing, held_out = (None, None) if calibration is None else calibration.finished()
            if choosing is not None:
                found = _cost(trial, reduced, choosing).error
                SCREEN.show(f"{name} costs {found:.2g} on the inputs that the format is chosen by")
            if choosing is None or found <= error:
                break
        trial.replace(store)
    finally:
        trial.unlink(missing_ok=True)
    SCREEN.show(f"{store}: {name}, which has the fewest bits of those that cost at most {error:g}")
    if held_out is not None:
        cost = _tell_cost(store, reduced, held_out).error
        if cost > error:
            SCREEN.say(f"on these inputs, by which it was not chosen, it costs {cost:.2g}, more than {error:g}: ask for a smaller --error")


def _model(source: str, format_name: str, head: str | None) -> "ModelFiles":
    """Return the model that is to be written in a format. Raises ModelError or StoreError."""
    from hepti_mpi.errors import ModelError
    from hepti_mpi.models.checkpoints.gguffiles import gguf_path, read_gguf
    from hepti_mpi.models.checkpoints.hf import read_model
    from hepti_mpi.models.checkpoints.random import PREFIX, random_model

    if source.startswith(PREFIX):
        return random_model(source.removeprefix(PREFIX))
    path = gguf_path(Path(source))
    if path is not None:
        model, mixed = read_gguf(path)
        if mixed:
            SCREEN.say(f"{path} has weights of type {', '.join(mixed)}: they are written as the float32 values that they stand for")
        return model
    if Path(source).suffix == ".h5" and Path(source).is_file():
        return _model_of_store(Path(source), format_name, head)
    what = no_model(Path(source))
    if what is not None:
        raise ModelError(what)
    return read_model(Path(source))


def _model_of_store(source: Path, format_name: str, head: str | None) -> "ModelFiles":
    """Return the model of another store, which stays open as long as its weights may be read. Raises ModelError or StoreError."""
    from hepti_mpi.errors import ModelError
    from hepti_mpi.weights.source import model_of
    from hepti_mpi.weights.store import Store

    store = Store(source)
    model, kept = model_of(store), store.spec.formats
    if kept and format_name == AUTO:
        raise ModelError(f"{source} has weights in fewer bits already, and --format auto measures against float32: name the model's folder")
    if kept and kept == model.in_format(format_name, head).spec.formats:
        raise ModelError(f"{source} is in {format_name} already, and rounding twice costs more than once: copy the file")
    if kept:
        said = (
            f"{source} has weights in {' and '.join(sorted(set(kept.values())))}: the new store begins with the numbers that they stand for"
        )
        SCREEN.say(f"{said}, and what its format costs is measured against them")
    return model
