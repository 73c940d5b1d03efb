"""The lab: the file of clusters, the settings of a job, and, where it can run, every cluster of the file for a moment."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab import __main__ as main
from lab import check, jobs, network, processes, state
from lab.check import PATIENCE
from lab.clusters import Cluster, Host, cluster_named, read_clusters, slower
from lab.errors import LabError
from lab.lab import Lab, _covered
from lab.tables import in_its_own_time, motion_of, motions

from hepti_mpi.cluster.boards import board_named
from hepti_mpi.cluster.emulation import Emulation

tomllib = pytest.importorskip("tomllib", reason="the lab needs Python 3.11 or newer")
OBSTACLE = check.obstacle()
needs_lab = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
CLUSTERS = read_clusters()
CHECKOUT = Path(__file__).resolve().parents[1]


# The file of clusters


@pytest.mark.parametrize(
    "name, boards, rates",
    [
        ("even4", ["4", "4", "4", "4"], [1000] * 4),
        ("mixed4", ["2.5", "3.5", "6", "9"], [200] * 4),
        ("skewed4", ["2.5", "10", "10", "10"], [100] * 4),
        ("slowlink4", ["3", "3", "3", "3"], [500, 500, 500, 50]),
        ("pi8", ["5", "5", "6", "6", "8", "8", "12", "12"], [200] * 8),
        ("wifi3", ["3", "4", "6"], [40] * 3),
        ("pi4x4", ["pi4*2"] * 4, [500] * 4),
        ("pi54", ["pi5*2", "pi5*2", "pi4*2", "pi4*2"], [500] * 4),
        ("desk3", ["laptop*2", "pi5*2", "pi4*2"], [40] * 3),
        ("pair22", ["4", "4", "12.3", "12.3"], [500] * 4),
    ],
)
def test_the_clusters_of_the_file(name, boards, rates):
    hosts = cluster_named(name).hosts
    assert [host.board for host in hosts] == boards
    assert [host.mbit for host in hosts] == rates
    assert sum(board_named(board).float32 for board in boards) <= 175e9  # what two cores can do
    assert len({host.address for host in hosts}) == len({host.port for host in hosts}) == len(hosts)


def test_a_link_may_have_a_latency(tmp_path):
    file = tmp_path / "clusters.toml"
    file.write_text("[a]\nmbit = 5\nlatency_us = 300\n[a.board]\nx = 1\ny = 2\n[b]\nmbit = 5\n[b.board]\nx = 1\n"
                    "[c]\nmbit = 5\n[c.latency_us]\nx = 0\ny = 50.5\n[c.board]\nx = 1\ny = 2\n")  # fmt: skip
    found = {name: [host.latency_us for host in one.hosts] for name, one in read_clusters(file).items()}
    assert found == {"a": [300, 300], "b": [0], "c": [0, 50.5]}


@pytest.mark.parametrize(
    "text, said",
    [
        ("[a]\nmbit = 5\n", "clusters.toml, cluster a: wants `mbit`, a table `board`"),
        ("[a]\nmbit = 5\ncolour = 1\n[a.board]\nx = 1\n", "and nothing else"),
        ("[a]\nmbit = 5\nboard = 2\n", "`board` is not a table"),
        ("[a]\nmbit = 5\n[a.board]\n", "cluster a has 0 hosts"),
        ("[a]\nmbit = 5\n[a.board]\nx = 0.5\n", "the board of x: board '0.5' is 0.5 times slower, expected 1 to 1000"),
        ("[a]\nmbit = 5\n[a.board]\nx = true\n", "the board of x: no board 'True' is described"),
        ("[a]\nmbit = 5\n[a.board]\nx = nan\n", "the board of x: board 'nan'"),
        ("[a]\nmbit = 0\n[a.board]\nx = 1\n", "the rate of x in Mbit/s is 0"),
        ("[a]\nmbit = 5\n[a.board]\n'x y' = 1\n", "'x y' is no name for a host"),
        ("[a.board]\nx = 1\ny = 1\n[a.mbit]\nx = 1\nz = 1\n", "name different hosts: y, z"),
        ("[a]\nmbit = 5\nlatency_us = -1\n[a.board]\nx = 1\n", "the latency of x in microseconds is -1"),
        ("[a]\nmbit = 5\n[a.latency_us]\ny = 1\n[a.board]\nx = 1\n", "`board` and `latency_us` name different hosts: x, y"),
        ("[a]\nmbit = 5\nslow = 0\n[a.board]\nx = 1\n", "slow motion of a is 0"),
        ("[a\n", "cannot read"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path, text, said):
    file = tmp_path / "clusters.toml"
    file.write_text(text)
    with pytest.raises(LabError) as caught:
        read_clusters(file)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_cluster_or_host_is_told_the_known_ones(tmp_path):
    with pytest.raises(LabError, match="no cluster mixd4 in clusters.toml; it has: even4, mixed4"):
        cluster_named("mixd4")
    with pytest.raises(LabError, match="no host pi9 in wifi3; it has: pi1, pi2, pi3"):
        cluster_named("wifi3").host("pi9")
    with pytest.raises(LabError, match="cannot read .*none.toml"):
        read_clusters(tmp_path / "none.toml")


# Settings


def test_a_burst_is_a_part_of_the_links_time():
    assert network.burst(200, None) == network.burst(40, None) == 128 * 1024
    assert network.burst(200, 0.001) == 25_000
    assert network.burst(40, 0.001) == network.LEAST_BURST_BYTES


@pytest.mark.parametrize("name", ["/another/folder", ".", "..", "a/b", "", "-a", "A", "a" * 65, "a b"])
def test_a_lab_is_no_folder_of_somebody_else(name, monkeypatch, tmp_path):
    monkeypatch.setattr(state, "LABS", tmp_path)
    monkeypatch.setattr(state, "remove", lambda folder: pytest.fail(f"{folder} would have been removed"))
    with pytest.raises(LabError, match="is no name for a lab"):
        state.create(name)


@pytest.mark.parametrize("burst", ["0", "-1", "nan", "inf", "1e7"])
def test_a_burst_is_a_time(burst):
    with pytest.raises(LabError, match="is no time in milliseconds"):
        main._burst(argparse.Namespace(burst=float(burst)))


def test_ranks_get_the_settings_of_the_lab_of_the_caller_and_of_the_job(monkeypatch):
    monkeypatch.setenv("HEPTI_TRACEBACK", "sleep")
    monkeypatch.setenv("OMPI_MCA_coll_han_priority", "0")
    monkeypatch.setenv("UNRELATED", "1")
    line = jobs.shell_line(["mpirun", "-hostfile", "f", "python"], {"HEPTI_THREADS": "2", "A": "b c"}, "/a folder")
    assert line.startswith("cd '/a folder' && exec env ") and line.endswith(" -hostfile f python")
    for setting in ("HEPTI_EMULATE_FILE=/run/hepti/emulate", "HEPTI_THREADS=2", "'A=b c'", "OMPI_MCA_coll_han_priority=0"):
        assert f" {setting} " in line
    assert all(f"-x {name} " in line for name in ("HEPTI_TRACEBACK", "HEPTI_THREADS", "A", "PATH", "PYTHONPATH"))
    assert "UNRELATED" not in line and "-x OMPI" not in line and "HEPTI_THREADS=1" not in line


def test_a_job_may_use_some_hosts_and_several_ranks_on_each(monkeypatch):
    monkeypatch.setattr(jobs, "mpirun", lambda: "mpirun")
    assert jobs.job(["a"], "file") == ["mpirun", "-hostfile", "file", "a"]
    some = jobs.job(["a"], "file", 2, ["pi1", "pi3"], ["--with-ft", "ulfm"])
    assert some == ["mpirun", "-hostfile", "file", "--host", "pi1,pi3", "--map-by", "ppr:2:node:oversubscribe", "--with-ft", "ulfm", "a"]


def test_folders_that_a_host_would_hide_are_shared(tmp_path):
    assert _covered([Path("/usr"), Path("/tmp")]) == []
    if Path("/tmp") in tmp_path.parents:
        inner = tmp_path / "inner"
        inner.mkdir()
        assert _covered([inner, tmp_path, tmp_path]) == [str(tmp_path), str(inner)]
    with pytest.raises(LabError, match="cannot share /tmp/no/such with the hosts: no such folder"):
        _covered([Path("/tmp/no/such")])



def test_a_lab_without_its_starter_is_dead(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "LABS", tmp_path / "labs")
    assert state.names() == []
    folder = state.create("a")
    assert state.names() == ["a"] and state.is_alive(folder)
    with pytest.raises(LabError, match="a is up already; take it down with: python -m tests.lab down a"):
        state.create("a")
    (folder / "starter").write_text(f"{os.getpid()} 1\n")  # the number was given to another process
    assert not state.is_alive(folder)
    state.create("a")
    state.remove(folder)
    assert state.names() == []


# The lab itself

REPORT = """
import json, os, socket, sys, time
from mpi4py import MPI
comm = MPI.COMM_WORLD
rank, last = comm.rank, comm.size - 1
total = comm.allreduce(rank + 1)
block = bytearray(2_000_000)
comm.Barrier()
start = time.perf_counter()
if rank == 0:
    comm.Send(block, last)
    comm.Recv(bytearray(1), last)
