"""What a supervised run has told: answers, in a journal where there is an output; and what was measured, beside the hostfile.

Knows records of the channel and what is kept of them; does not know how a run is started or watched.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from hepti_mpi.cluster import profile as profiles
from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.errors import HeptiError, InputError, ProfileError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning import methods, texts
from hepti_mpi.planning.demand import Demand
from hepti_mpi.serving.answers import Answers, InOrder
from hepti_mpi.serving.finished import Finished as Output
from hepti_mpi.serving.finished import check_not_less, nothing_left, write_signed
from hepti_mpi.serving.journal import Begun, Journal, add_grown, journal_path, noted
from hepti_mpi.serving.outputs import Finished, Tally, check_path, checked
from hepti_mpi.serving.sink import kept_of
from hepti_mpi.supervisor.progress import State
from hepti_mpi.wording import counted

UNKNOWN_GAIN = 0.1  # of the rest of a job, that a host is taken to bring of which nothing is known


class Meter(Protocol):
    """What shows how far the run is."""

    total: int | None

    def at(self, label: str) -> None: ...

    def count_from(self, done: int, total: int) -> None: ...

    def advance(self, amount: int, work: int, left: int) -> None: ...


class Known:
    """What was measured of hosts: in this job and before, beside the hostfile where there is one."""

    def __init__(self, saved: Path | None, fresh: bool, say: Callable[[str], None]) -> None:
        self.saved, self.say, self.lock = saved, say, threading.Lock()
        self.profile: ClusterProfile | None = None  # of as many hosts as were measured
        self.profiles: list[ClusterProfile] = []  # all that are known
        self.measured: dict[str, Any] | None = None
        try:
            self.profiles = profiles.load_all(saved) if saved is not None and saved.exists() and not fresh else []
        except ProfileError as error:
            say(str(error))

    def learn(self, record: dict[str, Any]) -> None:
        """Take in what was measured, unless it is a part of what is known."""
        profile = profiles.from_json(record["profile"])
        with self.lock:
            self.measured = record
            for known in self.profiles:
                if profiles.of_hosts(known, profile.hosts) == profile:
                    self.profile = known
                    return
            self.profile = profile
            self.profiles.append(profile)
        try:
            if self.saved is not None:
                profile.save(self.saved)
        except ProfileError as error:  # the next job measures again
            self.say(f"the profile is not kept: {error}")

    def gain(self, more: Sequence[str], present: Sequence[str]) -> float | None:
        """Return which part of its time a batch takes less on the hosts `more` than on those that are `present`; None: nobody knows."""
        with self.lock:
            measured, profile = self.measured, self.profile
        if measured is None or profile is None:
            return None
        asked: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in measured["demand"].items()}
        spec, demand = ModelSpec.from_json(measured["spec"]), replace(Demand(**asked), limits=None)
        prices = []
        for hosts in (more, present):
            part = profiles.of_hosts(profile, hosts)
            if part is None:  # one that was never measured
                return UNKNOWN_GAIN
            try:
                asked_of = measured["method"], spec, measured["source_hash"], part, demand
                prices.append(texts.decide(*asked_of).seconds if spec.generates else methods.decide(*asked_of).chosen.price.seconds)
            except HeptiError:
                return None
        return 1 - prices[0] / prices[1]


class Kept:
    """What a supervised run has told: answers, in a journal where there is an output; and what was measured, beside the hostfile."""

    def __init__(self, saved: Path, output: Path | None, resume: bool, say: Callable[[str], None], fresh: bool = False) -> None:
        """Raises: InputError when the output could not be written."""
        self.output, self.resume, self.say = output, resume, say
        self.known = Known(saved, fresh, say)
        self.journal: Journal | None = None
        self.finished, self.refused = Answers(), dict[int, Finished]()
        self.begun = Begun()
        self.texts: dict[str, Any] | None = None  # what is asked of each text, where answers are texts
        self.count: int | None = None
        self.meter: Meter | None = None
        self.record: dict[str, Any] | None = None
        self.since: float | None = None  # the first answer of this start
        self.rows = self.rows_left = 0  # answered after them, and to come
        self.starts, self.written = 0, False
        self.begin = time.monotonic()
        self.before, self.begun_before = list[int](), Begun()
        self.already: Output | None = None  # the finished output, where there is one to be resumed
        self.lock = threading.Lock()
        if output is not None:
            check_path(output)
            self.already = nothing_left(output, resume, say)
            if resume:
                self.before, self.begun_before = noted(journal_path(output))
            if self.already is not None:
                self.before = list(range(self.already.tally.inputs))

    def state(self) -> State:
        """Return what the next start need not do again."""
        begun = self.begun_before if self.count is None else self.begun
        return State(sorted({*self.before, *self.finished, *self.refused}), list(self.known.profiles), begun=begun)

    def heard(self, record: dict[str, Any]) -> None:
        """Take one record in. Raises: InputError when the journal is another run's or cannot be written."""
        kind = record["kind"]
        if kind == "begin":
            self._begin(record)
        elif kind == "doing":
            if self.meter is not None and self.meter.total is None:
                self.meter.at(record["what"])
        elif kind == "measured":
            self.known.learn(record)
        elif kind == "answers":
            self._keep(record)
        elif kind == "done":
            self.record = record["record"]

    def _begin(self, record: dict[str, Any]) -> None:
        """Open the journal when ranks begin for the first time; later starts must be of the same input."""
        head = {"requests": record["requests"], **record["head"]}
        if self.count is None:
            self.count, self.head, self.texts = record["requests"], head, head.get("texts")
            if self.already is not None:
                self.already.check(head)
            elif self.output is not None:
                if self.resume:
                    check_not_less(self.output, self.count)
                self.journal = Journal(journal_path(self.output), record["head"], record["requests"], self.resume)
                self.finished, self.begun = self.journal.finished, self.journal.begun
        elif head != self.head:
            differs = next(key for key in head if head[key] != self.head.get(key))
            raise InputError(f"the first host has another {differs} now ({head[differs]}, before {self.head[differs]}): "
                             "give all hosts the same input and store")  # fmt: skip
        self.refused.update((place, checked(item)) for place, item in record["refused"])
        self.since, self.starts = None, self.starts + 1

    def _keep(self, record: dict[str, Any]) -> None:
        """Keep answers that are new."""
        with self.lock:
            new = [(place, checked(item)) for place, item in zip(record["places"], record["finished"]) if place not in self.finished]
            grown = [one for one in record.get("grown", ()) if one[0] not in self.finished]
            if self.journal is not None:
                self.journal.add([place for place, _ in new], [item for _, item in new], record["seconds"], grown)
            else:
                add_grown(self.begun, grown)
                self.finished.hold(new)
                for place, _ in new:
                    self.begun.pop(place, None)
            self.rows_left = record["rows_left"]
            if self.since is None:
                self.since, self.rows = time.monotonic(), 0
            else:
                self.rows += record["rows"]
        if self.meter is not None and self.meter.total is None:
            self.meter.count_from(len(new), (self.count or 0) - len({*self.finished, *self.refused, *self.before}) + len(new))
        elif self.meter is not None:
            self.meter.advance(len(new), record["rows"], record["rows_left"])

    def gains(self, more: Sequence[str], present: Sequence[str]) -> float | None:
        """Return the seconds that the rest of the job takes less on the hosts `more` than on those that are `present`."""
        with self.lock:
            since, rows, left = self.since, self.rows, self.rows_left
        part = self.known.gain(more, present) if since is not None and rows else None
        return None if part is None or since is None else (time.monotonic() - since) / rows * left * part

    def interrupted(self) -> str:
        """Say what is kept of a run that is interrupted now, and what goes on with it."""
        if self.already is not None or self.written:
            return f"interrupted; every answer is in {self.output}"
        kept = self.left()
        return f"interrupted; {kept}" if kept else f"interrupted after {counted(len(self.finished), 'answers')}; nothing is kept"

    def left(self) -> str:
        """Say what is kept that can be gone on with, "" where nothing is."""
        return kept_of(self.journal, self.count or 0) if self.journal is not None and not self.written else ""

    def write(self) -> Tally:
        """Write the output, where there is one; return what became of all inputs. Raises InputError when answers are missing."""
        if self.already is not None:
            return self.already.tally
        self.finished.hold((place, item) for place, item in self.refused.items() if place not in self.finished)
        if self.output is None:
            return self.finished.tally(self.count or 0)
        tally = write_signed(self.output, self.finished, self.head)
        self.written = True
        if self.journal is not None:
            self.journal.remove()
        return tally

    def in_order(self) -> Sequence[Finished]:
        """Return the answers to all inputs."""
        return InOrder(self.finished)
