"""Run one transformer inference across several unequal machines. `Model` asks one from Python."""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: the command line starts without."""
    if name == "Model":
        return importlib.import_module("hepti_mpi.api.model").Model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
