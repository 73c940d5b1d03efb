"""Nothing that a test measures is left among the caches of who runs it."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield
