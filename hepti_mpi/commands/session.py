"""What a command that works on all ranks begins with: the machine, the store and what was measured of the ranks.

Knows in which order that goes; does not know what a command does then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hepti_mpi.commands.options import Machinery
from hepti_mpi.commands.paths import agreed_store_path, kept_folder
from hepti_mpi.commands.screen import SCREEN, say

if TYPE_CHECKING:
    from hepti_mpi.cluster.profile import ClusterProfile
    from hepti_mpi.comm.ranks import Comm
    from hepti_mpi.engine.machine import Machine
    from hepti_mpi.weights.prepacked import Prepacked
    from hepti_mpi.weights.store import Store


@dataclass(frozen=True)
class Session:
    """The ranks of a command and the store that all of them have open. `tell` says a sentence once; `keeps`: whether all of them may keep
    weights as kernels read them."""

    machine: "Machine"
    store: "Store"
    tell: Callable[[str], None]
    keeps: bool = False

    @property
    def world(self) -> "Comm":
        return self.machine.world

    @property
    def root(self) -> bool:
        return self.world.rank == 0

    def measured(
        self, path: Path, fresh: bool, required: bool, known: Sequence["ClusterProfile"] = (), must_keep: bool = False
    ) -> "ClusterProfile":
        """Return what is known of the ranks, from `path` or from before, else measured and saved there. Collective.

        `required`: what is in `path` must match; `must_keep`: what is measured must be saved. Raises ProfileError.
        """
        from hepti_mpi.engine.machine import measured_profile

        return measured_profile(self.machine, self.store.spec, path, fresh, required, self.tell, known, must_keep)


def opened(machinery: Machinery, weights: Path | None, cache: Path | None = None) -> Session:
    """Start MPI and open the store on every rank; `cache`: where a host without it keeps what others send of it,
    and weights as kernels read them. Collective."""
    from hepti_mpi.comm.launcher import host_name
    from hepti_mpi.engine import fetching
    from hepti_mpi.engine import machine as machines
    from hepti_mpi.weights.prepacked import Prepacked

    machine = machines.start(machinery.threads, machinery.emulate, machinery.deadline)
    prepacked = None
    if cache is not None:
        prepacked = Prepacked(kept_folder(cache), lambda sentence: SCREEN.warn(f"{host_name()}: {sentence}"))
    store = fetching.open_store(machine, agreed_store_path(machine, weights, cache is not None), cache, prepacked)
    keeps = all(machine.world.gather_all(_keeps(prepacked)))
    return Session(machine, store, say(machine), keeps)


def _keeps(prepacked: "Prepacked | None") -> bool:
    """Tell whether this rank may keep weights as kernels read them."""
    if prepacked is None:
        return False
    from hepti_mpi.engine import runtime

    return prepacked.writable and runtime.KEEPS_PACKED
