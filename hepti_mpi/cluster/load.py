"""What else a host does: the time that others take of its cores. Knows the kernel's counters; does not know who they are.

Source: proc(5), /proc/stat.
"""

import os
import time
from collections.abc import Collection, Sequence
from pathlib import Path

STAT = Path("/proc/stat")
WORKING = (0, 1, 2, 5, 6, 7)  # of a core's counters: user, nice, system, irq, softirq, and stolen by the machine below a virtual one


def busy_seconds(cores: Collection[int]) -> float:
    """Return the seconds that these cores have worked since the machine started, for whomever; 0 where the kernel does not say."""
    ticks = 0
    try:
        for line in STAT.read_text().splitlines():
            name, *counters = line.split()
            if name.removeprefix("cpu").isdigit() and int(name.removeprefix("cpu")) in cores:
                ticks += sum(int(counters[place]) for place in WORKING)
    except (OSError, ValueError, IndexError):
        return 0.0
    return ticks / os.sysconf("SC_CLK_TCK")


class Watch:
    """The time that passes from now on, and how much of it cores work."""

    def __init__(self, cores: Collection[int]) -> None:
        self.cores, self.begin, self.busy, self.own = cores, time.perf_counter(), busy_seconds(cores), time.process_time()

    @property
    def spent(self) -> float:
        """Seconds of cores that this process has taken."""
        return time.process_time() - self.own

    def others(self, spent: float) -> float:
        """Return the part of the cores that others had; `spent`: seconds of them that were ours."""
        passed = max(time.perf_counter() - self.begin, 1e-9) * max(1, len(self.cores))
        return min(max(busy_seconds(self.cores) - self.busy - spent, 0.0) / passed, 1.0)


def ours(rank: int, hosts: Sequence[str], machines: Sequence[str], spent: Sequence[float]) -> float:
    """Return the seconds that the ranks of this rank's machine have spent, which may be several hosts, as containers are. By rank: its
    host, by what its machine is known ("" where it does not say), and its seconds."""
    own = machines[rank]
    every = zip(hosts, machines, spent, strict=True)
    return sum(seconds for host, machine, seconds in every if host == hosts[rank] or own and machine == own)


def others_now(cores: Collection[int], seconds: float) -> float:
    """Look for so many seconds, and return the part of the cores that others have."""
    watch = Watch(cores)
    time.sleep(seconds)
    return watch.others(watch.spent)
