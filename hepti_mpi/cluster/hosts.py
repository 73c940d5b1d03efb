"""The hosts of a hostfile, and how ssh reaches them. Knows which of its lines are one machine; does not know what runs there."""

import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hepti_mpi.cluster import hostfile
from hepti_mpi.comm import names
from hepti_mpi.comm.launcher import host_name
from hepti_mpi.errors import HeptiError, reason_of

ANSWER_SECONDS = 1.0
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=3", "-o", "StrictHostKeyChecking=accept-new",
       "-o", "ServerAliveInterval=5")  # fmt: skip


@dataclass
class Host:
    """A host of the hostfile: `name` as it stands there, `slots` its ranks (None: one for each core), `own` what it calls itself, as far
    as that is known; `here`: it is this machine, which needs no ssh. `missed`: looks in a row that it has not answered.
    `lost`, `losses`, `since`: as supervisor.returning keeps them. `starved`: processes that its system has ended for want of memory, as far
    as that is known. `number`: the line; `foreign`: what mpirun does not read of its lines as it is meant, by line."""

    name: str
    own: str = ""
    slots: int | None = None
    most: int | None = None
    user: str = ""
    port: int | None = None
    number: int = 0
    foreign: list[tuple[int, str]] = field(default_factory=list)
    door: tuple[str, int] | None = None
    missed: int = 0
    lost: bool = False
    losses: float = 0.0
    since: float = 0.0
    starved: int | None = None

    def __post_init__(self) -> None:
        self.here = names.is_here(self.name)
        self.own = self.own or (host_name() if self.here else names.short(self.name))

    @property
    def login(self) -> str:
        """The name for ssh."""
        return f"{self.user}@{self.name}" if self.user else self.name

    @property
    def is_plain(self) -> bool:
        """Whether mpirun, which does not ask the resolver, knows this machine by that name, or the name is another machine's."""
        if not self.here:
            return True
        if names.address(self.name):
            return self.name == "127.0.0.1" or self.name in names.own_addresses()
        return self.name.partition(".")[0] in ("localhost", host_name())

    @property
    def line(self) -> str:
        """A line of a hostfile that mpirun reads as it is meant."""
        user = self.user if hostfile.is_plain(self.user) else None
        words = {"slots": self.slots, "max_slots": self.most, "username": user, "port": self.port}
        given = [f"{key}={value}" for key, value in words.items() if value is not None]
        return " ".join([self.name if self.is_plain else "localhost", *given])

    def typed(self, command: str) -> str:
        """Return what somebody types on this machine to run a command on the host."""
        return command if self.here else f"ssh {f'-p {self.port} ' if self.port else ''}{self.login} {command}"

    def ssh(self, *options: str) -> list[str]:
        """Return the words that call ssh to this host; `options` of ssh."""
        return [SSH[0], *options, *SSH[1:], *(["-p", str(self.port)] if self.port else []), self.login]


def read_hosts(path: Path) -> list[Host]:
    """Read a hostfile of mpirun; a machine that has several lines is one host with the ranks of all of them.

    Raises HeptiError when it cannot be read, or names no host, or says of one machine two things that do not go together.
    """
    return [host for host in listed_hosts(path) if not host.lost]


def listed_hosts(path: Path) -> list[Host]:
    """Read a hostfile like read_hosts; those that it wants to be left out are `lost`."""
    return hosts_of(content_of(path), path)


def content_of(path: Path) -> bytes:
    """Return what is in a hostfile, which may be a pipe. Raises HeptiError."""
    try:
        return path.read_bytes()
    except OSError as error:
        mend = "; write one with a line for each host, such as: pi4-1 slots=1" * (isinstance(error, FileNotFoundError))
        raise HeptiError(f"hostfile {path} cannot be read: {reason_of(error)}{mend}") from None


def hosts_of(content: bytes, path: Path) -> list[Host]:
    """Return the hosts of what is in a hostfile, as listed_hosts does."""
    try:
        if content.startswith(b"\x89HDF"):
            raise HeptiError("it is a weight store; name the file with the hosts here, and the store as STORE or with --weights")
        lines = hostfile.parse(content)
    except HeptiError as error:
        raise HeptiError(f"hostfile {path}, {error}" if str(error).startswith("line") else f"hostfile {path}: {error}") from None
    names.look_up(line.name for line in lines)
    hosts, alike = [], dict[str, list[Host]]()  # by what two names of one machine may have in common
    for line in lines:
        foreign = [(line.number, said) for said in line.foreign]
        keys = ["here"] if names.is_here(line.name) else [names.short(line.name), *names.addresses(line.name)]
        known = (host for key in keys for host in alike.get(key, ()))
        host = next((host for host in known if names.is_same(host.name, line.name)), None)
        if host is None:
            host = Host(line.name, "", line.slots, line.most, line.user, line.port, line.number, foreign)
            hosts.append(host)
            host.lost = line.excluded
            for other in alike.get(names.short(line.name), ()):
                said = f"{line.name} and {other.name} are both {host.own} to mpirun, which starts ranks on one of them"
                host.foreign.append((line.number, said))
            if not host.is_plain:
                host.foreign.append((line.number, f"{line.name} is this machine, which mpirun knows as {host_name()} or localhost"))
        elif line.excluded or host.lost:
            host.lost, host.number, host.foreign = True, line.number if line.excluded else host.number, host.foreign + foreign
        else:
            _once_more(host, line, path)
        for key in keys:
            alike.setdefault(key, []).append(host)
    if all(host.lost for host in hosts):
        raise HeptiError(f"hostfile {path} names no host")
    return hosts


def _once_more(host: Host, line: hostfile.Line, path: Path) -> None:
    """Add a line of a host that has one already: a rank, as mpirun does. Raises HeptiError."""
    one = f"hostfile {path}, line {line.number}: {line.name} is the machine of line {host.number}"
    also = "" if line.name == host.name else f" ({host.name})"
    if line.slots is not None:
        raise HeptiError(f"{one}{also}; give it one line with slots=N")
    if line.port not in (None, host.port):
        raise HeptiError(f"{one}{also} with another port; mpirun knows one way to a host")
    host.slots = (host.slots or 1) + 1
    host.foreign += [(line.number, said) for said in line.foreign]
    if also and not host.here:
        host.foreign.append((line.number, f"{line.name} is the machine of line {host.number}{also}"))


def door_of(host: Host) -> tuple[str, int]:
    """Return the name or address and the port where ssh would go for a host."""
    found = {"hostname": host.name, "port": str(host.port or 22)}
    try:
        said = subprocess.run(host.ssh("-G"), capture_output=True, text=True, errors="replace", timeout=5).stdout
        found |= {key: value for key, _, value in (line.partition(" ") for line in said.splitlines()) if key in found}
    except (OSError, subprocess.TimeoutExpired):
        pass
    return found["hostname"].rpartition("@")[2], int(found["port"])


def shell(host: Host, line: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a line of shell on a host; `options` as for subprocess.run. Its exit code is 255 when ssh itself failed."""
    return subprocess.run(["sh", "-c", line] if host.here else [*host.ssh(), line], **options)


def answers(host: Host) -> bool:
    """Tell whether a host's sshd answers, or its system says that there is none; this machine always does."""
    if host.here:
        return True
    name, port = host.door or (host.name, host.port or 22)
    return any(_answers("127.0.0.1" if address == names.LOOPBACK else address, port) for address in names.addresses(name))


def _answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), ANSWER_SECONDS) as link:
            link.settimeout(ANSWER_SECONDS)
            return link.recv(4) == b"SSH-"
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
