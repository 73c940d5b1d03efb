"""The steady state: hundreds of requests later a rank holds no more memory than before, and answers to the same bits."""

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from made_plans import plan_of
from test_answers import HEADS, ROWS, SHARES, TILES, opened

from hepti_mpi.engine import loading

REQUESTS, OF_MANY = 200, 80  # with more ranks than enough every exchange waits for cores
RESIDENT = 8 << 10  # bytes of memory that a request may leave
TRACED, MOST = 30, 3 << 10  # requests whose Python objects are counted, which takes several times as long; bytes that they may leave


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


@pytest.mark.parametrize("layout, collectives", [(("alltoall", ROWS), "own"), ((HEADS, "columns"), "own"), ((ROWS, ROWS), "mpi")])
def test_nothing_grows(machine, folder, layout, collectives):
    store, size = opened(folder, "tiny-bert", machine.world.rank, machine.world), machine.world.size
    own = {"reduction": "reduce_scatter", "collectives": "own", "tiles": TILES["two tiles"](size)} if collectives == "own" else {}
    plan = plan_of(store, layout, SHARES["uneven"](size), total=23, **own)
    engine = loading.load(machine, store, plan, None, {}).engine
    embedded = np.random.default_rng(3).standard_normal((23, store.spec.hidden), np.float32) if machine.world.rank == 0 else None

    def answers(count):
        for _ in range(count):
            hidden = engine.run((9, 14), embedded)
        return None if hidden is None else hidden.copy()

    first = answers(20)
    gc.collect()
    resident = resident_bytes()
    last = answers(REQUESTS if size <= 3 else OF_MANY)
    resident = resident_bytes() - resident
    tracemalloc.start()
    answers(20)  # what tracing itself and caches want
    before = tracemalloc.get_traced_memory()[0]
    answers(TRACED)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    machine.world.barrier()
    assert grown < MOST, f"{grown} bytes of Python objects more"
    assert resident < RESIDENT * REQUESTS
    if first is not None:
        assert np.array_equal(first, last)
