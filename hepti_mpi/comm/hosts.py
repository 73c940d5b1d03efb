"""The hosts of a hostfile, and how ssh reaches them. Knows names and addresses; does not know what runs there."""

import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepti_mpi.comm.launcher import host_name
from hepti_mpi.errors import HeptiError

ANSWER_SECONDS = 1.0
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=3", "-o", "StrictHostKeyChecking=accept-new",
       "-o", "ServerAliveInterval=5")  # fmt: skip


@dataclass
class Host:
    """A host of the hostfile: `line` as it stands there, `own` what it calls itself, as far as that is known. `missed`: looks in a row
    that it has not answered."""

    name: str
    line: str
    own: str = ""
    address: tuple[str, int] | None = None
    missed: int = 0
    lost: bool = False
    losses: int = 0

    def __post_init__(self) -> None:
        self.own = self.own or (host_name() if is_here(self.name) else short_name(self.name))


def read_hosts(path: Path) -> list[Host]:
    """Read a hostfile of mpirun. Raises HeptiError when it cannot be read or names no host, or one twice."""
    try:
        lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise HeptiError(f"hostfile {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    hosts = [Host(line.split()[0], line) for line in lines if line]
    names = [host.name for host in hosts]
    for name in names:
        if name.startswith("-") or not all(letter.isalnum() or letter in "-._@" for letter in name):  # ssh would take it for an option
            raise HeptiError(f"hostfile {path}: {name!r} is no name of a host")
        if names.count(name) > 1:
            raise HeptiError(f"hostfile {path} has {name} twice; give it one line with slots=N")
    if not hosts:
        raise HeptiError(f"hostfile {path} names no host")
    return hosts


def is_here(name: str) -> bool:
    return name.rpartition("@")[2] in ("localhost", "127.0.0.1", socket.gethostname()) or short_name(name) == host_name()


def short_name(name: str) -> str:
    """Return the name by which a host of a hostfile calls itself, as a rule."""
    return name.rpartition("@")[2].split(".")[0]


def address_of(name: str) -> tuple[str, int]:
    """Return where ssh would go for a host."""
    found = {"hostname": name, "port": "22"}
    try:
        said = subprocess.run(["ssh", "-G", name], capture_output=True, text=True, timeout=5).stdout
        found |= {key: value for key, _, value in (line.partition(" ") for line in said.splitlines()) if key in found}
    except (OSError, subprocess.TimeoutExpired):
        pass
    return found["hostname"].rpartition("@")[2], int(found["port"])


def shell(host: Host, line: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a line of shell on a host; `options` as for subprocess.run. Its exit code is 255 when ssh itself failed."""
    return subprocess.run(["sh", "-c", line] if is_here(host.name) else [*SSH, host.name, line], **options)


def answers(host: Host) -> bool:
    """Tell whether a host's sshd answers, or its system says that there is none."""
    try:
        with socket.create_connection(host.address or (host.name, 22), ANSWER_SECONDS) as link:
            link.settimeout(ANSWER_SECONDS)
            return link.recv(4) == b"SSH-"
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
