"""What the batches of a job should take, each by its own shape, to be compared with what they took. Pure."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.program.build import make_program
from hepti_mpi.program.plan import Plan
from hepti_mpi.quantiles import median

Shape = tuple[int, int, int]  # of a batch: rows, rows of its longest request, and how many requests
MOST_PRICES = 64  # of different shapes; others are taken from the nearest, in proportion to their rows


class Forecast:
    """The prices of batches of any requests under one plan."""

    def __init__(self, spec: ModelSpec, profile: ClusterProfile, plan: Plan) -> None:
        self.spec, self.profile, self.plan = spec, profile, plan
        self.program = make_program(spec, plan)
        self.known: dict[Shape, float] = {}

    def seconds(self, lengths: Sequence[int]) -> float:
        """Return the seconds of a batch of requests of `lengths` rows, warm."""
        return self.of_shape((sum(lengths), max(lengths), len(lengths)))

    def of_shape(self, shape: Shape) -> float:
        """Return the seconds of a batch of a shape: rows, rows of the longest request, and how many requests."""
        if shape not in self.known:
            if len(self.known) >= MOST_PRICES:
                near = min(self.known, key=lambda other: abs(np.log(other[0] / shape[0])) + abs(np.log(other[1] / shape[1])))
                return self.known[near] * shape[0] / near[0]
            rows, longest, requests = shape  # attention is computed as if all were as long as the longest
            pricer = Pricer(self.spec, self.profile, rows, max(1, round(requests * longest * longest / rows)), requests)
            self.known[shape] = pricer.price(self.program, self.plan).seconds
        return self.known[shape]


def compared(forecast: Forecast, batches: Sequence[Sequence[int]], seconds: Sequence[float], switches: Sequence[int]) -> dict[str, Any]:
    """Return measured beside predicted seconds of the same batches, for the document of a run.

    `batches`: request lengths of each batch of one round; `seconds`: what they took, round after round; `switches`: numbers of batches
    before which another plan was taken: what comes after the first is not compared.
    """
    count = min([len(seconds), *switches])
    predicted = [forecast.seconds(batches[number % len(batches)]) for number in range(count)]
    if not predicted:
        return {}
    return {
        "predicted_seconds": _short(float(median(predicted))),
        "batches": {
            "count": count, "seconds": _short(sum(seconds[:count])), "predicted_seconds": _short(sum(predicted)),
            "first_seconds": _short(seconds[0]), "first_predicted_seconds": _short(predicted[0]),
        },
    }  # fmt: skip


def _short(value: float) -> float:
    return float(f"{value:.6g}")
