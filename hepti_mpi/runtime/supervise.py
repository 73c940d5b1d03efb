"""Keep a run going when hosts are lost: start mpirun, watch, end what is left of it everywhere, start again without the lost host.

Knows hosts, ssh and processes; starts no MPI itself and does not know what is computed. What a run has finished it tells in records
(progress.py); whoever uses this module keeps them.
"""

import json
import os
import queue
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from hepti_mpi.comm.launcher import host_name
from hepti_mpi.errors import HeptiError
from hepti_mpi.runtime.progress import State, told

JOB = "HEPTI_JOB"  # environment variable of every rank: by it they are found again
HANDED_ON = ("HEPTI_", "OMP_", "OPENBLAS_")  # of the environment, besides what mpirun itself hands on
BEAT_SECONDS, ANSWER_SECONDS, MISSED = 1.0, 1.0, 3  # between looks at a host; for it to answer; looks in a row that it may miss
ASK_SECONDS = 15  # between two looks at whether a host that is back is worth a restart
SSH_SECONDS = 20  # to clean up on a host that answers
END_SECONDS = 3  # for mpirun to end when it is asked to
BARREN = 3  # starts in a row that end without one more answer
MOST_LOSSES = 3  # of one host, after which it is not taken back
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=3", "-o", "StrictHostKeyChecking=accept-new")
# ends the ranks and daemons of this job, then writes what it is given to a file that only its user reads; run with python -c on each host
SWEEP = """
import os, sys, time
path, *marks = sys.argv[1:]
marks, end = [mark.encode() for mark in marks], time.time() + 5
def read(number, name):
    try:
        with open(f"/proc/{number}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""
def mine(number):
    if int(number) in (os.getpid(), os.getppid()):
        return False
    words = read(number, "environ").split(b"\\0") + read(number, "cmdline").split(b"\\0")
    if b"HEPTI_SWEEP=1" in words:  # the supervisor's own ssh
        return False
    daemon = read(number, "comm").strip() in (b"prted", b"orted", b"ssh")
    return any(mark in words or daemon and any(mark in word for word in words) for mark in marks)
while True:
    left = [number for number in os.listdir("/proc") if number.isdigit() and mine(number)]
    for number in left:
        try:
            os.kill(int(number), 9)
        except OSError:
            pass
    if not left or time.time() > end:
        break
    time.sleep(0.02)
content = sys.stdin.buffer.read()
if content:
    part = f"{path}.{os.getpid()}"
    with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(content)
    os.replace(part, path)
elif os.path.exists(path):
    os.unlink(path)
print("left", len(left))
"""


@dataclass
class Host:
    """A host of the hostfile: `line` as it stands there. `missed`: looks in a row that it has not answered."""

    name: str
    line: str
    address: tuple[str, int] | None = None
    missed: int = 0
    lost: bool = False
    losses: int = 0


