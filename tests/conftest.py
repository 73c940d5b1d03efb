"""Nothing that a test measures is left among the caches of who runs it; with STRICT=1 a test that is skipped is a failure."""

import gc
import os
from hashlib import sha256
from typing import Any

import pytest

from hepti_mpi.comm import leavings
from hepti_mpi.commands.screen import SCREEN


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory):
    """What one process of a run has measured is for all of them: jobs of several users of a machine are side by side as well."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    (shared / "caches").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared / "caches"))
        yield


@pytest.fixture(scope="module", autouse=True)
def _leavings():
    """Of runs that tests have killed: an mpirun fails that gets the process number of one of them."""
    leavings.remove()


@pytest.fixture(autouse=True)
def plain_screen():
    """What a command before asked for, such as --json, is not for the next test."""
    SCREEN.quiet = SCREEN.json = False


@pytest.fixture(scope="module")
def store_of(tmp_path_factory):
    """A function that returns the store of a small model in a format: of tiny-bert, tiny-vit, one of layers.MADE or of decoders.CASES."""
    from decoders import CASES, write_folder
    from layers import MADE, odd_model

    from hepti_mpi.models.checkpoints.hf import read_model
    from hepti_mpi.models.checkpoints.random import random_model
    from hepti_mpi.weights import writing
    from hepti_mpi.weights.store import Store

    made = {}

    def store_of(case, format_name):
        if (case, format_name) not in made:
            folder = tmp_path_factory.mktemp("store")
            model = odd_model(case) if case in MADE else read_model(write_folder(case, folder)) if case in CASES else random_model(case)
            writing.write(folder / "s.h5", model.in_format(format_name))
            made[case, format_name] = Store(folder / "s.h5")
        return made[case, format_name]

    yield store_of
    for store in made.values():
        store.close()


COSTS: dict[tuple[bytes, tuple[int, ...]], Any] = {}


@pytest.fixture
def costs_once(monkeypatch):
    """What stores of the same bytes cost on the same inputs is measured once: formats are tried in turn for one error after the other."""
    from hepti_mpi.engine import accuracy

    measure = accuracy.accuracy_of

    def measured(store, model, inputs):
        key = sha256(store.path.read_bytes() + inputs.hidden.tobytes()).digest(), tuple(inputs.lengths)
        if key not in COSTS:
            COSTS[key] = measure(store, model, inputs)
        return COSTS[key]

    monkeypatch.setattr(accuracy, "accuracy_of", measured)


def pytest_collection_finish() -> None:
    """Thousands of tests and all modules stay to the end: the collector need not look through them again and again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if os.environ.get("STRICT") and reporter is not None and reporter.stats.get("skipped") and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
