"""Find the plan that answers soonest within each rank's memory. Pure: searches and prices, measures nothing.

Searched: layouts of attention and MLP (mixed over the layers where memory lies in between) x subsets of ranks, down to one, x uneven
counts x ways to exchange. Every candidate is priced by the very steps the engine will walk; how the best get better is in refine.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby

import numpy as np

from hepti_mpi import splits
from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.comm.sizes import FLOAT
from hepti_mpi.errors import CapacityError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning import capacity
from hepti_mpi.planning.candidates import Candidate, Costs
from hepti_mpi.planning.demand import MPI, Decision, Demand, Exchange
from hepti_mpi.planning.division import common_lack, divide, fill, most
from hepti_mpi.planning.memory import activation_bytes
from hepti_mpi.planning.opening import MOST_PLAIN, opening
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.planning.refine import Refinement, order
from hepti_mpi.planning.sharing import keep_soonest, preference
from hepti_mpi.planning.subsets import EVERY_SUBSET, MANY, firsts, subsets
from hepti_mpi.planning.work import layer_work
from hepti_mpi.program.plan import WHOLE, Plan

Layers = tuple[tuple[str, str], ...]
Counts = Sequence[int] | np.ndarray
Division = tuple[np.ndarray, np.ndarray, np.ndarray]  # heads, columns and rows per rank
LEANER = (  # most memory first
    ("local", "rows"), ("alltoall", "rows"), ("rows", "rows"), ("recompute", "rows"), ("heads", "rows"),
    ("alltoall", "columns"), ("rows", "columns"), ("recompute", "columns"), ("heads", "columns"),
)  # fmt: skip
MIXED = (("alltoall", "rows"), ("heads", "rows"), ("alltoall", "columns"), ("heads", "columns"))  # what layers are mixed of
MOST_REFINED = 16  # ranks
AS_GOOD, MUCH_LESS = 1.003, 0.5  # times the soonest that a plan takes which is better where so much less of the wire's time is used


def choose(spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand, by: type[Pricer] = Pricer) -> Decision:
    """Return the best plan, `by` its prices, and what it was chosen from.

    Raises: CapacityError when no plan fits, PlanError when what was forced is impossible.
    """
    like: dict[str, _Search] = {}
    if len(demand.wires) > 2:  # more types are more plans than are climbed from: what is allowed besides must not hide what was found
        every = demand.wires[:-1], (demand.wires[0], demand.wires[-1])
        found = [_chosen(spec, source_hash, profile, replace(demand, wires=wires), by, like) for wires in every]
        return min(found, key=lambda one: one.chosen.price.seconds)
    return _chosen(spec, source_hash, profile, demand, by, like)


def _chosen(
    spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand, by: type[Pricer], like: "dict[str, _Search]"
) -> Decision:  # fmt: skip
    """Return the same for at most two types. `like`: searches of other types, by mode, whose prices need not be worked out again."""

    def search(mode: str) -> _Search:
        like[mode] = _Search(spec, source_hash, profile, replace(demand, mode=mode), by, like.get(mode))
        return like[mode]

    if demand.mode != "auto" or demand.limits is not None:
        return search("packed" if demand.mode == "auto" else demand.mode).decide()
    packed = search("packed")
    try:
        return packed.decide()
    except CapacityError:
        decision = search("mapped").decide()
    chosen = packed.eased(decision.chosen)
    ranks = ", ".join(str(rank) for rank, mode in enumerate(chosen.plan.weights_mode) if mode == "mapped")
    note = (
        f"no packed plan fits into memory: weights of rank {ranks} are paged in from the file while computing: slower, and far slower "
        "than told where they do not stay in memory; fewer bits (slice --format q8 or q4), or more memory, avoid that"
    )
    return replace(decision, chosen=chosen, notes=(*decision.notes, note))


def again(spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand, plan: Plan) -> Candidate:
    """Return the best plan with the layouts of `plan`, from there on, for a profile that is known better now."""
    mode = "mapped" if "mapped" in plan.weights_mode else "packed"
    search = _Search(spec, source_hash, profile, replace(demand, mode=mode))
    return search.improved([search.costs.candidates([plan])])[0][0]


def costs_of(spec: ModelSpec, profile: ClusterProfile, demand: Demand, like: Plan) -> Costs:
    """Return what prices plans and knows what they need of memory, where weights lie as those of `like` do."""
    mode = "mapped" if "mapped" in like.weights_mode else "packed"
    return _Search(spec, like.source_hash, profile, replace(demand, mode=mode)).costs


class _Search:
    """`like`: a search before it that differs in what may travel: what was worked out there is not once more."""

    def __init__(
        self, spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand, by: type[Pricer] = Pricer,
        like: "_Search | None" = None,
    ) -> None:  # fmt: skip
        self.spec, self.source_hash, self.profile, self.demand = spec, source_hash, profile, demand
        self.ranks = len(profile.nodes)
        self.largest, self.longest = demand.largest or demand.rows, demand.longest or demand.rows
        self.pricer = by(spec, profile, demand.rows, demand.attended)
        self.limits = np.array(demand.limits or [node.memory_bytes for node in profile.nodes], dtype=np.float64)
        whole = demand.limits or [(node.alone or node).memory_bytes for node in profile.nodes]
        self.all_limits = np.concatenate([self.limits, np.array(whole, dtype=np.float64)])  # as pricer.places() counts
        self.costs = Costs(
            spec, self.pricer, self.largest, self.longest, self.all_limits, demand.paged, demand.kept, demand.cache
        )  # fmt: skip
        self.attention_bytes, self.mlp_bytes = self.costs.attention_bytes, self.costs.mlp_bytes
        self.each = layer_work(spec, self.pricer.attended)
        self.known: dict[tuple[Layers, tuple[int, ...]], Division | None] = {}  # counts
        self.divided: dict[tuple[object, ...], np.ndarray] = {}  # rows
        self.inner: dict[Layers, float] = {}  # bytes of activations before rows are divided
        self.climbs = Refinement(spec, self.costs.tried, self.seconds, self.freely)
        demand.check(self.ranks)
        if like is not None:
            self.pricer, self.costs, self.known, self.divided, self.inner = like.pricer, like.costs, like.known, like.divided, like.inner
            self.climbs = like.climbs

    def decide(self) -> Decision:
        by_size = groupby(sorted(self.subsets(), key=len, reverse=True), key=len)
        best, with_rank, by_ranks, fits, tried = opening(self, self.profile, [list(subsets) for _, subsets in by_size])
        sorting = partial(preference, self.profile)
        if not best:
            raise self.refusal()
        found, whole = sorted(self.improved(best.values()), key=sorting), set[Plan]()
        while found[0][0].plan not in whole:  # what is chosen is priced by all of its layers
            found[0] = sorted(self.costs.all_whole([one.plan for one in found[0]]), key=order)
            whole.update(one.plan for one in found[0])
            found.sort(key=sorting)
        (chosen, *rest), *others = self.leanest_first(found)
        close = {len(one.plan.tiles): one for one in (*rest[::-1], chosen)}
        del close[len(chosen.plan.tiles)]
        unfit = [f"{'/'.join(layout)} ({Plan.strategy_of(layout)})" for layout in self.layouts() if layout in tried - fits]
        for ones in found:
            if ones[0].plan.divided or ones is found[0]:
                keep_soonest(with_rank, ones[0].plan.active, ones[0].price.seconds)
            keep_soonest(by_ranks, [len(ones[0].plan.active)], ones[0].price.seconds)
        return Decision(chosen, tuple(ones[0] for ones in others), tuple(unfit), (), with_rank, tuple(close.values()), by_ranks)

    def least(self, subset: tuple[int, ...]) -> float:
        """Return the seconds that no plan of a subset takes less than: as if each rank did nothing but multiply rows by weights at its best
        rate, and all were done at once."""
        among, rows = self.pricer.members(subset), self.demand.rows
        rates = (self.pricer.gemm[among.places[:, 0], 1:] / np.arange(1, rows + 1)).min(axis=1) * rows * among.crowding[:, 0]
        return float(self.spec.layers * (self.each.attention + self.each.mlp) / (1 / rates).sum() + self.pricer.edges) * (1 - 1e-9)

    def leanest_first(self, found: list[list[Candidate]]) -> list[list[Candidate]]:
        """Return the kinds, soonest first, but for one that is as good and sends much less: prices are not as exact as that, and what is
        sent can be late (of plans that were measured, it was sooner by 1 to 2 % in five of seven cases, in none later by 0.5 %)."""
        soonest = found[0][0]
        if not soonest.plan.divided:
            return found
        longest = AS_GOOD * preference(self.profile, found[0])[0]
        as_good = [ones for ones in found if preference(self.profile, ones)[0] <= longest and ones[0].plan.divided]
        leanest = min(as_good, key=lambda ones: ones[0].price.busy)
        if leanest[0].price.busy > soonest.price.busy * MUCH_LESS:
            return found
        whole = [self.costs.whole(leanest[0].plan), *leanest[1:]]
        if preference(self.profile, whole)[0] > longest:  # by all of its layers it is not
            return found
        return [whole, *[ones for ones in found if ones is not leanest]]

    def improved(self, kinds: Iterable[Sequence[Candidate]]) -> list[list[Candidate]]:
        """Return the best candidate of each kind, the promising ones improved, with what else it led to; soonest first."""
        if self.demand.shares is not None or self.ranks > MOST_REFINED:
            return [[one] for one in sorted((ones[0] for ones in kinds), key=order)]
        return self.climbs.improve_best(kinds)

    def choices(self, subset: tuple[int, ...]) -> Iterator[tuple[Layers, list[Exchange]]]:
        """Yield the layouts per layer to try, each with the ways to exchange that are worth a price."""
        if splits.alone(subset):  # on which all layouts are the same, and MPI's collectives the simplest way; they have no alltoall
            layout = self.layouts()[-1]
            yield (layout,) * self.spec.layers, [Exchange("reduce_scatter", "own") if layout[0] == "alltoall" else MPI]
            return
        for layers in self.layer_choices(subset):
            yield layers, self.exchange_choices(layers, subset)

    def exchange_choices(self, layers: Layers, subset: tuple[int, ...]) -> list[Exchange]:
        if self.demand.kept is not None:  # sums of a text's row are MPI's own, or none
            return [MPI]
        own = [Exchange("reduce_scatter", "own", wire) for wire in self.demand.wires]
        plain = len(set(layers)) == 1 and layers[0][0] in ("heads", "rows") and len(subset) <= MOST_PLAIN
        return [*own, MPI] if plain else own

    def layouts(self) -> list[tuple[str, str]]:
        """Return the uniform layouts that the request allows, most memory first."""
        if self.demand.layout is not None:
            return [self.demand.layout]
        several = len(self.pricer.lengths) > 1  # requests, which may go to different ranks
        return [pair for pair in LEANER if self.demand.strategy in ("auto", Plan.strategy_of(pair)) and (several or pair[0] != "local")]

    def subsets(self) -> Iterator[tuple[int, ...]]:
        everyone = tuple(range(self.ranks))
        if self.demand.shares is not None:
            yield tuple(rank for rank in everyone if self.demand.shares[rank] > 0)
            return
        forced = self.demand.strategy != "auto" or self.demand.layout is not None
        seconds = self.pricer.gemm[: self.ranks, -1] * self.pricer.crowding(everyone)
        scarce = self.limits.min() < 2 * self.spec.layers * (self.attention_bytes + self.mlp_bytes)
        links, smallest = self.pricer.seconds_per_byte.max(axis=1), 2 if forced else 1
        yield from subsets(seconds, links, self.limits if scarce else None, smallest)
        at = self.pricer.places(lone := np.array(firsts(self.profile.hosts)))  # one rank of each host, with all of its cores
        for subset in subsets(self.pricer.gemm[at, -1], links[lone], self.all_limits[at] if scarce else None, smallest):
            if len(lone) < self.ranks > EVERY_SUBSET and len(subset) >= smallest:
                yield tuple(int(rank) for rank in lone[list(subset)])

    def layer_choices(self, subset: tuple[int, ...]) -> Iterator[Layers]:
        """Yield the layouts per layer to try: uniform ones, and where a faster-travelling one does not fit, as many layers of it as do."""
        uniform = self.layouts()
        if len(subset) > MANY:
            uniform = [layout for layout in uniform if layout in (LEANER[0], *MIXED)] or uniform
        for layout in uniform:
            yield (layout,) * self.spec.layers
        forced = self.demand.strategy != "auto" or self.demand.layout is not None
        if forced or len(subset) > MANY or self.demand.mode == "mapped":
            return
        for number, rich in enumerate(MIXED):
            for lean in MIXED[number + 1 :]:
                count = self.most_layers(rich, lean, subset)
                if 0 < count < self.spec.layers:
                    yield (rich,) * count + (lean,) * (self.spec.layers - count)

    def most_layers(self, rich: tuple[str, str], lean: tuple[str, str], subset: tuple[int, ...]) -> int:
        """Return how many layers of `rich` fit, by bisection, when the rest is `lean` and every rank of the subset takes part."""
        low, high = 0, self.spec.layers + 1
        while low + 1 < high:  # all of them first
            middle = self.spec.layers if high > self.spec.layers else (low + high) // 2
            layers = (rich,) * middle + (lean,) * (self.spec.layers - middle)
            if self.can_rows(layers, subset).all() and self.counts(layers, subset):
                low = middle
            else:
                high = middle
        return low

    # counts for one choice

    def planned(self, layers: Layers, subset: tuple[int, ...], exchange: Exchange) -> Plan | None:
        """Return the plan to begin with, None where it does not fit."""
        counts = self.counts(layers, subset)
        return None if counts is None else self.plan(layers, exchange, *counts)

    def plan(self, layers: Layers, exchange: Exchange, heads: Counts, columns: Counts, rows: Counts) -> Plan:
        h, c, r = (tuple(map(int, counts)) for counts in (heads, columns, rows))
        modes = (self.demand.mode,) * self.ranks
        return Plan(self.spec.name, self.source_hash, layers, h, c, r, self.profile.hosts, modes, *exchange)

    def counts(self, layers: Layers, subset: tuple[int, ...]) -> Division | None:
        """Return (heads, columns, rows) per rank of the job for `layers` on `subset`, or None when they do not fit."""
        key = layers, subset
        if key not in self.known:
            self.known[key] = self._counts(layers, subset)
        return self.known[key]

    def can_rows(self, layers: Layers, subset: tuple[int, ...]) -> np.ndarray:
        """Tell which ranks of the subset can hold rows; a small one may hold heads or columns only."""
        return self.room(layers, subset) >= self.by_rows(layers)

    def by_rows(self, layers: Layers) -> float:
        """Return the bytes of weights that a rank with rows needs whole."""
        by_heads, by_columns = [a for a, _ in layers].count("heads"), [m for _, m in layers].count("columns")
        return (len(layers) - by_heads) * self.attention_bytes + (len(layers) - by_columns) * self.mlp_bytes

    def _counts(self, layers: Layers, subset: tuple[int, ...]) -> Division | None:
        spec, members = self.spec, np.array(subset)
        by_heads, by_columns = [a for a, _ in layers].count("heads"), [m for _, m in layers].count("columns")
        by_rows, room, can_rows = self.by_rows(layers), self.room(layers, subset), self.can_rows(layers, subset)
        if not can_rows.any():
            return None
        if self.demand.shares is not None and not can_rows.all():  # the share is forced: it is that or nothing
            return None
        alike = subset, by_heads, by_columns, can_rows.tobytes()  # rows do not depend on how they are exchanged
        if alike not in self.divided:
            self.divided[alike] = self.divide_rows(layers, members, can_rows)
        rows = self.divided[alike]
        if layers[0][0] == "local":
            rows = np.array(splits.cut(self.pricer.lengths, rows))
        room = room - by_rows * (rows > 0)
        heads, columns = self.divide_weights(members, room, by_heads, by_columns)
        if heads is None or columns is None:
            return None
        if not by_heads and any(a == "alltoall" for a, _ in layers):  # as the rows: what a rank keeps does not travel
            heads = np.array(splits.split(spec.heads, rows, spec.group))
        result = np.zeros((3, self.ranks), np.int64)
        result[:, members] = heads, columns, rows
        return result[0], result[1], result[2]

    def room(self, layers: Layers, subset: tuple[int, ...]) -> np.ndarray:
        """Return the bytes left for split weights on each rank of the subset, after norms and activations."""
        if (key := (WHOLE,) if splits.alone(subset) else layers) not in self.inner:
            members = np.isin(np.arange(self.ranks), subset).astype(np.int64)
            plan = self.plan(layers, Exchange("reduce_scatter", "own"), members, members, members)
            plans = plan, replace(plan, tiles=(plan.rows, plan.rows))  # which it may be cut into later
            widths = tuple(map(max, zip(*(self.costs.widths(one) for one in plans))))
            every = np.array([self.largest])  # as if the rank had all rows
            inner = float(activation_bytes(self.spec, widths, self.largest, self.longest, every, np.ones(1))[0])
            self.inner[key] = max(inner, self.costs.making)
        return self.all_limits[self.pricer.members(subset).places[:, 0]] - self.costs.norm_bytes - self.inner[key]

    def seconds(self, plan: Plan) -> float:
        """Return what a plan takes by all of its layers."""
        return self.costs.whole(plan).price.seconds

    def freely(self, plan: Plan) -> tuple[int, ...]:
        """Return the rows per rank of the job that the ranks of a plan would have were what travels free."""
        rows, members = np.zeros(self.ranks, np.int64), np.array(plan.active)
        rows[members] = self.divide_rows(plan.layers, members, self.can_rows(plan.layers, plan.active), 0)
        return tuple(rows.tolist())

    def divide_rows(self, layers: Layers, members: np.ndarray, allowed: np.ndarray, number_bytes: int = FLOAT) -> np.ndarray:
        """Divide the rows, whose numbers travel in so many bytes, so that the slowest rank is done soonest."""
        spec, rows = self.spec, self.demand.rows
        if self.demand.shares is not None:
            return np.array(splits.split(rows, np.array(self.demand.shares)[members]))
        attention = 1 - [a for a, _ in layers].count("heads") / len(layers)  # the part of the layers that is computed by rows
        mlp = [m for _, m in layers].count("rows") / len(layers)
        hidden, each = spec.hidden, self.each
        among = self.pricer.members(tuple(members.tolist()))
        at, crowding = among.places[:, 0], among.crowding[:, 0]
        weights = each.attention * attention + each.mlp * mlp
        per_row = self.pricer.attention[at] * 2.0 * each.attended + self.pricer.arrange[at]
        slope = self.pricer.element[at] * 2 * hidden + self.pricer.activation[at] * spec.ffn * mlp + per_row * each.width * attention
        # sending its rows to the others is part of what a row costs a rank: K and V, or the block's input
        exchanged = number_bytes * (hidden * (1 - attention) + 2 * each.kv_width * attention)
        slope = slope + self.pricer.seconds_per_byte[np.ix_(members, members)].max(axis=1) * exchanged
        table = (self.pricer.gemm[at] * weights + slope[:, None] * np.arange(rows + 1)) * crowding[:, None]  # [ranks, rows + 1]
        table[~allowed, 1:] = np.inf
        return fill(table, rows)

    def divide_weights(
        self, members: np.ndarray, room: np.ndarray, by_heads: int, by_columns: int
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Divide heads and columns so that the slowest rank is done soonest, within `room` bytes per rank."""
        spec, pricer, rows = self.spec, self.pricer, self.demand.rows
        shares = None if self.demand.shares is None else np.array(self.demand.shares)[members]
        among = pricer.members(tuple(members.tolist()))
        at, crowding = among.places[:, 0], among.crowding[:, 0]
        gemm, each = pricer.gemm[at, rows], self.each
        groups, head_bytes = spec.kv_heads, by_heads * self.attention_bytes / spec.kv_heads
        column_bytes = by_columns * self.mlp_bytes / spec.ffn
        whole = by_heads * self.attention_bytes + by_columns * self.mlp_bytes
        fraction = np.clip(room / whole, 0, 1) if whole else np.ones(len(members))
        heads: np.ndarray | None = np.zeros(len(members), np.int64)
        columns: np.ndarray | None = np.zeros(len(members), np.int64)
        granule, granules = spec.column_granule, -(-spec.ffn // spec.column_granule)
        for rounding in (np.floor, np.ceil):  # where whole heads leave gaps, let one more head take columns' room
            if by_heads:
                limit = np.minimum(rounding(fraction * groups), most(room, head_bytes, groups))
                per_row = (pricer.attention[at] * 2.0 * each.attended + pricer.arrange[at]) * rows
                cost = (gemm * (each.attention / each.width) + per_row) * (each.width / groups) * crowding
                heads = divide(cost, groups, limit, shares)
            if heads is not None and by_columns:
                limit = most(room - heads * head_bytes, column_bytes * granule, granules)
                cost = (gemm * (each.mlp / spec.ffn) + pricer.activation[at] * rows) * granule * crowding
                units = divide(cost, granules, limit, shares)
                columns = None if units is None else np.array(splits.split(spec.ffn, units, granule))
            if heads is not None and columns is not None:
                return heads * spec.group, columns
        return None, None

    def eased(self, mapped: Candidate) -> Candidate:
        """Return the mapped candidate with weights packed on the ranks that have room for that."""
        (packed,) = self.costs.candidates([mapped.plan])
        needs, limits = packed.memory, self.costs.limits_of(mapped.plan)
        modes = tuple("packed" if need <= limit else "mapped" for need, limit in zip(needs, limits))
        memory = tuple(need if mode == "packed" else own for need, own, mode in zip(needs, mapped.memory, modes))
        return replace(mapped, plan=replace(mapped.plan, weights_mode=modes), memory=memory)

    def refusal(self) -> CapacityError:
        """Say which rank lacks how many bytes under the leanest plan that was allowed."""
        layers = (layout := self.layouts()[-1],) * self.spec.layers
        everyone = tuple(range(self.ranks)) if self.demand.shares is None else next(self.subsets())
        room = self.room(layers, everyone)
        whole = self.spec.layers * (self.attention_bytes + self.mlp_bytes)
        split = self.spec.layers * (self.attention_bytes * (layout[0] == "heads") + self.mlp_bytes * (layout[1] == "columns"))
        shares = np.array([1.0] * len(everyone) if self.demand.shares is None else [self.demand.shares[r] for r in everyone])
        lack = (whole - split) + split * shares / shares.sum() - room
        name = self.plan(layers, MPI, *[np.isin(np.arange(self.ranks), everyone)] * 3).strategy
        others = self.demand.shares is None and name == "tensor"  # divided by memory
        if others:
            lack[:] = max(common_lack(room, whole), self.attention_bytes / self.spec.kv_heads)  # at the least one head of one layer
        worst = int(np.argmin(room) if others else np.argmax(lack))
        rank = everyone[worst]
        plain = self.demand.plain(self.spec)
        mapped = _Search(self.spec, self.source_hash, self.profile, self.demand.mapped(self.spec)).costs
        making = mapped.making * (mapped.making > self.limits[rank] - mapped.norm_bytes)
        found = capacity.Lack(
            name, len(everyone), rank, self.profile.hosts[rank], lack[worst], int(self.limits[rank]), int(whole), others,
            self.demand.paging(self.spec), int(making), plain,
        )  # fmt: skip

        def room_of(count: int) -> float:
            kept = self.demand.prepacked and not (making and plain)
            fewer = replace(self.demand, prepacked=kept, rows=min(count, self.demand.rows), largest=count, longest=min(count, self.longest))
            return float(_Search(self.spec, self.source_hash, self.profile, fewer).room(layers, everyone)[worst])

        return capacity.refusal(found, room_of, self.largest, self.longest)
