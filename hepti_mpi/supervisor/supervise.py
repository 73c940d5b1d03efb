"""Keep a run going when hosts are lost: start mpirun, watch, end what is left of it everywhere, start again without the lost host.

Knows hosts, ssh and processes; starts no MPI itself and does not know what is computed. What a run has finished it tells in records
(progress.py); whoever uses this module keeps them.
"""

import json
import math
import os
import queue
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from hepti_mpi.cluster.hosts import Host, answers, door_of
from hepti_mpi.comm import leavings, names
from hepti_mpi.comm.channel import ERR, OUT, STATE, for_people, print_on, told, untangled
from hepti_mpi.comm.folders import check_room, check_scratch, own_folder
from hepti_mpi.comm.launcher import ended_with_this
from hepti_mpi.comm.patience import SLOWER
from hepti_mpi.errors import HeptiError, reason_of
from hepti_mpi.supervisor.blame import Troubles, without_ends
from hepti_mpi.supervisor.progress import State
from hepti_mpi.supervisor.returning import BLAMED, FOR_GOOD, heard, is_due, lose, take_back
from hepti_mpi.supervisor.sweep import sweep, sweep_here

JOB = "HEPTI_JOB"  # environment variable of every rank: by it they are found again
HANDED_ON = ("HEPTI_", "OMP_", "OPENBLAS_")  # of the environment, besides what mpirun itself hands on
BEAT_SECONDS, MISSED = 1.0, 3  # between looks at a host; looks in a row that it may miss
ASK_SECONDS = 15  # between two looks at whether a host that is back is worth a restart
AT_ONCE = 64  # hosts that are asked together
END_SECONDS = 3  # for mpirun to end when it is asked to
BARREN = 3  # starts in a row that end without one more answer
PATIENT = 6  # of those, where one input may be the reason, and is given up sooner (serving.front)
IN_A_ROW = 2  # of those, for which one host is blamed and left out although it answers
BEGIN_SECONDS = 120  # for the ranks to find each other
STARTING, WAITING = "starting", "waiting for hosts"  # what it does while no rank does
SILENCE = 2 * SLOWER  # times the deadline that nothing may be heard: no wait of a rank is as long


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
    troubles: Troubles = field(default_factory=Troubles)
    listener: threading.Thread | None = None


