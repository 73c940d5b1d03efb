"""What a bench found, as a table for people and as the JSON lines that `report` draws. Pure: reads samples, prints nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.bound import Bound
from hepti_mpi.planning.reasons import BESIDE, crowds
from hepti_mpi.program.plan import kind_of
from hepti_mpi.program.steps import Compute
from hepti_mpi.reporting.above import Above, Measured, above_bound
from hepti_mpi.reporting.records import refusals, time_by_batch, too_late
from hepti_mpi.reporting.tables import duration, milliseconds, rate, size, table
from hepti_mpi.tuning.bench import Samples
from hepti_mpi.wording import counted

EXACT = 1e-2  # a larger difference of answers to made-up rows is not that of another order of sums

FORMAT, FORMAT_VERSION = "hepti-bench", 1


@dataclass(frozen=True)
class Found:
    """What a bench found. `boards`: that the ranks pretended to be; `bounds`: by the type of values on the wire; `made`: when, where, how
    long in all, and into which file; `above`: by method, where its time above the bound went; `cores`: those of each host that is there,
    by its name."""

    model: str
    rows: int
    cluster: str
    boards: Sequence[str | None]
    samples: Mapping[str, Samples]
    bounds: Mapping[str, Bound]
    made: Mapping[str, Any] = field(default_factory=dict)
    above: Mapping[str, Above] = field(default_factory=dict)
    cores: Mapping[str, int] = field(default_factory=dict)

    def nearness(self, name: str) -> float:
        """Return the bound of a method's wire over its median: 1 is as soon as any of our layouts could be."""
        sample = self.samples[name]
        return self.bounds[sample.part.plan.shortest].nearness(float(np.median(sample.seconds)))


def lines(found: Found) -> Iterator[dict[str, Any]]:
    """Yield the documents of one bench: per method its plan, its requests and one timeline; last the summary."""
    for name, sample in found.samples.items():
        price, plan = sample.price, sample.part.plan
        assert price is not None
        predicted = {"compute_seconds": list(price.compute), "wire_seconds": price.in_exchanges(plan.collectives)}
        predicted["wait_seconds"] = list(price.wait)
        yield {"kind": "method", "method": name, "strategy": plan.strategy, "layout": kind_of(plan), "plan": plan.to_json(),
               "predicted_seconds": price.seconds, "predicted": predicted, "largest_difference": sample.error}  # fmt: skip
        assert sample.every is not None
        spent = [[_shorter(row) for row in values.T] for values in time_by_batch(sample.part.program, plan.active, sample.every)]
        for number, (seconds, compute, wire, wait) in enumerate(zip(sample.seconds, *spent)):
            times = {"seconds": seconds, "compute_seconds": compute, "wire_seconds": wire, "wait_seconds": wait}
            yield {"kind": "request", "method": name, "number": number, **times}
        yield {"kind": "timeline", "method": name, "ranks": list(_timeline(sample, found.boards))}
    yield summary(found)


def summary(found: Found) -> dict[str, Any]:
    """Return the last line of a bench."""
    methods = {
        name: {
            "median_seconds": float(np.median(sample.seconds)),
            "predicted_seconds": sample.price.seconds,
            "requests_per_second": float(f"{1 / np.median(sample.seconds):.6g}"),
            "rows_per_second": float(f"{found.rows / np.median(sample.seconds):.6g}"),
            "nearness": float(f"{found.nearness(name):.4g}"),
            "overruns": float(f"{sample.overrun_part:.3g}"),
            "late": float(f"{sample.late_part:.3g}"),
            "above_bound": found.above[name].to_json() if name in found.above else None,
            "wire_bytes": sample.price.bytes,
            "plan_hash": sample.part.plan.hash,
            "samples_seconds": [float(f"{seconds:.6g}") for seconds in sample.seconds],
        }
        for name, sample in found.samples.items()
        if sample.price is not None
    }
    bounds = {f"bound{'' if wire == 'float32' else '_' + wire}_seconds": float(f"{one.seconds:.6g}") for wire, one in found.bounds.items()}
    perfect = float(f"{next(iter(found.bounds.values())).perfect:.6g}")
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "model": found.model, "rows": found.rows, "cluster": found.cluster}
    return head | dict(found.made) | bounds | {"perfect_seconds": perfect, "methods": methods}


