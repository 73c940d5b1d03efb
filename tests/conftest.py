"""Nothing that a test measures is left among the caches of who runs it; with STRICT=1 a test that is skipped is a failure."""

import os

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


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if os.environ.get("STRICT") and reporter is not None and reporter.stats.get("skipped") and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
