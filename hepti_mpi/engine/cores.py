"""Which cores of its host a rank computes on: its own part of them, or all where no other rank of the host computes.

Knows cores and hosts; does not know what is computed. A thread starts with the cores of the thread that starts it: sessions that are
made after `use` compute where it said.
"""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace


@dataclass
class Cores:
    """The cores of rank `rank`: `part` of them are its own, `whole` are its host's. `hosts`: of all ranks.

    `threads`: with which it computes beside others; `alone_threads`: where no other rank of its host does, as is so now if `alone`.
    `crowded`: ranks compute there that are not among these.
    """

    rank: int
    hosts: list[str]
    part: list[int]
    whole: list[int]
    threads: int
    alone_threads: int
    alone: bool = False
    crowded: bool = False

    def of(self, members: Sequence[int], computing: Collection[int]) -> "Cores":
        """Return the same for a group of ranks, which count themselves from 0, while `computing` ranks of the job compute."""
        beside = [rank for rank in computing if rank not in members and self.hosts[rank] == self.hosts[self.rank]]
        hosts = [self.hosts[rank] for rank in members]
        return replace(self, rank=list(members).index(self.rank), hosts=hosts, crowded=bool(beside))

    def apart(self, parts: int) -> "Cores":
        """Return the same for each of so many engines of this rank, which compute beside each other on whichever of its cores is free."""
        threads = max(1, self.use(alone=not self.crowded) // parts)
        return replace(self, part=self.whole if self.alone else self.part, threads=threads, alone_threads=threads)

    @property
    def two_ways(self) -> bool:
        """Tell whether it makes a difference that others of the host compute."""
        return self.threads != self.alone_threads

    @property
    def leads(self) -> bool:
        """Tell whether this is the first rank of its host."""
        return self.hosts.index(self.hosts[self.rank]) == self.rank

    def has_host(self, active: Sequence[int]) -> bool:
        """Tell whether of the ranks that are `active` only this one is on its host."""
        return not self.crowded and [rank for rank in active if self.hosts[rank] == self.hosts[self.rank]] == [self.rank]

    def host_computes(self, active: Sequence[int]) -> bool:
        """Tell whether any of the ranks that are `active`, this one or another, is on its host."""
        return any(self.hosts[rank] == self.hosts[self.rank] for rank in active)

    def use(self, alone: bool) -> int:
        """Compute from now on as `alone` says; return with how many threads."""
        if self.two_ways and alone != self.alone:
            os.sched_setaffinity(0, self.whole if alone else self.part)
            self.alone = alone
        return self.alone_threads if alone else self.threads
