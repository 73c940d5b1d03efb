"""All families: every module of this folder that has a table MODEL_TYPES. A family is added by adding its file."""

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.families.family import Family, Task


def _found() -> dict[str, Family]:
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        found |= getattr(importlib.import_module(f"{__package__}.{module.name}"), "MODEL_TYPES", {}) if module.name != "registry" else {}
    return found


FAMILIES = _found()  # by model_type


def choose_task(family: Family, config: Mapping[str, Any], names: Iterable[str]) -> Task:
    """Return what the model is for. Raises ModelError for an architecture without a table entry."""
    listed = config.get("architectures")
    if not isinstance(listed, list | None):
        raise ModelError(f"config.json: architectures is {listed!r:.60}, expected a list of one name")
    default = next(iter(family.architectures))  # the bare model
    architecture = listed[0] if listed else default
    if not isinstance(architecture, str) or architecture not in family.architectures:
        raise ModelError(f"architecture {architecture!r:.60} is not supported; supported: {', '.join(family.architectures)}")
    task = family.architectures[architecture]
    if task.head == "pooler" and "pooler.dense.weight" not in set(names):
        return Task("none")
    return task
