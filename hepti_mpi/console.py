"""What the commands share besides their options: which files are meant, progress and words on the screen. Computes nothing."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.errors import StoreError

if TYPE_CHECKING:
    from hepti_mpi.runtime.machine import Machine

WEIGHTS = Path("weights")
DEFAULT_STORE = WEIGHTS / "all-MiniLM-L6-v2.h5"


def store_path(given: Path | None) -> Path:
    """Return the store that is meant when none is named. Raises StoreError when that is not clear."""
    if given is not None:
        return given
    found = sorted(WEIGHTS.glob("*.h5"))
    if len(found) == 1 or DEFAULT_STORE in found:
        return DEFAULT_STORE if DEFAULT_STORE in found else found[0]
    if found:
        raise StoreError(f"{WEIGHTS}/ has {len(found)} stores; name one with --weights: {', '.join(map(str, found[:5]))}")
    raise StoreError(f"there is no store in {WEIGHTS}/; make one with: python -m hepti_mpi slice MODEL_FOLDER {DEFAULT_STORE}")


def agreed_store_path(machine: "Machine", given: Path | None, may_lack: bool = False) -> Path:
    """Return the store that is meant on every rank; `may_lack`: also where this host has none. Collective."""
    from hepti_mpi.runtime import machine as machines

    with machines.together(machine.world):
        path = DEFAULT_STORE if may_lack and given is None and not list(WEIGHTS.glob("*.h5")) else store_path(given)
    return path


def profile_path(machine: "Machine") -> Path:
    """Return where rank 0 keeps this job's profile: beside its hostfile where mpirun tells it, else named after the first host."""
    from hepti_mpi.comm.launcher import host_name, launcher_hostfile

    hostfile = launcher_hostfile()
    if hostfile is not None:
        return Path(hostfile).with_suffix(".profile.json")
    return Path("hostfiles") / f"{host_name()}-{machine.world.size}.profile.json"


def say(machine: "Machine") -> Callable[[str], None]:
    return lambda sentence: click.echo(sentence, err=True) if machine.world.rank == 0 else None


def put_out(output: Path | None, finished: Sequence[dict[str, Any]]) -> None:
    """Write the answers to all requests (outputs.Finished) to `output`, or print them. Raises InputError."""
    from hepti_mpi.reporting import outputs, records

    if output is not None:
        outputs.write_finished(output, finished)
    else:
        for item in finished:
            click.echo(records.answer_line(item["answer"]))


def size(count: float) -> str:
    from hepti_mpi.reporting.records import size

    return size(count)


@contextmanager
def progress_bar(label: str, total: int, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances a bar on standard error, which is drawn on a terminal only."""
    if not shown or not sys.stderr.isatty():
        yield lambda amount: None
        return
    with click.progressbar(length=total, label=label, file=sys.stderr) as bar:
        yield bar.update
