"""The engine on real ranks against transformers' outputs: every strategy, mixes, uneven and empty shares, odd sizes, padding."""

import json
import os
import time
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pytest
from layers import MADE, odd_model
from made_plans import plan_of

from hepti_mpi.engine import engine, fetching, loading
from hepti_mpi.engine.segments import Segments
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.inputs.requests import read_requests
from hepti_mpi.models.reference import forward
from hepti_mpi.program.steps import Compute
from hepti_mpi.serving import outputs
from hepti_mpi.serving.loop import Desk, answer
from hepti_mpi.serving.request import Answerer, Question
from hepti_mpi.serving.scheduler import Scheduler
from hepti_mpi.serving.source import Given
from hepti_mpi.weights import writing
from hepti_mpi.weights.slices import Part
from hepti_mpi.weights.store import Store

GOLDEN = Path(__file__).parent.parent / "golden"
TOLERANCE = 1e-4
HEADS, COLUMNS, ROWS = "heads", "columns", "rows"
LAYOUTS = [(HEADS, COLUMNS), (HEADS, ROWS), (ROWS, COLUMNS), (ROWS, ROWS)]
SHARES = {
    "even": lambda n: (1,) * n,
    "uneven": lambda n: ((5, 1, 1, 1) + (2,) * n)[:n],
    "with nothing": lambda n: ((1, 0, 3) + (0, 2) * n)[:n],
    "all on the last": lambda n: (0,) * (n - 1) + (1,),
}


def made_in(folder: Path) -> Path:
    """Return where stores of small models are made that nobody changes: HEPTI_STORES, where jobs of several numbers of ranks share them."""
    return Path(os.environ.get("HEPTI_STORES", folder))


@cache
def opened(folder: Path, case: str, rank: int, world) -> Store:
    path = made_in(folder) / f"{case}.h5"
    if rank == 0 and not path.exists():
        make = random_model if case.startswith("tiny") else odd_model if case in MADE else lambda name: read_model(GOLDEN / name)
        writing.write(path, make(case))
    world.barrier()
    return Store(path)


@lru_cache(maxsize=4)
def segments_of(store) -> Segments:
    """The sessions of a store, kept for the next plans: most have operations on slices in common with one before."""
    segments = Segments(store)
    segments.made = {}  # which forgets none
    return segments


def loaded(machine, store, plan, decision=None):
    return loading.load(machine, store, plan, decision, {}, segments_of(store))


@cache
def wanted(path: Path) -> dict[str, np.ndarray]:
    """Return what transformers answers of the inputs in a file, by name."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files if name.startswith("expected_")}


EVERYTHING = Question(output=Path("x.npz"), hidden=True)  # what the head can make, and the last hidden state


class Noted(list):
    """A sink that notes results by the place of their request, and the places in order."""

    def __init__(self, count):
        super().__init__([{}] * count)
        self.places = []

    def event(self, event):
        self.places += event.places
        for place, result in zip(event.places, event.results):
            self[place] = result


def desk_of(ready, source, batch_rows=1 << 20, repeat=1, question=EVERYTHING, **more):
    """Return (requests, desk) on rank 0, which notes results, and (None, None) elsewhere."""
    if ready.machine.world.rank:
        return None, None
    requests = read_requests(ready.spec, ready.store.files, str(source), None)
    answerer = Answerer(ready.store, question)
    return requests, Desk(Given(requests), Scheduler(answerer, batch_rows, repeat), answerer, Noted(len(requests)), **more)


def answered(ready, source, batch_rows=1 << 20, repeat=1):
    """Return (requests, results) on rank 0 and (None, None) elsewhere."""
    requests, desk = desk_of(ready, source, batch_rows, repeat)
    answer(ready, desk)
    return requests, desk and desk.sink


def compare(machine, store, plan, path, batch_rows=1 << 20):
    check(loaded(machine, store, plan), path, batch_rows)


def check(ready, path, batch_rows=1 << 20, names=("last_hidden_state", "pooler_output", "logits", "embedding"), tolerance=TOLERANCE):
    """Compare the answers of what is loaded; it may answer one file after the other."""
    requests, results = answered(ready, path, batch_rows)
    if requests is not None:
        check_results(path, requests, results, names, tolerance)


def check_results(path, requests, results, names, tolerance=TOLERANCE):
    """Compare what a head made of the requests in the file at `path`."""
    expected, compared = wanted(path), 0
    for name in names:
        if f"expected_{name}" in expected and all(name in result for result in results):
            got = outputs.stacked(name, requests, [result[name] for result in results])
            want = expected[f"expected_{name}"]
            assert got.shape == want.shape, (name, got.shape, want.shape)
            assert np.isfinite(got).all()
            assert np.abs(got - want).max() <= tolerance, (name, np.abs(got - want).max())
            compared += 1
    assert compared


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("layout", LAYOUTS, ids="/".join)
@pytest.mark.parametrize("case", ["bert", "vit"])
def test_every_strategy_and_share(machine, folder, case, layout, shares):
    store = opened(folder, case, machine.world.rank, machine.world)
    plan = plan_of(store, layout, SHARES[shares](machine.world.size))
    ready = loaded(machine, store, plan)
    for path in sorted((GOLDEN / case).glob("expected*.npz")):
        names = ("last_hidden_state", "logits") if path.stem == "expected_holes" else ("last_hidden_state", "pooler_output", "logits")
        check(ready, path, names=names)


@pytest.mark.parametrize("case", ["bert", "vit"])
def test_input_gathered_by_mpi_and_keys_computed_everywhere(machine, folder, case):
    """As Voltage may be run: recompute with MPI's collectives."""
    store = opened(folder, case, machine.world.rank, machine.world)
    plan = plan_of(store, ("recompute", ROWS), SHARES["uneven"](machine.world.size))
    ready = loaded(machine, store, plan)
    for path in sorted((GOLDEN / case).glob("expected*.npz")):
        check(ready, path, names=("last_hidden_state",))


