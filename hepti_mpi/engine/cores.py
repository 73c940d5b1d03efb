"""Which cores of its host a rank computes on: its own part of them, or all where no other rank of the host computes.

Knows cores and hosts; does not know what is computed. A thread starts with the cores of the thread that starts it: sessions that are
made after `use` compute where it said.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Cores:
    """The cores of rank `rank`: `part` of them are its own, `whole` are its host's. `hosts`: of all ranks.

    `threads`: with which it computes beside others; `alone_threads`: where no other rank of its host does, as is so now if `alone`.
    """

    rank: int
    hosts: list[str]
    part: list[int]
    whole: list[int]
    threads: int
    alone_threads: int
    alone: bool = False

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
        return [rank for rank in active if self.hosts[rank] == self.hosts[self.rank]] == [self.rank]

    def host_computes(self, active: Sequence[int]) -> bool:
        """Tell whether any of the ranks that are `active`, this one or another, is on its host."""
        return any(self.hosts[rank] == self.hosts[self.rank] for rank in active)

    def use(self, alone: bool) -> int:
        """Compute from now on as `alone` says; return with how many threads."""
        if self.two_ways and alone != self.alone:
            os.sched_setaffinity(0, self.whole if alone else self.part)
            self.alone = alone
        return self.alone_threads if alone else self.threads
