"""The command line of the lab. Knows its words and what to print; does not know how a lab works.

    python -m tests.lab run mixed4 -- run                 a job on a lab of its own: up, mpirun, down
    python -m tests.lab up pi8                            a lab that stays
    python -m tests.lab shell pi8 pi3 -- uptime
    python -m tests.lab set pi8 pi3 --board 20 --mbit 10
    python -m tests.lab down pi8
    python -m tests.lab experiment faults --rounds 10
"""

import argparse
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from hepti_mpi.commands.terminal import OUT, hand_on

from . import check, state
from .clusters import Cluster, checked_board, checked_rate, cluster_named, read_clusters, slower
from .errors import LabError
from .experiments import drift, quiet, soak
from .faults import faults
from .jobs import typed_line
from .lab import Lab
from .service import service
from .throughput import teams, throughput


def main() -> int:
    """Run one command; return its exit code, 2 after a mistake that the user can mend."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    options = _parser().parse_args()
    try:
        return options.command(options)
    except LabError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def up(options: argparse.Namespace) -> int:
    cluster = _cluster(options)
    lab = Lab(cluster, name=options.name or cluster.name, share=options.share, burst_seconds=_burst(options))
    lab.up()
    lab.stay()
    print(f"{lab.name} is up: {', '.join(lab.hosts)}")
    return 0


def run(options: argparse.Namespace) -> int:
    cluster = _cluster(options)
    hand_on(OUT)  # a job that ssh started sees no terminal
    with Lab(cluster, share=options.share, burst_seconds=_burst(options)) as lab:
        program = [options.program] if options.program else ["-m", "hepti_mpi"]
        return lab.mpirun([sys.executable, *program, *_rest(options.arguments)], stdin=None).returncode


def down(options: argparse.Namespace) -> int:
    """Take the lab of that name down, and remove what killed runs on that cluster left."""
    labs = state.names()
    if options.cluster not in labs and options.cluster not in read_clusters():
        raise LabError(f"no lab {options.cluster} is up; see: python -m tests.lab list")
    found = False
    for name in labs:
        dead_run = name.startswith(f"{options.cluster}-") and not state.is_alive(state.LABS / name)
        if name == options.cluster or dead_run:
            state.remove(state.LABS / name)
            print(f"{name} is down")
            found = True
    if not found:
        print(f"{options.cluster} was not up")
    return 0


def shell(options: argparse.Namespace) -> int:
    words = _rest(options.arguments) or ["bash"]
    line = typed_line(words[0] if len(words) == 1 else shlex.join(words), os.getcwd())
    return Lab.attach(options.lab).ssh(options.host, [line], terminal=sys.stdin.isatty(), stdin=None).returncode


def change(options: argparse.Namespace) -> int:
    if options.board is None and options.mbit is None:
        raise LabError("nothing to change; give --board B or --mbit M")
    lab = Lab.attach(options.lab)
    if options.board is not None:
        lab.set_board(options.host, slower(checked_board(options.board, options.host), lab.cluster.slow))
    if options.mbit is not None:
        lab.set_rate(options.host, checked_rate(options.mbit, options.host) / lab.cluster.slow)
    return 0


def show(options: argparse.Namespace) -> int:
    """Print the clusters of the file, then the labs that are up or were left behind."""
    for cluster in read_clusters().values():
        hosts = cluster.in_slow_motion(1).hosts
        print(f"cluster {cluster.name}{_motion(cluster)}: " + ", ".join(f"{one.name} is {one.board}, {one.mbit:g} Mbit/s" for one in hosts))
    for name in state.names():
        if not (state.LABS / name / "lab.json").exists() and state.is_alive(state.LABS / name):
            print(f"lab {name}: starting")
        elif state.is_alive(state.LABS / name):
            lab = Lab.attach(name)
            boards = ((host, slower(lab.board(host), 1 / lab.cluster.slow)) for host in lab.hosts)
            print(f"lab {name}{_motion(lab.cluster)}: " + ", ".join(f"{host} is {board}" for host, board in boards))
        else:
            print(f"lab {name}: dead; remove it with: python -m tests.lab down {name}")
    return 0


def _motion(cluster: Cluster) -> str:
    return "" if cluster.slow == 1 else f", in motion {cluster.slow:g} times as slow"


def judge(options: argparse.Namespace) -> int:
    reason = check.obstacle()
    if reason:
        raise LabError(reason)
    print("the lab can run here")
    return 0


def experiment(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="hepti-experiment-") as folder:
        return EXPERIMENTS[options.name](options, Path(folder))


EXPERIMENTS = {"drift": drift, "quiet": quiet, "faults": faults, "soak": soak, "throughput": throughput, "teams": teams, "service": service}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description="An emulated cluster of real hosts on this machine.")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    def verb(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = verbs.add_parser(name, help=text, description=text)
        command.set_defaults(command=function)
        return command

    starting = [
        verb("up", up, "bring a cluster up, until `down`"),
        verb("run", run, "bring a cluster up, run `mpirun ... python -m hepti_mpi ARGUMENTS` on it, take it down"),
    ]
    starting[1].add_argument("--program", metavar="FILE", help="run this Python file instead of hepti_mpi")
    motion = "slow motion: boards and links S times slower than described; times are S times as long; default: the cluster's own"
    for command in starting:
        share = "a folder below /tmp, /run or /dev/shm that all hosts see; other folders they see anyway"
        command.add_argument("--share", metavar="FOLDER", action="append", default=[], help=share)
        command.add_argument("--slow", metavar="S", type=float, help=motion)
        command.add_argument("--burst", metavar="MS", type=float, help="what a link may save up while idle, in ms; default: 128 KiB")
    for command in [*starting, verb("down", down, "take a lab down, and remove what is left of killed ones")]:
        command.add_argument("cluster", metavar="CLUSTER")
    starting[0].add_argument("--name", help="of the lab; default: the cluster's, which a second one cannot have")
    on_host = [
        verb("shell", shell, "run a command on a host, over ssh"),
        verb("set", change, "change the board or the link of a host"),
    ]
    for command in on_host:
        command.add_argument("lab", metavar="CLUSTER", help="or the name of a lab as `list` prints it")
        command.add_argument("host", metavar="HOST")
    on_host[1].add_argument("--board", metavar="B", help="of boards.toml, NAME*2 for half as fast, or a factor")
    on_host[1].add_argument("--mbit", metavar="M", type=float, help="rate of its link, both ways")
    for command, name in ((starting[1], "ARGUMENTS"), (on_host[0], "COMMAND")):
        command.add_argument("arguments", metavar=name, nargs=argparse.REMAINDER)
    trial = verb("experiment", experiment, "see what becomes of jobs when a cluster changes or breaks; the last line is JSON")
    trial.add_argument("name", choices=EXPERIMENTS)
    asked = "default: 80 of drift, 200 of quiet, 1000 a round of faults, 5000 of soak, 2000 of throughput and teams"
    trial.add_argument("--texts", action="store_true", help="faults while texts are written")
    trial.add_argument("--teams", action="store_true", help="faults while each host writes texts of its own")
    trial.add_argument("--stages", action="store_true", help="faults while texts pass through stages")
    trial.add_argument("--rounds", type=int, help="of faults and service; default: 100, 60")
    trial.add_argument("--requests", type=int, help=asked)
    trial.add_argument("--serve", action="store_true", help="of throughput: by a service, for embeddings")
    trial.add_argument("--clusters", help="of throughput, such as even4,pi8; default: even4,mixed4,pi8,wifi3")
    trial.add_argument("--seed", type=int, default=1, help="of what is random; default: 1")
    trial.add_argument("--methods", help="of drift, such as hepti,coedge; default: all")
    trial.add_argument("--slow", metavar="S", type=float, help="slow motion of drift, quiet and throughput, taken out of times; default: 1")
    stores = "a store; default: random weights, of BERT-Large for drift and quiet, of MiniLM's size for soak, else of a tiny model"
    trial.add_argument("--weights", type=Path, help=stores)
    trial.add_argument("--output", type=Path, help="a folder for the picture and the samples of drift")
    verb("list", show, "print the clusters, and the labs that are up")
    verb("check", judge, "say whether the lab can run here; exit code 2 where it cannot")
    return parser


def _rest(arguments: list[str]) -> list[str]:
    return arguments[1:] if arguments[:1] == ["--"] else arguments


def _cluster(options: argparse.Namespace) -> Cluster:
    cluster = cluster_named(options.cluster)
    return cluster if options.slow is None else cluster.in_slow_motion(options.slow)


def _burst(options: argparse.Namespace) -> float | None:
    if options.burst is not None and not 0 < options.burst <= 1e6:
        raise LabError(f"--burst {options.burst:g} is no time in milliseconds, above 0 and at most a million")
    return None if options.burst is None else options.burst / 1000


if __name__ == "__main__":
    sys.exit(main())
