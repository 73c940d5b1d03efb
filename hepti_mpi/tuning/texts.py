"""Measure methods against each other on a text: its prompt, and tokens added one by one, all methods loaded in one job, in turns.

Knows decoders and clocks; does not know tokens (rows are random), nor how a method divides the work (planning.texts).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hepti_mpi.engine import decoder as decoders
from hepti_mpi.engine import texts as loading
from hepti_mpi.engine.decoder import Decoder
from hepti_mpi.engine.machine import Machine
from hepti_mpi.engine.orders import Order
from hepti_mpi.models.numerics import Array
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.texts import Chosen
from hepti_mpi.program.placement import Placement
from hepti_mpi.program.plan import WIRES
from hepti_mpi.reporting.records import refusals, too_late
from hepti_mpi.reporting.tables import milliseconds, rate, table
from hepti_mpi.tuning.turns import Holds
from hepti_mpi.weights.store import Store

FORMAT, FORMAT_VERSION = "hepti-bench-decode", 1
WARM_UP = 2  # tokens, where boards are not emulated
Bounds = tuple[Mapping[str, float], float]  # seconds of the first token, by the shortest type on the wire, and of an added one


@dataclass
class Written:
    """What one method did, on rank 0: `firsts`: seconds until the scores behind the prompt were there; `tokens`: those of each added one.
    `predicted`: the same as planned; `best`: the likeliest score behind each; `late`: the part of the time by which messages left late;
    `overruns`: of all ranks' calls, those that took longer than on the emulated boards."""

    placement: Placement
    predicted: tuple[float, float]
    firsts: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    late: float = 0.0
    overruns: float = 0.0
    weight_bytes: int = 0  # of the fullest rank

    @property
    def wire(self) -> str:
        """The shortest type in which its sums travel."""
        return WIRES[0] if self.placement.together is None else self.placement.together.shortest

    @property
    def first(self) -> float:
        return float(np.median(self.firsts))

    @property
    def token(self) -> float:
        return float(np.median(self.tokens))


@dataclass
class Loaded:
    """A method that is ready to write, and what it did so far."""

    decoder: Decoder
    written: Written
    late: float = 0.0  # seconds by which this rank's messages left late
    calls: int = 0  # of computing, on this rank, and those that took longer than on the emulated board
    overruns: int = 0


def measured(
    machine: Machine, ways: Sequence[tuple[Store, Placement, Chosen | None]], demand: Demand, repeat: int,
    progress: Callable[[int], None],
) -> list[Written]:  # fmt: skip
    """Load stores by placements, let all write in turns, and return what they did. Collective; what rank 0 knows of a placement is beside
    it, None elsewhere. Raises what loading raises."""
    loaded = [_load(machine, *way, demand) for way in ways]
    _in_turns(machine, loaded, ways[0][0].spec.hidden, demand, repeat, progress)
    return [one.written for one in loaded]


def _load(machine: Machine, store: Store, placement: Placement, found: Chosen | None, demand: Demand) -> Loaded:
    decoder = loading.load(machine, store, placement, 1, demand.prompt + demand.answer, demand.cache)
    assert decoder is not None, "all ranks are in it"
    return Loaded(decoder, Written(placement, (found.prompt_seconds, found.seconds) if found else (0.0, 0.0)))


def holds(number: int, name: str, found: Chosen) -> Holds:
    """Return the bytes that each rank holds by a method for the `number`-th store: no two share any."""
    known = found.staged if found.in_stages or found.decision is None else found.decision.chosen
    return {} if known is None else {(rank, number, name): size for rank, size in enumerate(known.memory)}


def _in_turns(
    machine: Machine, every: Sequence[Loaded], hidden: int, demand: Demand, repeat: int, progress: Callable[[int], None]
) -> None:  # fmt: skip
    """Take in a prompt of rows of `hidden` numbers and add tokens by all that is loaded, `repeat` times in turns. Collective.

    A time runs on rank 0 from embedded rows to the likeliest word.
    """
    world, emulation = machine.world, machine.emulation
    rows = np.random.default_rng(0).standard_normal((demand.prompt + demand.answer, hidden), np.float32)
    for turn in range(-(not emulation.on), repeat):
        numbers = list(range(len(every)))
        np.random.default_rng(1 + turn).shuffle(numbers)  # nobody always comes after the same one
        for one in (every[number] for number in numbers):
            with world.patience.slower():  # a rank that has no part waits for the whole text
                world.barrier()
            before = copy(emulation)
            if world.rank:
                one.decoder.follow()
            else:
                _write(one.decoder, one.written, rows, demand.prompt, turn < 0)
            one.late += emulation.late_seconds - before.late_seconds
            one.calls += emulation.calls - before.calls
            one.overruns += emulation.overruns - before.overruns
        progress(1)
    with world.patience.slower():
        world.barrier()
    for one in every:
        one.written.weight_bytes = max(world.gather_all(sum(piece.bytes for piece in one.decoder.part.slices)))
        calls, overruns, late = zip(*world.gather_all([one.calls, one.overruns, one.late]))
        one.written.overruns = sum(overruns) / max(1, sum(calls))
        one.written.late = max(late) / max(1e-9, sum(one.written.firsts) + sum(one.written.tokens))


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