def test_whole_requests_on_a_rank(machine, folder):
    """Rows are cut between requests only, so nothing travels but input and answers; more ranks than requests leave some idle."""
    for case in ("bert", "vit"):
        store, size = opened(folder, case, machine.world.rank, machine.world), machine.world.size
        for shares in ("even", "uneven", "with nothing"):
            layers = (("local", ROWS),) * store.spec.layers
            plan = plan_of(store, layers, SHARES[shares](size), collectives="own", total=23)
            ready = loaded(machine, store, plan)
            for path in sorted((GOLDEN / case).glob("expected*.npz")):
                names = ("last_hidden_state", "logits")
                check(ready, path, names=names)
                check(ready, path, batch_rows=8, names=names)


OWN = [(attention, mlp) for attention in (HEADS, ROWS, "alltoall", "recompute") for mlp in (COLUMNS, ROWS)]
TILES = {  # per tile, the shares of the ranks in it
    "one tile": lambda n: (),
    "two tiles": lambda n: ((3,) + (1,) * (n - 1), (2,) * n),
    "some in one tile only": lambda n: (
        tuple(1 + rank % 2 for rank in range(n)),
        tuple(rank % 2 for rank in range(n)), (0,) * (n - 1) + (2,)),
}


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("layout", OWN, ids="/".join)
@pytest.mark.parametrize("case", ["bert", "vit"])
def test_own_exchanges_and_tiles(machine, folder, case, layout, tiles):
    store, size = opened(folder, case, machine.world.rank, machine.world), machine.world.size
    for shares in ("uneven", "all on the last") if tiles == "one tile" else ("uneven",):
        own = {"reduction": "reduce_scatter", "collectives": "own", "tiles": TILES[tiles](size), "total": 23}
        plan = plan_of(store, layout, SHARES[shares](size), **own)
        ready = loaded(machine, store, plan)
        for path in sorted((GOLDEN / case).glob("expected*.npz")):
            names = ("last_hidden_state", "logits") if path.stem == "expected_holes" else ("last_hidden_state", "pooler_output", "logits")
            check(ready, path, names=names)


def test_steps_are_computed_in_their_order(machine, folder):
    """A later tile that went first, since an exchange was late, made all wait who wanted what is between: 1.6 times as long on 4 boards."""
    store, size, order = opened(folder, "bert", machine.world.rank, machine.world), machine.world.size, []
    own = {"reduction": "reduce_scatter", "collectives": "own", "tiles": TILES["two tiles"](size), "total": 23}
    plan = plan_of(store, ("alltoall", ROWS), SHARES["uneven"](size), **own)
    engine = loaded(machine, store, plan).engine
    compute = engine._compute

    def late(place, at):
        order.append(place)
        if machine.world.rank == size - 1 and len(order) % 2:
            time.sleep(0.01)
        compute(place, at)

    engine._compute = late
    for _ in range(3):
        engine.run((11, 12), np.ones((23, store.spec.hidden), np.float32) if machine.world.rank == 0 else None)
    in_order = [place for place, step in enumerate(engine.program) if isinstance(step, Compute)]
    assert order == (in_order * 3 if engine.is_active else [])


