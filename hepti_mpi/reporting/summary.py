"""What a run did, for people: measured beside predicted, then how much was answered how soon, and where that is.

Pure: reads a run's record (records.py), prints nothing.
"""

from collections.abc import Iterator
from typing import Any

from hepti_mpi.planning.demand import Decision
from hepti_mpi.program.plan import in_words
from hepti_mpi.reporting.records import ASKED, emulated, left_over, share_word, startup_line
from hepti_mpi.reporting.tables import duration, milliseconds, rate, size, table
from hepti_mpi.wording import counted


def run_lines(record: dict[str, Any], decision: Decision | None, width: int | None = None) -> str:
    """Return the summary of a run for people: measured beside predicted, then how much was answered how soon, and where that is."""
    price = decision.chosen.price if decision else None
    wire = price.in_exchanges(decision.chosen.plan.collectives) if price and decision else 0.0
    shares = {what: [item[what] for item in record["ranks"]] for what in ("heads", "columns", "rows")}
    rows = []
    for rank, item in enumerate(record["ranks"]):
        is_active = any(counts[rank] for counts in shares.values())
        share = [share_word(shares[what], rank, is_active) for what in ("heads", "columns")]
        predicted = (None, None, None) if price is None else (price.compute[rank], wire if is_active else 0.0, price.wait[rank])
        measured = (item[f"{what}_seconds"] for what in ("compute", "wire", "wait"))
        cells = [f"{milliseconds(seconds)} / {milliseconds(guess)}" for seconds, guess in zip(measured, predicted)]
        held = size(item["weight_bytes"]), size(item["peak_resident_bytes"])
        rows.append((f"rank {rank} on {item['host']}", str(item["threads"]), *share, str(item["rows"]), *cells, *held))
    head = ("", "threads", "heads", "columns", "rows", "compute", "wire", "waiting", "weights", "peak memory")
    return "\n".join([
        "measured / predicted, milliseconds" + ", median over batches" * (not _is_single(record)),
        table(head, rows, width),
        *_batches(record),
        *([] if price is None else _around(record, float(price.compute[0] + wire + price.wait[0]))),
        *_remarks(record),
        *(_decision_line(item) for item in record["decisions"]),
        throughput_line(record),
    ])


def _is_single(record: dict[str, Any]) -> bool:
    return record.get("batches", {}).get("count") == 1


def _batches(record: dict[str, Any]) -> Iterator[str]:
    """Yield how long a batch took, and all of them."""
    each, latency, every = counted(record["rows"], "rows"), record["latency_seconds"], record.get("batches")
    if not _is_single(record):
        guess = f"predicted {milliseconds(record['predicted_seconds'])}"
        if record["predicted_seconds"] is None:
            guess = f"the plan, which is of {counted(sum(item['rows'] for item in record['ranks']), 'rows')}, predicts none"
        yield (
            f"a batch of {each}: median {milliseconds(latency['median'])} ms ({guess}), "
            f"p90 {milliseconds(latency['p90'])}, {milliseconds(latency['min'])} to {milliseconds(latency['max'])}"
        )
    if every is None:
        return
    took, predicted = every["seconds"], every["predicted_seconds"]
    if _is_single(record):
        yield f"one batch of {each}: {milliseconds(took)} ms, predicted {milliseconds(predicted)} ms ({took / predicted:.2f} x)"
        return
    yield (
        f"{counted(every['count'], 'batches')} took {duration(took)} in all, predicted {duration(predicted)} ({took / predicted:.2f} x); "
        f"the first {milliseconds(every['first_seconds'])} ms, predicted {milliseconds(every['first_predicted_seconds'])} ms"
    )


def _around(record: dict[str, Any], layers: float) -> Iterator[str]:
    """Yield what a batch took outside its layers, where that is why it took longer than predicted: whoever notes and prints the answers
    before it takes turns with what brings it in. `layers`: seconds that were predicted for these."""
    took, predicted, first = record["latency_seconds"]["median"], record["predicted_seconds"], record["ranks"][0]
    if predicted is None or _is_single(record):
        return
    outside = took - sum(first[f"{what}_seconds"] for what in ("compute", "wire", "wait"))
    expected = max(predicted - layers, 0.0)
    if outside - expected > max(0.1 * predicted, 0.25 * (took - predicted)):
        yield (f"{milliseconds(outside)} ms of a batch are around its layers, predicted {milliseconds(expected)}: answers are noted and "
               "printed beside it, which counts where batches are small")  # fmt: skip


def throughput_line(record: dict[str, Any]) -> str:
    """Return how much was answered how soon, and where the answers went."""
    asked, rows = ASKED[record["embedding"]]
    count = counted(record["requests"], asked)
    where = f"; answers in {record['output']}" if record["output"] else ""
    return (
        f"{startup_line(record)}\n"
        f"{count} by {record['strategy']} in {duration(record['seconds'])}: "
        f"{rate(record['requests_per_second'])} {asked} and {rate(record['rows_per_second'])} {rows} a second{where}"
    )


def supervised_lines(record: dict[str, Any], output: str | None) -> str:
    """Return what became of all inputs of a supervised run, over all of its starts, and where the answers went."""
    every = record["supervised"]
    asked = ASKED[record["embedding"]][0] if "embedding" in record else "prompts"
    where = f"; answers in {output}" if output else ""
    answered = every["inputs"] - record["errors"]
    told = counted(every["inputs"], asked) if not record["errors"] else f"{answered} of {counted(every['inputs'], asked)}"
    again = f", with {counted(every['starts'], 'starts')}" if every["starts"] != 1 else ""
    before = f", {every['before']} of them before," if every["before"] else ""
    new = answered - every["before"]
    speed = f": {rate(new / every['seconds'])} {asked} a second, starting included" if new > 0 and every["seconds"] > 0 else ""
    return "\n".join([*left_over(record), f"{told} answered{before} in {duration(every['seconds'])}{again}{speed}{where}"])


def _decision_line(item: dict[str, Any]) -> str:
    gain = item.get("gain")
    came = "" if gain is None else f", which made requests {abs(gain) * 100:.0f} % {'shorter' if gain >= 0 else 'longer'}"
    return f"after batch {item['batch']}: {item['why']}: plan {item['to']} ({item['strategy']}) instead of {item['from']}{came}"


def _remarks(record: dict[str, Any]) -> Iterator[str]:
    """Yield what a reader must know to read the numbers right."""
    yield from left_over(record)
    yield from emulated(record)
    short, where = in_words(record["wire"])
    if short != "float32":
        yield f"{short} on the wire{where}: results differ from the exact ones by up to {record['wire_error']:.2g}"
