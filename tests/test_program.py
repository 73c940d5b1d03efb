"""Programs, walked by a small NumPy interpreter over simulated ranks and compared with the plain forward pass.

The interpreter keeps values in the numbered buffers of `buffers` and multiplies by nothing but the slices that `Slicer` names, so a
wrong step, a wrong slice and a buffer that is used twice all end in a wrong answer.
"""

from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest

from hepti_mpi import splits
from hepti_mpi.models.numerics import activate, layer_norm, softmax
from hepti_mpi.models.random_models import random_model
from hepti_mpi.models.reference import forward
from hepti_mpi.planning.plan import LAYOUTS, Plan, check
from hepti_mpi.planning.program import EMBEDDED, RESULT, Compute, Op, Sync, buffers, distributions, make_program
from hepti_mpi.shards.slicing import Slicer, layer_slices

ROWS = 9
MODELS = ("tiny-bert", "tiny-vit")  # post-norm, pre-norm
REDUCTIONS = ("allreduce", "reduce_scatter")
PAIRS = tuple(product(LAYOUTS["attention"], LAYOUTS["mlp"]))
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


@cache
def model_of(name):
    """The spec and float64 weights, large enough that a missing term, bias or norm shows."""
    model = random_model(name)
    random = np.random.default_rng(7)
    weights = {}
    for key, values in model.weights():
        near = 1.0 if key.endswith("norm.weight") else 0.0
        weights[key] = near + random.normal(0, 0.25, values.shape)
    return model.spec, weights


def plan_of(spec, layers, heads, columns, rows, reduction="allreduce"):
    """A plan from three lists of shares; lists that no layer uses become 0, as the planner leaves them."""
    used, ranks = {layout for pair in layers for layout in pair}, len(rows)
    parts = [splits.split(total, shares) if kind in used else (0,) * ranks
             for kind, total, shares in (("heads", spec.heads, heads), ("columns", spec.ffn, columns))]  # fmt: skip
    plan = Plan(spec.name, "hash", tuple(layers), *parts, splits.split(ROWS, rows), ("here",) * ranks, ("packed",) * ranks, reduction)
    check(plan, spec, "hash", ranks)
    return plan


