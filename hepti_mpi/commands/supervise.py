"""The command that keeps a run going when hosts are lost: it keeps the journal and writes the output."""

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from hepti_mpi.commands.asking import going_on
from hepti_mpi.commands.options import FILE
from hepti_mpi.commands.screen import COLUMNS, SCREEN, Meter, make_room, meanwhile, put_out, words_options
from hepti_mpi.wording import counted

UNKNOWN_GAIN = 0.1  # of the rest of a job, that a host is taken to bring of which nothing is known


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("hostfile", type=FILE)
@click.option("--mpirun", default="mpirun", show_default=True, help="How mpirun is called, with options for it.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@words_options()
@click.pass_context
def supervise(context: click.Context, hostfile: Path, mpirun: str, arguments: tuple[str, ...]) -> None:
    """Run on the hosts of a hostfile, and go on without those that are lost; no answer is lost.

    \b
    Example, on any machine that the hosts can be reached from with ssh:
      python -m hepti_mpi supervise hostfiles/pi4.txt -- run --input texts.txt --output answers.jsonl
    """
    import shlex

    from hepti_mpi.cluster.hosts import read_hosts
    from hepti_mpi.comm import interrupts
    from hepti_mpi.serving.outputs import check_apart
    from hepti_mpi.supervisor.supervise import Interrupted, Supervisor

    if arguments[:1] != ("run",):
        raise click.UsageError("what is to be supervised is a run: python -m hepti_mpi supervise HOSTFILE -- run ...")
    verbs = context.parent.command if context.parent else None
    assert isinstance(verbs, click.Group)
    options = verbs.commands["run"].make_context("run", list(arguments[1:]), parent=context).params
    if options["repeat"] != 1 or options["source"] == "-":
        raise click.UsageError("a supervised run answers a file once: leave out --repeat and standard input")
    for name in ("plan_file", "profile_file", "shares", "emulate"):
        if options[name] is not None:
            option = name.removesuffix("_file")
            raise click.UsageError(f"--{option} is for one set of hosts, of which a supervised run may lose some: leave it out")
    if len(options["memory_limit"] or ()) > 1:
        raise click.UsageError("--memory-limit per rank is for one set of hosts, of which a supervised run may lose some: give one number")
    if options["weights"] is not None and options["weights"].is_dir():
        raise click.UsageError(f"{options['weights']} holds files cut for one set of ranks, of which a supervised run may lose some: "
                               "give --weights a store")  # fmt: skip
    if options["output"] is not None:
        check_apart(options["output"], options["source"])
    hosts = read_hosts(hostfile)

    kept = Kept(hostfile.with_suffix(".profile.json"), options["output"], options["resume"], SCREEN.say, options["fresh"])
    if SCREEN.width is not None:
        os.environ[COLUMNS] = str(SCREEN.width)
    rest = [word for word in arguments if word != "--resume"] + ["--quiet"] * SCREEN.quiet
    supervisor = Supervisor(hosts, shlex.split(mpirun), rest, kept.state, kept.heard, kept.gains, kept.say)

    signals = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def interrupted(number: int, frame: Any) -> None:
        for one in signals:  # once is enough: what is left is put in order
            signal.signal(one, signal.SIG_IGN)
        raise Interrupted(128 + number)

    interrupts.leave()
    for number in signals:
        signal.signal(number, interrupted)
    supervisor.make_room = make_room
    try:
        with meanwhile("starting") as kept.meter:
            supervisor.run()
        kept.write()
    except Interrupted as end:
        kept.say(kept.interrupted())
        sys.exit(end.code)


class Kept:
    """What a supervised run has told: answers, in a journal where there is an output; and what was measured, beside the hostfile."""

    def __init__(self, saved: Path, output: Path | None, resume: bool, say: Any, fresh: bool = False) -> None:
        """Raises: InputError when the output could not be written."""
        from hepti_mpi.cluster import profile as profiles
        from hepti_mpi.errors import ProfileError
        from hepti_mpi.serving import finished as outcomes
        from hepti_mpi.serving import outputs
        from hepti_mpi.serving.journal import finished_places, journal_path

        self.saved, self.output, self.resume, self.say = saved, output, resume, say
        self.profile: Any = None  # of as many hosts as were measured
        self.profiles: list[Any] = []  # all that are known
        try:
            self.profiles = profiles.load_all(saved) if saved.exists() and not fresh else []
        except ProfileError as error:
            say(str(error))
        self.journal: Any = None
        self.finished: dict[int, Any] = {}
        self.count: int | None = None
        self.measured: dict[str, Any] | None = None
        self.meter: Meter | None = None
        self.record: dict[str, Any] | None = None
        self.since: float | None = None  # the first answer of this start
        self.answers = 0  # after it
        self.starts = 0
        self.begin = time.monotonic()
        self.before: list[int] = []
        self.already: Any = None  # the finished output, where there is one to be resumed
        self.lock = threading.Lock()
        if output is not None:
            outputs.check_path(output)
            self.already = outcomes.nothing_left(output, resume, say)
            self.before = finished_places(journal_path(output)) if resume else []
            if self.already is not None:
                self.before = list(range(self.already.tally.inputs))

    def state(self) -> Any:
        """Return what the next start need not do again."""
        from hepti_mpi.supervisor.progress import State

        return State(sorted({*self.before, *self.finished}), list(self.profiles))

    def heard(self, record: dict[str, Any]) -> None:
        """Take one record in. Raises: InputError when the journal is another run's or cannot be written."""
        from hepti_mpi.errors import InputError
        from hepti_mpi.serving.finished import check_not_less
        from hepti_mpi.serving.journal import Journal, journal_path
        from hepti_mpi.serving.outputs import checked

        kind = record["kind"]
        if kind == "begin":
            head = {"requests": record["requests"], **record["head"]}
            if self.count is None:
                self.count, self.head = record["requests"], head
                if self.already is not None:
                    self.already.check(head)
                elif self.output is not None:
                    if self.resume:
                        check_not_less(self.output, self.count)
                    self.journal = Journal(journal_path(self.output), record["head"], record["requests"], self.resume)
                    self.finished = self.journal.finished
            elif head != self.head:
                differs = next(key for key in head if head[key] != self.head.get(key))
                raise InputError(f"the first host has another {differs} now ({head[differs]}, before {self.head[differs]}): "
                                 "give all hosts the same input and store")  # fmt: skip
            self.finished.update((place, checked(item)) for place, item in record["refused"])
            self.since, self.answers, self.starts = None, 0, self.starts + 1
        elif kind == "measured":
            self._learn(record)
        elif kind == "answers":
            with self.lock:
                new = [(place, checked(item)) for place, item in zip(record["places"], record["finished"]) if place not in self.finished]
                if self.since is None:
                    self.since = time.monotonic()
                else:
                    self.answers += len(new)
                if self.journal is not None:
                    self.journal.add([place for place, _ in new], [item for _, item in new], record["seconds"])
                else:
                    self.finished.update(new)
            if self.meter is not None and self.meter.total is None:
                self.meter.count_from((self.count or 0) - len({*self.finished, *self.before}))
            elif self.meter is not None:
                self.meter.advance(len(new))
        elif kind == "done":
            self.record = record["record"]

    def _learn(self, record: dict[str, Any]) -> None:
        """Take in what was measured, unless it is a part of what is known."""
        from hepti_mpi.cluster import profile as profiles
        from hepti_mpi.errors import ProfileError

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
            profile.save(self.saved)
        except ProfileError as error:  # the next job measures again
            self.say(f"the profile is not kept: {error}")

    def gains(self, more: Any, present: Any) -> float | None:
        """Return the seconds that the rest of the job takes less on the hosts `more` than on those that are `present`."""
        from hepti_mpi.cluster import profile as profiles
        from hepti_mpi.errors import HeptiError
        from hepti_mpi.models.spec import ModelSpec
        from hepti_mpi.planning import methods
        from hepti_mpi.planning.search import Request

        with self.lock:
            measured, profile, answers, since = self.measured, self.profile, self.answers, self.since
            left = (self.count or 0) - len(self.finished)
        if measured is None or since is None or not answers:
            return None
        seconds = (time.monotonic() - since) / answers * left
        asked: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in measured["request"].items()}
        spec, request = ModelSpec.from_json(measured["spec"]), replace(Request(**asked), limits=None)
        prices = []
        for hosts in (more, present):
            part = profiles.of_hosts(profile, hosts)
            if part is None:  # one that was never measured
                return UNKNOWN_GAIN * seconds
            try:
                chosen = methods.decide(measured["method"], spec, measured["source_hash"], part, request).chosen
            except HeptiError:
                return None
            prices.append(chosen.price.seconds)
        return seconds * (1 - prices[0] / prices[1])

    def interrupted(self) -> str:
        """Say what is kept of a run that is interrupted now, and what goes on with it."""
        if self.journal is None or not self.finished:
            return f"interrupted after {counted(len(self.finished), 'answers')}; nothing is kept"
        return f"interrupted; {len(self.finished)} of {self.count} answers are kept in {self.journal.path}; {going_on()}"

    def write(self) -> None:
        """Write the output or print the answers, and the record of the last start. Raises PartlyAnswered."""
        from hepti_mpi.errors import InputError
        from hepti_mpi.serving.outputs import Tally

        count = self.count or 0
        if self.already is not None:  # the first host has said that already
            if self.record is not None:
                SCREEN.document(self.record | self.already.tally.numbers, always=True)
            self.already.tally.check()
            return
        missing = count - len(self.finished)
        if missing:
            raise InputError(f"{missing} of {count} answers are missing; go on with run --resume")
        finished = [self.finished[place] for place in range(count)]
        put_out(self.output, finished, self.head)
        if self.journal is not None:
            self.journal.remove()
        self._put_record(Tally.of(finished))

    def _put_record(self, tally: Any) -> None:
        """Print what became of all inputs, over all starts, and the record of the last one. Raises PartlyAnswered."""
        from hepti_mpi.reporting.records import supervised_lines

        if self.record is not None:
            every = {"inputs": tally.inputs, "seconds": float(f"{time.monotonic() - self.begin:.6g}"), "starts": self.starts}
            record = self.record | tally.numbers | {"supervised": every}
            SCREEN.show("\n" + supervised_lines(record, None if self.output is None else str(self.output)))
            SCREEN.document(record, always=True)
        tally.check()
