"""Programs, walked by a small NumPy interpreter over simulated ranks and compared with the plain forward pass.

The interpreter keeps values in the numbered buffers of `buffers`, spoils what a step is going to write before the step reads, and
multiplies by nothing but the slices that `Part` names: a wrong step, a wrong slice, a buffer that is used twice and a step that
does not wait for another all end in a wrong answer.
"""

import heapq
from dataclasses import replace
from functools import cache
from itertools import product

import made_plans
import numpy as np
import pytest
from layers import MADE, odd_model, sized

from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.reference import forward
from hepti_mpi.program.buffers import Laid, buffers, dependencies, distributions, interface, key, named
from hepti_mpi.program.build import make_program
from hepti_mpi.program.ops import Cast, Mix
from hepti_mpi.program.ownership import Holding, division
from hepti_mpi.program.plan import check
from hepti_mpi.program.reference import REFERENCES, Where
from hepti_mpi.program.steps import EMBEDDED, OUTER, RESULT, Compute, Sync, Value
from hepti_mpi.weights.slices import Part

ROWS = 9
MODELS = ("tiny-bert", "tiny-vit")  # post-norm, pre-norm; others are in MADE
PAIRS = tuple(product(("heads", "rows", "alltoall", "recompute"), ("columns", "rows")))
TILES = {  # per tile, the shares of the ranks in it, from their shares of all rows
    "none": lambda shares: (),
    "two": lambda shares: (shares, shares[::-1]),
    "some ranks missing": lambda shares: tuple(tuple(s * (rank % 3 != tile) for rank, s in enumerate(shares)) for tile in range(3)),
}
MODES = [  # reduction, collectives, tiles, wire
    ("allreduce", "mpi", "none", "float32"), ("reduce_scatter", "mpi", "none", "float32"), ("reduce_scatter", "own", "none", "float32"),
    ("reduce_scatter", "own", "two", "float32"), ("reduce_scatter", "own", "some ranks missing", "float32"),
    ("reduce_scatter", "own", "none", "float16"), ("reduce_scatter", "own", "two", "float16"),
    ("allreduce", "own", "some ranks missing", "float16"), ("reduce_scatter", "own", "two", "int8"),
    ("reduce_scatter", "own", "two", ("int8", "float32", "float16")),
]  # fmt: skip
TILED, SHORT = MODES[3], MODES[6]
SHARES = [
    (1,),
    (0, 1),
    (1, 0),
    (1, 1),
    (5, 2),
    (1, 0, 3),
    (0, 2, 1),
    (0, 1, 0),
    (5, 1, 1, 1),
    (1, 2, 3, 4, 5),
    (9, 0, 0, 1, 0, 1),
    (1,) * 7,
]


def possible(layers, mode):
    """Whether a plan may be so: MPI has no alltoall of this kind, and own exchanges do not reduce to all."""
    used = {layout for pair in layers for layout in pair}
    return "alltoall" not in used if mode[1] == "mpi" else mode[0] == "reduce_scatter" or not used & {"heads", "columns"}


@cache
def model_of(name):
    """The spec and float64 weights, large enough that a missing term, bias or norm shows."""
    if name in MADE:
        model = odd_model(name)
        return model.spec, {weight: values.astype(np.float64) for weight, values in model.weights()}
    model = random_model(name)
    random = np.random.default_rng(7)
    weights = {}
    for weight, values in model.weights():
        near = 1.0 if weight.endswith("norm.weight") else 0.0
        weights[weight] = near + random.normal(0, 0.25, values.shape)
    return model.spec, weights


@cache
def case_of(name, lengths, number):
    """Embedded rows and the answer."""
    spec, weights = model_of(name)
    x = np.random.default_rng([number, *lengths]).normal(0, 1, (sum(lengths), spec.hidden))
    return x, forward(spec, weights, x, lengths)


def plan_of(spec, layers, heads, columns, rows, mode=MODES[0], total=ROWS):
    """A plan by shares in one of MODES, which is none that is refused."""
    tiles, how = TILES[mode[2]](rows), {"reduction": mode[0], "collectives": mode[1], "wire": mode[3]}
    plan = made_plans.plan_of(spec, layers, heads, columns, rows, total, tiles, **how)
    check(plan, spec, "hash", plan.ranks)
    return plan


