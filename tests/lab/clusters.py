"""The clusters of clusters.toml: names of hosts, the boards that they are, link rates.

Knows the file and what a sound cluster is. Does not know how hosts are made.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepti_mpi.cluster.boards import board_named
from hepti_mpi.errors import ProfileError

from .errors import LabError

FILE = Path(__file__).with_name("clusters.toml")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")  # of a host or a cluster
MOST_HOSTS = 250  # addresses of the lab's network
NETWORK = "10.77.0"  # every lab has it to itself: its network namespaces hold nothing else


@dataclass(frozen=True)
class Host:
    """A host: the board that it is (hepti_mpi.cluster.boards.board_named), on a link of `mbit` Mbit/s both ways."""

    name: str
    board: str
    mbit: float
    number: int  # from 1, in the order of the ranks
    latency_us: float = 0.0  # of its link, one way, at the side that receives

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}"

    @property
    def mac(self) -> str:
        return f"02:00:00:00:00:{self.number:02x}"  # a board that comes back has the one that the others remember

    @property
    def port(self) -> str:
        """The name of the host's port on the switch."""
        return f"port{self.number}"


@dataclass(frozen=True)
class Cluster:
    """Boards on one switch, in the order of the ranks."""

    name: str
    hosts: tuple[Host, ...]

    def __post_init__(self) -> None:
        if not self.hosts or len(self.hosts) > MOST_HOSTS:
            raise LabError(f"cluster {self.name} has {len(self.hosts)} hosts; a lab has 1 to {MOST_HOSTS}")
        for name in (self.name, *(host.name for host in self.hosts)):
            if not NAME.fullmatch(name):
                raise LabError(f"cluster {self.name}: {name!r} is no name for a host; use up to 32 of a-z, 0-9 and -")
        for host in self.hosts:
            checked_board(host.board, host.name)
            checked_rate(host.mbit, host.name)
            _checked(host.latency_us, 0, 1_000_000, f"the latency of {host.name} in microseconds")

    def host(self, name: str) -> Host:
        """Return the board called `name`. Raises LabError for any other name."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabError(f"no host {name} in {self.name}; it has: {', '.join(host.name for host in self.hosts)}")


def checked_board(board: Any, host: str) -> str:
    """Return what describes a board, a name or a factor of the lab's own, as text. Raises LabError when it means none."""
    said = f"{board:g}" if isinstance(board, (int, float)) and not isinstance(board, bool) else str(board)
    try:
        board_named(said)
    except ProfileError as problem:
        raise LabError(f"the board of {host}: {problem}") from None
    return said


def checked_rate(mbit: Any, host: str) -> float:
    """Return `mbit` when a link can have that rate. Raises LabError."""
    return _checked(mbit, 0.1, 40_000, f"the rate of {host} in Mbit/s")


def _checked(value: Any, least: float, most: float, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise LabError(f"{what} is {value}; it has to be a number from {least} to {most}")
    return float(value)


def cluster_named(name: str, file: Path = FILE) -> Cluster:
    """Return the cluster called `name`. Raises LabError where the file has none."""
    clusters = read_clusters(file)
    if name not in clusters:
        raise LabError(f"no cluster {name} in {file.name}; it has: {', '.join(clusters)}")
    return clusters[name]


def read_clusters(file: Path = FILE) -> dict[str, Cluster]:
    """Read every cluster of the file. Raises LabError with the place of the first mistake."""
    try:
        import tomllib  # new in Python 3.11
    except ImportError:
        raise LabError(f"the lab needs Python 3.11 or newer to read {file.name}") from None
    try:
        tables = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise LabError(f"cannot read {file}: {problem}") from None
    return {name: _cluster(name, table, file.name) for name, table in tables.items()}


def _cluster(name: str, table: Any, file: str) -> Cluster:
    place = f"{file}, cluster {name}"
    if not isinstance(table, dict) or set(table) - {"latency_us"} != {"board", "mbit"}:
        raise LabError(f"{place}: wants `mbit`, a table `board` and, if need be, `latency_us`, and nothing else")
    boards, rates, latencies = table["board"], table["mbit"], table.get("latency_us", 0.0)
    if not isinstance(boards, dict):
        raise LabError(f"{place}: `board` is not a table with one line a host")
    rates, latencies = (one if isinstance(one, dict) else dict.fromkeys(boards, one) for one in (rates, latencies))
    for what, one in (("mbit", rates), ("latency_us", latencies)):
        if set(one) != set(boards):
            raise LabError(f"{place}: `board` and `{what}` name different hosts: {', '.join(sorted(set(one) ^ set(boards)))}")
    try:
        return Cluster(name, tuple(
            Host(host, checked_board(boards[host], host), rates[host], number, latencies[host]) for number, host in enumerate(boards, 1)
        ))  # fmt: skip
    except LabError as problem:
        raise LabError(f"{file}: {problem}") from None