class Rank:
    """One simulated rank: its slices of the weights and its buffers, which hold stale values as those of the engine do."""

    def __init__(self, spec, weights, plan, program, rank, lengths):
        self.spec, self.weights, self.plan, self.rank = spec, weights, plan, rank
        self.slicer = Slicer(spec, plan, rank)
        self.numbers, self.shapes = buffers(program), distributions(program)
        self.memory, self.owner = {}, {}
        self.request = np.repeat(np.arange(len(lengths)), lengths)
        self.bounds = splits.bounds(plan.row_counts(len(self.request)), rank)
        self.used = set()

    def put(self, name, values):
        number = self.numbers[name]
        at, width = self.shapes[name]
        rows = len(self.request) if at == "full" else self.bounds[1] - self.bounds[0]
        assert values.shape == (rows, width * self.spec.hidden), name
        self.memory[number] = values

    def get(self, name):
        return self.memory[self.numbers[name]]

    def compute(self, step):
        inside = {name: self.get(name) for name in step.reads}
        for op in step.ops:
            slices = self.slicer.op(op, step.distribution)
            self.used.update(slices.values())
            own = {}
            for short, piece in slices.items():
                own[short] = self.weights[piece.name][piece.first : piece.first + piece.shape[0]]
                assert own[short].shape == piece.shape
            for name, values in zip(op.writes, self.run(op, own, [inside[name] for name in op.reads]), strict=True):
                inside[name] = values
        for name in step.writes:
            self.put(name, inside[name])

    def run(self, op: Op, w, reads):
        x, hidden = reads[0], self.spec.hidden
        if not w:  # no rows, or no heads or columns of this block: the term is 0
            return [np.zeros((len(x), hidden * (2 if op.kind == "project" and place else 1))) for place in range(len(op.writes))]
        if op.kind == "norm":
            return [layer_norm(x, w["norm.weight"], w["norm.bias"], self.spec.norm_eps)]
        if op.kind == "tail":
            total = x + reads[1] + w["bias"]
            after = layer_norm(total, w["norm.weight"], w["norm.bias"], self.spec.norm_eps)
            return [after] if len(op.writes) == 1 else [total, after]
        if op.kind in ("mlp_columns", "mlp_rows"):
            return [activate(self.spec.activation, x @ w["up.weight"].T + w["up.bias"]) @ w["down.weight"]]
        linear = {m: x @ w[f"{m}.weight"].reshape(-1, hidden).T + w[f"{m}.bias"].ravel() for m in "qkv" if f"{m}.weight" in w}
        if op.kind == "project":
            return [linear["q"], np.concatenate([linear["k"], linear["v"]], axis=1)]
        if op.kind == "attend":
            k, v = np.split(reads[1], 2, axis=1)
            return [self.attend(x, k, v, self.request[slice(*self.bounds)]) @ w["o.weight"].reshape(-1, hidden)]
        assert op.kind == "attention_heads"
        return [self.attend(linear["q"], linear["k"], linear["v"], self.request) @ w["o.weight"].reshape(-1, hidden)]

    def attend(self, q, k, v, request):
        """Rows attend to the rows of their own request; q [r, heads * dim], k and v [n, heads * dim]."""
        dim = self.spec.head_dim
        q, k, v = (a.reshape(len(a), a.shape[1] // dim, dim).swapaxes(0, 1) for a in (q, k, v))
        scores = q @ k.swapaxes(1, 2) / np.sqrt(dim)
        scores = np.where(request[:, None] == self.request, scores, -np.inf)
        return (softmax(scores) @ v).swapaxes(0, 1).reshape(q.shape[1], -1) if len(request) else np.zeros((0, q.shape[0] * dim))


def walk(spec, weights, plan, x, lengths):
    """The result on rank 0 of the program of `plan`, every exchange done as its definition says."""
    program = make_program(spec, plan)
    ranks = {rank: Rank(spec, weights, plan, program, rank, lengths) for rank in plan.active}
    result = None
    for step in program:
        if isinstance(step, Compute):
            for rank in ranks.values():
                rank.compute(step)
            continue
        rows = {rank: slice(*ranks[rank].bounds) for rank in ranks}
        if step.kind in ("bcast", "scatterv"):
            assert step.reads == EMBEDDED
            for number, rank in ranks.items():
                rank.put(step.writes, x.copy() if step.kind == "bcast" else x[rows[number]].copy())
            continue
        values = [rank.get(step.reads) for rank in ranks.values()]
        if step.kind == "gatherv":
            assert step.writes == RESULT
            result = np.concatenate(values)
            continue
        whole = np.concatenate(values) if step.kind == "allgatherv" else np.sum(values, axis=0)
        for place, (number, rank) in enumerate(ranks.items()):
            if step.kind in ("allreduce", "allgatherv"):
                rank.put(step.writes, whole.copy())
            elif step.kind == "reduce_scatter":
                rank.put(step.writes, whole[rows[number]].copy())
            else:
                assert step.kind == "slice"
                rank.put(step.writes, values[place][rows[number]].copy())
    for number, rank in ranks.items():
        assert rank.used == set(layer_slices(spec, plan, program, number))
    return result


def compare(name, plan, lengths=(ROWS,)):
    spec, weights = model_of(name)
    x = np.random.default_rng(sum(lengths)).normal(0, 1, (sum(lengths), spec.hidden))
    result = walk(spec, weights, plan, x, lengths)
    np.testing.assert_allclose(result, forward(spec, weights, x, lengths), rtol=0, atol=1e-9)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("name", MODELS)
def test_uniform_layouts_over_one_to_seven_ranks(name, pair, reduction):
    spec, _ = model_of(name)
    for shares in SHARES:
        compare(name, plan_of(spec, (pair,) * spec.layers, shares, shares, shares, reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_every_mix_of_layouts_over_the_layers(name, reduction):
    spec, _ = model_of(name)
    for layers in product(PAIRS, repeat=spec.layers):
        compare(name, plan_of(spec, layers, (5, 1, 1, 1), (1, 0, 2, 4), (1, 3, 0, 1), reduction))


@pytest.mark.parametrize("heads, columns, rows", [
    ((7, 0, 0), (0, 3, 4), (1, 1, 0)),  # heads without columns, columns without heads, and one without rows
    ((0, 1, 0), (1, 0, 0), (0, 0, 1)),  # each rank does another thing
    ((0, 3, 4), (0, 50, 51), (1, 0, 0)),  # the root has rows only
    ((0, 1, 1, 0), (0, 0, 1, 1), (0, 1, 0, 1)),  # the root has nothing
])  # fmt: skip
def test_shares_that_differ_between_heads_columns_and_rows(heads, columns, rows):
    for name, reduction, pair in product(MODELS, REDUCTIONS, PAIRS):
        spec, _ = model_of(name)
        other = PAIRS[(PAIRS.index(pair) + 1) % len(PAIRS)]
        for layers in ((pair,) * spec.layers, (pair, other, pair)):
            compare(name, plan_of(spec, layers, heads, columns, rows, reduction))


@pytest.mark.parametrize("lengths", [(1,), (2,), (17,), (4, 1, 7), (1, 1, 1)])
def test_requests_of_other_sizes_and_packed_requests(lengths):
    for name, reduction in product(MODELS, REDUCTIONS):
        spec, _ = model_of(name)
        for layers in ((PAIRS[0], PAIRS[3], PAIRS[1]), (PAIRS[2],) * 3, (PAIRS[3],) * 3):
            compare(name, plan_of(spec, layers, (1, 0, 3), (2, 2, 3), (3, 1, 1), reduction), lengths)


def steps(program):
    return [f"{step.kind}{step.width if step.width > 1 else ''}" if isinstance(step, Sync) else "-" for step in program]


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
]


@pytest.mark.parametrize("pair, reduction, norm, expected", EXCHANGES)
def test_exchanges_of_an_inner_layer(pair, reduction, norm, expected):
    spec = replace(model_of("tiny-bert")[0], layers=9, norm=norm)
    kinds = []
    for layers in (7, 8, 9):  # first and last layer differ: what one more layer adds is what an inner one exchanges
        smaller = replace(spec, layers=layers)
        plan = plan_of(smaller, (pair,) * layers, (2, 1), (2, 1), (2, 1), reduction)
        kinds.append(sorted(k for k in steps(make_program(smaller, plan)) if k not in ("-", "slice")))
    for fewer, more in zip(kinds, kinds[1:]):
        for kind in expected:
            assert more.count(kind) - fewer.count(kind) == expected.count(kind)
        assert len(more) - len(fewer) == len(expected)


ONLY_LAYER = [  # (attention, mlp), norm, all steps of a model of one layer
    (("heads", "columns"), "post", "bcast - allreduce - reduce_scatter slice - gatherv"),
    (("heads", "columns"), "pre", "bcast - allreduce - reduce_scatter slice - gatherv"),
    (("rows", "rows"), "post", "scatterv - allgatherv2 - gatherv"),
    (("rows", "rows"), "pre", "scatterv - allgatherv2 - gatherv"),
    (("heads", "rows"), "pre", "bcast - reduce_scatter slice - gatherv"),
    (("rows", "columns"), "post", "scatterv - allgatherv2 - allgatherv - reduce_scatter - gatherv"),
    (("rows", "columns"), "pre", "scatterv - allgatherv2 - allgatherv - reduce_scatter - gatherv"),
]


@pytest.mark.parametrize("pair, norm, expected", ONLY_LAYER)
def test_no_step_too_many(pair, norm, expected):
    spec = replace(model_of("tiny-bert")[0], layers=1, norm=norm)
    assert " ".join(steps(make_program(spec, plan_of(spec, (pair,), (2, 1), (2, 1), (2, 1))))) == expected


@pytest.mark.parametrize("name", MODELS)
def test_one_active_rank_is_one_segment_between_bcast_and_gatherv(name):
    spec, _ = model_of(name)
    for pair in PAIRS:
        plan = plan_of(spec, (pair,) * spec.layers, (0, 1, 0), (0, 1, 0), (0, 1, 0))
        assert steps(make_program(spec, plan)) == ["bcast", "-", "gatherv"]


def test_no_two_segments_without_an_exchange_between():
    for name, reduction in product(MODELS, REDUCTIONS):
        spec, _ = model_of(name)
        for layers in product(PAIRS, repeat=spec.layers):
            program = make_program(spec, plan_of(spec, layers, (1, 2), (1, 2), (1, 2), reduction))
            joined = "".join("s" if kind == "slice" else "." if kind == "-" else "x" for kind in steps(program))
            assert ".." not in joined and program[-1].writes == RESULT


def lifetimes(program):
    """Per numbered value (place where it is written, last place where it is read)."""
    born, last = {}, {}
    for place, step in enumerate(program):
        reads, writes = ((step.reads,), (step.writes,)) if isinstance(step, Sync) else (step.reads, step.writes)
        for name in reads:
            assert name == EMBEDDED or name in born, f"{name} is read before it is written"
            last[name] = place
        for name in writes:
            assert name not in born, f"{name} is written twice"
            born[name] = place
    return {name: (place, last.get(name, place)) for name, place in born.items() if name != RESULT}


def clashes(program, numbers):
    """Pairs of values that share a number while both live; an output may not overwrite an input of its own step."""
    lives = sorted((*span, name) for name, span in lifetimes(program).items())
    return [(one, other) for i, (_, end, one) in enumerate(lives) for start, _, other in lives[i + 1 :]
            if numbers[one] == numbers[other] and start <= end]  # fmt: skip


def test_live_values_never_share_a_buffer():
    counts = set()
    for name, reduction in product(MODELS, REDUCTIONS):
        spec, _ = model_of(name)
        for layers in product(PAIRS, repeat=spec.layers):
            program = make_program(spec, plan_of(spec, layers, (1, 2), (2, 1), (1, 2), reduction))
            numbers, shapes = buffers(program), distributions(program)
            assert set(numbers) == set(lifetimes(program))
            assert clashes(program, numbers) == []
            assert len({(numbers[n], shapes[n]) for n in numbers}) == len(set(numbers.values())), "one number, two shapes"
            counts.add(len(set(numbers.values())))
    assert max(counts) <= 12  # they are used again: a program of three layers has some thirty values


def test_clashes_sees_a_shared_number():
    spec, _ = model_of("tiny-vit")
    program = make_program(spec, plan_of(spec, (PAIRS[0],) * 3, (1, 2), (2, 1), (1, 2)))
    assert clashes(program, dict.fromkeys(buffers(program), 0))


def test_buffers_do_not_grow_with_the_layers():
    spec, _ = model_of("tiny-vit")
    for pair, reduction in product(PAIRS, REDUCTIONS):
        used = []
        for layers in (7, 9):
            deep = replace(spec, layers=layers)
            used.append(len(set(buffers(make_program(deep, plan_of(deep, (pair,) * layers, (1, 1), (1, 1), (1, 1), reduction))).values())))
        assert used[0] == used[1]