class Supervisor:
    """Runs `arguments` of hepti_mpi on the hosts of a hostfile until it is done."""

    def __init__(
        self, hosts: Sequence[Host], mpirun: Sequence[str], arguments: Sequence[str], state: Callable[[], State],
        heard: Callable[[dict[str, Any]], None], gains: Callable[[Sequence[str], Sequence[str]], float | None], say: Callable[[str], None],
        patient: bool = False,
    ) -> None:  # fmt: skip
        """`mpirun`: its words; none: the one host is this machine, and needs no mpirun. `state`: what a start need not do again; `heard` is
        told each record; `gains(with, without)` returns how many seconds the rest
        of the job would take less on the hosts `with` than it does on those `without`, None where that is not known. `patient`: once it has
        answered, it waits for lost hosts where it cannot go on without them."""
        self.hosts, self.mpirun, self.arguments = list(hosts), list(mpirun), list(arguments)
        self.state, self.heard, self.gains, self.say, self.patient = state, heard, gains, say, patient
        self.job = secrets.token_hex(8)
        self.marks = [f"{JOB}={self.job}"]
        self.path = Path("/tmp") / f"hepti-{os.getuid()}-{self.job}.json"  # on every host: TMPDIR may be this one's
        self.restart_seconds = 10.0
        self.returning: tuple[Host, ...] = ()
        self.blames = Counter[str]()
        self.show: Callable[[int, str], None] = print_on  # what ranks print
        self.does: Callable[[str], None] = lambda what: None  # is told what it does while no rank does
        self.going = False  # whether anything was answered, ever, or could have been
        self.barren = 0  # starts in a row that ended without one more answer
        self.ended = threading.Event()
        self.unwanted = threading.Event()  # set by whoever wants it to end at once
        self.folder = Path(own_folder())

    def run(self) -> None:
        """Run to the end. Raises: GivenUp, and HeptiError for bad input."""
        self._find()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        ended = time.monotonic()
        try:
            while True:
                self.does(STARTING)
                self._take_back(is_due)  # a start is to be made anyway
                if self._sweep(self.state()):
                    self.barren = 0
                live = [host for host in self.hosts if not host.lost]
                if not live:
                    self._wait(f"no host of the hostfile answers: {_names(self.hosts)}", lambda host, now: host.losses < FOR_GOOD)
                    if self.unwanted.is_set():
                        return
                    continue
                self._tell_apart(live)
                live = [host for host in live if not host.lost]
                attempt = self._start(live)
                why, answers = self._watch(attempt, live, ended)
                ended = time.monotonic()
                if why is None:
                    return
                self.barren = 0 if answers else self.barren + 1
                bad = self._blamed(attempt, live, answers)
                if bad is not None:
                    lose(bad, ended, BLAMED)
                    self.barren = 0
                    why = f"{why}, as before; {bad.name} is left out, though it answers"
                if self.barren >= (PATIENT if self.patient else BARREN):
                    said = attempt.troubles.said or "no rank said why"
                    raise GivenUp(f"started {self.barren} times in a row without one more answer on {_names(live)}; the last time: {said}")
                for sentence in dict.fromkeys(attempt.troubles.told):  # which the ranks left to be said here
                    if sentence not in why:
                        self.say(sentence)
                self.say(f"{why}; starting again")
        finally:
            self.ended.set()
            self._sweep(None)
            for left in self.folder.iterdir():
                left.unlink()
            self.folder.rmdir()

    def excuse(self) -> None:
        """Count starts without an answer anew: what they may have failed for is given up. Any thread may call it."""
        self.barren = 0

    # one start

    def _start(self, live: Sequence[Host]) -> Attempt:
        check_scratch()
        if self.mpirun:
            check_room()
        hostfile = self.folder / "hosts.txt"
        hostfile.write_text("".join(host.line + "\n" for host in live))
        home = {"HOME": os.path.expanduser("~")}  # without it, as in a unit of systemd that names no user, mpirun does not start
        environment = home | os.environ | {JOB: self.job, STATE: str(self.path)}
        handed = [name for name in environment if name.startswith(HANDED_ON) or name in ("PATH", "PYTHONPATH")]
        exports = [word for name in sorted(handed) for word in ("-x", name)]
        program = [sys.executable, "-m", "hepti_mpi", *self.arguments]
        command = [self.mpirun[0], "-hostfile", str(hostfile), *self.mpirun[1:], *exports, *program] if self.mpirun else program
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, env=environment,
                preexec_fn=ended_with_this()
            )  # fmt: skip
        except OSError as error:
            own = os.path.join(sys.prefix, "bin", "mpirun")
            why = f"{reason_of(error)}; with --mpirun give that of the Open MPI which the ranks have, which may be {shlex.quote(own)}"
            raise GivenUp(f"{command[0]} cannot be started: {why}") from None
        self.marks.append(f"prterun-{socket.gethostname()}-{process.pid}@")  # the daemons of this mpirun carry it
        attempt = Attempt(process)
        assert process.stdout is not None and process.stderr is not None
        threading.Thread(target=self._read, args=(process.stdout, attempt.lines), daemon=True).start()
        attempt.listener = threading.Thread(target=self._pass_on, args=(process.stderr, attempt), daemon=True)
        attempt.listener.start()
        return attempt

    @staticmethod
    def _read(stream: IO[bytes], lines: "queue.Queue[str | None]") -> None:
        for line in untangled(line.decode(errors="replace") for line in stream):
            lines.put(line)
        lines.put(None)

    def _pass_on(self, stream: IO[bytes], attempt: Attempt) -> None:
        def heard() -> Iterator[str]:
            for line in stream:
                text = line.decode(errors="replace")
                attempt.troubles.hear(text)
                yield text

        for text in without_ends(heard()):
            self.show(ERR, text)

    def _watch(self, attempt: Attempt, live: Sequence[Host], ended: float) -> tuple[str | None, bool]:
        """Return why mpirun is to be started again, None when it is done, and whether it answered anything."""
        answered = over = False
        heard, patience = time.monotonic(), float(BEGIN_SECONDS)
        late = f"the ranks did not find each other within {BEGIN_SECONDS} s"
        done: float | None = None  # when it said so
        why, deadline = None, math.inf
        try:
            while why is None and not over and not self.unwanted.is_set() and (done is None or time.monotonic() < done + END_SECONDS):
                line, record = self._next_line(attempt)
                over = line is None
                if record is not None:
                    heard = time.monotonic()
                    if record["kind"] == "here":
                        deadline = float(record["deadline"]) or math.inf
                        patience = SILENCE * deadline
                        late = f"nothing was heard for {patience:g} s"
                    if record["kind"] == "alive":  # from now on it says that always, whatever it does
                        patience, late = deadline, f"rank 0 has said nothing for {deadline:g} s"
                    if record["kind"] == "done":
                        done = time.monotonic()
                    if record["kind"] in ("answers", "idle"):  # who has nothing to do is well
                        if not answered:
                            self.restart_seconds = time.monotonic() - ended
                        answered = self.going = True
                if done is None:
                    why = late if time.monotonic() > heard + patience else self._hosts_changed(live)
        finally:
            code = self._end(attempt, over)
        if done is not None or self.unwanted.is_set():
            return None, answered
        return why or self._why_ended(attempt, live, code), answered

    def _next_line(self, attempt: Attempt) -> tuple[str | None, dict[str, Any] | None]:
        """Return the next line, "" where none has come and None where none will come, and the record that it is, which is taken in;
        other lines are shown."""
        try:
            line = attempt.lines.get(timeout=0.1)
        except queue.Empty:
            return "", None
        record = told(line) if line is not None else None
        if record is not None:
            attempt.troubles.take(record)
            self.heard(record)
        elif line is not None:
            self.show(OUT, for_people(line))
            attempt.troubles.hear(line)
        return line, record

    def _hosts_changed(self, live: Sequence[Host]) -> str | None:
        """Return why hosts are a reason to start again, if they are: some do not answer, or some are back."""
        silent = [host for host in live if host.missed >= MISSED]
        if silent:
            return f"{_names(silent)} {'does' if len(silent) == 1 else 'do'} not answer"
        if not self.returning:
            return None
        back, self.returning = self.returning, ()
        for host in back:
            take_back(host, time.monotonic())
        return f"{_names(back)} {'is' if len(back) == 1 else 'are'} back"

    def _why_ended(self, attempt: Attempt, live: Sequence[Host], code: int) -> str:
        """Return why a run that ended by itself before it was done is to be started again. Raises HeptiError where that would not help."""
        if code != 2:
            return f"the run ended with code {code} before it was done{attempt.troubles.said and f' ({attempt.troubles.said})'}"
        # bad input, or the rest of the hosts cannot hold the model: the next start would say the same
        said = (attempt.troubles.said or "no rank said why").removeprefix("error ")
        bad = attempt.troubles.host(live)
        if self.going and bad is not None and bad is not live[0]:  # the others could go on, and rank 0 has read the input
            lose(bad, time.monotonic(), BLAMED)
            return f"{said}; {bad.name} is left out"
        gone = [host.name for host in self.hosts if host.lost]
        if not gone and self.patient and self.going:  # what it was asked may be the reason, which is asked a few times only
            return said
        if not gone:
            raise HeptiError(f"the run cannot begin: {said}")
        left = f"{len(live)} of {len(self.hosts)} hosts are left ({', '.join(gone)} lost)"
        self._wait(f"the run cannot go on, {left}: {said}", is_due)
        return "hosts are back"

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
        code = attempt.process.wait()
        shutil.rmtree(leavings.session_folder(attempt.process.pid), ignore_errors=True)
        return code

    def _blamed(self, attempt: Attempt, live: Sequence[Host], answers: bool) -> Host | None:
        """Return the host that this start failed for, as the one before it did, without one more answer."""
        if answers:
            self.blames.clear()
        bad = attempt.troubles.host(live) if len(live) > 1 else None
        self.blames.update([bad.name] if bad else [])
        return bad if bad and not answers and self.blames[bad.name] >= IN_A_ROW else None

    # hosts

    def _find(self) -> None:
        """Find out where ssh would go for each host."""
        with ThreadPoolExecutor(min(AT_ONCE, len(self.hosts))) as pool:
            for host, door in zip(self.hosts, pool.map(door_of, self.hosts)):
                host.door = door
        names.look_up(host.door[0] for host in self.hosts if host.door)

    def _sweep(self, state: State | None) -> bool:
        """End what is left of the job on all hosts and leave `state` there, with the name that the host has here, by which its ranks say
        where they are; hosts that do not answer are lost. Tell whether one is."""
        before = [host for host in self.hosts if host.lost]
        here = next((host for host in self.hosts if host.here), None)
        # here first: mpirun's ssh processes, which are told from those to the other hosts by being there before
        sweep_here(here, self.path, self.marks, _content(state, here), self.say)
        with ThreadPoolExecutor(min(AT_ONCE, len(self.hosts))) as pool:
            answers = list(pool.map(lambda host: host.here or self._sweep_one(host, state), self.hosts))
        for host, answer in zip(self.hosts, answers):
            if not host.lost and not answer:
                host.missed = MISSED
                lose(host, time.monotonic())
        now = [host for host in self.hosts if host.lost and host not in before]
        if now:
            self.say(f"{_names(now)} {'is' if len(now) == 1 else 'are'} left out")
        return bool(now)

    def _sweep_one(self, host: Host, state: State | None) -> bool:
        return host.missed < MISSED and sweep(host, self.path, self.marks, _content(state, host), self.say)

    def _tell_apart(self, live: Sequence[Host]) -> None:
        """Leave out the second of two hosts that mpirun, which cuts names at a dot, takes for one. Raises HeptiError before any answer."""
        seen: dict[str, Host] = {}
        for host in live:
            for name in {host.own} | (set() if host.here else {names.short(host.name)}):
                other = seen.setdefault(name, host)
                if other is host:
                    continue
                why = f"{other.name} and {host.name} are both {name} to mpirun"
                if not self.going:
                    way = "" if host.own == other.own else "name it by its address, or "  # no line changes what it calls itself
                    raise HeptiError(f"{why}: if they are one machine, give it one line with slots=N, else {way}rename it with: "
                                     + host.typed("sudo hostnamectl set-hostname NAME"))
                lose(host, time.monotonic(), FOR_GOOD)
                self.say(f"{why}: {host.name} is left out")

    def _beat(self) -> None:
        """Look at all hosts now and then, until all is done."""
        asked = 0.0
        with ThreadPoolExecutor(min(AT_ONCE, len(self.hosts))) as pool:
            while not self.ended.is_set():
                begin = time.monotonic()
                for host, answer in zip(self.hosts, pool.map(answers, self.hosts)):
                    heard(host, answer, begin)
                back = [host for host in self.hosts if is_due(host, begin)]
                if back and not self.returning and begin > asked + ASK_SECONDS:
                    asked = begin
                    threading.Thread(target=self._weigh, args=(back,), name="weigh", daemon=True).start()
                self.ended.wait(max(0.0, BEAT_SECONDS - (time.monotonic() - begin)))

    def _take_back(self, may: Callable[[Host, float], bool]) -> list[Host]:
        """Take back the hosts that are lost, answer, and may."""
        now = time.monotonic()
        back = [host for host in self.hosts if host.lost and not host.missed and may(host, now)]
        for host in back:
            take_back(host, now)
        return back

    def _wait(self, why: str, may: Callable[[Host, float], bool]) -> None:
        """Wait for hosts that answer again and may be taken back, or until nobody wants them. Raises GivenUp for who is not patient."""
        if not (self.patient and self.going) or all(not host.lost or host.losses == FOR_GOOD for host in self.hosts):
            raise GivenUp(why)
        self.say(f"{why}; waiting for them")
        self.does(WAITING)
        while not self._take_back(may) and not self.unwanted.wait(BEAT_SECONDS):
            pass

    def _weigh(self, back: Sequence[Host]) -> None:
        """Take hosts back that answer again, if the rest of the job gains more than a restart costs."""
        present = [host.own for host in self.hosts if not host.lost]
        gained = self.gains([*present, *(host.own for host in back)], present)
        if gained is not None and gained > 1.5 * self.restart_seconds:
            self.returning = tuple(back)


def _names(hosts: Sequence[Host]) -> str:
    return ", ".join(host.name for host in hosts)


def _content(state: State | None, host: Host | None) -> bytes:
    return b"" if state is None else json.dumps(state.to_json() | {"host": host.name if host else None}).encode()
