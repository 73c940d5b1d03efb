"""Nothing that a test measures is left among the caches of who runs it."""

import pytest

from hepti_mpi.commands.screen import SCREEN


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture(autouse=True)
def plain_screen():
    """What a command before asked for, such as --json, is not for the next test."""
    SCREEN.quiet = SCREEN.json = False
