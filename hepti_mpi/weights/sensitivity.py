"""What each product of a model's layers loses by itself in fewer bits: which of them are worth more. Knows operations, their formulas and
formats as calibration.py does; writes nothing, and does not know what an answer may cost.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from hepti_mpi.models.formats import Seen
from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.models.spec import ModelSpec, layer_weights
from hepti_mpi.program.operation import Op
from hepti_mpi.program.reference import Where
from hepti_mpi.program.steps import Sync
from hepti_mpi.weights.calibration import Calibration, Group, written

Names = tuple[str, ...]  # of matrices that read the same rows: they are stored in the same format


class Sensitivity(Calibration):
    """The pass of a model's built-in inputs, in float32, that tells besides what each product loses in the formats of its spec.

    `losses`, by the names of its matrices: how much of what its layer ends with is off when these alone are rounded, of squares, on the
    inputs that formats are chosen by. Each layer is computed once more for each of its products, on those inputs.
    """

    def __init__(self, spec: ModelSpec, first: Sequence[Request], choosing: Sequence[Request], held_out: Sequence[Request]) -> None:
        super().__init__(spec, first, choosing, held_out)
        self.losses: dict[Names, float] = {}
        self.stored = {weight.name: weight for number in range(spec.layers) for weight in layer_weights(spec, number)}
        self.chosen_by = slice(0, sum(request.rows for request in (*first, *choosing)))
        self.there = Where(*(values[self.chosen_by] for values in vars(self.where).values()))

    def take(self, group: Group) -> dict[str, Seen]:
        """Go on with these weights, as Calibration.take does, and note what their products lose."""
        if not self.embedded and any(name.startswith("layers.") for name in group):
            self._embed()
        steps, values = list(self.left), dict(self.values)
        seen = super().take(group)
        done, own = steps[: len(steps) - len(self.left)], self.own | group
        together = [some for step in done if not isinstance(step, Sync) for some in step.products()]
        products = [tuple(weight.name for weight in some) for some in together]
        if products:
            exact = self._ends_with(done, values, own)
            for names in products:
                off = self._ends_with(done, values, own | {name: self._rounded(name, own[name], seen[name]) for name in names}) - exact
                self.losses[names] = float(np.square(off).sum() / max(np.square(exact).sum(), 1e-30))
        return seen

    def _rounded(self, name: str, values: np.ndarray, seen: Seen) -> np.ndarray:
        weight = self.stored[name]
        parts = weight.format.encode(values, weight.inner or 0, seen)
        return weight.format.decode(parts, weight.shape, weight.inner or 0)

    def _ends_with(self, steps: Sequence[Op | Sync], before: Mapping[str, np.ndarray], own: Group) -> np.ndarray:
        """Return what the steps that follow read of `steps`, added up, [rows, hidden], float64."""
        values = {name: every[self.chosen_by] for name, every in before.items()}
        for step in steps:
            values |= written(step, values, own, self.there)
        return np.asarray(sum(values[name].astype(np.float64) for name in self._read_next(steps[-1])))

    def _read_next(self, last: Op | Sync) -> Names:
        """Return which values the steps that are left read of those before them; what the last of all wrote where none are."""
        found, written = dict[str, None](), set[str]()
        for step in self.left:
            found |= dict.fromkeys(name for name in step.reads if name not in written)
            written.update(step.writes)
        return tuple(found) or last.writes


def most_worth(losses: Mapping[Names, float], few: ModelSpec, more: ModelSpec) -> list[Names]:
    """Return the products that are of more bytes in the formats of `more` than in those of `few`, in the order in which they are to be kept
    there: by what they lose for each of these bytes."""
    numbers = range(few.layers)
    bytes_, other = ({one.name: one.bytes for number in numbers for one in layer_weights(spec, number)} for spec in (few, more))
    further = {names: sum(other[name] - bytes_[name] for name in names) for names in losses}
    return sorted((names for names in losses if further[names] > 0), key=lambda names: losses[names] / further[names], reverse=True)
