"""Routes: the blocks that all ranks of a plan would send, moved by hand, against the one array that every value is a cut of."""

from itertools import product

import numpy as np
import pytest
from test_program import MODELS, PAIRS, SHARES, TILES, model_of, plan_of

from hepti_mpi.engine import routes as making
from hepti_mpi.engine import sessions
from hepti_mpi.engine.routes import TAGS, Route, Router
from hepti_mpi.program.buffers import distributions, interface
from hepti_mpi.program.build import make_program
from hepti_mpi.program.ownership import Holding, division
from hepti_mpi.program.plan import WIRES
from hepti_mpi.program.reference import rounded
from hepti_mpi.program.steps import EMBEDDED, OUTER, RESULT, Sync

OWN = [("reduce_scatter", "own", tiles, wire) for tiles in TILES for wire in WIRES]
SPEC, _ = model_of(MODELS[0])
ROWS, SPOILT = 23, 111.0  # a value that none has


class Recorded:
    """In place of a transfer: what it was made of."""

    def __init__(self, kind, tag, **parts):
        self.kind, self.tag, self.parts = kind, tag, parts


class FakeExchanges:
    def __init__(self, rank):
        self.rank = rank

    def direct(self, sends, receives, tag):
        return Recorded("direct", tag, sends=sends, receives=receives)

    def ring_gather(self, blocks, members, tag, turn):
        return Recorded("gather", tag, turn=turn, blocks=blocks, members=members)

    def ring_reduce(self, terms, result, members, tag, turn):
        return Recorded("reduce", tag, turn=turn, blocks=terms, result=result, members=members)


def transfers(route):
    """The transfers of a route, one or several together."""
    return [] if route.transfer is None else getattr(route.transfer, "transfers", [route.transfer])


