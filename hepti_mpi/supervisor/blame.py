"""Which host a start failed for, from what its ranks told. Pure: knows records and numbers of ranks, asks nobody."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hepti_mpi.cluster.hosts import Host

# of mpirun: a rank that is killed can tell nothing itself. Only its number is taken; the name that stands there is one of many for a host
KILLED = re.compile(r"\bprocess rank (\d+) with PID \d+ on node \S+ exited on")
ENDED = re.compile(r"\bone or more processes exited with non-zero status")
LEFT = re.compile(r"\bpeer process has unexpectedly disconnected|\bhas exited due to process rank \d+ ")  # what others do of it
STARS = re.compile(r"\s*\[\S+:\d+\] \*\*\* (An error occurred in Socket closed$)?")  # of MPI, of the end of a rank on another host
RULE = re.compile(r"-{20,}\s*")  # above and below a notice of mpirun's


class Troubles:
    """What was told in one start of mpirun."""

    def __init__(self) -> None:
        self.hosts: dict[int, str] = {}  # of each rank, as the hostfile names it
        self.said = ""  # the last sentence
        self.told: list[str] = []  # all that ranks told
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
            self.told.append(self.said)

    def hear(self, line: str) -> None:
        """Take in a line of mpirun's own."""
        killed = KILLED.search(line)
        if killed:
            rank = int(killed[1])
            self.counted.append(("killed", [rank]))
            self.said = f"rank {rank}{f' on {self.hosts[rank]}' if rank in self.hosts else ''} was killed, maybe for want of memory"

    def host(self, hosts: Sequence[Host]) -> Host | None:
        """Return the one of the hosts with which the trouble is; None where none was named. Of two that miss each other the later one. A
        rank that ended before its first word was on the host that nobody spoke for, if there is one only."""
        silent = [host.name for host in hosts if host.name not in self.hosts.values()]
        other = silent[0] if len(silent) == 1 < len(hosts) else None
        ranks = [(kind, rank) for kind, ranks in self.counted for rank in ranks]
        named = Counter(self.hosts.get(rank, other if kind == "killed" else None) for kind, rank in ranks)
        found = [host for host in hosts if named[host.name]]
        return max(found, key=lambda host: (named[host.name], hosts.index(host)), default=None)


def without_ends(lines: Iterable[str]) -> Iterator[str]:
    """Yield what comes on mpirun's standard error but for its notices, and MPI's, that a rank ended: why is told in our own words.

    >>> rule = "-" * 76 + chr(10)
    >>> list(without_ends(["one", rule, "process rank 1 with PID 7 on node a exited on", "signal 9", rule, "two", rule, "three"])) == [
    ...     "one", "two", rule, "three"]
    True
    >>> list(without_ends([rule, "An MPI communication peer process has unexpectedly disconnected.  This", "usually", rule, "one"]))
    ['one']
    >>> list(without_ends([rule, "prterun has exited due to process rank 2 with PID 53 on node b calling", '"abort"', rule, "one"]))
    ['one']
    >>> list(without_ends([" [a:0] *** An error occurred in Socket closed", "[a:0] *** on a NULL communicator", "one", "[a:0] *** two"]))
    ['one', '[a:0] *** two']
    """
    notice: list[str] = []
    closed = False
    for line in lines:
        stars = STARS.match(line)
        closed = stars is not None and (closed or stars[1] is not None)
        if closed:
            continue
        if RULE.fullmatch(line) or notice:
            notice.append(line)
        else:
            yield line
        if len(notice) > 1 and RULE.fullmatch(line):
            if not any(KILLED.search(one) or ENDED.search(one) or LEFT.search(one) for one in notice):
                yield from notice
            notice = []
    yield from notice
