"""How a run ends: its record, put out. Knows the screen and a supervisor who listens; does not know what a record says."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hepti_mpi.commands.screen import SCREEN

if TYPE_CHECKING:
    from hepti_mpi.serving.outputs import Tally


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
