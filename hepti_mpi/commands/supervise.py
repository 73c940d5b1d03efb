"""The command that keeps a run going when hosts are lost: it keeps the journal and writes the output."""

import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.commands.meter import meanwhile
from hepti_mpi.commands.options import FILE, check_alone, words_options
from hepti_mpi.commands.screen import SCREEN
from hepti_mpi.commands.terminal import OUT, hand_on, pass_on

if TYPE_CHECKING:
    from hepti_mpi.supervisor.kept import Kept

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
RUNS = "what is to be supervised is a run: python -m hepti_mpi supervise HOSTFILE -- run"
SERVES = "serve watches its hosts itself: python -m hepti_mpi serve HOSTFILE"


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("hostfile", type=FILE)
@click.option("--mpirun", default="mpirun", show_default=True, help="How mpirun is called, with options for it.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@words_options(has_answers=True)
@click.pass_context
def supervise(context: click.Context, hostfile: Path, mpirun: str, arguments: tuple[str, ...]) -> None:
    """Run on the hosts of a hostfile, and go on without those that are lost; no answer is lost.

    \b
    Example, on any machine that the hosts can be reached from with ssh:
      python -m hepti_mpi supervise hostfiles/pi4.txt -- run --input texts.txt --output answers.jsonl
    """
    from hepti_mpi.cluster.hosts import read_hosts
    from hepti_mpi.comm import interrupts
    from hepti_mpi.comm.launcher import mpirun_words
    from hepti_mpi.documents import put_away
    from hepti_mpi.serving.outputs import check_apart
    from hepti_mpi.supervisor.kept import Kept
    from hepti_mpi.supervisor.supervise import Interrupted, Supervisor

    check_alone("supervise", "HOSTFILE -- run")
    if arguments[:1] != ("run",):
        raise click.UsageError(SERVES if arguments[:1] == ("serve",) else RUNS)
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
    hand_on(OUT)
    rest = [word for word in arguments if word != "--resume"] + ["--quiet"] * SCREEN.quiet
    supervisor = Supervisor(hosts, mpirun_words(mpirun), rest, kept.state, kept.heard, kept.gains, kept.say)

    def interrupted(number: int, frame: Any) -> None:
        for one in SIGNALS:  # once is enough: what is left is put in order
            signal.signal(one, signal.SIG_IGN)
        raise Interrupted(128 + number)

    interrupts.leave()
    interrupts.keeping(lambda: None, left=kept.left)
    for number in SIGNALS:
        signal.signal(number, interrupted)
    supervisor.show = pass_on
    try:
        with meanwhile("starting") as kept.meter:
            supervisor.run()
        finish(kept)
    except Interrupted as end:
        kept.say(kept.interrupted())
        put_away()
        sys.exit(end.code)


def finish(kept: "Kept") -> None:
    """Write the output or print the answers, then what became of all inputs, over all starts, and the record of the last one.

    Raises PartlyAnswered.
    """
    from hepti_mpi.reporting.summary import supervised_lines

    with meanwhile(f"writing {kept.output}", shown=kept.output is not None):
        tally = kept.write()
    record = kept.record
    if kept.output is None and kept.texts is not None:
        SCREEN.texts([item["answer"] for item in kept.in_order()])
    elif kept.output is None:
        SCREEN.answers([item["answer"] for item in kept.in_order()])
    if record is not None and kept.already is not None:  # the first host has said that already
        SCREEN.document(record | tally.numbers, always=True)
    elif record is not None:
        every: dict[str, float] = {"inputs": tally.inputs, "before": len(kept.before)}
        every |= {"seconds": float(f"{time.monotonic() - kept.begin:.6g}"), "starts": kept.starts}
        record = record | tally.numbers | {"supervised": every}
        gap = "\n" * (kept.output is None and kept.texts is None)  # behind answers; texts and the plan have one
        SCREEN.show(gap + supervised_lines(record, None if kept.output is None else str(kept.output)))
        SCREEN.document(record, always=True)
    tally.check()