def move(made):
    """Do the transfers `made`, {rank: Recorded}, which belong together."""
    (kind,) = {one.kind for one in made.values()}
    assert len({one.tag for one in made.values()}) == 1
    assert all(one.parts.get("turn") == (None if kind == "direct" else one.tag // TAGS) for one in made.values())  # as the steps come
    if kind == "direct":
        for one in made.values():
            assert {peer for peer, _ in (*one.parts["sends"], *one.parts["receives"])} <= set(made)
        for sender, receiver in product(made, repeat=2):
            sent = [block for peer, block in made[sender].parts["sends"] if peer == receiver]
            wanted = [block for peer, block in made[receiver].parts["receives"] if peer == sender]
            assert [(b.shape, b.dtype) for b in sent] == [(b.shape, b.dtype) for b in wanted]
            assert sender != receiver or not sent, "a message to itself"
            for block, target in zip(sent, wanted):
                target[...] = block
        return
    first = made[min(made)].parts["blocks"]
    for one in made.values():
        assert tuple(one.parts["members"]) == tuple(made)
        assert [block.shape for block in one.parts["blocks"]] == [block.shape for block in first]
        assert all(block.flags.c_contiguous for block in one.parts["blocks"]), "it is cut as one run of numbers"
    for place, rank in enumerate(made):
        blocks = [one.parts["blocks"][place] for one in made.values()]
        if kind == "reduce":
            made[rank].parts["result"][...] = np.sum(blocks, axis=0)
        else:
            for block in blocks:
                block[...] = blocks[place]


class Job:
    """The values of every rank of a plan as the engine keeps them, each in memory of its own."""

    def __init__(self, plan, lengths):
        self.plan, self.random = plan, np.random.default_rng(lengths)
        self.rows = division(plan, lengths, SPEC.head_dim, SPEC.hidden)
        self.program = make_program(SPEC, plan)
        self.values = distributions(self.program)

    def cut(self, whole, name, rank):
        """What a rank holds of the value `name`, which is `whole` [rows, hidden]."""
        value = self.values[name]
        box = self.rows.of(value.width).held(Holding(value.rows, value.columns), value.tile).box(rank)
        return whole[box.rows, box.columns].astype(value.dtype)

    def terms(self, step, name):
        """Whole numbers, which every type holds, of a value for each active rank."""
        shape = self.rows.tile(None).stop, self.values[name].width
        return self.random.integers(-99, 99, (len(self.plan.active), *shape)).astype(np.float32)

    def own_term(self, step, terms):
        """The float32 term of which `terms` are what travels."""
        if not step.scales:
            return terms[0]
        numbers, scales = terms
        return numbers * np.repeat(scales, numbers.shape[2] // scales.shape[2], axis=2)

    def check(self, place, step):
        """Route one exchange on every rank, move its blocks, and compare with where they come from. Returns the transfers."""
        reads, writes = interface(self.values, step)
        ranks, active, is_sum = range(self.plan.ranks), self.plan.active, step.kind in ("reduce_scatter", "allreduce")
        members = sorted({0, *active}) if step.kind in OUTER else active
        held: list[dict[str, np.ndarray]] = [{} for _ in ranks]
        wholes, every = [], [self.terms(step, read) for read in reads]
        if len(reads) > len(writes):
            every[0] = self.own_term(step, every[1:])
            for read, terms in zip(reads[1:], every[1:]):
                for number, rank in enumerate(active):
                    held[rank][read] = self.cut(terms[number], read, rank)
        for read, write, terms in zip(reads, writes, every):
            wholes.append(terms.sum(axis=0) if is_sum else terms[0])
            shape = wholes[-1].shape
            for number, rank in enumerate(active):
                held[rank][read] = self.cut(terms[number if is_sum else 0], read, rank)
                held[rank][write] = self.cut(np.full(shape, SPOILT, np.float32), write, rank)
            for name, content in ((EMBEDDED, terms[0]), (RESULT, np.full(shape, SPOILT, np.float32))):
                for rank in ranks:  # which only the root has
                    held[rank].pop(name, None)
                held[0][name] = content
        routers = [Router(FakeExchanges(rank), self.plan, self.rows, self.values, held[rank]) for rank in ranks]
        turns = [router.in_turn(step, reads, writes, place * TAGS) for router in routers]
        assert all(rank in members or route == Route() for rank in ranks for route in turns[rank])
        made = []
        for routes in zip(*(turns[rank] for rank in members), strict=True):
            for route in routes:
                route.begin()
            together = [dict(zip(members, some)) for some in zip(*map(transfers, routes), strict=True)]
            for some in together:
                move(some)
            for route in routes:
                route.end()
            made += together
        tags = [some[members[0]].tag for some in made]
        assert len(set(tags)) == len(tags) and all(place * TAGS <= tag < (place + 1) * TAGS for tag in tags)
        tile = self.rows.tile(step.tile)
        for (write, whole), rank in product(zip(writes, wholes), (0,) if step.kind == "gatherv" else active):
            expected = np.full(whole.shape, SPOILT, np.float32)  # what is of other tiles is left alone
            expected[tile] = whole[tile]
            np.testing.assert_array_equal(held[rank][write], self.cut(expected, write, rank), f"{step} on rank {rank}")
        return made


@pytest.mark.parametrize("mode", OWN, ids="-".join)
@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_every_exchange_brings_what_is_there(pair, mode):
    """Values of all layouts, ranks without rows, heads or columns, small requests that leave tiles empty, and a short wire; all shares with
    all lengths, each on two or one of three wires."""
    for number, (shares, lengths) in enumerate(product(SHARES[:10], [(ROWS,), (4, 3), (1,)])):
        if (number + number // 3 + WIRES.index(mode[3])) % 2:
            continue
        job = Job(plan_of(SPEC, (pair,) * SPEC.layers, shares, shares[::-1], shares, mode, ROWS), lengths)
        for place, step in enumerate(job.program):
            if isinstance(step, Sync):
                every = [one.parts for some in job.check(place, step) for one in some.values()]
                moved = [block for parts in every for kind in ("sends", "receives") for _, block in parts.get(kind, ())]
                moved += [block for parts in every for block in parts.get("blocks", ())]
                short = {mode[3], *["float32"] * bool(step.scales)}
                assert {block.dtype.name for block in moved} <= ({"float32"} if step.kind in OUTER else short)


@pytest.mark.parametrize("pair", [("heads", "columns"), ("heads", "rows"), ("rows", "columns"), ("rows", "rows")], ids="/".join)
def test_emulated_boards_bring_by_messages_what_collectives_do(pair):
    """Straight from who has a block to who needs it, however uneven; a whole sum in two turns."""
    kinds = set()
    for shares, lengths in product(SHARES[:10], [(ROWS,), (4, 3), (1,)]):
        mode = ("allreduce", "mpi", "none", "float32")
        job = Job(plan_of(SPEC, (pair,) * SPEC.layers, shares, shares[::-1], shares, mode, ROWS), lengths)
        for place, step in enumerate(job.program):
            if isinstance(step, Sync) and step.kind != "slice":
                kinds.update((step.kind, one.kind) for some in job.check(place, step) for one in some.values())
    assert {way for _, way in kinds} == {"direct"}
    assert (("allreduce", "direct") in kinds) == (pair == ("heads", "columns"))


@pytest.mark.parametrize("rows, wire, gather, reduce", [
    ((5, 5, 5), "float32", "direct", "direct"),
    ((6, 5, 5), "float32", "direct", "direct"),  # 12 rows on the busiest link against 11: a ring gains too little
    ((9, 3, 3), "float32", "gather", "reduce"),  # 18 against 12
    ((9, 3, 3), "float16", "gather", "direct"),  # a ring would round the sum once per rank
    ((9, 3, 3), "int8", "gather", "direct"),
    ((9, 3), "float32", "direct", "direct"),
    ((15, 0, 0), "float32", "gather", "reduce"),
])  # fmt: skip
def test_uneven_blocks_go_round(rows, wire, gather, reduce):
    even, mode = (1,) * len(rows), ("reduce_scatter", "own", "none", wire)
    job = Job(plan_of(SPEC, (("heads", "columns"),) * SPEC.layers, even, even, rows, mode, sum(rows)), (sum(rows),))
    seen = {(step.kind, one.kind) for place, step in enumerate(job.program) if isinstance(step, Sync) and step.kind not in OUTER
            for some in job.check(place, step) for one in some.values()}  # fmt: skip
    assert seen == {("allgatherv", gather), ("reduce_scatter", reduce)}


@pytest.mark.parametrize("collectives, reduction, ways", [
    ("own", "reduce_scatter", {("allgatherv", "gather"), ("reduce_scatter", "reduce")}),
    ("mpi", "reduce_scatter", {("allgatherv", "gather"), ("reduce_scatter", "reduce")}),
    ("mpi", "allreduce", {("allreduce", "reduce"), ("allreduce", "gather"), ("reduce_scatter", "reduce")}),
])  # fmt: skip
def test_long_blocks_go_round_where_they_are_alike_too(collectives, reduction, ways, monkeypatch):
    monkeypatch.setattr(making, "RING_BLOCK", 5 * 4 * SPEC.hidden)
    for rows, expected in (((5, 5, 5), ways), ((4, 4, 4), {(kind, "direct") for kind, _ in ways})):
        even, mode = (1, 1, 1), (reduction, collectives, "none", "float32")
        job = Job(plan_of(SPEC, (("heads", "columns"),) * SPEC.layers, even, even, rows, mode, sum(rows)), (sum(rows),))
        seen = {(step.kind, one.kind) for place, step in enumerate(job.program) if isinstance(step, Sync) and step.kind not in OUTER
                for some in job.check(place, step) for one in some.values()}  # fmt: skip
        assert seen == expected


@pytest.mark.parametrize("lengths", [(ROWS,), (4, 3), (1,)])
@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("tiles", [*TILES, "whole requests"])
def test_rows_lie_tile_after_tile_and_rank_after_rank(tiles, shares, lengths):
    pair = ("local", "rows") if tiles == "whole requests" else PAIRS[0]
    mode = ("reduce_scatter", "own", "none" if tiles == "whole requests" else tiles, "float32")
    plan = plan_of(SPEC, (pair,) * SPEC.layers, shares, shares, shares, mode, ROWS)
    places, numbers = division(plan, lengths, SPEC.head_dim, SPEC.hidden), np.arange(sum(lengths))
    own = [[numbers[places.own(tile, rank)].tolist() for rank in range(plan.ranks)] for tile in range(len(places.counts))]
    assert sum((part for tile in own for part in tile), []) == numbers.tolist() == numbers[places.tile(None)].tolist()
    assert [sum(tile, []) for tile in own] == [numbers[places.tile(tile)].tolist() for tile in range(len(own))]
    counts = tuple(tuple(map(len, tile)) for tile in own)
    assert counts == places.counts
    assert counts == plan.counts(lengths)
    if len(plan.active) == 1:
        assert counts == (tuple(len(numbers) * (rank in plan.active) for rank in range(plan.ranks)),)


@pytest.mark.parametrize("rows", [1, 7, 128])
def test_short_terms_are_summed_as_numpy_would(rows):
    random = np.random.default_rng(rows)
    terms = [(random.standard_normal((rows, 9)) * 10.0 ** random.integers(-9, 5, (rows, 9))).astype(np.float32) for _ in range(4)]
    halves = [(term.astype(np.float16),) for term in terms[1:]]
    found = np.full((rows, 9), np.nan, np.float32)
    sessions.add_short(found, terms[0], halves)()
    np.testing.assert_array_equal(found, terms[0] + halves[0][0] + halves[1][0] + halves[2][0])
    pairs = [rounded(term, 3) for term in terms[1:]]
    sessions.add_short(found, terms[0], pairs)()
    expected = terms[0].copy()
    for numbers, scales in pairs:
        expected += numbers * np.repeat(scales, 3, axis=1)
    np.testing.assert_array_equal(found, expected)
    off, scales = np.abs(expected - sum(terms)), sum(np.repeat(scales, 3, axis=1) for _, scales in pairs)
    assert (off <= 0.51 * scales).all(), "half a step of each"
