"""A cluster of emulated hosts: brings it up, runs jobs on it, breaks it on demand, takes it down.

    with Lab("mixed4") as lab:
        job = lab.start([sys.executable, "-m", "hepti_mpi", "run"])
        lab.cut_link("nuc")

Knows hosts, links and jobs. Does not know what a job computes; being slow is hepti_mpi's business, which reads the host's board from
jobs.EMULATE_FILE for every request.
"""

import itertools
import json
import os
import pwd
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import check, jobs, network, processes, state
from .clusters import Cluster, Host, checked_board, checked_rate, cluster_named
from .errors import LabError

_COUNT = itertools.count(1)
START_SECONDS = 120  # for the hosts of a lab to answer
SSHD_CONFIG = """\
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
UseDNS no
MaxStartups 250
PidFile /run/sshd.pid
LogLevel ERROR
"""
SSH_CONFIG = """\
IdentityFile /etc/ssh/user_key
IdentitiesOnly yes
IdentityAgent none
GlobalKnownHostsFile /etc/ssh/known_hosts
UserKnownHostsFile none
BatchMode yes
ConnectTimeout 10
"""


class Lab:
    """A cluster that is up while the `with` block runs. It ends with the process that made it, also when that is killed."""

    def __init__(
        self,
        cluster: str | Cluster,
        name: str | None = None,
        share: Sequence[str | Path] = (),
        burst_seconds: float | None = None,
        home: str | None = None,
    ) -> None:
        """Prepare a lab; `up` or `with` brings it up.

        Args:
            name: tells it from other labs of its cluster.
            share: folders that all hosts see. They see all folders but their own /tmp, /run and /dev/shm; below those only the
                checkout, the interpreter, the current folder and these.
            burst_seconds: how much of a link's time may be saved up while it is idle; left out: 128 KiB on every link.
            home: of root on the hosts; left out: the machine's, which all share.
        """
        self.cluster = cluster_named(cluster) if isinstance(cluster, str) else cluster
        self.name = name or f"{self.cluster.name}-{os.getpid()}-{next(_COUNT)}"
        self.folder = state.LABS / self.name
        self.burst_seconds = burst_seconds
        self.home = home or pwd.getpwuid(0).pw_dir
        self._share = [Path(folder) for folder in share]
        self._holder: subprocess.Popen[str] | None = None  # the lab ends when this one's standard input does
        self._starts: list[subprocess.Popen[bytes]] = []

    @classmethod
    def attach(cls, name: str) -> "Lab":
        """Return the lab called `name` that another process brought up. Raises LabError."""
        folder = state.LABS / name
        try:
            made = json.loads((folder / "lab.json").read_text())
        except OSError:
            raise LabError(f"no lab {name} is up; bring it up with: python -m tests.lab up {name}") from None
        hosts = tuple(Host(**host) for host in made["hosts"])
        return cls(Cluster(made["cluster"], hosts, made.get("slow", 1.0)), name, burst_seconds=made["burst_seconds"])

    def __enter__(self) -> "Lab":
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def hosts(self) -> list[str]:
        """The names of the boards, in the order of the ranks."""
        return [host.name for host in self.cluster.hosts]

    # Up and down

    def up(self) -> None:
        """Bring the cluster up; returns when every host answers. Raises LabError."""
        reason = check.obstacle()
        if reason:
            raise LabError(reason)
        state.create(self.name)
        try:
            self._write_files()
            network.carry_first()
            network.send_as_boards()
            self._start_switch()
            self._start_hosts(self.cluster.hosts)
        except BaseException:
            self.down()
            raise
        cluster = {"cluster": self.cluster.name, "hosts": [asdict(host) for host in self.cluster.hosts], "slow": self.cluster.slow}
        made = cluster | {"burst_seconds": self.burst_seconds}
        (self.folder / "lab.json").write_text(json.dumps(made))

    def stay(self) -> None:
        """Let the lab outlive this process, until somebody takes it down."""
        assert self._holder is not None and self._holder.stdin is not None
        state.stay(self.folder)
        self._holder.stdin.write("stay\n")
        self._holder.stdin.close()

    def down(self) -> None:
        """End all processes of the lab and remove what it left."""
        state.remove(self.folder)
        for start in self._starts:
            start.wait()
        if self._holder is not None:
            if self._holder.stdin is not None:
                self._holder.stdin.close()
            self._holder.wait()

    def _write_files(self) -> None:
        ssh = self.folder / "ssh"
        ssh.mkdir()
        for key in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", ssh / key], check=True)
        (ssh / "authorized_keys").write_text((ssh / "user_key.pub").read_text())
        (ssh / "known_hosts").write_text(f"* {(ssh / 'host_key.pub').read_text()}")
        (ssh / "sshd_config").write_text(SSHD_CONFIG)
        (ssh / "ssh_config").write_text(SSH_CONFIG)
        lines = ["127.0.0.1 localhost", *(f"{host.address} {host.name}" for host in self.cluster.hosts)]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        # root of the hosts: not locked with "!", which sshd lets nobody in with, and with a shell that does not read .bashrc: hosts that
        # start together share the home folder, and what it runs (pyenv takes a lock there) must neither wait nor be killed half-way
        (self.folder / "shadow").touch(mode=0o600)
        (self.folder / "shadow").write_text(re.sub("^root:[^:]*:", "root:*:", Path("/etc/shadow").read_text(), flags=re.MULTILINE))
        users = re.sub("^(root:.*):.*:.*$", rf"\1:{self.home}:/bin/sh", Path("/etc/passwd").read_text(), flags=re.MULTILINE)
        (self.folder / "passwd").write_text(users)

    def _start_switch(self) -> None:
        with (self.folder / "switch.log").open("w") as log:
            self._holder = subprocess.Popen(
                ["sh", Path(__file__).with_name("switch.sh"), self.folder],
                stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip
        self._await((self.folder / "switch").exists, self._holder, self.folder / "switch.log", "the switch")

    def _start_hosts(self, hosts: Sequence[Host]) -> None:
        starts = {host: self._start_host(host) for host in hosts}
        for host, start in starts.items():
            folder = self._board(host.name)
            self._await((folder / "id").exists, start, folder / "log", host.name)
            network.connect(self._switch, host, self._id(host.name), self.burst_seconds)
        for host, start in starts.items():
            folder = self._board(host.name)
            self._await((folder / "run/sshd.pid").exists, start, folder / "log", host.name)

    def _start_host(self, host: Host) -> "subprocess.Popen[bytes]":
        folder = self._board(host.name)
        (folder / "run/hepti").mkdir(parents=True)
        self._write_board(host.name, host.board)
        hostfile = "".join(f"{name} slots=1\n" for name in self.hosts)
        (folder / f"run/hepti/{self.cluster.name}.txt").write_text(hostfile)
        shared = _covered([Path(sys.prefix), Path(sys.base_prefix), jobs.CHECKOUT, Path.cwd(), *self._share])
        with (folder / "log").open("wb") as log:
            start = subprocess.Popen(
                ["nsenter", f"--target={self._switch}", "--pid", "--",
                 "unshare", "--fork", "--kill-child", "--pid", "--net", "--uts", "--ipc", "--mount",
                 "sh", Path(__file__).with_name("host.sh"), self.folder, host.name, self.home, *shared],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._starts.append(start)
        return start

    def _await(self, is_ready: Callable[[], bool], process: "subprocess.Popen[Any]", log: Path, what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                said = " ".join(log.read_text().split()) if log.exists() else ""
                raise LabError(f"{what} of {self.name} did not start: {said or 'it says nothing'}")
            time.sleep(0.005)

    @property
    def _switch(self) -> int:
        return state.process(self.folder / "switch")

    def _id(self, host: str) -> int:
        """Return the process id, on this machine, of a host's first process."""
        return state.process(self._board(host) / "id")

    def _board(self, host: str) -> Path:
        return self.folder / "boards" / self.cluster.host(host).name

    # Jobs

    def ssh(self, host: str, argv: Sequence[str], terminal: bool = False, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run a command on a host over ssh; `options` as for subprocess.run. Its exit code is 255 when ssh itself failed."""
        line = " ".join(argv) if len(argv) == 1 else shlex.join(argv)
        return subprocess.run(self._login(host, line, terminal), **{"stdin": subprocess.DEVNULL, "text": True, **options})

    def start(
        self,
        argv: Sequence[str],
        ranks_per_host: int = 1,
        hosts: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        **streams: Any,
    ) -> "subprocess.Popen[str]":
        """Start `mpirun -hostfile ... argv` on the first host over ssh and return at once.

        Args:
            hosts: the boards to use; left out: all.
            env: variables for every rank, and settings of mpirun.
            options: of mpirun.
            streams: stdin, stdout and others as for subprocess.Popen.
        """
        hostfile = f"/run/hepti/{self.cluster.name}.txt"
        command = jobs.job(argv, hostfile, ranks_per_host, hosts, options)
        line = jobs.shell_line(command, env or {}, os.getcwd())
        return subprocess.Popen(self._login((hosts or self.hosts)[0], line), **{"stdin": subprocess.DEVNULL, "text": True, **streams})

    def begin(self, host: str, argv: Sequence[str], **streams: Any) -> "subprocess.Popen[str]":
        """Start a program on one host over ssh, with the settings of a job but without mpirun, and return at once."""
        line = jobs.shell_line(argv, {}, os.getcwd(), exports=False)
        return subprocess.Popen(self._login(host, line), **{"stdin": subprocess.DEVNULL, "text": True, **streams})

    def mpirun(self, argv: Sequence[str], timeout: float | None = None, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run a job to its end; `options` as for `start`.

        Raises subprocess.TimeoutExpired after `timeout` seconds, when no process of the job is left.
        """
        with self.start(argv, **options) as job:
            try:
                stdout, stderr = job.communicate(timeout=timeout)
            except BaseException:
                job.kill()
                self.end_jobs()
                raise
        return subprocess.CompletedProcess(list(argv), job.returncode, stdout, stderr)

    def _login(self, host: str, line: str, terminal: bool = False) -> list[str]:
        # from the host to itself: what is typed and printed never travels on a limited or cut link
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid"]
        return ["nsenter", f"--target={self._id(host)}", *spaces, "--", "ssh", "-t" if terminal else "-T", host, line]

    def end_jobs(self) -> None:
        """Kill every process on every host but its sshd."""
        for host in self.hosts:
            self._kill_jobs(host)

    def _kill_jobs(self, host: str) -> None:
        while others := set(self.processes(host)) - {self._id(host)}:
            for process in others:
                processes.kill(process)
            time.sleep(0.005)

    def processes(self, host: str) -> dict[int, str]:
        """Return the processes of a host, as this machine numbers them, with their command lines; none of a dead host."""
        return processes.beside(self._id(host))

    def ranks(self) -> dict[int, int]:
        """Return the process of every rank of the running job, as this machine numbers them: what os.kill takes."""
        found = {}
        for host in self.hosts:
            rank_of = {process: processes.rank_of(process) for process in self.processes(host)}
            for process, rank in rank_of.items():
                if rank is not None and rank_of.get(processes.parent(process)) is None:
                    found[rank] = process
        return dict(sorted(found.items()))

    # What can happen to a cluster

    def set_board(self, host: str, board: str | float) -> None:
        """Make a host another board, named or by its factor, from its next request on."""
        self._write_board(host, checked_board(board, host))

    def _write_board(self, host: str, board: str) -> None:
        path = self._board_file(host)
        latency = self.cluster.host(host).latency_us
        path.with_name("emulate.part").write_text(f"{board} {shortest(latency)}us\n" if latency else f"{board}\n")
        path.with_name("emulate.part").replace(path)  # a reader sees the old or the new one

    def board(self, host: str) -> str:
        """Return the board that a host is at present."""
        return self._board_file(host).read_text().split()[0]

    def _board_file(self, host: str) -> Path:
        return self._board(host) / "run" / Path(jobs.EMULATE_FILE).relative_to("/run")

    def set_rate(self, host: str, mbit: float) -> None:
        """Give a board's link another rate, both ways."""
        network.limit(self._switch, self.cluster.host(host), self._id(host), checked_rate(mbit, host), self.burst_seconds)

    def cut_link(self, host: str) -> None:
        """Let all that a board sends and is sent vanish; nobody is told."""
        network.cut(self._switch, self.cluster.host(host))

    def restore_link(self, host: str) -> None:
        """Undo `cut_link`."""
        network.restore(self._switch, self.cluster.host(host))

    def kill_host(self, host: str, silent: bool = False) -> None:
        """Kill a board with all its processes; `silent` as when its power fails, otherwise its kernel closes the connections."""
        if silent:
            self.cut_link(host)
        else:
            self._kill_jobs(host)
            time.sleep(network.QUEUE_SECONDS)  # until the others have been told
        processes.kill(self._id(host))
        network.disconnect(self._switch, self.cluster.host(host))

    def start_host(self, host: str) -> None:
        """Start a killed board again, as it was in the beginning."""
        board = self.cluster.host(host)
        if self.processes(host):
            raise LabError(f"{host} of {self.name} has not been killed")
        subprocess.run(["rm", "-rf", "--one-file-system", self._board(host)], check=True)
        self._start_hosts([board])


def shortest(latency_us: float) -> str:
    """Return microseconds as a board is told them: to a thousandth, never with an exponent.

    >>> shortest(300.0), shortest(50.5), shortest(1e6), shortest(0.0004)
    ('300', '50.5', '1000000', '0')
    """
    return f"{latency_us:.3f}".rstrip("0").rstrip(".")


def _covered(folders: Sequence[Path]) -> list[str]:
    """Return those of the folders that a host's own /tmp, /run and /dev/shm would hide, outer ones first."""
    covers = [Path("/tmp"), Path("/run"), Path("/dev/shm")]
    hidden = {path for folder in folders for path in [folder.absolute()] if any(cover in path.parents for cover in covers)}
    for path in hidden:
        if not path.is_dir():
            raise LabError(f"cannot share {path} with the hosts: no such folder")
    return [str(path) for path in sorted(hidden)]
