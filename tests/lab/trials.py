"""What the experiments share: models and inputs, what a run tells, and a table. Knows files and lines; does not know clusters."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hepti_mpi.comm.channel import STATE, told, untangled
from hepti_mpi.reporting.tables import table

PROGRAM = [sys.executable, "-m", "hepti_mpi"]


TOLD = {STATE: "/nowhere"}  # of a run whose records are read here


def say(text: str) -> None:
    print(text, flush=True)


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    say(table(head, [list(map(str, row)) for row in rows]))


def records_of(run: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    """Yield the records among the lines of a run that is told to be supervised."""
    for line in untangled(run.stdout or ()):
        record = told(line)
        if record is not None:
            yield record


def sliced(name: str, path: Path) -> Path:
    """Write a store of a random model."""
    subprocess.run([*PROGRAM, "slice", f"random:{name}", path], check=True, stdout=subprocess.DEVNULL)
    return path


def inputs(path: Path, lengths: Sequence[int], vocabulary: int) -> Path:
    """Write requests of these numbers of tokens."""
    draw = np.random.default_rng(0)
    mask = np.arange(max(lengths))[None, :] < np.array(lengths)[:, None]
    np.savez(path, input_ids=draw.integers(1, vocabulary, mask.shape) * mask, attention_mask=mask.astype(np.int64))
    return path
