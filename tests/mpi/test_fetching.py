"""Ranks without a store are sent what they need, keep it, and ask for nothing twice."""

import numpy as np
import pytest
from made_plans import plan_of
from test_answers import GOLDEN, SHARES, compare, opened

from hepti_mpi.engine import fetching
from hepti_mpi.errors import HeptiError
from hepti_mpi.weights.cache import CachedStore
from hepti_mpi.weights.slices import Part

EXPECTED = GOLDEN / "bert" / "expected_padded.npz"


def start(machine, folder, holders):
    """Open the store on the ranks `holders`; the others have a cache."""
    whole = opened(folder, "bert", machine.world.rank, machine.world)
    path = whole.path if machine.world.rank in holders else folder / "nowhere.h5"
    return whole, fetching.open_store(machine, path, folder / "cache" / str(len(holders)) / str(machine.world.rank))


def needs(store, plan, rank):
    return list(Part(store.spec, plan, rank).slices)


@pytest.mark.parametrize("first", [True, False], ids=["the first has it", "all but the first"])
def test_what_a_rank_lacks_is_sent_once(machine, folder, first, monkeypatch):
    world = machine.world
    holders = [0] if first or world.size == 1 else list(range(1, world.size))
    whole, store = start(machine, folder, holders)
    assert isinstance(store, CachedStore) == (world.rank not in holders) and store.spec == whole.spec
    sent = []
    for layout, shares in ((("heads", "columns"), "uneven"), (("heads", "columns"), "even"), (("rows", "columns"), "uneven")):
        plan = plan_of(whole, layout, SHARES[shares](world.size))
        sent.append(fetching.fetch(machine, store, needs(store, plan, world.rank)))
        assert fetching.fetch(machine, store, needs(store, plan, world.rank)) == 0
        for piece in needs(store, plan, world.rank):
            assert np.array_equal(store.array(piece), whole.array(piece))
        compare(machine, store, plan, EXPECTED)
    assert (sum(sent) > 0) == (world.size > 1)
    monkeypatch.setattr(world, "send", lambda *_: pytest.fail("a second run sends nothing"))
    _, again = start(machine, folder, holders)
    assert fetching.fetch(machine, again, needs(store, plan, world.rank)) == 0
    if isinstance(again, CachedStore):
        assert again.path.stat().st_mode & 0o077 == 0 or again.path.parent.stat().st_mode & 0o077 == 0


def test_what_was_damaged_is_sent_again(machine, folder):
    world = machine.world
    whole, store = start(machine, folder, [0])
    plan = plan_of(whole, ("rows", "rows"), SHARES["even"](world.size))
    fetching.fetch(machine, store, needs(store, plan, world.rank))
    if isinstance(store, CachedStore):
        region = store.region(needs(store, plan, world.rank)[-1])
        with open(store.path, "r+b") as file:
            file.seek(region.offset)
            file.write(b"\xff" * 8)
    _, again = start(machine, folder, [0])
    sent = fetching.fetch(machine, again, needs(store, plan, world.rank))
    assert (sent > 0) == (world.size > 1)
    compare(machine, again, plan, EXPECTED)
    if isinstance(again, CachedStore):
        again.path.write_bytes(b"no store at all")
    _, third = start(machine, folder, [0])
    compare(machine, third, plan, EXPECTED)


def test_nobody_has_it(machine, folder):
    with pytest.raises(HeptiError) as error:
        fetching.open_store(machine, folder / "nowhere.h5", folder / "cache")
    assert "no rank has" in str(error.value) or machine.world.rank
    if machine.world.size > 1:
        whole = opened(folder, "bert", machine.world.rank, machine.world)
        with pytest.raises(HeptiError) as error:
            fetching.open_store(machine, folder / "nowhere.h5" if machine.world.rank else whole.path)
        assert machine.world.rank != 1 or "not found" in str(error.value)


def test_all_ranks_have_the_same_plan(machine):
    fetching.same_plan(machine, "1234")
    if machine.world.size > 1:
        with pytest.raises(HeptiError) as error:
            fetching.same_plan(machine, "5678" if machine.world.rank == 1 else "1234")
        assert machine.world.rank != 1 or "has plan 5678, rank 0 has 1234" in str(error.value)
