"""Reduced weights on real ranks: however a model is divided, its answers are those of one rank, or as near to float32's as they are."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from made_plans import plan_of
from test_answers import COLUMNS, HEADS, ROWS, SHARES, loaded, made_in

from hepti_mpi.engine import loading
from hepti_mpi.engine.alone import last_hidden_state
from hepti_mpi.errors import HeptiError
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.tuning import bench as benches
from hepti_mpi.tuning import formats
from hepti_mpi.weights import writing
from hepti_mpi.weights.store import Store

LENGTHS = (5, 1, 9, 8) * 8  # errors are compared: of few rows they are chance
ODD = {f"layers.{number}.attention.o": "q8" for number in range(3)}  # whose heads of 8 numbers no block of 32 divides
FORMATS = {
    "f32": {}, "f16": {"": "f16"}, "q8": {"": "q8"}, "q8-blocks": {"": "q8-blocks"} | ODD, "q4": {"": "q4"} | ODD,
    "some of each": {"": "q8", "layers.1": "q4", "layers.1.attention.o": "f16", "layers.2.mlp.up": "f32"},
}  # fmt: skip
WHOLE_SUMS = [(ROWS, ROWS), ("alltoall", ROWS)]  # every rank sums over all there is
CUT_SUMS = [(HEADS, COLUMNS), (HEADS, ROWS), (ROWS, COLUMNS)]


@cache
def opened(folder, name, world):
    """Return the store of a tiny model with weights large enough to matter, and channels that are not alike."""
    path, model = made_in(folder) / f"formats-{name.replace(' ', '-')}.h5", random_model("tiny-bert")

    def stream():
        for called, values in model.weights():
            large = values * np.float32(5) if called.startswith("layers") and "norm" not in called else values
            if called.endswith("attention.norm.weight"):  # one channel far above the others, as models have them
                large[3] = 9
            yield called, large

    if world.rank == 0 and not path.exists():
        writing.write(path, replace(model, spec=replace(model.spec, formats=FORMATS[name]), stream=stream))
    world.barrier()
    return Store(path)


@pytest.fixture(scope="module")
def embedded():
    return np.random.default_rng(0).standard_normal((sum(LENGTHS), 56), np.float32)


@pytest.fixture(scope="module")
def of_one(embedded):
    """What one rank answers from a store: the same for all layouts and shares."""
    made = {}

    def of_one(store):
        if store.path not in made:
            made[store.path] = last_hidden_state(store, embedded, LENGTHS)
        return made[store.path]

    return of_one


@pytest.mark.parametrize("layout", [*WHOLE_SUMS, *CUT_SUMS], ids="/".join)
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "f32"])
def test_ranks_answer_as_one_does(machine, folder, embedded, of_one, name, layout):
    world = machine.world
    store, exact = opened(folder, name, world), opened(folder, "f32", world)
    own = {"reduction": "reduce_scatter", "collectives": "own"} if layout[0] == "alltoall" else {}
    for shares in ("uneven", "with nothing"):
        plan = plan_of(store, layout, SHARES[shares](world.size), total=sum(LENGTHS), **own)
        ready = loaded(machine, store, plan)
        found = ready.engine.run(LENGTHS, embedded if world.rank == 0 else None)
        if found is None:
            continue
        alone, right = of_one(store), of_one(exact)
        error, least = (np.sqrt(np.square(one - right).mean()) for one in (found, alone))
        if layout in WHOLE_SUMS or name == "f16":
            assert np.abs(found - alone).max() <= 1e-4 * np.abs(right).max(), (np.abs(found - alone).max(), least)
        assert error <= max(1.2 * least, 1e-5), (error, least)


@pytest.mark.parametrize("layout", WHOLE_SUMS, ids="/".join)
def test_where_rows_are_cut_changes_no_bit(machine, folder, embedded, of_one, layout):
    """Rounding makes a step of the least difference: sums are in one order, also those of a rank that has one row of a request."""
    store, rows, ranks = opened(folder, "q8", machine.world), sum(LENGTHS), machine.world.size
    alone = of_one(store) if machine.world.rank == 0 else None
    own = {"reduction": "reduce_scatter", "collectives": "own"} if layout[0] == "alltoall" else {}
    for shares in (SHARES["even"](ranks), (rows - ranks + 1, *(1,) * (ranks - 1)), (*(1,) * (ranks - 1), rows - ranks + 1)):
        plan = plan_of(store, layout, shares, total=rows, **own)
        ready = loaded(machine, store, plan)
        found = ready.engine.run(LENGTHS, embedded if machine.world.rank == 0 else None)
        if found is not None:
            np.testing.assert_array_equal(found, alone)


def test_what_a_format_costs(machine, folder, embedded):
    """In the order of their bits; 8 bits are near, 4 are not. One rank asks: nothing of it is divided."""
    stores_of = {name: opened(folder, name, machine.world) for name in ("f32", "f16", "q8-blocks", "q8", "q4")}
    if machine.world.rank:
        return
    states = {name: last_hidden_state(store, embedded, LENGTHS) for name, store in stores_of.items()}
    errors = {name: float(np.sqrt(np.square(state - states["f32"]).mean())) for name, state in states.items()}
    assert list(errors.values()) == sorted(errors.values())
    assert errors["f16"] < 1e-3 and errors["q8"] < 0.05 and errors["q4"] < 0.5


def test_a_bench_measures_formats_of_one_checkpoint_in_turns(machine, folder):
    """Stores are made beside the float32 one, where they are not there; all answer the same request."""
    world, said, path = machine.world, [], folder / "turns.h5"
    if world.rank == 0 and not path.exists():
        writing.write(path, random_model("tiny-bert"))
    world.barrier()
    source = Store(path)
    every = [formats.in_format(machine, source, name, said.append, folder) for name in ("f32", "q8", "f16")]
    again = formats.in_format(machine, source, "q8", said.append, folder)
    assert len(said) == (2 if world.rank == 0 else 0) and again.store.source_hash == every[1].store.source_hash
    assert every[0].store is source and every[0].bytes > every[2].bytes > every[1].bytes
    assert 0 <= every[2].accuracy.error < every[1].accuracy.error < 1e-3
    samples = []
    for one in every:
        plan = plan_of(one.store, (HEADS, COLUMNS), SHARES["uneven"](world.size), total=26)
        ready = loading.load(machine, one.store, plan, None, {})
        samples.append(benches.Samples(ready.part, ready.engine, None))
    benches.answer(machine, samples, 26, 2, lambda rounds: None)
    for one, sample in zip(every, samples):
        assert len(sample.seconds) == 2 and len(sample.held) == world.size
        one.methods = {"tensor": formats.Taken.of(sample)}
    if world.rank == 0:
        f32, q8, f16 = (one.methods["tensor"].difference for one in every)
        assert f32 == 0 and 0 < f16 < q8 < 0.1
        told = formats.document("turns", 26, "here", every)["formats"]
        assert [one["accuracy"] is None for one in told.values()] == [True, False, False]
        lines = formats.compared(every).splitlines()
        assert [line.split()[:2] for line in lines[1:4]] == [["tensor", "f32"], ["tensor", "q8"], ["tensor", "f16"]]
    with pytest.raises(HeptiError, match="--formats begins with a float32 store" if world.rank == 0 else "rank 0 failed"):
        formats.in_format(machine, every[1].store, "f16", said.append, folder)


def test_a_store_that_is_in_the_way_is_kept(machine, folder):
    world, path, other = machine.world, folder / "way.h5", folder / "way-q8.h5"
    if world.rank == 0 and not path.exists():
        writing.write(path, random_model("tiny-bert"))
        writing.write(other, random_model("tiny-bert", seed=1).in_format("q8"))
    world.barrier()
    before = other.read_bytes()
    with Store(path) as source, pytest.raises(HeptiError, match="rename it" if world.rank == 0 else "rank 0 failed"):
        formats.in_format(machine, source, "q8", print, folder)
    assert other.read_bytes() == before
