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
from hepti_mpi.wording import beside, counted

if TYPE_CHECKING:
    from hepti_mpi.models.checkpoints.modelfiles import ModelFiles
    from hepti_mpi.weights.calibration import Accuracy, Calibration, Inputs

AUTO = "auto"
FEWEST_FIRST = ("q4-wide", "q4", "q8", "q8-wide", "q8-blocks", "f16", "f32")
LESS = 0.8  # of the memory of a format that a mix with one of fewer bits is worth its trials for
FINEST = 32  # parts of the products to one of which it is found how many have to be kept


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
    if store.exists() and store.stat().st_size:
        SCREEN.say(f"{store} is there already: it is replaced when the new one is whole")
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

    found = replace(_cost(store, model, held_out), against=model.rounded or None)
    writing.note_accuracy(store, found)
    if math.isfinite(found.largest):
        SCREEN.show(accuracy_line(found))
    else:
        SCREEN.say(f"what {store} makes of built-in inputs is not finite: choose another format")
    return found


def _write_fewest(store: Path, model: "ModelFiles", head: str | None, error: float) -> None:
    """Write the store in the format of the fewest bits that costs at most `error`, and as many products as may be in fewer. Raises
    ModelError where that cannot be measured."""
    trial = _Trial(store.with_name(f".{store.name}.trial"), store.with_name(f".{store.name}.best"), error)
    try:
        few = None
        for name in FEWEST_FIRST:
            reduced = model.in_format(name, head)
            if trial.keeps(reduced, name):
                break
            few = few if trial.cost is None else reduced
        if few is not None and few.spec.bytes_of_layer <= LESS * reduced.spec.bytes_of_layer:
            name = _keep_some(trial, model, few, reduced) or name
        trial.best.replace(store)
    finally:
        for path in (trial.path, trial.best):
            path.unlink(missing_ok=True)
    SCREEN.show(f"{store}: {name}, which has the fewest bits of those that cost at most {error:g}")
    if trial.held_out is not None:
        cost = _tell_cost(store, trial.model, trial.held_out).error
        if cost > error:
            said = f"on these inputs, by which it was not chosen, it costs {beside(cost, error)}, more than {error:g}"
            SCREEN.say(f"{said}: ask for a smaller --error")


class _Trial:
    """What was tried last: its store, `path`, and what it costs on the inputs that a format is chosen by (`cost`; None: it cannot hold the
    weights). Of the last one that costs at most `error`: its store, `best`, its `model`, and inputs `held_out` that choose nothing."""

    def __init__(self, path: Path, best: Path, error: float) -> None:
        self.path, self.best, self.error = path, best, error
        self.cost: float | None = None
        self.model: ModelFiles
        self.held_out: Inputs | None = None

    def keeps(self, model: "ModelFiles", called: str) -> bool:
        """Write a store of the model, measure it, keep it where it costs little enough and tell whether it does. Raises ModelError."""
        from hepti_mpi.errors import FormatError, ModelError

        self.cost = None
        try:
            calibration = _write(self.path, model, called)
        except FormatError as refusal:
            SCREEN.show(f"{called} is left out: {str(refusal).partition('; ')[0]}")
            return False
        if calibration is None and model.spec.formats:
            raise ModelError("the model takes no built-in inputs, so what formats cost is not known; give --format q8 instead of auto")
        self.cost, held_out = 0.0, None
        if calibration is not None:
            choosing, held_out = calibration.finished()
            self.cost = _cost(self.path, model, choosing).error
            SCREEN.show(f"{called} costs {beside(self.cost, self.error)} on the inputs that the format is chosen by")
        if not self.cost <= self.error:  # nor where it is no number
            return False
        self.path.replace(self.best)
        self.model, self.held_out = model, held_out
        return True


def _keep_some(trial: _Trial, model: "ModelFiles", few: "ModelFiles", more: "ModelFiles") -> str | None:
    """Look for the fewest products that have to be in the format of `more`, which costs little enough, when all others are in that of
    `few`, in which all cost too much: first those that lose most there. Return what that is called; None where it is all of them."""
    from itertools import chain

    from hepti_mpi.weights.calibration import grouped
    from hepti_mpi.weights.sensitivity import Sensitivity, most_worth

    sensitivity = Sensitivity.of(few)
    assert sensitivity is not None  # it was measured by the same inputs
    one, other = (model.spec.formats.get("", "f32") for model in (few, more))
    with meanwhile(f"measuring what each product loses in {one}", model.spec.layers) as meter:
        for group in grouped(model.weights()):
            meter.advance(bool(sensitivity.take(group)))
    order, said = most_worth(sensitivity.losses, few.spec, more.spec), None
    least, most = 0, len(order)  # products: with so few it costs too much, with so many it does not
    while most - least > max(1, len(order) // FINEST):
        count = (least + most) // 2
        called = f"{one} with {count} of {counted(len(order), 'products')} in {other}"
        if trial.keeps(model.keeping(few, more, set(chain(*order[:count]))), called):
            most, said = count, called
        else:
            least = count
    return said


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
        model, reduced = read_gguf(path)
        mixed, whole = [kind.name for kind in reduced if kind.mixed], format_name == FORMATS[0]
        if told := [kind.name for kind in reduced] if whole else mixed:
            then = "written as those, and --format q4 or q8 writes fewer bits" if whole else "rounded anew from those"
            SCREEN.say(f"{path} has weights of type {', '.join(told)}, which stand for float32 values: they are {then}")
        return replace(model, rounded=" and ".join(mixed))
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
        said = f"{source} has weights in {model.rounded}: the new store begins with the numbers that they stand for"
        SCREEN.say(f"{said}, and what its format costs is measured against them")
    return model
