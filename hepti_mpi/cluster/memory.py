"""How much memory this host has left. Knows /proc and cgroups; not what memory is for."""

import os
from pathlib import Path

PROCESS, CGROUPS = Path("/proc/self"), Path("/sys/fs/cgroup")
BOOT = Path("/proc/sys/kernel/random/boot_id")


def usable_memory(mates: int, neighbours: int = 1) -> int:
    """Return the bytes this rank may still take: cgroup limits divided among the `mates`, the ranks of its host, and MemAvailable among
    them or, where these are more, its `neighbours`: those of all hosts of one machine, as containers are."""
    available = _mem_available() // max(mates, neighbours)
    for limit, used in _cgroups():
        available = min(available, max(0, limit - used) // mates)
    return max(1, available)


def machine_name() -> str:
    """Return what is the same for all whose memory is the same: the running kernel's own, "" where it does not say."""
    try:
        return BOOT.read_text().strip()
    except OSError:
        return ""


def _mem_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroups() -> list[tuple[int, int]]:
    """Return (limit, used) of every memory cgroup around this process, versions 1 and 2. What the kernel keeps of files is not in use, as
    it is not in what it calls available: it gives that up."""
    found = []
    try:
        lines = [os.fsdecode(line) for line in (PROCESS / "cgroup").read_bytes().split(b"\n")[:-1]]  # a name may hold anything else
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = CGROUPS if controllers == "" else CGROUPS / "memory"
        names = ("memory.max", "memory.current") if controllers == "" else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        folder = base / path.lstrip("/")
        while True:
            try:
                limit, used = ((folder / name).read_text().strip() for name in names)
                if limit.isdigit() and int(limit) < 1 << 60:
                    found.append((int(limit), max(0, int(used) - _of_files(folder))))
            except OSError:
                pass
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent
    return found


def _of_files(group: Path) -> int:
    """Return the bytes of files that are in the memory of a cgroup and of those below it, 0 where it does not say."""
    try:
        words = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
    except OSError:
        return 0
    told = {name: int(size) for name, size in words}
    return sum(told.get(f"total_{name}", told.get(name, 0)) for name in ("active_file", "inactive_file"))  # total_: of version 1
