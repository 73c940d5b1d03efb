"""What a bench found, as a table for people and as the JSON lines that `report` draws. Pure: reads samples, prints nothing."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hepti_mpi.planning.plan import kind_of
from hepti_mpi.planning.program import Compute
from hepti_mpi.reporting.records import time_by_batch
from hepti_mpi.reporting.tables import milliseconds, size, table
from hepti_mpi.runtime.bench import SETTLED, UNDILATED, Samples

FORMAT, FORMAT_VERSION = "hepti-bench", 1


def lines(
    model: str, rows: int, cluster: str, factors: list[float], samples: Mapping[str, Samples]
) -> Iterator[dict[str, Any]]:
    """Yield the documents of one bench: per method its plan, its requests and one timeline; last the summary."""
    for name, sample in samples.items():
        if name == UNDILATED:
            continue
        price, plan = sample.price, sample.ready.plan
        assert price is not None
        predicted = {"compute_seconds": list(price.compute), "wire_seconds": price.wire, "wait_seconds": list(price.wait)}
        yield {"kind": "method", "method": name, "strategy": plan.strategy, "layout": kind_of(plan), "plan": plan.to_json(),
               "predicted_seconds": price.seconds, "predicted": predicted, "largest_difference": sample.error}  # fmt: skip
        assert sample.every is not None
        spent = [[_shorter(row) for row in values.T] for values in time_by_batch(sample.ready.program, plan.active, sample.every)]
        for number, (seconds, compute, wire, wait) in enumerate(zip(sample.seconds, *spent)):
            times = {"seconds": seconds, "compute_seconds": compute, "wire_seconds": wire, "wait_seconds": wait}
            yield {"kind": "request", "method": name, "number": number, **times}
        yield {"kind": "timeline", "method": name, "ranks": list(_timeline(sample, factors))}
    yield summary(model, rows, cluster, samples)


def summary(model: str, rows: int, cluster: str, samples: Mapping[str, Samples]) -> dict[str, Any]:
    """Return the last line of a bench."""
    methods = {
        name: {
            "median_seconds": float(np.median(sample.seconds)),
            "predicted_seconds": sample.price.seconds,
            "wire_bytes": sample.price.bytes,
            "plan_hash": sample.ready.plan.hash,
            "samples_seconds": [float(f"{seconds:.6g}") for seconds in sample.seconds],
        }
        for name, sample in samples.items()
        if sample.price is not None and name != UNDILATED
    }
    alone = float(np.median(samples[UNDILATED].seconds)) if UNDILATED in samples else None
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "model": model, "rows": rows, "cluster": cluster}
    return head | {"single_undilated_seconds": alone, "methods": methods}


def _shorter(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _timeline(sample: Samples, factors: list[float]) -> Iterator[dict[str, Any]]:
    """Yield what each rank did during the last request, in seconds since it began."""
    assert sample.every is not None and sample.timeline is not None
    program = sample.ready.program
    for rank, fact in enumerate(sample.held):
        events = []
        for place, step in enumerate(program):
            seconds, begin = sample.every[rank, -1, place], sample.timeline[rank, place]
            if seconds > 0:
                label = "+".join(op.kind for op in step.ops) if isinstance(step, Compute) else step.kind
                what = "compute" if isinstance(step, Compute) else "wire"
                events.append([label, what, float(f"{begin:.6g}"), float(f"{begin + seconds:.6g}")])
        factor = factors[rank] if max(factors) > 1 else None
        yield {"rank": rank, "host": fact["host"], "factor": factor, "events": sorted(events, key=lambda event: event[2])}


def comparison(samples: Mapping[str, Samples], refused: Mapping[str, str], factors: list[float]) -> str:
    """Return the table of a bench, soonest first."""
    names = sorted((name for name in samples if name != UNDILATED), key=lambda name: np.median(samples[name].seconds))
    reference = float(np.median(samples["hepti" if "hepti" in samples else names[0]].seconds))
    rows = []
    for name in names:
        sample, price = samples[name], samples[name].price
        assert price is not None
        median = float(np.median(sample.seconds))
        low, high = np.quantile(sample.seconds, (0.1, 0.9))
        error = f"{100 * (price.seconds / median - 1):+.1f} %"
        held = size(max(fact["weight_bytes"] for fact in sample.held))
        spread = f"{milliseconds(low)} - {milliseconds(high)}"
        cells = (milliseconds(median), spread, f"{median / reference:.2f}", milliseconds(price.seconds), error, size(price.bytes), held)
        rows.append((name, *cells, f"{sample.error:.1g}", kind_of(sample.ready.plan)))
    head = ("method", "median ms", "10 - 90 %", "x hepti", "predicted", "error", "on the wire", "most weights", "difference", "layout")
    text = [table(head, rows)]
    text += [f"{name}: {why}" for name, why in refused.items()]
    if UNDILATED in samples:
        alone = float(np.median(samples[UNDILATED].seconds))
        text.append(f"one rank at full speed: {milliseconds(alone)} ms")
    if UNDILATED in samples and max(factors) > 1:
        ideal = alone / sum(1 / factor for factor in factors)
        text.append(f"perfect division over all emulated boards: {milliseconds(ideal)} ms")
        text += [f"ideal / {name}: {ideal / float(np.median(samples[name].seconds)):.3f}" for name in SETTLED if name in samples]
    return "\n".join(text)
