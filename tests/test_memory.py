"""How much memory is left, and where this process has its own, whatever files and groups are called."""

import mmap
import os
from types import SimpleNamespace

import pytest

from hepti_mpi.cluster import load, memory
from hepti_mpi.engine import pages

NAMES = [b"half a letter \xc3", b"return \r feed \x0c", "separator \u2028".encode()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version, where, names", [
    (b"0::/", "", ("memory.max", "memory.current")), (b"4:memory:/", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
])  # fmt: skip
def test_the_limit_of_a_group_of_any_name(name, version, where, names, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "PROCESS", tmp_path)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    group = tmp_path / "groups" / where / os.fsdecode(name) / "inner"
    group.mkdir(parents=True)
    for file, value in zip(names, ("5000\n", "1000\n")):
        (group.parent / file).write_text(value)
    (tmp_path / "cgroup").write_bytes(b"7:cpu:/\n" + version + name + b"/inner\n")
    assert memory._cgroups() == [(5000, 1000)] and memory.usable_memory(4) <= 1000
    told = {"anon": 100, "active_file": 300, "inactive_file": 400}
    if where:  # version 1 tells both, of this group alone and with those below it
        told = {"active_file": 30, "inactive_file": 40} | {f"total_{kind}": size for kind, size in told.items()}
    (group.parent / "memory.stat").write_text("".join(f"{kind} {size}\n" for kind, size in told.items()))
    assert memory._cgroups() == [(5000, 300)]  # what was downloaded, and lies in the kernel's cache, is not in use


@pytest.mark.parametrize("mates, neighbours, right", [(1, 1, 5000), (2, 2, 2500), (1, 8, 1250), (2, 8, 1250), (1, 1, 5000)])
def test_hosts_of_one_machine_share_what_it_has(mates, neighbours, right, monkeypatch):
    """Containers, and the boards of the lab, saw all of its memory each."""
    monkeypatch.setattr(memory, "_mem_available", lambda: 10_000)
    monkeypatch.setattr(memory, "_cgroups", lambda: [(6000, 1000)])
    assert memory.usable_memory(mates, neighbours) == right


@pytest.mark.parametrize("name", NAMES)
def test_memory_beside_a_file_of_any_name(name, tmp_path):
    path = os.fsencode(tmp_path) + b"/" + name
    with open(path, "wb+") as file:
        file.write(b"1" * 4096)
        file.flush()
        own, mapped = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE), mmap.mmap(file.fileno(), 4096)
    found = pages._areas()
    assert all(start < stop for start, stop in found) and len(found) > 3
    own.close()
    mapped.close()


def test_what_others_have_of_the_cores(tmp_path, monkeypatch):
    """The kernel's line of each core: user nice system idle iowait irq softirq steal guest guest_nice."""
    monkeypatch.setattr(load, "STAT", tmp_path / "stat")

    def at(first, second):
        lines = [f"cpu  {first + second} 0 0 9 9 0 0 0 0 0", f"cpu0 {first} 0 0 50 9 0 0 0 {first} 0", f"cpu1 0 {second} 0 7 0 0 0 0 0 0",
                 "cpu12 99999 0 0 0 0 0 0 0 0 0", "intr 5 4 3"]  # fmt: skip
        (tmp_path / "stat").write_text("\n".join(lines) + "\n")

    monkeypatch.setattr(load.os, "sysconf", lambda name: 100)
    now = [0.0]
    monkeypatch.setattr(load, "time", SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: 0.5 * now[0], sleep=None))
    at(0, 0)
    watch = load.Watch({0, 1})
    now[0] = 10.0
    at(800, 400)  # 12 s of 20, of which ours were 5
    assert load.busy_seconds({0}) == 8 and load.busy_seconds({0, 1}) == 12
    assert watch.spent == 5.0 and watch.others(5.0) == pytest.approx(7 / 20) and watch.others(99.0) == 0.0
    at(8000, 8000)
    assert watch.others(0.0) == 1.0
    for content in ("cpu0 x\n", "cpu0 1 2\n", ""):
        (tmp_path / "stat").write_text(content)
        assert load.busy_seconds({0, 1}) == 0.0
    (tmp_path / "stat").unlink()
    assert load.busy_seconds({0}) == 0.0


@pytest.mark.parametrize("machines, seconds", [(("m", "m", "m", "n"), [7, 7, 7, 8]), (("", "", "", ""), [3, 3, 4, 8])])
def test_hosts_that_are_one_machine_are_not_each_others_other_work(machines, seconds):
    """As containers are, and the hosts of a lab: each took the others' ranks for strangers that had its cores."""
    assert [load.ours(rank, ("a", "a", "b", "c"), machines, (1, 2, 4, 8)) for rank in range(4)] == seconds
