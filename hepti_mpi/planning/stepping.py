"""What steps of texts take under a plan, and the heads and columns by which they are soonest. Pure.

Knows prices of layers divided by heads and columns, and the words behind them; does not know which methods there are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np

from hepti_mpi import splits
from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.comm.sizes import DIRECT_BYTES, FLOAT
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.candidates import Candidate, Costs, steady
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.pricer import Batch, Pricer, shares_of
from hepti_mpi.planning.work import word_numbers
from hepti_mpi.program.build import make_program
from hepti_mpi.program.plan import MOST_PROMPT_TILES, Plan, granules_fit, tiles_of
from hepti_mpi.program.steps import Program, Step, Sync

STEPS = (16, 4, 1)  # granules of columns that move at once
MOST_MOVES = 60
CLIMBS = 2  # from the best of the first shares
BLENDS = np.linspace(0, 1, 5)[:, None]  # of what boards take for a token and for a piece of a prompt, by which first shares go
MOST_RANKS = 16  # of which shares are moved between any two
WORTH_TILES = 0.98  # times as long as a piece of a prompt in fewer tiles it must take in more

Whole = Callable[[Sequence[Plan]], np.ndarray]  # seconds of all that is asked, of each plan


class AtOnce(Pricer):
    """Prices short sums as what they are: each rank sends its terms to each other one."""

    def parts(self, step: Sync) -> tuple[Sync, ...]:
        short = self.rows * step.width * FLOAT <= DIRECT_BYTES  # which emulated boards send to each other at once
        return (step,) if short else super().parts(step)


class Steps:
    """What steps of `rows` rows take, with the words, of which each rank has as large a part as of columns. `cache`: as of a Pricer, and
    `by`, its kind."""

    def __init__(
        self, spec: ModelSpec, profile: ClusterProfile, rows: int, attended: int | None, cache: str | None = None,
        by: type[Pricer] = AtOnce,
    ) -> None:  # fmt: skip
        self.spec, self.pricer = spec, by(spec, profile, rows, attended, 1, cache)
        self.elsewhere = sum(step.macs for step in spec.back) * profile.edges.mac  # what the price takes them for: rank 0's, of float32
        self.words = word_numbers(spec)
        self.made: dict[tuple[object, ...], list[Program]] = {}

    def seconds(self, plan: Plan) -> float:
        """Return the seconds of a step one row of which is scored."""
        return float(self.each([plan])[0])

    def cut(self, plan: Plan, most: int = MOST_PROMPT_TILES) -> Plan:
        """Return a plan with as many tiles of a piece of a prompt as are worth it."""
        best, least = plan, np.inf
        for tiles in range(1, 1 + (tiles_of(most, self.pricer.rows) if plan.divided else 1)):
            seconds = self.seconds(one := replace(plan, prompt_tiles=tiles))
            if seconds > WORTH_TILES * least:
                break
            best, least = one, seconds
        return best

    def each(self, plans: Sequence[Plan]) -> np.ndarray:
        """Return the seconds of a step of plans with the same layouts, wire, tiles and as many active ranks each, [plans]."""
        if not isinstance(plans[0].wire, str):  # each type as often as it travels
            types = dict.fromkeys(plans[0].wires)
            parts = [plans[0].wires.count(one) * self.each([replace(plan, wire=one) for plan in plans]) for one in types]
            return np.asarray(sum(parts) / len(plans[0].wires))
        if tiles_of(plans[0].prompt_tiles, self.pricer.rows) > 1 and not plans[0].tiles:
            plans = [_in_tiles(plan, self.pricer.rows) for plan in plans]
        like, (programs, times) = plans[0], self._programs(plans[0])
        batch = Batch(self.pricer, [plan.active for plan in plans], like, shares_of(plans, self.pricer.lengths))
        layers = batch.prices(*programs, times=times).seconds - self.elsewhere
        columns = np.array([[plan.columns[rank] for rank in plan.active] for plan in plans], float)
        columns[columns.sum(axis=1) == 0] = 1  # of a plan that divides none
        own = columns / columns.sum(axis=1, keepdims=True)
        per_number = (self.pricer.reading[batch.places] * batch.crowding).T  # [plans or 1, ranks]
        return np.asarray(layers + (per_number * own).max(axis=1) * self.words)

    def priced(self, one: Candidate) -> Candidate:
        seconds = self.seconds(one.plan)
        return replace(one, plan=replace(one.plan, predicted_seconds=seconds), price=replace(one.price, seconds=seconds))

    def _programs(self, plan: Plan) -> tuple[list[Program], float]:
        """Return the steps of `plan`, or of its first layers and how often the next are there besides, where the others repeat them."""
        depths = steady(self.spec) if len(set(plan.layouts)) == 1 else ()
        key = plan.layouts, plan.reduction, plan.collectives, plan.wire, plan.divided, len(plan.tiles)
        if key not in self.made:
            wanted = [plan.layouts[:depth] for depth in depths] or [plan.layouts]
            made = [make_program(self.spec, replace(plan, layers=layers), everywhere=True) for layers in wanted]
            self.made[key] = [_travelling(program) for program in made] if plan.tiles else made
        few, more = depths or (0, 1)
        return self.made[key], (self.spec.layers - few) / (more - few) if depths else 0.0


def _in_tiles(plan: Plan, rows: int) -> Plan:
    """Return a plan for a piece of a prompt of so many rows, in tiles whose sums travel as an encoder's do."""
    first = min(plan.active)
    tiles = [tuple(size * (rank == first) for rank in range(plan.ranks)) for size in splits.even(rows, tiles_of(plan.prompt_tiles, rows))]
    whole = tuple(rows * (rank == first) for rank in range(plan.ranks))
    return replace(plan, rows=whole, tiles=tuple(tiles), collectives="own")


