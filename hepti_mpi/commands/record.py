"""How a run ends: its record, put out. Knows the screen and a supervisor who listens; does not know what a record says."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepti_mpi.commands.meter import meanwhile
from hepti_mpi.commands.screen import SCREEN

if TYPE_CHECKING:
    from hepti_mpi.serving.outputs import Tally
    from hepti_mpi.serving.sink import Sink


def write_out(sink: "Sink", output: Path | None, shown: bool) -> tuple["Tally | None", str]:
    """Let a sink put out what it kept, which is told where it takes long and may be `shown`. Return what became of all inputs, and what is
    said where they had all been answered before. Raises InputError."""
    from hepti_mpi.serving.journal import journal_path

    noted = output is not None and journal_path(output).exists()
    with meanwhile(f"writing {output}", shown=noted and shown):
        tally = sink.write()
    return tally, f"all of {output or 'the input'} had been answered already: nothing is left" + ", and it is written" * noted


def put_record(record: dict[str, Any], tally: "Tally | None", show: Callable[[], None] = lambda: None) -> None:
    """Print a run's record, or tell the supervisor, who knows what became of all inputs. Raises PartlyAnswered."""
    from hepti_mpi.comm import channel

    if tally is None:
        channel.tell("done", record=record)
        return
    record |= tally.numbers
    show()
    SCREEN.document(record, always=True)
    tally.check()
