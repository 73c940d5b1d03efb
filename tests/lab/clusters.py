"""The clusters of clusters.toml: names of hosts, the boards that they are, link rates.

Knows the file, what a sound cluster is and what it is in slow motion. Does not know how hosts are made.
"""

import re
from dataclasses import dataclass, replace
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
    """Boards on one switch, in the order of the ranks.

    Attributes:
        slow: how many times slower than what the file describes the boards and links are here, latencies as many times longer: so a
            machine that could not keep up with them can, and all times are that many times those of the cluster.
    """

    name: str
    hosts: tuple[Host, ...]
    slow: float = 1.0

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

    def in_slow_motion(self, times: float) -> "Cluster":
        """Return the cluster with everything `times` as slow as in the file, below 1 as much sooner. Raises LabError where that is none."""
        more = _checked(times, 0.1, 100, f"slow motion of {self.name}") / self.slow
        hosts = (
            replace(host, board=slower(host.board, more), mbit=host.mbit / more, latency_us=host.latency_us * more) for host in self.hosts
        )
        return Cluster(self.name, tuple(hosts), float(times))


def slower(board: str, times: float) -> str:
    """Return the board that is `times` as slow as one, which is a factor of the lab's own or NAME*FACTOR.

    >>> slower("2.5", 3), slower("pi4", 3), slower("laptop*2", 3), slower("pi4*2", 0.5)
    ('7.5', 'pi4*3', 'laptop*6', 'pi4')
    """
    name, _, factor = board.rpartition("*") if "*" in board else ("", "", board) if board[0].isdigit() else (board, "", "1")
    now = float(factor) * times
    return f"{now:g}" if not name else name if now == 1 else f"{name}*{now:g}"


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
    if not isinstance(table, dict) or set(table) - {"latency_us", "slow"} != {"board", "mbit"}:
        raise LabError(f"{place}: wants `mbit`, a table `board` and, if need be, `latency_us` and `slow`, and nothing else")
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
        )).in_slow_motion(table.get("slow", 1))  # fmt: skip
    except LabError as problem:
        raise LabError(f"{file}: {problem}") from None