def _travelling(program: Program) -> Program:
    """Return the steps with each sum as the two exchanges that it is while others are computed."""
    found: list[Step] = []
    for step in program:
        if isinstance(step, Sync) and step.kind == "allreduce":
            found += [replace(step, kind="even_reduce"), replace(step, kind="even_gather", reads=step.writes)]
        else:
            found.append(step)
    return tuple(found)


def divided(
    spec: ModelSpec, profile: ClusterProfile, demand: Demand, costs: Costs, like: Plan, whole: Whole, rates: np.ndarray
) -> Candidate | None:  # fmt: skip
    """Return the plan of the soonest heads and columns, layouts and modes being those of `like`: from shares by speed of two ranks, of
    three, ... onward by moves, as long as `whole` gets less; None where memory holds none.

    `rates` [2, ranks]: what a number of the weights takes each rank in a step with a token, and in one with a piece of a prompt. Where one
    board is a third of another in one and a fifth in the other, moves between two ranks do not lead from shares by the one to shares by
    the other: two slow ranks alike have to give at once.
    """
    ranks = len(profile.nodes)
    if demand.shares is not None or ranks > MOST_RANKS:
        return None
    tops = [_soonest(spec, demand, costs, like, whole, rates, granule) for granule in dict.fromkeys((spec.group, spec.head_granule))]
    found = [top for top in tops if top is not None]
    return costs.candidates([min(found, key=lambda one: one[0])[1]])[0] if found else None


def _soonest(
    spec: ModelSpec, demand: Demand, costs: Costs, like: Plan, whole: Whole, rates: np.ndarray, granule: int
) -> tuple[float, Plan] | None:  # fmt: skip
    """Return the seconds and the plan of the soonest, heads being divided in multiples of `granule`."""
    found, ranks = dict[Plan, float](), len(costs.limits) // 2
    one, other = rates / rates.sum(axis=1, keepdims=True)
    for speeds in 1 / (one + BLENDS * (other - one)):
        order = np.argsort(-speeds, kind="stable")
        for count in range(2, ranks + 1):
            share = np.where(np.isin(np.arange(ranks), order[:count]), speeds, 0)
            plan = replace(like, heads=splits.split(spec.heads, share, granule), columns=splits.split(spec.ffn, share, spec.column_granule))
            plan = replace(plan, rows=tuple(int(rank == min(plan.active)) * demand.rows for rank in range(ranks)))
            if plan not in found and fit(costs, [plan])[0]:
                found[plan] = float(whole([plan])[0])
    tops = [_climbed(spec, costs, found[plan], plan, whole, granule) for plan in sorted(found, key=found.__getitem__)[:CLIMBS]]
    return min(tops, key=lambda one: one[0]) if tops else None


def fit(costs: Costs, plans: Sequence[Plan]) -> np.ndarray:
    """Tell of each plan whether memory holds it; plans of the same layouts, on any ranks."""
    heads, columns, rows = (np.array([getattr(plan, what) for plan in plans]) for what in ("heads", "columns", "rows"))
    limits = np.array([costs.limits_of(plan) for plan in plans])
    return np.asarray((costs.memory(plans[0], heads, columns, rows) <= limits).all(axis=1))


def _climbed(spec: ModelSpec, costs: Costs, seconds: float, plan: Plan, whole: Whole, granule: int) -> tuple[float, Plan]:
    """Move heads and columns between ranks while that helps."""
    for _ in range(MOST_MOVES):
        near = [one for one in _near(spec, plan, granule) if one.active == plan.active]
        near = [one for one, fits in zip(near, fit(costs, near)) if fits] if near else []
        times = whole(near) if near else np.array([np.inf])
        best = int(times.argmin())
        if times[best] >= seconds:
            break
        seconds, plan = float(times[best]), near[best]
    return seconds, plan


def _near(spec: ModelSpec, plan: Plan, granule: int) -> Iterator[Plan]:
    for one, other in permutations(plan.active, 2):
        for step in dict.fromkeys((spec.group, granule)):
            if plan.heads[one] >= step:
                yield replace(plan, heads=_moved(plan.heads, one, other, step))
        for step in (steps * spec.column_granule for steps in STEPS):
            if plan.columns[one] >= step and granules_fit(columns := _moved(plan.columns, one, other, step), spec.column_granule):
                yield replace(plan, columns=columns)


def _moved(counts: tuple[int, ...], one: int, other: int, step: int) -> tuple[int, ...]:
    return tuple(count + step * ((rank == other) - (rank == one)) for rank, count in enumerate(counts))
