"""What a supervised run begins with, and where its answers go: a file of its supervisor, and records (comm/channel.py).

Knows their form; does not know what is done with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hepti_mpi.cluster import profile as profiles
from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.comm.channel import tell
from hepti_mpi.documents import read_document
from hepti_mpi.errors import InputError

FORMAT, FORMAT_VERSION = "hepti-state", 1


@dataclass
class State:
    """What a supervised run need not do again: requests that are `finished`, and measuring the hosts of `profiles`."""

    finished: list[int] = field(default_factory=list)
    profiles: list[ClusterProfile] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        known = [profile.to_json() for profile in self.profiles]
        return {"format": FORMAT, "format_version": FORMAT_VERSION, "finished": self.finished, "profiles": known}


def read_state(path: Path) -> State:
    """Return what the file holds, nothing where there is none. Raises InputError when it is damaged."""
    if not path.exists():
        return State()
    data = read_document(path, FORMAT, FORMAT_VERSION, InputError, "run the supervise command again")
    try:
        if not all(isinstance(place, int) for place in data["finished"]):
            raise ValueError("places are no numbers")
        return State(data["finished"], [profiles.from_json(profile) for profile in data["profiles"]])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} is damaged: {error!r}; run the supervise command again") from None


class Reported:
    """Stands where a run keeps its journal: the supervisor keeps it. `finished`: what it has of before, without the answers."""

    def __init__(self, state: State) -> None:
        self.finished: dict[int, dict[str, Any]] = {place: {} for place in state.finished}

    def add(self, places: Sequence[int], finished: Sequence[dict[str, Any]], seconds: float) -> None:
        tell("answers", places=list(places), finished=list(finished), seconds=seconds)
