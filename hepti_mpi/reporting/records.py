"""What happened, as numbers and text: where the time of a run went, and the tables and JSON that say so.

Pure: reads what a job returned, prints nothing. Waiting is told from wire without comparing clocks of different hosts: all
ranks leave an exchange of MPI's together, so the shortest time that any rank spent in it is the exchange itself, and what another
rank spent beyond that it waited. Our own exchanges travel while ranks compute: what counts is how long a rank had nothing else to do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.bound import Bound
from hepti_mpi.planning.candidates import Candidate
from hepti_mpi.planning.demand import Decision
from hepti_mpi.planning.reasons import reasons
from hepti_mpi.program.plan import Plan, kind_of
from hepti_mpi.program.steps import OUTER, Program, Sync
from hepti_mpi.quantiles import median, quantile
from hepti_mpi.reporting.tables import columns, duration, milliseconds, shortened, size, table
from hepti_mpi.wording import counted

RUN_FORMAT, RUN_VERSION = "hepti-run", 1
STARTUP = ("profile", "plan", "fetch", "load", "settle", "warm_up")
ASKED = {"tokens": ("texts", "tokens"), "patches": ("images", "patches")}  # what is answered and of what rows it is, by a model's embedding
SHORTEST_INPUT = 16  # characters of an input that are shown at least
MOST_NUMBERS = 4  # of a vector
MOST_LATE = 0.01  # of the time by which messages left too late; with more, times are not the emulated boards'
AGAIN = "measure again with nothing else running, or emulate slower boards: pi5*3 for pi5, in the lab --slow 3"  # so that they are


@dataclass(frozen=True)
class Spent:
    """Median seconds per request batch and rank, [ranks] each."""

    compute: np.ndarray
    wire: np.ndarray
    wait: np.ndarray


def divide_time(program: Program, active: Sequence[int], seconds: np.ndarray) -> Spent:
    """Divide measured `seconds` [ranks, batches, steps] into compute, wire and waiting, medians over the batches."""
    ranks, batches, _ = seconds.shape
    return Spent(*(median(values, axis=1) if batches else np.zeros(ranks) for values in time_by_batch(program, active, seconds)))


def time_by_batch(program: Program, active: Sequence[int], seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return compute, wire and waiting, [ranks, batches] each, of measured `seconds` [ranks, batches, steps]."""
    ranks, batches, _ = seconds.shape
    compute, wire, wait = (np.zeros((ranks, batches)) for _ in range(3))
    for place, step in enumerate(program):
        if not isinstance(step, Sync) or step.kind == "slice":  # which moves nothing
            compute += seconds[:, :, place]
            continue
        if not seconds[:, :, place].any():  # it travelled while all computed
            continue
        members = sorted({0, *active}) if step.kind in OUTER else list(active)
        shortest = seconds[members, :, place].min(axis=0)
        wire[members] += shortest
        wait[members] += seconds[members, :, place] - shortest
    return compute, wire, wait


@dataclass
class Measured:
    """What was measured of a run: the latency and rows of each batch, how many `requests` were answered, a row of facts per rank, and
    how all ranks spent their time. `seconds`: until the answers were put out, without what warmed up; left out: the batches' own."""

    latencies: Sequence[float]
    rows: Sequence[int]
    requests: int
    facts: Sequence[dict[str, Any]]
    spent: Spent
    seconds: float | None = None


