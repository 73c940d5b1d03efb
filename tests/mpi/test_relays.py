"""What a rank only hands on goes on while it computes: others wait for it."""

import numpy as np
import pytest
from made_plans import plan_of
from test_answers import HEADS, SHARES, TILES, loaded, opened

PATIENCE = 120.0  # seconds


@pytest.mark.parametrize("layout", [(HEADS, "rows"), (HEADS, "columns")], ids="/".join)
def test_rows_are_handed_on_by_a_rank_that_computes(machine, folder, monkeypatch, layout):
    """Rows of the second tile come from rank 0 and go to all: nobody ends its first computation before all have them."""
    store, size = opened(folder, "tiny-bert", machine.world.rank, machine.world), machine.world.size
    plan = plan_of(
        store, layout, SHARES["uneven"](size), total=23, reduction="reduce_scatter",
        collectives="own", tiles=TILES["two tiles"](size),
    )  # fmt: skip
    engine = loaded(machine, store, plan).engine
    embedded = np.random.default_rng(3).standard_normal((23, store.spec.hidden), np.float32) if machine.world.rank == 0 else None
    expected = engine.run((9, 14), embedded)
    expected = None if expected is None else expected.copy()
    start, compute, onward = machine.exchanges.start, engine._compute, []

    def started(transfer, aside=False, then=()):
        onward.extend(done for _, done in then)
        return start(transfer, aside, then)

    def computed(place, at):
        assert all(done.wait(PATIENCE) for done in onward), "what has come stays until this rank has computed"
        compute(place, at)

    monkeypatch.setattr(machine.exchanges, "start", started)
    monkeypatch.setattr(engine, "_compute", computed)
    hidden = engine.run((9, 14), embedded)
    assert len(onward) == (2 if size > 1 else 0), "both tiles are handed on"
    if hidden is not None:
        assert np.array_equal(hidden, expected)
