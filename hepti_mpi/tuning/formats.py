"""One checkpoint in several formats, beside each other: stores that are made of a float32 one, and what each costs in time, memory and
accuracy. Knows stores and what was measured of them; prints nothing, and does not know how anything is timed (bench.py, texts.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hepti_mpi.engine.accuracy import accuracy_of
from hepti_mpi.engine.fetching import open_store
from hepti_mpi.engine.machine import Machine, patiently, together
from hepti_mpi.errors import StoreError
from hepti_mpi.models.checkpoints.modelfiles import ModelFiles
from hepti_mpi.reporting.inspection import accuracy_line
from hepti_mpi.reporting.tables import milliseconds, size, table
from hepti_mpi.tuning.bench import Samples
from hepti_mpi.tuning.texts import Written, difference
from hepti_mpi.weights import writing
from hepti_mpi.weights.calibration import Accuracy, Calibration
from hepti_mpi.weights.slices import whole_slices
from hepti_mpi.weights.source import model_of
from hepti_mpi.weights.store import Store

FORMAT, FORMAT_VERSION = "hepti-bench-formats", 1
FLOAT32 = "f32"


@dataclass
class Taken:
    """What one method took with one format: `seconds` in the median, of a request or a token; `weight_bytes` of the fullest rank;
    `difference` of a value to the first answer of all, at most; `first_seconds`: of a text, until its first token."""

    seconds: float
    weight_bytes: int
    difference: float
    first_seconds: float | None = None

    @classmethod
    def of(cls, samples: Samples) -> "Taken":
        """Return what a method took for a request."""
        held = max(fact["weight_bytes"] for fact in samples.held)
        return cls(float(np.median(samples.seconds)), held, samples.error or 0.0)

    @classmethod
    def of_text(cls, written: Written, first: Written) -> "Taken":
        """Return what a method took for a token; `first`: whose answer it is compared with."""
        return cls(written.token, written.weight_bytes, difference(written, first), written.first)


@dataclass
class InFormat:
    """A checkpoint in one format: its store, the bytes of that, what it costs (None: nothing, or not known), and what methods took."""

    name: str
    store: Store
    bytes: int
    accuracy: Accuracy | None
    methods: dict[str, Taken] = field(default_factory=dict)

    def title(self, model: str, asked: str) -> str:
        """Return the line above a table: of which model, in which format, and what was asked."""
        return f"{model}{self.name and ' in '}{self.name}, {asked}"


@patiently
def in_format(machine: Machine, source: Store, name: str, say: Callable[[str], None], folder: Path) -> InFormat:
    """Return the checkpoint of a float32 store in a format: from the file beside it, which rank 0 writes where there is none.
    Collective. `folder`: where a host without that file keeps what it is sent of it.

    Raises StoreError where the store is not float32 or another model's file is in the way, and what writing a store raises.
    """
    with together(machine.world):
        if source.spec.formats:
            kept = " and ".join(sorted(set(source.spec.formats.values())))
            raise StoreError(f"{source.path} has weights in {kept}: --formats begins with a float32 store, and makes the others beside it")
    if name == FLOAT32:
        return InFormat(name, source, sum(piece.bytes for piece in whole_slices(source.spec)), None)
    path = source.path.with_name(f"{source.path.stem}-{name}.h5")
    with together(machine.world):
        if machine.world.rank == 0:
            model = model_of(source).in_format(name)
            model = replace(model, spec=replace(model.spec, name=path.stem))
            if not path.exists():
                say(f"writing {path}")
                write_reduced(path, model)
            with Store(path) as written:
                if written.source_hash != model.source_hash:
                    raise StoreError(f"{path} is not {source.path} in {name}: rename it, so that this can be written there")
    store = open_store(machine, path, folder)
    return InFormat(name, store, sum(piece.bytes for piece in whole_slices(store.spec)), store.accuracy)


def write_reduced(path: Path, model: ModelFiles, progress: Callable[[int], None] = lambda written: None) -> Accuracy | None:
    """Write the store of a model whose weights are reduced; measure and note there what that costs; None where it takes no built-in
    inputs. Raises what writing.write raises."""
    calibration = Calibration.of(model)
    writing.write(path, model, progress, calibration)
    if calibration is None:
        return None
    with Store(path) as written:
        found = accuracy_of(written, model, calibration.finished()[1])
    writing.note_accuracy(path, found)
    return found


def compared(found: Sequence[InFormat], width: int | None = None) -> str:
    """Return the table of formats, method by method, the first format first, and what each costs in accuracy."""
    rows, texts = [], any(took.first_seconds is not None for one in found for took in one.methods.values())
    for method in dict.fromkeys(name for one in found for name in one.methods):
        reference = next(one.methods[method].seconds for one in found if method in one.methods)
        for one in found:
            took = one.methods.get(method)
            if took is None:  # it did not fit
                continue
            times = [milliseconds(took.seconds), f"{took.seconds / reference:.2f}"]
            times += [milliseconds(took.first_seconds)] if took.first_seconds is not None else []
            error = "0" if one.name == FLOAT32 else "not known" if one.accuracy is None else f"{one.accuracy.error:.2g}"
            rows.append((method, one.name, *times, size(took.weight_bytes), size(one.bytes), f"{took.difference:.1g}", error))
    head = ["method", "format", *(("token ms", "x", "first token ms") if texts else ("median ms", "x")), "most weights", "store",
            "difference", "error"]  # fmt: skip
    said = [f"{one.name}: {accuracy_line(one.accuracy)}" for one in found if one.accuracy is not None]
    what = "x: of the first format's time; error: 1 - the least cosine, or of texts the mean KL divergence of the next word"
    return "\n".join([table(head, rows, width), what, *said])


def document(model: str, rows: int, cluster: str, found: Sequence[InFormat]) -> dict[str, Any]:
    """Return the same as one document. `rows`: of a request, or of a prompt."""
    formats = {
        one.name: {
            "store": str(one.store.path), "store_bytes": one.bytes, "accuracy": asdict(one.accuracy) if one.accuracy else None,
            "methods": {name: asdict(took) for name, took in one.methods.items()},
        }
        for one in found
    }  # fmt: skip
    return {"format": FORMAT, "format_version": FORMAT_VERSION, "model": model, "rows": rows, "cluster": cluster, "formats": formats}
