"""Measure methods against each other on a text: its prompt, and tokens added one by one, all methods loaded in one job, in turns.

Knows decoders and clocks; does not know tokens (rows are random), nor how a method divides the work (planning.decoding).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.engine import decoder as decoders
from hepti_mpi.engine.decoder import Decoder, Order
from hepti_mpi.engine.machine import Machine
from hepti_mpi.models.numerics import Array
from hepti_mpi.planning import decoding
from hepti_mpi.planning.request import Decision, Request
from hepti_mpi.program.placement import whole
from hepti_mpi.program.plan import Plan
from hepti_mpi.reporting.records import MOST_LATE
from hepti_mpi.reporting.tables import milliseconds, rate, table
from hepti_mpi.weights.store import Store

FORMAT, FORMAT_VERSION = "hepti-bench-decode", 1
WARM_UP = 2  # tokens, where boards are not emulated


@dataclass
class Written:
    """What one method did, on rank 0: `firsts`: seconds until the scores behind the prompt were there; `tokens`: those of each added one.
    `predicted`: the same as planned; `best`: the likeliest score behind each; `late`: the part of the time by which messages left late."""

    plan: Plan
    predicted: tuple[float, float]
    firsts: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    late: float = 0.0

    @property
    def first(self) -> float:
        return float(np.median(self.firsts))

    @property
    def token(self) -> float:
        return float(np.median(self.tokens))


def measure(
    machine: Machine, store: Store, profile: ClusterProfile, chosen: Mapping[str, tuple[Plan, Decision | None]], request: Request,
    repeat: int, progress: Callable[[int], None],
) -> dict[str, Written]:  # fmt: skip
    """Take in a prompt and add tokens by every plan, `repeat` times in turns. Collective; `chosen` holds rank 0's decisions.

    A time runs on rank 0 from embedded rows to the likeliest word. Raises what loading raises.
    """
    world, loaded, found = machine.world, dict[str, Decoder](), dict[str, Written]()
    for name, (plan, decision) in chosen.items():
        decoder = decoders.load(machine, store, whole(plan), 1, request.prompt + request.answer)
        assert decoder is not None, "all ranks are in it"
        loaded[name] = decoder
        first = decoding.prompt_seconds(store.spec, profile, request, plan) if decision else 0.0
        found[name] = Written(plan, (first, decision.chosen.price.seconds if decision else 0.0))
    rows = np.random.default_rng(0).standard_normal((request.prompt + request.answer, store.spec.hidden), np.float32)
    late = dict.fromkeys(found, 0.0)
    for turn in range(-(not machine.emulation.on), repeat):
        names = list(loaded)
        np.random.default_rng(1 + turn).shuffle(names)  # nobody always comes after the same one
        for name in names:
            with world.patience.slower():  # a rank that has no part waits for the whole text
                world.barrier()
            before = machine.emulation.late_seconds
            if world.rank:
                loaded[name].follow()
            else:
                _write(loaded[name], found[name], rows, request.prompt, turn < 0)
            late[name] += machine.emulation.late_seconds - before
        progress(1)
    with world.patience.slower():
        world.barrier()
    for name, written in found.items():
        most = max(world.gather_all(late[name]))
        written.late = most / max(1e-9, sum(written.firsts) + sum(written.tokens))
    return found


def _write(decoder: Decoder, written: Written, rows: Array, prompt: int, warming: bool) -> None:
    """Take in `prompt` of the rows, and the others one by one. Rank 0 calls it, the others follow."""
    best, times, begin = list[float](), list[float](), time.perf_counter()
    for first in range(0, prompt, decoders.ROWS):
        last = min(prompt, first + decoders.ROWS)
        scores = decoder.step(Order(0, 1, last - first, (first,), 1 if last == prompt else -1), rows[first:last])
    took = time.perf_counter() - begin
    best.append(float(scores[0].logits.max()))
    for place in range(prompt, prompt + WARM_UP if warming else len(rows)):
        begin = time.perf_counter()
        (one,) = decoder.step(Order(0, 1, 1, (place,), 1), rows[place : place + 1])
        times.append(time.perf_counter() - begin)
        best.append(float(one.logits.max()))
    decoder.end()
    if not warming:
        written.firsts.append(took)
        written.tokens += times
        written.best = best


def document(model: str, cluster: str, request: Request, found: Mapping[str, Written], bound: float) -> dict[str, Any]:
    """Return what was found as one document; `bound`: seconds of an added token."""
    methods = {
        name: {
            "tokens_per_second": _short(1 / one.token), "token_seconds": _short(one.token), "predicted_token_seconds": one.predicted[1],
            "first_token_seconds": _short(one.first), "predicted_first_token_seconds": one.predicted[0],
            "nearness": _short(bound / one.token), "late": _short(one.late), "largest_difference": _short(_difference(found, name)),
            "heads": list(one.plan.heads), "columns": list(one.plan.columns), "plan_hash": one.plan.hash,
        }
        for name, one in found.items()
    }  # fmt: skip
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "model": model, "cluster": cluster}
    return head | {"prompt": request.prompt, "tokens": request.answer, "bound_token_seconds": _short(bound), "methods": methods}


def compared(found: Mapping[str, Written], refused: Mapping[str, str], bound: float, width: int | None = None) -> str:
    """Return the table of what was found, soonest token first."""
    names = sorted(found, key=lambda name: found[name].token)
    reference = found["hepti" if "hepti" in found else names[0]].token
    rows = []
    for name in names:
        one = found[name]
        low, high = np.quantile(one.tokens, (0.1, 0.9))
        times = rate(1 / one.token), milliseconds(one.token), f"{milliseconds(low)} - {milliseconds(high)}", f"{one.token / reference:.2f}"
        near = milliseconds(one.predicted[1]), f"{100 * (one.predicted[1] / one.token - 1):+.1f} %", f"{bound / one.token:.2f}"
        cells = *times, *near, milliseconds(one.first), milliseconds(one.predicted[0]), f"{_difference(found, name):.1g}"
        rows.append((name, *cells, _parts(one.plan.heads), _parts(one.plan.columns)))
    head = ("method", "tokens/s", "median ms", "10 - 90 %", "x", "predicted", "error", "nearness", "first token", "predicted", "difference",
            "heads", "columns")  # fmt: skip
    text = [table(head, rows, width), *(f"{name}: {why}" for name, why in refused.items())]
    text.append(f"bound of a token: {milliseconds(bound)} ms, all weights read once, each board at its own rate, and a latency a sum")
    late = {name: found[name].late for name in names if found[name].late > MOST_LATE}
    later = "of its time messages left later than from its boards"
    text += [f"{name} does not count: {100 * part:.1f} % {later}" for name, part in late.items()]
    return "\n".join(text)


def _parts(counts: Sequence[int]) -> str:
    return "/".join(map(str, counts)) if any(counts) else "all on one"


def _difference(found: Mapping[str, Written], name: str) -> float:
    """Return by how much the likeliest scores differ from the first method's, at most."""
    first = next(iter(found.values())).best
    return float(np.abs(np.array(found[name].best) - first).max())


def _short(value: float) -> float:
    return float(f"{value:.5g}")
