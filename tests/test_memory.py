"""How much memory is left, and where this process has its own, whatever files and groups are called."""

import mmap
import os

import pytest

from hepti_mpi.cluster import memory
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