def read_hosts(path: Path) -> list[Host]:
    """Read a hostfile of mpirun. Raises HeptiError when it cannot be read or names no host, or one twice."""
    try:
        lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise HeptiError(f"hostfile {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    hosts = [Host(line.split()[0], line) for line in lines if line]
    names = [host.name for host in hosts]
    for name in names:
        if name.startswith("-") or not all(letter.isalnum() or letter in "-._@" for letter in name):  # ssh would take it for an option
            raise HeptiError(f"hostfile {path}: {name!r} is no name of a host")
        if names.count(name) > 1:
            raise HeptiError(f"hostfile {path} has {name} twice; give it one line with slots=N")
    if not hosts:
        raise HeptiError(f"hostfile {path} names no host")
    return hosts


class GivenUp(HeptiError):
    """The job cannot go on; the sentence says with what it was tried."""

    exit_code = 3


class Interrupted(BaseException):
    """Somebody wants this to end: `code` as a shell says it."""

    def __init__(self, code: int) -> None:
        self.code = code


@dataclass
class Attempt:
    """One start of mpirun."""

    process: "subprocess.Popen[bytes]"
    lines: "queue.Queue[str | None]" = field(default_factory=queue.Queue)
    errors: list[str] = field(default_factory=list)
    listener: threading.Thread | None = None


class Supervisor:
    """Runs `arguments` of hepti_mpi on the hosts of a hostfile until it is done."""

    def __init__(
        self, hosts: Sequence[Host], mpirun: Sequence[str], arguments: Sequence[str], state: Callable[[], State],
        heard: Callable[[dict[str, Any]], None], gains: Callable[[Sequence[str], Sequence[str]], float | None], say: Callable[[str], None],
    ) -> None:  # fmt: skip
        """`state`: what a start need not do again; `heard` is told each record; `gains(with, without)` returns how many seconds the rest
        of the job would take less on the hosts `with` than it does on those `without`, None where that is not known."""
        self.hosts, self.mpirun, self.arguments = list(hosts), list(mpirun), list(arguments)
        self.state, self.heard, self.gains, self.say = state, heard, gains, say
        self.job = secrets.token_hex(8)
        self.marks = [f"{JOB}={self.job}"]
        self.path = Path(tempfile.gettempdir()) / f"hepti-{os.getuid()}-{self.job}.json"  # on every host
        self.restart_seconds = 10.0
        self.returning: tuple[Host, ...] = ()
        self.ended = threading.Event()
        self.folder = Path(tempfile.mkdtemp(prefix="hepti-"))

    def run(self) -> None:
        """Run to the end. Raises: GivenUp, and HeptiError for bad input."""
        for host in self.hosts:
            host.address = _address(host.name)
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        barren, ended = 0, time.monotonic()
        try:
            while True:
                self._sweep(json.dumps(self.state().to_json()).encode())
                live = [host for host in self.hosts if not host.lost]
                if not live:
                    raise GivenUp(f"none of the {len(self.hosts)} hosts answers: {', '.join(host.name for host in self.hosts)}")
                attempt = self._start(live)
                why, answers = self._watch(attempt, live, ended)
                ended = time.monotonic()
                if why is None:
                    return
                barren = 0 if answers else barren + 1
                if barren >= BARREN:
                    said = attempt.errors[-1].strip() if attempt.errors else "it said nothing"
                    raise GivenUp(f"started {barren} times in a row without one more answer on {_names(live)}; the last time: {said}")
                self.say(f"{why}; starting again")
        finally:
            self.ended.set()
            self._sweep(b"")
            for left in self.folder.iterdir():
                left.unlink()
            self.folder.rmdir()

    # one start

    def _start(self, live: Sequence[Host]) -> Attempt:
        hostfile = self.folder / "hosts.txt"
        hostfile.write_text("".join(host.line + "\n" for host in live))
        environment = os.environ | {JOB: self.job}
        handed = [name for name in environment if name.startswith(HANDED_ON) or name in ("PATH", "PYTHONPATH")]
        exports = [word for name in sorted(handed) for word in ("-x", name)]
        program = [sys.executable, "-m", "hepti_mpi", *self.arguments, "--supervised", str(self.path)]
        command = [self.mpirun[0], "-hostfile", str(hostfile), *self.mpirun[1:], *exports, *program]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, env=environment
            )
        except OSError as error:
            raise GivenUp(f"{command[0]} cannot be started: {error.strerror or error}") from None
        self.marks.append(f"prterun-{socket.gethostname()}-{process.pid}@")  # the daemons of this mpirun carry it
        attempt = Attempt(process)
        assert process.stdout is not None and process.stderr is not None
        threading.Thread(target=self._read, args=(process.stdout, attempt.lines), daemon=True).start()
        attempt.listener = threading.Thread(target=self._pass_on, args=(process.stderr, attempt), daemon=True)
        attempt.listener.start()
        return attempt

    @staticmethod
    def _read(stream: IO[bytes], lines: "queue.Queue[str | None]") -> None:
        for line in stream:
            lines.put(line.decode(errors="replace"))
        lines.put(None)

    @staticmethod
    def _pass_on(stream: IO[bytes], attempt: Attempt) -> None:
        for line in stream:
            text = line.decode(errors="replace")
            sys.stderr.write(text)
            sys.stderr.flush()
            if text.startswith("error"):
                attempt.errors.append(text)

    def _watch(self, attempt: Attempt, live: Sequence[Host], ended: float) -> tuple[str | None, bool]:
        """Return why mpirun is to be started again, None when it is done, and whether it answered anything."""
        answered = over = False
        done: float | None = None  # when it said so
        why = None
        try:
            while why is None and not over and (done is None or time.monotonic() < done + END_SECONDS):
                try:
                    line = attempt.lines.get(timeout=0.1)
                except queue.Empty:
                    line = ""
                if line is None:
                    over = True
                elif line:
                    record = told(line)
                    if record is None:
                        sys.stdout.write(line)
                        continue
                    self.heard(record)
                    if record["kind"] == "done":
                        done = time.monotonic()
                    if record["kind"] == "answers":
                        if not answered:
                            self.restart_seconds = time.monotonic() - ended
                        answered = True
                silent = [host for host in live if host.missed >= MISSED]
                if silent and done is None:
                    why = f"{_names(silent)} {'does' if len(silent) == 1 else 'do'} not answer"
                elif self.returning and done is None:
                    back, self.returning = self.returning, ()
                    for host in back:
                        host.lost = False
                    why = f"{_names(back)} {'is' if len(back) == 1 else 'are'} back"
        finally:
            code = self._end(attempt, over)
        if done is not None:
            return None, answered
        if why is not None:
            return why, answered
        if code == 2:  # bad input, or the rest of the hosts cannot hold the model: the next start would say the same
            said = attempt.errors[-1].strip() if attempt.errors else "it did not say why"
            gone = [host.name for host in self.hosts if host.lost]
            if not gone:
                raise HeptiError(f"the run cannot begin: {said.removeprefix('error ')}")
            left = f"{len(live)} of {len(self.hosts)} hosts are left ({', '.join(gone)} lost)"
            raise GivenUp(f"the run cannot go on, {left}: {said.removeprefix('error ')}")
        return f"the run ended with code {code} before it was done", answered

    @staticmethod
    def _end(attempt: Attempt, over: bool) -> int:
        """End mpirun with its ssh processes, and return its exit code."""
        if over:
            try:
                attempt.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(attempt.process.pid, signal.SIGKILL)  # ranks and daemons are swept
        except ProcessLookupError:
            pass
        if attempt.listener is not None:
            attempt.listener.join(0.5)  # what was said last
        return attempt.process.wait()

    # hosts

    def _sweep(self, content: bytes) -> None:
        """End what is left of the job on all hosts and leave `content` there; hosts that do not answer are lost."""
        before = [host for host in self.hosts if host.lost]
        # here first: mpirun's ssh processes, which are told from those to the other hosts by being there before
        subprocess.run([sys.executable, "-c", SWEEP, str(self.path), *self.marks], input=content, capture_output=True)
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            answers = list(pool.map(lambda host: _is_here(host.name) or self._sweep_one(host, content), self.hosts))
        for host, answer in zip(self.hosts, answers):
            if not host.lost and not answer:
                host.lost, host.missed = True, MISSED
                host.losses += 1
            # one that was lost and answers now is taken back by _beat, if that is worth it
        now = [host for host in self.hosts if host.lost and host not in before]
        if now:
            self.say(f"{_names(now)} {'is' if len(now) == 1 else 'are'} left out")

    def _sweep_one(self, host: Host, content: bytes) -> bool:
        if host.missed >= MISSED or not (answers(host) or answers(host)):
            return False
        words = [*SSH, host.name, shlex.join([sys.executable, "-c", SWEEP, str(self.path), *self.marks])]
        try:
            done = subprocess.run(words, input=content, capture_output=True, timeout=SSH_SECONDS, env=os.environ | {"HEPTI_SWEEP": "1"})
        except subprocess.TimeoutExpired:
            return False
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())[-300:]
            self.say(f"{host.name} cannot be used: {said or f'exit code {done.returncode}'}")
        return done.returncode == 0

    def _beat(self) -> None:
        """Look at all hosts now and then, until all is done."""
        asked = 0.0
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            while not self.ended.is_set():
                begin = time.monotonic()
                for host, answer in zip(self.hosts, pool.map(lambda host: _is_here(host.name) or answers(host), self.hosts)):
                    host.missed = 0 if answer else host.missed + 1
                back = [host for host in self.hosts if host.lost and not host.missed and host.losses <= MOST_LOSSES]
                if back and not self.returning and begin > asked + ASK_SECONDS:
                    asked = begin
                    threading.Thread(target=self._weigh, args=(back,), name="weigh", daemon=True).start()
                self.ended.wait(max(0.0, BEAT_SECONDS - (time.monotonic() - begin)))

    def _weigh(self, back: Sequence[Host]) -> None:
        """Take hosts back that answer again, if the rest of the job gains more than a restart costs."""
        present = [short_name(host.name) for host in self.hosts if not host.lost]
        gained = self.gains([*present, *(short_name(host.name) for host in back)], present)
        if gained is not None and gained > 1.5 * self.restart_seconds:
            self.returning = tuple(back)


def _names(hosts: Sequence[Host]) -> str:
    return ", ".join(host.name for host in hosts)


def _is_here(name: str) -> bool:
    return name.rpartition("@")[2] in ("localhost", "127.0.0.1", socket.gethostname()) or short_name(name) == host_name()


def short_name(name: str) -> str:
    """Return the name by which a host of a hostfile calls itself, as a rule."""
    return name.rpartition("@")[2].split(".")[0]


def _address(name: str) -> tuple[str, int]:
    """Return where ssh would go for a host."""
    found = {"hostname": name, "port": "22"}
    try:
        said = subprocess.run(["ssh", "-G", name], capture_output=True, text=True, timeout=5).stdout
        found |= {key: value for key, _, value in (line.partition(" ") for line in said.splitlines()) if key in found}
    except (OSError, subprocess.TimeoutExpired):
        pass
    return found["hostname"].rpartition("@")[2], int(found["port"])


def answers(host: Host) -> bool:
    """Tell whether a host's sshd answers, or its system says that there is none."""
    try:
        with socket.create_connection(host.address or (host.name, 22), ANSWER_SECONDS) as link:
            link.settimeout(ANSWER_SECONDS)
            return link.recv(4) == b"SSH-"
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
