"""doctor on a cluster of the lab: nothing to find on healthy hosts, and each of the faults that are planted there."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from lab import check
from lab.check import PATIENCE
from lab.lab import Lab

from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.weights import writing

pytest.importorskip("tomllib", reason="the lab needs Python 3.11 or newer")
OBSTACLE = check.obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
DOCTOR = [sys.executable, "-m", "hepti_mpi", "doctor"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A cluster, a folder that its hosts share, and the words of doctor."""
    folder = tmp_path_factory.mktemp("doctor")
    writing.write(folder / "tiny.h5", random_model("tiny-bert"))
    writing.write(folder / "other.h5", random_model("tiny-vit"))
    with Lab("even4", share=[folder]) as lab:
        (folder / "hosts.txt").write_text("".join(f"{host} slots=1\n" for host in lab.hosts))
        yield lab, folder


def over_ssh(place, hosts="hosts.txt", **environment):
    """The findings of doctor on the first host, which asks the others over ssh."""
    lab, folder = place
    words = ["env", *(f"{name}={value}" for name, value in environment.items()), *DOCTOR, str(folder / hosts), "--weights",
             str(folder / "tiny.h5"), "--json"]  # fmt: skip
    told, said = lab.begin(lab.hosts[0], words, stdout=subprocess.PIPE, stderr=subprocess.PIPE).communicate(timeout=PATIENCE)
    return json.loads(told.splitlines()[-1])["findings"] if told else said


def by_mpirun(place, *options):
    lab, folder = place
    done = lab.mpirun([*DOCTOR, "--weights", str(folder / "tiny.h5"), "--json"], timeout=PATIENCE, options=options, stdout=subprocess.PIPE,
                      stderr=subprocess.PIPE)  # fmt: skip
    line = [line for line in done.stdout.splitlines() if line.startswith('{"format"')]
    return json.loads(line[-1])["findings"] if line else done.stderr


def on(lab, host, *words):
    done = lab.ssh(host, [" && ".join(words)], capture_output=True)
    assert done.returncode == 0, done.stderr


def metadata_of(package):
    from importlib.metadata import distribution

    return next(Path(str(distribution(package).locate_file(file))) for file in distribution(package).files or () if file.name == "METADATA")


def test_healthy_hosts(place):
    assert over_ssh(place) == []
    assert by_mpirun(place) == []


def text(folder, name, content):
    (folder / name).write_text(content)
    return folder / name


def another_version(lab, folder, host):
    there = metadata_of("onnxruntime")
    changed = text(folder, "METADATA", there.read_text().replace("\nVersion: ", "\nVersion: 1.0.", 1))
    on(lab, host, f"mount --bind {changed} {there}")
    return f"umount {there}"


def no_store(lab, folder, host):
    (folder / "empty").mkdir()
    on(lab, host, f"mount --bind {folder}/empty {folder}")
    return f"umount {folder}"


def another_store(lab, folder, host):
    on(lab, host, f"mount --bind {folder}/other.h5 {folder}/tiny.h5")
    return f"umount {folder}/tiny.h5"


def full_disk(lab, folder, host):
    on(lab, host, "kept=$(dirname /run/shared/*/tiny.h5)", "mount -t tmpfs -o size=2m,mode=1777 tmpfs /tmp", f"mkdir -p {folder}",
       f"mount --bind $kept {folder}", "{ head -c 9m /dev/zero >/tmp/full 2>/dev/null || true; }")  # fmt: skip
    return f"umount {folder} /tmp"


def low_memory(lab, folder, host):
    lines = Path("/proc/meminfo").read_text().splitlines()
    low = text(folder, "meminfo", "\n".join("MemAvailable: 90000 kB" if "MemAvailable" in line else line for line in lines))
    on(lab, host, f"mount --bind {low} /proc/meminfo")
    return "umount /proc/meminfo"


def duplicate_name(lab, folder, host):
    on(lab, host, f"hostname {lab.hosts[0]}")
    return f"hostname {host}"


def throttled(lab, folder, host):
    said = text(folder, "vcgencmd", "#!/bin/sh\necho throttled=0x50005\n")
    said.chmod(0o755)
    on(lab, host, "mount -t tmpfs tmpfs /usr/local/bin", f"cp {said} /usr/local/bin")
    return "umount /usr/local/bin"


def clock_skew(lab, folder, host):
    """Hosts of the lab share the kernel's clock, so Python itself is told another time there."""
    site = sysconfig.get_path("purelib")
    late = text(folder, "late.pth", "import time; time.time = lambda now=time.time: now() - 3600\n")
    on(lab, host, "mkdir -p /run/over/upper /run/over/work",
       f"mount -t overlay overlay -o lowerdir={site},upperdir=/run/over/upper,workdir=/run/over/work {site}", f"cp {late} {site}")
    return f"umount {site}"


PLANTED = [
    (another_version, over_ssh, "onnxruntime 1.0."), (no_store, by_mpirun, "tiny.h5: not found"),
    (another_store, over_ssh, "holds another model"), (full_disk, over_ssh, "of disk is free at /tmp"),
    (low_memory, by_mpirun, "memory is free"), (throttled, over_ssh, "is throttled"), (clock_skew, by_mpirun, "s behind"),
    (duplicate_name, over_ssh, "calls itself"),  # mpirun itself fails then
]  # fmt: skip


@pytest.mark.parametrize("plant, ask, words", PLANTED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_fault_of_one_host(place, plant, ask, words):
    lab, folder = place
    host = lab.hosts[1]
    undo = plant(lab, folder, host)
    try:
        found = ask(place)
        assert len(found) == 1 and words in found[0]["what"] and host in found[0]["host"] + found[0]["what"], found
    finally:
        on(lab, host, undo)


def test_a_host_that_cannot_be_reached(place):
    lab, folder = place
    lab.cut_link(lab.hosts[2])
    try:
        [found] = over_ssh(place)
        assert found["host"] == lab.hosts[2] and "cannot be asked" in found["what"], found
    finally:
        lab.restore_link(lab.hosts[2])


def test_one_core_binding(place):
    found = by_mpirun(place, "--bind-to", "core", "--map-by", "slot")
    assert {one["host"] for one in found} == set(place[0].hosts) and all("bound to 1 of" in one["what"] for one in found), found


def test_two_mpis(place):
    lab, folder = place
    (folder / "bin").mkdir()
    text(folder, "bin/mpirun", "#!/bin/sh\n").chmod(0o755)
    [found] = over_ssh(place, PATH=f"{folder}/bin:/usr/bin:/bin")
    assert f"mpirun is {folder}/bin/mpirun" in found["what"], found


def test_wrong_interface(place):
    found = over_ssh(place, OMPI_MCA_btl_tcp_if_include="eth9")
    assert len(found) == 4 and all("told to use eth9" in one["what"] for one in found), found

