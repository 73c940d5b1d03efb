"""A service: the front where requests wait, and the job that answers them, which is started, watched and started again.

Knows both and what they tell; does not know who asks (serving.http, the API of the package) nor how the job answers.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepti_mpi.cluster.hosts import Host, read_hosts
from hepti_mpi.comm.launcher import mpirun_words
from hepti_mpi.errors import HeptiError, ServiceError, place_of
from hepti_mpi.serving.front import Front
from hepti_mpi.supervisor.kept import UNKNOWN_GAIN, Known
from hepti_mpi.supervisor.progress import State
from hepti_mpi.supervisor.supervise import STARTING, Supervisor
from hepti_mpi.wording import counted

AHEAD_SECONDS = 600.0  # of a service, which has no end, for which a host that is back is worth to be taken back
EVENTS = 100  # that are remembered
STOP_SECONDS = 20.0  # for the job to end by itself


@dataclass(frozen=True)
class Job:
    """What is started: `words`: the command of hepti_mpi, on `hosts` by `mpirun`; `saved`: where profiles are kept, None: by the job."""

    words: Sequence[str]
    hosts: Sequence[Host]
    mpirun: Sequence[str] = ()
    saved: Path | None = None

    @classmethod
    def on(cls, hostfile: Path | None, words: Sequence[str], mpirun: str) -> "Job":
        """Return what is started on the hosts of a hostfile, or on this machine without mpirun. Raises HeptiError."""
        if hostfile is None:
            return cls(words, [Host("localhost")])
        return cls(words, read_hosts(hostfile), mpirun_words(mpirun), hostfile.with_suffix(".profile.json"))


class Service:
    """Keeps a job going that answers what its `front` is asked. `failed` is set when it cannot go on; then `error` says why."""

    def __init__(self, job: Job, source_hash: str, say: Callable[[str], None]) -> None:
        self.job, self.tell = job, say
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self.known = Known(job.saved, False, say)
        self.front = Front(source_hash, all(host.here for host in job.hosts), self._heard_of_rank_0)
        self.supervisor = Supervisor(job.hosts, job.mpirun, job.words, self._state, self._heard, self._gains, self.say, True)
        self.doing, self.plan, self.why = STARTING, dict[str, Any](), list[str]()
        self.supervisor.does = self._does
        self.computed: dict[str, float] = {}  # seconds of each rank in its last batch
        self.teams: list[dict[str, Any]] = []  # what each does now, where there are some
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        self.error: HeptiError | None = None
        self.failed, self.ready = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """End the job: it is told that nothing more will come, and ended when it does not listen. Whoever waits still, hears of it."""
        self.front.end()
        if self.front.connection is not None:
            self.thread.join(STOP_SECONDS)
        self.supervisor.unwanted.set()
        self.thread.join(STOP_SECONDS)
        self.front.fail(ServiceError("the service has ended"))

    def say(self, sentence: str) -> None:
        """Tell what happened."""
        self.events.append({"time": time.time(), "what": sentence})
        self.tell(sentence)

    def status(self) -> dict[str, Any]:
        """Return how it is: "loading", "ready", "degraded" (some hosts are lost), "restarting", "ending" or "failed", and what of it."""
        front, lost = self.front, [host.name for host in self.supervisor.hosts if host.lost]
        state = "failed" if self.error else "ending" if front.closed or front.draining else "loading" if not front.starts else ""
        state = state or ("restarting" if front.connection is None else "degraded" if lost else "ready")
        hosts = [{"host": host.name, "state": _state(host)} for host in self.supervisor.hosts]
        doing = self.doing if state in ("loading", "restarting") else None
        return {"status": state, "doing": doing, "hosts": hosts, "starts": front.starts}

    def details(self) -> dict[str, Any]:
        """Return who does what and why, what ranks computed last or teams do now, and what happened."""
        doing = {"computed": self.computed, "teams": self.teams}
        return {"plan": self.plan, "why": self.why, **doing, "events": list(self.events)}

    def _run(self) -> None:
        try:
            self.supervisor.run()
            if not self.front.closed:
                raise ServiceError("the job has ended though nobody asked it to")
        except HeptiError as error:
            self.error = error
        except Exception as error:  # a thread that ends without a word would leave a service that never answers
            self.error = ServiceError(f"{type(error).__name__}: {error} ({place_of(error)})")
        if self.error is not None:
            self.front.fail(ServiceError(f"the service has failed: {self.error}"))
            self.failed.set()
        self.ready.set()  # whoever waits for that looks at what is the matter

    def _state(self) -> State:
        return State([], list(self.known.profiles), self.front.address(), self.front.starts > 0)

    def _does(self, what: str) -> None:
        self.doing = what

    def _heard(self, record: dict[str, Any]) -> None:
        if record["kind"] == "measured":
            self.known.learn(record)
        elif record["kind"] == "doing":
            self.doing = record["what"]

    def _heard_of_rank_0(self, record: dict[str, Any]) -> None:
        if record["kind"] == "ready":
            self.plan, self.why, self.computed, self.teams = record["plan"], record.get("why", []), {}, []
            self.say(f"ready on {', '.join(dict.fromkeys(record['plan']['hosts']))}" + " again" * (self.front.starts > 1))
            self.supervisor.going = True
            self.ready.set()
        elif record["kind"] == "planned":
            self.plan, self.why, self.computed = record["plan"], [], {}
        elif record["kind"] == "answered":
            self.computed = record["computed"]
        elif record["kind"] == "teams":
            self.teams = record["teams"]
        elif record["kind"] == "lost":  # what they had is asked again
            self.doing = STARTING
            self.teams = [team | {"inputs": 0} for team in self.teams]
        elif record["kind"] == "said":
            self.say(record["what"])
        elif record["kind"] == "given up":
            self.supervisor.excuse()
            self.say(f"{counted(record['count'], 'inputs')} under way each time that the job failed: not tried again")
        for listener in self.listeners:
            listener(record)

    def _gains(self, more: Sequence[str], present: Sequence[str]) -> float:
        part = self.known.gain(more, present)
        return AHEAD_SECONDS * (UNKNOWN_GAIN if part is None else part)


def _state(host: Host) -> str:
    """Return how a host is: "here", "lost", or "resting": it answers again, and has no part until the next start."""
    return "here" if not host.lost else "lost" if host.missed else "resting"