class Rank:
    """One simulated rank: its slices of the weights and its buffers, which hold stale values as those of the engine do."""

    def __init__(self, spec, weights, plan, values, numbers, rank, lengths):
        self.spec, self.weights, self.rank, self.active = spec, weights, rank, rank in plan.active
        self.mine, self.values, self.numbers = Part(spec, plan, rank), values, numbers
        self.request, self.at = np.repeat(np.arange(len(lengths)), lengths), np.concatenate([np.arange(length) for length in lengths])
        rows = sum(lengths)
        counts = plan.counts(lengths)
        ends = np.cumsum(counts).reshape(len(counts), -1)
        self.own = [[slice(end - count, end) for end, count in zip(*pair)] for pair in zip(ends, counts)]  # [tiles][ranks]
        self.tiles = {tile: slice(own[0].start, own[-1].stop) for tile, own in enumerate(self.own)} | {None: slice(0, rows)}
        self.memory = {self.numbers[name]: np.full(self.shape(self.values[name]), np.nan) for name in self.numbers if self.active}
        self.root, self.places = {}, {}
        self.used, self.known, self.random = set(), {}, np.random.default_rng(rank)

    def forget(self):
        """Leave nothing of the requests before in the buffers."""
        for values in self.memory.values():
            values.fill(np.nan)

    def shape(self, value):
        rows = self.tiles[value.tile] if value.rows == "full" else self.own[value.tile][self.rank]
        return rows.stop - rows.start, value.width if value.columns == "hidden" else self.mine.heads * value.width // self.spec.heads

    def get(self, name, tile):
        if name in (EMBEDDED, RESULT):
            return self.root[name]
        if (name, tile) not in self.places:
            self.places[name, tile] = self.memory[self.numbers[named(self.values, name, tile)]]
        return self.places[name, tile]

    def part(self, name, tile):
        """What a step of a tile writes of a value: its rows, where the value spans all tiles."""
        whole = name in self.values and name not in (EMBEDDED, RESULT)
        return self.get(name, tile)[self.tiles[tile]] if whole else self.get(name, tile)

    def held(self, step):
        """Return the operations of a step with the weights that this rank has of each, None where it takes no part: alike in every tile."""
        if id(step.ops) not in self.known:
            self.known[id(step.ops)] = found = []
            for op in step.ops:
                slices = self.mine.op(op, step.distribution)
                self.used.update(slices.values())
                own = {short: self.weights[piece.name][piece.first : piece.first + piece.shape[0]] for short, piece in slices.items()}
                assert all(own[short].shape == piece.shape for short, piece in slices.items())
                found.append((op, own if self.mine.takes_part(op, step.distribution) else None))
        return self.known[id(step.ops)]

    def compute(self, step):
        rows = self.tiles[step.tile] if step.distribution == "full" else self.own[step.tile][self.rank]
        inside, zeros = {name: self.get(name, step.tile) for name in step.reads}, set()
        targets = {name: self.part(name, step.tile) for name in step.writes}
        for target in targets.values():
            target.fill(np.nan)
        for op, own in self.held(step):
            if own is not None:
                assert not zeros & set(op.reads), f"{op.label} of layer {op.layer} reads what this rank has no part in"
                inside |= zip(op.writes, self.run(op, own, [inside[name] for name in op.reads], rows), strict=True)
            else:
                heads, all_ = (self.mine.heads, self.spec.heads) if op.gives().axis == "heads" else (1, 1)
                shapes = {name: (rows.stop - rows.start, width * heads // all_) for name, width in zip(op.writes, op.widths())}
                inside |= {name: np.zeros(shape) for name, shape in shapes.items()}
                zeros.update(op.writes)
        for name, target in targets.items():
            assert inside[name].shape == target.shape, name
            target[...] = inside[name]

    def run(self, op, w, reads, rows):
        if isinstance(op, Cast):  # not rounded but marked, so that a value without its cast, or with two of them, gives a wrong answer
            return self.cast(op, reads)
        keys = rows if len(reads[-1]) < len(self.request) else slice(None)  # those of whole requests are at hand alone
        return REFERENCES[type(op)](op, w, reads, Where(self.request[rows], self.request[keys], self.at[rows], self.at[keys]))

    def cast(self, op, reads):
        if op.dtype == "int8":
            scales = [0.5 + self.random.integers(0, 9, (len(values), values.shape[1] // op.block)) for values in reads]
            return [part for values, scale in zip(reads, scales) for part in (values / np.repeat(scale, op.block, axis=1), scale)]
        if op.scales:
            return [longer(*pair) for pair in zip(reads[::2], reads[1::2], strict=True)]
        return [values * 2 if op.dtype == "float16" else longer(values) for values in reads]


def longer(values, scales=None):
    """What travelled, as it was before."""
    return values * 0.5 if scales is None else values * np.repeat(scales, values.shape[1] // max(1, scales.shape[1]), axis=1)


class Job:
    """All ranks of a plan, and the messages between them."""

    def __init__(self, name, plan, lengths=(ROWS,)):
        self.name, self.plan, self.lengths = name, plan, lengths
        spec, weights = model_of(name)
        spec = replace(spec, layers=len(plan.layers))
        self.program = make_program(spec, plan)
        self.values, self.division = distributions(self.program), division(plan, lengths, 1, spec.heads)
        held = self.values, buffers(Laid(self.program))
        self.ranks = {rank: Rank(spec, weights, plan, *held, rank, lengths) for rank in sorted({0, *plan.active})}
        for rank in self.ranks.values():
            vars(rank.mine)["program"] = self.program  # which each would make again
        self.routed, self.boxes = {}, {}

    def compare(self, number=0, **order):
        """Answer one request, on the buffers that the one before has left."""
        x, expected = case_of(self.name, self.lengths, number)
        self.ranks[0].root = {EMBEDDED: x, RESULT: np.full(x.shape, np.nan)}
        self.received = {}  # (step, rank) -> its blocks, which `end` takes as `begin` found them
        self.sent = [{} for _ in self.program]  # per step, what each rank that has come so far sends; None: its buffers as they are
        if order:
            self.in_any_order(**order)
        else:
            self.in_order()
        np.testing.assert_allclose(self.ranks[0].root[RESULT], expected, rtol=0, atol=1e-9)

    def in_order(self):
        for place in range(len(self.program)):
            for rank in self.ranks:
                self.begin(place, rank, True)
            assert all([self.end(place, rank) for rank in self.ranks])

    def in_any_order(self, needed, priority, early=lambda: True):
        """Every rank does steps for itself, of those that `needed` allows the one of lowest priority(place, rank) first."""
        missing = {rank: [len(places) for places in needed] for rank in self.ranks}
        followers = [[] for _ in needed]
        for later, places in enumerate(needed):
            for place in places:
                followers[place].append(later)
        heap = [(priority(place, rank), place, rank, False) for place, some in enumerate(needed) if not some for rank in self.ranks]
        heapq.heapify(heap)
        waiting, left = [[] for _ in needed], len(needed) * len(self.ranks)
        while heap:
            _, place, rank, flying = heapq.heappop(heap)
            if not flying:
                self.begin(place, rank, early())
                for again in [*waiting[place], rank]:  # the message that they wait for may be this one
                    heapq.heappush(heap, (priority(place, again), place, again, True))
                waiting[place] = []
            elif not self.end(place, rank):
                waiting[place].append(rank)
            else:
                left -= 1
                for later in followers[place]:
                    missing[rank][later] -= 1
                    if not missing[rank][later]:
                        heapq.heappush(heap, (priority(later, rank), later, rank, False))
        assert left == 0, "ranks wait for each other"

    def begin(self, place, number, early):
        """Compute; or begin to send, and spoil what messages may overwrite from now on. `early`: the messages leave at once."""
        step, rank = self.program[place], self.ranks[number]
        if isinstance(step, Compute):
            if rank.active:
                rank.compute(step)
            return
        self.sent[place][number] = self.reads(place, number) if early else None
        blocks = self.received[place, number] = self.blocks(place, number)
        for target, *_ in blocks:
            target.fill(np.nan)

    def reads(self, place, number):
        step, rank = self.program[place], self.ranks[number]
        has = number == 0 if step.reads == (EMBEDDED,) else rank.active
        return [rank.get(name, step.tile).copy() for name in step.reads] if has else []

    def end(self, place, number):
        """Receive, where all has been sent; tell whether it has."""
        step, sent = self.program[place], self.sent[place]
        if isinstance(step, Compute):
            return True
        blocks = [block for block in self.received[place, number] if block[0].size]
        if not all(sender in sent for _, sender, *_ in blocks):
            return False
        for target, *_ in blocks:
            target.fill(0)
        for target, sender, part, which in blocks:
            values = sent[sender] if sent[sender] is not None else self.reads(place, sender)
            if step.have.terms and step.wire != "float32" and sender != number:
                values = [longer(*values[1:])]
            assert values[which][part].shape == target.shape
            target += values[which][part]
        if sent[number] is None:
            sent[number] = self.reads(place, number)  # nobody can take them later
        return True

    def blocks(self, place, number):
        """What a rank receives in an exchange: (where to, from whom, which part of what is sent, of which value); the sum counts."""
        rank, tile = self.ranks[number], self.program[place].tile
        return [(rank.get(write, tile)[target], *others) for write, target, *others in self.routes(place)[number]]

    def routes(self, place):
        """Per rank what it receives in an exchange, with the value that it is for and where in that it goes."""
        if place not in self.routed:
            sync, found = self.program[place], {number: [] for number in self.ranks}
            for which, (read, write) in enumerate(zip(sync.reads, sync.writes)):
                division = self.division.of(self.values[named(self.values, read, sync.tile)].width)
                for giver, taker, box in division.moves(sync.have, sync.want, sync.tile):
                    target, part = (box.inside(self.box(*held, sync.tile)) for held in ((taker, write), (giver, read)))
                    found[taker].append((write, target, giver, part, which))
            self.routed[place] = found
        return self.routed[place]

    def box(self, number, name, tile):
        """What a rank keeps of a value."""
        if (number, name, tile) not in self.boxes:
            value = self.values[named(self.values, name, tile)]
            self.boxes[number, name, tile] = self.division.of(value.width).held(Holding(value.rows, value.columns), value.tile).box(number)
        return self.boxes[number, name, tile]


def compare(name, plan, lengths=(ROWS,)):
    job = Job(name, plan, lengths)
    job.compare()
    for number in plan.active:
        assert job.ranks[number].used == set(job.ranks[number].mine.of_layers)


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("name", MODELS)
def test_uniform_layouts_over_one_to_seven_ranks(name, pair):
    """Every layout, mode and shares, on one of the models in turn."""
    spec, _ = model_of(name)
    for (place, mode), (number, shares) in product(enumerate(MODES), enumerate(SHARES)):
        if possible([pair], mode) and (place + number + MODELS.index(name)) % len(MODELS) == 0:
            compare(name, plan_of(spec, (pair,) * spec.layers, shares, shares, shares, mode))


def latin(some):
    """Three layers each, so that any two stand in any two of the three places."""
    return [(one, other, some[(a + b) % len(some)]) for (a, one), (b, other) in product(enumerate(some), repeat=2)]


@pytest.mark.parametrize("mode", [MODES[0], MODES[1], TILED, SHORT], ids="-".join)
def test_mixes_of_layouts_over_the_layers(mode):
    """On one of the models in turn."""
    for number, layers in enumerate(latin([pair for pair in PAIRS if possible([pair], mode)])):
        name = MODELS[number // 3 % 2]
        compare(name, plan_of(model_of(name)[0], layers, (5, 1, 1, 1), (1, 0, 2, 4), (1, 3, 0, 1), mode))


@pytest.mark.parametrize("pair, exchanges", [
    (("heads", "columns"), 4), (("heads", "rows"), 2), (("rows", "rows"), 1), (("rows", "columns"), 3), (("alltoall", "rows"), 3),
    (("recompute", "rows"), 1),
])  # fmt: skip
@pytest.mark.parametrize("name", MODELS)
def test_every_exchange_has_the_type_of_its_layer(name, pair, exchanges):
    """With what brings rows together for a block: of the one before, but for the first. The input and the result are float32."""
    spec, _ = model_of(name)
    plan = plan_of(spec, (pair,) * 3, (1, 2), (1, 2), (1, 2), MODES[-1])
    steps = [step for step in make_program(spec, plan) if isinstance(step, Sync) and step.tile == 0]
    found = [step.wire for step in steps if step.kind not in OUTER]
    expected = [wire for wire in plan.wires for _ in range(exchanges)]
    if pair[0] == "heads":  # behind the last layer nobody wants all rows
        expected = [plan.wires[0], *expected[:-1]]
    assert found == expected and {step.wire for step in steps if step.kind in OUTER} == {"float32"}


@pytest.mark.parametrize("heads, columns, rows", [
    ((7, 0, 0), (0, 3, 4), (1, 1, 0)),  # heads without columns, columns without heads, and one without rows
    ((0, 1, 0), (1, 0, 0), (0, 0, 1)),  # each rank does another thing
    ((0, 3, 4), (0, 50, 51), (1, 0, 0)),  # the root has rows only
    ((0, 1, 1, 0), (0, 0, 1, 1), (0, 1, 0, 1)),  # the root has nothing
])  # fmt: skip
def test_shares_that_differ_between_heads_columns_and_rows(heads, columns, rows):
    for number, (mode, pair) in enumerate(product(MODES, PAIRS)):
        other = PAIRS[(PAIRS.index(pair) + 1) % len(PAIRS)]
        for name, layers in zip(MODELS if number % 3 else MODELS[::-1], ((pair,) * 3, (pair, other, pair))):
            spec, _ = model_of(name)
            if possible(layers, mode):
                compare(name, plan_of(spec, layers, heads, columns, rows, mode))


@pytest.mark.parametrize("lengths", [(1,), (2,), (17,), (4, 1, 7), (1, 1, 1)])
def test_requests_of_other_sizes_and_packed_requests(lengths):
    every = ((PAIRS[0], PAIRS[3], PAIRS[1]), (PAIRS[2], PAIRS[4], PAIRS[7]), *((pair,) * 3 for pair in PAIRS[2:]))
    for number, (layers, mode) in enumerate(product(every, MODES)):  # each on both models, with one length or another
        name = MODELS[(number + sum(lengths)) % 2]
        if possible(layers, mode):
            compare(name, plan_of(model_of(name)[0], layers, (1, 0, 3), (2, 2, 3), (3, 1, 1), mode), lengths)


@pytest.mark.parametrize("name", MADE)
def test_layers_of_all_kinds(name):
    """Requests that are cut in the middle, in tiles too, and ranks without heads, columns or rows: every mode and layout of two models,
    with one of the shares, and of the others as many as bring each layout with each of the shares."""
    spec, _ = model_of(name)
    every = product((((1,),) * 3, ((0, 1, 1), (5, 0, 2), (1, 1, 0))), MODES, (*PAIRS, ("local", "rows")))
    for (heads, columns, rows), mode, pair in list(every)[:: 2 if name in ("grouped", "parallel") else 5]:
        other = PAIRS[(PAIRS.index(pair) + 3) % len(PAIRS)] if pair in PAIRS else pair
        for layers, lengths in (((pair,) * 3, (ROWS,)), ((pair, other, pair), (4, 1, 7))):
            if possible(layers, mode) and (pair in PAIRS or mode[2] == "none"):
                compare(name, plan_of(spec, layers, heads, columns, rows, mode), lengths)


@pytest.mark.parametrize("pair", [("local", "rows"), ("local", "columns")], ids="/".join)
@pytest.mark.parametrize("lengths", [(ROWS,), (4, 1, 7), (1, 1, 1), (2, 3, 1, 5, 2, 2)])
def test_whole_requests_on_a_rank(pair, lengths):
    for number, (mode, shares) in enumerate(product((*MODES[:3], MODES[5]), SHARES)):  # on both models, with one length or another
        name = MODELS[(number + sum(lengths)) % 2]
        spec, _ = model_of(name)
        if possible([pair], mode):
            compare(name, plan_of(spec, (pair,) * spec.layers, shares, shares, shares, mode), lengths)


# any order


def orders(random):
    """What the ranks may do first: whatever, the latest step that can be done, or all that one rank can do before the others."""
    return {
        "random": lambda place, rank: random.random(),
        "latest": lambda place, rank: (-place, random.random()),
        "one rank ahead": lambda place, rank: (rank, random.random()),
    }


def in_any_order(name, plan, seed):
    job, random = Job(name, plan, (4, 1, 7)), np.random.default_rng(seed)
    for number, priority in enumerate(orders(random).values()):  # on the buffers of the request before
        job.compare(number, needed=dependencies(job.program), priority=priority, early=lambda: random.random() < 0.5)


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("name", MODELS)
def test_any_order_that_the_dependencies_allow(name, pair):
    spec, _ = model_of(name)
    for number, (mode, shares) in enumerate(product(MODES[2:], [(0, 1), (1, 0, 3), (1, 2, 3, 4, 5)])):
        if possible([pair], mode) and (number + MODELS.index(name)) % len(MODELS) == 0:
            in_any_order(name, plan_of(spec, (pair,) * spec.layers, shares, shares, shares, mode), len(shares))


@pytest.mark.parametrize("name", MODELS)
def test_any_order_of_mixed_layers(name):
    spec, _ = model_of(name)
    for seed in range(MODELS.index(name), 60, len(MODELS)):
        random = np.random.default_rng(seed)
        layers = tuple(PAIRS[place] for place in random.integers(len(PAIRS), size=spec.layers))
        mode = MODES[random.integers(2, 7)]
        in_any_order(name, plan_of(spec, layers, (2, 0, 1, 1), (1, 1, 0, 2), (1, 2, 3, 0), mode), seed)


def all_before(needed):
    """Per step, all that must be done before it."""
    before = []
    for places in needed:
        before.append(set(places).union(*(before[place] for place in places)))
    return before


def edges(needed):
    """Pairs (earlier, later) where nothing else makes the later step wait for the earlier one."""
    before = all_before(needed)
    return [(one, place) for place, places in enumerate(needed) for one in places if not any(one in before[other] for other in places)]


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_without_any_one_dependency_the_answer_is_wrong(pair):
    """In a model and with a wire in turn: what waits for what is said by reads, writes and buffers, whatever the layout."""
    number = PAIRS.index(pair)
    name, mode = MODELS[number % 2], (TILED, SHORT)[number // 2 % 2]
    spec, _ = model_of(name)
    plan, wrong = plan_of(spec, (pair,) * spec.layers, (1, 1), (1, 1), (1, 1), mode), 0
    job = Job(name, plan)
    needed = dependencies(job.program)
    for one, place in edges(needed):
        first, second = job.program[one], job.program[place]
        kinds = [step.kind if isinstance(step, Sync) else "" for step in (first, second)]
        if kinds == ["to_rows", "to_heads"] and first.tile != second.tile:
            continue  # two tiles of one buffer, which is told from another as a whole: a wait that is not needed
        fewer = (*needed[:place], needed[place] - {one}, *needed[place + 1 :])
        for rank in job.ranks.values():
            rank.forget()
        briefly = np.printoptions(threshold=0, edgeitems=1)  # arrays in the message take longer than the answer
        with briefly, pytest.raises(AssertionError, match="Not equal to tolerance"):
            job.compare(needed=fewer, priority=lambda place, rank, late=one: (place == late, place))
        wrong += 1
    assert wrong > 20


@pytest.mark.parametrize("mode", [TILED, SHORT], ids="-".join)
@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_a_tile_may_travel_while_the_next_is_computed(pair, mode):
    """No exchange of tile 0 need be over before the same exchange of tile 1 begins."""
    spec, _ = model_of("tiny-vit")
    program = make_program(spec, plan_of(spec, (pair,) * spec.layers, (1, 1), (1, 1), (1, 1), mode))
    before, inner = all_before(dependencies(program)), 0
    for place, step in enumerate(program):
        if isinstance(step, Sync) and step.tile == 0:
            assert place not in before[program.index(replace(step, tile=1))]
            inner += step.kind not in OUTER
    assert inner >= spec.layers




@pytest.mark.parametrize("mode", [pytest.param(TILED, id="float32"), pytest.param(SHORT, id="float16")])
@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_a_tile_leaves_before_the_next_is_computed(pair, mode):
    """The engine computes in program order what it can: an exchange of tile 0 comes before the last product that tile 1 sends."""
    spec, _ = model_of("tiny-vit")
    program = make_program(spec, plan_of(spec, (pair,) * spec.layers, (1, 1), (1, 1), (1, 1), mode))
    before, inner = all_before(dependencies(program)), 0
    for place, step in enumerate(program):
        if isinstance(step, Sync) and step.tile == 0:
            twin = program.index(replace(step, tile=1))
            made = [p for p in before[twin] if isinstance(program[p], Compute) and not all(isinstance(op, Cast) for op in program[p].ops)]
            if made and program[max(made)].tile == 1:
                assert place < max(made)
                inner += 1
    assert inner >= spec.layers


# what is exchanged


def steps(program):
    """Names of the steps: "-" is a Compute, a number after an exchange tells of how many values."""
    return [f"{s.kind}{len(s.writes) if len(s.writes) > 1 else ''}" if isinstance(s, Sync) else "-" for s in program]


EXCHANGES = [  # (attention, mlp), reduction, norm, what a layer of many exchanges
    (("heads", "columns"), "allreduce", "post", ["allreduce", "allreduce"]),
    (("heads", "columns"), "allreduce", "pre", ["allreduce", "allreduce"]),
    (("heads", "columns"), "reduce_scatter", "post", ["reduce_scatter", "allgatherv", "reduce_scatter", "allgatherv"]),
    (("heads", "columns"), "reduce_scatter", "pre", ["reduce_scatter", "allgatherv", "reduce_scatter", "allgatherv"]),
    (("rows", "rows"), "allreduce", "post", ["allgatherv2"]),
    (("rows", "rows"), "reduce_scatter", "pre", ["allgatherv2"]),
    (("heads", "rows"), "allreduce", "post", ["reduce_scatter", "allgatherv"]),
    (("heads", "rows"), "allreduce", "pre", ["reduce_scatter", "allgatherv"]),
    (("rows", "columns"), "allreduce", "post", ["allgatherv2", "allgatherv", "reduce_scatter"]),
    (("rows", "columns"), "reduce_scatter", "pre", ["allgatherv2", "allgatherv", "reduce_scatter"]),
    (("recompute", "rows"), "allreduce", "post", ["allgatherv"]),
    (("recompute", "columns"), "reduce_scatter", "pre", ["allgatherv", "allgatherv", "reduce_scatter"]),
    (("alltoall", "rows"), "reduce_scatter", "post", ["to_heads2", "to_heads", "to_rows"]),
    (("alltoall", "columns"), "reduce_scatter", "pre", ["to_heads2", "to_heads", "to_rows", "allgatherv", "reduce_scatter"]),
]


@pytest.mark.parametrize("pair, mode, norm, expected", [
    (pair, mode, norm, expected * (2 if mode == TILED else 1)) for pair, reduction, norm, expected in EXCHANGES  # each tile for itself
    for mode in MODES[:4] if mode[0] == reduction and possible([pair], mode)
])  # fmt: skip
def test_exchanges_of_an_inner_layer(pair, mode, norm, expected):
    spec = sized(model_of("tiny-bert")[0], layers=9, norm=norm)
    kinds = []
    for layers in (7, 8, 9):  # first and last layer differ: what one more layer adds is what an inner one exchanges
        smaller = replace(spec, layers=layers)
        plan = plan_of(smaller, (pair,) * layers, (2, 1), (2, 1), (2, 1), mode)
        kinds.append(sorted(kind for kind in steps(make_program(smaller, plan)) if kind != "-"))
    assert kinds[0].count("slice") == kinds[2].count("slice") <= (mode[0] == "allreduce")
    for fewer, more in zip(kinds, kinds[1:]):
        for kind in expected:
            assert more.count(kind) - fewer.count(kind) == expected.count(kind)
        assert len(more) - len(fewer) == len(expected)


ONLY_LAYER = [  # (attention, mlp), norm, all steps of a model of one layer
    (("heads", "columns"), "post", "bcast - allreduce - reduce_scatter slice - gatherv"),
    (("heads", "columns"), "pre", "bcast - allreduce - reduce_scatter slice - gatherv"),
    (("rows", "rows"), "post", "scatterv - allgatherv2 - - - gatherv"),
    (("rows", "rows"), "pre", "scatterv - allgatherv2 - - - gatherv"),
    (("heads", "rows"), "pre", "bcast - reduce_scatter slice - gatherv"),
    (("rows", "columns"), "post", "scatterv - allgatherv2 - - - allgatherv - reduce_scatter - gatherv"),
    (("rows", "columns"), "pre", "scatterv - allgatherv2 - - - allgatherv - reduce_scatter - gatherv"),
    (("recompute", "rows"), "post", "scatterv allgatherv - - - - gatherv"),
    (("recompute", "rows"), "pre", "scatterv - allgatherv - - - - gatherv"),
    (("alltoall", "rows"), "post", "scatterv - to_heads2 - to_heads - to_rows - gatherv"),
    (("alltoall", "columns"), "pre", "scatterv - to_heads2 - to_heads - to_rows - allgatherv - reduce_scatter - gatherv"),
]


@pytest.mark.parametrize("pair, norm, expected", ONLY_LAYER)
def test_no_step_too_many(pair, norm, expected):
    spec, mode = sized(model_of("tiny-bert")[0], layers=1, norm=norm), MODES[2] if "alltoall" in pair else MODES[0]
    assert " ".join(steps(make_program(spec, plan_of(spec, (pair,), (2, 1), (2, 1), (2, 1), mode)))) == expected


SHORT_LAYER = [  # (attention, mlp), all operations and exchanges of a post-norm model of one layer with a short wire
    (("heads", "columns"), "scatterv to_float16 allgatherv to_float32 project_qkv_heads+mix_heads+out_heads to_float16 reduce_scatter "
                           "add_norm to_float16 allgatherv to_float32 mlp_columns to_float16 reduce_scatter add_norm gatherv"),
    (("rows", "rows"), "scatterv project_kv to_float16 allgatherv2 to_float32 project_q mix out+add_norm+mlp+add_norm gatherv"),
    (("alltoall", "rows"), "scatterv project_kv to_float16 to_heads2 to_float32_heads project_q to_float16 to_heads "
                           "to_float32_heads+mix_heads+to_float16_heads to_rows to_float32 out+add_norm+mlp+add_norm gatherv"),
    (("recompute", "rows"), "scatterv to_float16 allgatherv to_float32 project_q project_kv mix out+add_norm+mlp+add_norm gatherv"),
]  # fmt: skip


@pytest.mark.parametrize("pair, expected", SHORT_LAYER)
def test_where_a_short_wire_casts(pair, expected):
    spec = replace(model_of("tiny-bert")[0], layers=1)
    program = make_program(spec, plan_of(spec, (pair,), (2, 1), (2, 1), (2, 1), MODES[5]))
    kinds = ["+".join(op.label for op in step.ops) if isinstance(step, Compute) else kind for step, kind in zip(program, steps(program))]
    assert " ".join(kinds) == expected


@pytest.mark.parametrize("short, exact", [(MODES[5], MODES[2]), (SHORT, TILED)], ids=["one tile", "two tiles"])
def test_a_short_wire_is_for_all_inner_values_and_has_the_segments_of_an_exact_one(short, exact):
    for name, pair in product(MODELS, PAIRS):
        spec, _ = model_of(name)
        shares, layers = (1, 2), (pair, PAIRS[PAIRS.index(pair) - 3], pair)
        programs = [make_program(spec, plan_of(spec, layers, shares, shares, shares, mode)) for mode in (short, exact)]
        for program, half in zip(programs, (True, False)):
            values = distributions(program)
            moved = [sum(interface(values, s), ()) for s in program if isinstance(s, Sync) and s.kind not in (*OUTER, "reduce_scatter")]
            moved += [interface(values, s)[0][half:] for s in program if isinstance(s, Sync) and s.kind == "reduce_scatter"]
            assert moved and {values[key].dtype for keys in moved for key in keys} == {"float16" if half else "float32"}
        heavy = [[s for s in p if isinstance(s, Compute) and any(op.weights() for op in s.ops)] for p in programs]
        assert heavy[0] == heavy[1]


IN_TILES = [  # (attention, mlp), all steps of a model of one layer in two tiles, with their tiles
    (("heads", "columns"), "scatterv0 allgatherv0 scatterv1 allgatherv1 -0 -1 -0 reduce_scatter0 -1 reduce_scatter1 -0 allgatherv0 -1 "
                           "allgatherv1 -0 reduce_scatter0 -1 reduce_scatter1 -0 gatherv0 -1 gatherv1"),
    (("rows", "rows"), "scatterv0 scatterv1 -0 allgatherv0 -1 allgatherv1 -0 -1 -0 -1 -0 gatherv0 -1 gatherv1"),
    (("recompute", "rows"), "scatterv0 allgatherv0 scatterv1 allgatherv1 -0 -1 -0 -1 -0 -1 -0 gatherv0 -1 gatherv1"),
    (("alltoall", "rows"), "scatterv0 scatterv1 -0 to_heads0 -1 to_heads1 -0 to_heads0 -1 to_heads1 -0 to_rows0 -1 to_rows1 -0 gatherv0 -1 "
                           "gatherv1"),
]  # fmt: skip


@pytest.mark.parametrize("pair, expected", IN_TILES)
def test_what_is_done_per_tile(pair, expected):
    spec = replace(model_of("tiny-bert")[0], layers=1)
    program = make_program(spec, plan_of(spec, (pair,), (2, 1), (2, 1), (2, 1), TILED))
    assert " ".join(f"{'-' if isinstance(step, Compute) else step.kind}{step.tile}" for step in program) == expected


@pytest.mark.parametrize("pair", PAIRS)
def test_a_tile_with_a_short_wire_waits_for_others_no_sooner_than_an_exact_one(pair):
    """What came for a tile is made float32 right before that is computed, not before the tile in front of it is."""
    spec = replace(model_of("tiny-bert")[0], layers=2)
    plan = plan_of(spec, (pair,) * 2, (2, 1), (2, 1), (2, 1), TILED)
    exact, short = (make_program(spec, replace(plan, wire=wire)) for wire in ("float32", "float16"))
    casts = [isinstance(step, Compute) and all(isinstance(op, Cast) for op in step.ops) for step in short]
    assert [step.tile for step, cast in zip(short, casts) if not cast] == [step.tile for step in exact]
    assert any(casts)
    for place, (step, cast) in enumerate(zip(short, casts)):
        if cast and step.ops[0].dtype == "float32":
            later = zip(short[place + 1 :], casts[place + 1 :])
            behind = next((one for one, other in later if isinstance(one, Compute) and not other), None)
            whole = behind is not None and any(name in step.writes for op in behind.ops for name in op.whole())
            assert behind is None or whole or behind.tile == step.tile


@pytest.mark.parametrize("name", MODELS)
def test_one_active_rank_is_one_segment_between_scatterv_and_gatherv(name):
    spec, _ = model_of(name)
    for pair, mode in product(PAIRS, MODES):
        if possible([pair], mode):
            plan = plan_of(spec, (pair,) * spec.layers, (0, 1, 0), (0, 1, 0), (0, 1, 0), mode)
            assert steps(make_program(spec, plan)) == ["scatterv", "-", "gatherv"]


def test_layers_are_as_many_segments_as_their_bytes_need(monkeypatch):
    spec, _ = model_of("tiny-bert")
    plan = plan_of(spec, (("rows", "rows"),) * spec.layers, (1,), (1,), (1,), MODES[0])
    for layers, segments in ((1, spec.layers), (2, -(-spec.layers // 2)), (spec.layers, 1)):
        monkeypatch.setattr("hepti_mpi.program.build.SEGMENT_BYTES", layers * spec.bytes_of_layer)
        program = make_program(spec, plan)
        found = [step for step in program if isinstance(step, Compute)]
        assert len(found) == segments and [len({op.layer for op in step.ops} - {-1}) <= layers for step in found] == [True] * segments
        assert all(step.reads for step in found) and program[-1].writes == (RESULT,)


def test_no_two_segments_without_a_reason_between():
    """An exchange, rows against all rows, the segment of softmax, which is the same in all plans, or a cast, which is beside weights."""
    for name, mode in product(MODELS, (*MODES[:3], MODES[5])):
        spec, _ = model_of(name)
        for layers in product(PAIRS, repeat=2):
            if not possible(layers, mode):
                continue
            program = make_program(spec, plan_of(spec, (*layers, layers[0]), (1, 2), (1, 2), (1, 2), mode))
            moving = [step for step in program if not isinstance(step, Sync) or step.kind != "slice"]
            for one, other in zip(moving, moving[1:]):
                if isinstance(one, Compute) and isinstance(other, Compute) and one.distribution == other.distribution:
                    both = (one.ops[-1], other.ops[0])
                    mixes = any(isinstance(op, Mix) and not op.axis for op in both)
                    assert mixes or sum(isinstance(op, Cast) for op in both) == 1, both
            assert program[-1].writes == (RESULT,)


# values and buffers


@pytest.mark.parametrize("pair, mode, expected", [
    (("heads", "columns"), TILED, {  # keys and values of all tiles in one
        "q0.1": Value("full", "heads", 1), "k0": Value("full", "heads", None), "p0.0": Value("full", "hidden", 0),
        "p1.1": Value("rows", "hidden", 1), "x0.1": Value("rows", "hidden", 1),
        EMBEDDED: Value("root", "hidden", None), RESULT: Value("root", "hidden", None)}),
    (("rows", "rows"), TILED, {
        "q0.0": Value("rows", "hidden", 0), "k0.1": Value("rows", "hidden", 1), "k1": Value("full", "hidden", None)}),
    (("rows", "rows"), SHORT, {  # k and v go out as the first two, come in as the next two, and are whole again
        "short1.0": Value("rows", "hidden", 0, "float16"), "short3.1": Value("full", "hidden", 1, "float16"),
        "v1": Value("full", "hidden", None)}),
    (("alltoall", "rows"), TILED, {
        "q0.1": Value("rows", "hidden", 1), "q1.0": Value("full", "heads", 0), "k1": Value("full", "heads", None),
        "c0.1": Value("full", "heads", 1), "c1.0": Value("rows", "hidden", 0)}),
    (("alltoall", "rows"), SHORT, {
        "short0.0": Value("rows", "hidden", 0, "float16"), "short3.1": Value("full", "heads", 1, "float16"),
        "c1.1": Value("rows", "hidden", 1),
        "k1": Value("full", "heads", None),
        "short6.0": Value("full", "heads", 0, "float16"), "short7.1": Value("rows", "hidden", 1, "float16")}),
    (("alltoall", "rows"), MODES[2], {
        "q1.0": Value("full", "heads", 0), "k1": Value("full", "heads", None), "c1.0": Value("rows", "hidden", 0)}),
    (("recompute", "rows"), TILED, {
        "y1.1": Value("full", "hidden", 1), "q0.1": Value("rows", "hidden", 1), "v0": Value("full", "hidden", None)}),
])  # fmt: skip
def test_what_a_rank_holds(pair, mode, expected):
    spec, _ = model_of("tiny-vit")
    values = distributions(make_program(spec, plan_of(spec, (pair,) * 3, (1, 2), (1, 2), (1, 2), mode)))
    assert {name: values.get(name) for name in expected} == {name: value._replace(width=56) for name, value in expected.items()}
    for name in expected:
        short, _, tile = name.partition(".")
        assert named(values, short, int(tile or 1)) == name


def test_keys():
    values = {"k": Value("full", "hidden", None), "q.1": Value("rows", "hidden", 1)}
    assert (key("q", None), key("q", 1)) == ("q", "q.1")
    assert (named(values, "k", 1), named(values, "q", 1), named(values, "k", None)) == ("k", "q.1", "k")
    assert interface(values, Sync("to_rows", ("k", "q"), ("q",), 1)) == (("k", "q.1"), ("q.1",))


def lifetimes(program):
    """Per numbered value (place where it is first written, place where it is last used)."""
    values, born, last, parts = distributions(program), {}, {}, set()
    for place, step in enumerate(program):
        reads, writes = interface(values, step)
        for name in reads:
            assert name == EMBEDDED or name in born, f"{name} is read before it is written"
        for name in writes:
            assert (name, step.tile) not in parts, f"{name} is written twice"
            parts.add((name, step.tile))
            born.setdefault(name, place)
        last |= dict.fromkeys((*reads, *writes), place)
    return {name: (place, last[name]) for name, place in born.items() if name != RESULT}


def clashes(program, numbers):
    """Pairs of values that share a number while both live; an output may not overwrite an input of its own step."""
    lives = sorted((*span, name) for name, span in lifetimes(program).items())
    return [(one, other) for i, (_, end, one) in enumerate(lives) for start, _, other in lives[i + 1 :]
            if numbers[one] == numbers[other] and start <= end]  # fmt: skip


def test_live_values_never_share_a_buffer():
    for name, mode in product(MODELS, MODES):
        spec, _ = model_of(name)
        for layers in product(PAIRS, repeat=2):
            if not possible(layers, mode):
                continue
            program = make_program(spec, plan_of(spec, (*layers, layers[0]), (1, 2), (2, 1), (1, 2), mode))
            numbers, values = buffers(Laid(program)), distributions(program)
            assert set(numbers) == set(lifetimes(program)) == set(values) - {EMBEDDED, RESULT}
            assert clashes(program, numbers) == []
            assert len({(numbers[n], values[n]) for n in numbers}) == len(set(numbers.values())), "one number, two shapes"
            tiles, most = len({step.tile for step in program} - {None}), 36 if mode[3] == "int8" else 24  # numbers travel with their scales
            most += 24 * (mode is MODES[-1])  # of each type
            assert len(set(numbers.values())) <= most * tiles  # however many layers: they are used again


def test_clashes_sees_a_shared_number():
    spec, _ = model_of("tiny-vit")
    program = make_program(spec, plan_of(spec, (PAIRS[0],) * 3, (1, 2), (2, 1), (1, 2)))
    assert clashes(program, dict.fromkeys(buffers(Laid(program)), 0))


def test_buffers_do_not_grow_with_the_layers():
    spec, _ = model_of("tiny-vit")
    for pair, mode in product(PAIRS, MODES):
        if not possible([pair], mode):
            continue
        used = []
        for layers in (7, 9):
            deep = replace(spec, layers=layers)
            wires = mode[3] if isinstance(mode[3], str) else (*mode[3], *mode[3], *mode[3])[:layers]  # of three layers
            program = make_program(deep, plan_of(deep, (pair,) * layers, (1, 1), (1, 1), (1, 1), (*mode[:3], wires)))
            used.append(len(set(buffers(Laid(program)).values())))
        assert used[0] == used[1]
