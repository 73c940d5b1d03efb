"""Run pytest in lockstep on every rank: rank 0 reports; a failure on any rank ends all of them, since the others would hang."""

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from hepti_mpi.cluster.emulation import Emulation
from hepti_mpi.comm.launcher import abort_all, host_name
from hepti_mpi.comm.ranks import Comm
from hepti_mpi.engine import stages
from hepti_mpi.engine.cores import Cores
from hepti_mpi.engine.machine import Machine, machine_of

sys.path.insert(0, str(Path(__file__).parent.parent))  # clusters.py
os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")  # also where there is a core for each rank: it may be another test's
WORLD = Comm.world()
ALL_ON = 3  # ranks: enough for a first, a last and one between
OTHERS = (1, 2, 4, 5, 7)  # ranks that tests/run.sh tries too
GRID = ("test_answers.py", "test_formats.py", "test_generation.py", "test_teams.py", "test_minilm.py", "test_steady.py")
JOBS = ("test_alone.py", "test_orders.py", "test_settling.py")  # of whole jobs, which are alike between ALL_ON and the most ranks
MEASURES = ("test_a_profile_of_a_busy_machine_is_measured_again",)  # for ten seconds where cores are shared; not with more than ALL_ON
R = TypeVar("R")
HERE = sorted(os.sched_getaffinity(0))
CORES = Cores(WORLD.rank, WORLD.gather_all(host_name()), HERE, HERE, threads=1, alone_threads=2 if WORLD.size > 1 else 1)


def pytest_configure(config: pytest.Config) -> None:
    if WORLD.rank:
        config.option.verbose = -3
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115  for the life of the process
        config.pluginmanager.unregister(name="terminalreporter")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run all cases on ALL_ON ranks, and each of those that compare answers on one other number of ranks, in turn: what divides is walked
    on 1 to 7 simulated ranks by tests/test_program.py. JOBS run on up to ALL_ON and on the most ranks, what else has no cases on every
    number. WHOLE=1 runs all everywhere."""
    if WORLD.size == ALL_ON or os.environ.get("WHOLE"):
        return
    turn = OTHERS.index(WORLD.size) if WORLD.size in OTHERS else WORLD.size
    grid = [item for item in items if item.path.name in GRID and hasattr(item, "callspec")]
    left = [item for number, item in enumerate(grid) if (number - turn) % len(OTHERS)]
    if ALL_ON < WORLD.size < max(OTHERS):
        left += [item for item in items if item.path.name in JOBS]
    if WORLD.size > ALL_ON:
        left += [item for item in items if item.name in MEASURES]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in set(left)]


@pytest.hookimpl(hookwrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function):
    outcome = yield
    if outcome.excinfo is not None and not issubclass(outcome.excinfo[0], pytest.skip.Exception):
        pyfuncitem.config.pluginmanager.getplugin("capturemanager").suspend_global_capture()
        print(f"\nfailed on {host_name()} (rank {WORLD.rank} of {WORLD.size}): {pyfuncitem.nodeid}", file=sys.stderr)
        traceback.print_exception(*outcome.excinfo, file=sys.stderr)
        sys.stderr.flush()
        if WORLD.size > 1:
            abort_all(1)


def rest(waited: float) -> None:
    """Sleep for half of what was waited already: other tests want the cores, and each look takes one of them."""
    time.sleep(min(max(waited / 2, 1e-4), 1e-2))


stages.PAUSES = dict.fromkeys(stages.PAUSES, rest)  # of who waits for what another stage hands on
Comm.done.__defaults__ = (rest,)  # for what else comes, barriers most of all


def resting(collective: Callable[..., R]) -> Callable[..., R]:
    """Return MPI's own collective, in which who waits spins, behind a wait for all ranks in which they rest."""

    def rested(comm: Comm, *what: Any, **how: Any) -> R:
        if comm.size > 1 and not comm.polite:
            with comm.turn:
                there = comm.mpi.Ibarrier()
            comm.done([there])
        return collective(comm, *what, **how)

    return rested


def summing(comm: Comm, values: np.ndarray, result: np.ndarray, summing: Callable[..., Callable[[], None]] = Comm.summing) -> Any:
    """Return what sums as Comm.summing does, behind such a wait."""
    run = summing(comm, values, result)
    return partial(resting(lambda comm: run()), comm)


for name in ("broadcast", "reduce_scatter", "allgather_rows", "scatter_rows", "gather_rows", "gather_matrix"):
    setattr(Comm, name, resting(getattr(Comm, name)))
Comm.summing = summing  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def machine() -> Machine:
    """This rank's place, where whoever waits for an exchange or an order rests."""
    machine = machine_of(WORLD, CORES, Emulation())
    machine.exchanges.pause = rest
    return machine


@pytest.fixture(scope="session")
def world() -> Comm:
    return WORLD


@pytest.fixture(scope="session")
def folder(world: Comm):
    """A folder that all ranks share."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(world.from_root(name))
        world.barrier()
