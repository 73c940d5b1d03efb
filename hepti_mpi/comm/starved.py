"""How many processes the system has ended because memory ran out. Uses the standard library only: its text is also sent to other hosts."""


def starved() -> int:
    """Return how many processes of this host, whoever's they are, the kernel has ended for want of memory since it started; 0 where it does
    not say."""
    try:
        with open("/proc/vmstat") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    except OSError:
        return 0
