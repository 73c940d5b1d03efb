"""Plans with their price and the memory that they need, worked out for many at once. Pure.

Knows what of a plan the price and the memory depend on; does not know where plans come from.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, groupby

import numpy as np

from hepti_mpi.models.formats import Format
from hepti_mpi.models.spec import ModelSpec, kv_bytes, layer_bytes
from hepti_mpi.planning.memory import FULL, activation_bytes, activation_widths, cache_bytes, making_bytes, word_bytes
from hepti_mpi.planning.pricer import DIGITS, Batch, Pricer
from hepti_mpi.planning.prices import Price, Prices
from hepti_mpi.planning.traffic import FAIR, Shares
from hepti_mpi.program.build import make_program
from hepti_mpi.program.grouping import shared
from hepti_mpi.program.plan import Plan, wire_of
from hepti_mpi.program.steps import Program

Layer = tuple[tuple[str, str], str]  # what a plan says of one: its layout, and the type that travels
STEADY = (2, 4)  # layers of the programs that uniform ones are priced by: two by two, layers but the first take equally long


def steady(spec: ModelSpec) -> tuple[int, ...]:
    """Return the layers of two shorter models whose difference repeats up to the end of the model; () where there are none."""
    every, order = spec.layers, spec.order[: spec.layers]
    if len(set(order)) < 2:
        return STEADY if every > STEADY[1] else ()
    for period in range(2, every // 2):
        few = next(count for count in range(STEADY[0], every) if (every - count) % period == 0)
        if few + period < every and order[few:-period] == order[few + period :]:
            return few, few + period
    return ()


def _layers(plan: Plan) -> tuple[Layer, ...]:
    return tuple(zip(plan.layouts, plan.wires))


@dataclass(frozen=True)
class Candidate:
    """A priced plan; `memory`: bytes per rank for weights and activations."""

    plan: Plan
    price: Price
    memory: tuple[int, ...]


@dataclass(frozen=True)
class Variants:
    """Plans that differ from `plan` in their shares: `cells` [variants, tiles, ranks] of rows; `heads`, `columns` [variants, ranks]."""

    plan: Plan
    cells: np.ndarray
    heads: np.ndarray
    columns: np.ndarray

    def __len__(self) -> int:
        return len(self.cells)

    def of(self, numbers: Sequence[int]) -> "Variants":
        """Return some of them."""
        return Variants(self.plan, self.cells[numbers], self.heads[numbers], self.columns[numbers])

    def at(self, number: int) -> Plan:
        """Return one of the plans."""
        heads, columns, rows = (tuple(counts[number].tolist()) for counts in (self.heads, self.columns, self.cells.sum(axis=1)))
        cells = tuple(map(tuple, self.cells[number].tolist()))
        return replace(self.plan, heads=heads, columns=columns, rows=rows, tiles=cells if len(cells) > 1 else ())


@dataclass(frozen=True)
class Tried:
    """What variants take: `seconds` of each, inf where memory does not hold it; `memory`: bytes of every rank, of some of the variants."""

    variants: Variants
    seconds: np.ndarray
    prices: Prices
    memory: Callable[[Variants], np.ndarray]
    ranks: np.ndarray

    def candidate(self, number: int) -> Candidate:
        """Return one of them."""
        prices = Prices(*(values[..., [number]] for values in vars(self.prices).values()))
        (price,) = prices.each(self.ranks, self.variants.plan.ranks)
        (needs,) = self.memory(self.variants.of([number])).tolist()
        return Candidate(replace(self.variants.at(number), predicted_seconds=price.seconds), price, tuple(needs))


class Costs:
    """Prices and memory of plans for one model and cluster. `rows`: of the batch that is priced; `largest`, `longest`: of the largest batch
    and of the longest request that memory must hold; `limits` [2 x ranks]: bytes, where pricer.places() says; `paged`, `kept` and
    `cache`: as of a Demand."""

    def __init__(
        self, spec: ModelSpec, pricer: Pricer, largest: int, longest: int, limits: np.ndarray, paged: Collection[Format],
        kept: int | None = None, cache: str = FULL,
    ) -> None:  # fmt: skip
        self.spec, self.pricer, self.rows, self.largest, self.longest = spec, pricer, pricer.rows, largest, longest
        self.limits, self.ranks = limits, len(limits) // 2
        held, self.unpaged = layer_bytes(spec, paged), layer_bytes(spec)
        self.attention_bytes, self.mlp_bytes, self.kv_bytes = held["heads"], held["columns"], kv_bytes(spec, paged)
        self.making = min(making_bytes(spec, paged), spec.layers * (self.unpaged["heads"] + self.unpaged["columns"]))
        if kept is not None:
            cached = -(-kept * cache_bytes([layer.attention for layer in spec.each()], spec.kv_heads, cache) // spec.layers)
            self.attention_bytes, self.kv_bytes = self.attention_bytes + cached, self.kv_bytes + cached
            self.mlp_bytes += -(-word_bytes(spec, paged) // spec.layers)
        self.norm_bytes = spec.layers * held[None]
        self.steady = steady(spec)
        self.made: dict[tuple[object, ...], Program] = {}
        self.wholes: dict[Plan, Candidate] = {}
        self.roomy: dict[tuple[object, ...], bool] = {}
        self.known_widths: dict[int, tuple[float, float]] = {}  # by the id of a program of those

    def programs(self, plan: Plan) -> list[Program]:
        """Return the steps of `plan`, or of its first layers where the others repeat them."""
        return [self._made(plan, _layers(plan)[:depth]) for depth in self._depths(plan)]

    def _depths(self, plan: Plan) -> tuple[int, ...]:
        """Return how many layers each of those programs has."""
        return self.steady if self.steady and len(set(_layers(plan))) == 1 else (self.spec.layers,)

    def widths(self, plan: Plan) -> tuple[float, float]:
        """Return the widths of the buffers of `plan`, which a few layers of each kind tell where the others repeat them."""
        runs = [tuple(run) for _, run in groupby(_layers(plan))]
        if len(runs) > 1 and len(self.spec.kinds) < 2:
            program = self._made(plan, tuple(chain.from_iterable(run[: STEADY[1]] for run in runs)))
        else:
            program = self._made(plan, _layers(plan)[: self._depths(plan)[-1]])
        if id(program) not in self.known_widths:
            self.known_widths[id(program)] = activation_widths(self.pricer.laid_out(program))
        return self.known_widths[id(program)]

    def _made(self, plan: Plan, layers: tuple[Layer, ...]) -> Program:
        """Return the steps of some layers of `plan`. They depend on the shares only in whether one rank has all."""
        key = layers, plan.reduction, plan.collectives, len(plan.tiles)
        if key not in self.made:
            layouts, wires = zip(*layers)
            self.made[key] = make_program(self.spec, replace(plan, layers=layouts, wire=wire_of(wires)))
        return self.made[key]

    @staticmethod
    def _key(plan: Plan) -> tuple[object, ...]:
        return plan.layouts, plan.reduction, plan.collectives, plan.wire, len(plan.tiles)

    def _alike(self, plan: Plan) -> tuple[object, ...]:
        """Return what plans have in common that are priced at once."""
        return self._key(plan), len(plan.active), any(plan.heads)

    @cached_property
    def further(self) -> float:
        """How often the layers between those of the two programs are there beside the first one's."""
        few, more = self.steady or (0, 1)
        return (self.spec.layers - few) / (more - few)

    def candidates(self, plans: Sequence[Plan]) -> list[Candidate]:
        """Price plans, those whose layers are alike by a few of them."""
        found = {number: candidate for numbers, part, programs in self._groups(plans)
                 for number, candidate in zip(numbers, self._priced([plans[number] for number in numbers], part, programs))}  # fmt: skip
        return [found[number] for number in range(len(plans))]

    def promising(self, plans: Sequence[Plan], most: Callable[[Plan], float]) -> Iterator[tuple[Plan, Candidate | None]]:
        """Yield those plans that memory holds, on many ranks first, as candidates; None where one takes at the least more than the `most`
        seconds that matter when it is looked at."""
        for numbers, part, programs in self._groups(plans):
            some = [plans[number] for number in numbers]
            memory = self._memory(some)
            fits = [self.fits_in(plan, needs) for plan, needs in zip(some, memory)]
            hopes = part.least(*programs, times=self.further) < most(some[0]) if any(fits) else fits
            kept = [number for number, (fit, hope) in enumerate(zip(fits, hopes)) if fit and hope]
            if kept:
                some_part = part.of(kept, *programs) if len(kept) < len(some) else part
                priced = self._priced([some[number] for number in kept], some_part, programs, memory[kept])
            yield from ((plan, next(priced) if hope else None) for plan, fit, hope in zip(some, fits, hopes) if fit)

    def _groups(self, plans: Sequence[Plan]) -> Iterator[tuple[list[int], Batch, list[Program]]]:
        """Yield the numbers of plans that do the same steps, many ranks first, with a batch of them and those steps."""
        groups: dict[tuple[object, ...], dict[tuple[object, ...], list[int]]] = {}  # steps that are worked out at once: those of programs
        for number, plan in enumerate(plans):
            program, ranks = self._key(plan), len(plan.active)
            alike = -ranks, plan.collectives != "own", len(plan.tiles), any(plan.heads), program if ranks > FAIR else ()  # much memory
            groups.setdefault(alike, {}).setdefault(program, []).append(number)
        for _, group in sorted(groups.items(), key=lambda one: one[0][:3]):
            batch = self.pricer.batch([plans[number] for numbers in group.values() for number in numbers])
            programs = [self.programs(plans[numbers[0]]) for numbers in group.values()]
            batch.learn(*chain.from_iterable(programs))
            begin = 0
            for numbers, depths in zip(group.values(), programs):
                yield numbers, batch.of(range(begin, begin + len(numbers)), *depths), depths
                begin += len(numbers)

    def _priced(
        self, plans: Sequence[Plan], batch: Batch, programs: Sequence[Program], memory: np.ndarray | None = None
    ) -> Iterator[Candidate]:  # fmt: skip
        prices = batch.prices(*programs, times=self.further).each(batch.ranks, self.ranks)
        return self._candidates(plans, prices, self._memory(plans) if memory is None else memory)

    def whole(self, plan: Plan) -> Candidate:
        """Price a plan by all of its layers."""
        return self.all_whole([plan])[0]

    def all_whole(self, plans: Sequence[Plan]) -> list[Candidate]:
        """Price plans by all of their layers, those that do the same steps at once."""
        new = [plan for plan in plans if plan not in self.wholes]
        for same in ([plan for plan in new if self._alike(plan) == alike] for alike in dict.fromkeys(map(self._alike, new))):
            prices = self.pricer.prices(same, self._made(same[0], _layers(same[0])))
            self.wholes.update(zip(same, self._candidates(same, prices, self._memory(same))))
        return [self.wholes[plan] for plan in plans]

    @staticmethod
    def _candidates(plans: Sequence[Plan], prices: Sequence[Price], memory: np.ndarray) -> Iterator[Candidate]:
        """Yield plans with their prices and the `memory` [plans, ranks] that they need."""
        for plan, price, needs in zip(plans, prices, memory.tolist()):
            yield Candidate(replace(plan, predicted_seconds=price.seconds), price, tuple(needs))

    def _memory(self, plans: Sequence[Plan]) -> np.ndarray:
        """Return the bytes of every rank [plans, ranks] under plans that differ in their shares."""
        every = (np.array([getattr(plan, what) for plan in plans]) for what in ("heads", "columns", "rows"))
        return self.memory(plans[0], *every)

    def tried(self, variants: Variants) -> Tried:
        """Price variants, all on the same active ranks."""
        like, active = variants.at(0), np.array(variants.plan.active)
        every = variants.cells, variants.heads[:, None], variants.columns[:, None]
        shares = Shares(*(np.ascontiguousarray(values[..., active].transpose(2, 1, 0)) for values in every))
        batch = Batch(self.pricer, [variants.plan.active], like, shares)
        prices = batch.prices(*self.programs(like), times=self.further)
        seconds = np.round(prices.seconds, DIGITS)  # what differs by rounding is as soon: the first of it is chosen

        def memory(some: Variants) -> np.ndarray:
            return self.memory(like, some.heads, some.columns, some.cells.sum(axis=1))

        if not self.holds_all(variants.plan, like):
            seconds[(memory(variants) > self.limits_of(variants.plan)).any(axis=1)] = np.inf
        return Tried(variants, seconds, prices, memory, batch.ranks)

    def holds_all(self, plan: Plan, like: Plan) -> bool:
        """Tell whether the memory of each rank of a plan holds the whole model and all rows: then that of all plans that do the steps of
        `like` does, whatever their shares."""
        key = self._key(like), plan.active
        if key not in self.roomy:
            every = ([[count] * self.ranks] for count in (self.spec.heads, self.spec.ffn, self.rows))
            needs = self.memory(like, *map(np.array, every))[0]
            self.roomy[key] = bool((needs <= self.limits_of(plan)).all())
        return self.roomy[key]

    def memory(self, like: Plan, heads: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the bytes of every rank [plans, ranks] under plans that differ from `like` in their shares [plans, ranks]."""
        layers, layouts = self.spec.layers, like.layouts
        by_heads, by_columns = [a for a, _ in layouts].count("heads"), [m for _, m in layouts].count("columns")
        attention = by_heads * heads / self.spec.heads + (layers - by_heads) * (rows > 0)
        mlp = by_columns * columns / self.spec.ffn + (layers - by_columns) * (rows > 0)
        weights = self.attention_bytes * attention + self.mlp_bytes * mlp
        kv_heads, _ = shared(heads, self.spec.group, axis=1)  # what ranks have twice, where they have parts of a group
        weights += by_heads * self.kv_bytes * (kv_heads / self.spec.kv_heads - heads / self.spec.heads)
        part = heads / self.spec.heads
        if by_heads < layers and not any(a == "alltoall" for a, _ in layouts):
            part = np.maximum(part, rows / self.rows)
        values = activation_bytes(self.spec, self.widths(like), self.largest, self.longest, -(-rows * self.largest // self.rows), part)
        active = (heads > 0) | (columns > 0) | (rows > 0)
        making = np.minimum(self.unpaged["heads"] * attention + self.unpaged["columns"] * mlp, self.making)  # before there are values
        return np.ceil((np.maximum(weights + values, making) + self.norm_bytes) * active).astype(np.int64)

    def limits_of(self, plan: Plan) -> np.ndarray:
        """Return the bytes of every rank: one that alone computes on its host has all of them."""
        at = np.arange(self.ranks)
        at[list(plan.active)] = self.pricer.members(plan.active).places[:, 0]
        return self.limits[at]

    def fits(self, candidate: Candidate) -> bool:
        """Tell whether memory holds it."""
        return self.fits_in(candidate.plan, np.array(candidate.memory))

    def fits_in(self, plan: Plan, needs: np.ndarray) -> bool:
        """Tell whether memory holds what ranks need under a plan."""
        return bool((needs <= self.limits_of(plan)).all())