@pytest.mark.parametrize("layout", OWN, ids="/".join)
@pytest.mark.parametrize("case, wire, most", [
    ("bert", "float16", 0.05), ("vit", "float16", 0.05), ("bert", "int8", 0.2), ("bert", ("int8", "float16", "float32"), 0.2),
    ("vit", ("float32", "float16", "int8"), 0.2), ("bert", ("float16", "float32", "float32"), 0.05),
])  # fmt: skip
def test_a_short_wire_rounds(machine, folder, case, wire, most, layout):
    """Shorter numbers between layers cost accuracy, of the order of their 11 or 7 bits and no more."""
    store, size = opened(folder, case, machine.world.rank, machine.world), machine.world.size
    own = {"reduction": "reduce_scatter", "collectives": "own", "tiles": TILES["two tiles"](size), "total": 23}
    plan = plan_of(store, layout, SHARES["uneven"](size), wire=wire, **own)
    path = next((GOLDEN / case).glob("expected*.npz"))
    ready = loaded(machine, store, plan)
    check(ready, path, names=("last_hidden_state",), tolerance=TOLERANCE if size == 1 else most)


@pytest.mark.parametrize("layers", [[OWN[5], OWN[0], OWN[3]], [OWN[0], OWN[5], OWN[7]], [OWN[3], OWN[4], OWN[6]]])
@pytest.mark.parametrize("case", ["bert", "vit"])
def test_own_exchanges_in_mixed_layers(machine, folder, case, layers):
    store, size = opened(folder, case, machine.world.rank, machine.world), machine.world.size
    own = {"reduction": "reduce_scatter", "collectives": "own", "tiles": TILES["two tiles"](size), "total": 23}
    plan = plan_of(store, layers, SHARES["uneven"](size), **own)
    compare(machine, store, plan, next((GOLDEN / case).glob("expected*.npz")))


@pytest.mark.parametrize("reduction", ["allreduce", "reduce_scatter"])
@pytest.mark.parametrize("mode", ["packed", "mapped"])
@pytest.mark.parametrize("case", ["bert", "vit"])
def test_mixed_layers_and_modes(machine, folder, case, mode, reduction):
    store = opened(folder, case, machine.world.rank, machine.world)
    shares = SHARES["uneven"](machine.world.size)
    for layers in ([LAYOUTS[3], LAYOUTS[1], LAYOUTS[0]], [LAYOUTS[0], LAYOUTS[3], LAYOUTS[2]], [LAYOUTS[2], LAYOUTS[0], LAYOUTS[0]]):
        plan = plan_of(store, layers, shares, mode=mode, reduction=reduction)
        compare(machine, store, plan, next((GOLDEN / case).glob("expected*.npz")))


def test_heads_columns_and_rows_of_different_shares(machine, folder):
    """A rank may have heads and no columns, or columns and no rows."""
    store, size = opened(folder, "bert", machine.world.rank, machine.world), machine.world.size
    for layers in ([LAYOUTS[0]] * 3, [LAYOUTS[1], LAYOUTS[2], LAYOUTS[0]]):
        one, other = (tuple(int(rank % 2 == odd or size == 1) for rank in range(size)) for odd in (0, 1))
        plan = plan_of(store, layers, one, other, one)
        compare(machine, store, plan, GOLDEN / "bert" / "expected_padded.npz")


@pytest.mark.parametrize("layout", LAYOUTS, ids="/".join)
@pytest.mark.parametrize(
    "case",
    ["bert_mlm", "bert_seqcls", "bert_tokencls", "bert_fp16", "bert_bf16", "bert_sharded", "bert_sentence", "vit_cls", "deit",
     "roberta", "distilbert", "electra"],
)  # fmt: skip
def test_every_head_and_source(machine, folder, case, layout):
    store = opened(folder, case, machine.world.rank, machine.world)
    plan = plan_of(store, layout, SHARES["uneven"](machine.world.size))
    compare(machine, store, plan, GOLDEN / case / "expected.npz")