def _shorter(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _timeline(sample: Samples, boards: Sequence[str | None]) -> Iterator[dict[str, Any]]:
    """Yield what each rank did during the last request, in seconds since it began."""
    assert sample.every is not None and sample.timeline is not None
    program = sample.part.program
    for rank, fact in enumerate(sample.held):
        events = []
        for place, step in enumerate(program):
            seconds, begin = sample.every[rank, -1, place], sample.timeline[rank, place]
            if seconds > 0:
                label = "+".join(op.label for op in step.ops) if isinstance(step, Compute) else step.kind
                what = "compute" if isinstance(step, Compute) else "wire"
                events.append([label, what, float(f"{begin:.6g}"), float(f"{begin + seconds:.6g}")])
        yield {"rank": rank, "host": fact["host"], "board": boards[rank], "events": sorted(events, key=lambda event: event[2])}


def comparison(found: Found, refused: Mapping[str, str], width: int | None = None) -> str:
    """Return the table of a bench, soonest first, and what is possible."""
    samples = found.samples
    names = sorted(samples, key=lambda name: np.median(samples[name].seconds))
    compared = "hepti" if "hepti" in samples else names[0]
    reference = float(np.median(samples[compared].seconds))
    rows = []
    for name in names:
        sample, price = samples[name], samples[name].price
        assert price is not None
        median = float(np.median(sample.seconds))
        low, high = np.quantile(sample.seconds, (0.1, 0.9))
        error = f"{100 * (price.seconds / median - 1):+.1f} %"
        held = size(max(fact["weight_bytes"] for fact in sample.held))
        spread = f"{milliseconds(low)} - {milliseconds(high)}"
        times = (milliseconds(median), spread, f"{median / reference:.2f}", milliseconds(price.seconds), error)
        cells = (*times, rate(1 / median), rate(found.rows / median), f"{found.nearness(name):.2f}", size(price.bytes), held)
        rows.append((name, *cells, f"{sample.error:.1g}", kind_of(sample.part.plan)))
    head = ("method", "median ms", "10 - 90 %", f"x {compared}", "predicted ms", "error", "requests/s", "rows/s", "nearness", "sent",
            "most weights", "difference", "layout")  # fmt: skip
    text = [table(head, rows, width)]
    text += refusals(refused)
    for wire, one in found.bounds.items():
        text.append(f"bound, {wire} on the wire: {milliseconds(one.seconds)} ms; nearness is the bound over the median")
    text.append(f"perfect division over all boards: {milliseconds(next(iter(found.bounds.values())).perfect)} ms")
    if max((sample.error or 0.0) for sample in samples.values()) > EXACT:
        text.append("difference: to the first method's answer to made-up rows, whose values are larger than a text's")
    text += crowded(found)
    text += too_late({name: samples[name].late_part for name in names})
    if found.made:
        where = f"; records in {found.made['output']}" if found.made["output"] else ""
        text.append(f"{duration(found.made['seconds'])} in all{where}")
    return "\n".join(text)


def crowded(found: Found) -> list[str]:
    """Return a sentence on each host on which several ranks of a method compute: they slow each other down by what no price knows."""
    said, every = [], {name: crowds(sample.part.plan, found.cores) for name, sample in found.samples.items()}
    for host, cores in found.cores.items():
        names = [name for name, some in every.items() if host in some]
        if names:
            ranks = f"up to {counted(max(every[name][host] for name in names), 'ranks')} of one method, which {BESIDE}"
            said.append(f"{host} has {counted(cores, 'cores')} for {ranks}: predicted too soon may be {', '.join(names)}")
    return said


def above_of(sample: Samples, spec: ModelSpec, profile: ClusterProfile, rows: int, bounds: Mapping[str, Bound]) -> Above:
    """Return where the time of a method's requests above the bound of its wire went."""
    assert sample.every is not None and sample.timeline is not None
    plan = sample.part.plan
    measured = Measured(sample.seconds, sample.every, sample.timeline)
    return above_bound(spec, profile, rows, plan, sample.part.program, measured, bounds[plan.shortest].seconds)
