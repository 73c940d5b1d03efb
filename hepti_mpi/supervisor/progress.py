"""What a supervised run begins with, and where its answers go: a file of its supervisor, and records (comm/channel.py).

Knows their form; does not know what is done with them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepti_mpi.cluster import profile as profiles
from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.comm.channel import tell
from hepti_mpi.documents import read_document
from hepti_mpi.errors import InputError
from hepti_mpi.serving.journal import Begun, add_grown
from hepti_mpi.serving.outputs import Finished
from hepti_mpi.serving.sink import Event

if TYPE_CHECKING:
    from hepti_mpi.models.tasks.sampling import Chosen

FORMAT, FORMAT_VERSION = "hepti-state", 1


@dataclass
class State:
    """What a supervised run need not do again: requests that are `finished`, texts that are `begun`, and measuring the hosts of `profiles`.
    Of a service also where its `front` is (serving.front), and whether this is a start `again`, which is to be short."""

    finished: list[int] = field(default_factory=list)
    profiles: list[ClusterProfile] = field(default_factory=list)
    front: dict[str, Any] | None = None
    again: bool = False
    begun: Begun = field(default_factory=Begun)

    def to_json(self) -> dict[str, Any]:
        known = [profile.to_json() for profile in self.profiles]
        service = {} if self.front is None else {"front": self.front, "again": self.again}
        texts = {"begun": [[place, one.told()] for place, every in self.begun.items() for one in every]} if self.begun else {}
        return {"format": FORMAT, "format_version": FORMAT_VERSION, "finished": self.finished, "profiles": known, **service, **texts}


def read_state(path: Path) -> State:
    """Return what the file holds, nothing where there is none. Raises InputError when it is damaged."""
    if not path.exists():
        return State()
    data = read_document(path, FORMAT, FORMAT_VERSION, InputError, "run the supervise command again")
    try:
        if not all(isinstance(place, int) for place in data["finished"]):
            raise ValueError("places are no numbers")
        known = [profiles.from_json(profile) for profile in data["profiles"]]
        begun = Begun()
        add_grown(begun, data.get("begun", ()))
        return State(data["finished"], known, data.get("front"), bool(data.get("again")), begun)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} is damaged: {error!r}; run the supervise command again") from None


class Told:
    """Stands where a run keeps its answers (serving.sink): its supervisor keeps them. `known`: what it has of before."""

    wanted = True

    def __init__(self, state: State) -> None:
        self.state = state
        self.known: Collection[int] = set(state.finished)
        self.begun: Mapping[int, Sequence[Chosen]] = state.begun

    def begin(self, head: Mapping[str, Any], count: int, refused: Mapping[int, Finished]) -> None:
        tell("begin", requests=count, head=head, refused=list(refused.items()))

    def event(self, event: Event) -> None:
        texts = {"grown": list(event.grown)} if event.grown else {}
        work = {"rows": event.rows, "rows_left": event.rows_left}
        tell("answers", places=event.places, finished=event.finished, seconds=event.seconds, **work, **texts)

    def write(self) -> None:
        """The supervisor writes, and knows what became of all inputs."""

    def kept(self, asked: int) -> None:
        """The supervisor says that."""

    def left(self) -> str:
        return ""