def run_record(
    spec: ModelSpec, plan: Plan, measured: Measured, startup: Mapping[str, float], wire_error: float = 0.0,
    decisions: Sequence[dict[str, Any]] = (), output: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the JSON document of a run, format hepti-run. `output`: where the answers are."""
    latencies, rows, requests, spent = measured.latencies, measured.rows, measured.requests, measured.spent
    seconds = max(float(np.sum(latencies)) if measured.seconds is None else measured.seconds, 1e-9)
    values = np.array(latencies)
    latency = {"median": median(values), "p90": quantile(values, 0.9), "min": values.min(), "max": values.max()}
    ranks = [
        {"rank": rank, "host": fact["host"], "threads": fact["threads"]}
        | board_facts(fact, float(values.sum()))
        | {"heads": plan.heads[rank], "columns": plan.columns[rank], "rows": plan.rows[rank]}
        | {f"{what}_seconds": short(getattr(spent, what)[rank]) for what in ("compute", "wire", "wait")}
        | {"weight_bytes": fact["weight_bytes"], "peak_resident_bytes": fact["peak_resident_bytes"]}
        for rank, fact in enumerate(measured.facts)
    ]
    return {
        "format": RUN_FORMAT,
        "format_version": RUN_VERSION,
        "model": spec.name,
        "family": spec.family,
        "embedding": spec.embedding,
        "strategy": plan.strategy,
        "requests": requests,
        "seconds": short(seconds),
        "requests_per_second": short(requests / seconds),
        "rows_per_second": short(float(np.sum(rows)) / seconds),
        "output": output,
        "rows": int(median(rows)),
        "latency_seconds": {key: short(value) for key, value in latency.items()},
        "predicted_seconds": short(plan.predicted_seconds) if plan.predicted_seconds and {*rows} == {plan.planned_rows} else None,
        "startup_seconds": {key: short(startup.get(key, 0.0)) for key in STARTUP},
        "plan_hash": plan.hash,
        "wire": plan.wire,
        "wire_error": short(wire_error),
        "decisions": [{key: short(value) if isinstance(value, float) else value for key, value in item.items()} for item in decisions],
        "ranks": ranks,
    }


def board_facts(fact: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return what a record says of a rank's emulated board: None of a real one. `seconds`: in which its messages could be late."""
    late = short(fact.get("late_seconds", 0.0) / max(seconds, 1e-9))
    return {"emulated_board": fact.get("emulated_board"), "overruns": short(fact.get("overruns", 0.0)), "late": late}


def idle_record(spec: ModelSpec, output: str | None) -> dict[str, Any]:
    """Return the JSON document of a run for which nothing was left. `output`: where the answers are; None: on the screen."""
    model = {"model": spec.name, "family": spec.family, "embedding": spec.embedding}
    return {"format": RUN_FORMAT, "format_version": RUN_VERSION, **model, "requests": 0, "output": output}


def short(value: float) -> float:
    """Return a number with six digits."""
    return float(f"{value:.6g}")


# text


def answer_line(record: dict[str, Any], width: int | None = None) -> str:
    """Return one answer in one line for the screen; so that it fits `width` a vector shows fewer of its numbers, and the input is cut.

    The full numbers are in --output.
    """
    called = f"{record['id']} " if "id" in record else ""
    for count in range(MOST_NUMBERS, 0, -1):
        told = f"{' (cut off)' * record.get('truncated', False)}: {_answered(record, count)}"
        if width is None or columns(called) + SHORTEST_INPUT + columns(told) <= width:
            break
    asked = repr(record["input"])
    most = columns(asked) if width is None else max(SHORTEST_INPUT, width - columns(called) - columns(told))
    if columns(asked) > most:
        asked = shortened(asked[:-1], most - 1) + asked[-1]  # as a text or a list that ends
    return f"{called}{asked}{told}"


def _answered(record: dict[str, Any], count: int) -> str:
    """Return what an answer says; `count`: how many numbers of a vector."""
    parts = []
    for key, value in record.items():
        if key in ("input", "id", "truncated"):
            continue
        if key == "error":
            parts.append(f"error: {value}")
        elif key == "labels":
            parts.append(", ".join(f"{item['label']} {item['score']:.3f}" for item in value[:3]))
        elif key == "masks":
            for item in value:
                words = ", ".join(f"{word['token']} {word['score']:.3f}" for word in item["tokens"][:3])
                parts.append(f"[{item['position']}] {words}")
        elif key == "tokens":
            parts.append(" ".join(f"{item['token']}/{item['label']}" for item in value))
        else:
            shown = ", ".join(f"{number:.4f}" for number in value[:count])
            parts.append(f"{key} [{shown}{', ...' * (len(value) > count)}] ({counted(len(value), 'numbers')})")
    return "; ".join(parts)


def plan_lines(plan: Plan, width: int | None = None) -> str:
    """Return who does what, one line per rank."""
    rows = [(*_share(plan, rank), "" if rank in plan.active else "left out") for rank in range(plan.ranks)]
    return plan_title(plan) + "\n" + table(("", "heads", "columns", "rows", ""), rows, width)


def plan_title(plan: Plan) -> str:
    """Return the line above a plan."""
    return f"plan {plan.hash}: {plan.strategy} ({kind_of(plan)}), made for {counted(plan.planned_rows, 'rows')}"


def share_word(counts: Sequence[int], rank: int, is_active: bool) -> str:
    """Return how many heads or columns a rank has: all, where it holds them all or they are not divided."""
    return "all" if is_active and counts[rank] == sum(counts) else str(counts[rank])


def _share(plan: Plan, rank: int) -> tuple[str, ...]:
    is_active = rank in plan.active
    words = (share_word(counts, rank, is_active) for counts in (plan.heads, plan.columns))
    return f"rank {rank} on {plan.hosts[rank]}", *words, str(plan.rows[rank])


def refusals(refused: Mapping[str, str]) -> list[str]:
    """Return a sentence for each method that was not measured; most reasons begin with its name."""
    return [why if why.startswith(f"{name} ") else f"{name}: {why}" for name, why in refused.items()]


def decision_lines(decision: Decision, width: int | None = None) -> str:
    """Return the chosen candidate, then the others, soonest first, and why a rank was left out."""
    best = decision.chosen
    rows = [_candidate_row(candidate, best) for candidate in _candidates(decision)]
    head = ("candidate", "ms", "", "ranks", "compute", "wire", "waiting", "sent", "most memory")
    lines = [table(head, rows, width)]
    lines += [f"{kind}: fits on no set of these ranks" for kind in decision.unfit]
    return "\n".join([*lines, *reasons(decision), *decision.notes])


def decision_document(decision: Decision) -> dict[str, Any]:
    """Return the chosen plan and the candidates as a JSON document, format hepti-decision."""
    return {
        "format": "hepti-decision",
        "format_version": 1,
        "plan": decision.chosen.plan.to_json(),
        "candidates": [
            {"layout": kind_of(item.plan), "ranks": len(item.plan.active), "seconds": short(item.price.seconds),
             "compute_seconds": [short(seconds) for seconds in item.price.compute], "wire_seconds": short(item.price.wire),
             "wait_seconds": [short(seconds) for seconds in item.price.wait], "wire_bytes": item.price.bytes,
             "memory_bytes": list(item.memory)}
            for item in _candidates(decision)
        ],
        "unfit": list(decision.unfit),
        "remarks": [*reasons(decision), *decision.notes],
    }  # fmt: skip


def bound_line(decision: Decision, possible: Bound) -> str:
    """Say what is possible on these ranks, and how near to it the chosen plan is."""
    seconds = decision.chosen.price.seconds
    return (
        f"bound {milliseconds(possible.seconds)} ms, which none of our divisions can beat; the chosen plan's nearness to it is "
        f"{possible.nearness(seconds):.2f} (bound over predicted); perfect division over all ranks {milliseconds(possible.perfect)} ms"
    )


def bound_document(decision: Decision, possible: Bound) -> dict[str, float]:
    """Return the same for a JSON document."""
    nearness = possible.nearness(decision.chosen.price.seconds)
    found = {"bound_seconds": possible.seconds, "perfect_seconds": possible.perfect, "nearness": nearness}
    return {name: short(value) for name, value in found.items()}


def _candidates(decision: Decision) -> list[Candidate]:
    """Return the chosen one, then the soonest: a decision has them as it trusts them, and ranks of one host less than a rank alone."""
    return [decision.chosen, *sorted(decision.others, key=lambda one: one.price.seconds)]


def _candidate_row(candidate: Candidate, best: Candidate) -> tuple[str, ...]:
    plan, price = candidate.plan, candidate.price
    slowest = max(plan.active, key=lambda rank: price.compute[rank])
    why = "chosen" if candidate is best else f"{price.seconds / best.price.seconds:.2f} x"
    times = (price.compute[slowest], price.wire, float(np.max(price.wait)))
    bytes_ = (price.bytes, max(candidate.memory, default=0))
    return kind_of(plan), milliseconds(price.seconds), why, str(len(plan.active)), *map(milliseconds, times), *map(size, bytes_)


def rank_lines(decision: Decision, width: int | None = None) -> str:
    """Return, per rank of the chosen plan, its predicted times and memory; its share stands in the plan."""
    candidate = decision.chosen
    plan, price = candidate.plan, candidate.price
    rows = []
    for rank, host in enumerate(plan.hosts):
        memory = size(candidate.memory[rank]) if candidate.memory else "-"
        rows.append((f"rank {rank} on {host}", milliseconds(price.compute[rank]), milliseconds(price.wait[rank]), memory))
    on_top = "\nall times are of weights in memory; where mapped ones do not stay there, reading them from storage comes on top"
    paged = on_top * ("mapped" in plan.weights_mode)
    return table(("", "compute ms", "waiting ms", "memory"), rows, width) + paged


def startup_line(record: Mapping[str, Any]) -> str:
    """Return how long it took until the first batch that counts, and of what that was."""
    startup = record["startup_seconds"]
    parts = ", ".join(f"{key.replace('_', '-')} {duration(value)}" for key, value in startup.items() if value)
    return f"start-up {duration(sum(startup.values()))}" + (f" ({parts})" if parts else "")


def emulated(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield which boards the ranks pretended to be, and whether this machine kept up with them."""
    ranks = record.get("ranks", ())
    if any(item["emulated_board"] is not None for item in ranks):
        late = max(item["late"] for item in ranks)
        count = f"; {100 * late:.1f} % of the time messages left later than there: this result does not count; {AGAIN}" * (late > MOST_LATE)
        yield "emulated boards: " + ", ".join(item["emulated_board"] or "-" for item in ranks) + count


def too_late(parts: Mapping[str, float]) -> list[str]:
    """Return a sentence for each method whose messages left later than from its boards for more of its time, `parts`, than counts."""
    told = "of its time messages left later than from its boards"
    said = [f"{name} does not count: {100 * part:.1f} % {told}" for name, part in parts.items() if part > MOST_LATE]
    return [*said, AGAIN] if said else []


def left_over(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what became of inputs that were not answered as they are."""
    if record.get("errors"):
        yield f"not answered, the place of each says why: {record['errors']}"
    if record.get("truncated"):
        yield f"cut off, as the checkpoint says, since they are longer than the model takes: {record['truncated']}"
