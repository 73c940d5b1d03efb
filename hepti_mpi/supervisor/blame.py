"""Which host a start failed for, from what its ranks told. Pure: knows records and numbers of ranks, asks nobody."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hepti_mpi.cluster.hosts import Host

# of mpirun: a rank that is killed can tell nothing itself. Only its number is taken; the name that stands there is one of many for a host
KILLED = re.compile(r"\bprocess rank (\d+) with PID \d+ on node \S+ exited on")


class Troubles:
    """What was told in one start of mpirun."""

    def __init__(self) -> None:
        self.hosts: dict[int, str] = {}  # of each rank, as the hostfile names it
        self.said = ""  # the last sentence
        self.counted: list[tuple[str, Sequence[int]]] = []  # kind, and the ranks that are to blame

    def take(self, record: dict[str, Any]) -> None:
        """Take in a record of the kinds rank, error and late; others are nothing to it."""
        if record["kind"] == "rank" and record["host"] is not None:
            self.hosts[record["rank"]] = record["host"]
        elif record["kind"] == "error":
            self.counted.append(("error", [record["rank"]]))
        elif record["kind"] == "late":  # whom no other host answers is at a loss itself
            self.counted.append(("late", [record["rank"]] if record["alone"] else record["waited"]))
        if record["kind"] in ("error", "late"):
            self.said = record["said"]

    def hear(self, line: str) -> None:
        """Take in a line of mpirun's own."""
        killed = KILLED.search(line)
        if killed:
            self.counted.append(("killed", [int(killed[1])]))
            self.said = " ".join(line.split())

    def host(self, hosts: Sequence[Host]) -> Host | None:
        """Return the one of the hosts with which the trouble is; None where none was named. Of two that miss each other the later one."""
        named = Counter(self.hosts.get(rank) for _, ranks in self.counted for rank in ranks)
        found = [host for host in hosts if named[host.name]]
        return max(found, key=lambda host: (named[host.name], hosts.index(host)), default=None)
