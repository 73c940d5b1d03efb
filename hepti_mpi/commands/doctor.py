"""The command that looks for what would keep a cluster from working, or from working fast."""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.commands.options import FILE, weights_option, words_options
from hepti_mpi.commands.paths import store_path
from hepti_mpi.commands.screen import SCREEN
from hepti_mpi.weights.places import DEFAULT_STORE, WEIGHTS

if TYPE_CHECKING:
    from hepti_mpi.cluster.hosts import Host
    from hepti_mpi.comm.ranks import Comm
    from hepti_mpi.doctor.findings import Finding

ASK_SECONDS = 30.0


@click.command()
@click.argument("hostfile", type=FILE, required=False)
@weights_option
@click.option("--weights-cache", "cache", type=FILE, help="Also tell what hosts keep in this folder of weights as kernels read them.")
@click.option("--write", "folder", type=FILE, help="Also write the recommended hostfile, settings and batch script into this folder.")
@words_options()
@click.pass_context
def doctor(context: click.Context, hostfile: Path | None, weights: Path | None, cache: Path | None, folder: Path | None) -> None:
    """Look at all hosts for what would keep them from working, or from working fast.

    \b
    Examples, first over ssh, then as mpirun starts the ranks (their cores and links too):
      python -m hepti_mpi doctor hostfiles/pi4.txt
      mpirun -hostfile hostfiles/pi4.txt python -m hepti_mpi doctor
    """
    from hepti_mpi.cluster.hosts import Host, content_of, hosts_of
    from hepti_mpi.comm.launcher import host_name, launched, launched_rank, launcher_hostfile
    from hepti_mpi.doctor.findings import Asking, finding_lines, findings, host_lines, kept_lines, recommended
    from hepti_mpi.documents import check_place, whole_file
    from hepti_mpi.errors import HeptiError, reason_of

    if folder is not None and launched_rank() == 0:
        check_place(folder / "hosts.txt", HeptiError, "--write ", making=True)
    store = weights or _the_store()
    named = str(hostfile or launcher_hostfile() or "") or None
    question = {"store": store and str(store), "cache": cache and str(cache)}
    asking, unread = Asking(sys.executable, os.getcwd(), launched(), named, str(store or ""), weights is not None), []
    if launched():
        from hepti_mpi.comm.ranks import Comm

        if hostfile is not None:
            raise click.UsageError("mpirun knows the hosts: leave HOSTFILE out, or mpirun")
        from hepti_mpi.doctor.facts import facts

        own = facts(question | {"hosts": []})  # before MPI is started: it can change which cores are used
        hosts = _ask_ranks(Comm.world(ASK_SECONDS), own)
        if hosts is None:
            return
    else:
        content = content_of(hostfile) if hostfile else b""
        listed = hosts_of(content, hostfile) if hostfile else [Host(host_name())]
        asking = replace(asking, ports={host.login: host.port for host in listed if host.port})
        unread = list(_unread(hostfile, content, listed)) if hostfile else []
        hosts = _ask_hosts([host for host in listed if not host.lost], question)
    found = [*unread, *findings(asking, hosts)]
    line, files = recommended(asking, hosts, named)
    if folder is not None:
        line, files = recommended(asking, hosts, str(folder / "hosts.txt"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                with whole_file(folder / name) as file:
                    file.write(text.encode())
        except OSError as error:
            raise HeptiError(f"{folder} cannot be written: {reason_of(error)}") from None
    SCREEN.show(host_lines(hosts, SCREEN.width) + "\n")
    if kept := kept_lines(hosts):
        SCREEN.show(kept + "\n")
    SCREEN.result(finding_lines(found, len(hosts)))
    SCREEN.show(f"\nto start a job{', once that is mended' * bool(found)}:\n  {line}")
    if folder is not None:
        SCREEN.show(f"written to {folder}: {', '.join(files)}")
    told = [asdict(one) for one in found]
    SCREEN.document({"format": "hepti-doctor", "format_version": 1, "hosts": hosts, "findings": told, "line": line})
    if found:
        context.exit(2)


def _unread(hostfile: Path, content: bytes, listed: "Sequence[Host]") -> "Iterator[Finding]":
    """Yield what mpirun does not read of a hostfile as it is meant: of each host's lines, and of the file."""
    from hepti_mpi.cluster.hostfile import faults
    from hepti_mpi.comm.launcher import host_name
    from hepti_mpi.doctor.findings import hostfile_finding

    for host in (host for host in listed if host.foreign):
        also = ", and no other of this host" if {number for number, _ in host.foreign} != {host.number} else ""
        mend = f"take it out, and each other line of {host.login}" if host.lost else f"write the line: {host.line}{also}"
        yield hostfile_finding(str(hostfile), host.login, host.foreign, mend)
    for number, said, mend in faults(content):
        yield hostfile_finding(str(hostfile), host_name(), [(number, said)], mend.format(quote(str(hostfile))))


def _the_store() -> Path | None:
    """Return the store that a job would take which names none; None, after a word, where it would ask for a name."""
    from hepti_mpi.comm.launcher import launched_rank
    from hepti_mpi.errors import StoreError

    try:
        return store_path(None) if list(WEIGHTS.glob("*.h5")) else DEFAULT_STORE
    except StoreError as error:
        if launched_rank() == 0:
            SCREEN.say(f"no store is looked at: {error}")
        return None


def _ask_ranks(world: "Comm", own: dict[str, Any]) -> dict[str, Any] | None:
    """Return the facts of the hosts of all ranks on rank 0. Collective."""
    from hepti_mpi.cluster.links import links
    from hepti_mpi.doctor.facts import ways

    names = world.gather_all(own["host"])
    own["ways"] = ways(sorted(set(names) - {own["host"]}))
    _, rates, _ = links(world)
    others = [rate for rate, name in zip(rates, names) if name != own["host"]]
    own["bytes_per_second"] = max(others, default=None)
    begin = time.time()
    world.quick_barrier()
    own["clock"] = time.time()
    every = world.gather_all(own)
    end = time.time()
    if world.rank:
        return None
    hosts: dict[str, Any] = {}
    for rank, facts in enumerate(every):
        here = [name for name, other in hosts.items() if other["host"] == facts["host"] and other["interfaces"] == facts["interfaces"]]
        if here:
            hosts[here[0]]["ranks"] += 1
            continue
        name = facts["host"] if facts["host"] not in hosts else f"{facts['host']} (rank {rank})"
        hosts[name] = facts | {"ranks": 1, "skew": _skew(facts["clock"], begin, end)}
    return hosts


def _ask_hosts(hosts: "Sequence[Host]", question: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of each of the hosts, or why it cannot be asked; `question`: as of facts.facts, but for the others."""
    from concurrent.futures import ThreadPoolExecutor

    names = [host.name for host in hosts]
    questions = [json.dumps(question | {"hosts": [name for name in names if name != own]}) for own in names]
    with ThreadPoolExecutor(min(32, len(hosts))) as pool:
        return {host.login: found for host, found in zip(hosts, pool.map(_ask, hosts, questions))}


def _ask(host: "Host", question: str) -> dict[str, Any] | str:
    """Run doctor/facts.py on a host, with the interpreter of this one where it is there, else with python3."""
    import shlex
    import subprocess

    from hepti_mpi.cluster.hosts import shell
    from hepti_mpi.doctor import facts
    from hepti_mpi.errors import reason_of

    text = Path(facts.__file__).read_text()
    program, asked = shlex.quote(sys.executable), shlex.quote(question)
    line = f"cd {shlex.quote(os.getcwd())} 2>/dev/null; if [ -x {program} ]; then exec {program} - {asked}; else exec python3 - {asked}; fi"
    begin = time.time()
    try:
        done = shell(host, line, input=text, capture_output=True, text=True, errors="replace", timeout=ASK_SECONDS)
    except OSError as error:
        return f"ssh cannot be called: {reason_of(error)}"
    except subprocess.TimeoutExpired:
        return f"it did not answer within {ASK_SECONDS:.0f} s"
    end = time.time()
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        found["settings"] |= facts.handed_on()
        line = replace(host, slots=1, most=None).line
        return found | {"skew": _skew(found["clock"], begin, end), "starts": host.here, "line": line, "port": host.port}
    except (IndexError, ValueError, KeyError, TypeError):
        said = " ".join((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1].split())
        return said[:300]


def _skew(clock: float, begin: float, end: float) -> float:
    """Return by how many seconds at least a clock is ahead that was looked at between two moments of another."""
    return clock - end if clock > end else clock - begin if clock < begin else 0.0
