"""Which files are meant: the store and the profile where none is named. Knows what lies in a folder; opens nothing."""

import os
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from hepti_mpi.errors import ProfileError, StoreError
from hepti_mpi.weights.places import DEFAULT_STORE, FIRST_PART, WEIGHTS, no_store, some

if TYPE_CHECKING:
    from hepti_mpi.engine.machine import Machine

PROFILES = Path("hostfiles")
PROFILE = ".profile.json"  # how the name of a profile ends


def store_path(given: Path | None) -> Path:
    """Return the store that is meant when none is named. Raises StoreError when that is not clear, or `given` is something else."""
    if given is not None:
        what = no_store(given)
        if what is not None and not os.path.isfile(given / FIRST_PART):
            raise StoreError(what)
        return given
    found = sorted(WEIGHTS.glob("*.h5"))
    if len(found) == 1 or DEFAULT_STORE in found:
        return DEFAULT_STORE if DEFAULT_STORE in found else found[0]
    if found:
        raise StoreError(f"{WEIGHTS}/ has {len(found)} stores; name one with --weights: {some(found)}")
    here = Path.cwd()
    above = next((folder for folder in here.parents if any((folder / WEIGHTS).glob("*.h5"))), None)
    mend = f"make one with: python -m hepti_mpi slice MODEL_FOLDER {DEFAULT_STORE}" if above is None else (
        f"there is one in that of {above}: go there with: cd {quote(str(above))}")  # fmt: skip
    raise StoreError(f"there is no store in {WEIGHTS}/ of {here}; {mend}")


def agreed_store_path(machine: "Machine", given: Path | None, may_lack: bool = False) -> Path:
    """Return the store that is meant on every rank; `may_lack`: also where this host has none. Collective."""
    from hepti_mpi.engine import machine as machines

    with machines.together(machine.world):
        lacks = may_lack and (not list(WEIGHTS.glob("*.h5")) if given is None else not given.exists())
        path = (given or DEFAULT_STORE) if lacks else store_path(given)
    return path


def kept_folder(cache: Path) -> Path:
    """Return where weights as kernels read them are in a --weights-cache."""
    return cache.expanduser().resolve() / "prepacked"


# profiles


def profile_path() -> Path:
    """Return where rank 0 keeps what is measured: beside its hostfile where mpirun tells it, else under the name of the first host in
    hostfiles/, or where there is no such folder among the user's caches."""
    from hepti_mpi.comm.launcher import host_name, launcher_hostfile

    hostfile = launcher_hostfile()
    if hostfile is not None:
        return Path(hostfile).with_suffix(PROFILE)
    return (PROFILES if PROFILES.is_dir() else _cache()) / f"{host_name()}{PROFILE}"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "hepti"


def the_profile() -> Path:
    """Return the only file of measurements there is. Raises ProfileError."""
    found = _profiles()
    if len(found) == 1:
        return found[0]
    if found:
        raise ProfileError(f"{found[0].parent}/ has {len(found)} profiles; name one with --profile: {some(found)}")
    made = "mpirun -hostfile FILE python -m hepti_mpi profile"
    raise ProfileError(f"there is no profile in {PROFILES}/ of {Path.cwd()}; measure with: {made}")


def _profiles() -> list[Path]:
    return sorted(PROFILES.glob(f"*{PROFILE}")) or sorted(_cache().glob(f"*{PROFILE}"))
