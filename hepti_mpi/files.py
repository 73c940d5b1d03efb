"""Files that are there whole or not at all. Knows paths and temporary names, not what is written."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that gets the name `path` when it is complete, and leaves nothing behind otherwise.

    The temporary name is nobody else's, so two programs may write the same path. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb") as file:
            yield file
        temporary.replace(path)
    finally:
        with suppress(OSError):  # whatever kept it from being made is told by the caller
            temporary.unlink()