OTHERS = ["modernbert", "modernbert_seqcls", "nomicbert", "mpnet", "dinov2", "dinov2_registers"]  # families whose layers are not BERT's


@pytest.mark.parametrize("case", OTHERS)
def test_other_layers_in_every_strategy_and_in_mixes(machine, folder, case):
    world = machine.world
    store = opened(folder, case, world.rank, world)
    own = {"reduction": "reduce_scatter", "collectives": "own"} if world.size > 1 else {}
    every = [(layout,) for layout in LAYOUTS] + [LAYOUTS[1:3], LAYOUTS[::3]]
    ways = [(layers, {}) for layers in every]
    if own:
        tiled = own | {"tiles": ((1,) * world.size, (2,) * world.size)}
        ways += [([("alltoall", COLUMNS), ("recompute", ROWS)], own), ([(ROWS, COLUMNS)], tiled)]
    for number, (layers, more) in enumerate(ways):
        shares = SHARES[list(SHARES)[number % 3]](world.size)
        layers = (tuple(layers) * store.spec.layers)[: store.spec.layers]
        compare(machine, store, plan_of(store, layers, shares, total=39, **more), GOLDEN / case / "expected.npz")


@pytest.mark.parametrize("batch_rows", [1, 14, 1000])
def test_batching_changes_nothing(machine, folder, batch_rows):
    store = opened(folder, "bert", machine.world.rank, machine.world)
    for layout in LAYOUTS:
        plan = plan_of(store, layout, SHARES["uneven"](machine.world.size))
        compare(machine, store, plan, GOLDEN / "bert" / "expected_padded.npz", batch_rows)


@pytest.mark.parametrize("layout", LAYOUTS, ids="/".join)
def test_same_bits_in_every_run(machine, folder, layout):
    store = opened(folder, "bert", machine.world.rank, machine.world)
    plan = plan_of(store, layout, SHARES["uneven"](machine.world.size))
    runs = [answered(loading.load(machine, store, plan, None, {}), GOLDEN / "bert" / "expected_128.npz")[1] for _ in range(3)]
    if machine.world.rank == 0:
        first, *others = [run[0]["last_hidden_state"].tobytes() for run in runs]
        assert all(other == first for other in others)


@pytest.mark.parametrize("case", ["tiny-bert", "tiny-vit", *MADE])
def test_random_models_against_the_oracle(machine, folder, case, tmp_path):
    store = opened(folder, case, machine.world.rank, machine.world)
    spec, size = store.spec, machine.world.size
    weights = dict((odd_model if case in MADE else random_model)(case).weights())
    ways = [(layout, {}) for layout in LAYOUTS]
    if case in MADE and size > 1:
        own = {"reduction": "reduce_scatter", "collectives": "own"}
        ways += [(("alltoall", COLUMNS), own), (("recompute", ROWS), own | {"tiles": ((1,) * size, (2,) * size)})]
    for layout, more in ways:
        plan = plan_of(store, layout, SHARES["even"](size), total=13, **more)
        ready = loaded(machine, store, plan)
        lengths = (5, 1, 7)
        embedded = np.random.default_rng(3).standard_normal((13, spec.hidden), dtype=np.float32)
        got = ready.engine.run(lengths, embedded if machine.world.rank == 0 else None)
        if machine.world.rank == 0:
            assert np.abs(got - forward(spec, weights, embedded, lengths)).max() <= TOLERANCE


def test_requests_of_many_lengths_are_prepared_once(machine, folder, monkeypatch):
    """As many as single requests have, again and again."""
    rank, size = machine.world.rank, machine.world.size
    prepared, prepare = [], engine.Engine._prepare
    monkeypatch.setattr(engine.Engine, "_prepare", lambda self, *shape: prepared.append(shape[0]) or prepare(self, *shape))
    store, weights = opened(folder, "relative", rank, machine.world), dict(odd_model("relative").weights())
    ready = loaded(machine, store, plan_of(store, (HEADS, ROWS), SHARES["even"](size), total=13))
    warm, lengths = len(prepared), range(4, 24)
    for length in (max(lengths), *lengths, *lengths):  # the largest first: buffers are made for it
        x = np.random.default_rng(length).standard_normal((length, store.spec.hidden), dtype=np.float32)
        got = ready.engine.run((length,), x if rank == 0 else None)
        if rank == 0:
            assert np.abs(got - forward(store.spec, weights, x, (length,))).max() <= TOLERANCE
    assert sorted(prepared[warm:]) == [(length,) for length in lengths] * ready.engine.takes_part