elif rank == last:
    comm.Recv(block, 0)
    comm.Send(bytearray(1), 0)
seconds = time.perf_counter() - start
open("/tmp/own", "x").close(), open("/dev/shm/own", "x").close()
own = socket.gethostname(), open(os.environ["HEPTI_EMULATE_FILE"]).read().strip(), len(os.sched_getaffinity(0)), os.environ["HEPTI_THREADS"]
found = comm.gather(own)
if rank == 0:
    json.dump({"total": total, "seconds": seconds, "ranks": found}, sys.stdout)
"""


def printed(lab, argv, **options):
    done = lab.mpirun(argv, timeout=PATIENCE, stdout=subprocess.PIPE, **options)
    assert done.returncode == 0
    return done.stdout


def assert_gone(folder, space):
    """No folder, and no process of this machine in that network namespace: then the kernel has removed it and its links."""
    deadline = time.monotonic() + PATIENCE
    while folder.exists() or any(processes.namespace(int(n), "net") == space for n in os.listdir("/proc") if n.isdigit()):
        assert time.monotonic() < deadline, f"{folder} or a process of it is left"
        time.sleep(0.02)


def lab_command(*words, **options):
    command = [sys.executable, "-m", "tests.lab", *words]
    return subprocess.run(command, cwd=CHECKOUT, text=True, capture_output=True, timeout=PATIENCE, **options)


@needs_lab
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_job_on_every_cluster(cluster):
    with Lab(cluster) as lab:
        space = processes.namespace(lab._switch, "net")
        rules = json.loads(subprocess.check_output(["nsenter", "-t", str(lab._switch), "-n", "tc", "-j", "qdisc", "show"]))
        report = json.loads(printed(lab, [sys.executable, "-c", REPORT]))
    hosts = lab.cluster.hosts
    cores = len(os.sched_getaffinity(0))
    assert report["ranks"] == [[host.name, host.board, cores, "1"] for host in hosts]
    assert report["total"] == len(hosts) * (len(hosts) + 1) // 2
    link_seconds = 16 / min(hosts[0].mbit, hosts[-1].mbit)
    assert 0.75 * link_seconds < report["seconds"]  # no faster than the links, which are as fast as they should be
    rates = {rule["dev"]: rule["options"]["rate"] for rule in rules if rule["kind"] == "tbf"}
    assert rates == {host.port: host.mbit * 1e6 / 8 for host in hosts}
    assert_gone(lab.folder, space)


@needs_lab
def test_what_can_happen_to_a_cluster(tmp_path):
    def reaches(host, seconds=PATIENCE):
        return lab.ssh("pi1", ["ssh", "-o", f"ConnectTimeout={seconds}", host, "true"], stderr=subprocess.DEVNULL).returncode == 0

    loop = "import time\nfrom mpi4py import MPI\nwhile True: MPI.COMM_WORLD.barrier(); time.sleep(0.01)"
    with Lab("wifi3", share=[tmp_path]) as lab:
        assert lab.ssh("pi3", [f"hostname; cat {jobs.EMULATE_FILE}"], stdout=subprocess.PIPE).stdout == "pi3\n6\n"
        assert lab.ssh("pi2", ["touch", str(tmp_path / "seen by all")]).returncode == 0 and (tmp_path / "seen by all").exists()
        control = lab.ssh("pi3", ["cat", "/proc/sys/net/ipv4/tcp_congestion_control"], stdout=subprocess.PIPE).stdout.strip()
        assert control == "cubic" or "cubic" not in Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text()
        lab.set_board("pi3", 7.25)
        lab.set_rate("pi3", 10)
        assert lab.board("pi3") == "7.25"
        assert reaches("pi3")
        lab.cut_link("pi3")
        assert not reaches("pi3", 2)
        lab.restore_link("pi3")
        assert reaches("pi3")
        lab.kill_host("pi2", silent=True)
        assert not lab.processes("pi2") and not reaches("pi2", 2)
        lab.start_host("pi2")
        deadline = time.monotonic() + PATIENCE
        while not reaches("pi2"):  # what knows where it was has to learn where it is
            assert time.monotonic() < deadline
        job = lab.start([sys.executable, "-c", loop], hosts=["pi1", "pi2"], stderr=subprocess.PIPE)
        deadline = time.monotonic() + PATIENCE
        while len(lab.ranks()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(lab.ranks()[1], signal.SIGKILL)
        assert job.wait(PATIENCE) == 128 + signal.SIGKILL
        with pytest.raises(subprocess.TimeoutExpired):
            lab.mpirun([sys.executable, "-c", loop], timeout=2)
        assert [len(lab.processes(host)) for host in lab.hosts] == [1, 1, 1]  # their sshd


@needs_lab
def test_labs_do_not_collide():
    board = Cluster("one", (Host("pi1", 3, 40, 1),))
    with Lab(board) as first, Lab(board) as second:
        first.set_board("pi1", "pi4*2")
        assert second.board("pi1") == "3"
        assert first.ssh("pi1", ["touch", "/tmp/own"]).returncode == 0
        assert second.ssh("pi1", ["test", "-e", "/tmp/own"]).returncode == 1
        assert printed(first, ["hostname"]) == printed(second, ["hostname"]) == "pi1\n"


@needs_lab
def test_a_lab_that_stays():
    name = f"test-{os.getpid()}"
    try:
        assert lab_command("up", "--name", name, "wifi3").stdout == f"{name} is up: pi1, pi2, pi3\n"
        assert lab_command("up", "--name", name, "wifi3").stderr == (
            f"error: {name} is up already; take it down with: python -m tests.lab down {name}\n"
        )
        space = processes.namespace(Lab.attach(name)._switch, "net")
        assert lab_command("set", name, "pi2", "--board", "5", "--mbit", "20").returncode == 0
        assert f"lab {name}: pi1 is 3, pi2 is 5, pi3 is 6\n" in lab_command("list").stdout
        assert lab_command("shell", name, "pi2", "--", "hostname; exit 7").returncode == 7
        seen = lab_command("shell", name, "pi2", "--", "pwd; env").stdout.splitlines()  # as a job has it, which types what it needs no more
        assert seen[0] == os.getcwd() and set(seen) >= {"HEPTI_EMULATE_FILE=/run/hepti/emulate", "OMPI_MCA_mpi_yield_when_idle=1"}
        wrong = lab_command("set", name, "pi2", "--board", "0")
        assert wrong.returncode == 2 and wrong.stderr.startswith("error: the board of pi2: board '0' is 0 times slower")
    finally:
        down = lab_command("down", name)
    assert down.returncode == 0
    assert_gone(state.LABS / name, space)


@needs_lab
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_nothing(number):
    run = subprocess.Popen([sys.executable, "-m", "tests.lab", "run", "wifi3", "--", "--help"], cwd=CHECKOUT, stdout=subprocess.DEVNULL)
    folder = state.LABS / f"wifi3-{run.pid}-1"
    while run.poll() is None and not (folder / "lab.json").exists():
        time.sleep(0.005)
    space = processes.namespace(state.process(folder / "switch"), "net")
    run.send_signal(number)
    assert run.wait(PATIENCE) == (143 if number == signal.SIGTERM else -number)
    if number == signal.SIGKILL:
        assert lab_command("down", "wifi3").returncode == 0
    assert_gone(folder, space)


@needs_lab
def test_run_returns_the_exit_code_of_the_job():
    done = lab_command("run", "wifi3", "--", "no-such-command")
    assert done.returncode == 2 and "no-such-command" in done.stderr


@pytest.mark.parametrize(
    "board, times, expected", [("2.5", 3, "7.5"), ("pi4", 3, "pi4*3"), ("laptop*2", 3, "laptop*6"), ("pi4*2", 0.5, "pi4")]
)
def test_a_board_that_becomes_slow(board, times, expected):
    assert slower(board, times) == expected


@pytest.mark.parametrize("said, found", [
    ("2", {"even4": 2.0, "mixed4-430M": 2.0}), ("even4=2.5,mixed4=1.4", {"even4": 2.5, "mixed4-430M": 1.4}),
    ("mixed4=1.4", {"even4": None}),
])  # fmt: skip
def test_each_cluster_has_a_slow_motion_of_its_own(said, found):
    assert {cluster: motion_of(cluster, motions(said)) for cluster in found} == found


def test_tables_tell_seconds_of_the_boards_not_of_slow_motion():
    measured = {"rows": 128, "bound_seconds": 3.0, "methods": {"hepti": {"median_seconds": 4.0, "nearness": 0.75,
                "samples_seconds": [4.0, 5.0], "above_bound": {"seconds": 1.0, "parts_seconds": {"waiting": 0.5}}}}}  # fmt: skip
    told = in_its_own_time(measured, 2.0)
    assert told == {"rows": 128, "bound_seconds": 1.5, "methods": {"hepti": {"median_seconds": 2.0, "nearness": 0.75,
                    "samples_seconds": [2.0, 2.5], "above_bound": {"seconds": 0.5, "parts_seconds": {"waiting": 0.25}}}}}  # fmt: skip
    assert in_its_own_time(measured, 1.0) == measured


@pytest.mark.parametrize("latency, said", [(0.0004, "0"), (300, "300"), (50.5, "50.5"), (123456.7, "123456.7"), (1e6, "1000000")])
def test_every_latency_that_a_link_may_have_reaches_the_board(latency, said, monkeypatch, tmp_path):
    monkeypatch.setattr(state, "LABS", tmp_path)
    lab = Lab(Cluster("one", (Host("pi1", "pi4*2", 40, 1, latency),)))
    (lab._board_file("pi1")).parent.mkdir(parents=True)
    lab._write_board("pi1", "pi4*2")
    assert lab._board_file("pi1").read_text() == f"pi4*2 {said}us\n"
    monkeypatch.setenv("HEPTI_EMULATE_FILE", str(lab._board_file("pi1")))
    assert Emulation().latency_seconds == pytest.approx(latency * 1e-6, abs=1e-9) and lab.board("pi1") == "pi4*2"


def test_a_board_that_is_changed_is_in_the_labs_motion_as_the_others_are(monkeypatch, tmp_path):
    monkeypatch.setattr(state, "LABS", tmp_path)
    lab, rates = Lab(cluster_named("pi4x4")), []
    monkeypatch.setattr(main.Lab, "attach", lambda name: lab)
    monkeypatch.setattr(lab, "set_rate", lambda host, mbit: rates.append((host, mbit)))
    lab._board_file("pi4-1").parent.mkdir(parents=True)
    assert main.change(argparse.Namespace(lab="pi4x4", host="pi4-1", board="pi3", mbit=100.0)) == 0
    assert lab.board("pi4-1") == "pi3*2" and rates == [("pi4-1", 50)]
    with pytest.raises(LabError, match="the board of pi4-1: no board 'pi9' is described"):
        main.change(argparse.Namespace(lab="pi4x4", host="pi4-1", board="pi9", mbit=None))


def test_the_list_is_of_clusters_as_they_are_described(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(state, "LABS", tmp_path)
    assert main.show(argparse.Namespace()) == 0
    said = capsys.readouterr().out
    assert "cluster pi4x4, in motion 2 times as slow: pi4-1 is pi4, 1000 Mbit/s, " in said and "cluster wifi3: pi1 is 3, 40 Mbit/s" in said


def test_slow_motion_is_of_boards_links_and_latencies_alike(tmp_path):
    file = tmp_path / "clusters.toml"
    file.write_text("[a]\nslow = 2\nmbit = 100\nlatency_us = 300\n[a.board]\nx = 'pi4'\ny = 2.5\n")
    own = cluster_named("a", file)
    assert [(host.board, host.mbit, host.latency_us) for host in own.hosts] == [("pi4*2", 50, 600), ("5", 50, 600)]
    more = own.in_slow_motion(5)
    assert more.slow == 5 and [(host.board, host.mbit, host.latency_us) for host in more.hosts] == [("pi4*5", 20, 1500), ("12.5", 20, 1500)]
    assert own.in_slow_motion(2) == own and more.in_slow_motion(2) == own
    quick = cluster_named("wifi3").in_slow_motion(0.5)  # where there are cores to spare
    assert quick.slow == 0.5 and [(host.board, host.mbit) for host in quick.hosts] == [("1.5", 80), ("2", 80), ("3", 80)]
    with pytest.raises(LabError, match="slow motion of a is 0.05; it has to be a number from 0.1 to 100"):
        own.in_slow_motion(0.05)
