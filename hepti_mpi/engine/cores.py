"""Which cores of its host a rank computes on: its own part of them, or all where no other rank of the host computes.

Knows cores and hosts; does not know what is computed. A thread starts with the cores of the thread that starts it: sessions that are
made after `use` compute where it said. Threads that compute together have a core each where there are as many: left to itself a system may
keep two of them on one core for a tenth of a second while another has nothing to do.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from hepti_mpi.comm.launcher import host_name
from hepti_mpi.comm.ranks import Comm


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

    @contextmanager
    def apart_from_threads(self) -> Iterator[None]:
        """Keep this thread to the first of its cores while it computes, where the threads that compute with it have the others."""
        cores = self.whole if self.alone else self.part
        if not 1 < len(cores) == (self.alone_threads if self.alone else self.threads):
            yield
            return
        os.sched_setaffinity(0, cores[:1])
        try:
            yield
        finally:
            os.sched_setaffinity(0, cores)


@contextmanager
def core_each(threads: int) -> Iterator[None]:
    """Give threads that are started meanwhile a core each, all but the first of those that this thread may use, where that is one for each
    of `threads`, of which this one is the first."""
    cores, before = sorted(os.sched_getaffinity(0)), _started()
    yield
    started = sorted(_started() - before)
    if 1 < threads == len(cores) == len(started) + 1:
        for thread, core in zip(started, cores[1:]):
            with suppress(OSError):  # it may have ended
                os.sched_setaffinity(thread, [core])


def _started() -> set[int]:
    return {int(thread) for thread in os.listdir("/proc/self/task")}


def widen_affinity(comm: Comm, divide: bool) -> tuple[list[int], list[int], int]:
    """Let each rank use its host's cores and return (cores of the host, those of them for this rank, its threads). Collective.

    `divide`: keep each rank to its own part of them; not where the user sets the threads, which may be more than a part has.

    mpirun binds 1 or 2 ranks to one core each, which would leave the other cores of a board idle. Inside a batch job
    the binding is left as it is: the cores outside may be somebody else's.
    """
    batch = any(name in os.environ for name in ("SLURM_JOB_ID", "PBS_JOBID"))
    before = os.sched_getaffinity(0)
    if not batch:
        try:
            os.sched_setaffinity(0, range(os.cpu_count() or 1))  # the kernel keeps what a cgroup's cpuset allows
        except OSError:
            pass
    cores = sorted(os.sched_getaffinity(0) | before)
    peers = comm.gather_all([host_name(), cores])
    mates = [rank for rank, (host, _) in enumerate(peers) if host == host_name()]
    every = sorted({core for rank in mates for core in peers[rank][1]})
    if batch:
        return every, cores, len(cores) if len(cores) < len(every) else max(1, len(every) // len(mates))
    threads = max(1, len(cores) // len(mates))
    if divide and 1 < len(mates) <= len(cores):
        place = mates.index(comm.rank)
        cores = cores[place * threads : (place + 1) * threads]
        os.sched_setaffinity(0, cores)
    return every, cores, threads


def may_use(cores: Sequence[int]) -> bool:
    """Tell whether this process may compute on all of `cores`: a batch system may have given other ranks some of them."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores)
        return os.sched_getaffinity(0) == set(cores)
    except OSError:
        return False
    finally:
        os.sched_setaffinity(0, before)