def test_shapes_with_large_masks_are_prepared_again(machine, folder, monkeypatch):
    """Every rank gives up what it wants to; the answers stay."""
    rank, size = machine.world.rank, machine.world.size
    monkeypatch.setattr(engine, "ASKED_BYTES", 1000 * (rank + 1))
    store, weights = opened(folder, "relative", rank, machine.world), dict(odd_model("relative").weights())
    plan = plan_of(store, (HEADS, ROWS), SHARES["even"](size), total=13)
    ready = loaded(machine, store, plan)
    for lengths in ((5, 1, 7), (9,), (3, 3), (9,), (5, 1, 7)):
        x = np.random.default_rng(sum(lengths)).standard_normal((sum(lengths), store.spec.hidden), dtype=np.float32)
        got = ready.engine.run(lengths, x if rank == 0 else None)
        if rank == 0:
            assert np.abs(got - forward(store.spec, weights, x, lengths)).max() <= TOLERANCE
            assert len(ready.engine.geometries) < 3


def test_rank_files_hold_what_a_rank_needs(machine, folder):
    world = machine.world
    whole = opened(folder, "bert", world.rank, world)
    for number, layout in enumerate(LAYOUTS):
        plan = plan_of(whole, layout, SHARES["uneven"](world.size))
        parts = folder / f"parts{number}"
        if world.rank == 0:
            for rank in range(world.size):
                writing.write_part(parts / f"rank{rank:02d}.h5", whole, Part(whole.spec, plan, rank).slices)
        world.barrier()
        compare(machine, fetching.open_store(machine, parts), plan, GOLDEN / "bert" / "expected_padded.npz")


def test_loading_reads_only_the_own_slices(machine, folder):
    """Bytes that verify() reads by pread are the rank's slices and nothing else, by the kernel's own count; and of each part what describes
    it and its checksums, by 512 bytes: HDF5 keeps little of that, also where another test has looked at all."""
    store = opened(folder, "bert", machine.world.rank, machine.world)
    plan = plan_of(store, LAYOUTS[0], SHARES["uneven"](machine.world.size))
    slices = Part(store.spec, plan, machine.world.rank).slices
    own, parts = sum(piece.bytes for piece in slices), sum(len(piece.parts) for piece in slices)
    opened(folder, "bert", machine.world.rank, machine.world)
    store = Store(store.path)  # one that has verified nothing yet
    before = _read_by_calls()
    assert store.verify(slices) == own
    cost_of_looking = _read_by_calls() - (after := _read_by_calls())
    assert own <= after - before <= own + 4096 * 4 + abs(cost_of_looking) + 3 * 512 * parts


def _read_by_calls() -> int:
    with open(f"/proc/{os.getpid()}/io") as file:
        return int(next(line.split()[1] for line in file if line.startswith("rchar")))


@pytest.mark.parametrize("shares", ["uneven", "with nothing", "all on the last"])
@pytest.mark.parametrize("layout", [*LAYOUTS, ("alltoall", ROWS), ("recompute", COLUMNS)], ids="/".join)
@pytest.mark.parametrize("case", ["qwen3_embedding", "gemma3_embedding"])
def test_embeddings_of_a_decoder(machine, folder, case, layout, shares):
    """As sentence-transformers: the row of the last token, which sees those before it, of texts that are padded in front there; a mean of
    rows that see both ways."""
    store = opened(folder, case, machine.world.rank, machine.world)
    wanted = json.loads((GOLDEN / case / "expected_text.json").read_text())
    path = folder / f"{case}.txt"
    if machine.world.rank == 0:
        path.write_text("\n".join(wanted["texts"]) + "\n")
    plan = plan_of(store, layout, SHARES[shares](machine.world.size), collectives="own", reduction="reduce_scatter")
    ready = loaded(machine, store, plan)
    for batch_rows in (1 << 20, 32):
        requests, results = answered(ready, path, batch_rows)
        if requests is not None:
            assert not requests[0].error and [one.index for one in requests] == [0, 1, 2, 3]
            found = np.stack([one["embedding"] for one in results])
            np.testing.assert_allclose(found, wanted["embeddings"], atol=1e-5)