def document(
    model: str, cluster: str, demand: Demand, found: Mapping[str, Written], bounds: Bounds
) -> dict[str, Any]:  # fmt: skip
    """Return what was found as one document."""
    firsts, bound = bounds
    methods = {
        name: {
            "tokens_per_second": _short(1 / one.token), "token_seconds": _short(one.token), "predicted_token_seconds": one.predicted[1],
            "first_token_seconds": _short(one.first), "predicted_first_token_seconds": one.predicted[0],
            "nearness": _short(bound / one.token), "first_nearness": _short(firsts[one.wire] / one.first),
            "overruns": _short(one.overruns), "late": _short(one.late),
            "largest_difference": _short(_difference(found, name)),
            **_shares(one.placement), "wire": one.wire,
            "plan_hash": one.placement.hash if one.placement.together is None else one.placement.together.hash,
        }
        for name, one in found.items()
    }  # fmt: skip
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "model": model, "cluster": cluster}
    least = {f"bound_first_token{_of(wire)}_seconds": _short(seconds) for wire, seconds in firsts.items()}
    return head | {"prompt": demand.prompt, "tokens": demand.answer, **least, "bound_token_seconds": _short(bound), "methods": methods}


def compared(found: Mapping[str, Written], refused: Mapping[str, str], bounds: Bounds, width: int | None = None) -> str:
    """Return the table of what was found, soonest token first."""
    firsts, bound = bounds
    names = sorted(found, key=lambda name: found[name].token)
    first = "hepti" if "hepti" in found else names[0]
    reference = found[first].token
    rows = []
    for name in names:
        one = found[name]
        low, high = np.quantile(one.tokens, (0.1, 0.9))
        times = rate(1 / one.token), milliseconds(one.token), f"{milliseconds(low)} - {milliseconds(high)}", f"{one.token / reference:.2f}"
        near = milliseconds(one.predicted[1]), f"{100 * (one.predicted[1] / one.token - 1):+.1f} %", f"{bound / one.token:.2f}"
        start = milliseconds(one.first), milliseconds(one.predicted[0]), f"{firsts[one.wire] / one.first:.2f}"
        cells = *times, *near, *start, f"{_difference(found, name):.1g}"
        shares = _shares(one.placement)
        layers = "/".join(map(str, shares.get("layers", ())))
        rows.append((name, *cells, *(layers and f"stages of {layers}" or _parts(shares[what]) for what in ("heads", "columns"))))
    head = ("method", "tokens/s", "median ms", "10 - 90 %", f"x {first}", "predicted ms", "error", "nearness",
            "first token ms", "first predicted ms", "first nearness", "difference", "heads", "columns")  # fmt: skip
    text = [table(head, rows, width), *refusals(refused)]
    text.append(f"bound of a token: {milliseconds(bound)} ms, all weights read once, each board at its own rate, and a latency a sum")
    for wire, least in firsts.items():
        short = f", {wire} on the wire" * (wire != WIRES[0])
        what = f"bound of the first token{short}: {milliseconds(least)} ms"
        text.append(f"{what}, the longer of computing and of sending, were the other free")
    return "\n".join([*text, *too_late({name: found[name].late for name in names})])


def _shares(placement: Placement) -> dict[str, list[int]]:
    """Return how many heads and columns each rank has; in stages also the layers of each rank of the job."""
    if placement.together is not None:
        return {"heads": list(placement.together.heads), "columns": list(placement.together.columns)}
    layers = [0] * placement.ranks
    for stage in placement.stages:
        layers[stage.lead] = len(stage.plan.layers)
    return {"heads": [], "columns": [], "layers": layers}


def _parts(counts: Sequence[int]) -> str:
    return "/".join(map(str, counts)) if any(counts) else "all on one"


def _difference(found: Mapping[str, Written], name: str) -> float:
    return difference(found[name], next(iter(found.values())))


def difference(one: Written, other: Written) -> float:
    """Return by how much the likeliest scores of two differ, at most."""
    return float(np.abs(np.array(one.best) - other.best).max())


def _of(wire: str) -> str:
    return "" if wire == WIRES[0] else f"_{wire}"


def _short(value: float) -> float:
    return float(f"{value:.5g}")
